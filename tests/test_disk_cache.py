"""The second level of the embedding cache: shared by processes, whole or absent, bounded, and never wrong."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from comfyui_server import Unavailable, comfyui
from conftest import ROOT, as_image, make_image
from samkit.sam import encode
from samkit.sam.models.sam import run_encoder
from samkit.sam.store.disk import SUFFIX, DiskCache
from samkit.sam.tasks import embed
from world import unavailable

DISK = ROOT / "sam" / "store" / "disk.py"


@pytest.fixture
def runs(monkeypatch):
    """Counts the image encoder's forward passes."""
    counted = []
    counting = lambda encoder, images, *args: counted.append(len(images)) or run_encoder(encoder, images, *args)  # noqa: E731
    monkeypatch.setattr("samkit.sam.models.sam.run_encoder", counting)
    return counted


@pytest.fixture
def on(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMKIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


def arrays(seed, size=1000):
    return {"image": np.random.default_rng(seed).random((size,), np.float32), "fine": np.full((2, 3), seed, np.float32)}


def equal(one, other):
    return one is not None and one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def images(count=3):
    return as_image(*(make_image(60, 80, seed) for seed in range(count)))


def test_it_is_off_unless_it_is_asked_for(monkeypatch, tmp_path):
    for name in ("SAMKIT_CACHE_DIR", "SAMKIT_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    assert embed.disk_cache() is None
    monkeypatch.setattr(embed, "user_folder", lambda: tmp_path)
    monkeypatch.setenv("SAMKIT_CACHE_GB", "2.5")
    assert (embed.disk_cache().folder, embed.disk_cache().limit) == (tmp_path / "samkit" / "embeddings", 2_500_000_000)
    monkeypatch.setenv("SAMKIT_CACHE_DIR", str(tmp_path / "mine"))
    assert embed.disk_cache().folder == tmp_path / "mine" / "embeddings"
    monkeypatch.setenv("SAMKIT_CACHE_GB", "0")
    assert embed.disk_cache() is None
    monkeypatch.setenv("SAMKIT_CACHE_GB", "much")
    assert embed.disk_cache() is None and not list(tmp_path.iterdir())


def test_what_is_forgotten_is_read_and_not_encoded(tiny_model, runs, on):
    first = encode(tiny_model, images())
    assert sum(runs) == 3 and len(list(on.glob(f"*{SUFFIX}"))) == 3
    embed.cache.clear()
    again = encode(tiny_model, images())
    assert sum(runs) == 3 and np.array_equal(first, again)
    one = encode(tiny_model, images(1))
    with pytest.raises(ValueError, match="read-only"):
        one[:] = 0


def test_weights_and_precisions_do_not_share_files(tiny_model, runs, on, monkeypatch):
    encode(tiny_model, images(1))
    embed.cache.clear()
    monkeypatch.setattr("samkit.sam.placement.precision.bfloat16_pays", lambda: True)
    tiny_model.precision = "bf16"
    encode(tiny_model, images(1))
    assert sum(runs) == 2
    tiny_model.precision = "fp32"
    tiny_model.image_encoder.neck[0].weight.data.mul_(1.5)
    encode(tiny_model, images(1))
    assert sum(runs) == 3


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign", "another's", "folder"])
def test_a_damaged_file_is_ignored_and_made_anew(tiny_model, runs, on, damage):
    expected = np.array(encode(tiny_model, images(2)))
    path, other = sorted(on.glob(f"*{SUFFIX}"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= damage == "bit"
    written = {"cut": content[:-1], "bit": content, "empty": b"", "foreign": b"x" * 5000, "another's": other.read_bytes()}
    path.unlink()
    path.mkdir() if damage == "folder" else path.write_bytes(written[damage])
    embed.cache.clear()
    assert np.array_equal(encode(tiny_model, images(2)), expected) and sum(runs) == 3
    embed.cache.clear()
    assert np.array_equal(encode(tiny_model, images(2)), expected) and sum(runs) == (4 if damage == "folder" else 3)


def test_a_whole_file_with_other_shapes_is_not_used(tiny_model, runs, on, monkeypatch):
    monkeypatch.setattr(DiskCache, "get", lambda self, key: arrays(1))
    assert encode(tiny_model, images(1)).shape == (1, 32, 8, 8) and sum(runs) == 1


def test_a_disk_that_fails_is_as_good_as_none(tiny_model, runs, on, caplog):
    on.parent.mkdir()
    on.write_text("a file where the folder should be")
    encode(tiny_model, images(2))
    assert sum(runs) == 2 and len([line for line in caplog.messages if "embedding cache" in line]) == 1


def test_the_least_recently_used_files_go_first(tmp_path):
    cache = DiskCache(tmp_path, 50_000)
    for number in range(8):
        cache.put(str(number), arrays(number))
        os.utime(cache._path(str(number)), ns=(number, number))
    assert equal(cache.get("0"), arrays(0)), "read, and so used last"
    stale = tmp_path / "1-dead.samkit-part"
    stale.write_bytes(b"half")
    os.utime(stale, (1, 1))
    (tmp_path / "1-alive.samkit-part").write_bytes(b"half")
    (tmp_path / "somebody's file").write_bytes(b"x" * 100_000)
    for number in range(8, 12):
        cache.put(str(number), arrays(number))
    left = [number for number in range(12) if cache.get(str(number)) is not None]
    assert left[0] == 0 and left[1:] == list(range(12 - len(left) + 1, 12)) and 8 <= len(left) < 12
    assert sum(path.stat().st_size for path in tmp_path.glob(f"*{SUFFIX}")) <= 50_000
    assert not stale.exists() and (tmp_path / "1-alive.samkit-part").exists() and (tmp_path / "somebody's file").exists()
    cache.put("huge", arrays(0, 20_000))
    assert cache.get("huge") is None and cache.get("0") is not None, "what exceeds the limit is not written at all"


WRITER = f"""
import importlib.util, sys, pathlib
import numpy as np
spec = importlib.util.spec_from_file_location("disk", {str(DISK)!r})
disk = importlib.util.module_from_spec(spec)
spec.loader.exec_module(disk)
cache, seed = disk.DiskCache(pathlib.Path(sys.argv[1]), 8_000_000), int(sys.argv[2])
rng = np.random.default_rng(seed)
print("ready", flush=True)
wrong = hits = 0
for _ in range(int(sys.argv[3])):
    key = int(rng.integers(12))
    found = cache.get(str(key))
    expected = np.full(250_000, key, np.float32)
    if found is None:
        cache.put(str(key), {{"image": expected}})
    else:
        hits += 1
        wrong += not np.array_equal(found["image"], expected)
print(wrong, hits, flush=True)
"""


def test_four_processes_share_a_folder_and_one_is_killed(tmp_path):
    def start(seed, count):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(seed), str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    others = [start(seed, 120) for seed in range(3)]
    killed = start(3, 1_000_000)
    assert killed.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(f"{killed.pid}-*.samkit-part")) and time.monotonic() < deadline:
        pass  # until it is writing
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.stdout.close()
    for other in others:
        out, _ = other.communicate(timeout=100)
        wrong, hits = map(int, out.split("\n")[1].split())
        assert other.returncode == 0 and wrong == 0 and hits > 0
    cache = DiskCache(tmp_path, 8_000_000)
    for key in range(12):
        found = cache.get(str(key))
        assert found is None or np.array_equal(found["image"], np.full(250_000, key, np.float32))


SECOND = """
import sys
sys.path[:0] = [{tools!r}, {tests!r}]
from load_pack import load_pack
load_pack()
from conftest import as_image, make_image
from samkit.nodes.predict import Segment
from samkit.sam import load_model
from samkit.sam.models import sam
runs, encoder = [], sam.run_encoder
sam.run_encoder = lambda *args: runs.append(1) or encoder(*args)
images = as_image(*(make_image(60, 80, seed) for seed in range(3)))
masks = Segment().execute(load_model({checkpoint!r}, "fp32"), images, '[{{"x": 30, "y": 25}}]')[0]
print(len(runs), int(masks.sum()))
"""


def test_a_second_process_prompts_without_encoding(tiny_model, runs, on):
    from samkit.nodes.predict import Segment

    masks = Segment().execute(tiny_model, images(), '[{"x": 30, "y": 25}]')[0]
    assert sum(runs) == 3
    paths = {"tools": str(ROOT / "tools"), "tests": str(ROOT / "tests"), "checkpoint": str(tiny_model.checkpoint)}
    done = subprocess.run([sys.executable, "-c", SECOND.format(**paths)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", str(int(masks.sum()))]


def test_the_store_imports_nothing_of_the_pack():
    spec = importlib.util.spec_from_file_location("disk_alone", DISK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.DiskCache is not DiskCache


# As another pack, which may load before this one. From the first prompt on: a line in a file for each image that is encoded.
COUNTING = """
import importlib
import sys
from pathlib import Path

from server import PromptServer

HERE = Path(__file__).parent
NODE_CLASS_MAPPINGS = {}


def count(prompt):
    init = str(HERE.parent / "samkit" / "__init__.py")
    pack = next(name for name, module in sys.modules.items() if getattr(module, "__file__", None) == init)
    module = importlib.import_module(".sam.models.sam", pack)
    run = module.run_encoder

    def counting(encoder, images, *args, **more):
        with (HERE / "encoded.txt").open("a") as log:
            log.write("image\\n" * len(images))
        return run(encoder, images, *args, **more)

    module.run_encoder = counting
    return prompt


PromptServer.instance.add_on_prompt_handler(count)
"""


@pytest.mark.exhaustive  # two servers; a second process is in the suite
@pytest.mark.comfyui
def test_a_restarted_server_prompts_without_encoding(tmp_path, on):
    for folder in ("custom_nodes", "input", "models"):
        (tmp_path / folder).mkdir()
    (tmp_path / "custom_nodes" / "samkit").symlink_to(ROOT, target_is_directory=True)
    counter = tmp_path / "custom_nodes" / "zz_counting"
    counter.mkdir()
    (counter / "__init__.py").write_text(COUNTING)
    graph = json.loads((ROOT / "example_workflows" / "api" / "one_click.json").read_text())
    encoded, masks = [], []
    for _ in range(2):
        try:
            with comfyui(tmp_path) as server:
                saved = server.saved(graph)
        except Unavailable as reason:
            unavailable("comfyui", reason)
        encoded.append(len((counter / "encoded.txt").read_text().splitlines()))
        masks.append([path.read_bytes() for paths in saved.values() for path in paths])
    assert encoded == [1, 1], "the second server reads what the first has kept"
    assert masks[0] == masks[1]

"""Loads the pack under one fixed name, whatever its folder is called, as ComfyUI's loader does."""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


for folder in ("tools", "tests"):
    sys.path.append(str(ROOT / folder))

from comfyui_server import front_ends  # noqa: E402
from load_pack import load_pack  # noqa: E402

load_pack()

CORES = os.cpu_count() or 1
SHARE = CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) or 1  # of one process among several
torch.set_num_threads(SHARE)


@pytest.fixture(autouse=True)
def all_cores_for_full_size(request):
    """Full-size models run longest, when the other processes have little left to do."""
    if SHARE == CORES or not request.node.get_closest_marker("slow"):
        yield
        return
    torch.set_num_threads(CORES)
    yield
    torch.set_num_threads(SHARE)


@pytest.fixture(autouse=True)
def empty_cache():
    """Every test starts without embeddings of the one before."""
    from samkit.sam.models.features import cache as shared
    from samkit.sam.tasks.embed import cache

    cache.clear()
    shared.clear()


@pytest.fixture(scope="session")
def demo_model():
    from samkit.nodes.model import SAMModelLoader

    return SAMModelLoader().load_model("samkit_demo.safetensors")[0]


@pytest.fixture(scope="session")
def tiny_sam():
    """A plain segment_anything Sam, random but lively, small enough for a millisecond."""
    from reference import random_sam

    return random_sam(embed_dim=32, depth=3, heads=2, grid=8, window=3, global_blocks=(1,), out_chans=32, mlp_dim=64)


@pytest.fixture
def tiny_model(tiny_sam, tmp_path):
    """The same weights as `tiny_sam`, loaded by the pack from a file; in float32 on any device, as references compute."""
    from samkit.sam import load_model

    torch.save(tiny_sam.state_dict(), tmp_path / "tiny.pth")
    return load_model(tmp_path / "tiny.pth", "fp32")


@pytest.fixture
def photo():
    """An image with structure at every scale, 60x80: uint8 [H, W, 3]."""
    return make_image(60, 80)


@pytest.fixture
def small_files():
    """A context in which this process can write no file of more bytes than given: the system refuses it, as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system has no limits of that kind")

    @contextlib.contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session", params=front_ends(), ids=lambda folder: folder or "pinned")
def editor_server(request, tmp_path_factory):
    """A real ComfyUI with the pack and its scene, for all tests in a browser, with each front end."""
    from comfyui_server import OTHER_PACK, Unavailable, comfyui
    from world import unavailable

    base = tmp_path_factory.mktemp("editor")
    for folder in ("custom_nodes", "input"):
        (base / folder).mkdir()
    (base / "custom_nodes" / "samkit").symlink_to(ROOT, target_is_directory=True)
    (base / "custom_nodes" / "other_pack.py").write_text(OTHER_PACK)
    shutil.copy(ROOT / "example_workflows" / "samkit_scene.png", base / "input")
    try:
        with comfyui(base, front_end=request.param) as running:
            yield running
    except Unavailable as reason:
        unavailable("comfyui", reason)


# A module's, not the session's: while a page is open, no other test can run an event loop.
@pytest.fixture(scope="module", params=["classic", "nodes2"])
def page(request, editor_server):
    """A browser on that server, with each of ComfyUI's two renderers."""
    from browser import browser_page
    from comfyui_server import Unavailable
    from world import unavailable

    if request.param == "nodes2" and editor_server.json("/system_stats")["system"]["comfyui_version"].startswith("0.3."):
        pytest.skip("Nodes 2.0 is an unfinished experiment in this ComfyUI")
    try:
        with browser_page(editor_server, nodes2=request.param == "nodes2") as opened:
            yield opened
    except Unavailable as reason:
        unavailable("browser", reason)


def make_image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / rng.uniform(2, 30) + columns / rng.uniform(2, 30) + rng.uniform(0, 6)) for _ in range(12)]
    layers = np.stack([sum(waves[i::3]) for i in range(3)], axis=-1) * 30 + 128 + rng.normal(0, 6, (height, width, 3))
    return layers.clip(0, 255).astype(np.uint8)


def as_image(*images):
    """uint8 images of one size as an IMAGE [B, H, W, 3]."""
    return torch.from_numpy(np.stack(images)).float() / 255

"""One file, under whatever names, is one model in memory."""

import gc
import json
import os
import shutil
import sys

import pytest
import torch
from conftest import as_image, make_image
from reference import content_id
from safetensors.torch import save_file
from samkit.nodes.model import SAMModelLoader
from samkit.nodes.predict import Segment
from samkit.sam import SAMError, load_shared
from samkit.sam.weights.checkpoint_reader import checkpoint_files


def table_of():
    return sys.modules["samkit.sam.models.loaded"]._loaded


@pytest.fixture(autouse=True)
def no_models():
    table_of().clear()
    yield
    table_of().clear()


@pytest.fixture
def file(tiny_sam, tmp_path):
    torch.save(tiny_sam.state_dict(), tmp_path / "a.pth")
    return tmp_path / "a.pth"


def test_the_same_file_is_one_model_under_every_name(file, tmp_path):
    model = load_shared(file)
    shutil.copy(file, tmp_path / "a copy.pth")
    (tmp_path / "a link.pth").symlink_to(file)
    assert load_shared(file) is model
    assert load_shared(tmp_path / "a copy.pth") is model
    assert load_shared(tmp_path / "a link.pth") is model
    assert load_shared(file, "fp32") is not model, "another precision is another model"


def test_another_content_is_another_model_even_where_samples_agree(file, tmp_path, monkeypatch):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "b.pth").write_bytes(content)
    monkeypatch.setattr("samkit.sam.models.loaded._sample", lambda path: "the same")
    model = load_shared(file)
    assert load_shared(tmp_path / "b.pth") is not model


def test_a_file_that_changed_is_loaded_anew(file, tiny_sam):
    model = load_shared(file)
    state = {name: value + 1 for name, value in tiny_sam.state_dict().items()}
    torch.save(state, file)
    os.utime(file, ns=(1, 1))
    again = load_shared(file)
    assert again is not model and content_id(again) != content_id(model)


def test_a_model_that_nobody_holds_goes(file):
    image = as_image(make_image(60, 80))
    for _ in range(2):
        Segment().execute(load_shared(file), image, '[{"x": 30, "y": 25}]')
        gc.collect()
        assert sum(entry.model() is not None for entry in table_of()) == 0


INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def save_shards(state, folder):
    """As transformers saves them: the index names the shard of every tensor."""
    folder.mkdir(exist_ok=True)
    names = sorted(state)
    parts = dict(zip(SHARDS, (names[::2], names[1::2]), strict=True))
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def changed(state, shard):
    """The state with other weights in one of the two shards."""
    return {name: value + 1 if number % 2 == shard else value for number, (name, value) in enumerate(sorted(state.items()))}


@pytest.mark.parametrize("entry", [INDEX, *SHARDS, ""], ids=["the index", "first shard", "second shard", "the folder"])
@pytest.mark.parametrize("other", [0, 1])
def test_a_checkpoint_in_shards_is_all_its_files(tiny_sam, tmp_path, entry, other):
    state = tiny_sam.state_dict()
    first, second = save_shards(state, tmp_path / "a"), save_shards(changed(state, other), tmp_path / "b")
    equal = SHARDS[1 - other]
    assert (first / equal).read_bytes() == (second / equal).read_bytes()
    one, two = load_shared(first / entry), load_shared(second / entry)
    assert content_id(one) == content_id(tiny_sam) != content_id(two)
    copy = shutil.copytree(first, tmp_path / "a copy")
    assert load_shared(copy / entry) is one


@pytest.mark.parametrize("entry", [INDEX, *SHARDS, ""])
@pytest.mark.parametrize("other", [0, 1])
def test_a_replaced_shard_is_noticed(tiny_sam, tmp_path, entry, other):
    folder = save_shards(tiny_sam.state_dict(), tmp_path / "a")
    model = load_shared(folder / entry)
    newer = save_shards(changed(tiny_sam.state_dict(), other), tmp_path / "b")
    (newer / SHARDS[other]).replace(folder / SHARDS[other])
    again = load_shared(folder / entry)
    assert content_id(again) != content_id(model)


@pytest.mark.parametrize("entry", [INDEX, *SHARDS])
def test_the_loader_node_notices_a_replaced_shard(tiny_sam, tmp_path, monkeypatch, entry):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    monkeypatch.setattr("samkit.utils.comfy_folders.CHECKPOINT_SUFFIXES", frozenset({".safetensors", ".json"}))
    (tmp_path / "models").mkdir()
    folder = save_shards(tiny_sam.state_dict(), tmp_path / "models" / "sams")
    before = SAMModelLoader.IS_CHANGED(entry)
    assert before and SAMModelLoader.IS_CHANGED(entry) == before
    newer = save_shards(changed(tiny_sam.state_dict(), 1), tmp_path / "b")
    (newer / SHARDS[1]).replace(folder / SHARDS[1])
    assert SAMModelLoader.IS_CHANGED(entry) not in ("", before)
    (folder / SHARDS[1]).unlink()
    assert SAMModelLoader.IS_CHANGED(entry) == ""


def test_a_file_of_the_same_size_and_time_is_still_noticed(file):
    model, before = load_shared(file), file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert content_id(load_shared(file)) != content_id(model)


def test_the_files_of_a_checkpoint(file, tiny_sam, tmp_path):
    assert checkpoint_files(file) == [file]
    folder = save_shards(tiny_sam.state_dict(), tmp_path / "a")
    for entry in (INDEX, *SHARDS, ""):
        assert checkpoint_files(folder / entry) == [folder / name for name in (INDEX, *SHARDS)]
    with pytest.raises(SAMError, match="there is no file"):
        checkpoint_files(tmp_path / "nothing.pth")

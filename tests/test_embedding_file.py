"""Embeddings as files: written whole, read with every doubt, below ComfyUI's own folders only."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from safetensors import safe_open
from safetensors.numpy import save_file
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.embedding_file import LoadEmbedding, SaveEmbedding
from samkit.nodes.predict import PredictMask
from samkit.sam import SAMEmbedding, SAMError, encode, load_embedding, save_embedding

CLICK = '[{"x": 30, "y": 25}]'


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    for kind in ("input", "output", "temp"):
        (tmp_path / kind).mkdir()
    return install(monkeypatch, FakeComfyUI(tmp_path))


@pytest.fixture
def embedding(tiny_model):
    return encode(tiny_model, as_image(*(make_image(60, 80, seed) for seed in range(3))))


def with_maps(embedding):
    """As a SAM-HQ's or a SAM 2's, with finer maps."""
    maps = {
        "high_res_0": np.random.default_rng(0).random((3, 4, 32, 32), np.float32),
        "fine": np.ones((3, 2, 16, 16), np.float32),
    }
    known = embedding.original_size, embedding.input_size, embedding.encoder_identity, embedding.image_keys
    return SAMEmbedding(np.array(embedding), *known, maps)


def same(one, other):
    assert type(one) is type(other) is SAMEmbedding and np.array_equal(one, other) and one.maps.keys() == other.maps.keys()
    assert all(np.array_equal(one.maps[name], other.maps[name]) for name in one.maps)
    for name in ("original_size", "input_size", "encoder_identity", "image_keys"):
        assert getattr(one, name) == getattr(other, name), name


def test_a_file_has_all_of_an_embedding(embedding, tmp_path):
    for number, one in enumerate((embedding, with_maps(embedding), embedding[1:2], embedding[:0])):
        save_embedding(one, tmp_path / f"{number}.safetensors")
        same(load_embedding(tmp_path / f"{number}.safetensors"), one)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(list(tmp_path.glob("?.safe*"))) == 4, "no part stays"
    with safe_open(tmp_path / "1.safetensors", "np") as file:  # the format's own library reads it
        assert np.array_equal(file.get_tensor("image"), embedding) and json.loads(file.metadata()["original_size"]) == [60, 80]


def test_what_is_loaded_is_prompted_like_what_was_saved(comfy, tiny_model, embedding):
    saved = SaveEmbedding().execute(embedding, "samkit/embedding")
    (name,) = saved["result"]
    assert name == "samkit/embedding_00001_.safetensors [output]" and saved["ui"] == {"text": [name]}
    assert LoadEmbedding.INPUT_TYPES()["required"]["name"][0] == [name]
    (loaded,) = LoadEmbedding().execute(name)
    ours, expected = (PredictMask().execute(tiny_model, one, CLICK) for one in (loaded, embedding))
    assert torch.equal(ours[0], expected[0]) and torch.equal(ours[3], expected[3]) and tuple(ours[1:3]) == tuple(expected[1:3])
    assert SaveEmbedding().execute(embedding, "samkit/embedding")["result"] == ("samkit/embedding_00002_.safetensors [output]",)


def test_another_models_embedding_is_refused_when_it_is_decoded(comfy, tiny_model, embedding):
    (name,) = SaveEmbedding().execute(embedding)["result"]
    with torch.no_grad():
        tiny_model.image_encoder.neck[0].weight[0] += 1
    with pytest.raises(SAMError, match="created with a different model"):
        PredictMask().execute(tiny_model, LoadEmbedding().execute(name)[0], CLICK)


def test_another_packs_array_is_not_saved(comfy, tiny_model):
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(make_image(60, 80)), tiny_model)
    with pytest.raises(SAMError, match="comes from another pack"):
        SaveEmbedding().execute(np.array(embedding))


def test_is_changed_follows_the_file_and_does_not_read_it(comfy, embedding, tmp_path):
    (name,) = SaveEmbedding().execute(embedding)["result"]
    path = tmp_path / "output" / name.removesuffix(" [output]")
    before, stat = LoadEmbedding.IS_CHANGED(name), path.stat()
    content = bytearray(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathlib.Path.open", None)
        assert LoadEmbedding.IS_CHANGED(name) == before != ""
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size and time
    assert LoadEmbedding.IS_CHANGED(name) != before
    assert LoadEmbedding.IS_CHANGED(None) == LoadEmbedding.IS_CHANGED("none.safetensors") == ""


@pytest.mark.parametrize(
    "prefix",
    ["../out", "/tmp/out", "a/../../out", "a/..", "..", "", "a/", "C:\\out", "a\\..\\..\\out", "a\0b", "a\nb", "./a", " /a"],
)
def test_a_prefix_that_leads_elsewhere_is_refused(comfy, embedding, tmp_path, prefix):
    with pytest.raises(SAMError, match="filename_prefix is .*below ComfyUI's output folder"):
        SaveEmbedding().execute(embedding, prefix)
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_links_that_lead_out_are_not_followed(comfy, embedding, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    save_embedding(embedding, outside / "file.safetensors")
    (tmp_path / "output" / "link").symlink_to(outside)
    (tmp_path / "input" / "file.safetensors").symlink_to(outside / "file.safetensors")
    with pytest.raises(SAMError, match="a link leads out"):
        SaveEmbedding().execute(embedding, "link/file")
    for name in ("link/file.safetensors [output]", "file.safetensors [input]", "file.safetensors"):
        with pytest.raises(SAMError, match="there is no file"):
            LoadEmbedding().execute(name)


@pytest.mark.parametrize(
    "name", ["../outside/x.safetensors", "/etc/passwd", "x.safetensors [temp]", "x [nowhere]", "", "]", "a\0b", "x" * 5000]
)
def test_names_outside_the_folders_are_refused(comfy, tmp_path, embedding, name):
    (tmp_path / "outside").mkdir()
    for folder in ("outside", "temp"):
        save_embedding(embedding, tmp_path / folder / "x.safetensors")
    with pytest.raises(SAMError, match="there is no file|name has 5000 characters"):
        LoadEmbedding().execute(name)
    assert LoadEmbedding.IS_CHANGED(name) == ""


def test_a_full_disk_leaves_no_file_and_the_message_names_it(embedding, tmp_path, small_files):
    """The writer is safetensors' own, which has an error of its own for what the system refuses."""
    save_embedding(embedding, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    with (
        small_files(10_000),
        pytest.raises(SAMError, match=r"x\.safetensors cannot be written: .*Free some space on this disk"),
    ):
        save_embedding(embedding, tmp_path / "x.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.pth", "x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_the_list_reads_a_folder_again_only_when_it_has_changed(comfy, embedding, tmp_path, monkeypatch):
    (name,) = SaveEmbedding().execute(embedding)["result"]
    folder = tmp_path / "output" / "samkit"
    (folder / "caf\udce9.safetensors").touch()  # a name that is not UTF-8, on systems that allow it
    (folder / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (folder / "folder.safetensors").mkdir()
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    for path in (folder / "folder.safetensors", folder, tmp_path / "output", tmp_path / "input"):
        os.utime(path, ns=(10**18, 10**18))  # long ago
    assert LoadEmbedding.INPUT_TYPES()["required"]["name"][0] == [name]
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", None)
        assert LoadEmbedding.INPUT_TYPES()["required"]["name"][0] == [name]
    (other,) = SaveEmbedding().execute(embedding)["result"]
    assert LoadEmbedding.INPUT_TYPES()["required"]["name"][0] == [name, other]


@pytest.fixture
def file(embedding, tmp_path):
    save_embedding(embedding, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as opened:
        return SimpleNamespace(path=tmp_path / "x.safetensors", values=np.array(embedding), metadata=opened.metadata())


def test_a_file_that_is_cut_anywhere_gets_one_sentence(file):
    content = file.path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        file.path.write_bytes(content[:length])
        with pytest.raises(SAMError, match=r"x\.safetensors was not loaded") as error:
            load_embedding(file.path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not an embedding that Save SAM Embedding"),
        ({"original_size": "[60]"}, "sizes are wrong"),
        ({"original_size": "[60, -1]"}, "sizes are wrong"),
        ({"input_size": "[60, 1e999]"}, "sizes are wrong"),
        ({"original_size": "[" * 5000}, "damaged embedding"),
        ({"image_keys": '["a"]'}, "does not say what its images"),
        ({"image_keys": '["a", "b", 3]'}, "does not say what its images"),
        ({"encoder_identity": json.dumps("x" * 1000)}, "does not say what its images"),
        ({"encoder_identity": "nonsense"}, "damaged embedding"),
    ],
)
def test_a_hostile_header_gets_one_sentence(file, change, message):
    save_file({"image": file.values}, file.path, file.metadata | change)
    with pytest.raises(SAMError, match=message) as error:
        load_embedding(file.path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "maps",
    [
        {},
        {"image": np.zeros((3, 4), np.float32)},
        {"image": np.zeros((3, 2, 2, 2), np.float16)},
        {"image": np.full((3, 2, 2, 2), np.nan, np.float32)},
        {"image": np.zeros((3, 2, 2, 2), np.float32), "fine": np.zeros((2, 2, 2, 2), np.float32)},
        {"image": np.zeros((3, 2, 2, 2), np.float32)} | {str(i): np.zeros((3, 1, 1, 1), np.float32) for i in range(20)},
    ],
)
def test_hostile_tensors_get_one_sentence(file, maps):
    save_file(maps, file.path, file.metadata)
    with pytest.raises(SAMError, match=r"x\.safetensors is a damaged embedding"):
        load_embedding(file.path)


def test_a_checkpoint_or_nothing_is_no_embedding(file, tmp_path):
    save_file({"image": file.values}, file.path)
    with pytest.raises(SAMError, match="is not an embedding"):
        load_embedding(file.path)
    with pytest.raises(SAMError, match="cannot be read: No such file"):
        load_embedding(tmp_path / "none.safetensors")

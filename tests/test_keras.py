"""keras-hub's presets: a small one that keras-hub itself saved, with its own answers (see tools/make_keras_preset.py)."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from load_pack import ROOT
from samkit.sam import load_model
from samkit.sam.kernels.decoder import FastDecoder
from samkit.sam.kernels.linear import AtenLinear
from samkit.sam.weights import hub
from samkit.sam.weights.checkpoint_reader import read_checkpoint

PRESET = Path(__file__).parent / "keras_preset"
NEEDS = ("keras", "keras-hub")
NEEDS_TOO = ("h5py", "optree", "ml_dtypes", "namex", "absl-py", "rich", "packaging")
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def compare(preset):
    """The pack's model of a preset against keras-hub's answers, on the image that the tool drew too."""
    expected = np.load(preset / "expected.npz")
    side, grid = 128, 8
    images = np.random.default_rng(1).uniform(0, 1, (1, side, side, 3)).astype(np.float32)
    sam = load_model(preset, "fp32")
    pixels = torch.from_numpy((images * 255 - MEAN) / STD).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        embedding = sam.image_encoder(pixels)
        points = torch.from_numpy(expected["points"]), torch.from_numpy(expected["labels"])
        sparse = sam.prompt_encoder._embed_points(*points, pad=False)  # which keras-hub leaves to its caller
        dense = sam.prompt_encoder(points=None, boxes=None, masks=None)[1]
        masks, scores = sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)
        fast = FastDecoder(sam.mask_decoder, sam.prompt_encoder, AtenLinear)
        ours = fast(fast.share(embedding[0]), sparse, None, slice(None))
    assert masks.shape == (1, 4, 4 * grid, 4 * grid) and expected["masks"].std() > 0.1, "trivial masks compare nothing"
    np.testing.assert_allclose(embedding.permute(0, 2, 3, 1), expected["embedding"], atol=1e-4, rtol=0)
    for found in (masks, ours.logits):
        np.testing.assert_allclose(found, expected["masks"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(scores, expected["iou_pred"], atol=1e-4, rtol=0)


def test_a_preset_equals_keras_hub():
    pytest.importorskip("h5py", reason="h5py reads Keras files")
    compare(PRESET)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_preset_made_now_equals_keras_hub(tmp_path):
    """With the newest keras-hub, in an environment of its own, without TensorFlow."""
    pytest.importorskip("h5py", reason="h5py reads Keras files")
    if sys.version_info < (3, 11):
        pytest.skip("keras-hub needs Python 3.11")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    for options in (("--no-deps", *NEEDS), NEEDS_TOO):
        done = subprocess.run([python, "-m", "pip", "install", "-q", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"keras-hub cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    beside = str(Path(torch.__file__).parent.parent)  # torch, which is large, is ours
    surroundings = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": beside}
    script = ROOT / "tools" / "make_keras_preset.py"
    made = subprocess.run([python, script, tmp_path / "preset"], env=surroundings, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    compare(tmp_path / "preset")


def test_the_file_and_its_folder_are_one():
    pytest.importorskip("h5py", reason="h5py reads Keras files")
    folder, file = (read_checkpoint(path) for path in (PRESET, PRESET / "model.weights.h5"))
    assert folder.keys() == file.keys() and not [name for name in file if "/" in name], "every name is known"


def test_without_h5py_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"model.weights.h5 is a Keras file. .* not installed: pip install h5py$"):
        load_model(PRESET)


def test_a_truncated_file_is_refused(tmp_path):
    pytest.importorskip("h5py", reason="h5py reads Keras files")
    whole = (PRESET / "model.weights.h5").read_bytes()
    (tmp_path / "model.weights.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.weights.h5 was not loaded: .*truncated or damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["other model", "integers", "elsewhere", "many"])
def test_other_files_are_refused(kind, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py", reason="h5py reads Keras files")
    path = tmp_path / "model.weights.h5"
    shutil.copy(PRESET / path.name, path)
    with h5py.File(path, "a") as file:
        if kind == "other model":
            del file["layers"]
        elif kind == "integers":
            file["layers/extra/vars/0"] = np.arange(3)
        elif kind == "elsewhere":
            (tmp_path / "secret").write_bytes(bytes(16))
            file.create_dataset("layers/extra/vars/0", (2,), "f8", external=[(str(tmp_path / "secret"), 0, 16)])
    if kind == "many":
        monkeypatch.setattr("samkit.sam.weights.formats.keras.MOST_TENSORS", 10)
    message = {"other model": "holds the mask decoder alone", "many": "more than any SAM preset has"}.get(
        kind, "not an array of floats in the file"
    )
    with pytest.raises(ValueError, match=message) as error:
        load_model(path)
    assert str(error.value).count("not loaded") <= 1


def test_the_weights_of_a_segmenter_are_those_of_its_backbone(tmp_path):
    """`SAMImageSegmenter.save_weights`: the backbone's names below its own, and the optimizer's numbers, one of them whole."""
    h5py = pytest.importorskip("h5py", reason="h5py reads Keras files")
    with h5py.File(PRESET / "model.weights.h5") as whole, h5py.File(tmp_path / "sam.weights.h5", "w") as task:
        for name in ("layers", "mask_decoder"):
            whole.copy(name, task, f"layers/sam_backbone/{name}")
        task["optimizer/vars/0"], task["optimizer/vars/1"] = np.int32(3), np.zeros((2, 2), np.float32)
    assert load_model(tmp_path / "sam.weights.h5").identity == load_model(PRESET).identity


def test_the_task_file_of_a_preset_names_the_file_to_take(tmp_path):
    """keras-hub's `save_to_preset` of a segmenter: its decoder again, and the optimizer."""
    h5py = pytest.importorskip("h5py", reason="h5py reads Keras files")
    with h5py.File(PRESET / "model.weights.h5") as whole, h5py.File(tmp_path / "task.weights.h5", "w") as task:
        whole.copy("mask_decoder", task, "layers/sam_mask_decoder")
        task["optimizer/vars/0"] = np.int32(3)
    with pytest.raises(ValueError, match=r"task.weights.h5 .*holds the mask decoder alone.*its model.weights.h5"):
        load_model(tmp_path / "task.weights.h5")


def test_two_arrays_for_one_weight_and_layers_of_no_sam_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py reads Keras files")
    for place, said in (("layers/sam_mask_decoder", "two arrays for one weight"), ("layers/extra", "holds layers/extra/")):
        shutil.copy(PRESET / "model.weights.h5", tmp_path / "x.weights.h5")
        with h5py.File(tmp_path / "x.weights.h5", "a") as file:
            file.copy("mask_decoder", place)
        with pytest.raises(ValueError, match=said):
            load_model(tmp_path / "x.weights.h5")


@pytest.mark.parametrize("name", ["sam.weights.json", "sam_00000.weights.h5"])
def test_a_keras_checkpoint_in_several_files_says_how_to_make_one(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"a Keras checkpoint in several files.*without max_shard_size"):
        load_model(tmp_path / name)


def test_a_keras_archive_says_what_to_take_from_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "sam.keras", "w") as archive:
        for name in ("metadata.json", "config.json"):
            archive.writestr(name, "{}")
        archive.write(PRESET / "model.weights.h5", "model.weights.h5")
    with pytest.raises(ValueError, match="a Keras archive. Unzip it and load its model.weights.h5"):
        load_model(tmp_path / "sam.keras")


@pytest.mark.parametrize("repo_id", ["kaggle://keras/sam/keras/sam_huge_sa1b/5", "kaggle://someone/else"])
def test_kaggles_names_are_answered(repo_id, tmp_path):
    message = "hf://keras/sam_huge_sa1b" if "huge" in repo_id else "load its folder"
    with pytest.raises(ValueError, match=message):
        hub.fetch_from_hub(repo_id, "", "", [tmp_path])


def test_of_a_keras_repository_only_the_models_weights_are_fetched(tmp_path, monkeypatch):
    listed = ("README.md", "config.json", "model.weights.h5", "task.json", "task.weights.h5")
    fetched = []
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: Info(listed))
    monkeypatch.setattr(hub, "fetch", lambda file, folders: fetched.append(file) or folders[0] / file.name)
    hub.fetch_from_hub("hf://keras/sam_base_sa1b", "", "", [tmp_path])
    assert [(file.repo_id, file.filename) for file in fetched] == [("keras/sam_base_sa1b", "model.weights.h5")]


class Info:
    """What the hub tells of a repository."""

    def __init__(self, names):
        self.siblings = [type("Sibling", (), {"rfilename": name})() for name in names]

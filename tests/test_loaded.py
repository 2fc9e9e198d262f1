"""One file, under whatever names, is one model in memory."""

import gc
import os
import shutil
import sys

import pytest
import torch
from conftest import as_image, make_picture
from samkit.nodes.predict import Segment
from samkit.sam import identity_of, load_shared


def table_of():
    return sys.modules["samkit.sam.loaded"]._loaded


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
    monkeypatch.setattr("samkit.sam.loaded._sample", lambda path: "the same")
    model = load_shared(file)
    assert load_shared(tmp_path / "b.pth") is not model


def test_a_file_that_changed_is_loaded_anew(file, tiny_sam):
    model = load_shared(file)
    state = {name: value + 1 for name, value in tiny_sam.state_dict().items()}
    torch.save(state, file)
    os.utime(file, ns=(1, 1))
    again = load_shared(file)
    assert again is not model and identity_of(again) != identity_of(model)


def test_a_model_that_nobody_holds_goes(file):
    image = as_image(make_picture(60, 80))
    for _ in range(2):
        Segment().execute(load_shared(file), image, '[{"x": 30, "y": 25}]')
        gc.collect()
        assert sum(entry.model() is not None for entry in table_of()) == 0

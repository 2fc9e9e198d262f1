"""One file, under whatever names, is one model in memory."""

import gc
import os
import shutil

import pytest
import torch
from samkit.sam import identity_of, load_shared
from samkit.sam import loaded as _  # noqa: F401  (its table is cleared below)


@pytest.fixture(autouse=True)
def table():
    import sys

    entries = sys.modules["samkit.sam.loaded"]._loaded
    entries.clear()
    yield entries
    entries.clear()


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
    model = load_shared(file)
    content = bytearray(file.read_bytes())
    place = len(content) // 2
    content[place] ^= 1
    (tmp_path / "b.pth").write_bytes(content)
    monkeypatch.setattr("samkit.sam.loaded._sample", lambda path: "the same")
    for entry in list(table_of()):
        table_of().remove(entry)
    model = load_shared(file)
    assert load_shared(tmp_path / "b.pth") is not model


def table_of():
    import sys

    return sys.modules["samkit.sam.loaded"]._loaded


def test_a_file_that_changed_is_loaded_anew(file, tiny_sam):
    model = load_shared(file)
    state = {name: value + 1 for name, value in tiny_sam.state_dict().items()}
    torch.save(state, file)
    os.utime(file, ns=(1, 1))
    again = load_shared(file)
    assert again is not model and identity_of(again) != identity_of(model)


def test_a_model_that_nobody_holds_goes(file):
    load_shared(file)
    gc.collect()
    load_shared(file)
    gc.collect()
    assert sum(entry.model() is not None for entry in table_of()) == 0

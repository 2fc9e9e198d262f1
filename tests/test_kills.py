"""Processes killed at every step of their writing, and a full disk: what is there is whole, and nothing is left over."""

import json
import os
import re
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, Interrupted, install
from forks import forked, needs_fork
from PIL import Image
from reference import content_id
from safetensors.numpy import load_file
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.embedding_file import LoadEmbedding, SaveEmbedding
from samkit.nodes.save_masks import SaveMasks
from samkit.nodes.teach import SaveConcept
from samkit.sam import AutoMaskOptions, Concept, SAMEmbedding, SAMError
from samkit.sam.datasets.formats import FORMATS
from samkit.sam.tasks.folders import FolderTask, find_images, segment_folder
from samkit.utils.comfy_files import locked
from samkit.utils.files import whole
from test_folders import kill_at, size_of

pytestmark = needs_fork
STEPS = [("pathlib.Path", name) for name in ("open", "replace", "unlink", "mkdir", "write_bytes")] + [("os", "rmdir")]


def killed_at(step, work):
    """Run `work` in a process that is killed just before its `step`-th change of the file system. Whether it got so far."""

    def child():
        left = iter(range(step))

        def counted(function):
            def call(*arguments, **options):
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in STEPS:
                kind = Path if owner == "pathlib.Path" else os
                patch.setattr(f"{owner}.{name}", counted(getattr(kind, name)))
            work()

    process = forked(child)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def files(folder):
    """Everything in a folder but locks, which are empty and stay."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")
    )


@pytest.fixture
def comfy(tmp_path, monkeypatch):
    return install(monkeypatch, FakeComfyUI(tmp_path))


@pytest.fixture
def output(comfy, tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


IMAGES = as_image(make_image(60, 80), make_image(60, 80, 1))
MASKS = torch.zeros(2, 60, 80)
MASKS[0, 10:30, 20:50] = MASKS[1, 5:50, 40:70] = 1


def save_masks(name):
    SaveMasks().execute([IMAGES], [MASKS], ["set"], [name])


def recorded(root, name):
    """The images that a data set records; of forms without a list, those with a file."""
    places = {"YOLO": "labels/*.txt", "labelme": "images/*.json", "index PNG": "masks/*.png"}
    if name in places:
        return sorted(path.stem + ".png" for path in root.glob(places[name]))
    if name in ("CVAT", "Label Studio"):
        path = root / ("annotations.xml" if name == "CVAT" else "tasks.json")
        return sorted(re.findall(r"(?:name=\"|images/)([^\"/]+\.png)\"", path.read_text())) if path.is_file() else []
    path = root / ("manifest.json" if name == "PNG" else "annotations.json")
    return sorted(one["file_name"] for one in json.loads(path.read_bytes())["images"]) if path.is_file() else []


@pytest.mark.parametrize("name", FORMATS)
def test_save_masks_killed_at_any_step_has_added_all_or_nothing(name, output):
    root, step = output / "set", 0
    save_masks(name)
    count = 2
    while killed_at(step, lambda: save_masks(name)):
        save_masks(name)  # which finishes or removes what the other has left
        images = sorted(path.name for path in (root / "images").glob("*.png"))
        assert len(images) in (count + 2, count + 4) and recorded(root, name) == images
        assert not [one for one in files(root) if ".part" in one or ".adding" in one]
        for image in images:
            assert np.array(Image.open(root / "images" / image)).shape == (60, 80, 3)
        if name == "PNG":
            assert len(list((root / "masks").iterdir())) == len(images)
        count, step = len(images), step + 1
    assert step >= 20


def test_a_killed_addition_of_another_format_is_finished_first(output):
    for step in range(1, 40, 4):
        killed_at(step, lambda: save_masks("COCO RLE"))
        save_masks("PNG")
        images = sorted(path.name for path in (output / "set" / "images").iterdir())
        assert sorted(recorded(output / "set", "PNG") + recorded(output / "set", "COCO RLE")) == images


def test_a_cancelled_save_masks_leaves_nothing(output, comfy):
    comfy.cancelled = True
    with pytest.raises(Interrupted):
        save_masks("COCO RLE")
    assert not files(output)


@pytest.mark.parametrize("limit", [50, 500, 3000])
@pytest.mark.parametrize("name", FORMATS)
def test_save_masks_on_a_full_disk_adds_nothing_and_names_the_file(name, limit, output, small_files):
    with small_files(limit), pytest.raises(SAMError, match=r"set.* cannot be written: .*Free some space"):
        save_masks(name)
    assert [one for one in files(output) if ".adding" not in one] == []
    save_masks(name)
    assert recorded(output / "set", name) == ["set_00001_.png", "set_00002_.png"]
    assert not [one for one in files(output) if ".adding" in one or ".part" in one]


def test_save_masks_goes_on_when_the_disk_was_full_at_the_last_step(output, small_files):
    """The images are in their places, and their records wait beside them: nothing has to be made again."""
    noise = (torch.rand(1, 400, 400, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    for _ in range(4):
        SaveMasks().execute([torch.zeros(1, 400, 400, 3)], [noise], ["set"], ["COCO RLE"])
    size = (output / "set" / "annotations.json").stat().st_size
    with small_files(size), pytest.raises(SAMError, match=r"annotations\.json cannot be written"):
        SaveMasks().execute([torch.zeros(1, 400, 400, 3)], [noise], ["set"], ["COCO RLE"])
    assert len(recorded(output / "set", "COCO RLE")) == 4
    save_masks("COCO RLE")
    images = sorted(path.name for path in (output / "set" / "images").iterdir())
    assert recorded(output / "set", "COCO RLE") == images and len(images) == 7


def test_save_masks_waiting_for_another_process_hears_a_cancel(output, comfy):
    """And does so at once, not after the ten minutes that it would wait."""
    comfy.cancelled = True
    with locked(output / "set"), pytest.raises(Interrupted):
        save_masks("COCO RLE")


def test_save_embedding_killed_at_any_step_leaves_whole_files_only(output, tiny_model):
    (embedding,) = GetSAMEmbedding().get_sam_embedding(IMAGES, tiny_model)
    step = 0
    while killed_at(step, lambda: SaveEmbedding().execute(embedding)):
        before = set(files(output))
        (name,) = SaveEmbedding().execute(embedding)["result"]
        after = files(output)
        assert [one for one in after if one not in before] == [name.removesuffix(" [output]")]
        assert all(one.endswith(".safetensors") and not one.rpartition("/")[2].startswith(".") for one in after)
        (loaded,) = LoadEmbedding().execute(name)
        assert np.array_equal(np.array(loaded), np.array(embedding))
        step += 1
    assert step >= 4


def test_save_embedding_killed_at_twenty_sizes_of_its_part(output):
    """In the middle of writing, which is safetensors' own work."""
    values = np.random.default_rng(0).standard_normal((16, 64, 64, 64)).astype(np.float32)
    embedding = SAMEmbedding(values, (60, 80), (96, 128), "0" * 64, [f"{index:064}" for index in range(16)], {})
    folder = output / "samkit"
    for size in np.linspace(0, values.nbytes, 20):
        process = forked(lambda: SaveEmbedding().execute(embedding))
        kill_at(process, lambda size=size: any(size_of(part) >= size for part in folder.glob(".*.part")))
        for name in files(output):
            if not name.endswith(".part"):
                assert load_file(output / name)["image"].shape == values.shape
    (name,) = SaveEmbedding().execute(embedding)["result"]
    assert np.array_equal(np.array(LoadEmbedding().execute(name)[0]), values) and not list(folder.glob(".*.part"))


def test_save_concept_killed_at_any_step_leaves_whole_files_only(output, tiny_model):
    concept, step = Concept(torch.randn(4, 32), content_id(tiny_model), "tiny.pth"), 0
    while killed_at(step, lambda: SaveConcept().execute(concept)):
        SaveConcept().execute(concept)
        for one in files(output):
            assert load_file(output / one)["tokens"].shape == (4, 32)
        step += 1
    assert step >= 4


@pytest.mark.parametrize("name", FORMATS)
def test_the_folder_command_killed_at_any_step_gives_the_same_data_set(name, tmp_path, tiny_sam):
    torch.save(tiny_sam.state_dict(), tmp_path / "tiny.pth")
    (tmp_path / "photos").mkdir()
    for seed in range(2):
        Image.fromarray(make_image(60, 80, seed)).save(tmp_path / "photos" / f"{seed}.png")
    loose = AutoMaskOptions(2, pred_iou_thresh=-1.0, stability_score_thresh=0.0)
    task = FolderTask("everything", name, tmp_path / "tiny.pth", everything=loose)

    def run(place):
        return segment_folder(task, find_images([tmp_path / "photos"])[1], tmp_path / place / "out")

    def contents(place):
        return {one: (tmp_path / place / one).read_bytes() for one in files(tmp_path / place) if not one.endswith(".journal")}

    run("whole")
    step = 0
    while killed_at(step, partial(run, f"{step}")):
        assert not run(f"{step}").errors
        assert contents(f"{step}") == contents("whole") != {}
        step += 1
    assert step >= 8


def test_a_file_that_is_not_written_whole_is_not_there(tmp_path):
    with pytest.raises(KeyError), whole(tmp_path / "a") as part:
        part.write_bytes(b"half")
        raise KeyError
    assert not list(tmp_path.iterdir())

"""Folders to data sets: each image once, whatever happens in between; and the command."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_image
from forks import forked, needs_fork
from load_pack import ROOT
from PIL import Image
from reference import content_id
from samkit import segment_folder as command
from samkit.sam import (
    AutoMaskOptions,
    Concept,
    PredictOptions,
    Prompt,
    SAMError,
    TeachOptions,
    decode,
    encode,
    load_concept,
    load_model,
    save_concept,
    segment_everything,
    teach,
)
from samkit.sam.datasets.coco import read_categories
from samkit.sam.datasets.formats import FORMATS, data_set
from samkit.sam.datasets.journal import Journal
from samkit.sam.datasets.objects import LabeledImage, LabeledMask
from samkit.sam.datasets.read import open_data_set
from samkit.sam.datasets.rle import encode_mask
from samkit.sam.tasks import folders
from samkit.sam.tasks.folders import FolderTask, Worker, find_images, read_prompts, run_here, segment_folder
from samkit.sam.tasks.words import FoundBoxes
from samkit.sam.training import teach as teaching
from samkit.sam.training.from_data_set import ShownObjects

LOOSE = AutoMaskOptions(2, pred_iou_thresh=-1.0, stability_score_thresh=0.0)
NAMES = ["a.png", "b.jpg", "day 1/a.png", "day 1/größe.webp", "z.bmp"]


@pytest.fixture
def photos(tmp_path):
    """Five images in two folders."""
    for seed, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(60, 80, seed)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def checkpoint(tiny_sam, tmp_path):
    torch.save(tiny_sam.state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


@pytest.fixture
def task(checkpoint):
    return FolderTask("everything", "COCO RLE", checkpoint, label="shape", everything=LOOSE)


def with_format(task, name):
    return FolderTask(task.mode, name, task.checkpoint, label=task.label, everything=task.everything)


def run(task, photos, output, **options):
    return segment_folder(task, find_images([photos], output)[1], output, **options)


def masks_in(path):
    """{file name: [(segmentation, label, score)]}."""
    document = json.loads(path.read_bytes())
    names = {one["id"]: one["name"] for one in document["categories"]}
    images = {one["id"]: one["file_name"] for one in document["images"]}
    found = {name: [] for name in images.values()}
    for one in document["annotations"]:
        found[images[one["image_id"]]].append((one["segmentation"], names[one["category_id"]], one["score"]))
    return found


def tree(place):
    """Every file of a data set with its bytes; without the journal, which is in the order of the work, and the lock."""
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {path.relative_to(place.parent): path.read_bytes() for path in files}


def test_everything_is_what_segment_everything_finds(task, photos, tmp_path):
    summary = run(task, photos, tmp_path / "out.json")
    assert summary == (5, 0, {})
    found, model = masks_in(tmp_path / "out.json"), load_model(task.checkpoint)
    assert list(found) == sorted(NAMES)
    for name, listed in found.items():
        pixels = np.array(Image.open(photos / name).convert("RGB"))
        wanted = segment_everything(model, pixels, LOOSE)
        assert listed == [(encode_mask(one.full((60, 80))), "shape", one.score) for one in wanted] and listed


def test_words_are_boxes_with_labels_and_scores(task, photos, tmp_path, monkeypatch):
    (tmp_path / "dino").mkdir()
    boxes = FoundBoxes(np.array([[5.0, 5, 40, 40], [30, 20, 70, 55]]), [0.75, 0.5], ["cat", ""])
    monkeypatch.setattr(folders, "load_grounding", lambda folder: folder.name)
    seen = []
    monkeypatch.setattr(folders, "find_boxes", lambda grounding, frames, text, *_: seen.append((grounding, text)) or [boxes])
    words = FolderTask("words", "COCO RLE", task.checkpoint, grounding=tmp_path / "dino", text="cat. dog.", label="other")
    run(words, photos, tmp_path / "out.json")
    assert set(seen) == {("dino", "cat. dog.")} and len(seen) == 5
    model, pixels = load_model(task.checkpoint), make_image(60, 80, 0)
    prompts = [Prompt(np.zeros((0, 2)), np.zeros(0, np.int32), box) for box in boxes.boxes]
    wanted = decode(model, encode(model, [pixels]), [prompts]).masks[0].numpy()
    assert masks_in(tmp_path / "out.json")["a.png"] == [
        (encode_mask(wanted[0]), "cat", 0.75),
        (encode_mask(wanted[1]), "other", 0.5),
    ]


PROMPTS = {
    "a.png": [
        {"label": "cup", "positive_coords": [{"x": 30, "y": 25}], "negative_coords": [{"x": 3, "y": 5}]},
        {"bbox": {"x": 10, "y": 10, "width": 30, "height": 20}},
    ],
    "z.bmp": [],
}


def test_prompts_are_one_object_each(task, photos, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps({**PROMPTS, "none.png": []}))
    images, unknown = read_prompts(tmp_path / "prompts.json", find_images([photos])[1])
    assert [one.file_name for one in images] == ["a.png", "z.bmp"] and unknown == ["none.png"]
    prompted = FolderTask("prompts", "COCO RLE", task.checkpoint)
    assert segment_folder(prompted, images, tmp_path / "out.json") == (2, 0, {})
    model = load_model(task.checkpoint)
    objects = [
        Prompt(np.array([[30.0, 25], [3, 5]]), np.array([1, 0], np.int32)),
        Prompt(np.zeros((0, 2)), np.zeros(0, np.int32), np.array([10.0, 10, 40, 30])),
    ]
    wanted = decode(model, encode(model, [make_image(60, 80, 0)]), [objects])
    masks, scores = wanted.masks[0].numpy(), wanted.scores[0].tolist()
    assert masks_in(tmp_path / "out.json") == {
        "a.png": [(encode_mask(masks[0]), "cup", scores[0]), (encode_mask(masks[1]), "object", scores[1])],
        "z.bmp": [],
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"a.png": {}}', '{"a.png": [3]}', '{"a.png": [{"box": [1, 2, 3, 4]}]}'])
def test_prompts_of_another_form_are_refused(content, tmp_path):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(SAMError, match=r"prompts\.json"):
        read_prompts(tmp_path / "prompts.json", [])


def test_a_bad_image_is_reported_and_skipped_and_tried_again(task, photos, tmp_path):
    whole = (photos / "a.png").read_bytes()
    (photos / "a.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.png").write_text("not an image")
    summary = run(task, photos, tmp_path / "out.json")
    assert (summary.done, set(summary.errors)) == (4, {"a.png", "text.png"})
    assert all(error.startswith(("OSError", "UnidentifiedImageError", "SyntaxError")) for error in summary.errors.values())
    assert list(masks_in(tmp_path / "out.json")) == sorted({*NAMES} - {"a.png"})
    (photos / "a.png").write_bytes(whole)
    (photos / "text.png").unlink()
    assert run(task, photos, tmp_path / "out.json") == (1, 4, {})


def test_a_finished_image_is_never_done_twice_and_a_changed_one_is(task, photos, tmp_path, monkeypatch):
    run(task, photos, tmp_path / "out.json")
    first = (tmp_path / "out.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(folders, "Worker", None)  # the model is not even loaded
        assert run(task, photos, tmp_path / "out.json") == (0, 5, {})
    assert (tmp_path / "out.json").read_bytes() == first
    Image.fromarray(make_image(60, 80, 9)).save(photos / "a.png")
    assert run(task, photos, tmp_path / "out.json") == (1, 4, {})
    assert masks_in(tmp_path / "out.json")["a.png"] != json.loads(first)["annotations"]


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(make_image(60, 80)).save(tmp_path / "a.jpg", exif=exif)
    assert folders.read_image(tmp_path / "a.jpg").shape == (80, 60, 3)


GRAY = np.where(np.add.outer(np.arange(60) // 20, np.arange(80) // 20) % 2, 90, 200).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("8.png", GRAY, GRAY),
        ("16.png", GRAY.astype(np.uint16) * 257, GRAY),
        ("16.tif", GRAY.astype(np.uint16) * 257, GRAY),
        ("big endian.tif", (GRAY.astype(np.uint16) * 257).astype(">u2"), GRAY),
        ("32.tif", GRAY.astype(np.int32) * 257, GRAY),
        ("12 in 16.tif", GRAY.astype(np.uint16) * 16, (GRAY.astype(int) * 16 / 257).round()),
        ("0 to 1.tif", GRAY.astype(np.float32) / 255, GRAY),
        ("0 to 255.tif", GRAY.astype(np.float32), GRAY),
        ("0 to 65535.tif", GRAY.astype(np.float32) * 257, GRAY),
    ],
)
def test_gray_levels_of_any_type_are_those_of_8_bits(name, values, wanted, tmp_path, caplog):
    """The range of the type; an image that would look black is segmented with a warning."""
    if values.dtype.byteorder == ">":
        Image.frombytes("I;16B", (80, 60), values.tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(values).save(tmp_path / name)
    assert (folders.read_image(tmp_path / name) == np.repeat(wanted[..., None], 3, axis=-1)).all()
    assert ("looks black" in caplog.text) == (name == "12 in 16.tif")


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 70000.0])
def test_gray_levels_beyond_every_range_are_refused(bad, tmp_path):
    values = GRAY.astype(np.float32)
    values[3, 5] = bad
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(SAMError, match="its gray levels are from .*: save it with 8 or 16 bits"):
        folders.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P, transparent", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_images_of_every_mode_are_those_of_load_image(mode, tmp_path):
    """ComfyUI's Load Image converts to RGB, and puts transparency into its MASK."""
    color, options = Image.fromarray(make_image(60, 80)), {}
    if mode == "LAB":
        image = Image.merge("LAB", color.split())
    elif mode in ("P, transparent", "PA"):
        image = color.quantize(16).convert(mode.partition(",")[0])
        options = {"transparency": 3} if mode == "P, transparent" else {}
    else:
        image = color.convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "LAB", "RGBX", "PA") else "a.png")
    image.save(path, **options)
    with Image.open(path) as opened:
        wanted = np.array(opened.convert("RGB"))
    assert (folders.read_image(path) == wanted).all() and len(np.unique(wanted)) > 1


@pytest.mark.parametrize("ending", ["tif", "gif", "webp", "png", "mpo.jpg"])
def test_of_files_with_several_frames_the_first_one_is_read(ending, tmp_path, caplog):
    """Each in the form that its writer gives it; only a camera's second image of the same photograph needs no warning."""
    frames, path = [Image.fromarray(make_image(60, 80, seed)) for seed in range(3)], tmp_path / f"a.{ending}"
    form = {"tif": "TIFF", "mpo.jpg": "MPO"}.get(ending, ending.upper())
    frames[0].save(path, format=form, save_all=True, append_images=frames[1:])
    with Image.open(path) as opened:
        assert opened.n_frames == 3
        wanted = np.array(opened.convert("RGB"))
    assert (folders.read_image(path) == wanted).all() and np.abs(wanted - make_image(60, 80, 0).astype(int)).mean() < 25
    assert ("has 3 frames: only the first one" in caplog.text) == (ending != "mpo.jpg")


def test_of_several_frames_the_first_one_is_segmented_with_a_warning(tmp_path, caplog):
    frames = [Image.fromarray(make_image(60, 80, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert (folders.read_image(tmp_path / "a.tif") == make_image(60, 80, 0)).all()
    assert "a.tif has 3 frames: only the first one is segmented" in caplog.text


def test_linked_folders_and_all_endings_are_found_and_the_rest_is_named(task, photos, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    for name in ("b.jfif", "c.gif"):
        Image.fromarray(make_image(60, 80)).save(tmp_path / "elsewhere" / name, format="JPEG" if name == "b.jfif" else "GIF")
    (tmp_path / "elsewhere" / "d.HEIC").touch()
    (tmp_path / "elsewhere" / "back").symlink_to(photos, target_is_directory=True)
    (photos / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    _, images, unread = find_images([photos])
    assert [one.file_name for one in images] == sorted([*NAMES, "linked/b.jfif", "linked/c.gif"])
    assert unread == ["linked/d.HEIC"]
    options = ["--points-per-side", "2", "--model", str(task.checkpoint)]
    assert command.main([str(photos), "--everything", "--coco", str(tmp_path / "out.json"), *options]) == 1
    assert "linked/d.HEIC: skipped. images of this kind cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_name_that_is_not_utf8_is_reported_and_the_others_are_segmented(name, task, photos, tmp_path):
    try:
        (photos / "caf\udce9.png").write_bytes((photos / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes names that are text only")
    summary = run(with_format(task, name), photos, tmp_path / "out")
    assert summary.done == 5 and "not valid UTF-8" in summary.errors["caf\udce9.png"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), SAMError("no")])
def test_an_image_that_the_model_fails_with_is_skipped(error, task, photos, tmp_path, monkeypatch):
    whole = Worker._segment

    def failing(worker, pixels, *rest):
        if (pixels == make_image(60, 80, 2)).all():
            raise error
        return whole(worker, pixels, *rest)

    monkeypatch.setattr(Worker, "_segment", failing)
    summary = run(task, photos, tmp_path / "out.json")
    assert summary.done == 4 and list(summary.errors) == ["day 1/a.png"]
    assert type(error).__name__ in summary.errors["day 1/a.png"]


def test_a_model_that_fails_with_every_image_ends_the_run(tiny_sam, task, photos, tmp_path):
    weights = {name: tensor.clone() for name, tensor in tiny_sam.state_dict().items()}
    weights["image_encoder.neck.3.weight"][:] = weights["image_encoder.neck.3.bias"][:] = 3e38  # only an image shows it
    torch.save(weights, tmp_path / "broken.pth")
    broken = FolderTask("everything", "COCO RLE", tmp_path / "broken.pth", everything=LOOSE)
    with pytest.raises(SAMError, match="The model failed with each of the first images: SAMError"):
        run(broken, photos, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_model_trained_further_is_another_model(task, photos, tmp_path, tiny_sam):
    run(task, photos, tmp_path / "out.json")
    size = task.checkpoint.stat().st_size
    weights = tiny_sam.state_dict()
    weights["mask_decoder.iou_token.weight"] = weights["mask_decoder.iou_token.weight"] + 1
    torch.save(weights, task.checkpoint)
    assert task.checkpoint.stat().st_size == size
    with pytest.raises(SAMError, match=r"model was 'tiny\.pth, sha256 \w+' and is 'tiny\.pth, sha256 \w+'"):
        run(task, photos, tmp_path / "out.json")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fate", ["removed", "broken", "restarted"])
def test_the_data_set_is_that_of_the_images_that_are_there(fate, name, task, photos, tmp_path):
    """The label and the copy of an image that is gone would be trained with, and its class moves the others' numbers."""
    labels = {"a.png": "dog", "b.jpg": "cat"}
    task = FolderTask("prompts", name, task.checkpoint)
    box = {"x": 10, "y": 10, "width": 30, "height": 20}
    for one in ("day 1", "z.bmp"):
        shutil.rmtree(photos / one, ignore_errors=True)
    (photos / "z.bmp").unlink()

    def again(names, **options):
        images = [one for one in find_images([photos])[1] if one.file_name in names]
        images = [one._replace(prompts=({"label": labels[one.file_name], "bbox": box},)) for one in images]
        return segment_folder(task, images, tmp_path / "out", **options)

    assert again(labels).done == 2
    if fate == "broken":
        (photos / "a.png").write_bytes(b"")
    assert again(["b.jpg"] if fate != "broken" else labels, restart=fate == "restarted").errors.keys() == (
        {"a.png"} if fate == "broken" else set()
    )
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.stem.partition("_")[0] == "a"]
    listing = {
        "PNG": "out/manifest.json",
        "YOLO": "out/data.yaml",
        "labelme": "out/images/b.json",
        "CVAT": "out/annotations.xml",
        "Label Studio": "out/tasks.json",
        "index PNG": "out/masks/b.png",
    }.get(name, "out")
    text = (tmp_path / listing).read_text(errors="replace")
    assert "a.png" not in text
    if name == "YOLO":
        (line,) = (tmp_path / "out" / "labels" / "b.txt").read_text().splitlines()
        number = int(line.split()[0])
        assert (tmp_path / "out" / "classes.txt").read_text().splitlines()[number] == "cat"
        assert number == (0 if fate == "restarted" else 1)
    elif name.startswith("COCO"):
        document = json.loads(text)
        (category,) = {one["category_id"] for one in document["annotations"]}
        assert category == (1 if fate == "restarted" else 2)
        assert {one["id"]: one["name"] for one in document["categories"]}[category] == "cat"


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_that_comes_back_as_it_was_is_whole_again(name, task, photos, tmp_path):
    """Moved away and back, it has the size and time that the journal knows, but its masks and its copy left with it."""
    task = with_format(task, name)
    run(task, photos, tmp_path / "out")
    whole = tree(tmp_path / "out")
    (photos / "a.png").rename(tmp_path / "a.png")
    run(task, photos, tmp_path / "out")
    assert tree(tmp_path / "out") != whole
    (tmp_path / "a.png").rename(photos / "a.png")
    run(task, photos, tmp_path / "out")
    assert tree(tmp_path / "out") == whole


def test_a_category_keeps_its_number_when_others_come_before_it(task, photos, tmp_path):
    """`a.png` is sorted first, but came later."""
    task, box = FolderTask("prompts", "YOLO", task.checkpoint), {"x": 10, "y": 10, "width": 30, "height": 20}
    images = {one.file_name: one for one in find_images([photos])[1]}
    late = images["a.png"]._replace(prompts=({"label": "dog", "bbox": box},))
    early = images["b.jpg"]._replace(prompts=({"label": "cat", "bbox": box},))
    segment_folder(task, [early], tmp_path / "out")
    segment_folder(task, [late, early], tmp_path / "out")
    assert (tmp_path / "out" / "classes.txt").read_text() == "cat\ndog\n"
    assert [(tmp_path / "out" / "labels" / name).read_text()[0] for name in ("a.txt", "b.txt")] == ["1", "0"]


def test_categories_of_a_coco_file_keep_their_ids(checkpoint, photos, tmp_path):
    """So that results can be scored against it: pycocotools compares ids, not names."""
    truth = {"images": [], "annotations": [], "categories": [{"id": 90, "name": "bowl"}, {"id": 17, "name": "cup"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "prompts.json").write_text(json.dumps({"a.png": PROMPTS["a.png"]}))
    arguments = [photos, "--prompts", tmp_path / "prompts.json", "--model", checkpoint, "--categories", tmp_path / "truth.json"]
    assert command.main([str(one) for one in [*arguments, "--coco", tmp_path / "out.json"]]) == 0
    document = json.loads((tmp_path / "out.json").read_bytes())
    assert {one["name"]: one["id"] for one in document["categories"]} == {"bowl": 90, "cup": 17, "object": 91}
    assert [one["category_id"] for one in document["annotations"]] == [17, 91]
    assert command.main([str(one) for one in [*arguments, "--yolo", tmp_path / "out"]]) == 0
    assert (tmp_path / "out" / "classes.txt").read_text() == "cup\nbowl\nobject\n"
    assert (tmp_path / "out" / "labels" / "a.txt").read_text().splitlines()[1].startswith("2 ")


@pytest.mark.parametrize("form", ["CVAT", "YOLO", "COCO", "masks"])
def test_boxes_of_a_data_set_become_masks(form, photos, checkpoint, tmp_path):
    """One box each on two of the images, in the forms that annotators export; a label keeps its name."""
    boxes = {"a.png": (10, 10, 40, 30), "b.jpg": (5, 8, 25, 28)}
    sizes = {name: Image.open(photos / name).size for name in boxes}
    path = tmp_path / ("boxes.xml" if form == "CVAT" else "boxes.json" if form == "COCO" else "boxes")
    if form == "CVAT":
        listed = "".join(
            f'<image id="{number}" name="{name}" width="{sizes[name][0]}" height="{sizes[name][1]}">'
            f'<box label="cat" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/></image>'
            for number, (name, (x1, y1, x2, y2)) in enumerate(boxes.items())
        )
        path.write_text(f"<annotations>{listed}<image id='9' name='gone.png' width='1' height='1'/></annotations>")
    elif form == "YOLO":
        (path / "labels").mkdir(parents=True)
        (path / "classes.txt").write_text("dog\ncat\n")
        for name, (x1, y1, x2, y2) in boxes.items():
            width, height = sizes[name]
            line = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            (path / "labels" / f"{Path(name).stem}.txt").write_text(f"1 {' '.join(map(str, line))}\n")
    elif form == "COCO":
        images = [
            {"id": i, "file_name": name, "width": sizes[name][0], "height": sizes[name][1]} for i, name in enumerate(boxes)
        ]
        annotations = [
            {
                "id": i,
                "image_id": i,
                "category_id": 3,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
            }
            for i, (x1, y1, x2, y2) in enumerate(boxes.values())
        ]
        categories = [{"id": 3, "name": "cat"}]
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    else:
        (path / "masks").mkdir(parents=True)
        for name, (x1, y1, x2, y2) in boxes.items():
            mask = np.zeros(sizes[name][::-1], np.uint8)
            mask[y1:y2, x1:x2] = 255
            Image.fromarray(mask).save(path / "masks" / f"{Path(name).stem}.png")
    command_line = [photos, "--boxes-from", path, "--model", checkpoint, "--coco", tmp_path / "out.json"]
    assert command.main([str(one) for one in command_line]) == (1 if form == "CVAT" else 0)
    (tmp_path / "prompts.json").write_text(
        json.dumps(
            {
                name: [{"label": "cat", "bbox": {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}}]
                for name, (x1, y1, x2, y2) in boxes.items()
            }
        )
    )
    command_line[1:3] = ["--prompts", tmp_path / "prompts.json"]
    command_line[-1] = tmp_path / "expected.json"
    assert command.main([str(one) for one in command_line]) == 0
    found, expected = (json.loads((tmp_path / name).read_bytes()) for name in ("out.json", "expected.json"))
    names = [one["file_name"] for one in found["images"]]
    # In YOLO's form, an image without a file of labels is one without objects.
    assert names == sorted(names if form == "YOLO" else boxes) and len(names) == (5 if form == "YOLO" else 2)
    if form == "masks":
        assert [one["name"] for one in found["categories"]] == ["object"]
    else:
        assert found["categories"] == expected["categories"]
    assert [one["segmentation"] for one in found["annotations"]] == [one["segmentation"] for one in expected["annotations"]]


def test_the_masks_are_scored_against_true_ones(photos, checkpoint, tmp_path, capsys):
    """Against themselves they are perfect; against boxes they are not."""
    prompts = {"a.png": PROMPTS["a.png"][:1], "b.jpg": PROMPTS["a.png"][:1]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    arguments = [photos, "--prompts", tmp_path / "prompts.json", "--model", checkpoint, "--coco", tmp_path / "out.json"]
    assert command.main([str(one) for one in arguments]) == 0
    shutil.copy(tmp_path / "out.json", tmp_path / "truth.json")
    assert command.main([str(one) for one in [*arguments, "--score", tmp_path / "truth.json"]]) == 0
    heading, row, every = capsys.readouterr().out.splitlines()
    assert heading.split() == ["category", "objects", "AP", "AP50", "IoU", "boundary", "F"]
    assert row.split() == [PROMPTS["a.png"][0].get("label", "object"), "2", "1.000", "1.000", "1.000", "1.000"]
    assert every.split()[0] == "all"
    assert command.main([str(one) for one in [*arguments, "--score", tmp_path / "gone.json"]]) == 2
    assert "no file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--coco", "--yolo", "--png", "--labelme", "--cvat", "--label-studio"])
def test_every_form_is_scored_and_shown(option, photos, checkpoint, tmp_path, capsys):
    """Against themselves, with one name in two folders. All is written among the images: none of it is one of them."""
    prompts = dict.fromkeys(("a.png", "day 1/a.png"), PROMPTS["a.png"][:1])
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    base = [photos, "--prompts", tmp_path / "prompts.json", "--model", checkpoint]
    assert command.main([str(one) for one in [*base, "--coco", tmp_path / "truth.json"]]) == 0
    arguments = [*base, option, photos / "out", "--score", tmp_path / "truth.json", "--review", photos / "sheets"]
    for _ in range(2):
        capsys.readouterr()
        assert command.main([str(one) for one in arguments]) == 0
        shown = capsys.readouterr()
        row = shown.out.splitlines()[1].split()
        assert row[:2] == [PROMPTS["a.png"][0].get("label", "object"), "2"]
        assert float(row[4]) == 1 or (option == "--yolo" and float(row[4]) > 0.8), row
        assert "skipped: 0" in shown.err and "Contact sheets: 1 in" in shown.err
        with Image.open(photos / "out.worst.jpg") as worst, Image.open(photos / "sheets" / "review_0001.jpg") as sheet:
            assert worst.width == 960 and sheet.width == 640


def test_boxes_of_the_packs_own_forms_keep_their_folders(photos, checkpoint, tmp_path, capsys):
    """labelme's and Label Studio's names, too, are those of the images, of which two have one name in two folders."""
    prompts = dict.fromkeys(("a.png", "day 1/a.png"), PROMPTS["a.png"][:1])
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    for option in ("--labelme", "--label-studio", "--cvat"):
        made = [photos, "--prompts", tmp_path / "prompts.json", "--model", checkpoint, option, tmp_path / option]
        assert command.main([str(one) for one in made]) == 0
        tightened = [photos, "--boxes-from", tmp_path / option, "--model", checkpoint, "--coco", tmp_path / f"{option}.json"]
        assert command.main([str(one) for one in tightened]) == 0, capsys.readouterr().err
        assert {name: len(masks) for name, masks in masks_in(tmp_path / f"{option}.json").items()} == dict.fromkeys(prompts, 1)


def discs(photos, place, labels=("disc",)):
    """Bright discs on the photos, and a COCO file of them: of the labels in turn."""
    records, coco = [], data_set("COCO RLE", place)
    for index, name in enumerate(NAMES):
        rows, columns = np.mgrid[:60, :80]
        mask = (rows - 20 - 5 * index) ** 2 + (columns - 20 - 7 * index) ** 2 <= 14**2
        pixels = make_image(60, 80, index)
        pixels[mask] = 230
        Image.fromarray(pixels).save(photos / name, **({"lossless": True} if name.endswith("webp") else {}))
        objects = [LabeledMask(mask, labels[index % len(labels)]), LabeledMask(np.zeros((60, 80), bool), "none")]
        records.append(coco.entry(LabeledImage(name, (60, 80), objects))[0])
    coco.write(records)


def test_a_data_set_teaches_and_the_folder_is_segmented_with_it(photos, checkpoint, tmp_path, capsys, monkeypatch):
    """What it teaches is what SAM Teach learns from the same images and masks; a run that goes on does not learn again."""
    monkeypatch.setattr(teaching._Teacher, "_before", lambda *_: 0.0)  # a model with random weights is not helped
    discs(photos, tmp_path / "truth.json")
    arguments = [
        photos,
        "--everything",
        "--coco",
        tmp_path / "out.json",
        "--model",
        checkpoint,
        "--teach",
        tmp_path / "truth.json",
    ]
    arguments = [str(one) for one in [*arguments, "--points-per-side", "2", "--pred-iou-thresh", "-1"]]
    assert command.main(arguments) == 0
    said = capsys.readouterr().err
    assert "Taught with 5 images. IoU of a click on held-out masks: 0.000 before" in said and "That is not better" not in said
    (file,) = tmp_path.glob("out.json.taught-*.safetensors")
    data = open_data_set(tmp_path / "truth.json", photos)
    read = [data.read(index) for index in range(len(data.names))]
    images = [torch.from_numpy(one.pixels.astype(np.float32) / 255)[None] for one in read]
    masks = [torch.from_numpy(one.labeled.objects[0].mask.astype(np.float32))[None] for one in read]
    concept, lesson = teach(load_model(checkpoint), images, masks, options=TeachOptions())
    assert lesson.helped and torch.equal(load_concept(file).tokens, concept.tokens)
    capsys.readouterr()
    monkeypatch.setattr(teaching, "_Teacher", None)
    assert command.main(arguments) == 0 and "now: 0; before: 5" in capsys.readouterr().err
    with_file = [one for one in arguments if one not in ("--teach", str(tmp_path / "truth.json"))]
    assert command.main([*with_file, "--concept", str(file)]) == 0 and "now: 0; before: 5" in capsys.readouterr().err


def test_what_does_not_help_is_said_and_the_model_used_as_it_is(photos, checkpoint, tmp_path, capsys):
    """A model with random weights learns nothing of five discs that holds for the held-out one."""
    discs(photos, tmp_path / "truth.json")
    arguments = [photos, "--everything", "--model", checkpoint, "--points-per-side", "2", "--pred-iou-thresh", "-1", "--coco"]
    taught = [*arguments, tmp_path / "taught.json", "--teach", tmp_path / "truth.json"]
    assert command.main([str(one) for one in taught]) == 0
    assert "That is not better, so the model is used as it is." in capsys.readouterr().err
    assert command.main([str(one) for one in [*arguments, tmp_path / "plain.json"]]) == 0
    assert (tmp_path / "taught.json").read_bytes() == (tmp_path / "plain.json").read_bytes()


def test_which_objects_of_a_data_set_are_taught(photos, tmp_path):
    discs(photos, tmp_path / "truth.json", ("disc", "coin"))
    data = open_data_set(tmp_path / "truth.json", photos)
    assert len(ShownObjects(data, "disc")) == 3 and len(ShownObjects(data, "coin")) == 2
    with pytest.raises(SAMError, match="has the labels coin, disc: say by --label which of them to teach, not 'object'"):
        ShownObjects(data, "object")
    for image, mask, _ in ShownObjects(data, "coin"):
        assert image.shape == (1, 60, 80, 3) and mask.shape == (1, 60, 80) and 500 < mask.sum() < 700
    discs(photos, tmp_path / "one.json")
    assert len(ShownObjects(open_data_set(tmp_path / "one.json", photos), "object")) == 5, "one label need not be named"
    (tmp_path / "none.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(SAMError, match="no object to learn from"):
        ShownObjects(open_data_set(tmp_path / "none.json", photos), "object")


def test_what_cannot_teach_is_said_before_anything_is_written(photos, checkpoint, tmp_path, capsys):
    arguments = [photos, "--everything", "--coco", tmp_path / "out.json", "--model", checkpoint, "--teach", tmp_path / "gone"]
    assert command.main([str(one) for one in arguments]) == 2
    assert "no file or folder" in capsys.readouterr().err and not list(tmp_path.glob("out.json*"))
    with pytest.raises(SystemExit):
        command.main([str(one) for one in [*arguments, "--concept", "x"]])


@pytest.mark.parametrize("option", ["--score", "--teach", "--boxes-from"])
@pytest.mark.parametrize("form", ["--coco", "--yolo"])
def test_the_output_never_replaces_what_is_read(form, option, photos, checkpoint, tmp_path, capsys):
    discs(photos, tmp_path / "set" / "annotations.json")
    before = (tmp_path / "set" / "annotations.json").read_bytes()
    read = [tmp_path / "set" / "annotations.json", tmp_path / "set"]
    output = read[0] if form == "--coco" else read[1]
    for source in read:
        arguments = [photos, form, output, option, source, "--model", checkpoint]
        arguments += [] if option == "--boxes-from" else ["--everything", "--points-per-side", "2"]
        assert command.main([str(one) for one in arguments]) == 2
        assert f"would replace {source}, which {option} reads" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["annotations.json"]
    assert (tmp_path / "set" / "annotations.json").read_bytes() == before


def test_a_truth_that_cannot_be_read_is_said_before_the_images_are_segmented(photos, checkpoint, tmp_path, capsys):
    arguments = [photos, "--everything", "--coco", tmp_path / "out.json", "--model", checkpoint, "--score", tmp_path / "gone"]
    assert command.main([str(one) for one in arguments]) == 2
    assert "no file or folder" in capsys.readouterr().err and not list(tmp_path.glob("out.json*"))


def test_masks_with_other_names_than_the_true_objects_are_explained(photos, checkpoint, tmp_path, capsys):
    discs(photos, tmp_path / "truth.json")
    arguments = [photos, "--boxes-from", tmp_path / "truth.json", "--score", tmp_path / "truth.json", "--model", checkpoint]
    assert command.main([str(one) for one in [*arguments, "--coco", tmp_path / "out.json"]]) == 0
    assert "are called" not in capsys.readouterr().err
    assert command.main([str(one) for one in [*arguments, "--index-png", tmp_path / "out"]]) == 0
    assert "The masks are called object, and the true objects disc: only those of one name" in capsys.readouterr().err


def test_a_data_set_of_other_images_is_refused(photos, checkpoint, tmp_path, capsys):
    (tmp_path / "boxes.xml").write_text("<annotations><image id='0' name='gone.png' width='1' height='1'/></annotations>")
    arguments = [photos, "--boxes-from", tmp_path / "boxes.xml", "--model", checkpoint, "--coco", tmp_path / "out.json"]
    assert command.main([str(one) for one in arguments]) == 2
    assert "has none of the images" in capsys.readouterr().err and not (tmp_path / "out.json").exists()


def test_labelmes_files_have_their_images_beside_them(photos, checkpoint, tmp_path):
    """So that labelme, and SAM Load Masks, open the folder as it is."""
    (tmp_path / "prompts.json").write_text(json.dumps({"a.png": PROMPTS["a.png"]}))
    arguments = [photos, "--prompts", tmp_path / "prompts.json", "--model", checkpoint, "--labelme", tmp_path / "out"]
    assert command.main([str(one) for one in arguments]) == 0
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == (photos / "a.png").read_bytes()
    read = open_data_set(tmp_path / "out")
    assert read.form == "labelme" and len(read.read(0).labeled.objects) == 2


@pytest.mark.parametrize(
    "categories", [None, [], [{"id": 1}], [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], [{"id": "1", "name": "a"}]]
)
def test_categories_of_another_form_are_refused(categories, tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps({"categories": categories}))
    with pytest.raises(SAMError, match=r"truth\.json"):
        read_categories(tmp_path / "truth.json")


@pytest.mark.parametrize("name", ["train/images/x.png", "images/x.png", "labels/x.png", "images/images/x.png", "x.png"])
def test_yolos_labels_are_where_readers_look(name, task, tmp_path):
    (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_image(60, 80)).save(tmp_path / "photos" / name)
    run(with_format(task, "YOLO"), tmp_path / "photos", tmp_path / "out")
    copy = str(tmp_path / "out" / "images" / name)
    # Ultralytics: img2label_paths in data/utils.py
    label = f"{os.sep}labels{os.sep}".join(copy.rsplit(f"{os.sep}images{os.sep}", 1)).rsplit(".", 1)[0] + ".txt"
    assert os.path.isfile(copy) and os.path.isfile(label)  # noqa: PTH113


def test_boxes_of_a_coco_file_are_prompts_and_lists_of_numbers_are_refused(task, photos, tmp_path):
    """A list of four numbers is two corners in this pack, and a corner and a size in COCO."""
    run(task, photos, tmp_path / "truth.json")
    images, unknown = read_prompts(tmp_path / "truth.json", find_images([photos])[1])
    assert not unknown and sum(len(one.prompts) for one in images) == sum(map(len, masks_in(tmp_path / "truth.json").values()))
    document = json.loads((tmp_path / "truth.json").read_bytes())
    first = document["annotations"][0]["bbox"]
    assert images[0].prompts[0] == {"label": "shape", "bbox": dict(zip(("x", "y", "width", "height"), first, strict=True))}
    (tmp_path / "prompts.json").write_text(json.dumps({"a.png": [{"bbox": [10, 10, 30, 20]}]}))
    images, _ = read_prompts(tmp_path / "prompts.json", find_images([photos])[1])
    summary = segment_folder(FolderTask("prompts", "COCO RLE", task.checkpoint), images, tmp_path / "out.json")
    assert 'write it as {"x", "y", "width", "height"}' in summary.errors["a.png"]
    (tmp_path / "prompts.json").write_text(json.dumps({"images": [{"id": 1}], "annotations": [], "categories": []}))
    with pytest.raises(SAMError, match=r"prompts\.json is not a COCO file with boxes: KeyError 'file_name'"):
        read_prompts(tmp_path / "prompts.json", [])


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_ends_the_run_with_the_files_name_and_it_goes_on(name, task, photos, tmp_path, small_files):
    run(with_format(task, name), photos, tmp_path / "whole" / "out")
    sizes = [len(content) for content in tree(tmp_path / "whole" / "out").values()]
    with small_files(max(sizes) - 1), pytest.raises(SAMError, match=r"out.* cannot be written: .*Free some space"):
        run(with_format(task, name), photos, tmp_path / "full" / "out")
    assert not list((tmp_path / "full").rglob("*.part"))
    with small_files(300), pytest.raises(SAMError, match=r"cannot be written"):
        run(with_format(task, name), photos, tmp_path / "full" / "out")
    assert run(with_format(task, name), photos, tmp_path / "full" / "out").errors == {}
    assert {str(path): content for path, content in tree(tmp_path / "full" / "out").items()} == {
        str(path): content for path, content in tree(tmp_path / "whole" / "out").items()
    }


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("--hq False", False), ("--hq no", False), ("--no-hq", False), ("--hq", True), ("--hq true", True), ("", True)],
)
def test_yes_and_no_on_the_command_line(given, wanted):
    chosen = command.make_parser().parse_args(["x", "--everything", "--coco", "y", *given.split()])
    assert chosen.hq is wanted


def test_neither_yes_nor_no_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.make_parser().parse_args(["x", "--everything", "--coco", "y", "--hq", "maybe"])
    assert "neither yes nor no" in capsys.readouterr().err


def test_a_concept_says_which_object_is_meant(checkpoint, photos, tmp_path):
    model = load_model(checkpoint)
    concept = Concept(torch.randn(4, 32) * 5, content_id(model), "tiny.pth")
    save_concept(concept, tmp_path / "concept.safetensors")
    (tmp_path / "prompts.json").write_text(json.dumps({"a.png": PROMPTS["a.png"][:1]}))
    arguments = [photos, "--prompts", tmp_path / "prompts.json", "--coco", tmp_path / "out.json", "--model", checkpoint]
    assert command.main([str(one) for one in [*arguments, "--concept", tmp_path / "concept.safetensors"]]) == 0
    prompt = Prompt(np.array([[30.0, 25], [3, 5]]), np.array([1, 0], np.int32))
    wanted = decode(model, encode(model, [make_image(60, 80, 0)]), [[prompt]], PredictOptions(concept=concept))
    ((found, _, _),) = masks_in(tmp_path / "out.json")["a.png"]
    assert found == encode_mask(wanted.masks[0].numpy()[0])
    assert command.main([str(one) for one in arguments]) == 2  # without it, these are other settings


def test_upright_copies_are_seen_alike_by_readers_without_exif(task, checkpoint, photos, tmp_path, capsys):
    """torchvision and others open a photograph and do not turn it; its mask would lie across."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    Image.fromarray(make_image(60, 80, 5)).save(photos / "side.jpg", exif=exif)
    arguments = [
        str(photos),
        "--everything",
        "--coco",
        str(tmp_path / "out.json"),
        "--model",
        str(checkpoint),
        "--points-per-side",
        "2",
    ]
    assert command.main(arguments) == 0
    assert "Turned by their EXIF data: side.jpg. Masks are of the upright image: --upright" in capsys.readouterr().err
    assert command.main([*arguments, "--upright", str(tmp_path / "copies")]) == 0, "of images that were segmented before, too"
    assert "EXIF" not in capsys.readouterr().err
    sizes = {
        one["file_name"]: (one["width"], one["height"]) for one in json.loads((tmp_path / "out.json").read_bytes())["images"]
    }
    assert sizes["side.jpg"] == (60, 80)
    for name, size in sizes.items():
        with Image.open(tmp_path / "copies" / name) as image:
            assert image.size == size and image.getexif().get(0x0112, 1) == 1
        same = (tmp_path / "copies" / name).read_bytes() == (photos / name).read_bytes()
        assert same == (name != "side.jpg")
    with Image.open(tmp_path / "copies" / "side.jpg") as image:
        assert image.getexif()[0x010F] == "a camera"
        seen = np.abs(np.array(image).astype(int) - folders.read_image(photos / "side.jpg")).mean()
    assert seen < 4


def test_other_settings_are_refused_by_name(task, photos, tmp_path):
    run(task, photos, tmp_path / "out.json")
    with pytest.raises(SAMError, match=r"out\.json\.journal .*label was 'shape' and is 'object'"):
        run(FolderTask("everything", "COCO RLE", task.checkpoint, everything=LOOSE), photos, tmp_path / "out.json")


def test_another_process_at_the_same_output_is_refused(task, photos, tmp_path):
    def runner(task, images):
        with pytest.raises(SAMError, match="another process"):
            run(task, photos, tmp_path / "out.json")
        return run_here(task, images)

    assert run(task, photos, tmp_path / "out.json", run=runner).done == 5


@pytest.mark.parametrize("name", ["YOLO", "PNG"])
def test_names_that_differ_in_the_ending_only_are_reported(name, task, photos, tmp_path):
    Image.fromarray(make_image(60, 80)).save(photos / "a.jpg")
    summary = run(with_format(task, name), photos, tmp_path / "out")
    assert summary.done == 5 and "that of a.jpg only in the extension" in summary.errors["a.png"]


def test_the_output_in_the_folder_of_images_is_left_out(task, photos):
    for _ in range(2):
        assert sum(run(with_format(task, "YOLO"), photos, photos / "out")[:2]) == 5


def test_folders_without_images_or_that_are_not_there_are_refused(tmp_path):
    for path, message in ((tmp_path, "no image"), (tmp_path / "none", "There is no file or folder")):
        with pytest.raises(SAMError, match=message):
            find_images([path])


def test_names_are_relative_to_what_folders_have_in_common(photos):
    root, images, _ = find_images([photos / "day 1", photos / "a.png"])
    assert root == photos and [one.file_name for one in images] == ["a.png", "day 1/a.png", "day 1/größe.webp"]


def test_a_journal_forgets_an_unfinished_line_only(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, {"a": 1}) as journal:
        journal.add("x", [1], {"objects": []})
        journal.add("y", [1], {"objects": []})
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Journal(path, {"a": 1}) as journal:
            assert len(journal.records) == max(0, whole[:length].count(b"\n") - 1)
            journal.add("z", [2], {})
        with Journal(path, {"a": 1}) as journal:
            assert journal.has("z", [2]) and not journal.has("z", [3])


@pytest.mark.parametrize("content", [b"hello\n", b"[]\n", b'{"samkit_journal": 9}\n'])
def test_what_is_not_a_journal_is_left_alone(content, tmp_path):
    (tmp_path / "journal").write_bytes(content)
    with pytest.raises(SAMError, match="not a journal"):
        Journal(tmp_path / "journal", {})
    assert (tmp_path / "journal").read_bytes() == content


def kill_at(process, is_time):
    """Kill a process at the first moment at which `is_time()`, or never if it ends before."""
    alive = (lambda: process.poll() is None) if isinstance(process, subprocess.Popen) else process.is_alive
    while alive():
        if is_time():
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait() if isinstance(process, subprocess.Popen) else process.join()


def size_of(path):
    return path.stat().st_size if path.is_file() else 0


@needs_fork
@pytest.mark.parametrize("name", FORMATS)
def test_a_killed_run_goes_on_and_gives_the_same_output(name, task, photos, tmp_path):
    task = with_format(task, name)
    run(task, photos, tmp_path / "whole" / "out")
    most = size_of(tmp_path / "whole" / "out.journal")
    moments = sorted(random.Random(name).sample(range(200, most), 3))
    output, journal = tmp_path / "killed" / "out", tmp_path / "killed" / "out.journal"
    before = 0
    for moment in moments:
        process = forked(run, task, photos, output)
        kill_at(process, lambda moment=moment: size_of(journal) >= moment)
        now = journal.read_bytes().count(b"\n") - 1
        assert now >= before
        before = now
    summary = run(task, photos, output)
    assert summary.before >= before > 0 and summary.done + summary.before == 5
    assert {str(name): content for name, content in tree(output).items()} == {
        str(name): content for name, content in tree(tmp_path / "whole" / "out").items()
    }


def test_the_command_segments_and_says_so(checkpoint, photos, tmp_path, capsys):
    options = ["--points-per-side", "2", "--pred-iou-thresh", "-1", "--stability-score-thresh", "0", "--label", "shape"]
    arguments = [photos, "--everything", "--coco", tmp_path / "out.json", "--model", checkpoint, *options]
    assert command.main([str(one) for one in arguments]) == 0
    assert "Segmented now: 5; before: 0; skipped: 0." in capsys.readouterr().err
    (photos / "bad.png").write_text("")
    assert command.main([str(one) for one in arguments]) == 1
    said = capsys.readouterr().err
    assert "bad.png: skipped. UnidentifiedImageError" in said and "now: 0; before: 5; skipped: 1" in said
    assert command.main([str(one) for one in [*arguments, "--polygons"]]) == 2
    assert "format was 'COCO RLE' and is 'COCO polygons'" in capsys.readouterr().err
    assert command.main([str(one) for one in [*arguments, "--polygons", "--restart"]]) == 1
    assert isinstance(json.loads((tmp_path / "out.json").read_bytes())["annotations"][0]["segmentation"], list)


def test_ctrl_c_says_how_to_go_on(checkpoint, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Worker, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = [photos, "--everything", "--coco", tmp_path / "out.json", "--model", checkpoint]
    assert command.main([str(one) for one in arguments]) == 130
    assert "Run the same command to go on" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["x", "--everything"], ["x", "--coco", "a"], ["x", "--words", "a", "--everything"]])
def test_a_mode_and_an_output_are_needed(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and ("required" in said or "not allowed" in said)


def test_the_script_runs_in_a_folder_of_any_name(tmp_path):
    (tmp_path / "SAM Kit (1)").symlink_to(ROOT, target_is_directory=True)
    script = tmp_path / "SAM Kit (1)" / "segment_folder.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "none", "--everything", "--coco", "x.json", "--model", "samkit_demo.safetensors"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "There is no file or folder" in done.stderr, done.stderr


def test_the_project_names_the_command():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'samkit-segment = "samkit.segment_folder:main"' in project and callable(command.main)


@pytest.mark.exhaustive
def test_installed_with_pip_it_is_a_command(tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", ROOT], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    script = tmp_path / "site" / "bin" / "samkit-segment"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and "--everything" in done.stdout, done.stderr
    demo = tmp_path / "site" / "samkit" / "sam" / "weights" / "bundled" / "samkit_demo.safetensors"
    assert demo.is_file()
    installed = {path.parent.relative_to(tmp_path / "site" / "samkit") for path in (tmp_path / "site").rglob("__init__.py")}
    assert installed >= {path.parent.relative_to(ROOT) for path in (ROOT / "sam").rglob("__init__.py")}


@pytest.mark.exhaustive
def test_the_command_killed_at_twenty_moments(photos, checkpoint, tmp_path):
    """The real command, from its start to its end."""
    for seed in range(5, 25):
        Image.fromarray(make_image(60, 80, seed)).save(photos / f"{seed}.png")
    options = ["--points-per-side", "8", "--pred-iou-thresh", "-1", "--stability-score-thresh", "0", "--device-mode", "CPU"]

    def start(folder):
        arguments = [photos, "--everything", "--yolo", tmp_path / folder / "out", "--model", checkpoint, *options]
        return subprocess.Popen([sys.executable, ROOT / "segment_folder.py", *arguments], stderr=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    most = size_of(tmp_path / "whole" / "out.journal")
    moments = sorted(random.Random(0).sample(range(most + 1), 20))
    journal = tmp_path / "killed" / "out.journal"
    for moment in moments:
        kill_at(start("killed"), lambda moment=moment: size_of(journal) >= moment)
    assert start("killed").wait() == 0
    assert list(tree(tmp_path / "killed" / "out").values()) and tree(tmp_path / "killed" / "out") == tree(
        tmp_path / "whole" / "out"
    )

"""Data sets that come in: what the real tools write is read to the exact masks, and so is what this pack writes."""

import base64
import contextlib
import gc
import io
import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from PIL import Image
from pycocotools import mask as pycoco
from samkit.nodes.load_masks import LoadMasks
from samkit.nodes.save_masks import SaveMasks
from samkit.nodes.teach import Teach
from samkit.sam import SAMError
from samkit.sam.datasets.drawing import polygon_mask
from samkit.sam.datasets.formats import FORMATS
from samkit.sam.datasets.label_studio import encode_brush
from samkit.sam.datasets.polygons import coco_polygons
from samkit.sam.datasets.read import open_data_set
from samkit.sam.datasets.rle import decode_mask, encode_mask
from test_datasets import SHAPES

SIZE = (90, 120)


def photo(path, seed=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_image(*size, seed)).save(path)


def masks_of(data, index=0):
    pixels, labeled = data.read(index)
    assert pixels.shape[:2] == labeled.size
    return [(one.label, one.mask, one.score) for one in labeled.objects]


@pytest.mark.parametrize("seed", range(6))
def test_polygons_are_those_of_pycocotools(seed):
    rng, different = np.random.default_rng(seed), set()
    for turn in range(200):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        points = rng.random((rng.integers(3, 9), 2)) * [width + 10, height + 10] - 5
        points = np.round(points * 2) / 2 if turn % 3 == 0 else points
        flat = points.reshape(-1).tolist()
        wanted = pycoco.decode(pycoco.frPyObjects([flat], height, width))[..., 0].astype(bool)
        assert (polygon_mask(flat, (height, width)) == wanted).all()
        different.add(wanted.tobytes())
    assert len(different) > 100


@pytest.mark.parametrize("name", SHAPES)
def test_run_lengths_are_those_of_pycocotools(name):
    mask = SHAPES[name]
    compressed = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (decode_mask(compressed) == mask).all()
    assert (decode_mask({**compressed, "counts": compressed["counts"].decode()}) == mask).all()
    assert (decode_mask(encode_mask(mask)) == mask).all()
    runs, value, lengths = mask.T.reshape(-1), False, []
    while len(runs):
        end = int(np.argmax(runs != value)) if (runs != value).any() else len(runs)
        lengths.append(end)
        runs, value = runs[end:], not value
    assert (decode_mask({"size": list(mask.shape), "counts": lengths}) == mask).all()


WRONG_RUNS = [
    {},
    {"size": [3], "counts": [9]},
    {"size": [3, 3], "counts": "~~~"},
    {"size": [3, 3], "counts": "o"},
    {"size": [3, 3], "counts": [4]},
    {"size": [3, 3], "counts": [-1, 10]},
]


@pytest.mark.parametrize("coded", WRONG_RUNS, ids=str)
def test_run_lengths_of_another_form_are_refused(coded):
    with pytest.raises(SAMError, match="run-length encoding"):
        decode_mask(coded)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "index PNG"])
def test_what_save_masks_writes_comes_back(name, tmp_path, monkeypatch):
    """Exactly, but for YOLO's polygons of several parts, which the lines that join them are drawn into.

    Index PNGs have no labels, and one object for each pixel: see test_exports.py.
    """
    install(monkeypatch, FakeComfyUI(tmp_path))
    several = ("two parts", "an island in a hole") if name == "YOLO" else ()
    shapes = [key for key in SHAPES if key not in several]
    masks = torch.from_numpy(np.stack([SHAPES[key] for key in shapes])).float()
    image = as_image(make_image(*SHAPES[shapes[0]].shape))
    SaveMasks().execute([image], [masks], ["set"], [name], labels=shapes)
    images, found, boxes, labels = LoadMasks().execute("set [output]", individual_masks=True)
    kept = [key for key in shapes if SHAPES[key].any()]
    assert labels == kept and torch.equal(found[0], masks[[shapes.index(key) for key in kept]])
    assert torch.equal(images[0], image) and [box["label"] for box in boxes[0][0]] == kept


def test_a_coco_file_with_everything(tmp_path):
    """Lists as counts, several polygons in one object, crowds, images in a folder beside, ids that are not in order."""
    photo(tmp_path / "images" / "b.png", 1)
    photo(tmp_path / "images" / "a.png")
    square, other = [10.0, 10, 40, 10, 40, 30, 10, 30], [60.0, 50, 90, 50, 90, 80, 60, 80]
    document = {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 120, "height": 90},
            {"id": 3, "file_name": "a.png", "width": 120, "height": 90},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "segmentation": [square, other], "iscrowd": 0},
            {
                "id": 2,
                "image_id": 3,
                "category_id": 1,
                "segmentation": {"size": [90, 120], "counts": [5, 10, 90 * 120 - 15]},
                "iscrowd": 1,
            },
        ],
    }
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "instances_default.json"
    path.write_text(json.dumps(document))
    for data in (open_data_set(path), open_data_set(tmp_path)):
        assert list(data.names) == ["b.png", "a.png"] and data.labels(0) == set() and masks_of(data) == []
        (first, brush, _), (second, person, _) = masks_of(data, 1)
        assert (first, second) == ("toothbrush", "person")
        wanted = pycoco.decode(pycoco.merge(pycoco.frPyObjects([square, other], 90, 120)))
        assert (brush == wanted.astype(bool)).all() and brush.sum() == 1500
        assert person.T.reshape(-1)[5:15].all() and person.sum() == 10


def test_yolo_as_ultralytics_has_it(tmp_path):
    """Boxes beside polygons, names in data.yaml, an image without a text, labels beside a nested folder `images`."""
    for name in ("a.png", "none.png", "train/images/b.png"):
        photo(tmp_path / "images" / name)
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: ['cat', \"dog\"]\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(
        "1 0.25 0.5 0.5 0.5\n0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n7 0.1 0.1 0.5 0.1 0.5 0.5\n"
    )
    (tmp_path / "images" / "train" / "labels").mkdir()
    (tmp_path / "images" / "train" / "labels" / "b.txt").write_text("0 0.25 0.5 0.5 0.5\n")
    data = open_data_set(tmp_path)
    assert list(data.names) == ["a.png", "none.png", "train/images/b.png"]
    (one, box, _), (two, square, _), (three, _, _) = masks_of(data)
    assert (one, two, three) == ("dog", "cat", "7") and masks_of(data, 1) == []
    wanted = np.zeros(SIZE, bool)
    wanted[22:68, 0:60] = True
    assert (box == wanted).all() or box.sum() in range(2600, 2800)
    drawn = np.zeros(SIZE, np.uint8)  # as Ultralytics does
    cv2.fillPoly(drawn, [np.array([[12, 9], [60, 9], [60, 45], [12, 45]], np.int32)], 1)
    assert (square == (drawn > 0)).all() and data.labels(2) == {"cat"}
    (tmp_path / "labels" / "a.txt").write_text("1 0.25 0.5 0.5\n")
    with pytest.raises(SAMError, match=r"line 1 of .*a\.txt is not a class and a polygon or a box: 3 numbers"):
        data.read(0)


@pytest.mark.parametrize(
    "names",
    [
        "names: ['cat', \"dog's\"]",
        "names:\n  - cat\n  - dog's",
        "names:\n  0: cat\n  1: dog's  # as Ultralytics' own data sets and CVAT's export have them",
        "nc: 2\nnames: {0: cat,\n  1: dog's}",
    ],
)
def test_yolo_names_in_every_form_of_a_list_in_yaml(tmp_path, names):
    photo(tmp_path / "images" / "a.png")
    (tmp_path / "data.yaml").write_text(f"path: ../set\ntrain: images\n{names}\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.25 0.5 0.5 0.5\n1 0.25 0.5 0.5 0.5\n2 0.25 0.5 0.5 0.5\n")
    assert [one[0] for one in masks_of(open_data_set(tmp_path))] == ["cat", "dog's", "2"]


@pytest.mark.parametrize("text", ["names: [cat", "names: 5", "- 1", "", "names: {cat: 0}"])
def test_yolo_without_names_that_can_be_read_has_numbers(tmp_path, text):
    photo(tmp_path / "images" / "a.png")
    (tmp_path / "data.yaml").write_text(text)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.25 0.5 0.5 0.5\n")
    assert [one[0] for one in masks_of(open_data_set(tmp_path))] == ["0"]


def labelme(path, shapes, image="a.png"):
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": 90,
        "imageWidth": 120,
    }
    path.write_text(json.dumps(content))


def shape(label, kind, points, group=None, **more):
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}, "mask": None, **more}


def test_labelme_files(tmp_path):
    """Shapes as labelme's `shape_to_mask` draws them, groups as one object, masks of values 0 and 1 with an inclusive box."""
    photo(tmp_path / "a.png")
    inside = np.zeros((11, 21), np.uint8)
    inside[2:5, 3:9] = 1  # labelme writes 1, not 255
    file = io.BytesIO()
    Image.fromarray(inside).save(file, format="PNG")
    shapes = [
        shape("leaf", "rectangle", [[10, 20], [30, 40]], 1),
        shape("leaf", "polygon", [[60, 20], [80, 20], [80, 40]], 1),
        shape("drop", "circle", [[100, 60], [110, 60]]),
        shape("spot", "mask", [[5, 70], [25, 80]], mask=base64.b64encode(file.getvalue()).decode()),
        shape("tip", "point", [[3, 3]]),
    ]
    labelme(tmp_path / "a.json", shapes)
    for data in (open_data_set(tmp_path), open_data_set(tmp_path / "a.json")):
        (leaf, parts, _), (drop, circle, _), (spot, mask, _) = masks_of(data)
        assert (leaf, drop, spot) == ("leaf", "drop", "spot")
        assert parts[20:41, 10:31].all() and parts[:, :32].sum() == 21 * 21 and parts[21, 79] and not parts[39, 61]
        assert (
            circle[60, 90]
            and circle[60, 110]
            and not circle[60, 112]
            and circle.sum() == pytest.approx(np.pi * 10.5**2, rel=0.05)
        )
        wanted = np.zeros(SIZE, bool)
        wanted[72:75, 8:14] = True
        assert (mask == wanted).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (shape("x", "polygon", [[1, 2], [3, 4]]), "a 'polygon' of 2 points"),
        (shape("x", "mask", [[100, 80], [130, 99]], mask=""), "shape 0"),
        (shape("x", "star", [[1, 2], [3, 4], [5, 6]]), "a 'star' of 3 points"),
        ({"label": "x"}, "shape 0"),
    ],
)
def test_labelme_shapes_that_are_none_are_named(wrong, message, tmp_path):
    photo(tmp_path / "a.png")
    labelme(tmp_path / "a.json", [wrong])
    with pytest.raises(SAMError, match=message):
        open_data_set(tmp_path).read(0)


def test_index_and_palette_pngs_paired_by_name(tmp_path):
    values = np.zeros(SIZE, np.uint8)
    values[10:30, 10:30], values[40:60, 40:60] = 1, 7
    for name in ("a", "sub/b", "c"):
        photo(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0] + [0, 128, 0] * 254)  # DAVIS' colors: the second class is green
    palette.save(tmp_path / "masks" / "sub" / "b.png")
    Image.fromarray((values == 7).astype(np.uint8) * 255).save(tmp_path / "masks" / "c.png")
    Image.fromarray(values).save(tmp_path / "masks" / "no image.png")
    data = open_data_set(tmp_path)
    assert list(data.names) == ["a.jpg", "c.jpg", "sub/b.jpg"]
    for index in (0, 2):
        (one, first, _), (seven, second, _) = masks_of(data, index)
        assert (one, seven) == ("1", "7") and (first == (values == 1)).all() and (second == (values == 7)).all()
    ((label, mask, _),) = masks_of(data, 1)
    assert label == "object" and (mask == (values == 7)).all()


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    install(monkeypatch, FakeComfyUI(tmp_path))
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "a.json").write_text(
        json.dumps({"images": [{"id": 1, "file_name": "x.png"}], "annotations": [], "categories": []})
    )
    (tmp_path / "input" / "b.json").write_text("{")
    (tmp_path / "input" / "c.json").write_text("[]")
    for path, message in (
        ("none", "path is 'none'"),
        ("../output", "path is '../output'"),
        ("a.json", r"there is no image x\.png in .*: say where the images are by image_folder"),
        ("b.json", r"b\.json was not read as JSON"),
        ("c.json", r"c\.json is not a data set that can be read"),
    ):
        with pytest.raises(SAMError, match=message):
            LoadMasks().execute(path)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/hostname"])
def test_an_image_outside_of_the_data_sets_folder_is_not_read(name, tmp_path):
    photo(tmp_path / "secret.png")
    (tmp_path / "set" / "images").mkdir(parents=True)
    path = tmp_path / "set" / "images" / "a.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": []}))
    with pytest.raises(SAMError, match="there is no image"):
        open_data_set(path).read(0)


def test_the_node_reads_no_image_outside_of_comfyuis_folder(tmp_path, monkeypatch):
    """Neither of a labelme file, whose paths may go up, nor beside the folder of a COCO file, nor behind a link."""
    install(monkeypatch, FakeComfyUI(tmp_path))
    photo(tmp_path / "secret.png")
    (tmp_path / "input" / "set").mkdir(parents=True)
    labelme(tmp_path / "input" / "a.json", [], "../secret.png")
    labelme(tmp_path / "input" / "set" / "c.json", [], "link.png")
    (tmp_path / "input" / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    document = {"images": [{"id": 1, "file_name": "secret.png"}], "annotations": [], "categories": []}
    (tmp_path / "input" / "b.json").write_text(json.dumps(document))
    for path in ("a.json", "b.json", "set/c.json", "set"):
        with pytest.raises(SAMError, match="there is no image"):
            LoadMasks().execute(path)
    photo(tmp_path / "input" / "images" / "inside.png")
    labelme(tmp_path / "input" / "set" / "c.json", [], "../images/inside.png")
    assert len(LoadMasks().execute("set/c.json")[0]) == 1


def test_an_image_that_was_turned_since_is_named(tmp_path):
    photo(tmp_path / "a.png", size=(120, 90))
    document = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [],
        "annotations": [{"id": 5, "image_id": 1, "segmentation": encode_mask(SHAPES["hole"])}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(SAMError, match=r"annotation 5 of a\.json has 120x90 pixels, but its image 90x120"):
        open_data_set(tmp_path / "a.json").read(0)


def test_a_size_that_is_not_true_needs_no_memory(tmp_path):
    photo(tmp_path / "a.png")
    document = json.loads(json.dumps(LEGAL["a.json"]))
    document["annotations"][0]["segmentation"] = {"size": [10**9, 10**9], "counts": [10**18]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(SAMError, match="annotation 1 of a.json has 1000000000x1000000000 pixels, but its image 120x90"):
        open_data_set(tmp_path / "a.json").read(0)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A data set of five images with a cat in some and a dog in others."""
    install(monkeypatch, FakeComfyUI(tmp_path))
    for index, label in enumerate(["cat", "dog", "cat", "cat", "dog"]):
        mask = torch.zeros(1, 60, 80)
        mask[:, 10 : 20 + index, 10:30] = 1
        SaveMasks().execute([as_image(make_image(60, 80, index))], [mask], ["pets"], ["COCO RLE"], labels=[label])
    return tmp_path


def test_categories_and_ranges(saved):
    images, masks, _, labels = LoadMasks().execute("pets [output]", "cat", start=1, count=2)
    assert labels == ["cat", "cat"] and [int(mask.sum()) for mask in masks] == [12 * 20, 13 * 20] and len(images) == 2
    assert len(LoadMasks().execute("pets [output]", count=0)[0]) == 5
    assert LoadMasks().execute("pets [output]", "cat\uff0cdog", count=0)[3] == ["cat", "dog", "cat", "cat", "dog"]
    with pytest.raises(SAMError, match="no object of pets .* is called bird: it has cat, dog"):
        LoadMasks().execute("pets [output]", "bird")
    with pytest.raises(SAMError, match="start is 9, but .* has 5 images"):
        LoadMasks().execute("pets [output]", start=9)


def test_it_teaches_as_it_is(saved, tiny_model):
    images, masks, *_ = LoadMasks().execute("pets [output]", "cat")
    concept, _, report = Teach().execute([tiny_model], images, masks, [4])
    assert concept.base_name == "tiny.pth" and "| 2 |" in report and "| 3 |" not in report


def test_a_changed_file_is_loaded_anew(saved):
    before = LoadMasks.IS_CHANGED("pets [output]")
    assert before == LoadMasks.IS_CHANGED("pets [output]") != "" == LoadMasks.IS_CHANGED(None) == LoadMasks.IS_CHANGED("none")
    path = saved / "output" / "pets" / "annotations.json"
    path.write_bytes(path.read_bytes() + b" ")
    assert LoadMasks.IS_CHANGED("pets [output]") != before


def test_ten_thousand_images_are_opened_and_one_is_read(tmp_path):
    """Only what is asked for: no image is there but the one that is read."""
    photo(tmp_path / "5000.png")
    counts = encode_mask(SHAPES["hole"])
    document = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": 120, "height": 90} for index in range(10_000)],
        "categories": [{"id": 1, "name": "hole"}],
        "annotations": [{"id": index, "image_id": index, "category_id": 1, "segmentation": counts} for index in range(10_000)],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    data = open_data_set(tmp_path / "a.json")
    ((label, mask, _),) = masks_of(data, 5000)
    assert label == "hole" and (mask == SHAPES["hole"]).all() and len(data.names) == 10_000


@pytest.mark.parametrize("indent", [None, 1])
def test_polygons_are_parsed_for_the_images_that_are_read(indent, tmp_path, monkeypatch):
    """Whatever the spaces, and where a label or a note looks like one: a thousand images, of which one is read."""
    photo(tmp_path / "7.png")
    polygons, tricky = coco_polygons(SHAPES["holes in a row"]), 'a "segmentation": [[1, 2]] \\'
    one = {"category_id": 1, "note": tricky, "segmentation": polygons}
    document = {
        "images": [{"id": index, "file_name": f"{index}.png"} for index in range(1000)],
        "categories": [{"id": 1, "name": tricky}],
        "annotations": [{"id": index, "image_id": index, **one} for index in range(1000)],
    }
    (tmp_path / "a.json").write_text(json.dumps(document, indent=indent))
    parsed, whole = [], json.loads
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", lambda text, *rest, **more: parsed.append(len(text)) or whole(text, *rest, **more))
        ((label, mask, _),) = masks_of(open_data_set(tmp_path / "a.json"), 7)
    assert label == tricky and (mask == SHAPES["holes in a row"]).all()
    assert sum(parsed) < 0.3 * (tmp_path / "a.json").stat().st_size and len(parsed) == 2


@pytest.mark.parametrize("kind, key", [("polygon", "points"), ("brush", "rle")])
def test_shapes_of_label_studio_are_parsed_for_the_images_that_are_read(kind, key, tmp_path, monkeypatch):
    """A thousand tasks with one region each, of which one is read."""
    photo(tmp_path / "7.png")
    mask = SHAPES["holes in a row"]
    corners = [[10, 10], [60, 10.5], [60, 80], [10, 80]] + [[10, 80 - step / 10] for step in range(200)]
    value = {key: corners if kind == "polygon" else encode_brush(mask), f"{kind}labels": ["cat"]}
    region = {"type": f"{kind}labels", "original_width": 120, "original_height": 90, "value": value}
    tasks = [{"data": {"image": f"{index}.png"}, "annotations": [{"result": [region]}]} for index in range(1000)]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    parsed, whole = [], json.loads
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", lambda text, *rest, **more: parsed.append(len(text)) or whole(text, *rest, **more))
        ((label, found, _),) = masks_of(open_data_set(tmp_path / "a.json"), 7)
    if kind == "polygon":
        mask = polygon_mask((np.array(corners) / 100 * [120, 90]).ravel().tolist(), SIZE)
    assert label == "cat" and (found == mask).all() and found.any()
    assert sum(parsed) < 0.3 * (tmp_path / "a.json").stat().st_size and len(parsed) == 2


def test_python_does_not_look_for_cycles_while_a_file_is_opened(tmp_path):
    images = [{"id": index, "file_name": f"{index}.png"} for index in range(5000)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    searches = []

    def note(phase, _):
        searches.append(phase)

    gc.callbacks.append(note)
    try:
        found = open_data_set(tmp_path / "a.json")
        assert len(found.names) == 5000 and len(searches) <= 4  # two begin and end after it, at the most
    finally:
        gc.callbacks.remove(note)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("text", ['{"images": [], "annotations": [], "categories": []}', "no JSON"])
def test_opening_leaves_the_search_for_cycles_as_it_was(enabled, text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.suppress(SAMError):
            open_data_set(tmp_path / "a.json")
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "COCO polygons"])
def test_only_the_images_of_the_chosen_range_are_decoded(name, tmp_path, monkeypatch):
    """Of any form: what is opened are the images and masks of the range, one after the other."""
    install(monkeypatch, FakeComfyUI(tmp_path))
    images = torch.rand(6, 12, 16, 3)
    masks = torch.zeros(6, 12, 16)
    masks[:, 2:9, 3:11] = 1
    SaveMasks().execute([images], [masks], ["set"], [name])
    opened, whole = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(path) or whole(path, *rest))
    found, *_ = LoadMasks().execute("set [output]", start=3, count=2)
    names = [Path(path).name for path in opened if not isinstance(path, io.BytesIO)]
    of_range = [name for name in names if name in ("set_00004_.png", "set_00005_.png")]
    assert len(found) == 2 and len(names) == len(opened) - (2 if name == "labelme" else 0)
    assert set(of_range) == {"set_00004_.png", "set_00005_.png"}
    assert set(names) - set(of_range) == ({"set_00004__000.png", "set_00005__000.png"} if name == "PNG" else set())
    assert len(names) == (4 if name in ("PNG", "index PNG") else 2)


def altered(value, rng):
    """A JSON value with one of its parts, at any depth, replaced or removed."""
    odd = [None, "x", "", -1, 1e400, float("nan"), [], {}, [[]], {"a": 1}, True, [1, 2, 3], "../../x", "\0", 10**30, ["x"] * 7]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: altered(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], altered(value[place], rng), *value[place + 1 :]]
    return rng.choice(odd)


RUNS = encode_mask(SHAPES["hole"])
LEGAL = {
    "a.json": {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": RUNS, "score": 0.5},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [[1, 2, 30, 4, 5, 60]]},
            {"id": 3, "image_id": 1, "category_id": 1, "segmentation": {"size": [90, 120], "counts": [5, 10, 90 * 120 - 15]}},
        ],
    },
    "manifest.json": {"images": [{"file_name": "a.png", "objects": [{"mask": "a.png", "label": "x", "score": 0.5}]}]},
    "l.json": {
        "imagePath": "a.png",
        "shapes": [
            {"label": "x", "points": [[1, 2], [30, 4], [5, 60]], "group_id": 1, "shape_type": "polygon"},
            {"label": "y", "points": [[1, 2], [30, 40]], "group_id": None, "shape_type": "circle"},
            {"label": "z", "points": [[1, 2], [2, 3]], "shape_type": "mask", "mask": "iVBORw0KGgo="},
        ],
    },
    "export.json": [
        {
            "data": {"image": "/data/upload/1/a.png"},
            "annotations": [
                {
                    "was_cancelled": False,
                    "result": [
                        {
                            "id": number,
                            "type": f"{kind}labels",
                            "original_width": 120,
                            "original_height": 90,
                            "value": {**value, f"{kind}labels": ["x"]},
                        }
                        for number, (kind, value) in enumerate(
                            [
                                ("polygon", {"points": [[1, 2], [30, 4], [5, 60]]}),
                                ("rectangle", {"x": 1, "y": 2, "width": 30, "height": 40, "rotation": 10}),
                                ("ellipse", {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10}),
                                ("brush", {"rle": [0, 0, 168, 192, 57, 27, 252]}),
                            ]
                        )
                    ],
                }
            ],
        }
    ],
}


@pytest.mark.parametrize("name", LEGAL)
def test_altered_files_are_read_or_refused_in_one_sentence(name, tmp_path):
    photo(tmp_path / "a.png")
    rng, read = random.Random(name), 0
    for _ in range(600):
        (tmp_path / name).write_text(json.dumps(altered(LEGAL[name], rng)))
        try:
            data = open_data_set(tmp_path / name, within=[tmp_path])
            for index in range(len(data.names)):
                labels, (_, labeled) = data.labels(index), data.read(index)
                for one in labeled.objects:
                    assert one.mask.dtype == bool and one.mask.shape == SIZE and one.label in labels
                    assert one.score is None or np.isfinite(one.score)
            read += 1
        except SAMError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
    assert 0 < read < 600


def test_a_range_after_the_end_and_a_data_set_without_images(tmp_path, monkeypatch):
    install(monkeypatch, FakeComfyUI(tmp_path))
    folder = tmp_path / "input" / "set"
    document = {
        "images": [{"id": index, "file_name": f"{index}.png"} for index in range(3)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    photo(folder / "1.png")
    (folder / "annotations.json").write_text(json.dumps(document))
    assert len(LoadMasks().execute("set", "cat")[0]) == 1
    with pytest.raises(SAMError, match="start is 1, but set has 1 image with such objects: lower it"):
        LoadMasks().execute("set", "cat", start=1)
    with pytest.raises(SAMError, match="start is 3, but set has 3 images: lower it"):
        LoadMasks().execute("set", start=3)
    (folder / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')
    for category in ("", "cat"):
        with pytest.raises(SAMError, match="set has no images: choose another data set"):
            LoadMasks().execute("set", category)

"""SAM Save Masks: which mask belongs to which image, and the files in ComfyUI's output folder."""

import json

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from forks import forked, needs_fork
from PIL import Image
from samkit.nodes.automask import AutoMask
from samkit.nodes.masks import SelectMasks
from samkit.nodes.predict import Segment
from samkit.nodes.save_masks import SaveMasks
from samkit.sam import SAMError
from samkit.utils import comfy_folders

SIZE = (60, 80)


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The output folder of no ComfyUI."""
    monkeypatch.setattr(comfy_folders, "PACK", tmp_path)
    return tmp_path / "output"


def images(count=1, size=SIZE):
    return as_image(*(make_image(*size, seed) for seed in range(count)))


def square(x, side=10, size=SIZE):
    mask = torch.zeros(size)
    mask[20 : 20 + side, x : x + side] = 1
    return mask


EMPTY = torch.zeros(SIZE)


def box(x, side=10, **extra):
    return {"x": x, "y": 20, "width": side, "height": side, **extra}


def save(output, batch, masks, **inputs):
    """Run the node as ComfyUI does, every input in a list. Returns of each image (x of the mask, label, score)."""
    masks = torch.stack(masks) if isinstance(masks, list) else masks
    SaveMasks().execute([batch], [masks], ["set"], ["COCO RLE"], **inputs)
    return read(output / "set" / "annotations.json")


def read(path):
    document = json.loads(path.read_bytes())
    names = {one["id"]: one["name"] for one in document["categories"]}
    found = {one["id"]: [] for one in document["images"]}
    for one in document["annotations"]:
        found[one["image_id"]].append((one["bbox"][0], names[one["category_id"]], one.get("score")))
    return list(found.values())


def places(found):
    return [[x for x, *_ in one] for one in found]


def test_one_image_takes_all_masks(output):
    found = save(output, images(), [square(0), EMPTY, square(30)])
    assert found == [[(0, "object", None), (30, "object", None)]]


def test_a_batch_with_one_mask_each_or_equally_many(output):
    assert places(save(output, images(2), [square(0), square(30)])) == [[0], [30]]
    assert places(save(output, images(2), [square(x) for x in (1, 2, 3, 4)]))[2:] == [[1, 2], [3, 4]]


LISTS = {
    "as segment everything": ([square(0), square(10), square(20)], [[box(0), box(10)], [], [box(20)]], [[0, 10], [], [20]]),
    "as segment text": ([square(0), square(10), EMPTY, square(20)], [[box(0, 12), box(9)], [], [box(20)]], [[0, 10], [], [20]]),
    "as predict mask": (
        [EMPTY, square(10), EMPTY, square(20), square(30)],
        [[box(10)], [], [box(20), box(30)]],
        [[10], [], [20, 30]],
    ),
    "merged": ([square(0, 30), square(30), EMPTY], [[box(0), box(20)], [box(30)], []], [[0], [30], []]),
}


@pytest.mark.parametrize("name", LISTS)
def test_boxes_say_which_image_a_mask_belongs_to(name, output):
    masks, boxes, expected = LISTS[name]
    assert places(save(output, images(3), masks, bboxes=[boxes])) == expected


def test_labels_and_scores_come_from_the_boxes_or_before_them_from_the_inputs(output):
    boxes = [[box(0, label="cat", score=0.5)], [box(10, label="dog", score=0.25)]]
    masks = [square(0), square(10)]
    assert save(output, images(2), masks, bboxes=[boxes]) == [[(0, "cat", 0.5)], [(10, "dog", 0.25)]]
    named = save(output, images(2), masks, bboxes=[boxes], labels=["", "fox"], scores=[0.75, 1.0])[2:]
    assert named == [[(0, "cat", 0.75)], [(10, "fox", 1.0)]]


def test_merged_masks_have_the_label_that_all_boxes_have(output):
    same, different = ([[box(0, label="cat"), box(20, label=other)]] for other in ("cat", "dog"))
    assert save(output, images(), [square(0, 30)], bboxes=[same]) == [[(0, "cat", None)]]
    assert save(output, images(), [square(0, 30)], bboxes=[different])[1:] == [[(0, "object", None)]]


def test_labels_may_be_one_for_all_or_one_per_object_of_every_image(output):
    masks = [square(x) for x in (0, 10, 20, 30)]
    found = save(output, images(2), masks, labels=["a", "b"])  # as the editor's: two objects on two images
    assert found == [[(0, "a", None), (10, "b", None)], [(20, "a", None), (30, "b", None)]]
    assert {label for one in save(output, images(2), masks, labels=["c"])[2:] for _, label, _ in one} == {"c"}


@pytest.mark.parametrize(
    ("masks", "inputs", "message"),
    [
        ([square(0)] * 3, {}, "3 masks for 2 images"),
        ([square(0)] * 5, {"bboxes": [[[box(0)], [box(0)]]]}, "5 masks for 2 images, and 2 boxes"),
        ([square(0)] * 2, {"labels": ["a", "b", "c"]}, "number of labels is 3, but masks has 2 masks"),
        ([square(0)] * 2, {"scores": [0.1, float("nan")]}, "scores\\[1\\] is nan: it must be a finite number"),
        ([square(0, size=(30, 40))] * 2, {}, "mask of 40x30 pixels, but its image has 80x60"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(masks, inputs, message, output):
    with pytest.raises(SAMError, match=message):
        save(output, images(2), masks, **inputs)
    assert not output.exists()


def test_lists_of_images_of_several_sizes(output):
    sizes = [(60, 80), (30, 50)]
    SaveMasks().execute(
        [images(1, size) for size in sizes], [square(5, size=size)[None] for size in sizes], ["set"], ["COCO RLE"], labels=[""]
    )
    document = json.loads((output / "set" / "annotations.json").read_bytes())
    assert [(one["height"], one["width"]) for one in document["images"]] == sizes
    assert places(read(output / "set" / "annotations.json")) == [[5], [5]]


def test_the_pack_s_own_nodes_go_together(demo_model, output):
    """The masks of each image, through SAM Segment Everything, sorted by SAM Select Masks, and through SAM Segment."""
    batch = images(3)
    loose = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    masks, boxes, scores, *_ = AutoMask().execute(demo_model, batch, **loose)
    counts = [len(one) for one in boxes]
    assert len(set(counts)) > 1
    found = save(output, batch, masks, bboxes=[boxes], scores=scores)
    assert found == [[(one["x"], "object", one["score"]) for one in listed] for listed in boxes]
    chosen, chosen_boxes = SelectMasks().execute(masks, "left-right", bboxes=boxes)
    again = save(output, batch, chosen, bboxes=[chosen_boxes])[3:]
    assert [sorted(one) for one in again] == [sorted(one) for one in found]
    points = '[[{"x": 5, "y": 5}], [], [{"x": 70, "y": 50}]]'
    masks, boxes, scores, _ = Segment().execute(demo_model, batch, points, individual_masks=True)
    assert [len(one) for one in save(output, batch, masks, bboxes=[boxes], scores=scores)[6:]] == [1, 0, 1]


def test_images_are_numbered_on_and_saved_as_they_are(output):
    for _ in range(2):
        shown = SaveMasks().execute([images(2)], [torch.stack([square(0)] * 2)], ["a/set"], ["YOLO"])["ui"]["images"]
    assert [one["filename"] for one in shown] == ["set_00003_.png", "set_00004_.png"]
    assert {(one["subfolder"], one["type"]) for one in shown} == {("a/set/images", "output")}
    root = output / "a" / "set"
    assert sorted(path.name for path in (root / "labels").iterdir()) == [f"set_{i:05}_.txt" for i in range(1, 5)]
    assert (np.array(Image.open(root / "images" / "set_00004_.png")) == make_image(*SIZE, 1)).all()


@pytest.mark.parametrize("name", ["COCO RLE", "COCO polygons", "YOLO", "PNG"])
def test_every_format_adds_and_leaves_no_part_files(name, output):
    for _ in range(2):
        SaveMasks().execute([images()], [square(3)[None]], ["set"], [name])
    left = [path.name for path in (output / "set").rglob("*") if path.is_file()]
    assert not [one for one in left if one.startswith(".") or one.endswith(".part")]
    assert sum(one.startswith("set_") and one.endswith("_.png") for one in left) == 2


def test_in_comfyui_files_go_where_save_image_puts_them(tmp_path, monkeypatch):
    install(monkeypatch, FakeComfyUI(tmp_path))
    SaveMasks().execute([images()], [square(3)[None]], ["%width%/set"], ["PNG"])
    assert (tmp_path / "output" / "80" / "set" / "images" / "set_00001_.png").is_file()


@pytest.fixture
def truth(tmp_path, monkeypatch):
    """A COCO file in the input folder whose ids are those of COCO's own."""
    install(monkeypatch, FakeComfyUI(tmp_path))
    path = tmp_path / "input" / "truth.json"
    path.parent.mkdir(exist_ok=True)
    categories = [{"id": 90, "name": "bowl"}, {"id": 17, "name": "cat"}]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return tmp_path / "output" / "set"


def test_categories_of_a_coco_file_keep_their_ids(truth):
    """From the first image on, and in a data set that was begun without them; what is new comes after them."""
    masks = torch.stack([square(0), square(30)])
    for labels, names in ((["cat", "cup"], ["truth.json"]), (["bowl", "cat"], "truth.json")):
        SaveMasks().execute([images()], [masks], ["set"], ["COCO RLE"], labels=labels, categories=names)
    document = json.loads((truth / "annotations.json").read_bytes())
    assert [(one["name"], one["id"]) for one in document["categories"]] == [("bowl", 90), ("cat", 17), ("cup", 91)]
    assert [one["category_id"] for one in document["annotations"]] == [17, 91, 90, 17]
    SaveMasks().execute([images()], [square(0)[None]], ["later"], ["COCO RLE"], labels=["egg"])
    SaveMasks().execute([images()], [square(0)[None]], ["later"], ["COCO RLE"], labels=["cat"], categories=["truth.json"])
    document = json.loads((truth.parent / "later" / "annotations.json").read_bytes())
    assert [(one["name"], one["id"]) for one in document["categories"]] == [("egg", 1), ("bowl", 90), ("cat", 17)]
    assert [one["category_id"] for one in document["annotations"]] == [1, 17]


def test_categories_are_yolos_classes_in_the_order_of_their_ids(truth):
    for label in ("cup", "bowl"):
        SaveMasks().execute([images()], [square(0)[None]], ["set"], ["YOLO"], labels=[label], categories=["truth.json"])
    assert (truth / "classes.txt").read_text() == "cat\nbowl\ncup\n"
    assert [path.read_text()[0] for path in sorted((truth / "labels").iterdir())] == ["2", "1"]


@pytest.mark.parametrize("name", ["COCO RLE", "YOLO"])
def test_categories_that_would_change_a_number_are_refused_and_nothing_is_written(name, truth):
    SaveMasks().execute([images()], [square(0)[None]], ["set"], [name], labels=["cat" if name == "COCO RLE" else "dog"])
    before = {path: path.read_bytes() for path in truth.rglob("*") if path.is_file()}
    message = "has the class.*dog.*cat, bowl" if name == "YOLO" else "'cat' with the id 1, but 'cat' is to have 17"
    with pytest.raises(SAMError, match=message):
        SaveMasks().execute([images()], [square(0)[None]], ["set"], [name], labels=["cat"], categories=["truth.json"])
    assert before == {path: path.read_bytes() for path in truth.rglob("*") if path.is_file()} and len(before) > 1
    with pytest.raises(SAMError, match="categories is 'gone.json': there is no such file"):
        SaveMasks().execute([images()], [square(0)[None]], ["set"], [name], categories=["gone.json"])


def _save_often(name):
    for _ in range(8):
        SaveMasks().execute([images(2)], [torch.ones(2, *SIZE)], ["set"], ["COCO RLE"], labels=[name])


@needs_fork
def test_two_servers_add_to_one_data_set(output):
    workers = [forked(_save_often, name) for name in ("a", "b")]
    [worker.join() for worker in workers]
    assert [worker.exitcode for worker in workers] == [0, 0]
    root = output / "set"
    found = read(root / "annotations.json")
    assert sorted(label for ((_, label, _),) in found) == ["a"] * 16 + ["b"] * 16
    names = [one["file_name"] for one in json.loads((root / "annotations.json").read_bytes())["images"]]
    assert sorted(names) == sorted(path.name for path in (root / "images").iterdir()) and len(set(names)) == 32

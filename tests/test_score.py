"""Scores of a data set against the truth: COCO's by pycocotools, outlines by scipy's distances."""

import json

import numpy as np
import pytest
from PIL import Image
from samkit.sam import SAMError
from samkit.sam.datasets.coco import Coco
from samkit.sam.datasets.objects import LabeledImage, LabeledMask
from samkit.sam.datasets.read import open_data_set
from samkit.sam.datasets.score import boundary_f, iou, score

SIZE = (60, 80)


def ellipse(x, y, across, down):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return ((columns - x) / across) ** 2 + ((rows - y) / down) ** 2 <= 1


def write(folder, name, images):
    """A COCO file of images, each a list of (label, score, mask)."""
    target, records = Coco(folder / name), []
    (folder / "images").mkdir(exist_ok=True)
    for file_name, objects in images.items():
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "images" / file_name)
        record, _ = target.entry(
            LabeledImage(file_name, SIZE, [LabeledMask(mask, label, value) for label, value, mask in objects])
        )
        records.append(record)
    target.write(records)
    return open_data_set(folder / name)


def scenes(seed):
    """Truth and results of 12 images: moved, missed, doubled and invented objects of three categories."""
    numbers = np.random.default_rng(seed)
    truth, found = {}, {}
    for index in range(12):
        name, truth_objects, found_objects = f"{index:02}.png", [], []
        for _ in range(numbers.integers(0, 6)):
            label = ("cat", "dog", "cup")[numbers.integers(3)]
            x, y, across, down = numbers.uniform((10, 10, 4, 4), (70, 50, 18, 14))
            truth_objects.append((label, None, ellipse(x, y, across, down)))
            for _ in range(numbers.choice([0, 1, 1, 1, 2])):
                moved = numbers.normal(0, 1.5, 4)
                mask = ellipse(x + moved[0], y + moved[1], max(2, across + moved[2]), max(2, down + moved[3]))
                found_objects.append((label, float(numbers.choice([0.3, 0.6, 0.6, 0.9])), mask))
        if numbers.random() < 0.4:
            found_objects.append(("cat", float(numbers.random()), ellipse(*numbers.uniform((10, 10, 3, 3), (70, 50, 9, 9)))))
        truth[name], found[name] = truth_objects, found_objects
    return truth, found


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_cocos(seed, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    truth, found = scenes(seed)
    rows = score(write(tmp_path, "found.json", found), write(tmp_path, "truth.json", truth))
    theirs = coco.COCO(str(tmp_path / "truth.json"))
    numbers = {one["name"]: one["id"] for one in theirs.dataset["categories"]}
    document = json.loads((tmp_path / "found.json").read_bytes())
    names = {one["id"]: one["name"] for one in document["categories"]}
    results = [
        {key: one[key] for key in ("image_id", "score", "segmentation")} | {"category_id": numbers[names[one["category_id"]]]}
        for one in document["annotations"]
        if names[one["category_id"]] in numbers
    ]
    judge = evaluation.COCOeval(theirs, theirs.loadRes(results), "segm")
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 2]
    assert {row.category for row in rows[:-1]} == set(numbers)
    for row in rows[:-1]:
        values = precision[:, :, judge.params.catIds.index(numbers[row.category])]
        assert row.ap == pytest.approx(values.mean(), abs=1e-9)
        assert row.ap50 == pytest.approx(values[0].mean(), abs=1e-9)
    assert 0.1 < rows[-1].ap < 0.9 and rows[-1].ap == pytest.approx(precision.mean(), abs=1e-9)
    assert rows[-1].objects == sum(map(len, truth.values()))


def test_the_boundary_is_that_of_distances():
    ndimage = pytest.importorskip("scipy.ndimage")
    one, other = ellipse(40, 30, 20, 15), ellipse(42, 30, 21, 15) & ~ellipse(50, 30, 4, 4)
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (one, other)]
    near = [ndimage.distance_transform_edt(~edge) <= 2 for edge in edges]
    precision, recall = (edges[0] & near[1]).sum() / edges[0].sum(), (edges[1] & near[0]).sum() / edges[1].sum()
    assert boundary_f(one, other) == pytest.approx(2 * precision * recall / (precision + recall)) and boundary_f(one, other) < 1
    whole = np.ones(SIZE, bool)
    assert boundary_f(whole, whole) == boundary_f(one, one) == 1 and boundary_f(one, np.zeros(SIZE, bool)) == 0


def test_overlap_is_that_of_all_pixels():
    masks = [ellipse(20, 20, 10, 10), ellipse(26, 20, 10, 10), ellipse(70, 50, 5, 5), np.zeros(SIZE, bool)]
    for one in masks:
        for other in masks:
            union = np.count_nonzero(one | other)
            assert iou(one, other) == (np.count_nonzero(one & other) / union if union else 0)


def test_an_object_that_was_not_found_counts(tmp_path):
    mask = ellipse(20, 20, 10, 10)
    truth = {"a.png": [("cat", None, mask), ("dog", None, mask)], "b.png": [("cat", None, mask)]}
    found = {"a.png": [("cat", 0.9, mask)], "b.png": [("bird", 0.9, mask)]}
    cat, dog, every = score(write(tmp_path, "found.json", found), write(tmp_path, "truth.json", truth))
    assert (cat.category, cat.objects, cat.iou, cat.boundary) == ("cat", 2, 0.5, 0.5) and cat.ap == pytest.approx(51 / 101)
    assert (dog.ap, dog.ap50, dog.iou, dog.boundary) == (0, 0, 0, 0)
    assert (every.category, every.objects) == ("all", 3) and every.iou == pytest.approx(1 / 3)


def test_data_sets_without_a_common_image_are_refused(tmp_path):
    mask = ellipse(20, 20, 10, 10)
    one, other = (write(tmp_path, f"{name}.json", {f"{name}.png": [("cat", None, mask)]}) for name in ("a", "b"))
    with pytest.raises(SAMError, match="no image in common"):
        score(one, other)
    with pytest.raises(SAMError, match="no object"):
        score(one, write(tmp_path, "c.json", {"a.png": []}))

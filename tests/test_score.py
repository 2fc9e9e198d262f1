"""Scores of a data set against the truth: COCO's by pycocotools, outlines by scipy's distances."""

import json
import weakref

import numpy as np
import pytest
from PIL import Image
from samkit.sam import SAMError
from samkit.sam.datasets.coco import Coco
from samkit.sam.datasets.objects import LabeledImage, LabeledMask
from samkit.sam.datasets.read import CocoSet, open_data_set
from samkit.sam.datasets.score import boundary_f, iou, score
from samkit.sam.datasets.sheets import write_review, write_worst

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
    rows = score(write(tmp_path, "found.json", found), write(tmp_path, "truth.json", truth)).rows
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
    (cat, dog, every), worst = score(write(tmp_path, "found.json", found), write(tmp_path, "truth.json", truth))
    assert (cat.category, cat.objects, cat.iou, cat.boundary) == ("cat", 2, 0.5, 0.5) and cat.ap == pytest.approx(51 / 101)
    assert (dog.ap, dog.ap50, dog.iou, dog.boundary) == (0, 0, 0, 0)
    assert (every.category, every.objects) == ("all", 3) and every.iou == pytest.approx(1 / 3)
    assert [(pair.iou, pair.image, pair.wanted, pair.found) for pair in worst] == [
        (0, 0, 1, None),
        (0, 1, 0, None),
        (1, 0, 0, 0),
    ]


def test_the_worst_objects_are_those_of_all_pairs(tmp_path):
    """In 12 images with some 30 objects; the found object is the one with the highest IoU of all pairs of one label."""
    truth, found = scenes(1)
    data = write(tmp_path, "found.json", found), write(tmp_path, "truth.json", truth)
    worst, pairs = score(*data).worst, []
    for name, wanted in truth.items():
        for number, (label, _, mask) in enumerate(wanted):
            ious = [iou(mask, other) if label == own else 0.0 for own, _, other in found[name]]
            pairs.append((max(ious, default=0.0), name, number, int(np.argmax(ious)) if any(ious) else None))
    assert len(pairs) > 12 == len(worst)
    assert [pair.iou for pair in worst] == sorted(value for value, *_ in pairs)[:12] and worst[0].iou < 0.1 < worst[-1].iou
    named = {(data[1].names[pair.image], pair.wanted): pair for pair in worst}
    for value, name, number, best in pairs:
        if (name, number) in named:
            pair = named[name, number]
            assert (pair.iou, pair.found) == (value, best) and data[0].names[pair.found_image] == name


def test_the_worst_are_shown_beside_their_image(tmp_path):
    """Discs in a black image, one found too far to the right: image, truth and result side by side."""
    left, right, small = ellipse(30, 30, 9, 9), ellipse(38, 30, 9, 9), ellipse(70, 50, 3, 3)
    truth = write(tmp_path, "truth.json", {"a.png": [("cat", None, small), ("cat", None, left)]})
    found = write(tmp_path, "found.json", {"a.png": [("cat", 0.5, right), ("cat", 0.5, small)]})
    worst = score(found, truth).worst
    assert [(pair.wanted, pair.found) for pair in worst] == [(1, 0), (0, 1)]
    write_worst(found, truth, worst, tmp_path / "worst.jpg")
    sheet = np.array(Image.open(tmp_path / "worst.jpg")).astype(int)
    image, wanted, seen = (sheet[:240, 320 * column : 320 * column + 320] for column in range(3))
    tinted = [part.max(-1) - part.min(-1) > 60 for part in (image, wanted, seen)]  # the image is black
    assert tinted[0].sum() == 0 and min(part.sum() for part in tinted[1:]) > 2000
    centers = [np.flatnonzero(part.any(0)).mean() for part in tinted[1:]]
    assert centers[1] - centers[0] > 40 and not list(tmp_path.glob(".*"))
    write_worst(found, truth, [worst[0]._replace(found=None)], tmp_path / "worst.jpg")
    sheet = np.array(Image.open(tmp_path / "worst.jpg")).astype(int)[:240, 640:]
    assert not (sheet.max(-1) - sheet.min(-1) > 60).any(), "nothing was found"


def test_contact_sheets_have_twelve_images_each(tmp_path):
    """Fourteen images: two sheets, and those of an earlier call are gone; an image that is not there is said in its place."""
    dot = np.zeros(SIZE, bool)
    dot[5, 5] = True
    images = {f"{index:02}.png": [("cat", None, ellipse(40, 30, 20, 20) if index else dot)] for index in range(14)}
    data = write(tmp_path, "a.json", images)
    (tmp_path / "images" / "13.png").unlink()
    for name in ("review_0003.jpg", "review_me.jpg"):
        (tmp_path / "sheets" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "sheets" / name).write_bytes(b"old")
    assert write_review(data, tmp_path / "sheets") == 2
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == [
        "review_0001.jpg",
        "review_0002.jpg",
        "review_me.jpg",
    ]
    first, second = (np.array(Image.open(tmp_path / "sheets" / f"review_000{n}.jpg")).astype(int) for n in (1, 2))
    rows = len(first) // 3
    tinted = first.max(-1) - first.min(-1) > 60
    places = [(rows * row, 320 * column) for row in range(3) for column in range(4)]
    cells = [tinted[top : top + 240, left : left + 320].sum() for top, left in places]
    assert first.shape[1] == 1280 and min(cells[1:]) > 10000 and 1 <= cells[0] < 400, "a pixel of a mask is seen, too"
    tinted = second.max(-1) - second.min(-1) > 60
    assert second.shape[1] == 640 and tinted[:, :320].sum() > 10000 and not tinted[:, 320:].any()


def test_sheets_take_one_image_at_a_time(tmp_path, monkeypatch):
    """What is read is let go before the next image is read."""
    data, alive, read = (
        write(tmp_path, "a.json", {f"{n:02}.png": [("c", None, ellipse(40, 30, 9, 9))] for n in range(30)}),
        [],
        [],
    )
    real = CocoSet.read

    def counted(self, index):
        found = real(self, index)
        alive.append(weakref.ref(found.pixels))
        read.append(sum(one() is not None for one in alive))
        return found

    monkeypatch.setattr(CocoSet, "read", counted)
    assert write_review(data, tmp_path / "sheets") == 3 and len(read) == 30 and max(read) <= 2


def test_data_sets_without_a_common_image_are_refused(tmp_path):
    mask = ellipse(20, 20, 10, 10)
    one, other = (write(tmp_path, f"{name}.json", {f"{name}.png": [("cat", None, mask)]}) for name in ("a", "b"))
    with pytest.raises(SAMError, match="no image in common"):
        score(one, other)
    with pytest.raises(SAMError, match="no object"):
        score(one, write(tmp_path, "c.json", {"a.png": []}))

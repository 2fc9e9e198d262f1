"""Masks as data: what pycocotools and supervision read back is what was written."""

import base64
import io
import json
import tracemalloc

import numpy as np
import pytest
from forks import forked, needs_fork
from PIL import Image
from samkit.sam import SAMError
from samkit.sam.datasets.coco import Coco
from samkit.sam.datasets.formats import data_set
from samkit.sam.datasets.objects import LabeledImage, LabeledMask
from samkit.sam.datasets.pngs import Pngs
from samkit.sam.datasets.polygons import _nearest, coco_polygons, yolo_polygon
from samkit.sam.datasets.rle import encode_mask
from samkit.sam.datasets.yolo import Yolo
from samkit.utils.comfy_files import locked
from samkit.utils.files import write_whole
from scenes import make_scene

WHY = "a development requirement that reads data sets; the pack does not need it"


def grid(height=90, width=120):
    return np.mgrid[:height, :width]


def disc(x, y, radius, size=(90, 120)):
    rows, columns = grid(*size)
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def dot(x, y):
    mask = np.zeros((90, 120), bool)
    mask[y, x] = True
    return mask


SHAPES = {
    "disc": disc(60, 45, 30),
    "hole": disc(60, 45, 40) & ~disc(55, 40, 15),
    "holes in a row": disc(60, 45, 44) & ~disc(35, 45, 8) & ~disc(60, 45, 8) & ~disc(85, 45, 8) & ~dot(60, 20),
    "an island in a hole": disc(60, 45, 40) & ~disc(60, 45, 30) | disc(60, 45, 15),
    "two parts": disc(30, 45, 25) | disc(90, 45, 20),
    "one pixel": dot(40, 30),
    "a pixel at the corner": dot(119, 89),
    "at the border": disc(0, 0, 50),
    "all of it": np.ones((90, 120), bool),
    "a line": grid()[0] == 7,
    "touching at corners": (disc(40, 40, 30) & ((grid()[0] // 20 + grid()[1] // 20) % 2 == 0)),
}
EACH = pytest.mark.parametrize("name", SHAPES)
NOISE = [np.random.default_rng(seed).random((1 + seed % 9, 1 + seed % 13)) < (seed % 7) / 6 for seed in range(150)]


def iou(one, other):
    return (one & other).sum() / max(1, (one | other).sum())


def filled(flat, round_to, size=(90, 120)):
    """A polygon as the tools that use OpenCV draw it."""
    cv2 = pytest.importorskip("cv2", reason=WHY)
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [round_to(np.array(flat).reshape(-1, 2)).astype(np.int32)], 1)
    return mask.astype(bool)


def pycoco():
    pytest.importorskip("pycocotools", reason=WHY)
    from pycocotools import mask

    return mask


def from_polygons(polygons, size):
    masks = pycoco()
    if not polygons:
        return np.zeros(size, bool)
    return masks.decode(masks.merge(masks.frPyObjects(polygons, *size))).astype(bool)


@pytest.mark.parametrize("masks", [list(SHAPES.values()), NOISE, [np.zeros((5, 7), bool), np.ones((300, 2), bool)]],
                         ids=["shapes", "noise", "empty and full"])  # fmt: skip
def test_runs_are_those_of_pycocotools(masks):
    encode = pycoco().encode
    for mask in masks:
        theirs = encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_mask(mask) == {"size": theirs["size"], "counts": theirs["counts"].decode()}


@EACH
def test_polygons_give_pycocotools_the_same_mask(name):
    assert (from_polygons(coco_polygons(SHAPES[name]), (90, 120)) == SHAPES[name]).all()


def test_polygons_of_noise_give_pycocotools_the_same_mask():
    for mask in NOISE:
        assert (from_polygons(coco_polygons(mask), mask.shape) == mask).all(), mask


@EACH
def test_one_polygon_gives_readers_of_yolo_the_same_mask(name):
    """Ultralytics truncates; two parts are joined by a line."""
    found = filled(yolo_polygon(SHAPES[name]), np.trunc)
    parts = "two parts", "touching at corners", "an island in a hole"
    assert (found == SHAPES[name]).all() or (name in parts and iou(found, SHAPES[name]) >= 0.98)


@EACH
def test_readers_that_round_find_a_pixel_more_at_most(name):
    found = filled(yolo_polygon(SHAPES[name]), np.round)
    grown = np.pad(SHAPES[name], ((1, 0), (1, 0)))
    grown = grown[1:, 1:] | grown[:-1, 1:] | grown[1:, :-1] | grown[:-1, :-1]
    assert (found >= SHAPES[name]).all() and ((found <= grown).all() or iou(found & ~grown, found) < 0.01)


@EACH
@pytest.mark.parametrize("form", ["COCO", "YOLO"])
def test_polygons_enclose_the_area_of_the_pixels(name, form):
    """FiftyOne divides by their box's sides, Ultralytics takes it for the object's, and CVAT measures between their points."""
    mask = SHAPES[name]
    polygons = coco_polygons(mask) if form == "COCO" else [yolo_polygon(mask)]
    points = np.concatenate([np.array(polygon).reshape(-1, 2) for polygon in polygons])
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    wanted = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs([*points.min(0), *points.max(0)] - np.array(wanted)).max() < 0.03
    if form == "COCO":
        areas, length = [], 0
        for polygon in polygons:
            x, y = np.array(polygon).reshape(-1, 2).T
            areas.append(abs(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2)
            length += np.abs(np.diff([x, y], append=[x[:1], y[:1]])).sum()
        assert min(areas) > 0.9 and abs(sum(areas) - mask.sum()) < 0.03 * length


def test_a_distant_speck_is_left_out_of_yolos_polygon():
    """A line to it would add more pixels than it has."""
    assert (filled(yolo_polygon(disc(30, 45, 20) | dot(110, 5)), np.trunc) == disc(30, 45, 20)).all()


def test_a_grainy_mask_in_two_parts_takes_no_memory_for_all_pairs_of_points():
    """The two outlines have 12,000 points each: a distance for each pair is more than a gigabyte."""
    inside = np.random.default_rng(0).random((240, 320)) > 0.05
    inside[:, 156:164] = False
    tracemalloc.start()
    polygon = yolo_polygon(inside)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(polygon) > 2 * 24_000 and most < 100e6


@pytest.mark.parametrize(("one", "other"), [(1, 1), (127, 129), (128, 128), (700, 1500), (3000, 2000)])
def test_the_nearest_points_are_those_of_all_pairs(one, other):
    """Of borders, whose points follow each other."""
    rng = np.random.default_rng(one)
    for _ in range(10):
        ones, others = (np.cumsum(rng.integers(-3, 4, (count, 2)), 0).astype(float) for count in (one, other))
        others += rng.integers(-200, 200, 2)
        distances = np.abs(ones[:, None] - others[None]).max(-1)
        here, there, distance = _nearest(ones, others)
        assert distance == distances.min() == distances[here, there]


def scene_image(index, name=None):
    scene = make_scene(2_000_000 + index)
    masks = [LabeledMask(mask.astype(bool), ("shape", "cat & dog: \"x\"", "größe")[i % 3], 0.5 + i / 100)
             for i, mask in enumerate(scene.masks)]  # fmt: skip
    return scene.image, LabeledImage(name or f"scene_{index}.png", scene.image.shape[:2], masks)


@pytest.fixture(scope="module")
def scenes():
    return [scene_image(index) for index in range(2)]


def written(place, kind, scenes):
    """A data set of scenes, beside their images."""
    target = data_set(kind, place / "set.json" if kind.startswith("COCO") else place / "set")
    images = target.image_folder or place / "images"
    images.mkdir(parents=True)
    records = []
    for pixels, image in scenes:
        Image.fromarray(pixels).save(images / image.file_name)
        record, files = target.entry(image)
        for name, content in files.items():
            write_whole(target.path / name, content)
        records.append(record)
    target.write(records)
    return target.path, images


@pytest.mark.parametrize("kind", ["COCO RLE", "COCO polygons"])
def test_pycocotools_loads_the_scenes(kind, scenes, tmp_path):
    pycoco()
    from pycocotools.coco import COCO

    coco = COCO(str(written(tmp_path, kind, scenes)[0]))
    names = {number: category["name"] for number, category in coco.cats.items()}
    assert set(names) == set(range(1, 1 + len(names)))
    for number, (_, image) in enumerate(scenes, start=1):
        assert coco.imgs[number]["file_name"] == image.file_name
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=number))
        assert len(annotations) == len(image.objects) > 2
        for one, wanted in zip(annotations, image.objects, strict=True):
            rows, columns = np.nonzero(wanted.mask)
            assert (coco.annToMask(one).astype(bool) == wanted.mask).all()
            assert one["area"] == len(rows) and names[one["category_id"]] == wanted.label and one["score"] == wanted.score
            x, y, width, height = one["bbox"]
            assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())


def test_supervision_loads_the_scenes(scenes, tmp_path):
    for _, found, wanted in read_by_supervision("COCO RLE", scenes, tmp_path):
        assert (found == wanted).all()


@pytest.mark.parametrize("kind", ["COCO polygons", "YOLO"])
def test_supervision_finds_at_most_a_pixel_more_in_polygons(kind, scenes, tmp_path):
    """It rounds coordinates. Separate parts are joined by a line in YOLO."""
    sizes = 0
    for _, found, wanted in read_by_supervision(kind, scenes, tmp_path):
        wider = wanted | np.roll(wanted, 1, 0) | np.roll(wanted, 1, 1) | np.roll(wanted, (1, 1), (0, 1))
        assert (found >= wanted).all() and (found & ~wider).sum() <= (0 if kind != "YOLO" else 0.005 * wanted.sum())
        if wanted.sum() > 100**2:
            sizes += 1
            assert iou(found, wanted) >= 0.98
    assert sizes


def read_by_supervision(kind, scenes, place):
    """(label, mask, the mask that was written) of every object."""
    supervision = pytest.importorskip("supervision", reason=WHY)
    path, images = written(place, kind, scenes)
    if kind == "YOLO":
        read = supervision.DetectionDataset.from_yolo(str(images), str(path / "labels"), str(path / "data.yaml"), True)
    else:
        read = supervision.DetectionDataset.from_coco(str(images), str(path), force_masks=True)
    assert len(read) == len(scenes)
    for (_, _, found), (_, image) in zip(sorted(read, key=lambda one: one[0]), scenes, strict=True):
        labels = [read.classes[number] for number in found.class_id]
        assert labels == [one.label for one in image.objects]
        yield from zip(labels, found.mask, [one.mask for one in image.objects], strict=True)


def test_pngs_are_the_masks_and_the_manifest_names_them(scenes, tmp_path):
    folder, _ = written(tmp_path, "PNG", scenes)
    listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["images"]
    assert [one["file_name"] for one in listed] == [image.file_name for _, image in scenes]
    for record, (_, image) in zip(listed, scenes, strict=True):
        for one, wanted in zip(record["objects"], image.objects, strict=True):
            assert (np.array(Image.open(folder / one["mask"])) == wanted.mask * np.uint8(255)).all()
            assert (one["label"], one["score"], one["area"]) == (wanted.label, wanted.score, wanted.mask.sum())


@pytest.mark.parametrize("kind", ["COCO RLE", "YOLO", "PNG"])
def test_adding_gives_what_writing_at_once_gives(kind, scenes, tmp_path):
    one_by_one, at_once = (data_set(kind, tmp_path / name) for name in ("a", "b"))
    entries = [one_by_one.entry(image)[0] for _, image in scenes]
    for entry in entries:
        one_by_one.extend([entry])
    at_once.write(entries)
    files = [sorted(path.relative_to(made.path) for path in made.path.rglob("*")) for made in (one_by_one, at_once)]
    assert files[0] == files[1]
    for name in files[0] or [""]:
        if not (tmp_path / "a" / name).is_dir():
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_empty_mask_is_no_object_and_an_image_without_one_is_recorded(tmp_path):
    image = LabeledImage("a.png", (90, 120), [LabeledMask(np.zeros((90, 120), bool))])
    for kind in ("COCO RLE", "COCO polygons", "YOLO", "PNG"):
        record, files = data_set(kind, tmp_path).entry(image)
        assert record == {"file_name": "a.png", "width": 120, "height": 90, "objects": []} and not files
    Yolo(tmp_path).write([record])
    assert (tmp_path / "labels" / "a.txt").read_text() == ""


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"images": 3}'])
@pytest.mark.parametrize(("kind", "name"), [("COCO RLE", "a.json"), ("PNG", "manifest.json")])
def test_a_file_of_another_kind_is_left_as_it_is(kind, name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(SAMError, match="left as it is"):
        data_set(kind, tmp_path / "a.json" if kind != "PNG" else tmp_path).extend([])
    assert (tmp_path / name).read_text() == content


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(SAMError, match="a cannot be written: full. Choose another place"):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def _extend_often(path, worker):
    target = Coco(path)
    for turn in range(10):
        with locked(path):
            target.extend([target.entry(LabeledImage(f"{worker}_{turn}.png", (90, 120), [LabeledMask(SHAPES["hole"])]))[0]])


@needs_fork
def test_two_processes_add_to_one_file(tmp_path):
    path = tmp_path / "set.json"
    workers = [forked(_extend_often, path, worker) for worker in range(2)]
    seen = 0
    while any(worker.is_alive() for worker in workers):
        if path.is_file():
            now = len(json.loads(path.read_bytes())["images"])  # whole at any moment
            assert now >= seen
            seen = now
    [worker.join() for worker in workers]
    document = json.loads(path.read_bytes())
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(one["file_name"] for one in document["images"]) == sorted(f"{w}_{t}.png" for w in range(2) for t in range(10))
    for listed in (document["images"], document["annotations"]):
        assert [one["id"] for one in listed] == list(range(1, 21))


def test_who_waits_too_long_is_told(tmp_path):
    with locked(tmp_path / "set"), pytest.raises(SAMError, match="another process"), locked(tmp_path / "set", wait=0.05):
        pass


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(SAMError, match="choose one of COCO RLE"):
        data_set("VOC", tmp_path)


def test_a_label_of_several_lines_is_one_class(tmp_path):
    yolo = Yolo(tmp_path)
    yolo.extend(
        [yolo.entry(LabeledImage("a.png", (90, 120), [LabeledMask(dot(3, 3), "a\nb"), LabeledMask(dot(4, 4), " ")]))[0]]
    )
    assert (tmp_path / "classes.txt").read_text() == "a b\nobject\n"


def test_pngs_of_images_in_folders_keep_their_folders(tmp_path):
    record, files = Pngs(tmp_path).entry(LabeledImage("day 1/a.jpg", (90, 120), [LabeledMask(dot(3, 3))]))
    assert list(files) == ["masks/day 1/a_000.png"] == [one["segmentation"] for one in record["objects"]]


def test_labelmes_files_lie_beside_their_images_and_their_boxes_end_with_the_last_pixel(tmp_path):
    """As labelme 6.3.1 reads and writes them: `shapes_to_label` gives the same mask, and the second corner belongs to it."""
    mask = np.zeros((40, 60), bool)
    mask[5:20, 8:31], mask[9:12, 10:14] = True, False
    record, files = data_set("labelme", tmp_path).entry(LabeledImage("sub/a.jpg", (40, 60), [LabeledMask(mask, "cat", 0.5)]))
    ((name, content),) = files.items()
    document = json.loads(content)
    (shape,) = document["shapes"]
    assert name == "images/sub/a.json" and (document["imagePath"], document["imageData"]) == ("a.jpg", None)
    assert (document["imageHeight"], document["imageWidth"]) == (40, 60)
    assert (shape["label"], shape["shape_type"], shape["points"]) == ("cat", "mask", [[8, 5], [30, 19]])
    inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
    assert np.array_equal(inside > 0, mask[5:20, 8:31])
    assert data_set("labelme", tmp_path).files_of(record) == {"images/sub/a.jpg", "images/sub/a.json"}

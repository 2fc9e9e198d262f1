"""CVAT's XML and Label Studio's JSON, as real tools wrote them: the masks that these tools read. See `fixtures/make_*.py`."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeComfyUI, install
from load_pack import ROOT
from PIL import Image
from samkit.nodes.load_masks import LoadMasks
from samkit.sam import SAMError
from samkit.sam.datasets.cvat import CvatSet
from samkit.sam.datasets.drawing import drawn_polygon
from samkit.sam.datasets.label_studio import decode_brush
from samkit.sam.datasets.read import open_data_set

FIXTURES = ROOT / "tests" / "fixtures"
FORMS = {"cvat": ("CVAT", "annotations.xml"), "label_studio": ("Label Studio", "export.json")}


def masks_of(rows):
    return np.array([[[pixel == "1" for pixel in row] for row in one] for _, one in rows])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["file", "folder"])
def test_the_masks_are_those_that_the_tool_reads(form, by):
    name, file = FORMS[form]
    found = open_data_set(FIXTURES / form / file if by == "file" else FIXTURES / form)
    truth = json.loads((FIXTURES / form / "truth.json").read_text())
    assert found.form == name and set(found.names) == set(truth) and max(map(len, truth.values())) > 2
    for index, image in enumerate(found.names):
        read, expected = found.read(index), truth[image]
        assert [one.label for one in read.labeled.objects] == [label for label, _ in expected]
        assert found.labels(index) == {label for label, _ in expected}
        assert read.labeled.file_name == image and read.pixels.shape[:2] == read.labeled.size
        for one, mask in zip(read.labeled.objects, masks_of(expected) if expected else [], strict=True):
            assert one.mask.dtype == bool and np.array_equal(one.mask, mask)


@pytest.mark.parametrize(("form", "name"), [("labelme", "labelme"), ("coco", "COCO"), ("yolo", "YOLO")])
def test_the_masks_are_those_that_labelme_pycocotools_and_ultralytics_read(form, name):
    """Written by labelme, datumaro and Ultralytics; each object of each image, in the order of the file."""
    found = open_data_set(FIXTURES / form)
    truth = json.loads((FIXTURES / f"{form}_truth.json").read_text())
    assert found.form == name and set(found.names) == set(truth) and max(map(len, truth.values())) > 1
    for index, image in enumerate(found.names):
        objects, expected = found.read(index).labeled.objects, truth[image]
        assert [one.label for one in objects] == [label for label, _ in expected]
        for one, mask in zip(objects, masks_of(expected) if expected else [], strict=True):
            assert np.array_equal(one.mask, mask), (image, one.label)


def test_polygons_of_yolo_are_those_of_opencv():
    """Which Ultralytics fills with: the pixels of slanted edges, too."""
    cv2 = pytest.importorskip("cv2")
    numbers = np.random.default_rng(0)
    for _ in range(200):
        angles, radii = np.sort(numbers.uniform(0, 2 * np.pi, 7)), numbers.uniform(4, 18, 7)
        points = 20 + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
        wanted = np.zeros((40, 40), np.uint8)
        cv2.fillPoly(wanted, [points.astype(np.int32)], 1)
        wrong = (drawn_polygon(points, (40, 40)) != (wanted > 0)).sum()
        assert wrong <= 2, wrong


def test_the_node_reads_them(tmp_path, monkeypatch):
    install(monkeypatch, FakeComfyUI(tmp_path))
    shutil.copytree(FIXTURES / "cvat", tmp_path / "input" / "cvat")
    images, masks, boxes, labels = LoadMasks().execute("cvat", category="cat", individual_masks=True)
    truth = json.loads((FIXTURES / "cvat" / "truth.json").read_text())["one.png"]
    cats = [row for row in truth if row[0] == "cat"]
    assert len(images) == 1 and set(labels) == {"cat"} and len(labels) == len(cats) == 3
    assert np.array_equal(torch.cat(masks).numpy() > 0.5, masks_of(cats)) and boxes[0][0][0]["label"] == "cat"


def cvat_with(tmp_path, shapes, image='name="one.png" width="16" height="12"', root="annotations"):
    Image.new("RGB", (16, 12)).save(tmp_path / "one.png")
    path = tmp_path / "annotations.xml"
    path.write_text(f'<?xml version="1.0"?><{root}><version>1.1</version><image id="0" {image}>{shapes}</image></{root}>')
    return path


def objects_in(path):
    return CvatSet(path).read(0).labeled.objects


def test_a_mask_of_cvat_itself_has_a_box_of_its_own(tmp_path):
    """CVAT cuts masks to their boxes, which datumaro does not."""
    (one,) = objects_in(cvat_with(tmp_path, '<mask label="cat" rle="1, 2, 2, 1" left="3" top="5" width="3" height="2"/>'))
    assert np.argwhere(one.mask).tolist() == [[5, 4], [5, 5], [6, 5]]


def test_shapes_of_a_group_are_one_object(tmp_path):
    box = '<box label="{}" xtl="{}" ytl="0" xbr="{}" ybr="2" {}/>'
    shapes = [("cat", 0, 2, 'group_id="4"'), ("cat", 5, 7, 'group_id="4"'), ("dog", 9, 11, 'group_id="4"'), ("cat", 12, 14, "")]
    found = objects_in(cvat_with(tmp_path, "".join(box.format(*shape) for shape in shapes)))
    assert [(one.label, int(one.mask.sum())) for one in found] == [("cat", 8), ("dog", 4), ("cat", 4)]


def test_a_turned_box_and_an_ellipse(tmp_path):
    """A square that is turned by 90 degrees is itself; by 45, it stands on its corner. An ellipse has pi times its radii."""
    box = '<box label="b" xtl="4" ytl="2" xbr="12" ybr="10" rotation="{}"/>'
    upright, quarter, eighth = (
        one.mask for one in objects_in(cvat_with(tmp_path, "".join(box.format(turn) for turn in (0, 90, 45))))
    )
    assert upright.sum() == 64 and (upright != quarter).sum() == 0
    assert eighth[6, 3] and eighth[1, 8] and not eighth[2, 4] and abs(int(eighth.sum()) - 64) < 8
    ellipse = '<ellipse label="e" cx="8" cy="6" rx="7" ry="3" rotation="{}"/>'
    flat, standing = (one.mask for one in objects_in(cvat_with(tmp_path, ellipse.format(0) + ellipse.format(90))))
    assert abs(int(flat.sum()) - np.pi * 21) < 4 and flat[6, 1] and not flat[1, 8]
    assert standing[0, 8] and not standing[6, 1]
    (tilted,) = (one.mask for one in objects_in(cvat_with(tmp_path, ellipse.format(30))))
    assert tilted[8, 12] and not tilted[3, 12], "clockwise: its right end is lower"


def test_what_has_no_area_is_left_out(tmp_path):
    lines = '<polyline label="l" points="1,1;5,5"/><points label="p" points="1,1"/><tag label="t"/>'
    path = cvat_with(tmp_path, lines + '<box label="cat" xtl="1" ytl="1" xbr="3" ybr="3"/>')
    assert [one.label for one in objects_in(path)] == ["cat"] and CvatSet(path).labels(0) == {"cat"}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<mask label="c" rle="1, 2" left="3" top="5" width="3" height="2"/>', "shape 0 of image one.png of annotations.xml"),
        ('<mask label="c" rle="0, 6" left="14" top="5" width="3" height="2"/>', "is not inside the image"),
        ('<mask label="c" rle="-1, 7" left="3" top="5" width="3" height="2"/>', "its run lengths are not those of 3x2 pixels"),
        ('<mask label="c" rle="x" left="3" top="5" width="3" height="2"/>', "not of the form that it should have"),
        ('<polygon label="c" points="1,1;5,5"/>', "needs three points or more"),
        ('<polygon label="c" points="1,1;5,5;nan,2"/>', "needs three points or more"),
        ('<box label="c" xtl="1" ytl="1" xbr="inf" ybr="3"/>', "must be pixels of the image"),
        ('<ellipse label="c" cx="1" cy="1" rx="0" ry="3"/>', "the radii must be positive"),
        ('<box label="c" xtl="1"/>', "not of the form that it should have: KeyError 'ytl'"),
        ('<star label="c"/>', "it is a 'star': only masks, polygons, boxes and ellipses can be read"),
    ],
)
def test_damaged_shapes_of_cvat_are_named(tmp_path, shape, message):
    with pytest.raises(SAMError, match=message):
        objects_in(cvat_with(tmp_path, shape))


def test_files_that_are_not_cvats_for_images(tmp_path):
    with pytest.raises(SAMError, match="has 17x12 pixels, but its image 16x12"):
        objects_in(cvat_with(tmp_path, "", 'name="one.png" width="17" height="12"'))
    with pytest.raises(SAMError, match="its root must be <annotations>"):
        CvatSet(cvat_with(tmp_path, "", root="annotation"))
    with pytest.raises(SAMError, match="Export it from CVAT as CVAT for images 1.1"):
        path = tmp_path / "video.xml"
        path.write_text("<annotations><track id='0'/></annotations>")
        CvatSet(path)
    with pytest.raises(SAMError, match="not of the form that it should have: ParseError"):
        path.write_text("<annotations><image>")
        CvatSet(path)


@pytest.fixture
def exported(tmp_path):
    """A copy of the export, to change; `read` writes it and reads its first image."""
    shutil.copytree(FIXTURES / "label_studio", tmp_path / "set")
    path = tmp_path / "set" / "export.json"
    tasks = json.loads(path.read_text())

    def read(change):
        changed = copy.deepcopy(tasks)
        change(changed[0])
        path.write_text(json.dumps(changed))
        return open_data_set(path).read(0).labeled

    return read


def results(task):
    return task["annotations"][1]["result"]


def test_a_label_may_stand_in_a_result_of_its_own(exported):
    def change(task):
        polygon = results(task)[1]
        del polygon["value"]["polygonlabels"]
        polygon["type"] = "polygon"
        results(task).append({**polygon, "type": "labels", "value": {**polygon["value"], "labels": ["fox"]}})

    assert [one.label for one in exported(change).objects] == ["cat", "fox", "dog"]


def test_a_turned_rectangle_and_an_ellipse_of_label_studio(exported):
    def change(task):
        rectangle = results(task)[2]
        rectangle["value"] |= {"x": 50, "y": 25, "width": 20, "height": 50, "rotation": 90}
        ellipse = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 10, "rotation": 0, "ellipselabels": ["egg"]}
        results(task)[1:] = [rectangle, {**rectangle, "id": "e", "type": "ellipselabels", "value": ellipse}]

    _, turned, egg = exported(change).objects
    rows, columns = np.nonzero(turned.mask)  # about its top left corner (30, 10), clockwise: 20 wide to the left, 12 high
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 21, 10, 29)
    assert egg.label == "egg" and abs(int(egg.mask.sum()) - np.pi * 15 * 4) < 6 and egg.mask[20, 16] and not egg.mask[15, 30]


def cut(task):
    results(task)[0]["value"]["rle"] = results(task)[0]["value"]["rle"][:20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "region 0 of one.png in export.json: its run lengths end too soon"),
        (lambda task: results(task)[0]["value"]["rle"].__setitem__(3, 7), "are not those of an image of 60x40"),
        (lambda task: results(task)[0]["value"].__setitem__("rle", ["x"]), "not of the form that it should have: TypeError"),
        (lambda task: results(task)[0]["value"].__setitem__("rle", [999]), "not of the form that it should have: ValueError"),
        (lambda task: results(task)[1].__setitem__("original_width", 61), "has 61x40 pixels, but its image 60x40"),
        (lambda task: results(task)[1]["value"].__setitem__("points", [[1, 1]]), "needs three points or more"),
        (lambda task: results(task)[2]["value"].pop("width"), "not of the form that it should have: KeyError 'width'"),
        (lambda task: task["data"].__setitem__("image", "https://example.org/gone.png"), "there is no image gone.png"),
        (lambda task: task["data"].__setitem__("image", "words"), "a task has no image"),
        (lambda task: task["data"].__setitem__("image", "/../../one.png?d=../one.png"), "^(?!.*Traceback)"),
    ],
)
def test_damaged_exports_are_named(exported, change, message):
    if message.startswith("^"):
        assert exported(change).file_name == "one.png", "by its name, in the folder"
        return
    with pytest.raises(SAMError, match=message):
        exported(change)


def test_a_list_that_is_not_an_export_is_refused(tmp_path):
    path = tmp_path / "results.json"
    for content in ([], [1], [{"image_id": 1, "segmentation": []}]):
        path.write_text(json.dumps(content))
        with pytest.raises(SAMError, match="is not a data set that can be read"):
            open_data_set(path)


def test_alpha_is_the_mask_whatever_the_color():
    """Two pixels, value by value: a red one without alpha, and a black one with half of it."""
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "0" + "00" + f"{7:03b}" + "".join(f"{value:08b}" for value in (255, 0, 0, 0, 0, 0, 0, 128))
    bits += "0" * (-len(bits) % 8)
    stream = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert decode_brush(stream, (1, 2)).tolist() == [[False, True]]


def test_a_run_beyond_the_image_is_refused():
    """A stream whose header fits, and whose first run is longer than the image."""
    bits = f"{4 * 2 * 2:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "1" + "10" + f"{255:08b}" + f"{255:08b}"
    bits += "0" * (-len(bits) % 8)
    stream = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    with pytest.raises(SAMError, match="of more values than the image has"):
        decode_brush(stream, (2, 2))


def test_fixtures_say_how_they_were_made():
    for form in (*FORMS, "labelme", "coco", "yolo"):
        text = Path(FIXTURES / f"make_{form}.py").read_text()
        assert "pip install" in text and "==" in text

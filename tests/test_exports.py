"""The forms of annotation tools, and index PNGs: what is written is read again to the pixel, and added to without a loss."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from samkit.sam import SAMError
from samkit.sam.datasets.formats import data_set
from samkit.sam.datasets.label_studio import decode_brush, encode_brush
from samkit.sam.datasets.objects import LabeledImage, LabeledMask
from samkit.sam.datasets.read import open_data_set

EXACT = ("CVAT", "Label Studio")
SIZE = (40, 60)


def hard_masks():
    """A hole with an object in it, two parts, parts that touch at a corner, the border, all, a pixel, a row, grain."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    apart = (rows - 20) ** 2 + (columns - 30) ** 2
    touching = np.zeros(SIZE, bool)
    touching[5:10, 5:10] = touching[10:15, 10:15] = True
    pixel, row = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    pixel[-1, -1] = row[7, 3:50] = True
    return {
        "ring": (apart < 225) & (apart > 64),
        "a hole's object": apart < 25,
        "two parts": (columns < 9) | (columns > 51),
        "touching": touching,
        "frame": (rows == 0) | (columns == 0) | (rows == SIZE[0] - 1) | (columns == SIZE[1] - 1),
        "all": np.ones(SIZE, bool),
        "pixel": pixel,
        'a < row & "quotes"': row,
        "grain": np.random.default_rng(0).random(SIZE) < 0.5,
    }


def write(name, folder, images, add=False):
    """Images by file name, each a dict of masks by label, as a data set."""
    target, records = data_set(name, folder), []
    for file_name, masks in images.items():
        path = folder / "images" / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)
        objects = [LabeledMask(mask, label) for label, mask in masks.items()]
        record, files = target.entry(LabeledImage(file_name, SIZE, objects))
        for one, content in files.items():
            (folder / one).parent.mkdir(parents=True, exist_ok=True)
            (folder / one).write_bytes(content)
        records.append(record)
    target.extend(records) if add else target.write(records)


def read(folder):
    found = open_data_set(folder)
    images = [found.read(index).labeled for index in range(len(found.names))]
    return {image.file_name: image.objects for image in images}


@pytest.mark.parametrize("name", EXACT)
def test_what_is_written_is_read_to_the_pixel(name, tmp_path):
    images = {"one.png": hard_masks(), "day 1/übel.png": {"cat": hard_masks()["ring"]}, "images/none.png": {}}
    write(name, tmp_path, images)
    found = read(tmp_path)
    assert list(found) == list(images)
    for file_name, masks in images.items():
        assert [one.label for one in found[file_name]] == list(masks)
        for one, mask in zip(found[file_name], masks.values(), strict=True):
            assert np.array_equal(one.mask, mask), one.label


@pytest.mark.parametrize("name", EXACT)
def test_images_are_added_and_what_is_there_stays(name, tmp_path):
    write(name, tmp_path, {"one.png": {"cat": hard_masks()["ring"]}})
    write(name, tmp_path, {"one.png": {"dog": hard_masks()["all"]}, "two.png": {"dog": hard_masks()["pixel"]}}, add=True)
    found = read(tmp_path)
    assert {file_name: [one.label for one in objects] for file_name, objects in found.items()} == {
        "one.png": ["cat"],
        "two.png": ["dog"],
    }
    assert data_set(name, tmp_path).names() == {"one.png", "two.png"}
    if name == "CVAT":
        numbers = [one.get("id") for one in ElementTree.parse(tmp_path / "annotations.xml").getroot().findall("image")]
        assert numbers == ["0", "1"]
        labels = [one.findtext("name") for one in ElementTree.parse(tmp_path / "annotations.xml").getroot().iter("label")]
        assert labels == ["cat", "dog"]
    else:
        labels = [one.get("value") for one in ElementTree.parse(tmp_path / "labels.xml").getroot().iter("Label")]
        assert labels == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("CVAT", "annotations.xml", "<annotation/>"),
        ("CVAT", "annotations.xml", "{}"),
        ("Label Studio", "tasks.json", '{"images": []}'),
        ("Label Studio", "tasks.json", "[1]"),
        ("Label Studio", "tasks.json", "no"),
    ],
)
def test_a_file_of_another_kind_is_left_as_it_is(name, file, content, tmp_path):
    (tmp_path / file).write_text(content)
    with pytest.raises(SAMError, match=file):
        write(name, tmp_path, {"one.png": hard_masks()}, add=True)
    assert (tmp_path / file).read_text() == content


def test_a_label_that_xml_cannot_hold_is_written_without_its_control_characters(tmp_path):
    write("CVAT", tmp_path, {"one.png": {"a\x00b\x1fc": hard_masks()["ring"]}})
    assert [one.label for one in read(tmp_path)["one.png"]] == ["a b c"]


def test_a_run_of_a_brush_may_be_longer_than_its_largest_length():
    mask = np.zeros((300, 400), bool)
    mask[100:290] = True
    assert np.array_equal(decode_brush(encode_brush(mask), mask.shape), mask)


def test_an_index_png_has_an_object_in_each_value_and_small_ones_on_top(tmp_path):
    masks = hard_masks()
    write("index PNG", tmp_path, {"sub/one.png": {name: masks[name] for name in ("pixel", "all", "ring", "a hole's object")}})
    png = Image.open(tmp_path / "masks" / "sub" / "one.png")
    values = np.array(png)
    assert png.mode == "P" and png.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert np.array_equal(values == 1, masks["pixel"]) and np.array_equal(values == 3, masks["ring"])
    assert np.array_equal(values == 4, masks["a hole's object"])
    assert np.array_equal(values == 2, ~(masks["pixel"] | masks["ring"] | masks["a hole's object"]))
    objects = read(tmp_path)["sub/one.png"]
    assert [one.label for one in objects] == ["1", "2", "3", "4"] and np.array_equal(objects[2].mask, masks["ring"])


def test_an_index_png_has_255_objects_at_most(tmp_path):
    pixels = {str(number): np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) == number for number in range(256)}
    with pytest.raises(SAMError, match="one.png has 256 objects"):
        write("index PNG", tmp_path, {"one.png": pixels})
    write("index PNG", tmp_path, {"one.png": dict(list(pixels.items())[:255])})
    assert len(read(tmp_path)["one.png"]) == 255

"""Corrected masks written back: read again they are what was accepted, and all other bytes are as they were."""

import json
import re
import shutil

import numpy as np
import pytest
from load_pack import ROOT
from PIL import Image
from samkit.sam import SAMError
from samkit.sam.datasets.correct import changes_of, write_back
from samkit.sam.datasets.formats import data_set
from samkit.sam.datasets.json_text import elements, members, place_of, with_elements
from samkit.sam.datasets.objects import LabeledImage, LabeledMask
from samkit.sam.datasets.read import open_data_set
from test_exports import hard_masks, write

SIZE = (40, 60)
FORMS = ("COCO RLE", "COCO polygons", "YOLO", "labelme", "CVAT", "Label Studio", "PNG", "index PNG")


def disc(x, y, radius):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


CAT, DOG, CUP = disc(15, 20, 9), disc(40, 15, 8), disc(42, 30, 7)
MOVED = disc(17, 21, 10) & ~disc(17, 21, 3)


def made(name, folder):
    """Three images, of which `b.png` has three objects and `c.png` none."""
    folder.mkdir()
    place = folder / "annotations.json" if name.startswith("COCO") else folder
    images = {"a.png": {"dog": DOG}, "day 1/b.png": {"cat": CAT, "dog": DOG, "cup": CUP}, "c.png": {}}
    if name.startswith("COCO"):
        write_coco(name, place, images)
    else:
        write(name, place, images)
    return folder


def write_coco(name, place, images):
    target, records = data_set(name, place), []
    for file_name, masks in images.items():
        path = place.parent / "images" / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)
        objects = [LabeledMask(mask, label, 0.5) for label, mask in masks.items()]
        records.append(target.entry(LabeledImage(file_name, SIZE, objects))[0])
    target.write(records)


def objects_of(folder, name="day 1/b.png"):
    data = open_data_set(folder)
    return data, data.names.index(name), list(data.read(data.names.index(name)).labeled.objects)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", FORMS)
def test_what_has_not_changed_is_not_touched(form, tmp_path):
    folder = made(form, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for name in ("a.png", "day 1/b.png", "c.png"):
        data, index, objects = objects_of(folder, name)
        assert write_back(data, index, objects[::-1]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("form", FORMS)
def test_a_corrected_image_is_read_as_it_was_accepted_and_the_rest_is_as_it_was(form, tmp_path):
    """One object is corrected, one removed, one stays, and one is new."""
    folder = made(form, tmp_path / "set")
    before = content(folder)
    data, index, (cat, dog, cup) = objects_of(folder)
    new = hard_masks()["touching"] & ~cup.mask & ~MOVED if form == "index PNG" else disc(52, 34, 4)
    label = "7" if form == "index PNG" else "dog"
    wanted = [LabeledMask(MOVED, cat.label), cup, LabeledMask(new, label)]
    assert write_back(data, index, wanted) == 3
    _, _, found = objects_of(folder)
    found = sorted(found, key=lambda one: one.label)
    for one, other in zip(found, sorted(wanted, key=lambda one: one.label), strict=True):
        assert one.label == other.label and (one.mask == other.mask).all(), one.label
    after = content(folder)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    own = {
        "YOLO": {"labels/day 1/b.txt"},
        "labelme": {"images/day 1/b.json"},
        "CVAT": {"annotations.xml"},
        "Label Studio": {"tasks.json"},
        "index PNG": {"masks/day 1/b.png"},
    }.get(form, {"annotations.json"})
    if form == "PNG":  # a file of a mask for each object
        own = {"manifest.json", *(f"masks/day 1/b_{number:03}.png" for number in (0, 1, 3))}
    assert changed == own
    for name in ("a.png", "c.png"):
        objects = objects_of(folder, name)[2]
        assert [(one.mask == DOG).all() for one in objects] == ([True] if name == "a.png" else [])
    if form in ("COCO RLE", "COCO polygons", "labelme", "Label Studio", "PNG", "CVAT", "YOLO"):
        (name,) = {name for name in own if not name.endswith(".png")}
        parts = unchanged_parts(form, before[name])
        assert all(part in after[name] for part in parts) and len(parts) >= 1


def unchanged_parts(form, text):
    """The records of the other images, and that of the object that stays, as bytes."""
    if form == "CVAT":
        head, first, second, third = text.split(b"<image ")
        (stays,) = re.findall(rb'<mask label="cup"[^>]*>', second)
        return [head + b"<image " + first, stays, b"<image " + third]
    if form == "YOLO":
        return [text.splitlines(keepends=True)[2]]
    text = text.decode()
    if form.startswith("COCO"):
        spans = elements(text, place_of(text, "annotations")[0])
        rest = [text[: spans[1][0]], text[slice(*spans[3])], text[spans[3][1] :].partition("]")[2]]
    elif form == "labelme":
        spans = elements(text, place_of(text, "shapes")[0])
        rest = [text[: spans[0][0]], text[slice(*spans[2])], text[spans[2][1] :].partition("]")[2]]
    elif form == "Label Studio":
        spans = elements(text, place_of(text, 1, "annotations", 0, "result")[0])
        rest = [text[: spans[0][0]], text[slice(*spans[2])], text[spans[2][1] :].partition("]")[2]]
    else:
        spans = elements(text, place_of(text, "images", 1, "objects")[0])
        rest = [text[: spans[0][0]], text[slice(*spans[2])], text[spans[2][1] :].partition("]")[2]]
    return [part.encode() for part in rest]


@pytest.mark.parametrize("form", FORMS)
def test_an_image_without_objects_gets_one_and_loses_it(form, tmp_path):
    folder = made(form, tmp_path / "set")
    label = {"index PNG": "object", "YOLO": "dog", "CVAT": "cat"}.get(form, "dog")
    data, index, objects = objects_of(folder, "c.png")
    assert not objects and write_back(data, index, [LabeledMask(MOVED, label)]) == 1
    data, index, (one,) = objects_of(folder, "c.png")
    assert one.label == label and (one.mask == MOVED).all()
    assert write_back(data, index, []) == 1 and objects_of(folder, "c.png")[2] == []
    assert len(objects_of(folder)[2]) == 3


@pytest.mark.parametrize("form", [form for form in FORMS if form != "index PNG"])
def test_another_label_leaves_the_pixels_as_they_are_written(form, tmp_path):
    folder = made(form, tmp_path / "set")
    data, index, (cat, dog, cup) = objects_of(folder)
    assert write_back(data, index, [LabeledMask(cat.mask, "cup"), dog, cup]) == 1
    assert sorted(one.label for one in objects_of(folder)[2]) == ["cup", "cup", "dog"]
    after = content(folder)
    for name, old in content(made(form, tmp_path / "again")).items():
        lengths = len(after[name]) - len(old)
        assert lengths == 0 or abs(lengths) < 200, name
        if name.endswith(".png"):
            assert after[name] == old


def test_real_files_of_the_tools(tmp_path):
    """CVAT's and Label Studio's, with shapes of every kind: the first object of each image is removed, and all else stays."""
    for form, count in (("cvat", 0), ("label_studio", 0)):
        shutil.copytree(ROOT / "tests" / "fixtures" / form, tmp_path / form)
        data = open_data_set(tmp_path / form)
        for index, name in enumerate(data.names):
            before = open_data_set(tmp_path / form).read(index).labeled.objects
            for place in range(len(before)):
                data = open_data_set(tmp_path / form)
                rest = [one for number, one in enumerate(before) if number > place]
                wanted = [*rest, LabeledMask(~before[place].mask, before[place].label)] if place == 1 else rest
                wrong = write_back(data, index, wanted)
                found = list(open_data_set(tmp_path / form).read(index).labeled.objects)
                assert wrong and len(found) == len(wanted), (name, place)
                for one in wanted:
                    assert any(one.label == other.label and (one.mask == other.mask).all() for other in found), (name, place)
                count += 1
        assert count > 3


def test_coco_keeps_its_kind_and_gets_new_categories(tmp_path):
    """Run lengths as lists stay lists; spaces, line ends and unknown keys stay."""
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    runs = {"size": list(SIZE), "counts": [5, 10, SIZE[0] * SIZE[1] - 15]}
    one = {"id": 4, "image_id": 1, "category_id": 9, "segmentation": runs, "extra": {"by": "me"}, "iscrowd": 1}
    document = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 9, "name": "x"}], "annotations": [one]}
    text = json.dumps(document, indent=3).replace("\n", "\r\n") + "\r\n\r\n"
    (tmp_path / "annotations.json").write_bytes(text.encode())
    data = open_data_set(tmp_path)
    (old,) = data.read(0).labeled.objects
    grown = old.mask.copy()
    grown[:3, :2] = True
    assert write_back(data, 0, [LabeledMask(grown, "x"), LabeledMask(CAT, "größe")]) == 2
    text = (tmp_path / "annotations.json").read_bytes().decode()
    document = json.loads(text)
    first, second = document["annotations"]
    assert first["extra"] == {"by": "me"} and first["iscrowd"] == 1 and isinstance(first["segmentation"]["counts"], list)
    assert (second["id"], second["category_id"]) == (5, 10) and document["categories"][1]["name"] == "größe"
    assert text.startswith('{\r\n   "images": [') and text.endswith("}\r\n\r\n")
    found = open_data_set(tmp_path).read(0).labeled.objects
    assert (found[0].mask == grown).all() and (found[1].mask == CAT).all()


def test_names_that_a_form_has_no_place_for_are_refused_and_nothing_is_written(tmp_path):
    for form, message in (("YOLO", "has no class 'bird': use one of dog, cat, cup"), ("CVAT", "has no label 'bird'")):
        folder = made(form, tmp_path / form)
        before = content(folder)
        data, index, objects = objects_of(folder)
        with pytest.raises(SAMError, match=message):
            write_back(data, index, [*objects, LabeledMask(MOVED, "bird")])
        assert content(folder) == before


def test_boxes_beside_a_polygon_become_polygons(tmp_path):
    """Ultralytics leaves out an image that has both."""
    folder = made("YOLO", tmp_path / "set")
    path = folder / "labels" / "day 1" / "b.txt"
    path.write_text("0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.2 0.2\n")
    data, index, (one, other) = objects_of(folder)
    assert write_back(data, index, [LabeledMask(MOVED, one.label), other]) == 2
    assert all(len(line.split()) > 5 for line in path.read_text().splitlines())
    assert any((found.mask == other.mask).all() for found in objects_of(folder)[2])


def test_which_object_is_which():
    before = [LabeledMask(CAT, "cat"), LabeledMask(DOG, "dog"), LabeledMask(CUP, "cat")]
    changes = changes_of(before, [LabeledMask(MOVED, "cat"), LabeledMask(CUP, "cup"), LabeledMask(disc(5, 5, 2), "dog")])
    assert [(one.was, one.is_same, one.now and one.now.label) for one in changes] == [
        (2, True, "cup"),
        (0, False, "cat"),
        (None, False, "dog"),
        (1, False, None),
    ]


@pytest.mark.parametrize("text", ['{"a": [1, {"b": "]"}, 3] , "c": 2}', '{"a":[1,{"b":"]"},3],"c":2}'])
def test_json_is_changed_in_places(text):
    span = place_of(text, "a")
    assert (
        text[slice(*span)] == text[text.index("[") : text.rindex("]") + 1]
        and text[slice(*place_of(text, "a", 1, "b"))] == '"]"'
    )
    assert list(members(text, 0)) == ["a", "c"]
    for changed, added, wanted in (
        ({}, [], [1, {"b": "]"}, 3]),
        ({0: None}, [4], [{"b": "]"}, 3, 4]),
        ({0: None, 1: None, 2: None}, [], []),
        ({0: None, 1: None, 2: None}, [7, 8], [7, 8]),
        ({1: "x"}, [], [1, "x", 3]),
        ({2: None}, [], [1, {"b": "]"}]),
    ):
        assert json.loads(with_elements(text, span, changed, added)) == {"a": wanted, "c": 2}
    assert with_elements(text, span, {}, []) == text


def rewritten(folder, change):
    """A data set whose JSON another program has written otherwise."""
    (path,) = [folder / name for name in ("annotations.json", "manifest.json", "tasks.json") if (folder / name).is_file()]
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["COCO RLE", "COCO polygons"])
@pytest.mark.parametrize("kind", ["none", "text", "floats"])
def test_ids_of_a_coco_file_that_are_no_whole_numbers(kind, form, tmp_path):
    def change(document):
        for one in document["annotations"]:
            one["id"] = {"none": None, "text": f"0{one['id']}", "floats": float(one["id"])}[kind]
            one["category_id"] = f"0{one['category_id']}" if kind == "text" else one["category_id"]
            if kind == "none":
                del one["id"]
        for one in document["categories"]:
            one["id"] = f"0{one['id']}" if kind == "text" else one["id"]

    folder = made(form, tmp_path / "set")
    path = rewritten(folder, change)
    before = json.loads(path.read_text(encoding="utf-8"))
    data, index, objects = objects_of(folder)
    assert write_back(data, index, [*objects, LabeledMask(disc(52, 34, 4), "bird")]) == 1
    assert [one.label for one in objects_of(folder)[2]] == ["cat", "dog", "cup", "bird"]
    after = json.loads(path.read_text(encoding="utf-8"))
    new = after["annotations"][-1]
    assert after["annotations"][:-1] == before["annotations"] and after["categories"][:-1] == before["categories"]
    assert new["id"] == (1 if kind == "none" else 5) and new["category_id"] == 4


def test_a_new_category_has_no_id_that_annotations_without_a_category_use(tmp_path):
    folder = made("COCO RLE", tmp_path / "set")
    rewritten(folder, lambda document: document["categories"].clear())
    data, index, objects = objects_of(folder)
    assert write_back(data, index, [*objects, LabeledMask(disc(52, 34, 4), "bird")]) == 1
    assert [one.label for one in objects_of(folder)[2]] == ["object", "object", "object", "bird"]


@pytest.mark.parametrize("form", [form for form in FORMS if form != "index PNG"])
def test_texts_with_a_byte_order_mark_and_empty_lines(form, tmp_path):
    """As Windows' Notepad and PowerShell leave them."""
    folder = made(form, tmp_path / "set")
    texts = [path for path in folder.rglob("*") if path.suffix in (".json", ".xml", ".txt")]
    for path in texts:
        content = path.read_bytes()
        content = content.replace(b"\n", b"\r\n\r\n") if form == "YOLO" and path.name != "classes.txt" else content
        path.write_bytes(b"\xef\xbb\xbf" + content)
    data, index, (cat, dog, cup) = objects_of(folder)
    assert [one.label for one in (cat, dog, cup)] == ["cat", "dog", "cup"] and texts
    assert write_back(data, index, [cat, LabeledMask(MOVED, "cup")]) == 3
    found = objects_of(folder)[2]
    assert [one.label for one in found] == ["cat", "cup"]
    assert (found[0].mask == CAT).all() and (found[1].mask == MOVED).all()
    assert (folder / "classes.txt").is_file() == (form == "YOLO") and objects_of(folder, "a.png")[2][0].label == "dog"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", ["", "a\0b", "\ud800"])
def test_labels_that_could_not_be_read_again_are_refused(label, form, tmp_path):
    folder = made(form, tmp_path / "set")
    before = content(folder)
    data, index, objects = objects_of(folder)
    with pytest.raises(SAMError, match="the label"):
        write_back(data, index, [*objects, LabeledMask(disc(52, 34, 4), label)])
    assert content(folder) == before


def test_a_label_that_xml_cannot_hold_in_a_task_without_labels(tmp_path):
    folder = made("CVAT", tmp_path / "set")
    path = folder / "annotations.xml"
    path.write_bytes(re.sub(rb"<labels>.*</labels>", b"", path.read_bytes(), flags=re.DOTALL))
    data, index, objects = objects_of(folder)
    assert write_back(data, index, [LabeledMask(CAT, "a\x01<b"), *objects[1:], LabeledMask(disc(52, 34, 4), "c\x02\n")]) == 2
    assert [one.label for one in objects_of(folder)[2]] == ["a <b", "dog", "cup", "c \n"]

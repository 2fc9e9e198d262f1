"""The routes of *Correct masks*: an image of a data set as the editor's text, and what was accepted written back."""

import asyncio
import json
import os
import shutil

import numpy as np
import pytest
from fakes import FakeComfyUI, install
from PIL import Image
from samkit.nodes.editor.data_set import accepted, opened
from samkit.nodes.editor.jobs import RefusedError
from samkit.nodes.editor.routes import ROUTES, reply_to
from samkit.nodes.editor.text import parse_editor
from samkit.nodes.load_masks import LoadMasks
from samkit.sam import SAMError
from samkit.sam.datasets.read import open_data_set
from samkit.utils.patches import encode_runs, paint_over
from test_correct import CAT, CUP, DOG, FORMS, MOVED, SIZE, content, made


@pytest.fixture
def place(tmp_path, monkeypatch):
    install(monkeypatch, FakeComfyUI(tmp_path))
    (tmp_path / "input").mkdir(exist_ok=True)
    return tmp_path / "input" / "set"


def masks_in(text):
    """The masks that the editor paints for a text: {name: mask}."""
    return {one.name: paint_over(np.zeros(SIZE, bool), one.paint) for one in parse_editor(text).objects}


def patch(mask):
    return {"x": 0, "y": 0, "width": mask.shape[1], "height": mask.shape[0], "runs": encode_runs(mask)}


@pytest.mark.parametrize("form", FORMS)
def test_masks_become_objects_and_what_is_accepted_is_in_the_data_set(form, place):
    made(form, place)
    names = open_data_set(place).names
    index = names.index("day 1/b.png")
    found = opened({"path": "set", "index": index})
    assert (found["count"], found["name"]) == (len(names), "day 1/b.png") and json.dumps(found)
    assert found["image"] == {"filename": "b.png", "subfolder": "set/images/day 1", "type": "input"}
    labels = ["1", "2", "3"] if form == "index PNG" else ["cat", "dog", "cup"]
    masks = masks_in(found["text"])
    assert list(masks) == labels
    assert all((masks[label] == mask).all() for label, mask in zip(labels, (CAT, DOG, CUP), strict=True))
    before = content(place)
    same = [{"name": one["name"], "mask": one["paint"][0]} for one in found["text"]["objects"]]
    assert accepted({"path": "set", "index": index, "stamp": found["stamp"], "objects": same}) == {"changed": 0}
    assert content(place) == before
    new = [same[1], {"name": labels[0], "mask": patch(MOVED)}]
    assert accepted({"path": "set", "index": index, "stamp": found["stamp"], "objects": new}) == {"changed": 2}
    masks = masks_in(opened({"path": "set", "index": index})["text"])
    assert sorted(masks) == labels[:2] and (masks[labels[0]] == MOVED).all() and (masks[labels[1]] == DOG).all()


def test_an_image_without_objects_and_images_elsewhere(place):
    made("COCO RLE", place)
    (place / "images").rename(place.parent / "photos")
    index = open_data_set(place, place.parent / "photos").names.index("c.png")
    found = opened({"path": "set/annotations.json", "image_folder": "photos", "index": index})
    assert found["text"] == {} and found["image"] == {"filename": "c.png", "subfolder": "photos", "type": "input"}
    body = {"path": "set/annotations.json", "image_folder": "photos", "index": index, "stamp": found["stamp"]}
    assert accepted({**body, "objects": [{"name": "größe", "mask": patch(CAT)}]}) == {"changed": 1}


def test_what_was_changed_meanwhile_is_refused(place):
    made("COCO RLE", place)
    first = opened({"path": "set", "index": 0})
    body = {"path": "set", "index": 0, "stamp": first["stamp"], "objects": [{"name": "dog", "mask": patch(CAT)}]}
    assert accepted(body) == {"changed": 2}
    before = content(place)
    with pytest.raises(RefusedError, match="has been changed in the data set since it was opened") as refused:
        accepted(body)
    assert refused.value.status == 409 and content(place) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "gone"}, "there is no such file or folder"),
        ({"path": "../secret"}, "there is no such file or folder"),
        ({"path": "/etc"}, "there is no such file or folder"),
        ({"path": 5}, "path must be text"),
        ({"index": 3}, "index is 3, but set has 3 images"),
        ({"index": -1}, "index is -1"),
        ({"index": True}, "index is True"),
        ({"more": 1}, "unknown key 'more'"),
        ({"image_folder": "../secret"}, "image_folder is '../secret'"),
        ({"objects": {}}, "objects is a dict: it must be a list"),
        ({"objects": [5]}, "is not a JSON object"),
        ({"objects": [{"name": "a", "mask": {"x": 0}}]}, "is not a patch"),
        ({"objects": [{"mask": None, "name": "a"}]}, "is not a patch"),
        ({"objects": [{"name": "", "mask": None}]}, "is not a patch"),
        ({"stamp": None}, "stamp"),
    ],
)
def test_other_requests_are_refused_and_nothing_is_written(change, message, place):
    made("COCO RLE", place)
    made("COCO RLE", place.parent.parent / "secret")
    body = {"path": "set", "index": 0, "stamp": opened({"path": "set", "index": 0})["stamp"], "objects": []}
    before = content(place.parent.parent)
    with pytest.raises(SAMError, match=message):
        accepted({**body, **change})
    if not {"objects", "stamp"} & change.keys():
        with pytest.raises(SAMError, match=message):
            opened({"path": "set", "index": 0, **change})
    after = content(place.parent.parent)
    assert {name: data for name, data in after.items() if not name.endswith(".lock")} == before


@pytest.mark.parametrize("form", FORMS)
def test_the_images_may_be_in_the_other_folder(form, place, tmp_path):
    """The annotations in `input`, the images in `output`."""
    made(form, place)
    photos = tmp_path / "output" / "photos"
    shutil.copytree(place / "images", photos)
    index = open_data_set(place, photos).names.index("day 1/b.png")
    found = opened({"path": "set", "image_folder": "photos [output]", "index": index})
    assert found["image"] == {"filename": "b.png", "subfolder": "photos/day 1", "type": "output"}
    assert len(found["text"]["objects"]) == 3


LINKS = {
    "COCO RLE": "annotations.json",
    "YOLO": "labels",
    "YOLO classes": "classes.txt",
    "labelme": "images/day 1/b.json",
    "CVAT": "annotations.xml",
    "Label Studio": "tasks.json",
    "PNG": "manifest.json",
    "index PNG": "masks",
}


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
@pytest.mark.parametrize("name", LINKS)
def test_annotations_behind_a_link_out_of_the_folder_are_neither_read_nor_written(name, place, tmp_path):
    made(name.removesuffix(" classes"), place)
    linked, secret = place / LINKS[name], tmp_path / "secret" / "of others"
    names = list(open_data_set(place).names)
    index = names.index("day 1/b.png")
    stamp = opened({"path": "set", "index": index})["stamp"]
    secret.parent.mkdir()
    shutil.move(linked, secret)
    linked.symlink_to(secret)
    before = content(secret.parent)
    assert open_data_set(place).read(index).labeled.objects  # the command reads it
    body = {"path": "set", "index": index}
    with pytest.raises(SAMError, match="a link leads out of"):
        opened(body)
    with pytest.raises(SAMError, match="a link leads out of"):
        accepted({**body, "stamp": stamp, "objects": []})
    with pytest.raises(SAMError, match="a link leads out of"):
        LoadMasks().execute("set", count=0)
    assert content(secret.parent) == before


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_images_behind_a_link_out_of_the_folder_are_not_opened(place, tmp_path):
    made("COCO RLE", place)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "secret.png")
    (place / "images" / "a.png").unlink()
    (place / "images" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SAMError, match="there is no image"):
        opened({"path": "set", "index": 0})


def test_the_routes_answer_with_their_status(place):
    made("YOLO", place)

    def post(path, body):
        reply = asyncio.run(reply_to(ROUTES[path], None, "application/json", json.dumps(body).encode()))
        return reply.status, json.loads(reply.body)

    status, found = post("/samkit/data_set", {"path": "set", "index": 0})
    assert status == 200 and found["form"] == "YOLO"
    body = {"path": "set", "index": 0, "stamp": found["stamp"], "objects": []}
    assert post("/samkit/accept", body) == (200, {"changed": 1})
    assert post("/samkit/accept", body)[0] == 409
    stamp = post("/samkit/data_set", {"path": "set", "index": 0})[1]["stamp"]
    status, said = post("/samkit/accept", {**body, "stamp": stamp, "objects": [{"name": "bird", "mask": patch(CAT)}]})
    assert status == 400 and "has no class 'bird'" in said["error"]

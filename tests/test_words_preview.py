"""Words in the editor, without a browser: the boxes are SAM Segment Text's, and what cannot be done is said."""

import asyncio
import json

import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from PIL import Image
from samkit.nodes.editor import routes
from samkit.nodes.editor.preview import Preview
from samkit.nodes.grounding import GroundingLoader, SegmentText
from test_grounding import folder, folder_copy  # noqa: F401  a fixture

GroundingDinoForObjectDetection = pytest.importorskip("transformers").GroundingDinoForObjectDetection

NAME = "grounding-dino-tiny"
TEXT = "a cat. dog"
SURE = 8.0


@pytest.fixture(scope="session")
def sure_folder(folder, tmp_path_factory):  # noqa: F811
    """A model whose random weights are sure of themselves, so that some boxes pass the thresholds."""
    target = folder_copy(folder, tmp_path_factory.mktemp("sure") / "sure")
    network = GroundingDinoForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        network.model.decoder.layer_norm.weight *= SURE
    network.save_pretrained(target)
    return target


@pytest.fixture
def comfy(monkeypatch, tmp_path, sure_folder):
    (tmp_path / "input").mkdir()
    frames = [Image.fromarray(make_image(60, 80, seed)) for seed in range(2)]
    frames[0].save(tmp_path / "input" / "a.png", save_all=True, append_images=frames[1:])
    folder_copy(sure_folder, tmp_path / "models" / "grounding-dino" / NAME)
    return install(monkeypatch, FakeComfyUI(tmp_path))


def body_of(**others):
    return {"image": {"filename": "a.png"}, "grounding": {"model_name": NAME}, "text": TEXT, "editor": "one", **others}


def find(body):
    async def follow():
        preview = Preview()
        for _ in range(400):
            made = await routes.reply_to(routes.find_words, preview, "application/json", json.dumps(body).encode())
            if made.status != 202:
                return made.status, json.loads(made.body)
        raise AssertionError("it never came")

    return asyncio.run(follow())


def test_the_boxes_are_those_of_segment_text(comfy, tiny_model):
    (grounding,), seen = GroundingLoader().execute(NAME), 0
    for frame in (0, 1):
        status, found = find(body_of(image={"filename": "a.png", "frame": frame}))
        assert status == 200
        image = as_image(make_image(60, 80, frame))
        _, bboxes, _, labels, *_ = SegmentText().execute(tiny_model, grounding, image, TEXT)
        assert found["boxes"] == bboxes[0] and [box["label"] for box in found["boxes"]] == labels[: len(bboxes[0])]
        seen += len(bboxes[0])
    assert seen, "random weights of some version of transformers are sure in one frame only"


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"grounding": None}, 400, "grounding is missing"),
        ({"grounding": {"model_name": "../secret"}}, 400, "grounding.model_name is '../secret'"),
        ({"grounding": {"model_name": NAME, "identity": "x"}}, 400, "unknown key 'identity'"),
        ({"grounding": {"model_name": "mine"}}, 404, "there is no complete model mine in models/grounding-dino"),
        (
            {"grounding": {"model_name": "grounding-dino-base"}},
            404,
            "grounding-dino-base (933 MB) is not on this machine yet. A run",
        ),
        ({"text": ""}, 400, "text must be text of 1 to 512"),
        ({"text": " . ,"}, 400, "name at least one object"),
        ({"text": "x" * 513}, 400, "text must be text of 1 to 512"),
        ({"image": {"filename": "none.png"}}, 404, "there is no image none.png"),
        ({"image": {"filename": "a.png", "frame": 5}}, 404, "there is no frame 5"),
        ({"box_threshold": 0.1}, 400, "unknown key 'box_threshold'"),
    ],
)
def test_what_cannot_be_done_is_said(comfy, change, status, named):
    seen, said = find(body_of(**change))
    assert seen == status and named in said["error"]
    assert said.get("missing") == ("grounding-dino-base" if "not on this machine" in named else None)

"""The protocol is enough: a family of thirty lines goes through every task, the editor and its preview."""

import asyncio
import json

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from PIL import Image
from samkit.nodes.automask import AutoMask
from samkit.nodes.editor.preview import Preview, parse_question
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.prompt_editor import PromptEditor
from samkit.sam import SAMError, Segmenter, as_embedding, as_segmenter, encode
from samkit.sam.geometry import Geometry
from samkit.sam.models.base import Decoded
from torch import nn


class BoxModel:
    """Answers a box with the box, and points with the boxes of three sizes around them; its input is a squashed square."""

    family, precision, mask_threshold = "Boxes", "fp32", 0.0
    map_shapes = {"image": (3, 16, 16), "mean": (1, 1, 1)}
    encoder_identity = decoder_identity = "boxes"
    encoded = 0

    def __init__(self):
        self.network = nn.Module()

    def geometry(self, original):
        return Geometry(original, (64, 64), 64, (64, 64), False)

    def features(self, pixels, dtype):
        self.encoded += len(pixels)
        small = nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 16)
        return {"image": small, "mean": small.mean((1, 2, 3), keepdim=True)}

    def decoder_parts(self):
        raise SAMError("Boxes cannot be trained.")

    def decode(self, features, prompts, wanted):
        boxes = prompts.boxes
        if boxes is None:
            boxes = prompts.points[0].mean(1).repeat(1, 2) + torch.tensor([-8.0, -8, 8, 8])
        sizes = torch.tensor([0.5, 1, 2] if wanted.several else [1.0])[:, None] * torch.tensor([1.0, 1, -1, -1])
        x1, y1, x2, y2 = (boxes[:, None] + 4 * (1 - sizes.abs()) * sizes.sign())[..., None, None].unbind(2)
        y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
        logits = torch.where((x > x1) & (x < x2) & (y > y1) & (y < y2), 10.0, -10.0)
        scores = torch.tensor([0.92, 0.95, 0.9] if wanted.several else [0.95]).expand(len(boxes), -1)
        return Decoded(logits, scores, torch.arange(len(boxes)))


@pytest.fixture
def model():
    return BoxModel()


def test_it_has_what_the_protocol_asks_for(model):
    wanted = [name for name in vars(Segmenter) if not name.startswith("_")]
    assert len(wanted) >= 9 and all(hasattr(model, name) for name in wanted)


def test_it_embeds_once_and_predicts(model):
    image = as_image(make_image(60, 80), make_image(60, 80, 1))
    (embedding,) = GetSAMEmbedding().get_sam_embedding(image, model)
    assert (
        embedding.shape == (2, 3, 16, 16) and embedding.maps["mean"].shape == (2, 1, 1, 1) and embedding.input_size == (64, 64)
    )
    masks, bboxes, scores, logits = PredictMask().execute(model, embedding, bboxes=(20, 15, 40, 45))
    assert (
        masks.shape == (2, 60, 80) and masks[:, 17:43, 22:38].all() and not masks[:, :13].any() and not masks[:, :, 42:].any()
    )
    assert scores == pytest.approx([0.95, 0.95]) and logits.shape == (2, 1, 64, 64) and abs(bboxes[0][0]["x"] - 20) <= 1
    again = Segment().execute(model, image, bboxes=(20, 15, 40, 45))
    assert torch.equal(again[0], masks) and model.encoded == 2
    every = Segment().execute(model, image[:1], positive_coords='[{"x": 40, "y": 30}]', candidate="all")
    assert len(every[0]) == 3 and every[2] == pytest.approx([0.95, 0.92, 0.9])


def test_it_segments_everything(model):
    masks, bboxes, scores, _, _ = AutoMask().execute(model, as_image(make_image(60, 80)), points_per_side=3)
    assert 4 <= len(masks) == len(bboxes[0]) == len(scores) <= 27 and masks.any(0).float().mean() > 0.3


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    for name in ("input", "temp", "models"):
        (tmp_path / name).mkdir()
    return install(monkeypatch, FakeComfyUI(tmp_path))


def test_it_answers_the_editor_and_the_preview_alike(model, comfy):
    image = make_image(60, 80)
    Image.fromarray(image).save(comfy.root / "input" / "one.png")
    marks = {"marks": [{"x": 20, "y": 15, "width": 20, "height": 30}]}
    shown = PromptEditor().execute(as_image(image), json.dumps(marks), model)
    masks, (identity,) = shown["result"][3], shown["ui"]["samkit_model"]
    body = {"image": {"filename": "one.png"}, "model": {"identity": identity}, "prompts": marks, "editor": "a", "sequence": 1}
    answer = asyncio.run(Preview().ask(parse_question(body)))
    assert answer.area == masks.sum() == masks[0, 15:45, 20:40].sum() > 500


def test_another_packs_model_from_python_is_told_apart(tiny_sam):
    """The sockets of nodes wrap it; a script does so itself."""
    for run in (
        lambda: encode(tiny_sam, [np.zeros((4, 4, 3), np.uint8)]),
        lambda: as_embedding(np.zeros((1, 32, 8, 8)), tiny_sam),
    ):
        with pytest.raises(SAMError, match=r"model is a Sam: pass as_segmenter\(model\)"):
            run()
    assert encode(as_segmenter(tiny_sam), [np.zeros((4, 4, 3), np.uint8)]).shape == (1, 32, 8, 8)


def test_what_is_no_model_is_refused_by_name():
    for wrong in (None, "sam_vit_b", {"model": 1}, torch.nn.Linear(2, 2)):
        with pytest.raises(SAMError, match=f"sam_model is a {type(wrong).__name__}"):
            GetSAMEmbedding().get_sam_embedding(sam_model=wrong, image=torch.zeros(1, 4, 4, 3))

"""The nodes against segment_anything.SamPredictor, with the same seeded random weights at full size."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from reference import VIT_B, VIT_H, random_sam
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask
from samkit.sam import load_model
from samkit.sam.kernels.linear import AtenLinear, OneDNNLinear
from samkit.sam.models.features import cache as shared
from samkit.sam.tasks.embed import cache
from segment_anything import SamPredictor
from test_fast_encoder import has_onednn

LOGITS_ATOL = 1e-3
MASKS_EQUAL = 0.9999


def coords(points):
    return json.dumps([{"x": x, "y": y} for x, y in points])


def prompts_for(width, height):
    """Node inputs and what SamPredictor.predict takes for the same, by name."""

    def at(x, y):
        return x * width, y * height

    positive, negative = [at(0.31, 0.42), at(0.52, 0.55)], [at(0.83, 0.2)]
    box = (*at(0.2, 0.25), *at(0.7, 0.8))
    both = np.array(positive + negative), np.array([1, 1, 0])
    corners = {"x": box[0], "y": box[1], "width": box[2] - box[0], "height": box[3] - box[1]}
    return {
        "one point": (
            {"positive_coords": coords(positive[:1])},
            {"point_coords": both[0][:1], "point_labels": both[1][:1]},
        ),
        "points of both signs": (
            {"positive_coords": coords(positive), "negative_coords": coords(negative)},
            {"point_coords": both[0], "point_labels": both[1]},
        ),
        "only a negative point": (
            {"negative_coords": coords(negative)},
            {"point_coords": both[0][2:], "point_labels": both[1][2:]},
        ),
        "box": ({"bboxes": corners}, {"box": np.array(box)}),
        "box as a tuple, and points": (
            {"bboxes": box, "positive_coords": coords(positive), "negative_coords": coords(negative)},
            {"box": np.array(box), "point_coords": both[0], "point_labels": both[1]},
        ),
    }


ENCODER, MODEL = (sys.modules[f"samkit.sam.{name}"] for name in ("kernels.encoder", "models.sam"))
FAST = {"ATen": AtenLinear, "oneDNN": OneDNNLinear}
PATHS = {**FAST, "stock": None}


def check_image(sam, model, width, height, paths=PATHS):
    """On every path that the runtime can take."""
    image = make_image(height, width)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    for name, kind in paths.items():
        if kind is OneDNNLinear and not has_onednn():
            continue
        with pytest.MonkeyPatch.context() as patch:
            for module in (ENCODER, MODEL):
                patch.setattr(module, "cpu_linear", lambda dtype, kind=kind: kind)
            if kind is None:
                patch.setattr(ENCODER, "supports", lambda encoder: False)
                patch.setattr(MODEL, "supports_decoder", lambda network: False)
            cache.clear()
            shared.clear()
            check_prompts(predictor, model, image, name)


def check_prompts(predictor, model, image, path):
    height, width = image.shape[:2]
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(image), model)
    np.testing.assert_allclose(embedding, predictor.features.numpy(), atol=1e-4, err_msg=path)
    for name, (inputs, reference) in prompts_for(width, height).items():
        for multimask in (True, False):
            logits = check_prompt(predictor, model, embedding, inputs, reference, multimask, f"{path}: {name}")
            again = {**reference, "mask_input": logits[0].numpy()}
            check_prompt(
                predictor, model, embedding, {**inputs, "logits": logits[:1]}, again, multimask, f"{path}: {name} + logits"
            )


def check_prompt(predictor, model, embedding, inputs, reference, multimask, name):
    expected = predictor.predict(**reference, multimask_output=multimask)
    order = np.argsort(-expected[1], kind="stable")
    masks, scores, logits = (part[order] for part in expected)
    ours, _, our_scores, our_logits = PredictMask().execute(
        model, embedding, **inputs, candidate="all", multimask="on" if multimask else "off"
    )
    assert len(ours) == (3 if multimask else 1), name
    np.testing.assert_allclose(our_logits[:, 0], logits, atol=LOGITS_ATOL, err_msg=name)
    np.testing.assert_allclose(our_scores, scores, atol=LOGITS_ATOL, err_msg=name)
    assert (ours.numpy().astype(bool) == masks).mean() >= MASKS_EQUAL, name
    assert masks.std() > 0.05, f"{name}: a trivial mask compares nothing"
    return our_logits


def saved_and_loaded(sam, folder):
    torch.save(sam.state_dict(), folder / "told by its weights.pth")
    return load_model(folder / "told by its weights.pth", "fp32")


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory):
    sam = random_sam(**VIT_B)
    return sam, saved_and_loaded(sam, tmp_path_factory.mktemp("vit_b"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "height"),
    [
        (640, 480),
        pytest.param(333, 1000, marks=pytest.mark.exhaustive),
        pytest.param(1024, 1024, marks=pytest.mark.exhaustive),
    ],
)
def test_vit_b_equals_the_predictor(vit_b, width, height):
    check_image(*vit_b, width, height, FAST)


@pytest.mark.slow
@pytest.mark.exhaustive  # minutes; ViT-B is in the suite
def test_vit_h_equals_the_predictor(tmp_path):
    sam = random_sam(**VIT_H)
    check_image(sam, saved_and_loaded(sam, tmp_path), 640, 480, FAST)


@pytest.mark.parametrize(("width", "height"), [(80, 60), (33, 100), (128, 128), (250, 90), (9, 200), (7, 5)])
def test_a_small_sam_equals_the_predictor(tiny_sam, tiny_model, width, height):
    check_image(tiny_sam, tiny_model, width, height)


def test_many_boxes_equal_the_predictor_one_by_one(tiny_sam, tiny_model, photo):
    boxes = [(5, 5, 30, 40), (20, 10, 70, 50), (50, 30, 79, 59), (1, 1, 78, 20)]
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(photo)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(photo), tiny_model)
    masks, _, scores, logits = PredictMask().execute(tiny_model, embedding, bboxes=boxes, individual_masks=True)
    for index, box in enumerate(boxes):
        mask, score, low = predictor.predict(box=np.array(box), multimask_output=False)
        np.testing.assert_allclose(logits[index], low, atol=LOGITS_ATOL)
        assert scores[index] == pytest.approx(score[0], abs=LOGITS_ATOL)
        assert (masks[index].numpy() == mask[0]).mean() >= MASKS_EQUAL

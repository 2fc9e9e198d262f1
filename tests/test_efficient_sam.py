"""EfficientSAM: the answers of the reference's own code (fixtures/make_efficient_sam.py), nodes, files and tasks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from safetensors.torch import save_file
from samkit.nodes.predict import Segment
from samkit.sam import Prompt, SAMError, decode, encode, load_model
from samkit.sam.kernels import self_test
from samkit.sam.models.base import Wanted
from samkit.sam.models.features import Features
from samkit.sam.prompts import PromptTensors
from samkit.sam.tasks.everything import preset_options
from samkit.sam.tasks.predict import PredictOptions
from samkit.sam.weights.registry import KNOWN
from samkit.utils.images import resize_pil
from segment_anything import SamPredictor
from test_sam2 import decoded
from test_teach import check_taught
from test_train_decoder import check_trained
from torch.nn import functional as F

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.append(str(FIXTURES))
from make_efficient_sam import IN_SIZES, PROMPTS, SIDE, SIZES, STEP, image, weights  # noqa: E402

CPU = torch.device("cpu")


def random_efficient_sam(path):
    """A small model with the fixture's shapes and weights, loaded from a file that is written to `path`."""
    shapes = json.loads(str(np.load(FIXTURES / "efficient_sam" / "expected.npz")["shapes"]))
    torch.save({"model": {name: torch.from_numpy(values) for name, values in weights(shapes).items()}}, path)
    return load_model(path, "fp32")


@pytest.fixture(scope="module")
def expected():
    return np.load(FIXTURES / "efficient_sam" / "expected.npz")


@pytest.fixture(scope="module")
def state(expected):
    """The reference's state dict."""
    return {name: torch.from_numpy(values) for name, values in weights(json.loads(str(expected["shapes"]))).items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """In the form of the published files."""
    return random_efficient_sam(tmp_path_factory.mktemp("efficient") / "efficient.pt")


@pytest.fixture(scope="module")
def embedding(model):
    return encode(model, [image()])


def prompt_of(name):
    """The fixture's points of one object: points and a box, as this pack has them."""
    objects, labels = PROMPTS[name]
    points, kinds = torch.tensor(objects), torch.tensor(labels)
    corners = kinds[0] >= 2
    box = points[:, corners].reshape(-1, 4) if corners.any() else None
    return PromptTensors((points[:, ~corners], kinds[:, ~corners]) if (~corners).any() else None, box, None)


def check(model, embedding, expected, name, kind):
    features = Features({"image": np.asarray(embedding)[0]}, "", CPU)
    found = model.decode(features, prompt_of(name), Wanted(kind == "several"))
    logits, scores = (torch.from_numpy(expected[f"{name}, {kind}, {part}"]) for part in ("logits", "scores"))
    assert logits.std() > 0.1, "trivial logits compare nothing"
    torch.testing.assert_close(found.logits[..., ::STEP, ::STEP], logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, scores, atol=1e-3, rtol=0)
    assert ((found.logits[..., ::STEP, ::STEP] > 0) == (logits > 0)).float().mean() >= 0.9999


def test_the_embedding_is_the_references(embedding, expected):
    np.testing.assert_allclose(np.asarray(embedding)[0][:, ::4, ::4], expected["embedding"], atol=1e-3)


@pytest.mark.parametrize("kind", ["several", "single"])
@pytest.mark.parametrize("name", PROMPTS)
def test_logits_and_scores_are_the_references(model, embedding, expected, name, kind):
    check(model, embedding, expected, name, kind)


def test_the_plain_forward_is_the_references_too(model, expected, monkeypatch):
    monkeypatch.setattr(self_test, "_KNOWN", ())
    monkeypatch.setattr(self_test, "_passes", lambda *_: False)
    plain = encode(model, [image()])
    np.testing.assert_allclose(np.asarray(plain)[0][:, ::4, ::4], expected["embedding"], atol=1e-3)
    for name in PROMPTS:
        check(model, plain, expected, name, "several")


@pytest.mark.parametrize("name", IN_SIZES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_images_of_other_sizes_give_what_the_reference_gives(model, expected, height, width, name):
    """Pillow stretches the image over the square, which the reference gets; prompts are in the image's pixels."""
    (points,), (labels,) = IN_SIZES[name]
    points, corners = np.array(points) * [width, height], np.array(labels) >= 2
    box = points[corners].reshape(-1) if corners.any() else None
    prompt = Prompt(points[~corners], np.array(labels, np.int32)[~corners], box)
    whole = encode(model, [image()[:height, :width]])
    found = decoded(model, whole, [prompt], True)
    logits, scores = (torch.from_numpy(expected[f"{height}x{width}, {name}, {part}"]) for part in ("logits", "scores"))
    assert logits.std() > 0.1, "trivial logits compare nothing"
    torch.testing.assert_close(found.logits[..., ::STEP, ::STEP], logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, scores, atol=1e-3, rtol=0)
    masks = decode(model, whole, [[prompt]], PredictOptions(candidate="all", multimask="on")).masks[0]
    full = F.interpolate(found.logits, (height, width), mode="bilinear", align_corners=False)[0]
    full = full[found.scores[0].argsort(descending=True, stable=True)] > 0
    assert (masks.bool() == full).float().mean() >= 0.9999


def test_masks_of_an_image_of_another_size(model):
    """The image is stretched over the square, as `EfficientSam.preprocess` does, and so are the prompts."""
    small, prompt = image()[:300, :200], Prompt(np.array([[120.0, 90.0]]), np.array([1]), np.array([20.0, 30.0, 150.0, 260.0]))
    scale = np.array([SIDE / 200, SIDE / 300])
    scaled = Prompt(prompt.points * scale, prompt.labels, prompt.box * np.tile(scale, 2))
    whole = resize_pil(small, (SIDE, SIDE))
    found = [decode(model, encode(model, [one]), [[asked]]) for one, asked in ((small, prompt), (whole, scaled))]
    torch.testing.assert_close(found[0].logits[0], found[1].logits[0], atol=1e-4, rtol=0)
    assert found[0].masks[0].shape == (1, 300, 200) and 0.01 < found[0].masks[0].float().mean() < 0.99


def test_more_points_than_it_was_trained_with_are_all_used(model, embedding):
    """The reference drops those after the sixth without a word."""
    features = Features({"image": np.asarray(embedding)[0]}, "", CPU)
    points = torch.rand(1, 8, 2, generator=torch.Generator().manual_seed(0)) * SIDE
    several = [
        model.decode(
            features, PromptTensors((points[:, :count], torch.ones(1, count, dtype=torch.int)), None, None), Wanted(True)
        )
        for count in (6, 8)
    ]
    assert not torch.allclose(several[0].logits, several[1].logits, atol=1e-2)


@pytest.mark.parametrize("points", [{}, {"positive_coords": '[{"x": 30, "y": 25}]'}])
def test_a_mask_prompt_is_refused(model, points):
    mask = torch.zeros(1, 60, 80)
    mask[:, 20:40, 20:50] = 1
    with pytest.raises(SAMError, match="EfficientSAM takes points and boxes, not masks or logits"):
        Segment().execute(model, as_image(make_image(60, 80)), mask_prompt=mask, **points)


def test_the_balanced_preset_is_the_references(model):
    assert preset_options("balanced", model).pred_iou_thresh == 0.7


def test_it_can_be_taught(model):
    check_taught(model)


def test_a_trained_decoder_answers_what_it_knows(model, tmp_path):
    check_trained(model, tmp_path)


def test_the_predictor_of_other_packs_gives_the_same_masks(model):
    small = image()[:300, :200]
    predictor = SamPredictor(model)
    predictor.set_image(small)
    masks, scores, _ = predictor.predict(np.array([[120.0, 90.0]]), np.array([1]), np.array([20, 30, 150, 260]))
    ours = model.sam_wrapper.predict(small, [(120.0, 90.0)], [1], [20, 30, 150, 260], -1e9)
    wanted = masks[np.argsort(-scores)]  # the predictor resizes twice
    assert np.mean(np.stack(ours) == wanted) > 0.99


# Files.


@pytest.mark.parametrize("form", ["flat", "safetensors", "prefixed"])
def test_all_forms_of_a_file_load_to_equal_weights(model, state, form, tmp_path):
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({f"sam.{name}": one for name, one in state.items()} if form == "prefixed" else state, path)
    found = load_model(path, "fp32")
    assert found.family == "EfficientSAM" and found.identity == model.identity


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("image_encoder.blocks.1.mlp.fc1.weight"), "blocks.1.mlp.fc1.weight"),
        (lambda state: state.pop("image_encoder.pos_embed"), "image_encoder.pos_embed"),
        (lambda state: state.update({"image_encoder.pos_embed": torch.ones(1, 12, 64)}), "image_encoder.pos_embed"),
        (
            lambda state: state.update({"image_encoder.patch_embed.proj.weight": torch.ones(64, 3, 8, 8)}),
            "patch_embed.proj.weight",
        ),
        (lambda state: state.update({"image_encoder.patch_embed.proj.weight": torch.ones(100, 3, 16, 16)}), "patch_embed.proj"),
        (lambda state: state.pop("mask_decoder.iou_token.weight"), "iou_token.weight"),
        (lambda state: state.update({"mask_decoder.new.weight": torch.ones(1)}), "sam_mask_decoder.new.weight"),
        (lambda state: state.update({"prompt_encoder.invalid_points.weight": torch.ones(1, 31)}), "invalid_points.weight"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(state, change, said, tmp_path):
    state = dict(state)
    change(state)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(SAMError, match=rf"x.pt is not a whole EfficientSAM checkpoint: .*{said}"):
        load_model(tmp_path / "x.pt")


def test_the_published_file_is_known():
    known = KNOWN["efficient_sam_vitt.pt"]
    assert (known.family, known.licence) == ("EfficientSAM-Ti", "Apache-2.0")

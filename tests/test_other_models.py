"""SAM models between packs: ours called as Impact Pack and WAS call theirs, theirs on our inputs; the contracts as fakes."""

import sys
import types
from collections import namedtuple

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from load_pack import inputs_of
from PIL import Image
from reference import content_id
from reference_hq import hugging_face_hq
from reference_sam2 import SMALL
from samkit import NODE_CLASS_MAPPINGS
from samkit.nodes.predict import Segment
from samkit.sam import SAMError, as_segmenter, load_model, recall, remember
from samkit.sam.models.families import load_model as load
from samkit.sam.tasks import embed
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, PromptEncoder, Sam
from test_sam2 import Pair, small_size  # noqa: F401  a fixture
from torch import nn

CLICK = '[{"x": 30, "y": 25}]'
PROMPTS = [
    ([(30, 25)], [1], None),
    ([(30.5, 25), (5, 50)], [1, 0], [10, 12, 54, 42]),
    ([(5, 50), (30, 25)], [0, 1], None),  # a negative one first
    ([], [], (10, 12, 54, 42)),
    ([(30, 25)], [1], np.array([-20.0, 12, 90, 42])),  # a box that reaches beyond the image
]


def impact_reference(sam, image, points, plabs, bbox, threshold):
    """Impact Pack's contract (core.SAMWrapper and sam_predict of 7.10.6 and 8) in other words, on the reference's predictor."""
    predictor = SamPredictor(sam)
    predictor.set_image(image, "RGB")
    masks, scores, _ = predictor.predict(
        np.array(points) if points else None, np.array(plabs) if plabs else None, None if bbox is None else np.array([bbox])
    )
    chosen = [mask for mask, score in zip(masks, scores, strict=True) if score >= threshold]
    return chosen or [masks[scores.argmax()]], scores


@pytest.mark.parametrize("prompt", PROMPTS, ids=["point", "all", "negative first", "box", "box beyond"])
def test_the_wrapper_answers_as_impacts_does(tiny_sam, tiny_model, photo, prompt):
    wrapper = tiny_model.sam_wrapper
    _, scores = impact_reference(tiny_sam, photo, *prompt, 0)
    middle = float(np.sort(scores)[1])
    counts = []
    for threshold in (-1.0, middle - 1e-4, 2.0):
        expected, _ = impact_reference(tiny_sam, photo, *prompt, threshold)
        wrapper.prepare_device()
        masks = wrapper.predict(photo, *prompt, threshold)
        wrapper.release_device()
        assert all(mask.dtype == bool and mask.shape == photo.shape[:2] for mask in masks)
        assert sorted(mask.tobytes() for mask in masks) == sorted(mask.tobytes() for mask in expected)
        counts.append(len(masks))
    assert counts == [3, 2, 1] and any(mask.any() for mask in expected)


def test_the_wrapper_encodes_an_image_once_and_shares_the_cache(tiny_model, photo, monkeypatch):
    runs, run = [], embed._run_encoder
    monkeypatch.setattr(
        embed,
        "_run_encoder",
        lambda model, frame_of, names, *rest: runs.append(len(names)) or run(model, frame_of, names, *rest),
    )
    for points, plabs, bbox in PROMPTS:
        tiny_model.sam_wrapper.predict(photo, points, plabs, bbox, 0.9)
    Segment().execute(tiny_model, as_image(photo), positive_coords=CLICK)
    with_alpha = np.dstack([photo, np.full(photo.shape[:2], 7, np.uint8)])
    tiny_model.sam_wrapper.predict(with_alpha, [(30, 25)], [1], None, 0.9)
    assert runs == [1]


def test_the_wrapper_refuses_labels_that_are_not_one_per_point(tiny_model, photo):
    with pytest.raises(SAMError, match="points: 2; labels: 1"):
        tiny_model.sam_wrapper.predict(photo, [(1, 1), (2, 2)], [1], None, 0.5)
    assert tiny_model.sam_wrapper.predict(photo, [], [], None, 0.5) == []


@pytest.fixture(scope="module")
def hq_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hq")
    hugging_face_hq().save_pretrained(folder)
    return folder


@pytest.fixture
def hq_model(hq_folder):
    return load_model(hq_folder / "model.safetensors", "fp32")


@pytest.fixture(scope="module")
def sam2_model(tmp_path_factory, small_size):  # noqa: F811
    return Pair(tmp_path_factory.mktemp("sam2"), SMALL, 128, 32).ours


@pytest.mark.parametrize("family", ["tiny_model", "hq_model", "sam2_model"])
def test_every_family_has_the_wrapper_and_it_finds_what_the_node_finds(request, family, photo):
    model = request.getfixturevalue(family)
    node = Segment().execute(model, as_image(photo), positive_coords=CLICK, candidate="all", multimask="on")
    masks, best, scores = node[0].numpy() > 0, node[0].numpy()[0] > 0, node[2]
    found = model.sam_wrapper.predict(photo, [(30, 25)], [1], None, -100.0)
    assert np.array_equal(np.stack(found), masks) and scores == sorted(scores, reverse=True) and masks.any()
    assert np.array_equal(model.sam_wrapper.predict(photo, [(30, 25)], [1], None, 2.0), [best])


def test_a_wrapper_keeps_no_model_alive(tiny_sam, tmp_path, photo):
    import weakref

    torch.save(tiny_sam.state_dict(), tmp_path / "tiny.pth")
    model = load(tmp_path / "tiny.pth")
    model.sam_wrapper.predict(photo, [(30, 25)], [1], None, 0.0)
    gone = weakref.ref(model)
    del model
    assert gone() is None


def test_was_sam_image_mask_runs_on_our_model(tiny_sam, tiny_model, photo):
    """WAS Node Suite 3: `.to(device)`, a SamPredictor, one mask, `.to("cpu")`."""

    def sam_image_mask(model):
        model.to(device=torch.device("cpu"))
        predictor = SamPredictor(model)
        predictor.set_image(photo)
        points, labels = np.array([[30, 25], [5, 50]]), np.array([1, 0])
        masks, _, _ = predictor.predict(point_coords=points, point_labels=labels, multimask_output=False)
        model.to(device="cpu")
        return masks

    assert np.array_equal(sam_image_mask(tiny_model), sam_image_mask(tiny_sam))


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("box", [None, np.array([8, 6, 50, 44])])
def test_a_predictor_of_segment_anything_gives_what_the_node_gives_on_sam_2(sam2_model, several, box):
    """On an image of the model's own size nothing is resized, so the masks are the same."""
    side = sam2_model.side
    image = make_image(side, side)
    predictor = SamPredictor(sam2_model)
    predictor.set_image(image)
    points, labels = np.array([[30, 25], [5, 50]]), np.array([1, 0])
    masks, scores, logits = predictor.predict(points, labels, box, multimask_output=several)
    node = Segment().execute(
        sam2_model,
        as_image(image),
        positive_coords='[{"x": 30, "y": 25}]',
        negative_coords='[{"x": 5, "y": 50}]',
        bboxes=None if box is None else [box.tolist()],
        candidate="all" if several else "best",
        multimask="on" if several else "off",
    )
    order = np.argsort(-scores, kind="stable")  # the node's come best first
    assert np.array_equal(masks[order], node[0].numpy() > 0) and np.allclose(scores[order], node[2], atol=1e-5)
    again, *_ = predictor.predict(points, labels, box, mask_input=logits[:1], multimask_output=several)
    assert again.shape == masks.shape and not np.array_equal(again, masks), "a mask prompt counts"


def test_a_predictor_of_segment_anything_stretches_prompts_for_sam_2(sam2_model):
    """The same image, stretched by hand: marks in its pixels are those of the image that is not square."""
    side = sam2_model.side
    tall = make_image(side, side // 2)
    wide = np.array(Image.fromarray(tall).resize((side, side), Image.Resampling.BILINEAR))
    low = []
    for image, scale in ((tall, 1), (wide, 2)):
        predictor = SamPredictor(sam2_model)
        predictor.set_image(image)
        points, box = np.array([[30 * scale, 25]]), np.array([8 * scale, 6, 50 * scale, 44])
        masks, _, logits = predictor.predict(points, np.array([1]), box)
        assert masks.shape[1:] == image.shape[:2]
        low.append(logits)
    distance = np.abs(low[0] - low[1]).mean() / low[0].std()
    assert distance < 0.05


def test_sockets_connect_art_ventures_and_impacts_types():
    """Types are compared as ComfyUI does: one in common is enough."""
    found = 0
    for node in NODE_CLASS_MAPPINGS.values():
        inputs = [kind for kind, *_ in inputs_of(node).values() if isinstance(kind, str)]
        sockets = [kind for kind in (*inputs, *node.RETURN_TYPES) if "SAM_MODEL" in kind]
        assert all({"AV_SAM_MODEL", "SAM_MODEL"} == set(kind.split(",")) for kind in sockets), node
        found += len(sockets)
    assert found > 12


# Theirs on our inputs.


class TupleEncoder(ImageEncoderViT):
    """storyicon's and sam-hq's: the embedding, and what each global block gave."""

    def forward(self, x):
        return super().forward(x), []


class TheirHQDecoder(nn.Module):
    """sam-hq's layers under its names, with a forward that needs more than SAM's."""

    def __init__(self, ours):
        super().__init__()
        for name, part in ours.named_children():
            self.add_module(name, part)
        self.num_mask_tokens = ours.num_mask_tokens


def their_hq(ours):
    encoder = TupleEncoder(
        img_size=128, patch_size=16, embed_dim=32, depth=4, num_heads=2, out_chans=32, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1, 3), norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    prompts = PromptEncoder(embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16)
    sam = Sam(encoder, prompts, TheirHQDecoder(ours.mask_decoder))
    sam.load_state_dict(ours.state_dict(), strict=True)
    sam.model_name = "sam_hq_vit_b.pth"
    return sam.eval()


Impact = namedtuple("SAMWrapper", ["model"])


def in_wrapper(sam):
    """Impact Pack's model: the Sam itself, with the wrapper on it."""
    sam.sam_wrapper = Impact(sam)
    return sam


@pytest.fixture
def hq_pair(hq_model):
    return their_hq(hq_model), hq_model


def masks_of(model, photo):
    return Segment().execute(model, as_image(photo), positive_coords=CLICK, candidate="all", multimask="on")[0]


def test_a_foreign_sam_hq_runs_on_our_code(hq_pair, photo):
    theirs, ours = hq_pair
    expected = masks_of(ours, photo)
    assert torch.equal(masks_of(theirs, photo), expected) and expected.any()
    assert torch.equal(masks_of(in_wrapper(theirs), photo), expected)
    assert as_segmenter(theirs) is as_segmenter(theirs) and as_segmenter(theirs).family == "SAM-HQ"
    assert content_id(theirs) == content_id(ours)
    assert as_segmenter(recall(remember(as_segmenter(theirs)))) is as_segmenter(theirs)


def test_impacts_sam_is_the_sam_that_it_wraps(tiny_sam, photo):
    expected = masks_of(tiny_sam, photo)
    wrapped = types.SimpleNamespace(sam_wrapper=Impact(tiny_sam))
    assert torch.equal(masks_of(wrapped, photo), expected)
    assert recall(remember(as_segmenter(wrapped))) is tiny_sam


class SAM2ImagePredictor:
    """sam2's, of which only the attribute counts."""

    def __init__(self, model):
        self.model = model


class SAM2Base(nn.Module):
    """Meta's layers under Meta's names, as the packs for SAM 2 have them; the memory is there and of no use for an image."""

    def __init__(self, ours):
        super().__init__()
        for name, part in ours.named_children():
            self.add_module(name, part)
        self.no_mem_embed = ours.no_mem_embed
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(7, 1, 1, 64))


def test_a_foreign_sam_2_in_a_dict_with_a_predictor_runs(sam2_model, photo):
    kijai = {"model": SAM2ImagePredictor(SAM2Base(sam2_model)), "dtype": torch.float16, "segmentor": "single_image"}
    assert torch.equal(masks_of(kijai, photo), masks_of(sam2_model, photo))
    assert recall(remember(as_segmenter(kijai))) is as_segmenter(kijai)


def from_a_pack(monkeypatch, folder, **contents):
    """A class as one that ComfyUI has imported from a folder of custom_nodes."""
    name = f"/ComfyUI/custom_nodes/{folder}"
    module = types.ModuleType(name)
    module.__file__ = f"{name}/modules/core.py"
    monkeypatch.setitem(sys.modules, name, module)
    return type("SAM2Wrapper", (), {"__module__": name, **contents})


def test_what_is_not_a_model_is_refused_by_name(monkeypatch, photo):
    wrapper = from_a_pack(monkeypatch, "ComfyUI-Impact-Pack", image_predictor=None)()
    wrapper.image_predictor, wrapper.modelname = None, "sam2.1_hiera_tiny.pt"  # as Impact Pack 8 has it before the first run
    for model, words in (
        (wrapper, "a SAM2Wrapper of ComfyUI-Impact-Pack"),
        ({"model": wrapper, "version": "2.1"}, "a dict with model, version of ComfyUI-Impact-Pack"),
        ({}, "a dict with nothing in it"),
        ("sam_vit_b", "a str"),
        (nn.Linear(2, 2), "a Linear, which is not supported: Linear is not a SAM checkpoint|a Linear"),
        (None, "a NoneType"),
    ):
        with pytest.raises(SAMError, match=f"sam_model is ({words})") as said:
            masks_of(model, photo)
        assert "Load SAM Model" in str(said.value) or "not supported" in str(said.value)


def test_a_sam_with_an_encoder_that_nobody_knows_still_runs(tiny_sam, photo):
    class Other(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.trunk, self.img_size = inner, inner.img_size

        def forward(self, x):
            return self.trunk(x)

    other = Sam(Other(tiny_sam.image_encoder), tiny_sam.prompt_encoder, tiny_sam.mask_decoder)
    assert torch.equal(masks_of(other, photo), masks_of(tiny_sam, photo))

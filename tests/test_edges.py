"""Images, masks and marks at the edge of what is usual: few pixels, other ranges, nothing found, scores that are no numbers."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from PIL import Image
from samkit.nodes.automask import AutoMask
from samkit.nodes.boxes import ConvertBoxes
from samkit.nodes.grounding import SegmentText, TextToBoxes
from samkit.nodes.masks import SelectMasks
from samkit.nodes.matte import Matte
from samkit.nodes.personalize import Personalize
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.prompt_editor import PromptEditor
from samkit.nodes.save_masks import SaveMasks
from samkit.nodes.segs import MasksToSEGS
from samkit.nodes.teach import Teach
from samkit.sam import SAMError, encode, find_boxes, normalise_text
from samkit.sam.tasks import personalize as personalizing
from samkit.sam.tasks.words import _cleaned, _detectable
from samkit.utils.images import bounded, image_to_frames, resize_masks
from test_grounding import EVERYTHING, TEXT, folder, grounding  # noqa: F401  fixtures
from test_matte import folder as matte_folder  # noqa: F401
from test_matte import load_matte
from test_stream import BatchManager

CLICK = '[{"x": 30, "y": 25}]'
MARKS = '{"marks": [{"x": 30, "y": 25, "label": 1}]}'
IMAGE = as_image(make_image(60, 80))


@pytest.fixture(scope="module")
def matte(matte_folder):  # noqa: F811
    return load_matte(matte_folder)


# ---- values of an image


@pytest.mark.parametrize("factor", [255, 65535])
@pytest.mark.parametrize("frames", [1, 3])
def test_an_image_that_was_not_divided_is_refused_by_every_reader(tiny_model, factor, frames, tmp_path, monkeypatch):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    image = IMAGE.repeat(frames, 1, 1, 1)
    if frames > 1:
        image[0] = 0  # a film that fades in
    image, mask = image * factor, torch.ones(frames, 60, 80)
    for call in (
        lambda: Segment().execute(tiny_model, image, CLICK),
        lambda: encode(tiny_model, image),
        lambda: AutoMask().execute(tiny_model, image),
        lambda: PromptEditor().execute(image, MARKS, tiny_model),
        lambda: PromptEditor().execute(image),
        lambda: SaveMasks().execute([image], [mask]),
        lambda: Personalize().execute(tiny_model, image, mask, IMAGE),
    ):
        with pytest.raises(SAMError, match=r"image has values up to \d+, and 100% .* above 2: .* in 0..1. Divide by 255"):
            call()


def test_a_dark_object_on_black_that_was_not_divided_is_refused():
    image = torch.zeros(1, 60, 80, 3)
    image[0, 20:30, 20:30] = 40.0  # of 255; most of the image is 0
    with pytest.raises(SAMError, match="values up to 40"):
        image_to_frames(image)


def test_images_that_exceed_1_here_and_there_are_as_white(tiny_model):
    bright = IMAGE.clone()
    bright[0, :20, :20] = 30.0  # the sun of an HDR image
    white = bright.clamp(0, 1)
    assert torch.equal(Segment().execute(tiny_model, bright, CLICK)[3], Segment().execute(tiny_model, white, CLICK)[3])
    overshoot = IMAGE * 1.9  # an upscaler's
    assert np.array_equal(image_to_frames(overshoot)[0], image_to_frames(overshoot.clamp(0, 1))[0])


@pytest.mark.parametrize(
    "change", [torch.Tensor.half, torch.Tensor.double, torch.Tensor.bfloat16, lambda image: image * 1.4 - 0.2]
)
def test_images_leave_the_editor_as_images(tiny_model, tmp_path, monkeypatch, change):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    given = change(IMAGE).requires_grad_()
    before = given.detach().clone()
    _, _, _, masks, image, _, cutout, layers = PromptEditor().execute(given, MARKS, tiny_model)["result"]
    for output in (masks, image, cutout, *(layer["image"] for document in layers for layer in document["layers"])):
        assert output.dtype == torch.float32 and not output.requires_grad and output.min() >= 0 and output.max() <= 1
    wanted = before.float().clamp(0, 1)
    assert torch.equal(image, wanted) and torch.equal(cutout[..., :3], wanted) and torch.equal(cutout[..., 3], masks)
    assert torch.equal(given, before)


def test_an_image_that_is_right_leaves_as_it_came():
    assert bounded(IMAGE) is IMAGE
    alpha = torch.cat([IMAGE, torch.full((1, 60, 80, 1), math.nan)], -1)
    assert torch.equal(bounded(alpha)[..., :3], IMAGE) and not bounded(alpha)[..., 3].any()
    assert bounded(IMAGE[:0]).shape == (0, 60, 80, 3)


def test_a_result_is_shown_on_an_image_with_gradients(tiny_model, tmp_path, monkeypatch):
    install(monkeypatch, FakeComfyUI(tmp_path))
    (tmp_path / "temp").mkdir()
    learned = IMAGE.clone().requires_grad_()
    shown = Segment().run(show_result=True, sam_model=tiny_model, image=learned, positive_coords=CLICK)
    assert shown["ui"]["images"]


# ---- images of few rows or columns


@pytest.mark.parametrize("size", [(1, 64), (5000, 1), (48, 3), (3, 48), (3, 3000), (2, 9)])
def test_words_find_boxes_in_images_of_few_rows_or_columns(tiny_model, grounding, size):  # noqa: F811
    image = as_image(make_image(*size), make_image(*size, 1))
    bboxes, _, overlay, _ = TextToBoxes().execute(grounding, image, TEXT, 0.0, 0.0, 1.0)
    assert overlay.shape == image.shape and len(bboxes) == 2
    every = [box for boxes in bboxes for box in boxes]
    for box in every:
        assert box["x"] + box["width"] <= size[1] and box["y"] + box["height"] <= size[0]
    masks = SegmentText().execute(tiny_model, grounding, image, TEXT, 0.0, 0.0, max_boxes=2, individual_masks=True)[0]
    assert masks.shape[1:] == size and len(masks) >= 2


@pytest.mark.parametrize("size", [(1, 64), (48, 3), (5000, 1), (1, 100_000), (7, 5000)])
def test_an_image_of_few_rows_is_continued_by_its_last_one(size):
    frame = make_image(*size)
    image, (height, width) = _detectable(frame)
    assert min(image.shape[:2]) >= 8 and max(image.shape[:2]) <= 8 * min(image.shape[:2]) and image.nbytes < 4 << 20
    rows, columns = (max(1, round(side * image.shape[i] / (height, width)[i])) for i, side in enumerate(size))
    expected = np.asarray(Image.fromarray(frame).resize((columns, rows), Image.Resampling.BILINEAR))
    assert np.array_equal(image[:rows, :columns], expected)
    assert (image[rows:] == image[rows - 1]).all() and (image[:, columns:] == image[:, columns - 1 : columns]).all()
    # An object in the whole of the source is in the same share of what the model gets.
    assert math.isclose(rows / image.shape[0], size[0] / height, rel_tol=0.02)
    assert math.isclose(columns / image.shape[1], size[1] / width, rel_tol=0.02)


@pytest.mark.parametrize("size", [(60, 90), (8, 64), (600, 75)])
def test_other_images_are_given_to_the_detector_as_they_are(size):
    frame = make_image(*size)
    image, seen = _detectable(frame)
    assert image is frame and seen == size


@pytest.mark.parametrize("size", [(1, 64), (5000, 1), (48, 3), (1, 1)])
def test_soft_edges_of_few_rows_or_columns(matte, size):
    (alpha,) = Matte().execute(matte, as_image(make_image(*size)), torch.ones(1, *size), 2, 1)
    assert alpha.shape == (1, *size) and alpha.min() >= 0 and alpha.max() <= 1


@pytest.mark.parametrize(
    ("given", "wanted"), [((700, 1), (128, 1)), ((700, 3), (90, 1)), ((1, 700), (1, 128)), ((5, 9), (1, 1))]
)
def test_masks_of_one_column_are_resized_as_those_of_one_row(given, wanted):
    """torch 2.11 gives the first row everywhere where an antialiased result has one column."""
    mask = torch.rand(2, *given, generator=torch.Generator().manual_seed(0))
    mask[:, given[0] // 2 :] = 1
    pil = [np.asarray(Image.fromarray(one.numpy()).resize(wanted[::-1], Image.Resampling.BILINEAR)) for one in mask]
    assert np.allclose(resize_masks(mask, wanted).numpy(), pil, atol=0.03 if wanted == (1, 1) else 1e-4)


def test_a_mask_of_one_column_is_a_prompt(tiny_model):
    image = as_image(make_image(700, 1))
    mask = torch.zeros(1, 350, 1)
    mask[0, 200:300] = 1
    assert Segment().execute(tiny_model, image, mask_prompt=mask)[2] != [0.0], "what is not empty makes an object"


def test_what_is_lost_at_the_models_resolution_cannot_be_taught(tiny_model):
    image, mask = as_image(make_image(4000, 4000)), torch.zeros(1, 4000, 4000)
    mask[0, 5, 5] = 1
    (Teach().execute([tiny_model], [image], [mask], [1]))  # a pixel of 16 million is in one cell
    thin, line = as_image(make_image(700, 1)), torch.zeros(1, 700, 1)
    line[0, 200:300] = 1
    for given in ({}, {"negative_masks": [line.flip(1)]}):
        concept, *_ = Teach().execute([tiny_model], [thin], [line], [2], **given)
        assert torch.isfinite(concept.tokens).all()


def test_many_objects_are_searched_for_as_long_as_some_are_found(tiny_model, monkeypatch):
    mask = torch.zeros(1, 60, 80)
    mask[0, 10:30, 20:50] = 1
    calls, original = [], personalizing._segment
    monkeypatch.setattr(personalizing, "_segment", lambda *args: calls.append(1) or original(*args))
    monkeypatch.setattr(personalizing, "_is_known", lambda mask, others: len(others) >= 3)
    masks = Personalize().execute(tiny_model, IMAGE, mask, IMAGE, 100, individual_masks=True, method="persam")[0]
    assert len(masks) == 3 and len(calls) <= 3 + 16 + 3, "two hundred otherwise"


# ---- nothing found


def test_everything_in_a_frame_of_nothing_is_one_empty_mask(tiny_model):
    image = torch.cat([torch.zeros(1, 60, 80, 3), IMAGE, torch.zeros(1, 60, 80, 3)])
    region = torch.zeros(3, 60, 80)
    region[1] = 1
    masks, bboxes, scores, overlay, labels = AutoMask().execute(
        tiny_model, image, 4, pred_iou_thresh=0.0, stability_score_thresh=0.0, region=region
    )
    found = len(bboxes[1])
    assert found and [len(boxes) for boxes in bboxes] == [0, found, 0]
    assert len(masks) == len(scores) == found + 2 and scores[0] == scores[-1] == 0
    assert not masks[0].any() and not masks[-1].any() and masks[1:-1].flatten(1).any(1).all()
    assert len(overlay) == len(labels) == 3 and labels[1].any() and not labels[0].any()
    (segs,) = MasksToSEGS().execute(masks, drop_size=1)
    assert len(segs[1]) <= found, "empty masks are no objects"


def test_soft_edges_without_masks_are_empty_ones(matte):
    (alpha,) = Matte().execute(matte, IMAGE.repeat(2, 1, 1, 1), torch.zeros(0, 60, 80))
    assert alpha.shape == (2, 60, 80) and not alpha.any()


# ---- marks


SHARES = (0.1, 0.2, 0.8, 0.9)


class SEG:
    def __init__(self, bbox, confidence=0.5, label="cat"):
        self.bbox, self.confidence, self.label = bbox, confidence, label


@pytest.mark.parametrize(
    ("boxes", "form"),
    [
        (SHARES, "auto"),
        ([SHARES], "xyxy"),
        ([[SHARES]], "auto"),
        ((0.1, 0.2, 0.7, 0.7), "xywh"),
        ({"x": 0.1, "y": 0.2, "width": 0.7, "height": 0.7}, "auto"),
        ([{"x": 0.1, "y": 0.2, "width": 0.7, "height": 0.7, "score": 0.9}], "auto"),
        (np.array([SHARES]), "auto"),
        (torch.tensor([SHARES]), "auto"),
        (((60, 80), [SEG(SHARES)]), "auto"),
        ((-0.01, 0.2, 1.01, 0.9), "auto"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_boxes_from_0_to_1_are_refused_in_every_form(tiny_model, boxes, form):
    words = r"All coordinates of bboxes are between 0 and 1 .*80x60 pixels, and coordinates are pixels. Multiply"
    (embedding,) = (encode(tiny_model, IMAGE),)
    for call in (
        lambda: Segment().execute(tiny_model, IMAGE, bboxes=boxes, box_form=form),
        lambda: PredictMask().execute(tiny_model, embedding, bboxes=boxes, box_form=form),
        lambda: ConvertBoxes().execute(boxes, image=IMAGE, box_form=form),
    ):
        with pytest.raises(SAMError, match=words):
            call()
    ConvertBoxes().execute(boxes, box_form=form)  # without an image nobody knows


def test_marks_of_an_image_are_judged_together(tiny_model):
    near, far = '[{"x": 0.5, "y": 0.25}]', CLICK
    box = [{"x": 10, "y": 10, "width": 50, "height": 40}]
    for given in (
        {"positive_coords": far, "negative_coords": near},
        {"positive_coords": near, "negative_coords": far},
        {"negative_coords": near, "bboxes": box},
        {"positive_coords": far, "bboxes": [(0.25, 0.25, 0.75, 0.5)]},
    ):
        Segment().execute(tiny_model, IMAGE, **given)
    Segment().execute(tiny_model, IMAGE.repeat(2, 1, 1, 1), f"[{near}, {far}]")
    for given in ({"positive_coords": near}, {"positive_coords": near, "negative_coords": near, "bboxes": [SHARES]}):
        with pytest.raises(SAMError, match="between 0 and 1"):
            Segment().execute(tiny_model, IMAGE, **given)
    Segment().execute(tiny_model, IMAGE, bboxes=[(0, 0, 1, 1)])  # a pixel: what a speck's tight box is
    Segment().execute(tiny_model, torch.rand(1, 2, 2, 3), bboxes=[SHARES])


@pytest.mark.parametrize("score", [math.nan, math.inf, "high", [0.5], True, np.array([[0.1, 0.2]]), 10**400])
def test_scores_that_are_no_numbers_are_refused(score):
    box = {"x": 3, "y": 4, "width": 20, "height": 20, "score": score}
    segs = ((60, 80), [SEG((3, 4, 20, 30), score)])
    for boxes in ([box], [[box]], segs):
        for call in (
            lambda boxes=boxes: ConvertBoxes().execute(boxes),
            lambda boxes=boxes: SelectMasks().execute(torch.ones(1, 60, 80), "score", bboxes=boxes),
            lambda boxes=boxes: MasksToSEGS().execute(torch.ones(1, 60, 80), bboxes=boxes),
        ):
            with pytest.raises(SAMError, match=r"bboxes.*\.score is .*: it must be a finite number"):
                call()


def test_what_a_box_says_of_itself_is_kept_where_it_can_be():
    box = {"x": 3, "y": 4, "width": 20, "height": 20}
    ((kept,),), *_ = ConvertBoxes().execute([{**box, "score": np.float32(0.5), "label": 3, "frame_index": 2.0, "object": "a"}])
    assert kept == {**box, "score": 0.5, "label": "3", "frame_index": 2, "object": "a"} and type(kept["score"]) is float
    assert ConvertBoxes().execute([{**box, "score": None, "label": None}])[0] == [[box]]
    assert ConvertBoxes().execute(((60, 80), [SEG((3, 4, 23, 24), np.array([0.25]))]))[0][0][0]["score"] == 0.25
    for name, value in (("label", ["cat"]), ("frame_index", "first"), ("frame_index", -1), ("object", [1])):
        with pytest.raises(SAMError, match=rf"bboxes\[0\].{name} is"):
            ConvertBoxes().execute([{**box, name: value}])


@pytest.mark.parametrize(
    "boxes",
    [
        torch.zeros(2, 4).to_sparse(),
        torch.zeros(2, 4, device="meta"),
        torch.nested.nested_tensor([torch.zeros(4), torch.zeros(3)]),
        [torch.zeros(4, device="meta")],
        [torch.zeros(4).to_sparse()],
        (torch.zeros((), device="meta"), 1, 2, 3),
    ],
    ids=str,
)
def test_tensors_without_values_are_no_boxes(boxes):
    with pytest.raises(SAMError, match="bboxes"):
        ConvertBoxes().execute(boxes)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        "text",
        [],
        {"1": None},
        {"1": {"class_type": "VHS_BatchManager", "inputs": {"requeue": "2"}}},
        {"1": {"class_type": "VHS_BatchManager", "inputs": {"requeue": math.nan}}},
        {"1": {"class_type": "VHS_BatchManager", "inputs": {"requeue": -1}}},
        {"1": {"inputs": {"requeue": 1}}},
    ],
    ids=str,
)
def test_a_prompt_that_has_no_batch_manager_is_refused(tiny_model, prompt):
    with pytest.raises(SAMError, match="meta_batch is of type BatchManager: it must be the output of a Meta Batch Manager"):
        Segment().execute(tiny_model, IMAGE, CLICK, meta_batch=BatchManager(), prompt=prompt)


# ---- words


@pytest.mark.parametrize("between", [",", ".", ";", "\n", "，", "。", "；", "、", "．", "｡"])  # noqa: RUF001
def test_phrases_end_where_any_keyboard_ends_them(between):
    assert normalise_text(f"cat{between}red dog{between}") == "cat. red dog."


def test_labels_have_no_separators():
    special = ["[CLS]", "[SEP]", "[PAD]"]
    for label, wanted in {
        "a cat.": "a cat",
        "cat [SEP]": "cat",
        "[CLS] cat. remote control. [SEP]": "cat remote control",
        ".": "",
        "[SEP]": "",
        "": "",
        "cat": "cat",
    }.items():
        assert _cleaned(label, special) == wanted


def test_no_class_of_a_data_set_is_a_separator(tmp_path, monkeypatch, grounding):  # noqa: F811
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    options = type("Options", (), {**EVERYTHING, "max_boxes": 0, "tiles": "off"})
    (found,) = find_boxes(grounding, [make_image(60, 90)], TEXT, options)
    assert any(found.labels) and not any(set(label) & set("[].") for label in found.labels)
    bboxes = [[dict(zip(("x", "y", "width", "height"), (0, 0, 20, 20), strict=True), label=found.labels[0])]]
    SaveMasks().execute([IMAGE], [torch.ones(1, 60, 80)], ["set"], ["COCO RLE"], bboxes=[bboxes])
    categories = json.loads((tmp_path / "output" / "set" / "annotations.json").read_text())["categories"]
    assert all(one["name"].strip(". ") == one["name"] for one in categories)

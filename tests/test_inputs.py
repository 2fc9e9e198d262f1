"""Hostile inputs through the nodes: only documented errors come out, and every output is as documented."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samkit.nodes.automask import AutoMask
from samkit.nodes.embedding import GetSAMEmbedding, SAMEmbeddingToImage
from samkit.nodes.masks import ORDERS, SelectMasks
from samkit.nodes.personalize import Personalize
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.refine import RefineMask
from samkit.sam import CANDIDATES, MULTIMASK, SAMError

CLICK = '[{"x": 30, "y": 25}]'
IMAGE = as_image(make_image(60, 80))


@pytest.mark.parametrize(
    "text", ["[" * 5000, '[{"x": 1, "y": ' * 3000, '{"a": ' * 5000, "\0", "[1e999]", '[{"x": 1e999, "y": 1}]']
)
def test_json_of_any_depth_is_refused_by_name(tiny_model, text):
    for name in ("positive_coords", "negative_coords"):
        with pytest.raises(SAMError, match=name):
            Segment().execute(tiny_model, IMAGE, **{name: text})


@pytest.mark.parametrize(
    "boxes",
    [
        torch.tensor(5.0),
        np.array(5.0),
        np.array(None),
        [torch.tensor(5.0)],
        (1, 2, 10**400, 4),
        {"x": 0, "y": 0, "width": 10**400, "height": 1},
        (0, 0, math.inf, 4),
        [[(1, 2, math.nan, 4)]],
        torch.zeros(2, 4, dtype=torch.complex64),
        np.array([[True, False, True, True]]),
        np.array(["a", "b", "c", "d"]),
        torch.zeros(1, 1, 1, 4),
        "boxes",
        object(),
    ],
    ids=lambda boxes: repr(boxes).split(" at ")[0],
)
def test_boxes_of_any_type_are_refused_by_name(tiny_model, boxes):
    with pytest.raises(SAMError, match="bboxes"):
        Segment().execute(tiny_model, IMAGE, bboxes=boxes)


@pytest.mark.parametrize("logits", ["text", np.zeros((1, 1, 32, 32), np.float32), [1], torch.zeros(32, 32), 5])
def test_logits_of_any_type_are_refused_by_name(tiny_model, logits):
    with pytest.raises(SAMError, match="logits (has the shape|is .*it must be the logits of a prediction)"):
        Segment().execute(tiny_model, IMAGE, CLICK, logits=logits)


@pytest.mark.parametrize(
    "image", [None, "image", 5, [], {}, np.zeros((1, 4, 4, 3)), torch.zeros(4, 4), torch.zeros(1, 4, 4, 7)]
)
def test_images_of_any_type_are_refused_by_name(tiny_model, image):
    mask = torch.ones(1, 60, 80)
    for call in (
        lambda: Segment().execute(tiny_model, image, CLICK),
        lambda: GetSAMEmbedding().get_sam_embedding(image, tiny_model),
        lambda: AutoMask().execute(tiny_model, image),
        lambda: Personalize().execute(tiny_model, image, mask, IMAGE),
        lambda: Personalize().execute(tiny_model, IMAGE, mask, image),
    ):
        with pytest.raises(SAMError, match=r"image"):
            call()


def test_integers_are_no_image(tiny_model):
    with pytest.raises(SAMError, match=r"image is a tensor of torch.uint8: an IMAGE has floating point values in 0..1"):
        Segment().execute(tiny_model, (IMAGE * 255).to(torch.uint8), CLICK)


def test_numbers_beyond_float32_are_white(tiny_model):
    bright = IMAGE.double()
    white = bright.clone()
    bright[0, :9, :9], white[0, :9, :9] = 1e300, 1.0
    assert torch.equal(Segment().execute(tiny_model, bright, CLICK)[3], Segment().execute(tiny_model, white, CLICK)[3])
    bright[0, 0, 0, 0] = math.nan
    with pytest.raises(SAMError, match=r"values that are NaN or infinite \(1 in total"):
        Segment().execute(tiny_model, bright, CLICK)


@pytest.mark.parametrize("model", [None, "sam", 5, torch.nn.Linear(2, 2), {}])
def test_models_of_any_type_are_refused_by_name(model):
    for call in (
        lambda: Segment().execute(model, IMAGE, CLICK),
        lambda: GetSAMEmbedding().get_sam_embedding(IMAGE, model),
        lambda: PredictMask().execute(model, np.zeros((1, 32, 8, 8), np.float32), CLICK),
        lambda: AutoMask().execute(model, IMAGE),
        lambda: Personalize().execute(model, IMAGE, torch.ones(1, 60, 80), IMAGE),
    ):
        with pytest.raises(SAMError, match="sam_model is a"):
            call()


@pytest.mark.parametrize("region", [torch.zeros(1, 0, 0), torch.zeros(1, 0, 5), "everywhere", np.ones((60, 80)), torch.ones(5)])
def test_regions_of_any_shape_are_refused(tiny_model, region):
    with pytest.raises(SAMError, match="region (has|is)"):
        AutoMask().execute(tiny_model, IMAGE, region=region)


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1), (2, 3)])
def test_sides_of_one_pixel_have_crops_too(tiny_model, size):
    options = {"points_per_side": 4, "crop_n_layers": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    masks = AutoMask().execute(tiny_model, as_image(make_image(*size)), **options)[0]
    assert masks.shape[1:] == size and masks.flatten(1).any(1).all()


def test_principal_components_of_nan_are_refused():
    values = np.zeros((1, 8, 4, 4), np.float32)
    values[0, 0, 0, 0] = np.nan
    with pytest.raises(SAMError, match="The embedding has values that are NaN"):
        SAMEmbeddingToImage().sam_embedding_to_noise_image(values, "pca")


# ---- everything at random

NUMBERS = st.one_of(
    st.integers(-10, 90),
    st.floats(-10, 90),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, 10**400, True, None, "1", -0.0]),
)
POINT = st.one_of(
    st.fixed_dictionaries({"x": NUMBERS, "y": NUMBERS}),
    st.fixed_dictionaries({"x": st.floats(0, 80), "y": st.floats(0, 60)}),
    st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)),
)
COORDS = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.lists(POINT, max_size=4).map(lambda value: json.dumps(value, default=str)),
    st.lists(st.lists(POINT, max_size=2), max_size=3).map(lambda value: json.dumps(value, default=str)),
)
BOX = st.one_of(
    st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.fixed_dictionaries({"x": NUMBERS, "y": NUMBERS, "width": NUMBERS, "height": NUMBERS}),
    st.tuples(*[st.floats(-5, 90)] * 4).map(list),
    NUMBERS,
)
BOXES = st.one_of(st.none(), BOX, st.lists(BOX, max_size=3), st.lists(st.lists(BOX, max_size=2), max_size=3))
SIDES = st.integers(0, 3) | st.integers(20, 70)


@st.composite
def tensors(draw, ranks=(2, 3, 4), last=SIDES):
    shape = [draw(st.integers(0, 3)) for _ in range(draw(st.sampled_from(ranks)) - 3)] + [draw(SIDES), draw(SIDES), draw(last)]
    kind = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.bool]))
    value = draw(st.sampled_from([0.0, 0.5, 1.0, -3.0, 1e30, math.nan, math.inf]))
    filled = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if draw(st.booleans()) and filled.numel():
        filled.view(-1)[:: max(1, filled.numel() // 7)] = value
    return filled.to(kind)


IMAGES = st.one_of(
    st.just(IMAGE), st.just(IMAGE.expand(3, -1, -1, -1)), tensors(ranks=(3, 4, 4, 4), last=st.integers(0, 5)), st.none()
)
MASKS = st.one_of(st.none(), st.just(torch.ones(1, 60, 80)), tensors(ranks=(3, 3, 4)))
LOGITS = st.one_of(st.none(), st.just(torch.zeros(1, 1, 32, 32)), tensors(ranks=(4,), last=st.just(32)))
OPTIONS = {
    "candidate": st.sampled_from([*CANDIDATES, "worst", None]),
    "multimask": st.sampled_from([*MULTIMASK, 3]),
    "individual_masks": st.booleans(),
    "mask_threshold": st.floats(-20, 20),
    "device_mode": st.sampled_from(["AUTO", "CPU", "Prefer GPU", "TPU"]),
    "hq": st.booleans(),
}
PROMPTS = {
    "positive_coords": COORDS, "negative_coords": COORDS, "bboxes": BOXES, "mask_prompt": MASKS, "logits": LOGITS
}  # fmt: skip
often = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check_prediction(results, frames, size, options):
    masks, bboxes, scores, logits = results
    assert masks.dtype == logits.dtype == torch.float32 and masks.shape[1:] == size and logits.shape[1:] == (1, 32, 32)
    apart = options["individual_masks"] or options["candidate"] == "all"
    assert len(masks) >= frames if apart else len(masks) == frames
    assert len(scores) == len(logits) and len(bboxes) == frames and (not apart or len(masks) == len(scores))
    assert set(masks.unique().tolist()) <= {0.0, 1.0} and torch.isfinite(logits).all() and np.isfinite(scores).all()
    for box in (box for frame in bboxes for box in frame):
        assert 0 <= box["x"] < box["x"] + box["width"] <= size[1] and 0 <= box["y"] < box["y"] + box["height"] <= size[0]


@often
@given(image=IMAGES, prompts=st.fixed_dictionaries(PROMPTS), options=st.fixed_dictionaries(OPTIONS))
def test_sam_segment_with_anything(session_model, image, prompts, options):
    try:
        results = Segment().execute(session_model, image, **prompts, **options)
    except SAMError as error:
        assert str(error)
        return
    check_prediction(results, len(image), tuple(image.shape[1:3]), options)


@often
@given(
    prompts=st.fixed_dictionaries(PROMPTS), options=st.fixed_dictionaries(OPTIONS), frames=st.integers(0, 3), bare=st.booleans()
)
def test_sam_predict_mask_with_anything(session_model, prompts, options, frames, bare):
    image = IMAGE.expand(frames, -1, -1, -1)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(image, session_model)
    try:
        results = PredictMask().execute(
            session_model, np.array(embedding) if bare else embedding, image=image if bare else None, **prompts, **options
        )
    except SAMError as error:
        assert str(error)
        return
    check_prediction(results, frames, (60, 80), options)


@often
@given(
    masks=st.one_of(st.just(torch.ones(3, 20, 30)), tensors()),
    bboxes=BOXES,
    order_by=st.sampled_from([*ORDERS, "size"]),
    start=st.integers(0, 5),
    count=st.integers(0, 5),
    merge=st.booleans(),
)
def test_sam_select_masks_with_anything(masks, bboxes, order_by, start, count, merge):
    try:
        chosen, boxes = SelectMasks().execute(masks, order_by, start, count, merge, bboxes)
    except SAMError as error:
        assert str(error)
        return
    assert chosen.ndim == 3 and len(chosen) >= 1 and chosen.min() >= 0 and chosen.max() <= 1 and len(boxes) <= len(chosen)


@often
@given(
    masks=st.one_of(st.just(torch.ones(2, 20, 30)), tensors()),
    areas=st.tuples(st.integers(-1, 40), st.integers(-1, 40)),
    deviations=st.tuples(st.floats(-1, 70), st.floats(-1, 130)),
    grow=st.integers(-260, 260),
    invert=st.booleans(),
)
def test_sam_refine_mask_with_anything(masks, areas, deviations, grow, invert):
    try:
        (finished,) = RefineMask().execute(masks, *areas, deviations[0], grow, invert, deviations[1])
    except SAMError as error:
        assert str(error)
        return
    assert finished.dtype == torch.float32 and finished.shape[-2:] == masks.shape[-2:] and finished.ndim == 3
    assert not len(finished) or (finished.min() >= 0 and finished.max() <= 1)


@settings(often, max_examples=40)
@given(
    image=IMAGES,
    points=st.integers(-1, 5),
    batch=st.integers(0, 9),
    thresholds=st.tuples(*[st.floats(-1, 1)] * 3),
    layers=st.integers(-1, 2),
    downscale=st.integers(0, 3),
    area=st.integers(0, 50),
    region=MASKS,
)
def test_segment_everything_with_anything(session_model, image, points, batch, thresholds, layers, downscale, area, region):
    iou, stability, nms = thresholds
    try:
        masks, bboxes, scores, overlay, labels = AutoMask().execute(
            session_model, image, points, batch, iou, stability, 1.0, nms, layers, nms, 0.3, downscale, area, 20, region
        )
    except SAMError as error:
        assert str(error)
        return
    size = tuple(image.shape[1:3])
    assert masks.shape[1:] == size and sum(map(len, bboxes)) == int(masks.flatten(1).any(1).sum())
    assert overlay.shape == (len(image), *size, 3) and labels.shape == (len(image), *size) and len(scores) == len(masks)
    assert labels.min(initial=0) >= 0 if isinstance(labels, np.ndarray) else (labels >= 0).all() and (labels <= 1).all()


@settings(often, max_examples=40)
@given(reference=IMAGES, mask=MASKS, image=IMAGES, objects=st.integers(0, 3), score=st.floats(-1, 2), apart=st.booleans())
def test_sam_personalize_with_anything(session_model, reference, mask, image, objects, score, apart):
    try:
        masks, scores, similarity, coords = Personalize().execute(
            session_model, reference, mask, image, objects, score, apart, True
        )
    except SAMError as error:
        assert str(error)
        return
    assert similarity.shape == (len(image), *image.shape[1:3]) and (similarity >= 0).all() and (similarity <= 1).all()
    assert len(masks) >= len(image) and len(json.loads(coords)) == len(image) and np.isfinite(scores).all()


@pytest.fixture(scope="module")
def session_model(tmp_path_factory, tiny_sam):
    """One model for all examples; nothing of an example may stay on it."""
    from samkit.sam import load_model

    path = tmp_path_factory.mktemp("model") / "tiny.pth"
    torch.save(tiny_sam.state_dict(), path)
    return load_model(path)

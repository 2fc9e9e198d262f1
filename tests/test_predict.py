"""SAMKit_PredictMask and SAMKit_Segment: every form of input, and what bad input gets."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from reference import random_sam
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import SAMError, encode, load_model

CLICK = '[{"x": 30, "y": 25}]'
BOX = {"x": 10, "y": 5, "width": 40, "height": 45}


@pytest.fixture
def image(photo):
    return as_image(photo)


@pytest.fixture
def embedding(tiny_model, image):
    return GetSAMEmbedding().get_sam_embedding(image, tiny_model)[0]


def five():
    return as_image(*(make_image(60, 80, seed) for seed in range(5)))


def segment(model, image, **inputs):
    return Segment().execute(model, image, **inputs)


@pytest.mark.parametrize("prompt", [{"positive_coords": CLICK}, {"bboxes": BOX}, {"mask_prompt": torch.ones(1, 60, 80)}])
def test_the_outputs_are_as_the_sockets_say(tiny_model, image, prompt):
    masks, bboxes, scores, logits = segment(tiny_model, image, **prompt)
    assert masks.shape == (1, 60, 80) and masks.dtype == torch.float32
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert len(scores) == 1 and isinstance(scores[0], float)
    assert logits.shape == (1, 1, 32, 32) and logits.dtype == torch.float32
    ((box,),) = bboxes
    rows, columns = np.nonzero(masks[0].numpy())
    assert box == {
        "x": columns.min(),
        "y": rows.min(),
        "width": columns.max() + 1 - columns.min(),
        "height": rows.max() + 1 - rows.min(),
        "score": scores[0],
    }
    json.dumps(bboxes)


def test_five_images_give_five_masks_each_its_own(tiny_model):
    batch = five()
    masks, bboxes, scores, logits = segment(tiny_model, batch, positive_coords=CLICK)
    assert masks.shape == (5, 60, 80) and len(bboxes) == len(scores) == len(logits) == 5
    for index in range(5):
        alone, *_ = segment(tiny_model, batch[index : index + 1], positive_coords=CLICK)
        assert torch.equal(alone[0], masks[index])
    assert len({mask.numpy().tobytes() for mask in masks}) == 5


def test_an_empty_batch_gives_an_empty_batch(tiny_model):
    empty = torch.zeros(0, 60, 80, 3)
    masks, bboxes, scores, logits = segment(tiny_model, empty, positive_coords=CLICK)
    assert masks.shape == (0, 60, 80) and logits.shape == (0, 1, 32, 32)
    assert bboxes == [] and scores == []


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba_images_are_segmented(tiny_model, image, channels):
    other = image[..., :1] if channels == 1 else torch.cat([image, torch.rand(1, 60, 80, 1)], dim=-1)
    same = image[..., :1].expand_as(image) if channels == 1 else image
    assert torch.equal(segment(tiny_model, other, bboxes=BOX)[0], segment(tiny_model, same, bboxes=BOX)[0])


@pytest.mark.parametrize("size", [(400, 1), (1, 400), (1, 1), (4000, 1)])
def test_a_side_of_one_pixel_is_no_obstacle(tiny_model, size):
    masks, *_ = segment(tiny_model, as_image(make_image(*size)), positive_coords='[{"x": 0.5, "y": 0.5}]')
    assert masks.shape == (1, *size)


def test_nan_pixels_are_refused(tiny_model, image):
    image = image.clone()
    image[0, 3, 4] = math.nan
    with pytest.raises(SAMError, match="image has values that are NaN or infinite \\(3 in total"):
        segment(tiny_model, image, positive_coords=CLICK)


def test_no_prompt_at_all_is_an_error_that_names_the_inputs(tiny_model, image, embedding):
    for call in (lambda: segment(tiny_model, image), lambda: PredictMask().execute(tiny_model, embedding, image=image)):
        with pytest.raises(SAMError, match="positive_coords, negative_coords, bboxes, mask_prompt or logits"):
            call()


@pytest.mark.parametrize(
    "prompt",
    [
        {"positive_coords": "[]"},
        {"positive_coords": ""},
        {"bboxes": []},
        {"bboxes": [[], [], [], [], []]},
        {"bboxes": {"x": 5, "y": 5, "width": 0, "height": 9}},
        {"mask_prompt": torch.zeros(1, 64, 64)},
        {"mask_prompt": torch.zeros(0, 60, 80)},
        {"positive_coords": "[]", "bboxes": [], "mask_prompt": torch.zeros(1, 64, 64)},
    ],
    ids=str,
)
@pytest.mark.parametrize("individual", [False, True])
def test_a_connected_prompt_that_is_empty_gives_empty_masks(tiny_model, prompt, individual):
    masks, bboxes, scores, logits = segment(tiny_model, five(), **prompt, individual_masks=individual)
    assert masks.shape == (5, 60, 80) and not masks.any()
    assert bboxes == [[]] * 5 and scores == [0.0] * 5
    assert (logits < 0).all() and len(logits) == 5


def test_loadimages_mask_without_alpha_changes_nothing(tiny_model, image):
    with_it = segment(tiny_model, image, positive_coords=CLICK, mask_prompt=torch.zeros(1, 64, 64))
    without = segment(tiny_model, image, positive_coords=CLICK)
    assert torch.equal(with_it[3], without[3])


def test_prompts_per_frame(tiny_model):
    coords = [[{"x": 30, "y": 25}], [], [{"x": 50, "y": 30}], [], [{"x": 5, "y": 5}]]
    masks, bboxes, scores, _ = segment(tiny_model, five(), positive_coords=json.dumps(coords))
    assert [bool(mask.any()) for mask in masks] == [True, False, True, False, True]
    assert [len(boxes) for boxes in bboxes] == [1, 0, 1, 0, 1]
    alone, *_ = segment(tiny_model, five()[2:3], positive_coords=json.dumps(coords[2]))
    assert torch.equal(alone[0], masks[2])
    with pytest.raises(SAMError, match="lists in positive_coords is 3: it must be 1, or one per frame"):
        segment(tiny_model, five(), positive_coords=json.dumps(coords[:3]))


def test_individual_masks_or_one_per_frame(tiny_model):
    boxes = [[BOX, {"x": 50, "y": 20, "width": 25, "height": 30}], [BOX], [], [BOX], [BOX]]
    apart, bboxes, scores, logits = segment(tiny_model, five(), bboxes=boxes, individual_masks=True)
    assert len(apart) == len(scores) == len(logits) == 6
    assert [len(frame) for frame in bboxes] == [2, 1, 0, 1, 1] and not apart[3].any() and scores[3] == 0
    together, *_ = segment(tiny_model, five(), bboxes=boxes)
    assert together.shape == (5, 60, 80)
    assert torch.equal(together[0], torch.maximum(apart[0], apart[1])) and torch.equal(together[1], apart[2])


def test_candidates_are_chosen_by_score_and_by_area(tiny_model, image):
    def run(candidate):
        return segment(tiny_model, image, positive_coords=CLICK, candidate=candidate)

    every, bboxes, scores, logits = run("all")
    assert len(every) == len(scores) == len(logits) == 3 and scores == sorted(scores, reverse=True)
    assert torch.equal(run("best")[0][0], every[0]) and run("best")[2] == scores[:1]
    by_area = sorted(every, key=lambda mask: mask.sum())
    assert len({int(mask.sum()) for mask in every}) == 3, "areas that are alike choose nothing"
    for candidate, expected in zip(("smallest", "middle", "largest"), by_area, strict=True):
        assert torch.equal(run(candidate)[0][0], expected), candidate


@pytest.mark.parametrize(
    ("prompt", "several"),
    [
        ({"positive_coords": CLICK}, True),
        ({"negative_coords": CLICK}, True),
        ({"positive_coords": CLICK, "negative_coords": CLICK}, False),
        ({"bboxes": BOX}, False),
        ({"positive_coords": CLICK, "bboxes": BOX}, False),
        ({"positive_coords": CLICK, "mask_prompt": torch.ones(1, 60, 80)}, False),
        ({"positive_coords": CLICK, "logits": torch.ones(1, 1, 32, 32)}, False),
    ],
    ids=str,
)
def test_multimask_auto_is_three_for_a_single_click_alone(tiny_model, image, prompt, several):
    counts = {m: len(segment(tiny_model, image, **prompt, candidate="all", multimask=m)[0]) for m in ("auto", "on", "off")}
    assert counts == {"auto": 3 if several else 1, "on": 3, "off": 1}


def test_negative_points_count_without_positive_ones(tiny_model, image):
    box = segment(tiny_model, image, bboxes=BOX)[3]
    assert not torch.equal(box, segment(tiny_model, image, bboxes=BOX, negative_coords=CLICK)[3])
    assert not torch.equal(
        segment(tiny_model, image, negative_coords=CLICK)[3], segment(tiny_model, image, positive_coords=CLICK)[3]
    )


def test_a_higher_threshold_gives_a_smaller_mask(tiny_model, image):
    areas = [segment(tiny_model, image, bboxes=BOX, mask_threshold=t)[0].sum() for t in (-0.2, 0.0, 0.2)]
    assert areas[0] > areas[1] > areas[2]


def test_prompts_in_different_shapes_share_a_frame(tiny_model, image):
    """Boxes with and without points in them are batched apart: padding would change SAM's answer."""
    other = {"x": 50, "y": 20, "width": 25, "height": 30}
    _, _, scores, logits = segment(tiny_model, image, bboxes=[other, BOX], positive_coords=CLICK, individual_masks=True)
    for index, prompt in enumerate(({"bboxes": other}, {"bboxes": BOX, "positive_coords": CLICK})):
        _, _, alone, low = segment(tiny_model, image, **prompt)
        torch.testing.assert_close(logits[index], low[0], atol=1e-5, rtol=0)
        assert scores[index] == pytest.approx(alone[0], abs=1e-5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"positive_coords": "[{"}, "positive_coords is not JSON"),
        ({"negative_coords": '[{"x": 1}]'}, r"negative_coords\[0\] is .*finite numbers x and y"),
        ({"positive_coords": '[{"x": 1, "y": 61}]'}, "outside the image of 80x60"),
        ({"bboxes": "left"}, "bboxes is 'left'"),
        ({"mask_prompt": torch.ones(1, 3, 60, 80)}, "mask_prompt has the shape .* MASK tensor"),
        ({"mask_prompt": torch.ones(4, 60, 80)}, "mask_prompt has 4 masks for 1 image"),
        ({"logits": torch.ones(1, 1, 64, 64)}, r"logits has the shape \(1, 1, 64, 64\)"),
        ({"positive_coords": CLICK, "candidate": "worst"}, "candidate is 'worst': choose one of best, smallest"),
        ({"positive_coords": CLICK, "multimask": "maybe"}, "multimask is 'maybe'"),
        ({"positive_coords": CLICK, "device_mode": "TPU"}, "device_mode is 'TPU': choose one of AUTO"),
    ],
    ids=str,
)
def test_wrong_input_is_refused_with_what_was_seen(tiny_model, image, inputs, message):
    with pytest.raises(SAMError, match=message):
        segment(tiny_model, image, **inputs)


def test_predict_mask_equals_segment(tiny_model, image, embedding):
    for prompt in ({"positive_coords": CLICK}, {"bboxes": [BOX, BOX]}):
        one, two = PredictMask().execute(tiny_model, embedding, **prompt), segment(tiny_model, image, **prompt)
        assert torch.equal(one[0], two[0]) and one[1:3] == two[1:3] and torch.equal(one[3], two[3])


def test_another_packs_embedding_needs_the_image(tiny_model, image, embedding):
    bare = np.array(embedding)
    ours = PredictMask().execute(tiny_model, embedding, positive_coords=CLICK)
    theirs = PredictMask().execute(tiny_model, bare, positive_coords=CLICK, image=image)
    assert type(bare) is np.ndarray and torch.equal(ours[0], theirs[0]) and torch.equal(ours[3], theirs[3])
    with pytest.raises(SAMError, match="Connect the image as well"):
        PredictMask().execute(tiny_model, bare, positive_coords=CLICK)


def test_an_embedding_of_another_model_or_image_is_refused(tiny_model, image, embedding, tmp_path):
    torch.save(random_sam(32, 3, 2, (1,), grid=8, window=3, out_chans=32, mlp_dim=64, seed=1).state_dict(), tmp_path / "b.pth")
    with pytest.raises(SAMError, match="created with a different model"):
        PredictMask().execute(load_model(tmp_path / "b.pth"), embedding, positive_coords=CLICK)
    with pytest.raises(SAMError, match="Frame 0 of the image input is not the embedded image"):
        PredictMask().execute(tiny_model, embedding, positive_coords=CLICK, image=1 - image)
    with pytest.raises(SAMError, match="The image input has 5 frames, but the embedding has 1"):
        PredictMask().execute(tiny_model, embedding, positive_coords=CLICK, image=five())
    with pytest.raises(SAMError, match=r"The embedding is \(1, 8, 8, 8\), but this model's are \(B, 32, 8, 8\)"):
        PredictMask().execute(tiny_model, np.zeros((1, 8, 8, 8), np.float32), positive_coords=CLICK, image=image)
    with pytest.raises(SAMError, match="The embedding has values that are NaN"):
        PredictMask().execute(tiny_model, np.full((1, 32, 8, 8), np.nan), positive_coords=CLICK, image=image)


def test_a_plain_sam_is_as_good_as_ours(tiny_sam, tiny_model, image):
    for node in (
        lambda model: segment(model, image, positive_coords=CLICK, bboxes=BOX),
        lambda model: via_embedding(model, image),
    ):
        ours, plain = node(tiny_model), node(tiny_sam)
        assert torch.equal(ours[0], plain[0]) and ours[1:3] == plain[1:3]


def via_embedding(model, image):
    (embedding,) = GetSAMEmbedding().get_sam_embedding(image, model)
    return PredictMask().execute(model, embedding, positive_coords=CLICK)


def test_nothing_is_kept_on_nodes_between_calls(tiny_model, image):
    node = Segment()
    first = node.execute(tiny_model, image, positive_coords=CLICK)
    node.execute(tiny_model, 1 - image, bboxes=BOX)
    assert torch.equal(first[3], node.execute(tiny_model, image, positive_coords=CLICK)[3])
    assert vars(node) == {}


def test_results_can_be_used_outside_inference_mode(tiny_model, image):
    masks, _, _, logits = segment(tiny_model, image, positive_coords=CLICK)
    assert not masks.is_inference() and not logits.is_inference()


def test_python_users_call_the_same_runtime(tiny_model, photo):
    from samkit.sam import Prompt, decode

    embedding = encode(tiny_model, [photo])
    click = Prompt(points=np.array([[30.0, 25.0]]), labels=np.array([1]))
    masks, scores, logits = decode(tiny_model, embedding, [[click, click]])
    assert masks[0].shape == (2, 60, 80) and masks[0].dtype == torch.bool
    assert torch.equal(masks[0][0].float(), segment(tiny_model, as_image(photo), positive_coords=CLICK)[0][0])
    assert scores[0].shape == (2,) and logits[0].shape == (2, 1, 32, 32)
    with pytest.raises(SAMError, match="prompts for 2 images, but embeddings of 1"):
        decode(tiny_model, embedding, [[click], [click]])

"""Which prompts make one object, and how masks reach the decoder's grid."""

import json
import math

import numpy as np
import pytest
import torch
from reference import random_sam
from samkit.sam import PromptInputs, SAMError, group, objects_per_frame
from samkit.sam.models.families import as_segmenter
from samkit.sam.prompts import mask_to_logits
from samkit.utils.boxes import boxes_per_frame, nested_boxes
from samkit.utils.images import resize_masks
from samkit.utils.marks import NO_BOXES, NO_POINTS, Marks
from samkit.utils.points import points_per_frame


def points(*pairs):
    return Marks.of(pairs, [None] * len(pairs), 2)


def boxes(*corners):
    return Marks.of(corners, [None] * len(corners), 4)


def shape(prompt):
    signed = [(x, y, bool(label)) for (x, y), label in zip(prompt.points, prompt.labels, strict=True)]
    return signed, None if prompt.box is None else tuple(prompt.box)


def test_nothing_is_no_object():
    assert group(NO_POINTS, NO_POINTS, NO_BOXES) == []


def test_without_a_box_all_points_are_one_object():
    (prompt,) = group(points((1, 2), (3, 4)), points((5, 6)), NO_BOXES)
    assert shape(prompt) == ([(1, 2, True), (3, 4, True), (5, 6, False)], None)


def test_negative_points_alone_are_an_object():
    (prompt,) = group(NO_POINTS, points((5, 6)), NO_BOXES)
    assert shape(prompt) == ([(5, 6, False)], None)


def test_one_box_takes_every_point_even_one_outside():
    (prompt,) = group(points((50, 50)), points((60, 60)), boxes((0, 0, 10, 10)))
    assert shape(prompt) == ([(50, 50, True), (60, 60, False)], (0, 0, 10, 10))


def test_with_several_boxes_each_is_an_object_and_points_find_theirs():
    big, small, other = (0, 0, 100, 100), (10, 10, 20, 20), (200, 0, 260, 50)
    prompts = group(points((15, 15), (50, 50), (300, 300), (301, 300)), points((12, 12), (400, 400)), boxes(big, small, other))
    assert [shape(prompt) for prompt in prompts] == [
        ([(50, 50, True), (12, 12, False), (400, 400, False)], big),
        ([(15, 15, True), (12, 12, False), (400, 400, False)], small),
        ([(400, 400, False)], other),
        ([(300, 300, True), (301, 300, True), (400, 400, False)], None),
    ]


def test_marks_that_name_an_object_are_one_object_whatever_boxes_lie_around_them():
    positive = Marks.of([(15, 15), (1, 1), (16, 15), (90, 90)], ["cup", 2, 2, None], 2)
    negative = Marks.of([(12, 12), (13, 13)], [None, "cup"], 2)
    given = Marks.of([(0, 0, 100, 100), (10, 10, 20, 20), (30, 30, 40, 50), (80, 80, 99, 99)], [None, 2, 2, "late"], 4)
    assert [shape(prompt) for prompt in group(positive, negative, given)] == [
        ([(15, 15, True), (13, 13, False)], None),
        ([(1, 1, True), (16, 15, True)], (10, 10, 40, 50)),
        ([], (80, 80, 99, 99)),
        ([(90, 90, True), (12, 12, False)], (0, 0, 100, 100)),
    ]


def test_numbers_and_texts_are_other_objects_and_1_is_1_point_0():
    positive = Marks.of([(1, 1), (2, 2), (3, 3)], [1, "1", 1.0], 2)
    assert [len(prompt.points) for prompt in group(positive, NO_POINTS, NO_BOXES)] == [2, 1]


def test_objects_come_by_name_through_the_sockets(tiny_model):
    """A box that is clipped away takes its name along."""
    clicks = json.dumps(
        [{"x": 20, "y": 20, "object": "a"}, {"x": 60, "y": 40, "object": "b"}, {"x": 22, "y": 20, "object": "a"}]
    )
    outside = [
        {"x": 200, "y": 20, "width": 9, "height": 9, "object": "c"},
        {"x": 5, "y": 5, "width": 30, "height": 30, "object": "b"},
    ]
    given = PromptInputs(positive=points_per_frame(clicks, 1, "positive_coords"), boxes=boxes_per_frame(outside, 1))
    (found,) = objects_per_frame(given, 1, tiny_model.geometry((60, 80)))
    assert [shape(prompt) for prompt in found] == [
        ([(20, 20, True), (22, 20, True)], None),
        ([(60, 40, True)], (5, 5, 35, 35)),
    ]


@pytest.mark.parametrize("name", [True, [1], {}, math.nan, math.inf])
def test_an_object_is_a_text_or_a_number(name):
    text = json.dumps([{"x": 1, "y": 1, "object": name}])
    with pytest.raises(SAMError, match=r"positive_coords\[0\].object"):
        points_per_frame(text, 1, "positive_coords")
    with pytest.raises(SAMError, match=r"bboxes\[0\].object"):
        boxes_per_frame([{"x": 1, "y": 1, "width": 2, "height": 2, "object": name}], 1)


def test_names_are_kept_with_boxes_that_are_selected():
    assert nested_boxes([{"x": 1, "y": 1, "width": 2, "height": 2, "object": "cup"}])[0][0]["object"] == "cup"


def test_a_single_click_is_one_point_and_nothing_else():
    assert group(points((1, 1)), NO_POINTS, NO_BOXES)[0].is_single_click
    assert not group(points((1, 1), (2, 2)), NO_POINTS, NO_BOXES)[0].is_single_click
    assert not group(points((1, 1)), NO_POINTS, boxes((0, 0, 5, 5)))[0].is_single_click


@pytest.mark.parametrize("size", [(100, 178), (111, 34), (150, 200), (128, 128)])
def test_a_mask_prompt_lies_where_the_image_lies(tiny_sam, size):
    """Back through SAM's own postprocessing an ellipse must return to its place; a plain squash gives IoU 0.0 to 0.5."""
    sam = random_sam(embed_dim=16, depth=2, heads=2, grid=32, window=4, global_blocks=(1,), out_chans=16, mlp_dim=16, patch=16)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    ellipse = torch.from_numpy(((rows / height - 0.45) / 0.3) ** 2 + ((columns / width - 0.55) / 0.25) ** 2 < 1)
    frame = as_segmenter(sam).geometry(size)
    logits = mask_to_logits(ellipse.float(), frame)
    back = sam.postprocess_masks(logits[None], frame.resized, size)[0, 0] > 0
    assert logits.shape == (1, 128, 128)
    assert (back & ellipse).sum() / (back | ellipse).sum() > 0.95
    assert logits.min() >= -10 and logits.max() <= 10


def test_a_mask_of_another_size_is_brought_to_the_images(tiny_model):
    mask = torch.zeros(30, 40)
    mask[5:20, 10:30] = 1
    same = resize_masks(mask[None], (60, 80))[0]
    frame = tiny_model.geometry((60, 80))
    torch.testing.assert_close(mask_to_logits(mask, frame), mask_to_logits(same, frame), atol=2, rtol=0)


def test_an_empty_mask_is_no_prompt(tiny_model):
    assert mask_to_logits(torch.zeros(64, 64), tiny_model.geometry((60, 80))) is None


def objects(model, frames, **given):
    return objects_per_frame(PromptInputs(**given), frames, model.geometry((60, 80)))


def test_masks_go_to_all_to_frames_or_to_objects(tiny_model):
    grid = tiny_model.prompt_encoder.mask_input_size
    logits = torch.arange(4.0)[:, None, None, None].expand(4, 1, *grid)
    two_each = {"boxes": [boxes((0, 0, 9, 9), (20, 20, 40, 40))] * 2}

    def given(count):
        found = objects(tiny_model, 2, logits=logits[:count], **two_each)
        return [[float(prompt.logits[0, 0, 0]) for prompt in frame] for frame in found]

    assert given(1) == [[0, 0], [0, 0]]
    assert given(2) == [[0, 0], [1, 1]]
    assert given(4) == [[0, 1], [2, 3]]
    with pytest.raises(SAMError, match="3 masks for 2 images with 4 objects"):
        given(3)


def test_a_mask_alone_is_one_object(tiny_model):
    found = objects(tiny_model, 2, mask=torch.ones(1, 60, 80))
    assert [len(frame) for frame in found] == [1, 1]
    assert not len(found[0][0].points) and found[0][0].box is None


def test_logits_go_before_the_mask(tiny_model):
    grid = tiny_model.prompt_encoder.mask_input_size
    ((prompt,),) = objects(tiny_model, 1, mask=torch.ones(1, 60, 80), logits=torch.full((1, 1, *grid), 3.0))
    assert prompt.logits.unique().tolist() == [3.0]


def test_logits_of_another_model_are_refused(tiny_model):
    with pytest.raises(SAMError, match=r"logits has the shape \(1, 1, 7, 7\), but this model needs \(N, 1, 32, 32\)"):
        objects(tiny_model, 1, logits=torch.zeros(1, 1, 7, 7))


def test_a_point_outside_is_refused_with_its_numbers(tiny_model):
    with pytest.raises(SAMError, match=r"positive_coords has 2 points outside the image of 80x60 .*x=80.5, y=10"):
        objects(tiny_model, 1, positive=[points((1, 1), (80.5, 10), (-1, 3))])
    assert objects(tiny_model, 1, positive=[points((0, 0), (80, 60))])[0]


def test_boxes_are_clipped_and_those_without_area_dropped(tiny_model):
    ((prompt,),) = objects(tiny_model, 1, boxes=[boxes((-5, -5, 90, 30), (10, 10, 10, 40), (200, 10, 300, 40))])
    assert tuple(prompt.box) == (0, 0, 80, 30)
    assert objects(tiny_model, 1, boxes=[boxes((10, 10, 10, 40))]) == [[]]

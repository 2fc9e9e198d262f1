"""Prompts as other packs give them: KJNodes' Points Editor, Florence2toCoordinates of two packs; each contract as a value."""

import json
import logging

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from samkit.nodes.boxes import ConvertBoxes
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import SAMError
from samkit.utils.boxes import boxes_per_frame
from samkit.utils.points import points_per_frame
from test_utils import lists

CLICK = '[{"x": 30, "y": 25}]'
BOX = {"x": 10, "y": 12, "width": 44, "height": 30}


def points_editor(points, negative, boxes, form="xyxy", normalise=False, size=(80, 60)):
    """What KJNodes 1.5's Points Editor puts out: `bboxes` as drawn stay as they are where none is whole."""
    scale = size if normalise else (1, 1)
    texts = [
        json.dumps([{"x": x / scale[0], "y": y / scale[1]} for x, y in some] if some else empty)
        for some, empty in ((points, []), (negative, ""))
    ]
    if not boxes:
        return (*texts, [{}])
    corners = [(x, y, x + w, y + h) if form == "xyxy" else (x, y, w, h) for x, y, w, h in boxes]
    return (*texts, corners)


def masks_of(model, photo, **prompts):
    return Segment().execute(model, as_image(photo), **prompts)[0]


def test_the_points_editors_nothing_is_nothing(tiny_model, photo):
    positive, negative, boxes = points_editor([(30, 25)], [], [])
    assert (negative, boxes) == ('""', [{}])
    given = masks_of(tiny_model, photo, positive_coords=positive, negative_coords=negative, bboxes=boxes)
    assert torch.equal(given, masks_of(tiny_model, photo, positive_coords=CLICK)) and given.any()
    alone = masks_of(tiny_model, photo, bboxes=boxes)
    assert alone.shape == (1, 60, 80) and not alone.any()
    for nothing in ('""', '" "', "[{}]", "[[{}]]"):
        assert lists(points_per_frame(nothing, 2, "positive_coords")) == [[], []]
    for nothing in ([{}], [{}, {}], {}, [[{}], []], [[{}]]):
        assert lists(boxes_per_frame(nothing, 2)) == [[], []]


@pytest.mark.parametrize("form", ["xyxy", "xywh"])
def test_the_points_editors_boxes_in_both_forms(tiny_model, photo, form):
    *_, boxes = points_editor([(30, 25)], [], [(10, 12, 44, 30), (5, 40, 20, 15)], form)
    given = masks_of(tiny_model, photo, bboxes=boxes, box_form=form, individual_masks=True)
    both = [BOX, {"x": 5, "y": 40, "width": 20, "height": 15}]
    expected = masks_of(tiny_model, photo, bboxes=both, individual_masks=True)
    assert torch.equal(given, expected) and len(given) == 2 and given.any()
    embedding = GetSAMEmbedding().get_sam_embedding(as_image(photo), tiny_model)[0]
    predicted = PredictMask().execute(tiny_model, embedding, bboxes=boxes, box_form=form, individual_masks=True)[0]
    assert torch.equal(predicted, expected)


def test_the_form_is_only_that_of_four_numbers(tiny_model, photo):
    for form in ("auto", "xyxy", "xywh"):
        assert lists(boxes_per_frame([BOX], 1, form)) == [[[10, 12, 54, 42]]]
    with pytest.raises(SAMError, match="box_form is 'yxyx': choose one of auto, xyxy, xywh"):
        masks_of(tiny_model, photo, bboxes=[BOX], box_form="yxyx")


def test_a_box_that_cannot_be_two_corners_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "samkit"):
        boxes_per_frame([(300, 200, 50, 60)], 1)
        assert "set box_form to xywh" in caplog.text
        caplog.clear()
        boxes_per_frame([(300, 200, 50, 60)], 1, "xywh")
        boxes_per_frame([(300, 200, 50, 60)], 1, "xyxy")
        boxes_per_frame([(30, 20, 50, 60)], 1)
    assert not caplog.text


def test_normalised_points_are_refused_by_name(tiny_model, photo):
    positive, negative, _ = points_editor([(30, 25), (60, 50)], [(5, 5)], [], normalise=True)
    words = r"All points of {} are between 0 and 1 \(the first at x={}, y={}\).*80x60 pixels, and.*Turn normalize off"
    with pytest.raises(SAMError, match=words.format("positive_coords", "0.375", "0.416667")):
        masks_of(tiny_model, photo, positive_coords=positive)
    with pytest.raises(SAMError, match=words.format("negative_coords", "0.0625", "0.0833333")):
        masks_of(tiny_model, photo, negative_coords=negative)
    with pytest.raises(SAMError, match=words.format("positive_coords and negative_coords", "0.375", "0.416667")):
        masks_of(tiny_model, photo, positive_coords=positive, negative_coords=negative)
    embedding = GetSAMEmbedding().get_sam_embedding(as_image(photo), tiny_model)[0]
    with pytest.raises(SAMError, match=words.format("positive_coords", "0.375", "0.416667")):
        PredictMask().execute(tiny_model, embedding, positive_coords=positive)


@pytest.mark.parametrize(
    "points", ['[{"x": 0, "y": 0}]', '[{"x": 1, "y": 1}]', '[{"x": 0.5, "y": 0.5}, {"x": 30, "y": 1}]', "[]"]
)
def test_points_in_a_corner_are_points(tiny_model, photo, points):
    masks_of(tiny_model, photo, positive_coords=points)


def florence(data, index, batch):
    """Boxes of Florence2toCoordinates: kijai's has no second output where there is nothing, so the socket carries None."""
    if not data:
        return None
    frames = data if batch else data[:1]
    return [frame[index] for frame in frames]


def test_nothing_found_by_florence_is_an_empty_mask_per_frame(tiny_model):
    image = as_image(*(make_image(60, 80, seed) for seed in range(3)))
    for nothing in (florence([], 0, False), []):
        masks, boxes, scores, _ = Segment().execute(tiny_model, image, bboxes=nothing)
        assert masks.shape == (3, 60, 80) and not masks.any() and boxes == [[], [], []] and scores == [0.0] * 3
    assert not masks_of(tiny_model, make_image(60, 80), bboxes=None).any()
    with pytest.raises(SAMError, match="No prompt connected"):
        Segment().execute(tiny_model, image)


def test_florences_flat_list_of_a_batch_is_a_box_per_frame(caplog):
    data = [[[1.0, 2.0, 4.0, 6.0], [0.0, 0.0, 9.0, 9.0]], [[2.0, 2.0, 5.0, 6.0], [0.0, 0.0, 8.0, 8.0]]]
    with caplog.at_level(logging.INFO, "samkit"):
        assert lists(boxes_per_frame(florence(data, 0, True), 2)) == [[[1, 2, 4, 6]], [[2, 2, 5, 6]]]
    assert "one box per frame" in caplog.text
    assert lists(boxes_per_frame(florence(data, 1, False), 2)) == [[[0, 0, 9, 9]]] * 2
    corners = [tuple(box) for box in florence(data, 0, True)]
    assert lists(boxes_per_frame(corners, 2)) == [[[1, 2, 4, 6], [2, 2, 5, 6]]] * 2, "the Points Editor's are tuples"
    three = [*florence(data, 0, True), [0.0, 0.0, 1.0, 1.0]]
    assert [len(boxes) for boxes in boxes_per_frame(three, 2)] == [3, 3]
    assert lists(boxes_per_frame(three[:1], 1)) == [[[1, 2, 4, 6]]]


# Ours for others.

SCORED = {**BOX, "score": 0.5, "label": "cat"}


def test_boxes_are_converted_to_the_forms_of_others():
    boxes, corners, crop = ConvertBoxes().execute([[SCORED], [(1.5, 2, 4.2, 6), (0, 0, 2, 2)]], index=0, frame=1)
    small, tiny = {"x": 1.5, "y": 2, "width": pytest.approx(2.7), "height": 4}, {"x": 0, "y": 0, "width": 2, "height": 2}
    assert boxes == [[SCORED], [small, tiny]]
    assert np.allclose(corners[1], [[1.5, 2, 4.2, 6], [0, 0, 2, 2]]) and corners[0] == [[10, 12, 54, 42]]
    assert crop == {"x": 1, "y": 2, "width": 4, "height": 4} and all(type(value) is int for value in crop.values())


def test_kijais_sam_2_reads_the_converted_boxes():
    """Sam2Segmentation: a list of boxes for each of the lists, then an array."""
    *_, bboxes, _ = ConvertBoxes().execute([[SCORED, BOX]])
    read = [np.array(list(boxes)) for boxes in bboxes]
    assert len(read) == 1 and read[0].shape == (2, 4) and read[0][0].tolist() == [10, 12, 54, 42]


def test_the_crop_stays_inside_the_image_and_is_all_of_it_where_nothing_is_found():
    image = torch.zeros(1, 60, 80, 3)
    crop = ConvertBoxes().execute([(-5, 50, 90, 70)], image=image)[2]
    assert crop == {"x": 0, "y": 50, "width": 80, "height": 10}
    assert ConvertBoxes().execute(None, image=image)[2] == {"x": 0, "y": 0, "width": 80, "height": 60}
    assert ConvertBoxes().execute([(90, 70, 95, 75)], image=image)[2] == {"x": 79, "y": 59, "width": 1, "height": 1}
    with pytest.raises(SAMError, match="There is no box 0 in frame 0, which has 0 boxes. Connect the image"):
        ConvertBoxes().execute([])
    with pytest.raises(SAMError, match="There is no box 2 in frame 0, which has 1 box."):
        ConvertBoxes().execute([BOX], index=2, image=image)
    with pytest.raises(SAMError, match="frame is 2, but there are boxes for 2 frames: 0 to 1"):
        ConvertBoxes().execute([[BOX], [BOX]], frame=2)
    assert ConvertBoxes().execute([BOX], frame=7)[2] == BOX, "boxes of one list are those of every frame"
    assert ConvertBoxes().execute([(10, 12, 44, 30)], box_form="xywh")[2] == BOX

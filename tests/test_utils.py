"""Conversions: points, boxes, images, masks, photos for people."""

import math

import numpy as np
import pytest
import torch
from samkit.sam import SAMError
from samkit.utils.boxes import boxes_per_frame, nested_boxes, tight_box
from samkit.utils.images import as_masks, image_to_frames
from samkit.utils.overlay import draw_box, mark, outline, paint_masks, principal_components
from samkit.utils.points import points_per_frame

BOX = {"x": 1, "y": 2, "width": 3, "height": 4}
CORNERS = [1.0, 2.0, 4.0, 6.0]


def lists(per_frame):
    return [marks.rows.tolist() for marks in per_frame]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (BOX, [[CORNERS]] * 2),
        ([BOX], [[CORNERS]] * 2),
        ([BOX, BOX], [[CORNERS, CORNERS]] * 2),
        ([[BOX], []], [[CORNERS], []]),
        ([[BOX, (0, 0, 1, 1)]], [[CORNERS, [0, 0, 1, 1]]] * 2),
        ((1, 2, 4, 6), [[CORNERS]] * 2),
        ([1, 2, 4, 6], [[CORNERS]] * 2),
        ([(1, 2, 4, 6), [1, 2, 4, 6]], [[CORNERS, CORNERS]] * 2),
        ((4, 6, 1, 2), [[CORNERS]] * 2),
        ([[(1, 2, 4, 6)], [BOX]], [[CORNERS], [CORNERS]]),
        (np.array([[1, 2, 4, 6]]), [[CORNERS]] * 2),
        (torch.tensor([1, 2, 4, 6]), [[CORNERS]] * 2),
        ({**BOX, "score": 0.5, "label": "cat"}, [[CORNERS]] * 2),
        ([], [[], []]),
        ([[], []], [[], []]),
        ([[]], [[], []]),
    ],
)
def test_boxes_in_every_form(value, expected):
    assert lists(boxes_per_frame(value, 2)) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("12", "bboxes is '12'"),
        ({"x": 1, "y": 2}, "bboxes is {'x': 1"),
        ([BOX, (1, 2, 3)], r"bboxes\[1\] is \(1, 2, 3\)"),
        ([[BOX], [BOX], [BOX]], "the number of lists in bboxes is 3"),
        ((1, 2, math.nan, 4), "must be finite"),
        ([{**BOX, "x": True}], "must be {x, y, width, height}"),
        (5, "bboxes is 5"),
    ],
)
def test_boxes_of_another_form_are_refused(value, message):
    with pytest.raises(SAMError, match=message):
        boxes_per_frame(value, 2)


def test_lists_of_boxes_keep_frames_scores_and_labels():
    lists = nested_boxes([[{**BOX, "score": 0.5}], [], [(0, 0, 2, 1)]])
    assert lists == [[{**BOX, "score": 0.5}], [], [{"x": 0, "y": 0, "width": 2, "height": 1}]]
    assert nested_boxes(BOX) == nested_boxes([BOX]) == [[BOX]] and nested_boxes([]) == [[]]


def test_a_tight_box_ends_after_the_last_pixel():
    mask = torch.zeros(10, 20)
    mask[3:5, 7:12] = 1
    assert tight_box(mask) == {"x": 7, "y": 3, "width": 5, "height": 2}
    assert tight_box(torch.zeros(4, 4)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"x": 12.5, "y": 40}]', [[[12.5, 40]]] * 2),
        ('[[{"x": 1, "y": 2}], []]', [[[1, 2]], []]),
        ('[[{"x": 1, "y": 2}]]', [[[1, 2]]] * 2),
        ("[]", [[], []]),
        ("", [[], []]),
        ("  ", [[], []]),
    ],
)
def test_points_in_every_form(text, expected):
    assert lists(points_per_frame(text, 2, "positive_coords")) == expected


@pytest.mark.parametrize(
    "text",
    ["[", '{"x": 1, "y": 2}', "[1, 2]", '[{"x": 1}]', '[{"x": "1", "y": 2}]', '[{"x": NaN, "y": 2}]', '[{"x": true, "y": 2}]']
    + ["[[], [], []]", f'[{{"x": {10**400}, "y": 2}}]', "null", '[[{"x": 1, "y": 2}], {"x": 1, "y": 2}]'],
)
def test_points_of_another_form_are_refused_by_name(text):
    with pytest.raises(SAMError, match="positive_coords"):
        points_per_frame(text, 2, "positive_coords")


def test_every_level_survives_the_way_to_uint8():
    levels = torch.arange(256).reshape(1, 16, 16, 1).float() / 255
    for dtype in (torch.float32, torch.float16):
        (frame,) = image_to_frames(levels.to(dtype).expand(1, 16, 16, 3))
        assert (frame[..., 0].ravel() == np.arange(256)).all(), dtype


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_and_alpha_become_rgb(channels):
    image = torch.rand(2, 5, 7, channels)
    frames = image_to_frames(image)
    assert [frame.shape for frame in frames] == [(5, 7, 3)] * 2
    source = image[..., :3] if channels >= 3 else image[..., :1].expand(2, 5, 7, 3)
    assert np.abs(np.stack(frames) / 255 - source.numpy()).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("values", "levels"),
    [((-1.0, 0.5, -3e38), [0, 128, 0]), ((2.0, 0.5, 3e38), [255, 128, 255]), ((-1.0, 2.0, 0.0), [0, 255, 0])],
)
def test_values_outside_the_range_are_clipped(values, levels):
    (frame,) = image_to_frames(torch.tensor(values).reshape(1, 1, 1, 3))
    assert frame.ravel().tolist() == levels


def test_an_image_of_many_pieces_is_converted_whole():
    image = torch.rand(2, 300, 301, 3)
    frames = image_to_frames(image)
    assert np.array_equal(np.stack(frames), (image * 255).round().numpy().astype(np.uint8))
    image[1, 299, 300, 2] = math.inf
    with pytest.raises(SAMError, match=r"values that are NaN or infinite \(1 in total"):
        image_to_frames(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 4, 4, 3), math.nan), r"values that are NaN or infinite \(48 in total"),
        (torch.tensor([-math.inf, 0.0, 0.5]).reshape(1, 1, 1, 3), r"values that are NaN or infinite \(1 in total"),
        (torch.zeros(4, 4, 3), r"has the shape \(4, 4, 3\)"),
        (torch.zeros(1, 4, 4, 5), r"has the shape \(1, 4, 4, 5\)"),
        (torch.zeros(1, 0, 4, 3), "side of 0 pixels"),
        (None, "is None"),
    ],
)
def test_images_of_another_form_are_refused(image, message):
    with pytest.raises(SAMError, match=message):
        image_to_frames(image)


def test_masks_in_every_rank():
    for mask in (torch.ones(4, 5), torch.ones(1, 4, 5), torch.ones(1, 1, 4, 5)):
        assert as_masks(mask).shape == (1, 4, 5)
    assert as_masks(torch.tensor([[2.0, -1.0]])).tolist() == [[[1.0, 0.0]]]
    with pytest.raises(SAMError, match=r"has the shape \(1, 3, 4, 5\)"):
        as_masks(torch.ones(1, 3, 4, 5))
    with pytest.raises(SAMError, match="NaN"):
        as_masks(torch.full((1, 2, 2), math.nan))


def test_an_outline_is_the_rim_of_a_mask():
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    inner = np.zeros((7, 7), bool)
    inner[2:5, 2:5] = True
    assert (outline(mask) == (mask & ~inner)).all()


def test_painting_tints_inside_and_leaves_outside():
    frame = np.full((20, 20, 3), 100, np.uint8)
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :8, :8], masks[1, 12:, 12:] = True, True
    painted = paint_masks(frame, masks)
    assert (painted[9:11, 9:11] == 100).all()
    assert (painted[4, 4] != 100).any() and (painted[4, 4] != painted[16, 16]).any()
    assert (frame == 100).all()


def test_marks_and_boxes_are_drawn_in_place_and_stay_inside():
    frame = np.zeros((20, 20, 3), np.uint8)
    mark(frame, 0, 19, positive=True)
    mark(frame, 10, 10, positive=False)
    draw_box(frame, np.array([-5.0, 2.0, 50.0, 12.0]))
    assert frame[10, 10].tolist() == [255, 255, 255]
    assert frame[12, 5].tolist() == [255, 220, 0]


def test_principal_components_tell_regions_apart_and_cut_the_padding():
    features = np.zeros((8, 4, 6), np.float32)
    features[0, :, :3], features[1, :, 3:] = 5, 5
    photo = principal_components(features, inside=(64, 96), size=(40, 60))
    assert photo.shape == (40, 60, 3)
    assert np.abs(photo[20, 5].astype(int) - photo[20, 55]).max() > 200
    assert principal_components(features).shape == (64, 96, 3)
    assert principal_components(features[:, :1, :1]).shape == (16, 16, 3)

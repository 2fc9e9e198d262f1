"""Crops around masks for a sampler, and back: PIL says what a crop is, and outside of the masks nothing changes at all."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samkit import NODE_CLASS_MAPPINGS
from samkit.sam import SAMError

cut = NODE_CLASS_MAPPINGS["SAMKit_CropToMask"]().execute
stitch = NODE_CLASS_MAPPINGS["SAMKit_StitchCrop"]().execute


def photo(frames=1, height=60, width=90, channels=3, seed=0):
    return torch.rand(frames, height, width, channels, generator=torch.Generator().manual_seed(seed))


def mask_of(*boxes, size=(60, 90)):
    """A mask per box (x1, y1, x2, y2); None is an empty one."""
    masks = torch.zeros(len(boxes), *size)
    for mask, box in zip(masks, boxes, strict=True):
        if box:
            mask[box[1] : box[3], box[0] : box[2]] = 1
    return masks


def test_without_resizing_a_crop_has_the_pixels_of_the_image_around_the_mask():
    image, masks = photo(), mask_of((40, 20, 50, 30))
    crops, parts, crop = cut(image, masks, 1.6, 0, "8")
    # 10 pixels with 1.6 times the context are 16, and the object is in the middle
    assert crops.shape == (1, 16, 16, 3) and crop.corners == ((37, 17),)
    expected = Image.fromarray((image[0] * 255).byte().numpy()).crop((37, 17, 53, 33))
    assert ((crops[0] * 255).byte().numpy() == np.asarray(expected)).all()
    assert (parts[0] == masks[0, 17:33, 37:53]).all()


@pytest.mark.parametrize("box, corner", [((0, 0, 10, 10), (0, 0)), ((80, 50, 90, 60), (74, 44)), ((0, 25, 8, 31), (0, 20))])
def test_a_crop_at_the_edge_stays_inside_the_image(box, corner):
    _, parts, crop = cut(photo(), mask_of(box), 1.6, 0, "8")
    assert crop.corners == (corner,) and parts.sum() == mask_of(box).sum()


def test_a_crop_larger_than_the_image_repeats_its_edge_and_has_no_mask_there():
    image = photo(height=20, width=90)
    crops, parts, crop = cut(image, mask_of((0, 0, 90, 20), size=(20, 90)), 1.0, 0, "64")
    assert crops.shape == (1, 64, 128, 3) and crop.corners == ((-19, -22),)
    assert (crops[0, 22:42, 19:109] == image[0]).all()
    assert (crops[0, :22, 19:109] == image[0, 0]).all() and (crops[0, 42:, 19:109] == image[0, -1]).all()
    assert (crops[0, 22:42, :19] == image[0, :, :1]).all() and (crops[0, 22:42, 109:] == image[0, :, -1:]).all()
    assert parts[0, 22:42, 19:109].all() and parts.sum() == 20 * 90


@pytest.mark.parametrize("multiple", ["8", "16", "32", "64", "1"])
def test_resized_crops_have_the_long_side_and_are_multiples(multiple):
    image, masks = photo(), mask_of((40, 20, 52, 26))
    crops, parts, crop = cut(image, masks, 2.0, 256, multiple)
    assert crops.shape[1:3] == parts.shape[1:] == (128, 256) and crop.size == (12, 24)
    x, y = crop.corners[0]
    expected = Image.fromarray((image[0] * 255).byte().numpy()).crop((x, y, x + 24, y + 12)).resize((256, 128), Image.BICUBIC)
    assert np.abs((crops[0] * 255).numpy() - np.asarray(expected)).mean() < 2
    assert crops.min() >= 0 and crops.max() <= 1


def test_sides_that_are_no_multiple_are_rounded_up_and_the_crop_has_the_same_shape():
    crops, _, crop = cut(photo(), mask_of((40, 20, 53, 27)), 1.0, 100, "64")
    assert crops.shape[1:3] == (64, 128)
    assert crop.size == (8, 17)  # 64 and 128 pixels, 100/13 of them for each of the image's


def test_several_masks_of_several_images_are_one_batch_in_frame_order():
    image = photo(2)
    masks = mask_of((0, 0, 8, 8), (40, 20, 56, 28), None, (70, 40, 78, 56))
    crops, parts, crop = cut(image, masks, 1.0, 0, "8")
    assert crops.shape == (4, 16, 16, 3) and [crop.frame_of(index) for index in range(4)] == [0, 0, 1, 1]
    for index, (x, y) in enumerate(crop.corners):
        assert (crops[index] == image[index // 2, y : y + 16, x : x + 16]).all()
        assert (parts[index] == masks[index, y : y + 16, x : x + 16]).all()
    assert crop.corners[2] == (37, 22)  # an empty mask: the middle of the image


@pytest.mark.parametrize("masks", [torch.zeros(0, 60, 90), torch.zeros(2, 60, 90)])
def test_without_an_object_every_image_still_has_its_crop_and_comes_back_as_it_was(masks):
    image = photo(2)
    crops, parts, crop = cut(image, masks, 1.5, 128, "8")
    assert len(crops) == len(parts) == 2 and not parts.any()
    assert torch.equal(stitch(crop, torch.ones_like(crops))[0], image)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_outside_the_masks_nothing_changes_and_inside_is_what_the_sampler_made(data):
    height, width = (data.draw(st.integers(1, 40)) for _ in range(2))
    frames, each = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    image = torch.rand(frames, height, width, 3, generator=seed)
    masks = torch.rand(frames * each, height, width, generator=seed).mul(3).sub(2).clamp(0, 1)
    masks[data.draw(st.integers(0, len(masks) - 1))] = 0
    context, side = data.draw(st.floats(1, 3)), data.draw(st.sampled_from([0, 16, 64]))
    crops, _, crop = cut(image, masks, context, side, data.draw(st.sampled_from(["1", "8"])))
    (result,) = stitch(crop, torch.full_like(crops, 0.25))
    covered = masks.unflatten(0, (frames, each))
    assert torch.equal(result[(covered == 0).all(1)], image[(covered == 0).all(1)])
    expected = image.clone()
    for number in range(each):
        expected = expected + (0.25 - expected) * covered[:, number, :, :, None]
    assert torch.allclose(result, expected, atol=1e-6)


def test_what_is_not_resized_comes_back_exactly():
    image, masks = photo(), mask_of((40, 20, 50, 30))
    crops, _, crop = cut(image, masks, 2.0, 0, "8")
    (result,) = stitch(crop, 1 - crops)
    inside = masks[0] > 0
    assert torch.equal(result[0][inside], (1 - image)[0][inside]) and torch.equal(result[0][~inside], image[0][~inside])


def test_the_sampler_may_give_another_size():
    image, masks = photo(), mask_of((40, 20, 50, 30))
    crops, parts, crop = cut(image, masks, 2.0, 0, "8")
    (result,) = stitch(crop, torch.full((1, 48, 48, 3), 0.5))
    assert torch.allclose(result[0][masks[0] > 0], torch.tensor(0.5)) and torch.equal(
        result[0][masks[0] == 0], image[0][masks[0] == 0]
    )


@pytest.mark.parametrize("channels, made, expected", [(4, 3, 4), (3, 4, 3), (1, 3, 3), (1, 1, 1), (2, 3, 4), (3, 1, 3)])
def test_alpha_stays_and_gray_becomes_coloured_where_it_must(channels, made, expected):
    image, masks = photo(channels=channels), mask_of((40, 20, 50, 30))
    crops, _, crop = cut(image, masks, 1.5, 0, "8")
    (result,) = stitch(crop, torch.full((*crops.shape[:3], made), 0.5))
    assert result.shape == (1, 60, 90, expected)
    assert (result[0, 25, 45, : 3 if expected > 2 else 1] == 0.5).all()
    if channels in (2, 4):
        assert torch.equal(result[..., -1], image[..., -1])


def test_bad_input_is_refused():
    image, masks = photo(2), mask_of((40, 20, 50, 30), (0, 0, 4, 4))
    with pytest.raises(SAMError, match="masks have 64x64 pixels, but image has 90x60: connect the image that the masks are of"):
        cut(image, torch.zeros(1, 64, 64))
    with pytest.raises(SAMError, match="masks: 3, images: 2. Connect one mask per image"):
        cut(image, torch.cat([masks, masks[:1]]))
    with pytest.raises(SAMError, match="context is 0.5: it must be a number from 1 to 10"):
        cut(image, masks, 0.5)
    crops, _, crop = cut(image, masks)
    with pytest.raises(SAMError, match="image has 1 frame, but there are 2 crops: connect what the sampler made"):
        stitch(crop, crops[:1])
    for wrong, message in ((crops * math.nan, "NaN or infinite"), (crops * 255, "Divide by 255")):
        with pytest.raises(SAMError, match=message):
            stitch(crop, wrong)
        with pytest.raises(SAMError, match=message):
            cut(wrong, torch.ones(wrong.shape[:3]))
    assert stitch(crop, crops * 1.5)[0].max() == 1
    with pytest.raises(SAMError, match="crop is 'x': connect SAM Crop to Mask"):
        stitch("x", crops)

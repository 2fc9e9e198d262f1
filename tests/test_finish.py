"""Finishing: every step is scipy's own operation bit for bit, at the image's edges too; paint is what its runs say."""

import base64
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from samkit.nodes.refine import FINISH_INPUTS, RefineMask
from samkit.sam import SAMError
from samkit.utils.finish import LIMITS, Finish, finish_mask, grown
from samkit.utils.patches import ADD, LEAVE, MOST_PIXELS, MOST_SIDE, REMOVE, Patch, paint_over, parse_patch
from scipy import ndimage

EIGHT = np.ones((3, 3))


def blobs(seed, size=(61, 83), share=0.5):
    """A mask of blobs of all sizes, with specks and holes, that reaches the edges."""
    rng = np.random.default_rng(seed)
    levels = sum(ndimage.gaussian_filter(rng.normal(size=size), sigma) * sigma for sigma in (0.6, 2, 6))
    return levels > np.quantile(levels, 1 - share)


MASKS = st.one_of(
    arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)),
    st.builds(blobs, st.integers(0, 10**6), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.floats(0.05, 0.95)),
)


def disk(radius):
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return rows**2 + columns**2 <= radius**2


def finished(mask, **options):
    return finish_mask(mask, Finish(**options))


@settings(max_examples=150, deadline=None)
@given(MASKS, st.integers(1, 9))
def test_growing_and_shrinking_are_dilation_and_erosion_by_a_disk(mask, pixels):
    before = mask.copy()
    assert (grown(mask, pixels) == ndimage.binary_dilation(mask, disk(pixels))).all()
    assert (grown(mask, -pixels) == ndimage.binary_erosion(mask, disk(pixels), border_value=1)).all()
    assert (mask == before).all()


@pytest.mark.parametrize("pixels", [20, 37, 70, 256])
def test_a_radius_beyond_the_image_too(pixels):
    for seed in range(3):
        mask = blobs(seed, share=0.1 if seed else 0.9)
        assert (grown(mask, pixels) == (ndimage.distance_transform_edt(~mask) <= pixels)).all()
        assert (
            grown(mask, -pixels) == (ndimage.distance_transform_edt(np.pad(mask, 300, "edge")) > pixels)[300:-300, 300:-300]
        ).all()


def test_a_mask_does_not_shrink_from_the_images_edge_nor_feather_there():
    mask = np.zeros((20, 30), bool)
    mask[5:, :20] = True
    shrunk = grown(mask, -3)
    assert shrunk[8:, :17].all() and shrunk.sum() == 12 * 17
    assert (finished(mask, feather=1.5)[15:, :10] == 1).all()


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(1, 60))
def test_holes_are_scipys_and_only_the_small_ones_are_filled(mask, most):
    holes = ndimage.binary_fill_holes(mask) & ~mask
    labels, count = ndimage.label(holes)
    areas = ndimage.sum_labels(holes, labels, range(count + 1))
    assert (finished(mask, fill_holes=LIMITS["fill_holes"][1]) == ndimage.binary_fill_holes(mask)).all()
    assert (finished(mask, fill_holes=most) == (mask | (holes & (areas <= most)[labels]))).all()


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(1, 60))
def test_islands_below_the_area_are_dropped_and_no_others(mask, least):
    labels, count = ndimage.label(mask, EIGHT)
    areas = ndimage.sum_labels(mask, labels, range(count + 1))
    assert (finished(mask, drop_islands=least) == (mask & (areas >= least)[labels])).all()


@settings(max_examples=60, deadline=None)
@given(MASKS, st.floats(0.1, 12))
def test_smoothing_and_feathering_are_scipys_gaussian(mask, deviation):
    blurred = ndimage.gaussian_filter(mask.astype(np.float32), deviation, mode="nearest")
    assert (finished(mask, smooth=deviation) == (blurred > 0.5)).all()
    assert (finished(mask, feather=deviation) == blurred.clip(0, 1)).all()


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(0, 30), st.integers(0, 30), st.integers(0, 3), st.integers(-4, 4), st.booleans(), st.integers(0, 3))
def test_all_steps_in_their_order_with_paint_before_the_feather(mask, holes, islands, smooth, grow, invert, feather):
    patch = painted(np.random.default_rng(holes).integers(0, 3, (4, 5)), 1, 2)
    expected = mask
    for options in ({"fill_holes": holes}, {"drop_islands": islands}, {"smooth": smooth}, {"grow": grow}):
        expected = finished(expected, **options) > 0
    expected = paint_over(expected ^ invert, [patch])
    options = Finish(holes, islands, smooth, grow, invert, feather)
    assert (finish_mask(mask, options, [patch]) == finished(expected, feather=feather)).all()


def test_soft_masks_keep_their_levels_where_nothing_shapes_them():
    soft = ndimage.gaussian_filter(blobs(1).astype(np.float32), 2)
    assert (finished(soft) == soft).all() and (finished(soft, invert=True) == 1 - soft).all()
    assert (finished(soft, feather=3) == ndimage.gaussian_filter(soft, 3, mode="nearest").clip(0, 1)).all()
    assert (finished(soft, grow=2) == ndimage.binary_dilation(soft > 0.5, disk(2))).all()


@pytest.mark.parametrize(
    "mask", [np.zeros((7, 9), bool), np.ones((7, 9), bool), np.ones((1, 1), bool)], ids=["none", "all", "1"]
)
def test_masks_of_one_value_stay_what_they_are(mask):
    options = {"fill_holes": 9, "drop_islands": 1, "smooth": 3, "feather": 2.5}
    for grow in (-5, 5):
        assert (finished(mask, grow=grow, **options) == mask).all()


@pytest.mark.parametrize(
    ("name", "value"), [("grow", 257), ("grow", -257), ("smooth", -1), ("feather", float("nan")), ("fill_holes", -1)]
)
def test_an_option_beyond_its_limits_is_named(name, value):
    with pytest.raises(SAMError, match=f"^{name} is .*: it must be"):
        Finish(**{name: value})


def test_memory_is_bounded_by_the_image():
    mask = ndimage.zoom(blobs(3).astype(np.float32), 16, order=0) > 0
    tracemalloc.start()
    finished(mask, fill_holes=500, drop_islands=500, smooth=4, grow=6, feather=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * mask.size


# --- paint


def coded(kinds):
    """The text of kinds uint8 `[h, w]`, number by number."""
    flat, out, start = kinds.ravel(), bytearray(), 0
    for index in range(1, len(flat) + 1):
        if index == len(flat) or flat[index] != flat[start]:
            number = 3 * (index - start) + int(flat[start])
            while number > 127:
                out.append(number & 127 | 128)
                number >>= 7
            out.append(number)
            start = index
    return base64.b64encode(out).decode()


def painted(kinds, x=0, y=0, **more):
    height, width = kinds.shape
    return parse_patch({"x": x, "y": y, "width": width, "height": height, "runs": coded(kinds), **more})


@settings(max_examples=80, deadline=None)
@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 2)))
def test_runs_are_read_as_they_were_written(kinds):
    assert (painted(kinds).kinds() == kinds).all()


def test_the_text_is_the_one_that_the_editor_writes():
    """tests/javascript/patches.test.mjs has the same."""
    assert coded(np.array([[0, 0, 1, 1], [1, 2, 2, 0], [0, 0, 0, 0]], np.uint8)) == "BgoIDw=="


def test_long_runs_too():
    kinds = np.full((600, 800), LEAVE, np.uint8)
    kinds[300:500, 7] = ADD
    patch = painted(kinds)
    assert (patch.kinds() == kinds).all() and len(patch.runs) < 2_000


def test_paint_adds_removes_and_leaves_and_its_outside_is_left_out():
    mask = blobs(2, (30, 40))
    kinds = np.random.default_rng(0).integers(0, 3, (20, 25)).astype(np.uint8)
    x, y = 28, 15
    inside = kinds[: 30 - y, : 40 - x]
    expected = mask.copy()
    expected[y:, x:] = np.where(inside == ADD, True, np.where(inside == REMOVE, False, mask[y:, x:]))
    before = mask.copy()
    assert (paint_over(mask, [painted(kinds, x, y), painted(kinds, 100, 100)]) == expected).all() and (mask == before).all()
    assert paint_over(mask, []) is mask


GOOD = {"x": 1, "y": 2, "width": 2, "height": 2, "runs": coded(np.ones((2, 2), np.uint8))}


@pytest.mark.parametrize(
    "change",
    [
        {"x": -1}, {"x": 1.5}, {"x": True}, {"y": MOST_SIDE + 1}, {"width": 0}, {"height": 10**30}, {"frame": -1},
        {"frame": None}, {"width": 3}, {"runs": 5}, {"runs": ""}, {"runs": "*"}, {"runs": "\u00e9"}, {"runs": "gA=="},
        {"runs": "gICAgAE="}, {"runs": "AA=="}, {"runs": "A" * (1 << 20) + "AAAA"}, {"more": 1},
        {"width": MOST_SIDE, "height": MOST_PIXELS // MOST_SIDE + 1},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_a_hostile_patch_is_refused_in_one_sentence(change):
    assert parse_patch(GOOD) == Patch(**GOOD)
    with pytest.raises(SAMError) as refusal:
        parse_patch(GOOD | change)
    assert len(str(refusal.value)) < 200


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(1, 5), st.integers(1, 5))
def test_runs_of_any_bytes_are_read_or_refused(data, width, height):
    try:
        patch = parse_patch(GOOD | {"runs": base64.b64encode(data).decode(), "width": width, "height": height})
    except SAMError:
        return
    assert patch.kinds().shape == (height, width) and patch.kinds().max() <= REMOVE


@pytest.mark.parametrize("value", [None, [], "patch", {}, {"x": 1}])
def test_what_is_no_patch_is_refused(value):
    with pytest.raises(SAMError, match="is not a patch"):
        parse_patch(value)


# --- the node


def test_the_node_finishes_each_mask_of_a_batch_on_its_own():
    masks = torch.from_numpy(np.stack([blobs(seed) for seed in range(3)])).float()
    (out,) = RefineMask().execute(masks, 20, 10, 1.5, -2, True, 2.0)
    expected = [finish_mask(mask.numpy() > 0, Finish(20, 10, 1.5, -2, True, 2.0)) for mask in masks]
    assert out.dtype == torch.float32 and (out.numpy() == np.stack(expected)).all()
    assert (RefineMask().execute(masks)[0] == masks).all()
    assert RefineMask().execute(masks[0])[0].shape == (1, 61, 83) and RefineMask().execute(masks[:0])[0].shape == (0, 61, 83)


def test_the_nodes_inputs_are_the_options():
    assert list(FINISH_INPUTS) == list(Finish.__dataclass_fields__)
    for name, (low, high) in LIMITS.items():
        assert (FINISH_INPUTS[name][1]["min"], FINISH_INPUTS[name][1]["max"]) == (low, high)

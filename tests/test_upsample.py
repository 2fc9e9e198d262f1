"""Masks at full size, and their boxes, are those of `Sam.postprocess_masks`; and no more of them is made than need be."""

import numpy as np
import pytest
import torch
from reference import random_sam
from samkit.sam.geometry import Geometry
from samkit.sam.kernels import upsample
from samkit.sam.kernels.upsample import axes, extents
from segment_anything.utils.amg import batched_mask_to_box
from segment_anything.utils.transforms import ResizeLongestSide

SIZES = [(128, 128), (300, 211), (97, 128), (20, 33), (900, 40)]


@pytest.fixture(scope="module")
def sam():
    return random_sam(32, 3, 2, (1,), grid=8, window=3, out_chans=32, mlp_dim=64)


def of_size(sam, size):
    """The axes, and what the reference makes of logits `[4h, 4w]`, for an image of a size."""
    side = sam.image_encoder.img_size
    inside = ResizeLongestSide.get_preprocess_shape(*size, side)
    down, across = axes(Geometry(size, inside, side, sam.prompt_encoder.mask_input_size, True))
    return down, across, lambda logits: sam.postprocess_masks(logits[None, None], inside, size)[0, 0]


def reach_of(axis, above):
    return axis.reached_from(above.numpy())


def some_logits(kind, generator):
    values = torch.randn(32, 32, generator=generator)
    if kind == "blobs":  # an edge is near the outermost logit above the threshold
        smooth = torch.nn.functional.avg_pool2d(values[None, None], 9, 1, 4)[0, 0]
        return smooth / smooth.std() - 1.0
    return 100 * (values - 1.5)  # grains: many a peak is none at full size


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_the_references(sam, size):
    down, across, reference = of_size(sam, size)
    logits = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(32, dtype=torch.bool)
    rows, columns = reach_of(down, everything), reach_of(across, everything)
    full = rows.pixels(columns.pixels(logits[rows.source, columns.source].T).T)
    assert full.shape == size and (rows.first, columns.first) == (0, 0)
    torch.testing.assert_close(full, reference(logits), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["blobs", "grains"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_extents_are_the_references(sam, size, kind):
    down, across, reference = of_size(sam, size)
    generator, empty = torch.Generator().manual_seed(1), 0
    for _ in range(40):
        logits = some_logits(kind, generator)
        above, mask = logits > 0, reference(logits) > 0
        rows, columns = reach_of(down, above.any(1)), reach_of(across, above.any(0))
        assert (rows and columns) or not mask.any()
        box = extents(logits[rows.source, columns.source], rows, columns, 0.0) if rows and columns else None
        empty += box is None
        assert (box or (0, 0, 0, 0)) == tuple(batched_mask_to_box(mask[None])[0].tolist())
    assert empty < 40


def test_the_box_of_a_blob_takes_its_edges_only(sam, monkeypatch):
    down, across, reference = of_size(sam, (1200, 900))
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    logits = 36 - (y - 14) ** 2 - (x - 9) ** 2
    rows, columns = reach_of(down, (logits > 0).any(1)), reach_of(across, (logits > 0).any(0))
    monkeypatch.setattr(upsample, "_extents_of_all", None)
    box = extents(logits[rows.source, columns.source], rows, columns, 0.0)
    assert box == tuple(batched_mask_to_box((reference(logits) > 0)[None])[0].tolist())


def test_logits_outside_the_image_reach_nothing(sam):
    down, across, _ = of_size(sam, (64, 128))  # the lower half of the model's square is padding
    padding = np.zeros(32, bool)
    padding[20:] = True
    assert down.reached_from(padding) is None and across.reached_from(padding) is not None

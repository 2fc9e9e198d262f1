"""Finishing a mask: fill holes, drop islands, smooth, grow or shrink, invert, paint, feather; one image at a time."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .errors import SAMError
from .patches import Patch, paint_over
from .regions import ndimage, regions

INSIDE = 0.5  # a pixel above this is in the mask
LIMITS: dict[str, tuple[int, int]] = {
    "fill_holes": (0, 1 << 26),
    "drop_islands": (0, 1 << 26),
    "smooth": (0, 64),
    "grow": (-256, 256),
    "feather": (0, 128),
}
_SCIPY = "fill_holes, drop_islands, smooth and feather"  # what needs it
_REACH = 4.0  # standard deviations, where scipy ends its Gaussian by default


@dataclass(frozen=True)
class Finish:
    """What is done to a mask, in the order of the attributes; by default nothing.

    Attributes:
        fill_holes: largest area in pixels of a hole to fill. A hole is enclosed by the mask (4-connected); what reaches the
            image's edge is not one.
        drop_islands: islands (8-connected) of fewer pixels are removed.
        smooth: standard deviation in pixels of a Gaussian blur, of which what is above one half is the mask.
        grow: pixels to grow by, or, below 0, to shrink by, in all directions alike (a disk).
        invert: exchange inside and outside.
        feather: standard deviation in pixels of a Gaussian blur of the edge, last of all.
    """

    fill_holes: int = 0
    drop_islands: int = 0
    smooth: float = 0.0
    grow: int = 0
    invert: bool = False
    feather: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise SAMError(f"{name} is {reprlib.repr(getattr(self, name))}: it must be {low} to {high}.")

    @property
    def has_effect(self) -> bool:
        """Whether anything is done."""
        return any(getattr(self, field.name) != field.default for field in fields(self))

    @property
    def shapes(self) -> bool:
        """Whether a step needs a mask without levels."""
        return bool(self.fill_holes or self.drop_islands or self.smooth or self.grow)


def finish_mask(mask: np.ndarray, finish: Finish, patches: Sequence[Patch] = ()) -> np.ndarray:
    """Finish a mask: what the editor's preview, its run and SAM Refine Mask do.

    Paint is laid over what the other steps have made, so that they neither undo nor change it; only the feather comes after.

    Args:
        mask: bool or float in 0..1, `[H, W]`. With a step that shapes it, or with paint, it is cut at one half before;
            `invert` and `feather` alone keep its levels.
        finish: see `Finish`.
        patches: see `paint_over`.

    Returns:
        A new float32 `[H, W]` in 0..1. Beside it some 10 bytes a pixel of the mask's bounding box are used for a while.

    Raises:
        SAMError: a step needs scipy, which is absent.
    """
    if finish.shapes or patches or mask.dtype == bool:
        mask = shape_mask(mask > INSIDE, finish)
        mask = paint_over(mask ^ finish.invert, patches)
    elif finish.invert:
        mask = 1 - mask
    return feathered(mask.astype(np.float32), finish.feather)


def shape_mask(mask: np.ndarray, finish: Finish) -> np.ndarray:
    """The steps that leave a mask bool `[H, W]`, but for `invert`; the same mask where there is none."""
    if finish.fill_holes:
        mask = mask | _regions(~mask, finish.fill_holes, is_hole=True)
    if finish.drop_islands:
        mask = mask & ~_regions(mask, finish.drop_islands - 1)
    if finish.smooth:
        mask = _blurred(mask.astype(np.float32), finish.smooth) > INSIDE
    return grown(mask, finish.grow) if finish.grow else mask


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Dilate a mask bool `[H, W]` by a disk, or erode it with `pixels` below 0: bit for bit scipy's and scikit-image's.

    Nothing grows in from outside of the image. A mask does not shrink away from the image's edge: beyond it the object goes
    on (scikit-image's `binary_erosion`; scipy's with `border_value=1`).

    Returns:
        A new bool `[H, W]`.
    """
    out = np.zeros_like(mask)
    part = _around(mask, pixels if pixels > 0 else 1)
    if part is not None:
        out[part] = _dilated(mask[part], pixels) if pixels > 0 else ~_dilated(~mask[part], -pixels)
    return out


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """The union of the rows of the disk x*x + y*y <= radius*radius, from its poles to its middle, each wider than the last.

    Six times as fast as a distance transform for a radius of 40, sixty times for one of 3, and the preview waits for it.
    """
    height, wide, out, reach = len(mask), mask.copy(), np.zeros_like(mask), 0
    for dy in range(radius, -1, -1):
        while (reach + 1) ** 2 + dy * dy <= radius * radius:
            reach += 1
            wide[:, reach:] |= mask[:, :-reach]
            wide[:, :-reach] |= mask[:, reach:]
        if dy < height:
            out[dy:] |= wide[: height - dy]
            out[: height - dy] |= wide[dy:]
    return out


def feathered(mask: np.ndarray, deviation: float) -> np.ndarray:
    """Blur a mask float32 `[H, W]` by a Gaussian, as scipy does.

    At the image's edge the nearest pixel goes on outside, so a mask that touches it stays opaque there.
    """
    if not deviation:
        return mask
    return np.clip(_blurred(mask, deviation), 0, 1)  # its weights add up to 1 but for rounding


def _blurred(mask: np.ndarray, deviation: float) -> np.ndarray:
    out, part = np.zeros_like(mask), _around(mask, int(_REACH * deviation + 0.5))
    if part is not None:
        out[part] = ndimage(_SCIPY).gaussian_filter(mask[part], deviation, mode="nearest", truncate=_REACH)
    return out


def _regions(mask: np.ndarray, most: int, is_hole: bool = False) -> np.ndarray:
    """Connected regions of at most so many pixels: bool `[H, W]`. A hole is 4-connected and does not reach the image's edge."""
    labels, sizes = regions(mask, not is_hole, _SCIPY)
    few = sizes <= most
    few[0] = False
    if is_hole:
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            few[edge] = False
    return few[labels]


def _around(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """The bounding box of what is not 0, and a margin; None where there is nothing."""
    filled = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    if not len(filled[0]):
        return None
    rows, columns = (slice(max(0, places[0] - margin), places[-1] + 1 + margin) for places in filled)
    return rows, columns

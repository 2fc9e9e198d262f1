"""Masks of segment everything, each stored inside its box only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..geometry import Size, Window

Box = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in pixels of an image, the last column and row included."""


@dataclass(frozen=True)
class FoundMask:
    """One mask, stored inside its box only.

    Attributes:
        bits: uint8, the mask inside its box, row by row, eight pixels to a byte: thousands wait for non-maximum suppression.
        box: (x1, y1, x2, y2) in the image, the last row and column included, as the reference has it.
        score: predicted IoU.
        stability: IoU of the masks at a higher and a lower threshold.
        point: (x, y) of its prompt.
        crop: (x1, y1, x2, y2) of the crop that it was found in.
    """

    bits: np.ndarray
    box: Box
    score: float
    stability: float
    point: tuple[float, float]
    crop: Box

    @property
    def pixels(self) -> np.ndarray:
        """The mask inside its box, bool `[h, w]`."""
        x1, y1, x2, y2 = self.box
        height, width = y2 - y1 + 1, x2 - x1 + 1
        return np.unpackbits(self.bits, count=height * width).astype(bool).reshape(height, width)

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.unpackbits(self.bits).sum())  # the last byte is filled up with zeros

    def full(self, size: Size) -> np.ndarray:
        """The mask bool `[H, W]` in an image of that size."""
        mask = np.zeros(size, dtype=bool)
        x1, y1, x2, y2 = self.box
        mask[y1 : y2 + 1, x1 : x2 + 1] = self.pixels
        return mask

    @property
    def ends(self) -> Window:
        """The box, without the last column and row."""
        x1, y1, x2, y2 = self.box
        return x1, y1, x2 + 1, y2 + 1

    def part(self, window: Window) -> np.ndarray:
        """The mask in a window of the image, bool `[h, w]`."""
        x1, y1, x2, y2 = self.box
        left, top, right, bottom = max(x1, window[0]), max(y1, window[1]), min(x2 + 1, window[2]), min(y2 + 1, window[3])
        mask = np.zeros((window[3] - window[1], window[2] - window[0]), dtype=bool)
        if left < right and top < bottom:
            inside = self.pixels[top - y1 : bottom - y1, left - x1 : right - x1]
            mask[top - window[1] : bottom - window[1], left - window[0] : right - window[0]] = inside
        return mask

    def iou(self, other: "FoundMask", window: Window) -> float:
        """See `tiles.Part`."""
        own, its = self.ends, other.ends
        limits = list(zip(own, its, window, strict=True))
        if any(max(limits[axis]) >= min(limits[axis + 2]) for axis in (0, 1)):
            return 0.0
        x1, y1 = (max(min(own[axis], its[axis]), window[axis]) for axis in (0, 1))
        x2, y2 = (min(max(own[axis], its[axis]), window[axis]) for axis in (2, 3))
        one, two = self.part((x1, y1, x2, y2)), other.part((x1, y1, x2, y2))
        common = int((one & two).sum())
        return common / int((one | two).sum()) if common else 0.0

    def joined(self, others: Sequence["FoundMask"], crop: Window) -> "FoundMask":
        """See `tiles.Part`; the point is this one's, and the scores are means by area."""
        every = [self, *others]
        lefts, tops, rights, bottoms = zip(*(one.ends for one in every), strict=True)
        x1, y1, x2, y2 = min(lefts), min(tops), max(rights), max(bottoms)
        mask = np.logical_or.reduce([one.part((x1, y1, x2, y2)) for one in every])
        areas = [one.area for one in every]
        score = float(np.average([one.score for one in every], weights=areas))
        stability = float(np.average([one.stability for one in every], weights=areas))
        return FoundMask(np.packbits(mask), (x1, y1, x2 - 1, y2 - 1), score, stability, self.point, crop)

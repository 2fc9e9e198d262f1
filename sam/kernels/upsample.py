"""Low-resolution logits to the size of the source image, as the model's own post-processing does it.

`resize_logits` is for whole masks. The rest is the same for one mask at a time, of it only what is needed: all bilinear
resizes, and the crop between them, are one matrix per axis. A pixel is a convex combination of a few
logits that lie side by side: no pixel is above all the logits that it is made of, and a band of pixels needs a band of logits.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry import Geometry

_BAND = 128  # pixels made by one product: more take part in needless products with zeros, fewer in more calls
_STRIP = 4  # logits in the breadth of which a mask's edge is searched


def resize_logits(logits: Tensor, geometry: Geometry) -> Tensor:
    """Low-resolution logits `[N, 4h, 4w]` -> `[N, H, W]`: `Sam.postprocess_masks`, or SAM 2's single resize."""
    logits = logits[:, None]
    if geometry.through_square:
        logits = F.interpolate(logits, (geometry.side, geometry.side), mode="bilinear", align_corners=False)
        logits = logits[..., : geometry.resized[0], : geometry.resized[1]]
    return F.interpolate(logits, geometry.original, mode="bilinear", align_corners=False)[:, 0]


class Axis:
    """One axis of the resize: its matrix float32 `[full, low]`, and which low-resolution logits reach which pixels."""

    def __init__(self, geometry: Geometry, axis: int) -> None:
        grid, side, inside, original = geometry.grid[axis], geometry.side, geometry.resized[axis], geometry.original[axis]
        if geometry.through_square:
            self.matrix = (_resize_matrix(inside, original) @ _resize_matrix(grid, side)[:inside]).float()
        else:
            self.matrix = _resize_matrix(grid, original).float()
        self.strip = math.ceil(_STRIP * original / (grid * inside / side))
        taken = (self.matrix != 0).numpy()
        self.first_tap, self.last_tap = taken.argmax(1), taken.shape[1] - 1 - taken[:, ::-1].argmax(1)
        self._reaches = taken.any(0)
        self._first, self._last = taken.argmax(0), taken.shape[0] - 1 - taken[::-1].argmax(0)

    def reached_from(self, logits: np.ndarray) -> "Reach | None":
        """The pixels from the first to the last that the given logits (bool `[low]`) reach; None if they reach none."""
        indices = np.flatnonzero(logits & self._reaches)
        return Reach(self, int(self._first[indices[0]]), int(self._last[indices[-1]])) if len(indices) else None


class Reach:
    """The pixels of an axis from `first` to `last`, and the logits (`source`) that they are made of."""

    def __init__(self, axis: Axis, first: int, last: int) -> None:
        self.axis, self.first, self.last = axis, first, last
        self.source = slice(int(axis.first_tap[first]), int(axis.last_tap[last]) + 1)

    def pixels(self, logits: Tensor) -> Tensor:
        """All the pixels `[last - first + 1, n]` from the logits `[source, n]`."""
        full = torch.empty(self.last - self.first + 1, logits.shape[1])
        for first in range(self.first, self.last + 1, _BAND):
            band = Reach(self.axis, first, min(first + _BAND - 1, self.last))
            matrix = self.axis.matrix[band.first : band.last + 1, band.source]
            torch.mm(matrix, logits[band.taps(self)], out=full[first - self.first : band.last - self.first + 1])
        return full

    def taps(self, whole: "Reach") -> slice:
        """Where the logits of these pixels lie among those of a larger reach."""
        return slice(self.source.start - whole.source.start, self.source.stop - whole.source.start)

    def reached_from(self, logits: np.ndarray) -> "Reach | None":
        """Of these pixels those that the given logits (bool `[source]`) reach; None if they reach none."""
        all_logits = np.zeros(self.axis.matrix.shape[1], dtype=bool)
        all_logits[self.source] = logits
        return self.axis.reached_from(all_logits)


def extents(logits: Tensor, down: Reach, across: Reach, threshold: float) -> tuple[int, int, int, int] | None:
    """The box (x1, y1, x2, y2), last row and column included, of the pixels above a threshold; None if there are none.

    Mostly it takes no more than a strip at each edge.

    Args:
        logits: float32 `[down.source, across.source]`; those above the threshold reach no pixel outside `down` and `across`.
    """
    above = logits.numpy() > threshold
    edges = []
    for values, high, along, other in ((logits.T, above.T, across, down), (logits, above, down, across)):
        for end in (0, -1):
            edge = _edge(values, high, along, other, threshold, end)
            if edge is None:
                return _extents_of_all(logits, down, across, threshold)
            edges.append(edge)
    x1, x2, y1, y2 = edges
    return x1, y1, x2, y2


def _edge(logits: Tensor, above: np.ndarray, along: Reach, other: Reach, threshold: float, end: int) -> int | None:
    """The first (`end` 0) or the last (-1) pixel of `along` with a value above the threshold, if it is near that end."""
    size = along.axis.strip
    first = along.first if end == 0 else max(along.first, along.last - size + 1)
    strip = Reach(along.axis, first, min(first + size - 1, along.last))
    taps = strip.taps(along)
    cross = other.reached_from(above[taps].any(0))
    if cross is None:
        return None
    half = along.axis.matrix[strip.first : strip.last + 1, strip.source] @ logits[taps, cross.taps(other)]
    hits = np.flatnonzero((cross.pixels(half.T).numpy() > threshold).any(0))
    return strip.first + int(hits[end]) if len(hits) else None


def _extents_of_all(logits: Tensor, down: Reach, across: Reach, threshold: float) -> tuple[int, int, int, int] | None:
    above = down.pixels(across.pixels(logits.T).T).numpy() > threshold
    rows, columns = np.flatnonzero(above.any(1)), np.flatnonzero(above.any(0))
    if not len(rows):
        return None
    return (
        across.first + int(columns[0]),
        down.first + int(rows[0]),
        across.first + int(columns[-1]),
        down.first + int(rows[-1]),
    )


def axes(geometry: Geometry) -> tuple[Axis, Axis]:
    """Rows and columns of an image."""
    return Axis(geometry, 0), Axis(geometry, 1)


def _resize_matrix(count: int, wanted: int) -> Tensor:
    """`F.interpolate(mode="bilinear", align_corners=False)` along one axis, as a matrix float64 `[wanted, count]`."""
    places = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * (count / wanted) - 0.5).clamp(min=0)
    first = places.floor().long().clamp(max=count - 1)
    share = places - first
    matrix = torch.zeros(wanted, count, dtype=torch.float64)
    row = torch.arange(wanted)
    matrix[row, first] += 1 - share
    matrix[row, (first + 1).clamp(max=count - 1)] += share
    return matrix

"""How an image, or a part of it, lies in a model's square input, and in the grid of its mask logits."""

import math
from typing import NamedTuple

Size = tuple[int, int]
"""(height, width)."""
Window = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in pixels of an image, without the last column and row."""

_MARGIN = 0.25  # of the longer side of what a cut is made around, at each side
_STEPS = 8  # places of a cut in its own side


class Geometry(NamedTuple):
    """Where an image is inside a model's input.

    Attributes:
        original: (H, W) of the source image.
        resized: (h, w) of the resized image inside the square: SAM fits the long side and pads, SAM 2 fills the square.
        side: pixels on a side of the square input.
        grid: (4h, 4w) of the low-resolution mask logits.
        through_square: whether logits are upsampled to the square, cropped to `resized` and then resized to `original`, as
            SAM does; otherwise they are resized to `original` in one step, as SAM 2 does.
    """

    original: Size
    resized: Size
    side: int
    grid: Size
    through_square: bool

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the model's input for a pixel of the image: of its rows and of its columns."""
        return self.resized[0] / self.original[0], self.resized[1] / self.original[1]

    @property
    def cells(self) -> tuple[float, float]:
        """Cells of the grid for a pixel of the image: of its rows and of its columns."""
        rows, columns = self.scale
        return rows * self.grid[0] / self.side, columns * self.grid[1] / self.side


class View(NamedTuple):
    """A part of an image as a model gets it.

    Attributes:
        window: which part.
        geometry: how it lies in the model's input; `original` is the window's size.
    """

    window: Window
    geometry: Geometry

    def gain(self, other: "View") -> float:
        """How many times the resolution of another view of the same image this one has, on the axis that gains less."""
        return min(own / its for own, its in zip(self.geometry.scale, other.geometry.scale, strict=True))


def fit_long_side(original: Size, side: int) -> Size:
    """(h, w) of an image (H, W) after its long side was brought to `side`; at least one pixel.

    `ResizeLongestSide.get_preprocess_shape`, which gives 0 for a side under 1/2048 of the other.
    """
    scale = side * 1.0 / max(original)
    height, width = (max(1, int(length * scale + 0.5)) for length in original)
    return height, width


def cut_around(box: tuple[float, float, float, float], original: Size, least: int) -> Window:
    """A square cut of an image around a box, with a margin; where the image is narrower, all of that axis.

    Sides and places come in steps. So boxes that differ a little, as the masks of two clicks on one object do, have the same
    cut, whose embedding is cached. A side is `least` times a power of the square root of 2, a place a multiple of an eighth of
    the side, so that a margin of 15 % of the box's longer side is left at least, but at the image's edge.

    Args:
        box: (x1, y1, x2, y2) in pixels of the image.
        original: (H, W) of the image.
        least: pixels of the shortest side. A grid of logits that is finer than the pixels is no better.
    """
    x1, y1, x2, y2 = box
    wanted = max(x2 - x1, y2 - y1) * (1 + 2 * _MARGIN)
    side = round(least * 2 ** (math.ceil(2 * math.log2(max(1.0, wanted / least))) / 2))
    starts = []
    for low, high, length in ((x1, x2, original[1]), (y1, y2, original[0])):
        start = round(((low + high) / 2 - side / 2) * _STEPS / side) * side / _STEPS
        starts.append(max(0, min(round(start), length - side)))
    x, y = starts
    return x, y, min(x + side, original[1]), min(y + side, original[0])


def cut_at(point: tuple[float, float], original: Size, side: int) -> Window:
    """A square cut of an image with a point (x, y) in its middle, but at the image's edge; narrower where the image is."""
    x, y = (max(0, min(round(at - side / 2), length - side)) for at, length in zip(point, original[::-1], strict=True))
    return x, y, min(x + side, original[1]), min(y + side, original[0])


def tiles_of(original: Size, side: int, overlap: float) -> list[Window]:
    """Square tiles that cover an image, row by row, evenly spaced; a single one where the image is no larger.

    Args:
        original: (H, W) of the image.
        side: pixels of a tile; on an axis that is shorter, a tile has all of it.
        overlap: the least share of a tile that the next one covers too, below 1.
    """
    starts = []
    for length in original:
        count = 1 + math.ceil(max(0, length - side) / (side * (1 - overlap)))
        starts.append([round(index * (length - side) / (count - 1)) for index in range(count)] if count > 1 else [0])
    height, width = original
    return [(x, y, min(x + side, width), min(y + side, height)) for y in starts[0] for x in starts[1]]

"""How one image lies in a model's square input, and in the grid of its mask logits."""

from typing import NamedTuple

Size = tuple[int, int]
"""(height, width)."""


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


def fit_long_side(original: Size, side: int) -> Size:
    """(h, w) of an image (H, W) after its long side was brought to `side`; at least one pixel.

    `ResizeLongestSide.get_preprocess_shape`, which gives 0 for a side under 1/2048 of the other.
    """
    scale = side * 1.0 / max(original)
    height, width = (max(1, int(length * scale + 0.5)) for length in original)
    return height, width

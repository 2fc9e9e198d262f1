"""Objects of one kind: how much what was found in an image resembles an object that is marked, there or in another image.

The comparison is SAM Personalize's by parts and by color (see `personalize`), of masks that are there already.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SAMError
from ..kernels.resemblance import color_distance, match, mean_color
from .predict import ReadyImage


class Example(NamedTuple):
    """An object that others are compared with.

    Attributes:
        local: the features of its cells, of unit length, `[P, C]`.
        color: its mean color, 0..255, `[3]`.
    """

    local: Tensor
    color: np.ndarray


class Cutout(NamedTuple):
    """A mask in its box.

    Attributes:
        x, y: the box's first column and row in the image.
        pixels: bool `[h, w]`.
    """

    x: int
    y: int
    pixels: np.ndarray


def example_of(image: ReadyImage, frame: np.ndarray, mask: np.ndarray) -> Example:
    """An object as others are compared with it.

    Args:
        image: the image that shows it.
        frame: the same, uint8 `[H, W, 3]`.
        mask: bool `[H, W]`.

    Raises:
        SAMError: the mask is empty.
    """
    if not mask.any():
        raise SAMError("The object has an empty mask. Mark an object, and then find others like it.")
    return Example(_features(image, image.feature_map(), Cutout(0, 0, mask)), mean_color(frame, mask))


def resemblances(image: ReadyImage, frame: np.ndarray, found: Sequence[Cutout], example: Example) -> np.ndarray:
    """How much each of some masks resembles an example: float64 `[N]`, about 1 for the same, and at most 1.

    Args:
        image: the image that they were found in, encoded by the example's model.
        frame: the same, uint8 `[H, W, 3]`.
        found: N masks, none of them empty.
        example: see `example_of`.
    """
    values, scores = image.feature_map(), np.zeros(len(found))
    for index, one in enumerate(found):
        height, width = one.pixels.shape
        color = mean_color(frame[one.y : one.y + height, one.x : one.x + width], one.pixels)
        scores[index] = match(example.local, _features(image, values, one)) - color_distance(color, example.color)
    return scores


def _features(image: ReadyImage, values: Tensor, mask: Cutout) -> Tensor:
    """Features of unit length `[P, C]` of the cells of a map `[C, h, w]` that a mask covers half.

    Of a mask too small for that, of the cells that it covers most.
    """
    geometry, (high, wide) = image.geometry, values.shape[-2:]
    across_rows, across_columns = (
        scale * side / geometry.side for scale, side in zip(geometry.scale, (high, wide), strict=True)
    )
    rows, columns = np.nonzero(mask.pixels)
    row = np.minimum(((rows + mask.y + 0.5) * across_rows).astype(int), high - 1)
    column = np.minimum(((columns + mask.x + 0.5) * across_columns).astype(int), wide - 1)
    share = np.bincount(row * wide + column, minlength=high * wide) * (across_rows * across_columns)
    numbers = torch.from_numpy(np.flatnonzero(share >= min(0.5, share.max())))
    return F.normalize(values.flatten(1).T[numbers], dim=-1)

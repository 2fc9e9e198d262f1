"""Impact Pack's SEGS: `((H, W), [SEG, ...])`. Its classes are not needed for it: a SEG is known by its fields."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor


class SEG(NamedTuple):
    """One object of an image, with the fields and the order of `impact.core.SEG` of ComfyUI-Impact-Pack (7 and 8).

    Attributes:
        cropped_image: IMAGE `[1, h, w, C]` of the region, or None: the pack then crops it from the image itself.
        cropped_mask: float32 `[h, w]` of the region, 0..1.
        confidence: 0..1.
        crop_region: [x1, y1, x2, y2] in whole pixels, around the object: what a detailer works on.
        bbox: (x1, y1, x2, y2) in whole pixels, of the object.
        label: of its kind.
        control_net_wrapper: the pack's own.
    """

    cropped_image: Tensor | None
    cropped_mask: np.ndarray
    confidence: float
    crop_region: list[int]
    bbox: tuple[int, int, int, int]
    label: str
    control_net_wrapper: Any = None


Segs: TypeAlias = tuple[tuple[int, int], list[SEG]]
Corners: TypeAlias = tuple[int, int, int, int]


def crop_region(box: Corners, size: tuple[int, int], factor: float) -> list[int]:
    """The region [x1, y1, x2, y2] of an image (H, W) that is `factor` times a box (x1, y1, x2, y2), shifted into the image.

    The numbers are those of `impact.utils.make_crop_region`.
    """
    x1, x2 = _span(box[0], box[2], size[1], factor)
    y1, y2 = _span(box[1], box[3], size[0], factor)
    return [x1, y1, x2, y2]


def _span(start: int, end: int, limit: int, factor: float) -> tuple[int, int]:
    length = (end - start) * factor
    first = int(start + (end - start) / 2 - length / 2)
    if first < 0:
        return 0, int(min(limit, length))
    if first + length > limit:
        return int(max(0, limit - length)), limit
    return first, int(first + length)


def cropped(values: Any, region: list[int]) -> Any:
    """The part of an array or tensor `[..., H, W]` in a region [x1, y1, x2, y2]."""
    x1, y1, x2, y2 = region
    return values[..., y1:y2, x1:x2]

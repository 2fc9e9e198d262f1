"""Cut images around masks for a sampler, and put what it made back in its place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SAMError
from .images import Frames, as_masks, colours, resize_masks
from .text import counted

Size = tuple[int, int]
"""(height, width)."""


@dataclass(frozen=True)
class Crops:
    """Where the crops of some images are, and what they were cut from.

    Attributes:
        image: IMAGE `[B, H, W, C]`.
        masks: `[N, H, W]` in 0..1; each image has as many, in the order of the images.
        corners: (x, y) of each mask's crop in pixels of its image. A crop may reach out of the image on any side.
        size: (h, w) of every crop, in pixels of the image.
    """

    image: Tensor
    masks: Tensor
    corners: tuple[tuple[int, int], ...]
    size: Size

    def frame_of(self, index: int) -> int:
        """Which image a crop is of."""
        return index * len(self.image) // len(self.masks)


def cut(image: Tensor, masks: Tensor, context: float, side: int, multiple: int) -> tuple[Crops, Tensor, Tensor]:
    """Cut each image around each of its masks.

    All crops have one size, that of the largest object with its context, so that they are one batch. A crop lies inside its
    image where it fits; beyond the image, the image's edge is repeated, and the mask is 0.

    Args:
        image: IMAGE `[B, H, W, C]`.
        masks: MASK, `B` times as many as each image has, in the order of the images. A mask is where it is above 0. None at
            all are one empty mask per image; the crop of an empty mask is of the middle of its image.
        context: how many times as wide and high as the largest object a crop is.
        side: pixels on the long side of the crops, which are resized; 0: as they are in the image.
        multiple: width and height become multiples of this.

    Returns:
        Where they are; the crops `[N, h, w, C]`, limited to 0..1; and their masks `[N, h, w]`.

    Raises:
        SAMError: not an IMAGE (see `Frames`) or a MASK, of different sizes, or numbers that do not fit.
    """
    _check(image)
    given = as_masks(masks, "masks") if masks.numel() else masks.new_zeros(image.shape[:3], dtype=torch.float32)
    if given.shape[1:] != image.shape[1:3]:
        sizes = [f"{width}x{height}" for height, width in (given.shape[1:], image.shape[1:3])]
        raise SAMError(f"masks have {sizes[0]} pixels, but image has {sizes[1]}: connect the image that the masks are of.")
    if not len(image) or len(given) % len(image):
        raise SAMError(f"masks: {len(given)}, images: {len(image)}. Connect one mask per image, or as many for each image.")
    boxes = [_box(mask) for mask in given]
    extents = [(y2 - y1, x2 - x1) for x1, y1, x2, y2 in filter(None, boxes)] or [given.shape[1:]]
    needed = [max(lengths) * context for lengths in zip(*extents, strict=True)]
    scale = side / max(needed) if side else 1.0
    made = [multiple * math.ceil(length * scale / multiple - 1e-9) for length in needed]
    size = (round(made[0] / scale), round(made[1] / scale))
    middle = 0, 0, given.shape[2], given.shape[1]
    corners = tuple(_corner(box or middle, size, given.shape[1:]) for box in boxes)
    crops = Crops(image, given, corners, size)
    images = image.new_empty(len(given), *made, image.shape[3])
    parts = given.new_empty(len(given), *made)
    for index, (x, y) in enumerate(corners):
        rows, columns = (torch.arange(start, start + length) for start, length in zip((y, x), size, strict=True))
        frame = image[crops.frame_of(index)]
        part = frame[rows.clamp(0, frame.shape[0] - 1)][:, columns.clamp(0, frame.shape[1] - 1)]
        images[index] = _resized(part[None], (made[0], made[1]))[0].clamp(0, 1)
        mask = given.new_zeros(size)
        inside, there = _inside(crops, index)
        mask[there] = given[index][inside]
        parts[index] = resize_masks(mask[None], (made[0], made[1]))[0]
    return crops, images, parts


def stitch(crops: Crops, image: Tensor) -> Tensor:
    """The images with what a sampler made of their crops, blended by the masks; where a mask is 0 they are as they were.

    Crops of one image are put in one after the other. Alpha stays that of the image; gray images become coloured where the
    crops are.

    Args:
        crops: from `cut`.
        image: IMAGE `[N, h, w, C]`, one per crop, of any size: it is resized to its place.

    Returns:
        IMAGE `[B, H, W, C]`.

    Raises:
        SAMError: not an IMAGE (see `Frames`), or not one for each crop.
    """
    _check(image)
    if len(image) != len(crops.masks):
        raise SAMError(
            f"image has {counted(len(image), 'frame')}, but there are {counted(len(crops.masks), 'crop')}: connect what the "
            "sampler made of the crops, all of them in their order."
        )
    base = colours(crops.image)
    channels = max(base.shape[3], colours(image).shape[3])
    result = base.expand(*base.shape[:3], channels).clone()
    for index, mask in enumerate(crops.masks):
        inside, there = _inside(crops, index)
        made = _resized(colours(image[index : index + 1]).to(result).clamp(0, 1), crops.size)[0][there]
        place, weight = result[crops.frame_of(index)][inside], mask[inside].to(result)[..., None]
        place.copy_(torch.lerp(place, made.expand_as(place), weight))  # exact where the weight is 0 or 1
    has_alpha = crops.image.shape[3] in (2, 4)
    return torch.cat([result, crops.image[..., -1:]], dim=3) if has_alpha else result


def _check(image: Tensor) -> None:
    """Whether each frame is an image: what is refused elsewhere is refused here too, though it is not converted."""
    frames = Frames(image)
    for index in range(len(frames)):
        frames[index]


def _box(mask: Tensor) -> tuple[int, int, int, int] | None:
    """The box (x1, y1, x2, y2) of what is above 0, without its far edges; None if nothing is."""
    sides = [(mask > 0).any(dim).nonzero()[:, 0] for dim in (0, 1)]
    if not len(sides[0]):
        return None
    x1, y1, x2, y2 = (int(side[end]) for end in (0, -1) for side in sides)
    return x1, y1, x2 + 1, y2 + 1


def _corner(box: tuple[int, int, int, int], size: Size, whole: Sequence[int]) -> tuple[int, int]:
    """(x, y) of a crop around a box: inside the image if it fits, else around all of it."""
    found = []
    for start, end, length, limit in zip(box[:2], box[2:], reversed(size), reversed(whole), strict=True):
        begin = (start + end - length) // 2 if length <= limit else (limit - length) // 2
        found.append(max(0, min(begin, limit - length)) if length <= limit else begin)
    return found[0], found[1]


def _inside(crops: Crops, index: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a crop that is inside its image: rows and columns in the image, and in the crop."""
    in_image, in_crop = [], []
    for start, length, limit in zip(reversed(crops.corners[index]), crops.size, crops.masks.shape[1:], strict=True):
        first, last = max(0, start), min(limit, start + length)
        in_image.append(slice(first, last))
        in_crop.append(slice(first - start, last - start))
    return (in_image[0], in_image[1]), (in_crop[0], in_crop[1])


def _resized(image: Tensor, size: Size) -> Tensor:
    """IMAGE `[N, h, w, C]` at another size, bicubic and antialiased, in the range of its values."""
    if tuple(image.shape[1:3]) == size:
        return image
    resized = F.interpolate(image.permute(0, 3, 1, 2).float(), size, mode="bicubic", align_corners=False, antialias=True)
    low, high = image.aminmax()
    return resized.clamp(float(low), float(high)).permute(0, 2, 3, 1).to(image.dtype)

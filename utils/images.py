"""IMAGE and MASK tensors <-> numpy <-> PIL."""

import math
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import SAMError
from .text import shown

_PIECE = 1 << 18  # values that are converted at a time
_RESIZED_BYTES = 64 << 20  # of an image that are resized at a time
_FAR = 1e30  # float64 has numbers that float32 has not: they are as white
_BRIGHT = 2.0  # HDR images and upscalers exceed 1, but most of an image that was not divided by 255 is above this
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def checked_tensor(value: Any, name: str, types: Sequence[torch.dtype], wanted: str) -> Tensor:
    """Check that a value is a dense tensor, and hand it on. Its values are not read.

    Args:
        value: anything.
        name: the input's name, for messages.
        types: what its values may be.
        wanted: "it must be ...", for messages.

    Raises:
        SAMError: it is not a tensor, or is nested, sparse, on the meta device or of another type.
    """
    if not isinstance(value, Tensor):
        raise SAMError(f"{name} is {shown(value)}: {wanted}.")
    kinds = {"nested": value.is_nested, "sparse": value.layout is not torch.strided, "meta": value.is_meta}
    if any(kinds.values()):
        kind = next(kind for kind, is_so in kinds.items() if is_so)
        raise SAMError(f"{name} is a {kind} tensor: {wanted}. Give a dense tensor with values.")
    if value.dtype not in types:
        raise SAMError(f"{name} is a tensor of {value.dtype}: {wanted}.")
    return value


def as_image(image: Tensor, name: str = "image") -> Tensor:
    """Check an IMAGE, and hand it on. Its values are not read.

    Args:
        image: `[B, H, W, C]` floats, C is 1 to 4.
        name: the input's name, for messages.

    Raises:
        SAMError: another type, rank or number of channels, or a side of 0 pixels.
    """
    wanted = "it must be an IMAGE tensor [B, H, W, C] with 1 to 4 channels and floating point values in 0..1"
    if isinstance(image, Tensor) and image.dtype in _INTEGERS:
        wanted = "an IMAGE has floating point values in 0..1. Divide by 255"
    checked_tensor(image, name, FLOATS, wanted)
    if image.ndim != 4 or image.shape[-1] not in (1, 2, 3, 4):
        raise SAMError(f"{name} has the shape {tuple(image.shape)}: {wanted}.")
    if 0 in image.shape[1:3]:
        raise SAMError(f"{name} has a side of 0 pixels: its shape is {tuple(image.shape)}.")
    return image


class Frames(Sequence[np.ndarray]):
    """An IMAGE as uint8 images `[H, W, 3]`, each converted when it is needed: a long batch is never there twice.

    Values are rounded to the nearest of 256 levels and clipped. Alpha is dropped, as ComfyUI's own LoadImage does.

    Args:
        image: `[B, H, W, C]` floats in 0..1; C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA).
        name: the input's name, for messages.

    Raises:
        SAMError: not an IMAGE (see `as_image`), or values that are not finite or not in 0..1 (see `refuse_levels`): at once,
            not after an hour of other frames.
    """

    def __init__(self, image: Tensor, name: str = "image") -> None:
        self.image, self.name = as_image(image, name).detach(), name
        self.size: tuple[int, int] = (int(image.shape[1]), int(image.shape[2]))
        if len(image) > 1:
            for frame in self.image:
                self._check(float(torch.stack(colours(frame).aminmax()).abs().amax()), frame)

    def __len__(self) -> int:
        return len(self.image)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        frame = self.image[index]
        colour = colours(frame).expand(*self.size, 3).cpu()
        if colour.dtype == torch.float64:
            colour = torch.where(colour.isfinite(), colour.clamp(-_FAR, _FAR), colour)
        levels, largest = to_levels(colour.float().contiguous().numpy())
        self._check(largest, frame)
        return levels

    def _check(self, largest: float, frame: Tensor) -> None:
        if not math.isfinite(largest):
            raise self._not_finite()
        if largest > _BRIGHT:
            refuse_levels(frame, self.name)

    def _not_finite(self) -> SAMError:
        bad = sum(int((~torch.isfinite(frame)).sum()) for frame in self.image)
        return SAMError(
            f"{self.name} has values that are NaN or infinite ({bad} in total), often because a VAE overflowed in fp16: "
            "run the VAE in fp32 or bf16."
        )


def colours(image: Tensor) -> Tensor:
    """The colours of `[..., C]` without alpha: `[..., 3]`, or `[..., 1]` of a grey image."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1]


def refuse_levels(frame: Tensor, name: str) -> None:
    """Refuse an image that somebody forgot to divide by 255: SAM would see black and white only.

    Args:
        frame: `[H, W, C]`, finite.
        name: the input's name, for the message.

    Raises:
        SAMError: of the values that are not 0, more than half are above 2. HDR images have few such values.
    """
    colour = colours(frame)
    bright, lit = int((colour > _BRIGHT).sum()), int((colour != 0).sum())
    if 2 * bright > lit:
        raise SAMError(
            f"{name} has values up to {float(colour.max()):g}, and {bright / lit:.0%} of those that are not 0 are above "
            f"{_BRIGHT:g}: an IMAGE has values in 0..1. Divide by 255 (or 65535); limit HDR images to 0..1."
        )


def image_to_frames(image: Tensor) -> list[np.ndarray]:
    """All of an IMAGE's frames at once, see `Frames`."""
    return Frames(image)[:]


def put_frame(place: Tensor, frame: np.ndarray) -> None:
    """Fill one frame of an IMAGE, float32 `[H, W, 3]` on the CPU, with a uint8 image of its size."""
    place.copy_(torch.from_numpy(frame)).div_(255.0)


def to_levels(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Contiguous float32 in 0..1 to uint8 of the same shape, rounded and clipped; and the largest absolute value.

    That is NaN or infinite where a value is not finite or 255 times larger than float32 holds; the levels mean nothing then.
    A piece at a time in one buffer that the cache holds: ten times as fast as whole tensors, and every click pays for it.
    """
    flat, levels, largest = values.reshape(-1), np.empty(values.shape, np.uint8), 0.0
    out, buffer = levels.reshape(-1), np.empty(_PIECE, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(flat), _PIECE):
            part = flat[start : start + _PIECE]
            scaled = buffer[: len(part)]
            np.multiply(part, 255.0, out=scaled)
            least, most = scaled.min(), scaled.max()  # a NaN is both
            if not (np.isfinite(least) and np.isfinite(most)) and not np.isfinite(part).all():
                return levels, math.nan
            np.rint(scaled, out=scaled)
            if least < 0 or most > 255:
                np.clip(scaled, 0, 255, out=scaled)
                largest = max(largest, float(np.abs(part).max()))
            out[start : start + _PIECE] = scaled
    return levels, largest


def frames_to_image(frames: list[np.ndarray]) -> Tensor:
    """uint8 images `[H, W, C]` of one size to an IMAGE `[B, H, W, C]`, float32 in 0..1."""
    return torch.from_numpy(np.stack(frames)).float() / 255.0


def without_gradients(tensor: Tensor) -> Tensor:
    """The same tensor where it has none."""
    return tensor.detach() if tensor.requires_grad else tensor


def bounded(image: Tensor) -> Tensor:
    """An IMAGE as outputs have it, float32 in 0..1 without gradients: the same tensor where it is that already."""
    values = without_gradients(image).float()
    if not values.numel():
        return values
    low, high = values.aminmax()  # of a NaN, which only alpha may still have, both
    return values if low >= 0 and high <= 1 else values.nan_to_num(0.0).clamp_(0.0, 1.0)


def cutout(image: Tensor, masks: Tensor) -> Tensor:
    """The image once for each mask, with the mask as its alpha.

    Args:
        image: `[B, H, W, C]` floats.
        masks: `[N, H, W]` in frame order, N a multiple of B.

    Returns:
        IMAGE `[N, H, W, 4]`.
    """
    out, each = torch.empty(*masks.shape, 4, device=masks.device), len(masks) // max(1, len(image))
    out[..., 3] = masks
    for index, frame in enumerate(image.detach()):
        out[index * each : (index + 1) * each, ..., :3] = colours(frame).to(masks.device).float().clamp(0.0, 1.0)
    return out


def checked_mask(mask: Tensor, name: str = "the mask") -> Tensor:
    """Check a MASK, and hand it on. Its values are not read.

    Args:
        mask: see `as_masks`.
        name: the input's name, for messages.

    Raises:
        SAMError: another type or rank, or a side of 0 pixels.
    """
    wanted = "it must be a MASK tensor [N, H, W]"
    checked_tensor(mask, name, (*FLOATS, torch.bool, *_INTEGERS), wanted)
    if mask.ndim not in (2, 3) and not (mask.ndim == 4 and mask.shape[1] == 1):
        raise SAMError(f"{name} has the shape {tuple(mask.shape)}: {wanted}.")
    if 0 in mask.shape[-2:]:
        raise SAMError(f"{name} has a side of 0 pixels: its shape is {tuple(mask.shape)}.")
    return mask


def as_masks(mask: Tensor, name: str = "the mask") -> Tensor:
    """MASK in any rank that packs produce (`[H, W]`, `[N, H, W]`, `[N, 1, H, W]`) to float32 `[N, H, W]` in 0..1.

    Args:
        mask: floats, integers or bool.
        name: the input's name, for messages.

    Raises:
        SAMError: another type or rank, a side of 0 pixels, or values that are not finite.
    """
    values = checked_mask(mask, name).detach()
    values = values[:, 0] if values.ndim == 4 else values[None] if values.ndim == 2 else values
    if not bool(torch.isfinite(values).all()):
        raise SAMError(f"{name} of shape {tuple(mask.shape)} has values that are NaN or infinite.")
    return values.float().clamp(0.0, 1.0)


def resize_pil(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 image `[H, W, C]` to (h, w) with PIL's bilinear filter, the one SAM was trained with.

    Any other resize, torch's antialiased one included, moves SAM's embedding by 4e-3 to 2e-2. PIL resizes rows first, rounds,
    resizes columns then, and copies what it is given: of a large image it gets some rows at a time, for the same result.
    """
    height, width = size
    if frame.nbytes > _RESIZED_BYTES:
        rows = max(1, _RESIZED_BYTES // frame[0].nbytes)
        bands = (Image.fromarray(frame[top : top + rows]) for top in range(0, len(frame), rows))
        frame = np.concatenate([np.array(band.resize((width, band.height), Image.Resampling.BILINEAR)) for band in bands])
    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize MASK `[N, H, W]` to (h, w), bilinear and antialiased."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    if size[1] == 1:  # torch 2.11 gives its first row everywhere where the result has one column, but not where it has one row
        return resize_masks(masks.mT, (1, size[0])).mT.contiguous() if size[0] > 1 else masks.mean((1, 2), keepdim=True)
    return F.interpolate(masks[:, None], size, mode="bilinear", align_corners=False, antialias=True)[:, 0]

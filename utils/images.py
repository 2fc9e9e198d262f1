"""IMAGE and MASK tensors <-> numpy <-> PIL."""

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import SAMError

_PIECE = 1 << 18  # values that are converted at a time


_FAR = 1e30  # float64 has numbers that float32 has not: they are as white


def as_image(image: Tensor) -> Tensor:
    """Check an IMAGE, and hand it on.

    Args:
        image: `[B, H, W, C]` floats, C is 1 to 4.

    Raises:
        SAMError: another type, rank or number of channels, or a side of 0 pixels.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 2, 3, 4):
        seen = tuple(image.shape) if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise SAMError(f"image must be an IMAGE tensor [B, H, W, C] with 1 to 4 channels, but is {seen}.")
    if not image.is_floating_point():
        raise SAMError(f"image is a tensor of {image.dtype}: an IMAGE has floating point values in 0..1. Divide by 255.")
    if 0 in image.shape[1:3]:
        raise SAMError(f"image has a side of 0 pixels: its shape is {tuple(image.shape)}.")
    return image


class Frames(Sequence[np.ndarray]):
    """An IMAGE as uint8 images `[H, W, 3]`, each converted when it is needed: a long batch is never there twice.

    Values are rounded to the nearest of 256 levels and clipped. Alpha is dropped, as ComfyUI's own LoadImage does.

    Args:
        image: `[B, H, W, C]` floats in 0..1; C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA).

    Raises:
        SAMError: not an IMAGE (see `as_image`), or values that are not finite: at once, not after an hour of other frames.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = as_image(image).detach()
        self.size: tuple[int, int] = (int(image.shape[1]), int(image.shape[2]))
        if len(image) > 1 and not all(map(_is_finite, self.image)):
            raise self._not_finite()

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
        colour = frame[..., :3] if frame.shape[-1] >= 3 else frame[..., :1].expand(*self.size, 3)
        colour = colour.cpu()
        if colour.dtype == torch.float64:
            colour = torch.where(colour.isfinite(), colour.clamp(-_FAR, _FAR), colour)
        levels = to_levels(colour.float().contiguous().numpy())
        if levels is None:
            raise self._not_finite()
        return levels

    def _not_finite(self) -> SAMError:
        bad = sum(int((~torch.isfinite(frame)).sum()) for frame in self.image)
        return SAMError(
            f"image has values that are NaN or infinite ({bad} in total), often because a VAE overflowed in fp16: "
            "run the VAE in fp32 or bf16."
        )


def _is_finite(frame: Tensor) -> bool:
    """Whether all colours of a frame `[H, W, C]` are finite; a NaN is both the least and the most. Alpha is ignored."""
    colour = frame[..., :3] if frame.shape[-1] >= 3 else frame[..., :1]
    return bool(torch.isfinite(torch.stack(colour.aminmax())).all())


def image_to_frames(image: Tensor) -> list[np.ndarray]:
    """All of an IMAGE's frames at once, see `Frames`."""
    return Frames(image)[:]


def put_frame(place: Tensor, frame: np.ndarray) -> None:
    """Fill one frame of an IMAGE, float32 `[H, W, 3]` on the CPU, with a uint8 image of its size."""
    place.copy_(torch.from_numpy(frame)).div_(255.0)


def to_levels(values: np.ndarray) -> np.ndarray | None:
    """Contiguous float32 in 0..1 to uint8 of the same shape, rounded and clipped; None where any is not finite.

    A piece at a time in one buffer that the cache holds: ten times as fast as whole tensors, and every click pays for it.
    """
    flat, levels = values.reshape(-1), np.empty(values.shape, np.uint8)
    out, buffer = levels.reshape(-1), np.empty(_PIECE, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(flat), _PIECE):
            part = flat[start : start + _PIECE]
            scaled = buffer[: len(part)]
            np.multiply(part, 255.0, out=scaled)
            least, most = scaled.min(), scaled.max()  # a NaN is both
            if not (np.isfinite(least) and np.isfinite(most)) and not np.isfinite(part).all():
                return None
            np.rint(scaled, out=scaled)
            if least < 0 or most > 255:
                np.clip(scaled, 0, 255, out=scaled)
            out[start : start + _PIECE] = scaled
    return levels


def frames_to_image(frames: list[np.ndarray]) -> Tensor:
    """uint8 images `[H, W, C]` of one size to an IMAGE `[B, H, W, C]`, float32 in 0..1."""
    return torch.from_numpy(np.stack(frames)).float() / 255.0


def cutout(image: Tensor, masks: Tensor) -> Tensor:
    """IMAGE `[N, H, W, 4]`: the image once for each mask `[N, H, W]`, masks in frame order, with the mask as its alpha."""
    colour = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(*image.shape[:3], 3)
    repeated = colour.to(masks.device).repeat_interleave(len(masks) // max(1, len(image)), 0)
    return torch.cat([repeated, masks[..., None].to(repeated.dtype)], -1)


def as_masks(mask: Tensor) -> Tensor:
    """MASK in any rank that packs produce (`[H, W]`, `[N, H, W]`, `[N, 1, H, W]`) to float32 `[N, H, W]` in 0..1.

    Raises:
        SAMError: another type or rank, a side of 0 pixels, or values that are not finite.
    """
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        mask = mask[None]
    if not isinstance(mask, Tensor) or mask.ndim != 3:
        seen = tuple(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise SAMError(f"a mask must be a MASK tensor [N, H, W], but is {seen}.")
    if 0 in mask.shape[1:]:
        raise SAMError(f"a mask has a side of 0 pixels: its shape is {tuple(mask.shape)}.")
    if not bool(torch.isfinite(mask).all()):
        raise SAMError(f"the mask of shape {tuple(mask.shape)} has values that are NaN or infinite.")
    return mask.detach().float().clamp(0.0, 1.0)


def resize_pil(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 image `[H, W, C]` to (h, w) with PIL's bilinear filter, the one SAM was trained with.

    Any other resize, torch's antialiased one included, moves SAM's embedding by 4e-3 to 2e-2.
    """
    height, width = size
    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize MASK `[N, H, W]` to (h, w), bilinear and antialiased."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks[:, None], size, mode="bilinear", align_corners=False, antialias=True)[:, 0]

"""Mask and image -> alpha, by ViTMatte."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...utils.comfy import Progress
from ...utils.finish import INSIDE, LIMITS, grown
from ...utils.text import counted
from ..errors import SAMError
from ..models.in_transformers.matte import MatteModel
from ..placement.devices import DeviceMode, placed

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255  # of a trimap
_SIDE = 1024
_OVERLAP = 128
_DIVISOR = 32  # an image is padded to a multiple of this
_BYTES = 2 << 30  # what an image of _SIDE x _SIDE needs, measured on a CPU: 1.5 GB
_MOST = LIMITS["grow"][1]


@dataclass(frozen=True)
class MatteOptions:
    """Where the edge may be.

    Attributes:
        grow: pixels that it may reach out of the mask.
        shrink: pixels that it may reach into it.
    """

    grow: int = 16
    shrink: int = 8

    def __post_init__(self) -> None:
        for name in ("grow", "shrink"):
            if not 0 <= getattr(self, name) <= _MOST:
                raise SAMError(f"{name} is {getattr(self, name)}: it must be 0 to {_MOST}.")


def trimap_of(mask: np.ndarray, options: MatteOptions) -> np.ndarray:
    """What is known of an image: in the shrunk mask all is foreground, outside of the grown one background.

    Args:
        mask: bool or float in 0..1, `[H, W]`.
        options: see `MatteOptions`.

    Returns:
        uint8 `[H, W]`.
    """
    inside = mask > INSIDE
    trimap = np.where(grown(inside, options.grow), np.uint8(UNKNOWN), np.uint8(BACKGROUND))
    trimap[grown(inside, -options.shrink)] = FOREGROUND
    return trimap


@torch.no_grad()
def soft_edges(
    model: MatteModel,
    frames: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    options: MatteOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> list[np.ndarray]:
    """The alpha of masks on their images.

    An image of more than 1024 x 1024 pixels, padding included, is computed in tiles of that size that overlap by 128 pixels, as
    ViTMatte's attention grows with the square of the pixels; those without an unknown pixel are left out.

    Args:
        model: see `load_matte`.
        frames: N images uint8 `[H, W, 3]`.
        masks: N masks, bool or float in 0..1, `[H, W]`.
        options: see `MatteOptions`; None: its defaults.
        device_mode: see `placed`.

    Returns:
        N arrays float32 `[H, W]` in 0..1: ViTMatte's where the trimap is unknown, elsewhere 0 or 1.

    Raises:
        SAMError: the numbers or the sizes of images and masks differ.
    """
    _check_sizes(frames, masks)
    options, progress, found = options or MatteOptions(), Progress(len(masks)), []
    with placed(model.network, device_mode, _BYTES) as device:
        for frame, mask in zip(frames, masks, strict=True):
            found.append(alpha_of(model, frame, trimap_of(mask, options), device))
            progress.advance()
    return found


def _check_sizes(frames: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
    if len(frames) != len(masks):
        raise SAMError(f"There are {counted(len(frames), 'image')}, but {counted(len(masks), 'mask')}.")
    for frame, mask in zip(frames, masks, strict=True):
        if frame.shape[:2] != mask.shape:
            (height, width), (high, wide) = frame.shape[:2], mask.shape
            raise SAMError(
                f"The image has {width} x {height} pixels, but the mask has {wide} x {high}: they must have the same size."
            )


def alpha_of(model: MatteModel, frame: np.ndarray, trimap: np.ndarray, device: torch.device) -> np.ndarray:
    """Alpha float32 `[H, W]` of an image uint8 `[H, W, 3]` with its trimap uint8 `[H, W]`; see `soft_edges`.

    Besides the network's own memory some 20 bytes a pixel are used.
    """
    unknown = trimap == UNKNOWN
    total, weights = np.zeros(trimap.shape, np.float32), np.zeros(trimap.shape, np.float32)
    for part in _tiles(trimap.shape):
        if not unknown[part].any():
            continue
        Progress.check_interrupted()
        weight = _weight(part, trimap.shape)
        total[part] += weight * _predict(model, frame[part], trimap[part], device)
        weights[part] += weight
    alpha = (trimap == FOREGROUND).astype(np.float32)
    alpha[unknown] = (total[unknown] / weights[unknown]).clip(0, 1)
    return alpha


def _predict(model: MatteModel, frame: np.ndarray, trimap: np.ndarray, device: torch.device) -> np.ndarray:
    """transformers' own alpha of an image, without the padding that its processor adds at the bottom and on the right."""
    inputs = model.processor(images=frame, trimaps=trimap, input_data_format="channels_last", return_tensors="pt")
    alphas = model.network(pixel_values=inputs["pixel_values"].to(device)).alphas
    height, width = trimap.shape
    return alphas[0, 0, :height, :width].float().cpu().numpy()


def _tiles(size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """The whole of an image, or tiles that cover it, evenly spaced."""
    if math.prod(-(-length // _DIVISOR) * _DIVISOR for length in size) <= _SIDE * _SIDE:
        yield slice(0, size[0]), slice(0, size[1])
    else:
        yield from itertools.product(*map(_spans, size))


def _spans(length: int) -> list[slice]:
    count = max(1, math.ceil((length - _OVERLAP) / (_SIDE - _OVERLAP)))
    starts = np.linspace(0, max(0, length - _SIDE), count).round().astype(int).tolist()
    return [slice(start, min(length, start + _SIDE)) for start in starts]


def _weight(part: tuple[slice, slice], size: tuple[int, int]) -> np.ndarray:
    """How much a tile counts at each of its pixels: less towards those of its edges beyond which the image goes on."""
    rows, columns = (_ramp(span, length) for span, length in zip(part, size, strict=True))
    return np.outer(rows, columns)


def _ramp(span: slice, length: int) -> np.ndarray:
    places = np.arange(span.stop - span.start, dtype=np.float32)
    ramp = np.ones_like(places)
    if span.start > 0:
        ramp = np.minimum(ramp, (places + 1) / _OVERLAP)
    if span.stop < length:
        ramp = np.minimum(ramp, (len(places) - places) / _OVERLAP)
    return ramp

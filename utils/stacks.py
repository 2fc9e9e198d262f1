"""Results that come a frame at a time, and become one tensor that is allocated once and filled in place."""

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor


class MaskStack:
    """Masks of frames of one size, a bit per pixel until they are one MASK: a 32nd of what it takes.

    Args:
        frames: how many there are.
        size: (H, W) of each mask.
    """

    def __init__(self, frames: int, size: tuple[int, int]) -> None:
        self.size = size
        self._bits: list[np.ndarray | None] = [None] * frames
        self._newest: tuple[int, Tensor] | None = None  # not packed before another comes: a single image never is

    def put(self, frame: int, masks: Tensor) -> None:
        """The masks bool `[N, H, W]` of a frame, which has none yet."""
        self._pack_newest()
        self._newest = frame, masks

    def _pack_newest(self) -> None:
        if self._newest is not None:
            frame, masks = self._newest
            self._bits[frame], self._newest = np.packbits(masks.cpu().numpy().reshape(len(masks), -1), axis=1), None

    @property
    def nbytes(self) -> int:
        """Bytes of the masks as they are now."""
        newest = 0 if self._newest is None else self._newest[1].nbytes
        return newest + sum(bits.nbytes for bits in self._bits if bits is not None)

    def filled(self, device: torch.device) -> Tensor:
        """MASK float32 `[N, H, W]` of 0 and 1, in frame order; the stack is empty afterwards."""
        if self._newest is not None and len(self._bits) == 1:
            masks, self._newest = self._newest[1], None
            return masks.to(device).float()
        self._pack_newest()
        pixels, place = self.size[0] * self.size[1], count()
        whole = torch.empty(sum(len(bits) for bits in self._bits if bits is not None), *self.size, device=device)
        for frame, bits in enumerate(self._bits):
            for mask in () if bits is None else bits:
                whole[next(place)] = torch.from_numpy(np.unpackbits(mask, count=pixels)).view(self.size)
            self._bits[frame] = None
        return whole


def joined(parts: list[Tensor]) -> Tensor:
    """`torch.cat` of tensors that differ in length only, each dropped once it is copied; the list is empty afterwards."""
    if len(parts) == 1:
        return parts.pop()
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    place = 0
    for part in _taken(parts):
        whole[place : place + len(part)] = part
        place += len(part)
    return whole


def _taken(parts: list[Tensor]) -> Iterator[Tensor]:
    """The items of a list in order, which the list loses."""
    parts.reverse()
    while parts:
        yield parts.pop()

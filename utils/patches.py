"""Paint on a mask: patches of pixels to add or to remove, run-length coded as text.

A patch's `runs` are its pixels row by row, as run lengths: each run is the number `3 * length + kind` (kind 0: leave, 1: add,
2: remove) in LEB128 (seven bits a byte, the lowest first, the high bit where more follow), all of them in base64. The browser's
half is `web/editor/patches.js`.
"""

import base64
import binascii
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import SAMError

LEAVE, ADD, REMOVE = 0, 1, 2
MOST_SIDE = 1 << 15
MOST_PIXELS = 1 << 26  # as the preview takes images
MOST_TEXT = 1 << 20
_KEYS = {"x", "y", "width", "height", "runs"}
_MOST_BYTES = 4  # of a run: 3 * MOST_PIXELS + 2 needs 28 bits


@dataclass(frozen=True)
class Patch:
    """Paint in a rectangle of the image; for every frame of a batch, or for one. Its runs have been checked."""

    x: int
    y: int
    width: int
    height: int
    runs: str
    frame: int | None = None

    def kinds(self) -> np.ndarray:
        """Each pixel's kind: uint8 `[height, width]`.

        Raises:
            SAMError: the runs are not of this form, or not as many pixels as the rectangle has.
        """
        return np.repeat(*self.checked_runs()).reshape(self.height, self.width)

    def checked_runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Kinds uint8 and lengths int64 of the runs.

        Raises:
            SAMError: as `kinds`.
        """
        kinds, lengths = _read_runs(self.runs)
        if int(lengths.sum()) != self.width * self.height:
            raise SAMError(f"runs are for {lengths.sum()} pixels, but the patch has {self.width} x {self.height} pixels.")
        return kinds, lengths


def parse_patch(value: Any) -> Patch:
    """A JSON object `{x, y, width, height, runs[, frame]}`, checked.

    Raises:
        SAMError: another form, or a number or a text beyond its limit, with the field's name.
    """
    if not isinstance(value, Mapping) or set(value) - {"frame"} != _KEYS:
        raise SAMError(f"{reprlib.repr(value)} is not a patch {{x, y, width, height, runs}}, which may have frame.")
    for name, low in (("x", 0), ("y", 0), ("width", 1), ("height", 1), ("frame", 0)):
        number = value.get(name, low)
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= MOST_SIDE:
            raise SAMError(f"{name} is {reprlib.repr(number)}: it must be a whole number from {low} to {MOST_SIDE}.")
    if value["width"] * value["height"] > MOST_PIXELS:
        raise SAMError(f"a patch of {value['width']} x {value['height']} pixels is larger than {MOST_PIXELS} pixels.")
    if not isinstance(value["runs"], str) or len(value["runs"]) > MOST_TEXT:
        raise SAMError(f"runs is {reprlib.repr(value['runs'])}: it must be text of at most {MOST_TEXT} characters.")
    patch = Patch(**value)
    patch.checked_runs()
    return patch


def _read_runs(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Kinds uint8 and lengths int64 of the runs."""
    try:
        coded = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (binascii.Error, ValueError) as error:
        raise SAMError(f"runs is {reprlib.repr(text)}: it must be base64.") from error
    ends = np.flatnonzero(coded < 128)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(int)[: len(ends)]
    if not len(ends) or ends[-1] != len(coded) - 1 or (ends - starts >= _MOST_BYTES).any():
        raise SAMError("runs is not a list of run lengths.")
    place = np.arange(len(coded)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((coded & 127).astype(np.int64) << (7 * place), starts)
    kinds, lengths = (numbers % 3).astype(np.uint8), numbers // 3
    if (lengths < 1).any():
        raise SAMError("runs has a run of 0 pixels.")
    return kinds, lengths


def paint_over(mask: np.ndarray, patches: Sequence[Patch]) -> np.ndarray:
    """Lay patches over a mask bool `[H, W]`, in order; what lies outside of it is left out.

    Returns:
        A new mask, or the same where there is no patch.
    """
    if not patches:
        return mask
    mask = mask.copy()
    for patch in patches:
        part = mask[patch.y : patch.y + patch.height, patch.x : patch.x + patch.width]
        kinds = patch.kinds()[: part.shape[0], : part.shape[1]]
        part[kinds == ADD] = True
        part[kinds == REMOVE] = False
    return mask


def encode_runs(kinds: np.ndarray) -> str:
    """The runs of a patch.

    Args:
        kinds: bool `[height, width]`, True where pixels are added, or uint8 with each pixel's kind.
    """
    flat = kinds.astype(np.uint8).ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    numbers = 3 * np.diff([*starts, len(flat)]) + flat[starts]
    bytes_of = 1 + sum((numbers >> (7 * place) > 0).astype(int) for place in range(1, _MOST_BYTES))
    ends = np.cumsum(bytes_of)
    coded = np.zeros(ends[-1], np.uint8)
    for place in range(_MOST_BYTES):
        has = bytes_of > place
        more = np.where(bytes_of > place + 1, 128, 0)
        coded[(ends - bytes_of)[has] + place] = ((numbers >> (7 * place)) & 127 | more)[has]
    return base64.b64encode(coded.tobytes()).decode()

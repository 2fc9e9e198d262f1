"""Content keys of images."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...utils.comfy import Progress
from ...utils.threads import in_threads
from .memory import ByteCache, passing

_HASHED = 1 << 19  # bytes at a time
_HASHED_BYTES = 64 << 20  # of images whose hash is cached
_UNINTERRUPTED = 16  # images
_SAMPLED = 4099  # every so many values are compared first


class _Hashed(NamedTuple):
    """An image's own copy in pieces, and its content hash."""

    pieces: list[np.ndarray]
    key: str

    @property
    def nbytes(self) -> int:
        """Bytes of the copy."""
        return sum(piece.nbytes for piece in self.pieces)


_hashed: ByteCache[_Hashed] = ByteCache(_HASHED_BYTES, brief=True)


def image_keys(frames: Sequence[np.ndarray]) -> list[str]:
    """`image_key` of each image, one after the other; a Cancel ends a long batch."""
    keys = []
    with passing(len(frames)):
        for index, frame in enumerate(frames, start=1):
            keys.append(image_key(frame))
            if index % _UNINTERRUPTED == 0:
                Progress.check_interrupted()
    return keys


def image_key(frame: np.ndarray) -> str:
    """Content hash of a uint8 image `[H, W, 3]`: of its shape and of its pieces' hashes, which threads compute.

    An image that comes again is compared, value by value, with the copy of the one that has the same samples: that is faster.
    """
    pixels = np.ascontiguousarray(frame).reshape(-1)
    pieces = [pixels[start : start + _HASHED] for start in range(0, len(pixels), _HASHED)]
    samples = frame.shape, pixels[::_SAMPLED].tobytes()
    known = _hashed.get(samples)
    if known is None or not all(map(np.array_equal, pieces, known.pieces)):
        digests = in_threads(lambda piece: hashlib.sha256(piece).digest(), pieces)
        key = hashlib.sha256(b"".join([f"{frame.shape}".encode(), *digests])).hexdigest()
        if pixels.nbytes > _HASHED_BYTES:  # no copy that would not be cached
            return key
        known = _Hashed([piece.copy() for piece in pieces], key)
        _hashed.put(samples, known)
    return known.key

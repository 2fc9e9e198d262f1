"""What a decoder derives from an image's feature maps, cached by the maps' content."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import SAMError
from ..kernels.decoder import SharedImage
from ..store.memory import ByteCache
from .base import Features

_NOT_FINITE = "The embedding has values that are NaN or infinite. Run Get SAM Embedding again."


class _Derived(NamedTuple):
    """What the prompts of an image share, and the maps that it was made from: copies, unless they cannot change."""

    maps: tuple[np.ndarray, ...]
    shared: SharedImage

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return sum(values.nbytes for values in self.maps) + self.shared.nbytes


cache: ByteCache[_Derived] = ByteCache(128 << 20, brief=True)  # nine of stock SAM, at 14 MiB each


def shared_image(
    features: Features, names: Sequence[str], model: Hashable, make: Callable[[list[Tensor]], SharedImage]
) -> SharedImage:
    """What the prompts of an image share; cached on a CPU, where memory is plenty and arithmetic is slow.

    An embedding may have been changed in place since it was made, so its values are compared with the cached copy. One from the
    embedding cache is read-only and the very same memory: that need not be compared.

    Args:
        features: of the image.
        names: of the maps that are needed.
        model: what identifies the decoder's weights and options.
        make: the maps `[C, h, w]`, in the order of `names`, to what is shared.

    Raises:
        SAMError: a map has values that are not finite.
    """
    if features.device.type != "cpu":
        tensors = [features.tensor(name) for name in names]
        if not all(bool(torch.isfinite(values).all()) for values in tensors):
            raise SAMError(_NOT_FINITE)
        return make(tensors)
    maps = [features.maps[name] for name in names]
    key = model, features.key
    known = cache.get(key)
    if known is None or not all(map(_equal, maps, known.maps)):
        if not all(np.isfinite(values).all() for values in maps):
            raise SAMError(_NOT_FINITE)
        own = tuple(values if _is_frozen(values) else values.copy() for values in maps)
        fixed = Features(dict(zip(names, own, strict=True)), features.key, features.device)
        known = _Derived(own, make([fixed.tensor(name) for name in names]))
        cache.put(key, known)
    return known.shared


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two float32 arrays have the same bits."""
    if one.shape != other.shape:
        return False
    return (_is_frozen(one) and _is_frozen(other) and _address(one) == _address(other)) or _equal_bits(one, other)


def _equal_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """The same, value by value; 64 bits at a time take half the time."""
    width = np.uint64 if one.flags.c_contiguous and one.nbytes % 8 == 0 else np.uint32
    flat = (np.ascontiguousarray(values).reshape(-1).view(width) for values in (one, other))
    return np.array_equal(*flat)


def _is_frozen(values: np.ndarray) -> bool:
    """Whether nobody can write to an array, nor to one that it is a part of."""
    while isinstance(values, np.ndarray):
        if values.flags.writeable:
            return False
        values = values.base
    return values is None


def _address(values: np.ndarray) -> tuple[int, tuple[int, ...]]:
    return values.__array_interface__["data"][0], values.strides

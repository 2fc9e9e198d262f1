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
    """What the prompts of an image share, and a copy of the maps that it was made from."""

    maps: tuple[np.ndarray, ...]
    shared: SharedImage

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return sum(values.nbytes for values in self.maps) + self.shared.nbytes


cache: ByteCache[_Derived] = ByteCache(128 << 20)  # nine of stock SAM, at 14 MiB each


def shared_image(
    features: Features, names: Sequence[str], model: Hashable, make: Callable[[list[Tensor]], SharedImage]
) -> SharedImage:
    """What the prompts of an image share; cached on a CPU, where memory is plenty and arithmetic is slow.

    An embedding may have been changed in place since it was made, so its values are compared with the cached copy.

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
        copies = tuple(values.copy() for values in maps)
        known = _Derived(copies, make([torch.from_numpy(values) for values in copies]))
        cache.put(key, known)
    return known.shared


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two float32 arrays have the same bits; 64 of them at a time are compared in half the time."""
    width = np.uint64 if one.flags.c_contiguous and one.nbytes % 8 == 0 else np.uint32
    flat = (np.ascontiguousarray(values).reshape(-1).view(width) for values in (one, other))
    return one.shape == other.shape and np.array_equal(*flat)

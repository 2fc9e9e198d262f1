"""The feature maps of one image on the decoder's device, and what decoders derive from them: checked once, projected once."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import SAMError
from ..kernels.decoder import SharedImage
from ..store.memory import ByteCache

IMAGE = "image"
"""The name of the main feature map, which a SAMEmbedding itself is."""

_NOT_FINITE = "The embedding has values that are NaN or infinite. Run Get SAM Embedding again."


class Features:
    """The feature maps of one image, as a decoder takes them; whatever the number of prompts, they are uploaded once.

    Args:
        maps: name to float32 `[C, h, w]`: arrays, or tensors that are on `device`.
        key: content key of the image, under which what is derived from arrays is cached on a CPU; "" where there is none.
        device: where the decoder runs.
        is_finite: whether whoever made the maps has checked their values.

    Attributes:
        maps, key, device: the same.
    """

    def __init__(
        self, maps: Mapping[str, np.ndarray | Tensor], key: str, device: torch.device, is_finite: bool = False
    ) -> None:
        self.maps, self.key, self.device = maps, key, device
        self._checked = set(maps) if is_finite else set()
        self._tensors: dict[str, Tensor] = {}
        self._shared: dict[Hashable, SharedImage] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        return sum(values.nbytes for values in self.maps.values())

    def tensor(self, name: str = IMAGE) -> Tensor:
        """A map `[C, h, w]` on the device.

        Raises:
            SAMError: it has values that are not finite.
        """
        if name not in self._tensors:
            values = self._finite(name)
            if isinstance(values, np.ndarray):  # torch has no read-only tensors
                values = torch.as_tensor(values if values.flags.writeable else values.copy(), device=self.device)
            self._tensors[name] = values
        return self._tensors[name]

    def shared(self, names: Sequence[str], model: Hashable, make: Callable[[list[Tensor]], SharedImage]) -> SharedImage:
        """What the prompts of the image share, made at the first call for a decoder.

        Args:
            names: of the maps that are needed.
            model: what identifies the decoder's weights and options.
            make: the maps `[C, h, w]`, in the order of `names`, to what is shared.

        Raises:
            SAMError: a map has values that are not finite.
        """
        if model not in self._shared:
            is_cacheable = self.device.type == "cpu" and all(isinstance(self.maps[name], np.ndarray) for name in names)
            made = self._cached(names, model, make) if is_cacheable else make([self.tensor(name) for name in names])
            self._shared[model] = made
        return self._shared[model]

    def on(self, device: torch.device) -> "Features":
        """The maps on another device."""
        return Features({name: self.tensor(name).to(device) for name in self.maps}, self.key, device, is_finite=True)

    def mirrored(self) -> "Features":
        """The maps of the same image from right to left, nearly: encoders are not symmetric."""
        return Features({name: self.tensor(name).flip(-1) for name in self.maps}, "", self.device, is_finite=True)

    def _finite(self, name: str) -> np.ndarray | Tensor:
        """A map as it was given, whose values are finite. Arrays are checked before the upload: no device is waited for."""
        values = self.maps[name]
        if name not in self._checked:
            if not all_finite(values):
                raise SAMError(_NOT_FINITE)
            self._checked.add(name)
        return values

    def _cached(self, names: Sequence[str], model: Hashable, make: Callable[[list[Tensor]], SharedImage]) -> SharedImage:
        """From one run to the next, on a CPU, where memory is plenty and arithmetic is slow: so a moved point is answered fast.

        An embedding may have been changed in place since it was made, so its values are compared with the cached copy. One from
        the embedding cache is read-only and the very same memory: that need not be compared.
        """
        maps = [self.maps[name] for name in names]
        known = cache.get((model, self.key))
        if known is None or not all(map(_equal, maps, known.maps)):
            own = [values if _is_frozen(values) else values.copy() for values in map(self._finite, names)]
            fixed = Features(dict(zip(names, own, strict=True)), self.key, self.device, is_finite=True)
            known = _Derived(tuple(own), make([fixed.tensor(name) for name in names]))
            cache.put((model, self.key), known)
        return known.shared


class _Derived(NamedTuple):
    """What the prompts of an image share, and the maps that it was made from: copies, unless they cannot change."""

    maps: tuple[np.ndarray, ...]
    shared: SharedImage

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return sum(values.nbytes for values in self.maps) + self.shared.nbytes


cache: ByteCache[_Derived] = ByteCache(128 << 20, brief=True)  # nine of stock SAM, at 14 MiB each


def all_finite(values: np.ndarray | Tensor) -> bool:
    """Whether no value is NaN or infinite; of a tensor, its device is waited for."""
    return bool(torch.isfinite(values).all()) if isinstance(values, Tensor) else bool(np.isfinite(values).all())


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

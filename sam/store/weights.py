"""Whether a module's weights are still those of the last time, and the hash of their content."""

import contextlib
import hashlib
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...utils.text import counted
from ..errors import SAMError

_SAMPLED = 8  # values at the start and in the middle of each tensor


class WeightState(NamedTuple):
    """What is compared at every use.

    Attributes:
        pointers: where each tensor's values are; they differ after a move between devices, and after a replacement.
        versions: torch's counters of changes in place; they do not see changes through `.data`.
        sample: some values of each tensor, which do. A change that touches none of them has to be announced, see
            `weights_changed`.
    """

    pointers: tuple[int, ...]
    versions: tuple[int, ...]
    sample: bytes

    @property
    def content(self) -> tuple[tuple[int, ...], bytes]:
        """What a move between devices leaves as it is."""
        return self.versions, self.sample


class _Watched:
    """The tensors of one module: where they are registered is looked up once, since every click asks several times."""

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        self.children = [(part._modules, tuple(part._modules.values())) for part in parts]
        self.places = [place for part in parts for place in (part._parameters, part._buffers)]
        self.announced = 0
        self.pointers: tuple[int, ...] = ()
        self.sample = b""
        self.views: list[np.ndarray] | None = None

    def is_current(self) -> bool:
        """Whether no submodule was added, removed or replaced."""
        return all(tuple(place.values()) == children for place, children in self.children)

    def tensors(self) -> list[Tensor]:
        """The module's own, also while others are in their places (see `replaced`)."""
        present = [tensor for place in self.places for tensor in place.values() if tensor is not None]
        return [original_of(tensor) for tensor in present] if _originals else present

    def state(self) -> WeightState:
        tensors = self.tensors()
        pointers = _pointers(tensors)
        if pointers != self.pointers:
            self.pointers, self.views = pointers, _views(tensors)
            self.sample = _sample(tensors, self.views)
        elif self.views is not None:  # elsewhere than on the CPU every look would wait for the device
            self.sample = _sample(tensors, self.views)
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        return WeightState(pointers, (self.announced, *versions), self.sample)


_watched: weakref.WeakKeyDictionary[nn.Module, _Watched] = weakref.WeakKeyDictionary()
_originals: dict[int, Tensor] = {}  # by the id of what is in their place
_lock = threading.RLock()


def original_of(tensor: Tensor) -> Tensor:
    """The module's own tensor in whose place this one is (see `replaced`), else the tensor itself."""
    return _originals.get(id(tensor), tensor)


@contextlib.contextmanager
def replaced(module: nn.Module, others: Mapping[int, Tensor]) -> Iterator[None]:
    """In the body, other tensors take the places of a module's own; its state and its hash remain those of its own.

    Args:
        module: whose parameters and buffers are replaced.
        others: by the id of the parameter or buffer that each one replaces.
    """
    with _lock:
        found = [
            (place, name, own, others[id(own)])
            for place in _watch(module).places
            for name, own in place.items()
            if id(own) in others
        ]
        _originals.update((id(other), own) for _, _, own, other in found)
        for place, name, _, other in found:
            place[name] = other
    try:
        yield
    finally:
        with _lock:
            for place, name, own, other in found:
                if place.get(name) is other:  # else somebody has put a new one there
                    place[name] = own
            for _, _, _, other in found:
                _originals.pop(id(other), None)


def _pointers(tensors: list[Tensor]) -> tuple[int, ...]:
    try:
        return tuple([tensor.data_ptr() for tensor in tensors])
    except RuntimeError:  # a device (DirectML) whose tensors have no memory that torch can name
        return tuple([id(tensor) for tensor in tensors])


def _watch(module: nn.Module) -> _Watched:
    watched = _watched.get(module)
    if watched is None or not watched.is_current():
        announced = watched.announced if watched else 0
        watched = _watched[module] = _Watched(module)
        watched.announced = announced
    return watched


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module, thirty times as fast as `module.parameters()`; replaced ones are seen."""
    with _lock:
        return _watch(module).tensors()


def state_of(module: nn.Module) -> WeightState:
    """The state of a module's weights, to compare with that of another time."""
    with _lock:
        return _watch(module).state()


def weights_changed(module: nn.Module) -> None:
    """Announce that weights of `module` were changed in a way that leaves no trace (single values, through `.data`).

    What was derived from the old weights is not used again. Changes in place by torch's own operations, replaced parameters
    and changes of whole tensors through `.data` are noticed without this.
    """
    with _lock:
        for part, watched in list(_watched.items()):
            if any(child is part for child in module.modules()) or any(child is module for child in part.modules()):
                watched.announced += 1


def _views(tensors: list[Tensor]) -> list[np.ndarray] | None:
    """Some values of each tensor, as arrays on its own memory; None where any lies elsewhere than on the CPU."""
    if not all(tensor.is_cpu for tensor in tensors):
        return None
    return [piece.view(torch.uint8).numpy() for tensor in tensors for piece in _pieces(tensor)]


def _sample(tensors: list[Tensor], views: list[np.ndarray] | None) -> bytes:
    if views is not None:
        return b"".join(views)  # contiguous arrays: no copy of each, and no call
    pieces = [piece for tensor in tensors if not tensor.is_meta for piece in _pieces(tensor)]
    return b"".join([piece.cpu().view(torch.uint8).numpy() for piece in pieces])


def _pieces(tensor: Tensor) -> list[Tensor]:
    """Values at the start and in the middle of a tensor's memory, views `[n]`; of one with gaps in it, its first value."""
    count = tensor.numel()
    if not count:
        return []
    if not tensor.is_cpu:  # `as_strided` does not work on every device
        flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach()[(0,) * tensor.ndim].reshape(1)
    else:
        extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        dense = count if extent == count - 1 else 1
        flat = torch.as_strided(tensor.detach(), (dense,), (1,), tensor.storage_offset())
    return [flat[:_SAMPLED], flat[len(flat) // 2 :][:_SAMPLED]]


def content_hash(named: Mapping[str, Tensor], where: str) -> str:
    """SHA-256 of tensors with their names, shapes and types, wherever they lie.

    Args:
        named: name to tensor.
        where: what the weights belong to, for the message.

    Raises:
        SAMError: a weight is NaN or infinite.
    """
    _refuse_not_finite(named.items(), where)
    digest = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refuse_not_finite(named: Iterable[tuple[str, Tensor]], where: str) -> None:
    for name, tensor in named:
        if tensor.numel() and tensor.is_floating_point() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise SAMError(
                f"{where}: {name} has {counted(count, 'NaN or infinite value')}. The checkpoint is damaged, or its training "
                "diverged: use another one."
            )

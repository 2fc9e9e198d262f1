"""A network's weights on a device, in the types that are computed with there, beside its own on the CPU.

The network's own tensors never move: they stay float32, exact and where they are, so its identity stays, other packs that share
it find it as they left it, and to unload is to drop the copies. The copies take their places only while the network runs.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.plans import forget_plans
from ..models.base import optional_member
from ..store.weights import replaced, state_of, tensors_of
from .transfer import is_on


class _Copy(NamedTuple):
    """A tensor on the device, the version that it was made with, and the network's own."""

    tensor: Tensor
    version: int
    own: Tensor


class Resident:
    """The copies of one network's weights on one device.

    A network may say by a method `lowered_weights()` which of its tensors are only ever used in its encoder's type: these are
    copied in that type, all others as they are. Nothing here keeps the network itself alive, so the two go together.

    Args:
        network: whose weights they are.

    Attributes:
        device: where the copies are; None while there are none.
        dtype: the encoder's type, for the next `load`.
        patcher: ComfyUI's handle on them, made by its host.
    """

    def __init__(self, network: nn.Module) -> None:
        self.device: torch.device | None = None
        self.dtype = torch.float32
        self.patcher: Any = None
        self._network = weakref.ref(network)
        self._copies: dict[int, _Copy] = {}
        self._made_from: object = None
        self._lock = threading.RLock()

    def load(self, device: torch.device) -> None:
        """Make the copies, all of them or, after an error, none; weights that are there already are used as they are.

        Copies that were made in ComfyUI's inference mode could not be trained, and their changes not be seen.
        """
        network = self._network()
        if network is None:
            return
        with self._lock, torch.inference_mode(False), torch.no_grad():
            types = self._types(network)
            copies = {id(own): _copy(own, device, types.get(id(own), own.dtype)) for own in tensors_of(network)}
            self._copies, self.device, self._made_from = copies, device, self._state(network)

    def drop(self) -> None:
        """Let go of the copies, and of what was derived from them; a body that runs with them keeps them to its end."""
        network = self._network()
        with self._lock:
            if self.device is None:  # nothing is derived from copies then, and each run on a CPU comes through here
                return
            self._copies, self.device, self._made_from = {}, None, None
        if network is not None:
            forget_plans(network)

    def is_loaded(self, device: torch.device) -> bool:
        """Whether the copies are on `device`, all of them, and those of the network's weights as they are now."""
        network = self._network()
        return (
            network is not None
            and self.device == device
            and self._made_from == self._state(network)
            and all(is_on(copy.tensor, device) for copy in list(self._copies.values()))
        )

    @property
    def nbytes(self) -> int:
        """What `load` takes on the device; weights that another model has there already take nothing more."""
        network = self._network()
        if network is None:
            return 0
        types, every = self._types(network), {id(own): own for own in tensors_of(network)}
        needed = {key: own for key, own in every.items() if own.is_cpu or types.get(key, own.dtype) != own.dtype}
        return sum(own.numel() * types.get(key, own.dtype).itemsize for key, own in needed.items())

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """In the body, the network runs with the copies; what it changes in them is written to its own weights at the end."""
        network = self._network()
        copies = dict(self._copies)
        if network is None or not copies:
            yield
            return
        try:
            with replaced(network, {key: copy.tensor for key, copy in copies.items() if copy.tensor is not copy.own}):
                yield
        finally:
            self._write_back(copies)
            if self.device is None:  # unloaded by another thread meanwhile: what the body derived goes as well
                forget_plans(network)

    def _write_back(self, copies: dict[int, _Copy]) -> None:
        changed = [copy for copy in copies.values() if copy.tensor is not copy.own and _version(copy.tensor) != copy.version]
        if not changed:
            return
        with torch.inference_mode(False), torch.no_grad():
            for copy in changed:
                copy.own.copy_(copy.tensor)
        self._made_from = None  # made anew from the network's own next time

    def _types(self, network: nn.Module) -> dict[int, torch.dtype]:
        """By id, the types of the tensors that are not copied in their own."""
        lowered = optional_member(network, "lowered_weights")
        if lowered is None or self.dtype == torch.float32:
            return {}
        return {id(tensor): self.dtype for tensor in lowered()}

    def _state(self, network: nn.Module) -> object:
        """What the copies depend on."""
        return state_of(network).content, tuple(map(id, tensors_of(network))), self.dtype


def _copy(own: Tensor, device: torch.device, dtype: torch.dtype) -> _Copy:
    """Uploaded first and converted there: a GPU does that faster, and one tensor at a time is little memory."""
    if own.dtype == dtype and is_on(own, device):
        return _Copy(own, _version(own), own)
    values = own.detach().to(device).to(dtype)
    if isinstance(own, nn.Parameter):
        values = nn.Parameter(values, requires_grad=own.requires_grad and values.is_floating_point())
    return _Copy(values, _version(values), own)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


_residents: weakref.WeakKeyDictionary[nn.Module, Resident] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def resident_of(network: nn.Module) -> Resident:
    """The one of a network, for as long as it lives."""
    with _lock:
        if network not in _residents:
            _residents[network] = Resident(network)
        return _residents[network]

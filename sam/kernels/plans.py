"""What is derived from a module's weights, cached until they change, move or go."""

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import nn

from ..store.weights import state_of

Plan = TypeVar("Plan")


class Plans(Generic[Plan]):
    """One plan for each module; the newest state's. A plan must not hold the module itself, or neither would ever go."""

    def __init__(self) -> None:
        self._plans: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, Plan]] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        _every.add(self)

    def get(self, module: nn.Module, key: Hashable, make: Callable[[], Plan], also: nn.Module | None = None) -> Plan:
        """The plan that `make` makes, made anew where `key` or the weights (of `also`, too) are not those of the last time."""
        modules = [module] if also is None else [module, also]
        state = key, tuple(state_of(m) for m in modules)
        with self._lock:
            known = self._plans.get(module)
            if known is None or known[0] != state:
                self._plans.pop(module, None)  # before the new one is made: it may be large
                known = state, make()
                self._plans[module] = known
        return known[1]

    def forget(self, module: nn.Module) -> None:
        """Let go of a module's plan."""
        with self._lock:
            self._plans.pop(module, None)


_every: "weakref.WeakSet[Plans]" = weakref.WeakSet()


def forget_plans(network: nn.Module) -> None:
    """Let go of all plans of a network and its parts: its weights have left the device on which the plans' tensors are."""
    for part in network.modules():
        for plans in list(_every):
            plans.forget(part)

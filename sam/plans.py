"""What is derived from a module's weights, kept until they change, move or go."""

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from torch import nn

Plan = TypeVar("Plan")


class Plans(Generic[Plan]):
    """One plan for each module; the newest state's. A plan must not hold the module itself, or neither would ever go."""

    def __init__(self) -> None:
        self._held: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, Plan]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(self, module: nn.Module, key: Hashable, make: Callable[[], Plan], also: nn.Module | None = None) -> Plan:
        """The plan that `make` makes, made anew where `key` or the weights (of `also`, too) are not those of the last time."""
        modules = [module] if also is None else [module, also]
        state = key, tuple(_state(m) for m in modules)
        with self._lock:
            known = self._held.get(module)
            if known is None or known[0] != state:
                self._held.pop(module, None)  # before the new one is made: it may be large
                known = state, make()
                self._held[module] = known
        return known[1]


def _state(module: nn.Module) -> Hashable:
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in weights_of(module))


_places: weakref.WeakKeyDictionary[nn.Module, list[dict[str, nn.Parameter | None]]] = weakref.WeakKeyDictionary()


def weights_of(module: nn.Module) -> Iterator[nn.Parameter]:
    """`module.parameters()`, thirty times as fast: where they are is looked up once, as every click asks several times.

    A parameter that is replaced is seen; a submodule that is added later is not.
    """
    places = _places.get(module)
    if places is None:
        places = [part._parameters for part in module.modules() if part._parameters]
        _places[module] = places
    return (p for place in places for p in place.values() if p is not None)

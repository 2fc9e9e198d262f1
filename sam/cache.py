"""Least-recently-used values, bounded in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """A value that knows how many bytes it holds."""

    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class ByteCache(Generic[Value]):
    """Values by key, the least recently used dropped when they are too many; safe to share between threads.

    Args:
        limit: most bytes to hold; a value larger than that is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(value.nbytes for value in self._held.values())

    def get(self, key: Hashable) -> Value | None:
        """The value under `key`, or None."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key]

    def put(self, key: Hashable, value: Value) -> None:
        """Keep `value`, and drop the least recently used ones that no longer fit."""
        with self._lock:
            self._held[key] = value
            self._held.move_to_end(key)
            while self._held and self.nbytes > self.limit:
                self._held.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._held.clear()

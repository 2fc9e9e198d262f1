"""Least-recently-used values in memory, bounded in bytes."""

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from typing import Generic, Protocol, TypeVar

_runs = itertools.count(1)
_run: ContextVar[int] = ContextVar("samkit_run", default=0)


@contextlib.contextmanager
def one_run() -> Iterator[None]:
    """In the body, no value makes room for another one of the same run; nested bodies belong to the outermost.

    A batch larger than a cache would otherwise replace its own first values by its last ones, and the next run of the same
    batch would find none.
    """
    token = _run.set(_run.get() or next(_runs))
    try:
        yield
    finally:
        _run.reset(token)


_FEW = 16  # images: what is made of so many may stay in brief caches, if it fits
_passed: ContextVar[dict[int, Hashable] | None] = ContextVar("samkit_passed", default=None)


@contextlib.contextmanager
def passing(count: int) -> Iterator[None]:
    """In the body, what is made of a long batch passes through brief caches: each value takes the place of the one before.

    A batch that is longer than a cache finds nothing of itself there in the next run; it would only fill the memory.

    Args:
        count: number of images; a few pass like any other.
    """
    token = _passed.set({} if count > _FEW else _passed.get())
    try:
        yield
    finally:
        _passed.reset(token)


class Sized(Protocol):
    """A value that knows its size."""

    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class ByteCache(Generic[Value]):
    """Values by key, the least recently used dropped when they exceed the limit; safe to share between threads.

    Args:
        limit: most bytes to cache; a value larger than that is not cached.
        brief: whether values are mostly used right after they are made, see `passing`.
    """

    def __init__(self, limit: int, brief: bool = False) -> None:
        self.limit, self.brief = limit, brief
        self.nbytes = 0
        self._values: OrderedDict[Hashable, tuple[Value, int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        """The value under `key`, or None."""
        with self._lock:
            if key not in self._values:
                return None
            value, size, _ = self._values.pop(key)
            self._values[key] = value, size, _run.get()
            return value

    def put(self, key: Hashable, value: Value) -> None:
        """Cache `value`, unless it is too large or would take the room of what this run has used (see `one_run`)."""
        size, run = value.nbytes, _run.get()
        with self._lock:
            self._drop(key)
            self._pass(key)
            if not self._make_room(size, run):
                return
            self._values[key] = value, size, run
            self.nbytes += size

    def _pass(self, key: Hashable) -> None:
        """Drop what the same body of `passing` cached before."""
        passed = _passed.get() if self.brief else None
        if passed is not None:
            self._drop(passed.get(id(self), key))
            passed[id(self)] = key

    def _make_room(self, size: int, run: int) -> bool:
        """Drop the least recently used values until `size` bytes fit; whether they do."""
        while self.nbytes + size > self.limit:
            oldest = next(iter(self._values), None)
            if oldest is None or size > self.limit or (run and self._values[oldest][2] == run):
                return False
            self._drop(oldest)
        return True

    def _drop(self, key: Hashable) -> None:
        if key in self._values:
            self.nbytes -= self._values.pop(key)[1]

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._values.clear()
            self.nbytes = 0

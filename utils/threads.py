"""A few threads for work on arrays: numpy and hashlib let go of the interpreter while they run."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")
WORKERS = min(4, os.cpu_count() or 1)  # more only wait for memory


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS, "samkit")


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def in_threads(work: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
    """`[work(item) for item in items]`, several at once; `work` must not call this itself."""
    items = list(items)
    return list(_pool().map(work, items)) if WORKERS > 1 and len(items) > 1 else [work(item) for item in items]

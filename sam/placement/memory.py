"""How much fits on a device at a time, and what to do when it did not."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from .host import CPU, host

log = logging.getLogger("samkit")

_SHARE = 0.8  # of the free memory: torch's allocator rounds up and leaves gaps
_CHUNK = 32
_ROOM_SHARE = 0.1  # of the free memory, for what stays
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def fitting(device: torch.device, each: int, most: int, fixed: int = 0) -> int:
    """How many of something fit on a device at a time, 1 to `most`.

    Args:
        each: bytes of one.
        most: more are no faster.
        fixed: bytes that any number of them needs.
    """
    free = None if device.type == "cpu" else host().free_bytes(device)
    if free is None:
        return most
    return max(1, min(most, int((_SHARE * free - fixed) // each)))


def chunk(device: torch.device, each: int) -> int:
    """How many images a long batch encodes before it decodes them and drops their features.

    A CPU encodes one at a time, so it decodes one at a time. A GPU works on a batch while the one before is on its way back:
    its chunks have several batches, where its own memory and the main memory have room for their features.

    Args:
        device: where the encoder runs.
        each: bytes of an image's features.
    """
    return 1 if device.type == "cpu" else min(room(CPU, each, _CHUNK), room(device, each, _CHUNK))


def room(device: torch.device, each: int, most: int) -> int:
    """How many of something may stay on a device while other work goes on there, 1 to `most`.

    Args:
        each: bytes of one.
        most: there are no more.
    """
    free = host().free_bytes(device)
    return most if free is None else max(1, min(most, int(_ROOM_SHARE * free // each)))


def in_batches(items: Sequence[Item], size: int, run: Callable[[Sequence[Item]], Outcome]) -> Iterator[Outcome]:
    """`run`'s results for some items at a time; where they do not fit into memory, for half as many from there on.

    Args:
        items: in order.
        size: how many to begin with.
        run: from some of the items.

    Raises:
        RuntimeError: a single item does not fit; torch's own error, which ComfyUI knows.
    """
    start = 0
    while start < len(items):
        some = items[start : start + size]
        result = attempt(run, some)
        if result is None:  # its tensors are gone by now
            size = halved(len(some))
        else:
            yield result[0]
            start += len(some)


def attempt(run: Callable[[Sequence[Item]], Outcome], some: Sequence[Item]) -> tuple[Outcome] | None:
    """`run(some)`, or None where it does not fit into memory and there are fewer to try; then its tensors are gone."""
    try:
        return (run(some),)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(some) == 1:
            raise
    host().release_unused()
    return None


def halved(size: int) -> int:
    """The size to try next."""
    log.info("out of memory with %d at a time: trying %d", size, size // 2)
    return size // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no room; MPS and DirectML say it in words only."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()

"""Pieces of work on all cores of a CPU, each piece by one thread from its start to its end.

torch cuts every single operation among its threads and waits for the slowest after each. Where another program uses one of the
cores, all of them wait for that one hundreds of times in an image. Here a thread that is done takes the next piece, so a core
that has less time does fewer of them; and what a piece reads and writes stays in the cache of one core.

The threads are told, each for itself, that torch has one thread: the setting of the process and of all other threads stays.
"""

import contextlib
import ctypes
import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import torch

log = logging.getLogger("samkit")

Piece = TypeVar("Piece")


def for_each(work: Callable[[Piece], None], pieces: Sequence[Piece]) -> None:
    """Do some work on each of the pieces, in no certain order, on as many threads as torch has here.

    On one thread, or where threads of this kind are not to be had, the pieces are worked on here, one after the other.

    Args:
        work: is called from several threads at a time. What it raises ends the work, and is raised here.
        pieces: what it is called with; the largest are best first.
    """
    threads = torch.get_num_threads()
    if min(threads, len(pieces)) < 2 or not _are_available():
        for piece in pieces:
            work(piece)
        return
    waiting, lock, failed = iter(pieces), threading.Lock(), threading.Event()
    is_inference, has_gradients, nothing = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), object()

    def run() -> None:
        """Take pieces until none is left, or one has failed."""
        with torch.inference_mode(is_inference), torch.set_grad_enabled(has_gradients):
            while not failed.is_set():
                with lock:
                    piece = next(waiting, nothing)
                if piece is nothing:
                    return
                try:
                    work(piece)
                except BaseException:
                    failed.set()
                    raise

    running = [_pool(threads).submit(run) for _ in range(min(threads, len(pieces)))]
    try:
        for one in running:
            one.result()
    finally:  # also where the user stops the program: nothing may be written to after this has returned
        failed.set()
        wait(running)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "samkit", _use_one_thread)


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@functools.cache
def _are_available() -> bool:
    """Whether a thread can have torch's operations to itself, without a change to other threads; tried out once."""
    seen: list[int] = []

    def try_it() -> None:
        """How many threads torch has after this one was told that it has one."""
        with contextlib.suppress(OSError, AttributeError, TypeError):
            _use_one_thread()
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    for work in (try_it, lambda: seen.append(torch.get_num_threads())):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    available = seen == [1, before] and torch.get_num_threads() == before
    log.debug("pieces of work have threads of their own: %s", available)
    return available


def _use_one_thread() -> None:
    """Make torch compute on one thread in the calling thread, by OpenMP's and MKL's settings of a thread.

    torch's own setting is of the whole process.

    Raises:
        OSError, AttributeError, TypeError: this system, or this build of torch, has no such settings to be found.
    """
    torch.get_num_threads()  # sets the thread up, which would undo what follows
    ctypes.CDLL(None).omp_set_num_threads(1)
    if torch.backends.mkl.is_available():
        ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).MKL_Set_Num_Threads_Local(1)

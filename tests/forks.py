"""Child processes by fork, for tests that kill them, or let two of them work on one file."""

import faulthandler
import multiprocessing
import os
import signal

import pytest
import torch

LONGEST = 300  # seconds
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def forked(work, *arguments):
    """A process that has begun to do `work`, on one thread.

    One that waits forever would let the suite wait, too: it is ended, and stderr has where it was.
    """

    def child():
        faulthandler.register(signal.SIGALRM, 2, chain=True)
        signal.alarm(LONGEST)
        torch.set_num_threads(1)
        work(*arguments)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process

"""Pieces of work on all cores: every piece once, errors and modes as on the caller's own thread, no setting changed."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from load_pack import ROOT
from samkit.sam.kernels import workers
from samkit.sam.kernels.workers import for_each


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


needs_workers = pytest.mark.skipif(not workers._are_available(), reason="this torch has no OpenMP whose threads can be told")


@pytest.fixture(params=[True, False], ids=["workers", "one after the other"])
def either_way(request, two_threads, monkeypatch):
    if request.param and not workers._are_available():
        pytest.skip("this torch has no OpenMP whose threads can be told")
    monkeypatch.setattr(workers, "_are_available", lambda: request.param)


def test_every_piece_is_worked_on_once(either_way):
    found, lock = [], threading.Lock()

    def work(piece):
        with lock:
            found.append(piece)

    for_each(work, list(range(57)))
    assert sorted(found) == list(range(57))
    for_each(work, [])
    assert len(found) == 57


@needs_workers
def test_two_pieces_are_worked_on_at_a_time(two_threads):
    """Each waits for the other: one after the other, they would never be done."""
    met = threading.Barrier(2)
    for_each(lambda _: met.wait(20), [1, 2])
    assert not met.broken


def test_an_error_ends_the_work_and_is_raised(either_way):
    done = []

    def work(piece):
        if piece == 3:
            raise ValueError("piece 3 is bad")
        done.append(piece)

    with pytest.raises(ValueError, match="piece 3 is bad"):
        for_each(work, range(1000))
    assert len(done) < 999
    after = []
    for_each(after.append, range(4))
    assert sorted(after) == [0, 1, 2, 3], "the threads go on after an error"


@needs_workers
def test_nothing_runs_any_more_when_it_has_raised(two_threads):
    """A piece that is in work when another fails is waited for: its results go to memory that may be given back."""
    begun, other_failed, ended = threading.Event(), threading.Event(), []

    def work(piece):
        if piece == "fails":
            begun.wait(20)
            other_failed.set()
            raise RuntimeError("no")
        begun.set()
        other_failed.wait(20)
        ended.append(piece)

    with pytest.raises(RuntimeError, match="no"):
        for_each(work, ["fails", "goes on"])
    assert ended == ["goes on"]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_mode_of_the_caller_holds_in_a_piece(either_way, mode):
    seen = []
    with mode():
        target = torch.zeros(4)
        expected = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        def work(piece):
            target[piece] += 1  # refused outside of inference mode where the tensor is from inside
            seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

        for_each(work, range(4))
    assert seen == [expected] * 4 and target.tolist() == [1, 1, 1, 1]


@needs_workers
def test_threads_settings_stay_what_they_are(two_threads):
    inside, outside = [], []
    for_each(lambda _: inside.append(torch.get_num_threads()), range(4))
    assert inside == [1, 1, 1, 1] and torch.get_num_threads() == 2
    fresh = threading.Thread(target=lambda: outside.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert outside == [2]


@needs_workers
def test_pieces_within_a_piece_stay_on_its_thread(two_threads):
    names = []

    def work(_):
        for_each(lambda _: names.append(threading.current_thread().name), range(3))

    for_each(work, range(2))
    assert len(names) == 6 and all(name.startswith("samkit") for name in names)


def test_where_a_system_has_no_such_setting_all_runs_on_the_callers_thread(two_threads, monkeypatch):
    def absent():
        raise AttributeError("undefined symbol: omp_set_num_threads")

    monkeypatch.setattr(workers, "_use_one_thread", absent)
    workers._are_available.cache_clear()
    try:
        here = []
        for_each(lambda _: here.append(threading.get_ident()), range(3))
        assert here == [threading.get_ident()] * 3
    finally:
        workers._are_available.cache_clear()


@needs_workers
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_gets_threads_of_its_own():
    """The parent's are not there: work given to them would never be done."""
    code = (
        "import os, sys, torch\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "from load_pack import load_pack\nload_pack()\n"
        "from samkit.sam.kernels.workers import for_each\n"
        "torch.set_num_threads(2)\n"
        "for_each(lambda _: None, range(4))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    found = []\n    for_each(found.append, range(4))\n    os._exit(0 if sorted(found) == [0, 1, 2, 3] else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0

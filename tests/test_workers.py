"""Pieces of work on all cores: every piece once, errors and modes as on the caller's own thread, no setting changed."""

import subprocess
import sys
import threading

import pytest
import torch
from forks import needs_fork
from load_pack import ROOT
from reference import random_sam
from samkit.sam.kernels import workers
from samkit.sam.kernels.attention import attend_in_pieces
from samkit.sam.kernels.convolution import AtenConvolution
from samkit.sam.kernels.decoder import FastDecoder
from samkit.sam.kernels.encoder import FastEncoder
from samkit.sam.kernels.linear import AtenLinear
from samkit.sam.kernels.memory_attention import FastMemoryAttention, Memories
from samkit.sam.kernels.plain_vit import FastPlainViT
from samkit.sam.kernels.self_test import livelier
from samkit.sam.kernels.tiny_vit import FastTinyViT
from samkit.sam.kernels.workers import for_each
from samkit.sam.models.efficient_sam.encoder import PlainViT, PlainViTShape
from samkit.sam.models.sam2.memory import MemoryAttention, rotations
from samkit.sam.models.sam2.self_test import repvit_error
from samkit.sam.models.tiny_vit import Stage, TinyViT


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


def small_encoders():
    """(plain forward, fast plan, input) of a small encoder of each kind that works in pieces, of windows that do not fit."""
    numbers = torch.Generator().manual_seed(0)
    vit = random_sam(grid=11, window=4, embed_dim=28, heads=2, depth=4, global_blocks=(1, 3), out_chans=16, mlp_dim=32)
    vit = vit.image_encoder.requires_grad_(False)
    yield (
        "ViT",
        vit,
        FastEncoder(vit, torch.float32, AtenLinear, attend_in_pieces),
        torch.randn(3, 3, 176, 176, generator=numbers),
    )
    plain = PlainViT(PlainViTShape(24, 2, 3, 48, 8, 11, 17, 8)).eval().requires_grad_(False)
    yield "plain ViT", plain, FastPlainViT(plain, torch.float32, AtenLinear), torch.randn(3, 3, 88, 88, generator=numbers)
    stages = Stage(16, 1, 0, 0, 2), Stage(24, 1, 2, 7, 2), Stage(32, 1, 2, 3, 1), Stage(48, 1, 3, 7, 0)
    tiny = TinyViT(160, stages, 2.0, 2.0, 16).eval().requires_grad_(False)
    plan = FastTinyViT(tiny, torch.float32, AtenLinear, AtenConvolution, 1)
    yield "TinyViT", tiny, lambda x: plan(x)[0], torch.randn(3, 3, 160, 160, generator=numbers)


@needs_workers
@pytest.mark.parametrize("name", ["ViT", "plain ViT", "TinyViT"])
def test_encoders_give_the_references_features_by_workers(name, two_threads, monkeypatch):
    """Three images, on two threads of which each takes what is next; some of the work is done by either."""
    names, real = set(), workers.for_each

    def watched(work, pieces):
        def run(piece):
            names.add(threading.current_thread().name)
            work(piece)

        real(run, pieces)

    for module in ("attention", "encoder", "tiny_vit"):
        monkeypatch.setattr(f"samkit.sam.kernels.{module}.for_each", watched)
    encoder, fast, images = next(parts[1:] for parts in small_encoders() if parts[0] == name)
    with torch.inference_mode():
        expected, found = encoder(images), fast(images)
        found = found[0] if isinstance(found, tuple) else found
    assert expected.std() > 0.1, "trivial features compare nothing"
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert names and all(name.startswith("samkit") for name in names)


@needs_workers
def test_edgetams_encoder_gives_its_own_features_by_workers(two_threads):
    """Strips see the rows beside them, and channels are weighed by their means over all strips."""
    torch.manual_seed(0)
    with torch.no_grad():
        assert repvit_error(torch.device("cpu")) < 1e-5


@needs_workers
@pytest.mark.parametrize("count", [5, 17], ids=["one at a time", "two at a time"])
def test_a_decoder_gives_the_references_masks_by_workers(count, two_threads):
    sam = random_sam(grid=8, window=4, embed_dim=24, heads=3, depth=2, global_blocks=(1,), out_chans=32, mlp_dim=32)
    sam = sam.requires_grad_(False)
    features = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    points = torch.rand(count, 1, 2) * 128, torch.ones(count, 1)
    sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
    expected, scores = sam.mask_decoder.predict_masks(features, sam.prompt_encoder.get_dense_pe(), sparse, dense)
    plan = FastDecoder(sam.mask_decoder, sam.prompt_encoder, AtenLinear)
    with torch.no_grad():
        found = plan(plan.share(features[0]), sparse, None, slice(1, None))
    torch.testing.assert_close(found.logits, expected[:, 1:], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.scores, scores[:, 1:], atol=1e-5, rtol=1e-5)
    assert found.rows.tolist() == list(range(count))


@needs_workers
def test_memory_attention_is_the_modules_by_workers(two_threads):
    """Of two objects, on more tokens than a piece has; one thread gives the very same numbers."""
    torch.manual_seed(0)
    attention, grid = livelier(MemoryAttention(32, 8, 2, 48).eval().requires_grad_(False)), (24, 32)
    turns, tokens, memories = rotations(32, grid, torch.device("cpu")), torch.randn(768, 32), []
    for maps, pointers in ((1, 0), (2, 5)):
        values, places = torch.randn(2, 768 * maps + pointers, 8)
        memories.append(Memories(values, places, 768 * maps, *turns))
    plan = FastMemoryAttention(attention, AtenLinear)
    found, expected = plan(tokens, memories, *turns), attention(tokens, memories, *turns)
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 0.1, "trivial features compare nothing"
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    torch.set_num_threads(1)
    assert all(map(torch.equal, plan(tokens, memories, *turns), found))


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
def test_nothing_runs_any_more_when_it_has_raised(two_threads, monkeypatch):
    """A piece that is in work when another fails is waited for: its results go to memory that may be given back."""
    begun, released, ended, wait = threading.Event(), threading.Event(), [], workers.wait

    def release_and_wait(running):
        released.set()
        return wait(running)

    monkeypatch.setattr(workers, "wait", release_and_wait)

    def work(piece):
        if piece == "fails":
            begun.wait(20)
            raise RuntimeError("no")
        begun.set()
        released.wait(20)
        ended.append(piece)

    with pytest.raises(RuntimeError, match="no"):
        for_each(work, ["fails", "goes on"])
    released.set()
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
@needs_fork
@pytest.mark.parametrize(
    ("module", "work"),
    [
        ("sam.kernels.workers", "for_each(found.append, range(4))"),
        ("utils.threads", "found.extend(in_threads(int, range(4)))"),
    ],
)
def test_a_forked_process_gets_threads_of_its_own(module, work):
    """The parent's are not there: work given to them would never be done."""
    code = (
        "import os, sys, torch\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "from load_pack import load_pack\nload_pack()\n"
        f"from samkit.{module} import *\n"
        "torch.set_num_threads(2)\n"
        f"found = []\n{work}\nfound.clear()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        f"    {work}\n    os._exit(0 if sorted(found) == [0, 1, 2, 3] else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0

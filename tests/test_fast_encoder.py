"""The fast encoder against segment_anything's own forward, on every path that it can take."""

import importlib.util
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from reference import random_sam
from samkit.sam.kernels import linear
from samkit.sam.kernels.attention import (
    attend_fused,
    attend_in_pieces,
    attend_with_bias,
    attend_without_positions,
    faster_on_gpu,
    position_table,
)
from samkit.sam.kernels.encoder import FastEncoder, WindowOrder, plan_for, supports
from samkit.sam.kernels.linear import AtenLinear, OneDNNLinear
from samkit.sam.models.sam import run_encoder

SHAPES = {
    "edge windows on both sides": {"grid": 11, "window": 4},
    "whole windows": {"grid": 8, "window": 4},
    "a window larger than the grid": {"grid": 5, "window": 7},
    "no windows": {"grid": 6, "window": 3, "global_blocks": (0, 1, 2)},
    "no global block": {"grid": 6, "window": 4, "global_blocks": ()},
    "SlimSAM's head size": {"grid": 9, "window": 4, "embed_dim": 28, "heads": 2},
    "another patch size": {"grid": 7, "window": 3, "patch": 8},
}


def encoder_of(seed=3, **shape):
    small = {"embed_dim": 24, "depth": 3, "heads": 3, "global_blocks": (1,), "out_chans": 16, "mlp_dim": 32}
    return random_sam(**{**small, **shape}, seed=seed).image_encoder.requires_grad_(False)


def pixels(encoder, count):
    return torch.randn(count, 3, encoder.img_size, encoder.img_size, generator=torch.Generator().manual_seed(1))


def has_onednn():
    try:
        return linear.is_right(OneDNNLinear, torch.float32)
    except (AttributeError, RuntimeError):
        return False


needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN linear layer")
LINEARS = [AtenLinear, pytest.param(OneDNNLinear, marks=needs_onednn)]
HAS_FLEX = importlib.util.find_spec("torch.nn.attention.flex_attention") is not None
needs_flex = pytest.mark.skipif(not HAS_FLEX, reason="torch before 2.5 has no flex attention; the pack uses its own there")


@pytest.mark.parametrize("attend", [attend_in_pieces, attend_with_bias, pytest.param(attend_fused, marks=needs_flex)])
@pytest.mark.parametrize("kind", LINEARS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_equals_the_stock_forward(shape, kind, attend):
    encoder = encoder_of(**shape)
    images = pixels(encoder, 2)
    expected = encoder(images)
    ours, _ = FastEncoder(encoder, torch.float32, kind, attend)(images)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
    assert expected.std() > 0.5, "a trivial embedding compares nothing"


@pytest.mark.parametrize("kind", LINEARS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
def test_attention_without_positions_is_torchs(piece_bytes, dtype, error, kind, monkeypatch):
    """Three heads of 14, as SlimSAM has, and 50 tokens: neither fills a piece."""
    monkeypatch.setattr("samkit.sam.kernels.attention._PIECE_BYTES", piece_bytes)
    numbers = torch.Generator().manual_seed(0)
    q, k, v = (3 * torch.randn(3, 50, 14, generator=numbers) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    found = torch.full((50, 3, 14), float("nan"), dtype=dtype).transpose(0, 1)
    attend_without_positions(kind, *(x.to(dtype) for x in (q, k, v)), found)
    assert (found.float() - expected).norm() / expected.norm() < error


@pytest.mark.parametrize("piece_bytes", [1, 3000, 50_000])
def test_the_size_of_the_pieces_does_not_matter(piece_bytes, monkeypatch):
    encoder = encoder_of(grid=11, window=4)
    images = pixels(encoder, 1)
    monkeypatch.setattr("samkit.sam.kernels.attention._PIECE_BYTES", piece_bytes)
    monkeypatch.setattr("samkit.sam.kernels.attention.BIAS_BYTES", piece_bytes)
    for attend in (attend_in_pieces, attend_with_bias):
        ours, _ = FastEncoder(encoder, torch.float32, AtenLinear, attend)(images)
        torch.testing.assert_close(ours, encoder(images), atol=2e-5, rtol=0)


def test_early_features_are_the_first_global_blocks(monkeypatch):
    encoder = encoder_of(grid=11, window=4, global_blocks=(1, 2))
    images, seen = pixels(encoder, 2), []
    hook = encoder.blocks[1].register_forward_hook(lambda _, __, out: seen.append(out))
    encoder(images)
    hook.remove()
    torch.testing.assert_close(run_encoder(encoder, images, early=True)[1], seen[0], atol=2e-5, rtol=0)
    monkeypatch.setattr(sys.modules["samkit.sam.kernels.encoder"], "supports", lambda encoder: False)
    assert torch.equal(run_encoder(encoder, images, early=True)[1], seen[0])
    assert not encoder.blocks[1]._forward_hooks


def test_early_features_are_the_own_images_where_two_threads_run_one_encoder(monkeypatch):
    encoder = encoder_of(grid=11, window=4, global_blocks=(1, 2))
    monkeypatch.setattr(sys.modules["samkit.sam.kernels.encoder"], "supports", lambda encoder: False)
    batches = [pixels(encoder, 1), pixels(encoder, 1) + 1]
    alone = [run_encoder(encoder, images, early=True)[1] for images in batches]
    both_in = threading.Barrier(2)

    def meet(*_):
        both_in.wait(10)

    hook = encoder.blocks[0].register_forward_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda images: run_encoder(encoder, images, early=True)[1], batches))
    hook.remove()
    assert not torch.equal(*alone) and all(map(torch.equal, alone, together))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_stays_near(dtype):
    encoder = encoder_of(grid=8, window=4)
    images = pixels(encoder, 1)
    expected = encoder(images)
    ours, _ = FastEncoder(encoder, dtype, AtenLinear, attend_in_pieces)(images)
    error = (ours - expected).norm() / expected.norm()
    assert ours.dtype == torch.float32
    assert 1e-6 < error < 4 * torch.finfo(dtype).eps


class TestGPUChoice:
    """What a CUDA GPU would do, on the CPU: both kinds of attention run there."""

    ATTENTION = sys.modules["samkit.sam.kernels.attention"]

    @pytest.fixture
    def likeness(self):
        numbers = torch.Generator().manual_seed(0)
        tables = torch.randn(2, 7, 8, generator=numbers)
        return torch.randn(2, 16, 8, generator=numbers), position_table(*tables), 4

    @pytest.mark.parametrize(
        ("fused", "chosen"), [(1.0, attend_fused if HAS_FLEX else attend_with_bias), (3.0, attend_with_bias)]
    )
    def test_the_faster_attention_is_chosen(self, likeness, fused, chosen, monkeypatch):
        monkeypatch.setattr(self.ATTENTION, "_seconds", lambda attend, *_: fused if attend is attend_fused else 2.0)
        assert faster_on_gpu(*likeness) is chosen

    def test_a_wrong_or_failing_kernel_is_not(self, likeness, monkeypatch):
        monkeypatch.setattr(self.ATTENTION, "_seconds", lambda attend, *_: 0.0 if attend is attend_fused else 2.0)
        monkeypatch.setattr(self.ATTENTION, "_flex_attention", lambda _: lambda q, k, v, score_mod: q)
        assert faster_on_gpu(*likeness) is attend_with_bias

        def absent(_):
            raise ImportError("No module named 'triton'")

        monkeypatch.setattr(self.ATTENTION, "_flex_attention", absent)
        assert faster_on_gpu(*likeness) is attend_with_bias

    @pytest.mark.parametrize(("asked", "looks"), [("1", 1), ("", 0)])
    def test_it_is_looked_for_only_when_asked_and_before_the_first_image(self, asked, looks, monkeypatch):
        """Compiling takes seconds: never in the middle of somebody's work."""
        found, encoder = [], encoder_of(grid=6, window=4)
        module = sys.modules["samkit.sam.kernels.encoder"]
        monkeypatch.setattr(module, "faster_on_gpu", lambda q, *_: found.append(q.shape) or attend_in_pieces)
        monkeypatch.setenv("SAMKIT_COMPILE", asked)
        monkeypatch.setattr(torch, "randn", lambda *shape, device, dtype: torch.empty(shape))
        plan = plan_for(encoder, torch.device("cuda"), torch.float32)
        assert found == [(3, 36, 8)] * looks and plan.attend is attend_with_bias
        assert plan.attend_globally is (attend_in_pieces if looks else attend_with_bias)


def test_window_order_is_a_permutation_by_windows():
    windows = WindowOrder(5, 2)
    assert windows.order.tolist()[:8] == [0, 1, 5, 6, 2, 3, 7, 8]
    assert windows.groups == [(4, 2, 2), (2, 2, 1), (2, 1, 2), (1, 1, 1)]
    assert windows.order[windows.inverse].tolist() == list(range(25))


class TestChoice:
    """Which linear layer runs is told by a self-test and a timing, never by a name."""

    @pytest.fixture(autouse=True)
    def afresh(self):
        linear.cpu_linear.cache_clear()
        linear.bfloat16_pays.cache_clear()
        yield
        linear.cpu_linear.cache_clear()
        linear.bfloat16_pays.cache_clear()

    def test_without_onednn_it_is_aten(self, monkeypatch):
        def absent(self, weight, bias, dtype):
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

        monkeypatch.setattr(OneDNNLinear, "__init__", absent)
        assert linear.cpu_linear(torch.float32) is AtenLinear
        encoder = encoder_of(grid=6, window=4)
        images = pixels(encoder, 1)
        torch.testing.assert_close(run_encoder(encoder, images)[0], encoder(images), atol=2e-5, rtol=0)

    def test_a_failed_self_test_makes_it_aten(self, monkeypatch):
        monkeypatch.setattr(linear, "is_right", lambda kind, dtype: False)
        monkeypatch.setattr(linear, "speed_over_aten", lambda kind, dtype: 9.0)
        assert linear.cpu_linear(torch.float32) is AtenLinear

    @needs_onednn
    @pytest.mark.parametrize(("speed", "chosen"), [(2.0, OneDNNLinear), (1.0, AtenLinear)])
    def test_the_faster_one_is_chosen(self, speed, chosen, monkeypatch):
        monkeypatch.setattr(linear, "speed_over_aten", lambda kind, dtype: speed)
        assert linear.cpu_linear(torch.float32) is chosen

    def test_the_self_test_sees_bfloat16_behind_float32(self):
        class Rounded(AtenLinear):
            def plain(self, x):
                return super().plain(x.bfloat16().float())

        assert linear.is_right(AtenLinear, torch.float32)
        assert not linear.is_right(Rounded, torch.float32)

    def test_timing_compares_the_two(self, monkeypatch):
        clock = iter([1.0, 4.0] * 99)
        monkeypatch.setattr(linear, "_time", lambda layer, x: next(clock))
        assert linear.speed_over_aten(AtenLinear, torch.float32) == 4.0


def test_an_unknown_encoder_runs_its_own_forward():
    encoder = encoder_of(grid=6, window=4)
    encoder.blocks[0].attn.use_rel_pos = False
    assert not supports(encoder)
    images = pixels(encoder, 1)
    assert torch.equal(run_encoder(encoder, images)[0], encoder(images))
    assert not supports(torch.nn.Identity())
    assert torch.equal(run_encoder(torch.nn.Identity(), images)[0], images)


def test_changed_weights_are_seen():
    encoder = encoder_of(grid=6, window=4)
    images = pixels(encoder, 1)
    before, _ = run_encoder(encoder, images)
    with torch.no_grad():
        encoder.blocks[0].mlp.lin1.weight.mul_(1.5)
        encoder.blocks[1].attn.rel_pos_h.mul_(2)
    after, _ = run_encoder(encoder, images)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, encoder(images), atol=2e-5, rtol=0)


def test_global_settings_are_left_alone():
    def settings():
        products = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9 and newer
        precision = torch.get_float32_matmul_precision()
        return torch.get_num_threads(), precision, getattr(products, "fp32_precision", None)

    encoder = encoder_of(grid=6, window=4)
    before = settings()
    linear.cpu_linear.cache_clear()
    run_encoder(encoder, pixels(encoder, 1))
    assert settings() == before

"""The fast TinyViT against the encoder's own forward, which is MobileSAM's (see test_mobile_sam.py)."""

import pytest
import torch
from samkit.sam.kernels import convolution, self_test, tiny_vit
from samkit.sam.kernels.convolution import AtenConvolution, OneDNNConvolution
from samkit.sam.kernels.linear import AtenLinear, OneDNNLinear
from samkit.sam.kernels.tiny_vit import FastTinyViT
from samkit.sam.models import tiny_vit as models
from samkit.sam.models.tiny_vit import Stage, TinyViT, run_tiny_vit
from test_fast_encoder import needs_onednn

SHAPES = {
    "windows at the edge": (160, (Stage(16, 1, 0, 0, 2), Stage(24, 2, 2, 7, 2), Stage(32, 1, 2, 3, 1), Stage(48, 1, 3, 7, 0))),
    "whole windows": (128, (Stage(16, 2, 0, 0, 2), Stage(24, 1, 3, 4, 2), Stage(32, 1, 2, 8, 1), Stage(40, 1, 2, 2, 0))),
    "a window larger than the map": (
        64,
        (Stage(8, 1, 0, 0, 2), Stage(16, 1, 2, 14, 2), Stage(16, 1, 1, 7, 1), Stage(24, 1, 2, 5, 0)),
    ),
    "a patch merging of stride 2 at the end": (
        96,
        (Stage(8, 1, 0, 0, 2), Stage(16, 1, 2, 7, 2), Stage(16, 1, 1, 7, 2), Stage(24, 1, 2, 7, 0)),
    ),
}


def encoder_of(side, stages):
    torch.manual_seed(3)
    encoder = TinyViT(side, stages, 4.0, 2.0, 16).eval().requires_grad_(False)
    with torch.no_grad():
        return self_test.livelier(encoder)


def pixels(encoder, count):
    return torch.randn(count, 3, encoder.img_size, encoder.img_size, generator=torch.Generator().manual_seed(1))


KINDS = [(AtenLinear, AtenConvolution), pytest.param((OneDNNLinear, OneDNNConvolution), marks=needs_onednn)]


@pytest.mark.parametrize("kinds", KINDS, ids=["ATen", "oneDNN"])
@pytest.mark.parametrize("strip", [1, 5000, 4 << 20], ids=["rows one by one", "some rows", "all rows"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_equals_the_stock_forward(shape, strip, kinds, monkeypatch):
    """With maps cut into strips of one row, of some, and not at all."""
    for limit in ("_STRIP_BYTES", "_SCORE_BYTES"):
        monkeypatch.setattr(tiny_vit, limit, strip)
    monkeypatch.setattr(tiny_vit, "_MLP_TOKENS", max(1, strip // 256))
    encoder = encoder_of(*shape)
    images = pixels(encoder, 3)
    expected, early = encoder.run(images)
    features, seen = FastTinyViT(encoder, torch.float32, *kinds, 1)(images)
    assert features.is_contiguous() and features.dtype == seen.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(seen, early, atol=2e-5, rtol=1e-5)
    assert expected.std() > 0.5 and early.std() > 0.01, "trivial features compare nothing"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_of_windows_are_cut_where_cores_would_be_idle(shape, monkeypatch):
    """Four threads want twelve pieces of an image; the cuts lie between windows, the last of which may be narrower."""
    seen, real = [], tiny_vit.for_each
    monkeypatch.setattr(tiny_vit, "for_each", lambda work, pieces: (seen.append(pieces), real(work, pieces)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    encoder = encoder_of(*shape)
    images = pixels(encoder, 1)
    features, early = FastTinyViT(encoder, torch.float32, AtenLinear, AtenConvolution, 1)(images)
    for found, expected in zip((features, early), encoder.run(images), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    windows = [pieces for pieces in seen if len(pieces[0]) == 3]
    assert len(windows) == sum(stage.depth for stage in shape[1][1:])
    if shape is not SHAPES["a window larger than the map"]:
        assert any(len({columns.start for *_, columns in pieces}) > 1 for pieces in windows)


@pytest.mark.parametrize("kinds", KINDS, ids=["ATen", "oneDNN"])
def test_bfloat16_is_as_exact_as_the_stock_forward_in_it(kinds):
    encoder = encoder_of(*SHAPES["windows at the edge"])
    images = pixels(encoder, 2)
    expected, _ = encoder.run(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stock, _ = encoder.run(images)
    features, early = FastTinyViT(encoder, torch.bfloat16, *kinds, 1)(images)
    assert features.dtype == early.dtype == torch.float32
    assert (features - expected).norm() < 1.5 * (stock.float() - expected).norm()


def test_the_images_and_the_weights_stay_as_they_were():
    encoder = encoder_of(*SHAPES["whole windows"])
    images, weights = pixels(encoder, 1), {name: value.clone() for name, value in encoder.state_dict().items()}
    before = images.clone()
    first = run_tiny_vit(encoder, images, torch.float32)
    kept = [part.clone() for part in first]
    run_tiny_vit(encoder, images + 1, torch.float32)
    assert torch.equal(images, before) and all(map(torch.equal, first, kept)), "a result is nobody's working memory"
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())


def test_the_plan_is_made_once_for_the_same_weights(monkeypatch):
    encoder, made = encoder_of(*SHAPES["whole windows"]), []
    images, plan = pixels(encoder, 1), models._plan
    run_tiny_vit(encoder, images, torch.float32)
    monkeypatch.setattr(models, "_plan", lambda *given: made.append(given) or plan(*given))
    run_tiny_vit(encoder, images, torch.float32)
    assert not made
    run_tiny_vit(encoder, images, torch.bfloat16)
    assert len(made) == 1


def test_changed_weights_give_other_features():
    encoder = encoder_of(*SHAPES["whole windows"])
    images = pixels(encoder, 1)
    first, _ = run_tiny_vit(encoder, images, torch.float32)
    with torch.no_grad():
        encoder.layers[1].blocks[0].attn.attention_biases.mul_(3)
    second, _ = run_tiny_vit(encoder, images, torch.float32)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.testing.assert_close(second, encoder(images), atol=2e-5, rtol=1e-5)


class TestSelfTest:
    @pytest.fixture(autouse=True)
    def afresh(self):
        self_test._passes.cache_clear()
        yield
        self_test._passes.cache_clear()

    def test_it_passes_here(self):
        torch.manual_seed(0)
        with torch.no_grad():
            assert models._error_on_cpu(torch.device("cpu")) < 1e-4

    @pytest.mark.parametrize("fault", [lambda *_: torch.zeros(1), None], ids=["wrong", "absent"])
    def test_where_it_is_wrong_the_stock_forward_runs(self, fault, monkeypatch):
        """As with a build of torch whose private operators mean something else."""

        def raises(*_):
            raise AttributeError("no such operator")

        right = tiny_vit._Block._attend
        wrong = raises if fault is None else lambda self, size, tokens: right(self, size, tokens).flip(0)
        monkeypatch.setattr(tiny_vit._Block, "_attend", wrong)
        encoder = encoder_of(*SHAPES["whole windows"])
        images = pixels(encoder, 1)
        assert torch.equal(run_tiny_vit(encoder, images, torch.float32)[0], encoder(images))


class TestConvolutions:
    @pytest.fixture(autouse=True)
    def afresh(self):
        convolution.cpu_convolution.cache_clear()
        yield
        convolution.cpu_convolution.cache_clear()

    @needs_onednn
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_both_kinds_are_right(self, dtype):
        assert convolution.is_right(AtenConvolution, dtype) and convolution.is_right(OneDNNConvolution, dtype)

    @pytest.mark.parametrize("method", ["plain", "gelu"])
    def test_a_wrong_kind_is_not_used(self, method, monkeypatch):
        monkeypatch.setattr(convolution, "_speed_over_aten", lambda dtype: 2.0)
        right = getattr(OneDNNConvolution, method)
        monkeypatch.setattr(OneDNNConvolution, method, lambda self, x: right(self, x) * 1.01)
        assert convolution.cpu_convolution(torch.float32) is AtenConvolution

    def test_an_absent_one_is_not_used(self, monkeypatch):
        def absent(*_):
            raise AttributeError("mkldnn_reorder_conv2d_weight")

        monkeypatch.setattr(OneDNNConvolution, "__init__", absent)
        assert convolution.cpu_convolution(torch.float32) is AtenConvolution

    @needs_onednn
    @pytest.mark.parametrize(("speed", "chosen"), [(1.1, OneDNNConvolution), (0.9, AtenConvolution)])
    def test_the_faster_one_is_used(self, speed, chosen, monkeypatch):
        monkeypatch.setattr(convolution, "_speed_over_aten", lambda dtype: speed)
        assert convolution.cpu_convolution(torch.float32) is chosen

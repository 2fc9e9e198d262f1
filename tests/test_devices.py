"""Every family and task on a device that is neither a CPU nor a CUDA GPU, and refuses float64: see `stand_in_device.py`."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from reference_edgetam import SMALL as SMALL_BODY
from reference_edgetam import random_edgetam
from reference_hq import hugging_face_hq
from reference_sam2 import SMALL, SMALL_SIDE, random_sam2
from safetensors.torch import save_file
from samkit.nodes.personalize import Personalize
from samkit.nodes.predict import Segment
from samkit.sam import AutoMaskOptions, SAMError, load_model, segment_everything
from samkit.sam.kernels import self_test
from samkit.sam.models import tiny_vit
from samkit.sam.models.efficient_sam import self_test as efficient_sam
from samkit.sam.models.sam import SAMModel
from samkit.sam.models.sam2 import hiera
from samkit.sam.models.sam2.self_test import decoder_error, encoder_error, repvit_error
from samkit.sam.models.tiny_vit import Stage, TinyViT
from samkit.sam.tasks import embed
from stand_in_device import DEVICE, StandIn, stand_in_device
from test_efficient_sam import random_efficient_sam
from torch import nn

IMAGE = as_image(make_image(60, 80))
MASK = torch.zeros(1, 60, 80)
MASK[:, 15:45, 20:60] = 1
POINTS = {"positive_coords": '[{"x": 30, "y": 25}]', "negative_coords": '[{"x": 70, "y": 50}]'}
BOX = {"x": 10, "y": 12, "width": 44, "height": 30}
PROMPTS = {
    "points": POINTS,
    "all": {**POINTS, "bboxes": BOX, "mask_prompt": MASK},
    "candidates": {**POINTS, "multimask": "on", "candidate": "all"},
}


@pytest.fixture(params=["SAM", "SAM-HQ", "MobileSAM", "SAM 2", "EfficientSAM", "EdgeTAM"])
def model(request, tiny_model, tmp_path, monkeypatch):
    """Small models with random weights."""
    self_test._passes.cache_clear()
    if request.param == "SAM-HQ":
        hugging_face_hq().save_pretrained(tmp_path / "hq")
        yield load_model(tmp_path / "hq" / "model.safetensors", "fp32")
    elif request.param == "MobileSAM":
        stages = (Stage(8, 1, 0, 0, 2), Stage(8, 1, 2, 4, 2), Stage(16, 1, 2, 4, 1), Stage(16, 1, 2, 4, 0))
        encoder = TinyViT(128, stages, 4.0, 4.0, 32).eval().requires_grad_(False)
        yield SAMModel(encoder, tiny_model.prompt_encoder, tiny_model.mask_decoder, tmp_path / "tiny.pth", "fp32").eval()
    elif request.param == "SAM 2":
        monkeypatch.setitem(hiera.SIZES, (16, 8), hiera.HieraSize("small test", 1, (8, 4, 6, 3), (4,), SMALL_SIDE))
        state = random_sam2(SMALL, SMALL_SIDE, 64).state_dict()
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tmp_path / "sam2.safetensors")
        yield load_model(tmp_path / "sam2.safetensors", "fp32")
    elif request.param == "EdgeTAM":
        monkeypatch.setattr("samkit.sam.models.sam2.repvit._SIDE", SMALL_SIDE)
        torch.save(random_edgetam(SMALL_SIDE, 64, **SMALL_BODY).state_dict(), tmp_path / "edgetam.pt")
        yield load_model(tmp_path / "edgetam.pt", "fp32")
    elif request.param == "EfficientSAM":
        monkeypatch.setattr("samkit.sam.models.efficient_sam.model._GRID", 8)  # a side of 128 pixels
        yield random_efficient_sam(tmp_path / "efficient.pt")
    else:
        yield tiny_model


@pytest.fixture(params=["fast", "plain"])
def forward(request, monkeypatch):
    """The fast forwards pass their self-test on the stand-in; the plain ones run there where they fail."""
    if request.param == "plain":
        monkeypatch.setattr(self_test, "_passes", lambda _, device: device == "cpu")
    return request.param


def everything(model):
    """Masks [N, H, W] and scores of every point."""
    options = AutoMaskOptions(points_per_side=2, pred_iou_thresh=-10.0, stability_score_thresh=0.0)
    found = segment_everything(model, make_image(60, 80), options)
    assert found
    return np.stack([one.full((60, 80)) for one in found]), [one.score for one in found]


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_prompts_give_what_they_give_on_the_cpu(prompts, model, forward, monkeypatch):
    if model.family == "EfficientSAM":
        prompts = {name: value for name, value in prompts.items() if name != "mask_prompt"}
    expected = Segment().execute(model, IMAGE, **prompts)
    embed.cache.clear()
    with stand_in_device(monkeypatch) as device:
        masks, _, scores, logits = Segment().execute(model, IMAGE, **prompts)
        assert any(kind == "up" for kind, _ in device.copies)
    assert type(masks) is torch.Tensor and masks.device.type == "cpu"
    torch.testing.assert_close(logits, expected[3], atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(scores, expected[2], atol=1e-4)
    assert (masks == expected[0]).float().mean() > 0.999


def test_segment_everything_finds_what_it_finds_on_the_cpu(model, forward, monkeypatch):
    expected = everything(model)
    embed.cache.clear()
    with stand_in_device(monkeypatch):
        masks, scores = everything(model)
    np.testing.assert_allclose(scores, expected[1], atol=1e-4)
    assert masks.shape == expected[0].shape and (masks == expected[0]).mean() > 0.999


def test_personalize_finds_what_it_finds_on_the_cpu_or_says_that_it_cannot(model, forward, monkeypatch):
    options = {"method": "persam", "max_objects": 1}
    if model.family == "EfficientSAM":
        with pytest.raises(SAMError, match="SAM Personalize does not support EfficientSAM"):
            Personalize().execute(model, IMAGE, MASK, IMAGE, **options)
        return
    expected = Personalize().execute(model, IMAGE, MASK, IMAGE, **options)
    embed.cache.clear()
    with stand_in_device(monkeypatch):
        if forward == "plain":
            with pytest.raises(SAMError, match=r"SAM Personalize (cannot run|does not support)"):
                Personalize().execute(model, IMAGE, MASK, IMAGE, **options)
            return
        masks = Personalize().execute(model, IMAGE, MASK, IMAGE, **options)[0]
    # Of pixels that are equally unlike the example, rounding chooses one: on such small maps that is a mark elsewhere. With
    # EdgeTAM and one thread, whose convolutions are oneDNN's on the CPU alone, 11 % of the pixels differ.
    assert (masks == expected[0]).float().mean() > 0.85


FAST = {
    "SAM's encoder": self_test._encoder_error,
    "SAM's decoder": self_test._decoder_error,
    "SAM 2's encoder": encoder_error,
    "SAM 2's decoder": decoder_error,
    "EdgeTAM's encoder": repvit_error,
    "TinyViT's": tiny_vit._attention_error,
    "EfficientSAM's encoder": efficient_sam.encoder_error,
    "EfficientSAM's decoder": efficient_sam.decoder_error,
}


@pytest.mark.parametrize("error_on", FAST.values(), ids=FAST)
def test_the_fast_forwards_need_nothing_that_such_a_device_lacks(error_on, monkeypatch):
    """Where one did, the plain one would run without a word, several times slower."""
    with stand_in_device(monkeypatch), torch.no_grad():
        torch.manual_seed(0)
        assert error_on(DEVICE) < self_test._TOLERANCE


@pytest.mark.parametrize("error_on", [encoder_error, decoder_error, tiny_vit._attention_error])
class TestSelfTest:
    """Of SAM 2 and TinyViT; that of SAM is in `test_gpu.py`."""

    @pytest.fixture(autouse=True)
    def afresh(self):
        self_test._passes.cache_clear()
        yield
        self_test._passes.cache_clear()

    def test_it_passes_where_the_arithmetic_is_right(self, error_on, monkeypatch):
        monkeypatch.setattr(self_test, "_KNOWN", ())
        assert self_test.works_on(torch.device("cpu"), error_on)

    def test_an_absent_operator_fails(self, error_on):
        assert not self_test.works_on(torch.device("meta"), error_on)

    def test_wrong_attention_fails(self, error_on, monkeypatch):
        """As on systems where a fused kernel ignores strides: the plain forward of the reference does without it."""
        right = nn.functional.scaled_dot_product_attention
        wrong = lambda q, k, v, *bias: right(q, k.flip(-2), v, *bias)  # noqa: E731
        monkeypatch.setattr(self_test, "_KNOWN", ())
        if error_on is tiny_vit._attention_error:
            monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", wrong)
        else:
            monkeypatch.setattr("samkit.sam.kernels.hiera._pool", lambda x: x[:, ::2, ::2])
            monkeypatch.setattr(
                "samkit.sam.models.sam2.mask_decoder.FastSAM2Decoder.to_grid",
                lambda self, values: values.view(*values.shape[:2], 32, 32),
            )
        assert not self_test.works_on(torch.device("cpu"), error_on)


def test_the_stand_in_refuses_what_an_apple_gpu_refuses():
    with StandIn() as device:
        values = torch.ones(2, 2).to(DEVICE)
        assert values.device == DEVICE and device.copies["up", (2, 2)] == 1
        with pytest.raises(TypeError, match="float64"):
            values.double()
        with pytest.raises(RuntimeError, match="same device"):
            values + torch.ones(2, 2)
        assert (values + 1).cpu().tolist() == [[2, 2], [2, 2]] and device.copies["down", (2, 2)] == 1

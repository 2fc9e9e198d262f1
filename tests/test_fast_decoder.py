"""The fast decoder against segment_anything's own predict_masks, on every path that it can take."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from reference import random_sam
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import PredictOptions, Prompt, decode, encode
from samkit.sam.kernels.decoder import FastDecoder
from samkit.sam.kernels.encoder import plan_for
from samkit.sam.kernels.linear import AtenLinear, OneDNNLinear
from samkit.sam.models.base import Wanted
from samkit.sam.models.sam import decoder_plan, supports_decoder
from samkit.sam.tasks.predict import ImagePredictor, features_of
from segment_anything.modeling import MaskDecoder
from test_fast_encoder import needs_onednn

EVERY = slice(None)
SMALL = {"embed_dim": 24, "depth": 1, "heads": 2, "global_blocks": (0,), "grid": 9, "window": 4, "mlp_dim": 48}
LINEARS = [AtenLinear, pytest.param(OneDNNLinear, marks=needs_onednn)]


WIDTHS = [{"out_chans": 128}, {"out_chans": 64}, {"out_chans": 32, "multimask": 1}]


# At 128, a projection is wider than few tokens of eight heads are, as in every published model.
@pytest.fixture(scope="module", params=WIDTHS, ids=["128 wide", "64 wide", "32 wide"])
def sam(request):
    return random_sam(**SMALL, **request.param, seed=5).requires_grad_(False)


def embedded(sam, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(1, sam.prompt_encoder.embed_dim, *sam.prompt_encoder.image_embedding_size, generator=numbers)


def prompts(sam, count, points=1, masks=False):
    numbers, size = torch.Generator().manual_seed(1), sam.image_encoder.img_size
    coords = torch.rand(count, points, 2, generator=numbers) * size
    labels = torch.randint(0, 2, (count, points), generator=numbers)
    logits = torch.randn(count, 1, *sam.prompt_encoder.mask_input_size, generator=numbers) * 5 if masks else None
    return sam.prompt_encoder(points=(coords, labels), boxes=None, masks=logits)


def reference(sam, features, sparse, dense):
    return sam.mask_decoder.predict_masks(features, sam.prompt_encoder.get_dense_pe(), sparse, dense)


@pytest.mark.parametrize("gradients", [False, True], ids=["without gradients", "with gradients"])
@pytest.mark.parametrize("kind", LINEARS)
@pytest.mark.parametrize("masks", [False, True], ids=["no mask prompts", "mask prompts"])
@pytest.mark.parametrize(("count", "points"), [(1, 1), (5, 1), (3, 2), (1, 40), (3, 40)])
def test_it_equals_predict_masks(sam, count, points, masks, kind, gradients):
    features, (sparse, dense) = embedded(sam), prompts(sam, count, points, masks)
    expected_logits, expected_scores = reference(sam, features, sparse, dense)
    fast = FastDecoder(sam.mask_decoder, sam.prompt_encoder, kind)
    with torch.set_grad_enabled(gradients):  # nothing is written in place with them
        logits, scores, rows = fast(fast.share(features[0]), sparse, dense if masks else None, EVERY)
    torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=0)
    assert rows.tolist() == list(range(count))
    assert expected_logits.std() > 0.1, "trivial logits compare nothing"


def test_one_image_serves_many_calls(sam):
    features, (sparse, _) = embedded(sam), prompts(sam, 3)
    fast = FastDecoder(sam.mask_decoder, sam.prompt_encoder, AtenLinear)
    pixels = fast.share(features[0])
    before = [part.clone() for part in pixels[:4]]
    first = fast(pixels, sparse, None, EVERY)
    second = fast(pixels, sparse, None, EVERY)
    assert all(torch.equal(a, b) for a, b in zip(before, pixels[:4], strict=True)), "a decode changed what all share"
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("wanted", [slice(0, 1), slice(1, None), EVERY])
def test_only_wanted_masks_are_decoded(sam, wanted):
    features, (sparse, dense) = embedded(sam), prompts(sam, 3)
    expected_logits, expected_scores = reference(sam, features, sparse, dense)
    fast = FastDecoder(sam.mask_decoder, sam.prompt_encoder, AtenLinear)
    logits, scores, _ = fast(fast.share(features[0]), sparse, None, wanted)
    torch.testing.assert_close(logits, expected_logits[:, wanted], atol=1e-4, rtol=0)
    torch.testing.assert_close(scores, expected_scores[:, wanted], atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rejected_prompts_are_left_out(sam, share):
    features, (sparse, dense) = embedded(sam), prompts(sam, 7)
    expected_logits, expected_scores = reference(sam, features, sparse, dense)
    best = expected_scores[:, 1:].amax(1)
    above = float(best.sort().values[min(6, int(7 * share))]) + (1 if share == 1 else -1e-6)
    wanted = (best > above).nonzero()[:, 0]
    fast = FastDecoder(sam.mask_decoder, sam.prompt_encoder, AtenLinear)
    logits, scores, rows = fast(fast.share(features[0]), sparse, None, slice(1, None), above)
    assert torch.equal(rows, wanted) and len(wanted) == {0.0: 7, 0.5: 4, 1.0: 0}[share]
    torch.testing.assert_close(logits, expected_logits[wanted, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(scores, expected_scores[wanted, 1:], atol=1e-4, rtol=0)


class Unknown(MaskDecoder):
    """A decoder that the fast one does not know."""


def test_an_unknown_decoder_runs_its_own_forward(tiny_sam, tiny_model):
    pixels = make_image(60, 80)
    click = Prompt(np.array([[30.0, 20.0]]), np.array([1], np.int32))
    ours = decode(tiny_model, encode(tiny_model, [pixels]), [[click]], PredictOptions("all"))
    tiny_model.mask_decoder.__class__ = Unknown
    assert not supports_decoder(tiny_model)
    stock = decode(tiny_model, encode(tiny_model, [pixels]), [[click]], PredictOptions("all"))
    torch.testing.assert_close(stock.logits[0], ours.logits[0], atol=1e-4, rtol=0)
    features = features_of(encode(tiny_model, [pixels]), 0, torch.device("cpu"))
    image = ImagePredictor(tiny_model, features, (60, 80), PredictOptions())
    logits, scores, rows = image.decode([click, click], Wanted(True, above=99.0))
    assert (len(logits), len(scores), rows.tolist()) == (0, 0, [])


def test_what_prompts_share_is_computed_once(tiny_model, monkeypatch):
    shares = []
    share = FastDecoder.share
    monkeypatch.setattr(FastDecoder, "share", lambda self, *maps: shares.append(1) or share(self, *maps))
    embedding = encode(tiny_model, as_image(make_image(60, 80), make_image(60, 80, 1)))
    for x in (20, 30, 40):
        PredictMask().execute(tiny_model, embedding, positive_coords=f'[{{"x": {x}, "y": 25}}]')
    assert len(shares) == 2, "two images, three prompts"


def test_an_embedding_that_was_changed_in_place_is_noticed(tiny_model):
    embedding = encode(tiny_model, [make_image(60, 80)])
    with pytest.raises(ValueError, match="read-only"):
        embedding[0, 3] += 1
    embedding = embedding.copy()
    click = Prompt(np.array([[30.0, 20.0]]), np.array([1], np.int32))
    before = decode(tiny_model, embedding, [[click]]).logits[0]
    embedding[0, 3] += 1
    after = decode(tiny_model, embedding, [[click]]).logits[0]
    assert not torch.allclose(before, after)


def test_runs_on_a_cpu_share_a_plan(tiny_model):
    device = torch.device("cpu")
    for mode in ("AUTO", "CPU"):
        plan = decoder_plan(tiny_model.mask_decoder, tiny_model.prompt_encoder, device)
        encoder = plan_for(tiny_model.image_encoder, device, torch.float32)
        for seed in range(2):
            Segment().execute(tiny_model, as_image(make_image(60, 80, seed)), '[{"x": 30, "y": 25}]', device_mode=mode)
        assert decoder_plan(tiny_model.mask_decoder, tiny_model.prompt_encoder, device) is plan
        assert plan_for(tiny_model.image_encoder, device, torch.float32) is encoder


def test_changed_weights_are_seen(tiny_model):
    device = torch.device("cpu")
    plan = decoder_plan(tiny_model.mask_decoder, tiny_model.prompt_encoder, device)
    assert decoder_plan(tiny_model.mask_decoder, tiny_model.prompt_encoder, device) is plan
    with torch.no_grad():
        tiny_model.prompt_encoder.no_mask_embed.weight.add_(1)
    assert decoder_plan(tiny_model.mask_decoder, tiny_model.prompt_encoder, device) is not plan

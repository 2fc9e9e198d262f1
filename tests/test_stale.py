"""Never a stale or wrong answer: changed weights and embeddings, values that are not finite, batches beyond the cache."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from samkit.nodes.automask import AutoMask
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import SAMError, decode, encode, identity_of, weights_changed
from samkit.sam.models import features
from samkit.sam.models.sam import run_encoder
from samkit.sam.store.memory import ByteCache, one_run
from samkit.sam.tasks import embed
from torch import nn

CLICK = '[{"x": 30, "y": 25}]'


@pytest.fixture
def runs(monkeypatch):
    """Counts the image encoder's forward passes."""
    counted = []
    counting = lambda encoder, images, *args: counted.append(len(images)) or run_encoder(encoder, images, *args)  # noqa: E731
    monkeypatch.setattr("samkit.sam.models.sam.run_encoder", counting)
    return counted


def data_of_all(part):
    for parameter in part.parameters():
        parameter.data.mul_(1.5)


def data_replaced(part):
    first = next(part.parameters())
    first.data = first.data.clone() * 1.5


def parameter_replaced(part):
    name, parameter = next((n, p) for n, p in part.named_parameters(recurse=True))
    owner = part.get_submodule(name.rpartition(".")[0])
    setattr(owner, name.rpartition(".")[2], nn.Parameter(parameter.detach() * 1.5, requires_grad=False))


def module_replaced(part):
    layer = part.neck[0] if hasattr(part, "neck") else part.iou_token
    twin = type(layer).__new__(type(layer))
    twin.__dict__.update({k: (dict(v) if isinstance(v, dict) else v) for k, v in layer.__dict__.items()})
    twin.weight = nn.Parameter(layer.weight.detach() * 1.5, requires_grad=False)
    if hasattr(part, "neck"):
        part.neck[0] = twin
    else:
        part.iou_token = twin


CHANGES = [data_of_all, data_replaced, parameter_replaced, module_replaced]


@pytest.mark.parametrize("change", CHANGES)
def test_an_encoder_that_was_changed_encodes_again(tiny_model, runs, change):
    image = as_image(make_image(60, 80))
    before, identity = encode(tiny_model, image), identity_of(tiny_model)
    change(tiny_model.image_encoder)
    after = encode(tiny_model, image)
    assert identity_of(tiny_model) != identity and runs == [1, 1]
    expected = tiny_model.image_encoder(tiny_model.preprocess(pixels(tiny_model, image)))
    torch.testing.assert_close(torch.from_numpy(np.array(after)), expected, atol=1e-4, rtol=0)
    assert not np.allclose(before, after)
    with pytest.raises(SAMError, match="created with a different model"):
        decode(tiny_model, before, [[]])


def pixels(model, image):
    from samkit.utils.images import image_to_frames, resize_pil

    (frame,) = image_to_frames(image)
    return torch.from_numpy(resize_pil(frame, model.geometry(frame.shape[:2]).resized)).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("change", CHANGES)
def test_a_decoder_that_was_changed_decodes_anew_and_the_embedding_stays(tiny_model, runs, change):
    image = as_image(make_image(60, 80))
    before = Segment().execute(tiny_model, image, CLICK)[3]
    change(tiny_model.mask_decoder)
    after = Segment().execute(tiny_model, image, CLICK)[3]
    assert not torch.allclose(before, after) and runs == [1]


def test_inference_tensors_that_were_changed_are_noticed(tiny_model, runs):
    """Their version cannot be read: what a loader made in ComfyUI's inference mode."""
    image = as_image(make_image(60, 80))
    with torch.inference_mode():
        for module in tiny_model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
        assert next(tiny_model.parameters()).is_inference()
        encode(tiny_model, image)
        for parameter in tiny_model.image_encoder.parameters():
            parameter.mul_(1.5)
        encode(tiny_model, image)
    assert runs == [1, 1]


def test_a_single_value_changed_through_data_is_noticed_once_it_is_announced(tiny_model, runs):
    image = as_image(make_image(60, 80))
    encode(tiny_model, image)
    tiny_model.image_encoder.blocks[0].mlp.lin1.weight.data[3, 5] += 100
    weights_changed(tiny_model)
    changed = encode(tiny_model, image)
    expected = tiny_model.image_encoder(tiny_model.preprocess(pixels(tiny_model, image)))
    torch.testing.assert_close(torch.from_numpy(np.array(changed)), expected, atol=1e-4, rtol=0)
    assert runs == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values[..., ::-1, :].copy(),
        lambda values: np.roll(values, 1, axis=1),
        lambda values: -values,
        lambda values: np.where(np.arange(values.size).reshape(values.shape) == 77, values + 1, values),
    ],
    ids=["rows reversed", "channels rolled", "negated", "one value"],
)
def test_an_embedding_changed_in_place_gives_the_mask_of_its_new_values(tiny_model, change):
    image = as_image(make_image(60, 80))
    (embedding,) = GetSAMEmbedding().get_sam_embedding(image, tiny_model)
    before = PredictMask().execute(tiny_model, embedding, CLICK)[3]
    embedding[...] = change(np.array(embedding))
    after = PredictMask().execute(tiny_model, embedding, CLICK)[3]
    fresh = PredictMask().execute(tiny_model, np.array(embedding), CLICK, image=image)[3]
    assert torch.equal(after, fresh) and not torch.equal(before, after)


def test_an_embedding_from_the_cache_is_not_compared_and_a_writable_one_is(tiny_model, monkeypatch):
    image, compared = as_image(make_image(60, 80)), []
    equal_bits = features._equal_bits
    monkeypatch.setattr(features, "_equal_bits", lambda *arrays: compared.append(1) or equal_bits(*arrays))
    for _ in range(3):
        Segment().execute(tiny_model, image, CLICK)
    assert compared == []
    cached = encode(tiny_model, image)
    writable = np.array(cached)  # a view of it is read-only, and yet it changes
    view = writable.view()
    view.setflags(write=False)
    for _ in range(2):
        PredictMask().execute(tiny_model, view, CLICK, image=image)
    assert len(compared) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["image_encoder", "mask_decoder", "prompt_encoder"])
def test_a_weight_that_is_not_finite_is_refused_by_name(tiny_model, part, value):
    image = as_image(make_image(60, 80))
    name, parameter = next((n, p) for n, p in getattr(tiny_model, part).named_parameters() if p.numel() > 20)
    with torch.no_grad():
        parameter.view(-1)[17] = value
    for _ in range(2):  # a refusal is not cached as an answer
        with pytest.raises(SAMError, match=rf"{part}\.{name} has 1 NaN or infinite value"):
            Segment().execute(tiny_model, image, CLICK)
    assert embed.cache.nbytes == 0 or part != "image_encoder"


def test_an_encoder_that_overflows_is_refused_before_the_cache(tiny_model):
    with torch.no_grad():
        tiny_model.image_encoder.neck[2].weight.mul_(1e38)
        tiny_model.image_encoder.neck[0].weight.mul_(1e38)
        tiny_model.image_encoder.neck[3].weight.fill_(3e38)
    with pytest.raises(SAMError, match="The encoder's image features have values that are NaN or infinite"):
        encode(tiny_model, as_image(make_image(60, 80)))
    assert embed.cache.nbytes == 0


def test_an_embedding_that_is_not_finite_is_refused(tiny_model):
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(make_image(60, 80)), tiny_model)
    embedding[0, 3, 2, 1] = np.nan
    for _ in range(2):
        with pytest.raises(SAMError, match="The embedding has values that are NaN"):
            PredictMask().execute(tiny_model, embedding, CLICK)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(tiny_model, value):
    image = as_image(make_image(60, 80))
    logits = Segment().execute(tiny_model, image, CLICK)[3]
    logits[0, 0, 5, 6] = value
    with pytest.raises(SAMError, match="logits has 1 NaN or infinite value"):
        Segment().execute(tiny_model, image, CLICK, logits=logits)


@pytest.fixture
def small_cache(monkeypatch):
    small = ByteCache(4 * 32 * 8 * 8 * 4)  # four of tiny_model's
    monkeypatch.setattr(embed, "cache", small)
    return small


def test_a_batch_larger_than_the_cache_keeps_what_fits(tiny_model, runs, small_cache):
    images = as_image(*(make_image(60, 80, seed) for seed in range(6)))
    encode(tiny_model, images)
    assert sum(runs) == 6
    encode(tiny_model, images)
    assert sum(runs) == 6 + 2, "four are cached, and the other two do not replace them"


def test_more_crops_than_the_cache_has_room_for_are_not_all_encoded_again(tiny_model, runs, small_cache):
    images = as_image(make_image(60, 80), make_image(60, 80, 1))
    options = {"points_per_side": 4, "crop_n_layers": 1, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    AutoMask().execute(tiny_model, images, **options)
    assert sum(runs) == 10
    AutoMask().execute(tiny_model, images, **options)
    assert sum(runs) == 10 + 6


def test_a_new_run_replaces_what_an_old_one_left(tiny_model, runs, small_cache):
    for seed in range(6):
        encode(tiny_model, as_image(make_image(60, 80, seed)))
    encode(tiny_model, as_image(make_image(60, 80, 5)))
    assert sum(runs) == 6, "single images: the newest are cached"


def test_the_cache_counts_its_bytes():
    cache = ByteCache(1000)
    with one_run():
        for key in range(5):
            cache.put(key, np.zeros(100, np.float32))
        assert [cache.get(key) is not None for key in range(5)] == [True, True, False, False, False]
        cache.put(0, np.zeros(150, np.float32))
    assert cache.nbytes == 1000 and cache.get(0).nbytes == 600
    cache.put("other", np.zeros(250, np.float32))
    assert cache.nbytes == 1000 and cache.get(0) is None
    cache.clear()
    assert cache.nbytes == 0

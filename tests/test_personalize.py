"""One example, the same object elsewhere: PerSAM against transformers' guided SamModel and against a direct computation."""

import importlib
import inspect
import json

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from reference_hq import hugging_face_hq
from samkit.nodes.personalize import Personalize
from samkit.nodes.predict import Segment
from samkit.sam import PersonalizeOptions, PredictOptions, SAMError, encode, load_model, personalize
from samkit.sam.kernels.decoder import Guidance
from samkit.sam.models.sam import decoder_plan
from samkit.sam.tasks.embed import EncoderRun
from samkit.sam.tasks.personalize import extremes, guide, learn, similarity_map
from samkit.sam.tasks.predict import ImagePredictor, features_of
from scenes import make_pair
from segment_anything.modeling import MaskDecoder
from test_formats import hugging_face_sam
from train_demo_checkpoint import mask_iou

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.sam.modeling_sam")
CPU = torch.device("cpu")
MODULE = importlib.import_module("samkit.sam.tasks.personalize")


@pytest.fixture(scope="module", params=[32, 256], ids=["32 wide", "256 wide"])
def theirs(request):
    return hugging_face_sam(request.param)


@pytest.fixture
def ours(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    return load_model(tmp_path / "model.safetensors", "fp32")


def guidance_for(count, numbers, width=32):
    """Lively guidance: attention [count, 64], target [count, width]."""
    attention = torch.rand(count, 64, generator=numbers) * 6
    return Guidance(attention, torch.randn(count, width, generator=numbers))


@pytest.mark.skipif(
    "attention_mask=attention_similarity" not in inspect.getsource(modeling.SamAttention),
    reason="older transformers put the guided attention through a second softmax",
)
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("masks", [False, True], ids=["points", "points and masks"])
@pytest.mark.parametrize(("count", "points"), [(1, 2), (5, 2), (3, 40)])
def test_guided_logits_are_transformers(theirs, ours, count, points, masks, multimask):
    numbers = torch.Generator().manual_seed(count)
    width = ours.prompt_encoder.embed_dim
    features = torch.randn(1, width, 8, 8, generator=numbers)
    coords = torch.rand(count, points, 2, generator=numbers) * 128
    labels = torch.randint(0, 2, (count, points), generator=numbers)
    logits = torch.randn(1, 1, 32, 32, generator=numbers) * 5 if masks else None
    guidance = guidance_for(count, numbers, width)
    with torch.no_grad():
        expected = theirs(
            image_embeddings=features,
            input_points=coords[None],
            input_labels=labels[None],
            input_masks=logits,
            multimask_output=multimask,
            attention_similarity=guidance.attention[:, None, None],
            target_embedding=guidance.target[None, :, None],
        )
        sparse, dense = ours.prompt_encoder(points=(coords, labels), boxes=None, masks=logits)
        fast = decoder_plan(ours.mask_decoder, ours.prompt_encoder, CPU)
        wanted = slice(1, None) if multimask else slice(0, 1)
        dense = dense.expand(count, -1, -1, -1) if masks else None
        pixels = fast.share(features[0])
        found, scores, _ = fast(pixels, sparse, dense, wanted, guidance=guidance)
        plain, _, _ = fast(pixels, sparse, dense, wanted)
    torch.testing.assert_close(found, expected.pred_masks[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(scores, expected.iou_scores[0], atol=1e-4, rtol=0)
    assert (found - plain).abs().max() > 0.1 and found.std() > 0.05, "guidance that changes nothing compares nothing"


def test_one_row_of_guidance_counts_for_all(ours):
    numbers = torch.Generator().manual_seed(0)
    coords, labels = torch.rand(5, 2, 2, generator=numbers) * 128, torch.ones(5, 2, dtype=torch.int)
    width = ours.prompt_encoder.embed_dim
    guidance, fast = guidance_for(1, numbers, width), decoder_plan(ours.mask_decoder, ours.prompt_encoder, CPU)
    with torch.no_grad():
        sparse, _ = ours.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
        pixels = fast.share(torch.randn(width, 8, 8, generator=numbers))
        shared = fast(pixels, sparse, None, slice(None), guidance=guidance)[0]
        each = fast(pixels, sparse, None, slice(None), guidance=Guidance(*(row.expand(5, -1) for row in guidance)))[0]
    torch.testing.assert_close(shared, each, atol=1e-5, rtol=0)


class Foreign(MaskDecoder):
    """A decoder of another pack."""


def test_a_decoder_that_cannot_be_guided_is_named(tiny_model):
    tiny_model.mask_decoder.__class__ = Foreign
    pixels = as_image(make_image(60, 80))
    with pytest.raises(SAMError, match="does not support this mask decoder .Foreign.. Use a model from Load SAM"):
        Personalize().execute(tiny_model, pixels, disc(60, 80), pixels)
    assert len(personalize(tiny_model, pixels, disc(60, 80), pixels, PersonalizeOptions(guided=False)).masks[0]) <= 1


def disc(height, width, x=30, y=25, radius=14):
    """One mask [1, H, W] with a disc."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).float()[None]


def direct_similarity(sam, references, masks, pixels):
    """The location prior on the grid [8, 8] of a pixels that fills the square, computed by itself."""
    maps = []
    for reference, mask in zip(references, masks, strict=True):
        features = np.asarray(encode(sam, [reference]))[0].reshape(32, 64).T
        share = mask.numpy().reshape(8, 16, 8, 16).mean((1, 3)).reshape(64)
        local = features[share >= 0.5]
        seen = np.asarray(encode(sam, [pixels]))[0].reshape(32, 64).T
        unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
        mean = local.mean(0) / np.linalg.norm(local.mean(0))
        best = (unit @ (local / np.linalg.norm(local, axis=1, keepdims=True)).T).max(1)
        maps.append((unit @ mean + best) / 2)
    return np.mean(maps, axis=0).reshape(8, 8)


def learned(model, references, masks):
    return learn(EncoderRun(model, references, "CPU"), masks, "persam", PredictOptions())


@pytest.mark.parametrize("count", [1, 3], ids=["one reference", "three references"])
def test_the_points_are_those_of_a_direct_computation(tiny_model, count):
    references = [make_image(128, 128, seed) for seed in range(count)]
    masks = torch.cat([disc(128, 128, 50 + 10 * i, 60, 40) for i in range(count)])
    pixels = make_image(128, 128, 9)
    expected = direct_similarity(tiny_model, references, masks, pixels)
    image = ImagePredictor(tiny_model, features_of(encode(tiny_model, [pixels]), 0, CPU), (128, 128), PredictOptions())
    found = similarity_map(image, learned(tiny_model, references, masks))
    means = torch.nn.functional.adaptive_avg_pool2d(found[None], 8)[0].numpy()
    assert np.corrcoef(means.ravel(), expected.ravel())[0, 1] > 0.95 and expected.std() > 0.005
    fine = torch.nn.functional.interpolate(torch.tensor(expected)[None, None], (32, 32), mode="bilinear")
    full = torch.nn.functional.interpolate(fine, (128, 128), mode="bilinear")[0, 0]
    np.testing.assert_allclose(found, full, atol=1e-5)
    (high, low) = extremes(found)
    assert full[int(high[1]), int(high[0])] == pytest.approx(full.max()) and full[int(low[1]), int(low[0])] == full.min()
    coords = json.loads(Personalize().execute(tiny_model, as_image(*references), masks, as_image(pixels), method="persam")[3])
    assert coords in ([[{"x": high[0], "y": high[1]}]], [[]])


def test_extremes_of_a_map_by_hand():
    values = torch.tensor([[0.2, 0.9, 0.1], [0.3, -0.4, 0.5]])
    assert extremes(values).tolist() == [[1.0, 0.0], [1.0, 1.0]]


def test_guidance_keeps_to_the_image(tiny_model):
    frame = tiny_model.geometry((60, 80))
    target = learned(tiny_model, [make_image(60, 80)], disc(60, 80))
    rows = torch.linspace(-1, 1, 60)[:, None].expand(60, 80)
    attention = guide(rows, frame, (8, 8), target).attention.view(8, 8)
    assert attention[6:].eq(0).all() and (attention[1:6] > attention[:5]).all()
    assert attention[:3].max() < 0.5 < attention[3:6].min() and attention.max() < 1
    assert torch.isfinite(guide(torch.ones(60, 80), frame, (8, 8), target).attention).all()


def test_small_objects_take_the_cell_that_they_cover_most(tiny_model):
    mask = torch.zeros(1, 128, 128)
    mask[0, 36:39, 70:73] = 1
    examples = encode(tiny_model, [make_image(128, 128)])
    target = learned(tiny_model, [make_image(128, 128)], mask)
    np.testing.assert_allclose(target.mean, np.asarray(examples)[0, :, 2, 4], atol=1e-6)


class Scripted(ImagePredictor):
    """Segments whatever disc of the truth holds the positive point."""

    truth, calls = (), []

    def predict(self, objects, options=None, guidance=None):
        self.calls.append((objects[0], (options or self.options).multimask, guidance))
        x, y = objects[0].points[0].astype(int)
        mask = next((disc for disc in self.truth if disc[y, x]), torch.zeros(60, 80)).bool()[None]
        return mask, torch.ones(1), torch.zeros(1, 1, 32, 32)


def peaks(*discs):
    """A similarity map [60, 80] with a peak in each disc, the first the highest."""
    heights = [0.9 - 0.2 * i for i in range(len(discs))]
    return torch.stack([0.1 + (height - 0.1) * disc for height, disc in zip(heights, discs, strict=True)]).amax(0)


@pytest.fixture
def two_objects(monkeypatch):
    discs = [disc(60, 80, 20, 20, 8)[0], disc(60, 80, 60, 40, 8)[0]]
    monkeypatch.setattr(Scripted, "truth", discs)
    monkeypatch.setattr(Scripted, "calls", [])
    monkeypatch.setattr("samkit.sam.tasks.stream.ImagePredictor", Scripted)
    monkeypatch.setattr(MODULE, "similarity_map", lambda *_: peaks(*discs))
    return discs


def found_in(model, **options):
    pixels = as_image(make_image(60, 80))
    return Personalize().execute(model, pixels, disc(60, 80), pixels, method="persam", **options)


def test_several_objects_are_found_one_after_the_other(tiny_model, two_objects):
    masks, scores, similarity, coords = found_in(tiny_model, max_objects=5, min_score=0.5, individual_masks=True)
    assert torch.equal(masks, torch.stack(two_objects))
    assert scores == pytest.approx([0.9, 0.7]) and similarity.shape == (1, 60, 80)
    for point, object in zip(json.loads(coords)[0], two_objects, strict=True):
        assert object[int(point["y"]), int(point["x"])]
    together = found_in(tiny_model, max_objects=5, min_score=0.5)
    assert torch.equal(together[0], torch.stack(two_objects).amax(0, keepdim=True)) and together[1] == scores


def test_the_first_decode_is_guided_and_two_refine_it(tiny_model, two_objects):
    found_in(tiny_model)
    (first, *_, guidance), second, third = Scripted.calls
    target = learned(tiny_model, [make_image(60, 80)], disc(60, 80))
    torch.testing.assert_close(guidance.target, target.mean[None])
    level = guidance.attention.view(8, 8)
    assert level[1:3, 1:3].mean() > level[4, 1] + 0.2, "more where the peak is"
    for prompt, _, _ in Scripted.calls:
        (x, y), negative = prompt.points.astype(int)
        assert prompt.labels.tolist() == [1, 0] and two_objects[0][y, x] and negative.tolist() == [0, 0]
    assert [call[1] for call in Scripted.calls] == ["off", "on", "on"] and second[2] is third[2] is None
    assert first.logits is None and first.box is None and second[0].logits is not None and second[0].box is None
    assert third[0].logits is not None and third[0].box.tolist() == [12, 12, 29, 29]
    Scripted.calls.clear()
    pixels = as_image(make_image(60, 80))
    personalize(tiny_model, pixels, disc(60, 80), pixels, PersonalizeOptions(guided=False))
    assert [call[2] for call in Scripted.calls] == [None] * 3


def test_what_was_found_is_no_guide_to_the_next(tiny_model, two_objects):
    found_in(tiny_model, max_objects=2)
    first, second = (Scripted.calls[i][2].attention.view(8, 8) for i in (0, 3))
    assert second[2, 2] < first[2, 2] - 0.2 and second[4, 6] > first[4, 6]


def test_no_more_are_found_than_asked_for_and_none_below_the_score(tiny_model, two_objects):
    assert torch.equal(found_in(tiny_model)[0][0], two_objects[0])
    assert found_in(tiny_model, max_objects=2, min_score=0.8)[1] == pytest.approx([0.9])
    masks, scores, _, coords = found_in(tiny_model, max_objects=2, min_score=0.95)
    assert masks.shape == (1, 60, 80) and not masks.any() and scores == [0.0] and json.loads(coords) == [[]]


def test_the_same_object_is_not_found_twice(tiny_model, two_objects, monkeypatch):
    monkeypatch.setattr(Scripted, "truth", [torch.stack(two_objects).amax(0)])  # of both peaks
    assert len(found_in(tiny_model, max_objects=5, min_score=0.3, individual_masks=True)[0]) == 1


def test_another_peak_that_leads_to_the_same_object_does_not_count(tiny_model, two_objects, monkeypatch):
    first = (two_objects[0].bool()[None], torch.ones(1), torch.zeros(1, 1, 32, 32))
    monkeypatch.setattr(Scripted, "predict", lambda self, *_: first)
    masks, scores, _, coords = found_in(tiny_model, max_objects=5, min_score=0.5, individual_masks=True)
    assert torch.equal(masks, two_objects[0][None]) and len(scores) == len(json.loads(coords)[0]) == 1


def test_a_mask_that_is_mostly_something_else_is_left_out(tiny_model, two_objects, monkeypatch):
    monkeypatch.setattr(Scripted, "truth", [disc(60, 80, 20, 20, 18)[0], two_objects[1]])
    assert found_in(tiny_model, max_objects=5, min_score=0.5)[1] == pytest.approx([0.7])


def test_an_empty_reference_mask_is_named(tiny_model):
    pixels = as_image(*[make_image(60, 80, seed) for seed in range(3)])
    masks = torch.cat([disc(60, 80), torch.zeros(1, 60, 80), disc(60, 80)])
    with pytest.raises(SAMError, match="reference_mask is empty for reference 1 of 3"):
        Personalize().execute(tiny_model, pixels, masks, pixels)
    with pytest.raises(SAMError, match="reference_mask is empty for reference 0 of 1"):
        Personalize().execute(tiny_model, pixels[:1], torch.zeros(1, 64, 64), pixels)
    with pytest.raises(SAMError, match="reference_mask has 1 mask for 3 reference images. Connect one for each"):
        Personalize().execute(tiny_model, pixels, masks[:1], pixels)


def test_a_batch_is_its_frames(tiny_model):
    reference, mask = as_image(make_image(60, 80)), disc(30, 40, 15, 12, 7)
    frames = as_image(*[make_image(45, 100, seed) for seed in range(3)])
    masks, scores, similarity, coords = Personalize().execute(tiny_model, reference, mask, frames)
    assert masks.shape == similarity.shape == (3, 45, 100) and len(scores) == len(json.loads(coords)) == 3
    assert masks.dtype == similarity.dtype == torch.float32 and similarity.min() >= 0 and similarity.max() <= 1
    for index in range(3):
        alone = Personalize().execute(tiny_model, reference, mask, frames[index : index + 1])
        assert torch.equal(alone[0][0], masks[index]) and torch.equal(alone[2][0], similarity[index])
    assert Personalize().execute(tiny_model, reference, mask, frames[:0])[0].shape == (0, 45, 100)


def test_its_points_are_prompts(tiny_model):
    pixels = as_image(make_image(60, 80), make_image(60, 80, 1))
    coords = Personalize().execute(tiny_model, pixels[:1], disc(60, 80), pixels, method="persam")[3]
    assert len(Segment().execute(tiny_model, pixels, coords)[0]) == 2


@pytest.mark.skipif(not hasattr(transformers, "SamHQModel"), reason="this transformers has no SamHQModel")
def test_sam_hq_is_guided_too(tmp_path):
    hugging_face_hq().save_pretrained(tmp_path)
    model, pixels = load_model(tmp_path / "model.safetensors"), as_image(make_image(60, 80))
    embedding = encode(model, pixels)
    guidance = guidance_for(1, torch.Generator().manual_seed(0))
    points = json.loads(Personalize().execute(model, pixels, disc(60, 80), pixels, method="persam")[3])
    assert len(points) == 1
    with torch.no_grad():
        for hq in (True, False):
            options = PredictOptions(multimask="off", hq=hq)
            image = ImagePredictor(model, features_of(embedding, 0, CPU), (60, 80), options)
            from_click = click(30, 25)
            plain, guided = (image.predict([from_click], options, one)[2] for one in (None, guidance))
            assert (plain - guided).abs().max() > 0.05


def click(x, y):
    from samkit.sam import Prompt

    return Prompt(np.array([[x, y]], dtype=np.float64), np.array([1], np.int32))


@pytest.mark.parametrize("seed", [7003, 7012])
def test_the_demo_checkpoint_finds_the_object(demo_model, seed):
    """Two pairs of those that its features carry; `benchmarks/persam.py` counts how many it misses."""
    shown, other = make_pair(seed)
    example = torch.from_numpy(shown.masks[-1:]).float()
    masks, scores, _, _ = Personalize().execute(demo_model, as_image(shown.image), example, as_image(other.image))
    assert mask_iou(masks[0].numpy() > 0.5, other.masks[-1]) > 0.75 and scores[0] > 0.5


def test_a_pair_shows_the_same_object():
    shown, other = make_pair(3)
    again = make_pair(3)
    assert np.array_equal(shown.image, again[0].image) and np.array_equal(other.masks, again[1].masks)
    assert shown.names[-1] == other.names[-1] and shown.image.shape != other.image.shape
    share = [np.sqrt(scene.masks[-1].sum()) / max(scene.image.shape) for scene in (shown, other)]
    assert abs(np.log(share[0] / share[1])) > 0.1

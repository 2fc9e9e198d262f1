"""SAM Teach: gradients against segment_anything's own decoder, what it changes and what not, files, refusals."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, Interrupted, install
from reference import content_id
from safetensors.torch import save
from samkit.nodes.automask import AutoMask
from samkit.nodes.personalize import Personalize
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.teach import LoadConcept, SaveConcept, Teach
from samkit.sam import Concept, SAMError, TeachOptions, as_segmenter, encode, load_model, teach
from samkit.sam.models.features import Features
from samkit.sam.prompts import PromptTensors
from samkit.sam.training import loop
from samkit.sam.training import teach as teaching
from samkit.sam.training.examples import make_examples
from samkit.sam.training.teach import _Teacher
from samkit.sam.training.trainable import Trainable
from samkit.utils import comfy_files, comfy_folders

CPU = torch.device("cpu")
CLICK = json.dumps([{"x": 30, "y": 25}])
EVERY = slice(None)


def disc(x, y, radius=14, height=60, width=80):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).float()[None]


def lesson_of(count):
    """Images of discs on structured grounds, and their masks."""
    masks = [disc(20 + 7 * i, 20 + 5 * i) for i in range(count)]
    grounds = [as_image(make_image(60, 80, seed=i)) for i in range(count)]
    return [g * (1 - m[..., None]) + 0.9 * m[..., None] for g, m in zip(grounds, masks, strict=True)], masks


def click_tensors(count, side=128):
    numbers = torch.Generator().manual_seed(3)
    coords = torch.rand(count, 1, 2, generator=numbers) * side
    return PromptTensors((coords, torch.ones(count, 1, dtype=torch.int)), None, None)


def stock(sam, features, prompts, tokens):
    """segment_anything's decoder, with more sparse tokens."""
    sparse, dense = sam.prompt_encoder(points=prompts.points, boxes=None, masks=None)
    sparse = torch.cat([sparse, tokens.expand(len(sparse), -1, -1)], 1)
    return sam.mask_decoder.predict_masks(features[None], sam.prompt_encoder.get_dense_pe(), sparse, dense)


@pytest.mark.parametrize("count", [1, 3])
def test_masks_and_gradients_are_segment_anythings(tiny_sam, tiny_model, count):
    """Of the tokens, and of every weight of the decoder."""
    features = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens, prompts = torch.randn(8, 32, generator=torch.Generator().manual_seed(2)), click_tensors(count)
    theirs, found = copy.deepcopy(tiny_sam), []
    trainable = Trainable(as_segmenter(tiny_model), CPU)
    for decoder in (theirs.mask_decoder, trainable.decoder):
        learned = tokens.clone().requires_grad_(True)
        decoder.requires_grad_(True)
        if decoder is theirs.mask_decoder:
            logits, scores = stock(theirs, features, prompts, learned)
        else:
            trainable.plan = trainable.planned()
            shared = trainable.share(Features({"image": features.numpy()}, "", CPU))
            logits, scores = trainable.run(shared, prompts, EVERY, learned)
        ((logits.sigmoid() * torch.linspace(0, 1, 32)).mean() + scores.square().mean()).backward()
        found.append((logits, scores, learned.grad, {name: weight.grad for name, weight in decoder.named_parameters()}))
    for theirs_, ours in zip(*[part[:3] for part in found], strict=True):
        torch.testing.assert_close(ours, theirs_, atol=1e-4, rtol=1e-3)
    assert found[0][2].abs().max() > 1e-5 and found[0][3].keys() == found[1][3].keys()
    for name, expected in found[0][3].items():
        torch.testing.assert_close(found[1][3][name], expected, atol=2e-5, rtol=1e-2, msg=name)


def test_a_concept_joins_the_prompts_tokens(tiny_sam, tiny_model):
    tokens = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    image = as_image(make_image(128, 128))
    embedding = encode(tiny_model, image)
    concept = Concept(tokens, content_id(tiny_model), "tiny.pth")
    point = json.dumps([{"x": 40, "y": 70}])
    prompts = PromptTensors((torch.tensor([[[40.0, 70.0]]]), torch.ones(1, 1, dtype=torch.int)), None, None)
    with torch.no_grad():
        logits, scores = stock(tiny_sam, torch.from_numpy(np.array(embedding))[0], prompts, tokens)
    found = PredictMask().execute(tiny_model, embedding, point, concept=concept)
    torch.testing.assert_close(found[3][0], logits[0, :1], atol=1e-4, rtol=1e-4)
    assert abs(found[2][0] - float(scores[0, 0])) < 1e-4
    plain = PredictMask().execute(tiny_model, embedding, point, multimask="off")
    assert (plain[3] - found[3]).abs().max() > 0.01


def test_without_a_concept_or_with_an_empty_one_nothing_changes(tiny_model):
    image, mask = as_image(make_image(60, 80)), disc(30, 25)
    nothing = Concept(torch.zeros(0, 32), content_id(tiny_model), "tiny.pth")
    loose = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    for run in (
        lambda **more: Segment().execute(tiny_model, image, CLICK, **more),
        lambda **more: Personalize().execute(tiny_model, image, mask, image, **more),
        lambda **more: AutoMask().execute(tiny_model, image, **loose, **more),
    ):
        assert all(same(a, b) for a, b in zip(run(), run(concept=nothing), strict=True))


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_every_node_takes_the_concept(tiny_model):
    image, mask = as_image(make_image(60, 80)), disc(30, 25)
    concept = Concept(torch.randn(8, 32, generator=torch.Generator().manual_seed(1)), content_id(tiny_model), "tiny.pth")
    plain, taught = (Segment().execute(tiny_model, image, CLICK, concept=one)[3] for one in (None, concept))
    assert not torch.equal(plain, taught)
    loose = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    assert len(AutoMask().execute(tiny_model, image, **loose, concept=concept)[0]) <= 4, "one mask for each point"
    found = Personalize().execute(tiny_model, image, mask, image, concept=concept)
    assert found[0].shape == (1, 60, 80)


OPTIONS = TeachOptions(steps=16, rate=0.05)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_teaching_is_repeatable_and_leaves_the_base_alone(tiny_model, count):
    images, masks = lesson_of(count)
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    identity = content_id(tiny_model)
    with torch.inference_mode():  # as ComfyUI runs nodes
        concept, lesson = teach(tiny_model, images, masks, None, OPTIONS)
        again, _ = teach(tiny_model, images, masks, None, OPTIONS)
    assert torch.equal(concept.tokens, again.tokens) and not concept.tokens.is_inference()
    assert concept.base == content_id(tiny_model) == identity
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert not tiny_model.training and all(p.grad is None and not p.requires_grad for p in tiny_model.parameters())
    assert len(lesson.rows) == {1: 1, 3: 3, 6: 1}[count] and lesson.held_out == (count > 1)
    assert all(np.isfinite(lesson.losses))
    if count == 1:
        _, longer = teach(tiny_model, images, masks, None, TeachOptions(steps=40, rate=0.05))
        assert np.mean(longer.losses[-8:]) < np.mean(longer.losses[:8])


def test_each_image_is_encoded_once(tiny_model, monkeypatch):
    import samkit.sam.tasks.embed as embed

    encoded, original = [], embed._begin

    def begin(model, frames, *rest):
        encoded.append(len(frames))
        return original(model, frames, *rest)

    monkeypatch.setattr(embed, "_begin", begin)
    images, masks = lesson_of(3)
    teach(tiny_model, images, masks, None, TeachOptions(steps=4))
    teach(tiny_model, images, masks, None, TeachOptions(steps=4))
    assert sum(encoded) == 3


@pytest.mark.parametrize("count", [1, 3, 6])
def test_what_does_not_help_is_said_and_the_base_given_back(tiny_model, monkeypatch, count):
    images, masks = lesson_of(count)
    monkeypatch.setattr(_Teacher, "_after", lambda self, index, tokens: self.before[index] - 0.1)
    concept, losses, text = Teach().execute([tiny_model], images, masks, [16])
    assert concept.tokens.shape == (0, 32) and len(losses["loss"]) >= 16
    assert "The IoU did not improve. The concept has no effect" in text
    with pytest.raises(SAMError, match="nothing to save"):
        SaveConcept().execute(concept)


def test_the_report_names_the_held_out_masks_and_a_single_one(tiny_model):
    images, masks = lesson_of(6)
    _, losses, text = Teach().execute([tiny_model], [torch.cat(images)], [torch.cat(masks)], [16])
    assert text.count("\n| ") == 2 and "16 steps in all." in text and len(losses["loss"]) == 16
    assert "only one mask" in Teach().execute(tiny_model, images[:1], masks[:1], 4)[2]


def test_a_click_on_what_resembles_it_is_taught_to_find_nothing(tiny_model, monkeypatch):
    """In every third step, with the clicks there, and the whole image as what is not the object."""
    images, masks = lesson_of(1)
    other = torch.zeros(1, 60, 80)
    other[:, 45:, 60:] = 1
    seen, original = [], teaching.mask_loss
    monkeypatch.setattr(teaching, "_MIRRORED", 0)
    monkeypatch.setattr(teaching, "mask_loss", lambda logits, target, _: (seen.append(target), original(logits, target, _))[1])
    examples = make_examples(as_segmenter(tiny_model), images, masks, [other])
    teacher, drawn = _Teacher(as_segmenter(tiny_model), examples, OPTIONS, CPU), []
    run = teacher.trainable.run
    teacher.trainable.run = lambda shared, prompts, *rest: (drawn.append(prompts.points[0]), run(shared, prompts, *rest))[1]
    for step in range(3):
        teacher._loss(examples[0], torch.zeros(8, 32), np.random.default_rng(0), step)
    assert [bool(target.any()) for target in seen] == [False, True, True]
    x, y = (drawn[0][:, 0] / 1.6).T  # 128 pixels of the square for 80 of the image
    assert bool((x >= 59).all()) and bool((y >= 44).all()) and not bool((drawn[1][:, 0, 0] / 1.6 >= 59).any())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, m: (i, m[:2]), "masks has 2 masks for 3 images. Connect one for each image"),
        (lambda i, m: (i, [*m[:2], m[2] * 0]), "masks is empty for image 2 of 3"),
        (lambda i, m: (i, [*m[:2], m[2] * float("nan")]), "masks: the mask of shape .* NaN or infinite"),
        (lambda i, m: ([], []), "images is an empty list"),
        (lambda i, m: ([i[0] * float("nan"), *i[1:]], m), "image has values that are NaN"),
        (lambda i, m: (["text"], m), "images is 'text': it must be an IMAGE"),
    ],
)
def test_what_cannot_be_taught_is_said(tiny_model, change, message):
    with pytest.raises(SAMError, match=message):
        Teach().execute([tiny_model], *change(*lesson_of(3)), [4])


def test_negative_masks_must_be_as_many(tiny_model):
    images, masks = lesson_of(2)
    with pytest.raises(SAMError, match="negative_masks has 1 mask for 2 images"):
        Teach().execute([tiny_model], images, masks, [4], negative_masks=[masks[0]])


@pytest.mark.parametrize("options", [{"steps": 0}, {"rate": 0.0}, {"rate": float("nan")}])
def test_steps_and_rates_are_checked(options):
    with pytest.raises(SAMError, match="at least 1 step, and a rate of 0 to 1"):
        TeachOptions(**options)


@pytest.mark.parametrize("count", [3, 6])
def test_cancel_keeps_the_best_so_far(tiny_model, monkeypatch, tmp_path, count):
    fake, original, done = install(monkeypatch, FakeComfyUI(tmp_path)), loop._step, []

    def step(*given):
        done.append(1)
        fake.cancelled = len(done) >= 20
        return original(*given)

    monkeypatch.setattr(loop, "_step", step)
    images, masks = lesson_of(count)
    encode(tiny_model, torch.cat(images))
    concept, lesson = teach(tiny_model, images, masks, None, TeachOptions(steps=480, rate=0.05))
    assert lesson.stopped == "cancelled" and len(lesson.losses) == 20 and fake.cancelled, "ComfyUI ends the run itself"
    assert concept.tokens.shape[1] == 32
    done.clear()
    with pytest.raises(Interrupted):
        teach(tiny_model, images, masks, None, TeachOptions(steps=480))


def test_saved_and_loaded_it_is_the_same(tiny_model, tmp_path, monkeypatch):
    install(monkeypatch, FakeComfyUI(tmp_path))
    concept = Concept(torch.randn(8, 32), content_id(tiny_model), "tiny.pth")
    assert SaveConcept().execute(concept) == ("concept_00001_.safetensors",)
    (name,) = LoadConcept.INPUT_TYPES()["required"]["concept_name"][0]
    (loaded,) = LoadConcept().execute(name)
    assert torch.equal(loaded.tokens, concept.tokens) and (loaded.base, loaded.base_name) == (concept.base, "tiny.pth")
    assert LoadConcept.IS_CHANGED(name) != "" == LoadConcept.IS_CHANGED("other.safetensors") == LoadConcept.IS_CHANGED(None)
    assert not list(tmp_path.rglob("*.part"))


def test_a_free_number_outside_comfyui_is_one_above_the_greatest(monkeypatch, tmp_path):
    """Counting the files would give the second name again, and overwrite that file."""
    monkeypatch.setattr(comfy_folders, "PACK", tmp_path)
    for number in (1, 2):
        with comfy_files.new_output("sam/one [a]", ".safetensors") as (path, name):
            assert name == f"sam/one [a]_{number:05}_.safetensors [output]"
            path.touch()
    path.with_name("one [a]_00001_.safetensors").unlink()
    with comfy_files.new_output("sam/one [a]", ".safetensors") as (path, _):
        assert path.name == "one [a]_00003_.safetensors"


@pytest.mark.parametrize("prefix", ["../out", "/abs", "a/../b", "", "a\\b", "con", "x" * 300, "sam_concepts/"])
def test_names_that_lead_elsewhere_are_refused(tiny_model, tmp_path, monkeypatch, prefix):
    install(monkeypatch, FakeComfyUI(tmp_path))
    with pytest.raises(SAMError, match="filename_prefix is"):
        SaveConcept().execute(Concept(torch.randn(8, 32), "", ""), prefix)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["none.safetensors", "../secret.safetensors", "/etc/passwd", ""])
def test_names_that_are_not_listed_are_refused(tmp_path, monkeypatch, name):
    install(monkeypatch, FakeComfyUI(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "secret.safetensors").write_bytes(b"")
    with pytest.raises(SAMError, match="There is no concept|was not loaded"):
        LoadConcept().execute(name)


def metadata(kind="concept-1"):
    return {"samkit": kind, "base": "0", "base_name": "tiny.pth"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (save({"tokens": torch.ones(8, 32)}, metadata())[:-5], "truncated or damaged"),
        (save({"tokens": torch.ones(8, 32)}, metadata())[:40], "truncated or damaged"),
        (b"", "the file is empty"),
        (save({"tokens": torch.ones(8, 32)}), "not a concept of SAM Teach"),
        (save({"tokens": torch.ones(8, 32)}, metadata("decoder-1")), "not a concept of SAM Teach"),
        (save({"tokens": torch.ones(32)}, metadata()), "no learned tokens"),
        (save({"other": torch.ones(8, 32)}, metadata()), "no learned tokens"),
        (save({"tokens": torch.full((8, 32), torch.nan)}, metadata()), "NaN or infinite"),
    ],
    ids=["cut at the end", "cut in the header", "empty", "no metadata", "another kind", "one row", "another name", "NaN"],
)
def test_files_that_are_not_whole_concepts_are_refused_by_name(tmp_path, monkeypatch, content, message):
    install(monkeypatch, FakeComfyUI(tmp_path))
    folder = tmp_path / "models" / "sam_concepts"
    folder.mkdir(parents=True)
    (folder / "mine.safetensors").write_bytes(content)
    with pytest.raises(SAMError, match=f"mine.safetensors.*{message}"):
        LoadConcept().execute("mine.safetensors")


def test_a_concept_of_another_model_is_refused_by_name(tiny_model, tiny_sam, tmp_path):
    other = {name: value * 1.5 for name, value in tiny_sam.state_dict().items()}
    torch.save(other, tmp_path / "other.pth")
    concept = Concept(torch.randn(8, 32), content_id(load_model(tmp_path / "other.pth", "fp32")), "other.pth")
    with pytest.raises(SAMError, match="made for other.pth, but tiny.pth is connected"):
        Segment().execute(tiny_model, as_image(make_image(60, 80)), CLICK, concept=concept)


@pytest.mark.parametrize("concept", ["text", torch.ones(8, 32), {"tokens": 1}])
def test_what_is_not_a_concept_is_refused(tiny_model, concept):
    with pytest.raises(SAMError, match="concept is .*: connect SAM Teach or Load SAM Concept"):
        Segment().execute(tiny_model, as_image(make_image(60, 80)), CLICK, concept=concept)


def test_a_decoder_of_another_pack_is_named(tiny_sam):
    plain = copy.deepcopy(tiny_sam)
    plain.mask_decoder.__class__ = type("Foreign", (type(plain.mask_decoder),), {})
    with pytest.raises(SAMError, match="This mask decoder .Foreign. cannot be trained"):
        teach(as_segmenter(plain), *lesson_of(1), options=TeachOptions(steps=1))


def test_a_plain_sam_of_another_pack_is_taught(tiny_sam):
    concept, lesson = teach(as_segmenter(tiny_sam), *lesson_of(3), options=TeachOptions(steps=4, rate=0.05))
    assert concept.base == content_id(tiny_sam) and lesson.losses and "another pack" in concept.base_name


def check_taught(model):
    """The tracked arithmetic of a family gives what its fast one gives, gradients flow, and a concept's mask is its token's."""
    embedding = encode(model, [make_image(60, 80)])
    maps = {"image": np.asarray(embedding)[0]} | {name: values[0] for name, values in embedding.maps.items()}
    trainable, frame = Trainable(as_segmenter(model), CPU), model.geometry((60, 80))
    scale = torch.tensor([frame.resized[1] / 80, frame.resized[0] / 60])
    prompts = PromptTensors((torch.tensor([[[30.0, 25.0]]]) * scale, torch.ones(1, 1, dtype=torch.int)), None, None)
    shared = trainable.share(Features(maps, "", CPU))
    width = trainable.decoder.iou_token.weight.shape[1]
    tokens = torch.randn(8, width, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    tracked = trainable.run(shared, prompts, EVERY, tokens)
    with torch.no_grad():
        fast = trainable.run(shared, prompts, EVERY, tokens)
    for one, two in zip(tracked, fast, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    tracked.logits.mean().backward()
    assert float(tokens.grad.abs().max()) > 0
    concept = Concept(tokens.detach(), content_id(model), "it")
    logits = Segment().execute(model, as_image(make_image(60, 80)), CLICK, concept=concept)[3]
    torch.testing.assert_close(logits[0, 0], fast.logits[0, 0], atol=1e-4, rtol=1e-4)

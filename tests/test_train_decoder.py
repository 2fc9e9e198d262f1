"""SAM Train Decoder: a decoder beside the base's, training that leaves the base alone, and files that know their base."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from reference import content_id
from safetensors.torch import load_file, save
from samkit.nodes.automask import AutoMask
from samkit.nodes.model import SAMModelLoader
from samkit.nodes.personalize import Personalize
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.prompt_editor import PromptEditor
from samkit.nodes.teach import SaveDecoder, TrainDecoder
from samkit.sam import (
    Concept,
    DecoderOptions,
    Retrained,
    SAMError,
    as_segmenter,
    encode,
    train_decoder,
    with_decoder,
)
from samkit.sam.kernels.decoder import Decoded
from samkit.sam.models.base import Wanted
from samkit.sam.models.features import Features
from samkit.sam.models.taught import combined
from samkit.sam.prompts import PromptTensors
from samkit.sam.training.decoder_training import _Trainer
from samkit.sam.training.examples import make_examples
from samkit.sam.training.trainable import Trainable
from test_teach import CLICK, disc, lesson_of, same

CPU = torch.device("cpu")


def changed(model, sure=0.9, replaces=False):
    """A decoder with other masks, which predicts an IoU of `sure` for every prompt."""
    decoder = as_segmenter(model).decoder_parts().decoder
    parts = ("hypernetworks", "transformer.layers.0.cross")  # the second makes what the prompts of an image share
    weights = {name: value.detach() * 1.5 for name, value in decoder.named_parameters() if any(part in name for part in parts)}
    head = decoder.iou_prediction_head
    place = "fc" if hasattr(head, "fc") else f"layers.{len(head.layers) - 1}"  # EfficientSAM's, or SAM's
    last, name = head.get_submodule(place), f"iou_prediction_head.{place}"
    bias = math.log(sure / (1 - sure)) if getattr(head, "sigmoid_output", False) else sure
    weights |= {f"{name}.weight": torch.zeros_like(last.weight), f"{name}.bias": torch.full_like(last.bias, bias)}
    return Retrained(weights, content_id(model), "tiny.pth", replaces)


def stock_decoder(sam, change, features, point):
    """Logits and scores of segment_anything's own decoder with a change's weights."""
    theirs = copy.deepcopy(sam)
    theirs.mask_decoder.load_state_dict(dict(change.weights), strict=False)
    with torch.no_grad():
        sparse, dense = theirs.prompt_encoder(points=(point, torch.ones(1, 1, dtype=torch.int)), boxes=None, masks=None)
        return theirs.mask_decoder.predict_masks(features[None], theirs.prompt_encoder.get_dense_pe(), sparse, dense)


def check_trained(model, tmp_path):
    """Of any family: the trained decoder's single mask where it is sure, else what the base gives, bit for bit."""
    image, segmenter = as_image(make_image(60, 80)), as_segmenter(model)

    def logits(score, **more):
        new = with_decoder(segmenter, changed(model, score), tmp_path / "taught")
        assert new.encoder_identity == segmenter.encoder_identity and new.decoder_identity != segmenter.decoder_identity
        return Segment().execute(new.network, image, CLICK, **more)[3]

    change = changed(model, 0.51)
    trainable, frame = Trainable(segmenter, CPU), segmenter.geometry((60, 80))
    trainable.decoder.load_state_dict(dict(change.weights), strict=False)
    trainable.plan = trainable.planned()
    embedding = encode(segmenter, image)
    maps = {"image": np.asarray(embedding)[0]} | {name: values[0] for name, values in embedding.maps.items()}
    scale = torch.tensor([frame.resized[1] / 80, frame.resized[0] / 60])
    prompts = PromptTensors((torch.tensor([[[30.0, 25.0]]]) * scale, torch.ones(1, 1, dtype=torch.int)), None, None)
    with torch.no_grad():
        expected = trainable.run(trainable.share(Features(maps, "", CPU)), prompts, slice(0, 1)).logits
    base = {hq: Segment().execute(model, image, CLICK, hq=hq)[3] for hq in (True, False)}
    torch.testing.assert_close(logits(0.51), expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(base[True], expected) and torch.equal(logits(0.49), base[True])
    if getattr(segmenter, "is_hq", False):
        assert torch.equal(logits(0.51, hq=False), base[False])


@pytest.mark.parametrize("model", ["tiny_model", "tiny_sam"], ids=["ours", "another pack's"])
def test_a_trained_decoder_of_sam(request, model, tmp_path):
    check_trained(request.getfixturevalue(model), tmp_path)


@pytest.mark.parametrize("multimask", ["auto", "off", "on"])
def test_where_it_is_sure_its_single_mask_is_the_answer(tiny_model, tiny_sam, tmp_path, multimask):
    """That of segment_anything's own decoder with its weights; elsewhere the base's, bit for bit."""
    embedding = encode(tiny_model, as_image(make_image(128, 128)))
    point = json.dumps([{"x": 40, "y": 70}])

    def predicted(model):
        return PredictMask().execute(model, embedding, point, multimask=multimask)

    base, features = predicted(tiny_model), torch.from_numpy(np.array(embedding))[0]
    sure, unsure = (with_decoder(tiny_model, changed(tiny_model, score), tmp_path / "taught") for score in (0.51, 0.49))
    logits, _ = stock_decoder(tiny_sam, changed(tiny_model), features, torch.tensor([[[40.0, 70.0]]]))
    torch.testing.assert_close(predicted(sure)[3][0], logits[0, :1], atol=1e-4, rtol=1e-4)
    assert predicted(sure)[2] == pytest.approx([0.51])
    assert all(same(one, two) for one, two in zip(predicted(unsure), base, strict=True))
    assert (base[3] - predicted(sure)[3]).abs().max() > 1e-3


def test_each_prompt_is_answered_by_the_decoder_that_knows_it():
    """In the prompts' order, what is not sure enough left out."""
    own = Decoded(torch.zeros(3, 3, 2, 2), torch.tensor([[0.1, 0.9, 0.2]] * 3), torch.tensor([0, 2, 3]))
    taught = Decoded(torch.ones(3, 1, 2, 2), torch.tensor([[0.95], [0.6], [0.97]]), torch.tensor([1, 2, 4]))
    found = combined(own, taught, None)
    assert found.rows.tolist() == [0, 1, 2, 3, 4] and found.logits[:, 2, 0, 0].tolist() == [0, 1, 1, 0, 1]
    assert found.scores[1].tolist() == pytest.approx([0.95] * 3) and torch.equal(found.scores[3], own.scores[2])
    strict = combined(own, taught, 0.8)
    assert strict.rows.tolist() == [0, 1, 3, 4], "prompt 2 is taught, and its mask is not good enough"
    nothing = Decoded(*(part[:0] for part in taught))
    assert combined(own, nothing, 0.8) is own


def test_every_node_and_the_editor_have_it(tiny_model, tmp_path):
    image, mask = as_image(make_image(60, 80)), disc(30, 25)
    loose = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    sure, unsure = (with_decoder(tiny_model, changed(tiny_model, score), tmp_path / "taught") for score in (0.9, 0.1))

    def marked(model):
        marks = [{"x": 30, "y": 25, "label": 1}]
        return PromptEditor().execute(image, json.dumps({"version": 1, "marks": marks}), model)["result"][3]

    for run in (
        lambda model: Segment().execute(model, image, CLICK)[0],
        lambda model: AutoMask().execute(model, image, **loose)[0],
        lambda model: Personalize().execute(model, image, mask, image)[0],
        marked,
    ):
        base = run(tiny_model)
        assert torch.equal(run(unsure), base)
        taught = run(sure)
        assert taught.shape != base.shape or not torch.equal(taught, base)


def test_with_a_concept_the_concept_answers(tiny_model, tmp_path):
    image = as_image(make_image(60, 80))
    sure = with_decoder(tiny_model, changed(tiny_model), tmp_path / "taught")
    tokens = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    plain, taught = (
        Segment().execute(model, image, CLICK, concept=Concept(tokens, content_id(model), "tiny.pth"))[3]
        for model in (tiny_model, sure)
    )
    assert torch.equal(plain, taught)


def test_a_second_decoder_joins_the_first(tiny_model, tmp_path):
    """The later one answers where both are sure."""
    one = with_decoder(tiny_model, changed(tiny_model, 0.6), tmp_path / "one")
    two = with_decoder(one, changed(one, 0.7), tmp_path / "two")
    blind = with_decoder(one, changed(one, 0.3), tmp_path / "blind")
    image = as_image(make_image(60, 80))
    scores = [Segment().execute(model, image, CLICK)[2] for model in (one, two, blind)]
    assert scores == [pytest.approx([0.6]), pytest.approx([0.7]), pytest.approx([0.6])]
    assert len({content_id(model) for model in (tiny_model, one, two, blind)}) == 4


def test_another_decoder_makes_a_model_beside_the_base(tiny_model, tmp_path):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    with torch.inference_mode():
        other = with_decoder(tiny_model, changed(tiny_model), tmp_path / "taught")
    assert type(other) is type(tiny_model) and other.checkpoint.name == "taught"
    assert other.encoder_identity == tiny_model.encoder_identity and other.decoder_identity != tiny_model.decoder_identity
    for one, two in zip(other.image_encoder.parameters(), tiny_model.image_encoder.parameters(), strict=True):
        assert one.data_ptr() == two.data_ptr() and one is not two, "the same memory, until one of them is moved"
    embedding = encode(tiny_model, as_image(make_image(60, 80)))
    base, taught = (PredictMask().execute(model, embedding, CLICK)[3] for model in (tiny_model, other))
    assert (base - taught).abs().max() > 1e-3, "and the embedding is valid for both"
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


@pytest.fixture
def comfy(tmp_path, monkeypatch, tiny_sam):
    """A ComfyUI with tiny.pth in models/sams."""
    fake = install(monkeypatch, FakeComfyUI(tmp_path))
    (tmp_path / "models" / "sams").mkdir(parents=True)
    torch.save(tiny_sam.state_dict(), tmp_path / "models" / "sams" / "tiny.pth")
    return fake


def test_a_decoder_of_an_earlier_version_takes_the_place_of_the_bases(comfy, tmp_path, tiny_sam):
    """Its file gives the masks and the identity that it always gave."""
    (base,) = SAMModelLoader().load_model("tiny.pth", "fp32")
    change = changed(base)
    metadata = {"samkit": "decoder-1", "base": content_id(base), "base_name": "tiny.pth"}
    (tmp_path / "models" / "sams" / "old.safetensors").write_bytes(save(dict(change.weights), metadata))
    (old,) = SAMModelLoader().load_model("old.safetensors", "fp32")
    features = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(1))
    expected, _ = stock_decoder(tiny_sam, change, features, torch.tensor([[[40.0, 70.0]]]))
    points = (torch.tensor([[[40.0, 70.0]]]), torch.ones(1, 1, dtype=torch.int))
    found = old.decode(Features({"image": features.numpy()}, "", CPU), PromptTensors(points, None, None), Wanted(True))
    torch.testing.assert_close(found.logits, expected[:, 1:], atol=1e-4, rtol=1e-4)
    theirs = copy.deepcopy(tiny_sam)
    theirs.mask_decoder.load_state_dict(dict(change.weights), strict=False)
    assert content_id(old) == content_id(theirs)
    SaveDecoder().execute(old, "sam_decoders/again")
    (again,) = SAMModelLoader().load_model("again_00001_.safetensors", "fp32")
    assert content_id(again) == content_id(old)


def test_a_decoder_for_another_base_is_refused_by_name(tiny_model, tmp_path):
    change = changed(tiny_model)
    other = with_decoder(tiny_model, change, tmp_path / "taught")
    with pytest.raises(SAMError, match="again was made for tiny.pth with other weights than taught has"):
        with_decoder(other, change, tmp_path / "again")


@pytest.mark.parametrize("weights", [{"nothing": torch.ones(2)}, {"iou_token.weight": torch.ones(2)}])
def test_weights_that_do_not_fit_are_named(tiny_model, tmp_path, weights):
    with pytest.raises(SAMError, match=f"taught does not fit the mask decoder: {next(iter(weights))}"):
        with_decoder(tiny_model, Retrained(weights, content_id(tiny_model), "tiny.pth"), tmp_path / "taught")


def test_a_plain_sam_of_another_pack_takes_a_decoder(tiny_sam, tmp_path):
    theirs = as_segmenter(tiny_sam)
    change = Retrained(changed(theirs).weights, content_id(theirs), "theirs")
    other = with_decoder(theirs, change, tmp_path / "taught")
    assert type(other.network) is type(tiny_sam) and content_id(other) != content_id(tiny_sam)


OPTIONS = DecoderOptions(steps=6, rate=1e-3)


@pytest.fixture
def helpful(monkeypatch):
    """Whatever is trained is better than the base."""
    monkeypatch.setattr(_Trainer, "_measured", lambda self, index: (0.5, 0.6))


@pytest.mark.usefixtures("helpful")
def test_training_is_repeatable_and_leaves_the_base_alone(tiny_model):
    images, masks = lesson_of(6)
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    with torch.inference_mode():  # as ComfyUI runs nodes
        taught, lesson = train_decoder(tiny_model, images, masks, options=OPTIONS)
        again, _ = train_decoder(tiny_model, images, masks, options=OPTIONS)
    assert content_id(taught) == content_id(again) != content_id(tiny_model)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert not tiny_model.training and all(p.grad is None and not p.requires_grad for p in tiny_model.parameters())
    assert not any(p.requires_grad or p.is_inference() for p in taught.parameters())
    assert len(lesson.losses) == 6 and all(np.isfinite(lesson.losses)) and lesson.helped


def test_what_does_not_help_gives_the_base_back(tiny_model, monkeypatch):
    monkeypatch.setattr(_Trainer, "_measured", lambda self, index: (0.5, 0.4))
    model, losses, text = TrainDecoder().execute([tiny_model], *lesson_of(5), [2])
    assert model is tiny_model and len(losses["loss"]) == 2 and "did not improve. The model is unchanged" in text
    with pytest.raises(SAMError, match="nothing to save: tiny.pth has no trained decoder"):
        SaveDecoder().execute(model)


@pytest.fixture
def trainer(tiny_model):
    """One that has trained nothing yet, with three examples."""
    segmenter = as_segmenter(tiny_model)
    return _Trainer(segmenter, make_examples(segmenter, *lesson_of(3)), [], OPTIONS, CPU)


def test_elsewhere_masks_stay_and_nothing_is_there(trainer):
    """The loss is about 0 where the predicted IoU is, for masks of the base's; and rises with either."""
    example = trainer.examples[0]
    start = float(trainer._loss_elsewhere(example, np.random.default_rng(0)).detach())
    head = trainer.trained.decoder.iou_prediction_head.layers[-1]
    head.weight.data.zero_(), head.bias.data.zero_()
    trainer.trained.plan = trainer.trained.planned()
    assert float(trainer._loss_elsewhere(example, np.random.default_rng(0)).detach()) < 1.1e-3 < start
    trainer.parameters["mask_tokens.weight"].data += 0.5
    trainer.trained.plan = trainer.trained.planned()
    assert float(trainer._loss_elsewhere(example, np.random.default_rng(0)).detach()) > 1.5e-3


def test_prompts_elsewhere_are_never_on_the_object(trainer):
    """Clicks, clicks with the base's logits, and boxes: all three kinds are drawn."""
    example, rng, kinds = trainer.examples[0], np.random.default_rng(0), set()
    base = trainer.base.share(example.features)
    for _ in range(40):
        prompts = trainer._elsewhere(example, base, rng)
        kinds.add((prompts.points is not None, prompts.boxes is not None, prompts.masks is not None))
        if prompts.points is not None:
            columns, rows = (prompts.points[0][:, 0] / trainer.drawer.cell).long().T
            assert not bool(example.mask[rows, columns].any()) and bool((example.inside[rows, columns] > 0.5).all())
    assert kinds == {(True, False, False), (True, False, True), (False, True, False)}


def test_what_is_measured_is_what_the_model_answers(trainer):
    """The trained mask where it is sure, else the base's."""
    decoder = trainer.trained.decoder
    decoder.iou_prediction_head.layers[-1].weight.data.zero_()
    for network in decoder.output_hypernetworks_mlps:
        network.layers[-1].bias.data.zero_(), network.layers[-1].weight.data.zero_()
    prompts = trainer.drawer.held_out(trainer.examples[0], 0, 3)
    for sure in (0.49, 0.51):
        decoder.iou_prediction_head.layers[-1].bias.data.fill_(sure)
        trainer.trained.plan = trainer.trained.planned()
        with torch.no_grad():
            before, after = trainer._before(0, prompts), trainer._after(0, prompts)
        assert bool(before.any()) and torch.equal(after, before if sure < 0.5 else torch.zeros_like(before))
        assert trainer._left(0) == (sure < 0.5)


def test_before_is_the_base_on_each_example(trainer):
    """What is computed once is of that example, whichever was measured first."""
    prompts = [trainer.drawer.held_out(example, 0, 3) for example in trainer.examples]
    with torch.no_grad():
        for index in (0, 1, 2, 0):
            own = trainer.base.run(trainer.base.share(trainer.examples[index].features), prompts[index], slice(None))
            best = own.logits[torch.arange(3), 1 + own.scores[:, 1:].argmax(1)]
            assert torch.equal(trainer._before(index, prompts[index]), best)


def test_saved_it_is_listed_and_applied_to_its_base(comfy, tmp_path):
    (base,) = SAMModelLoader().load_model("tiny.pth", "fp32")
    taught = with_decoder(base, changed(base), tmp_path / "taught")
    assert SaveDecoder().execute(taught) == ("decoder_00001_.safetensors",)
    assert "decoder_00001_.safetensors" in SAMModelLoader.INPUT_TYPES()["required"]["model_name"][0]
    (loaded,) = SAMModelLoader().load_model("decoder_00001_.safetensors", "fp32")
    embedding = encode(base, as_image(make_image(60, 80)))
    for one, two in zip(*(PredictMask().execute(model, embedding, CLICK)[::3] for model in (taught, loaded)), strict=True):
        assert torch.equal(one, two)
    assert content_id(loaded) == content_id(taught) and not list(tmp_path.rglob("*.part"))
    further = with_decoder(
        loaded, Retrained(changed(loaded).weights, content_id(loaded), loaded.checkpoint.name), tmp_path / "2"
    )
    SaveDecoder().execute(further, "sam_decoders/second")
    (second,) = SAMModelLoader().load_model("second_00001_.safetensors", "fp32")
    assert content_id(second) == content_id(further), "a decoder that was trained from a trained one"


def test_the_base_must_be_there_and_the_same(comfy, tmp_path, tiny_sam):
    (base,) = SAMModelLoader().load_model("tiny.pth", "fp32")
    SaveDecoder().execute(with_decoder(base, changed(base), tmp_path / "taught"))
    path = tmp_path / "models" / "sams" / "tiny.pth"
    torch.save({name: value * 2 for name, value in tiny_sam.state_dict().items()}, path)
    with pytest.raises(SAMError, match="decoder_00001_.safetensors was made for tiny.pth with other weights than tiny.pth has"):
        SAMModelLoader().load_model("decoder_00001_.safetensors", "fp32")
    path.unlink()
    with pytest.raises(SAMError, match="decoder_00001_.safetensors was made for tiny.pth, which is not in models/sams"):
        SAMModelLoader().load_model("decoder_00001_.safetensors", "fp32")


def test_files_that_are_not_whole_are_refused_by_name(comfy, tmp_path):
    (base,) = SAMModelLoader().load_model("tiny.pth", "fp32")
    SaveDecoder().execute(with_decoder(base, changed(base), tmp_path / "taught"))
    (path,) = (tmp_path / "output").rglob("*.safetensors")
    whole, tensors = path.read_bytes(), {name: value.clone() for name, value in load_file(path).items()}
    metadata = {"samkit": "decoder-2", "base": content_id(base), "base_name": "tiny.pth"}
    path.write_bytes(whole[:-7])
    with pytest.raises(SAMError, match="decoder_00001_.safetensors.*truncated or damaged"):
        SAMModelLoader().load_model(path.name)
    path.write_bytes(save({name: value * float("nan") for name, value in tensors.items()}, metadata))
    with pytest.raises(SAMError, match="decoder_00001_.safetensors was not loaded: .* NaN"):
        SAMModelLoader().load_model(path.name)
    path.write_bytes(save(tensors, {**metadata, "base_name": path.name}))
    with pytest.raises(SAMError, match="made for decoder_00001_.safetensors, which is not in"):
        SAMModelLoader().load_model(path.name)


def test_what_embeddings_depend_on_is_not_trained():
    """Of SAM-HQ and SAM 2, the parts of the mask decoder that make feature maps."""
    from samkit.sam.models.retrained import is_trainable
    from samkit.sam.models.sam2.mask_decoder import SAM2MaskDecoder

    names = {"conv_s0.weight", "conv_s1.bias", "embedding_encoder.0.weight", "compress_vit_feat.3.bias"}
    assert not any(map(is_trainable, names)) and is_trainable("mask_tokens.weight") and hasattr(SAM2MaskDecoder, "forward")


@pytest.mark.parametrize("options", [{"steps": 0}, {"rate": 2.0}])
def test_steps_and_rates_are_checked(options):
    with pytest.raises(SAMError, match="at least 1 step, and a rate of 0 to 1"):
        DecoderOptions(**options)


def test_a_decoder_for_training_is_a_copy(tiny_model):
    trainable = Trainable(as_segmenter(tiny_model), CPU)
    ours = {parameter.data_ptr() for parameter in tiny_model.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in trainable.decoder.parameters()}

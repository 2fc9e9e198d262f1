"""SAM Train Decoder: a model beside its base, training that leaves the base alone, and files that know their base."""

import copy

import numpy as np
import pytest
import torch
from conftest import as_image, make_picture
from fakes import FakeComfyUI, install
from safetensors.torch import load_file, save
from samkit.nodes.model import SAMModelLoader
from samkit.nodes.predict import PredictMask
from samkit.nodes.teach import SaveDecoder, TrainDecoder
from samkit.sam import DecoderOptions, Retrained, SAMError, as_segmenter, encode, identity_of, train_decoder, with_decoder
from samkit.sam.models.sam import decoder_plan
from samkit.sam.training.decoder import _Trainer
from samkit.sam.training.trainable import Trainable
from test_teach import CLICK, lesson_of

CPU = torch.device("cpu")


def changed(model, factor=1.5):
    """A change of some weights of a model's decoder."""
    decoder = as_segmenter(model).decoder_parts().decoder
    weights = {name: value.detach() * factor for name, value in decoder.named_parameters() if "hypernetworks" in name}
    return Retrained(weights, identity_of(model), "tiny.pth")


def test_another_decoder_makes_a_model_beside_the_base(tiny_model, tmp_path):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    with torch.inference_mode():
        other = with_decoder(tiny_model, changed(tiny_model), tmp_path / "taught")
    assert type(other) is type(tiny_model) and other.checkpoint.name == "taught"
    assert other.encoder_identity == tiny_model.encoder_identity and other.decoder_identity != tiny_model.decoder_identity
    for one, two in zip(other.image_encoder.parameters(), tiny_model.image_encoder.parameters(), strict=True):
        assert one.data_ptr() == two.data_ptr() and one is not two, "the same memory, until one of them is moved"
    embedding = encode(tiny_model, as_image(make_picture(60, 80)))
    base, taught = (PredictMask().execute(model, embedding, CLICK)[3] for model in (tiny_model, other))
    assert (base - taught).abs().max() > 1e-3, "and the embedding is valid for both"
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


def test_its_masks_are_those_of_a_model_with_these_weights(tiny_model, tiny_sam, tmp_path):
    """segment_anything's own decoder with the same weights."""
    change = changed(tiny_model)
    other, theirs = with_decoder(tiny_model, change, tmp_path / "taught"), copy.deepcopy(tiny_sam)
    theirs.mask_decoder.load_state_dict(dict(change.weights), strict=False)
    features = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        points = torch.tensor([[[40.0, 70.0]]]), torch.ones(1, 1, dtype=torch.int)
        sparse, dense = theirs.prompt_encoder(points=points, boxes=None, masks=None)
        expected, _ = theirs.mask_decoder.predict_masks(features[None], theirs.prompt_encoder.get_dense_pe(), sparse, dense)
        plan = decoder_plan(other, CPU)
        found, _, _ = plan(plan.share(features), sparse, None, slice(None))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_decoder_for_another_base_is_refused_by_name(tiny_model, tmp_path):
    change = changed(tiny_model)
    other = with_decoder(tiny_model, change, tmp_path / "taught")
    with pytest.raises(SAMError, match="again was made for tiny.pth with other weights than taught has"):
        with_decoder(other, change, tmp_path / "again")


@pytest.mark.parametrize("weights", [{"nothing": torch.ones(2)}, {"iou_token.weight": torch.ones(2)}])
def test_weights_that_do_not_fit_are_named(tiny_model, tmp_path, weights):
    with pytest.raises(SAMError, match=f"taught does not fit the mask decoder: {next(iter(weights))}"):
        with_decoder(tiny_model, Retrained(weights, identity_of(tiny_model), "tiny.pth"), tmp_path / "taught")


def test_a_plain_sam_of_another_pack_takes_a_decoder(tiny_sam, tmp_path):
    change = Retrained(changed(tiny_sam).weights, identity_of(tiny_sam), "theirs")
    other = with_decoder(tiny_sam, change, tmp_path / "taught")
    assert type(other) is type(tiny_sam) and identity_of(other) != identity_of(tiny_sam)


OPTIONS = DecoderOptions(steps=6, rate=1e-3)


@pytest.fixture
def helpful(monkeypatch):
    """Whatever is trained is better than the base."""
    monkeypatch.setattr(_Trainer, "_measured", lambda self, trainable, index: 0.5 + 0.1 * (trainable is self.trained))


@pytest.mark.usefixtures("helpful")
def test_training_is_repeatable_and_leaves_the_base_alone(tiny_model):
    images, masks = lesson_of(6)
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    with torch.inference_mode():  # as ComfyUI runs nodes
        taught, lesson = train_decoder(tiny_model, images, masks, options=OPTIONS)
        again, _ = train_decoder(tiny_model, images, masks, options=OPTIONS)
    assert identity_of(taught) == identity_of(again) != identity_of(tiny_model)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert not tiny_model.training and all(p.grad is None and not p.requires_grad for p in tiny_model.parameters())
    assert not any(p.requires_grad or p.is_inference() for p in taught.parameters())
    assert len(lesson.losses) == 6 and all(np.isfinite(lesson.losses)) and lesson.helped


def test_what_does_not_help_gives_the_base_back(tiny_model, monkeypatch):
    monkeypatch.setattr(_Trainer, "_measured", lambda self, trainable, index: 0.5 - 0.1 * (trainable is self.trained))
    model, losses, text = TrainDecoder().execute([tiny_model], *lesson_of(5), [2])
    assert model is tiny_model and len(losses["loss"]) == 2 and "did not improve. The model is unchanged" in text
    with pytest.raises(SAMError, match="nothing to save: tiny.pth has no trained decoder"):
        SaveDecoder().execute(model)


def test_the_anchor_is_nothing_at_the_start_and_pulls_back(tiny_model):
    """Its gradient is that of the distance to the base's own answers."""
    from samkit.sam.training.examples import make_examples

    trainer = _Trainer(as_segmenter(tiny_model), make_examples(as_segmenter(tiny_model), *lesson_of(1)), [], OPTIONS, CPU)
    for mirrored in (False, True):
        assert float(trainer._anchor(trainer.examples[0], np.random.default_rng(0), mirrored).detach()) < 1e-8
    weight = trainer.parameters["mask_tokens.weight"]
    weight.data += 0.5
    trainer.trained.plan = trainer.trained.planned()
    for mirrored in (False, True):
        assert float(trainer._anchor(trainer.examples[0], np.random.default_rng(0), mirrored).detach()) > 1e-5
    assert trainer._agreement([0]) < 1


@pytest.fixture
def comfy(tmp_path, monkeypatch, tiny_sam):
    """A ComfyUI with tiny.pth in models/sams."""
    fake = install(monkeypatch, FakeComfyUI(tmp_path))
    (tmp_path / "models" / "sams").mkdir(parents=True)
    torch.save(tiny_sam.state_dict(), tmp_path / "models" / "sams" / "tiny.pth")
    return fake


def test_saved_it_is_listed_and_applied_to_its_base(comfy, tmp_path):
    (base,) = SAMModelLoader().load_model("tiny.pth", "fp32")
    taught = with_decoder(base, changed(base), tmp_path / "taught")
    assert SaveDecoder().execute(taught) == ("decoder_00001_.safetensors",)
    assert "decoder_00001_.safetensors" in SAMModelLoader.INPUT_TYPES()["required"]["model_name"][0]
    (loaded,) = SAMModelLoader().load_model("decoder_00001_.safetensors", "fp32")
    embedding = encode(base, as_image(make_picture(60, 80)))
    for one, two in zip(*(PredictMask().execute(model, embedding, CLICK)[::3] for model in (taught, loaded)), strict=True):
        assert torch.equal(one, two)
    assert identity_of(loaded) == identity_of(taught) and not list(tmp_path.rglob("*.part"))
    further = with_decoder(
        loaded, Retrained(changed(loaded).weights, identity_of(loaded), loaded.checkpoint.name), tmp_path / "2"
    )
    SaveDecoder().execute(further, "sam_decoders/second")
    (second,) = SAMModelLoader().load_model("second_00001_.safetensors", "fp32")
    assert identity_of(second) == identity_of(further), "a decoder that was trained from a trained one"


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
    metadata = {"samkit": "decoder-1", "base": identity_of(base), "base_name": "tiny.pth"}
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
    from samkit.sam.models.sam2.decoder import SAM2MaskDecoder
    from samkit.sam.training.retrained import is_trainable

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

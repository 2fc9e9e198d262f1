"""An image is uploaded, checked and projected once in a run, whatever is asked of it: counted on the stand-in device."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from samkit.nodes.automask import AutoMask
from samkit.nodes.editor.text import parse_editor
from samkit.nodes.personalize import Personalize
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.prompt_editor import MarkedObject, PromptEditor, segment_marks
from samkit.sam import ReadyImage, SAMError, TeachOptions, encode, result_device, teach
from samkit.sam.kernels.decoder import FastDecoder
from samkit.sam.models import features
from samkit.sam.models.features import Features
from samkit.sam.placement import host
from samkit.sam.tasks import embed
from samkit.sam.tasks.wrapper import SAMWrapper
from samkit.sam.training import examples
from stand_in_device import DEVICE, stand_in_device

CPU = torch.device("cpu")
CLICK = '[{"x": 30, "y": 25}]'
MASK = torch.zeros(1, 60, 80)
MASK[:, 15:45, 20:60] = 1
THREE = [make_image(60, 80, seed) for seed in range(3)]
OBJECTS = json.dumps(
    {"version": 2, "objects": [{"name": str(x), "marks": [{"x": x, "y": 25, "label": 1}]} for x in (20, 40, 60)]}
)
TWO = '[{"x": 30, "y": 25, "object": 1}, {"x": 60, "y": 40, "object": 2}]'
REFERENCE = as_image(make_image(60, 80, 7))


def teach_it(model, images):
    image = as_image(*images)
    return teach(model, [image], [MASK.expand(len(image), -1, -1)], options=TeachOptions(steps=6))


def preview(model, images):
    marks = parse_editor(OBJECTS)
    for pixels in images:
        ready = ReadyImage(model, pixels)
        for _ in range(2):
            with ready.predictor() as image:
                for place in range(3):
                    segment_marks(image, MarkedObject(marks, place, 0, pixels.shape[:2]))


def wrapped(model, images):
    for pixels in images:
        SAMWrapper(model).predict(pixels, [(30, 25)], [1], None, 0.0)


USES = {
    "segment": lambda model, images: Segment().execute(model, as_image(*images), positive_coords=TWO),
    "everything": lambda model, images: AutoMask().execute(
        model, as_image(*images), preset="custom", points_per_side=2, points_per_batch=2, pred_iou_thresh=0.0
    ),
    "personalize": lambda model, images: Personalize().execute(
        model, REFERENCE, MASK, as_image(*images), max_objects=2, method="persam"
    ),
    "persam-f": lambda model, images: Personalize().execute(model, REFERENCE, MASK, as_image(*images), method="persam-f"),
    "teaching": teach_it,
    "preview": preview,
    "editor": lambda model, images: PromptEditor().execute(as_image(*images), OBJECTS, model),
    "wrapper": wrapped,
}
REFERENCES = {"personalize": 1, "persam-f": 1}  # images besides the three


@pytest.fixture
def counted(tiny_model, monkeypatch):
    """Counts of map transfers by direction, of checks and of projections, after the model's self-tests."""
    counts = Counter()

    def counting(module, name, kind):
        real = getattr(module, name)

        def counted_too(*given):
            counts[kind] += len(given[0]) if kind == "checks" and given[0].ndim == 4 else 1
            return real(*given)

        monkeypatch.setattr(module, name, counted_too)

    # Gradients run on a device's own thread, which the stand-in has not: steps go forwards only.
    monkeypatch.setattr("samkit.sam.training.loop._step", lambda _, loss: float(loss))
    monkeypatch.setattr(torch, "enable_grad", torch.no_grad)
    monkeypatch.setattr("samkit.sam.tasks.personalize.learn_mixture", lambda given: given[0][0].new_full((2,), 1 / 3))
    with stand_in_device(monkeypatch) as device:
        Segment().execute(tiny_model, as_image(make_image(60, 80, 99)), positive_coords=CLICK)
        counting(FastDecoder, "share", "projections")
        counting(features, "all_finite", "checks")
        counting(embed, "all_finite", "checks")
        device.copies.clear()

        def read():
            moved = Counter()
            for (kind, shape), number in device.copies.items():
                if shape[-3:] == (32, 8, 8):
                    moved[kind] += number * (shape[0] if len(shape) == 4 else 1)
            found = {**moved, **counts}
            device.copies.clear(), counts.clear()
            return found

        yield read


@pytest.mark.parametrize("use", USES)
def test_one_transfer_one_check_and_one_projection_for_each_image(use, counted, tiny_model, monkeypatch):
    monkeypatch.setattr("samkit.sam.training.teach._MIRRORED", 0)
    USES[use](tiny_model, THREE)
    images = 3 + REFERENCES.get(use, 0)
    first = counted()
    projected = images - (use == "personalize")  # nothing is decoded on its reference
    assert first["down"] == images and first["checks"] == images and first["projections"] == projected
    assert "up" not in first, "what has just been encoded is on the device"
    USES[use](tiny_model, THREE)
    again = counted()
    assert again["up"] == images and again["projections"] == projected and "down" not in again


def test_equal_images_are_one(counted, tiny_model):
    Segment().execute(tiny_model, as_image(THREE[0], THREE[1], THREE[0]), positive_coords=CLICK)
    assert counted() == {"down": 2, "checks": 2, "projections": 2}


def test_an_embedding_is_uploaded_and_checked_once_for_each_image(counted, tiny_model):
    embedding = encode(tiny_model, THREE)
    counted()
    PredictMask().execute(tiny_model, embedding, positive_coords=TWO)
    assert counted() == {"up": 3, "checks": 3, "projections": 3}


def test_what_is_taught_mirrored_is_projected_once_more_and_uploaded_no_more(counted, tiny_model, monkeypatch):
    monkeypatch.setattr("samkit.sam.training.teach._MIRRORED", 0.5)
    teach(tiny_model, [as_image(*THREE)], [MASK.expand(3, -1, -1)], options=TeachOptions(steps=40))
    assert counted() == {"down": 3, "checks": 3, "projections": 6}


def test_examples_without_room_go_up_when_their_turn_comes(counted, tiny_model, monkeypatch):
    def losses():
        embed.cache.clear()
        given = [as_image(*THREE)], [MASK.expand(3, -1, -1)]
        return teach(tiny_model, *given, options=TeachOptions(steps=12))[1].losses

    roomy, moved = losses(), counted()
    monkeypatch.setattr(examples, "room", lambda *_: 1)
    assert losses() == roomy and counted()["up"] > moved.get("up", 0) + 2


def test_a_gpu_that_loses_its_room_hands_over_to_the_cpu(tiny_model, monkeypatch):
    """In the middle of a batch, and between the references and the images."""
    monkeypatch.setattr("samkit.sam.tasks.personalize.learn_mixture", lambda given: given[0][0].new_full((2,), 1 / 3))
    image = as_image(*THREE)
    expected = Personalize().execute(tiny_model, REFERENCE, MASK, image, method="persam-f")
    embed.cache.clear()
    with stand_in_device(monkeypatch):
        real, turns = host.PlainHost.load, []

        def full(self, network, *rest):
            turns.append(1)
            if len(turns) % 2:
                return real(self, network, *rest)
            self.unload(network)
            return CPU

        monkeypatch.setattr(host.PlainHost, "load", full)
        found = Personalize().execute(tiny_model, REFERENCE, MASK, image, method="persam-f")
        assert len(turns) > 3
    assert (found[0] != expected[0]).float().mean() < 1e-3
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


def test_a_ready_image_follows_its_model_from_one_device_to_another(tiny_model, monkeypatch):
    ready, marked = ReadyImage(tiny_model, THREE[0]), MarkedObject(parse_editor(OBJECTS), 1, 0, THREE[0].shape[:2])
    with ready.predictor() as image:
        expected = segment_marks(image, marked)
        assert image.device.type == "cpu"
    with stand_in_device(monkeypatch):
        with ready.predictor() as image:
            mask, score = segment_marks(image, marked)
            assert image.device == DEVICE and mask.device == result_device()
        with ready.predictor() as same:
            assert same is image
        ready.release()
        with ready.predictor() as new:
            assert new is not image
    assert torch.equal(mask, expected[0]) and score == pytest.approx(expected[1], abs=1e-5)


def test_a_ready_image_of_other_weights_is_refused(tiny_model):
    ready = ReadyImage(tiny_model, THREE[0])
    with torch.no_grad():
        tiny_model.image_encoder.pos_embed += 1
    with pytest.raises(SAMError, match="created with a different model"), ready.predictor():
        pass


def test_maps_are_checked_before_they_are_used(tiny_model):
    for values in (np.full((2, 3, 3), np.nan, np.float32), torch.full((2, 3, 3), float("inf"))):
        broken = Features({"image": values}, "", CPU)
        with pytest.raises(SAMError, match="NaN or infinite"):
            broken.tensor()
        with pytest.raises(SAMError, match="NaN or infinite"):
            broken.shared(["image"], "a decoder", lambda maps: maps)

"""Nodes show their result: an image of each frame in the temp folder, its names in `ui`, and the same outputs as ever."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from PIL import Image
from samkit import NODE_CLASS_MAPPINGS
from samkit.nodes.automask import AutoMask
from samkit.nodes.common import MOST_SHOWN, Found, Result, shown
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.personalize import Personalize
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.track import TrackObjects
from samkit.sam import Track
from samkit.utils.overlay import colour, result_image, result_text

CLICK = '[{"x": 30, "y": 25}]'
SHOWING = (
    "SAMKit_Segment",
    "SAMKit_PredictMask",
    "SAMKit_AutoMask",
    "SAMKit_Personalize",
    "SAMKit_SegmentText",
    "SAMKit_Track",
)
BATCH = as_image(make_image(60, 80), make_image(60, 80, seed=1))


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, FakeComfyUI(tmp_path))


def runs(model):
    """Each node that needs no words, and its inputs for a batch of two."""
    mask = torch.zeros(1, 60, 80)
    mask[:, 20:40, 20:50] = 1
    (embedding,) = GetSAMEmbedding().get_sam_embedding(BATCH, model)
    frames = {"sam_model": model, "image": BATCH}
    yield Segment(), {**frames, "positive_coords": CLICK, "individual_masks": True}
    yield PredictMask(), {"sam_model": model, "embedding": embedding, "positive_coords": CLICK}
    yield PredictMask(), {**frames, "embedding": embedding, "positive_coords": CLICK}
    yield AutoMask(), {**frames, "points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    yield Personalize(), {**frames, "reference_image": BATCH[:1], "reference_mask": mask}
    yield TrackObjects(), {**frames, "positive_coords": CLICK}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Track):
        return (one.keys, one.names) == (other.keys, other.names)
    return one == other


def opened(comfy, name):
    assert (name["type"], name["subfolder"]) == ("temp", "") and set(name) == {"filename", "subfolder", "type"}
    return Image.open(comfy.root / "temp" / name["filename"])


def test_a_run_gives_an_image_per_frame_and_the_same_outputs(comfy, tiny_model):
    for node, inputs in runs(tiny_model):
        plain = node.execute(**inputs)
        said = node.run(show_result=True, **inputs)
        assert set(said) == {"ui", "result"} and set(said["ui"]) == {"images"}
        assert all(map(same, said["result"], plain)) and len(said["result"]) == len(node.RETURN_TYPES)
        assert [opened(comfy, name).format for name in said["ui"]["images"]] == ["JPEG"] * 2
        assert all(opened(comfy, name).height > 60 for name in said["ui"]["images"]), "the caption is below"


def test_without_the_input_nothing_is_shown(comfy, tiny_model):
    for node, inputs in runs(tiny_model):
        for options in ({}, {"show_result": False}):
            said = node.run(**inputs, **options)
            assert type(said) is tuple and len(said) == len(node.RETURN_TYPES)
    assert not (comfy.root / "temp").exists()


NEWER = {"frame_offset", "meta_batch", "method"}  # than the switch: what is stored keeps its order


def test_these_nodes_show_their_result_and_the_switch_comes_last():
    assert {node_id for node_id, node in NODE_CLASS_MAPPINGS.items() if node.FUNCTION == "run"} == set(SHOWING)
    for node_id in SHOWING:
        optional = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["optional"]
        *_, last = (name for name in optional if name not in NEWER)
        assert last == "show_result" and optional[last][1]["default"] is True


def test_words_are_shown_on_their_overlay(comfy, tiny_model, monkeypatch):
    from samkit.nodes import grounding
    from samkit.sam import FoundBoxes, GroundingModel

    model = object.__new__(GroundingModel)
    found = [FoundBoxes(np.array([[10.0, 10, 50, 40]]), [0.8], ["cat"]), FoundBoxes(np.zeros((0, 4)), [], [])]
    monkeypatch.setattr(grounding, "find_boxes", lambda *_: found)
    seen = []
    monkeypatch.setattr("samkit.nodes.common.result_text", lambda scores, seconds: seen.append(list(scores)) or "text")
    said = grounding.SegmentText().run(True, sam_model=tiny_model, grounding_model=model, image=BATCH, text="cat")
    assert len(said["ui"]["images"]) == 2 and seen == [[0.8], []]
    shape = np.array(opened(comfy, said["ui"]["images"][0]).convert("RGB"))[:60, 80:160].astype(int)
    overlay, plain = (np.abs(shape - 255 * image[0].numpy()).mean() for image in (said["result"][4], BATCH))
    assert overlay < 0.6 * plain, "JPEG is not exact"


def test_no_more_than_some_frames_are_shown(comfy):
    frames = MOST_SHOWN + 3
    found = [Found(torch.zeros(0, 4, 4, dtype=torch.bool), [])] * frames
    assert len(shown(Result((), torch.rand(frames, 4, 4, 3), found), 0.1)) == MOST_SHOWN
    assert len(shown(Result((), None, found[:5]), 0.1)) == 5 and shown(Result((), None, []), 0.1) == []


def test_the_same_result_is_one_file(comfy):
    found = [Found(torch.ones(1, 20, 30, dtype=torch.bool), [0.5])] * 2
    one, other = shown(Result((), None, found), 0.1)
    assert one == other and len(list((comfy.root / "temp").iterdir())) == 1


def test_outside_comfyui_nothing_is_written(tiny_model):
    assert Segment().run(True, sam_model=tiny_model, image=BATCH, positive_coords=CLICK)["ui"] == {"images": []}


def test_masks_are_tinted_in_their_colours_on_the_small_image():
    frame = torch.full((1000, 1500, 4), 0.5)
    masks = torch.zeros(2, 1000, 1500, dtype=torch.bool)
    masks[0, 100:500, 100:600] = True
    masks[1, 600:900, 900:1400] = True
    small = np.asarray(result_image(frame, masks, "2 objects"))
    assert small.shape[1] == 375 and 250 < small.shape[0] < 290
    for index, (y, x) in enumerate([(75, 75), (188, 300)]):
        expected = 127.5 * (1 - 115 / 255) + colour(index).astype(float) * 115 / 255
        assert np.abs(small[y, x] - expected).max() <= 2
    assert (small[25, 75] == colour(0)).all(), "its outline is opaque"
    assert np.abs(small[10, 10].astype(int) - 128).max() <= 1 and not (small[255:] == 128).all(-1).any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_image_of_any_channels_is_shown_small(channels):
    frame = torch.rand(1023, 700, channels)
    small = np.asarray(result_image(frame, torch.zeros(0, 1023, 700, dtype=torch.bool), ""))[:341, 3:237].astype(int)
    colours = frame[::3, ::3, :3] if channels >= 3 else frame[::3, ::3, :1].expand(-1, -1, 3)
    assert np.abs(small - 255 * colours.numpy()).max() <= 0.5001


def test_a_narrow_image_has_room_for_its_caption():
    image = np.asarray(result_image(None, torch.zeros(0, 380, 20, dtype=torch.bool), result_text([0.9] * 150, 123.4)))
    assert image.shape[1] == 240 and image[380:].max() == 255 and image[:380].max() <= 20


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ([], "no object, 1.50 s"),
        ([0.5], "1 object: 0.50, 1.50 s"),
        ([0.5, 0.931], "2 objects: 0.93, 0.50, 1.50 s"),
        ([0.5, 0.6, 0.7, 0.8, 0.9], "5 objects: scores 0.50 to 0.90, 1.50 s"),
    ],
)
def test_the_caption_says_count_scores_and_time(scores, text):
    assert result_text(scores, 1.5) == text

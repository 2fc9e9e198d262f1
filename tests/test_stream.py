"""Long batches in bounded memory: each image encoded once, decoded and dropped, with the results of single frames."""

import json
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, Interrupted, install
from samkit.nodes.automask import AutoMask
from samkit.nodes.personalize import Personalize
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import AutoMaskOptions, PredictOptions, Prompt, SAMError, decode, encode, everything_each, segment_each
from samkit.sam.models import features
from samkit.sam.models.sam import run_encoder
from samkit.sam.placement import memory
from samkit.sam.store import keys
from samkit.sam.store.memory import ByteCache, passing
from samkit.sam.tasks import embed
from samkit.utils.images import Frames
from samkit.utils.stacks import MaskStack, joined

MANY = 40
CLICK = '[{"x": 30, "y": 25}]'
EMBEDDING = 32 * 8 * 8 * 4  # bytes of one of tiny_model's
LOOSE = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@pytest.fixture(scope="module")
def film():
    return as_image(*(make_image(128, 128, seed) for seed in range(MANY)))


@pytest.fixture
def runs(monkeypatch):
    """Counts the image encoder's forward passes."""
    counted = []
    counting = lambda encoder, images, *args: counted.append(len(images)) or run_encoder(encoder, images, *args)  # noqa: E731
    monkeypatch.setattr("samkit.sam.models.sam.run_encoder", counting)
    return counted


@pytest.fixture
def small_cache(monkeypatch):
    monkeypatch.setattr(embed, "cache", ByteCache(4 * EMBEDDING))
    return embed.cache


@pytest.fixture
def live(monkeypatch):
    """How many embeddings were in memory when each was made."""
    there, counts, separate = weakref.WeakValueDictionary(), [], embed._separate

    def watched(*args):
        for name, encoded in separate(*args):
            there[len(counts)] = encoded.maps["image"]
            counts.append(len(there))
            yield name, encoded

    monkeypatch.setattr(embed, "_separate", watched)
    return counts


def per_frame(call, film):
    """A node's outputs for each frame on its own, put together as for a batch."""
    results = [call(film[index : index + 1]) for index in range(len(film))]
    return [
        torch.cat(parts) if isinstance(parts[0], torch.Tensor) else [item for part in parts for item in part]
        for parts in zip(*results, strict=True)
    ]


def assert_same(one, other):
    for ours, expected in zip(one, other, strict=True):
        assert torch.equal(ours, expected) if isinstance(ours, torch.Tensor) else ours == expected


@pytest.mark.parametrize("options", [{}, {"individual_masks": True}, {"candidate": "all"}], ids=str)
def test_a_long_batch_is_its_frames_and_holds_few_embeddings(tiny_model, film, runs, live, small_cache, options):
    prompts = {"positive_coords": CLICK, "bboxes": [(3, 3, 60, 70), (20, 30, 100, 120)], **options}
    together = Segment().execute(tiny_model, film, **prompts)
    assert runs == [1] * MANY, "each is encoded once"
    assert max(live) <= 4 + 2, "what the cache holds, the one that is decoded, and the next"
    assert_same(together, per_frame(lambda frame: Segment().execute(tiny_model, frame, **prompts), film))


def test_an_image_that_comes_again_late_is_not_encoded_again(tiny_model, film, runs, small_cache):
    twice = torch.cat([film[:12], film[:12].flip(0)])
    points = json.dumps([[{"x": 10 + 4 * index, "y": 60}] for index in range(24)])
    masks, *_ = Segment().execute(tiny_model, twice, positive_coords=points)
    assert runs == [1] * 12
    for index in range(24):
        (alone, *_) = Segment().execute(tiny_model, twice[index : index + 1], json.dumps(json.loads(points)[index]))
        assert torch.equal(masks[index], alone[0])


def test_predict_mask_is_its_frames(tiny_model, film):
    embedding = encode(tiny_model, film)
    together = PredictMask().execute(tiny_model, embedding, CLICK)
    frames = [PredictMask().execute(tiny_model, embedding[i : i + 1], CLICK) for i in range(MANY)]
    assert torch.equal(together[0], torch.cat([one[0] for one in frames]))
    assert torch.equal(together[3], torch.cat([one[3] for one in frames]))


def test_personalize_is_its_frames(tiny_model, film, runs, live, small_cache):
    mask = torch.zeros(1, 128, 128)
    mask[:, 30:70, 40:90] = 1
    masks, scores, similarity, points = Personalize().execute(tiny_model, film[:1], mask, film[:18])
    assert sum(runs) == 18 and max(live) <= 4 + 3
    for index in (0, 9, 17):
        alone = Personalize().execute(tiny_model, film[:1], mask, film[index : index + 1])
        assert torch.equal(alone[0][0], masks[index]) and torch.equal(alone[2][0], similarity[index])
        assert alone[1] == [scores[index]] and json.loads(alone[3]) == [json.loads(points)[index]]


def test_segment_everything_is_its_frames(tiny_model, film, runs, live, small_cache):
    together = AutoMask().execute(tiny_model, film[:18], **LOOSE)
    assert sum(runs) == 18 and max(live) <= 4 + 2
    alone = per_frame(lambda frame: AutoMask().execute(tiny_model, frame, **LOOSE), film[:18])
    for frame in (box for frames in (together[1], alone[1]) for boxes in frames for box in boxes):
        del frame["frame_index"]
    assert_same([together[i] for i in (0, 1, 3, 4)], [alone[i] for i in (0, 1, 3, 4)])
    assert together[2] == [box["score"] for boxes in together[1] for box in boxes] and len(together[0]) > 3


def test_a_gpus_chunk_is_as_large_as_the_main_memory_allows(monkeypatch):
    free = {"bytes": 64 << 30}
    host = types.SimpleNamespace(free_bytes=lambda device: free["bytes"])
    monkeypatch.setattr(memory, "host", lambda: host)
    gpu = torch.device("cuda")
    assert memory.chunk(torch.device("cpu"), 4 << 20) == 1 and memory.chunk(gpu, 4 << 20) == 32
    for free["bytes"], size in ((1 << 30, 25), (4 << 20, 1), (None, 32)):
        assert memory.chunk(gpu, 4 << 20) == size


def test_chunks_of_several_give_the_same(tiny_model, film, runs, monkeypatch):
    monkeypatch.setattr("samkit.sam.tasks.stream.chunk", lambda device, each: 7)
    frames, found = Frames(film[:17]), {}
    click = Prompt(np.array([[30.0, 25.0]]), np.array([1]))
    segment_each(tiny_model, frames, [[click]] * 17, found.__setitem__)
    expected = decode(tiny_model, encode(tiny_model, film[:17]), [[click]] * 17)
    assert list(found) == list(range(17)) and runs == [1] * 17
    for index in range(17):
        assert_same(found[index], [part[index] for part in expected])


def test_logits_are_not_made_where_nobody_asks(tiny_model, film):
    click = Prompt(np.array([[30.0, 25.0]]), np.array([1]))
    embedding = encode(tiny_model, film[:2])
    full = decode(tiny_model, embedding, [[click], []])
    without = decode(tiny_model, embedding, [[click], []], PredictOptions(logits=False))
    assert [len(one) for one in full.logits] == [1, 0] and [tuple(one.shape) for one in without.logits] == [(0, 1, 32, 32)] * 2
    assert_same(full.masks + full.scores, without.masks + without.scores)


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, FakeComfyUI(tmp_path))


@pytest.fixture
def running(comfy, monkeypatch):
    """Says which node of which prompt ComfyUI is calling."""

    def call(node, prompt):
        context = types.SimpleNamespace(prompt_id="p", node_id=node)
        module = types.SimpleNamespace(get_executing_context=lambda: context)
        monkeypatch.setitem(sys.modules, "comfy_execution.utils", module)
        comfy.running.clear()
        comfy.running.update({6: (0, "other", {}, {}, []), 7: (0, "p", prompt, {}, [])})

    return call


@pytest.mark.parametrize(
    ("node", "inputs", "count"),
    [
        ("4", {"logits": ["4", 3]}, 2),
        ("4", {"masks": ["4", 0], "threshold": 3}, 0),
        ("1:4", {"masks": ["1:4", 0], "other": ["4", 3]}, 0),  # inside a subgraph
        ("9.0.0.1", {"masks": ["4", 0]}, 2),  # made by another node while the prompt runs
    ],
)
def test_comfyui_gets_logits_where_they_are_connected(tiny_model, film, running, node, inputs, count):
    prompt = {"4": {"class_type": "SAMKit_Segment", "inputs": {}}, "1:4": {"inputs": {}}, "5": {"inputs": inputs}}
    running(node, prompt)
    logits = Segment().execute(tiny_model, film[:2], CLICK)[3]
    assert logits.shape == (count, 1, 32, 32)
    assert Segment.IS_CHANGED(image=None) == PredictMask.IS_CHANGED() == ("logits" if count else "")


def test_a_frame_without_objects_has_no_logits_either(tiny_model, film, running):
    running("4", {"4": {"inputs": {}}})
    masks, _, scores, logits = Segment().execute(tiny_model, film[:2], '[[], [{"x": 3, "y": 3}]]')
    assert len(masks) == len(scores) == 2 and not len(logits)


def test_a_cancel_stops_within_a_frame(comfy, tiny_model, film, runs):
    comfy.interrupted_after = 7
    with pytest.raises(Interrupted):
        Segment().execute(tiny_model, film, CLICK)
    assert sum(runs) <= 4 and len(comfy.bars) == 1 and comfy.bars[0].total == 2 * MANY


def test_a_cancel_ends_the_work_before_the_first_frame_too(comfy, tiny_model, film, runs):
    comfy.interrupted_after = 0
    with pytest.raises(Interrupted):
        Segment().execute(tiny_model, film, CLICK)
    assert not runs and not comfy.bars


def test_a_bad_last_frame_is_refused_before_the_first_is_encoded(tiny_model, film, runs):
    film = film.clone()
    film[-1, 3, 4, 0] = float("nan")
    with pytest.raises(SAMError, match=r"image has values that are NaN or infinite \(1 in total\)"):
        Segment().execute(tiny_model, film, CLICK)
    assert not runs


def test_segment_everything_refuses_as_soon_as_the_masks_do_not_fit(tiny_model, film, runs, monkeypatch):
    room = 128 * 128 * (16 * MANY + 4 * 3)  # overlay and labels of all frames, and three masks
    monkeypatch.setattr("samkit.nodes.automask.free_result_bytes", lambda: room)
    with pytest.raises(SAMError, match=r"masks of 128x128 pixels need .* Frames segmented so far: (\d) of 40"):
        AutoMask().execute(tiny_model, film, **LOOSE)
    seen = sum(runs)
    assert 1 <= seen <= 9
    monkeypatch.setattr("samkit.nodes.automask.free_result_bytes", lambda: 128 * 128 * 16 * MANY - 1)
    with pytest.raises(SAMError, match="0 of 40"):
        AutoMask().execute(tiny_model, film, **LOOSE)
    assert sum(runs) == seen, "the overlay alone does not fit: nothing is segmented"


def test_segment_everything_has_one_bar_for_all_frames(comfy, tiny_model, film):
    seen = []
    region = np.zeros((128, 128), bool)
    options = AutoMaskOptions(points_per_side=4, points_per_batch=3, pred_iou_thresh=0.0)
    everything_each(tiny_model, Frames(film[:3]), options, [None, region, None], lambda index, _: seen.append(index))
    assert [(bar.total, bar.current) for bar in comfy.bars] == [(12, 12)] and seen == [0, 1, 2]


def test_a_long_batch_passes_through_the_brief_caches(tiny_model, film):
    keys._hashed.clear()
    Segment().execute(tiny_model, film, CLICK)
    assert len(features.cache._values) == len(keys._hashed._values) == 1
    Segment().execute(tiny_model, film[:5], CLICK)
    assert len(features.cache._values) == 6, "a few stay"


def test_what_passes_replaces_only_what_passed():
    brief, lasting = ByteCache(1000, brief=True), ByteCache(1000)
    for cache in (brief, lasting):
        cache.put("mine", np.zeros(1, np.uint8))
    with passing(100):
        for key in range(5):
            brief.put(key, np.zeros(1, np.uint8))
            lasting.put(key, np.zeros(1, np.uint8))
            with passing(3):
                brief.put("inner", np.zeros(1, np.uint8))
    assert list(brief._values) == ["mine", "inner"] and len(lasting._values) == 6 and brief.nbytes == 2


@pytest.mark.parametrize("frames", [1, 4])
def test_packed_masks_are_the_masks(frames):
    rng = np.random.default_rng(0)
    masks = [torch.from_numpy(rng.random((count, 13, 7)) < 0.5) for count in (3, 1, 2, 1)[:frames]]
    stack = MaskStack(frames, (13, 7))
    for index in reversed(range(frames)):
        stack.put(index, masks[index])
    assert stack.nbytes <= 12 * sum(map(len, masks[1:])) + masks[0].nbytes
    assert torch.equal(stack.filled(torch.device("cpu")), torch.cat(masks).float())
    assert torch.equal(joined([one.clone() for one in masks]), torch.cat(masks))


@pytest.mark.parametrize("individual", [True, False])
def test_a_film_in_parts_is_the_film(tiny_model, film, individual):
    points = json.dumps([[{"x": 10 + index, "y": 60}] for index in range(7)])  # none after the seventh frame
    boxes = [[] if index % 3 else [(5, 5, 60 + index, 50), (70, 70, 90, 100)] for index in range(10)]
    padded = json.dumps([*json.loads(points), [], [], []])
    whole = Segment().execute(tiny_model, film[:10], padded, bboxes=boxes, individual_masks=individual)
    embedding = encode(tiny_model, film[:10])
    options = {"bboxes": boxes, "individual_masks": individual}
    for node, subject in ((Segment(), film[:10]), (PredictMask(), embedding)):
        parts = [node.execute(tiny_model, subject[i : i + 4], points, **options, frame_offset=i) for i in (0, 4, 8)]
        assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
        assert [one for part in parts for one in part[1]] == whole[1]
    with pytest.raises(SAMError, match="the number of lists in positive_coords is 7"):
        Segment().execute(tiny_model, film[:4], points)
    everywhere = Segment().execute(tiny_model, film[4:6], CLICK, frame_offset=4)
    assert torch.equal(everywhere[0], Segment().execute(tiny_model, film[4:6], CLICK)[0]), "a single list is for all frames"


class BatchManager:
    """VideoHelperSuite's, as others may find it: reset, it has forgotten its node."""

    def __init__(self, frames_per_batch=4):
        self.frames_per_batch, self.unique_id = frames_per_batch, None


def prompt_of(part):
    """The prompt of a part, in whose manager VideoHelperSuite counts; there is no count in the first."""
    count = {"requeue": part} if part else {}
    return {"7": {"class_type": "VHS_BatchManager", "inputs": {"frames_per_batch": 4, **count}}}


@pytest.mark.parametrize("skipped", [-1, 2])
def test_the_parts_of_a_batch_manager_are_the_film(tiny_model, film, skipped):
    """With `frame_offset`, the film begins before the first part."""
    start = max(0, skipped)
    points = json.dumps([[{"x": 10 + 5 * index, "y": 60}] for index in range(12)])
    whole = Segment().execute(tiny_model, film[:12], points, individual_masks=True)[0][start : start + 10]
    embedding = encode(tiny_model, film[start : start + 10])
    for node, subject in ((Segment(), film[start : start + 10]), (PredictMask(), embedding)):
        parts = [
            node.execute(
                tiny_model,
                subject[4 * part : 4 * part + 4],
                points,
                individual_masks=True,
                frame_offset=skipped,
                meta_batch=BatchManager(),
                prompt=prompt_of(part),
            )[0]
            for part in range(3)
        ]
        assert torch.equal(torch.cat(parts), whole) and whole.flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("manager", "prompt", "frames", "words"),
    [
        (
            BatchManager(),
            {"7": {"class_type": "LoadImage", "inputs": {}}},
            4,
            "it must be the output of a Meta Batch Manager in",
        ),
        (BatchManager(), None, 4, "meta_batch is of type BatchManager: it must be"),
        (BatchManager("4"), prompt_of(1), 4, "meta_batch is of type BatchManager: it must be"),
        ("4", prompt_of(1), 4, "meta_batch is '4': it must be"),
        (BatchManager(), prompt_of(1), 5, "into batches of 4 frames, but this batch has 5. Connect it to the node that loads"),
    ],
)
def test_a_batch_manager_that_cannot_be_used_is_refused(tiny_model, film, manager, prompt, frames, words):
    with pytest.raises(SAMError, match=words):
        Segment().execute(tiny_model, film[:frames], CLICK, meta_batch=manager, prompt=prompt)

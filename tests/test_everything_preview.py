"""Segment everything for the editor: the node's own masks as patches, with progress, ended when nobody waits."""

import asyncio
import json
import threading

import numpy as np
import pytest
import torch
from fakes import FakeComfyUI, install
from PIL import Image
from samkit.nodes.automask import AutoMask
from samkit.nodes.editor import everything as module
from samkit.nodes.editor import jobs as preview_jobs
from samkit.nodes.editor import routes
from samkit.nodes.editor.jobs import Job, Jobs, RefusedError
from samkit.nodes.editor.preview import Preview
from samkit.nodes.model import SAMModelLoader
from samkit.sam import AutoMaskOptions
from samkit.utils.comfy import Progress, Watch, quietly
from samkit.utils.patches import encode_runs, parse_patch
from scenes import make_scene

LOOSE = AutoMaskOptions(points_per_side=6, pred_iou_thresh=0.3, stability_score_thresh=0.5)


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """A ComfyUI with the bundled model and one scene."""
    (tmp_path / "input").mkdir()
    Image.fromarray(scene()).save(tmp_path / "input" / "a.png")
    monkeypatch.setitem(module.PRESETS, "balanced", LOOSE)
    return install(monkeypatch, FakeComfyUI(tmp_path))


def scene():
    return make_scene(1_000_000_000, (120, 160)).image


def body_of(editor="one", **others):
    subject = {"image": {"filename": "a.png"}, "model": {"model_name": "samkit_demo.safetensors"}}
    return {**subject, "editor": editor, **others}


async def post(preview, handler, body):
    made = await routes.reply_to(handler, preview, "application/json", json.dumps(body).encode())
    return made.status, json.loads(made.body)


async def finished(preview, body):
    """Post until it is done; the answer, and every progress that was said."""
    said = []
    for _ in range(200):
        status, answer = await post(preview, routes.segments, body)
        if status != 202:
            return status, answer, said
        said.append(answer["progress"])
    raise AssertionError("it never came")


def test_the_segments_are_the_nodes_masks(comfy):
    status, answer, _ = asyncio.run(finished(Preview(), body_of()))
    assert status == 200 and (answer["width"], answer["height"]) == (160, 120) and answer["stamp"]
    (model,) = SAMModelLoader().load_model("samkit_demo.safetensors")
    image = torch.from_numpy(scene())[None].float() / 255
    masks, bboxes, scores, *_ = AutoMask().execute(model, image, preset="balanced")
    assert len(masks) == len(answer["segments"]) > 3
    for mask, box, score, segment in zip(masks.numpy() > 0, bboxes[0], scores, answer["segments"], strict=True):
        patch = parse_patch({key: segment[key] for key in ("x", "y", "width", "height", "runs")})
        full = np.zeros_like(mask)
        full[patch.y : patch.y + patch.height, patch.x : patch.x + patch.width] = patch.kinds() == 1
        assert (full == mask).all() and segment["area"] == mask.sum() and segment["score"] == pytest.approx(score, abs=1e-4)
        assert {key: segment[key] for key in ("x", "y", "width", "height")} == {
            key: box[key] for key in ("x", "y", "width", "height")
        }


def test_no_more_than_some_segments_are_sent(comfy, monkeypatch):
    monkeypatch.setattr(module, "MOST_SEGMENTS", 2)
    _, answer, _ = asyncio.run(finished(Preview(), body_of()))
    areas = [segment["area"] for segment in answer["segments"]]
    assert len(areas) == 2 and areas[0] >= areas[1], "the largest"


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"preset": "all"}, 400, "preset is 'all': choose one of few and large, balanced, many and small"),
        ({"preset": ["balanced"]}, 400, "choose one of few and large"),
        ({"editor": ""}, 400, "editor must be text"),
        ({"points_per_side": 4}, 400, "unknown key 'points_per_side'"),
        ({"image": {"filename": "none.png"}}, 404, "there is no image none.png"),
        ({"image": {"filename": "../a.png"}}, 400, "image.filename"),
        ({"image": {"filename": "a.png", "frame": 1}}, 404, "there is no frame 1"),
        ({"model": {"model_name": "none.pth"}}, 404, "there is no checkpoint none.pth"),
    ],
)
def test_what_is_no_request_is_refused(comfy, body, status, named):
    seen, answer, _ = asyncio.run(finished(Preview(), {**body_of(), **body}))
    assert seen == status and named in answer["error"]


class Work:
    """Work of some steps, each of which waits for a word."""

    def __init__(self, steps=3):
        self.steps, self.begun, self.ended, self.count = steps, threading.Event(), threading.Event(), 0
        self.go = threading.Semaphore(0)

    def __call__(self):
        self.count += 1
        try:
            progress = Progress(self.steps)
            for _ in range(self.steps):
                self.begun.set()
                assert self.go.acquire(timeout=20)
                Progress(7).advance(5)  # a part of the work
                progress.advance()
                progress.check_interrupted()
            return "done"
        finally:
            self.ended.set()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(preview_jobs, "_PAUSE", 0.02)


def test_work_is_begun_once_and_says_how_far_it_is(comfy, quick):
    async def follow():
        jobs, work = Jobs(), Work()
        said = []
        for _ in range(3):
            job = await jobs.ask("segments", "key", work, "one")
            assert isinstance(job, Job) and isinstance(await jobs.ask("segments", "key", work, "two"), Job)
            said.append((job.done, job.total))
            work.go.release()
            while job.done == said[-1][0] and not job.task.done():
                await asyncio.sleep(0.002)
        results = [await jobs.ask("segments", "key", work, editor) for editor in ("one", "two", "three")]
        return said, results, work.count

    assert asyncio.run(follow()) == ([(0, 3), (1, 3), (2, 3)], ["done"] * 3, 1)
    assert not comfy.bars, "the queue's bar does not move"


@pytest.mark.parametrize("others", [[], ["two"]])
def test_work_that_nobody_waits_for_ends(comfy, quick, others):
    async def leave():
        jobs, work = Jobs(), Work()
        for editor in ("one", *others):
            job = await jobs.ask("segments", "key", work, editor)
        jobs.leave("one", "segments")
        for _ in range(3):
            work.go.release()
        await asyncio.wait([job.task])
        return job.task.exception(), job.done, await jobs.ask("segments", "key", lambda: "again", "one")

    error, done, after = asyncio.run(leave())
    if others:
        assert error is None and after == "done"
    else:
        assert isinstance(error, RefusedError) and error.status == 409 and done == 1 and after == "again"


@pytest.mark.parametrize("cancelled", ["words", "segments"])
def test_a_cancel_ends_its_own_work_and_no_other(comfy, quick, cancelled):
    """An editor that waits for words and for segments at once: to leave one of them is not to leave both."""

    async def leave():
        jobs, work = Jobs(), Work(steps=1)
        job = await jobs.ask("segments", "key", work, "one")
        jobs.leave("one", cancelled)
        work.go.release()
        await asyncio.wait([job.task])
        return job.task.exception()

    error = asyncio.run(leave())
    assert (error is None) if cancelled == "words" else "Cancelled" in str(error)


class Held(dict):
    """Editors that wait, and those that did and were dropped."""

    lost = ()

    def pop(self, editor, *default):
        self.lost = (*self.lost, editor)
        return super().pop(editor, *default)


@pytest.mark.parametrize("others", [[], ["two"]])
def test_an_editor_that_asks_for_other_words_waits_for_them_only(comfy, quick, others):
    """The earlier ones end, unless another editor waits for them; what is asked for again goes on."""

    async def ask():
        jobs, earlier, later = Jobs(), Work(), Work(steps=1)
        for editor in ("one", *others, "one"):
            first = await jobs.ask("words", "cat", earlier, editor)
        assert "one" in first.waiting
        first.waiting = Held(first.waiting)
        await jobs.ask("words", "cat", earlier, "one")
        assert not first.waiting.lost, "the work would end in a moment in which nobody waits for it"
        await jobs.ask("segments", "all", Work(steps=0), "one")
        await jobs.ask("words", "dog", later, "one")
        for _ in range(3):
            earlier.go.release()
        later.go.release()
        await asyncio.wait([first.task])
        while isinstance(found := await jobs.ask("words", "dog", later, "one"), Job):
            pass
        return first.task.exception(), found, await jobs.ask("segments", "all", lambda: "again", "one")

    error, found, segments = asyncio.run(ask())
    assert (error is None) == bool(others) and found == "done" and segments == "done"


def test_an_editor_that_asks_no_more_waits_no_longer(comfy, quick, monkeypatch):
    monkeypatch.setattr(preview_jobs, "_PATIENCE", 0.0)

    async def forget():
        with pytest.raises(RefusedError, match="Cancelled"):
            await Jobs().ask("segments", "key", lambda: "done", "one")

    asyncio.run(forget())


def test_a_run_ends_the_work_and_the_next_request_begins_it_again(comfy, quick):
    async def run():
        jobs, work = Jobs(), Work(steps=1)
        job = await jobs.ask("segments", "key", work, "one")
        comfy.running["1"] = "a prompt"
        work.go.release()
        await asyncio.wait([job.task])
        for _ in range(2):
            with pytest.raises(RefusedError) as refusal:
                await jobs.ask("segments", "key", work, "one")
            assert refusal.value.status == 503
        comfy.running.clear()
        work.go.release()
        while isinstance(found := await jobs.ask("segments", "key", work, "one"), Job):
            pass
        return found, work.count

    assert asyncio.run(run()) == ("done", 2)


def test_results_that_are_old_are_forgotten(comfy):
    async def many():
        jobs, made = Jobs(), []
        for number in (*range(9), 0):
            await jobs.ask("segments", number, lambda number=number: made.append(number) or number, "one")
        return made, len(jobs._jobs)

    made, left = asyncio.run(many())
    assert made == [*range(9), 0] and left == preview_jobs._CACHED


def test_cancel_is_a_route(comfy, quick, monkeypatch):
    async def cancel():
        preview, work = Preview(), Work()
        monkeypatch.setattr(routes, "everything", lambda *_: ("key", work))
        status, answer = await post(preview, routes.segments, body_of())
        assert (status, answer) == (202, {"progress": 0.0})
        assert await post(preview, routes.leave, {"editor": "one", "work": "words"}) == (200, {})
        assert (await post(preview, routes.segments, body_of()))[0] == 202
        assert (await post(preview, routes.leave, {"editor": "one", "work": "x"}))[0] == 400
        assert (await post(preview, routes.leave, {"editor": "one"}))[0] == 400, "it says which work it ends"
        assert await post(preview, routes.leave, {"editor": "one", "work": "segments"}) == (200, {})
        work.go.release()
        await asyncio.get_running_loop().run_in_executor(None, work.ended.wait, 20)
        return (await post(preview, routes.leave, {"editor": 5}))[0], (await post(preview, routes.leave, {"x": 5}))[0]

    assert asyncio.run(cancel()) == (400, 400)


def test_the_watch_follows_the_whole_work_only():
    watch = Watch()
    with quietly(watch):
        whole = Progress(4)
        part = Progress(10)
        part.advance(10)
        whole.advance(3)
    assert (watch.done, watch.total) == (3, 4)
    Progress(9).advance(9)
    assert (watch.done, watch.total) == (3, 4), "what comes after is not watched"


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (40, 30), (200, 20000)])
def test_runs_are_read_as_they_were_written(shape):
    rng = np.random.default_rng(0)
    for kinds in (np.ones(shape, bool), np.zeros(shape, bool), rng.random(shape) < 0.01, rng.integers(0, 3, shape)):
        patch = {"x": 0, "y": 0, "width": shape[1], "height": shape[0], "runs": encode_runs(kinds)}
        if len(patch["runs"]) < 1 << 20:
            assert (parse_patch(patch).kinds() == kinds).all()

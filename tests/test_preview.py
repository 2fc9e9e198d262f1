"""The live preview's engine, by asyncio and without a server: what is asked at once, what is refused, what is kept."""

import asyncio
import base64
import gc
import io
import json
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from PIL import Image
from samkit.nodes.editor import preview as module
from samkit.nodes.editor import routes
from samkit.nodes.editor.preview import Preview, RefusedError, parse_question, parse_subject
from samkit.nodes.prompt_editor import PromptEditor
from samkit.sam import SAMError, remember

IMAGES = ("a.png", "b.png", "c.png")
MARKS = [{"x": 30, "y": 25, "label": 1}, {"x": 60, "y": 40, "label": 0}]


@pytest.fixture
def comfy(monkeypatch, tmp_path, tiny_sam):
    """A ComfyUI with two checkpoints, images a to c, and a film of three frames."""
    for folder in ("input", "temp", "models/sams"):
        (tmp_path / folder).mkdir(parents=True)
    for seed, name in enumerate("abc"):
        Image.fromarray(make_image(60, 80, seed)).save(tmp_path / "input" / f"{name}.png")
    first, *others = (Image.fromarray(make_image(60, 80, seed)) for seed in range(3))
    first.save(tmp_path / "input" / "three.gif", save_all=True, append_images=others)
    (tmp_path / "input" / "broken.png").write_bytes((tmp_path / "input" / "a.png").read_bytes()[:200])
    state = tiny_sam.state_dict()
    torch.save(state, tmp_path / "models" / "sams" / "tiny.pth")
    torch.save({name: value + 0.01 for name, value in state.items()}, tmp_path / "models" / "sams" / "other.pth")
    (tmp_path / "models" / "sams" / "broken.pth").write_bytes(b"nothing")
    return install(monkeypatch, FakeComfyUI(tmp_path))


class Encoder:
    """`encode` that counts, and waits where it is told to."""

    def __init__(self, real):
        self.real, self.count, self.running, self.most = real, 0, 0, 0
        self.go, self.begun, self.failure = threading.Event(), threading.Event(), None
        self.go.set()

    def __call__(self, *args):
        self.count, self.running = self.count + 1, self.running + 1
        self.most = max(self.most, self.running)
        self.begun.set()
        try:
            assert self.go.wait(20)
            if self.failure is not None:
                raise self.failure
            return self.real(*args)
        finally:
            self.running -= 1


@pytest.fixture
def encoder(monkeypatch):
    counted = Encoder(module.ReadyImage)
    monkeypatch.setattr(module, "ReadyImage", counted)
    yield counted
    counted.go.set()


@pytest.fixture
def decoded(monkeypatch):
    """The prompts that were decoded, in order."""
    seen, real = [], module.segment_marks

    def segment_marks(image, marked):
        seen.append(marked.prompts)
        return real(image, marked)

    monkeypatch.setattr(module, "segment_marks", segment_marks)
    return seen


def subject_of(image="a.png", model="tiny.pth", **others):
    return {"image": {"filename": image, **others}, "model": {"model_name": model}}


def subject(image="a.png", model="tiny.pth", **others):
    return parse_subject(subject_of(image, model, **others))


def question(sequence=1, marks=MARKS, editor="one", **others):
    body = {**subject_of(**others), "prompts": {"marks": marks}, "editor": editor, "sequence": sequence}
    return parse_question(body)


async def outcome(work):
    """The status of a refusal, or the answer."""
    try:
        return await work
    except RefusedError as refusal:
        return refusal.status


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def test_one_encode_per_image_however_many_ask_at_once(comfy, encoder):
    async def many():
        preview = Preview()
        asked = [preview.prepare(subject()) for _ in range(30)]
        asked += [preview.ask(question(1, editor=str(editor))) for editor in range(20)]
        return await asyncio.gather(*asked)

    prepared = asyncio.run(many())
    assert encoder.count == 1 and len(comfy.images_loaded) == 1
    assert all(one is prepared[0] for one in prepared[:30])
    assert len({answer.file for answer in prepared[30:]}) == 1


def test_images_are_encoded_one_at_a_time(comfy, encoder):
    async def three():
        preview = Preview()
        await asyncio.gather(*(preview.prepare(subject(f"{name}.png")) for name in "abc"))

    asyncio.run(three())
    assert (encoder.count, encoder.most) == (3, 1)


def test_who_goes_away_does_not_end_it_for_the_others(comfy, encoder):
    async def two():
        preview = Preview()
        encoder.go.clear()
        first = asyncio.create_task(preview.prepare(subject()))
        second = asyncio.create_task(preview.prepare(subject()))
        await until(encoder.begun.is_set)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        encoder.go.set()
        return await second

    assert asyncio.run(two()).frames == 1 and encoder.count == 1


def test_an_image_that_nobody_waits_for_any_more_is_still_kept(comfy, encoder):
    async def alone():
        preview = Preview()
        encoder.go.clear()
        asked = asyncio.create_task(preview.prepare(subject()))
        await until(encoder.begun.is_set)
        asked.cancel()
        encoder.go.set()
        await preview.prepare(subject())

    asyncio.run(alone())
    assert encoder.count == 1


def test_a_failure_is_forgotten_so_that_the_next_try_works(comfy, encoder, caplog):
    async def twice():
        preview = Preview()
        encoder.failure = RuntimeError("CUDA out of memory")
        both = await asyncio.gather(outcome(preview.prepare(subject())), outcome(preview.ask(question())))
        encoder.failure, failed = None, encoder.count
        return both, failed, await preview.prepare(subject())

    both, failed, prepared = asyncio.run(twice())
    assert both == [500, 500] and prepared.frames == 1 and encoder.count == failed + 1
    assert "CUDA out of memory" in caplog.text


def test_an_image_that_changed_is_encoded_again(comfy, encoder):
    async def twice():
        preview = Preview()
        await preview.prepare(subject())
        Image.fromarray(make_image(50, 70)).save(comfy.root / "input" / "a.png")
        return await preview.prepare(subject())

    assert asyncio.run(twice()).image.size == (50, 70) and encoder.count == 2


def test_the_loop_stays_free_while_an_image_is_encoded(comfy, encoder):
    async def beside():
        preview = Preview()
        encoder.go.clear()
        asked = asyncio.create_task(preview.prepare(subject()))
        await until(encoder.begun.is_set)
        longest, before = 0.0, time.perf_counter()
        for _ in range(40):
            await asyncio.to_thread(time.perf_counter)  # there and back, past the thread that encodes
            now = time.perf_counter()
            longest, before = max(longest, now - before), now
        assert not asked.done()
        encoder.go.set()
        await asked
        return longest

    assert asyncio.run(beside()) < 1


def test_an_old_question_is_refused_and_never_decoded_nor_encoded(comfy, encoder, decoded):
    async def in_turn():
        preview = Preview()
        newest = await preview.ask(question(5))
        old = await outcome(preview.ask(question(4, image="b.png")))
        again = await preview.ask(question(5))
        other = await preview.ask(question(1, editor="two"))
        return newest, old, again, other

    newest, old, again, other = asyncio.run(in_turn())
    assert old == 409 and newest.file == again.file == other.file
    assert len(decoded) == 3 and encoder.count == 1


def test_of_many_questions_only_the_newest_is_decoded(comfy, encoder, decoded):
    async def at_once():
        preview = Preview()
        encoder.go.clear()
        asked = [asyncio.create_task(outcome(preview.ask(question(n, [{"x": n, "y": 9, "label": 1}])))) for n in range(50)]
        await until(encoder.begun.is_set)
        encoder.go.set()
        return await asyncio.gather(*asked)

    *old, newest = asyncio.run(at_once())
    assert old == [409] * 49 and newest.file
    assert [prompts.marks[0]["x"] for prompts in decoded] == [49]


def test_a_question_that_grew_old_while_another_is_decoded_is_dropped(comfy, decoded, monkeypatch):
    go, begun, real = threading.Event(), threading.Event(), module.segment_marks

    def slowly(*args):
        begun.set()
        assert go.wait(20)
        return real(*args)

    async def three():
        preview = Preview()
        await preview.prepare(subject())
        monkeypatch.setattr(module, "segment_marks", slowly)
        first = asyncio.create_task(outcome(preview.ask(question(1))))
        await until(begun.is_set)
        second = asyncio.create_task(outcome(preview.ask(question(2))))
        await until(lambda: preview._decoding._work_queue.qsize() == 1)
        third = asyncio.create_task(outcome(preview.ask(question(3))))
        await until(lambda: preview._newest["one"] == 3)
        assert not second.done(), "one decode at a time"
        go.set()
        return await asyncio.gather(first, second, third)

    first, second, third = asyncio.run(three())
    assert second == 409 and third.file and len(decoded) == 2


def test_while_a_prompt_runs_the_preview_waits(comfy, encoder, decoded):
    async def refused():
        preview = Preview()
        comfy.running["1"] = "a prompt"
        new = await outcome(preview.prepare(subject()))
        comfy.running.clear()
        await preview.prepare(subject())
        comfy.running["1"] = "a prompt"
        known = await preview.prepare(subject())
        asked = await outcome(preview.ask(question()))
        comfy.running.clear()
        return new, known.frames, asked, await preview.ask(question())

    new, frames, asked, answer = asyncio.run(refused())
    assert (new, frames, asked) == (503, 1, 503) and answer.file
    assert encoder.count == len(decoded) == 1


def test_work_that_was_queued_before_a_run_does_not_start_during_it(comfy, encoder, decoded):
    """Three are queued while ComfyUI is idle, and a run begins during the first: it may need the memory."""

    async def three():
        preview = Preview()
        encoder.go.clear()
        asked = [asyncio.create_task(outcome(preview.prepare(subject(image)))) for image in IMAGES]
        await until(lambda: encoder.begun.is_set() and len(preview._prepared) == 3)
        comfy.running["1"] = "a prompt"
        encoder.go.set()
        return await asyncio.gather(*asked)

    answers = asyncio.run(three())
    assert encoder.count == 1 and answers.count(503) == len(answers) - 1


def test_a_question_that_was_queued_before_a_run_is_not_decoded_during_it(comfy, decoded, monkeypatch):
    go, begun, real = threading.Event(), threading.Event(), module.segment_marks

    def slowly(*args):
        begun.set()
        assert go.wait(20)
        return real(*args)

    async def two():
        preview = Preview()
        await preview.prepare(subject())
        monkeypatch.setattr(module, "segment_marks", slowly)
        first = asyncio.create_task(outcome(preview.ask(question(1, editor="one"))))
        await until(begun.is_set)  # or the second might be decoded first
        second = asyncio.create_task(outcome(preview.ask(question(1, editor="two"))))
        await until(lambda: preview._decoding._work_queue.qsize() == 1)
        comfy.running["1"] = "a prompt"
        go.set()
        return await asyncio.gather(first, second)

    first, second = asyncio.run(two())
    assert first.file and second == 503 and len(decoded) == 1


@pytest.mark.parametrize("mode", ["1", "L"])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(comfy, mode):
    """A file of some kilobytes: 144 million pixels, which as an IMAGE tensor are almost two gigabytes."""
    Image.new(mode, (12_000, 12_000)).save(comfy.root / "input" / "large.png")
    assert (comfy.root / "input" / "large.png").stat().st_size < 200_000
    assert asyncio.run(outcome(Preview().prepare(subject("large.png")))) == 413 and not comfy.images_loaded
    Image.new("1", (20_000, 20_000)).save(comfy.root / "input" / "bomb.png")  # PIL refuses to open it
    assert asyncio.run(outcome(Preview().prepare(subject("bomb.png")))) == 413


def test_the_pixels_of_all_frames_are_counted(comfy, monkeypatch):
    monkeypatch.setattr(module, "_MOST_PIXELS", 2 * 60 * 80)
    assert asyncio.run(outcome(Preview().prepare(subject("three.gif")))) == 413
    assert asyncio.run(Preview().prepare(subject("a.png"))).frames == 1


def test_an_answer_tells_the_images_content(comfy):
    async def stamps():
        preview = Preview()
        first = await preview.ask(question(1))
        same = await preview.ask(question(2))
        Image.fromarray(make_image(60, 80, 9)).save(comfy.root / "input" / "a.png")
        return first.stamp, same.stamp, (await preview.ask(question(3))).stamp, (await preview.prepare(subject())).stamp

    first, same, changed, prepared = asyncio.run(stamps())
    assert first == same != changed == prepared


TWO = {
    "version": 2,
    "objects": [
        {"marks": MARKS, "colour": "#ff0000", "candidate": "smallest"},
        {"marks": [{"x": 10, "y": 5, "width": 40, "height": 30}], "colour": "#00ff00"},
    ],
}


def masks_in(png):
    return np.array(Image.open(io.BytesIO(png)).convert("RGBA"))[..., 3] > 0


def test_each_object_is_previewed_on_its_own_as_the_node_gives_it(comfy):
    async def ask():
        preview = Preview()
        bodies = [{**subject_of(), "prompts": TWO, "editor": "one", "sequence": n} for n in range(3)]
        for body, only in zip(bodies, (0, 1, None), strict=True):
            body["object"] = only
        return [await preview.ask(parse_question(body)) for body in bodies], (await preview.prepare(subject())).model

    (first, second, both), model = asyncio.run(ask())
    image = as_image(make_image(60, 80))
    with torch.inference_mode():
        masks = PromptEditor().execute(image, json.dumps(TWO), model, individual_masks=True)["result"][3].numpy() > 0
    assert (masks_in(first.file) == masks[0]).all() and (masks_in(second.file) == masks[1]).all()
    assert (masks_in(both.file) == masks.any(0)).all() and masks[0].any() and masks[1].any()
    for answer, colour in ((first, (255, 0, 0)), (second, (0, 255, 0))):
        assert (np.array(Image.open(io.BytesIO(answer.file)).convert("RGB"))[masks_in(answer.file)] == colour).all()


def test_candidates_are_those_that_the_node_would_give(comfy):
    status, said = reply(routes.choices, json.dumps({**subject_of(), "prompts": TWO, "object": 0}))
    assert status == 200 and [one["candidate"] for one in said["candidates"]] == ["smallest", "middle", "largest"]
    model = asyncio.run(Preview().prepare(subject())).model
    for one in said["candidates"]:
        prompts = {"version": 2, "objects": [{**TWO["objects"][0], "candidate": one["candidate"]}, TWO["objects"][1]]}
        with torch.inference_mode():
            answer = PromptEditor().execute(as_image(make_image(60, 80)), json.dumps(prompts), model, individual_masks=True)
        assert one["area"] == int(answer["result"][3][0].sum())
        small = Image.open(io.BytesIO(base64.b64decode(one["png"])))
        assert max(small.size) <= 96 and small.size[0] > small.size[1]


@pytest.mark.parametrize(
    ("host", "origin", "listen", "foreign"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188", "127.0.0.1", False),
        ("localhost:8188", "http://localhost:8188", "127.0.0.1", False),
        ("[::1]:8188", "http://[::1]:8188", "127.0.0.1,::1", False),
        ("comfy.localhost:8188", "", "localhost", False),
        ("evil.example:8188", "http://evil.example:8188", "127.0.0.1", True),
        ("evil.example:8188", "", "127.0.0.1", True),
        ("127.0.0.1.evil.example", "http://127.0.0.1.evil.example", "127.0.0.1", True),
        ("", "", "127.0.0.1", True),
        ("mine.trycloudflare.com", "https://mine.trycloudflare.com", "127.0.0.1", False),
        ("studio.lan:8188", "http://studio.lan:8188", "0.0.0.0,::", False),
        ("studio.lan:8188", "http://studio.lan:8188", "127.0.0.1,192.168.1.5", False),
    ],
)
def test_a_name_that_a_local_server_does_not_have_is_foreign(host, origin, listen, foreign):
    """DNS rebinding: the page's own name leads to 127.0.0.1, and its origin agrees with its host."""
    assert routes.is_foreign(host, origin, listen) is foreign


@pytest.mark.parametrize("name", ["SAM Kit (1)", "samkit [new]", "Bilder-für-mich", "50%"])
def test_a_folder_that_comfyui_cannot_serve_is_warned_of_and_its_scripts_get_another_address(name, caplog):
    folders = {name: "/somewhere/else"}
    routes.serve_scripts(Path("/somewhere") / name, folders)
    (record,) = caplog.records
    assert name in record.getMessage() and "Rename the folder to samkit" in record.getMessage()
    assert folders == {name: "/somewhere/else", routes.SCRIPTS: str(Path("/somewhere") / name / "web")}


@pytest.mark.parametrize("name", ["samkit", "comfyui-samkit", "ComfyUI_SAM-Kit.v1~2"])
def test_other_folders_are_left_alone(name, caplog):
    folders = {}
    routes.serve_scripts(Path("/somewhere") / name, folders)
    assert not caplog.records and not folders


def test_a_prompt_that_starts_during_the_encode_is_seen(comfy, encoder, decoded):
    async def starts():
        preview = Preview()
        encoder.go.clear()
        asked = asyncio.create_task(outcome(preview.ask(question())))
        await until(encoder.begun.is_set)
        comfy.running["1"] = "a prompt"
        encoder.go.set()
        return await asked

    assert asyncio.run(starts()) == 503 and not decoded


@pytest.mark.parametrize(
    "asked",
    [
        {"image": "missing.png"},
        {"image": "broken.png"},
        {"image": "a.png", "subfolder": "nowhere"},
        {"image": "a.png", "type": "temp"},
        {"image": "a.png", "frame": 1},
        {"image": "three.gif", "frame": 3},
        {"model": "missing.pth"},
        {"model": "sub/tiny.pth"},
    ],
)
def test_what_is_unknown_is_404(comfy, asked):
    preview = Preview()
    assert asyncio.run(outcome(preview.prepare(subject(**asked)))) == 404
    assert not preview._prepared, "and is not remembered"


def test_an_absent_checkpoint_that_a_run_downloads_is_said_with_its_size(comfy):
    name = "sam_vit_h_4b8939.pth"
    with pytest.raises(RefusedError, match=r"sam_vit_h_4b8939\.pth \(2,565 MB\)") as caught:
        asyncio.run(Preview().prepare(subject(model=name)))
    assert caught.value.status == 404 and caught.value.missing == name


@pytest.mark.parametrize("error", [EOFError(), SyntaxError(), RuntimeError(), KeyError(3), struct.error(), zlib.error()])
def test_whatever_a_damaged_image_makes_its_reader_say_is_404(comfy, monkeypatch, error):
    def load_image_file(*names):
        raise error

    monkeypatch.setattr(module, "load_image_file", load_image_file)
    assert asyncio.run(outcome(Preview().prepare(subject()))) == 404


def test_an_error_says_no_path_of_the_machine(comfy):
    for asked in ({"image": "broken.png"}, {"image": "missing.png"}, {"model": "missing.pth"}):
        with pytest.raises(RefusedError) as caught:
            asyncio.run(Preview().prepare(subject(**asked)))
        assert str(comfy.root) not in str(caught.value)


def test_a_damaged_checkpoint_is_said_in_words(comfy):
    with pytest.raises(SAMError, match=r"broken\.pth"):
        asyncio.run(Preview().prepare(subject(model="broken.pth")))


def test_a_file_that_goes_between_two_looks_is_404(comfy, monkeypatch):
    monkeypatch.setattr(module, "image_path", lambda *names: comfy.root / "input" / "gone.png")
    assert asyncio.run(outcome(Preview().prepare(subject()))) == 404


def test_a_model_of_a_run_is_found_by_its_identity(comfy, tiny_model, encoder):
    body = subject_of()
    body["model"] = {"identity": remember(tiny_model)}

    async def ask():
        return await Preview().prepare(parse_subject(body))

    assert asyncio.run(ask()).model is tiny_model
    body["model"] = {"identity": "of none"}
    assert asyncio.run(outcome(Preview().prepare(parse_subject(body)))) == 404


def test_only_one_models_images_are_held(comfy):
    async def two_models():
        preview = Preview()
        for name in "abc":
            await preview.prepare(subject(f"{name}.png"))
        models = {id((await task).model) for task in preview._prepared.values()}
        assert (len(preview._prepared), len(models)) == (3, 1)
        await preview.prepare(subject("a.png", "other.pth"))
        (held,) = preview._prepared.values()
        return preview, (await held).model.checkpoint.name

    preview, name = asyncio.run(two_models())
    gc.collect()
    assert name == "other.pth" and len(preview._prepared) == 1


def test_the_images_and_editors_that_are_held_are_bounded(comfy, monkeypatch):
    monkeypatch.setattr(module, "_PREPARED", 2)
    monkeypatch.setattr(module, "_EDITORS", 3)

    async def many():
        preview = Preview()
        for name in "abac":  # a was wanted last when c came
            await preview.prepare(subject(f"{name}.png"))
        kept = [key.image[0].name for key in preview._prepared]
        for editor in range(5):
            await preview.ask(question(7, editor=str(editor)))
        return kept, list(preview._newest)

    assert asyncio.run(many()) == (["a.png", "c.png"], ["2", "3", "4"])


@pytest.mark.parametrize("marks", [MARKS, MARKS[:1], [{"x": 9, "y": 5, "width": 50, "height": 40}], []])
@pytest.mark.parametrize("candidate", ["best", "smallest", "largest"])
def test_the_preview_is_the_nodes_own_mask(comfy, marks, candidate):
    body = {**subject_of(), "prompts": {"marks": marks, "candidate": candidate}, "editor": "one", "sequence": 0}

    async def ask():
        preview = Preview()
        return await preview.ask(parse_question(body)), (await preview.prepare(subject())).model

    answer, model = asyncio.run(ask())
    with torch.inference_mode():
        image = as_image(make_image(60, 80))
        mask = PromptEditor().execute(image, json.dumps(body["prompts"]), model)["result"][3][0].numpy() > 0
    seen = np.array(Image.open(io.BytesIO(answer.file)).convert("RGBA"))[..., 3] > 0
    assert (seen == mask).all() and answer.area == mask.sum() and answer.milliseconds > 0
    assert (answer.score != 0) == bool(marks)


def test_what_a_run_left_in_the_caches_serves_the_preview(comfy, encoder):
    """ComfyUI runs nodes in inference mode; what was made there must not trip the preview's thread, nor the other way."""

    async def ask():
        return await Preview().ask(question())

    answers = [asyncio.run(ask())]
    from samkit.sam.models.features import cache as shared
    from samkit.sam.tasks.embed import cache

    cache.clear()
    shared.clear()
    with torch.inference_mode():
        from samkit.sam import load_shared

        model = load_shared(comfy.root / "models" / "sams" / "tiny.pth")
        masks = PromptEditor().execute(as_image(make_image(60, 80)), json.dumps({"marks": MARKS}), model)["result"][3]
    answers.append(asyncio.run(ask()))
    assert answers[0].file == answers[1].file and answers[0].area == masks.sum()


def test_each_frame_has_its_own_marks(comfy):
    marks = [{**MARKS[0], "frame": 0}, {"x": 50, "y": 30, "label": 1, "frame": 2}]

    async def ask():
        preview = Preview()
        asked = [preview.ask(question(0, marks, str(n), image="three.gif", frame=n)) for n in range(3)]
        return await asyncio.gather(*asked), (await preview.prepare(subject("three.gif", frame=2))).frames

    answers, frames = asyncio.run(ask())
    assert frames == 3 and [answer.score == 0 for answer in answers] == [False, True, False]
    assert answers[1].area == 0 and answers[0].file != answers[2].file


def test_each_frame_is_an_image_of_its_own(comfy, encoder):
    async def ask():
        preview = Preview()
        frames = [await preview.prepare(subject("three.gif", frame=n)) for n in (0, 1, 2, 0)]
        return [frame.image.key for frame in frames]

    first, second, third, again = asyncio.run(ask())
    assert first == again and len({*map(str, (first, second, third))}) == 3 and encoder.count == 3


def test_the_preview_leaves_bar_and_cancel_to_the_queue(comfy):
    comfy.interrupted_after = 0

    async def ask():
        return await Preview().ask(question())

    assert asyncio.run(ask()).file and not comfy.bars and comfy.interrupted_after == 0


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("image", None, "image"),
        ("image", "a.png", "image"),
        ("image", {}, "image.filename"),
        ("image", {"filename": 1}, "image.filename"),
        ("image", {"filename": ""}, "image.filename"),
        ("image", {"filename": "x" * 513}, "image.filename"),
        ("image", {"filename": "a\0.png"}, "image.filename"),
        ("image", {"filename": ".."}, "image.filename"),
        ("image", {"filename": "../a.png"}, "image.filename"),
        ("image", {"filename": "sub/a.png"}, "image.filename"),
        ("image", {"filename": "\\\\host\\a.png"}, "image.filename"),
        ("image", {"filename": "C:a.png"}, "image.filename"),
        ("image", {"filename": "a.png", "subfolder": None}, "image.subfolder"),
        ("image", {"filename": "a.png", "subfolder": "/etc"}, "image.subfolder"),
        ("image", {"filename": "a.png", "subfolder": "sub/../.."}, "image.subfolder"),
        ("image", {"filename": "a.png", "subfolder": "sub\\..\\.."}, "image.subfolder"),
        ("image", {"filename": "a.png", "subfolder": "sub/"}, "image.subfolder"),
        ("image", {"filename": "a.png", "subfolder": "/".join("a" * 17)}, "image.subfolder"),
        ("image", {"filename": "a.png", "subfolder": "C:/"}, "image.subfolder"),
        ("image", {"filename": "a.png", "type": "models"}, "image.type"),
        ("image", {"filename": "a.png", "type": ["input"]}, "image.type"),
        ("image", {"filename": "a.png", "frame": -1}, "image.frame"),
        ("image", {"filename": "a.png", "frame": 1.0}, "image.frame"),
        ("image", {"filename": "a.png", "frame": True}, "image.frame"),
        ("image", {"filename": "a.png", "frame": "1"}, "image.frame"),
        ("image", {"filename": "a.png", "frame": 1 << 20}, "image.frame"),
        ("image", {"filename": "a.png", "path": "x"}, "image has an unknown key 'path'"),
        ("model", None, "model"),
        ("model", [], "model"),
        ("model", {}, "model must have either"),
        ("model", {"model_name": "tiny.pth", "identity": "x"}, "model must have either"),
        ("model", {"model_name": 3}, "model.model_name"),
        ("model", {"model_name": ""}, "model.model_name"),
        ("model", {"model_name": "../../input/a.png"}, "model.model_name"),
        ("model", {"model_name": "/etc/passwd"}, "model.model_name"),
        ("model", {"model_name": "sub\\..\\..\\x.pth"}, "model.model_name"),
        ("model", {"identity": None}, "model.identity"),
        ("model", {"identity": "x" * 513}, "model.identity"),
        ("model", {"model_name": "tiny.pth", "precision": "fp8"}, "model.precision"),
        ("model", {"model_name": "tiny.pth", "precision": None}, "model.precision"),
        ("model", {"model_name": "tiny.pth", "device": "cpu"}, "model has an unknown key 'device'"),
        ("prompts", None, "prompts"),
        ("prompts", {"marks": [{"x": "a", "y": 1, "label": 1}]}, "prompts.marks"),
        ("object", 1, "object is 1, but prompts has 0 objects"),
        ("object", -1, "object"),
        ("object", "0", "object"),
        ("editor", None, "editor"),
        ("editor", "", "editor"),
        ("editor", 3, "editor"),
        ("editor", "x" * 513, "editor"),
        ("sequence", -1, "sequence"),
        ("sequence", 1.5, "sequence"),
        ("sequence", False, "sequence"),
        ("sequence", "1", "sequence"),
        ("sequence", 1 << 53, "sequence"),
        ("extra", 1, "the body has an unknown key 'extra'"),
    ],
)
def test_a_wrong_field_is_named(comfy, part, value, named):
    body = {**subject_of(), "prompts": {}, "editor": "one", "sequence": 0, part: value}
    status, said = reply(routes.ask, json.dumps(body))
    assert status == 400 and named in said["error"] and len(said["error"]) < 300
    if part in ("image", "model"):
        status, said = reply(routes.prepare, json.dumps({**subject_of(), part: value}))
        assert status == 400 and named in said["error"]
    assert not comfy.images_loaded


def reply(handler, body, content_type="application/json", preview=None):
    """The status of an answer, and what it says where it is JSON."""
    encoded = body.encode() if isinstance(body, str) else body
    made = asyncio.run(routes.reply_to(handler, preview or Preview(), content_type, encoded))
    return made.status, json.loads(made.body) if made.content_type == "application/json" else made


def test_prepare_says_what_it_found(comfy):
    status, said = reply(routes.prepare, json.dumps(subject_of("three.gif")))
    assert status == 200 and said.pop("seconds") > 0 and said.pop("stamp") and said == {"width": 80, "height": 60, "frames": 3}


def test_a_preview_is_a_png_with_its_figures_in_headers(comfy):
    body = {**subject_of(), "prompts": {"marks": MARKS}, "editor": "one", "sequence": 12}
    status, made = reply(routes.ask, json.dumps(body))
    assert status == 200 and made.content_type == "image/png" and Image.open(io.BytesIO(made.body)).size == (80, 60)
    assert made.headers["X-SAMKit-Sequence"] == "12" and made.headers["Cache-Control"] == "no-store"
    mask = np.array(Image.open(io.BytesIO(made.body)).convert("RGBA"))[..., 3] > 0
    assert int(made.headers["X-SAMKit-Area"]) == mask.sum() > 0
    assert float(made.headers["X-SAMKit-Score"]) and float(made.headers["X-SAMKit-Milliseconds"]) > 0


def test_prompts_may_be_the_widgets_text_as_it_is(comfy):
    body = {**subject_of(), "prompts": json.dumps({"marks": MARKS}), "editor": "one", "sequence": 0}
    assert reply(routes.ask, json.dumps(body))[0] == 200


@pytest.mark.parametrize("handler", list(routes.ROUTES.values()), ids=list(routes.ROUTES))
@pytest.mark.parametrize(
    ("body", "content_type", "status", "named"),
    [
        (None, "application/json", 413, "bytes"),
        ("{}", "text/plain", 400, "Content-Type is 'text/plain'"),
        ("{}", "", 400, "Content-Type is ''"),
        ("{}", "application/x-www-form-urlencoded", 400, "Content-Type"),
        ("", "application/json", 400, "not JSON"),
        ("{", "application/json", 400, "not JSON"),
        (b"\xff\xfe\xfa", "application/json", 400, "not JSON"),
        ("[" * 100_000, "application/json", 400, "not JSON"),
        ("9" * 100_000, "application/json", 400, "not JSON"),
        ("[]", "application/json", 400, "object"),
        ("null", "application/json", 400, "object"),
        ('"text"', "application/json", 400, "object"),
        ('{"sequences": 1}', "application/json", 400, "unknown key 'sequences'"),
        ("{}", "application/json", 400, " is "),
    ],
)
def test_what_is_no_request_is_refused(comfy, handler, body, content_type, status, named):
    seen, said = reply(handler, body, content_type)
    assert seen == status and named in said["error"]


@pytest.mark.parametrize("place", ["prompts", "marks", "x", "frame", "candidate", "type", "sequence"])
def test_values_nested_as_deep_as_json_goes_are_refused(comfy, place):
    for depth in (10, 200, 900, *range(930, 1000, 3)):
        deep = "[" * depth + "]" * depth
        fields = {name: deep if name == place else "0" for name in ("x", "frame", "sequence")}
        mark = f'{{"x": {fields["x"]}, "y": 1, "label": 1, "frame": {fields["frame"]}}}'
        marks = deep if place == "marks" else f"[{mark}]"
        prompts = f'{{"marks": {marks}, "candidate": {deep if place == "candidate" else chr(34) + "best" + chr(34)}}}'
        image = f'{{"filename": "a.png", "type": {deep if place == "type" else chr(34) + "input" + chr(34)}}}'
        body = (
            f'{{"image": {image}, "model": {{"model_name": "tiny.pth"}}, "editor": "one",'
            f' "prompts": {deep if place == "prompts" else prompts}, "sequence": {fields["sequence"]}}}'
        )
        assert reply(routes.ask, body)[0] == 400, depth


def test_refusals_have_their_status_and_say_why(comfy):
    preview = Preview()

    def ask(sequence, **others):
        body = {**subject_of(**others), "prompts": {}, "editor": "one", "sequence": sequence}
        status, said = reply(routes.ask, json.dumps(body), preview=preview)
        return status, said["error"] if isinstance(said, dict) else ""

    assert ask(1)[0] == 200
    assert ask(0) == (409, "Superseded by a newer request of this editor.")
    assert ask(2, image="none.png") == (404, "there is no image none.png in ComfyUI's input folder.")
    assert ask(3, model="broken.pth")[0] == 400
    comfy.running["1"] = "a prompt"
    status, said = ask(4)
    assert status == 503 and "running a prompt" in said


def test_where_there_is_no_server_no_route_is_added(comfy):
    server = __import__("sys").modules["server"].PromptServer
    server.instance = None
    routes.register_routes()


def test_a_body_that_turns_out_too_large_is_not_read_to_its_end():
    class Content:
        read = 0

        async def iter_any(self):
            for _ in range(1000):
                Content.read += 1
                yield b"x" * 8192

    request = type("Request", (), {"content": Content()})
    assert asyncio.run(routes._read(request)) is None and Content.read <= routes.MOST_BYTES // 8192 + 1

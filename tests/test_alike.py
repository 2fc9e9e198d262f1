"""Find all like this: what resembles an object that is marked, as SAM Personalize compares it, on the server's side."""

import asyncio
import json
import threading

import numpy as np
import pytest
import torch
from fakes import FakeComfyUI, install
from PIL import Image, ImageDraw
from samkit.nodes.editor import alike as module
from samkit.nodes.editor import everything as everything_module
from samkit.nodes.editor import preview as preview_module
from samkit.nodes.editor import routes
from samkit.nodes.editor.preview import Preview
from samkit.sam import Cutout, PredictOptions, ReadyImage, SAMError, example_of, resemblances
from samkit.sam.tasks import personalize
from samkit.sam.tasks.personalize import PersonalizeOptions
from samkit.utils.patches import ADD, encode_runs, parse_patch

SIZE = (480, 640)
DISCS = [(80, 90), (230, 110), (390, 80), (540, 120), (120, 380)]
SQUARES = [(300, 260), (470, 300), (330, 400), (540, 420)]
RADIUS = 38


def drawn(discs=DISCS, squares=SQUARES):
    """Red discs and blue squares on a gray ground with grain, and the mask of each."""
    rng = np.random.default_rng(5)
    image = Image.new("RGB", SIZE[::-1], (150, 150, 145))
    draw, masks = ImageDraw.Draw(image), []
    for kind, places in (("disc", discs), ("square", squares)):
        for x, y in places:
            mask = Image.new("1", SIZE[::-1])
            shape = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
            for canvas, ink in ((draw, (200, 50, 45) if kind == "disc" else (50, 70, 190)), (ImageDraw.Draw(mask), 1)):
                (canvas.ellipse if kind == "disc" else canvas.rectangle)(shape, fill=ink)
            masks.append((kind, np.array(mask)))
    grain = rng.normal(0, 6, (*SIZE, 3))
    return (np.array(image) + grain).clip(0, 255).astype(np.uint8), masks


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """A ComfyUI with the bundled model, an image of two kinds of objects, and one that shows fewer."""
    (tmp_path / "input").mkdir()
    Image.fromarray(drawn()[0]).save(tmp_path / "input" / "a.png")
    Image.fromarray(drawn([(320, 200)], [(120, 200)])[0]).save(tmp_path / "input" / "b.png")
    return install(monkeypatch, FakeComfyUI(tmp_path))


def body_of(place=DISCS[0], image="a.png", like="a.png", **others):
    x, y, side = place[0] - RADIUS, place[1] - RADIUS, 2 * RADIUS
    prompts = {"version": 2, "objects": [{"marks": [{"x": x, "y": y, "width": side, "height": side}]}]}
    subject = {"image": {"filename": image}, "model": {"model_name": "samkit_demo.safetensors"}, "editor": "one"}
    return {**subject, "like": {"image": {"filename": like}, "prompts": prompts, "object": 0}, **others}


async def post(preview, handler, body):
    made = await routes.reply_to(handler, preview, "application/json", json.dumps(body).encode())
    return made.status, json.loads(made.body)


async def finished(preview, body, handler=routes.find_alike):
    for _ in range(400):
        status, answer = await post(preview, handler, body)
        if status != 202:
            return status, answer
    raise AssertionError("it never came")


def full(segment):
    patch = parse_patch({key: segment[key] for key in ("x", "y", "width", "height", "runs")})
    mask = np.zeros(SIZE, bool)
    mask[patch.y : patch.y + patch.height, patch.x : patch.x + patch.width] = patch.kinds() == ADD
    return mask


def kind_of(segment, masks):
    """Which of the drawn objects a segment is: its kind and number; None for something else."""
    mask = full(segment)
    for number, (kind, true) in enumerate(masks):
        if (mask & true).sum() > 0.8 * (mask | true).sum():
            return kind, number
    return None


def test_the_others_of_a_kind_come_first_and_the_object_itself_not_at_all(comfy):
    place, kind, count = DISCS[0], "disc", 4
    status, answer = asyncio.run(finished(Preview(), body_of(place)))
    scores = [segment["alike"] for segment in answer["segments"]]
    assert status == 200 and scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    _, masks = drawn()
    found = [kind_of(segment, masks) for segment in answer["segments"]]
    marked = next(number for number, (_, mask) in enumerate(masks) if mask[place[1], place[0]])
    assert [one and one[0] for one in found[:count]] == [kind] * count, "every other one of the kind, before anything else"
    assert len({one[1] for one in found[:count]} - {marked}) == count
    assert scores[count - 1] - scores[count] > 0.1, "and far before it"


def test_the_object_may_be_on_another_image(comfy):
    status, answer = asyncio.run(finished(Preview(), body_of(image="b.png", like="a.png")))
    _, masks = drawn([(320, 200)], [(120, 200)])
    assert status == 200 and kind_of(answer["segments"][0], masks) == ("disc", 0)


def test_what_was_painted_has_others_like_it_too(comfy):
    """A segment that was made an object has no marks."""
    _, masks = drawn()
    paint = {"x": 0, "y": 0, "width": SIZE[1], "height": SIZE[0], "runs": encode_runs(masks[2][1])}
    body = body_of()
    body["like"]["prompts"]["objects"] = [{"marks": [], "paint": [paint]}]
    _, answer = asyncio.run(finished(Preview(), body))
    assert {kind_of(one, masks) for one in answer["segments"][:4]} == {("disc", number) for number in (0, 1, 3, 4)}


def test_the_comparison_is_that_of_sam_personalize(comfy, demo_model):
    """The measure of its method "parts and color", but that cells are counted here by pixels and there by a resized mask."""
    image, masks = drawn()
    (_, example), *others = masks
    ready, tensor = ReadyImage(demo_model, image), lambda mask: torch.from_numpy(mask).float()
    made = example_of(ready, image, example)
    scores = resemblances(ready, image, [Cutout(0, 0, mask) for _, mask in others], made)
    options = PersonalizeOptions(method="parts and color")
    target = personalize.learn(
        personalize.EncoderRun(demo_model, [image], "AUTO"),
        tensor(example)[None],
        options.method,
        PredictOptions(multimask="on"),
    )
    with ready.predictor() as predictor:
        wanted = [personalize._resemblance(predictor, tensor(mask) > 0.5, target, options, image) for _, mask in others]
    assert scores == pytest.approx(wanted, abs=0.02) and np.ptp(wanted) > 0.2


def test_a_mask_in_its_box_is_the_mask_in_the_image(demo_model):
    image, masks = drawn()
    ready = ReadyImage(demo_model, image)
    example = example_of(ready, image, masks[0][1])
    boxes = []
    for _, mask in masks:
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        boxes.append(Cutout(int(columns[0]), int(rows[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))
    whole = resemblances(ready, image, [Cutout(0, 0, mask) for _, mask in masks], example)
    assert (resemblances(ready, image, boxes, example) == whole).all() and whole[0] == pytest.approx(1, abs=1e-5)
    pixel = resemblances(ready, image, [Cutout(639, 479, np.ones((1, 1), bool))], example)
    assert np.isfinite(pixel).all(), "what covers no cell half has the one that it covers most"


def test_an_object_without_a_mask_has_none_like_it(comfy, demo_model):
    image, _ = drawn()
    with pytest.raises(SAMError, match="empty mask"):
        example_of(ReadyImage(demo_model, image), image, np.zeros(SIZE, bool))
    body = body_of()
    body["like"]["prompts"]["objects"][0]["marks"] = []
    status, answer = asyncio.run(finished(Preview(), body))
    assert status == 400 and "prompts has 0 objects" in answer["error"]


def test_nothing_is_computed_twice(comfy, monkeypatch):
    """The segments are found once for all objects and editors, the image is encoded once, one object is compared once."""
    counts = {"segments": 0, "encoded": 0, "compared": 0}

    def counted(name, real):
        def call(*args):
            counts[name] += 1
            return real(*args)

        return call

    monkeypatch.setattr(everything_module, "segment_everything", counted("segments", everything_module.segment_everything))
    monkeypatch.setattr(preview_module, "ReadyImage", counted("encoded", preview_module.ReadyImage))
    monkeypatch.setattr(module, "resemblances", counted("compared", module.resemblances))

    async def ask():
        preview = Preview()
        answers = [await finished(preview, body_of(place, editor=editor)) for editor in ("one", "two") for place in DISCS[:2]]
        return [answer for _, answer in answers]

    first, other, again, last = asyncio.run(ask())
    assert counts == {"segments": 1, "encoded": 1, "compared": 2} and first == again and other == last != first


def test_it_is_told_how_far_the_segments_are_and_ended_when_they_are(comfy, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def slow(subject, preset, least):
        def work():
            begun.set()
            assert go.wait(20)
            return b'{"segments": []}'

        return "key", work

    monkeypatch.setattr(routes, "everything", slow)

    async def ask():
        preview = Preview()
        status, answer = await post(preview, routes.find_alike, body_of())
        assert begun.wait(20) and (status, answer) == (202, {"progress": 0.0})
        assert await post(preview, routes.leave, {"editor": "one", "work": "segments"}) == (200, {})
        go.set()
        return await finished(preview, body_of())

    assert asyncio.run(ask()) == (200, {"segments": []})


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"like": None}, 400, "like is missing, or not a JSON object"),
        ({"like": {"image": {"filename": "a.png"}, "x": 1}}, 400, "unknown key 'x'"),
        ({"like": {**body_of()["like"], "object": 1}}, 400, "object is 1, but prompts has 1 object"),
        ({"like": {**body_of()["like"], "image": {"filename": "../a.png"}}}, 400, "image.filename"),
        ({"like": {**body_of()["like"], "image": {"filename": "none.png"}}}, 404, "there is no image none.png"),
        ({"image": {"filename": "none.png"}}, 404, "there is no image none.png"),
        ({"editor": ""}, 400, "editor must be text"),
        ({"preset": "balanced"}, 400, "unknown key 'preset'"),
    ],
)
def test_what_is_no_request_is_refused(comfy, change, status, named):
    seen, answer = asyncio.run(finished(Preview(), {**body_of(), **change}))
    assert seen == status and named in answer["error"]

"""Regions and second looks in the prompt editor: the preview's masks, the run's, and those of nodes that take its marks."""

import asyncio
import io
import json
import threading

import numpy as np
import pytest
import torch
from bright_model import BrightModel, discs, iou
from conftest import as_image, make_image
from PIL import Image
from samkit.nodes.editor import preview as module
from samkit.nodes.editor import routes
from samkit.nodes.editor.jobs import Job
from samkit.nodes.editor.preview import Preview, parse_question
from samkit.nodes.editor.text import parse_editor
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.prompt_editor import PromptEditor
from samkit.sam import Prompt, SAMError, decode, encode, predict_in_region, prompt_each, remember, segment_each
from samkit.sam.prompts import clip_region, group
from samkit.utils.boxes import boxes_per_frame, nested_boxes
from samkit.utils.points import points_per_frame
from segment_anything import SamPredictor
from test_preview import comfy, outcome, until  # noqa: F401  a fixture, and helpers

SIZE = 480, 640
SMALL = (300, 200, 14)
MARK = {"x": 300, "y": 200, "label": 1}
REGION = {"x": 250, "y": 150, "width": 100, "height": 100}


@pytest.fixture
def bright():
    return BrightModel(side=256)


@pytest.fixture
def scene(comfy):  # noqa: F811
    """The drawing as a file, and its small disc."""
    image, (truth,) = discs(SIZE, SMALL)
    Image.fromarray(image).save(comfy.root / "input" / "scene.png")
    return image, truth


def text_of(marks=(MARK,), detail=None, region=None, **others):
    one = {"marks": list(marks), **({"region": region} if region else {}), **others}
    return {"version": 3, "objects": [one], **({"detail": detail} if detail else {})}


def question_of(bright, text, editor="one", sequence=1, only=0):
    body = {"image": {"filename": "scene.png"}, "model": {"identity": remember(bright)}, "prompts": text, "form": "mask"}
    return parse_question({**body, "editor": editor, "sequence": sequence, **({} if only is None else {"object": only})})


def mask_of(answer):
    return np.array(Image.open(io.BytesIO(answer.file)).convert("RGBA"))[..., 3] > 127


async def looked(preview, question):
    """The second look, waited for."""
    while isinstance(found := await preview.look(question), Job):
        pass
    return found


class TestSecondLooks:
    """The first answer as ever, the second one sharp."""

    def test_the_second_look_is_that_of_a_run_and_the_first_answer_is_as_without(self, bright, scene):
        image, truth = scene

        async def both():
            preview = Preview()
            plain = await preview.ask(question_of(bright, text_of()))
            first = await preview.ask(question_of(bright, text_of(detail="auto"), sequence=2))
            return plain, first, await looked(preview, question_of(bright, text_of(detail="auto"), sequence=3))

        plain, first, second = asyncio.run(both())
        assert first.file == plain.file and iou(mask_of(first), truth) < 0.9 and first.looked is None
        assert iou(mask_of(second), truth) > 0.96 and second.looked == (1, 0, 0)
        *_, masks, _, _, _, _ = PromptEditor().execute(as_image(image), json.dumps(text_of(detail="auto")), bright)["result"]
        assert np.array_equal(masks[0].numpy() > 0.5, mask_of(second))
        segmented = Segment().execute(bright, as_image(image), json.dumps([MARK]), detail="auto")
        assert torch.equal(segmented[0], masks)

    def test_a_click_costs_one_more_encoding_and_the_next_click_on_the_object_none(self, bright, scene):
        async def clicks():
            preview, counts = Preview(), []
            for x in (297, 300, 303):
                text = text_of([{**MARK, "x": x}], "auto")
                await preview.ask(question_of(bright, text, sequence=x))
                counts.append(bright.encoded)
                await looked(preview, question_of(bright, text, sequence=x))
                counts.append(bright.encoded)
            return counts

        assert asyncio.run(clicks()) == [1, 2, 2, 2, 2, 2]
        PromptEditor().execute(as_image(scene[0]), json.dumps(text_of(detail="auto")), bright)
        assert bright.encoded == 2, "the run finds what the preview has encoded"

    def test_first_answers_do_not_wait_for_a_second_look(self, bright, scene, monkeypatch):
        go, begun, real = threading.Event(), threading.Event(), module.look_again

        def slowly(*given):
            begun.set()
            assert go.wait(20)
            return real(*given)

        async def beside():
            preview = Preview()
            monkeypatch.setattr(module, "look_again", slowly)
            second = asyncio.create_task(looked(preview, question_of(bright, text_of(detail="auto"), "one-look")))
            await until(begun.is_set)
            first = await preview.ask(question_of(bright, text_of([{**MARK, "x": 305}])))
            assert not second.done()
            go.set()
            return first, await second

        first, second = asyncio.run(beside())
        assert first.looked is None and second.looked.sharper == 1

    def test_a_second_look_that_nobody_waits_for_ends(self, bright, scene, monkeypatch):
        """It is cancelled while its first cut is encoded: no other one is begun, and nothing of it is cached."""
        go, begun, real = threading.Event(), threading.Event(), BrightModel.features

        def slowly(*given):
            begun.set()
            assert go.wait(20)
            return real(*given)

        async def left():
            preview, question = Preview(), question_of(bright, text_of(detail="3"), "one-look")
            await preview.ask(question)
            monkeypatch.setattr(BrightModel, "features", slowly)
            job = await preview.look(question)
            await until(begun.is_set)
            status = (await routes.leave(preview, {"editor": "one-look", "work": "look"})).status
            go.set()
            return status, await outcome(job.task)

        monkeypatch.setattr("samkit.sam.tasks.detail._LEAST_GAIN", 0.0)  # as many looks as are asked for
        assert asyncio.run(left()) == (200, 409) and bright.encoded == 2

    def test_the_routes_say_what_became_of_it(self, bright, scene):
        body = {"image": {"filename": "scene.png"}, "model": {"identity": remember(bright)}, "object": 0, "editor": "one"}

        async def said(text):
            preview = Preview()
            while (reply := await routes.look(preview, {**body, "prompts": text})).status == 202:
                assert json.loads(reply.body).keys() == {"progress"}
            return reply

        sharper = asyncio.run(said(text_of(detail="auto")))
        assert sharper.status == 200 and sharper.headers["X-SAMKit-Look"] == "sharper" and sharper.body[:4] == b"\x89PNG"
        nothing = asyncio.run(said(text_of([{**MARK, "x": 20}], "1")))
        assert nothing.headers["X-SAMKit-Look"] == "alike"

    def test_what_is_another_object_is_kept_and_said(self, bright, scene, monkeypatch):
        monkeypatch.setattr("samkit.sam.tasks.detail._SAME_OBJECT", 2.0)
        monkeypatch.setattr("samkit.sam.tasks.detail._SAME_SMALL_OBJECT", 2.0)

        async def both():
            preview, text = Preview(), text_of(detail="auto")
            return await preview.ask(question_of(bright, text)), await looked(preview, question_of(bright, text))

        first, second = asyncio.run(both())
        assert first.file == second.file and second.looked == (0, 1, 0)

    def test_objects_of_one_run_are_each_as_previewed(self, bright, comfy):  # noqa: F811
        image, truths = discs(SIZE, SMALL, (100, 400, 9), (500, 100, 60))
        Image.fromarray(image).save(comfy.root / "input" / "scene.png")
        places = [(300, 200), (100, 400), (500, 100)]
        objects = [{"name": str(x), "marks": [{"x": x, "y": y, "label": 1}]} for x, y in places]
        objects[1]["region"] = {"x": 60, "y": 360, "width": 90, "height": 90}
        text = {"version": 3, "objects": objects, "detail": "auto"}

        async def each():
            preview = Preview()
            return [await looked(preview, question_of(bright, text, only=only)) for only in (0, 1, 2, None)]

        *alone, together = asyncio.run(each())
        masks = PromptEditor().execute(as_image(image), json.dumps(text), bright, individual_masks=True)["result"][3]
        for mask, answer, truth in zip(masks, alone, truths, strict=True):
            assert np.array_equal(mask.numpy() > 0.5, mask_of(answer)) and iou(mask, truth) > 0.93
        assert np.array_equal(mask_of(together), masks.any(0).numpy())
        assert sum(together.looked) == 3


class TestRegions:
    """Marks that are answered from a part of the image alone."""

    def test_the_preview_the_run_and_the_nodes_give_one_mask(self, bright, scene):
        image, truth = scene
        text = text_of(region=REGION)

        async def ask():
            return await Preview().ask(question_of(bright, text))

        answer = asyncio.run(ask())
        assert iou(mask_of(answer), truth) > 0.96
        positive, negative, boxes, masks, *_ = PromptEditor().execute(as_image(image), json.dumps(text), bright)["result"]
        assert np.array_equal(masks[0].numpy() > 0.5, mask_of(answer))
        assert json.loads(positive) == [{"x": 300.0, "y": 200.0, "region": REGION}] and negative == "[]" and boxes == []
        (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(image), bright)
        for found in (
            Segment().execute(bright, as_image(image), positive),
            PredictMask().execute(bright, embedding, positive, image=as_image(image)),
        ):
            assert torch.equal(found[0], masks) and found[2] == [pytest.approx(answer.score)]
        with pytest.raises(SAMError, match="marks have a region.*Connect the embedded image"):
            PredictMask().execute(bright, embedding, positive)

    def test_it_costs_one_encoding_and_later_clicks_none(self, bright, scene):
        async def clicks():
            preview, counts = Preview(), []
            for x in (297, 300, 303):
                await preview.ask(question_of(bright, text_of([{**MARK, "x": x}], region=REGION), sequence=x))
                counts.append(bright.encoded)
            return counts

        assert asyncio.run(clicks()) == [2, 2, 2], "the image, and the region"

    def test_a_box_goes_out_with_its_region_and_comes_in_again(self, bright, scene):
        image, truth = scene
        text = text_of([{"x": 284, "y": 184, "width": 32, "height": 32}], region=REGION)
        _, _, boxes, masks, *_ = PromptEditor().execute(as_image(image), json.dumps(text), bright)["result"]
        assert boxes == [{"x": 284.0, "y": 184.0, "width": 32.0, "height": 32.0, "region": REGION}]
        assert iou(masks[0], truth) > 0.96
        assert torch.equal(Segment().execute(bright, as_image(image), bboxes=boxes)[0], masks)
        assert nested_boxes(boxes)[0][0]["region"] == REGION, "other nodes of boxes hand it on"

    def test_it_is_what_the_predictor_of_segment_anything_gives_for_the_cut(self, tiny_sam, tiny_model):
        image, (x1, y1, x2, y2) = make_image(200, 300), (110, 60, 210, 140)
        found = []
        point = Prompt(np.array([[150.0, 100]]), np.array([1], np.int32), region=(x1, y1, x2, y2))
        segment_each(tiny_model, [image], [[point]], lambda _, one: found.append(one))
        predictor = SamPredictor(tiny_sam)
        predictor.set_image(image[y1:y2, x1:x2])
        masks, scores, logits = predictor.predict(np.array([[40.0, 40.0]]), np.array([1]))
        best = scores.argmax()
        expected = np.zeros((200, 300), bool)
        expected[y1:y2, x1:x2] = masks[best]
        assert (found[0].masks[0].numpy() != expected).mean() < 1e-3
        assert float(found[0].scores[0]) == pytest.approx(float(scores[best]), abs=1e-4)

    def test_marks_outside_of_it_are_ignored_and_an_object_without_others_is_empty(self, bright, scene):
        image, truth = scene
        far = {"x": 20, "y": 20, "label": 1}
        both, alone = (
            PromptEditor().execute(as_image(image), json.dumps(text_of(marks, region=REGION)), bright)["result"][3]
            for marks in ([MARK, far], [far])
        )
        assert iou(both[0], truth) > 0.96 and not alone.any()
        box = text_of([{"x": 5, "y": 5, "width": 20, "height": 20}], region=REGION)
        assert not PromptEditor().execute(as_image(image), json.dumps(box), bright)["result"][3].any()

    def test_objects_in_regions_and_without_keep_their_order_and_candidates(self, bright):
        image, truths = discs(SIZE, (500, 100, 60), SMALL, (100, 400, 60))
        region = {"region": REGION}
        coords = json.dumps(
            [{"x": x, "y": y, "object": x, **more} for x, y, more in ((500, 100, {}), (300, 200, region), (100, 400, {}))]
        )
        for options, each in (({}, 1), ({"candidate": "all", "multimask": "on"}, 3)):
            masks, _, scores, logits = Segment().execute(bright, as_image(image), coords, individual_masks=True, **options)
            assert len(masks) == len(scores) == len(logits) == 3 * each
            assert all(iou(masks[row], truths[row // each]) > 0.9 for row in range(3 * each))
            assert all((logits[row] > 0).any() for row in range(3 * each)), "logits are those of the whole image"

    def test_second_looks_go_on_from_a_region(self, bright):
        image, (truth,) = discs((960, 1280), (600, 400, 9))
        region = {"x": 400, "y": 200, "width": 400, "height": 400}
        coords = json.dumps([{"x": 600, "y": 400, "region": region}])
        before, after = (Segment().execute(bright, as_image(image), coords, detail=detail) for detail in ("off", "auto"))
        assert iou(after[0][0], truth) > max(0.93, iou(before[0][0], truth)) and str(after.found[0].looked) == "1 sharper"

    @pytest.mark.parametrize("detail", ["auto", "1", "2", "3"])
    def test_a_cut_hardly_sharper_than_the_region_is_no_second_look(self, bright, detail):
        """The cut around the disc is 64 pixels wide; it must have 1.5 times the resolution of the region, not of the image."""
        image, _ = discs(SIZE, SMALL)
        said = []
        for side in (90, 110):
            region = {"x": 300 - side // 2, "y": 200 - side // 2, "width": side, "height": side}
            before = bright.encoded
            found = Segment().execute(bright, as_image(image), json.dumps([{**MARK, "region": region}]), detail=detail)
            said.append((bright.encoded - before, tuple(found.found[0].looked)))
        assert said == [(1, (0, 0, 1)), (2, (1, 0, 0))]

    def test_prompts_of_an_embedding_alone_cannot_have_one(self, bright, scene):
        point = Prompt(np.array([[300.0, 200]]), np.ones(1, np.int32), region=(250, 150, 350, 250))
        with pytest.raises(SAMError, match="have a region.*an embedding of the image is not enough"):
            decode(bright, encode(bright, [scene[0]]), [[point]])

    def test_a_region_is_clipped_to_the_image(self):
        assert clip_region((-5, 10, 50, 5000), SIZE) == (0, 10, 50, 480)
        for nothing in ((0, 0, 640, 480), (-9, -9, 700, 500), (640, 0, 700, 50), (-50, 0, 0, 50), None):
            assert clip_region(nothing, SIZE) is None

    def test_marks_of_one_object_in_different_regions_are_refused(self):
        marks = [{"x": 1, "y": 1, "object": 1, "region": REGION}, {"x": 2, "y": 2, "object": 1}]
        (points,) = points_per_frame(json.dumps(marks), 1, "positive_coords")
        (nothing,), (boxes,) = points_per_frame("", 1, "negative_coords"), boxes_per_frame(None, 1)
        with pytest.raises(SAMError, match="marks of object 1 have 2 different regions"):
            group(points, nothing, boxes)
        unnamed = json.dumps([{key: value for key, value in one.items() if key != "object"} for one in marks])
        found = group(points_per_frame(unnamed, 1, "positive_coords")[0], nothing, boxes)
        assert [one.region for one in found] == [(250, 150, 350, 250), None]


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ({"x": 1, "y": 2, "width": 0, "height": 4}, r"region is 0 by 4 pixels: both must be above 0"),
        ({"x": 1, "y": 2, "width": 0.2, "height": 4}, r"region is 0.2 by 4 pixels"),
        ({"x": 1, "y": 2, "width": 3}, r"region is .*: it must be \{x, y, width, height\}"),
        ({"x": "1", "y": 2, "width": 3, "height": 4}, r"region is .*: it must be"),
        ({"x": 1, "y": 2, "width": float("inf"), "height": 4}, r"region is .*: it must be"),
        ({"x": 1, "y": 2, "width": 1e9, "height": 4}, r"region is .*: it must be"),
        ([1, 2, 3, 4], r"region is .*: it must be"),
        (True, r"region is .*: it must be"),
    ],
    ids=str,
)
def test_a_region_of_another_form_is_refused_wherever_it_comes_in(region, said):
    with pytest.raises(SAMError, match=r"prompts\.objects\[0\]\." + said):
        parse_editor(text_of(region=region))
    with pytest.raises(SAMError, match=r"positive_coords\[0\]\." + said):
        points_per_frame(json.dumps([{"x": 1, "y": 2, "region": region}]), 1, "positive_coords")
    for read in (lambda boxes: boxes_per_frame(boxes, 1), nested_boxes):
        with pytest.raises(SAMError, match=r"bboxes\[0\]\." + said):
            read([{"x": 1, "y": 2, "width": 3, "height": 4, "region": region}])


def test_texts_of_before_and_details_that_there_are_not():
    assert parse_editor({"version": 2, "objects": [{"marks": [MARK]}]}).detail == "off"
    with pytest.raises(SAMError, match=r"prompts\.detail is 4: choose one of off, auto, 1, 2, 3"):
        parse_editor(text_of(detail=4))
    with pytest.raises(SAMError, match="prompts has an unknown key 'detail'"):
        parse_editor({"version": 2, "objects": [], "detail": "auto"})


def test_a_region_as_an_image_of_its_own_is_predicted_where_it_lies(bright):
    image, (truth,) = discs(SIZE, SMALL)
    seen = []
    region = (250, 150, 350, 250)

    def use(_, part):
        prompt = Prompt(np.array([[300.0, 200]]), np.ones(1, np.int32))
        seen.append(predict_in_region(part, region, SIZE, [prompt, Prompt()], part.options))

    prompt_each(bright, [image[150:250, 250:350]], use)
    masks, scores, logits = seen[0]
    assert masks.shape == (2, *SIZE) and iou(masks[0], truth) > 0.96 and not masks[1].any()
    assert scores.tolist() == [pytest.approx(BrightModel.sure), 0] and logits.shape == (2, 1, 64, 64)

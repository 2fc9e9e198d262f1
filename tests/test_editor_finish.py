"""Finishing and paint in the editor's text: what the node makes of them is `finish_mask`'s, and the preview shows the same."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from PIL import Image
from samkit.nodes.editor import routes
from samkit.nodes.editor.preview import Preview, parse_question
from samkit.nodes.editor.text import parse_editor
from samkit.nodes.prompt_editor import PromptEditor
from samkit.sam import SAMError
from samkit.utils.finish import Finish, finish_mask
from samkit.utils.patches import paint_over
from test_finish import coded, painted
from test_preview import MARKS, comfy, reply, subject, subject_of  # noqa: F401  a fixture

FINISH = {"fill_holes": 40, "drop_islands": 12, "smooth": 1.5, "grow": 2, "feather": 1.5}
HARD = {"fill_holes": 40, "drop_islands": 12, "smooth": 1, "grow": -1, "invert": True}
BOX = {"x": 10, "y": 5, "width": 40, "height": 30}
KINDS = np.random.default_rng(0).integers(0, 3, (20, 30)).repeat(2, 0).astype(np.uint8)
PATCH = {"x": 35, "y": 30, "width": 30, "height": 40, "runs": coded(KINDS)}


def text(*objects, **others):
    return json.dumps({"version": 2, "objects": list(objects), **others})


def masks_of(prompts, model, frames=1, individual=True):
    image = as_image(*[make_image(60, 80, seed) for seed in range(frames)])
    with torch.inference_mode():
        answer = PromptEditor().execute(image, prompts, model, individual)
    return answer["result"][3].numpy(), answer["result"][5]


def test_each_object_has_its_own_finish_or_that_of_all(tiny_model):
    marks = [{"marks": MARKS}, {"marks": [BOX]}]
    plain, _ = masks_of(text(*marks), tiny_model)
    made, _ = masks_of(text(marks[0], {**marks[1], "finish": {"grow": 5}, "paint": [PATCH]}, finish=FINISH), tiny_model)
    assert plain[0].any() and plain[1].any()
    assert (made[0] == finish_mask(plain[0], Finish(**FINISH))).all()
    assert (made[1] == finish_mask(plain[1], Finish(grow=5), [painted(KINDS, 35, 30)])).all()
    none, _ = masks_of(text({**marks[0], "finish": {}}, finish=FINISH), tiny_model)
    assert (none[0] == masks_of(text(marks[0]), tiny_model)[0]).all(), "an own finish without options is none"


def test_an_object_may_be_paint_alone_and_needs_no_model(tiny_model):
    prompts = text({"name": "brush", "paint": [PATCH]}, {"name": "empty"})
    for model in (tiny_model, None):
        masks, labels = masks_of(prompts, model)
        assert (
            labels == ["brush"]
            and (masks[0] == finish_mask(np.zeros((60, 80), bool), Finish(), [painted(KINDS, 35, 30)])).all()
        )
    marked, _ = masks_of(text({"marks": MARKS}, finish={"invert": True}), None)
    assert not marked.any(), "what has no mask is not inverted into one"


def test_paint_and_finish_are_each_frames_own(tiny_model):
    marks = [{**MARKS[0], "frame": 1}]
    prompts = text({"marks": marks, "paint": [{**PATCH, "frame": 2}], "finish": {"invert": True}})
    masks, _ = masks_of(prompts, tiny_model, frames=4)
    plain, _ = masks_of(text({"marks": marks}), tiny_model, frames=4)
    assert not masks[0].any() and not masks[3].any()
    assert (masks[1] == 1 - plain[1]).all()
    assert (masks[2] == finish_mask(np.zeros((60, 80), bool), Finish(invert=True), [painted(KINDS, 35, 30)])).all()


@pytest.mark.parametrize("finish", [FINISH, HARD], ids=["soft", "hard"])
def test_the_preview_is_the_runs_mask_to_the_level(comfy, finish):  # noqa: F811
    objects = [{"marks": MARKS, "paint": [PATCH]}, {"marks": [BOX]}]
    prompts = json.loads(text(*objects, finish=finish))

    async def ask():
        preview = Preview()
        bodies = [
            {**subject_of(), "prompts": prompts, "editor": "one", "sequence": n, "object": n, "form": "mask"} for n in range(2)
        ]
        return [await preview.ask(parse_question(body)) for body in bodies], (await preview.prepare(subject())).model

    answers, model = asyncio.run(ask())
    masks, _ = masks_of(json.dumps(prompts), model)
    for answer, mask in zip(answers, masks, strict=True):
        alpha = np.array(Image.open(io.BytesIO(answer.file)).convert("RGBA"))[..., 3]
        assert (alpha == np.rint(255 * mask)).all() and answer.area == (mask > 0.5).sum() > 0
    assert ((masks > 0) & (masks < 1)).any() == ("feather" in finish)


def test_the_preview_of_a_frame_has_that_frames_paint(comfy):  # noqa: F811
    prompts = json.loads(text({"paint": [{**PATCH, "frame": 2}]}))

    async def ask():
        preview = Preview()
        bodies = [{**subject_of("three.gif", frame=n), "prompts": prompts, "editor": "one", "sequence": n} for n in range(3)]
        return [(await preview.ask(parse_question(body))).area for body in bodies]

    assert asyncio.run(ask()) == [0, 0, paint_over(np.zeros((60, 80), bool), [painted(KINDS, 35, 30)]).sum()]


def test_candidates_are_finished_too(comfy):  # noqa: F811
    one = {"marks": MARKS, "finish": HARD}
    status, said = reply(routes.choices, json.dumps({**subject_of(), "prompts": json.loads(text(one)), "object": 0}))
    model = asyncio.run(Preview().prepare(subject())).model
    assert status == 200
    for found in said["candidates"]:
        masks, _ = masks_of(text({**one, "candidate": found["candidate"]}), model)
        assert found["area"] == masks.sum()


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ({"objects": [], "finish": 3}, "prompts.finish is 3"),
        ({"objects": [], "finish": {"blur": 3}}, "prompts.finish has an unknown key 'blur'"),
        ({"objects": [{"finish": {"grow": 1.5}}]}, "prompts.objects[0].finish.grow is 1.5"),
        ({"objects": [{"finish": {"grow": True}}]}, "prompts.objects[0].finish.grow is True"),
        ({"objects": [{"finish": {"invert": 1}}]}, "prompts.objects[0].finish.invert is 1"),
        ({"objects": [{"finish": {"smooth": "2"}}]}, "prompts.objects[0].finish.smooth is '2'"),
        ({"objects": [{"finish": {"feather": float("nan")}}]}, "prompts.objects[0].finish.feather is nan"),
        ({"objects": [{"finish": {"grow": 10**400}}]}, "prompts.objects[0].finish.grow is 1"),
        ({"objects": [{"paint": {}}]}, "prompts.objects[0].paint is a dict"),
        ({"objects": [{"paint": [PATCH] * 257}]}, "prompts.objects[0].paint has 257"),
        ({"objects": [{"paint": [PATCH, {**PATCH, "runs": "*"}]}]}, "prompts.objects[0].paint[1]: runs is"),
        ({"objects": [{"paint": [PATCH, 5]}]}, "prompts.objects[0].paint[1]: 5 is not a patch"),
    ],
)
def test_a_wrong_form_is_named_in_one_sentence(prompts, named):
    with pytest.raises(SAMError) as caught:
        parse_editor({"version": 2, **prompts})
    assert str(caught.value).startswith(named) and len(str(caught.value)) < 300


def test_a_small_text_cannot_ask_for_endless_work():
    side = 8192
    number = 3 * side * side + 1  # one run of all the pixels
    run = bytes([*(number >> 7 * place & 127 | 128 for place in range(3)), number >> 21])
    full = {"x": 0, "y": 0, "width": side, "height": side, "runs": base64.b64encode(run).decode()}
    assert len(parse_editor({"objects": [{"paint": [full] * 4}]}).objects[0].paint) == 4
    with pytest.raises(SAMError, match="The paint in prompts has"):
        parse_editor({"objects": [{"paint": [full] * 3}, {"paint": [full] * 2}]})

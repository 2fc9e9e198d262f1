"""The prompt editor's node: its widget's text to points, boxes and masks, and the images it leaves for the browser."""

import io
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from photographs import SIZES, photograph
from PIL import Image
from samkit.nodes import prompt_editor as module
from samkit.nodes.editor.contract import LIMITS
from samkit.nodes.editor.jobs import RefusedError
from samkit.nodes.editor.preview import find_image, parse_image
from samkit.nodes.editor.text import parse_editor
from samkit.nodes.predict import Segment
from samkit.nodes.prompt_editor import MOST_IMAGES, PromptEditor
from samkit.sam import SAMError, recall, remember
from samkit.utils.comfy import Progress, is_running, quietly
from samkit.utils.comfy_files import image_path, is_linked_out, load_image_file, save_results, save_temporary
from samkit.utils.layers import layers_of
from samkit.utils.overlay import FORMS, mask_image, mask_png, outline
from scipy import ndimage
from scipy.ndimage import gaussian_filter

POINT, AWAY, BOX = (
    {"x": 30, "y": 25, "label": 1},
    {"x": 60.5, "y": 40, "label": 0},
    {"x": 10, "y": 5, "width": 40, "height": 30},
)


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    for folder in ("input", "output", "temp", "models/sams"):
        (tmp_path / folder).mkdir(parents=True)
    return install(monkeypatch, FakeComfyUI(tmp_path))


def images(count):
    return as_image(*(make_image(60, 80, seed) for seed in range(count)))


def text(*marks, **others):
    return json.dumps({"version": 1, "marks": marks, **others})


def run(image, prompts, model=None):
    answer = PromptEditor().execute(image, prompts, model)
    return answer["result"]


def test_marks_for_all_frames_give_flat_lists():
    positive, negative, boxes, masks, *_ = run(images(3), text(POINT, AWAY, BOX))
    assert json.loads(positive) == [{"x": 30, "y": 25}] and json.loads(negative) == [{"x": 60.5, "y": 40}]
    assert boxes == [{"x": 10, "y": 5, "width": 40, "height": 30}]
    assert masks.shape == (3, 60, 80) and not masks.any(), "no model, no mask"


def test_a_mark_for_one_frame_makes_a_list_per_frame():
    positive, negative, boxes, *_ = run(images(3), text(POINT, {**AWAY, "frame": 2}, {**BOX, "frame": 1}))
    assert json.loads(positive) == [[{"x": 30, "y": 25, "object": 1}]] * 3
    assert json.loads(negative) == [[], [], [{"x": 60.5, "y": 40, "object": 1}]]
    assert boxes == [[], [{"x": 10, "y": 5, "width": 40, "height": 30, "object": 1}], []]


def test_several_boxes_of_a_single_object_stay_objects_of_their_own():
    """As in version 1 of the text; one box on each frame is one object's."""
    two = [BOX, {**BOX, "x": 45}]
    for marks in ([*two, {**POINT, "frame": 2}], [{**one, "frame": 1} for one in two], [BOX, {**BOX, "frame": 1}]):
        positive, _, boxes, *_ = run(images(3), text(*marks))
        assert not any("object" in mark for marks in (*json.loads(positive), *boxes) for mark in marks)
    boxes = run(images(3), text(*({**one, "frame": frame} for frame, one in enumerate(two))))[2]
    assert [[box["object"] for box in frame] for frame in boxes] == [[1], [1], []]


def test_a_mark_for_a_frame_that_is_not_there_is_kept_for_later():
    positive, *_ = run(images(2), text({**POINT, "frame": 7}))
    assert json.loads(positive) == [[], []]


def test_nothing_marked_gives_empty_lists_and_zero_masks(tiny_model):
    for prompts in ("", "  ", "{}", text()):
        positive, negative, boxes, masks, *_ = run(images(2), prompts, tiny_model)
        assert (positive, negative, boxes) == ("[]", "[]", []) and masks.shape == (2, 60, 80) and not masks.any()


def test_the_image_goes_out_unchanged():
    image = images(2)
    before = image.clone()
    assert run(image, text(POINT))[4] is image and torch.equal(image, before)


@pytest.mark.parametrize(
    "marks",
    [
        [POINT],
        [POINT, AWAY],
        [BOX],
        [POINT, AWAY, BOX],
        [BOX, {"x": 45, "y": 20, "width": 30, "height": 30}, POINT],
        [{**POINT, "frame": 1}],
        [BOX, {**POINT, "frame": 0}, {**AWAY, "frame": 1}],
    ],
)
@pytest.mark.parametrize("candidate", ["best", "smallest", "middle", "largest"])
def test_masks_are_those_of_sam_segment_for_the_same_prompts(tiny_model, marks, candidate):
    image = images(2)
    positive, negative, boxes, masks, *_ = run(image, text(*marks, candidate=candidate), tiny_model)
    multimask = "auto" if candidate == "best" else "on"
    expected = Segment().execute(tiny_model, image, positive, negative, boxes, candidate=candidate, multimask=multimask)[0]
    assert torch.equal(masks, expected) and masks.shape == (2, 60, 80)


def test_every_candidate_can_be_chosen_with_several_marks_too(tiny_model):
    """Without multimask there is but one candidate, and the choice would do nothing."""
    sizes = [run(images(1), text(BOX, AWAY, candidate=c), tiny_model)[3].sum() for c in ("smallest", "middle", "largest")]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_a_frame_without_marks_has_an_empty_mask(tiny_model):
    masks = run(images(3), text({**POINT, "frame": 1}), tiny_model)[3]
    assert [bool(mask.any()) for mask in masks] == [False, True, False]


def test_what_the_browser_is_told(comfy, tiny_model):
    image = images(2)
    shown = PromptEditor().execute(image, text(POINT), tiny_model)["ui"]
    assert list(shown) == ["samkit_images", "samkit_model"] and all(isinstance(value, list) for value in shown.values())
    assert recall(shown["samkit_model"][0]) is tiny_model
    for name, frame in zip(shown["samkit_images"], image, strict=True):
        assert (name["subfolder"], name["type"]) == ("", "temp")
        saved = np.array(Image.open(comfy.root / "temp" / name["filename"]))
        assert (saved == (frame * 255).round().numpy()).all()
    assert "samkit_model" not in PromptEditor().execute(image, text(POINT))["ui"]


def test_the_images_of_a_long_batch_are_bounded(comfy):
    image = torch.rand(MOST_IMAGES + 3, 4, 4, 3)
    answer = PromptEditor().execute(image)
    assert len(answer["ui"]["samkit_images"]) == MOST_IMAGES and len(answer["result"][3]) == MOST_IMAGES + 3


@pytest.mark.parametrize(("most", "count"), [(7 * 60 * 80, 7), (7 * 60 * 80 - 1, 6), (5, 1)])
def test_their_pixels_are_bounded_too(comfy, monkeypatch, most, count):
    monkeypatch.setattr(module, "MOST_PIXELS", most)
    assert len(PromptEditor().execute(torch.rand(9, 60, 80, 3))["ui"]["samkit_images"]) == count


def test_outside_comfyui_there_are_no_images_to_show():
    assert PromptEditor().execute(images(1))["ui"] == {"samkit_images": []}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ("nonsense", "prompts is not JSON"),
        ('{"marks": [}', "prompts is not JSON"),
        ("[" * 100_000, "prompts is not JSON"),
        ("1" * 5000, "prompts is not JSON"),
        ("[]", "prompts is a list"),
        ("null", "prompts is a NoneType"),
        (None, "prompts is a NoneType"),
        (b"{}", "prompts is a bytes"),
        ('{"points": []}', "unknown key 'points'"),
        ({1: 2}, "unknown key '1'"),
        ('{"version": 4}', "prompts.version is 4"),
        ('{"version": 2, "marks": []}', "prompts has an unknown key 'marks'"),
        ('{"version": 1, "objects": []}', "prompts has an unknown key 'objects'"),
        ('{"objects": {}}', "prompts.objects is a dict"),
        ('{"objects": [3]}', "prompts.objects[0] is 3"),
        ('{"objects": [{"marks": [], "id": 1}]}', "prompts.objects[0] has an unknown key 'id'"),
        ('{"objects": [{}, {"name": 3}]}', "prompts.objects[1].name is 3"),
        ('{"objects": [{"name": ""}]}', "prompts.objects[0].name is ''"),
        ('{"objects": [{"colour": "red"}]}', "prompts.objects[0].colour is 'red'"),
        ('{"objects": [{"candidate": "all"}]}', "prompts.objects[0].candidate is 'all'"),
        ({"objects": [{}] * (LIMITS.objects + 1)}, f"prompts.objects has {LIMITS.objects + 1}"),
        ({"objects": [{"marks": [POINT] * 600}] * 2}, "objects in prompts have more than 1000 marks"),
        ('{"version": true}', "prompts.version is True"),
        ('{"version": "1"}', "prompts.version is '1'"),
        ('{"candidate": "all"}', "prompts.candidate is 'all'"),
        ('{"candidate": ["best"]}', "prompts.candidate is"),
        ('{"candidate": null}', "prompts.candidate is None"),
        ('{"marks": {}}', "prompts.marks is a dict"),
        ('{"marks": null}', "prompts.marks is a NoneType"),
        ({"marks": [POINT] * (LIMITS.marks + 1)}, f"prompts.marks has {LIMITS.marks + 1}"),
    ],
)
def test_a_wrong_form_is_named(prompts, named):
    with pytest.raises(SAMError, match=named.replace("[", r"\[")):
        parse_editor(prompts)


@pytest.mark.parametrize(
    ("mark", "named"),
    [
        (1, ""),
        ([30, 25, 1], ""),
        ({}, ""),
        ({"x": 1, "y": 2}, ""),
        ({**POINT, "z": 1}, ""),
        ({**POINT, **BOX}, ""),
        ({**POINT, "frame": 0, "label": "1"}, ".label"),
        (nested(5000), ""),
        *[({**POINT, "x": value}, ".x") for value in ("30", None, True, [3], math.nan, math.inf, 1e6, -1e6, 10**400)],
        *[({**POINT, "y": value}, ".y") for value in ({}, False, -math.inf, 2e6)],
        *[({**POINT, "label": value}, ".label") for value in (2, -1, 0.5, True, None, "1")],
        *[({**BOX, "width": value}, "") for value in (0, -3)],
        *[({**BOX, "height": value}, "") for value in (0, -3)],
        *[({**BOX, "width": value}, ".width") for value in (math.nan, True, "5", 1e6, None)],
        *[({**BOX, "height": value}, ".height") for value in (math.inf, [1], 1e9)],
        *[({**POINT, "frame": value}, ".frame") for value in (-1, 0.0, True, "0", None, 10**9, math.nan)],
    ],
)
def test_a_wrong_mark_is_named(mark, named):
    with pytest.raises(SAMError, match=rf"prompts\.marks\[1\]{named} ") as caught:
        parse_editor({"marks": [POINT, mark]})
    assert len(str(caught.value)) < 400, "whatever was sent, the error can be read"


def test_what_is_right_passes_as_it_was():
    marks = [POINT, {"x": -0.5, "y": 999_999, "label": 0, "frame": 999_999}, {**BOX, "frame": 0}]
    (parsed,) = parse_editor(text(*marks, candidate="middle")).objects
    assert list(parsed.marks) == marks and parsed.candidate == "middle"
    assert len(parse_editor({"marks": [POINT] * LIMITS.marks}).marks) == LIMITS.marks


def objects(*listed, size=None):
    """A text of version 2; an object is its marks, or a whole one."""
    whole = [one if isinstance(one, dict) else {"marks": one} for one in listed]
    return json.dumps({"version": 2, **({"size": size} if size else {}), "objects": whole})


OTHER = [{"x": 60, "y": 45, "label": 1}, {"x": 40, "y": 30, "width": 30, "height": 20}]


def test_marks_of_several_objects_name_theirs_and_those_of_one_do_not():
    positive, negative, boxes, *_, labels, _, _ = run(images(1), objects([POINT, AWAY], {"marks": OTHER, "name": "cup"}))
    assert json.loads(positive) == [{"x": 30, "y": 25, "object": 1}, {"x": 60, "y": 45, "object": 2}]
    assert json.loads(negative) == [{"x": 60.5, "y": 40, "object": 1}]
    assert boxes == [{"x": 40, "y": 30, "width": 30, "height": 20, "object": 2}] and labels == ["Object 1", "cup"]
    assert json.loads(run(images(1), objects([POINT]))[0]) == [{"x": 30, "y": 25}]


@pytest.mark.parametrize("candidates", [("best", "best"), ("smallest", "largest")])
def test_one_mask_per_object_is_what_sam_segment_gives_for_each(tiny_model, candidates):
    """Truth is the node for graphs, with each object's prompts on their own."""
    image, listed = images(2), ([POINT, AWAY], OTHER)
    both = objects(*({"marks": marks, "candidate": one} for marks, one in zip(listed, candidates, strict=True)))
    apart = PromptEditor().execute(image, both, tiny_model, individual_masks=True)["result"][3]
    expected = [run(image, text(*marks, candidate=one), tiny_model)[3] for marks, one in zip(listed, candidates, strict=True)]
    assert torch.equal(apart, torch.stack(expected, 1).flatten(0, 1)) and apart.shape == (4, 60, 80)
    assert torch.equal(run(image, both, tiny_model)[3], torch.stack(expected).amax(0))


def test_what_goes_out_makes_the_same_objects_in_sam_segment(tiny_model):
    """Both candidates best: the one that SAM Segment takes for all."""
    both = objects([POINT, AWAY], OTHER)
    positive, negative, boxes, masks, *_ = PromptEditor().execute(images(2), both, tiny_model, individual_masks=True)["result"]
    given = (tiny_model, images(2), positive, negative, boxes)
    assert torch.equal(Segment().execute(*given, individual_masks=True)[0], masks)


def test_a_cutout_is_the_image_with_the_mask_as_alpha(tiny_model):
    image = images(2)
    *_, masks, _, labels, cutout, _ = run(image, objects([POINT], OTHER), tiny_model)
    assert cutout.shape == (2, 60, 80, 4) and torch.equal(cutout[..., :3], image) and torch.equal(cutout[..., 3], masks)
    answer = PromptEditor().execute(image, objects([POINT], OTHER), tiny_model, individual_masks=True)["result"]
    assert torch.equal(answer[6][..., :3], image.repeat_interleave(2, 0)) and torch.equal(answer[6][..., 3], answer[3])
    grey = run(image[..., :1], objects([POINT]))[6]
    assert grey.shape == (2, 60, 80, 4) and not grey[..., 3].any() and torch.equal(grey[..., 2:3], image[..., :1])


def composed(document):
    """The layers over each other on a transparent canvas, straight colours and alpha `[H, W, 4]`.

    As ComfyUI's `comfy_extras/nodes_compositor.py` places them: a layer lies at (x, y) in its own size, later ones on top.
    """
    width, height = document["canvas"]
    colour, alpha = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for layer in document["layers"]:
        (own,) = layer["image"].numpy().astype(float)
        rows, columns = slice(layer["y"], layer["y"] + own.shape[0]), slice(layer["x"], layer["x"] + own.shape[1])
        below, over = alpha[rows, columns].copy(), own[..., 3:]
        alpha[rows, columns] = over + (1 - over) * below
        mixed = own[..., :3] * over + colour[rows, columns] * below * (1 - over)
        colour[rows, columns] = np.divide(mixed, alpha[rows, columns], out=np.zeros_like(mixed), where=alpha[rows, columns] > 0)
    return np.concatenate([colour, alpha], -1)


def test_layers_are_the_objects_cut_out_named_and_in_their_order(tiny_model):
    image = images(2)
    soft = {"marks": OTHER, "name": "cup", "finish": {"feather": 3}}
    prompts = objects([BOX], {"name": "nothing here"}, soft, {"name": "later", "marks": [{**POINT, "frame": 1}]})
    answer = PromptEditor().execute(image, prompts, tiny_model, individual_masks=True)["result"]
    masks, documents = answer[3].reshape(2, 3, 60, 80), answer[7]
    assert [[layer["name"] for layer in one["layers"]] for one in documents] == [
        ["Object 1", "cup"],
        ["Object 1", "cup", "later"],
    ]
    assert PromptEditor.OUTPUT_IS_LIST[7] and PromptEditor.RETURN_TYPES[7] == "LAYERS"
    for frame, document in enumerate(documents):
        assert (document["version"], document["canvas"]) == (1, (80, 60))
        for layer, mask in zip(document["layers"], masks[frame], strict=False):
            assert set(layer) == {"type", "image", "name", "x", "y"} and layer["type"] == "raster"
            alone = composed({**document, "layers": [layer]})
            np.testing.assert_allclose(alone[..., 3], mask, atol=1e-6)
            inside = mask.numpy() > 0
            np.testing.assert_allclose(alone[..., :3][inside], image[frame].numpy()[inside], atol=1e-6)
            assert layer["image"].shape[1:3] == tuple(
                side.stop - side.start for side in ndimage.find_objects(inside.astype(int))[0]
            )
        assert ((masks[frame][1] > 0) & (masks[frame][1] < 1)).any(), "soft edges stay soft"
        together = composed(document)
        np.testing.assert_allclose(together[..., 3], 1 - np.prod(1 - masks[frame].numpy(), 0), atol=1e-6)
    merged = PromptEditor().execute(image, prompts, tiny_model)["result"][7]
    assert [[layer["image"].shape for layer in one["layers"]] for one in merged] == [
        [layer["image"].shape for layer in one["layers"]] for one in documents
    ], "however the masks leave the node"


def test_a_layer_lies_where_its_object_does():
    image, mask = images(1), torch.zeros(60, 80)
    mask[12:20, 41:70] = 0.5
    document = layers_of(image, [mask], ["cup"])
    (layer,) = document["layers"]
    assert (layer["x"], layer["y"]) == (41, 12) and layer["image"].shape == (1, 8, 29, 4)
    np.testing.assert_allclose(composed(document)[..., 3], mask, atol=1e-6)


def test_without_objects_there_are_no_layers_and_a_grey_image_has_three_colours(tiny_model):
    assert [one["layers"] for one in run(images(2), objects([], []), tiny_model)[7]] == [[], []]
    image = images(1)[..., :1]
    (document,) = run(image, objects([BOX]), tiny_model)[7]
    (layer,) = document["layers"]
    rows, columns = (slice(layer[side], layer[side] + size) for side, size in zip("yx", layer["image"].shape[1:3], strict=True))
    assert torch.equal(layer["image"][..., :3], image[:, rows, columns].expand(-1, -1, -1, 3))


def test_an_object_without_marks_gives_no_mask_and_no_label(tiny_model):
    answer = PromptEditor().execute(images(1), objects([POINT], [], OTHER), tiny_model, individual_masks=True)["result"]
    assert len(answer[3]) == 2 and answer[5] == ["Object 1", "Object 3"]
    assert run(images(1), objects([], []), tiny_model)[5] == [""]


OUTSIDE = [{"x": 81, "y": 10, "label": 1}, {"x": 10, "y": -1, "label": 0}, {"x": 90, "y": 70, "width": 9, "height": 9}]


@pytest.mark.parametrize("form", [text, lambda *marks: objects(list(marks)), lambda *marks: objects(list(marks), OTHER)])
def test_marks_outside_of_the_image_are_ignored_by_the_run_and_said(tiny_model, form, caplog):
    image, kept = images(2), [POINT, {"x": 70, "y": 50, "width": 30, "height": 30}]
    with_them, without = run(image, form(*kept, *OUTSIDE), tiny_model), run(image, form(*kept), tiny_model)
    assert with_them[:3] == without[:3] and torch.equal(with_them[3], without[3]) and with_them[3].any()
    assert "ignores 3 marks outside the image of 80x60 pixels" in caplog.text
    Segment().execute(tiny_model, image, *with_them[:3])


def test_the_errors_name_is_short_and_it_can_be_pickled():
    """ComfyUI's dialog begins with the exception's module, which for a custom node is a path."""
    from samkit.nodes.editor.preview import RefusedError

    assert (SAMError.__module__, SAMError.__qualname__) == ("samkit", "SAMError")
    for error in (SAMError("bad input"), RefusedError(503, "busy")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and again.args == error.args and vars(again) == vars(error)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (7, 8), (60, 81), (33, 62), (9, 127)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_png_is_exactly_the_mask(size, share):
    mask = np.random.default_rng(1).random(size) < share
    edge = outline(mask)
    for form, inside in (("tint", 115), ("mask", 255), ("outline", 1)):
        image = Image.open(io.BytesIO(mask_png(mask, (30, 144, 255), form)))
        assert image.mode == "P" and image.size == size[::-1]
        pixels = np.array(image.convert("RGBA"))
        assert (pixels[..., 3] == np.where(edge, 255, np.where(mask, inside, 0))).all()
        assert (pixels[..., :3] == (30, 144, 255)).all()


def test_the_png_of_a_soft_mask_has_its_levels():
    mask = np.linspace(0, 1, 3000, dtype=np.float32).reshape(50, 60)
    alpha = {form: np.array(Image.open(io.BytesIO(mask_png(mask, (1, 2, 3), form))).convert("RGBA"))[..., 3] for form in FORMS}
    assert (alpha["mask"] == np.rint(255 * mask)).all()
    edge = outline(mask > 0.5)
    assert (alpha["tint"][edge] == 255).all() and (alpha["outline"] == np.where(edge, 255, mask > 0.5)).all()
    assert abs(alpha["tint"] - 115 * mask)[~edge].max() < 1.5


def test_the_png_is_small():
    mask = np.zeros((1024, 1024), bool)
    mask[100:900, 200:700] = True
    assert len(mask_png(mask, (1, 2, 3))) < 4000


def alpha_of(file):
    return np.array(Image.open(io.BytesIO(file)).convert("RGBA"))[..., 3]


def ragged_mask(name):
    """Everything of a photograph that is brighter than its median, on SAM's grid of 256, as large as the image in the model.

    No object's outline is as long: it goes around every hair and every leaf.
    """
    side, grid = (1024, 1024), (256, 256)
    levels = np.array(Image.open(photograph(name)).convert("L").resize(grid, Image.Resampling.LANCZOS), np.float32)
    return np.array(Image.fromarray(levels).resize(side, Image.Resampling.BILINEAR)) > np.median(levels)


@pytest.mark.parametrize("name", SIZES)
def test_the_image_of_a_ragged_mask_is_at_most_30_kb_and_exact(name):
    mask = ragged_mask(name)
    for form in FORMS:
        file, kind = mask_image(mask, (30, 144, 255), form)
        assert len(file) <= 30_000 and kind == f"image/{Image.open(io.BytesIO(file)).format.lower()}"
        exact = np.array(Image.open(io.BytesIO(mask_png(mask, (30, 144, 255), form))).convert("RGBA"))
        assert (np.array(Image.open(io.BytesIO(file)).convert("RGBA")) == exact).all()


@pytest.mark.parametrize("name", SIZES)
def test_a_ragged_mask_with_soft_edges_is_tinted_within_30_kb_and_its_inside_is_exact(name):
    mask = gaussian_filter(ragged_mask(name).astype(np.float32), 6)
    file, _ = mask_image(mask, (30, 144, 255), "tint")
    alpha = alpha_of(file)
    assert len(file) <= 30_000 and ((alpha >= 58) == (mask > 0.5)).all(), "the browser takes 58 and more as inside"
    exact, kind = mask_image(mask, (30, 144, 255), "mask")
    assert kind == "image/png" and (alpha_of(exact) == np.rint(255 * mask)).all(), "what OK takes has every level"


def test_the_soft_edge_of_an_object_is_tinted_in_16_levels_that_look_like_all():
    rows, columns = np.mgrid[:1024, :1024]
    angle = np.arctan2(rows - 500, columns - 520)
    wavy = np.hypot(rows - 500, columns - 520) < 300 + 60 * np.sin(5 * angle) + 30 * np.sin(17 * angle) + 12 * np.sin(
        61 * angle
    )
    mask = gaussian_filter(wavy.astype(np.float32), 6)
    alpha = alpha_of(mask_image(mask, (30, 144, 255), "tint")[0])
    edge = outline(mask > 0.5)
    assert abs(alpha - 115 * mask)[~edge].max() < 115 / 30 + 1.5 and len(np.unique(alpha)) == 17
    assert len(mask_image(mask, (30, 144, 255), "mask")[0]) < 50_000 < len(mask_png_without_filter(mask))


def mask_png_without_filter(mask):
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * mask).astype(np.uint8)).convert("P").save(file, format="PNG", compress_level=6)
    return file.getvalue()


def test_a_large_image_may_take_more():
    mask = np.repeat(np.repeat(ragged_mask("chelsea.png"), 2, 0), 2, 1)
    file, kind = mask_image(mask, (30, 144, 255))
    assert kind == "image/png" and 30_000 < len(file) <= 120_000


def test_images_are_named_by_their_content_and_written_once(comfy, monkeypatch):
    frames = [make_image(6, 8, seed) for seed in (0, 1, 0)]
    first, second, third = save_temporary(frames)
    assert first == third != second
    written = []
    monkeypatch.setattr(Image.Image, "save", lambda *args, **kwargs: written.append(args))
    assert save_temporary(frames) == [first, second, third] and not written
    assert sorted(file.suffix for file in (comfy.root / "temp").iterdir()) == [".png", ".png"]


def test_the_same_bytes_in_another_shape_are_another_image(comfy):
    frame = make_image(6, 8)
    one, other = save_temporary([frame, frame.reshape(8, 6, 3)])
    assert one != other and Image.open(comfy.root / "temp" / other["filename"]).size == (6, 8)


def test_a_save_that_fails_leaves_nothing_and_does_not_end_the_run(comfy, monkeypatch, caplog):
    real = Image.Image.save

    def full(self, file, **options):
        real(self, file, **options)
        Path(file).write_bytes(Path(file).read_bytes()[:20])
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        assert save_temporary([make_image(6, 8)]) == []
        assert save_results([Image.fromarray(make_image(6, 8))]) == []
    assert caplog.text.count("no space left on device") == 2
    assert not list((comfy.root / "temp").iterdir())
    (name,) = save_temporary([make_image(6, 8)])
    assert (np.array(Image.open(comfy.root / "temp" / name["filename"])) == make_image(6, 8)).all()


def test_the_temporary_folder_is_made_where_it_is_missing(comfy):
    (comfy.root / "temp").rmdir()
    assert len(save_temporary([make_image(6, 8)])) == len(list((comfy.root / "temp").iterdir())) == 1


@pytest.fixture
def files(comfy):
    """Images in ComfyUI's folders, one outside, and links in and out."""
    image = Image.fromarray(make_image(6, 8))
    (comfy.root / "input" / "sub" / "deep").mkdir(parents=True)
    (comfy.root / "outside").mkdir()
    for place in ("input/a.png", "input/sub/deep/b.png", "output/c.png", "temp/d.png", "outside/secret.png", "input2.png"):
        image.save(comfy.root / place)
    (comfy.root / "input" / "film.mp4").touch()
    for name, target in (
        ("inner.png", "sub/deep/b.png"),
        ("outer.png", "../outside/secret.png"),
        ("loop.png", "loop.png"),
        ("broken.png", "nowhere.png"),
        ("way", "../outside"),
        ("same", "sub"),
    ):
        (comfy.root / "input" / name).symlink_to(target)
    return comfy.root


def test_images_inside_comfyuis_folders_are_found(files):
    found = {
        ("a.png", "", "input"): "input/a.png",
        ("b.png", "sub/deep", "input"): "input/sub/deep/b.png",
        ("c.png", "", "output"): "output/c.png",
        ("d.png", "", "temp"): "temp/d.png",
        ("inner.png", "", "input"): "input/sub/deep/b.png",
        ("b.png", "same/deep", "input"): "input/sub/deep/b.png",
    }
    for names, place in found.items():
        assert image_path(*names) == (files / place).resolve(), names
        assert load_image_file(image_path(*names), names[2]).shape == (1, 6, 8, 3)


@pytest.mark.parametrize(
    ("filename", "subfolder", "kind"),
    [
        ("secret.png", "../outside", "input"),
        ("../outside/secret.png", "", "input"),
        ("../input2.png", "", "input"),
        ("outer.png", "", "input"),
        ("secret.png", "way", "input"),
        ("loop.png", "", "input"),
        ("broken.png", "", "input"),
        ("missing.png", "", "input"),
        ("a.png", "", "models"),
        ("a.png", "", "output"),
        ("film.mp4", "", "input"),
        ("", "", "input"),
        ("sub", "", "input"),
        (".", "", "input"),
        ("a.png\0", "", "input"),
        ("a.png", "\0", "input"),
        ("\ud800.png", "", "input"),
        ("a.png", "\udcff", "input"),
        ("x" * 5000 + ".png", "", "input"),
    ],
)
def test_everything_else_is_no_image(files, filename, subfolder, kind):
    assert image_path(filename, subfolder, kind) is None


@pytest.mark.parametrize(("filename", "subfolder"), [("outer.png", ""), ("secret.png", "way")])
def test_of_an_image_behind_a_link_the_editor_says_so(files, filename, subfolder):
    """Load Image follows the link, so "there is no such image" would send its user looking for a file that is there."""
    with pytest.raises(RefusedError, match=f"{filename} lies behind a link that leads out of ComfyUI's input folder") as error:
        find_image(parse_image({"image": {"filename": filename, "subfolder": subfolder, "type": "input"}}))
    assert error.value.status == 404


@pytest.mark.parametrize("filename", ["missing.png", "broken.png", "../outside/secret.png"])
def test_of_no_image_it_says_that_there_is_none(files, filename):
    assert not is_linked_out(filename, "", "input") and not is_linked_out("a.png", "", "models")


def test_absolute_names_are_no_images(files):
    secret = files / "outside" / "secret.png"
    assert image_path(str(secret), "", "input") is None
    assert image_path("secret.png", str(secret.parent), "input") is None


def test_outside_comfyui_there_are_no_images(tmp_path):
    assert image_path("a.png", "", "input") is None and not is_running()


def test_a_folder_that_is_itself_a_link_is_fine(files):
    (files / "real").mkdir()
    (files / "output").rename(files / "real" / "output")
    (files / "output").symlink_to(files / "real" / "output")
    path = image_path("c.png", "", "output")
    assert path == (files / "real" / "output" / "c.png").resolve()
    assert load_image_file(path, "output").shape == (1, 6, 8, 3)


def test_a_model_is_remembered_for_as_long_as_somebody_holds_it(tiny_sam, tmp_path):
    from samkit.sam import load_model

    torch.save(tiny_sam.state_dict(), tmp_path / "tiny.pth")
    model = load_model(tmp_path / "tiny.pth")
    model.mask_decoder.iou_token.weight.data += 1  # its own identity, whatever other tests hold
    identity = remember(model)
    assert recall(identity) is model and remember(model) == identity
    assert recall("another") is None
    del model
    assert recall(identity) is None


def test_quiet_work_neither_moves_the_bar_nor_answers_cancel(comfy):
    comfy.interrupted_after = 0
    with quietly():
        progress = Progress(3)
        progress.advance()
        progress.check_interrupted()
    assert not comfy.bars and comfy.interrupted_after == 0, "the Cancel is left for the queue"
    with pytest.raises(ValueError, match="broken"), quietly():
        raise ValueError("broken")
    Progress(3).advance()
    assert [(bar.total, bar.current) for bar in comfy.bars] == [(3, 1)], "and what comes after is loud again"


def test_quiet_is_only_the_thread_that_asked_for_it(comfy):
    from concurrent.futures import ThreadPoolExecutor

    with quietly(), ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: Progress(2).advance(2)).result()
    assert [bar.current for bar in comfy.bars] == [2]


def test_comfyui_runs_while_its_queue_says_so(comfy):
    assert not is_running()
    comfy.running["1"] = ("a prompt",)
    assert is_running()

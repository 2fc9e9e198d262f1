"""Real photographs through the pack: their shapes, gray ones, the editor. Never how well they are segmented."""

import numpy as np
import pytest
import torch
from browser import Editor, build
from conftest import as_image
from photographs import GRAY, SIZES, photograph
from PIL import Image
from reference import reference_prediction
from samkit.nodes.predict import Segment
from samkit.sam import Prompt, decode, encode
from samkit.sam.geometry import fit_long_side
from samkit.utils.images import cutout, image_to_frames
from segment_anything.utils.transforms import ResizeLongestSide

UPRIGHT = "upright_rocket.png"
IN_THE_EDITOR = ("coins.png", UPRIGHT)
SHOW = """(name) => {
  const loader = app.graph.nodes.find((one) => one.type === "LoadImage");
  const widget = loader.widgets.find((one) => one.name === "image");
  widget.value = name;
  widget.callback?.(name);
}"""


def opened(name):
    """As ComfyUI's Load Image opens it: uint8 [H, W, 3]."""
    return np.array(Image.open(photograph(name)).convert("RGB"))


@pytest.mark.parametrize("name", SIZES)
def test_an_image_keeps_every_level_of_a_photograph(name):
    pixels = opened(name)
    assert pixels.shape == (*SIZES[name][::-1], 3) and (Image.open(photograph(name)).mode == "L") == (name in GRAY)
    (back,) = image_to_frames(as_image(pixels))
    assert (back == pixels).all()


@pytest.mark.parametrize("upright", [False, True], ids=["as it is", "turned"])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("side", [128, 1024])
def test_a_photograph_lies_in_the_input_as_segment_anything_lays_it(name, upright, side):
    size = SIZES[name] if upright else SIZES[name][::-1]
    assert fit_long_side(size, side) == ResizeLongestSide.get_preprocess_shape(*size, side)


@pytest.mark.parametrize(("name", "upright"), [("chelsea.png", False), ("coins.png", False), ("rocket.jpg", True)])
def test_masks_of_a_photograph_are_those_of_segment_anything(name, upright, tiny_model, tiny_sam):
    pixels = np.rot90(opened(name)).copy() if upright else opened(name)
    height, width = pixels.shape[:2]
    point, box = np.array([[width * 0.6, height * 0.3]]), np.array([width * 0.2, height * 0.1, width * 0.9, height * 0.7])
    given = {"point_coords": point, "point_labels": np.array([1]), "box": box}
    ((masks, scores, logits),) = reference_prediction(tiny_sam, pixels, [given], multimask=False)
    embedding = encode(tiny_model, [pixels])
    found, iou, low = decode(tiny_model, embedding, [[Prompt(points=point, labels=np.array([1]), box=box)]])
    side = tiny_model.network.image_encoder.img_size
    assert embedding.input_size == ResizeLongestSide.get_preprocess_shape(height, width, side)
    assert tuple(found[0].shape) == masks.shape == (1, height, width)
    assert np.abs(low[0].numpy() - logits).max() < 1e-3 and np.abs(iou[0].numpy() - scores).max() < 1e-4
    assert (found[0].numpy() != masks).mean() < 1e-4


@pytest.mark.parametrize("name", GRAY)
def test_a_gray_photograph_of_one_channel_is_the_same_as_in_three(name, tiny_model):
    image = as_image(opened(name))
    click = '[{"x": 200, "y": 150}]'
    three, one = (Segment().execute(tiny_model, given, positive_coords=click)[0] for given in (image, image[..., :1]))
    assert three.shape == (1, *image.shape[1:3]) and torch.equal(three, one)


@pytest.mark.parametrize("name", ["chelsea.png", "camera.png"])
def test_a_cutout_of_a_photograph_is_the_photograph_where_the_mask_is(name):
    pixels = opened(name)
    mask = np.zeros(pixels.shape[:2], np.float32)
    mask[40:200, 90:260] = 1
    (cut,) = cutout(as_image(pixels), torch.from_numpy(mask)[None])
    saved = Image.fromarray((cut.numpy() * 255).round().astype(np.uint8))
    on_green = Image.new("RGBA", saved.size, "lime")
    on_green.alpha_composite(saved)
    assert (np.array(on_green)[..., :3] == np.where(mask[..., None] > 0, pixels, (0, 255, 0))).all()


@pytest.fixture(scope="module")
def photographs_in_input(editor_server):
    """The photographs where Load Image finds them, one of them turned upright."""
    folder = editor_server.base / "input"
    (folder / "coins.png").write_bytes(photograph("coins.png").read_bytes())
    Image.open(photograph("rocket.jpg")).transpose(Image.Transpose.ROTATE_90).save(folder / UPRIGHT)
    return folder


@pytest.mark.exhaustive  # half a minute in each renderer; the geometry is in the suite
@pytest.mark.comfyui
@pytest.mark.browser
def test_a_photograph_makes_the_round_through_the_editor(photographs_in_input, page, editor_server):
    """What is clicked is where it was clicked, and a run saves what was shown, at the photograph's own size."""
    for name in IN_THE_EDITOR:
        width, height = Image.open(photographs_in_input / name).size
        build(page)
        editor = Editor(page).ready()
        page.evaluate(SHOW, name)
        page.mouse.move(*editor.place(5, 5))
        editor.wait(f"editor.image?.width === {width} && editor.image.height === {height}")
        editor.click(0.3 * width, 0.8 * height)
        editor.drag((0.1 * width, 0.55 * height), (0.6 * width, 0.95 * height))
        point, box = editor.marks
        shown = editor.exact()
        pixel = width / editor.evaluate(
            "editor.view.toStage({ x: editor.image.width, y: 0 }).x - editor.view.toStage({ x: 0, y: 0 }).x"
        )
        assert abs(point["x"] - 0.3 * width) <= pixel + 1 and abs(point["y"] - 0.8 * height) <= pixel + 1
        assert abs(box["width"] - 0.5 * width) <= 2 * pixel + 1 and abs(box["height"] - 0.4 * height) <= 2 * pixel + 1
        assert shown.shape == (height, width) and shown.any()
        ((path,),) = editor_server.saved(page.evaluate("async () => (await app.graphToPrompt()).output")).values()
        assert ((np.array(Image.open(path).convert("L")) > 127) == shown).all()

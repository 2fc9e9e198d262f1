"""What nodes show of their results, in a real browser on a real ComfyUI, in both renderers."""

import io
import itertools
import json

import numpy as np
import pytest
from browser import Editor
from browser import build as build_editors
from PIL import Image
from samkit.utils.patches import parse_patch
from scipy.ndimage import binary_erosion
from test_grounding import folder, folder_copy  # noqa: F401  a fixture
from test_words_preview import TEXT, sure_folder  # noqa: F401  a fixture

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

BUILD = """
async ([amount, values, salt]) => {
  samkit.empty();
  for (const id of Object.keys(app.nodeOutputs ?? {})) delete app.nodeOutputs[id];
  const { add, link } = samkit;
  const loader = add("LoadImage", 20, 120, { image: "samkit_scene.png" });
  const batch = add("RepeatImageBatch", 20, 520, { amount });
  const model = add("AV_SAMLoader", 20, 640, { model_name: "samkit_demo.safetensors" });
  const points = add("PrimitiveStringMultiline", 20, 760, { value: `[{"x": ${209 + salt / 100}, "y": 386}]` });
  const nodes = { SAMKit_Segment: [360, 120], SAMKit_AutoMask: [720, 120] };
  link(loader, 0, batch, "image");
  for (const [type, [x, y]] of Object.entries(nodes)) {
    const node = add(type, x, y, { ...values[type], ...(type === "SAMKit_AutoMask" && { max_masks: 100 + salt }) });
    link(model, 0, node, "sam_model");
    link(batch, 0, node, "image");
    if (type === "SAMKit_Segment") link(points, 0, node, "positive_coords");
    const image = add("MaskToImage", x, 900);
    link(node, 0, image, "mask");
    const save = add("PreviewImage", x + 340, 900);
    link(image, 0, save, "images");
    nodes[type] = node.id;
  }
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [60, -60];
  app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 500));
  return nodes;
}
"""
QUICK = {"points_per_side": 6, "preset": "custom"}
_salts = itertools.count()


def build(page, amount, **values):
    """The graph, with something that no other has: ComfyUI says nothing of a node that is no output and did not run again."""
    nodes = {"SAMKit_Segment": {}, "SAMKit_AutoMask": QUICK} | values
    return page.evaluate(BUILD, [amount, nodes, next(_salts)])


def run(page, nodes, count):
    """Queue the graph as the button does, and wait until the nodes show `count` images each."""
    page.evaluate("() => app.queuePrompt(0, 1)")
    for node in nodes:
        page.wait_for_function(
            f"() => (app.nodeOutputs ?? {{}})[{node}]?.images?.filter(({{ type }}) => type === 'temp').length === {count}",
            timeout=60_000,
        )


def shown(page, node):
    """Addresses of the images that a node shows on the screen, whatever draws it."""
    return page.evaluate(
        """async (id) => {
          const node = app.graph.getNodeById(id);
          const seen = () => [
            ...(node.imgs ?? []).map((one) => one.src),
            ...[...document.querySelectorAll(`[data-node-id="${id}"] img`)].map((one) => one.src),
          ].filter((address) => address.includes("samkit_result"));
          for (let tries = 0; tries < 50 && !seen().length; tries += 1) await new Promise((done) => setTimeout(done, 100));
          return seen();
        }""",
        node,
    )


def test_nodes_show_their_result_after_a_run(page, editor_server):
    """Two frames: an image for each, as JPEG, with the mask of the leaf tinted, and a caption below."""
    nodes = build(page, 2)
    run(page, nodes.values(), 2)
    for node in nodes.values():
        assert shown(page, node), "the renderer draws it"
        names = page.evaluate("(id) => app.nodeOutputs[id].images", node)
        for name in names:
            assert set(name) == {"filename", "subfolder", "type"} and name["filename"].endswith(".jpg")
            image = Image.open(io.BytesIO(editor_server.request(f"/view?filename={name['filename']}&type=temp")))
            assert image.format == "JPEG" and image.width == 320 and image.height >= 240 + 20
            caption = np.array(image.convert("L"))[240:]
            assert (caption < 60).mean() > 0.5 and (caption > 200).any()
    # The nodes show their images before the run is over, and the history has it.
    page.evaluate("samkit.drained()")
    (prompt,) = editor_server.json("/history?max_items=1").values()
    entry = prompt["outputs"][str(nodes["SAMKit_Segment"])]
    assert set(entry) == {"images"}, "nothing of it stays in the history but file names"


def test_switched_off_they_show_nothing(page):
    nodes = build(page, 1, SAMKit_Segment={"show_result": False})
    run(page, [nodes["SAMKit_AutoMask"]], 1)
    assert page.evaluate("(id) => app.nodeOutputs[id]?.images ?? null", nodes["SAMKit_Segment"]) is None


def test_the_raw_parameters_of_segment_everything_are_folded_away(page):
    """In Nodes 2.0 by a button on the node, on the classic canvas by its menu."""
    nodes = build(page, 1, SAMKit_AutoMask={})
    visible = """(id) => {
      const node = app.graph.getNodeById(id);
      return node.widgets.filter((one) => node.isWidgetVisible(one)).map((one) => one.name);
    }"""
    node = nodes["SAMKit_AutoMask"]
    assert page.evaluate(visible, node) == ["max_masks", "device_mode", "preset", "hq", "show_result", "tiles"]
    if page.evaluate("app.extensionManager.setting.get('Comfy.VueNodes.Enabled')"):
        assert not page.locator(f'[data-node-id="{node}"]').get_by_text("points_per_side").is_visible()
        page.locator(f'[data-node-id="{node}"]').get_by_test_id("advanced-inputs-button").click()
        page.locator(f'[data-node-id="{node}"]').get_by_text("points_per_side").wait_for()
    else:
        page.evaluate("(id) => app.graph.getNodeById(id).toggleAdvanced()", node)
    assert page.evaluate(visible, node)[:2] == ["points_per_side", "points_per_batch"]
    saved = page.evaluate("(id) => app.graph.getNodeById(id).serialize().widgets_values", node)
    assert saved[:3] == [32, 64, 0.88] and saved[-5:] == ["AUTO", "custom", True, True, "off"], "new ones come after all others"


# --- everything under the pointer, and words

LEAF = (209, 386)
SIDES = ("x", "y", "width", "height")
SEGMENTS, FIND = "Find all segments of the image", "Find the objects that the words name"


@pytest.fixture
def editor(page):
    build_editors(page)
    return Editor(page).ready()


@pytest.fixture
def requests(page):
    """The editor's requests, as they are sent."""
    sent = []

    def note(request):
        if "/samkit/" in request.url:
            sent.append(request.url.partition("/samkit/")[2])

    page.on("request", note)
    yield sent
    page.remove_listener("request", note)


def press(editor, label):
    editor.page.get_by_label(label).filter(visible=True).click()


def server_segments(server):
    """What the server finds in the scene: masks bool [H, W], largest first."""
    subject = {"image": {"filename": "samkit_scene.png"}, "model": {"model_name": "samkit_demo.safetensors"}}
    for _ in range(200):
        status, _, said = server.send("/samkit/segments", json.dumps({**subject, "editor": "test"}).encode())
        if status == 200:
            break
    found = json.loads(said)
    masks = []
    for segment in found["segments"]:
        mask = np.zeros((found["height"], found["width"]), bool)
        patch = parse_patch({key: segment[key] for key in ("x", "y", "width", "height", "runs")})
        mask[patch.y : patch.y + patch.height, patch.x : patch.x + patch.width] = patch.kinds() == 1
        masks.append(mask)
    return masks


def place_on_top(masks, index):
    """A place that is well within what is seen of a mask under the smaller ones; None where there is none."""
    seen = masks[index] & ~np.any([np.zeros_like(masks[index]), *masks[index + 1 :]], axis=0)
    rows, columns = np.nonzero(binary_erosion(seen, iterations=5))
    return (int(columns[len(columns) // 2]), int(rows[len(rows) // 2])) if len(rows) else None


def test_segments_light_up_without_a_request_and_become_objects(editor, editor_server, requests):
    press(editor, SEGMENTS)
    editor.wait("editor.everything.state === 'ready'", timeout=60_000)
    assert "segments" in requests and "Found" in editor.evaluate("editor.everything.progress.element.textContent")
    masks = server_segments(editor_server)
    places = [(place, mask) for place, mask in ((place_on_top(masks, i), mask) for i, mask in enumerate(masks)) if place]
    (first, one), (second, other) = places[0], places[-1]
    assert len(places) > 1
    requests.clear()
    for place, mask in ((first, one), (second, other)):
        editor.page.mouse.move(*editor.place(place[0] - 4, place[1]))
        editor.page.mouse.move(*editor.place(*place), steps=3)
        shown = editor.lit("everything")
        assert (shown & mask).sum() >= 0.95 * (shown | mask).sum(), "the whole segment, sampled on the screen"
    assert requests == [] and not editor.marks
    editor.click(*first)
    (made,) = editor.state["objects"]
    assert not made["marks"] and len(made["paint"]) == 1 and (editor.exact() == one).all()
    editor.click(*second)
    editor.click(*first)
    assert len(editor.state["objects"]) == 2 and editor.evaluate("editor.state.current") == 0, "it is an object already"
    assert (editor.exact() == one | other).all()
    ((path,),) = editor_server.saved(saving(editor)).values()
    assert ((np.array(Image.open(path).convert("L")) > 127) == one | other).all(), "a run has the same pixels"
    editor.page.keyboard.press("Control+z")
    assert (editor.exact() == one).all(), "one object is one step"


def saving(editor):
    """The page's graph, whose image is saved anew: ComfyUI runs nothing again of what it has run."""
    graph = editor.page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in graph.values():
        if node["class_type"] == "SaveImage":
            node["inputs"]["filename_prefix"] = f"seen_{next(_salts)}"
    return graph


def test_finding_segments_shows_how_far_it_is_and_can_be_cancelled(editor, requests):
    slow = "many and small"
    editor.page.route("**/samkit/segments", lambda route: route.continue_(post_data=with_preset(route.request, slow)))
    press(editor, SEGMENTS)
    editor.wait("/[1-9]\\d* %/.test(editor.everything.progress.element.textContent)", timeout=60_000)
    editor.page.get_by_text("Cancel", exact=True).filter(visible=True).click()
    editor.wait("editor.everything.state === 'off' && editor.everything.progress.element.hidden")
    editor.page.unroute("**/samkit/segments")
    assert requests.count("cancel") == 1
    editor.page.mouse.move(*editor.place(*LEAF))
    assert not editor.lit("everything").any()


def with_preset(request, preset):
    return json.dumps({**request.post_data_json, "preset": preset})


def test_words_say_that_no_model_is_connected(editor):
    field = editor.page.get_by_label("Find objects by words").filter(visible=True)
    assert field.is_disabled() and field.get_attribute("placeholder") == "Connect grounding_model"
    assert field.get_attribute("title").startswith("Connect Load Grounding DINO to grounding_model")


def test_words_become_the_objects_of_segment_text(editor, editor_server, sure_folder):  # noqa: F811
    """Boxes, labels and masks are those of the node, which the same server runs."""
    target = editor_server.base / "models" / "grounding-dino" / "sure"
    if not target.is_dir():
        folder_copy(sure_folder, target)
    page = editor.page
    page.evaluate(
        """() => {
          const loader = samkit.add("SAMKit_GroundingLoader", 20, 760, { model_name: "sure" });
          samkit.link(loader, 0, app.graph.nodes.find((one) => one.type === "SAMKit_PromptEditor"), "grounding_model");
        }"""
    )
    field = page.get_by_label("Find objects by words").filter(visible=True)
    page.wait_for_function("() => !samkit.editor().words.field.disabled")
    field.fill(TEXT)
    field.press("Enter")
    editor.wait("editor.state.objects.some(({ name }) => name !== 'Object 1')", timeout=60_000)
    text, masks = segment_text(editor_server)
    objects = editor.state["objects"]
    # A box whose label is nothing but special tokens has none, and its object gets the editor's own name.
    names = [box["label"] or f"Object {number}" for number, box in enumerate(text, 1)]
    assert [one["name"] for one in objects] == names and len(text) > 1
    for one, box in zip(objects, text, strict=True):
        (mark,) = one["marks"]
        assert [mark[key] for key in SIDES] == pytest.approx([box[key] for key in SIDES], abs=0.011), "a hundredth, or more"
    for index, mask in enumerate(masks):
        found = editor.exact(index)
        assert (found & mask).sum() >= 0.99 * (found | mask).sum()


def segment_text(server):
    """The boxes and the masks of SAM Segment Text on the scene, by a run."""
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "samkit_scene.png"}},
        "2": {"class_type": "AV_SAMLoader", "inputs": {"model_name": "samkit_demo.safetensors"}},
        "3": {"class_type": "SAMKit_GroundingLoader", "inputs": {"model_name": "sure"}},
        "4": {
            "class_type": "SAMKit_SegmentText",
            "inputs": {
                "sam_model": ["2", 0],
                "grounding_model": ["3", 0],
                "image": ["1", 0],
                "text": TEXT,
                "box_threshold": 0.35,
                "text_threshold": 0.25,
                "nms_threshold": 0.7,
                "max_boxes": 0,
                "individual_masks": True,
            },
        },
        "5": {"class_type": "MaskToImage", "inputs": {"mask": ["4", 0]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": f"words_{next(_salts)}"}},
        "7": {"class_type": "PreviewAny", "inputs": {"source": ["4", 1]}},
    }
    entry = server.run(graph)
    masks = [
        np.array(Image.open(server.base / "output" / image["filename"]).convert("L")) > 127
        for image in entry["outputs"]["6"]["images"]
    ]
    return json.loads(entry["outputs"]["7"]["text"][0])[0], masks

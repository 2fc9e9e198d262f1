"""What nodes show of their results, in a real browser on a real ComfyUI, in both renderers."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

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
            assert image.format == "JPEG" and image.width == 320 and image.height >= 270
            caption = np.array(image.convert("L"))[240:]
            assert (caption < 60).mean() > 0.5 and (caption > 200).any()
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
    assert page.evaluate(visible, node) == ["max_masks", "device_mode", "preset", "hq", "show_result"]
    if page.evaluate("app.extensionManager.setting.get('Comfy.VueNodes.Enabled')"):
        assert not page.locator(f'[data-node-id="{node}"]').get_by_text("points_per_side").is_visible()
        page.locator(f'[data-node-id="{node}"]').get_by_test_id("advanced-inputs-button").click()
        page.locator(f'[data-node-id="{node}"]').get_by_text("points_per_side").wait_for()
    else:
        page.evaluate("(id) => app.graph.getNodeById(id).toggleAdvanced()", node)
    assert page.evaluate(visible, node)[:2] == ["points_per_side", "points_per_batch"]
    saved = page.evaluate("(id) => app.graph.getNodeById(id).serialize().widgets_values", node)
    assert saved[:3] == [32, 64, 0.88] and saved[-4:] == ["AUTO", "custom", True, True], "new ones come after all others"

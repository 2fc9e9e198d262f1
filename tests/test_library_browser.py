"""How the pack is found in a real browser: the search box, the blueprints, and the nodes in another language."""

import json

import numpy as np
import pytest
from browser import Editor, browser_page, open_page
from comfyui_server import Unavailable
from load_pack import ROOT
from make_blueprints import BLUEPRINTS
from PIL import Image
from world import unavailable

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

STORE = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('nodeDef')"
# What users type, and how far down the first of ours may be. ComfyUI sorts names before aliases; its own "Remove Background"
# has that name. For "sam" it shows what is used most first, which are its samplers: "sam s" is enough.
TYPED = {
    "select object": 1,
    "segment object": 1,
    "segment anything": 1,
    "mask from text": 1,
    "text to mask": 1,
    "cutout": 1,
    "cut out": 1,
    "click to mask": 1,
    "inpaint mask": 1,
    "grounding dino": 1,
    "magic wand": 1,
    "matting": 1,
    "object": 4,
    "remove background": 3,
    "background removal": 3,
    "SAM2": 3,
    "sam 2": 4,
    "sam s": 1,
    "sam": 20,
}
CONNECT = """
([name, values]) => {
  const node = app.graph.nodes.find((one) => one.title === name);
  samkit.link(samkit.add("LoadImage", 20, 120, { image: "samkit_scene.png" }), 0, node, "image");
  for (const one of node.widgets) if (one.name in values) one.value = values[one.name];
  const image = samkit.add("MaskToImage", 1250, 120);
  node.connect(node.outputs.findIndex((one) => one.name === "masks"), image, 0);
  const save = samkit.add("SaveImage", 1250, 260, { filename_prefix: name.split(" ")[0] });
  image.connect(0, save, 0);
  return save.id;
}
"""


@pytest.fixture(scope="module")
def library(editor_server):
    if editor_server.json("/system_stats")["system"]["comfyui_version"].startswith("0.3."):
        pytest.skip("this ComfyUI has another search box, and no blueprints of packs")
    try:
        with browser_page(editor_server) as page:
            yield page
    except Unavailable as reason:
        unavailable("browser", reason)


def test_what_users_type_finds_the_pack(library):
    """By the browser's own search, which orders all nodes and blueprints."""
    found = library.evaluate(
        f"(texts) => texts.map((text) => {STORE}.nodeSearchService.searchNode(text, [], {{limit: 64}})"
        ".map((node) => [node.display_name, node.python_module]))",
        list(TYPED),
    )
    names = {blueprint.name for blueprint in BLUEPRINTS}
    for (text, most), nodes in zip(TYPED.items(), found, strict=True):
        places = [place for place, (name, module) in enumerate(nodes, 1) if name in names or module.endswith("samkit")]
        assert places and places[0] <= most, (text, [name for name, _ in nodes[:6]])


def place(page, name):
    """Open the search box by a double click on the empty canvas, type what a blueprint is called, and take the first result."""
    page.evaluate(
        "() => { samkit.empty(); app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; app.canvas.draw(true, true); }"
    )
    page.mouse.dblclick(600, 150)
    page.get_by_role("search").locator("input").first.fill(name.split(" (")[0])
    result = page.get_by_test_id("result-item").filter(has_text=name).first
    result.wait_for()
    assert page.get_by_test_id("result-item").first.inner_text().startswith(name)
    result.click()
    page.wait_for_function("(name) => app.graph.nodes.some((one) => one.title === name)", arg=name)
    page.get_by_role("search").wait_for(state="hidden")
    page.mouse.click(600, 150)  # the pointer holds it until then
    page.wait_for_function("(name) => !app.graph.nodes.find((one) => one.title === name).flags.ghost", arg=name)


def test_a_blueprint_is_placed_from_the_search_box_and_runs(library, editor_server):
    (name,) = [blueprint.name for blueprint in BLUEPRINTS if blueprint.name.startswith("Segment everything")]
    place(library, name)
    save = library.evaluate(CONNECT, [name, {"max_masks": 3}])
    library.evaluate("() => app.queuePrompt(0, 1)")
    library.wait_for_function("(id) => app.nodeOutputs[id]?.images", arg=save, timeout=60_000)
    shown = library.evaluate("(id) => app.nodeOutputs[id].images[0].filename", save)
    assert np.asarray(Image.open(editor_server.base / "output" / shown)).max() == 255


def test_the_nodes_speak_chinese(library, editor_server):
    chinese = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))["SAMKit_Segment"]
    library.evaluate("() => app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    try:
        library.reload()
        library.wait_for_function(f"() => window.app?.graph && {STORE}?.nodeDefsByName.SAMKit_Segment")
        shown = library.evaluate(
            f"""() => {{
              const node = LiteGraph.createNode("SAMKit_Segment");
              const {{ display_name, description, category }} = {STORE}.nodeDefsByName.SAMKit_Segment;
              const sockets = Object.fromEntries(node.inputs.map((one) => [one.name, one.label ?? one.localized_name]));
              return [display_name, description, category, node.title, sockets, node.outputs.map((one) => one.localized_name)];
            }}"""
        )
    finally:
        library.evaluate("() => app.extensionManager.setting.set('Comfy.Locale', 'en')")
        open_page(library, editor_server)
    assert shown[:4] == [chinese["display_name"], chinese["description"], "Art Venture/分割", chinese["display_name"]]
    assert shown[4]["positive_coords"] == chinese["inputs"]["positive_coords"]["name"]
    assert shown[5] == [output["name"] for output in chinese["outputs"].values()]


def test_the_server_sends_every_language_and_blueprint(editor_server):
    sent = editor_server.json("/i18n")
    for path in (ROOT / "locales").glob("*/nodeDefs.json"):
        nodes = json.loads(path.read_text(encoding="utf-8"))
        assert {node_id: sent[path.parent.name]["nodeDefs"][node_id] for node_id in nodes} == nodes
    blueprints = {one["name"]: number for number, one in editor_server.json("/global_subgraphs").items()}
    for blueprint in BLUEPRINTS:
        data = editor_server.json(f"/global_subgraphs/{blueprints[blueprint.name]}")["data"]
        assert json.loads(data)["nodes"][0]["title"] == blueprint.name


OPEN = """
async (name) => {
  const node = app.graph.nodes.find((one) => one.title === name);
  app.canvas.setGraph(node.subgraph);
  const inner = node.subgraph.nodes.find((one) => one.type === "SAMKit_PromptEditor");
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [200 - inner.pos[0], 150 - inner.pos[1]];
  app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 1000));
}
"""


def test_an_object_is_selected_in_an_open_blueprint(library, editor_server):
    (name,) = [blueprint.name for blueprint in BLUEPRINTS if blueprint.name.startswith("Select an object")]
    place(library, name)
    save = library.evaluate(CONNECT, [name, {}])
    library.evaluate("(id) => { delete app.nodeOutputs[id]; }", save)  # of another test's graph
    library.evaluate(OPEN, name)
    editor = Editor(library).ready()
    editor.click(400, 300)
    assert len(editor.marks) == 1
    mask = editor.exact()
    library.evaluate("() => { app.canvas.setGraph(app.rootGraph ?? app.graph); return app.queuePrompt(0, 1); }")
    library.wait_for_function("(id) => app.nodeOutputs[id]?.images", arg=save, timeout=60_000)
    shown = library.evaluate("(id) => app.nodeOutputs[id].images[0].filename", save)
    found = np.asarray(Image.open(editor_server.base / "output" / shown).convert("L")) > 127
    assert found.any() and (found == mask).all()


@pytest.mark.parametrize("value", [None, False, 3, {}])
def test_a_value_other_than_text_leaves_the_marks(library, value):
    library.evaluate("() => { samkit.empty(); samkit.add('SAMKit_PromptEditor', 100, 100); }")
    kept = library.evaluate(
        """(value) => {
          const widget = app.graph.nodes.at(-1).widgets.find((one) => one.name === "prompts");
          widget.value = '{"version":1,"marks":[{"x":3,"y":4,"label":1}],"candidate":"best"}';
          widget.value = value;
          return widget.value;
        }""",
        value,
    )
    assert '"x":3' in kept

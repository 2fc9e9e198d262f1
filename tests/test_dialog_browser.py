"""The prompt editor as a dialog in a real browser: from its node, a subgraph's node, and the menu of nodes with an image."""

import itertools

import numpy as np
import pytest
from browser import Editor, build, open_page
from PIL import Image
from reference_sam2 import write_tiny
from samkit.sam.datasets.formats import data_set
from samkit.sam.datasets.objects import LabeledImage, LabeledMask
from samkit.sam.datasets.read import open_data_set

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

LEAF, STICKER = (209, 386), (380, 312)
DEMO, SAM_2 = "samkit_demo.safetensors", "sam2.1_hiera_tiny.pt"  # the latter with random weights
FEATHER = 6
HOST_ENTRIES = "app.canvas.getNodeMenuOptions(samkit.host).filter((one) => one?.content?.startsWith('Mark objects'))"
PREVIEWED = "app.nodeOutputs[app.graph.nodes.find((one) => one.type === 'PreviewImage').id]?.images?.length"
ENTRY = "app.canvas.getNodeMenuOptions(app.graph.nodes[0]).find((one) => one?.content === 'Select object with SAM')"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(editor_server):
    checkpoints = editor_server.base / "models" / "sams"
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_tiny(checkpoints / SAM_2)
    return editor_server


@pytest.fixture(autouse=True)
def fresh(page):
    """No dialog of the test before, and the demonstration model as the one that was used last."""
    page.evaluate(
        "(name) => { document.querySelector('.samkit-dialog')?.remove(); localStorage.setItem('samkit.model', name); }", DEMO
    )


class Dialog(Editor):
    """The dialog that is open, with its editor."""

    def __init__(self, page):
        page.locator(".samkit-dialog").wait_for()
        found = "[...document.querySelectorAll('.samkit-editor')].filter((one) => one.getBoundingClientRect().width).length - 1"
        super().__init__(page, page.evaluate(found))
        self.wait("editor.image && editor.preview.state.name !== 'preparing'")
        self.settle()

    def ok(self):
        self.page.get_by_role("button", name="OK", exact=True).click()
        self.closed()

    def closed(self):
        self.page.locator(".samkit-dialog").wait_for(state="detached")

    @property
    def said(self):
        return self.page.locator(".samkit-dialog-said").inner_text()


def open_from_node(page):
    page.get_by_label("Open in a dialog over the whole window").filter(visible=True).click()
    return Dialog(page)


def load_image(page, name="samkit_scene.png"):
    """A graph whose output is Load Image's mask."""
    page.evaluate(
        """async (name) => {
          samkit.empty();
          const { add, link } = samkit;
          const loader = add("LoadImage", 100, 120, { image: name });
          const mask = add("MaskToImage", 500, 120);
          const save = add("SaveImage", 800, 120, { filename_prefix: "mask" });
          link(loader, 1, mask, "mask");
          link(mask, 0, save, "images");
          app.canvas.ds.scale = 1;
          app.canvas.ds.offset = [40, 20];
          app.canvas.setDirty(true, true);
          await new Promise((done) => setTimeout(done, 800));
        }""",
        name,
    )


def select_object(page, kind="LoadImage"):
    """Take the entry of the node's own menu, by the right button on its title."""
    place = page.evaluate(
        """(kind) => {
          const node = app.graph.nodes.findLast((one) => one.type === kind);
          const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] - 12]);
          const { left, top } = app.canvas.canvas.getBoundingClientRect();
          return [left + x, top + y];
        }""",
        kind,
    )
    page.mouse.click(*place, button="right")
    entries = page.locator(".litemenu-entry, [role=menuitem]").filter(has_text="Select object with SAM")
    entries.filter(visible=True).click()
    return Dialog(page)


def api_graph(page):
    return page.evaluate("async () => (await app.graphToPrompt()).output")


def run(page, server):
    """The mask that a run of the graph saves, 0 to 255."""
    graph = api_graph(page)
    for node in graph.values():
        if node["class_type"] == "SaveImage":  # ComfyUI runs nothing again of what it has run
            node["inputs"]["filename_prefix"] = f"dialog_{next(_numbers)}"
    ((path,),) = server.saved(graph).values()
    return np.array(Image.open(path).convert("L"))


def prompts(page):
    return next(one["inputs"]["prompts"] for one in api_graph(page).values() if one["class_type"] == "SAMKit_PromptEditor")


def alpha_of(page, server):
    """What Load Image's file masks, 0 to 255."""
    name = page.evaluate("app.graph.nodes.findLast((one) => one.type === 'LoadImage').widgets[0].value")
    with Image.open(server.base / "input" / name.removesuffix(" [input]")) as file:
        return 255 - np.array(file)[..., 3]


def marks_in(text):
    return text.count('"label"')


def test_the_nodes_button_opens_its_marks_and_ok_is_one_step_of_undo(page):
    build(page)
    editor = Editor(page).ready()
    editor.click(*LEAF)
    before = editor.exact()
    dialog = open_from_node(page)
    assert (dialog.exact() == before).all() and dialog.marks == editor.marks
    page.keyboard.press("n")
    dialog.click(*STICKER)
    both = dialog.exact()
    assert len(editor.marks) == 1, "the node has it with OK only"
    dialog.ok()
    assert (editor.exact() == both).all() and both.sum() > before.sum()
    editor.evaluate("editor.stage.focus()")
    page.keyboard.press("Control+z")
    assert len(editor.marks) == 1, "what was done in the dialog is one step"


def test_escape_leaves_the_nodes_marks_and_asks_before_it_discards(page):
    build(page)
    editor = Editor(page).ready()
    editor.click(*LEAF)
    text = editor.evaluate("editor.text")
    open_from_node(page)
    page.keyboard.press("Escape")
    page.locator(".samkit-dialog").wait_for(state="detached")
    dialog = open_from_node(page)
    dialog.click(*STICKER)
    page.keyboard.press("Escape")
    assert dialog.evaluate("editor.state.selected") is None and not dialog.said, "at first it leaves the selection"
    page.keyboard.press("Escape")
    assert "Discard" in dialog.said and page.locator(".samkit-dialog").count()
    dialog.click(*STICKER, button="right")
    assert not dialog.said, "who goes on, goes on"
    for _ in range(3):
        page.keyboard.press("Escape")
    dialog.closed()
    assert editor.evaluate("editor.text") == text and not editor.evaluate("editor.state.canRedo")


def test_the_keys_in_the_dialog_are_no_keys_of_the_graph(page):
    build(page)
    Editor(page).ready().click(*LEAF)
    dialog = open_from_node(page)
    before = page.evaluate("() => { app.canvas.selectItems(app.graph.nodes); return app.graph.nodes.length; }")
    tab = "app.extensionManager.sidebarTab.activeSidebarTabId"
    opened, queued = page.evaluate(tab), []
    page.on("request", lambda request: queued.append(request.url) if request.url.endswith("/prompt") else None)
    page.get_by_role("button", name="Cancel", exact=True).focus()
    for key in ("Delete", "Control+z", "Control+v", "Backspace", "n", "w"):
        page.keyboard.press(key)
    dialog.evaluate("editor.stage.focus()")
    for key in ("Delete", "Control+z", "Control+z", "m", "."):
        page.keyboard.press(key)
    assert page.evaluate("app.graph.nodes.length") == before and page.evaluate(
        "app.graph.nodes.every(({ mode }) => mode === 0)"
    )
    assert page.evaluate(tab) == opened
    page.keyboard.press("Control+Enter")
    dialog.closed()
    page.wait_for_timeout(300)
    assert not [url for url in queued if "samkit" not in url], "Ctrl + Enter is OK, and runs nothing"


def test_without_a_model_in_the_graph_the_dialog_shows_masks_and_says_whose(page):
    build(page)
    page.evaluate(
        """() => {
          const node = app.graph.nodes.find((one) => one.type === "SAMKit_PromptEditor");
          node.disconnectInput(node.inputs.findIndex((one) => one.name === "sam_model"));
        }"""
    )
    page.wait_for_timeout(400)
    dialog = open_from_node(page)
    dialog.wait("editor.preview.state.name === 'ready' || editor.preview.state.name === 'idle'")
    dialog.click(*LEAF)
    assert dialog.exact().any()
    assert "this model is for the preview only" in page.locator(".samkit-dialog-word").inner_text()


# --- subgraphs


def into_subgraph(page):
    """The editor and its model in a subgraph, whose node is selected."""
    build(page)
    Editor(page).ready().click(*LEAF)
    page.evaluate(
        """async () => {
          const of = (type) => app.graph.nodes.find((one) => one.type === type);
          app.graph.convertToSubgraph(new Set([of("AV_SAMLoader"), of("SAMKit_PromptEditor")]));
          await new Promise((done) => setTimeout(done, 800));
          samkit.host = app.graph.nodes.find((one) => one.subgraph);
          app.canvas.selectItems([samkit.host]);
          await new Promise((done) => setTimeout(done, 500));
        }"""
    )


def open_from_host(page):
    """By the button on the subgraph's node; older front ends have none, and the entry of its menu is taken."""
    button = page.evaluate(
        """() => {
          const widget = samkit.host.widgets.find(({ type }) => type === "button");
          if (!widget || window.LiteGraph.vueNodesMode) return widget ? "html" : null;
          const { pos, size } = samkit.host;
          const [x, y] = app.canvas.ds.convertOffsetToCanvas([pos[0] + size[0] / 2, pos[1] + widget.y + 8]);
          const { left, top } = app.canvas.canvas.getBoundingClientRect();
          return [left + x, top + y];
        }"""
    )
    if button == "html":
        page.get_by_role("button", name="Mark objects with SAM").click()
    elif button:
        page.mouse.click(*button)
    else:
        page.evaluate(
            "app.canvas.getNodeMenuOptions(samkit.host).find((one) => one?.content === 'Mark objects with SAM').callback()"
        )
    return Dialog(page)


def test_a_subgraphs_node_opens_the_editor_inside(page, server):
    into_subgraph(page)
    dialog = open_from_host(page)
    assert len(dialog.marks) == 1, "it goes on with the marks of the editor inside"
    page.keyboard.press("n")
    dialog.click(*STICKER)
    mask = dialog.exact()
    dialog.ok()
    assert marks_in(prompts(page)) == 2
    assert ((run(page, server) > 127) == mask).all()
    page.evaluate("async () => { const graph = app.graph.serialize(); samkit.empty(); await app.loadGraphData(graph); }")
    page.wait_for_timeout(800)
    page.evaluate("() => { samkit.host = app.graph.nodes.find((one) => one.subgraph); }")
    assert marks_in(prompts(page)) == 2 and len(open_from_host(page).marks) == 2, "saved and loaded it is the same"


def test_an_editor_that_is_shown_on_the_subgraphs_node_works_there(page, server):
    """Newer front ends give the subgraph's node a value of its own, which a run takes, and show nothing for it."""
    into_subgraph(page)
    page.evaluate("app.extensionManager.command.execute('Comfy.Graph.EditSubgraphWidgets')")
    row = page.locator("text=prompts").filter(visible=True).last
    row.wait_for()
    box = row.bounding_box()
    page.mouse.click(page.viewport_size["width"] - 31, box["y"] + box["height"] / 2 - 8)
    page.locator(".samkit-editor").filter(visible=True).wait_for()
    page.evaluate("() => { samkit.host.setSize([480, 640]); }")
    page.wait_for_timeout(600)
    editor = Editor(page).ready()
    assert len(editor.marks) == 1
    editor.click(*STICKER)
    assert marks_in(prompts(page)) == 2
    assert ((run(page, server) > 127) == editor.exact()).all()
    dialog = open_from_node(page)
    dialog.click(600, 300)
    mask = dialog.exact()
    dialog.ok()
    page.wait_for_timeout(600)
    assert marks_in(prompts(page)) == 3 and len(editor.marks) == 3
    assert ((run(page, server) > 127) == mask).all()
    page.evaluate("async () => { const graph = app.graph.serialize(); samkit.empty(); await app.loadGraphData(graph); }")
    page.locator(".samkit-editor").filter(visible=True).wait_for()
    page.wait_for_timeout(600)
    assert marks_in(prompts(page)) == 3 and len(editor.marks) == 3, "saved and loaded it is the same"


def test_a_subgraphs_button_follows_what_is_inside(page):
    into_subgraph(page)
    entries = f"{HOST_ENTRIES}.map((one) => one.content)"
    assert page.evaluate(entries) == ["Mark objects with SAM"]
    page.evaluate(
        """async () => {
          const { subgraph } = samkit.host;
          const other = LiteGraph.createNode("SAMKit_PromptEditor");
          other.title = "Second";
          subgraph.add(other);
          app.canvas.setGraph(subgraph);
          app.canvas.setGraph(app.rootGraph ?? app.graph);
          const { changeTracker } = app.extensionManager.workflow.activeWorkflow;
          (changeTracker.captureCanvasState ?? changeTracker.checkState).call(changeTracker);
          await new Promise((done) => setTimeout(done, 500));
        }"""
    )
    assert page.evaluate(entries) == ["Mark objects: SAM Prompt Editor", "Mark objects: Second"]
    buttons = page.evaluate("samkit.host.widgets.filter(({ type }) => type === 'button').map(({ name }) => name)")
    assert buttons in ([], page.evaluate(entries))


def test_two_nodes_of_one_subgraph_open_their_own_images(page, server):
    """The image and the model come from outside; what is marked is the editor's inside, and so of both."""
    with Image.open(server.base / "input" / "samkit_scene.png") as scene:
        scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(server.base / "input" / "mirrored.png")
    build(page)
    Editor(page).ready()
    page.evaluate(
        """async () => {
          const of = (type) => app.graph.nodes.find((one) => one.type === type);
          app.graph.convertToSubgraph(new Set([of("SAMKit_PromptEditor")]));
          await new Promise((done) => setTimeout(done, 800));
          samkit.host = app.graph.nodes.find((one) => one.subgraph);
          const { type } = samkit.host;
          const loader = samkit.add("LoadImage", 20, 900);
          const widget = loader.widgets.find((one) => one.name === "image");
          widget.options.values.push?.("mirrored.png");
          widget.value = "mirrored.png";
          samkit.other = samkit.add(type, 900, 500);
          samkit.link(loader, 0, samkit.other, "image");
          samkit.link(of("AV_SAMLoader"), 0, samkit.other, "sam_model");
          const mask = samkit.add("MaskToImage", 1300, 500);
          samkit.other.connect(samkit.other.outputs.findIndex((one) => one.type === "MASK"), mask, 0);
          samkit.link(mask, 0, samkit.add("SaveImage", 1600, 500, { filename_prefix: "other" }), "images");
          await new Promise((done) => setTimeout(done, 800));
        }"""
    )
    for host, name, place in (("host", "samkit_scene.png", LEAF), ("other", "mirrored.png", (640 - LEAF[0], LEAF[1]))):
        page.evaluate(
            f"app.canvas.getNodeMenuOptions(samkit.{host}).find((one) => one?.content === 'Mark objects with SAM').callback()"
        )
        dialog = Dialog(page)
        assert dialog.evaluate("editor.images[0].filename") == name
        dialog.evaluate("editor.state.clear()")
        dialog.click(*place)
        mask = dialog.exact()
        dialog.ok()
        assert mask.any()
        graph = api_graph(page)
        texts = [one["inputs"]["prompts"] for one in graph.values() if one["class_type"] == "SAMKit_PromptEditor"]
        assert len(texts) == 2 and len(set(texts)) == 1, "both nodes have the marks of the one editor inside"
        seen = {str(np.array(image).tobytes()) for image in masks_of(server, graph)}
        assert str(mask.tobytes()) in seen, "a run of that node gives what was seen"


def masks_of(server, graph):
    """What a run of the graph saves: masks bool [H, W]."""
    for node in graph.values():
        if node["class_type"] == "SaveImage":
            node["inputs"]["filename_prefix"] = f"dialog_{next(_numbers)}"
    return [np.array(Image.open(path).convert("L")) > 127 for (path,) in server.saved(graph).values()]


def test_an_editor_two_subgraphs_deep_opens_on_the_image_from_outside(page, server):
    into_subgraph(page)
    page.evaluate(
        """async () => {
          const mask = app.graph.nodes.find((one) => one.type === "MaskToImage");
          app.graph.convertToSubgraph(new Set([samkit.host, mask]));
          await new Promise((done) => setTimeout(done, 800));
          samkit.host = app.graph.nodes.find((one) => one.subgraph);
          app.canvas.selectItems([samkit.host]);
          await new Promise((done) => setTimeout(done, 500));
        }"""
    )
    dialog = open_from_host(page)
    assert len(dialog.marks) == 1 and dialog.evaluate("editor.images[0].filename") == "samkit_scene.png"
    page.keyboard.press("n")
    dialog.click(*STICKER)
    mask = dialog.exact()
    dialog.ok()
    assert marks_in(prompts(page)) == 2 and ((run(page, server) > 127) == mask).all()
    before = prompts(page)
    page.evaluate("async () => { const graph = app.graph.serialize(); samkit.empty(); await app.loadGraphData(graph); }")
    page.wait_for_timeout(800)
    assert prompts(page) == before, "saved and loaded it is the same"


# --- the masks of images


def test_load_images_mask_is_the_selection_with_its_soft_edges(page, server):
    load_image(page)
    dialog = select_object(page)
    dialog.click(*LEAF)
    dialog.evaluate(f"editor.state.setFinish(null, {{ feather: {FEATHER} }})")
    levels = dialog.levels()
    assert len(np.unique(levels)) > 20, "the edge is soft"
    dialog.ok()
    assert (alpha_of(page, server) == levels).all()
    masked = run(page, server)
    assert abs(masked.astype(int) - levels).max() <= 1, "SaveImage rounds down"
    graph = page.evaluate("app.graph.serialize()")
    page.evaluate("async (graph) => { samkit.empty(); await app.loadGraphData(graph); }", graph)
    page.wait_for_timeout(800)
    assert (run(page, server) == masked).all(), "saved and loaded it is the same"
    dialog = select_object(page)
    assert len(dialog.marks) == 1 and (dialog.levels() == levels).all(), "it goes on with its marks"
    assert dialog.evaluate("editor.images[0].filename") == "samkit_scene.png", "on the image, not on the one with the hole"


def test_escape_and_nothing_marked_leave_load_image_as_it_was(page):
    load_image(page)
    graph = api_graph(page)
    dialog = select_object(page)
    dialog.ok()
    assert api_graph(page) == graph
    dialog = select_object(page)
    dialog.click(*LEAF)
    for _ in range(3):
        page.keyboard.press("Escape")
    dialog.closed()
    assert api_graph(page) == graph
    dialog = select_object(page)
    dialog.click(*LEAF)
    dialog.ok()
    assert api_graph(page) != graph
    dialog = select_object(page)
    dialog.evaluate("editor.state.clear()")
    dialog.ok()
    assert api_graph(page) == graph, "without marks the image is the one of before"


def test_a_loaded_workflow_misses_no_mask_that_is_there(page, server):
    """Newer front ends call an image missing that is not in the node's list, and ComfyUI lists nothing of clipspace."""
    load_image(page)
    dialog = select_object(page)
    dialog.click(*LEAF)
    dialog.ok()
    graph = page.evaluate("app.graph.serialize()")
    mask = graph["nodes"][0]["widgets_values"][0]
    page.evaluate("() => { samkit.listed = LiteGraph.createNode('LoadImage').constructor.nodeData.input.required.image[0]; }")
    load = """async ([graph, mask]) => {
      const lists = app.graph.nodes.map(({ widgets }) => widgets?.[0]?.options?.values);
      for (const list of [samkit.listed, ...lists].filter(Array.isArray)) {
        const at = list.indexOf(mask);
        if (at >= 0) list.splice(at, 1); // as after a reload of the page
      }
      await app.loadGraphData(graph);
      await new Promise((done) => setTimeout(done, 600));
      const node = app.graph.nodes.find((one) => one.type === "LoadImage");
      return [node.widgets[0].value, node.widgets[0].options.values.includes(mask)];
    }"""
    assert page.evaluate(load, [graph, mask]) == [mask, True]
    assert not page.get_by_text("Media input missing").count()
    (server.base / "input" / mask.removesuffix(" [input]")).unlink()
    assert page.evaluate(load, [graph, mask]) == [mask, False], "what is really gone may be called missing"


def test_a_file_that_is_gone_is_said_to_be_gone_with_nothing_to_run(page, server):
    file = server.base / "input" / "gone.png"
    with Image.open(server.base / "input" / "samkit_scene.png") as scene:
        scene.save(file)
    load_image(page, "gone.png")
    file.unlink()
    page.evaluate(f"{ENTRY}.callback()")
    page.get_by_text("This image cannot be loaded").wait_for()
    assert not page.get_by_role("button", name="Run what the image needs").filter(visible=True).count()


def test_an_image_of_comfyuis_mask_editor_is_selected_in_with_its_colours(page, server):
    """Its name leads into clipspace and ends with the folder's; its alpha is the mask of before."""
    folder = server.base / "input" / "clipspace"
    folder.mkdir(exist_ok=True)
    scene = np.array(Image.open(server.base / "input" / "samkit_scene.png").convert("RGBA"))
    scene[100:300, 100:300, 3] = 0
    Image.fromarray(scene).save(folder / "clipspace-painted-masked-1764000000000.png")
    load_image(page, "clipspace/clipspace-painted-masked-1764000000000.png [input]")
    dialog = select_object(page)
    shown = dialog.evaluate("editor.images[0]")
    assert shown == {"filename": "clipspace-painted-masked-1764000000000.png", "subfolder": "clipspace", "type": "input"}
    dialog.click(*LEAF)
    mask = dialog.exact()
    levels = dialog.levels()
    dialog.ok()
    assert mask.any() and (alpha_of(page, server) == levels).all(), "the mask is the selection, and not the one of before"
    assert ((run(page, server) > 127) == mask).all()
    name = page.evaluate("app.graph.nodes.findLast((one) => one.type === 'LoadImage').widgets[0].value")
    with Image.open(server.base / "input" / name.removesuffix(" [input]")) as file:
        assert (np.array(file)[..., :3] == scene[..., :3]).all(), "the colours below the mask of before are there"
    dialog = select_object(page)
    assert len(dialog.marks) == 1 and (dialog.exact() == mask).all(), "it goes on with its marks"


def test_an_empty_dialog_says_what_to_do(page):
    load_image(page)
    dialog = select_object(page)
    assert dialog.status.startswith("Click the object, or drag a box around it"), dialog.status
    dialog.click(*LEAF)
    dialog.settle()
    assert "score" in dialog.status


@pytest.mark.parametrize("ends", ["app.graph.remove(samkit.node)", "samkit.empty()"])
def test_a_node_that_is_gone_takes_no_selection_and_says_so(page, ends):
    load_image(page)
    dialog = select_object(page)
    dialog.click(*LEAF)
    page.evaluate("() => { samkit.node = app.graph.nodes.find((one) => one.type === 'LoadImage'); }")
    page.evaluate(f"() => {{ {ends}; }}")
    page.get_by_role("button", name="OK", exact=True).click()
    page.get_by_text("This node is no longer in the workflow").first.wait_for()
    assert page.get_by_text("Select object with SAM", exact=True).filter(visible=True).count(), "whose word it is"
    assert len(dialog.marks) == 1, "the dialog still has them"


def test_nothing_of_the_dialog_is_cut_off(page, server):
    name = f"{'a_long_name_' * 10}.png"
    with Image.open(server.base / "input" / "samkit_scene.png") as scene:
        scene.save(server.base / "input" / name)
    load_image(page, name)
    dialog = select_object(page)
    size = page.viewport_size
    page.set_viewport_size({"width": 800, "height": 600})
    try:
        title, panel = (page.locator(f".samkit-dialog-{one}").bounding_box() for one in ("head strong", "panel"))
    finally:
        page.set_viewport_size(size)
    assert title["x"] + title["width"] <= panel["x"] + panel["width"], "the title is within the panel"
    page.keyboard.press("Escape")
    dialog.closed()
    build(page)
    open_from_node(page)
    room = """() => {
      const field = document.querySelector(".samkit-dialog .samkit-words");
      const context = new OffscreenCanvas(1, 1).getContext("2d");
      context.font = getComputedStyle(field).font;
      return field.clientWidth - 8 - context.measureText(field.placeholder).width;
    }"""
    assert page.evaluate(room) > 16, "the words' field shows what it needs, beside the room for its own button"


def test_another_image_begins_without_marks(page, server):
    load_image(page)
    dialog = select_object(page)
    dialog.click(*LEAF)
    dialog.ok()
    with Image.open(server.base / "input" / "samkit_scene.png") as scene:
        scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(server.base / "input" / "flipped.png")
    page.evaluate(
        """() => {
          const widget = app.graph.nodes.find((one) => one.type === "LoadImage").widgets.find(({ name }) => name === "image");
          widget.options.values.push?.("flipped.png");
          widget.value = "flipped.png";
          widget.callback?.("flipped.png");
        }"""
    )
    dialog = select_object(page)
    assert not dialog.marks and dialog.evaluate("editor.images[0].filename") == "flipped.png"


def test_a_photograph_that_is_stored_on_its_side_gets_its_mask_where_it_is_seen(page, server):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    with Image.open(server.base / "input" / "samkit_scene.png") as scene:
        scene.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(
            server.base / "input" / "side.jpg", exif=exif, quality=95
        )
    load_image(page, "side.jpg")
    dialog = select_object(page)
    assert dialog.evaluate("[editor.image.width, editor.image.height]") == [640, 480]
    dialog.click(*LEAF)
    mask = dialog.exact()
    dialog.ok()
    assert ((run(page, server) > 127) == mask).all()


def test_an_image_that_a_run_made_gets_a_load_image_beside_its_node(page, server):
    load_image(page)
    page.evaluate(
        """async () => {
          const { add, link } = samkit;
          const preview = add("PreviewImage", 500, 400);
          link(app.graph.nodes.find((one) => one.type === "LoadImage"), 0, preview, "images");
          add("SaveImage", 780, 380);
          await app.queuePrompt(0, 1);
        }"""
    )
    page.wait_for_function(
        "app.nodeOutputs[app.graph.nodes.find((one) => one.type === 'PreviewImage').id]?.images?.length", timeout=20_000
    )
    page.wait_for_timeout(600)
    dialog = select_object(page, "PreviewImage")
    dialog.click(*LEAF)
    mask = dialog.exact()
    dialog.ok()
    overlaps = """() => {
      const boxes = app.graph.nodes.map(({ pos, size }) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]);
      const last = boxes.at(-1);
      const isOn = (one) => one[0] < last[2] && last[0] < one[2] && one[1] < last[3] && last[1] < one[3];
      return boxes.slice(0, -1).filter(isOn).length;
    }"""
    assert (
        page.evaluate("app.graph.nodes.filter((one) => one.type === 'LoadImage').length") == 2 and page.evaluate(overlaps) == 0
    )
    assert ((alpha_of(page, server) > 127) == mask).all()
    name = page.evaluate("app.graph.nodes.at(-1).widgets[0].value")
    with Image.open(server.base / "input" / name.removesuffix(" [input]")) as file:
        pixels = np.array(file)
    scene = np.array(Image.open(server.base / "input" / "samkit_scene.png").convert("RGB"))
    assert (pixels[..., :3] == scene).all(), "the colours below the mask are there"
    dialog = select_object(page)
    assert len(dialog.marks) == 1 and (dialog.exact() == mask).all()
    least = dialog.evaluate(
        """(() => {
          const { image } = editor;
          const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
          context.drawImage(image, 0, 0);
          const { data } = context.getImageData(0, 0, image.width, image.height);
          return data.reduce((least, value, i) => (i % 4 === 3 ? Math.min(least, value) : least), 255);
        })()"""
    )
    assert least == 255, "the image that is shown has no hole"


@pytest.mark.parametrize(
    ("images", "has_entry"), [(None, False), (["a.mp4"], False), (["a.png"], True), (["a.png", "b.webm"], True)], ids=str
)
def test_the_menu_has_the_entry_where_there_is_an_image(page, images, has_entry):
    page.evaluate("samkit.empty()")
    entries = page.evaluate(
        """(images) => {
          for (const id of Object.keys(app.nodeOutputs)) delete app.nodeOutputs[id]; // of other tests' nodes
          const node = samkit.add("PreviewImage", 100, 100);
          if (images) node.images = images.map((filename) => ({ filename, subfolder: "", type: "output" }));
          return app.canvas.getNodeMenuOptions(node).filter((one) => one?.content === "Select object with SAM").length;
        }""",
        images,
    )
    assert entries == (1 if has_entry else 0)


def test_the_model_is_the_one_used_last_else_the_smallest_that_is_there_else_the_bundled_one_with_a_word(page, server):
    load_image(page)
    choice, word = page.get_by_label("Model", exact=True), page.locator(".samkit-dialog-word")
    page.evaluate("localStorage.removeItem('samkit.model')")
    dialog = select_object(page)
    choice.wait_for()
    assert choice.input_value() == SAM_2 and not word.inner_text(), "the bundled one comes last, however small it is"
    choice.select_option(DEMO)
    assert "drawn scenes" in word.inner_text()
    page.keyboard.press("Escape")
    dialog.closed()
    select_object(page)
    choice.wait_for()
    page.wait_for_function("document.querySelector('.samkit-dialog select').value")
    assert choice.input_value() == DEMO


def test_while_comfyui_runs_the_mask_waits_and_then_comes(page, server):
    """The server refuses a preview while a prompt runs."""
    load_image(page)
    dialog = select_object(page)
    dialog.click(*LEAF)
    mask = dialog.exact()
    busy = {"status": 503, "content_type": "application/json", "body": '{"error": "ComfyUI is running a prompt."}'}
    refused = itertools.count()

    def answer(route):
        if next(refused) < 2:
            route.fulfill(**busy)
        else:
            route.continue_()

    page.route("**/samkit/preview", answer)
    try:
        page.get_by_role("button", name="OK", exact=True).click()
        page.get_by_text("The mask is made afterwards").wait_for()
        dialog.closed()
    finally:
        page.unroute("**/samkit/preview")
    assert ((run(page, server) > 127) == mask).all()


def test_closed_dialogs_leave_nothing(page):
    load_image(page)
    kept = page.evaluate(
        """async () => {
          const pause = (time) => new Promise((done) => setTimeout(done, time));
          const node = app.graph.nodes.find((one) => one.type === "LoadImage");
          const entry = app.canvas.getNodeMenuOptions(node).find((one) => one?.content === "Select object with SAM");
          const before = document.querySelectorAll("*").length;
          const seen = [];
          for (let time = 0; time < 20; time += 1) {
            entry.callback();
            const editor = document.querySelector(".samkit-dialog .samkit-editor").samkit;
            seen.push(editor);
            while (!editor.image) await pause(20);
            for (let tries = 0; tries < 3 && document.querySelector(".samkit-dialog"); tries += 1) {
              document.querySelector(".samkit-dialog-foot button").click();
            }
          }
          await pause(300);
          const alive = seen.filter((one) => one.image || one.preview.state.name !== "idle");
          return [alive.length, document.querySelectorAll("*").length - before];
        }"""
    )
    assert kept[0] == 0 and kept[1] < 20


def test_twenty_more_openings_leave_no_nodes_and_no_listeners(page, server):
    """Chromium's own counts after it has collected garbage: what an opening leaves, in the page or out of it, adds up.

    The page itself may still change, so that one twenty of four need leave nothing. A fresh one shows nothing of earlier runs.
    """
    open_page(page, server)
    load_image(page)
    browser = page.context.new_cdp_session(page)
    browser.send("HeapProfiler.enable")
    browser.send("Performance.enable")

    def open_and_close(times):
        page.evaluate(
            """async (times) => {
              const pause = (time) => new Promise((done) => setTimeout(done, time));
              const node = app.graph.nodes.find((one) => one.type === "LoadImage");
              const entry = app.canvas.getNodeMenuOptions(node).find((one) => one?.content === "Select object with SAM");
              for (let time = 0; time < times; time += 1) {
                entry.callback();
                const { samkit: editor } = document.querySelector(".samkit-dialog .samkit-editor");
                while (!editor.image || editor.preview.state.name !== "ready") await pause(20);
                if (time % 10 === 0) {
                  editor.state.add({ x: 209, y: 386, label: 1 });
                  while (!editor.mask) await pause(20);
                }
                const close = document.querySelector(".samkit-dialog-foot button");
                while (document.querySelector(".samkit-dialog")) close.click();
              }
            }""",
            times,
        )

    def counts():
        """The least of a few counts: what is freed by a later collection was not left behind."""
        seen = []
        for _ in range(6):
            page.wait_for_timeout(200)
            browser.send("HeapProfiler.collectGarbage")
            found = {one["name"]: one["value"] for one in browser.send("Performance.getMetrics")["metrics"]}
            seen.append((found["Nodes"], found["JSEventListeners"]))
        return tuple(map(min, zip(*seen, strict=True)))

    seen = []
    for _ in range(4):
        open_and_close(20)
        seen.append(counts())
    assert any(one == after for one, after in itertools.pairwise(seen)), seen


def test_masks_of_a_data_set_are_corrected_from_image_to_image(page, server):
    """A COCO file of two images: a click adds an object to the first, which is accepted; the second is not touched."""
    folder = server.base / "input" / f"pets_{next(_numbers)}"
    (folder / "images").mkdir(parents=True)
    with Image.open(server.base / "input" / "samkit_scene.png") as scene:
        width, height = scene.size
        for name in ("a.png", "b.png"):
            scene.save(folder / "images" / name)
    rows, columns = np.mgrid[:height, :width]
    disc = (columns - STICKER[0]) ** 2 + (rows - STICKER[1]) ** 2 < 900
    coco, records = data_set("COCO RLE", folder / "annotations.json"), []
    for name in ("a.png", "b.png"):
        records.append(coco.entry(LabeledImage(name, (height, width), [LabeledMask(disc, "sticker")]))[0])
    coco.write(records)
    before = (folder / "annotations.json").read_bytes()
    page.evaluate(
        """async (path) => {
          samkit.empty();
          const node = samkit.add("SAMKit_LoadMasks", 200, 120, { path });
          app.canvas.ds.scale = 1;
          app.canvas.ds.offset = [40, 20];
          app.canvas.setDirty(true, true);
          await new Promise((done) => setTimeout(done, 500));
          const { widgets_values: values } = app.graph.serialize().nodes[0];
          if (values.length !== 6) throw new Error(`the button is in the workflow: ${values}`);
          node.widgets.find(({ name }) => name === "Correct masks").callback();
        }""",
        folder.name,
    )
    dialog = Dialog(page)
    assert (dialog.exact() == disc).all() and "a.png (1 of 2)" in page.locator(".samkit-dialog-place").inner_text()
    page.keyboard.press("n")
    dialog.click(*LEAF)
    dialog.settle()
    leaf = dialog.exact(1)
    page.get_by_role("button", name="Next image").or_(page.get_by_title("Next image")).first.click()
    assert "not accepted" in dialog.said and "a.png" in page.locator(".samkit-dialog-place").inner_text()
    page.get_by_role("button", name="Accept", exact=True).click()
    page.get_by_text("b.png (2 of 2)").wait_for()
    dialog.wait("editor.image && editor.preview.state.name !== 'preparing'")
    dialog.settle()
    assert "a.png: accepted, 1 changed" in dialog.said and (dialog.exact() == disc).all()
    page.get_by_role("button", name="Accept", exact=True).click()
    page.get_by_text("b.png: as it was.").wait_for()
    page.keyboard.press("Escape")
    dialog.closed()
    first, second = (open_data_set(folder).read(index).labeled.objects for index in range(2))
    assert [one.label for one in first] == ["sticker", "Object 2"] and [one.label for one in second] == ["sticker"]
    assert (first[0].mask == disc).all() and (first[1].mask == leaf).all() and leaf.sum() > 500
    after = (folder / "annotations.json").read_bytes()
    assert after.startswith(before[: before.index(b'],"categories"')]) and before != after

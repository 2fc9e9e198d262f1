"""The prompt editor as an input of an app: the frontend's app mode shows the chosen inputs of a workflow without its graph."""

import numpy as np
import pytest
from browser import Editor, build, open_page
from PIL import Image

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

LEAF, STICKER = (209, 386), (380, 312)


@pytest.fixture
def app(page, editor_server):
    """A workflow opened as an app whose inputs are the image and the editor; its editor."""
    build(page)
    Editor(page).ready()
    page.evaluate(
        """async () => {
          const of = (type) => app.graph.nodes.find((one) => one.type === type).id;
          const inputs = [[of("LoadImage"), "image"], [of("SAMKit_PromptEditor"), "prompts"]];
          const graph = app.graph.serialize();
          graph.extra = { ...graph.extra, linearMode: true, linearData: { inputs, outputs: [of("SaveImage")] } };
          await app.loadGraphData(graph);
          await new Promise((done) => setTimeout(done, 2000));
        }"""
    )
    panel = page.get_by_test_id("linear-widgets")
    if not panel.is_visible():
        pytest.skip("this frontend has no app mode")
    tour = page.get_by_role("button", name="Skip", exact=True)
    if tour.is_visible():
        tour.click()
    try:
        yield Editor(page).ready()
    finally:
        open_page(page, editor_server)


def run(page, server):
    """The mask that the app's own button makes."""
    with page.expect_response(
        lambda response: response.url.endswith("/prompt") and response.request.method == "POST"
    ) as queued:
        page.get_by_test_id("linear-run-button").get_by_role("button", name="Run", exact=True).click()
    page.evaluate("samkit.drained()")
    made = server.json(f"/history/{queued.value.json()['prompt_id']}").popitem()[1]["outputs"]
    (image,) = [image for node in made.values() for image in node.get("images", []) if image["type"] == "output"]
    return np.array(Image.open(server.base / "output" / image["subfolder"] / image["filename"]).convert("L")) > 127


def test_the_editor_is_shown_takes_clicks_and_a_run_gives_the_mask(app, page, editor_server):
    shown = (".samkit-editor", "[data-testid=linear-widgets]")
    bounds, panel = (page.locator(name).filter(visible=True).bounding_box() for name in shown)
    assert bounds["width"] >= 240 and bounds["height"] >= 280
    assert panel["x"] <= bounds["x"] and bounds["x"] + bounds["width"] <= panel["x"] + panel["width"]
    app.click(*LEAF)
    mask = app.exact()
    assert mask[LEAF[1], LEAF[0]] and not mask[STICKER[1], STICKER[0]] and mask.sum() > 1000
    assert (run(page, editor_server) == mask).all()
    page.get_by_label("New object (N)").filter(visible=True).click()
    app.click(*STICKER)
    both = app.exact()
    assert len(app.state["objects"]) == 2 and both[STICKER[1], STICKER[0]]
    assert (run(page, editor_server) == both).all()

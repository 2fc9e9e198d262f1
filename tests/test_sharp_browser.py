"""Second looks and regions of the prompt editor, in a real browser on a real ComfyUI: what is seen, and what a run gives."""

import json

import numpy as np
import pytest
from browser import Editor, build
from PIL import Image
from scenes import Crowd, interior_point, make_scene, tight_box
from test_editor_browser import run_graph, use_file

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

SIZE = 1000, 1500
CROWD = Crowd((12, 16), 24 / 1500, 300 / 1500, 1.2, 20 / 1500, 30)


def iou(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


@pytest.fixture(scope="module")
def scene():
    return make_scene(5_000_000, SIZE, CROWD)


@pytest.fixture(scope="module")
def server(editor_server, scene):
    Image.fromarray(scene.image).save(editor_server.base / "input" / "crowd.png")
    return editor_server


@pytest.fixture
def editor(page, server):
    build(page)
    use_file(page, "crowd.png")
    editor = Editor(page)
    editor.wait("editor.image?.width === 1500")
    return editor.ready()


@pytest.fixture(scope="module")
def small(scene):
    """An object of about 60 pixels, and a place on it."""
    sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in map(tight_box, scene.masks)]
    mask = scene.masks[int(np.argmin(np.abs(np.array(sides) - 60)))]
    return mask, interior_point(mask)


def hold(editor, key, start, end):
    editor.page.mouse.move(*editor.place(*start))
    editor.page.keyboard.down(key)
    editor.drag(start, end)
    editor.page.keyboard.up(key)


def read(editor):
    """What of the status line can be read: what the line's end does not cut off."""
    return editor.evaluate(
        """(() => {
          const line = editor.statusLine;
          const { right } = line.getBoundingClientRect();
          const range = document.createRange();
          const isSeen = (_, index) => {
            range.setStart(line.firstChild, index);
            range.setEnd(line.firstChild, index + 1);
            return range.getBoundingClientRect().right <= right - 12; // before the ellipsis
          };
          return [...line.textContent].filter(isSeen).join("");
        })()"""
    )


def zoom(editor, place, steps=6):
    editor.page.mouse.move(*editor.place(*place))
    for _ in range(steps):
        editor.page.mouse.wheel(0, -240)
    editor.page.wait_for_timeout(200)


def test_the_second_look_follows_when_the_pointer_stops_and_a_run_gives_it(editor, server, small):
    truth, place = small
    editor.click(*place)
    first = editor.exact()
    assert " look" not in editor.status
    editor.page.keyboard.press("d")
    editor.wait("editor.statusLine.textContent.includes('second look')")
    assert "second look" in read(editor)
    second = editor.exact()
    assert iou(second, truth) > iou(first, truth) and iou(second, truth) > 0.85
    assert (run_graph(editor.page, server) == second).all()
    editor.page.keyboard.press("d")
    editor.settle()
    assert (editor.exact() == first).all() and "look" not in editor.status


def test_a_mark_that_comes_meanwhile_is_not_overwritten(editor, small, scene):
    """The old look's answer is held back until a mark has come that it knows nothing of."""
    _, place = small
    other = interior_point(max(scene.masks, key=np.sum))
    page = editor.page
    held = []
    page.route("**/samkit/look", lambda route: held.append(route))
    try:
        editor.click(*place)
        page.keyboard.press("d")
        editor.leave()
        for _ in range(100):
            if held:
                break
            page.wait_for_timeout(50)
        (asked,) = held
        editor.click(*other)
        editor.leave()
        after = editor.exact()
        asked.continue_()
        page.wait_for_timeout(1500)
        assert (editor.exact() == after).all() and "second look" not in editor.status
        for route in held[1:]:
            route.continue_()
    finally:
        page.unroute("**/samkit/look")
    editor.wait("editor.statusLine.textContent.includes(' look')", timeout=30_000)


def test_a_region_is_drawn_is_seen_undone_and_given_by_a_run(editor, server, small):
    truth, (x, y) = small
    editor.click(x, y)
    whole = editor.exact()
    hold(editor, "r", (x - 110, y - 90), (x + 100, y + 105))
    editor.leave()
    (one,) = editor.state["objects"]
    region = one["region"]
    assert abs(region["x"] - (x - 110)) < 4 and abs(region["width"] - 210) < 8 and editor.state["version"] == 3
    assert len(editor.marks) == 1, "the drag drew no box"
    inside = editor.exact()
    assert iou(inside, truth) > iou(whole, truth) and iou(inside, truth) > 0.85
    assert f"region {region['width']} \u00d7 {region['height']}" in read(editor)
    assert (run_graph(editor.page, server) == inside).all()
    editor.click(x + 300 if x < 1000 else x - 300, y)
    assert len(editor.marks) == 1 and "outside the region" in read(editor)
    editor.page.keyboard.press("Control+z")
    editor.leave()
    assert "region" not in editor.state["objects"][0] and (editor.exact() == whole).all() and editor.state["version"] == 2
    editor.page.keyboard.press("Control+y")
    editor.leave()
    assert (editor.exact() == inside).all()
    editor.page.keyboard.press("r")
    editor.leave()
    assert "region" not in editor.state["objects"][0] and (editor.exact() == whole).all()


def test_look_here_takes_what_is_on_the_screen(editor, small):
    truth, (x, y) = small
    editor.click(x, y)
    editor.page.keyboard.press("r")
    assert "Zoom in first" in editor.status and "region" not in editor.state["objects"][0]
    zoom(editor, (x, y))
    editor.page.evaluate("() => samkit.editor().toolbar.element.querySelector('.pi-bullseye').parentElement.click()")
    region = editor.state["objects"][0]["region"]
    seen = editor.evaluate(
        "[editor.view.toImage({x: 0, y: 0}), editor.view.toImage({x: editor.stageSize.width, y: editor.stageSize.height})]"
    )
    assert abs(region["x"] - max(0, seen[0]["x"])) <= 1 and abs(region["x"] + region["width"] - min(1500, seen[1]["x"])) <= 1
    editor.leave()
    assert iou(editor.exact(), truth) > 0.85


def test_a_region_reaches_sam_segment_by_the_marks(editor, server, small):
    _, (x, y) = small
    editor.click(x, y)
    hold(editor, "r", (x - 100, y - 90), (x + 100, y + 105))
    editor.leave()
    seen = editor.exact()
    editor.page.evaluate(
        """async () => {
          const of = (type) => app.graph.nodes.find((one) => one.type === type);
          const segment = samkit.add("SAMKit_Segment", 900, 120);
          samkit.link(of("AV_SAMLoader"), 0, segment, "sam_model");
          samkit.link(of("LoadImage"), 0, segment, "image");
          samkit.link(of("SAMKit_PromptEditor"), 0, segment, "positive_coords");
          samkit.link(segment, 0, of("MaskToImage"), "mask");
          await new Promise((done) => setTimeout(done, 400));
        }"""
    )
    assert (run_graph(editor.page, server) == seen).all()


def test_a_reload_keeps_region_and_second_looks(editor, small):
    _, (x, y) = small
    editor.click(x, y)
    hold(editor, "r", (x - 100, y - 90), (x + 100, y + 105))
    editor.page.keyboard.press("d")
    text = editor.state
    assert text["detail"] == "auto" and text["objects"][0]["region"]
    editor.page.evaluate("async () => app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())))")
    editor.wait("editor?.image && editor.state.detail === 'auto'")
    assert editor.state == text and json.dumps(text["objects"][0]["region"]) == json.dumps(editor.state["objects"][0]["region"])


TALL = 4300, 8000


@pytest.fixture(scope="module")
def tall(server):
    """A scene of 34 million pixels as a file: its pixels, and the masks before it was enlarged by four."""
    found = make_scene(5_000_001, (TALL[0] // 4, TALL[1] // 4))
    image = Image.fromarray(found.image).resize(TALL[::-1], Image.Resampling.BICUBIC)
    image.save(server.base / "input" / "tall.png", compress_level=1)
    return np.array(image), found.masks


def colours(editor, places):
    """What the canvas shows at some places of the image."""
    return np.array(
        editor.page.evaluate(
            """(places) => {
              const { canvas, view, stageSize } = samkit.editor();
              const ratio = canvas.width / stageSize.width;
              const context = canvas.getContext("2d");
              return places.map(([x, y]) => {
                const at = view.toStage({ x, y });
                return [...context.getImageData(Math.floor(at.x * ratio), Math.floor(at.y * ratio), 1, 1).data.slice(0, 3)];
              });
            }""",
            places,
        )
    )


def complete(editor):
    """Wait until all tiles that are seen are there."""
    editor.page.evaluate(
        """async () => {
          for (let quiet = 0, before = -1; quiet < 6; ) {
            await new Promise((done) => setTimeout(done, 100));
            const count = performance.getEntriesByType("resource").filter(({ name }) => name.includes("/samkit/tile")).length;
            quiet = count === before ? quiet + 1 : 0;
            before = count;
          }
        }"""
    )


def test_a_large_image_comes_in_tiles_and_is_marked_like_a_small_one(page, server, tall):
    pixels, masks = tall
    page.evaluate("performance.setResourceTimingBufferSize(10000)")  # ComfyUI fills the usual one
    build(page)
    use_file(page, "tall.png")
    editor = Editor(page)
    editor.wait("editor.image?.width === 8000", timeout=60_000)
    assert editor.evaluate("editor.image.levels") == 5 and editor.evaluate("editor.image instanceof HTMLImageElement") is False
    editor.ready()
    complete(editor)
    small = np.array(Image.fromarray(pixels).reduce(16))
    rng = np.random.default_rng(0)
    places = [(int(x), int(y)) for x, y in zip(rng.integers(200, 7800, 40), rng.integers(200, 4100, 40), strict=True)]
    expected = np.array([small[y // 16, x // 16] for x, y in places])
    assert np.median(np.abs(colours(editor, places).astype(int) - expected).max(1)) < 12, "the whole image"
    mask = max(masks, key=np.sum)
    x, y = (int(4 * n + 2) for n in interior_point(mask))
    editor.click(x, y)
    editor.leave()
    (found,) = editor.evaluate("editor.masks.map(({ answer }) => ({ place: answer.place, area: answer.area }))")
    place = found["place"]
    assert found["area"] > 0.7 * 16 * mask.sum()
    editor.page.keyboard.press("h")
    editor.page.evaluate(
        "([x, y]) => { const e = samkit.editor(); e.view.zoomAt(e.view.toStage({ x, y }), 1 / e.view.scale); e.redraw(); }",
        [x, y],
    )
    complete(editor)
    near = [(x + dx, y + dy) for dx in range(-60, 61, 20) for dy in range(-60, 61, 20) if abs(dx) + abs(dy) > 30]
    exact = np.array([pixels[b, a] for a, b in near])
    assert np.median(np.abs(colours(editor, [(a + 0.5, b + 0.5) for a, b in near]).astype(int) - exact).max(1)) <= 6, "at 100 %"
    assert (
        len(page.evaluate("performance.getEntriesByType('resource').filter(({ name }) => name.includes('/samkit/tile'))")) < 60
    )
    editor.page.keyboard.press("h")
    ran = run_graph(page, server)
    rows, columns = np.flatnonzero(ran.any(1)), np.flatnonzero(ran.any(0))
    assert ran.sum() == found["area"] and (place["x"], place["y"]) == (columns[0], rows[0])
    assert 0 <= place["x"] + place["width"] - columns[-1] - 1 <= 2 and 0 <= place["y"] + place["height"] - rows[-1] - 1 <= 2


def test_a_small_image_has_no_tiles(editor):
    asked = []
    editor.page.on("request", lambda request: asked.append(request.url))
    use_file(editor.page, "samkit_scene.png")
    editor.wait("editor.image?.width === 640")
    assert editor.evaluate("editor.image instanceof HTMLImageElement") and not [url for url in asked if "/samkit/tile" in url]

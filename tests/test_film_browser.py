"""A film in the prompt editor, in a real browser on a real ComfyUI: marked, tracked, gone through, corrected, opened again."""

import json
import shutil

import numpy as np
import pytest
from browser import Editor, open_page
from films import EXAMPLE, example_film
from load_pack import ROOT
from PIL import Image
from scenes import interior_point

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

FRAMES = 24
LEAST_IOU = 0.75
TEMPLATE = ROOT / "example_workflows" / "track.json"
LOAD = """async (workflow) => {
  await app.loadGraphData(workflow);
  await new Promise((done) => setTimeout(done, 800));
  const { pos } = app.graph.nodes.find((node) => node.type === "SAMKit_PromptEditor");
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [420 - pos[0], 120 - pos[1]]; // beside what ComfyUI shows of a tab that the pointer rests on
  app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 400));
}"""
# Queues the workflow and waits for its end: how it ended, and its id.
RUN = """() => new Promise((done) => {
  for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
    app.api.addEventListener(end, ({ detail }) => done([end, detail.prompt_id]), { once: true });
  }
  app.queuePrompt(0);
})"""
# Interrupts the run as soon as SAM Track is at its half.
CANCEL_AT_HALF = """() => app.api.addEventListener("progress", function heard({ detail: { value, max } }) {
  if (max !== 24 || value < 12) return;
  app.api.removeEventListener("progress", heard);
  fetch("/interrupt", { method: "POST" });
})"""
KEPT = "app.graph.nodes.find((node) => node.type === 'SAMKit_PromptEditor').properties.samkit_track"


@pytest.fixture(scope="module")
def server(editor_server):
    shutil.copy(EXAMPLE, editor_server.base / "input")
    return editor_server


@pytest.fixture
def film(page, server):
    """The template, opened; nothing of it is known to the server any more."""
    server.request("/free", {"free_memory": True, "unload_models": True})
    page.evaluate(LOAD, json.loads(TEMPLATE.read_text(encoding="utf-8")))
    editor = Editor(page)
    editor.wait(f"editor.state.frames === {FRAMES} && editor.image")
    return editor.ready()


@pytest.fixture(scope="module")
def truth():
    return example_film().masks


def iou(one, other):
    return (one & other).sum() / max(1, (one | other).sum())


def run(editor, server):
    """Run the workflow; the masks that it saves: bool [T, H, W]."""
    how, number = editor.page.evaluate(RUN)
    assert how == "execution_success"
    outputs = server.json(f"/history/{number}")[number]["outputs"]
    (saved,) = [one["images"] for one in outputs.values() if any(image["type"] == "output" for image in one.get("images", []))]
    folder = server.base / "output"
    masks = [np.array(Image.open(folder / one["subfolder"] / one["filename"]).convert("L")) > 127 for one in saved]
    editor.wait(f"{KEPT}?.prompts === editor.state.runText && editor.tracked.standing(editor.state, 0, 0) !== null")
    editor.settle()
    return np.stack(masks)


def go(editor, frame):
    editor.evaluate(f"editor.state.showFrame({frame})")
    editor.wait(f"editor.state.frame === {frame} && editor.shownImage")
    editor.settle()


def computed(editor):
    """How many frames of each object the last run has computed, in the order of their numbers."""
    objects = editor.page.evaluate(KEPT)["objects"]
    return [one["computed"] for one in sorted(objects, key=lambda one: one["name"])]


def test_the_template_is_marked_tracked_gone_through_corrected_and_opened_again(film, server, truth):
    page = film.page
    # Mark: the third object anew, by a click.
    film.evaluate("editor.state.removeObject(2)")
    film.evaluate("editor.state.newObject()")
    film.click(*(float(place) for place in interior_point(truth[0, 2])))
    assert [mark.get("frame") for mark in film.marks] == [0, 0, 0]
    film.leave()

    # Run, and go through the film: what is shown is what was saved, and what was drawn.
    masks = run(film, server)
    assert len(masks) == FRAMES and computed(film) == [FRAMES] * 3
    before = {}
    for frame in (0, 6, 14, 15, 23):
        go(film, frame)
        assert (film.exact() == masks[frame]).all(), frame
        before[frame] = [film.exact(place) for place in range(3)]
        assert np.mean([iou(*pair) for pair in zip(before[frame], truth[frame], strict=True)]) > LEAST_IOU, frame
        assert "SAM Track" in film.status

    # Correct on frame 15: the preview shows it there, and what comes after is said to be older.
    go(film, 15)
    film.evaluate("editor.state.selectObject(0)")
    film.page.keyboard.down("Control")
    film.click(*(float(place) for place in interior_point(truth[15, 0])))
    film.page.keyboard.up("Control")
    film.leave()
    assert film.marks[1] == {**film.marks[1], "label": 1, "frame": 15} and "score" in film.status
    assert film.exact(0).any()
    go(film, 20)
    assert "before the last change" in film.status
    go(film, 14)
    assert "SAM Track" in film.status and "before the last change" not in film.status

    # Run again: frames before the correction, and other objects, are not computed again.
    again = run(film, server)
    assert computed(film) == [FRAMES - 15, 0, 0]
    assert (again[:15] == masks[:15]).all()
    for frame in before:
        go(film, frame)
        assert (film.exact() == again[frame]).all()
        now = [film.exact(place) for place in range(3)]
        same = [(one == other).all() for one, other in zip(now, before[frame], strict=True)]
        assert same[1:] == [True, True] and (same[0] or frame >= 15)

    # Open it again: the same masks, without a run and with one.
    workflow = page.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")
    open_page(page, server)
    page.evaluate(LOAD, workflow)
    film.wait(f"editor.state.frames === {FRAMES} && editor.image")
    film.ready()
    for frame in (6, 20):
        go(film, frame)
        assert (film.exact() == again[frame]).all()
    assert (run(film, server) == again).all()


def test_a_run_that_is_cancelled_at_half_leaves_nothing_half_done(film, server):
    masks, first = run(film, server), film.page.evaluate(KEPT)
    assert computed(film) == [FRAMES] * 3
    temp = server.base / "temp"
    files = sorted(path.name for path in temp.glob("*track*"))
    assert files == [first["file"]] or first["file"] in files
    go(film, 0)
    film.evaluate("editor.state.selectObject(1)")
    x, y = (film.marks[1][key] for key in "xy")
    film.page.keyboard.down("Control")
    film.click(x + 3, y + 3)
    film.page.keyboard.up("Control")
    film.leave()
    film.page.evaluate(CANCEL_AT_HALF)
    how, _ = film.page.evaluate(RUN)
    assert how == "execution_interrupted"
    film.settle()
    assert film.page.evaluate(KEPT) == first and sorted(path.name for path in temp.glob("*track*")) == files
    assert not list(temp.glob(".*"))
    go(film, 12)
    shown = np.stack([film.exact(0), film.exact(2)]).any(0)
    assert shown.any() and not (shown & ~masks[12]).any(), "objects that were not changed are shown as before"
    again = run(film, server)
    assert computed(film) == [0, FRAMES, 0], "what was not finished is computed"
    film.evaluate("editor.state.undo()")
    film.leave()
    assert (run(film, server) == masks).all() and len(again) == FRAMES


def test_the_strip_is_clicked_dragged_and_stepped_through(film):
    page = film.page
    bounds = page.locator(".samkit-strip").filter(visible=True).bounding_box()

    def place(frame):
        return bounds["x"] + (frame + 0.5) * bounds["width"] / FRAMES, bounds["y"] + 10

    page.mouse.click(*place(17))
    film.wait("editor.state.frame === 17")
    page.mouse.move(*place(17))
    page.mouse.down()
    page.mouse.move(*place(3), steps=6)
    page.mouse.up()
    film.wait("editor.state.frame === 3")
    for key, frame in (("ArrowRight", 4), (".", 5), (",", 4), ("Shift+ArrowRight", 14), ("End", 23), ("Home", 0)):
        page.keyboard.press(key)
        assert film.evaluate("editor.state.frame") == frame, key
    assert page.get_by_text(f"1 / {FRAMES}", exact=True).filter(visible=True).count() == 1
    painted = film.evaluate(
        """(() => {
          const canvas = editor.film.element.querySelector("canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return new Set(new Uint32Array(data.buffer)).size;
        })()"""
    )
    assert painted > 100, "thumbnails of a film have many colors"
    film.evaluate("editor.state.showFrame(9)")
    page.get_by_label("The frame before with marks of the selected object").filter(visible=True).click()
    film.wait("editor.state.frame === 0")


def graph_of(page, loader, values, more=""):
    """A graph of a loader of ComfyUI's own, the editor and SAM Track."""
    page.evaluate(
        """async ([loader, values, more]) => {
          samkit.empty();
          const { add, link } = samkit;
          const film = add(loader, 20, 120, values);
          const source = more ? add(more, 20, 300) : film;
          if (more) film.connect(0, source, 0);
          const model = add("AV_SAMLoader", 20, 560, { model_name: "samkit_demo.safetensors" });
          const editor = add("SAMKit_PromptEditor", 340, 120);
          const track = add("SAMKit_Track", 860, 120);
          link(source, 0, editor, "image");
          link(model, 0, editor, "sam_model");
          link(model, 0, track, "sam_model");
          link(editor, 4, track, "image");
          ["positive_coords", "negative_coords", "bboxes"].forEach((input, output) => link(editor, output, track, input));
          const image = add("MaskToImage", 1220, 120);
          link(track, 0, image, "mask");
          const save = add("SaveImage", 1220, 220, { filename_prefix: "film" });
          link(image, 0, save, "images");
          app.canvas.ds.scale = 1;
          app.canvas.ds.offset = [80, 20];
          app.canvas.setDirty(true, true);
          await new Promise((done) => setTimeout(done, 800));
        }""",
        [loader, values, more],
    )
    return Editor(page)


def test_an_animated_image_of_comfyuis_own_loader_is_a_film_before_any_run(page, server, truth):
    editor = graph_of(page, "LoadImage", {"image": EXAMPLE.name})
    editor.wait(f"editor.state.frames === {FRAMES} && editor.state.isFilm && editor.image")
    editor.ready()
    go(editor, 7)
    editor.ready().click(*(float(place) for place in interior_point(truth[7, 1])))
    assert iou(editor.exact(), truth[7, 1]) > LEAST_IOU
    assert [mark["frame"] for mark in editor.marks] == [7]
    masks = run(editor, server)
    assert computed(editor) == [FRAMES - 7] and not masks[:7].any() and masks[7].any()
    go(editor, 3)
    assert "not seen on this frame" in editor.status
    go(editor, 20)
    assert (editor.exact() == masks[20]).all()


def test_a_video_of_comfyuis_own_loader_is_a_film_after_a_run(page, server):
    av = pytest.importorskip("av", reason="PyAV writes the video")
    with av.open(str(server.base / "input" / "film.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for frame in example_film().frames[:6]:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())
    editor = graph_of(page, "LoadVideo", {"file": "film.mp4"}, "GetVideoComponents")
    page.get_by_label("Load image: run only what is upstream of it").filter(visible=True).click()
    editor.wait("editor.state.frames === 6 && editor.state.isFilm && editor.image")
    go(editor, 2)
    editor.ready().click(160, 120)
    assert [mark["frame"] for mark in editor.marks] == [2]


def test_five_hundred_frames_cost_the_page_no_more_than_a_few(page, server):
    """Counted, not timed: requests of thumbnails, elements of the page, and images that are encoded."""
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)) for _ in range(500)]
    frames[0].save(server.base / "input" / "long.webp", save_all=True, append_images=frames[1:], quality=20)
    sent = []
    page.on("request", listening := lambda request: sent.append(request.url))
    try:
        editor = graph_of(page, "LoadImage", {"image": "long.webp"})
        editor.wait("editor.state.frames === 500 && editor.image")
        editor.ready()
        room = editor.evaluate("editor.film.element.querySelector('canvas').clientWidth")
        thumbnails = [url for url in sent if "side=" in url]
        assert 0 < len(thumbnails) <= room / 30
        assert editor.evaluate("editor.element.querySelectorAll('*').length") < 250
        sent.clear()
        editor.evaluate("[...Array(300).keys()].forEach((frame) => editor.state.showFrame(frame + 100))")
        editor.wait("editor.shownImage")
        page.wait_for_timeout(300)
        editor.settle()
        assert sum("/samkit/prepare" in url for url in sent) == 1, "frames that are passed are not encoded"
        assert editor.evaluate("editor.state.frame") == 399 and not [url for url in sent if "side=" in url]
    finally:
        page.remove_listener("request", listening)


def test_a_single_image_has_no_film(page, server):
    editor = graph_of(page, "LoadImage", {"image": "samkit_scene.png"})
    editor.ready().click(209, 386)
    assert editor.evaluate("editor.film.element.hidden") and "frame" not in editor.marks[0]
    assert not editor.evaluate("editor.state.isFilm")

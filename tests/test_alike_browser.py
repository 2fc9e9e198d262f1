"""Find all like this, in a real browser on a real ComfyUI: offered, taken, left out, undone, and as a run gives it."""

import numpy as np
import pytest
from browser import Editor, build
from PIL import Image
from test_alike import DISCS, SQUARES, drawn
from test_seen_browser import requests, saving  # noqa: F401  a fixture

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

READY = "editor.alike.state === 'ready' && !editor.alike.bar.hidden"
OTHERS = [(320, 200)], [(120, 200)]  # discs and squares of the second image
LOW = [(80, 90), (320, 441), (540, 441)], [(300, 200)]  # of an image whose discs touch its lowest edge


@pytest.fixture(scope="module")
def server(editor_server):
    first, second, low = (Image.fromarray(drawn(*places)[0]) for places in ((DISCS, SQUARES), OTHERS, LOW))
    low.save(editor_server.base / "input" / "low.png")
    first.save(editor_server.base / "input" / "kinds.png")
    first.save(editor_server.base / "input" / "kinds.webp", save_all=True, append_images=[second], lossless=True)
    return editor_server


@pytest.fixture
def editor(page, server):
    return on_image(page, "kinds.png")


def on_image(page, name):
    build(page)
    page.evaluate(
        """(name) => {
          const widget = app.graph.nodes.find((one) => one.type === "LoadImage").widgets.find((one) => one.name === "image");
          widget.options.values.push?.(name);
          widget.value = name;
          widget.callback?.(name);
          samkit.editor().host.needed();
        }""",
        name,
    )
    page.wait_for_function(f"samkit.editor()?.images[0]?.filename === '{name}'")
    return Editor(page).ready()


def offer(editor, place=DISCS[0]):
    editor.click(*place)
    editor.leave()
    editor.page.keyboard.press("l")
    editor.wait(READY, timeout=120_000)


def offered(editor):
    """What is offered: masks bool [H, W], by the segments' pixels, the most similar first."""
    found = editor.page.evaluate(
        """() => {
          const { alike, image: { width, height } } = samkit.editor();
          return alike.open.map((index) => {
            const mask = new Uint8Array(width * height);
            const segment = alike.list[index];
            let place = 0;
            const coded = Uint8Array.from(atob(segment.runs), (one) => one.charCodeAt(0));
            for (let i = 0; i < coded.length; i += 1) {
              let number = 0;
              for (let shift = 0; ; shift += 7, i += 1) {
                number += (coded[i] & 127) * 2 ** shift;
                if (coded[i] < 128) break;
              }
              for (let left = Math.floor(number / 3); left > 0; left -= 1, place += 1) {
                const [row, column] = [Math.floor(place / segment.width), place % segment.width];
                if (number % 3 === 1) mask[(segment.y + row) * width + segment.x + column] = 1;
              }
            }
            return samkit.packed(mask, width, height);
          });
        }"""
    )
    return [editor._unpacked(one) for one in found]


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def true_masks(kind, without):
    return [mask for one, mask in drawn()[1] if one == kind and not mask[without[1], without[0]]]


def test_the_others_of_its_kind_are_offered_and_seen(editor):
    for place, kind in ((DISCS[0], "disc"), (DISCS[2], "disc")):
        offer(editor, place)
        found, truth = offered(editor), true_masks(kind, place)
        assert sorted(max(range(len(truth)), key=lambda number: iou(mask, truth[number])) for mask in found) == [
            *range(len(truth))
        ]
        assert all(max(iou(mask, one) for one in truth) > 0.9 for mask in found), "each of them, and nothing else"
        # The image is shown at about half of its size, so its edges are rounded.
        assert iou(editor.lit("alike"), np.any(found, axis=0)) > 0.93
        assert f"{len(truth)} objects like it" in editor.page.locator(".samkit-offers").filter(visible=True).inner_text()
        editor.page.keyboard.press("Escape")
        assert not editor.lit("alike").any() and not editor.evaluate("editor.alike.isOn")
        editor.page.keyboard.press("n")


def test_they_are_taken_left_out_and_undone_and_a_run_gives_what_was_seen(editor, server, requests):  # noqa: F811
    offer(editor)
    assert set(requests) >= {"preview", "alike"} and "segments" not in requests
    found = offered(editor)
    requests.clear()
    editor.click(*DISCS[1])
    editor.click(*DISCS[2], button="right")
    assert len(editor.state["objects"]) == 2 and editor.evaluate("editor.alike.open.length") == 2
    editor.page.keyboard.press("Control+z")
    assert len(editor.state["objects"]) == 2 and editor.evaluate("editor.alike.open.length") == 3, "the refusal is taken back"
    editor.page.keyboard.press("Control+z")
    assert len(editor.state["objects"]) == 1 and editor.evaluate("editor.alike.open.length") == 4
    editor.page.keyboard.press("Control+y")
    assert len(editor.state["objects"]) == 2
    editor.page.keyboard.press("Tab")
    editor.page.keyboard.press("Enter")
    assert len(editor.state["objects"]) == 3
    editor.page.get_by_role("button", name="Take all").filter(visible=True).click()
    assert len(editor.state["objects"]) == 5 and not editor.lit("alike").any()
    assert "alike" not in requests and "segments" not in requests, "nothing is asked for again"
    editor.page.keyboard.press("Escape")
    marked = editor.exact(0)
    whole = editor.exact()
    assert (whole == np.any([marked, *found], axis=0)).all(), "the pixels that were offered"
    ((path,),) = server.saved(saving(editor)).values()
    assert ((np.array(Image.open(path).convert("L")) > 127) == whole).all()
    assert editor.evaluate("editor.state.current") == 0, "the next click is the marked object's"


@pytest.mark.parametrize("where", ["first width", "240 pixels"])
def test_what_lies_at_the_foot_of_the_image_is_taken_by_a_click(page, server, where):
    """The bar of what is offered lies below the image, which stays whole, and no other words on it move the image."""
    editor = on_image(page, "low.png")
    if where == "240 pixels":
        page.evaluate("() => app.graph.nodes.find((one) => one.type === 'SAMKit_PromptEditor').setSize([240, 700])")
        page.wait_for_timeout(300)
    offer(editor)
    at, text = [editor.place(1, 1), editor.place(639, 479)], "editor.alike.text.textContent"
    said = [editor.evaluate(text)]
    page.mouse.move(*editor.place(320, 474))
    said.append(editor.evaluate(text))
    editor.click(*LOW[1][0])
    said.append(editor.evaluate(text))
    assert len({*said}) == 3 and [editor.place(1, 1), editor.place(639, 479)] == at, said
    bar, stage = (editor.page.locator(name).filter(visible=True).bounding_box() for name in (".samkit-offers", ".samkit-stage"))
    assert stage["y"] < at[0][1] and at[1][1] < stage["y"] + stage["height"] <= bar["y"] + 1
    for action in ("Fewer", "More", "Take all", "Done"):
        button = page.get_by_role("button", name=action, exact=True).filter(visible=True).bounding_box()
        assert bar["x"] <= button["x"] and button["x"] + button["width"] <= bar["x"] + bar["width"]
    for x, _ in LOW[0][1:]:
        editor.click(x, 474)
    assert len(editor.state["objects"]) == 3


def test_the_button_begins_and_ends_it(editor):
    editor.click(*DISCS[0])
    editor.leave()
    editor.page.get_by_label("Find all like").filter(visible=True).click()
    editor.wait(READY, timeout=120_000)
    editor.page.get_by_label("Offer nothing any longer").filter(visible=True).click()
    assert editor.evaluate("editor.alike.state") == "off"


def test_beside_what_is_offered_a_click_does_nothing_and_says_so(editor):
    offer(editor)
    text = editor.evaluate("editor.text")
    editor.click(*SQUARES[0])
    assert editor.evaluate("editor.text") == text
    assert "Nothing is offered here" in editor.page.locator(".samkit-offers").filter(visible=True).inner_text()


def test_more_and_fewer_are_offered_by_buttons(editor):
    offer(editor)
    counts = []
    for name in ("Fewer", "Fewer", "More", "More", "More"):
        editor.page.get_by_role("button", name=name, exact=True).filter(visible=True).click()
        counts.append(editor.evaluate("editor.alike.open.length"))
    assert counts == [3, 2, 3, 4, 5]


def test_on_another_image_of_the_batch_the_same_is_looked_for(page, server):
    editor = on_image(page, "kinds.webp")
    editor.wait("editor.frameCount === 2")
    offer(editor)
    assert editor.evaluate("editor.alike.open.length") == 4
    editor.page.keyboard.press(".")
    editor.wait(f"editor.state.frame === 1 && {READY}", timeout=120_000)
    _, truth = drawn(*OTHERS)
    (found, *_) = offered(editor)
    assert iou(found, truth[0][1]) > 0.9, "the disc of the second image"
    editor.click(*OTHERS[0][0])
    (made,) = editor.state["objects"][1:]
    assert [patch["frame"] for patch in made["paint"]] == [1]
    editor.page.keyboard.press(",")
    editor.wait(f"editor.state.frame === 0 && {READY}")
    assert editor.evaluate("editor.alike.open.length") == 4

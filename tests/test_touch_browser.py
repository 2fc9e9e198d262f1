"""The editor under fingers, in a real browser on a real ComfyUI: two move the image, one marks it, targets are large."""

import pytest
from browser import Editor, build
from test_dialog_browser import Dialog, open_from_node

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

LEAF, STICKER = (209, 386), (380, 312)
LEAST = 40  # CSS pixels
FRAME = "[editor.view.scale, editor.view.x, editor.view.y, app.canvas.ds.scale, ...app.canvas.ds.offset]"
SMALL = """(least) => [...document.querySelectorAll(".samkit-editor, .samkit-dialog")].flatMap((root) =>
  [...root.querySelectorAll("button, select, input")].filter((one) => one.checkVisibility({ visibilityProperty: true }))
    .filter((one) => one.offsetWidth < least || one.offsetHeight < least)
    .map((one) => `${one.tagName} ${one.title || one.textContent}: ${one.offsetWidth} x ${one.offsetHeight}`))"""


@pytest.fixture
def touch(page):
    """Fingers, as a touch screen reports them, and a browser that knows that there is one."""
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 5})
    yield Fingers(page, session)
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
    session.detach()


class Fingers:
    def __init__(self, page, session):
        self.page, self.session = page, session

    def _send(self, kind, *places):
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places, 1)]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def tap(self, x, y):
        self._send("touchStart", (x, y))
        self._send("touchEnd")

    def move(self, *paths, steps=6):
        """Fingers that come down together, go along their paths ((x, y), (x, y)), and are lifted."""
        at = [
            [(x + (to_x - x) * step / steps, y + (to_y - y) * step / steps) for (x, y), (to_x, to_y) in paths]
            for step in range(steps + 1)
        ]
        self._send("touchStart", at[0][0])
        self._send("touchStart", *at[0])
        for places in at[1:]:
            self._send("touchMove", *places)
        self._send("touchEnd")


@pytest.fixture
def editor(page, touch):
    build(page)
    made = Editor(page).ready()
    assert page.evaluate("matchMedia('(pointer: coarse)').matches"), "the browser knows of the fingers"
    return made


def test_two_fingers_pan_and_zoom_the_image_alone(editor, touch):
    x, y = editor.place(*LEAF)
    scale, left, top, *graph = editor.evaluate(FRAME)
    touch.move(((x - 30, y), (x + 20, y + 40)), ((x + 30, y), (x + 80, y + 40)))
    after = editor.evaluate(FRAME)
    assert after[0] == pytest.approx(scale, rel=0.02), "fingers that stay apart do not zoom"
    assert after[1:3] == pytest.approx([left + 50, top + 40], abs=3) and after[3:] == graph
    x, y = editor.place(*LEAF)
    touch.move(((x - 30, y), (x - 60, y)), ((x + 30, y), (x + 60, y)))
    last = editor.evaluate(FRAME)
    assert last[0] == pytest.approx(2 * scale, rel=0.05) and last[3:] == graph
    assert editor.place(*LEAF) == pytest.approx([x, y], abs=3), "what lies between the fingers stays there"
    assert not editor.marks and not editor.evaluate("editor.state.canUndo")


def test_one_finger_marks(editor, touch):
    touch.tap(*editor.place(*LEAF))
    editor.settle()
    assert [(mark["x"], mark["y"]) for mark in editor.marks] == [pytest.approx(LEAF, abs=1)]
    editor.page.get_by_label("Clicks mark what is NOT the object (as a right click does)").filter(visible=True).click()
    touch.tap(*editor.place(*STICKER))
    editor.settle()
    assert [mark["label"] for mark in editor.marks] == [1, 0]


def test_with_the_segments_two_fingers_move_the_image_and_one_takes_a_segment(editor, touch):
    editor.page.get_by_label("Find all segments of the image").filter(visible=True).click()
    editor.wait("editor.everything.state === 'ready'", timeout=60_000)
    x, y = editor.place(*LEAF)
    before = editor.evaluate(FRAME)
    touch.move(((x - 30, y), (x - 60, y)), ((x + 30, y), (x + 60, y)))
    assert editor.evaluate("editor.view.scale") == pytest.approx(2 * before[0], rel=0.05)
    assert not editor.evaluate("editor.state.canUndo"), "the first finger takes nothing"
    touch.tap(*editor.place(*LEAF))
    editor.wait("editor.state.objects.some(({ paint }) => paint)")
    assert not editor.marks, "a segment, and no point beside it"


def test_targets_are_large_enough_for_fingers(page, editor, touch):
    touch.tap(*editor.place(*LEAF))
    page.keyboard.press("n")
    touch.tap(*editor.place(*STICKER))
    editor.settle()
    page.get_by_label("Finish: grow").filter(visible=True).click()
    assert page.evaluate(SMALL, LEAST) == []
    assert editor.evaluate("editor.stage.clientHeight") > 150, "the image keeps room"
    page.get_by_label("Finish: grow").filter(visible=True).click()
    open_from_node(page)
    dialog = Dialog(page)
    assert page.evaluate(SMALL, LEAST) == [] and dialog.evaluate("editor.stage.clientHeight") > 400

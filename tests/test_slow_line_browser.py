"""The prompt editor far away from its server: what it asks for, and in which order. Requests are held back by hand."""

import pytest
from browser import Editor, build
from test_dialog_browser import Dialog, load_image

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

LEAF, STICKER, SKY = (209, 386), (380, 312), (600, 60)
PREVIEW, PREPARE = "**/samkit/preview", "**/samkit/prepare"
ENTRY = "app.canvas.getNodeMenuOptions(app.graph.nodes[0]).find((one) => one?.content === 'Select object with SAM')"


class Line:
    """Requests to some addresses, which lie on the way until they are let through."""

    def __init__(self, page):
        self.page, self.held, self.patterns, self.holds = page, [], [], True

    def hold(self, *patterns):
        self.patterns += patterns
        for pattern in patterns:
            self.page.route(pattern, lambda route: self.held.append(route) if self.holds else route.continue_())

    def wait(self, count):
        """Wait until so many requests lie on the way, and see that no more come."""
        for _ in range(200):
            if len(self.held) >= count:
                break
            self.page.wait_for_timeout(50)
        self.page.wait_for_timeout(300)
        assert len(self.held) == count, [route.request.url for route in self.held]

    @property
    def asked(self):
        """The last word of each address, with the number of marks that are asked about."""
        return [(route.request.url.rpartition("/")[2], len(marks_of(route.request))) for route in self.held]

    def end(self):
        """Let everything through, from now on too."""
        self.holds = False
        while self.held:
            self.held.pop(0).continue_()


def marks_of(request):
    prompts = (request.post_data_json or {}).get("prompts", {})
    return [mark for one in prompts.get("objects", []) for mark in one["marks"]]


@pytest.fixture
def line(page):
    held = Line(page)
    yield held
    held.end()
    for pattern in held.patterns:
        page.unroute(pattern)


def test_a_click_does_not_wait_for_the_answer_to_a_hover(page, line):
    build(page)
    editor = Editor(page).ready()
    line.hold(PREVIEW)
    page.mouse.move(*editor.place(*SKY))
    line.wait(1)
    for step in range(8):
        page.mouse.move(*editor.place(SKY[0] - 30 * step, SKY[1] + 10))
        page.wait_for_timeout(20)
    line.wait(1)  # of a hover there is but one on the way
    editor.click(*LEAF)
    line.wait(2)
    (hovered,), (clicked,) = (marks_of(route.request) for route in line.held)
    assert (hovered["x"], hovered["y"]) == pytest.approx(SKY, abs=1)
    assert (clicked["x"], clicked["y"]) == pytest.approx(LEAF, abs=1)
    page.mouse.move(5, 5)
    line.end()
    editor.settle()
    assert editor.exact().any() and len(editor.marks) == 1


def test_a_second_click_does_not_wait_for_the_first_ones_answer(page, line):
    build(page)
    editor = Editor(page).ready()
    editor.evaluate("editor.hovering && editor.toggleHover()")
    line.hold(PREVIEW)
    editor.click(*LEAF)
    line.wait(1)
    editor.click(*STICKER)
    line.wait(2)
    assert line.asked == [("preview", 1), ("preview", 2)]
    line.end()
    editor.settle()
    both = editor.exact()
    editor.evaluate("editor.preview.forget()")
    editor.evaluate("editor.changed()")
    editor.settle()
    assert both.any() and (editor.exact() == both).all(), "it is the mask of both clicks"


def test_a_drag_asks_for_one_mask_at_a_time(page, line):
    build(page)
    editor = Editor(page).ready()
    editor.evaluate("editor.hovering && editor.toggleHover()")
    line.hold(PREVIEW)
    page.mouse.move(*editor.place(150, 330))
    page.mouse.down()
    page.mouse.move(*editor.place(180, 360), steps=3)
    line.wait(1)
    page.mouse.move(*editor.place(260, 440), steps=12)
    line.wait(1)
    page.mouse.up()
    line.wait(2)  # the box as it was let go of
    last = marks_of(line.held[-1].request)[0]
    assert (last["x"] + last["width"], last["y"] + last["height"]) == pytest.approx((260, 440), abs=1)


def test_a_click_before_the_image_is_encoded_is_asked_for_at_once(page, line):
    line.hold(PREPARE, PREVIEW)
    build(page)
    page.wait_for_function("samkit.editor()?.image")
    editor = Editor(page)
    page.mouse.move(*editor.place(1, 1))
    line.wait(1)
    editor.click(*LEAF)
    page.mouse.move(5, 5)
    line.wait(2)
    assert line.asked == [("prepare", 0), ("preview", 1)]
    line.end()
    editor.settle()
    assert editor.exact().any()


def test_a_dialog_asks_the_server_to_encode_while_the_browser_loads_the_image(page, line):
    load_image(page)
    line.hold("**/view?*samkit=*", PREPARE)
    page.mouse.move(5, 5)
    page.evaluate(f"{ENTRY}.callback()")
    line.wait(2)
    assert not page.evaluate("document.querySelector('.samkit-dialog .samkit-editor').samkit.image")
    asked = sorted(route.request.url.rpartition("/")[2].partition("?")[0] for route in line.held)
    assert asked == ["prepare", "view"]
    line.end()
    dialog = Dialog(page)
    dialog.click(*LEAF)
    assert dialog.exact().any()


def test_the_frontend_gives_up_no_question(page, line):
    """Newer frontends end a request after a minute: here after three seconds."""
    page.evaluate(
        """() => {
          const { setTimeout } = window;
          samkit.timer = setTimeout;
          window.setTimeout = (work, time, ...more) => setTimeout(work, time >= 30000 ? 3000 : time, ...more);
        }"""
    )
    try:
        load_image(page)
        line.hold(PREPARE)
        page.evaluate(f"() => {{ {ENTRY}.callback(); }}")
        line.wait(1)
        page.wait_for_timeout(4000)
        said = "document.querySelector('.samkit-dialog .samkit-editor').samkit.preview.state.name"
        assert page.evaluate(said) == "preparing" and len(line.held) == 1
        line.end()
        page.wait_for_function(f"{said} === 'ready'")
    finally:
        page.evaluate("() => { window.setTimeout = samkit.timer; document.querySelector('.samkit-dialog')?.remove(); }")


def test_while_the_server_is_gone_the_image_stays_and_afterwards_it_goes_on(page):
    build(page)
    editor = Editor(page).ready()
    editor.click(*LEAF)
    mask = editor.exact()
    gone = ("**/view?*", "**/samkit/**")
    for pattern in gone:
        page.route(pattern, lambda route: route.abort())
    try:
        page.wait_for_timeout(2500)  # until the file is asked about again
        editor.click(*SKY)
        editor.wait("editor.preview.state.name === 'failed'")
        page.mouse.move(5, 5)
        page.wait_for_timeout(500)
        assert editor.evaluate("Boolean(editor.image)") and not page.get_by_text("no longer there").filter(visible=True).count()
        assert editor.status == "ComfyUI does not answer. Check that it is running."
    finally:
        for pattern in gone:
            page.unroute(pattern)
    page.keyboard.press("Control+z")
    page.evaluate("app.api.dispatchEvent(new CustomEvent('reconnected'))")
    editor.wait("editor.preview.state.name === 'ready'")
    assert (editor.exact() == mask).all()

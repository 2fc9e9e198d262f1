#!/usr/bin/env python3
"""The pixels of the prompt editor, from a real browser on a real ComfyUI: a film for README, stills for the help page.

    .venv/bin/python tools/editor_pictures.py [film | stills]

Needs ComfyUI 0.25 or newer (COMFYUI_PATH), Playwright and Chromium, as the tests of the editor do.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from browser import Editor, browser_page  # noqa: E402
from comfyui_server import comfyui  # noqa: E402

DOCS = ROOT / "web" / "docs"
FILM = DOCS / "prompt_editor.webp"
FILM_WIDTH = 800

# Pixels of samkit_scene.png: the leaf, the rug with its box, and the sticker on it.
LEAF, RUG, STICKER = (209, 386), ((230, 176), (560, 462)), (372, 312)

_BUILD = """async ([size, results]) => {
  samkit.empty();
  const { add, link } = samkit;
  const image = add("SAMKit_ExampleImage", -900, 0);
  const model = add("AV_SAMLoader", -900, 400, { model_name: "samkit_demo.safetensors" });
  const editor = add("SAMKit_PromptEditor", 0, 0);
  editor.setSize(size);
  link(image, 0, editor, "image");
  link(model, 0, editor, "sam_model");
  if (results) {
    const seen = add("PreviewImage", size[0] + 40, 0);
    seen.setSize([340, 420]);
    link(editor, editor.outputs.findIndex((one) => one.name === "cutout"), seen, "images");
  }
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [140, 140];
  app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 1500));
  Object.defineProperty(samkit.editor().preview.pace, "isSlow", { get: () => false });
}"""
# A screenshot has no pointer: this arrow goes where the pointer is. The line at the bottom says what is done.
_STAGE = """() => {
  const path = `<path d="M2 1v22l6-5 4 10 4-2-4-9h8z" fill="#fff" stroke="#000" stroke-width="1.5"/>`;
  const html = `<svg width="22" height="30" viewBox="0 0 22 30">${path}</svg>`;
  const arrow = Object.assign(document.createElement("div"), { innerHTML: html, id: "film-arrow" });
  arrow.style.cssText = "position:fixed;z-index:99999;pointer-events:none;left:0;top:0";
  const line = Object.assign(document.createElement("div"), { id: "film-line" });
  line.style.cssText = "position:fixed;z-index:99998;pointer-events:none;padding:7px 18px;border-radius:8px;"
    + "background:#1e90ff;color:#fff;font:600 20px system-ui,sans-serif";
  document.body.append(arrow, line);
  const follow = ({ clientX, clientY }) => { arrow.style.transform = `translate(${clientX}px, ${clientY}px)`; };
  for (const type of ["pointermove", "pointerdown"]) window.addEventListener(type, follow, true);
}"""
_SAY = """([text, left, top]) => Object.assign(document.querySelector("#film-line"), { textContent: text })
  .style.cssText += `;left:${left}px;top:${top}px;display:${text ? "block" : "none"}`"""
_BOUNDS = """(types) => {
  const nodes = app.graph.nodes.filter((node) => types.includes(node.type));
  const { scale, offset } = app.canvas.ds;
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const [left, top] = [0, 1].map((axis) => Math.min(...nodes.map((node) => node.pos[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...nodes.map((node) => node.pos[axis] + node.size[axis])));
  const [x, y] = [canvas.left + (left + offset[0]) * scale, canvas.top + (top - 30 + offset[1]) * scale];
  return { x, y, width: (right - left) * scale, height: (bottom - top + 30) * scale };
}"""
_IDLE = """async () => {
  const { queue_running: running, queue_pending: pending } = await (await app.api.fetchApi("/queue")).json();
  return !running.length && !pending.length;
}"""


class Film:
    """Screenshots of one part of the page, each with the milliseconds that it is shown."""

    def __init__(self, page: Any, clip: dict[str, float]) -> None:
        self.page, self.clip = page, clip
        self.images: list[Image.Image] = []
        self.times: list[int] = []

    def take(self, milliseconds: int) -> None:
        image = Image.open(io.BytesIO(self.page.screenshot(clip=self.clip))).convert("RGB")
        height = round(image.height * FILM_WIDTH / image.width)
        self.images.append(image.resize((FILM_WIDTH, height), Image.Resampling.LANCZOS))
        self.times.append(milliseconds)

    def say(self, text: str) -> None:
        self.page.evaluate(_SAY, [text, self.clip["x"] + 16, self.clip["y"] + self.clip["height"] - 50])

    def save(self, path: Path) -> None:
        options = {"duration": self.times, "quality": 80, "method": 6, "loop": 0, "kmax": 40}
        self.images[0].save(path, save_all=True, append_images=self.images[1:], **options)


class Actor:
    """Moves the pointer in an editor step by step, and takes a screenshot at each step."""

    def __init__(self, editor: Editor, film: Film, start: tuple[int, int]) -> None:
        self.editor, self.film, self.at = editor, film, start

    def glide(self, end: tuple[int, int], steps: int = 7) -> None:
        (x0, y0), (x1, y1) = self.at, end
        for step in range(1, steps + 1):
            part = step / steps
            self.editor.page.mouse.move(*self.editor.place(x0 + part * (x1 - x0), y0 + part * (y1 - y0)))
            self.editor.settle()
            self.film.take(70)
        self.at = end

    def click(self, button: str = "left", pause: int = 900) -> None:
        self.editor.click(*self.at, button=button)
        self.editor.settle()
        self.film.take(pause)

    def drag(self, end: tuple[int, int]) -> None:
        self.editor.page.mouse.down()
        self.glide(end, steps=9)
        self.editor.page.mouse.up()
        self.editor.settle()
        self.film.take(900)

    def press(self, key: str, pause: int = 900) -> None:
        self.editor.page.keyboard.press(key)
        self.editor.settle()
        self.film.take(pause)


def make_film(page: Any) -> None:
    """Two objects, marked and cut out."""
    page.evaluate(_BUILD, [[600, 800], True])
    editor = Editor(page).ready()
    page.evaluate(_STAGE)
    bounds = page.evaluate(_BOUNDS, ["SAMKit_PromptEditor", "PreviewImage"])
    film = Film(page, {key: value + {"x": -12, "y": -12, "width": 24, "height": 24}[key] for key, value in bounds.items()})
    actor = Actor(editor, film, (90, 440))
    play(actor, film)
    film.say("Run: the result is what you saw")
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_timeout(1000)
    page.wait_for_function(_IDLE, timeout=60_000)
    page.wait_for_timeout(1500)
    film.take(2800)
    film.save(FILM)


def play(actor: Actor, film: Film) -> None:
    """What is done in the editor."""
    film.say("Point: see the mask that a click would give")
    actor.glide(LEAF, steps=9)
    film.take(900)
    film.say("Click: it is yours")
    actor.click()
    film.say("N: another object. Drag a box")
    actor.press("n", pause=500)
    actor.glide(RUG[0])
    actor.drag(RUG[1])
    film.say("Right-click what does not belong to it")
    actor.glide(STICKER)
    actor.click("right", pause=1300)
    film.say("V: see what you cut out")
    actor.press("v", pause=1600)


def make_still(page: Any, path: Path, *, is_light: bool) -> None:
    """The whole editor with three named objects and the open Finish panel."""
    palette = "light" if is_light else "dark"
    page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
    page.evaluate(_BUILD, [[560, 760], False])
    editor = Editor(page).ready()
    mark_three(editor)
    page.wait_for_timeout(500)
    clip = page.evaluate(_BOUNDS, ["SAMKit_PromptEditor"])
    clip = {key: value + {"x": -10, "y": -10, "width": 20, "height": 20}[key] for key, value in clip.items()}
    image = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    image.save(path, quality=85)


def mark_three(editor: Editor) -> None:
    """A leaf by a click, a rug by a box, a sticker by a click, each with its name."""
    editor.click(*LEAF)
    editor.page.keyboard.press("n")
    editor.drag(*RUG)
    editor.click(*STICKER, button="right")
    editor.page.keyboard.press("n")
    editor.page.keyboard.down("Control")  # a click on another object's mask would select that object
    editor.click(*STICKER)
    editor.page.keyboard.up("Control")
    editor.settle()
    for row, name in enumerate(("leaf", "rug", "sticker")):
        field = editor.page.locator('.samkit-object input[type="text"]').nth(row)
        field.fill(name)
        field.blur()
    editor.page.evaluate("() => samkit.editor().finish.opener.click()")
    editor.leave()


def main(only: list[str]) -> None:
    """Make the film, the stills or both."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes" / "samkit").symlink_to(ROOT, target_is_directory=True)
        with comfyui(base) as server:
            if "stills" not in only:
                with browser_page(server, nodes2=True) as page:
                    make_film(page)
            if "film" not in only:
                with browser_page(server, nodes2=True) as page:
                    make_still(page, DOCS / "prompt_editor_nodes2.jpg", is_light=True)
                with browser_page(server) as page:
                    make_still(page, DOCS / "prompt_editor_classic.jpg", is_light=False)


if __name__ == "__main__":
    main(sys.argv[1:])

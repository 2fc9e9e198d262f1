"""A browser on a real ComfyUI, and the prompt editors in it, moved by real pointer and key events."""

import base64
import contextlib
import shutil

import numpy as np
from comfyui_server import Unavailable

_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_READY = "window.app?.graph && window.app.extensionManager && document.querySelector('canvas')"

# What the tests do in the page: build graphs, find an editor, read its canvas.
_TOOLS = """
window.samkit = {
  add(type, x, y, values = {}) {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) {
      const widget = node.widgets.find((one) => one.name === name);
      widget.value = value;
      widget.callback?.(value);
    }
    return node;
  },
  empty() {
    const root = app.rootGraph ?? app.graph;
    if (app.canvas.graph !== root) app.canvas.setGraph(root);
    root.clear();
  },
  link(from, output, to, input) {
    from.connect(output, to, to.inputs.findIndex((one) => one.name === input));
  },
  editor(index = 0) {
    return [...document.querySelectorAll(".samkit-editor")].filter((one) => one.getBoundingClientRect().width)[index].samkit;
  },
  place(x, y, index = 0) {
    const { view, stage, stageSize } = samkit.editor(index);
    const at = view.toStage({ x, y });
    const bounds = stage.getBoundingClientRect();
    return [bounds.left + at.x * bounds.width / stageSize.width, bounds.top + at.y * bounds.height / stageSize.height];
  },
  // The mask as it is seen: the canvas with the overlay beside the canvas without, one sample per pixel of the image.
  async seen(index = 0) {
    const editor = samkit.editor(index);
    const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const pixels = () => editor.canvas.getContext("2d").getImageData(0, 0, editor.canvas.width, editor.canvas.height);
    await frame();
    const shown = pixels();
    editor.toggleOverlay();
    await frame();
    const bare = pixels();
    editor.toggleOverlay();
    await frame();
    const { width, height } = editor.image;
    const ratio = editor.canvas.width / editor.stageSize.width;
    const mask = new Uint8Array(width * height);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const at = editor.view.toStage({ x: x + 0.5, y: y + 0.5 });
        const start = 4 * (Math.floor(at.y * ratio) * shown.width + Math.floor(at.x * ratio));
        const change = [0, 1, 2].reduce((sum, i) => sum + Math.abs(shown.data[start + i] - bare.data[start + i]), 0);
        mask[y * width + x] = change > 12 ? 1 : 0;
      }
    }
    return samkit.packed(mask, width, height);
  },
  // What the layer of segments of a part of the editor shows, one sample per pixel of the image.
  async lit(part, index = 0) {
    const editor = samkit.editor(index);
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const { canvas } = editor[part].layer;
    const { data, width: across } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const { width, height } = editor.image;
    const ratio = canvas.width / editor.stageSize.width;
    const mask = new Uint8Array(width * height);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const at = editor.view.toStage({ x: x + 0.5, y: y + 0.5 });
        mask[y * width + x] = data[4 * (Math.floor(at.y * ratio) * across + Math.floor(at.x * ratio)) + 3] ? 1 : 0;
      }
    }
    return samkit.packed(mask, width, height);
  },
  // The masks that the server sent, exactly: those of all objects together, or of one.
  exact(index = 0, only = null) {
    const { masks, image: { width, height } } = samkit.editor(index);
    const context = new OffscreenCanvas(width, height).getContext("2d");
    for (const { bitmap, object } of masks) if (only === null || object === only) context.drawImage(bitmap, 0, 0);
    const alpha = context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 3);
    return samkit.packed(alpha.map((value) => (value ? 1 : 0)), width, height);
  },
  // The alpha of the masks that the server sent, 0 to 255: of all objects together.
  levels(index = 0) {
    const { masks, image: { width, height } } = samkit.editor(index);
    const most = new Uint8Array(width * height);
    for (const { bitmap } of masks) {
      const context = new OffscreenCanvas(width, height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      const { data } = context.getImageData(0, 0, width, height);
      most.forEach((level, i) => { most[i] = Math.max(level, data[4 * i + 3]); });
    }
    return samkit.packed(most, width, height);
  },
  packed(mask, width, height) {
    let text = "";
    for (const value of mask) text += String.fromCharCode(value);
    return [btoa(text), width, height];
  },
  // When the server has run all that was queued, and its history has it.
  async drained() {
    while ((await (await fetch("/prompt")).json()).exec_info.queue_remaining) await new Promise((done) => setTimeout(done, 50));
  },
  // Whether the server comes to run something, or nothing, within 20 seconds. (wait_for_function awaits no promise.)
  async runs(something) {
    for (let tries = 0; tries < 400; tries += 1) {
      const { queue_running: running } = await (await fetch("/queue")).json();
      if (running.length > 0 === something) return true;
      await new Promise((done) => setTimeout(done, 50));
    }
    return false;
  },
  async settled(index = 0) {
    const editor = samkit.editor(index);
    const pause = (time) => new Promise((done) => setTimeout(done, time));
    for (let quiet = 0; quiet < 3;) {
      await pause(50);
      const isWorking = editor.preview.busy || editor.tracked.busy;
      quiet = isWorking || ["preparing", "stale"].includes(editor.preview.state.name) ? 0 : quiet + 1;
    }
  },
};
"""


_SEE = "([index, name]) => { const editor = samkit.editor(index); editor.mode.name = name; editor.changed(); }"


@contextlib.contextmanager
def browser_page(server, nodes2=False):
    """A page of the server's ComfyUI with the classic canvas or Nodes 2.0.

    Raises:
        Unavailable: there is no Playwright, or no Chromium on the PATH.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as reason:
        raise Unavailable(f"there is no Playwright: {reason}") from reason
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise Unavailable("there is no Chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGS)
        page = browser.new_page(viewport={"width": 1700, "height": 1100})
        try:
            open_page(page, server)
            settings = {"Comfy.VueNodes.Enabled": nodes2, "Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
            for name, value in settings.items():
                page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
            open_page(page, server)
            yield page
        finally:
            browser.close()


def open_page(page, server):
    """Load ComfyUI anew, and the tests' tools into it."""
    page.goto(f"{server.url}/")
    page.wait_for_function(_READY, timeout=90_000)
    page.wait_for_timeout(1500)
    page.evaluate(_TOOLS)


class Editor:
    """One of the page's prompt editors; places are pixels of its image."""

    def __init__(self, page, index=0):
        self.page, self.index = page, index

    def place(self, x, y):
        return self.page.evaluate("([x, y, index]) => samkit.place(x, y, index)", [x, y, self.index])

    def click(self, x, y, **options):
        self.page.mouse.click(*self.place(x, y), **options)

    def drag(self, start, end, steps=5):
        self.page.mouse.move(*self.place(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(*end), steps=steps)
        self.page.mouse.up()

    def leave(self):
        """Take the pointer off the editor, so that nothing is previewed, and wait for what is under way."""
        self.page.mouse.move(5, 5)
        self.settle()

    def settle(self):
        self.page.evaluate("(index) => samkit.settled(index)", self.index)

    def ready(self):
        """Come with the pointer, and wait until the image is shown and encoded."""
        self.page.wait_for_function(f"samkit.editor({self.index})?.image", timeout=20_000)
        self.page.mouse.move(*self.place(1, 1))
        self.page.wait_for_timeout(400)
        self.leave()
        return self

    def wait(self, condition, timeout=20_000):
        """Wait until a condition on `editor`, in JavaScript, holds."""
        self.page.wait_for_function(
            f"() => {{ const editor = samkit.editor({self.index}); return {condition}; }}", timeout=timeout
        )

    def evaluate(self, script):
        return self.page.evaluate(f"() => {{ const editor = samkit.editor({self.index}); return {script}; }}")

    @property
    def state(self):
        return self.page.evaluate("(index) => JSON.parse(samkit.editor(index).text)", self.index)

    @property
    def marks(self):
        return [mark for one in self.state.get("objects", []) for mark in one["marks"]]

    @property
    def status(self):
        return self.page.evaluate("(index) => samkit.editor(index).statusLine.textContent", self.index)

    def seen(self):
        """The mask as the canvas shows it: bool [H, W]."""
        self.leave()
        return self._unpacked(self.page.evaluate("(index) => samkit.seen(index)", self.index))

    def lit(self, part):
        """What the layer of segments of a part of the editor, `everything` or `alike`, shows: bool [H, W]."""
        return self._unpacked(self.page.evaluate("([part, index]) => samkit.lit(part, index)", [part, self.index]))

    def exact(self, only=None):
        """The masks as the server sent them: bool [H, W]; of all objects together, or of one."""
        self.leave()
        return self._unpacked(self.page.evaluate("([index, only]) => samkit.exact(index, only)", [self.index, only]))

    def levels(self):
        """The masks as the server gives them in their exact form, of all objects together: uint8 [H, W]."""
        seen = self.evaluate("editor.mode.name")
        self.page.evaluate(_SEE, [self.index, "mask"])
        self.leave()
        levels = self._bytes(self.page.evaluate("(index) => samkit.levels(index)", self.index))
        self.page.evaluate(_SEE, [self.index, seen])
        self.settle()
        return levels

    @classmethod
    def _unpacked(cls, answer):
        return cls._bytes(answer).astype(bool)

    @staticmethod
    def _bytes(answer):
        text, width, height = answer
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width)


def build(page, editors=1, scale=1.0, model="samkit_demo.safetensors"):
    """A graph of Load Image and Load SAM Model on some editors, each with its mask saved; the editors' ids."""
    return page.evaluate(
        """async ([count, scale, name]) => {
          samkit.empty();
          const { add, link } = samkit;
          const loader = add("LoadImage", 20, 120, { image: "samkit_scene.png" });
          const model = add("AV_SAMLoader", 20, 560, { model_name: name });
          const ids = [];
          for (let i = 0; i < count; i += 1) {
            const editor = add("SAMKit_PromptEditor", 340 + 480 * i, 120);
            link(loader, 0, editor, "image");
            link(model, 0, editor, "sam_model");
            const image = add("MaskToImage", 340 + 480 * i, 820);
            link(editor, 3, image, "mask");
            const save = add("SaveImage", 560 + 480 * i, 820, { filename_prefix: `editor_${i}` });
            link(image, 0, save, "images");
            ids.push(editor.id);
          }
          app.canvas.ds.scale = scale;
          app.canvas.ds.offset = [80 / scale, 20 / scale];
          app.canvas.setDirty(true, true);
          await new Promise((done) => setTimeout(done, 800));
          // How quick the machine is, is not what is tested.
          const never = { get: () => false };
          for (let i = 0; i < count; i += 1) Object.defineProperty(samkit.editor(i).preview.pace, "isSlow", never);
          return ids;
        }""",
        [editors, scale, model],
    )

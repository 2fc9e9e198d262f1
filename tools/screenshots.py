#!/usr/bin/env python3
"""The images of the example workflows: each is opened in a real ComfyUI by a real browser, run, and photographed.

    .venv/bin/python tools/screenshots.py [name ...]

Without a name, all whose nodes the server has: those with nodes of other packs need the packs in SAMKIT_PACKS (see
tests/real_packs.py). What needs weights that are not on this machine is shown before its run. Needs ComfyUI (COMFYUI_PATH),
Playwright and Chromium, as the tests of the editor do.
"""

import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

import real_packs  # noqa: E402
from browser import browser_page  # noqa: E402
from comfyui_server import Server, comfyui  # noqa: E402

EXAMPLES = ROOT / "example_workflows"
MARGIN, TITLE, WIDTH = 24, 34, 1200
LEFT, TOP = 140, 200  # where the first node stands: beside the browser's own buttons

_BOUNDS = """
  const nodes = app.graph.nodes.filter((node) => node.type !== "MarkdownNote");
  const [left, top] = [0, 1].map((axis) => Math.min(...nodes.map((node) => node.pos[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...nodes.map((node) => node.pos[axis] + node.size[axis])));
"""
_OPEN = f"""async (workflow) => {{
  await app.loadGraphData(workflow);
  await new Promise((done) => setTimeout(done, 1500));
  {_BOUNDS}
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [{LEFT} - left, {TOP} - top];
  app.canvas.setDirty(true, true);
}}"""
_SEEN = f"""() => {{
  {_BOUNDS}
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = [canvas.left + {LEFT - MARGIN}, canvas.top + {TOP - TITLE - MARGIN}];
  return {{ x, y, width: right - left + {2 * MARGIN}, height: bottom - top + {TITLE + 2 * MARGIN} }};
}}"""
# Queues the workflow and waits for its end, or for ComfyUI's refusal: how it ended.
_RUN = """() => new Promise((done) => {
  const ends = ["execution_success", "execution_error", "execution_interrupted"];
  for (const end of ends) app.api.addEventListener(end, () => done(end), { once: true });
  app.queuePrompt(0).then((queued) => { if (queued === false) done("refused"); });
})"""


def main(names: list[str]) -> None:
    """Take the named images, or all."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes" / "samkit").symlink_to(ROOT, target_is_directory=True)
        if real_packs.install(set(real_packs.EXAMPLES.values()), base / "custom_nodes"):
            os.environ["PYTHONPATH"] = str(real_packs.site_packages())
        with comfyui(base) as server, browser_page(server) as page:
            known = server.json("/object_info")
            for path in sorted(EXAMPLES.glob("*.json")):
                graph = json.loads((EXAMPLES / "api" / path.name).read_text(encoding="utf-8"))
                if (not names or path.stem in names) and all(node["class_type"] in known for node in graph.values()):
                    take(server, page, path)


def take(server: Server, page: Any, path: Path) -> None:
    """Open one workflow, run it, and save what is seen of its nodes beside it."""
    page.set_viewport_size({"width": 2200, "height": 1700})
    page.evaluate(_OPEN, json.loads(path.read_text(encoding="utf-8")))
    page.wait_for_timeout(4000)  # the editor loads its image and the mask of its marks
    server.request("/free", {"free_memory": True, "unload_models": True})  # what is cached is not shown again
    page.evaluate(_RUN)
    page.wait_for_timeout(3000)
    page.keyboard.press("Escape")  # a dialog that says what is missing
    page.wait_for_timeout(500)
    image = Image.open(io.BytesIO(page.screenshot(clip=page.evaluate(_SEEN)))).convert("RGB")
    image.thumbnail((WIDTH, WIDTH))
    image.save(path.with_suffix(".jpg"), quality=85)


if __name__ == "__main__":
    main(sys.argv[1:])

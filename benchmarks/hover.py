"""Part `hover`: the segment under the pointer lights up in the prompt editor, frame by frame, in a real browser."""

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from browser import Editor, browser_page, build
from comfyui_server import Unavailable, comfyui
from harness import ROOT, Report, Table, photo
from PIL import Image
from samkit.utils.patches import encode_runs

SIZE = (1536, 2048)
SEGMENTS = 150
MOVES = 900
LIMIT = 1000 / 60  # milliseconds of a frame

_FRAMES = """() => {
  samkit.frames = [];
  let last = performance.now();
  const note = (now) => { samkit.frames.push(now - last); last = now; samkit.next = requestAnimationFrame(note); };
  samkit.next = requestAnimationFrame(note);
}"""


def measure(models: list[str], device: torch.device) -> Report:
    """Milliseconds between frames while the pointer crosses the image, at rest, and the requests that were sent."""
    report = Report("hover")
    columns = ["what", "median", "95th percentile", "longest", f"frames over {LIMIT:.1f} ms", "segments lit"]
    table = Table(f"Hovering over {SEGMENTS} segments of {SIZE[1]}x{SIZE[0]} pixels: time between frames", columns)
    report.tables.append(table)
    try:
        for name, nodes2 in (("classic canvas", False), ("Nodes 2.0", True)):
            with tempfile.TemporaryDirectory() as base:
                _measure(report, table, name, nodes2, Path(base))
    except Unavailable as reason:
        table.note = f"Skipped: {reason}."
    return report


def _measure(report: Report, table: Table, name: str, nodes2: bool, base: Path) -> None:
    for folder in ("custom_nodes", "input"):
        (base / folder).mkdir()
    (base / "custom_nodes" / "samkit").symlink_to(ROOT, target_is_directory=True)
    shutil.copy(ROOT / "example_workflows" / "samkit_scene.png", base / "input")
    Image.fromarray(photo(*SIZE)).save(base / "input" / "samkit_scene.png")
    with comfyui(base) as server, browser_page(server, nodes2=nodes2) as page:
        build(page)
        editor = Editor(page)
        page.wait_for_function("samkit.editor()?.image", timeout=60_000)
        page.route("**/samkit/segments", lambda route: route.fulfill(json=_found()))
        page.get_by_label("Find all segments of the image").filter(visible=True).click()
        editor.wait("editor.everything.state === 'ready'", timeout=60_000)
        page.mouse.move(*editor.place(1, 1))  # somebody has come: the image is encoded now
        editor.wait("editor.preview.state.name === 'ready'", timeout=60_000)
        requests: list[str] = []
        page.on("request", lambda request, sent=requests: sent.append(request.url))
        for what, moves in ((f"{name}, at rest", 0), (f"{name}, moving", MOVES)):
            frames, lit = _hover(page, editor, moves)
            late = sum(frame > 1.05 * LIMIT for frame in frames) / len(frames)
            figures = (statistics.median(frames), statistics.quantiles(frames, n=20)[-1], max(frames))
            table.rows.append([what, *(f"{figure:.1f} ms" for figure in figures), f"{100 * late:.1f} %", str(lit)])
            report.numbers[what] = {"median": figures[0], "late": late, "lit": lit}
        sent = [url for url in requests if "/samkit/" in url]
        report.numbers[f"{name}, requests"] = len(sent)
        table.note += f" {name}: {len(sent)} requests of the editor{''.join(f' {url}' for url in sent)}."


def _hover(page: Any, editor: Editor, moves: int) -> tuple[list[float], int]:
    """Milliseconds between frames, and how many segments were lit."""
    page.evaluate("() => { samkit.lit = new Set(); }")
    page.evaluate(_FRAMES)
    height, width = SIZE
    for move in range(moves):
        x = width * (0.5 + 0.48 * np.sin(move * 0.043))
        y = height * (0.5 + 0.48 * np.sin(move * 0.031 + 1))
        page.mouse.move(*editor.place(float(x), float(y)))
        if move % 10 == 0:
            page.evaluate("() => samkit.lit.add(samkit.editor().everything.under)")
    if not moves:
        page.wait_for_timeout(2000)
    page.evaluate("() => cancelAnimationFrame(samkit.next)")
    return page.evaluate("() => samkit.frames.slice(2)"), page.evaluate("() => samkit.lit.size")


def _found() -> dict[str, Any]:
    """As the server answers: wavy blobs, the largest over the whole image, the others smaller and smaller."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    segments = []
    for number in range(SEGMENTS):
        radius = 900 * (1 - number / SEGMENTS) ** 2 + 40
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        top, left = max(0, int(y - 1.3 * radius)), max(0, int(x - 1.3 * radius))
        part = np.s_[top : int(y + 1.3 * radius), left : int(x + 1.3 * radius)]
        dy, dx = rows[part] - y, columns[part] - x
        wave = 1 + 0.2 * np.sin(rng.integers(3, 30) * np.arctan2(dy, dx))
        pixels = dx * dx + dy * dy <= (radius * wave) ** 2
        place = {"x": left, "y": top, "width": pixels.shape[1], "height": pixels.shape[0]}
        segments.append({**place, "runs": encode_runs(pixels), "score": 0.9, "area": int(pixels.sum())})
    segments.sort(key=lambda one: -one["area"])
    return json.loads(json.dumps({"width": width, "height": height, "stamp": "x", "segments": segments}))

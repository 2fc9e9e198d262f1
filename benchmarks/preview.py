"""Part `preview`: the prompt editor in a real ComfyUI, from a click to its mask on the screen, and what the server does."""

import contextlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from browser import Editor, browser_page, build
from comfyui_server import Server, Unavailable, comfyui
from harness import ROOT, Report, Table, photo, sam
from PIL import Image

CLICKS = 100
SIZE = (1024, 1024)
CROWD = 9  # other objects that are marked already
REST = 150  # milliseconds that the pointer rests before a click, as a hand does
BARS = {"screen": 100, "server": 80, "stall": 50}  # milliseconds
_SCENE = "samkit_scene.png"

# Times one click in the page: from its pointerup to the frame after the one that painted its mask.
_STOPWATCH = """
samkit.watch = () => {
  const editor = samkit.editor();
  const before = editor.mask;
  samkit.took = new Promise((done) => {
    window.addEventListener("pointerup", () => {
      const begun = performance.now();
      const look = () => {
        if (!editor.mask || editor.mask === before) requestAnimationFrame(look);
        else requestAnimationFrame(() => done(performance.now() - begun));
      };
      requestAnimationFrame(look);
    }, { capture: true, once: true });
  });
};
"""

# A new object is the next click's, beside others that have a point each.
_BEGIN = """(others) => {
  const editor = samkit.editor();
  const mark = (i) => ({ x: 60 + 58 * i, y: 60 + 40 * (i % 9), label: 1 });
  editor.text = JSON.stringify({ version: 2, objects: Array.from({ length: others }, (_, i) => ({ marks: [mark(i)] })) });
  if (others) editor.state.newObject();
}"""


def measure(models: list[str], device: torch.device) -> Report:
    """Medians and 90th percentiles over many clicks; the longest time without an answer from the server."""
    report = Report("preview")
    table = Table("The prompt editor's preview", ["what", "median", "90th percentile", "longest", "limit"])
    report.tables.append(table)
    try:
        with serving(models[0], device) as server:
            table.note = " ".join(_measure(report, table, server, models[0]))
    except Unavailable as reason:
        table.note = f"Skipped: {reason}."
    return report


def _measure(report: Report, table: Table, server: Server, model: str) -> list[str]:
    """Fills the report; returns what else there is to say."""
    idle = _stalls_idle(server)
    encoding, busy = _stalls_encoding(server, model)
    own, wall = _questions(server, model)
    notes = [f"Loading and encoding took {encoding:.1f} s; a ping is a small request."]
    measured = [
        (f"the server's time for a click, {model}", own, f"{BARS['server']} ms"),
        (f"request to PNG, {model}", wall, ""),
        (f"ping while {model} is loaded and encodes", busy, f"{BARS['stall']} ms for the longest"),
        ("ping, idle", idle, ""),
    ]
    try:
        for others in (CROWD, 0):
            what = f"pointer event to mask on the screen, demo checkpoint{f', with {others} other objects' if others else ''}"
            measured.insert(0, (what, _clicks(server, others), f"{BARS['screen']} ms"))
    except Unavailable as reason:
        notes.append(f"Skipped, pointer event to mask on the screen: {reason}.")
    table.rows += [_row(name, seconds, bar) for name, seconds, bar in measured]
    report.numbers |= {name: {"median": statistics.median(s), "longest": max(s)} for name, s, _ in measured}
    return notes


def _row(name: str, seconds: list[float], bar: str) -> list[str]:
    ninetieth = statistics.quantiles(seconds, n=10)[-1]
    return [name, *(f"{1000 * value:.1f} ms" for value in (statistics.median(seconds), ninetieth, max(seconds))), bar]


@contextlib.contextmanager
def serving(model: str, device: torch.device) -> Iterator[Server]:
    """A ComfyUI with this pack, the bundled photo, a large one, and random weights of full size."""
    with tempfile.TemporaryDirectory(prefix="samkit_bench_") as name:
        base = Path(name)
        for folder in ("custom_nodes", "input", "models/sams"):
            (base / folder).mkdir(parents=True)
        (base / "custom_nodes" / "samkit").symlink_to(ROOT, target_is_directory=True)
        shutil.copy(ROOT / "example_workflows" / _SCENE, base / "input")
        Image.fromarray(photo(*SIZE)).save(base / "input" / "large.png")
        torch.save(sam(model).state_dict(), base / "models" / "sams" / f"{model}.pth")
        with comfyui(base, threads=None, device=device.type) as server:
            yield server


def _body(model: str, **others: Any) -> bytes:
    return json.dumps({"image": {"filename": "large.png"}, "model": {"model_name": f"{model}.pth"}, **others}).encode()


def _stalls_idle(server: Server) -> list[float]:
    with server.stalls() as seconds:
        time.sleep(3)
    return seconds


def _stalls_encoding(server: Server, model: str) -> tuple[float, list[float]]:
    """Seconds of the encode, and of each answer of the server to somebody else meanwhile."""
    with server.stalls() as seconds:
        status, _, said = server.send("/samkit/prepare", _body(model), timeout=600)
    _check(status, said)
    return json.loads(said)["seconds"], seconds


def _questions(server: Server, model: str) -> tuple[list[float], list[float]]:
    """Seconds of each of many moved clicks: by the server's own clock, and from the request to the last byte."""
    own, wall = [], []
    for number in range(-3, CLICKS):
        place = {"x": SIZE[1] * (0.2 + 0.6 * abs(number) / CLICKS), "y": SIZE[0] * 0.5, "label": 1}
        body = _body(model, prompts={"marks": [place]}, editor="bench", sequence=number + 3)
        begun = time.perf_counter()
        status, headers, said = server.send("/samkit/preview", body)
        took = time.perf_counter() - begun
        _check(status, said)
        if number >= 0:
            own.append(float(headers["X-SAMKit-Milliseconds"]) / 1000)
            wall.append(took)
    return own, wall


def _check(status: int, said: bytes) -> None:
    if status != 200:
        raise RuntimeError(f"the server answered {status}: {said[:500]!r}")


def _clicks(server: Server, others: int) -> list[float]:
    """Seconds of real clicks in a real browser, each from its pointerup to its mask on the screen, beside other objects.

    Raises:
        Unavailable: there is no browser.
    """
    seconds = []
    with browser_page(server) as page:
        build(page)
        editor = Editor(page).ready()
        page.evaluate(_STOPWATCH)
        for number in range(-3, CLICKS):
            page.evaluate(_BEGIN, others)
            editor.settle()
            page.mouse.move(*editor.place(40 + 137 * number % 560, 40 + 89 * number % 400))
            page.wait_for_timeout(REST)
            page.evaluate("samkit.watch()")
            page.mouse.down()
            page.mouse.up()
            took = page.evaluate("samkit.took")
            if number >= 0:
                seconds.append(took / 1000)
    return seconds

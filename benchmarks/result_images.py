"""Part `result_images`: what showing the result costs, the file included: in a node's run, and in a whole run in ComfyUI."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comfyui_server import Server, Unavailable
from harness import Report, Table, as_image, photo, sam, timed
from preview import serving
from samkit.nodes import common
from samkit.nodes.automask import AutoMask
from samkit.nodes.predict import Segment
from samkit.sam.tasks.embed import cache

ROUNDS = 3
RUNS = 40  # of each kind in ComfyUI, in turn
CLICK = {"positive_coords": '[{"x": 300, "y": 300}]'}
EVERYTHING = {"points_per_side": 8, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "max_masks": 20}  # of random weights
CASES: tuple[tuple[str, type, dict[str, Any], int, bool], ...] = (
    ("SAM Segment, a new image", Segment, CLICK, 1, False),
    ("SAM Segment, a batch of 4", Segment, CLICK, 4, False),
    ("SAM Segment, embedding cached", Segment, CLICK, 1, True),
    ("SAM Segment Everything", AutoMask, EVERYTHING, 1, False),
)


@torch.inference_mode()  # as ComfyUI calls nodes
def measure(models: list[str], device: torch.device) -> Report:
    """Medians; the share is the time of the result's image in that of the run that makes it."""
    report = Report("result_images")
    columns = ["run, 1024x1024", "without", "result shown", "share"]
    table = Table(f"What showing the result costs, {models[0]}", columns)
    model, mode = sam(models[0]), "CPU" if device.type == "cpu" else "Prefer GPU"
    image = as_image(photo(1024, 1024))
    for name, kind, inputs, frames, cached in CASES:
        given = {"sam_model": model, "image": image.repeat(frames, 1, 1, 1), "device_mode": mode, **inputs}
        run, own = _cost(lambda: kind().run(show_result=True, **given), cached)  # noqa: B023  called at once
        table.rows.append(_row(name, run - own, own))
        report.numbers[name] = {"run": run, "shown": own}
    report.tables.append(table)
    try:
        with serving(models[0], device) as server:
            plain, shown = _runs(server, models[0])
    except Unavailable as reason:
        table.note = f"Skipped, a run in ComfyUI: {reason}."
        return report
    name = "a run in ComfyUI: a click on a cached image, its mask saved"
    table.rows.append(
        [name, *(f"{1000 * value:.1f} ms" for value in (plain, shown - plain)), f"{100 * (shown / plain - 1):.2f} %"]
    )
    report.numbers[name] = {"run": shown, "shown": shown - plain}
    return report


def _row(name: str, run: float, own: float) -> list[str]:
    return [name, f"{1000 * run:.1f} ms", f"{1000 * own:.1f} ms", f"{100 * own / run:.2f} %"]


def _runs(server: Server, model: str) -> tuple[float, float]:
    """Median seconds of runs with a click that moves, without and with the result shown, by ComfyUI's own clock."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(-2, 2 * RUNS):
        shown = bool(number % 2)
        entry = server.run(_graph(model, 300 + number, shown))
        times = {event: said["timestamp"] for event, said in entry["status"]["messages"]}
        if number >= 0:
            seconds[shown].append((times["execution_success"] - times["execution_start"]) / 1000)
    return statistics.median(seconds[False]), statistics.median(seconds[True])


def _graph(model: str, x: int, shown: bool) -> dict[str, Any]:
    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    click = f'[{{"x": {x}, "y": 300}}]'
    links = {"sam_model": ["model", 0], "image": ["image", 0], "positive_coords": ["click", 0]}
    return {
        "model": node("AV_SAMLoader", model_name=f"{model}.pth"),
        "image": node("LoadImage", image="large.png"),
        "click": node("PrimitiveStringMultiline", value=click),
        "segment": node("SAMKit_Segment", **links, show_result=shown),
        "mask": node("MaskToImage", mask=["segment", 0]),
        "save": node("SaveImage", images=["mask", 0], filename_prefix="run"),
    }


def _cost(run: Callable[[], Any], cached: bool) -> tuple[float, float]:
    """Seconds of a run, and of its result's images with their files."""
    totals, owns = [], []
    save = common.save_results
    with tempfile.TemporaryDirectory() as folder, timed((common, "shown")) as spent:
        common.save_results = lambda images: [image.save(Path(folder) / "one.jpg", quality=85) for image in images]
        try:
            for _ in range(ROUNDS + 1):
                if not cached:
                    cache.clear()
                spent.clear()
                begun = time.perf_counter()
                run()
                totals.append(time.perf_counter() - begun)
                owns.append(sum(spent))
        finally:
            common.save_results = save
    return statistics.median(totals[1:]), statistics.median(owns[1:])

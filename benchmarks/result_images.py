"""Part `result_images`: what showing the result costs a node's run, the file included; of new images, and of cached ones."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Report, Table, as_image, picture, sam, timed
from samkit.nodes import common
from samkit.nodes.automask import AutoMask
from samkit.nodes.predict import Segment
from samkit.sam.tasks.embed import cache
from samkit.utils import comfy

ROUNDS = 3
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
    image = as_image(picture(1024, 1024))
    for name, kind, inputs, frames, cached in CASES:
        given = {"sam_model": model, "image": image.repeat(frames, 1, 1, 1), "device_mode": mode, **inputs}
        run, own = _cost(lambda: kind().run(show_result=True, **given), cached)  # noqa: B023  called at once
        share = own / (run - own)
        table.rows.append([name, f"{1000 * (run - own):.1f} ms", f"{1000 * own:.1f} ms", f"{100 * share:.2f} %"])
        report.numbers[name] = {"run": run, "shown": own}
    report.tables.append(table)
    return report


def _cost(run: Callable[[], Any], cached: bool) -> tuple[float, float]:
    """Seconds of a run, and of its result's images with their files."""
    totals, owns = [], []
    save = common.save_results
    with tempfile.TemporaryDirectory() as folder, timed((common, "shown")) as spent:
        common.save_results = lambda images: [comfy._saved_result(image, Path(folder)) for image in images]
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

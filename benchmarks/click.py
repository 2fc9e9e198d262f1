"""Part `click`: a moved point, from the node's call to its MASK, with the photo's embedding remembered."""

import json
import statistics
import time

import torch
from harness import Report, Table, as_image, photo, sam, timed
from samkit.nodes.predict import Segment
from samkit.sam.kernels.decoder import FastDecoder
from samkit.sam.tasks.predict import ImagePredictor
from segment_anything.modeling import PromptEncoder

CLICKS = 60
SIZES = ((1024, 1024), (1536, 2048))


@torch.inference_mode()  # as ComfyUI calls nodes
def measure(models: list[str], device: torch.device) -> Report:
    """Medians over many clicks; "without the model" is the time outside the prompt encoder, the decoder and the upscaling."""
    report = Report("click")
    table = Table(f"A moved point, {models[0]}: time of one SAMKit_Segment call", ["image", "total", "without the model"])
    model = sam(models[0])
    mode = "CPU" if device.type == "cpu" else "Prefer GPU"
    for height, width in SIZES:
        total, own = _clicks(model, height, width, mode)
        table.rows.append([f"{width}x{height}", f"{1000 * total:.1f} ms", f"{1000 * own:.1f} ms"])
        report.numbers[f"{width}x{height}"] = {"total": total, "own": own}
    report.tables.append(table)
    return report


def _clicks(model: torch.nn.Module, height: int, width: int, mode: str) -> tuple[float, float]:
    image = as_image(photo(height, width))
    totals, owns = [], []
    arithmetic = (FastDecoder, "__call__"), (FastDecoder, "share"), (ImagePredictor, "upscale"), (PromptEncoder, "forward")
    with timed(*arithmetic) as spent:
        for number in range(CLICKS + 2):
            place = {"x": width * (0.2 + 0.6 * number / CLICKS / 1.1), "y": height * 0.5}
            spent.clear()
            begun = time.perf_counter()
            Segment().execute(model, image, positive_coords=json.dumps([place]), device_mode=mode)
            took = time.perf_counter() - begun
            if number >= 2:
                totals.append(took)
                owns.append(took - sum(spent))
    return statistics.median(totals), statistics.median(owns)

"""Part `finish`: the finishing steps of a mask, and ViTMatte of full size (random weights), each in a process of its own."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import Report, Table, peak_memory

STEPS = {
    "fill_holes": 500,
    "drop_islands": 500,
    "smooth": 3.0,
    "grow": 8,
    "feather": 4.0,
}
SIZES = ((480, 640), (1536, 2048), (3000, 4000))
IMAGES = ((768, 1024), (3000, 4000))
MATTE = """
import transformers
from samkit.sam import MatteModel, soft_edges
torch.manual_seed(0)
backbone = transformers.VitDetConfig(
    hidden_size=384, num_attention_heads=6, num_channels=4, image_size=512, out_features=["stage12"], window_size=14,
    window_block_indices=[0, 1, 3, 4, 6, 7, 9, 10], residual_block_indices=[2, 5, 8, 11], use_relative_position_embeddings=True)
config = transformers.VitMatteConfig(
    backbone_config=backbone, convstream_hidden_sizes=[48, 96, 192], fusion_hidden_sizes=[256, 128, 64, 32])
network = transformers.VitMatteForImageMatting(config).eval()
model = MatteModel(network, transformers.VitMatteImageProcessor(), Path())
frame, mask = np.zeros(({height}, {width}, 3), np.uint8), np.zeros(({height}, {width}), bool)
mask[{height} // 10 : -{height} // 10, {width} // 10 : -{width} // 10] = True
start()
begun = time.perf_counter()
soft_edges(model, [frame], [mask], device_mode={mode!r})
Path({out!r}).write_text(str(time.perf_counter() - begun))
"""


def measure(models: list[str], device: torch.device) -> Report:
    """Milliseconds of each step, alone; seconds and peak bytes of soft edges."""
    report = Report("finish")
    table = Table("Finishing a mask", ["step", *(f"{width}x{height}" for height, width in SIZES)])
    for step, value in STEPS.items():
        seconds = [_seconds(step, value, size) for size in SIZES]
        table.rows.append([f"{step} {value}", *(f"{1000 * one:.1f} ms" for one in seconds)])
        report.numbers[step] = dict(zip(map(str, SIZES), seconds, strict=True))
    report.tables += [table, _soft_edges(report, device)]
    return report


def _seconds(step: str, value: float, size: tuple[int, int]) -> float:
    from samkit.utils.finish import Finish, finish_mask

    height, width = size
    rows, columns = np.mgrid[:height, :width]
    mask = (rows / height - 0.5) ** 2 + (columns / width - 0.5) ** 2 < 0.1
    mask ^= np.random.default_rng(0).random(size) < 0.001
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        finish_mask(mask, Finish(**{step: value}))
        times.append(time.perf_counter() - begun)
    return sorted(times)[2]


def _soft_edges(report: Report, device: torch.device) -> Table:
    mode = "CPU" if device.type == "cpu" else "Prefer GPU"
    table = Table("SAM Soft Edges, ViTMatte-S with random weights", ["image", "time", "memory in addition to the model"])
    for height, width in IMAGES:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "seconds"
            peak = peak_memory(MATTE.format(height=height, width=width, mode=mode, out=str(out)))
            seconds = float(out.read_text())
        table.rows.append([f"{width}x{height}", f"{seconds:.1f} s", f"{peak / 1e6:.0f} MB"])
        report.numbers[f"soft edges {width}x{height}"] = {"seconds": seconds, "bytes": peak}
    return table

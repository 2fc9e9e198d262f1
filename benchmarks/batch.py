"""Part `batch`: the peak memory of long batches over that of five frames, each in a process of its own.

Inputs are there before, and outputs are as large as they are: neither counts. `SAMKIT_BENCH_FRAMES` sets another length.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from harness import Report, Table

LONG = int(os.environ.get("SAMKIT_BENCH_FRAMES", "500"))
FEW, SIDE, LIMIT = 5, 512, 300e6

PREPARE = """
import sys
sys.path.insert(0, {folder!r})
from harness import *
from harness import _peak
import harness
from samkit import NODE_CLASS_MAPPINGS as nodes
from samkit.nodes import common
from samkit.sam.tasks.embed import cache
from samkit.sam import encode

model = nodes["AV_SAMLoader"]().load_model("samkit_demo.safetensors")[0]
scenes = [torch.from_numpy(photo({side}, {side}, seed)) for seed in range(8)]

def film(first, count):
    images = torch.empty(count, {side}, {side}, 3)
    for index, image in enumerate(images, start=first):
        image.copy_(scenes[index % 8].roll(index, 0)).div_(255)
    return images

def run(node, **inputs):
    return nodes[node]().execute(model, device_mode={mode!r}, **inputs)

click = '[{{"x": 200, "y": 260}}]'
"""
NODES = {
    "SAM Segment": ("", "film", 'run("SAMKit_Segment", image=given, positive_coords=click)', 1),
    "SAM Segment, `logits` not connected": (
        "common.is_connected = lambda output: False",
        "film",
        'run("SAMKit_Segment", image=given, positive_coords=click)',
        1,
    ),
    "SAM Predict Mask": (
        "def embedded(first, count):\n    try:\n        return encode(model, film(first, count)).copy()\n    finally:\n"
        "        cache.clear()",
        "embedded",
        'run("SAMKit_PredictMask", embedding=given, positive_coords=click)',
        1,
    ),
    "SAM Segment Everything": ("", "film", 'run("SAMKit_AutoMask", image=given, points_per_side=16)', 10),
}
MEASURE = """
{prepare}
given = {make}(1000, 1)
{call}
given = {make}(0, {count})
if sys.platform == "linux":  # what was freed before must not hide what is used now
    import ctypes
    ctypes.CDLL("libc.so.6").malloc_trim(0)
start()
outputs = {call}
size = sum(part.nbytes for part in outputs if isinstance(part, torch.Tensor))
sys.stdout.write(json.dumps([_peak() - harness._base, size]) + "\\n")
"""


def measure(models: list[str], device: torch.device) -> Report:
    """Peak bytes besides the outputs, of a long batch and of five frames; always with the demo checkpoint."""
    report = Report("batch")
    heading = ["node", "frames", "of 5 frames", "of all", "more, at most 300 MB", "outputs"]
    table = Table(f"Peak memory besides inputs and outputs, {SIDE}x{SIDE}, demo checkpoint, all images new", heading)
    for name, (prepare, make, call, divisor) in NODES.items():
        code = MEASURE.replace("{prepare}", prepare).replace("{make}", make).replace("{call}", call)
        few, _ = _peak_of(code, FEW, device)
        many, outputs = _peak_of(code, LONG // divisor, device)
        more = many - few
        row = [name, str(LONG // divisor), *(f"{value / 1e6:.0f} MB" for value in (few, many, more, outputs))]
        table.rows.append(row)
        report.numbers[name] = {"few": few, "many": many, "more": more, "outputs": outputs, "fits": more <= LIMIT}
    table.note = "The embedding cache (512 MB at most) is among it: 0.5 MB for each image of this checkpoint."
    report.tables.append(table)
    return report


def _peak_of(code: str, count: int, device: torch.device) -> tuple[float, float]:
    """Bytes at the peak besides inputs and outputs, and bytes of the outputs."""
    mode = "CPU" if device.type == "cpu" else "AUTO"
    prepare = PREPARE.format(folder=str(Path(__file__).parent), side=SIDE, mode=mode)
    script = prepare + code.replace("{count}", str(count))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    peak, outputs = json.loads(done.stdout.strip().splitlines()[-1])
    return peak - outputs, outputs

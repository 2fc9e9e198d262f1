"""Part `scale`: a folder of images to a data set, by the command here and under Ray with one and with two actors.

And a data set is opened. The model is the bundled one. Ray is left out where it is not installed: pip install "ray[data]". It
runs in a process of its own, which does not take this folder's click.py for the package of that name.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from harness import Report, Table, peak_memory
from PIL import Image
from samkit.sam import AutoMaskOptions
from samkit.sam.datasets.formats import data_set
from samkit.sam.datasets.objects import LabeledImage, LabeledMask
from samkit.sam.datasets.read import open_data_set
from samkit.sam.tasks.distributed import RayRunner
from samkit.sam.tasks.folders import FolderTask, ImageFile, ImageResult, Runner, find_images, run_here, segment_folder
from samkit.sam.weights.registry import BUNDLED
from scenes import make_scene

IMAGES, SIZE, SEED = 48, (480, 640), 3_000_000
LISTED, OBJECTS = 10_000, 7  # images of a data set, and objects of each, as in COCO's
_AT_FIRST = 16  # results that are not measured: workers start, and load the model


def measure(models: list[str], device: torch.device) -> Report:
    """Images per second of each way. `models` is not used."""
    table = Table(f"Segment everything, {IMAGES} images of {SIZE[1]}x{SIZE[0]}", ["way", "until the first result", "images/s"])
    report = Report("scale", [table])
    report.tables.append(opened(report.numbers))
    ways = {"the command": 0} | ({f"--ray --actors {n}": n for n in (1, 2)} if importlib.util.find_spec("ray") else {})
    outputs = []
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(SEED, SIZE).image
        for index in range(IMAGES):  # none of them the same as another, which would be in the cache
            Image.fromarray(np.roll(scene, 12 * index, axis=1)).save(Path(folder) / f"{index:04}.png")
        for name, actors in ways.items():
            output = Path(folder) / f"{actors}.json"
            command = [sys.executable, __file__, folder, output, str(actors), device.type]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            report.numbers[name] = numbers = json.loads(done.stdout.splitlines()[-1])
            outputs.append(output.read_bytes())
            table.rows.append([name, f"{numbers['start']:.1f} s", f"{numbers['rate']:.2f}"])
    same = "the same" if len(set(outputs)) == 1 else "not the same, byte for byte (OMP_NUM_THREADS changes last digits)"
    table.note = f"The outputs are {same}."
    return report


def opened(numbers: dict[str, object]) -> Table:
    """Seconds and memory of a COCO file that is opened, of which one image is read."""
    table = Table(
        f"Open {LISTED:,} images with {OBJECTS} objects each, and read one", ["form", "file", "opened", "read", "memory"]
    )
    scene = make_scene(SEED, SIZE)
    masks = [LabeledMask(mask, "object") for mask in np.resize(np.asarray(scene.masks, bool), (OBJECTS, *SIZE))]
    for form in ("COCO RLE", "COCO polygons"):
        with tempfile.TemporaryDirectory() as folder:
            path, last = Path(folder) / "annotations.json", f"{LISTED - 1:05}.png"
            target = data_set(form, path)
            record = target.entry(LabeledImage(last, SIZE, masks))[0]
            target.write([{**record, "file_name": f"{index:05}.png"} for index in range(LISTED)])
            Image.fromarray(scene.image).save(path.with_name(last))
            begun = time.perf_counter()
            data = open_data_set(path)
            listed = time.perf_counter()
            data.read(LISTED - 1)
            seconds = listed - begun, time.perf_counter() - listed
            code = "from samkit.sam.datasets.read import open_data_set\nfrom pathlib import Path\nstart()\n"
            added = peak_memory(f"{code}data = open_data_set(Path({str(path)!r}))\ndata.read({LISTED - 1})")
            size = path.stat().st_size
            table.rows.append(
                [form, f"{size / 1e6:.0f} MB", f"{seconds[0]:.2f} s", f"{seconds[1] * 1e3:.0f} ms", f"{added / 1e6:.0f} MB"]
            )
            numbers[f"open {form}"] = {"file": size, "open": seconds[0], "read": seconds[1], "memory": added}
    return table


def run(folder: Path, output: Path, actors: int, device: str) -> dict[str, float]:
    """One way, in this process; 0 actors is the command without Ray."""
    mode = "Prefer GPU" if device == "cuda" else "CPU"
    options = AutoMaskOptions(points_per_side=8, pred_iou_thresh=0.7, stability_score_thresh=0.85)
    task = FolderTask("everything", "COCO RLE", BUNDLED["samkit_demo.safetensors"], device_mode=mode, everything=options)
    clock = Clock(RayRunner(actors=actors) if actors else run_here)
    segment_folder(task, find_images([folder])[1], output, clock)
    return {"start": clock.start, "rate": clock.rate()}


class Clock:
    """A runner that notes when its results come."""

    def __init__(self, run: Runner) -> None:
        self.run, self.times, self.start = run, [], 0.0

    def __call__(self, task: FolderTask, images: Sequence[ImageFile]) -> Iterator[ImageResult]:
        begun = time.perf_counter()
        for result in self.run(task, images):
            self.times.append(time.perf_counter())
            yield result
        self.start = self.times[0] - begun

    def rate(self) -> float:
        """Results per second, once all workers run."""
        return (len(self.times) - _AT_FIRST) / (self.times[-1] - self.times[_AT_FIRST - 1])


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])) + "\n")

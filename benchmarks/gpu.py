"""Part `gpu`: what only a GPU shows: precisions, batches, peak memory, exactness, loading and unloading, compiled attention.

`python dev.py bench gpu --device cuda --model vit_b vit_l vit_h slimsam_50 slimsam_77` runs it unattended.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Report, Table, as_image, interleaved, photo, sam, transformers_sam
from samkit.nodes.model import SAMModelLoader
from samkit.nodes.predict import Segment
from samkit.sam import load_model
from samkit.sam.kernels.encoder import plan_for
from samkit.sam.models.sam import run_encoder
from samkit.sam.placement.devices import placed
from samkit.sam.tasks.embed import cache

BATCHES = (1, 8)
ROUNDS = 5
SCENES = range(8)
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCALE = 30.0  # of the MLPs' weights: their values then leave fp16's range in a model that was not made for it


@torch.no_grad()
def measure(models: list[str], device: torch.device) -> Report:
    """All tables; an empty report where the device is the CPU, which the other parts measure."""
    report = Report("gpu")
    if device.type == "cpu":
        return report
    report.tables = [
        _speed(models, device, report),
        _exactness(report),
        _scaled_weights(models[0], device, report),
        _loading(models[-1], device, report),
        _compiling(models[0], device, report),
    ]
    return report


def _speed(models: list[str], device: torch.device, report: Report) -> Table:
    """Images a second and peak memory of each encoder, ours and others'."""
    table = Table("Image encoder", ["model", "batch", "what", "images per second", "peak memory, weights included"])
    for name in models:
        for what, prepare in _candidates(name, device).items():
            torch.cuda.empty_cache()
            run = prepare()
            for batch in BATCHES:
                images = torch.randn(batch, 3, 1024, 1024, device=device)
                torch.cuda.reset_peak_memory_stats(device)
                seconds = statistics.median(interleaved({what: lambda run=run, x=images: run(x)}, device, ROUNDS)[what])
                peak = torch.cuda.max_memory_allocated(device)
                table.rows.append([name, str(batch), what, f"{batch / seconds:.1f}", f"{peak / 1e9:.2f} GB"])
                report.numbers[f"{name} {batch} {what}"] = {"seconds": seconds, "peak_bytes": peak}
            del run
    return table


def _candidates(name: str, device: torch.device) -> dict[str, Callable[[], Callable[[torch.Tensor], Any]]]:
    """What is compared, each loaded only when its turn comes, so that peak memory is its own."""

    def ours(precision: str) -> Callable[[], Callable[[torch.Tensor], Any]]:
        def prepare() -> Callable[[torch.Tensor], Any]:
            model = _saved_and_loaded(name, precision)
            return lambda x: _in_place(model, lambda: run_encoder(model.image_encoder, x, PRECISIONS[precision]))

        return prepare

    def stock(autocast: bool, compiled: bool = False) -> Callable[[], Callable[[torch.Tensor], Any]]:
        def prepare() -> Callable[[torch.Tensor], Any]:
            encoder = sam(name).image_encoder.to(device)
            run = torch.compile(encoder) if compiled else encoder

            def forward(x: torch.Tensor) -> torch.Tensor:
                with torch.autocast(device.type, torch.float16, enabled=autocast):
                    return run(x)

            return forward

        return prepare

    def theirs() -> Callable[[torch.Tensor], Any]:
        encoder = transformers_sam(name).vision_encoder.to(device).half()
        return lambda x: encoder(x.half())

    return {
        **{f"ours, {precision}": ours(precision) for precision in PRECISIONS},
        "segment_anything, fp32": stock(False),
        "segment_anything, autocast fp16": stock(True),
        "segment_anything, autocast fp16, compiled": stock(True, True),
        "transformers sdpa, fp16": theirs,
    }


def _saved_and_loaded(name: str, precision: str) -> torch.nn.Module:
    """A random model by the pack's own loader."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        torch.save(sam(name).state_dict(), path)
        return load_model(path, precision)


def _in_place(model: torch.nn.Module, run: Callable[[], Any]) -> Any:
    with placed(model, "Prefer GPU"):
        return run()


def _exactness(report: Report) -> Table:
    """Mask IoU of each precision against fp32 on the demo's scenes, by the nodes."""
    from scenes import make_scene

    table = Table("The demo checkpoint's masks against fp32", ["precision", "mean IoU", "lowest IoU", "masks"])
    found = {precision: [] for precision in PRECISIONS}
    for precision in PRECISIONS:
        cache.clear()
        (model,) = SAMModelLoader().load_model("samkit_demo.safetensors", precision)
        for seed in SCENES:
            scene = make_scene(1_000_000_000 + seed)
            places = [np.argwhere(mask).mean(0) for mask in scene.masks]
            boxes = [(x - 25, y - 25, x + 25, y + 25) for y, x in places]
            masks = Segment().execute(model, as_image(scene.image), bboxes=boxes, individual_masks=True)[0]
            found[precision] += list(masks.bool().cpu())
    for precision in ("fp16", "bf16"):
        pairs = list(zip(found["fp32"], found[precision], strict=True))
        shared = [float((a & b).sum() / (a | b).sum().clamp(min=1)) for a, b in pairs if a.any() or b.any()]
        table.rows.append([precision, f"{statistics.mean(shared):.4f}", f"{min(shared):.4f}", str(len(shared))])
        report.numbers[f"iou {precision}"] = shared
    return table


def _scaled_weights(name: str, device: torch.device, report: Report) -> Table:
    """Whether values leave the range of 16 bits with weights that are larger than any checkpoint's."""
    table = Table(f"{name} with its MLPs' weights times {SCALE:.0f}", ["precision", "embedding"])
    images = torch.randn(1, 3, 1024, 1024, device=device)
    for precision, dtype in PRECISIONS.items():
        encoder = sam(name).image_encoder
        for block in encoder.blocks:
            block.mlp.lin1.weight.mul_(SCALE)
        finite = bool(torch.isfinite(run_encoder(encoder.to(device), images, dtype)[0]).all())
        table.rows.append([precision, "finite" if finite else "NaN or infinite: refused with a message"])
        report.numbers[f"scaled {precision}"] = finite
    return table


def _loading(name: str, device: torch.device, report: Report) -> Table:
    """Seconds to load and unload, what it takes, and what is left of it afterwards."""
    table = Table(f"{name}, loaded and unloaded", ["precision", "to the GPU", "takes", "back", "left", "a point to its mask"])
    for precision in PRECISIONS:
        model = _saved_and_loaded(name, precision)
        before = _used(device)
        with _timed(device) as loading, placed(model, "Prefer GPU"):
            pass
        taken = _used(device) - before
        click = _click(model)
        with _timed(device) as unloading, placed(model, "CPU"):
            pass
        torch.cuda.empty_cache()
        left = _used(device) - before
        row = [f"{1000 * loading[0]:.0f} ms", f"{taken / 1e6:.0f} MB", f"{1000 * unloading[0]:.0f} ms", f"{left / 1e6:.1f} MB"]
        table.rows.append([precision, *row, f"{1000 * click:.1f} ms"])
        report.numbers[f"load {name} {precision}"] = {"bytes": taken, "left_bytes": left, "click_seconds": click}
    return table


def _used(device: torch.device) -> int:
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


@contextlib.contextmanager
def _timed(device: torch.device) -> Iterator[list[float]]:
    seconds: list[float] = []
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    yield seconds
    torch.cuda.synchronize(device)
    seconds.append(time.perf_counter() - begun)


def _click(model: torch.nn.Module) -> float:
    """The median of moved points on one embedded image, from the node's call to its MASK."""
    image, seconds = as_image(photo(1024, 1024)), []
    for number in range(32):
        begun = time.perf_counter()
        point = f'[{{"x": {200 + 15 * number}, "y": 500}}]'
        Segment().execute(model, image, positive_coords=point, device_mode="Prefer GPU")
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[2:])


def _compiling(name: str, device: torch.device, report: Report) -> Table:
    """What `SAMKIT_COMPILE=1` costs at the first plan, and gains for each image."""
    table = Table(f"Global attention of {name} in fp16", ["attention", "chosen in", "images per second, batch 8"])
    encoder, images = sam(name).image_encoder.to(device), torch.randn(8, 3, 1024, 1024, device=device)
    plan = plan_for(encoder, device, torch.float16)
    for what, choose in (("with a bias", lambda: None), ("the faster of both", lambda: plan.choose_attention(device))):
        with _timed(device) as choosing:
            choose()
        seconds = statistics.median(interleaved({what: lambda: plan(images)}, device, ROUNDS)[what])
        table.rows.append([f"{what} ({plan.attend_globally.__name__})", f"{choosing[0]:.1f} s", f"{8 / seconds:.1f}"])
        report.numbers[what] = {"choosing_seconds": choosing[0], "seconds": seconds}
    return table

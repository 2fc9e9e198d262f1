#!/usr/bin/env python3
"""Part `detail`: how much better masks of large images are with second looks and with tiles, and what that costs.

    python dev.py bench detail
    python benchmarks/detail.py [--scenes 4] [--first-seed 4000000] [--detail auto] [--tiles auto]

Scenes of 3000x2000 pixels are drawn by `tools/demo_model/scenes.py`, with objects of 20 to 2000 pixels, and segmented by the
bundled demonstration model, by one click at an object's most interior pixel and by its tight box. Objects are grouped by the
longer side of that box. The part measures scenes that no constant was chosen on: those of the seeds from 4,000,000 on were used
to choose them, which is what the script is for.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from harness import Report, Table, peak_memory
from measure_demo_checkpoint import boundary_f, mask_iou
from samkit.nodes.model import SAMModelLoader
from samkit.sam import (
    AutoMaskOptions,
    Detail,
    FramePrediction,
    PredictOptions,
    Prompt,
    Segmenter,
    segment_each,
    segment_everything,
)
from scenes import Crowd, Mask, Scene, interior_point, make_scene, tight_box

log = logging.getLogger("benchmark")

SIZE = (2000, 3000)
CROWD = Crowd((30, 51), 20 / 3000, 2000 / 3000, 1.6, 16 / 3000, 30)
HELD_OUT, TUNED = 1_000_900_000, 4_000_000
SCENES, TILED_SCENES = 6, 2
CLASSES = ((0, 50), (50, 100), (100, 300), (300, 1000), (1000, 9999))
SMALL = 100  # pixels of the longer side
FOUND, FITS = 0.75, 0.5  # IoU of a mask that has found an object, and of one that fits it at all
PROTOCOLS = ("click", "box")
SETTINGS = ("off", "auto")
MEMORY = """
import torch
from samkit.nodes.model import SAMModelLoader
from samkit.nodes.predict import Segment
model = SAMModelLoader().load_model("samkit_demo.safetensors")[0]
image = torch.rand(1, 10_000, 10_000, 1).expand(-1, -1, -1, 3).contiguous()
image[:, 4000:4400, 4000:4400] = 0.9
start()
Segment().execute(model, image, '[{"x": 4200, "y": 4200}]', detail=DETAIL)
"""


class Measured(NamedTuple):
    """One object and protocol: the longer side in pixels, and IoU and boundary F-score by setting."""

    protocol: str
    side: float
    ious: list[float]
    outlines: list[float]


class Tiled(NamedTuple):
    """Everything in one scene: small objects, those found, masks, masks that fit no object, and objects with two masks."""

    small: int
    found: int
    masks: int
    false: int
    twice: int
    seconds: float


def draw(seed: int) -> Scene:
    """A scene of a seed."""
    return make_scene(seed, SIZE, CROWD)


def side(mask: Mask) -> float:
    """The longer side of a mask's tight box, in pixels."""
    x1, y1, x2, y2 = tight_box(mask)
    return max(x2 - x1, y2 - y1) + 1


def prompts_of(scene: Scene, protocol: str) -> list[Prompt]:
    """One object each."""
    if protocol == "box":
        return [Prompt(box=np.array(tight_box(mask)) + np.array([0, 0, 1, 1])) for mask in scene.masks]
    return [Prompt(np.array([interior_point(mask)]) + 0.5, np.ones(1, np.int32)) for mask in scene.masks]


def segmented(model: Segmenter, scene: Scene, prompts: list[Prompt], detail: Detail) -> FramePrediction:
    """The masks of all objects of a scene."""
    found: list[FramePrediction] = []
    report = lambda _, one: log.info("%s %s: %s", detail, "box" if prompts[0].box is not None else "click", one)  # noqa: E731
    options = PredictOptions(logits=False)
    segment_each(model, [scene.image], [prompts], lambda _, one: found.append(one), options, detail=detail, report=report)
    return found[0]


def measure_scene(model: Segmenter, scene: Scene, settings: Sequence[str]) -> list[Measured]:
    """Every object of a scene, by both protocols and all settings."""
    measured = []
    for protocol in PROTOCOLS:
        prompts = prompts_of(scene, protocol)
        found = [segmented(model, scene, prompts, detail) for detail in settings]
        for place, wanted in enumerate(scene.masks):
            masks = [one.masks[place].numpy() for one in found]
            ious, outlines = [mask_iou(mask, wanted) for mask in masks], [boundary_f(mask, wanted) for mask in masks]
            measured.append(Measured(protocol, side(wanted), ious, outlines))
    return measured


def measure_everything(model: Segmenter, scene: Scene, tiles: str) -> Tiled:
    """Segment everything, compared with the scene's objects."""
    begun = time.perf_counter()
    found = segment_everything(model, scene.image, AutoMaskOptions(tiles=tiles))
    seconds = time.perf_counter() - begun
    small = np.array([side(mask) < SMALL for mask in scene.masks])
    fits = np.zeros((len(found), len(scene.masks)))
    for row, one in enumerate(found):
        mask = one.full(SIZE)
        fits[row] = [mask_iou(mask, wanted) if (mask & wanted).any() else 0.0 for wanted in scene.masks]
    hits = (fits >= FOUND).any(0) if len(found) else np.zeros(len(small), bool)
    false = int((fits.max(1, initial=0) < FITS).sum())
    return Tiled(int(small.sum()), int(hits[small].sum()), len(found), false, int(((fits >= FOUND).sum(0) > 1).sum()), seconds)


def tables_of(measured: Sequence[Measured], settings: Sequence[str], count: int) -> list[Table]:
    """Mean IoU and boundary F by protocol, size and setting."""
    tables = []
    for title, field in (("Mean IoU", "ious"), ("Boundary F-score (2 pixels)", "outlines")):
        columns = ["objects", "count", *(f"{protocol}, {one}" for protocol in PROTOCOLS for one in settings)]
        table = Table(f"{title}, {count} scenes of {SIZE[1]}x{SIZE[0]}", columns)
        rows = [("all", 0, 99999), (f"under {SMALL}", 0, SMALL), *((f"{low} to {high}", low, high) for low, high in CLASSES)]
        for name, low, high in rows:
            chosen = [one for one in measured if low <= one.side < high]
            by = {name: [getattr(one, field) for one in chosen if one.protocol == name] for name in PROTOCOLS}
            means = [f"{value:.3f}" for one in by.values() if one for value in np.mean(one, axis=0)]
            table.rows.append([name, str(len(chosen) // len(PROTOCOLS)), *means])
        tables.append(table)
    return tables


def table_of_tiles(tiled: dict[str, list[Tiled]]) -> Table:
    """Sums over the scenes."""
    count = len(next(iter(tiled.values())))
    columns = ["tiles", f"objects under {SMALL} pixels", "found", "masks", "fit no object", "objects found twice", "time"]
    table = Table(f"Segment everything, {count} scenes", columns)
    for tiles, each in tiled.items():
        small, found, masks, false, twice, seconds = np.array(each).sum(0)
        share = f"{false:.0f} ({false / max(masks, 1):.0%})"
        table.rows.append(
            [tiles, f"{small:.0f}", f"{found:.0f}", f"{masks:.0f}", share, f"{twice:.0f}", f"{seconds / count:.0f} s"]
        )
    return table


def measure(models: list[str], device: torch.device) -> Report:
    """Scenes that no constant was chosen on. `models` is not used."""
    model = SAMModelLoader().load_model("samkit_demo.safetensors")[0]
    report = Report("detail")
    measured = [one for seed in range(HELD_OUT, HELD_OUT + SCENES) for one in measure_scene(model, draw(seed), SETTINGS)]
    report.tables += tables_of(measured, SETTINGS, SCENES)
    report.numbers["objects"] = [one._asdict() for one in measured]
    scenes = range(HELD_OUT + SCENES, HELD_OUT + SCENES + TILED_SCENES)
    tiled = {tiles: [measure_everything(model, draw(seed), tiles) for seed in scenes] for tiles in ("off", "auto")}
    report.tables.append(table_of_tiles(tiled))
    report.numbers["tiles"] = {tiles: [one._asdict() for one in each] for tiles, each in tiled.items()}
    table = Table("SAM Segment on 10,000x10,000 pixels", ["detail", "memory in addition to the image and the model"])
    for detail in SETTINGS:
        peak = peak_memory(MEMORY.replace("DETAIL", repr(detail)))
        table.rows.append([detail, f"{peak / 1e9:.2f} GB"])
        report.numbers[f"memory, detail {detail}"] = peak
    report.tables.append(table)
    return report


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=TUNED)
    parser.add_argument("--detail", nargs="*", default=["auto"])
    parser.add_argument("--tiles", nargs="*", default=[])
    args = parser.parse_args()
    model, seeds = (
        SAMModelLoader().load_model("samkit_demo.safetensors")[0],
        range(args.first_seed, args.first_seed + args.scenes),
    )
    if args.detail:
        settings = ["off", *args.detail]
        measured = [one for seed in seeds for one in measure_scene(model, draw(seed), settings)]
        for table in tables_of(measured, settings, args.scenes):
            sys.stdout.write(f"{table.markdown()}\n")
    if args.tiles:
        tiled = {tiles: [measure_everything(model, draw(seed), tiles) for seed in seeds] for tiles in args.tiles}
        sys.stdout.write(f"{table_of_tiles(tiled).markdown()}\n")


if __name__ == "__main__":
    main()

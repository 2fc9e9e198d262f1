#!/usr/bin/env python3
"""How good the bundled demonstration checkpoint is, measured through the pack's own nodes.

    python tools/demo_model/measure_demo_checkpoint.py [--scenes 200] [--everything 50] [--checkpoint samkit_demo.safetensors]

Every object of scenes that were never trained on is asked for in three ways, and the masks are compared with the truth
in source pixels: one click at the object's most interior point, best-scored of three candidates; its tight box; and the
click followed by two corrections, each a click in the middle of the largest error with the last logits fed back.

The masks are measured by IoU and by the boundary F-score (`boundary_f`), and the predicted IoU by its mean error. Segment
everything, at its defaults, is measured on other scenes: how many objects it finds, and how many masks it gives for them.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from load_pack import load_pack
from scenes import Mask, Scene, interior_point, make_scene, tight_box
from train_demo_checkpoint import EVAL_SEEDS, POSITIVE, error_click, mask_iou

load_pack()

from samkit.nodes.automask import AutoMask  # noqa: E402
from samkit.nodes.embedding import GetSAMEmbedding  # noqa: E402
from samkit.nodes.model import SAMModelLoader  # noqa: E402
from samkit.nodes.predict import PredictMask  # noqa: E402
from samkit.sam import load_model  # noqa: E402

log = logging.getLogger("benchmark")

PROTOCOLS = ("one click", "box", "click + 1 correction", "click + 2 corrections")
SIZES = (("all objects", 0.0, 9.0), ("under 8 %", 0.0, 0.08), ("8 to 20 %", 0.08, 0.2), ("over 20 %", 0.2, 9.0))
FIRST_SEED = EVAL_SEEDS + 1000  # apart from the scenes that training reports on
EVERYTHING_SEEDS = 10_000  # this far after the first seed are the scenes of segment everything
REACH = 2  # source pixels: how far two outlines may be apart and still agree
FOUND = 0.75  # IoU of a mask that counts as an object found
LARGE = 0.08  # diameter, in long sides, of the objects that segment everything is expected to find


class Measured(NamedTuple):
    """One object: its diameter in long sides, and by protocol IoU, boundary F-score and predicted IoU, each [4]."""

    diameter: float
    ious: list[float]
    outlines: list[float]
    scores: list[float]


class Everything(NamedTuple):
    """One scene: masks given, objects, large objects, large objects found, and masks that fit no object (IoU < 0.5)."""

    masks: int
    objects: int
    large: int
    found: int
    crumbs: int


def outline(mask: Mask) -> Mask:
    """The pixels of a mask bool [H, W] where its right, lower or lower right neighbour differs.

    Martin's `seg2bmap`, as the DAVIS benchmark uses it: the last row compares along itself, so does the last column.
    """
    wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = wide[:-1, :-1]
    return (here ^ wide[:-1, 1:]) | (here ^ wide[1:, :-1]) | (here ^ wide[1:, 1:])


def boundary_f(predicted: Mask, wanted: Mask, reach: float = REACH) -> float:
    """F-score of two masks' outlines: a pixel of one is right within `reach` pixels of the other (DAVIS 2016, after Martin).

    Precision is the share of the predicted outline that is right, recall that of the wanted one. Two empty outlines agree
    fully, an empty one and another not at all.
    """
    one, two = outline(predicted), outline(wanted)
    if not one.any() or not two.any():
        return float(one.any() == two.any())
    window = _around(one | two)  # the distances are within the two outlines: what surrounds them is not needed
    one, two = one[window], two[window]
    precision = float((ndimage.distance_transform_edt(~two)[one] <= reach).mean())
    recall = float((ndimage.distance_transform_edt(~one)[two] <= reach).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _around(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns of a non-empty mask."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def coords(points: list[tuple[float, float]]) -> str | None:
    """Points (x, y) as the JSON of the nodes' sockets; an unconnected socket for none."""
    return json.dumps([{"x": x, "y": y} for x, y in points]) if points else None


def predictions(model: torch.nn.Module, embedding: np.ndarray, wanted: Mask) -> list[tuple[Mask, float]]:
    """Mask bool [H, W] and predicted IoU for one object, by each protocol."""
    node = PredictMask()
    boxed = node.execute(model, embedding, bboxes=[tight_box(wanted)])
    given = []
    clicks = {POSITIVE: [interior_point(wanted)], 1 - POSITIVE: []}
    logits = None
    for _ in range(3):
        masks, _, scores, logits = node.execute(
            model, embedding, coords(clicks[POSITIVE]), coords(clicks[1 - POSITIVE]), logits=logits
        )
        given.append((masks[0].numpy() > 0.5, float(scores[0])))
        point, label = error_click(given[-1][0], wanted)
        clicks[label].append(point)
    return [given[0], (boxed[0][0].numpy() > 0.5, float(boxed[2][0])), *given[1:]]


def measure_object(model: torch.nn.Module, embedding: np.ndarray, wanted: Mask) -> Measured:
    """One object, mask bool [H, W], by each protocol."""
    given = predictions(model, embedding, wanted)
    return Measured(
        diameter(wanted),
        [mask_iou(mask, wanted) for mask, _ in given],
        [boundary_f(mask, wanted) for mask, _ in given],
        [score for _, score in given],
    )


def diameter(mask: Mask) -> float:
    """Diameter of the disc that has the area of a mask, in long sides of the image."""
    return float(np.sqrt(mask.sum() * 4 / np.pi) / max(mask.shape))


def measure_scene(model: torch.nn.Module, scene: Scene) -> list[Measured]:
    """Every object of a scene."""
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(scene), model)
    return [measure_object(model, embedding, mask) for mask in scene.masks]


def as_image(scene: Scene) -> torch.Tensor:
    """The scene as ComfyUI's IMAGE, float32 [1, H, W, 3] in 0..1."""
    return torch.from_numpy(scene.image)[None].float() / 255


def measure_everything(model: torch.nn.Module, scene: Scene) -> Everything:
    """Segment everything at its defaults, compared with the scene's objects."""
    masks = AutoMask().execute(model, as_image(scene))[0].numpy() > 0.5
    masks = masks[masks.any((1, 2))]  # where nothing is found, the node gives one empty mask
    fits = np.array([[mask_iou(mask, wanted) for wanted in scene.masks] for mask in masks]).reshape(-1, len(scene.masks))
    large = np.array([diameter(wanted) > LARGE for wanted in scene.masks])
    found = fits.max(0, initial=0) >= FOUND
    crumbs = fits.max(1, initial=0) < 0.5
    return Everything(len(masks), len(large), int(large.sum()), int(found[large].sum()), int(crumbs.sum()))


def table(values: np.ndarray, diameters: np.ndarray) -> str:
    """Means by protocol and by the object's diameter; values [N, 4], diameters [N] in long sides of the image."""
    lines = ["| objects | count | " + " | ".join(PROTOCOLS) + " |", "|---|---|" + "---|" * len(PROTOCOLS)]
    for label, low, high in SIZES:
        chosen = (diameters >= low) & (diameters < high)
        means = " | ".join(f"{value:.3f}" for value in values[chosen].mean(0)) if chosen.any() else "| " * 3
        lines.append(f"| {label} | {int(chosen.sum())} | {means} |")
    return "\n".join(lines)


def report_objects(measured: list[Measured]) -> str:
    """Three tables: IoU, boundary F-score, and the mean error of the predicted IoU."""
    diameters, ious, outlines, scores = (np.array(column) for column in zip(*measured, strict=True))
    return "\n\n".join(
        f"{title}\n\n{table(values, diameters)}"
        for title, values in (
            ("Mean IoU", ious),
            (f"Boundary F-score ({REACH} pixels)", outlines),
            ("Mean error of the predicted IoU", np.abs(scores - ious)),
        )
    )


def report_everything(scenes: list[Everything]) -> str:
    """The sums over the scenes, in words."""
    masks, objects, large, found, crumbs = np.array(scenes).sum(0)
    return (
        f"Segment everything, {len(scenes)} scenes: {found} of {large} objects over {LARGE:.0%} found at IoU >= "
        f"{FOUND} ({found / max(large, 1):.0%}), {masks} masks for {objects} objects ({masks / objects:.2f} an object), "
        f"{crumbs} of them fit no object"
    )


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--everything", type=int, default=50, help="scenes of segment everything")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the scenes")
    parser.add_argument("--checkpoint", default="samkit_demo.safetensors", help="a file, or a name that the loader node knows")
    args = parser.parse_args()
    model = load(args.checkpoint)
    begun = time.monotonic()
    if args.scenes:
        seeds = range(args.first_seed, args.first_seed + args.scenes)
        log.info(report_objects([one for seed in seeds for one in measure_scene(model, make_scene(seed))]))
    if args.everything:
        first = args.first_seed + EVERYTHING_SEEDS
        scenes = (make_scene(seed) for seed in range(first, first + args.everything))
        log.info("\n%s", report_everything([measure_everything(model, scene) for scene in scenes]))
    log.info("%.0f s", time.monotonic() - begun)


def load(checkpoint: str) -> torch.nn.Module:
    """The model of a file, or of a name that the loader node knows."""
    if Path(checkpoint).is_file():
        return load_model(checkpoint)
    return SAMModelLoader().load_model(checkpoint)[0]


if __name__ == "__main__":
    main()

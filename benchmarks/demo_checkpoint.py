#!/usr/bin/env python3
"""How good the bundled demonstration checkpoint is, measured through the pack's own nodes.

    python benchmarks/demo_checkpoint.py [--scenes 200] [--checkpoint samkit_demo.safetensors]

Every object of scenes that were never trained on is asked for in three ways, and the masks are compared with the truth
in source pixels: one click at the object's most interior point, best-scored of three candidates; its tight box; and the
click followed by two corrections, each a click in the middle of the largest error with the last logits fed back.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from load_pack import load_pack
from scenes import Mask, Scene, interior_point, make_scene, tight_box
from train_demo_checkpoint import EVAL_SEEDS, POSITIVE, error_click, mask_iou

load_pack()

from samkit.nodes.embedding import GetSAMEmbedding  # noqa: E402
from samkit.nodes.model import SAMModelLoader  # noqa: E402
from samkit.nodes.predict import PredictMask  # noqa: E402

log = logging.getLogger("benchmark")

PROTOCOLS = ("one click", "box", "click + 1 correction", "click + 2 corrections")
SIZES = (("all objects", 0.0, 9.0), ("under 8 %", 0.0, 0.08), ("8 to 20 %", 0.08, 0.2), ("over 20 %", 0.2, 9.0))
FIRST_SEED = EVAL_SEEDS + 1000  # apart from the scenes that training reports on


def coords(points: list[tuple[float, float]]) -> str | None:
    """Points (x, y) as the JSON of the nodes' sockets; an unwired socket for none."""
    return json.dumps([{"x": x, "y": y} for x, y in points]) if points else None


def measure_object(model: torch.nn.Module, embedding: np.ndarray, wanted: Mask) -> list[float]:
    """IoU of one object, mask bool [H, W], by each protocol."""
    node = PredictMask()
    boxed = node.execute(model, embedding, bboxes=[tight_box(wanted)])[0]
    ious = [0.0, mask_iou(boxed[0].numpy() > 0.5, wanted)]
    clicks = {POSITIVE: [interior_point(wanted)], 1 - POSITIVE: []}
    logits = None
    for turn in range(3):
        masks, _, _, logits = node.execute(
            model, embedding, coords(clicks[POSITIVE]), coords(clicks[1 - POSITIVE]), logits=logits
        )
        found = masks[0].numpy() > 0.5
        if turn == 0:
            ious[0] = mask_iou(found, wanted)
        else:
            ious.append(mask_iou(found, wanted))
        point, label = error_click(found, wanted)
        clicks[label].append(point)
    return ious


def measure_scene(model: torch.nn.Module, scene: Scene) -> list[list[float]]:
    """IoU of every object of a scene by each protocol."""
    image = torch.from_numpy(scene.image)[None].float() / 255
    (embedding,) = GetSAMEmbedding().get_sam_embedding(image, model)
    return [measure_object(model, embedding, mask) for mask in scene.masks]


def table(ious: np.ndarray, diameters: np.ndarray) -> str:
    """Mean IoU by protocol and by the object's diameter; ious [N, 4], diameters [N] in long sides of the picture."""
    lines = ["| objects | count | " + " | ".join(PROTOCOLS) + " |", "|---|---|" + "---|" * len(PROTOCOLS)]
    for label, low, high in SIZES:
        chosen = (diameters >= low) & (diameters < high)
        means = " | ".join(f"{value:.3f}" for value in ious[chosen].mean(0))
        lines.append(f"| {label} | {int(chosen.sum())} | {means} |")
    return "\n".join(lines)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the scenes")
    parser.add_argument("--checkpoint", default="samkit_demo.safetensors", help="a name that the loader node knows")
    args = parser.parse_args()
    (model,) = SAMModelLoader().load_model(args.checkpoint)
    begun = time.monotonic()
    ious, diameters = [], []
    for seed in range(args.first_seed, args.first_seed + args.scenes):
        scene = make_scene(seed)
        ious += measure_scene(model, scene)
        diameters += [np.sqrt(mask.sum() * 4 / np.pi) / max(mask.shape) for mask in scene.masks]
    log.info(table(np.array(ious), np.array(diameters)))
    log.info("%d scenes in %.0f s", args.scenes, time.monotonic() - begun)


if __name__ == "__main__":
    main()

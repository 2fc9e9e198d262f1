#!/usr/bin/env python3
"""How well objects are followed through drawn films, from one click each on the first frame.

    python benchmarks/track.py [--films 40] [--first-seed 1000000] [--checkpoint samkit_demo.safetensors] [--method auto]

The films are those of `tools/films.py`: 24 frames of 320x320 pixels and three objects, of which one passes behind another.
Each object is clicked on at its most interior pixel of the first frame. Its masks are compared with what can be seen of it, by
IoU; a frame on which nothing of it can be seen counts 1 for an empty mask and 0 for any other. Beside it is what the same click
gives on every frame by itself.

The seeds below 1000 were used to choose the constants of `sam/tasks/follow.py`.
"""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from films import Film, make_film
from load_pack import load_pack
from scenes import Mask, interior_point

load_pack()

from samkit.nodes.model import SAMModelLoader  # noqa: E402
from samkit.sam import FilmPrompt, Prompt, TrackedFrame, TrackOptions, segment_each, track  # noqa: E402

log = logging.getLogger("benchmark")

FIRST_SEED = 1_000_000


def iou(one: Mask, other: Mask) -> float:
    """Of two masks bool [H, W]; 1 for two empty ones."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def measure(model: Any, film: Film, method: str) -> tuple[np.ndarray, np.ndarray]:
    """IoU [T, N] of each object on each frame of a film, followed and not followed."""
    count, objects = film.masks.shape[:2]
    points = [np.array([interior_point(mask)]) for mask in film.masks[0]]
    label = np.array([1], np.int32)
    followed, alone = np.zeros((count, objects)), np.zeros((count, objects))

    def take(found: TrackedFrame) -> None:
        followed[found.index] = [iou(*pair) for pair in zip(found.masks.numpy(), film.masks[found.index], strict=True)]

    prompts = {number: {0: FilmPrompt(point, label)} for number, point in enumerate(points)}
    track(model, film.frames, prompts, take, TrackOptions(method=method))

    def take_alone(index: int, found: Any) -> None:
        alone[index] = [iou(*pair) for pair in zip(found.masks.numpy(), film.masks[index], strict=True)]

    segment_each(model, film.frames, [[Prompt(point, label) for point in points]] * count, take_alone)
    return followed, alone


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--checkpoint", default="samkit_demo.safetensors", help="a name that the loader node knows")
    parser.add_argument("--method", default="auto")
    args = parser.parse_args()
    model, begun = SAMModelLoader().load_model(args.checkpoint)[0], time.monotonic()
    each = []
    for seed in range(args.first_seed, args.first_seed + args.films):
        each.append(measure(model, make_film(seed), args.method))
        log.info("%d: %s, last frame %s", seed, each[-1][0].mean(0).round(2), each[-1][0][-1].round(2))
    followed, alone = np.array(each).swapaxes(0, 1)
    log.info("\n| %d films | all frames | last frame |\n|---|---|---|", args.films)
    for name, values in (("followed", followed), ("the same click on every frame", alone)):
        log.info("| %s | %.3f | %.3f |", name, values.mean(), values[:, -1].mean())
    hidden = (followed[:, :, 0], followed[:, :, 1:])
    log.info("the object that passes behind: %.3f, the others: %.3f", *(part.mean() for part in hidden))
    log.info("%.0f s", time.monotonic() - begun)


if __name__ == "__main__":
    main()

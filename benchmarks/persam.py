#!/usr/bin/env python3
"""How often one example finds the same object in another image, and what the guidance adds to the points alone.

    python benchmarks/persam.py [--pairs 30] [--checkpoint samkit_demo.safetensors]

Each pair of scenes holds the same object: the same shape, color and texture at a different place and scale, on a different
background, among other objects. The first scene and its mask are the reference. The second is searched. The object is
found if the IoU with its true mask exceeds 0.5. The methods of SAM Personalize are compared with one another, and PerSAM with
the same points without attention guidance and target prompting, and with the positive point alone.

The other figures show where a failure comes from. `a click on the object`: the decoder with a correct point. `right point`:
the peak of the location prior is on the object. `true masks, ranked`: given the true masks of all objects, how often the
object is the most similar one, by the mean of the model's features inside the mask and by the mean color.
"""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from load_pack import load_pack
from measure_demo_checkpoint import load
from scenes import Mask, Scene, interior_point, make_pair
from train_demo_checkpoint import EVAL_SEEDS, mask_iou

load_pack()

from samkit.sam import PersonalizeOptions, PredictOptions, Prompt, as_segmenter, decode, encode, personalize  # noqa: E402
from samkit.sam.tasks.embed import EncoderRun  # noqa: E402
from samkit.sam.tasks.personalize import learn  # noqa: E402

log = logging.getLogger("benchmark")

FIRST_SEED = EVAL_SEEDS + 3000  # apart from other benchmarks' scenes
FOUND = 0.5
OPTIONS = {
    "persam": PersonalizeOptions(method="persam"),
    "persam, not guided": PersonalizeOptions(method="persam", guided=False),
    "persam-f": PersonalizeOptions(method="persam-f"),
    "parts": PersonalizeOptions(method="parts"),
    "parts and color": PersonalizeOptions(method="parts and color"),
}
WAYS = (*OPTIONS, "the positive point alone", "a click on the object (reference)")
CPU = torch.device("cpu")


class Measured(NamedTuple):
    """One pair: IoU by each of `WAYS`; whether the point is right; whether features and colour rank the true mask first."""

    ious: list[float]
    right_point: bool
    by_features: bool
    by_colour: bool


def click(model: torch.nn.Module, scene: Scene, point: np.ndarray) -> Mask:
    """The mask of a click (x, y), the best of three."""
    prompt = Prompt(np.array([point], dtype=np.float64), np.array([1], np.int32))
    return decode(model, encode(model, [scene.image]), [[prompt]]).masks[0][0].numpy()


def measure(model: torch.nn.Module, shown: Scene, other: Scene) -> Measured:
    """Show the last object of one scene, look for it in the other."""
    wanted, example = other.masks[-1], torch.from_numpy(shown.masks[-1:]).float()
    found = [personalize(model, [shown.image], example, [other.image], options) for options in OPTIONS.values()]
    masks = [one.masks[0].any(0).numpy() for one in found]
    point = found[0].points[0][0] if len(found[0].points[0]) else np.zeros(2)
    masks += [click(model, other, point), click(model, other, interior_point(wanted))]
    x, y = point.astype(int)
    likest = by_features(model, shown, other)
    return Measured([mask_iou(mask, wanted) for mask in masks], bool(wanted[y, x]), likest, by_colour(shown, other))


def by_features(model: torch.nn.Module, shown: Scene, other: Scene) -> bool:
    """Whether, of the true masks, the thing's is the one whose mean feature is likest to the example's."""

    def mean(image: np.ndarray, mask: np.ndarray) -> torch.Tensor:
        masks = torch.from_numpy(mask[None]).float()
        return learn(EncoderRun(as_segmenter(model), [image], "CPU"), masks, "persam", PredictOptions()).means[0]

    example, each = mean(shown.image, shown.masks[-1]), [mean(other.image, mask) for mask in other.masks]
    return int(np.argmax([float(example @ one) for one in each])) == len(each) - 1


def by_colour(shown: Scene, other: Scene) -> bool:
    """The same by the mean colour."""
    example = shown.image[shown.masks[-1]].mean(0)
    far = [np.linalg.norm(other.image[mask].mean(0) - example) for mask in other.masks]
    return int(np.argmin(far)) == len(far) - 1


def report(measured: list[Measured], others: float) -> str:
    """A table of the ways, and the lines that explain it; `others` is the mean number of objects in the second scenes."""
    ious = np.array([one.ious for one in measured])
    lines = ["| way | found (IoU > 0.5) | mean IoU of the found | mean IoU of all |", "|---|---|---|---|"]
    for way, column in zip(WAYS, ious.T, strict=True):
        right = column > FOUND
        mean = column[right].mean() if right.any() else 0.0
        lines.append(f"| {way} | {right.sum()} of {len(column)} ({right.mean():.0%}) | {mean:.3f} | {column.mean():.3f} |")
    count = len(measured)
    lines += [
        "",
        f"right point: {sum(one.right_point for one in measured)} of {count}; "
        f"true masks, ranked by features: {sum(one.by_features for one in measured)} of {count}, "
        f"by mean color: {sum(one.by_colour for one in measured)} of {count}, of {others:.1f} objects on average",
    ]
    return "\n".join(lines)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the pairs")
    parser.add_argument("--checkpoint", default="samkit_demo.safetensors", help="a file, or a name that the loader node knows")
    args = parser.parse_args()
    model = load(args.checkpoint)
    begun = time.monotonic()
    measured, objects = [], []
    for seed in range(args.first_seed, args.first_seed + args.pairs):
        shown, other = make_pair(seed)
        measured.append(measure(model, shown, other))
        objects.append(len(other.masks))
    log.info(report(measured, float(np.mean(objects))))
    log.info("%d pairs in %.0f s", args.pairs, time.monotonic() - begun)


if __name__ == "__main__":
    main()

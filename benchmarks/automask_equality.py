#!/usr/bin/env python3
"""Segment everything against segment_anything's own generator, mask by mask, at full size: is it the same set?

    python benchmarks/automask_equality.py [--scenes 20] [--images 3] [--model vit_b]

The bundled demonstration checkpoint on scenes, and a random model (see `automask.lively`) on images, one of 1536x2048; each
with the generator's defaults, and with a layer of crops and small regions removed. A mask is the same at an IoU of at least
0.999, with its box within 1 pixel and its score within 1e-3; any other is printed, with how far its scores lie from their
thresholds. Takes an hour on two cores, most of it the reference's.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from automask import lively
from harness import MODELS, photo
from samkit.nodes.model import SAMModelLoader
from samkit.sam import as_segmenter
from samkit.sam.tasks.everything import AutoMaskOptions, FoundMask, segment_everything
from scenes import make_scene
from segment_anything import SamAutomaticMaskGenerator

FIRST_SEED = 1_000_000_000  # not among those that the checkpoint was trained on
OPTIONS: dict[str, dict[str, Any]] = {"defaults": {}, "crops": {"crop_n_layers": 1, "min_mask_region_area": 100}}
SIZES = ((1024, 1024), (768, 1024), (1536, 2048))
DEFAULTS = AutoMaskOptions()
_BATCH = 4  # points: the reference takes twice as long with its own 64, and finds the same


def main() -> None:
    """Compare, and print a line per photo; the exit status tells whether all were equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--images", type=int, default=len(SIZES))
    parser.add_argument("--model", default="vit_b", choices=list(MODELS))
    chosen = parser.parse_args()
    demo = SAMModelLoader().load_model("samkit_demo.safetensors")[0]
    different = 0
    for number in range(chosen.scenes):
        different += _compare_all(f"scene {number}", demo, make_scene(FIRST_SEED + number).image)
    for size in SIZES[len(SIZES) - chosen.images :]:
        frame = photo(*size)
        different += _compare_all(f"{chosen.model} {size[1]}x{size[0]}", lively(chosen.model, frame), frame)
    raise SystemExit(different > 0)


def _compare_all(name: str, model: torch.nn.Module, frame: np.ndarray) -> int:
    return sum(compare(f"{name}, {kind}", model, frame, options) for kind, options in OPTIONS.items())


@torch.no_grad()
def compare(name: str, model: torch.nn.Module, frame: np.ndarray, options: dict[str, Any]) -> int:
    """Both generators on one photo; prints a line, and one for each mask that only one of them has. Returns their number."""
    begun = time.perf_counter()
    theirs = _generated(SamAutomaticMaskGenerator(model, points_per_batch=_BATCH, **options), frame)
    between = time.perf_counter()
    ours = segment_everything(as_segmenter(model), frame, AutoMaskOptions(**options))
    ended = time.perf_counter()
    left = dict(enumerate(ours))
    lost = [record for record in theirs if not _take(record, left, frame.shape[:2])]
    for who, one in [("theirs", _scores(record)) for record in lost] + [("ours", _scores(mask)) for mask in left.values()]:
        print(f"  only {who}: {json.dumps(one)}")
    times = f"{between - begun:.0f} s, {ended - between:.0f} s"
    print(f"{name}: {len(theirs)} and {len(ours)} masks, {len(lost) + len(left)} differ ({times})", flush=True)
    return len(lost) + len(left)


def _generated(generator: SamAutomaticMaskGenerator, frame: np.ndarray) -> list[dict[str, Any]]:
    try:
        return generator.generate(frame)
    except IndexError as error:  # the reference's own, where no crop gives any mask
        print(f"  theirs fails, which counts as no mask: {error}")
        return []


def _take(record: dict[str, Any], left: dict[int, FoundMask], size: tuple[int, int]) -> bool:
    """Take the mask that equals a record of the reference out of those that are left; False where there is none."""
    x, y, width, height = record["bbox"]
    wanted = record["segmentation"]
    for index, mask in left.items():
        near = np.abs(np.array(mask.box) - (x, y, x + width, y + height)).max() <= 1
        if near and abs(float(mask.score) - record["predicted_iou"]) <= 1e-3:
            full = mask.full(size)
            if (full & wanted).sum() >= 0.999 * (full | wanted).sum():
                del left[index]
                return True
    return False


def _scores(one: dict[str, Any] | FoundMask) -> dict[str, float]:
    """How far a mask is above the two thresholds, and how large it is."""
    score, stability, area = (
        (one["predicted_iou"], one["stability_score"], one["area"])
        if isinstance(one, dict)
        else (one.score, one.stability, one.area)
    )
    return {
        "above pred_iou_thresh": float(score) - DEFAULTS.pred_iou_thresh,
        "above stability_score_thresh": float(stability) - DEFAULTS.stability_score_thresh,
        "area": int(area),
    }


if __name__ == "__main__":
    main()

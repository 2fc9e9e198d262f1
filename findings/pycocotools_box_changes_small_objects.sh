#!/usr/bin/env bash
# pycocotools: a result's `bbox` beside its `segmentation` changes which masks are small, and so the average precision of masks.
#
# Seen with: pycocotools 2.0.11, Python 3.11 on Linux x86-64.
#
# Expected of `COCO.loadRes` and `COCOeval(..., "segm")`: the same figures for the same masks, whether or not a result has a box as well.
#
# What is so: where the first result has a `bbox`, `loadRes` sets the `area` of all results to that of their boxes and does not look at the masks.
# COCOeval decides by that area whether a result that matches nothing counts among small, medium or large objects. A thin diagonal of 60 pixels
# has a box of 60x60, and is not small then.
#
# What it means: for AP small, medium and large of masks, submit results without `bbox`. The overall AP does not change.
#
# Output seen:
#   without bbox: areas [120, 60], AP of small objects 0.50
#   with bbox: areas [3660, 3600], AP of small objects 1.00
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet pycocotools==2.0.11
"$place/venv/bin/python" - <<'PYTHON'
import contextlib
import copy
import io

import numpy as np
from pycocotools import mask as coding
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def diagonal(start, width):
    mask = np.zeros((200, 200), np.uint8, order="F")
    for step in range(60):
        mask[start + step, start + step : start + step + width] = 1
    return coding.encode(mask)


def plain(mask):
    return {**mask, "counts": mask["counts"].decode()}


def small(with_boxes):
    real, wrong = diagonal(20, 2), diagonal(100, 1)
    one = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": plain(real)}
    one |= {"area": int(coding.area(real)), "bbox": coding.toBbox(real).tolist()}
    truth = COCO()
    truth.dataset = {"images": [{"id": 1, "width": 200, "height": 200}], "categories": [{"id": 1, "name": "x"}], "annotations": [one]}
    results = [{"image_id": 1, "category_id": 1, "segmentation": plain(mask), "score": score} for mask, score in ((real, 0.9), (wrong, 0.95))]
    if with_boxes:
        for result in results:
            result["bbox"] = coding.toBbox(result["segmentation"]).tolist()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        loaded = truth.loadRes(copy.deepcopy(results))
        evaluation = COCOeval(truth, loaded, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    areas = [int(one["area"]) for one in loaded.dataset["annotations"]]
    print(f"{'with' if with_boxes else 'without'} bbox: areas {areas}, AP of small objects {evaluation.stats[3]:.2f}")
    return areas, round(float(evaluation.stats[3]), 2)


if [small(False), small(True)] != [([120, 60], 0.5), ([3660, 3600], 1.0)]:
    raise SystemExit("the behaviour has changed")
PYTHON

#!/usr/bin/env bash
# supervision: a data set of masks that is written with as_coco loses a row and a column of each object, and objects of one pixel are unreadable.
#
# Seen with: supervision 0.31.2, pycocotools 2.0.11, Python 3.11 on Linux x86-64.
#
# Expected of `DetectionDataset.as_coco`: polygons from which pycocotools, the reference reader of the format, draws the same masks.
#
# What is so: polygons go through the centers of the outermost pixels, with OpenCV's rule that the border belongs to the object. pycocotools takes
# a pixel for the area from x to x + 1, so a square of 20x20 pixels comes back as 19x19. An object of one pixel gets `"segmentation": []`, on which
# pycocotools raises IndexError. Masks with holes are written as exact run lengths, with "iscrowd": 1, which COCO's evaluation does not count.
#
# What it means: do not write masks again through supervision when pixels matter. Its reader (`from_coco(force_masks=True)`) is exact for run
# lengths.
#
# Output seen:
#   square: 400 pixels, read as 361, iscrowd 0
#   ring: 1000 pixels, read as 1000, iscrowd 1
#   dot: 1 pixels, [] is IndexError: list index out of range
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet supervision==0.31.2 pycocotools==2.0.11
"$place/venv/bin/python" - "$place" 2>/dev/null <<'PYTHON'
import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image
from pycocotools.coco import COCO

place = Path(sys.argv[1])
masks = {name: np.zeros((60, 80), bool) for name in ("square", "ring", "dot")}
masks["square"][5:25, 55:75] = True
masks["ring"][10:40, 10:50] = True
masks["ring"][20:30, 20:40] = False
masks["dot"][50, 70] = True
found = {}
for name, mask in masks.items():
    path = place / f"{name}.png"
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(path)
    box = sv.mask_to_xyxy(mask[None]).astype(float)
    found[str(path)] = sv.Detections(xyxy=box, mask=mask[None], class_id=np.array([0]))
sv.DetectionDataset(["thing"], list(found), found).as_coco(annotations_path=str(place / "annotations.json"))
document = json.loads((place / "annotations.json").read_text())
names = {image["id"]: Path(image["file_name"]).stem for image in document["images"]}
with contextlib.redirect_stdout(io.StringIO()):
    reader = COCO(str(place / "annotations.json"))
seen = {}
for one in document["annotations"]:
    name = names[one["image_id"]]
    try:
        seen[name] = int(reader.annToMask(one).sum()), one["iscrowd"]
        print(f"{name}: {masks[name].sum()} pixels, read as {seen[name][0]}, iscrowd {seen[name][1]}")
    except IndexError as error:
        seen[name] = str(error)
        print(f"{name}: {masks[name].sum()} pixels, {one['segmentation']} is IndexError: {error}")
if seen != {"square": (361, 0), "ring": (1000, 1), "dot": "list index out of range"}:
    raise SystemExit("the behaviour has changed")
PYTHON

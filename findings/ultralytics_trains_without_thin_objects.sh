#!/usr/bin/env bash
# Ultralytics: objects thinner than two pixels at the size of training are not trained with, also without augmentation.
#
# Seen with: ultralytics 8.4.190, torch 2.11.0, Python 3.11 on Linux x86-64.
#
# Expected of a YOLO segmentation data set that is trained with at its own size, with every augmentation set to 0: each object of the labels is in
# a batch of each epoch. The scan of the data set counts all of them, and validation does not leave any out.
#
# What is so: the filter that removes objects which an augmentation has cut off also runs where nothing is augmented. It removes each object whose
# box is at most two pixels wide or high. There is no message, and no setting for it.
#
# What it means: lines, hairs and small objects are learned as background. Train at a larger `imgsz`, so that they are three pixels or more, and
# compare the number of objects in the batches with that in the labels.
#
# Output seen:
#   imgsz 64: 4 objects in the labels, 4 for validation, 2 for training
#   imgsz 256: 4 objects in the labels, 4 for validation, 4 for training
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet ultralytics==8.4.190 torch==2.11.0 torchvision==0.26.0 opencv-python-headless
YOLO_CONFIG_DIR="$place/settings" "$place/venv/bin/python" - "$place" 2>/dev/null <<'PYTHON'
import contextlib
import io
import sys
from pathlib import Path

from PIL import Image
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset

SIDE = 64
OFF = dict.fromkeys(
    "mosaic degrees translate scale shear perspective flipud fliplr mixup copy_paste erasing hsv_h hsv_s hsv_v".split(), 0.0
)
place = Path(sys.argv[1])


def line(left, top, right, bottom):
    """A rectangle of pixels as a line of a label file."""
    corners = (left, top, right, top, right, bottom, left, bottom)
    return "0 " + " ".join(str(number / SIDE) for number in corners) + "\n"


for folder in ("images", "labels"):
    (place / folder).mkdir()
Image.new("RGB", (SIDE, SIDE)).save(place / "images" / "0.png")
# Two objects of ten pixels and more, a row of one pixel's height, and one of two pixels.
text = line(4, 4, 24, 24) + line(30, 4, 60, 14) + line(4, 40, 60, 41) + line(4, 50, 60, 52)
(place / "labels" / "0.txt").write_text(text)
found = {}
for size in (SIDE, 4 * SIDE):
    with contextlib.redirect_stdout(io.StringIO()):
        counts = []
        for augment in (False, True):
            data = YOLODataset(
                img_path=str(place / "images"),
                imgsz=size,
                augment=augment,
                hyp=get_cfg(overrides=OFF),
                data={"names": {0: "leaf"}, "channels": 3},
                task="segment",
            )
            counts.append(len(data[0]["cls"]))
        labels = sum(len(one["cls"]) for one in data.labels)
    found[size] = labels, *counts
    print(f"imgsz {size}: {labels} objects in the labels, {counts[0]} for validation, {counts[1]} for training")
if found != {64: (4, 4, 2), 256: (4, 4, 4)}:
    raise SystemExit("the behaviour has changed")
PYTHON

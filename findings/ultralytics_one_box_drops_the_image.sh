#!/usr/bin/env bash
# Ultralytics: one box among an image's segmentation labels removes the whole image from training.
#
# Seen with: ultralytics 8.4.190, torch 2.11.0, Python 3.11 on Linux x86-64.
#
# Expected of a YOLO segmentation data set in which one line of a label file is a box (class and four numbers, as annotators add by hand): the box
# is read as a polygon of two points, or the line is left out. Each line is a valid label of one of the two tasks.
#
# What is so: the label file is called corrupt, and the image is not in the data set, with all its polygons. The message is a warning in the log.
#
# What it means: after boxes were added to segmentation labels in another tool, turn them into masks before training, and compare the number of
# images that the log counts with that of the files.
#
# Output seen:
#   polygons only: 2 of 2 images, 4 objects
#   one box in one of them: 1 of 2 images, 2 objects
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
from ultralytics.data.dataset import YOLODataset

place = Path(sys.argv[1])
TRIANGLES = "0 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.6 0.6 0.9 0.6 0.9 0.9\n"


def read(name, second):
    """Images and objects of a data set of two images, the second with these labels."""
    for folder in ("images", "labels"):
        (place / name / folder).mkdir(parents=True)
    for index, text in enumerate((TRIANGLES, second)):
        Image.new("RGB", (100, 100)).save(place / name / "images" / f"{index}.jpg")
        (place / name / "labels" / f"{index}.txt").write_text(text)
    with contextlib.redirect_stdout(io.StringIO()):
        data = YOLODataset(img_path=str(place / name / "images"), data={"names": {0: "leaf"}, "channels": 3}, task="segment")
    return len(data.labels), sum(len(one["cls"]) for one in data.labels)


plain, mixed = read("plain", TRIANGLES), read("mixed", TRIANGLES + "0 0.7 0.2 0.2 0.2\n")
print(f"polygons only: {plain[0]} of 2 images, {plain[1]} objects")
print(f"one box in one of them: {mixed[0]} of 2 images, {mixed[1]} objects")
if (plain, mixed) != ((2, 4), (1, 2)):
    raise SystemExit("the behaviour has changed")
PYTHON

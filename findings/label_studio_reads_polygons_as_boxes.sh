#!/usr/bin/env bash
# Label Studio's converter: YOLO segmentation labels become rectangles from the first two corners, with a coordinate as the score.
#
# Seen with: label-studio-sdk 2.1.2, Python 3.11 on Linux x86-64.
#
# Expected of `convert_yolo_to_ls`: polygons for lines that have a class and more than four numbers (Ultralytics' segmentation labels), or an error.
#
# What is so: the first four numbers are taken for a box's center and size, and the fifth for the score, without a word. The rectangle lies elsewhere
# and has another size.
#
# What it means: import masks into Label Studio as COCO polygons or as brush masks, not as YOLO segmentation labels.
#
# Output seen:
#   the polygon's box: x 10 to 30, y 20 to 60 percent
#   the rectangle: x 0 to 20, y 5 to 35 percent, score 0.3
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet label-studio-sdk==2.1.2
"$place/venv/bin/python" - "$place" <<'PYTHON'
import contextlib
import io
import json
import sys
from pathlib import Path

from label_studio_sdk.converter.imports.yolo import convert_yolo_to_ls
from PIL import Image

place = Path(sys.argv[1])
for name in ("images", "labels"):
    (place / name).mkdir()
Image.new("RGB", (100, 100)).save(place / "images" / "a.png")
(place / "classes.txt").write_text("leaf\n")
(place / "labels" / "a.txt").write_text("0 0.10 0.20 0.20 0.30 0.30 0.60 0.15 0.50\n")
with contextlib.redirect_stdout(io.StringIO()):
    convert_yolo_to_ls(str(place), str(place / "tasks.json"))
(found,) = json.loads((place / "tasks.json").read_text())[0]["annotations"][0]["result"]
value = found["value"]
edges = [round(edge) for edge in (value["x"], value["x"] + value["width"], value["y"], value["y"] + value["height"])]
print("the polygon's box: x 10 to 30, y 20 to 60 percent")
print(f"the rectangle: x {edges[0]} to {edges[1]}, y {edges[2]} to {edges[3]} percent, score {found.get('score')}")
if found["type"] != "rectanglelabels" or edges != [0, 20, 5, 35] or found.get("score") != 0.3:
    raise SystemExit("the behaviour has changed")
PYTHON

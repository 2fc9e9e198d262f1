#!/usr/bin/env bash
# keras-hub: SAMImageConverter crops an image to a square by default, and pads it on both sides when asked to pad.
#
# Seen with: keras-hub 0.32.0, keras 3.15.1, jax 0.8.1 (backend), Python 3.11 on Linux x86-64.
#
# Expected: what SAM was trained with, and what segment_anything's ResizeLongestSide with Sam.preprocess does: the longest side
# becomes the side of the square, and the rest is padded at the right and at the bottom, so that a click is scaled and not moved.
#
# What is so: `SAMImageConverter(image_size=(64, 64))` scales the shorter side and cuts off both ends of the longer one. With
# `pad_to_aspect_ratio=True` (which needs `crop_to_aspect_ratio=False` beside it, or raises) nothing is cut, but the padding is
# divided between both sides, so the image begins in the middle.
#
# What it means: weights of a preset are SAM's, but its masks and clicks are those of another frame; compare only on square images, or
# preprocess as SAM does. A click on a non-square image has to be moved by half of the padding.
#
# Output seen (an image of 32 rows and 64 columns, whose left quarter, middle and right quarter have the values 100, 150 and 200):
#   default: shape (64, 64), values in the middle row [150]
#   padded:  shape (64, 64), rows with an image 16 to 47
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
pip() { "$place/venv/bin/python" -m pip install --quiet "$@"; }
pip --no-deps keras==3.15.1 keras-hub==0.32.0 # keras-hub itself would bring TensorFlow
pip jax==0.8.1 numpy h5py optree ml_dtypes namex absl-py rich packaging regex tokenizers sentencepiece
KERAS_BACKEND=jax "$place/venv/bin/python" - <<'PYTHON'
import numpy as np
from keras_hub.layers import SAMImageConverter

image = np.full((1, 32, 64, 3), 150.0, np.float32)
image[:, :, :16], image[:, :, 48:] = 100.0, 200.0


def convert(**options):
    return np.asarray(SAMImageConverter(image_size=(64, 64), scale=1.0, **options)(image))[0, :, :, 0]


default, padded = convert(), convert(crop_to_aspect_ratio=False, pad_to_aspect_ratio=True)
middle = sorted({int(round(float(value))) for value in default[32, 2:-2]})
rows = np.flatnonzero(padded.max(1) > 0)
print(f"default: shape {default.shape}, values in the middle row {middle}")
print(f"padded:  shape {padded.shape}, rows with an image {rows[0]} to {rows[-1]}")
if middle != [150] or (rows[0], rows[-1]) != (16, 47):
    raise SystemExit("the behaviour has changed")
PYTHON

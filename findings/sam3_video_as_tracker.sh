#!/usr/bin/env bash
# transformers: what Sam3VideoModel saves can be opened as Sam3TrackerModel, and most of the tracker's weights are then random.
#
# Seen with: transformers 5.24.0, torch 2.13.0, Python 3.11 on Linux x86-64.
#
# Expected: `Sam3TrackerModel.from_pretrained(folder)` reads the tracker's weights out of the video model, which contains that very
# model, as it reads them out of the published checkpoint; or it raises.
#
# What is so: the video model saves the tracker as `tracker_model.tracker_model.*`, one level deeper than the class looks for it.
# `from_pretrained` returns a model, with a warning in the log and no exception, in which 147 of 205 tensors are newly drawn.
#
# What it means: a checkpoint is a model only if every tensor of it was found: read `output_loading_info=True` before using one.
#
# Output seen:
#   tensors of Sam3TrackerModel: 205, missing in the file: 147, exception: none
#   the mask decoder's tokens (tracker_model.tracker_model.mask_decoder.mask_tokens.weight) are those that were saved: False
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet transformers==5.24.0 torch==2.13.0
PLACE="$place/saved" "$place/venv/bin/python" - <<'PYTHON'
import os
import torch
from safetensors import safe_open
from transformers import Sam3TrackerModel, Sam3VideoConfig, Sam3VideoModel

vision = {
    "backbone_config": {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 112, "pretrain_image_size": 56, "window_size": 4, "global_attn_indexes": [1],
    },
    "fpn_hidden_size": 32,
}
small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
text = small | {"num_hidden_layers": 1, "projection_dim": 32, "vocab_size": 64}
detector = {
    "vision_config": vision, "text_config": text, "geometry_encoder_config": small | {"num_layers": 1},
    "detr_encoder_config": small | {"num_layers": 1}, "detr_decoder_config": small | {"num_layers": 1, "num_queries": 8},
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
}
torch.manual_seed(0)
config = Sam3VideoConfig(detector_config=detector)
config.tracker_config.vision_config = type(config.tracker_config.vision_config)(**vision)
video = Sam3VideoModel(config)
place = os.environ["PLACE"]
video.save_pretrained(place)
with safe_open(f"{place}/model.safetensors", "pt") as file:
    stored = next(name for name in file.keys() if name.endswith("mask_decoder.mask_tokens.weight"))
    tokens = file.get_tensor(stored)
tracker, report = Sam3TrackerModel.from_pretrained(place, output_loading_info=True)
total, missing = len(tracker.state_dict()), len(report["missing_keys"])
same = torch.equal(tracker.state_dict()["mask_decoder.mask_tokens.weight"], tokens)
print(f"tensors of Sam3TrackerModel: {total}, missing in the file: {missing}, exception: none")
print(f"the mask decoder's tokens ({stored}) are those that were saved: {same}")
if (total, missing, same) != (205, 147, False):
    raise SystemExit("the behaviour has changed")
PYTHON

#!/usr/bin/env bash
# transformers: with its default neck, Sam3TrackerModel drops the embedding of no memory, which its video class adds.
#
# Seen with: transformers 5.24.0, torch 2.11.0, torchvision 0.26.0, Python 3.11 on Linux x86-64.
#
# Expected: an image that is no frame of a film gets `no_memory_embedding` on its coarsest map, as in Meta's code, in `Sam2Model`, in
# ComfyUI's SAM 3, and in `Sam3TrackerVideoModel`, whose configuration is the same.
#
# What is so: the default neck has four maps, of which clicks use three. The video class leaves the fourth out first. The image class
# adds the embedding to the last of the four, and drops that map afterwards: the parameter has no effect on anything. With
# `scale_factors=[4.0, 2.0, 1.0]` in the configuration, the neck has the three maps, and the image class is right.
#
# What it means: take Sam3TrackerModel as a reference for clicks only with a neck of three maps.
#
# Output seen:
#   Sam3TrackerModel, four maps: an embedding of 5 changes the coarsest map by 0.0
#   Sam3TrackerModel, three maps: an embedding of 5 changes the coarsest map by 5.0
#   Sam3TrackerVideoModel, four maps: an embedding of 5 changes the coarsest map by 5.0
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet transformers==5.24.0 torch==2.11.0 torchvision==0.26.0
"$place/venv/bin/python" - <<'PYTHON'
import torch
from transformers import (
    Sam3TrackerConfig, Sam3TrackerModel, Sam3TrackerVideoConfig, Sam3TrackerVideoModel, Sam3ViTConfig, Sam3VisionConfig,
)

trunk = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 168, "pretrain_image_size": 84, "window_size": 4, "global_attn_indexes": [1],
}
heads = {
    "prompt_encoder_config": {"hidden_size": 64, "image_size": 168},
    "mask_decoder_config": {"hidden_size": 64, "mlp_dim": 128, "iou_head_hidden_dim": 64},
}
memory = {"image_size": 168, "memory_attention_hidden_size": 64, "memory_encoder_hidden_size": 64}


def vision(**more):
    sizes = [[48, 48], [24, 24], [12, 12]]
    return Sam3VisionConfig(backbone_config=Sam3ViTConfig(**trunk), fpn_hidden_size=64, backbone_feature_sizes=sizes, **more)


def change(model):
    """How far the coarsest map goes where the embedding becomes 5."""
    pixels = torch.randn(1, 3, 168, 168, generator=torch.Generator().manual_seed(0))
    maps = []
    with torch.no_grad():
        for value in (0.0, 5.0):
            model.no_memory_embedding.fill_(value)
            maps.append(model.eval().get_image_embeddings(pixels)[-1])
    return round(float((maps[1] - maps[0]).abs().max()), 3)


torch.manual_seed(0)
found = {
    "Sam3TrackerModel, four maps": change(Sam3TrackerModel(Sam3TrackerConfig(vision_config=vision(), **heads))),
    "Sam3TrackerModel, three maps": change(
        Sam3TrackerModel(Sam3TrackerConfig(vision_config=vision(scale_factors=[4.0, 2.0, 1.0]), **heads))
    ),
    "Sam3TrackerVideoModel, four maps": change(
        Sam3TrackerVideoModel(Sam3TrackerVideoConfig(vision_config=vision(), **heads, **memory))
    ),
}
for name, distance in found.items():
    print(f"{name}: an embedding of 5 changes the coarsest map by {distance}")
if list(found.values()) != [0.0, 5.0, 5.0]:
    raise SystemExit("the behaviour has changed")
PYTHON

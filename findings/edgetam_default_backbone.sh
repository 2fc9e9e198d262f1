#!/usr/bin/env bash
# transformers: the default EdgeTamConfig builds a ResNet-50, not EdgeTAM's RepViT, and the model's forward pass raises.
#
# Seen with: transformers 5.24.0, timm 1.0.31, torch 2.11.0, torchvision 0.26.0, Python 3.11 on Linux x86-64.
#
# Expected of `EdgeTamModel(EdgeTamConfig())`: the architecture that the class is named after, as every other config of transformers
# gives it, and a forward pass that returns masks.
#
# What is so: `EdgeTamVisionConfig` passes `init_kwargs={"archirecture": "repvit_m1", ...}` (the key is misspelled) to the wrapper of
# timm, which then takes its own default architecture. The neck expects RepViT's 384 channels and gets ResNet's. With
# `TimmWrapperConfig(architecture="repvit_m1")` in its place the same call works.
#
# What it means: build no test file from the default config, and read the architecture of a checkpoint from its tensors.
#
# Output seen:
#   default backbone: resnet50
#   default forward: RuntimeError: Given groups=1, weight of size [256, 384, 1, 1], expected input[1, 1024, 64, 64] to have 384 channels, but got 1024 channels instead
#   with architecture="repvit_m1": masks (1, 1, 3, 256, 256)
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet transformers==5.24.0 timm==1.0.31 torch==2.11.0 torchvision==0.26.0
"$place/venv/bin/python" - <<'PYTHON'
import torch
from transformers import EdgeTamConfig, EdgeTamModel, TimmWrapperConfig
from transformers.models.edgetam.configuration_edgetam import EdgeTamVisionConfig

torch.manual_seed(0)
pixels = torch.zeros(1, 3, 1024, 1024)
points, labels = torch.tensor([[[[512.0, 512.0]]]]), torch.ones(1, 1, 1, dtype=torch.int64)


def ask(model):
    with torch.no_grad():
        return model.eval()(pixel_values=pixels, input_points=points, input_labels=labels)


config = EdgeTamConfig()
architecture = config.vision_config.backbone_config.architecture
print("default backbone:", architecture)
try:
    ask(EdgeTamModel(config))
    failure = None
except RuntimeError as error:
    failure = str(error)
print("default forward:", f"RuntimeError: {failure}" if failure else "works")
backbone = TimmWrapperConfig(
    architecture="repvit_m1", model_args={"in_chans": 3, "features_only": True, "out_indices": (0, 1, 2, 3)}
)
shape = tuple(ask(EdgeTamModel(EdgeTamConfig(vision_config=EdgeTamVisionConfig(backbone_config=backbone)))).pred_masks.shape)
print('with architecture="repvit_m1": masks', shape)
if architecture != "resnet50" or "expected input[1, 1024, 64, 64] to have 384 channels" not in (failure or "") or shape[-1] != 256:
    raise SystemExit("the behaviour has changed")
PYTHON

#!/usr/bin/env bash
# transformers: SamModel's random positional encoding is a trainable parameter, and peft's modules_to_save trains it for prompts alone.
#
# Seen with: transformers 5.24.0, peft 0.21.2, segment-anything 1.0, torch 2.11.0, Python 3.11 on Linux x86-64.
#
# Expected of `SamModel`: as in segment_anything, the Gaussian matrix of the positional encoding is a constant (a buffer). It is drawn once, and
# prompts and image share it, so that a click and the image's token below it have the same position.
#
# What is so: it is an `nn.Parameter`, of the image and, tied to that, of the prompt encoder. An optimizer over the parameters changes it. With
# peft's `modules_to_save=["prompt_encoder"]` the prompt encoder is copied, so the tie is gone: training changes the positions of prompts, and
# those of the image stay. `merge_and_unload` keeps both.
#
# What it means: freeze `positional_embedding` before a fine-tune of SamModel's prompt encoder. A model with two different matrices cannot be
# converted to segment_anything's format, which has one.
#
# Output seen:
#   segment_anything has the matrix among its parameters: False
#   SamModel has the matrix among its parameters: True
#   a step of training the prompt encoder with peft changes the positions of prompts: True
#   and those of the image: False
#   the merged model has two different matrices: True
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet transformers==5.24.0 peft==0.21.2 torch==2.11.0 torchvision==0.26.0 segment-anything==1.0
"$place/venv/bin/python" - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from segment_anything.modeling import PromptEncoder
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

theirs = PromptEncoder(embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16)
in_meta = any("positional_encoding" in name for name, _ in theirs.named_parameters())

torch.manual_seed(0)
vision = SamVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=128, patch_size=16, output_channels=32,
                         num_pos_feats=16, global_attn_indexes=[1], window_size=3, mlp_dim=64)
config = SamConfig(vision_config=vision, prompt_encoder_config=SamPromptEncoderConfig(hidden_size=32, image_size=128),
                   mask_decoder_config=SamMaskDecoderConfig(hidden_size=32, mlp_dim=64))
model = SamModel(config)
in_transformers = any("positional_embedding" in name for name, _ in model.named_parameters())
before = model.shared_image_embedding.positional_embedding.detach().clone()

tuned = get_peft_model(model, LoraConfig(target_modules=["qkv"], modules_to_save=["prompt_encoder"]))
optimizer = torch.optim.Adam([parameter for parameter in tuned.parameters() if parameter.requires_grad], lr=1e-2)
found = tuned(pixel_values=torch.randn(1, 3, 128, 128), input_points=torch.tensor([[[[60.0, 50.0]]]]))
found.pred_masks.sub(1).square().mean().backward()
optimizer.step()
merged = tuned.merge_and_unload()
prompts = merged.prompt_encoder.shared_embedding.positional_embedding.detach()
image = merged.shared_image_embedding.positional_embedding.detach()

print("segment_anything has the matrix among its parameters:", in_meta)
print("SamModel has the matrix among its parameters:", in_transformers)
print("a step of training the prompt encoder with peft changes the positions of prompts:", not torch.equal(prompts, before))
print("and those of the image:", not torch.equal(image, before))
print("the merged model has two different matrices:", not torch.equal(prompts, image))
if (in_meta, in_transformers, torch.equal(prompts, before), torch.equal(image, before)) != (False, True, False, True):
    raise SystemExit("the behaviour has changed")
PYTHON

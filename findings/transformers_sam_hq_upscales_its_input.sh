#!/usr/bin/env bash
# transformers: SamHQModel upscales the image embedding that goes into its mask decoder, not what the decoder's transformer makes of it.
#
# Seen with: transformers 5.24.0, torch 2.11.0, Python 3.11 on Linux x86-64. transformers 4.57.6 does the same.
#
# Expected of `SamHQModel`: the masks of sam-hq, whose mask decoder upscales the image tokens that come out of its two-way transformer
# (`src = src.transpose(1, 2).view(b, c, h, w)` in `mask_decoder_hq.py`). `SamModel` of the same library does that.
#
# What is so: the transformer's image tokens are not used. The first upscaling layer gets the embedding that went in, with height and width
# swapped. Predicted IoUs are right, since they come from the tokens of the prompts.
#
# What it means: masks of SAM-HQ in transformers are not those of sam-hq. Compare an implementation of SAM-HQ with sam-hq's own code.
#
# Output seen:
#   SamModel upscales what came out of its transformer: True
#   SamHQModel upscales what came out of its transformer: False
#   SamHQModel upscales what went in, height and width swapped: True
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet transformers==5.24.0 torch==2.11.0
"$place/venv/bin/python" - <<'PYTHON'
import torch
import transformers

VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 128, "patch_size": 16,
          "output_channels": 32, "num_pos_feats": 16, "global_attn_indexes": [1], "window_size": 3, "mlp_dim": 64}


def upscaled(kind):
    """What the first upscaling layer gets, what went into the transformer, and what came out: each `[32, 8, 8]`."""
    prefix = kind.removesuffix("Model")
    prompts = getattr(transformers, f"{prefix}PromptEncoderConfig")(hidden_size=32, image_size=128)
    more = {"vit_dim": 32} if "HQ" in kind else {}
    decoder = getattr(transformers, f"{prefix}MaskDecoderConfig")(hidden_size=32, mlp_dim=64, iou_head_hidden_dim=32, **more)
    vision = getattr(transformers, f"{prefix}VisionConfig")(**VISION)
    config = getattr(transformers, f"{prefix}Config")(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    seen = {}
    model.mask_decoder.upscale_conv1.register_forward_pre_hook(lambda _, given: seen.update(upscaled=given[0][0].clone()))

    def transformed(_, __, given, found):
        image = given["image_embeddings"]  # [1, 32, 8, 8]
        seen.update(went_in=image[0].clone(), came_out=found[1][0, 0].T.reshape(32, 8, 8).clone())

    model.mask_decoder.transformer.register_forward_hook(transformed, with_kwargs=True)
    with torch.no_grad():
        model(pixel_values=torch.randn(1, 3, 128, 128), input_points=torch.tensor([[[[60.0, 50.0]]]]))
    return seen


sam, hq = upscaled("SamModel"), upscaled("SamHQModel")
right = torch.allclose(sam["upscaled"], sam["came_out"], atol=1e-5)
same = torch.allclose(hq["upscaled"], hq["came_out"], atol=1e-5)
swapped = torch.allclose(hq["upscaled"], hq["went_in"].transpose(1, 2), atol=1e-5)
print("SamModel upscales what came out of its transformer:", right)
print("SamHQModel upscales what came out of its transformer:", same)
print("SamHQModel upscales what went in, height and width swapped:", swapped)
if (right, same, swapped) != (True, False, True):
    raise SystemExit("the behaviour has changed")
PYTHON

"""The reference for EdgeTAM on images: transformers' `EdgeTamModel` with timm's RepViT, and seeded weights."""

import pytest
import torch

try:
    import timm  # noqa: F401
    from transformers import (
        EdgeTamConfig,
        EdgeTamMaskDecoderConfig,
        EdgeTamModel,
        EdgeTamPromptEncoderConfig,
        EdgeTamVisionConfig,
        TimmWrapperConfig,
    )
except ImportError:
    pytest.skip("without timm, or in a transformers before 4.57, there is no EdgeTAM to compare with", allow_module_level=True)

from reference_sam2 import _enliven

# Of timm's repvit_m1: a shallow one. The stages' widths double from these, as published.
SMALL = {"embed_dim": (16, 32, 64, 128), "depth": (2, 2, 3, 2)}


def random_edgetam(side=1024, channels=256, **body):
    """An `EdgeTamModel` with random weights and batch norms that have seen images; see `random_sam` for why they are scaled."""
    torch.manual_seed(0)
    widths, grid = body.get("embed_dim", (48, 96, 192, 384)), side // 16
    arguments = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3], **body}
    vision = EdgeTamVisionConfig(
        backbone_config=TimmWrapperConfig(architecture="repvit_m1", model_args=arguments),
        backbone_channel_list=list(widths[::-1]),
        backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        fpn_hidden_size=channels,
    )
    decoder = {"hidden_size": channels, "mlp_dim": 8 * channels, "iou_head_hidden_dim": channels}
    config = EdgeTamConfig(
        vision_config=vision,
        prompt_encoder_config=EdgeTamPromptEncoderConfig(hidden_size=channels, image_size=side),
        mask_decoder_config=EdgeTamMaskDecoderConfig(**decoder),
    )
    model = EdgeTamModel(config)
    with torch.no_grad():
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
        for name, parameter in model.named_parameters():
            if ".bn." not in name:
                _enliven(name, parameter)
            elif name.endswith("weight"):  # some begin as zeros
                parameter.uniform_(0.2, 0.5)
            else:
                parameter.normal_(0, 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)

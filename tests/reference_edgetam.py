"""The reference for EdgeTAM: transformers' `EdgeTamModel` and `EdgeTamVideoModel` with timm's RepViT, and seeded weights."""

import pytest
import torch

try:
    import timm  # noqa: F401
    from transformers import (
        EdgeTamConfig,
        EdgeTamMaskDecoderConfig,
        EdgeTamModel,
        EdgeTamPromptEncoderConfig,
        EdgeTamVideoConfig,
        EdgeTamVideoModel,
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


def random_edgetam_video(side=1024, channels=256, presence=3.0, **body):
    """An `EdgeTamVideoModel` with random weights, as published without dates of pointers and marks of absence.

    `presence` is added to all object scores, which random weights give at random. The memory has a quarter of the grid's side.
    """
    image = random_edgetam(side, channels, **body)
    grid = side // 16
    config = EdgeTamVideoConfig(
        vision_config=image.config.vision_config,
        prompt_encoder_config={"hidden_size": channels, "image_size": side, "mask_input_channels": 16},
        mask_decoder_config={"hidden_size": channels, "mlp_dim": 8 * channels, "iou_head_hidden_dim": channels},
        image_size=side,
        enable_temporal_pos_encoding_for_object_pointers=False,
        enable_occlusion_spatial_embedding=False,
        memory_attention_hidden_size=channels,
        memory_attention_mlp_hidden_size=8 * channels,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_attention_rope_k_sizes=[grid // 4, grid // 4],
        perceiver_resampler_num_latents=grid**2 // 16,
        perceiver_resampler_num_latents_2d=grid**2 // 16,
        memory_encoder_hidden_size=channels,
        mask_downsampler_embed_dim=channels,
        memory_fuser_embed_dim=channels,
        memory_fuser_intermediate_dim=4 * channels,
    )
    model = EdgeTamVideoModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".scale") or ("." not in name and name != "no_memory_embedding") or ".latents_" in name:
                parameter.normal_(0, 0.5)
            else:
                _enliven(name, parameter)
        model.load_state_dict(image.state_dict(), strict=False)
        model.mask_decoder.pred_obj_score_head.proj_out.bias.add_(presence)
    return model.eval().requires_grad_(False)

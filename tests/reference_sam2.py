"""The reference for SAM 2: transformers' `Sam2Model` with seeded weights that make masks worth comparing."""

import pytest
import torch

try:
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2ImageProcessor, Sam2Model, Sam2VisionConfig
except ImportError:
    pytest.skip("transformers before 4.56 has no SAM 2 to compare with", allow_module_level=True)

TINY = {"hidden_size": 96}
BASE_PLUS = {
    "hidden_size": 112,
    "num_attention_heads": 2,
    "blocks_per_stage": [2, 3, 16, 3],
    "embed_dim_per_stage": [112, 224, 448, 896],
    "num_attention_heads_per_stage": [2, 4, 8, 16],
    "window_positional_embedding_background_size": [14, 14],
    "global_attention_blocks": [12, 16, 20],
}
SMALL_PUBLISHED = {"hidden_size": 96, "blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]}
LARGE = {
    "hidden_size": 144,
    "num_attention_heads": 2,
    "blocks_per_stage": [2, 6, 36, 4],
    "embed_dim_per_stage": [144, 288, 576, 1152],
    "num_attention_heads_per_stage": [2, 4, 8, 16],
    "window_size_per_stage": [8, 4, 16, 8],
    "global_attention_blocks": [23, 33, 43],
}
# Windows that do not divide the third stage's grid, as in the published sizes, and a side of 128 pixels.
SMALL_SIDE = 128
SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 1,
    "blocks_per_stage": [1, 2, 3, 2],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 6, 3],
    "window_positional_embedding_background_size": [3, 3],
    "global_attention_blocks": [4],
}


def random_sam2(hiera, side=1024, channels=256, seed=0):
    """A `Sam2Model` (eager about nothing: sdpa) with random weights; see `random_sam` for why they are scaled."""
    torch.manual_seed(seed)
    grid, widths = side // 16, hiera.get("embed_dim_per_stage", [96, 192, 384, 768])
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(image_size=[side, side], **hiera),
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        fpn_hidden_size=channels,
    )
    decoder = {"hidden_size": channels, "mlp_dim": 8 * channels, "iou_head_hidden_dim": channels}
    prompts = {"hidden_size": channels, "image_size": side, "mask_input_channels": 16}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = Sam2Model(config)
    with torch.no_grad():
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
        for name, parameter in model.named_parameters():
            _enliven(name, parameter)
    return model.eval().requires_grad_(False)


def write_tiny(path):
    """A checkpoint of SAM 2.1 tiny at its full size, in transformers' layout."""
    torch.save(random_sam2(TINY).state_dict(), path)


def _enliven(name, parameter):
    if "pos_embed" in name or name.endswith("no_memory_embedding"):
        parameter.normal_(0, 0.3)
    elif parameter.ndim < 2:
        parameter.add_(torch.randn_like(parameter) * 0.02)
    else:  # transformers' standard deviation of 0.02 gives flat features; that of torch's own layers does not
        fan_in = parameter[0].numel()
        scale = 1.4 if name.startswith("mask_decoder") else 1.0
        if "embed.weight" in name or "token" in name.rsplit(".", 2)[-2]:
            parameter.normal_(0, 1)
        else:
            parameter.normal_(0, scale / fan_in**0.5)


def processor(side=1024):
    """The image processor of transformers for a square of `side` pixels."""
    return Sam2ImageProcessor(size={"height": side, "width": side}, mask_size={"height": side // 4, "width": side // 4})

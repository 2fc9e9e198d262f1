"""The reference for SAM 3 by clicks: transformers' `Sam3TrackerModel` with seeded weights, and its files in other layouts."""

import pytest
import torch

try:
    from transformers import Sam3TrackerConfig, Sam3TrackerModel, Sam3VisionConfig, Sam3ViTConfig
except ImportError:
    pytest.skip("transformers before 5.0 has no SAM 3 to compare with", allow_module_level=True)

from reference_sam2 import _enliven

PATCH, SMALL_GRID = 14, 12
SMALL_SIDE, SIDE = PATCH * SMALL_GRID, 1008
# Two global blocks, and a table of positions that does not repeat evenly over the image.
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": SMALL_SIDE,
    "pretrain_image_size": 5 * PATCH,
    "window_size": 4,
    "global_attn_indexes": [1, 3],
}


def random_sam3(vit, side=SIDE, channels=256, seed=0):
    """A `Sam3TrackerModel` with random weights; see `random_sam` for why they are scaled.

    Its neck has the three maps that clicks use. With a fourth, as in its default configuration, transformers adds the embedding
    of no memory to that one, which it then drops (findings/sam3_tracker_no_memory.sh).
    """
    torch.manual_seed(seed)
    grid = side // PATCH
    vision = Sam3VisionConfig(
        backbone_config=Sam3ViTConfig(**vit),
        fpn_hidden_size=channels,
        backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        scale_factors=[4.0, 2.0, 1.0],
    )
    decoder = {"hidden_size": channels, "mlp_dim": 8 * channels, "iou_head_hidden_dim": channels}
    prompts = {"hidden_size": channels, "image_size": side, "mask_input_channels": 16}
    model = Sam3TrackerModel(
        Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )
    with torch.no_grad():
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
        for name, parameter in model.named_parameters():
            _enliven(name, parameter)
            if name.endswith("position_embeddings"):
                parameter.normal_(0, 0.3)
    return model.eval().requires_grad_(False)

"""Reference implementations to compare with: segment_anything's own model builder and predictor."""

from functools import partial

import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

VIT_B = {"embed_dim": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)}
VIT_H = {"embed_dim": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)}


def content_id(model):
    """The identity of a model: ours, or segment_anything's own."""
    from samkit.sam import as_segmenter, identity_of

    return identity_of(as_segmenter(model))


def random_sam(
    embed_dim,
    depth,
    heads,
    global_blocks,
    grid=64,
    window=14,
    patch=16,
    out_chans=256,
    mlp_dim=2048,
    multimask=3,
    mlp_ratio=4.0,
    seed=0,
):
    """segment_anything's Sam with seeded weights that make masks worth comparing.

    Random masks are trivial unless the decoder's weights are scaled up, and rel_pos and pos_embed, zero at the start,
    are randomised.
    """
    torch.manual_seed(seed)
    size = grid * patch
    sam = Sam(
        ImageEncoderViT(
            img_size=size,
            patch_size=patch,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            out_chans=out_chans,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=window,
            global_attn_indexes=global_blocks,
        ),
        PromptEncoder(embed_dim=out_chans, image_embedding_size=(grid, grid), input_image_size=(size, size), mask_in_chans=16),
        MaskDecoder(
            num_multimask_outputs=multimask,
            transformer=TwoWayTransformer(depth=2, embedding_dim=out_chans, num_heads=8, mlp_dim=mlp_dim),
            transformer_dim=out_chans,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(0, 0.3)
            elif name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.02)
            elif name.startswith("mask_decoder") and parameter.ndim > 1:
                parameter.mul_(2.0)
    return sam.eval()


def reference_prediction(sam, image, prompts, multimask):
    """segment_anything's predictor on one image (uint8): masks, scores and low-resolution logits per prompt."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    return [predictor.predict(**prompt, multimask_output=multimask) for prompt in prompts]

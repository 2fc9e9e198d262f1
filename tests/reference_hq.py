"""The references for SAM-HQ, small and with seeded weights: transformers' SamHQModel, and the model of sam-hq's own package."""

from functools import partial

import pytest
import torch


def hugging_face_hq(**vision):
    """A small SamHQModel with seeded weights that make masks worth comparing; two global blocks, of which the first counts."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "SamHQModel"):
        pytest.skip("this transformers has no SamHQModel to compare with")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_dim": 128} | vision
    config = transformers.SamHQConfig(
        vision_config=transformers.SamHQVisionConfig(
            image_size=128, window_size=3, global_attn_indexes=[1, 3], output_channels=32, num_pos_feats=16, **shape
        ),
        prompt_encoder_config=transformers.SamHQPromptEncoderConfig(hidden_size=32, image_size=128),
        mask_decoder_config=transformers.SamHQMaskDecoderConfig(
            hidden_size=32, mlp_dim=64, vit_dim=shape["hidden_size"], iou_head_hidden_dim=40
        ),
    )
    model = transformers.SamHQModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wide = "rel_pos" in name or "pos_embed" in name or "positional" in name
            scale = 0.3 if wide else 0.1 if parameter.ndim == 1 or "layer_norm" in name else 0.2
            parameter.add_(torch.randn_like(parameter) * scale)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    return model


def upscale_what_came_out(model):
    """transformers 5.23 upscales the image tokens that went into its two-way transformer, not those that came out.

    sam-hq's `src = src.transpose(1, 2).view(b, c, h, w)` has no counterpart there. This puts them where it takes them from.
    """

    def write(_, __, inputs, outputs):
        image = inputs["image_embeddings"]
        image.copy_(outputs[1][0].transpose(1, 2).reshape(image.shape).transpose(2, 3))

    model.mask_decoder.transformer.register_forward_hook(write, with_kwargs=True)
    return model


def sam_hq():
    """sam-hq's own Sam, small, with seeded weights that make masks worth comparing."""
    package = pytest.importorskip("segment_anything_hq", reason="sam-hq's package is not installed")
    parts = package.modeling
    torch.manual_seed(1)
    sam = parts.Sam(
        parts.ImageEncoderViT(
            img_size=128, embed_dim=32, depth=4, num_heads=2, out_chans=32, window_size=3, global_attn_indexes=(1, 3),
            use_rel_pos=True, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        parts.PromptEncoder(embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16),
        parts.MaskDecoderHQ(
            num_multimask_outputs=3, transformer_dim=32, vit_dim=32,
            transformer=parts.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=8),
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            wide = "rel_pos" in name or "pos_embed" in name
            parameter.add_(torch.randn_like(parameter) * (0.3 if wide else 0.1 if parameter.ndim == 1 else 0.2))
    return sam.eval(), package.SamPredictor

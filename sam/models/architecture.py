"""The architecture of a SAM, detected from the shapes of its weights and never from a file's name.

The recipe is segment_anything's `build_sam.py`; every number in it that differs between models is read off a shape.
Two cannot be read off any shape and are SAM's own: 8 heads in the mask decoder, and LayerNorm's epsilon of 1e-6.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from ..errors import SAMError
from .hq import HQMaskDecoder
from .tiny_vit import Stage, TinyViT

Shapes: TypeAlias = Mapping[str, torch.Size]

_DECODER_HEADS = 8
_LAYER_NORM_EPS = 1e-6
_KEEPS_RESOLUTION = (320, 448, 576)  # TinyViT: widths after a patch merging with stride 1


@dataclass(frozen=True)
class ViTShape:
    """segment_anything's `ImageEncoderViT`; lengths in tokens, channels or pixels as its own arguments have them."""

    embed_dim: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    grid: int
    window_size: int
    global_attn_indexes: tuple[int, ...]
    qkv_bias: bool
    out_chans: int

    @property
    def img_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.grid * self.patch_size


@dataclass(frozen=True)
class TinyViTShape:
    """MobileSAM's `TinyViT`; its weights do not show the side of its input, which is always SAM's."""

    stages: tuple[Stage, ...]
    expansion: float
    mlp_ratio: float
    out_chans: int
    grid: int = 64
    img_size: int = 1024


@dataclass(frozen=True)
class Architecture:
    """Everything that `build` needs; `early_dim` is the width of SAM-HQ's early features, None without it."""

    encoder: ViTShape | TinyViTShape
    mask_in_chans: int
    decoder_depth: int
    decoder_mlp_dim: int
    decoder_downsample: int
    num_mask_tokens: int
    iou_head_depth: int
    iou_head_hidden_dim: int
    early_dim: int | None


def read_architecture(shapes: Shapes) -> Architecture:
    """Detect the architecture from a state dict's shapes.

    Args:
        shapes: parameter name (segment_anything's) to shape.

    Raises:
        SAMError: no SAM has these weights; the text names the one that is missing or has an unknown shape.
    """
    is_tiny = any(name.startswith("image_encoder.layers.") for name in shapes)
    try:
        return Architecture(_tiny_vit(shapes) if is_tiny else _vit(shapes), **_decoder(shapes))
    except SAMError:
        raise
    except KeyError as error:
        raise SAMError(f"this SAM architecture is not supported: {error} is missing.") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise SAMError(f"this SAM architecture is not supported: the shapes of its weights do not fit. ({error})") from error


def _tiny_vit(shapes: Shapes) -> TinyViTShape:
    root = "image_encoder."
    count = _count(shapes, root + r"layers\.(\d+)\.")
    first, last = f"{root}layers.0.blocks.0.conv1.c.weight", f"{root}layers.{count - 1}.blocks.0.mlp.fc1.weight"
    return TinyViTShape(
        stages=tuple(_stage(shapes, f"{root}layers.{index}.") for index in range(count)),
        expansion=shapes[first][0] / shapes[first][1],
        mlp_ratio=shapes[last][0] / shapes[last][1],
        out_chans=shapes[root + "neck.0.weight"][0],
    )


def _stage(shapes: Shapes, root: str) -> Stage:
    """The patch merging before the last stage of any published TinyViT keeps the resolution, which only its width shows."""
    depth = _count(shapes, re.escape(root) + r"blocks\.(\d+)\.")
    biases = shapes.get(root + "blocks.0.attn.attention_biases")
    merged = shapes.get(root + "downsample.conv1.c.weight")
    width = shapes[root + ("blocks.0.attn.norm.weight" if biases else "blocks.0.conv1.c.weight")][0 if biases else 1]
    stride = 0 if merged is None else 1 if merged[0] in _KEEPS_RESOLUTION else 2
    return Stage(width, depth, biases[0] if biases else 0, math.isqrt(biases[1]) if biases else 0, stride)


def _vit(shapes: Shapes) -> ViTShape:
    root = "image_encoder."
    patches = shapes[root + "patch_embed.proj.weight"]
    if len(patches) != 4:
        volumes = ", so it is a SAM for volumes" if len(patches) == 5 else ""
        raise SAMError(
            f"this SAM architecture is not supported: {root}patch_embed.proj.weight has the shape {tuple(patches)}, and for "
            f"images it has four axes{volumes}."
        )
    embed_dim, _, patch_size, _ = patches
    depth = _count(shapes, root + r"blocks\.(\d+)\.")
    rel_pos = [shapes[f"{root}blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
    grid, window = _grid_and_window(shapes, [(length + 1) // 2 for length, _ in rel_pos])
    return ViTShape(
        embed_dim=embed_dim,
        depth=depth,
        mlp_dim=shapes[root + "blocks.0.mlp.lin1.weight"][0],
        num_heads=embed_dim // rel_pos[0][1],
        patch_size=patch_size,
        grid=grid,
        window_size=window,
        global_attn_indexes=tuple(i for i, (length, _) in enumerate(rel_pos) if length == 2 * grid - 1),
        qkv_bias=root + "blocks.0.attn.qkv.bias" in shapes,
        out_chans=shapes[root + "neck.0.weight"][0],
    )


def _grid_and_window(shapes: Shapes, spans: list[int]) -> tuple[int, int]:
    """Tokens a side of the whole image and of a window (0 where every block is global), from the blocks' spans."""
    grid = shapes["image_encoder.pos_embed"][1]
    return grid, next((span for span in spans if span != grid), 0)


def _decoder(shapes: Shapes) -> dict[str, object]:
    root = "mask_decoder."
    layer = root + "transformer.layers.0."
    return {
        "mask_in_chans": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        "decoder_depth": _count(shapes, root + r"transformer\.layers\.(\d+)\."),
        "decoder_mlp_dim": shapes[layer + "mlp.lin1.weight"][0],
        "decoder_downsample": shapes[root + "iou_token.weight"][1]
        // shapes[layer + "cross_attn_token_to_image.q_proj.weight"][0],
        "num_mask_tokens": shapes[root + "mask_tokens.weight"][0],
        "iou_head_depth": _count(shapes, root + r"iou_prediction_head\.layers\.(\d+)\."),
        "iou_head_hidden_dim": shapes[root + "iou_prediction_head.layers.0.weight"][0],
        "early_dim": shapes[early][0] if (early := root + "compress_vit_feat.0.weight") in shapes else None,
    }


def _count(shapes: Shapes, pattern: str) -> int:
    numbers = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    if not numbers:
        raise KeyError(pattern.replace("\\", "").replace("(d+)", "0") + "*")
    return 1 + max(numbers)


def build(architecture: Architecture) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Image encoder, prompt encoder and mask decoder, without weights (on the meta device)."""
    encoder = architecture.encoder
    with torch.device("meta"):
        image_encoder = _build_vit(encoder) if isinstance(encoder, ViTShape) else _build_tiny_vit(encoder)
        return image_encoder, _build_prompt_encoder(architecture), _build_decoder(architecture)


def _build_tiny_vit(a: TinyViTShape) -> TinyViT:
    return TinyViT(a.img_size, a.stages, a.expansion, a.mlp_ratio, a.out_chans)


def _build_vit(a: ViTShape) -> ImageEncoderViT:
    return ImageEncoderViT(
        img_size=a.img_size,
        patch_size=a.patch_size,
        embed_dim=a.embed_dim,
        depth=a.depth,
        num_heads=a.num_heads,
        mlp_ratio=(a.mlp_dim + 0.5) / a.embed_dim,  # it is truncated to an int: the half keeps widths such as 115 of 56
        out_chans=a.out_chans,
        qkv_bias=a.qkv_bias,
        norm_layer=partial(nn.LayerNorm, eps=_LAYER_NORM_EPS),
        use_abs_pos=True,  # every SAM has them; a file without them has lost them
        use_rel_pos=True,
        window_size=a.window_size,
        global_attn_indexes=a.global_attn_indexes,
    )


def _build_prompt_encoder(a: Architecture) -> PromptEncoder:
    return PromptEncoder(
        embed_dim=a.encoder.out_chans,
        image_embedding_size=(a.encoder.grid, a.encoder.grid),
        input_image_size=(a.encoder.img_size, a.encoder.img_size),
        mask_in_chans=a.mask_in_chans,
    )


def _build_decoder(a: Architecture) -> MaskDecoder:
    kind = MaskDecoder if a.early_dim is None else partial(HQMaskDecoder, vit_dim=a.early_dim)
    return kind(
        num_multimask_outputs=a.num_mask_tokens - 1,
        transformer=TwoWayTransformer(
            depth=a.decoder_depth,
            embedding_dim=a.encoder.out_chans,
            num_heads=_DECODER_HEADS,
            mlp_dim=a.decoder_mlp_dim,
            attention_downsample_rate=a.decoder_downsample,
        ),
        transformer_dim=a.encoder.out_chans,
        iou_head_depth=a.iou_head_depth,
        iou_head_hidden_dim=a.iou_head_hidden_dim,
    )

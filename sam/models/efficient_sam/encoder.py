"""EfficientSAM's image encoder: a plain ViT, all of whose blocks see the whole image.

After yformer/EfficientSAM's `efficient_sam_encoder.py`, under its names; `FastPlainViT` runs the weights.
"""

import math
from dataclasses import dataclass

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..sam2.predictor import PreparedImage

_EPS = 1e-6


@dataclass(frozen=True)
class PlainViTShape:
    """Lengths in tokens, channels or pixels.

    Attributes:
        width, depth, heads, hidden: of the blocks.
        patch, grid: pixels on a side of a patch, and patches on a side of the image.
        places: of the position table, which has a row for a class token too.
        channels: of the embedding.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    grid: int
    places: int
    channels: int


class PlainViT(nn.Module):
    """Pixels `[B, 3, S, S]`, normalised -> the embedding `[B, C, h, w]`."""

    def __init__(self, shape: PlainViTShape) -> None:
        super().__init__()
        self.grid, self.img_size = shape.grid, shape.grid * shape.patch
        self.patch_embed = _Patches(shape)
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.places, shape.width))
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.depth))
        self.neck = nn.Sequential(
            nn.Conv2d(shape.width, shape.channels, 1, bias=False),
            LayerNorm2d(shape.channels),
            nn.Conv2d(shape.channels, shape.channels, 3, padding=1, bias=False),
            LayerNorm2d(shape.channels),
        )

    def places(self) -> Tensor:
        """The positions of an image's tokens, `[h, w, E]`: the table of the pretraining's small images, enlarged."""
        table = self.pos_embed[:, 1:]
        side = math.isqrt(table.shape[1])
        if side != self.grid:
            table = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            table = F.interpolate(table, (self.grid, self.grid), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
        return table.reshape(self.grid, self.grid, -1).contiguous()

    def forward(self, pixels: Tensor | PreparedImage) -> Tensor | PreparedImage:
        """See the class. What `SamPredictor` hands on is encoded already."""
        if isinstance(pixels, PreparedImage):
            return pixels
        x = self.patch_embed.proj(pixels).permute(0, 2, 3, 1) + self.places()
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.view(len(x), self.grid, self.grid, -1).permute(0, 3, 1, 2))


class _Patches(nn.Module):
    def __init__(self, shape: PlainViTShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, shape.patch, shape.patch)


class _Block(nn.Module):
    def __init__(self, shape: PlainViTShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, _EPS)
        self.attn = _Attention(shape)
        self.norm2 = nn.LayerNorm(shape.width, _EPS)
        self.mlp = _MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class _Attention(nn.Module):
    def __init__(self, shape: PlainViTShape) -> None:
        super().__init__()
        self.num_heads = shape.heads
        self.qkv, self.proj = nn.Linear(shape.width, 3 * shape.width), nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, shape: PlainViTShape) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(shape.width, shape.hidden), nn.Linear(shape.hidden, shape.width)

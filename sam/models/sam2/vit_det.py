"""SAM 3's image encoder: a ViT with windows and rotary positions, and the feature pyramid for clicks.

"SAM 3: Segment Anything with Concepts" (arXiv 2511.16719). The trunk is that of the published model, and of 3.1: a ViTDet
(arXiv 2203.16527) whose attention turns queries and keys by their place in the window. The names are those of Meta's files
inside `trunk.` and `sam2_convs.`. `sam/kernels/vit_det.py` runs the same weights faster.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import SAMError
from .predictor import PreparedImage

LEVELS = 3
"""Maps of the pyramid: four, two and one time the trunk's grid."""
_EPS, _THETA = 1e-6, 10000.0
_ROOT = "image_encoder.trunk."


class ViTDetSize(NamedTuple):
    """What the published model has that no weight's shape tells.

    Attributes:
        heads: attention heads.
        window: tokens on a side of a window; a divisor of `grid`.
        global_blocks: blocks whose attention spans the whole image.
        grid: tokens on a side of the image.
    """

    heads: int
    window: int
    global_blocks: tuple[int, ...]
    grid: int


SIZES: dict[tuple[int, int], ViTDetSize] = {(1024, 32): ViTDetSize(16, 24, (7, 15, 23, 31), 72)}
"""By the trunk's width and its number of blocks."""


@dataclass(frozen=True)
class ViTDetShape:
    """Everything that `ViTDetEncoder` needs.

    Attributes:
        size: what the shapes do not tell.
        width, depth, hidden: of the trunk, its blocks and their MLPs.
        patch: pixels on a side of a token.
        places: rows of the position table: those of the pretraining's smaller image, with one for a class token or without.
        channels: of the feature pyramid.
    """

    size: ViTDetSize
    width: int
    depth: int
    hidden: int
    patch: int
    places: int
    channels: int

    @property
    def side(self) -> int:
        """Pixels on a side of the input."""
        return self.patch * self.size.grid

    @property
    def grid(self) -> int:
        """Tokens on a side of the coarsest map."""
        return self.size.grid


def is_vit_det(names: Mapping[str, object]) -> bool:
    """Whether a state dict's image encoder is SAM 3's."""
    return f"{_ROOT}ln_pre.weight" in names


def read_vit_det(shapes: Mapping[str, torch.Size]) -> ViTDetShape:
    """Detect the image encoder's shape from a state dict's shapes.

    Raises:
        SAMError: a tensor is missing, or has an unknown shape.
    """
    try:
        width, _, patch, _ = shapes[_ROOT + "patch_embed.proj.weight"]
        blocks = [int(match[1]) for name in shapes if (match := re.match(re.escape(_ROOT) + r"blocks\.(\d+)\.", name))]
        if not blocks:
            raise KeyError(f"{_ROOT}blocks.0.*")
        depth = 1 + max(blocks)
        if (width, depth) not in SIZES:
            known = " or ".join(f"{d} blocks of width {w}" for w, d in SIZES)
            raise SAMError(f"this SAM 3 model has {depth} blocks of width {width}, and the published one has {known}.")
        places = shapes[_ROOT + "pos_embed"][1]
        if places - math.isqrt(places) ** 2 not in (0, 1):
            raise ValueError(_ROOT + "pos_embed")
        return ViTDetShape(
            size=SIZES[width, depth],
            width=width,
            depth=depth,
            hidden=shapes[_ROOT + "blocks.0.mlp.fc1.weight"][0],
            patch=patch,
            places=places,
            channels=shapes["image_encoder.neck.convs.0.conv_3x3.weight"][0],
        )
    except SAMError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise SAMError(f"this is not a whole SAM 3 checkpoint: {error} is missing or has an unknown shape.") from error


class ViTDetEncoder(nn.Module):
    """Trunk and neck: pixels `[B, 3, S, S]`, normalised -> the pyramid's maps, finest first.

    They are `[B, C, 4g, 4g]`, `[B, C, 2g, 2g]` and `[B, C, g, g]` for g tokens on a side of the image.
    """

    def __init__(self, shape: ViTDetShape) -> None:
        super().__init__()
        self.shape = shape
        self.trunk = _Trunk(shape)
        self.neck = _Neck(shape)

    @property
    def img_size(self) -> int:
        """Pixels on a side of the square input, by segment_anything's name for it, which its `SamPredictor` reads."""
        return self.shape.side

    def forward(self, pixels: Tensor | PreparedImage) -> list[Tensor] | PreparedImage:
        """The pyramid's maps; see the class. What `SamPredictor` hands on is encoded already."""
        return pixels if isinstance(pixels, PreparedImage) else self.neck(self.trunk(pixels))


class _Trunk(nn.Module):
    """Pixels -> tokens `[B, g, g, E]`."""

    def __init__(self, shape: ViTDetShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = _Patches(shape)
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.places, shape.width))
        self.ln_pre = nn.LayerNorm(shape.width, _EPS)
        self.blocks = nn.ModuleList(_Block(shape, index) for index in range(shape.depth))

    def places(self) -> Tensor:
        """Positions `[g, g, E]`: the table of the pretraining's image, repeated over the larger one."""
        table, grid = self.pos_embed[0], self.shape.grid
        side = math.isqrt(len(table))
        table = table[len(table) - side**2 :].view(side, side, -1)  # without a class token's row
        times = -(-grid // side)
        return table.tile(times, times, 1)[:grid, :grid]

    def rotation(self, window: int) -> Tensor:
        """Cosines and sines by which pairs of a query's values are turned: float32 `[T, d/2, 2]`, T tokens in raster order.

        Half of the pairs turn with the column and half with the row. `window` 0 is the whole image, whose places are scaled so
        that they span those of one window.
        """
        size, half = self.shape.size, self.shape.width // self.shape.size.heads // 2
        side = window or size.grid
        speeds = _THETA ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)
        angles = torch.arange(side, dtype=torch.float32)[:, None] * (size.window / side) * speeds
        columns, rows = angles[None].expand(side, -1, -1), angles[:, None].expand(-1, side, -1)
        angles = torch.cat([columns, rows], -1).flatten(0, 1)
        return torch.stack([angles.cos(), angles.sin()], -1).to(self.pos_embed.device)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.ln_pre(self.patch_embed.proj(pixels).permute(0, 2, 3, 1) + self.places())
        turns = {window: self.rotation(window) for window in {0, self.shape.size.window}}
        for block in self.blocks:
            x = block(x, turns[block.window])
        return x


class _Patches(nn.Module):
    def __init__(self, shape: ViTDetShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, shape.patch, shape.patch, bias=False)


class _Block(nn.Module):
    """Tokens `[B, g, g, E]` -> the same; `window` is 0 where all see all."""

    def __init__(self, shape: ViTDetShape, index: int) -> None:
        super().__init__()
        self.window = 0 if index in shape.size.global_blocks else shape.size.window
        self.norm1 = nn.LayerNorm(shape.width, _EPS)
        self.attn = _Attention(shape)
        self.norm2 = nn.LayerNorm(shape.width, _EPS)
        self.mlp = _MLP(shape)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        count, grid, _, width = x.shape
        window = self.window or grid
        across = grid // window
        windows = self.norm1(x).view(count, across, window, across, window, width).transpose(2, 3)
        mixed = self.attn(windows.reshape(-1, window**2, width), turns)
        x = x + mixed.view(count, across, across, window, window, width).transpose(2, 3).reshape(x.shape)
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class _Attention(nn.Module):
    def __init__(self, shape: ViTDetShape) -> None:
        super().__init__()
        self.heads = shape.size.heads
        self.qkv, self.proj = nn.Linear(shape.width, 3 * shape.width), nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (_turned(part, turns).type_as(v) for part in (q, k))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, shape: ViTDetShape) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(shape.width, shape.hidden), nn.Linear(shape.hidden, shape.width)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Queries or keys `[..., T, d]` with each pair of values turned, in float32."""
    (one, other), (cos, sin) = x.float().unflatten(-1, (-1, 2)).unbind(-1), turns.unbind(-1)
    return torch.stack([one * cos - other * sin, one * sin + other * cos], -1).flatten(-2)


class _Neck(nn.Module):
    """Tokens `[B, g, g, E]` -> maps, finest first."""

    def __init__(self, shape: ViTDetShape) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_Level(shape.width, shape.channels, doublings) for doublings in (2, 1, 0))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.permute(0, 3, 1, 2)
        return [level(x) for level in self.convs]


class _Level(nn.Module):
    """One map, of twice the tokens on a side for each of `doublings`."""

    def __init__(self, width: int, channels: int, doublings: int) -> None:
        super().__init__()
        widths = [width >> index for index in range(doublings + 1)]
        self.names = ([], ["dconv_2x2"], ["dconv_2x2_0", "dconv_2x2_1"])[doublings]
        for name, before, after in zip(self.names, widths, widths[1:], strict=False):
            self.add_module(name, nn.ConvTranspose2d(before, after, 2, 2))
        self.conv_1x1 = nn.Conv2d(widths[-1], channels, 1)
        self.conv_3x3 = nn.Conv2d(channels, channels, 3, padding=1)

    def enlarging(self) -> list[nn.ConvTranspose2d]:
        """The convolutions that double the side, in order; GELU lies between two of them."""
        return [getattr(self, name) for name in self.names]

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.enlarging()):
            x = layer(F.gelu(x) if index else x)
        return self.conv_3x3(self.conv_1x1(x))

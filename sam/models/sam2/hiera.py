"""Hiera with its feature pyramid, SAM 2's image encoder: its sizes, and its weights under Meta's names.

"Hiera" (arXiv 2306.00989) as SAM 2 uses it (arXiv 2408.00714, appendix C.1; facebookresearch/sam2, `hieradet.py` and
`image_encoder.py`): windows of a fixed size in each stage, a few global blocks in the third, queries max-pooled 2x2 where a
stage begins. `sam/kernels/hiera.py` runs the same weights faster.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import SAMError
from .predictor import PreparedImage

PATCH, STRIDE, PADDING = 7, 4, 3  # of the patch embedding, in pixels
_POOL = 2
_EPS = 1e-6
_USED_LEVELS = 3  # the coarsest of the pyramid's four maps only adds to the one above it
_ROOT = "image_encoder.trunk."


class HieraSize(NamedTuple):
    """What a published size has that no weight's shape tells.

    Attributes:
        name: "tiny", "small", "base+" or "large".
        heads: attention heads in the first stage; each later stage doubles them.
        windows: tokens on a side of a window, by stage.
        global_blocks: blocks whose attention spans the whole image.
        side: pixels on a side of the input.
    """

    name: str
    heads: int
    windows: tuple[int, ...]
    global_blocks: tuple[int, ...]
    side: int = 1024


SIZES: dict[tuple[int, int], HieraSize] = {
    (96, 12): HieraSize("tiny", 1, (8, 4, 14, 7), (5, 7, 9)),
    (96, 16): HieraSize("small", 1, (8, 4, 14, 7), (7, 10, 13)),
    (112, 24): HieraSize("base+", 2, (8, 4, 14, 7), (12, 16, 20)),
    (144, 48): HieraSize("large", 2, (8, 4, 16, 8), (23, 33, 43)),
}
"""The published sizes by the trunk's first width and its number of blocks (facebookresearch/sam2, configs/sam2.1/*.yaml)."""


@dataclass(frozen=True)
class BlockShape:
    """One block: widths before and after it, heads, tokens on a side of its windows (0: all), whether queries are pooled."""

    width_in: int
    width: int
    hidden: int
    heads: int
    window: int
    pools: bool


@dataclass(frozen=True)
class HieraShape:
    """Everything that `ImageEncoder` needs; `blocks_per_stage` and the rest of it are read off the weights' shapes.

    Attributes:
        size: what the shapes do not tell.
        blocks: in order.
        stage_ends: index of each stage's last block.
        background: tokens on a side of the coarse position embedding, which is stretched over the image.
        channels: of the feature pyramid.
    """

    size: HieraSize
    blocks: tuple[BlockShape, ...]
    stage_ends: tuple[int, ...]
    background: int
    channels: int

    @property
    def side(self) -> int:
        """Pixels on a side of the input."""
        return self.size.side

    @property
    def grid(self) -> int:
        """Tokens on a side of the main map."""
        return self.grids[_USED_LEVELS - 1]

    @property
    def grids(self) -> tuple[int, ...]:
        """Tokens on a side of the image, by stage."""
        return tuple(self.size.side // STRIDE // _POOL**stage for stage in range(len(self.stage_ends)))


def read_hiera(shapes: Mapping[str, torch.Size]) -> HieraShape:
    """Detect the image encoder's shape from a state dict's shapes, under Meta's names.

    Raises:
        SAMError: its width and number of blocks are not those of a published size, or tensors are missing.
    """
    try:
        width = shapes[_ROOT + "patch_embed.proj.weight"][0]
        blocks = [int(match[1]) for name in shapes if (match := re.match(re.escape(_ROOT) + r"blocks\.(\d+)\.", name))]
        if not blocks:
            raise KeyError(f"{_ROOT}blocks.0.*")
        depth = 1 + max(blocks)
        return _shape_of(shapes, _size_of(width, depth), depth)
    except SAMError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise SAMError(f"this is not a whole SAM 2 checkpoint: {error} is missing or has an unknown shape.") from error


def _size_of(width: int, depth: int) -> HieraSize:
    size = SIZES.get((width, depth))
    if size is None:
        known = ", ".join(f"{w} and {d} ({s.name})" for (w, d), s in SIZES.items())
        raise SAMError(f"this SAM 2 model has {depth} blocks of width {width}: width and blocks must be one of {known}.")
    return size


def _shape_of(shapes: Mapping[str, torch.Size], size: HieraSize, depth: int) -> HieraShape:
    """Stages begin where a block changes the width, which is where it has a projection for the residual."""
    starts = [i for i in range(depth) if i == 0 or f"{_ROOT}blocks.{i}.proj.weight" in shapes]
    if len(starts) != len(size.windows):
        raise SAMError(f"this SAM 2 model has {len(starts)} stages, but a published one has {len(size.windows)}.")
    stage_of = list(accumulate(int(i in starts[1:]) for i in range(depth)))
    blocks = tuple(_block(shapes, size, index, stage, index in starts[1:]) for index, stage in enumerate(stage_of))
    ends = (*(start - 1 for start in starts[1:]), depth - 1)
    neck = shapes["image_encoder.neck.convs.0.conv.weight"]
    return HieraShape(size, blocks, ends, shapes[_ROOT + "pos_embed"][-1], neck[0])


def _block(shapes: Mapping[str, torch.Size], size: HieraSize, index: int, stage: int, pools: bool) -> BlockShape:
    """The block that begins a stage still has the windows of the stage before, which its pooling then halves."""
    root = f"{_ROOT}blocks.{index}."
    window = 0 if index in size.global_blocks else size.windows[stage - pools]
    width, hidden = shapes[root + "attn.proj.weight"][0], shapes[root + "mlp.layers.0.weight"][0]
    return BlockShape(shapes[root + "norm1.weight"][0], width, hidden, size.heads * 2**stage, window, pools)


class ImageEncoder(nn.Module):
    """Trunk and neck: pixels `[B, 3, S, S]`, normalised -> the pyramid's maps, finest first.

    The maps have strides of 4, 8 and 16 pixels: `[B, C, S/4, S/4]`, `[B, C, S/8, S/8]`, `[B, C, S/16, S/16]`.
    """

    def __init__(self, shape: HieraShape) -> None:
        super().__init__()
        self.shape = shape
        self.trunk = Trunk(shape)
        self.neck = Neck([shape.blocks[end].width for end in shape.stage_ends], shape.channels)

    @property
    def img_size(self) -> int:
        """Pixels on a side of the square input, by segment_anything's name for it, which its `SamPredictor` reads."""
        return self.shape.size.side

    def forward(self, pixels: Tensor | PreparedImage) -> list[Tensor] | PreparedImage:
        """The pyramid's maps; see the class. What `SamPredictor` hands on is encoded already."""
        return pixels if isinstance(pixels, PreparedImage) else self.neck(self.trunk(pixels))


class Trunk(nn.Module):
    """Hiera: pixels `[B, 3, S, S]` -> each stage's last tokens `[B, h, w, E]`, finest first."""

    def __init__(self, shape: HieraShape) -> None:
        super().__init__()
        width, window = shape.blocks[0].width_in, shape.size.windows[0]
        self.stage_ends = shape.stage_ends
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, width, shape.background, shape.background))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, width, window, window))
        self.blocks = nn.ModuleList(Block(block) for block in shape.blocks)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Each stage's last tokens; see the class."""
        x = self.patch_embed.proj(pixels).permute(0, 2, 3, 1)
        x = x + self.places(x.shape[1])
        seen = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                seen.append(x)
        return seen

    def places(self, grid: int) -> Tensor:
        """Positions `[1, grid, grid, E]`: a coarse embedding stretched over the image, plus one that repeats in each window."""
        window = self.pos_embed_window.shape[-1]
        coarse = F.interpolate(self.pos_embed, size=(grid, grid), mode="bicubic")
        return (coarse + self.pos_embed_window.tile(1, 1, grid // window, grid // window)).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Overlapping patches, each to a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, STRIDE, PADDING)


class Block(nn.Module):
    """One transformer block: tokens `[B, h, w, E]` -> `[B, h', w', E']`, halved where it begins a stage."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        self.norm1 = nn.LayerNorm(shape.width_in, _EPS)
        self.attn = Attention(shape.width_in, shape.width)
        self.norm2 = nn.LayerNorm(shape.width, _EPS)
        self.mlp = MLP(shape.width, shape.hidden, shape.width, 2)
        if shape.width != shape.width_in:
            self.proj = nn.Linear(shape.width_in, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        normed = self.norm1(x)
        residual = pool(self.proj(normed)) if self.shape.width != self.shape.width_in else x
        x = residual + self._attend(normed, residual.shape[1])
        first, second = self.mlp.layers
        return x + second(F.gelu(first(self.norm2(x))))

    def _attend(self, x: Tensor, grid: int) -> Tensor:
        """Attention in windows, those at the edge padded with zeros: `[B, h, w, E]` -> `[B, grid, grid, E']`."""
        count, side, _, _ = x.shape
        window = self.shape.window or side
        padded = side + -side % window
        x = F.pad(x, (0, 0, 0, padded - side, 0, padded - side))
        across = padded // window
        x = x.view(count, across, window, across, window, -1).transpose(2, 3).reshape(-1, window, window, x.shape[-1])
        x = self.attn(x, self.shape.heads, self.shape.pools)
        window = x.shape[1]
        x = (
            x.view(count, across, across, window, window, -1)
            .transpose(2, 3)
            .reshape(count, across * window, across * window, -1)
        )
        return x[:, :grid, :grid]


class Attention(nn.Module):
    """Attention within windows `[W, n, n, E]` -> `[W, n', n', E']`."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width_in, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, heads: int, pools: bool) -> Tensor:
        """See the class; with `pools`, queries are max-pooled 2x2."""
        q, k, v = self.qkv(x).chunk(3, -1)
        q = pool(q) if pools else q
        mixed = F.scaled_dot_product_attention(*(_by_head(part, heads) for part in (q, k, v)))
        return self.proj(mixed.transpose(1, 2).reshape(q.shape))


def _by_head(x: Tensor, heads: int) -> Tensor:
    """`[W, n, n, E]` -> `[W, heads, n*n, d]`."""
    return x.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)


def pool(x: Tensor) -> Tensor:
    """The largest of each 2x2 tokens: `[B, h, w, E]` -> `[B, h/2, w/2, E]`."""
    count, height, width, channels = x.shape
    return x.view(count, height // _POOL, _POOL, width // _POOL, _POOL, channels).amax((2, 4))


class Neck(nn.Module):
    """The feature pyramid: each stage's tokens to maps of one width, the coarsest added to the one above it."""

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Sequential() for _ in widths)
        for level, width in zip(self.convs, reversed(widths), strict=True):
            level.add_module("conv", nn.Conv2d(width, channels, 1))

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Tokens `[B, h, w, E]` of each stage, finest first -> maps `[B, C, h, w]`, without the coarsest."""
        convs = reversed(self.convs)
        maps = [conv(x.permute(0, 3, 1, 2)) for conv, x in zip(convs, stages, strict=True)]
        maps[-2] = maps[-2] + F.interpolate(maps[-1], scale_factor=2.0, mode="nearest")
        return maps[:_USED_LEVELS]

"""Hiera and its feature pyramid (sam/models/sam2/hiera.py): the same weights and arithmetic, in less time and memory.

None of what differs changes the result but for the order of float32 sums:

- Tokens stay in window order. Pooling 2x2 within windows gives the next stage's windows of half the side, in the same order, so
  windows are never cut out and put back; global blocks have no positions to add, so their order does not matter.
- Up to the third stage all windows lie within those of the first one, so the blocks before it run on some windows at a time,
  from pixels' tokens to the second stage's end, while these stay in the CPU's cache.
- Tokens that pad the image's edge to whole windows are never computed: their keys and values are the bias of the qkv layer.
- The pyramid's 1x1 convolutions and the decoder's on its two finer maps are one product each: the 256 channels between them,
  64 MiB of the finest map, are never written.
- A stage's first block projects residual, queries, keys and values in one product.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import WindowOrder, tokens_at_a_time
from .linear import Linear, LinearKind

_LOCAL_TOKENS = 4096  # of the first stage, at a time, on a CPU


class FastHiera:
    """A plan to run one image encoder on one device in one type.

    Args:
        encoder: `sam.models.sam2.hiera.ImageEncoder`; its weights are used where they are.
        finer: the mask decoder's 1x1 convolutions on the pyramid's finer maps, finest first.
        no_memory: `[C]`, added to the coarsest map: SAM 2's word for an image that is no frame of a video.
        dtype: of products and attention; the residual stream stays float32.
        linear: which linear layers.
    """

    def __init__(
        self, encoder: nn.Module, finer: Sequence[nn.Conv2d], no_memory: Tensor, dtype: torch.dtype, linear: LinearKind
    ) -> None:
        # Parts of the encoder and not itself: the plan is cached for as long as the encoder lives, and must not be the reason.
        shape, trunk = encoder.shape, encoder.trunk
        self.grids, self.stage_ends = shape.grids, shape.stage_ends
        self.steps, self.local = _steps(shape, trunk.blocks, dtype, linear)
        first = WindowOrder(shape.grids[0], shape.size.windows[0])
        self.window, self.device = shape.size.windows[0], trunk.pos_embed.device
        self.order = first.order.to(self.device)
        self.places = trunk.places(shape.grids[0]).reshape(len(self.order), -1)[self.order]
        self.patches, self.dtype = trunk.patch_embed.proj, dtype
        self.levels = pyramid_levels(encoder.neck, finer, no_memory, dtype, linear)
        self.inverses = [self.steps[end].inverse.to(self.device) for end in shape.stage_ends]

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Maps float32 `[B, C, h, w]`, finest first, of normalised pixels float32 `[B, 3, S, S]`."""
        count = len(pixels)
        levels = [
            pixels.new_empty(count * grid**2, width, dtype=self.dtype)
            for grid, (_, width) in zip(self.grids, self.levels, strict=True)
        ]
        x = self._run_local(pixels, levels)
        for index in range(self.local, len(self.steps)):
            x = self._step(index, x, count, levels, slice(None))
        *maps, coarse, coarsest = (self._map(level, stage, count) for stage, level in enumerate(levels))
        coarse += F.interpolate(coarsest, scale_factor=2.0, mode="nearest")
        return [*maps, coarse]

    def _run_local(self, pixels: Tensor, levels: list[Tensor]) -> Tensor:
        """The blocks that see no further than a window of the first stage, on some windows at a time."""
        patches = F.conv2d(pixels, self.patches.weight, self.patches.bias, self.patches.stride, self.patches.padding)
        patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
        tokens = len(self.order) if pixels.device.type != "cpu" else self._local_tokens()
        done = []
        for number, image in enumerate(patches):
            for start in range(0, len(self.order), tokens):
                here = slice(start, start + tokens)
                x = image[self.order[here]] + self.places[here]
                begin = number * len(self.order) + start
                piece = slice(begin, begin + len(x))
                for index in range(self.local):
                    x = self._step(index, x, 1, levels, piece)
                done.append(x)
        return torch.cat(done)

    def _local_tokens(self) -> int:
        return max(1, _LOCAL_TOKENS // self.window**2) * self.window**2

    def _step(self, index: int, x: Tensor, count: int, levels: list[Tensor], here: slice) -> Tensor:
        """One block, and where it ends a stage its level of the pyramid; `here` is the piece in the first stage's tokens."""
        step = self.steps[index]
        if step.reorder is not None:
            x = x.view(count, -1, x.shape[-1])[:, step.reorder.to(x.device)].flatten(0, 1)
        x = step.block(x, count, step.groups if index >= self.local else None)
        if index in self.stage_ends:
            stage = self.stage_ends.index(index)
            scale = 4**stage  # a piece is of whole windows: in a later stage it lies a quarter as far from the start
            part = slice(None) if here == slice(None) else slice(here.start // scale, here.stop // scale)
            self.levels[stage][0].into(x, levels[stage][part])
        return x

    def _map(self, level: Tensor, stage: int, count: int) -> Tensor:
        """Tokens `[B*h*w, C]` in a stage's order -> float32 `[B, C, h, w]`."""
        grid = self.grids[stage]
        tokens = level.view(count, grid**2, -1)[:, self.inverses[stage]]
        return tokens.transpose(1, 2).float().reshape(count, -1, grid, grid)


def lowered_weights(encoder: nn.Module) -> list[Tensor]:
    """The parameters that `FastHiera` only uses in the type that it computes in: those of the blocks' linear layers."""
    found = []
    for block in encoder.trunk.blocks:
        layers = [block.attn.qkv, block.attn.proj, *block.mlp.layers, getattr(block, "proj", None)]
        found += [tensor for layer in layers if layer is not None for tensor in (layer.weight, layer.bias)]
    return [tensor for tensor in found if tensor is not None]


class _Step(NamedTuple):
    """One block and the order of its tokens.

    Attributes:
        block: see `_Block`.
        reorder: indices that bring the tokens into the block's order, or None where they are in it.
        groups: (windows, height, width) of windows of one shape, in order; None for a global block.
        inverse: where in the block's output each raster index is.
    """

    block: "_Block"
    reorder: Tensor | None
    groups: list[tuple[int, int, int]] | None
    inverse: Tensor


def _steps(shape: object, blocks: nn.ModuleList, dtype: torch.dtype, linear: LinearKind) -> tuple[list[_Step], int]:
    """All blocks with their orders, and how many of the first see no further than a window of the first stage."""
    grid, window = shape.grids[0], shape.size.windows[0]
    current, local, steps = WindowOrder(grid, window), len(blocks), []
    for index, (block, known) in enumerate(zip(blocks, shape.blocks, strict=True)):
        reorder = None
        if known.window and known.window != window:
            wanted = WindowOrder(grid, known.window)
            reorder, current, window = current.inverse[wanted.order], wanted, known.window
        if reorder is not None or not known.window:
            local = min(local, index)
        groups = current.groups if known.window else None
        if known.pools:
            grid, window = grid // 2, window // 2
            current = WindowOrder(grid, window)
        steps.append(_Step(_Block(block, known, dtype, linear), reorder, groups, current.inverse))
    return steps, local


def pyramid_levels(
    neck: nn.Module, finer: Sequence[nn.Conv2d], no_memory: Tensor, dtype: torch.dtype, linear: LinearKind
) -> list[tuple[Linear, int]]:
    """For each stage the layer that makes its map of its tokens, and that map's channels.

    Products of weights are folded on the CPU: Apple's GPUs have no float64.
    """
    folded, device = [], no_memory.device
    for stage, level in enumerate(reversed(neck.convs)):
        weight, bias = level.conv.weight.flatten(1).cpu().double(), level.conv.bias.cpu().double()
        if stage < len(finer):
            after = finer[stage].weight.flatten(1).cpu().double()
            weight, bias = after @ weight, after @ bias + finer[stage].bias.cpu()
        elif stage == len(finer):
            bias = bias + no_memory.cpu()
        folded.append((linear(weight.float().to(device), bias.float().to(device), dtype), len(weight)))
    return folded


class _Block:
    """One transformer block's layers in the plan's form."""

    def __init__(self, block: nn.Module, shape: object, dtype: torch.dtype, linear: LinearKind) -> None:
        def layer(*modules: nn.Linear) -> Linear:
            weights, biases = ([getattr(module, name) for module in modules] for name in ("weight", "bias"))
            return linear(*(x[0] if len(x) == 1 else torch.cat(x) for x in (weights, biases)), dtype)

        attn, (first, second) = block.attn, block.mlp.layers
        self.window, self.heads, self.width, self.pools = shape.window, shape.heads, shape.width, shape.pools
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.wide = layer(block.proj, attn.qkv) if self.pools else layer(attn.qkv)
        self.proj, self.lin1, self.lin2 = layer(attn.proj), layer(first), layer(second)
        self.bias, self.dtype = attn.qkv.bias.view(3, self.heads, -1).to(dtype), dtype
        self.hidden = first.out_features

    def __call__(self, x: Tensor, count: int, groups: list[tuple[int, int, int]] | None) -> Tensor:
        """Tokens float32 `[B*T, E]`, changed in place -> `[B*T', E']`; without `groups` all windows are whole."""
        wide = self.wide.plain(self.norm1(x))
        if groups is None:
            side = self.window
            groups = [(len(x) // count // side**2, side, side)] if side else [(1, len(x) // count, 1)]
        if self.pools:
            x = self._pooled(wide[:, : self.width], count, groups).float()
        self.proj.add_to(self._attend(wide[:, -3 * self.width :], count, groups), x)
        for part in x.split(tokens_at_a_time(x, self.hidden, self.dtype)):
            self.lin2.add_to(self.lin1.gelu(self.norm2(part)), part)
        return x

    def _attend(self, qkv: Tensor, count: int, groups: list[tuple[int, int, int]]) -> Tensor:
        """Queries, keys and values `[B*T, 3E]` -> `[B*T', E]`."""
        qkv, found, start = qkv.view(count, -1, 3 * self.width), [], 0
        for windows, height, width in groups:
            here = slice(start, start + windows * height * width)
            q, k, v = qkv[:, here].reshape(-1, height * width, 3, self.heads, self.bias.shape[-1]).permute(2, 0, 3, 1, 4)
            if self.pools:
                q = _pool(q.transpose(1, 2).unflatten(1, (height, width))).flatten(1, 2).transpose(1, 2)
            if self.window and height * width < self.window**2:
                k, v = (self._padded(x, which) for which, x in ((1, k), (2, v)))
            mixed = F.scaled_dot_product_attention(q, k, v)
            found.append(mixed.transpose(1, 2).reshape(count, -1, self.width))
            start = here.stop
        return (found[0] if len(found) == 1 else torch.cat(found, 1)).flatten(0, 1)

    def _padded(self, x: Tensor, which: int) -> Tensor:
        """Keys (1) or values (2) `[W, heads, t, d]` of windows at the edge, with those of the zero tokens there: the bias."""
        missing = self.window**2 - x.shape[2]
        return torch.cat([x, self.bias[which, None, :, None].expand(len(x), -1, missing, -1)], 2)

    def _pooled(self, x: Tensor, count: int, groups: list[tuple[int, int, int]]) -> Tensor:
        """The largest of each 2x2 tokens within windows: `[B*T, E]` -> `[B*T/4, E]`."""
        x, found, start = x.unflatten(0, (count, -1)), [], 0
        for windows, height, width in groups:
            here = slice(start, start + windows * height * width)
            cut = x[:, here].unflatten(1, (windows, height, width)).flatten(0, 1)
            found.append(_pool(cut).reshape(count, -1, self.width))
            start = here.stop
        return torch.cat(found, 1).flatten(0, 1)


def _pool(x: Tensor) -> Tensor:
    """`[W, h, w, ...]` -> `[W, h/2, w/2, ...]`: the largest of each 2x2."""
    top = torch.maximum(x[:, ::2, ::2], x[:, ::2, 1::2])
    return torch.maximum(top, torch.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2]))

"""Hiera and its feature pyramid (sam/models/sam2/hiera.py): the same weights and arithmetic, in less time and memory.

None of what differs changes the result but for the order of float32 sums:

- Tokens stay in window order. Pooling 2x2 within windows gives the next stage's windows of half the side, in the same order, so
  windows are never cut out and put back; global blocks have no positions to add, so their order does not matter.
- Where windows lie within those of the block before, as in the first two stages, all blocks run on some windows at a time
  (workers.py), while these stay in the cache of a core.
- Tokens that pad the image's edge to whole windows are never computed: their keys and values are the bias of the qkv layer.
- The pyramid's 1x1 convolutions and the decoder's on its two finer maps are one product each: the 256 channels between them,
  64 MiB of the finest map, are never written.
- A stage's first block projects residual, queries, keys and values in one product.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attend_at_once
from .encoder import Piece, WindowOrder, pieces_of_windows, run_whole, tokens_at_a_time
from .linear import Linear, LinearKind
from .workers import for_each


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
        self.grids, self.device, self.linear = shape.grids, trunk.pos_embed.device, linear
        steps = _steps(shape, trunk.blocks, dtype, linear, self.device)
        self.runs = _runs(steps)
        self.order = WindowOrder(shape.grids[0], shape.size.windows[0]).order.to(self.device)
        self.places = trunk.places(shape.grids[0]).reshape(len(self.order), -1)[self.order]
        self.patches, self.dtype = trunk.patch_embed.proj, dtype
        self.levels = pyramid_levels(encoder.neck, finer, no_memory, dtype, linear)
        self.inverses = [steps[end].inverse for end in shape.stage_ends]

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Maps float32 `[B, C, h, w]`, finest first, of normalised pixels float32 `[B, 3, S, S]`."""
        count = len(pixels)
        levels = [
            pixels.new_empty(count, grid**2, width, dtype=self.dtype)
            for grid, (_, width) in zip(self.grids, self.levels, strict=True)
        ]
        patches = F.conv2d(pixels, self.patches.weight, self.patches.bias, self.patches.stride, self.patches.padding)
        x = patches.permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # or each selection of rows would copy all of it
        for number, run in enumerate(self.runs):
            if run[0].groups is None and self.device.type == "cpu":
                run_whole(run[0].block, x, self.linear, functools.partial(self._write_level, levels, run[0].level))
            else:
                x = self._run(run, x, levels, self.places if number == 0 else None)
        *maps, coarse, coarsest = (self._map(level, stage, count) for stage, level in enumerate(levels))
        coarse += F.interpolate(coarsest, scale_factor=2.0, mode="nearest")
        return [*maps, coarse]

    def _run(self, run: "list[_Step]", x: Tensor, levels: list[Tensor], places: Tensor | None) -> Tensor:
        """Blocks in which a token needs those of its window only, on some windows at a time: `[B, T, E]` -> `[B, T', E']`.

        Args:
            run: the blocks.
            x: tokens; in the order of the block before, or those of the image's patches in raster order.
            levels: the pyramid's, which the blocks that end a stage write to.
            places: the patches' positions, in the blocks' order; None where `x` is no patches.
        """
        count, tokens, _ = x.shape
        order = self.order if places is not None else run[0].reorder
        pools = sum(step.block.pools for step in run)
        out = x.new_empty(count, tokens >> 2 * pools, run[-1].block.width)

        def work(piece: Piece) -> None:
            """All blocks of the run on some windows."""
            part, groups, here = x[piece.images], piece.groups, piece.tokens
            part = part[:, here].clone() if order is None else part.index_select(1, order[here])
            if places is not None:
                part += places[here]
            images, part = len(part), part.flatten(0, 1)
            for step in run:
                part = step.block(part, images, groups if step.groups is not None else None)
                if step.block.pools:  # a piece is of whole windows: in the next stage it lies a quarter as far from the start
                    groups = [(windows, height // 2, width // 2) for windows, height, width in groups]
                    here = here if here == slice(None) else slice(here.start // 4, here.stop // 4)
                self._write_level(levels, step.level, part, piece._replace(tokens=here))
            out[piece.images, here] = part.view(images, -1, part.shape[1])

        if run[0].groups is None:
            work(Piece(slice(None), slice(None), []))
        else:
            for_each(work, pieces_of_windows(run[0].groups, count, x.shape[2], self.device))
        return out

    def _write_level(self, levels: list[Tensor], level: int | None, x: Tensor, piece: Piece) -> None:
        """A level of the pyramid, of a piece of the tokens that end its stage; nothing where they end none."""
        if level is not None:
            target = levels[level][piece.images, piece.tokens]
            target.copy_(self.levels[level][0].plain(x).view(target.shape))

    def _map(self, level: Tensor, stage: int, count: int) -> Tensor:
        """Tokens `[B, h*w, C]` in a stage's order -> float32 `[B, C, h, w]`."""
        grid = self.grids[stage]
        return level[:, self.inverses[stage]].transpose(1, 2).float().reshape(count, -1, grid, grid)


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
        level: of the pyramid, that is made of its output; None where it ends no stage.
    """

    block: "_Block"
    reorder: Tensor | None
    groups: list[tuple[int, int, int]] | None
    inverse: Tensor
    level: int | None


def _steps(shape: object, blocks: nn.ModuleList, dtype: torch.dtype, linear: LinearKind, device: torch.device) -> list[_Step]:
    """All blocks with their orders."""
    grid, window = shape.grids[0], shape.size.windows[0]
    current, steps = WindowOrder(grid, window), []
    for index, (block, known) in enumerate(zip(blocks, shape.blocks, strict=True)):
        reorder = None
        if known.window and known.window != window:
            wanted = WindowOrder(grid, known.window)
            reorder, current, window = current.inverse[wanted.order].to(device), wanted, known.window
        groups = current.groups if known.window else None
        if known.pools:
            grid, window = grid // 2, window // 2
            current = WindowOrder(grid, window)
        level = shape.stage_ends.index(index) if index in shape.stage_ends else None
        steps.append(_Step(_Block(block, known, dtype, linear), reorder, groups, current.inverse.to(device), level))
    return steps


def _runs(steps: list[_Step]) -> list[list[_Step]]:
    """The blocks that follow each other without a token of another window; a global one is by itself."""
    runs: list[list[_Step]] = []
    for step in steps:
        if not runs or step.groups is None or runs[-1][-1].groups is None or step.reorder is not None:
            runs.append([])
        runs[-1].append(step)
    return runs


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
            """A linear layer in the plan's form."""
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
        """Tokens float32 `[B*T, E]`, changed in place -> `[B*T', E']`; without `groups` each sees all of its image."""
        wide = self.project(x)
        groups = groups or [(1, len(x) // count, 1)]
        if self.pools:
            x = self._pooled(wide[:, : self.width], count, groups).float()
        self.add_back(x, self._attend(wide[:, -3 * self.width :], count, groups))
        return x

    def project(self, x: Tensor, tokens: slice = slice(None)) -> Tensor:
        """The residual of a block that pools, then queries, keys and values, of tokens `[T, E]`."""
        return self.wide.plain(self.norm1(x))

    def add_back(self, x: Tensor, mixed: Tensor) -> None:
        """What attention gave, then the MLP, added to tokens `[T, E]` in place."""
        self.proj.add_to(mixed, x)
        for part in x.split(tokens_at_a_time(x, self.hidden, self.dtype)):
            self.lin2.add_to(self.lin1.gelu(self.norm2(part)), part)

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
            mixed = attend_at_once(q, k, v)
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

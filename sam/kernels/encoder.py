"""ImageEncoderViT.forward with the same weights and the same arithmetic, in less time and memory.

What differs from segment_anything's image_encoder.py, none of it in the result but for the order of float32 sums:

- Tokens lie in window order from the first block to the last: all layers but attention work on single tokens, so windows are
  never cut out and put back; only global blocks take them in raster order.
- The tokens that pad the image's edge to whole windows are never computed: their keys and values are the bias of the qkv
  layer, and their queries are not needed.
- Attention as in attention.py, linear layers as in linear.py.

Only the residual stream, one layer's qkv and its attention are in memory, so the memory beside the weights is a tenth of stock
code's.
"""

import math
import os

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from .attention import BIAS_BYTES, Attend, attend_in_pieces, attend_with_bias, faster_on_gpu, position_table
from .linear import AtenLinear, Linear, LinearKind, cpu_linear
from .plans import Plans

_COMPILE = "SAMKIT_COMPILE"  # environment variable: 1 where hundreds of images are encoded, on CUDA with Triton
_MLP_TOKENS = 1024  # at a time on a CPU; finer pieces make threads wait for each other more often
_HIDDEN_BYTES = 256 << 20  # of the MLP's hidden layer at a time on a GPU, which small pieces leave idle


def supports(encoder: nn.Module) -> bool:
    """Whether this is segment_anything's ViT in a form that the fast forward knows: one window size, whole position tables."""
    if type(encoder) is not ImageEncoderViT or encoder.pos_embed is None:
        return False
    grid = encoder.pos_embed.shape[1]
    sizes = {block.window_size for block in encoder.blocks} - {0}
    return len(sizes) <= 1 and all(
        block.attn.use_rel_pos
        and block.attn.qkv.bias is not None
        and isinstance(block.mlp.act, nn.GELU)
        and len(block.attn.rel_pos_h) == len(block.attn.rel_pos_w) == 2 * (block.window_size or grid) - 1
        for block in encoder.blocks
    )


def lowered_weights(encoder: nn.Module) -> list[Tensor]:
    """The parameters that `FastEncoder` only uses in the type that it computes in; norms and places stay float32."""
    if not supports(encoder):
        return []
    found = [encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, encoder.neck[0].weight]
    for block in encoder.blocks:
        layers = block.attn.qkv, block.attn.proj, block.mlp.lin1, block.mlp.lin2
        found += [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        found += [block.attn.rel_pos_h, block.attn.rel_pos_w]
    return [tensor for tensor in found if tensor is not None]


def working_bytes(encoder: ImageEncoderViT, dtype: torch.dtype) -> tuple[int, int]:
    """About what `FastEncoder` needs on a GPU beside the weights: for any number of images, and for each."""
    _, height, width, channels = encoder.pos_embed.shape
    residual_stream_and_norms, projections_and_windows = 3 * 4, 13 * dtype.itemsize
    tokens = height * width * channels * (residual_stream_and_norms + projections_and_windows)
    return BIAS_BYTES + 2 * _HIDDEN_BYTES, tokens + 3 * 3 * 4 * encoder.img_size**2


def tokens_at_a_time(x: Tensor, hidden: int, dtype: torch.dtype) -> int:
    """How many of the tokens `x` `[T, E]` go through an MLP with a hidden layer of that width at a time."""
    pieces = math.ceil(len(x) / _MLP_TOKENS)
    if not x.is_cpu:
        pieces = math.ceil(len(x) * hidden * dtype.itemsize / _HIDDEN_BYTES)
    return math.ceil(len(x) / max(1, pieces))


class WindowOrder:
    """The order of a grid's tokens in which each window's lie together, whole windows first.

    Args:
        grid: tokens on a side of the image.
        window: tokens on a side of a window.

    Attributes:
        order: raster index of each token, `[grid*grid]`.
        inverse: where in that order each raster index is.
        groups: (windows, height, width) of the windows of one shape, in order.
    """

    def __init__(self, grid: int, window: int) -> None:
        whole, rest = divmod(grid, window)
        index = torch.arange(grid * grid).view(grid, grid)
        spans = [(0, whole, window), (whole * window, 1, rest)] if rest else [(0, whole, window)]
        pieces, self.groups = [], []
        for top, down, height in spans:
            for left, across, width in spans:
                if not down * across:
                    continue
                part = index[top : top + down * height, left : left + across * width]
                pieces.append(part.reshape(down, height, across, width).transpose(1, 2).reshape(-1))
                self.groups.append((down * across, height, width))
        self.order = torch.cat(pieces)
        self.inverse = torch.argsort(self.order)


class FastEncoder:
    """A plan to run one ImageEncoderViT on one device in one type.

    Args:
        encoder: see `supports`; its weights are used where they are.
        dtype: of products and attention.
        linear: which linear layers.
        attend: which attention.
    """

    def __init__(self, encoder: ImageEncoderViT, dtype: torch.dtype, linear: LinearKind, attend: Attend) -> None:
        self.dtype, self.attend, self.attend_globally = dtype, attend, attend
        device = encoder.pos_embed.device
        self.grid = encoder.pos_embed.shape[1]
        self.window = max(block.window_size for block in encoder.blocks) or self.grid
        windows = WindowOrder(self.grid, self.window)
        self.groups, self.order, self.inverse = windows.groups, windows.order.to(device), windows.inverse.to(device)
        self.places = encoder.pos_embed.reshape(self.grid**2, -1)[self.order]
        # Its parts and not the encoder itself: the plan is cached for as long as the encoder lives, and must not be the reason.
        patches, (first, *self.rest_of_neck) = encoder.patch_embed.proj, encoder.neck
        self.patches = linear(patches.weight.flatten(1), patches.bias, dtype)
        self.neck, self.out_chans = linear(first.weight.flatten(1), None, dtype), first.out_channels
        self.blocks = [_Block(block, linear, dtype) for block in encoder.blocks]
        self.hidden = encoder.blocks[0].mlp.lin1.out_features

    def __call__(self, images: Tensor, early: bool = False) -> tuple[Tensor, Tensor | None]:
        """Embeddings float32 `[B, C, h, w]` of images `[B, 3, S, S]`, and the first global block's output `[B, h, w, E]`."""
        count = len(images)
        x = self._embed_patches(images)
        order, inverse = (_for_each(index, count) for index in (self.order, self.inverse))
        qkv, mixed = (x.new_empty(len(x), parts * x.shape[1], dtype=self.dtype) for parts in (3, 1))
        watched = next(index for index, block in enumerate(self.blocks) if not block.window) if early else None
        seen = None
        for index, block in enumerate(self.blocks):
            self._project(block, x, None if block.window else inverse, qkv)
            attend = self._attend_windows if block.window else self._attend_globally
            attend(block, qkv.view(count, self.grid**2, 3, block.heads, -1), mixed.view(count, self.grid**2, block.heads, -1))
            self._add_back(block, mixed, None if block.window else order, x)
            if index == watched:
                seen = x[inverse].view(count, self.grid, self.grid, -1)
        y = x.new_empty(len(x), self.out_chans, dtype=self.dtype)
        self.neck.into(x, y)
        norm, conv, last = self.rest_of_neck
        return last(conv(norm(y[inverse].view(count, self.grid, self.grid, -1).permute(0, 3, 1, 2).float()))), seen

    def _embed_patches(self, images: Tensor) -> Tensor:
        """Patches through the first layer, with their positions: tokens float32 `[B*h*w, E]` in window order."""
        count, channels, side, _ = images.shape
        size = side // self.grid
        cut = images.reshape(count, channels, self.grid, size, self.grid, size).permute(0, 2, 4, 1, 3, 5)
        patches = cut.reshape(count, self.grid**2, -1)[:, self.order].flatten(0, 1)
        x = self.places.repeat(count, 1)
        self.patches.add_to(patches, x)
        return x

    def choose_attention(self, device: torch.device) -> None:
        """Take the fused global attention where it is right and faster; compiling it takes some ten seconds."""
        whole = [block for block in self.blocks if not block.window]
        if whole:
            table, heads = whole[0].table, whole[0].heads
            q = torch.randn(heads, self.grid**2, len(table), device=device, dtype=self.dtype)
            self.attend_globally = faster_on_gpu(q, table, self.grid)

    def _project(self, block: "_Block", x: Tensor, order: Tensor | None, qkv: Tensor) -> None:
        """Queries, keys and values `[B*h*w, 3E]` of the residual stream `x` `[B*h*w, E]`, in another order if one is given."""
        tokens = block.norm1(x)
        block.qkv.into(tokens if order is None else tokens[order], qkv)

    def _add_back(self, block: "_Block", mixed: Tensor, order: Tensor | None, x: Tensor) -> None:
        """What attention gave, then the block's MLP, added to the residual stream in place."""
        block.proj.add_to(mixed if order is None else mixed[order], x)
        for part in x.split(
            tokens_at_a_time(x, self.hidden, self.dtype)
        ):  # the hidden layer is by far the widest thing to hold
            block.lin2.add_to(block.lin1.gelu(block.norm2(part)), part)

    def _attend_globally(self, block: "_Block", qkv: Tensor, mixed: Tensor) -> None:
        """qkv `[B, h*w, 3, heads, d]` -> mixed `[B, h*w, heads, d]`, both in raster order."""
        for image, out in zip(qkv, mixed, strict=True):
            q, k, v = image.permute(1, 2, 0, 3).unbind(0)
            self.attend_globally(q, k, v, block.table, self.grid, out.transpose(0, 1))

    def _attend_windows(self, block: "_Block", qkv: Tensor, mixed: Tensor) -> None:
        """qkv `[B, h*w, 3, heads, d]` -> mixed `[B, h*w, heads, d]`, both in window order."""
        count, _, _, heads, size = qkv.shape
        start = 0
        for windows, height, width in self.groups:
            here = slice(start, start + windows * height * width)
            part = qkv[:, here].reshape(-1, height * width, 3, heads, size)
            q, k, v = part.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
            if height * width < self.window**2:
                k, v = (block.padded(x, which, height, width) for which, x in ((1, k), (2, v)))
            out = torch.empty_like(q)
            self.attend(q, k, v, block.table, width, out)
            mixed[:, here] = out.view(-1, heads, height * width, size).transpose(1, 2).reshape(count, -1, heads, size)
            start = here.stop


class _Block:
    """One transformer block's layers in the plan's form."""

    def __init__(self, block: nn.Module, linear: LinearKind, dtype: torch.dtype) -> None:
        def layer(module: nn.Linear) -> Linear:
            return linear(module.weight, module.bias, dtype)

        attn, mlp = block.attn, block.mlp
        self.window, self.heads = block.window_size, attn.num_heads
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.proj, self.lin1, self.lin2 = (layer(m) for m in (attn.qkv, attn.proj, mlp.lin1, mlp.lin2))
        self.table = position_table(attn.rel_pos_h, attn.rel_pos_w).to(dtype)
        self.bias = attn.qkv.bias.view(3, self.heads, -1).to(dtype)

    def padded(self, x: Tensor, which: int, height: int, width: int) -> Tensor:
        """Keys (1) or values (2) `[W*heads, h*w, d]` of windows at the edge, completed with those of zero tokens: the bias."""
        n, size = self.window, x.shape[-1]
        whole = self.bias[which].repeat(len(x) // self.heads, 1)[:, None, None].repeat(1, n, n, 1)
        whole[:, :height, :width] = x.view(-1, height, width, size)
        return whole.view(-1, n * n, size)


def _for_each(index: Tensor, count: int) -> Tensor:
    """An index within one image's tokens, for `count` images one after the other."""
    return (index + len(index) * torch.arange(count, device=index.device)[:, None]).flatten()


_plans: Plans[FastEncoder] = Plans()


def plan_for(encoder: ImageEncoderViT, device: torch.device, dtype: torch.dtype) -> FastEncoder:
    """The plan for these weights, cached until they change, move or are unloaded.

    Attention is compiled only when that was asked for, and then before the first image: never in the middle of somebody's work.
    """
    kind, attend = (cpu_linear(dtype), attend_in_pieces) if device.type == "cpu" else (AtenLinear, attend_with_bias)

    def make() -> FastEncoder:
        plan = FastEncoder(encoder, dtype, kind, attend)
        if device.type == "cuda" and os.environ.get(_COMPILE) == "1":
            plan.choose_attention(device)
        return plan

    return _plans.get(encoder, (device, dtype, kind), make)

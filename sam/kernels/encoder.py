"""ImageEncoderViT.forward with the same weights and the same arithmetic, in less time and memory.

What differs from segment_anything's image_encoder.py, none of it in the result but for the order of float32 sums:

- Tokens lie in window order from the first block to the last: all layers but attention work on single tokens, so windows are
  never cut out and put back; only global blocks take them in raster order.
- The tokens that pad the image's edge to whole windows are never computed: their keys and values are the bias of the qkv
  layer, and their queries are not needed.
- From one global block's attention to the next one's, a token needs those of its window only: on a CPU each core takes some
  windows through all of that (workers.py), and what they need beside the residual stream stays in its cache.
- Attention as in attention.py, linear layers as in linear.py.

Only the residual stream, a global block's qkv and its attention are in memory as a whole, so the memory beside the weights is a
tenth of stock code's.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from .attention import (
    BIAS_BYTES,
    Attend,
    attend_by_head,
    attend_in_pieces,
    attend_with_bias,
    attend_without_positions,
    faster_on_gpu,
    position_table,
)
from .linear import AtenLinear, Linear, LinearKind, cpu_linear
from .plans import Plans
from .workers import for_each

_COMPILE = "SAMKIT_COMPILE"  # environment variable: 1 where hundreds of images are encoded, on CUDA with Triton
_PIECE_NUMBERS = 600 * 768  # of tokens at most, on a core of a CPU: three windows of 14x14 of ViT-B
_PIECES_PER_THREAD = 4  # at least, where there are as many windows: the last ones leave cores idle
_MLP_TOKENS = 1024  # at most, where they are not in such pieces
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


class Piece(NamedTuple):
    """Tokens that are worked on at a time.

    Attributes:
        images: whose tokens they are.
        tokens: which of an image's.
        groups: (windows, height, width) of their windows of one shape, in order; empty where they are no whole windows.
    """

    images: slice
    tokens: slice
    groups: list[tuple[int, int, int]]


def pieces_of_windows(groups: list[tuple[int, int, int]], count: int, width: int, device: torch.device) -> list[Piece]:
    """All tokens `[B, T, E]` of `count` images in window order, some windows at a time; on a GPU all at once."""
    if device.type != "cpu":
        return [Piece(slice(None), slice(None), groups)]
    pieces, start = [], 0
    tokens = sum(windows * height * width for windows, height, width in groups)
    tokens_at_once = min(_PIECE_NUMBERS // width, tokens * count // (_PIECES_PER_THREAD * torch.get_num_threads()))
    for windows, height, width in groups:
        size = height * width
        at_once = max(1, tokens_at_once // size)
        for first in range(0, windows, at_once):
            some = min(at_once, windows - first)
            here = slice(start + first * size, start + (first + some) * size)
            pieces.append(Piece(slice(None), here, [(some, height, width)]))
        start += windows * size
    return _of_each_image(pieces, count)


def pieces_of_tokens(tokens: int, count: int, width: int, device: torch.device) -> list[Piece]:
    """All of the tokens `[B, T, E]` of `count` images, some at a time; on a GPU all at once."""
    if device.type != "cpu":
        return [Piece(slice(None), slice(None), [])]
    at_once = max(1, min(_PIECE_NUMBERS // width, tokens * count // (_PIECES_PER_THREAD * torch.get_num_threads())))
    starts = range(0, tokens, at_once)
    return _of_each_image([Piece(slice(None), slice(a, min(tokens, a + at_once)), []) for a in starts], count)


def _of_each_image(pieces: list[Piece], count: int) -> list[Piece]:
    return [piece._replace(images=slice(image, image + 1)) for image in range(count) for piece in pieces]


class WholeBlock(Protocol):
    """A transformer block in which every token sees the whole image, in a plan's form, without position terms in its scores."""

    heads: int
    dtype: torch.dtype

    def project(self, x: Tensor, tokens: slice) -> Tensor:
        """Queries, keys and values `[T, 3E]` of tokens `[T, E]`, which are those of an image."""

    def add_back(self, x: Tensor, mixed: Tensor) -> None:
        """What attention gave, then the MLP, added to tokens `[T, E]` in place."""


def run_whole(block: WholeBlock, x: Tensor, linear: LinearKind, then: Callable[[Tensor, Piece], None] | None = None) -> None:
    """One block on the CPU, in place: some tokens at a time, but for attention.

    Args:
        block: which.
        x: the residual stream float32 `[B, T, E]`.
        linear: which linear layers.
        then: is called with the tokens of each piece when they are done, `[t, E]`.
    """
    count, tokens, width = x.shape
    pieces = pieces_of_tokens(tokens, count, width, x.device)
    qkv = x.new_empty(count, 3, block.heads, tokens, width // block.heads, dtype=block.dtype)
    mixed = torch.empty_like(x, dtype=block.dtype)

    def project(piece: Piece) -> None:
        """Queries, keys and values of some tokens."""
        found = block.project(x[piece.images, piece.tokens][0], piece.tokens)
        qkv[piece.images, :, :, piece.tokens] = found.view(1, len(found), 3, block.heads, -1).permute(0, 2, 3, 1, 4)

    def add_back(piece: Piece) -> None:
        """What attention gave some tokens, and the MLP."""
        part = x[piece.images, piece.tokens][0]
        block.add_back(part, mixed[piece.images, piece.tokens][0])
        if then is not None:
            then(part, piece)

    for_each(project, pieces)
    for (q, k, v), out in zip(qkv, mixed, strict=True):
        attend_without_positions(linear, q, k, v, out.unflatten(1, (block.heads, -1)).transpose(0, 1))
    for_each(add_back, pieces)


class FastEncoder:
    """A plan to run one ImageEncoderViT on one device in one type.

    Args:
        encoder: see `supports`; its weights are used where they are.
        dtype: of products and attention.
        linear: which linear layers.
        attend: which attention in windows; on a GPU for the whole image, too.
    """

    def __init__(self, encoder: ImageEncoderViT, dtype: torch.dtype, linear: LinearKind, attend: Attend) -> None:
        self.dtype, self.attend = dtype, attend
        self.attend_globally = functools.partial(attend_by_head, linear) if attend is attend_in_pieces else attend
        device = encoder.pos_embed.device
        self.grid = encoder.pos_embed.shape[1]
        self.window = max(block.window_size for block in encoder.blocks)
        windows = WindowOrder(self.grid, self.window or self.grid)
        self.groups, self.order, self.inverse = windows.groups, windows.order.to(device), windows.inverse.to(device)
        self.places = encoder.pos_embed.reshape(self.grid**2, -1)[self.order]
        # Its parts and not the encoder itself: the plan is cached for as long as the encoder lives, and must not be the reason.
        patches, (first, *self.rest_of_neck) = encoder.patch_embed.proj, encoder.neck
        self.patches = linear(patches.weight.flatten(1), patches.bias, dtype)
        self.neck, self.out_chans = linear(first.weight.flatten(1), None, dtype), first.out_channels
        self.stretches = _stretches([_Block(block, linear, dtype) for block in encoder.blocks])
        self.hidden = encoder.blocks[0].mlp.lin1.out_features

    def __call__(self, images: Tensor, early: bool = False) -> tuple[Tensor, Tensor | None]:
        """Embeddings float32 `[B, C, h, w]` of images `[B, 3, S, S]`, and the first global block's output `[B, h, w, E]`."""
        count, tokens = len(images), self.grid**2
        by_window = pieces_of_windows(self.groups, count, self.places.shape[1], images.device)
        in_raster = pieces_of_tokens(tokens, count, self.places.shape[1], images.device)
        if not self.window:  # a single one, as wide as the image, that no block looks at
            by_window = in_raster
        x = self.places.repeat(count, 1, 1)
        for_each(functools.partial(self._embed_patches, self._cut_patches(images), x), in_raster)
        qkv = mixed = seen = None
        for number, stretch in enumerate(self.stretches):
            if early and number == 1:
                seen = torch.empty_like(x)
            for_each(functools.partial(self._run_stretch, stretch, mixed, x, seen if number == 1 else None), by_window)
            if stretch.whole is not None:
                if qkv is None:
                    qkv = x.new_empty(
                        count, 3, stretch.whole.heads, tokens, x.shape[2] // stretch.whole.heads, dtype=self.dtype
                    )
                    mixed = torch.empty_like(x, dtype=self.dtype)
                for_each(functools.partial(self._project, stretch.whole, x, qkv), in_raster)
                self._attend_globally(stretch.whole, qkv, mixed)
        y = x.new_empty(count, tokens, self.out_chans)
        for_each(functools.partial(self._reduce, x, y), in_raster)
        norm, conv, last = self.rest_of_neck
        found = last(conv(norm(y.view(count, self.grid, self.grid, -1).permute(0, 3, 1, 2))))
        return found, None if seen is None else seen[:, self.inverse].view(count, self.grid, self.grid, -1)

    def _cut_patches(self, images: Tensor) -> Tensor:
        """A view `[B, h, w, 3, s, s]` of images `[B, 3, S, S]`."""
        count, channels, side, _ = images.shape
        size = side // self.grid
        return images.reshape(count, channels, self.grid, size, self.grid, size).permute(0, 2, 4, 1, 3, 5)

    def _embed_patches(self, patches: Tensor, x: Tensor, piece: Piece) -> None:
        """Patches through the first layer, added to their positions: tokens float32 `[B, h*w, E]` in window order."""
        places = self.order[piece.tokens]
        cut = patches[piece.images, places // self.grid, places % self.grid].flatten(0, 1).flatten(1)
        self.patches.add_to(cut, x[piece.images, piece.tokens].flatten(0, 1))

    def choose_attention(self, device: torch.device) -> None:
        """Take the fused global attention where it is right and faster; compiling it takes some ten seconds."""
        whole = next((stretch.whole for stretch in self.stretches if stretch.whole is not None), None)
        if whole is not None:
            q = torch.randn(whole.heads, self.grid**2, len(whole.table), device=device, dtype=self.dtype)
            self.attend_globally = faster_on_gpu(q, whole.table, self.grid)

    def _run_stretch(self, stretch: "_Stretch", mixed: Tensor | None, x: Tensor, seen: Tensor | None, piece: Piece) -> None:
        """One stretch of blocks on some windows of the residual stream `x` `[B, h*w, E]`, in place.

        Args:
            stretch: which.
            mixed: what the attention before it gave, `[B, h*w, E]` in raster order.
            x: in window order.
            seen: where the first global block's output is written to, if that is wanted.
            piece: the windows.
        """
        part = x[piece.images, piece.tokens].flatten(0, 1)
        if stretch.after is not None:
            self._add_back(stretch.after, mixed[piece.images].index_select(1, self.order[piece.tokens]).flatten(0, 1), part)
            if seen is not None:
                seen[piece.images, piece.tokens] = x[piece.images, piece.tokens]
        for block in stretch.blocks:
            self._add_back(block, self._attend_windows(block, part, piece), part)

    def _project(self, block: "_Block", x: Tensor, qkv: Tensor, piece: Piece) -> None:
        """Queries, keys and values `[B, 3, heads, h*w, d]` in raster order, of a piece of it."""
        tokens = x[piece.images].index_select(1, self.inverse[piece.tokens])
        found = block.qkv.plain(block.norm1(tokens.flatten(0, 1))).view(*tokens.shape[:2], 3, block.heads, -1)
        qkv[piece.images, :, :, piece.tokens] = found.permute(0, 2, 3, 1, 4)

    def _add_back(self, block: "_Block", mixed: Tensor, x: Tensor) -> None:
        """What attention gave, then the block's MLP, added to tokens of the residual stream in place."""
        block.proj.add_to(mixed, x)
        for part in x.split(tokens_at_a_time(x, self.hidden, self.dtype)):  # the hidden layer is by far the widest
            block.lin2.add_to(block.lin1.gelu(block.norm2(part)), part)

    def _attend_globally(self, block: "_Block", qkv: Tensor, mixed: Tensor) -> None:
        """qkv `[B, 3, heads, h*w, d]` -> mixed `[B, h*w, E]`, both in raster order."""
        for (q, k, v), out in zip(qkv, mixed, strict=True):
            self.attend_globally(q, k, v, block.table, self.grid, out.unflatten(1, (block.heads, -1)).transpose(0, 1))

    def _attend_windows(self, block: "_Block", x: Tensor, piece: Piece) -> Tensor:
        """What attention gives tokens `[B*t, E]` of whole windows: the same shape."""
        windows_of_all = sum(windows * height * width for windows, height, width in piece.groups)
        qkv = block.qkv.plain(block.norm1(x)).view(-1, windows_of_all, 3, block.heads, x.shape[1] // block.heads)
        mixed, start = torch.empty_like(qkv[:, :, 0]), 0
        count, _, heads, size = mixed.shape
        for windows, height, width in piece.groups:
            here = slice(start, start + windows * height * width)
            part = qkv[:, here].reshape(-1, height * width, 3, heads, size)
            q, k, v = part.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
            if height * width < self.window**2:
                k, v = (block.padded(x, which, height, width) for which, x in ((1, k), (2, v)))
            out = torch.empty_like(q)
            self.attend(q, k, v, block.table, width, out)
            mixed[:, here] = out.view(-1, heads, height * width, size).transpose(1, 2).reshape(count, -1, heads, size)
            start = here.stop
        return mixed.view(x.shape)

    def _reduce(self, x: Tensor, y: Tensor, piece: Piece) -> None:
        """The neck's first layer on a piece of the residual stream: float32 `[B, h*w, C]` in raster order."""
        tokens = x[piece.images].index_select(1, self.inverse[piece.tokens])
        y[piece.images, piece.tokens] = self.neck.plain(tokens.flatten(0, 1)).view(*tokens.shape[:2], -1).float()


class _Stretch(NamedTuple):
    """Blocks between the attention of a global block and that of the next one: a token needs those of its window only.

    Attributes:
        after: the global block of which this begins with all that comes after its attention.
        blocks: those with windows.
        whole: the global block that follows.
    """

    after: "_Block | None"
    blocks: "list[_Block]"
    whole: "_Block | None"


def _stretches(blocks: "list[_Block]") -> list[_Stretch]:
    found, after, between = [], None, []
    for block in blocks:
        if block.window:
            between.append(block)
        else:
            found.append(_Stretch(after, between, block))
            after, between = block, []
    return [*found, _Stretch(after, between, None)]


class _Block:
    """One transformer block's layers in the plan's form."""

    def __init__(self, block: nn.Module, linear: LinearKind, dtype: torch.dtype) -> None:
        def layer(module: nn.Linear) -> Linear:
            """A linear layer in the plan's form."""
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


_plans: Plans[FastEncoder] = Plans()


def plan_for(encoder: ImageEncoderViT, device: torch.device, dtype: torch.dtype) -> FastEncoder:
    """The plan for these weights, cached until they change, move or are unloaded.

    Attention is compiled only when that was asked for, and then before the first image: never in the middle of somebody's work.
    """
    kind, attend = (cpu_linear(dtype), attend_in_pieces) if device.type == "cpu" else (AtenLinear, attend_with_bias)

    def make() -> FastEncoder:
        """The plan; where attention may be compiled, it is chosen now."""
        plan = FastEncoder(encoder, dtype, kind, attend)
        if device.type == "cuda" and os.environ.get(_COMPILE) == "1":
            plan.choose_attention(device)
        return plan

    return _plans.get(encoder, (device, dtype, kind), make)

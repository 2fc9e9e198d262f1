"""TinyViT (sam/models/tiny_vit.py) on a CPU: the same weights and arithmetic, in less time and memory.

None of what differs changes the result but for the order of float32 sums:

- Maps are channels last from the first layer to the last: 1x1 convolutions are products of tokens, depthwise ones run in the
  form that is fastest, and nothing is transposed between convolutions, attention and MLP.
- The convolutional blocks and patch mergings run on some rows of the image at a time, with the rows beside them that a 3x3
  kernel sees: the hidden layer, four times as wide as the map, is never written to memory.
- Strips, and rows of windows, are worked on by one core each (workers.py).
- A head's queries, keys and values come from the tokens' order into windows by one selection of rows. The tokens that pad the
  image to whole windows are never computed: all of them are the same row, the layers' answer to zeros.
- Bias matrices are built once, GELU and sums are part of the layers (linear.py, convolution.py).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import ConvolutionKind
from .linear import LinearKind
from .workers import for_each

_STRIP_BYTES = 4 << 20  # of a hidden layer at a time
_SCORE_BYTES = 2 << 20  # of attention at a time
_MLP_TOKENS = 1024  # at a time
_STRIPS_PER_THREAD = 3  # at least: the last ones leave cores idle


class FastTinyViT:
    """A plan to run one encoder on the CPU in one type.

    Args:
        encoder: `sam.models.tiny_vit.TinyViT`.
        dtype: of everything but norms' statistics.
        linear: which linear layers.
        convolution: which convolutions.
        watched: the stage whose output is wanted as early features.
    """

    def __init__(
        self, encoder: nn.Module, dtype: torch.dtype, linear: LinearKind, convolution: ConvolutionKind, watched: int
    ) -> None:
        # Parts of the encoder and not itself: the plan is cached for as long as the encoder lives, and must not be the reason.
        first, _, second = encoder.patch_embed.seq
        self.stem = [convolution(part.c.weight, part.c.bias, 2, 1, dtype) for part in (first, second)]
        self.stages = [_stage(layer, dtype, linear, convolution) for layer in encoder.layers]
        point, self.norm1, full, self.norm2 = encoder.neck
        self.point = linear(point.weight.flatten(1), None, dtype)
        self.full = convolution(full.weight, None, 1, 1, dtype)
        self.dtype, self.watched, self.widths = dtype, watched, (first.c.out_channels, second.c.out_channels)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings float32 `[B, C, h, w]` of images `[B, 3, S, S]`, and the early features float32 `[B, h', w', E]`."""
        x = self._embed_patches(images)
        for index, stage in enumerate(self.stages):
            for run in stage:
                x = run(x)
            if index == self.watched:
                early = x.to(torch.float32, copy=True)
        shape = x.shape[:3]
        x = self.point.plain(x.flatten(0, 2)).unflatten(0, shape)
        x = self.full.plain(_norm(x.float(), self.norm1))
        return _norm(x.float(), self.norm2).permute(0, 3, 1, 2).contiguous(), early

    def _embed_patches(self, images: Tensor) -> Tensor:
        """`[B, S/4, S/4, C]`: two convolutions of stride 2 with GELU between them."""
        first, second = self.stem
        count, _, height, width = images.shape
        out = images.new_empty(count, height // 4, width // 4, self.widths[1], dtype=self.dtype)
        rows = max(1, _STRIP_BYTES // (2 * width * self.widths[0] * self.dtype.itemsize))
        images = images.to(self.dtype)

        def embed(piece: tuple[int, slice]) -> None:
            """The first two convolutions on a strip of one image."""
            number, strip = piece
            # With a row more above, whose own result sees the edge of the cut and is left out.
            above = max(0, strip.start - 1)
            hidden = first.gelu(images[number, None, :, 4 * above : 4 * strip.stop].permute(0, 2, 3, 1))
            out[number, strip] = second.plain(hidden)[0, strip.start - above :]

        for_each(embed, _strips(*out.shape[:2], rows))
        return out


def _strips(images: int, rows: int, at_once: int, unit: int = 1) -> list[tuple[int, slice]]:
    """Some rows of an image at a time, in whole units of rows: at least a few for each thread, as far as there are as many."""
    units = -(-images * rows // unit)
    size = unit * max(1, min(at_once // unit, units // (_STRIPS_PER_THREAD * torch.get_num_threads())))
    return [(image, slice(start, min(rows, start + size))) for image in range(images) for start in range(0, rows, size)]


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    """segment_anything's `LayerNorm2d` where the channels come last."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _stage(
    layer: nn.Module, dtype: torch.dtype, linear: LinearKind, convolution: ConvolutionKind
) -> "list[_Block | _Inverted]":
    """The blocks of a stage, and the patch merging at its end."""
    kinds = dtype, linear, convolution
    stage = [_Block(one, *kinds) if hasattr(one, "attn") else _Inverted(one, True, *kinds) for one in layer.blocks]
    return stage if isinstance(layer.downsample, nn.Identity) else [*stage, _Inverted(layer.downsample, False, *kinds)]


class _Inverted:
    """1x1, depthwise and 1x1 convolution on `[B, H, W, C]`: a block of the first stage, or a patch merging.

    Args:
        block: with `conv1`, `conv2`, `conv3`.
        is_residual: whether the input is added, and GELU follows.
    """

    def __init__(
        self, block: nn.Module, is_residual: bool, dtype: torch.dtype, linear: LinearKind, convolution: ConvolutionKind
    ) -> None:
        first, between, last = block.conv1.c, block.conv2.c, block.conv3.c
        self.first, self.last = (linear(one.weight.flatten(1), one.bias, dtype) for one in (first, last))
        self.between = convolution(between.weight, between.bias, between.stride[0], between.groups, dtype)
        self.stride, self.hidden, self.width = between.stride[0], between.out_channels, last.out_channels
        self.is_residual, self.dtype = is_residual, dtype

    def __call__(self, x: Tensor) -> Tensor:
        count, height, width, _ = x.shape
        step = self.stride
        out = x.new_empty(count, (height - 1) // step + 1, (width - 1) // step + 1, self.width)
        rows = max(1, _STRIP_BYTES // (step * width * self.hidden * self.dtype.itemsize))

        def run(piece: tuple[int, slice]) -> None:
            """The block on a strip of one image."""
            number, strip = piece
            # With a row more on each side, whose own results see the edge of the cut and are left out.
            above, below = max(0, strip.start - 1), min(out.shape[1], strip.stop + 1)
            part = x[number, above * step : below * step]
            hidden = self.first.gelu(part.flatten(0, 1)).view(1, *part.shape[:2], self.hidden)
            seen = self.between.gelu(hidden)[0, strip.start - above :][: strip.stop - strip.start].flatten(0, 1)
            to = out[number, strip].flatten(0, 1)
            if self.is_residual:
                torch.ops.aten.gelu.out(self.last.plus(seen, x[number, strip].flatten(0, 1)), out=to)
            else:
                self.last.into(seen, to)

        for_each(run, _strips(*out.shape[:2], rows))
        return out


class _Block:
    """Attention in windows, a depthwise convolution, an MLP; on `[B, H, W, C]`."""

    def __init__(self, block: nn.Module, dtype: torch.dtype, linear: LinearKind, convolution: ConvolutionKind) -> None:
        attn, mlp, local = block.attn, block.mlp, block.local_conv.c
        self.qkv, self.proj, self.lin1, self.lin2 = (
            linear(m.weight, m.bias, dtype) for m in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2)
        )
        self.norm1, self.norm2 = attn.norm, mlp.norm
        self.local = convolution(local.weight, local.bias, 1, local.groups, dtype)
        self.heads, self.window, self.hidden, self.dtype = attn.heads, attn.window, mlp.fc1.out_features, dtype
        self.bias = attn.bias().to(dtype)
        self.nothing = self.qkv.plain(attn.norm.bias[None].to(dtype))
        self.places: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """In place."""
        count, height, width, _ = x.shape
        across = -(-width // self.window)
        windows = max(1, _SCORE_BYTES // (across * self.heads * self.window**4 * self.dtype.itemsize))
        made = torch.empty_like(x)

        def attend(piece: tuple[int, slice, slice]) -> None:
            """Attention in some windows."""
            part = x[piece]
            tokens = part.reshape(-1, part.shape[-1])
            mixed = self._attend(part.shape[:2], self._normed(tokens, self.norm1))
            made[piece] = self.proj.plus(mixed, tokens).view(part.shape)

        def add(piece: tuple[int, slice]) -> None:
            """What follows attention, on a strip of one image."""
            number, strip = piece
            above, below = max(0, strip.start - 1), min(height, strip.stop + 1)
            seen = self.local.plain(made[number, None, above:below])[0, strip.start - above :][: strip.stop - strip.start]
            tokens = seen.flatten(0, 1)
            x[piece] = self.lin2.plus(self.lin1.gelu(self._normed(tokens, self.norm2)), tokens).view(seen.shape)

        strips = _strips(count, height, windows * self.window, self.window)
        # A few rows of windows would leave cores idle: each is cut into some windows.
        cuts = min(across, -(-_STRIPS_PER_THREAD * torch.get_num_threads() // len(strips)))
        wide = -(-across // cuts) * self.window
        columns = [slice(start, min(width, start + wide)) for start in range(0, width, wide)]
        for_each(attend, [(*strip, part) for strip in strips for part in columns])
        for_each(add, _strips(count, height, max(1, _MLP_TOKENS // width)))
        return x

    def _normed(self, tokens: Tensor, norm: nn.LayerNorm) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], norm.weight.to(self.dtype), norm.bias.to(self.dtype), norm.eps)

    def _attend(self, size: tuple[int, int], tokens: Tensor) -> Tensor:
        """Normed tokens `[H*W, C]` of some rows of windows -> what attention gives them, before the last layer."""
        heads, n, width = self.heads, self.window**2, tokens.shape[1] // self.heads
        to_windows, padding, nothing, to_tokens = self._places(size)
        qkv = self.qkv.plain(tokens).view(-1, 3 * width).index_select(0, to_windows)
        qkv.index_copy_(0, padding, nothing)
        q, k, v = qkv.view(-1, n, 3 * width).split(width, -1)
        mixed = torch.empty(q.shape, dtype=q.dtype)
        at_once = heads * max(1, _SCORE_BYTES // (heads * n * n * self.dtype.itemsize))
        scores = torch.empty(min(at_once, len(q)), n, n, dtype=q.dtype)
        for start in range(0, len(q), at_once):
            part = slice(start, start + at_once)
            some = scores[: len(q[part])]
            some.view(-1, heads, n, n).copy_(self.bias)
            some.baddbmm_(q[part], k[part].transpose(1, 2), alpha=width**-0.5)
            torch.bmm(torch.softmax(some, -1, out=some), v[part], out=mixed[part])
        return mixed.view(-1, width).index_select(0, to_tokens).view(tokens.shape)

    def _places(self, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Of maps (H, W): the row of each (window, head, token of it), those that pad the image and what is in them, and where
        each (token, head) is among all of these."""
        if size not in self.places:
            height, width = size
            n, heads, count = self.window, torch.arange(self.heads), height * width
            index = torch.full((-(-height // n) * n, -(-width // n) * n), count)  # behind the last row: what pads the image
            index[:height, :width] = torch.arange(count).view(size)
            windows = index.view(index.shape[0] // n, n, -1, n).transpose(1, 2).reshape(-1, 1, n * n)
            to_windows = (windows * self.heads + heads[:, None]).flatten()
            to_tokens = torch.empty((count + 1) * self.heads, dtype=torch.long)
            to_tokens[to_windows] = torch.arange(len(to_windows))
            (padding,) = torch.nonzero(to_windows >= count * self.heads, as_tuple=True)
            nothing = self.nothing.view(self.heads, -1)[to_windows[padding] - count * self.heads]
            to_windows[padding] = 0  # any row
            self.places[size] = to_windows, padding, nothing, to_tokens[: count * self.heads].clone()
        return self.places[size]

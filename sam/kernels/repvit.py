"""RepViT and a feature pyramid (sam/models/sam2/repvit.py): the same weights and arithmetic, in less time and memory.

None of what differs changes the result but for the order of float32 sums:

- Images lie with their channels innermost: 1x1 convolutions are linear layers (linear.py) on tokens without a copy, and add to
  the residual stream in place; depthwise ones run in the form that is fastest (convolution.py).
- On a CPU, a block runs on some rows of the image at a time, with the rows beside them that a 3x3 kernel sees, by one core each
  (workers.py): what lies between its convolutions is never written to memory. Where a block weighs its channels by their means
  over the image, these are taken between two such passes.
- The pyramid's 1x1 convolutions and the decoder's on its two finer maps are one product each, as for Hiera.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import AtenConvolution, Convolution, ConvolutionKind, cpu_convolution
from .hiera import pyramid_levels
from .linear import Linear, LinearKind
from .workers import for_each

_STRIP_BYTES = 4 << 20  # of a hidden layer at a time
_STRIPS_PER_THREAD = 2  # at least: the last ones leave cores idle

Strip: TypeAlias = tuple[slice, slice]
"""Images, and rows of them."""


class FastRepViT:
    """A plan to run one image encoder on one device in one type.

    Args:
        encoder: `RepViTEncoder`; its weights are used where they are, or packed.
        finer: the mask decoder's 1x1 convolutions on the pyramid's finer maps, finest first.
        no_memory: `[C]`, added to the coarsest map.
        dtype: of products; the residual stream and the other convolutions stay float32.
        linear: which linear layers.
    """

    def __init__(
        self, encoder: nn.Module, finer: Sequence[nn.Conv2d], no_memory: Tensor, dtype: torch.dtype, linear: LinearKind
    ) -> None:
        # Parts of the encoder and not itself: the plan is cached for as long as the encoder lives, and must not be the reason.
        trunk = encoder.trunk
        kind: ConvolutionKind = cpu_convolution(torch.float32) if no_memory.is_cpu else AtenConvolution
        self.stem = [_convolution(part, kind) for part in (trunk.stem.conv1, trunk.stem.conv2)]
        self.widths = trunk.stem.conv1.out_channels, trunk.stem.conv2.out_channels
        self.stages = [_stage(stage, dtype, linear, kind) for stage in trunk.stages]
        self.levels = pyramid_levels(encoder.neck, finer, no_memory, dtype, linear)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Maps float32 `[B, C, h, w]`, finest first, of normalised pixels float32 `[B, 3, S, S]`."""
        x, maps = self._embed_patches(pixels.permute(0, 2, 3, 1)), []
        for stage, (level, channels) in zip(self.stages, self.levels, strict=True):
            for run in stage:
                x = run(x)
            maps.append(_level(x, level, channels))
        *finer, coarse, coarsest = (one.permute(0, 3, 1, 2).contiguous() for one in maps)
        return [*finer, coarse + F.interpolate(coarsest, scale_factor=2.0, mode="nearest")]

    def _embed_patches(self, images: Tensor) -> Tensor:
        """`[B, S/4, S/4, C]` of images `[B, S, S, 3]`: two convolutions of stride 2 with GELU between them."""
        first, second = self.stem
        count, height, width, _ = images.shape
        out = images.new_empty(count, height // 4, width // 4, self.widths[1], dtype=torch.float32)

        def embed(strip: Strip) -> None:
            """Both on a strip, with a row more above, whose own result sees the edge of the cut and is left out."""
            some, rows = strip
            above = max(0, rows.start - 1)
            hidden = first.gelu(images[some, 4 * above : 4 * rows.stop])
            out[strip] = second.plain(hidden)[:, rows.start - above :]

        _on_strips(embed, out, 2 * width * self.widths[0])
        return out


def lowered_weights(encoder: nn.Module) -> list[Tensor]:
    """The parameters that `FastRepViT` only uses in the type that it computes in: of the 1x1 convolutions in its blocks."""
    layers = []
    for stage in encoder.trunk.stages:
        blocks, down = list(stage.blocks), stage.downsample
        if down is not None:
            blocks.append(down.pre_block)
            layers += [down.channel_downsample, down.ffn.conv1, down.ffn.conv2]
        layers += [layer for block in blocks for layer in (block.channel_mixer.conv1, block.channel_mixer.conv2)]
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias)]


def _on_strips(work: Callable[[Strip], None], out: Tensor, numbers: int) -> None:
    """Do some work for strips of a map `[B, H, W, C]`, a row of which needs so many numbers; on a GPU for all of it at once."""
    count, rows = out.shape[:2]
    if not out.is_cpu:
        work((slice(0, count), slice(0, rows)))
        return
    most = count * rows // (_STRIPS_PER_THREAD * torch.get_num_threads())
    size = max(1, min(_STRIP_BYTES // (numbers * out.itemsize), most))
    starts = [(image, start) for image in range(count) for start in range(0, rows, size)]
    for_each(work, [(slice(image, image + 1), slice(start, min(rows, start + size))) for image, start in starts])


def _level(x: Tensor, layer: Linear, channels: int) -> Tensor:
    """A level of the pyramid, float32 `[B, H, W, C]`."""
    out = x.new_empty(*x.shape[:3], channels)

    def make(strip: Strip) -> None:
        """Some rows of it."""
        part = x[strip]
        out[strip] = layer.plain(part.flatten(0, 2)).view(*part.shape[:3], channels)

    _on_strips(make, out, x.shape[2] * channels)
    return out


class _Mlp:
    def __init__(self, mixer: nn.Module, dtype: torch.dtype, linear: LinearKind) -> None:
        self.first, self.second = _pointwise(mixer.conv1, dtype, linear), _pointwise(mixer.conv2, dtype, linear)
        self.hidden = mixer.conv1.out_channels

    def add_to(self, x: Tensor) -> None:
        """Add it to a map float32 `[B, H, W, C]`, contiguous, in place."""
        tokens = x.view(-1, x.shape[-1])
        self.second.add_to(self.first.gelu(tokens), tokens)


class _Block:
    """A depthwise convolution, channels weighed by their means or not, and an MLP."""

    def __init__(self, block: nn.Module, dtype: torch.dtype, linear: LinearKind, kind: ConvolutionKind) -> None:
        self.mixer, self.excite = _convolution(block.token_mixer, kind), block.se
        self.mlp = _Mlp(block.channel_mixer, dtype, linear)

    def __call__(self, x: Tensor) -> Tensor:
        out, sums = torch.empty_like(x), {}

        def mix(strip: Strip) -> None:
            """The convolution on a strip, and what follows, where it needs no more than that."""
            some, rows = strip
            above, below = max(0, rows.start - 1), min(x.shape[1], rows.stop + 1)
            mixed = self.mixer.plain(x[some, above:below])[:, rows.start - above :][:, : rows.stop - rows.start]
            mixed = mixed.float().contiguous()
            if self.excite is None:
                self.mlp.add_to(mixed)
            else:
                sums[some.start, rows.start] = mixed.mean((1, 2)) * (rows.stop - rows.start)
            out[strip] = mixed

        def finish(strip: Strip) -> None:
            """The MLP on a strip, whose channels are weighed."""
            part = out[strip]
            part *= gate[strip[0]]
            self.mlp.add_to(part)

        numbers = x.shape[2] * self.mlp.hidden
        _on_strips(mix, out, numbers)
        if self.excite is not None:
            means = torch.zeros_like(x[:, 0, 0])
            for (first, _), values in sorted(sums.items()):
                means[first : first + len(values)] += values / x.shape[1]
            gate = self.excite.gate(means[..., None, None])[:, None, None, :, 0, 0]
            _on_strips(finish, out, numbers)
        return out


class _Downsample:
    """A depthwise convolution of stride 2, a wider map, and an MLP."""

    def __init__(self, down: nn.Module, dtype: torch.dtype, linear: LinearKind, kind: ConvolutionKind) -> None:
        self.spatial, self.widen = (
            _convolution(down.spatial_downsample, kind),
            _pointwise(down.channel_downsample, dtype, linear),
        )
        self.mlp, self.width = _Mlp(down.ffn, dtype, linear), down.channel_downsample.out_channels

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), (x.shape[1] - 1) // 2 + 1, (x.shape[2] - 1) // 2 + 1, self.width)

        def run(strip: Strip) -> None:
            """All of it on a strip."""
            some, rows = strip
            above = max(0, rows.start - 1)
            seen = self.spatial.plain(x[some, 2 * above : 2 * rows.stop])[:, rows.start - above :]
            wide = self.widen.plain(seen.flatten(0, 2)).float().view(*seen.shape[:3], self.width)
            self.mlp.add_to(wide)
            out[strip] = wide

        _on_strips(run, out, out.shape[2] * self.mlp.hidden)
        return out


def _stage(stage: nn.Module, dtype: torch.dtype, linear: LinearKind, kind: ConvolutionKind) -> "list[_Block | _Downsample]":
    down, steps = stage.downsample, []
    if down is not None:
        steps = [_Block(down.pre_block, dtype, linear, kind), _Downsample(down, dtype, linear, kind)]
    return [*steps, *(_Block(block, dtype, linear, kind) for block in stage.blocks)]


def _pointwise(convolution: nn.Conv2d, dtype: torch.dtype, linear: LinearKind) -> Linear:
    return linear(convolution.weight.flatten(1), convolution.bias, dtype)


def _convolution(layer: nn.Conv2d, kind: ConvolutionKind) -> Convolution:
    return kind(layer.weight, layer.bias, layer.stride[0], layer.groups, torch.float32)

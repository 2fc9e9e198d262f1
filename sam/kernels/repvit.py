"""RepViT and a feature pyramid (sam/models/sam2/repvit.py): the same weights and arithmetic, in less time and memory.

None of what differs changes the result but for the order of float32 sums:

- Images lie with their channels innermost, so 1x1 convolutions are linear layers (linear.py) on tokens without a copy, and add
  to the residual stream in place; the hidden layer is in memory for some tokens at a time.
- The pyramid's 1x1 convolutions and the decoder's on its two finer maps are one product each, as for Hiera.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import tokens_at_a_time
from .hiera import pyramid_levels
from .linear import Linear, LinearKind


class FastRepViT:
    """A plan to run one image encoder on one device in one type.

    Args:
        encoder: `RepViTEncoder`; its weights are used where they are.
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
        self.stem = (trunk.stem.conv1, trunk.stem.conv2)
        self.stages = [_Stage(stage, dtype, linear) for stage in trunk.stages]
        self.levels = pyramid_levels(encoder.neck, finer, no_memory, dtype, linear)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Maps float32 `[B, C, h, w]`, finest first, of normalised pixels float32 `[B, 3, S, S]`."""
        first, second = self.stem
        x = second(F.gelu(first(pixels.contiguous(memory_format=torch.channels_last))))
        maps = []
        for stage, (level, _) in zip(self.stages, self.levels, strict=True):
            x = stage(x.contiguous(memory_format=torch.channels_last))
            values = level.plain(_tokens(x)).view(len(x), *x.shape[2:], -1)
            maps.append(values.permute(0, 3, 1, 2).float().contiguous())
        *finer, coarse, coarsest = maps
        return [*finer, coarse + F.interpolate(coarsest, scale_factor=2.0, mode="nearest")]


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


def _tokens(x: Tensor) -> Tensor:
    """An image with its channels innermost, `[B, C, h, w]`, as tokens `[B*h*w, C]` on the same memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class _Mlp:
    def __init__(self, mixer: nn.Module, dtype: torch.dtype, linear: LinearKind) -> None:
        self.first, self.second = _pointwise(mixer.conv1, dtype, linear), _pointwise(mixer.conv2, dtype, linear)
        self.hidden, self.dtype = mixer.conv1.out_channels, dtype

    def add_to(self, x: Tensor) -> None:
        """Add it to an image with its channels innermost, in place."""
        tokens = _tokens(x)
        for part in tokens.split(tokens_at_a_time(tokens, self.hidden, self.dtype)):
            self.second.add_to(self.first.gelu(part), part)


class _Block:
    def __init__(self, block: nn.Module, dtype: torch.dtype, linear: LinearKind) -> None:
        self.mixer, self.excite, self.mlp = block.token_mixer, block.se, _Mlp(block.channel_mixer, dtype, linear)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.mixer(x).contiguous(memory_format=torch.channels_last)
        if self.excite is not None:
            x *= self.excite.gate(x)
        self.mlp.add_to(x)
        return x


class _Stage:
    def __init__(self, stage: nn.Module, dtype: torch.dtype, linear: LinearKind) -> None:
        down, self.before = stage.downsample, None
        if down is not None:
            self.before, self.spatial = _Block(down.pre_block, dtype, linear), down.spatial_downsample
            self.widen, self.mlp = _pointwise(down.channel_downsample, dtype, linear), _Mlp(down.ffn, dtype, linear)
        self.blocks = [_Block(block, dtype, linear) for block in stage.blocks]

    def __call__(self, x: Tensor) -> Tensor:
        if self.before is not None:
            x = self.spatial(self.before(x)).contiguous(memory_format=torch.channels_last)
            wide = self.widen.plain(_tokens(x)).float()
            x = wide.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
            self.mlp.add_to(x)
        for block in self.blocks:
            x = block(x)
        return x


def _pointwise(convolution: nn.Conv2d, dtype: torch.dtype, linear: LinearKind) -> Linear:
    return linear(convolution.weight.flatten(1), convolution.bias, dtype)

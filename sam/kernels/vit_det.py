"""SAM 3's trunk and pyramid (sam/models/sam2/vit_det.py): the same weights and arithmetic, in less time and memory.

None of what differs changes the result but for the order of float32 sums:

- Tokens lie in window order from the first block to the last. A global block does not mind the order of its tokens, as their
  places are in the rotation of queries and keys, which is stored in that order too.
- Queries and keys are rotated where the projection wrote them. Linear layers are those of linear.py, with GELU and the residual
  fused. On a CPU each core takes a window through a whole block (workers.py), and all cores those windows that would leave some
  of them idle: one of nine on two.
- In the pyramid nothing lies between a convolution that enlarges and the 1x1 one after it, nor between a 3x3 one and the
  decoder's 1x1 convolution: each pair is one layer. A third of the operations is left, and the finest map of all channels,
  81 MiB, is never written.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attend_at_once
from .encoder import WindowOrder, run_whole, tokens_at_a_time
from .linear import Linear, LinearKind
from .workers import for_each


class FastViTDet:
    """A plan to run one image encoder on one device in one type.

    Args:
        encoder: `ViTDetEncoder`; its weights are used where they are.
        finer: the mask decoder's 1x1 convolutions on the two finer maps, finest first.
        no_memory: `[C]`, added to the coarsest map.
        dtype: of products and attention; the residual stream stays float32.
        linear: which linear layers.
    """

    def __init__(
        self, encoder: nn.Module, finer: Sequence[nn.Conv2d], no_memory: Tensor, dtype: torch.dtype, linear: LinearKind
    ) -> None:
        # Parts of the encoder and not itself: the plan is cached for as long as the encoder lives, and must not be the reason.
        shape, trunk, device = encoder.shape, encoder.trunk, no_memory.device
        self.grid, self.patch, self.dtype, self.linear = shape.grid, shape.patch, dtype, linear
        order = WindowOrder(shape.grid, shape.size.window)
        self.order, self.inverse = order.order.to(device), order.inverse.to(device)
        self.places = trunk.places().flatten(0, 1)[self.order].float()
        self.patches = linear(trunk.patch_embed.proj.weight.flatten(1), None, dtype)
        self.norm = trunk.ln_pre
        turns = {window: trunk.rotation(window) for window in {0, shape.size.window}}
        turns[0] = turns[0][self.order]
        self.blocks = [_Block(block, turns[block.window], dtype, linear) for block in trunk.blocks]
        self.levels = [
            _Level(level, after, None if after else no_memory, dtype, linear)
            for level, after in zip(encoder.neck.convs, (*finer, None), strict=True)
        ]

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Maps float32 `[B, C, h, w]`, finest first, of normalised pixels float32 `[B, 3, S, S]`."""
        count, grid, size = len(pixels), self.grid, self.patch
        cut = pixels.reshape(count, -1, grid, size, grid, size).permute(0, 2, 4, 1, 3, 5).reshape(count, grid**2, -1)
        x = self.places.repeat(count, 1)
        self.patches.add_to(cut[:, self.order].flatten(0, 1), x)
        x = self.norm(x)
        for block in self.blocks:
            block(x, count, self.linear)
        tokens = x.view(count, grid**2, -1)[:, self.inverse].flatten(0, 1)
        return [level(tokens, count, grid) for level in self.levels]


def lowered_weights(encoder: nn.Module) -> list[Tensor]:
    """The parameters that `FastViTDet` only uses in the type that it computes in; norms and places stay float32."""
    found = [encoder.trunk.patch_embed.proj.weight]
    for block in encoder.trunk.blocks:
        layers = block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2
        found += [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    return found


class _Block:
    """One transformer block's layers in the plan's form; `turns` is the rotation of the tokens of one window."""

    def __init__(self, block: nn.Module, turns: Tensor, dtype: torch.dtype, linear: LinearKind) -> None:
        def layer(module: nn.Linear) -> Linear:
            """A linear layer in the plan's form."""
            return linear(module.weight, module.bias, dtype)

        attn, mlp = block.attn, block.mlp
        self.heads, self.dtype, self.hidden, self.turns = attn.heads, dtype, mlp.fc1.out_features, turns
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.proj, self.fc1, self.fc2 = (layer(module) for module in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2))

    def __call__(self, x: Tensor, count: int, linear: LinearKind) -> None:
        """Change the tokens of all images, float32 `[B*T, E]` in window order, in place."""
        window = len(self.turns)
        if not x.is_cpu:
            self._run(x)
        elif window * count == len(x):
            run_whole(self, x.view(count, window, -1), linear)
        else:
            windows = x.split(window)
            rest = len(windows) % torch.get_num_threads()
            for_each(self._run, windows[: len(windows) - rest])
            if rest:
                self._run(x[-rest * window :])

    def _run(self, x: Tensor) -> None:
        """The block on tokens `[W*T, E]` of whole windows."""
        qkv = self.project(x, slice(None)).view(-1, len(self.turns), 3, self.heads, x.shape[1] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        self.add_back(x, attend_at_once(q, k, v).transpose(1, 2).reshape(x.shape))

    def project(self, x: Tensor, tokens: slice) -> Tensor:
        """See `WholeBlock.project`; `tokens` are those of a window, or of each of some windows."""
        qkv, turns = self.qkv.plain(self.norm1(x)), self.turns[tokens]
        rotate(qkv.view(-1, len(turns), 3, self.heads, x.shape[1] // self.heads)[:, :, :2], turns)
        return qkv

    def add_back(self, x: Tensor, mixed: Tensor) -> None:
        """See `WholeBlock.add_back`."""
        self.proj.add_to(mixed, x)
        for some in x.split(tokens_at_a_time(x, self.hidden, self.dtype)):
            self.fc2.add_to(self.fc1.gelu(self.norm2(some)), some)


def rotate(x: Tensor, turns: Tensor) -> None:
    """Turn each pair of values of queries and keys `[W, T, 2, heads, d]` in place, by cosines and sines `[T, d/2, 2]`."""
    pairs, turns = x.unflatten(-1, (-1, 2)), turns[None, :, None, None]
    if x.is_cpu and x.dtype == torch.float32:  # one pass; few devices know complex numbers, and none in half precision
        torch.view_as_complex(pairs).mul_(torch.view_as_complex(turns))
        return
    (one, other), (cos, sin) = pairs.float().unbind(-1), turns.unbind(-1)
    pairs.copy_(torch.stack([one * cos - other * sin, one * sin + other * cos], -1))


class _Level:
    """One map of the pyramid, in the plan's form. Products of weights are folded on the CPU, in float64.

    Args:
        level: enlarges, if it does, and has a 1x1 and a 3x3 convolution.
        after: the decoder's 1x1 convolution on the map, or None.
        added: `[C]`, added to the map, or None.
    """

    def __init__(
        self, level: nn.Module, after: nn.Conv2d | None, added: Tensor | None, dtype: torch.dtype, linear: LinearKind
    ) -> None:
        pointwise, device, convolutions = level.conv_1x1, level.conv_1x1.weight.device, level.enlarging()
        self.layers: list[Linear] = []
        for index, convolution in enumerate(convolutions):
            weight, bias = (part.detach().cpu().double() for part in (convolution.weight, convolution.bias))
            weight = weight.permute(2, 3, 1, 0)  # [2, 2, out, in]
            if index == len(convolutions) - 1:
                weight, bias = _after(pointwise, weight, bias)
            weight = weight.flatten(0, 2).float().to(device)
            self.layers.append(linear(weight, bias.repeat(4).float().to(device), dtype))
        if not convolutions:
            self.layers.append(linear(pointwise.weight.flatten(1), pointwise.bias, dtype))
        self.doubles = bool(convolutions)
        weight, bias = (part.detach().cpu().double() for part in (level.conv_3x3.weight, level.conv_3x3.bias))
        if after is not None:
            flat, bias = _after(after, weight.flatten(1), bias)
            weight = flat.view(-1, *weight.shape[1:])
        if added is not None:
            bias = bias + added.detach().cpu()
        self.weight = weight.to(device, dtype).contiguous(memory_format=torch.channels_last)
        self.bias = bias.to(device, dtype)

    def __call__(self, tokens: Tensor, count: int, grid: int) -> Tensor:
        """The map float32 `[B, C, h, w]` of tokens `[B*g*g, E]` in raster order."""
        x = tokens
        for index, layer in enumerate(self.layers):
            x = layer.plain(x) if index == len(self.layers) - 1 else layer.gelu(x)
            if self.doubles:
                x = x.view(count, grid, grid, 2, 2, -1).transpose(2, 3).reshape(count * 4 * grid**2, -1)
                grid *= 2
        image = x.view(count, grid, grid, -1).permute(0, 3, 1, 2)
        return F.conv2d(image, self.weight, self.bias, padding=1).float().contiguous()


def _after(pointwise: nn.Conv2d, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's float64 weight `[..., out, in]` and bias with a 1x1 convolution after it."""
    factor, more = (part.detach().cpu().double() for part in (pointwise.weight.flatten(1), pointwise.bias))
    return factor @ weight, factor @ bias + more

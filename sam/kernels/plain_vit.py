"""A plain ViT (sam/models/efficient_sam/encoder.py) with the same weights and arithmetic, in less time and memory.

Every block sees the whole image, without relative positions: stock code writes and reads the scores of each head, 4096 x 4096,
three times. Here they stay in the cache (on a CPU by attention.py, each core for some queries; elsewhere by torch's fused
attention), linear layers are those of linear.py, and the MLP's hidden layer is in memory for some tokens at a time. None of it
changes the result but for the order of float32 sums.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import run_whole, tokens_at_a_time
from .linear import Linear, LinearKind


class FastPlainViT:
    """A plan to run one image encoder on one device in one type.

    Args:
        encoder: `PlainViT`; its weights are used where they are.
        dtype: of products and attention; the residual stream stays float32.
        linear: which linear layers.
    """

    def __init__(self, encoder: nn.Module, dtype: torch.dtype, linear: LinearKind) -> None:
        # Its parts and not the encoder itself: the plan is cached for as long as the encoder lives, and must not be the reason.
        patches, (first, *self.rest_of_neck) = encoder.patch_embed.proj, encoder.neck
        self.dtype, self.linear, self.grid, self.size = dtype, linear, encoder.grid, patches.kernel_size[0]
        self.places = encoder.places().flatten(0, 1)
        self.patches = linear(patches.weight.flatten(1), patches.bias, dtype)
        self.neck, self.out_chans = linear(first.weight.flatten(1), None, dtype), first.out_channels
        self.blocks = [_Block(block, dtype, linear) for block in encoder.blocks]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Embeddings float32 `[B, C, h, w]` of normalised pixels float32 `[B, 3, S, S]`."""
        count, channels, grid, size = len(pixels), pixels.shape[1], self.grid, self.size
        cut = pixels.reshape(count, channels, grid, size, grid, size).permute(0, 2, 4, 1, 3, 5).reshape(count * grid**2, -1)
        x = self.places.repeat(count, 1)
        self.patches.add_to(cut, x)
        for block in self.blocks:
            if x.is_cpu:
                run_whole(block, x.view(count, grid**2, -1), self.linear)
            else:
                block(x, count)
        y = x.new_empty(len(x), self.out_chans, dtype=self.dtype)
        self.neck.into(x, y)
        norm, conv, last = self.rest_of_neck
        return last(conv(norm(y.view(count, grid, grid, -1).permute(0, 3, 1, 2).float())))


def lowered_weights(encoder: nn.Module) -> list[Tensor]:
    """The parameters that `FastPlainViT` only uses in the type that it computes in."""
    layers = [encoder.patch_embed.proj, encoder.neck[0]]
    for block in encoder.blocks:
        layers += [block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2]
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]


class _Block:
    """One transformer block's layers in the plan's form."""

    def __init__(self, block: nn.Module, dtype: torch.dtype, linear: LinearKind) -> None:
        def layer(module: nn.Linear) -> Linear:
            """A linear layer in the plan's form."""
            return linear(module.weight, module.bias, dtype)

        attn, mlp = block.attn, block.mlp
        self.heads, self.dtype, self.hidden = attn.num_heads, dtype, mlp.fc1.out_features
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.proj, self.fc1, self.fc2 = (layer(module) for module in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2))

    def __call__(self, x: Tensor, count: int) -> None:
        """Change the tokens of all images, float32 `[B*h*w, E]`, in place."""
        qkv = self.project(x).view(count, -1, 3, self.heads, x.shape[1] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        self.add_back(x, mixed.transpose(1, 2).reshape(x.shape))

    def project(self, x: Tensor, tokens: slice = slice(None)) -> Tensor:
        """See `WholeBlock.project`."""
        return self.qkv.plain(self.norm1(x))

    def add_back(self, x: Tensor, mixed: Tensor) -> None:
        """See `WholeBlock.add_back`."""
        self.proj.add_to(mixed, x)
        for part in x.split(tokens_at_a_time(x, self.hidden, self.dtype)):
            self.fc2.add_to(self.fc1.gelu(self.norm2(part)), part)

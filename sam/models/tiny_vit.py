"""MobileSAM's and Light HQ-SAM's image encoder, for inference: TinyViT with every batch norm folded into its convolution.

"TinyViT: Fast Pretraining Distillation for Small Vision Transformers" (arXiv 2207.10666), after MobileSAM's `tiny_vit_sam.py`.
The parameters keep its names, so a folded state dict loads strictly; see `fold`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SAMError
from ..kernels.convolution import cpu_convolution
from ..kernels.linear import cpu_linear
from ..kernels.plans import Plans
from ..kernels.self_test import difference, livelier, works_on
from ..kernels.tiny_vit import FastTinyViT

_NORM_EPS = 1e-5  # of the folded batch norms: PyTorch's default
_WATCHED = 1  # the stage whose output gives Light HQ-SAM its early features


@dataclass(frozen=True)
class Stage:
    """One of the four stages: width, blocks, heads and side of a window (both 0 for the first, which is convolutional).

    `stride` is the step of the patch merging at its end, 0 where there is none.
    """

    width: int
    depth: int
    heads: int
    window: int
    stride: int


class TinyViT(nn.Module):
    """Images `[B, 3, S, S]` to embeddings `[B, C, S/16, S/16]`.

    Args:
        img_size: side of the input in pixels.
        stages: see `Stage`.
        expansion: hidden over outer channels of the convolutional blocks.
        mlp_ratio: the same of the transformer blocks.
        out_chans: C.
    """

    def __init__(self, img_size: int, stages: Sequence[Stage], expansion: float, mlp_ratio: float, out_chans: int) -> None:
        super().__init__()
        self.img_size = img_size
        first = stages[0].width
        self.patch_embed = nn.Module()
        self.patch_embed.seq = nn.Sequential(_Conv(3, first // 2, 3, 2), nn.GELU(), _Conv(first // 2, first, 3, 2))
        layers = []
        for index, stage in enumerate(stages):
            if stage.heads:
                blocks = [_Block(stage, mlp_ratio) for _ in range(stage.depth)]
            else:
                blocks = [_MBConv(stage.width, expansion) for _ in range(stage.depth)]
            layer = nn.Module()
            layer.blocks = nn.ModuleList(blocks)
            layer.downsample = _Merging(stage.width, stages[index + 1].width, stage.stride) if stage.stride else nn.Identity()
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.neck = nn.Sequential(
            nn.Conv2d(stages[-1].width, out_chans, 1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings `[B, C, S/16, S/16]`."""
        return self.run(x)[0]

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings `[B, C, h, w]`, and the early features `[B, h, w, E]` of Light HQ-SAM."""
        x = self.patch_embed.seq(x)
        for index, layer in enumerate(self.layers):
            for block in layer.blocks:
                x = block(x)
            x = layer.downsample(x)
            if index == _WATCHED:
                early = x.permute(0, 2, 3, 1)
        return self.neck(x), early


class _Conv(nn.Module):
    """A convolution with the batch norm after it folded in; its parameters are `c.weight` and `c.bias`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x)


class _MBConv(nn.Module):
    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        hidden = int(width * expansion)
        self.conv1, self.conv2 = _Conv(width, hidden, 1), _Conv(hidden, hidden, 3, groups=hidden)
        self.conv3 = _Conv(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class _Merging(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _Conv(inputs, outputs, 1), _Conv(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = _Conv(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class _Block(nn.Module):
    """Attention in windows, a depthwise convolution, an MLP; on `[B, C, H, W]`."""

    def __init__(self, stage: Stage, mlp_ratio: float) -> None:
        super().__init__()
        width = stage.width
        self.attn = _Attention(width, stage.heads, stage.window)
        self.local_conv = _Conv(width, width, 3, groups=width)
        self.mlp = nn.Module()
        self.mlp.norm, hidden = nn.LayerNorm(width), int(width * mlp_ratio)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_conv(x + self.attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        tokens = x.permute(0, 2, 3, 1)
        more = self.mlp.fc2(F.gelu(self.mlp.fc1(self.mlp.norm(tokens))))
        return (tokens + more).permute(0, 3, 1, 2)


class _Attention(nn.Module):
    """Attention within windows, with a learned bias for each distance between two tokens."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]`; what pads the image to whole windows takes part, as zeros before the norm."""
        batch, height, width, channels = x.shape
        n = self.window
        x = F.pad(x, (0, 0, 0, -width % n, 0, -height % n))
        down, across = x.shape[1] // n, x.shape[2] // n
        x = x.view(batch, down, n, across, n, channels).transpose(2, 3).reshape(-1, n * n, channels)
        # A head's queries, keys and values lie together, unlike SAM's own.
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
        attend = _attend if works_on(x.device, _attention_error) else _attend_plainly
        x = attend(q, k, v, self.bias()).transpose(1, 2).reshape(batch, down, across, n, n, channels)
        return self.proj(x.transpose(2, 3).reshape(batch, down * n, across * n, channels)[:, :height, :width])

    def bias(self) -> Tensor:
        """`[heads, n*n, n*n]`: one value for each pair of absolute row and column distances, in the order of first use."""
        place = torch.arange(self.window, device=self.attention_biases.device)
        apart = (place[:, None] - place).abs()
        index = apart[:, None, :, None] * self.window + apart[None, :, None, :]
        return self.attention_biases[:, index.reshape(self.window**2, -1)]


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of `[W, heads, n, d]` with a bias `[heads, n, n]`."""
    return F.scaled_dot_product_attention(q, k, v, bias)


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The same as MobileSAM's own `Attention` writes it, for devices on which the fused one is wrong or absent."""
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias, -1) @ v


def _attention_error(device: torch.device) -> float:
    """The largest difference between the fused attention on a device and the plain one on the CPU."""
    qkv, bias = torch.randn(3, 6, 2, 49, 8), torch.randn(2, 49, 49)
    q, k, v = qkv.to(device).unbind(0)
    return difference(_attend(q, k, v, bias.to(device)), _attend_plainly(*qkv.unbind(0), bias))


_plans: Plans[FastTinyViT] = Plans()


def run_tiny_vit(encoder: TinyViT, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`TinyViT.run`, on a CPU by the fast forward where it is right.

    Args:
        encoder: with its weights on the device of `images`.
        images: float32 `[B, 3, S, S]`.
        dtype: what to compute in.

    Returns:
        Embeddings float32 `[B, C, S/16, S/16]`, and the early features float32 `[B, h, w, E]`.
    """
    if images.is_cpu and works_on(images.device, _error_on_cpu):
        return _plans.get(encoder, dtype, lambda: _plan(encoder, dtype))(images)
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        features, early = encoder.run(images)
    return features.float(), early.float()


def _plan(encoder: TinyViT, dtype: torch.dtype) -> FastTinyViT:
    return FastTinyViT(encoder, dtype, cpu_linear(dtype), cpu_convolution(dtype), _WATCHED)


def _error_on_cpu(_: torch.device) -> float:
    """The largest difference between the fast forward and the encoder's own, both on the CPU."""
    stages = Stage(16, 1, 0, 0, 2), Stage(24, 1, 2, 7, 2), Stage(32, 1, 2, 3, 1), Stage(48, 1, 3, 7, 0)
    encoder = livelier(TinyViT(160, stages, 2.0, 2.0, 16).eval())
    images = torch.randn(1, 3, 160, 160)
    (fast, early), (plain, watched) = _plan(encoder, torch.float32)(images), encoder.run(images)
    return max(difference(fast, plain), difference(early, watched))


def fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's encoder weights with every `bn` folded into its `c`, without what inference does not use.

    Args:
        state: names of the encoder without a prefix.

    Raises:
        SAMError: a batch norm that does not fit its convolution.
    """
    folded = {}
    for name, value in state.items():
        root, _, last = name.rpartition(".")
        if root.endswith(".bn") or name.startswith(("head.", "norm_head.")) or last == "attention_bias_idxs":
            continue
        if root.endswith(".c") and f"{root[:-2]}.bn.weight" in state:
            weight, bias, mean, variance = (
                state[f"{root[:-2]}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            )
            if value.ndim != 4 or not weight.shape == bias.shape == mean.shape == variance.shape == value.shape[:1]:
                raise SAMError(f"{name} does not fit the batch norm after it.")
            factor = weight / (variance + _NORM_EPS).sqrt()
            folded[name] = (value.double() * factor[:, None, None, None]).float()
            folded[f"{root}.bias"] = (bias - mean * factor).float()
        else:
            folded[name] = value
    return folded


def fold_checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole checkpoint as this pack's models have it: `fold` for a TinyViT's encoder, anything else as it is.

    Args:
        state: segment_anything's names, with `image_encoder.` before the encoder's.
    """
    root = "image_encoder."
    if not any(name.startswith(f"{root}patch_embed.seq.") for name in state):
        return state
    encoder = {name.removeprefix(root): tensor for name, tensor in state.items() if name.startswith(root)}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(root)}
    return {root + name: tensor for name, tensor in fold(encoder).items()} | rest

"""Convolutions for fast encoders on a CPU: ATen's, and oneDNN's prepacked ones where they are right and not slower.

Maps are `[B, H, W, C]` in memory (channels last): a 1x1 convolution is then a linear layer on the same numbers, and oneDNN's
depthwise kernels take a fraction of the time that they take on channels that lie apart.
"""

import functools
import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear import faster_by

log = logging.getLogger("samkit")

_PROBE = (64, 64, 64)  # channels, rows, columns of a depthwise convolution


class Convolution(Protocol):
    """A convolution of an odd kernel, padded by its half, on maps `[B, H, W, C]`."""

    def plain(self, x: Tensor) -> Tensor:
        """It, `[B, H', W', C']` in the type that the layer computes in."""

    def gelu(self, x: Tensor) -> Tensor:
        """The exact GELU of it."""


class AtenConvolution:
    """Plain ATen.

    Args:
        weight: `[C', C/groups, k, k]`.
        bias: `[C']`, or None.
        stride: of both axes.
        groups: see `torch.nn.Conv2d`.
        dtype: what to compute in.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, groups: int, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = None if bias is None else bias.to(dtype)
        self.stride, self.groups, self.dtype = stride, groups, dtype

    def plain(self, x: Tensor) -> Tensor:
        """See `Convolution.plain`."""
        padding = self.weight.shape[-1] // 2
        found = F.conv2d(_channels_last(x, self.dtype), self.weight, self.bias, self.stride, padding, 1, self.groups)
        return found.permute(0, 2, 3, 1).contiguous()

    def gelu(self, x: Tensor) -> Tensor:
        """See `Convolution.gelu`."""
        return torch.ops.aten.gelu_(self.plain(x))


class OneDNNConvolution:
    """oneDNN's on prepacked weights, with GELU fused; what torch.compile uses on a CPU. Arguments as of `AtenConvolution`.

    Raises:
        AttributeError, RuntimeError: this build of torch has no such operator.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, groups: int, dtype: torch.dtype) -> None:
        self.bias, self.dtype = None if bias is None else bias.to(dtype), dtype
        self.settings = [weight.shape[-1] // 2] * 2, [stride] * 2, [1, 1], groups
        # The size is a hint for the layout of the weights, and holds for any other.
        size = [1, weight.shape[1] * groups, 64, 64]
        self.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to(dtype).contiguous().to_mkldnn(), *self.settings, size)

    def plain(self, x: Tensor) -> Tensor:
        """See `Convolution.plain`."""
        return self._run(x, "none", "")

    def gelu(self, x: Tensor) -> Tensor:
        """See `Convolution.gelu`."""
        return self._run(x, "gelu", "none")

    def _run(self, x: Tensor, after: str, algorithm: str) -> Tensor:
        x = _channels_last(x, self.dtype)
        found = torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.settings, after, [], algorithm)
        return found.permute(0, 2, 3, 1).contiguous()


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A map `[B, H, W, C]` as ATen has it, `[B, C, H, W]` on the same memory."""
    return x.to(dtype).permute(0, 3, 1, 2)


ConvolutionKind = Callable[[Tensor, Tensor | None, int, int, torch.dtype], Convolution]


@functools.cache
def cpu_convolution(dtype: torch.dtype) -> ConvolutionKind:
    """The kind to use on this CPU: oneDNN's where it passes the self-test and is not slower, else ATen's. Measured once."""
    kind: ConvolutionKind = AtenConvolution
    try:
        if is_right(OneDNNConvolution, dtype) and _speed_over_aten(dtype) > 1:
            kind = OneDNNConvolution
    except (AttributeError, RuntimeError) as error:  # another build of torch, another processor
        log.debug("the convolution of oneDNN is not available: %s", error)
    log.debug("convolutions in %s: %s", dtype, kind.__name__)
    return kind


def is_right(kind: ConvolutionKind, dtype: torch.dtype) -> bool:
    """Whether depthwise and full convolutions of strides 1 and 2 give what float64 gives, within the rounding of `dtype`."""
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 14, 32, generator=numbers)
    for inputs, groups, stride in ((1, 32, 1), (1, 32, 2), (32, 1, 1), (32, 1, 2)):
        weight, bias = torch.randn(32, inputs, 3, 3, generator=numbers), torch.randn(32, generator=numbers)
        layer = kind(weight, bias, stride, groups, dtype)
        exact = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), bias.double(), stride, 1, 1, groups)
        exact = exact.permute(0, 2, 3, 1)
        tolerance = (9 * inputs) ** 0.5 * torch.finfo(dtype).eps * 32
        errors = layer.plain(x).double() - exact, layer.gelu(x).double() - F.gelu(exact)
        if not max(float(error.abs().max()) for error in errors) < tolerance:
            return False
    return True


def _speed_over_aten(dtype: torch.dtype) -> float:
    channels, *size = _PROBE
    weight, bias, x = torch.randn(channels, 1, 3, 3), torch.randn(channels), torch.randn(1, *size, channels).to(dtype)
    layers = [kind(weight, bias, 1, channels, dtype) for kind in (OneDNNConvolution, AtenConvolution)]
    return faster_by(*layers, x)

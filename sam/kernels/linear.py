"""Linear layers for the fast encoder: ATen's, and oneDNN's prepacked ones where they are right and faster."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger("samkit")

_PROBE = (512, 768, 3072)  # tokens, inputs, outputs: a piece of ViT-B's first MLP layer
_ROUNDS = 6
_WORTH_BFLOAT16 = 1.5
_WORTH_IT = 1.05  # prepacked weights are a second copy of them: a tie is no reason


class Linear(Protocol):
    """`y = x W^T + b` on tokens `[T, K]`, in several forms."""

    def plain(self, x: Tensor) -> Tensor:
        """It, `[T, N]` in the type that the layer computes in."""

    def into(self, x: Tensor, out: Tensor) -> None:
        """Write it to `out` `[T, N]`, in the type that the layer computes in."""

    def gelu(self, x: Tensor) -> Tensor:
        """The exact GELU of it, `[T, N]` in the type that the layer computes in."""

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Its sum with `other` `[T, N]`, in the type that the layer computes in."""

    def add_to(self, x: Tensor, residual: Tensor) -> None:
        """Add it to `residual` float32 `[T, N]` in place."""


class AtenLinear:
    """Plain ATen, on any device. On a CPU, weights of another type are copied for as long as a call takes; on a GPU for good.

    Args:
        weight: `[N, K]`, used where it lies; on a GPU it is best in `dtype` already.
        bias: `[N]`, or None.
        dtype: what to compute in.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        if not weight.is_cpu:
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.weight, self.bias, self.dtype = weight, bias, dtype

    def into(self, x: Tensor, out: Tensor) -> None:
        """See `Linear.into`."""
        x, weight = x.to(self.dtype), self.weight.to(self.dtype).t()
        if self.bias is None:
            torch.mm(x, weight, out=out)
        else:
            torch.addmm(self.bias.to(self.dtype), x, weight, out=out)

    def gelu(self, x: Tensor) -> Tensor:
        """See `Linear.gelu`."""
        return torch.ops.aten.gelu_(self.plain(x))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """See `Linear.plus`."""
        return self.plain(x).add_(other)

    def add_to(self, x: Tensor, residual: Tensor) -> None:
        """See `Linear.add_to`."""
        if self.dtype != residual.dtype:
            residual += self.plain(x)
            return
        residual.addmm_(x, self.weight.to(self.dtype).t())
        if self.bias is not None:
            residual += self.bias.to(self.dtype)

    def plain(self, x: Tensor) -> Tensor:
        """See `Linear.plain`."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return F.linear(x.to(self.dtype), self.weight.to(self.dtype), bias)


class OneDNNLinear:
    """oneDNN's inner product on prepacked weights, with GELU and residual fused; what torch.compile uses on a CPU.

    Args:
        weight: `[N, K]` on the CPU; the packed form is a second copy.
        bias: `[N]`, or None.
        dtype: what to compute in.

    Raises:
        AttributeError, RuntimeError: this build of torch has no such operator.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), None)
        self.bias = None if bias is None else bias.to(dtype)

    def into(self, x: Tensor, out: Tensor) -> None:
        """See `Linear.into`."""
        out.copy_(self.plain(x))

    def gelu(self, x: Tensor) -> Tensor:
        """See `Linear.gelu`."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, "gelu", [], "none")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """See `Linear.plus`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x.to(self.dtype), other.to(self.dtype), self.packed, self.bias, "add")

    def add_to(self, x: Tensor, residual: Tensor) -> None:
        """See `Linear.add_to`."""
        if self.dtype != residual.dtype:
            residual += self.plain(x)
            return
        residual.copy_(self.plus(x, residual))

    def plain(self, x: Tensor) -> Tensor:
        """See `Linear.plain`."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, "none", [], "")


LinearKind = Callable[[Tensor, Tensor | None, torch.dtype], Linear]


@functools.cache
def cpu_linear(dtype: torch.dtype) -> LinearKind:
    """The layer to use on this CPU: oneDNN's where it passes the self-test and a short timing, else ATen's.

    Measured once in a process, since neither the processor's name nor its flags tell: on an AMD one oneDNN took half of
    MKL's time in float32, on an Intel one the same.
    """
    kind: LinearKind = AtenLinear
    try:
        if is_right(OneDNNLinear, dtype) and speed_over_aten(OneDNNLinear, dtype) > _WORTH_IT:
            kind = OneDNNLinear
    except (AttributeError, RuntimeError) as error:  # another build of torch, another processor
        log.debug("the linear layer of oneDNN is not available: %s", error)
    log.debug("linear layers in %s: %s", dtype, kind.__name__)
    return kind


@functools.cache
def bfloat16_pays() -> bool:
    """Whether this CPU computes in bfloat16 faster than in float32: with AVX512-BF16 or AMX it does, several times."""
    return speed_over_aten(cpu_linear(torch.bfloat16), torch.bfloat16, against=torch.float32) > _WORTH_BFLOAT16


def is_right(kind: LinearKind, dtype: torch.dtype) -> bool:
    """Whether all forms of a layer give what float64 arithmetic gives, within the rounding of `dtype`.

    A process-wide setting or a processor may answer a float32 product with bfloat16's accuracy; this tells.
    """
    tokens, inputs, outputs = 24, 256, 48
    numbers = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(shape, generator=numbers) for shape in ((tokens, inputs), (outputs, inputs), (outputs,), (tokens, outputs))
    )
    layer = kind(weight, bias, dtype)
    exact = F.linear(x.double(), weight.double(), bias.double())
    added = residual.clone()
    layer.add_to(x, added)
    plain = torch.empty(tokens, outputs, dtype=dtype)
    layer.into(x, plain)
    seen = torch.stack([plain.double(), layer.gelu(x).double(), added.double()])
    wanted = torch.stack([exact, F.gelu(exact), exact + residual])
    tolerance = inputs**0.5 * torch.finfo(dtype).eps * 32
    return bool((seen - wanted).abs().max() < tolerance)


def speed_over_aten(kind: LinearKind, dtype: torch.dtype, against: torch.dtype | None = None) -> float:
    """How many times faster a layer in `dtype` is than ATen's in `against` (the same by default); some milliseconds."""
    tokens, inputs, outputs = _PROBE
    weight, bias, x = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(tokens, inputs)
    layers = kind(weight, bias, dtype), AtenLinear(weight.to(against or dtype), bias, against or dtype)
    return faster_by(*layers, x)


class WithGelu(Protocol):
    """A layer with GELU after it: linear or a convolution."""

    def gelu(self, x: Tensor) -> Tensor:
        """The exact GELU of what the layer gives."""


def faster_by(ours: WithGelu, other: WithGelu, x: Tensor) -> float:
    """How many times faster one layer is than another on `x`, measured in turn; some milliseconds."""
    # The shortest of each, since another load on the cores only ever adds.
    rounds = [[_time(layer, x) for layer in (ours, other)] for _ in range(_ROUNDS)]
    own, others = (min(seconds) for seconds in zip(*rounds, strict=True))
    return others / own


def _time(layer: WithGelu, x: Tensor) -> float:
    begun = time.perf_counter()
    layer.gelu(x)
    return time.perf_counter() - begun

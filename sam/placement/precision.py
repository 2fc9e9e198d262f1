"""What an image encoder computes in on a device, by what the device is good at."""

import torch

from ..kernels.linear import bfloat16_pays
from .host import host

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def encoder_dtype(model: object, device: torch.device) -> torch.dtype:
    """What an image encoder computes in on `device`; decoders always compute in float32.

    Args:
        model: its `precision` is `auto`, `fp32`, `bf16` or `fp16`; another pack's model has none, and gets float32.

    `auto` is what ComfyUI would choose for its own models there, see `Host.preferred_dtype`. fp16 on a CPU is ten times slower
    than fp32 and no more exact than it is fast, so a CPU never gets it; and bf16 only where it is faster there.
    """
    precision = getattr(model, "precision", "fp32")
    if precision == "auto":
        return host().preferred_dtype(device)
    dtype = _DTYPES[precision]
    if device.type == "cpu" and (dtype == torch.float16 or (dtype == torch.bfloat16 and not bfloat16_pays())):
        return torch.float32
    return dtype

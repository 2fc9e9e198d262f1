"""Which fast decoder runs a model's mask decoder."""

import torch
from segment_anything.modeling import MaskDecoder, Sam

from .fast_decoder import FastDecoder
from .hq import FastHQDecoder, HQMaskDecoder
from .linear import AtenLinear, cpu_linear
from .plans import Plans

_KINDS: dict[type, type[FastDecoder]] = {MaskDecoder: FastDecoder, HQMaskDecoder: FastHQDecoder}
_plans: dict[type, Plans[FastDecoder]] = {kind: Plans() for kind in _KINDS.values()}


def supports(model: Sam) -> bool:
    """Whether the model's mask decoder is one that a fast one knows."""
    return type(model.mask_decoder) in _KINDS


def decoder_for(model: Sam, device: torch.device, hq: bool = True) -> FastDecoder:
    """The plan for these weights, kept until they change or move.

    SAM-HQ keeps SAM's own weights as they were: with `hq` off, a plain decoder on them is plain SAM.
    """
    linear = cpu_linear(torch.float32) if device.type == "cpu" else AtenLinear
    kind = _KINDS[type(model.mask_decoder)] if hq else FastDecoder
    return _plans[kind].get(model.mask_decoder, (device, linear), lambda: kind(model, linear), also=model.prompt_encoder)

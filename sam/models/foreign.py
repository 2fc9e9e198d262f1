"""Models of other packs: unwrapped, described, and told from those that run as they are."""

from collections.abc import Mapping
from typing import Any

from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn

from ...utils.comfy import pack_of

_INSIDE = ("model", "predictor", "image_predictor")
"""Attributes, and keys of a dict, under which wrappers and predictors have their model."""


def unwrapped(model: Any) -> Any:
    """The module inside Impact Pack's wrappers, SAM 2's predictors and the dicts of SAM 2 packs; what is none, as it is."""
    for _ in range(4):  # a dict of a generator of a predictor of a model
        inner = None if isinstance(model, nn.Module) else _inside(model)
        if inner is None:
            return model
        model = inner
    return model


def _inside(model: Any) -> Any:
    """What a wrapper, a predictor or a dict holds, None for anything else."""
    if isinstance(model, Mapping):
        return next((model[name] for name in _INSIDE if model.get(name) is not None), None)
    found = (getattr(model, name, None) for name in ("sam_wrapper", *_INSIDE))
    return next((inner for inner in found if inner is not None), None)


def is_plain(model: Any) -> bool:
    """Whether this is a `Sam` that runs as it is: its encoder answers with one tensor, and its decoder makes SAM's masks.

    SAM-HQ's encoders in other packs answer with a tuple, and their decoders need more than an embedding.
    """
    return (
        isinstance(model, Sam)
        and isinstance(model.image_encoder, ImageEncoderViT)
        and not hasattr(model.mask_decoder, "hf_token")
    )


def described(model: Any) -> str:
    """A model in words, with the pack that its class comes from: "a SAM2Wrapper of ComfyUI-Impact-Pack"."""
    parts = [model, *(model.values() if isinstance(model, Mapping) else ())]
    pack = next((pack for part in parts if (pack := pack_of(type(part)))), None)
    kind = f"a {type(model).__name__}"
    if isinstance(model, Mapping):
        kind += f" with {', '.join(sorted(map(str, model))[:5])}" if model else " with nothing in it"
    return kind if pack is None else f"{kind} of {pack}"

"""A model with a trained mask decoder, beside the one that it was made from."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SAMError
from ..store.weights import original_of
from .base import Segmenter, identity_of
from .concept import name_of
from .families import as_segmenter
from .taught import add_taught_decoder

_ATTRIBUTE = "samkit_retrained"
_OF_EMBEDDINGS = ("embedding_encoder.", "compress_vit_feat.", "conv_s0.", "conv_s1.")


def is_trainable(name: str) -> bool:
    """Whether a tensor of a mask decoder only makes masks; some of SAM-HQ and SAM 2 make what embeddings hold."""
    return not name.startswith(_OF_EMBEDDINGS)


@dataclass(frozen=True)
class Retrained:
    """What tells a model from the one that it was made from.

    Attributes:
        weights: float32 on the CPU, by their names in the mask decoder.
        base: identity of the model that it was made from (see `identity_of`).
        base_name: the file that this one was loaded from, for messages and to find it again.
        replaces: whether the decoder takes the place of the model's own, as in files of kind decoder-1; otherwise it answers
            the prompts that it is sure of (see `models.taught`).
    """

    weights: Mapping[str, Tensor]
    base: str
    base_name: str
    replaces: bool = False


def retrained_from(model: Segmenter) -> Retrained | None:
    """What `with_decoder` made of a model; None for any other model."""
    return getattr(model.network, _ATTRIBUTE, None)


def with_decoder(model: Segmenter, change: Retrained, checkpoint: Path) -> Segmenter:
    """A model like `model` with a trained decoder; all other weights are the same memory, until one is moved.

    Args:
        model: the base, ours or any `segment_anything` Sam; it is not changed.
        change: made for it.
        checkpoint: the new model's file, or what messages call it.

    Raises:
        SAMError: it was made for another model; or a weight that the decoder has not, or that embeddings depend on.
    """
    if identity_of(model) != change.base:
        raise SAMError(
            f"{checkpoint.name} was made for {change.base_name} with other weights than {name_of(model)} has. Put the file "
            "that it was made for back in its place."
        )
    with torch.inference_mode(False), torch.no_grad():
        other = as_segmenter(_alike(model.network))
        if hasattr(other.network, "checkpoint"):
            other.network.checkpoint = checkpoint
        decoder = other.decoder_parts().decoder
        trained = decoder if change.replaces else _alike(decoder)
        _fill(trained, change.weights, checkpoint.name)
        if not change.replaces:
            add_taught_decoder(other.network, trained)
    setattr(other.network, _ATTRIBUTE, change)
    return other


def _alike(module: nn.Module) -> nn.Module:
    """A copy on the same memory."""
    memo: dict[int, Any] = {id(own): _same(own) for own in (*module.parameters(), *module.buffers())}
    memo |= {id(value): value for value in vars(module).values() if isinstance(value, MappingProxyType)}
    return copy.deepcopy(module, memo)


def _same(own: Tensor) -> Tensor:
    own = original_of(own)
    return nn.Parameter(own.detach(), requires_grad=False) if isinstance(own, nn.Parameter) else own.detach()


def _fill(decoder: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    expected = {key: tensor.shape for key, tensor in decoder.state_dict().items() if is_trainable(key)}
    fits = {key: expected.get(key) == tensor.shape and tensor.is_floating_point() for key, tensor in weights.items()}
    wrong = sorted(key for key, fit in fits.items() if not fit)
    if wrong:
        raise SAMError(f"{name} does not fit the mask decoder: {wrong[0]} is unknown or has a different shape.")
    decoder.load_state_dict({key: tensor.float().clone() for key, tensor in weights.items()}, strict=False, assign=True)
    decoder.requires_grad_(False)

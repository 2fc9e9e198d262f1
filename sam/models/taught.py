"""Mask decoders that were trained beside a model's own: each answers the prompts that it knows, the model's own all others."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..kernels.decoder import Decoded
from .base import Wanted

SURE = 0.5
"""A trained decoder answers prompts for which it predicts a higher IoU: it learned to predict 0 for what was not taught."""

_ATTRIBUTE = "taught_decoders"


def taught_decoders(network: nn.Module) -> nn.ModuleList | tuple[()]:
    """The decoders that were trained beside a network's own, the earliest first."""
    return getattr(network, _ATTRIBUTE, ())


def add_taught_decoder(network: nn.Module, decoder: nn.Module) -> None:
    """Put a decoder beside the others of a network; placement and identity include it from then on."""
    setattr(network, _ATTRIBUTE, nn.ModuleList([*taught_decoders(network), decoder]))


def taught_parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each of them, for a model's identity; nothing for a model without any."""
    return ((f"{_ATTRIBUTE}.{index}", decoder) for index, decoder in enumerate(taught_decoders(network)))


def of_taught(wanted: Wanted) -> Wanted:
    """What to decode by a trained decoder: its one mask, of prompts that it is sure of."""
    return wanted._replace(several=False, above=SURE)


def sources(own: Decoded, taught: Decoded, above: float | None) -> Tensor | None:
    """Which results to take of the model's own followed by a trained decoder's, in the order of the prompts.

    Args:
        own: of the prompts whose predicted IoU exceeds `above`.
        taught: of the prompts that the trained decoder is sure of.
        above: see `Wanted`; it applies to the trained decoder's masks where these are taken.

    Returns:
        Indices `[m]`, or None where the trained decoder is sure of no prompt.
    """
    if not len(taught.rows):
        return None
    kept = torch.ones_like(taught.rows, dtype=torch.bool) if above is None else (taught.scores > above).any(1)
    taken = torch.cat([~torch.isin(own.rows, taught.rows), kept]).nonzero()[:, 0]
    return taken[torch.cat([own.rows, taught.rows])[taken].argsort()]


def combined(own: Decoded, taught: Decoded, above: float | None) -> Decoded:
    """The model's own results, and a trained decoder's for the prompts that it is sure of; see `sources`.

    A trained decoder has one mask for a prompt. Where several are wanted, they are all this one.
    """
    taken = sources(own, taught, above)
    if taken is None:
        return own
    count = own.logits.shape[1]
    wide = taught.logits.expand(-1, count, -1, -1), taught.scores.expand(-1, count), taught.rows
    return Decoded(*(torch.cat(parts)[taken] for parts in zip(own, wide, strict=True)))

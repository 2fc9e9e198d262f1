"""What was taught of an object: learned tokens that follow those of a prompt into the mask decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SAMError
from .base import Segmenter, identity_of


@dataclass(frozen=True)
class Concept:
    """Learned prompt tokens, after "Prompt-Tuning SAM" (arXiv 2504.16739).

    Attributes:
        tokens: float32 `[K, C]` on the CPU; K is 0 where teaching did not help, and then nothing changes.
        base: identity of the model that it was made for (see `identity_of`).
        base_name: the file that this model was loaded from, for messages.
    """

    tokens: Tensor
    base: str
    base_name: str

    def tokens_for(self, model: Segmenter) -> Tensor | None:
        """The tokens, or None where there are none.

        Raises:
            SAMError: it was made for another model.
        """
        if identity_of(model) != self.base:
            raise SAMError(
                f"The concept was made for {self.base_name}, but {name_of(model)} is connected, which has other weights. "
                "Connect the model that it was made for, or teach the connected model."
            )
        return self.tokens if len(self.tokens) else None


def name_of(model: Segmenter) -> str:
    """What messages call a model: its file, or its family where it came from no file."""
    checkpoint = getattr(model.network, "checkpoint", None)
    return f"a {model.family} model of another pack" if checkpoint is None else checkpoint.name


def checked_concept(concept: object, model: Segmenter) -> Tensor | None:
    """Tokens of what came through a socket, for `model`; None where nothing is connected or nothing was learned.

    Raises:
        SAMError: it is not a concept, was made for another model, or has values that are not finite.
    """
    if concept is None:
        return None
    if not isinstance(concept, Concept):
        raise SAMError(f"concept is a {type(concept).__name__}, not a concept. Connect SAM Teach or Load SAM Concept.")
    tokens = concept.tokens_for(model)
    if tokens is not None and not bool(torch.isfinite(tokens).all()):
        raise SAMError("The concept has values that are NaN or infinite. Teach it again.")
    return tokens

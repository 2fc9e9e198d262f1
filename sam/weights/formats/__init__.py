"""Foreign key names -> SAM's. Each layout has a module of its own.

Whatever a rule does not know keeps its name, so that the loader, which is strict, can name it.
"""

from typing import Any

from torch import Tensor

from ...errors import SAMError
from .hugging_face import from_hugging_face, is_hugging_face
from .meta import unwrapped, with_joined_attention, without_pixels, without_prefix
from .relatives import refuse_relatives
from .tensors import to_weights

__all__ = ["sam_names", "to_sam_names", "weights_in"]

_MASK_TOKENS, _MOST_MASK_TOKENS = "mask_decoder.mask_tokens.weight", 64


def to_sam_names(content: Any, file: str) -> dict[str, Tensor]:
    """A checkpoint's content as a state dict with segment_anything's names.

    Args:
        content: what the file holds: a dict of tensors, or one that wraps it. It is used up: its tensors become float32 in it,
            so that there is one copy of them.
        file: its name, for messages.

    Raises:
        SAMError: there is no dict of tensors in it, one of them cannot be a weight (it is named), it is of another family
            (which is named), or its model expects pixels normalised otherwise than SAM's.
    """
    return sam_names(weights_in(content, file), file)


def weights_in(content: Any, file: str) -> dict[str, Tensor]:
    """The tensors in what a file holds, float32, under the file's own names; see `to_sam_names`."""
    state = unwrapped(content, file)
    to_weights(state, file)
    return state


def sam_names(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """`weights_in` a file under segment_anything's names; see `to_sam_names`."""
    state = without_prefix(state)
    _refuse_absurd(state, file)
    refuse_relatives(state, file)
    if is_hugging_face(state):
        state = from_hugging_face(state, file)
    return without_pixels(with_joined_attention(state), file)


def _refuse_absurd(state: dict[str, Tensor], file: str) -> None:
    """A layer is built for each mask token, of which a SAM has four or five."""
    tokens = state.get(_MASK_TOKENS)
    if tokens is not None and tokens.ndim and tokens.shape[0] > _MOST_MASK_TOKENS:
        raise SAMError(f"{file} was not loaded: {_MASK_TOKENS} has {tokens.shape[0]} rows; a SAM has four or five.")

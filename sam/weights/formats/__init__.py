"""Foreign key names -> SAM's. Each layout has a module of its own.

Whatever a rule does not know keeps its name, so that the loader, which is strict, can name it.
"""

from typing import Any

from torch import Tensor

from ...errors import SAMError
from .hugging_face import from_hugging_face, is_hugging_face
from .meta import with_joined_attention, without_pixels
from .micro_sam import with_merged_lora
from .search import find_model
from .tensors import to_weights

__all__ = ["find_model", "sam_names", "to_sam_names", "weights_in"]

_MASK_TOKENS, _MOST_MASK_TOKENS = "mask_decoder.mask_tokens.weight", 64


def to_sam_names(content: Any, file: str) -> dict[str, Tensor]:
    """A checkpoint's content as a state dict with segment_anything's names.

    Args:
        content: what the file holds: tensors by name, at any depth and beside anything else (see `find_model`).
        file: its name, for messages.

    Raises:
        SAMError: there is no model in it, one of its tensors cannot be a weight (it is named), it is of another family (which
            is named), or it expects pixels normalised otherwise than SAM's.
    """
    return sam_names(weights_in(content, file), file)


def weights_in(content: Any, file: str) -> dict[str, Tensor]:
    """The tensors of the model in what a file holds, float32, under the names that they have in it; see `to_sam_names`."""
    state = find_model(content, file).weights
    del content  # so that a tensor in float16 is gone as soon as it is one in float32
    to_weights(state, file)
    return with_merged_lora(state, file)


def sam_names(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """`weights_in` a file under segment_anything's names; see `to_sam_names`."""
    _refuse_absurd(state, file)
    if is_hugging_face(state):
        state = from_hugging_face(state, file)
    return without_pixels(with_joined_attention(state), file)


def _refuse_absurd(state: dict[str, Tensor], file: str) -> None:
    """A layer is built for each mask token, of which a SAM has four or five."""
    tokens = state.get(_MASK_TOKENS)
    if tokens is not None and tokens.ndim and tokens.shape[0] > _MOST_MASK_TOKENS:
        raise SAMError(f"{file} was not loaded: {_MASK_TOKENS} has {tokens.shape[0]} rows; a SAM has four or five.")

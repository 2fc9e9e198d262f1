"""Foreign key names -> SAM's. Each layout has a module of its own.

Whatever a rule does not know keeps its name, so that the loader, which is strict, can name it.
"""

from typing import Any

from torch import Tensor

from .hugging_face import from_hugging_face, is_hugging_face
from .meta import unwrapped, with_joined_attention, without_pixels, without_prefix
from .relatives import refuse_relatives

__all__ = ["to_sam_names"]


def to_sam_names(content: Any, file: str) -> dict[str, Tensor]:
    """A checkpoint's content as a state dict with segment_anything's names.

    Args:
        content: what the file holds: a dict of tensors, or one that wraps it.
        file: its name, for messages.

    Raises:
        SAMError: there is no dict of tensors in it, it is of another family (which is named), or its model expects pixels
            normalised otherwise than SAM's.
    """
    state = without_prefix(unwrapped(content, file))
    refuse_relatives(state, file)
    if is_hugging_face(state):
        state = from_hugging_face(state, file)
    return without_pixels(with_joined_attention(state), file)

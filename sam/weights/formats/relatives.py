"""Relatives of SAM that this pack cannot run, by a key that only they have, and what to use in their place."""

import re
from collections.abc import Mapping

from torch import Tensor

from ...errors import SAMError

_RELATIVES = (
    (r"prompt_encoder\.bbox_top_left_embeddings", "EfficientSAM", "sam_vit_b_01ec64.pth"),
    (r"image_encoder\.backbone\.", "EfficientViT-SAM", "sam_vit_b_01ec64.pth"),
)


def refuse_relatives(state: Mapping[str, Tensor], file: str) -> None:
    """Raise SAMError, which names the family, where a state dict belongs to one of the relatives."""
    for pattern, family, instead in _RELATIVES:
        if any(re.match(pattern, name) for name in state):
            raise SAMError(f"{file} is a checkpoint of {family}, which this pack does not support: use {instead}.")

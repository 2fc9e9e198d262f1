"""Meta's own names, as fine-tunes save them: wrapped, prefixed, with split attention weights or pixel constants."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import SAMError

# Where trainers put the weights: Lightning and MedSAM, most others, micro-sam.
_WRAPPERS = ("state_dict", "model", "model_state")
_FIRST_LAYER = re.compile(
    r"^(.*?)(?:image_encoder\.patch_embed\.(?:proj|seq\.0\.c)|vision_encoder\.patch_embed\.projection)\.weight$"
)
_SPLIT = re.compile(r"^(image_encoder\.blocks\.\d+\.attn\.)([qkv])(\.weight|\.bias)$")
_PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}


def unwrapped(content: Any, file: str) -> dict[str, Tensor]:
    """The state dict in what a file holds: the very one, not a copy, unless it is another kind of mapping.

    Raises:
        SAMError: there is none.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(map(_is_tensor, content.items())):
        raise SAMError(f"{file} is not a SAM checkpoint: it does not hold a dict of tensors by name.")
    return content if isinstance(content, dict) else dict(content)


def _is_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip what a wrapper module (`module.`, `sam.`, ...) put before every name."""
    prefix = next((match[1] for name in state if (match := _FIRST_LAYER.match(name))), "")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def with_joined_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate q, k and v projections (SlimSAM's training layout) into SAM's one."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _SPLIT.match(name)
        if match is None:
            joined[name] = tensor
        elif match[2] == "q":
            parts = [state.get(f"{match[1]}{part}{match[3]}") for part in "qkv"]
            if all(part is not None and part.shape == tensor.shape for part in parts):
                joined[f"{match[1]}qkv{match[3]}"] = torch.cat(parts)
    return joined


def without_pixels(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """SAM's constants for normalising pixels, which some trainers save, are checked and dropped."""
    for name, expected in _PIXELS.items():
        found = state.pop(name, None)
        if found is not None and (found.numel() != 3 or not torch.allclose(found.flatten().float(), torch.tensor(expected))):
            raise SAMError(f"{file} normalizes pixels with {name} {found.flatten()[:3].tolist()}, but SAM uses {expected}.")
    return state

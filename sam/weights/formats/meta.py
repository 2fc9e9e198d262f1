"""Meta's own names, as fine-tunes save them: with split attention weights or pixel constants."""

import re

import torch
from torch import Tensor

from ...errors import SAMError

_SPLIT = re.compile(r"^(image_encoder\.blocks\.\d+\.attn\.)([qkv])(\.weight|\.bias)$")
_PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}


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

"""What other packs' loaders call the checkpoints that ours know: a graph whose nodes were replaced has these values."""

from collections.abc import Collection, Mapping
from typing import Any

from ..utils.text import shown

_SAM = {"h": "sam_vit_h_4b8939.pth", "l": "sam_vit_l_0b3195.pth", "b": "sam_vit_b_01ec64.pth"}

SAM_ALIASES: dict[str, str] = {
    # storyicon's comfyui_segment_anything, ComfyUI-RMBG
    "sam_vit_h (2.56GB)": _SAM["h"],
    "sam_vit_l (1.25GB)": _SAM["l"],
    "sam_vit_b (375MB)": _SAM["b"],
    "sam_hq_vit_h (2.57GB)": "sam_hq_vit_h.pth",
    "sam_hq_vit_l (1.25GB)": "sam_hq_vit_l.pth",
    "sam_hq_vit_b (379MB)": "sam_hq_vit_b.pth",
    "mobile_sam(39MB)": "mobile_sam.pt",
    # WAS Node Suite
    "ViT-H": _SAM["h"],
    "ViT-L": _SAM["l"],
    "ViT-B": _SAM["b"],
}
GROUNDING_ALIASES: dict[str, str] = {
    "GroundingDINO_SwinT_OGC (694MB)": "grounding-dino-tiny",
    "GroundingDINO_SwinB (938MB)": "grounding-dino-base",
}


def is_listed(name: Any, names: Collection[str], aliases: Mapping[str, str]) -> bool | str:
    """ComfyUI's check of a value of a list, for lists that have aliases: True, or what is wrong.

    Args:
        name: the value; None where another node will give it.
        names: what the list shows.
        aliases: what it takes besides.
    """
    if name is None or (isinstance(name, str) and (name in names or name in aliases)):
        return True
    return f"{shown(name)} is not in the list. Refresh it (R), or choose another one."

"""Relatives of SAM and SAM 2 that this pack cannot run, by a key that only they have, and what to use in their place."""

import re
from collections.abc import Iterable

_SAM2 = "sam2.1_hiera_tiny.safetensors, or a larger SAM 2.1"
_WORDS = "a part of SAM 3 without the tracker"
_SAM3 = "the whole file, such as sam3.pt or sam3.1_multiplex_fp16.safetensors, or ComfyUI's own SAM3 nodes for words"
_RELATIVES = tuple(
    (re.compile(rf"(?:{pattern})"), family, instead)
    for pattern, family, instead in (
        (r"image_encoder\.backbone\.", "EfficientViT-SAM", "sam_vit_b_01ec64.pth"),
        (r"(?:detector|tracker|detector_model|tracker_model|detr_encoder|geometry_encoder)\.", _WORDS, _SAM3),
        (r"vision_encoder\.(?:backbone\.layers|neck\.fpn_layers)\.", _WORDS, _SAM3),
        (r"sam_mask_decoder\.(?:hf_token|hf_mlp|compress_vit_feat|embedding_encoder)\b", "a SAM-HQ variant of SAM 2", _SAM2),
        (r"image_encoder\.trunk\.(?:neck|blocks\.0\.(?:ls1|attn\.rel_pos_h))\b", "EfficientTAM", _SAM2),
    )
)


def relative_in(names: Iterable[str], whole: bool = False) -> tuple[str, str] | None:
    """The family that tensors belong to, and what to use in its place; None where it is no relative.

    Args:
        names: of the tensors.
        whole: whether they begin where the model does; otherwise something may stand before them.
    """
    start = "" if whole else r"(?:.*\.)?"
    for pattern, family, instead in _RELATIVES:
        anywhere = re.compile(start + pattern.pattern)
        if any(map(anywhere.match, names)):
            return family, instead
    return None

"""Foreign key names -> SAM's: wrapped and prefixed fine-tunes, Hugging Face's `SamModel`, and split attention weights.

Whatever a rule does not know keeps its name, so that the loader, which is strict, can name it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SAMError
from ..tiny_vit import fold

# Where trainers put the weights: Lightning and MedSAM, most others, micro-sam.
_WRAPPERS = ("state_dict", "model", "model_state")
_FIRST_LAYER = re.compile(
    r"^(.*?)(?:image_encoder\.patch_embed\.(?:proj|seq\.0\.c)|vision_encoder\.patch_embed\.projection)\.weight$"
)
_ENCODER = "image_encoder."
_SPLIT = re.compile(r"^(image_encoder\.blocks\.\d+\.attn\.)([qkv])(\.weight|\.bias)$")
_PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}

# Relatives of SAM that this pack cannot run, by a key that only they have, and what to use in their place.
_RELATIVES = (
    (r"prompt_encoder\.bbox_top_left_embeddings", "EfficientSAM", "sam_vit_b_01ec64.pth"),
    (r"image_encoder\.backbone\.", "EfficientViT-SAM", "sam_vit_b_01ec64.pth"),
    (r"sam_mask_decoder\.|memory_attention\.", "SAM 2", "a pack for SAM 2, or ComfyUI's own SAM3 nodes"),
    (r"detector\.backbone\.|tracker\.", "SAM 3", "ComfyUI's own SAM3 nodes"),
)

_HQ_LAYERS = (
    ("compress_vit", "compress_vit_feat"),
    ("encoder", "embedding_encoder"),
    ("mask", "embedding_maskfeature"),
)
# transformers' convert_sam_to_hf.py, the other way and anchored: each pattern matches one whole component path.
_HUGGING_FACE = tuple(
    (re.compile(f"^{pattern}$"), replacement)
    for pattern, replacement in (
        (r"vision_encoder\.patch_embed\.projection\.(\w+)", r"image_encoder.patch_embed.proj.\1"),
        (r"vision_encoder\.layers\.(\d+)\.layer_norm(\d)\.(\w+)", r"image_encoder.blocks.\1.norm\2.\3"),
        (r"vision_encoder\.layers\.(\d+)\.(.+)", r"image_encoder.blocks.\1.\2"),
        (r"vision_encoder\.neck\.conv1\.(\w+)", r"image_encoder.neck.0.\1"),
        (r"vision_encoder\.neck\.layer_norm1\.(\w+)", r"image_encoder.neck.1.\1"),
        (r"vision_encoder\.neck\.conv2\.(\w+)", r"image_encoder.neck.2.\1"),
        (r"vision_encoder\.neck\.layer_norm2\.(\w+)", r"image_encoder.neck.3.\1"),
        (r"vision_encoder\.(\w+)", r"image_encoder.\1"),
        (r"prompt_encoder\.shared_embedding\.positional_embedding", "POSITIONS"),
        (r"shared_image_embedding\.positional_embedding", "POSITIONS"),
        (r"prompt_encoder\.point_embed\.(\d)\.weight", r"prompt_encoder.point_embeddings.\1.weight"),
        (r"prompt_encoder\.mask_embed\.conv1\.(\w+)", r"prompt_encoder.mask_downscaling.0.\1"),
        (r"prompt_encoder\.mask_embed\.layer_norm1\.(\w+)", r"prompt_encoder.mask_downscaling.1.\1"),
        (r"prompt_encoder\.mask_embed\.conv2\.(\w+)", r"prompt_encoder.mask_downscaling.3.\1"),
        (r"prompt_encoder\.mask_embed\.layer_norm2\.(\w+)", r"prompt_encoder.mask_downscaling.4.\1"),
        (r"prompt_encoder\.mask_embed\.conv3\.(\w+)", r"prompt_encoder.mask_downscaling.6.\1"),
        (r"mask_decoder\.transformer\.layers\.(\d+)\.layer_norm(\d)\.(\w+)", r"mask_decoder.transformer.layers.\1.norm\2.\3"),
        (r"mask_decoder\.transformer\.layer_norm_final_attn\.(\w+)", r"mask_decoder.transformer.norm_final_attn.\1"),
        (r"mask_decoder\.hq_token\.(\w+)", r"mask_decoder.hf_token.\1"),
        *(
            (rf"mask_decoder\.{theirs}_{part}\.(\w+)", rf"mask_decoder.{ours}.{index}.\1")
            for theirs, ours in _HQ_LAYERS
            for part, index in (("conv1", 0), ("norm", 1), ("conv2", 3))
        ),
        (r"mask_decoder\.upscale_conv1\.(\w+)", r"mask_decoder.output_upscaling.0.\1"),
        (r"mask_decoder\.upscale_layer_norm\.(\w+)", r"mask_decoder.output_upscaling.1.\1"),
        (r"mask_decoder\.upscale_conv2\.(\w+)", r"mask_decoder.output_upscaling.3.\1"),
    )
)
_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_MLP = re.compile(
    r"^(mask_decoder\.(?:iou_prediction_head|hq_mask_mlp|output_hypernetworks_mlps\.\d+))\.(proj_in|proj_out|layers\.(\d+))\.(\w+)$"
)


def to_sam_names(content: Any, file: str) -> dict[str, Tensor]:
    """A checkpoint's content as a state dict with segment_anything's names.

    Args:
        content: what the file holds: a dict of tensors, or one that wraps it.
        file: its name, for messages.

    Raises:
        SAMError: there is no dict of tensors in it, it is of another family (which is named), or its model expects pixels
            normalised otherwise than SAM's.
    """
    state = _without_prefix(_unwrapped(content, file))
    _refuse_relatives(state, file)
    if any(name.startswith("vision_encoder.") for name in state):
        state = _from_hugging_face(state, file)
    if any(name.startswith(f"{_ENCODER}patch_embed.seq.") for name in state):
        state = _with_folded_norms(state)
    return _without_pixels(_joined(state), file)


def _unwrapped(content: Any, file: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise SAMError(f"{file} is no SAM checkpoint: it does not hold a dict of tensors.")
    return dict(content)


def _refuse_relatives(state: Mapping[str, Tensor], file: str) -> None:
    for pattern, family, instead in _RELATIVES:
        if any(re.match(pattern, name) for name in state):
            raise SAMError(f"{file} holds {family}, which this pack does not run: use {instead}.")


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip what a wrapper module (`module.`, `sam.`, ...) put before every name."""
    prefix = next((match[1] for name in state if (match := _FIRST_LAYER.match(name))), "")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _from_hugging_face(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = _hugging_face_name(name, state)
        if new in renamed and not torch.equal(renamed[new], tensor):
            raise SAMError(f"{file} holds two different tensors for {new}: it is not a SamModel as it was saved.")
        renamed[new] = tensor
    return renamed


def _hugging_face_name(name: str, state: Mapping[str, Tensor]) -> str:
    if match := _MLP.match(name):
        return f"{match[1].replace('hq_mask_mlp', 'hf_mlp')}.layers.{_mlp_layer(match, state)}.{match[4]}"
    for pattern, replacement in _HUGGING_FACE:
        if pattern.match(name):
            return _POSITIONS if replacement == "POSITIONS" else pattern.sub(replacement, name)
    return name


def _mlp_layer(match: re.Match[str], state: Mapping[str, Tensor]) -> int:
    """SAM numbers an MLP's layers through; Hugging Face calls the first `proj_in` and the last `proj_out`."""
    if match[2] == "proj_in":
        return 0
    if match[3] is not None:
        return int(match[3]) + 1
    return 1 + sum(name.startswith(f"{match[1]}.layers.") and name.endswith(".weight") for name in state)


def _with_folded_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's encoder as `TinyViT` has it; the rest as it is."""
    encoder = {name.removeprefix(_ENCODER): tensor for name, tensor in state.items() if name.startswith(_ENCODER)}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(_ENCODER)}
    return {_ENCODER + name: tensor for name, tensor in fold(encoder).items()} | rest


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate q, k and v projections (SlimSAM's training layout) into SAM's one."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _SPLIT.match(name)
        if match is None:
            joined[name] = tensor
        elif match[2] == "q":
            parts = [state.get(f"{match[1]}{part}{match[3]}") for part in "qkv"]
            if all(part is not None for part in parts):
                joined[f"{match[1]}qkv{match[3]}"] = torch.cat(parts)
    return joined


def _without_pixels(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """SAM's constants for normalising pixels, which some trainers save, are checked and dropped."""
    for name, expected in _PIXELS.items():
        found = state.pop(name, None)
        if found is not None and not torch.allclose(found.flatten().float(), torch.tensor(expected)):
            raise SAMError(f"{file} normalises pixels by {name} {found.flatten().tolist()}, not by SAM's {expected}.")
    return state

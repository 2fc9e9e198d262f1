"""The names of Hugging Face's `SamModel` and `SamHQModel` -> SAM's."""

import re
from collections.abc import Collection

import torch
from torch import Tensor

from ...errors import SAMError

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


def is_hugging_face(names: Collection[str]) -> bool:
    """Whether a model's tensors have the names of transformers' classes."""
    return any(name.startswith("vision_encoder.") for name in names)


def from_hugging_face(state: dict[str, Tensor], file: str, beside: Collection[str] = ()) -> dict[str, Tensor]:
    """The same tensors under SAM's names; a name that no rule knows stays.

    Args:
        state: all tensors of a model, or some of them.
        file: its name, for messages.
        beside: names of others of the same model, by which the layers of its MLPs are counted.

    Raises:
        SAMError: two tensors that are one in SAM differ.
    """
    renamed: dict[str, Tensor] = {}
    names = {*state, *beside}
    for name, tensor in state.items():
        new = _hugging_face_name(name, names)
        if new in renamed and not torch.equal(renamed[new], tensor):
            raise SAMError(
                f"{file} holds two different tensors for {new}, which must be equal in a SamModel: save or download it again."
            )
        renamed[new] = tensor
    return renamed


def _hugging_face_name(name: str, names: Collection[str]) -> str:
    if match := _MLP.match(name):
        return f"{match[1].replace('hq_mask_mlp', 'hf_mlp')}.layers.{_mlp_layer(match, names)}.{match[4]}"
    for pattern, replacement in _HUGGING_FACE:
        if pattern.match(name):
            return _POSITIONS if replacement == "POSITIONS" else pattern.sub(replacement, name)
    return name


def _mlp_layer(match: re.Match[str], names: Collection[str]) -> int:
    """SAM numbers an MLP's layers through; Hugging Face calls the first `proj_in` and the last `proj_out`."""
    if match[2] == "proj_in":
        return 0
    if match[3] is not None:
        return int(match[3]) + 1
    return 1 + sum(name.startswith(f"{match[1]}.layers.") and name.endswith(".weight") for name in names)

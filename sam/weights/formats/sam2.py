"""SAM 2's files -> Meta's names: Meta's `.pt`, its repackaged safetensors, and transformers' layout.

Meta's keys are those of facebookresearch/sam2; transformers' are those of `Sam2Model` and `Sam2VideoModel` (4.56 to 5.23), by
its `convert_sam2_to_hf.py` the other way and anchored. Whatever a rule does not know keeps its name, so that the loader,
which is strict, can name it.
"""

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from ...errors import SAMError

_HUGGING_FACE_ROOT = "vision_encoder.backbone."

# The memory of a video's frames, in Meta's names and in transformers'; an image needs none of it.
VIDEO = re.compile(
    r"memory_attention\.|memory_encoder\.|maskmem_tpos_enc$|no_mem_pos_enc$|no_obj_ptr$|no_obj_embed_spatial$|obj_ptr_proj\.|"
    r"obj_ptr_tpos_proj\.|mask_downsample\.|memory_temporal_positional_encoding$|no_memory_positional_encoding$|"
    r"no_object_pointer$|occlusion_spatial_embedding_parameter$|object_pointer_proj\.|"
    r"temporal_positional_encoding_projection_layer\.|spatial_perceiver\."
)
# Only 2.1 has these, and only files that hold the video part too.
_NEW_IN_2_1 = (
    "no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "occlusion_spatial_embedding_parameter",
    "temporal_positional_encoding_projection_layer.weight",
)  # fmt: skip

_MASK_EMBED = {"conv1": 0, "layer_norm1": 1, "conv2": 3, "layer_norm2": 4, "conv3": 6}
_UPSCALE = {"upscale_conv1": 0, "upscale_layer_norm": 1, "upscale_conv2": 3}
_POSITIONS = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_POINTS = "prompt_encoder.point_embed.weight"
_ATTENTION = r"self_attn|cross_attn_token_to_image|cross_attn_image_to_token"
_MASK_CONVOLUTIONS = 4  # of the memory encoder, each with a norm and an activation: what comes next is Meta's number 12
_VIDEO_PARTS = {
    "memory_temporal_positional_encoding": "maskmem_tpos_enc",
    "no_memory_positional_encoding": "no_mem_pos_enc",
    "no_object_pointer": "no_obj_ptr",
    "occlusion_spatial_embedding_parameter": "no_obj_embed_spatial",
}
_FUSER = {"depthwise_conv": "dwconv", "layer_norm": "norm", "pointwise_conv1": "pwconv1", "pointwise_conv2": "pwconv2"}


_PERCEIVER = (
    (r"latents_1d", "latents"),
    (r"layers\.(\d+)\.layer_norm_input\.(\w+)", r"layers.\1.attn.norm_x.\2"),
    (r"layers\.(\d+)\.layer_norm_latents\.(\w+)", r"layers.\1.attn.norm_latents.\2"),
    (r"layers\.(\d+)\.layer_norm_self\.(\w+)", r"layers.\1.self_attn.norm.\2"),
    (r"layers\.(\d+)\.cross_attention\.q_proj\.(\w+)", r"layers.\1.attn.to_q.\2"),
    (r"layers\.(\d+)\.cross_attention\.o_proj\.(\w+)", r"layers.\1.attn.to_out.\2"),
    (r"layers\.(\d+)\.cross_attention\.([kv])_proj\.(\w+)", r"layers.\1.attn.to_\2.\3"),
    (r"layers\.(\d+)\.self_attention\.q_proj\.(\w+)", r"layers.\1.self_attn.to_q.\2"),
    (r"layers\.(\d+)\.self_attention\.o_proj\.(\w+)", r"layers.\1.self_attn.to_out.\2"),
    (r"layers\.(\d+)\.self_attention\.([kv])_proj\.(\w+)", r"layers.\1.self_attn.to_\2.\3"),
    *(
        (rf"layers\.(\d+)\.{theirs}\.{part}\.(\w+)", rf"layers.\1.{ours}.{index}.\2")
        for theirs, ours in (("mlp", "ff"), ("self_mlp", "self_ff"))
        for part, index in (("layer_norm", 0), ("up_proj", 1), ("down_proj", 3))
    ),
    (r"layer_norm\.(\w+)", r"norm.\1"),
)
_KEYS = re.compile(r"(spatial_perceiver\.layers\.\d+\.(?:self_)?attn)\.to_([kv])\.(\w+)")


def _table() -> Iterable[tuple[str, str]]:
    trunk, decoder = r"vision_encoder\.backbone\.", r"mask_decoder\."
    yield trunk + r"timm_model\.(.+)", r"image_encoder.trunk.body.\1"
    yield trunk + r"patch_embed\.projection\.(\w+)", r"image_encoder.trunk.patch_embed.proj.\1"
    yield trunk + r"blocks\.(\d+)\.layer_norm(\d)\.(\w+)", r"image_encoder.trunk.blocks.\1.norm\2.\3"
    yield trunk + r"blocks\.(\d+)\.mlp\.proj_in\.(\w+)", r"image_encoder.trunk.blocks.\1.mlp.layers.0.\2"
    yield trunk + r"blocks\.(\d+)\.mlp\.proj_out\.(\w+)", r"image_encoder.trunk.blocks.\1.mlp.layers.1.\2"
    yield trunk + r"(.+)", r"image_encoder.trunk.\1"
    yield r"vision_encoder\.neck\.convs\.(\d+)\.(\w+)", r"image_encoder.neck.convs.\1.conv.\2"
    yield r"(?:prompt_encoder\.shared_embedding|shared_image_embedding)\.positional_embedding", _POSITIONS
    for theirs, index in _MASK_EMBED.items():
        yield rf"prompt_encoder\.mask_embed\.{theirs}\.(\w+)", rf"sam_prompt_encoder.mask_downscaling.{index}.\1"
    yield r"prompt_encoder\.(no_mask_embed|not_a_point_embed)\.weight", r"sam_prompt_encoder.\1.weight"
    for theirs, index in _UPSCALE.items():
        yield rf"{decoder}{theirs}\.(\w+)", rf"sam_mask_decoder.output_upscaling.{index}.\1"
    layer, ours = decoder + r"transformer\.layers\.(\d+)\.", r"sam_mask_decoder.transformer.layers.\1."
    yield rf"{layer}({_ATTENTION})\.o_proj\.(\w+)", ours + r"\2.out_proj.\3"
    yield rf"{layer}layer_norm(\d)\.(\w+)", ours + r"norm\2.\3"
    yield rf"{layer}mlp\.proj_in\.(\w+)", ours + r"mlp.layers.0.\2"
    yield rf"{layer}mlp\.proj_out\.(\w+)", ours + r"mlp.layers.1.\2"
    last = "sam_mask_decoder.transformer."
    yield decoder + r"transformer\.final_attn_token_to_image\.o_proj\.(\w+)", last + r"final_attn_token_to_image.out_proj.\1"
    yield decoder + r"transformer\.layer_norm_final_attn\.(\w+)", last + r"norm_final_attn.\1"
    yield decoder + r"(.+)", r"sam_mask_decoder.\1"
    yield r"no_memory_embedding", "no_mem_embed"
    yield from _video_table()


def _video_table() -> Iterable[tuple[str, str]]:
    for theirs, ours in _VIDEO_PARTS.items():
        yield theirs, ours
    yield r"temporal_positional_encoding_projection_layer\.(\w+)", r"obj_ptr_tpos_proj.\1"
    layer, ours = r"memory_attention\.layers\.(\d+)\.", r"memory_attention.layers.\1."
    yield rf"{layer}(self_attn|cross_attn_image)\.o_proj\.(\w+)", ours + r"\2.out_proj.\3"
    yield rf"{layer}layer_norm(\d)\.(\w+)", ours + r"norm\2.\3"
    yield rf"{layer}mlp\.up_proj\.(\w+)", ours + r"linear1.\2"
    yield rf"{layer}mlp\.down_proj\.(\w+)", ours + r"linear2.\2"
    yield r"memory_attention\.layer_norm\.(\w+)", r"memory_attention.norm.\1"
    for theirs, mine in _PERCEIVER:
        yield rf"spatial_perceiver\.{theirs}", rf"spatial_perceiver.{mine}"
    downsampler, ours = r"memory_encoder\.mask_downsampler\.", "memory_encoder.mask_downsampler.encoder."
    for index in range(_MASK_CONVOLUTIONS):
        yield rf"{downsampler}layers\.{index}\.conv\.(\w+)", rf"{ours}{3 * index}.\1"
        yield rf"{downsampler}layers\.{index}\.layer_norm\.(\w+)", rf"{ours}{3 * index + 1}.\1"
    yield rf"{downsampler}final_conv\.(\w+)", rf"{ours}{3 * _MASK_CONVOLUTIONS}.\1"
    yield r"memory_encoder\.feature_projection\.(\w+)", r"memory_encoder.pix_feat_proj.\1"
    yield r"memory_encoder\.projection\.(\w+)", r"memory_encoder.out_proj.\1"
    for theirs, mine in _FUSER.items():
        yield rf"memory_encoder\.memory_fuser\.layers\.(\d+)\.{theirs}\.(\w+)", rf"memory_encoder.fuser.layers.\1.{mine}.\2"
    yield r"memory_encoder\.memory_fuser\.layers\.(\d+)\.scale", r"memory_encoder.fuser.layers.\1.gamma"


_HUGGING_FACE = tuple((re.compile(f"^{pattern}$"), replacement) for pattern, replacement in _table())
_HEAD = re.compile(
    r"^(mask_decoder\.(?:iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+)|object_pointer_proj)"
    r"\.(proj_in|proj_out|layers\.(\d+))\.(\w+)$"
)


def is_sam2(state: Mapping[str, Tensor]) -> bool:
    """Whether a model's tensors are those of SAM 2."""
    return any(name.startswith(("sam_mask_decoder.", _HUGGING_FACE_ROOT)) for name in state)


def version_of(state: Mapping[str, Tensor]) -> str:
    """SAM 2.1 where the file has what only 2.1 has, else SAM 2: the image parts of the two do not differ in form."""
    return "SAM 2.1" if any(name.endswith(_NEW_IN_2_1) for name in state) else "SAM 2"


def to_sam2_names(state: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint's image part under Meta's names.

    Args:
        state: names and tensors of a model that `is_sam2`, without anything before its names.
        file: its name, for messages.

    Raises:
        SAMError: two tensors make one.
    """
    return _renamed_all({name: tensor for name, tensor in state.items() if not VIDEO.match(name)}, state, file)


def to_video_names(state: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint's video part under Meta's names; none in a file of an image model. See `to_sam2_names`."""
    video = _renamed_all({name: tensor for name, tensor in state.items() if VIDEO.match(name)}, state, file)
    for name in list(video):  # keys and values of EdgeTAM's perceiver are one layer in Meta's files
        match = _KEYS.fullmatch(name)
        if match and match[2] == "k" and f"{match[1]}.to_v.{match[3]}" in video:
            video[f"{match[1]}.to_kv.{match[3]}"] = torch.cat([video.pop(name), video.pop(f"{match[1]}.to_v.{match[3]}")])
    return video


def _renamed_all(part: dict[str, Tensor], state: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Some of a checkpoint's tensors, renamed where the whole is transformers'."""
    return from_sam2_model(part, file) if any(name.startswith(_HUGGING_FACE_ROOT) for name in state) else part


def from_sam2_model(state: Mapping[str, Tensor], file: str, beside: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors with the names of transformers' `Sam2Model` under Meta's names; a name that no rule knows stays.

    Args:
        state: all tensors of a model, or some of them.
        file: its name, for messages.
        beside: names of others of the same model, by which the layers of its heads are counted.

    Raises:
        SAMError: two tensors make one.
    """
    renamed: dict[str, Tensor] = {}
    names = {*state, *beside}
    for name, tensor in state.items():
        for new, part in _renamed(name, tensor, names):
            if new in renamed and not torch.equal(renamed[new], part):
                raise SAMError(f"{file} holds two different tensors for {new}: it is not a Sam2Model as it was saved.")
            renamed[new] = part
    return renamed


def _renamed(name: str, tensor: Tensor, names: Collection[str]) -> Iterable[tuple[str, Tensor]]:
    if name == _POINTS:  # Meta has a table of one row for each kind of point
        return [(f"sam_prompt_encoder.point_embeddings.{kind}.weight", row[None]) for kind, row in enumerate(tensor)]
    if match := _HEAD.match(name):
        head = "obj_ptr_proj" if match[1] == "object_pointer_proj" else f"sam_{match[1]}"
        return [(f"{head}.layers.{_head_layer(match, names)}.{match[4]}", tensor)]
    for pattern, replacement in _HUGGING_FACE:
        if pattern.match(name):
            return [(pattern.sub(replacement, name), tensor)]
    return [(name, tensor)]


def _head_layer(match: re.Match[str], names: Collection[str]) -> int:
    """Meta numbers a head's layers through; transformers calls the first `proj_in` and the last `proj_out`."""
    if match[2] == "proj_in":
        return 0
    if match[3] is not None:
        return int(match[3]) + 1
    return 1 + sum(name.startswith(f"{match[1]}.layers.") and name.endswith(".weight") for name in names)

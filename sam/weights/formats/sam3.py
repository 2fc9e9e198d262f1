"""SAM 3's and 3.1's files -> the part for clicks, under the names of our model: Meta's, ComfyUI's and transformers' layouts.

The files hold one trunk, a detector for words, and a tracker, in which SAM 2's prompt encoder and mask decoder are. Names are
those of facebookresearch/sam3, of ComfyUI's `comfy/ldm/sam3` and of transformers' `Sam3TrackerModel` (5.0 to 5.24). 3.1 has two
mask decoders: the one for clicks is called interactive.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from ...errors import SAMError
from .sam2 import from_sam2_model

_TRUNK, _NECK = "image_encoder.trunk.", "image_encoder.neck.convs."
_TRUNK_ENDS = ("vision_backbone.trunk.ln_pre.weight", "vision_encoder.backbone.layer_norm.weight")
_LEVELS = "[012]"  # SAM 3 has a fourth map, which clicks do not use
_VISION = r"vision_backbone\."
_THEIR_TRUNK = r"vision_encoder\.backbone\."
# What is before these names does not matter, but in transformers': the detector has a neck and a mask decoder of its own.
_FOREIGN = tuple(
    (re.compile(rf"(?:.+\.)?{pattern}"), replacement)
    for pattern, replacement in (
        (rf"{_VISION}trunk\.(?!.*freqs_cis)(.+)", rf"{_TRUNK}\1"),
        (rf"{_VISION}(?:sam2|interactive)_convs\.({_LEVELS}\..+)", rf"{_NECK}\1"),
        (r"(?:interactive_)?(sam_(?:mask_decoder|prompt_encoder)\..+)", r"\1"),
        (r"(?:no_mem_embed|interactivity_no_mem_embed)", "no_mem_embed"),
    )
)
_DECODER = (
    (re.compile(r"(sam_mask_decoder\.transformer\.layers\.\d+\.mlp)\.(?:lin1|0)\.(\w+)"), r"\1.layers.0.\2"),
    (re.compile(r"(sam_mask_decoder\.transformer\.layers\.\d+\.mlp)\.(?:lin2|2)\.(\w+)"), r"\1.layers.1.\2"),
    (re.compile(r"(sam_mask_decoder\.transformer)\.norm_final\.(\w+)"), r"\1.norm_final_attn.\2"),
)
_SCALE_LAYERS = {("0", "0"): "dconv_2x2_0", ("0", "2"): "dconv_2x2_1", ("1", "0"): "dconv_2x2"}
_FPN = re.compile(rf"(?:.+\.)?(?:tracker_neck|vision_encoder\.neck)\.fpn_layers\.({_LEVELS})\.(.+)")
_LAYER = re.compile(rf"(?:.+\.)?{_THEIR_TRUNK}(.+)")
_TRACKER = re.compile(
    r"(?:.+\.)?((?:mask_decoder|prompt_encoder)\..+|shared_image_embedding\.positional_embedding|no_memory_embedding)"
)
_DETECTOR = re.compile(r"(?:.+\.)?detector_model\.")
_ATTENTION = re.compile(rf"({re.escape(_TRUNK)}blocks\.\d+\.attn)\.(q|k|v)_proj\.(\w+)")


def is_sam3(names: Iterable[str]) -> bool:
    """Whether tensors are those of SAM 3 with the part for clicks."""
    names = list(names)
    has_trunk = any(name.endswith(_TRUNK_ENDS) for name in names)
    return has_trunk and any(name.endswith("mask_decoder.iou_token.weight") and "detector_model." not in name for name in names)


def for_clicks(named: Iterable[tuple[str, Tensor]], file: str) -> dict[str, Tensor]:
    """The tensors of a model that `is_sam3` that clicks need, under the names of our model; all others are left out.

    Raises:
        SAMError: two different tensors make one.
    """
    named = list(named)
    if any(re.match(rf"(?:.+\.)?{_THEIR_TRUNK}", name) for name, _ in named):
        return _from_transformers(named, file)
    found: dict[str, Tensor] = {}
    is_3_1 = any("interactive_sam_mask_decoder." in name for name, _ in named)
    for name, tensor in named:
        if is_3_1 and re.match(r"(?:.+\.)?sam_(?:mask_decoder|prompt_encoder)\.", name):
            continue  # of films
        new = _first(_FOREIGN, name)
        if new is not None:
            _put(found, _first(_DECODER, new) or new, tensor, file)
    return found


def _first(rules: Iterable[tuple[re.Pattern[str], str]], name: str) -> str | None:
    return next((match.expand(new) for pattern, new in rules if (match := pattern.fullmatch(name))), None)


def _put(found: dict[str, Tensor], name: str, tensor: Tensor, file: str) -> None:
    if name in found and not (found[name].shape == tensor.shape and torch.equal(found[name], tensor)):
        raise SAMError(f"{file} was not loaded: it holds two different tensors for {name}.")
    found[name] = tensor


def _from_transformers(named: list[tuple[str, Tensor]], file: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    tracker: dict[str, Tensor] = {}
    for name, tensor in named:
        if match := _LAYER.fullmatch(name):
            _put(found, _TRUNK + _of_trunk(match[1]), tensor, file)
        elif _DETECTOR.match(name):
            continue
        elif match := _FPN.fullmatch(name):
            _put(found, f"{_NECK}{match[1]}.{_of_level(match[1], match[2])}", tensor, file)
        elif match := _TRACKER.fullmatch(name):
            _put(tracker, match[1], tensor, file)
    return _joined(found) | from_sam2_model(tracker, file)


def _of_trunk(name: str) -> str:
    name = name.replace("embeddings.patch_embeddings.projection.", "patch_embed.proj.")
    name = name.replace("embeddings.position_embeddings", "pos_embed")
    name = re.sub(r"^layer_norm\.", "ln_pre.", name)
    name = re.sub(r"^layers\.(\d+)\.layer_norm(\d)\.", r"blocks.\1.norm\2.", name)
    name = re.sub(r"^layers\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj.", name)
    name = re.sub(r"^layers\.(\d+)\.attention\.", r"blocks.\1.attn.", name)
    return re.sub(r"^layers\.(\d+)\.", r"blocks.\1.", name)


def _of_level(level: str, name: str) -> str:
    if match := re.match(r"scale_layers\.(\d+)\.(\w+)$", name):
        return f"{_SCALE_LAYERS.get((level, match[1]), match[0])}.{match[2]}"
    return name.replace("proj1.", "conv_1x1.").replace("proj2.", "conv_3x3.")


def _joined(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values are one layer in Meta's files."""
    joined: dict[str, Tensor] = {}
    for name, tensor in found.items():
        match = _ATTENTION.fullmatch(name)
        if match is None:
            joined[name] = tensor
        elif match[2] == "q":
            parts = [found.get(f"{match[1]}.{part}_proj.{match[3]}") for part in "qkv"]
            if all(part is not None and part.shape == tensor.shape and part.dtype == tensor.dtype for part in parts):
                joined[f"{match[1]}.qkv.{match[3]}"] = torch.cat(parts)
    return joined

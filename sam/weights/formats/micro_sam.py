"""micro-sam's own LoRA: its layers lie in the file beside the weights that they add to, and are merged into them.

`PEFT_Sam` with `LoRASurgery` (micro_sam/models/peft_sam.py, 1.0 to 1.8) wraps the joint projection of an attention, and the MLP
of a block where it is asked to. Each pair adds B A to its layer, with a factor of 1.
"""

import re

from torch import Tensor

from ...errors import SAMError
from ..limits import shortened

_WRAPPED = re.compile(r"^(image_encoder\.blocks\.\d+\.(?:attn\.qkv|mlp))\.(?:qkv_proj\.|mlp_layer\.)(.+)$")
_LORA = re.compile(r"^(image_encoder\.blocks\.\d+)\.(?:attn\.qkv|mlp)\.w_([ab])_linear_([qkv12])\.weight$")
_OTHERS = re.compile(
    r"^image_encoder\.(?:blocks\.\d+\.)?(?:attn\.qkv\.(?:[qv]_FacTs|FacT[uv])|mlp\.mlp_proj|(?:.+\.)?(?:proj|qkv|lin[12]|norm[12])\.scale$)"
)


def with_merged_lora(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """A model's weights under Meta's names with micro-sam's LoRA layers in them; the very same state where there are none.

    Args:
        state: float32, names as in the file.
        file: its name, for messages.

    Raises:
        SAMError: a layer lacks its other half or the weight that it adds to, its shape does not fit, or they are adapters of
            micro-sam that are not LoRA: FacT, SSF, AdaptFormer.
    """
    if found := next(filter(_OTHERS.match, state), None):
        raise SAMError(
            f"{file} was not loaded: it holds layers of micro-sam's PEFT_Sam ({shortened(found)}) that are not LoRA. "
            "Fine-tune with LoRASurgery, or without peft_kwargs."
        )
    pairs: dict[tuple[str, str], dict[str, Tensor]] = {}
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _LORA.match(name):
            pairs.setdefault((match[1], match[3]), {})[match[2]] = tensor
        else:
            merged[_WRAPPED.sub(r"\1.\2", name)] = tensor
    for (block, part), pair in pairs.items():
        name = f"{block}.mlp.lin{part}.weight" if part in "12" else f"{block}.attn.qkv.weight"
        weight, first, second = merged.get(name), pair.get("a"), pair.get("b")
        rows = slice(None)
        if weight is not None and part in "qkv" and not len(weight) % 3:
            size = len(weight) // 3
            rows = slice("qkv".index(part) * size, ("qkv".index(part) + 1) * size)
        fits = all(one is not None and one.ndim == 2 for one in (weight, first, second)) and first.shape[0] == second.shape[1]
        if not fits or weight[rows].shape != (second.shape[0], first.shape[1]):
            raise SAMError(
                f"{file} was not loaded: the LoRA layers of {part} in {shortened(block)} do not fit {shortened(name)}."
            )
        merged[name] = weight.clone()
        merged[name][rows] += second @ first
    return merged if pairs else state

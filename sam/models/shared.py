"""SAM 3 as ComfyUI's own loader made it, for clicks: one model in memory for its words and for this pack's clicks."""

import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...utils.text import shown
from ..errors import SAMError
from ..weights.formats.sam3 import for_clicks, is_sam3
from .sam2 import SAM2Model
from .sam2.model import share_sam3

_made: weakref.WeakKeyDictionary[nn.Module, SAM2Model] = weakref.WeakKeyDictionary()


def from_comfyui(patcher: Any) -> SAM2Model:
    """The model for clicks on the weights of a `MODEL`; the same one for as long as ComfyUI's module lives.

    Args:
        patcher: ComfyUI's `ModelPatcher`, as *Load Checkpoint* gives it for a file of SAM 3 or 3.1.

    Raises:
        SAMError: it is not one, or its model is not SAM 3.
    """
    module = getattr(getattr(patcher, "model", None), "diffusion_model", None)
    if not isinstance(module, nn.Module):
        raise SAMError(f"model is {shown(patcher)}: connect the MODEL of Load Checkpoint with a file of SAM 3 or SAM 3.1.")
    if module not in _made:
        state = module.state_dict(keep_vars=True)
        name = type(module).__name__
        if not is_sam3(state):
            raise SAMError(
                f"model is a {name}, not SAM 3: connect the MODEL of Load Checkpoint with a file of SAM 3 or SAM 3.1."
            )
        with torch.inference_mode(False), torch.no_grad():
            _made[module] = share_sam3(for_clicks(state.items(), name), Path(name))
    _made[module].shared_with = weakref.ref(patcher)  # ComfyUI makes several handles on one module, and drops them
    return _made[module]

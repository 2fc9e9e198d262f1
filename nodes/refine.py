"""SAM Refine Mask: the finishing steps on any MASK."""

from typing import Any

import torch
from torch import Tensor

from ..utils.comfy import Progress
from ..utils.finish import LIMITS, Finish, finish_mask
from ..utils.images import as_masks
from .common import CATEGORY


def _number(kind: str, name: str, tooltip: str) -> tuple[str, dict[str, Any]]:
    low, high = LIMITS[name]
    step = {"step": 0.5} if kind == "FLOAT" else {}
    return kind, {"default": 0, "min": low, "max": high, **step, "tooltip": tooltip}


FINISH_INPUTS: dict[str, Any] = {
    "fill_holes": _number(
        "INT", "fill_holes", "Fill holes of at most this many pixels. A hole is enclosed by the mask. 0 disables this."
    ),
    "drop_islands": _number("INT", "drop_islands", "Remove separate parts with fewer pixels than this. 0 disables this."),
    "smooth": _number(
        "FLOAT", "smooth", "Round off corners and steps that are smaller than about this many pixels. 0 disables this."
    ),
    "grow": _number("INT", "grow", "Grow the mask by this many pixels in all directions. Negative values shrink it."),
    "invert": ("BOOLEAN", {"default": False, "tooltip": "Swap the inside and the outside of the mask."}),
    "feather": _number(
        "FLOAT", "feather", "Soften the edge: the standard deviation, in pixels, of a Gaussian blur. 0 disables this."
    ),
}


class RefineMask:
    """`SAMKit_RefineMask`."""

    DESCRIPTION = (
        "Finishes masks: fills holes, removes islands, smooths, grows or shrinks, inverts and feathers, in this order. "
        "The Finish panel of SAM Prompt Editor has the same options."
    )
    SEARCH_ALIASES = [
        "grow mask",
        "shrink mask",
        "feather mask",
        "blur mask",
        "smooth mask",
        "fill holes",
        "expand mask",
        "dilate mask",
        "erode mask",
        "clean mask",
        "inpaint mask",
        "sam",
    ]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("MASK",)
    RETURN_NAMES = ("masks",)
    OUTPUT_TOOLTIPS = ("The finished masks, in the order of the input.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"masks": ("MASK", {"tooltip": "Masks [N, H, W]. Each mask is processed separately."}), **FINISH_INPUTS}
        }

    def execute(
        self,
        masks: Tensor,
        fill_holes: int = 0,
        drop_islands: int = 0,
        smooth: float = 0.0,
        grow: int = 0,
        invert: bool = False,
        feather: float = 0.0,
    ) -> tuple[Tensor]:
        given, finish = as_masks(masks, "masks"), Finish(fill_holes, drop_islands, smooth, grow, invert, feather)
        finished, progress = torch.empty_like(given), Progress(len(given))
        for index, mask in enumerate(given):
            progress.check_interrupted()
            finished[index] = torch.from_numpy(finish_mask(mask.cpu().numpy(), finish))
            progress.advance()
        return (finished,)

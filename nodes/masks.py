"""SAM Select Masks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..sam import SAMError
from ..utils.boxes import BoundingBox, nested_boxes, tight_box
from ..utils.images import as_masks
from .common import CATEGORY

_BEYOND = float("inf")  # an empty mask has no place: it comes last
_KEYS: dict[str, Callable[[BoundingBox, float], float]] = {
    "area": lambda box, area: -area,
    "score": lambda box, area: -box.get("score", 0.0),
    "left-right": lambda box, area: box["x"] if area else _BEYOND,
    "top-bottom": lambda box, area: box["y"] if area else _BEYOND,
}
ORDERS = ("index", *_KEYS)
_KNOWN = ("score", "label", "frame_index")  # of a given box, what its mask keeps


class SelectMasks:
    """`SAMKit_SelectMasks`."""

    DESCRIPTION = (
        "Sorts masks (by area, score or position), selects some of them, and optionally merges the selection. "
        "If no mask is selected, the output is one empty mask."
    )
    SEARCH_ALIASES = [
        "sam",
        "filter masks",
        "sort masks",
        "pick mask",
        "select object",
        "merge masks",
        "mask by index",
        "largest mask",
    ]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("MASK", "BOUNDING_BOX")
    RETURN_NAMES = ("masks", "bboxes")
    OUTPUT_TOOLTIPS = (
        "The selected masks, in order, or one merged mask.",
        "The tight boxes of the selected masks, with their scores.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        whole = {"min": 0, "max": 1_000_000}
        return {
            "required": {
                "masks": ("MASK", {"tooltip": "Masks [N, H, W], for example from SAM Predict Mask with individual_masks on."}),
                "order_by": (
                    list(ORDERS),
                    {
                        "default": "index",
                        "tooltip": "index: input order. area: largest first. score: highest first (needs bboxes). "
                        "left-right, top-bottom: by the left or top edge of the tight box.",
                    },
                ),
                "start": (
                    "INT",
                    {"default": 0, **whole, "tooltip": "Index of the first mask to select, in sorted order, counted from 0."},
                ),
                "count": (
                    "INT",
                    {
                        "default": 0,
                        **whole,
                        "tooltip": "Number of masks to select. 0 selects all masks from the start index on.",
                    },
                ),
                "merge": ("BOOLEAN", {"default": False, "tooltip": "Merge the selected masks into one."}),
            },
            "optional": {
                "bboxes": (
                    "BOUNDING_BOX",
                    {
                        "forceInput": True,
                        "tooltip": "The boxes from the node that made the masks. They provide scores and labels.",
                    },
                )
            },
        }

    def execute(
        self,
        masks: Tensor,
        order_by: str = "index",
        start: int = 0,
        count: int = 0,
        merge: bool = False,
        bboxes: Any = None,
    ) -> tuple[Tensor, list[BoundingBox]]:
        masks = as_masks(masks, "masks")
        boxes = boxes_of(masks, bboxes, needs_scores=order_by == "score")
        chosen = _ordered(masks, boxes, order_by)[start : start + count if count else None]
        if merge or not chosen:
            return _merged(masks[chosen], boxes, chosen)
        return masks[chosen], [boxes[i] for i in chosen]


def _ordered(masks: Tensor, boxes: list[BoundingBox], order_by: str) -> list[int]:
    if order_by == "index":
        return list(range(len(masks)))
    areas = masks.flatten(1).sum(1).tolist()
    return sorted(range(len(masks)), key=lambda i: _KEYS[order_by](boxes[i], areas[i]))


def boxes_of(masks: Tensor, bboxes: Any, needs_scores: bool) -> list[BoundingBox]:
    """A tight box for each mask (of no size for an empty one), with what the given boxes know besides.

    Given boxes are as many as there are masks, or as there are masks with something in them, as SAM Predict Mask makes them.
    """
    tight = [tight_box(mask) for mask in masks]
    given = [] if bboxes is None else _with_frames(nested_boxes(bboxes))
    filled = [i for i, box in enumerate(tight) if box is not None]
    places = range(len(masks)) if len(given) == len(masks) else filled
    if needs_scores and (len(given) != len(places) or any("score" not in box for box in given)):
        raise SAMError(
            f"order_by score needs one score per mask. Masks: {len(masks)}; boxes: {len(given)}; boxes with a score: "
            f"{sum('score' in box for box in given)}. Connect bboxes from the node that made the masks, and turn its "
            "individual_masks on."
        )
    known = dict(zip(places, given, strict=True)) if len(given) == len(places) else {}
    extras = [{key: known[i][key] for key in _KNOWN if key in known.get(i, {})} for i in range(len(masks))]
    empty = BoundingBox(x=0, y=0, width=0, height=0)
    return [BoundingBox(**(box or empty), **extra) for box, extra in zip(tight, extras, strict=True)]


def _with_frames(lists: list[list[BoundingBox]]) -> list[BoundingBox]:
    """In one list; of several frames, each box says its own, so that what comes next can tell them apart."""
    if len(lists) == 1:
        return lists[0]
    return [BoundingBox(**{"frame_index": frame, **box}) for frame, boxes in enumerate(lists) for box in boxes]


def _merged(masks: Tensor, boxes: list[BoundingBox], chosen: list[int]) -> tuple[Tensor, list[BoundingBox]]:
    """One mask, and its box where it has anything in it; with one mask merged, that keeps its score and label."""
    merged = masks.amax(0, keepdim=True) if len(masks) else torch.zeros(1, *masks.shape[1:], device=masks.device)
    if len(chosen) == 1:
        return merged, [boxes[chosen[0]]]
    box = tight_box(merged[0])
    return merged, [box] if box is not None else []

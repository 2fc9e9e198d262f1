"""Convert Boxes: between the forms that boxes have in ComfyUI and in other packs."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from ..sam import SAMError
from ..utils.boxes import BOX_TYPES, BoundingBox, BoxForm, corners_of, nested_boxes
from ..utils.points import refuse_normalised
from ..utils.text import counted
from .common import CATEGORY
from .prompt_inputs import BOX_FORM_INPUT


class ConvertBoxes:
    """`SAMKit_ConvertBoxes`."""

    DESCRIPTION = (
        "Converts boxes of any form to ComfyUI's BOUNDING_BOX, to the BBOX type of SAM 2 packs, and to the single box "
        "that ComfyUI's Crop Image takes."
    )
    SEARCH_ALIASES = ["bbox", "bounding box", "crop region", "crop object", "boxes", "xywh", "segs to bbox"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("BOUNDING_BOX", "BBOX", "BOUNDING_BOX")
    RETURN_NAMES = ("bboxes", "bbox", "crop_region")
    OUTPUT_TOOLTIPS = (
        "The boxes in ComfyUI's form (x, y, width, height), one list per frame, with their scores and labels.",
        "The boxes [x1, y1, x2, y2], one list per frame, as BBOX inputs of other packs take them.",
        "The box that frame and index select, in whole pixels. Connect it to Crop Image.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        boxes = {
            "forceInput": True,
            "tooltip": "Boxes from ComfyUI's nodes, from another pack's detector, or Impact Pack's SEGS.",
        }
        index = {
            "default": 0,
            "min": 0,
            "max": 10_000,
            "tooltip": "Index of the box in its frame that becomes crop_region, counted from 0.",
        }
        frame = {
            "default": 0,
            "min": 0,
            "max": 1_000_000,
            "tooltip": "Index of the frame whose box becomes crop_region, counted from 0.",
        }
        image = {
            "tooltip": "The image that the boxes belong to. With an image, crop_region stays inside the image, and "
            "is the whole image if there is no box."
        }
        return {
            "required": {"bboxes": (BOX_TYPES, boxes), "index": ("INT", index), "frame": ("INT", frame)},
            "optional": {"image": ("IMAGE", image), "box_form": BOX_FORM_INPUT},
        }

    def execute(
        self, bboxes: Any, index: int = 0, frame: int = 0, image: Tensor | None = None, box_form: BoxForm = "auto"
    ) -> tuple[list[list[BoundingBox]], list[list[list[float]]], BoundingBox]:
        frames = nested_boxes(bboxes, box_form)
        corners = [[list(corners_of(box)) for box in boxes] for boxes in frames]
        size = None if image is None else tuple(image.shape[1:3])
        if size is not None:
            refuse_normalised({"bboxes": [np.array(boxes) for boxes in corners]}, size)
        return frames, corners, _crop_region(frames, frame, index, size)


def _crop_region(frames: list[list[BoundingBox]], frame: int, index: int, size: tuple[int, int] | None) -> BoundingBox:
    """The box in whole pixels, inside the image (H, W); boxes of one list are those of every frame."""
    if len(frames) > 1 and frame >= len(frames):
        raise SAMError(f"frame is {frame}, but there are boxes for {counted(len(frames), 'frame')}: 0 to {len(frames) - 1}.")
    boxes = frames[frame if len(frames) > 1 else 0]
    if index < len(boxes):
        x1, y1, x2, y2 = corners_of(boxes[index])
    elif size is not None and not boxes:
        x1, y1, x2, y2 = 0, 0, size[1], size[0]
    else:
        hint = "" if boxes else " Connect the image to select the whole image if there is no box."
        raise SAMError(f"There is no box {index} in frame {frame}, which has {counted(len(boxes), 'box')}.{hint}")
    height, width = size or (math.inf, math.inf)
    x, y = int(max(0, min(math.floor(x1), width - 1))), int(max(0, min(math.floor(y1), height - 1)))
    right, bottom = min(math.ceil(x2), width), min(math.ceil(y2), height)
    return BoundingBox(x=x, y=y, width=int(max(1, right - x)), height=int(max(1, bottom - y)))

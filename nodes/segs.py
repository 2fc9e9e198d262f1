"""Masks and words for Impact Pack's detailers: Masks to SEGS, and a detector that Text to Boxes gives."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sam import DeviceMode, FoundBoxes, GroundingModel, GroundingOptions, SAMError, find_boxes
from ..utils.boxes import BoundingBox
from ..utils.images import as_masks, image_to_frames
from ..utils.segs import SEG, Corners, Segs, crop_region, cropped
from .common import CATEGORY
from .masks import boxes_of

_UNKNOWN = "object"
CROP_FACTOR = {"default": 3.0, "min": 1.0, "max": 100.0, "step": 0.1}
DROP_SIZE = {"default": 10, "min": 1, "max": 16384}


class MasksToSEGS:
    """`SAMKit_MasksToSEGS`."""

    DESCRIPTION = (
        "Converts masks to Impact Pack's SEGS, one per mask, with scores and labels, for its detailers, SAM detectors "
        "and filters. All masks must belong to the same image."
    )
    SEARCH_ALIASES = ["sam", "impact pack", "segs", "detailer", "mask to segs", "face detailer"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("SEGS",)
    RETURN_NAMES = ("segs",)
    OUTPUT_TOOLTIPS = ("One SEG per mask, in the same order. Empty masks and small objects are left out.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        masks = {"tooltip": "Masks [N, H, W] of one image, for example from SAM Segment Text with individual_masks on."}
        crop = {"tooltip": "Size of the region that a detailer processes, relative to the box of the object."}
        drop = {"tooltip": "Leave out objects whose width or height does not exceed this number of pixels."}
        boxes = {"forceInput": True, "tooltip": "The boxes from the node that made the masks. They provide scores and labels."}
        label = {"default": _UNKNOWN, "tooltip": "The label for objects whose box has no label. Impact Pack's filters use it."}
        return {
            "required": {
                "masks": ("MASK", masks),
                "crop_factor": ("FLOAT", {**CROP_FACTOR, **crop}),
                "drop_size": ("INT", {**DROP_SIZE, **drop}),
            },
            "optional": {"bboxes": ("BOUNDING_BOX", boxes), "label": ("STRING", label)},
        }

    def execute(
        self, masks: Tensor, crop_factor: float = 3.0, drop_size: int = 10, bboxes: Any = None, label: str = _UNKNOWN
    ) -> tuple[Segs]:
        masks = as_masks(masks, "masks")
        size, arrays = (masks.shape[1], masks.shape[2]), masks.cpu().numpy()
        found = []
        for mask, box in zip(arrays, boxes_of(masks, bboxes, needs_scores=False), strict=True):
            corners = _corners(box)
            if _is_large(corners, drop_size):
                region = crop_region(corners, size, crop_factor)
                name = box.get("label") or label
                found.append(SEG(None, cropped(mask, region).copy(), float(box.get("score", 1.0)), region, corners, name))
        return ((size, found),)


def _corners(box: BoundingBox) -> Corners:
    return int(box["x"]), int(box["y"]), int(box["x"] + box["width"]), int(box["y"] + box["height"])


def _is_large(corners: Corners, least: int) -> bool:
    x1, y1, x2, y2 = corners
    return x2 - x1 > least and y2 - y1 > least


class WordsDetector:
    """Impact Pack's BBOX_DETECTOR (7 and 8): boxes of what a text names, as SEGS or as one mask.

    Args:
        model, text, options, device_mode: those of Text to Boxes. An empty text leaves the words to the node that detects:
            Impact Pack's FaceDetailer asks for "face".
    """

    def __init__(self, model: GroundingModel, text: str, options: GroundingOptions, device_mode: DeviceMode) -> None:
        self._model, self._text, self._options, self._device_mode = model, text, options, device_mode
        self._other_text: str | None = None

    def setAux(self, text: str | None) -> None:
        """The words for an empty text; None forgets them."""
        self._other_text = text

    def detect(
        self,
        image: Tensor,
        threshold: float,
        dilation: int,
        crop_factor: float,
        drop_size: int = 1,
        detailer_hook: Any = None,
    ) -> Segs:
        """The boxes of one image as SEGS; their masks are rectangles.

        Args:
            image: IMAGE `[1, H, W, C]`.
            threshold: the lowest score of a box.
            dilation: pixels by which a mask is wider and higher than its box, half of them on each side; 0 or less: none.
            crop_factor: see `crop_region`.
            drop_size: boxes that are not wider and higher than this are left out.
            detailer_hook: Impact Pack's, or None.

        Raises:
            SAMError: more or fewer images than one, or no text.
        """
        size, found = self._find(image, threshold)
        segs = []
        for box, score, label in zip(*found, strict=True):
            corners = _whole(box, size)
            if not _is_large(corners, drop_size):
                continue
            region = crop_region(corners, size, crop_factor)
            if detailer_hook is not None:
                region = detailer_hook.post_crop_region(size[1], size[0], corners, region)
            mask = cropped(_rectangle(corners, size, dilation), region)
            part = cropped(image.movedim(-1, 1), region).movedim(1, -1)
            segs.append(SEG(part, mask, float(score), region, corners, label or _UNKNOWN))
        result = (size, segs)
        return detailer_hook.post_detection(result) if hasattr(detailer_hook, "post_detection") else result

    def detect_combined(self, image: Tensor, threshold: float, dilation: int) -> Tensor:
        """The boxes of one image as one mask, float32 `[H, W]`, all zero where nothing is found; see `detect`."""
        size, found = self._find(image, threshold)
        masks = [_rectangle(_whole(box, size), size, dilation) for box in found.boxes]
        return torch.from_numpy(np.maximum.reduce(masks) if masks else np.zeros(size, np.float32))

    def _find(self, image: Tensor, threshold: float) -> tuple[tuple[int, int], FoundBoxes]:
        frames = image_to_frames(image)
        if len(frames) != 1:
            raise SAMError(f"This detector takes one image, but the batch has {len(frames)}. Run the images one by one.")
        text = self._text if self._text.strip() else self._other_text or ""
        options = replace(self._options, box_threshold=threshold)
        return frames[0].shape[:2], find_boxes(self._model, frames, text, options, self._device_mode)[0]


def _whole(box: np.ndarray, size: tuple[int, int]) -> Corners:
    """A box in whole pixels, inside the image (H, W)."""
    x1, y1, x2, y2 = (float(number) for number in box)
    return max(0, math.floor(x1)), max(0, math.floor(y1)), min(size[1], math.ceil(x2)), min(size[0], math.ceil(y2))


def _rectangle(corners: Corners, size: tuple[int, int], dilation: int) -> np.ndarray:
    """float32 `[H, W]`: 1 in the box, which is dilated by a square of `dilation` pixels."""
    (x1, y1, x2, y2), more = corners, max(0, dilation)
    before, after = more // 2, max(0, more - 1 - more // 2)
    mask = np.zeros(size, np.float32)
    mask[max(0, y1 - after) : y2 + before, max(0, x1 - after) : x2 + before] = 1.0
    return mask

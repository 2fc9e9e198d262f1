"""SAM Segment Everything."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sam import (
    PRESETS,
    AutoMaskOptions,
    Concept,
    DeviceMode,
    FoundMask,
    SAMError,
    Segmenter,
    everything_each,
    free_result_bytes,
    preset_options,
    result_device,
)
from ..utils.boxes import BoundingBox
from ..utils.images import Frames, as_masks, put_frame, resize_masks
from ..utils.overlay import legend, paint_masks
from ..utils.text import counted
from .common import (
    CATEGORY,
    CONCEPT_INPUT,
    DEVICE_MODE_INPUT,
    MOST_SHOWN,
    SAM_MODEL_INPUT,
    SHOW_RESULT_INPUT,
    TILES_INPUT,
    Found,
    MakesLarge,
    Result,
    ShowsResult,
)
from .predict import OPTION_INPUTS as PREDICT_INPUTS

_MASK_BYTES = 4  # of a pixel: a MASK is float32
_FRAME_BYTES = 16  # of a pixel: overlay and labels
_DEFAULTS = {field.name: field.default for field in fields(AutoMaskOptions)}
_SHARE = {"min": 0.0, "max": 1.0, "step": 0.01}


CUSTOM = "custom"


def _option(kind: str, name: str, tooltip: str, **limits: float) -> tuple[str, dict[str, Any]]:
    return kind, {"default": _DEFAULTS[name], **limits, "tooltip": tooltip, "advanced": True}


OPTION_INPUTS: dict[str, Any] = {
    "points_per_side": _option(
        "INT",
        "points_per_side",
        "Grid points per side. Higher values find smaller objects but take longer.",
        min=1,
        max=256,
    ),
    "points_per_batch": _option(
        "INT", "points_per_batch", "Number of points decoded at once. Lower values use less memory.", min=1, max=1024
    ),
    "pred_iou_thresh": _option(
        "FLOAT", "pred_iou_thresh", "Discard masks whose predicted quality (IoU) is not above this value.", **_SHARE
    ),
    "stability_score_thresh": _option(
        "FLOAT",
        "stability_score_thresh",
        "Discard masks with a lower stability score. A score of 1 means that shifting the mask threshold does not "
        "change the mask.",
        **_SHARE,
    ),
    "stability_score_offset": _option(
        "FLOAT",
        "stability_score_offset",
        "How far the mask threshold is shifted up and down to compute the stability score.",
        min=0.0,
        max=10.0,
        step=0.05,
    ),
    "box_nms_thresh": _option(
        "FLOAT",
        "box_nms_thresh",
        "Non-maximum suppression: if the boxes of two masks overlap by more than this IoU, the worse mask is removed.",
        **_SHARE,
    ),
    "crop_n_layers": _option(
        "INT",
        "crop_n_layers",
        "Also segment crops of the image, to find small objects. Layer n has 4^n crops. 0 disables this.",
        min=0,
        max=5,
    ),
    "crop_nms_thresh": _option("FLOAT", "crop_nms_thresh", "Same as box_nms_thresh, for masks from different crops.", **_SHARE),
    "crop_overlap_ratio": _option(
        "FLOAT",
        "crop_overlap_ratio",
        "How much the crops of layer 1 overlap, as a fraction of the image's shorter side. Later layers overlap less.",
        min=0.0,
        max=1.0,
        step=0.001,
        round=False,
    ),
    "crop_n_points_downscale_factor": _option(
        "INT",
        "crop_n_points_downscale_factor",
        "Divides points_per_side by this factor^n in crop layer n.",
        min=1,
        max=16,
    ),
    "min_mask_region_area": _option(
        "INT",
        "min_mask_region_area",
        "Fill holes and remove islands that are smaller than this number of pixels. 0 disables this.",
        min=0,
        max=1_000_000,
    ),
}


class AutoMask(MakesLarge, ShowsResult):
    """`SAMKit_AutoMask`."""

    DESCRIPTION = (
        "Finds all objects in an image with SAM's automatic mask generator. It decodes a grid of points, discards poor, "
        "unstable and duplicate masks, and sorts the others from large to small."
    )
    SEARCH_ALIASES = [
        "sam",
        "sam2",
        "segment anything",
        "automatic mask generator",
        "segment all",
        "segment objects",
        "everything",
        "all objects",
        "mask generator",
        "auto mask",
        "label map",
    ]
    CATEGORY = CATEGORY
    LARGE = ("overlay", "labels")
    RETURN_TYPES = ("MASK", "BOUNDING_BOX", "FLOAT", "IMAGE", "MASK")
    RETURN_NAMES = ("masks", "bboxes", "scores", "overlay", "labels")
    OUTPUT_IS_LIST = (False, False, True, False, False)
    OUTPUT_TOOLTIPS = (
        "All masks, frame by frame, largest first. One empty mask for a frame without any. Each mask takes height x width x "
        "4 bytes.",
        "Tight boxes, one list per frame, in the order of the masks. Each has a score, stability and frame_index.",
        "Predicted quality (IoU) of each mask. 0 for a frame without a mask.",
        "The image with each mask in its own color, and the number of masks.",
        "One label map per frame. Mask i of N has the value i / N, with smaller masks on top. The background is 0.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        region = (
            "MASK",
            {"tooltip": "Only use grid points inside this mask. Connect one mask for all frames, or one per frame."},
        )
        max_masks = {
            "default": 0,
            "min": 0,
            "max": 100_000,
            "tooltip": "Maximum number of masks per frame. The largest are used. 0 disables this limit.",
        }
        preset = {
            "default": CUSTOM,
            "tooltip": "few and large: a coarse grid, fast. balanced: the model's default settings. many and small: "
            "also segments crops of the image, which takes about five times as long. custom: uses the "
            "advanced inputs, which start with SAM's defaults.",
        }
        return {
            "required": {
                "sam_model": SAM_MODEL_INPUT,
                "image": ("IMAGE", {"tooltip": "The images, every frame of a batch. Alpha is ignored."}),
                **OPTION_INPUTS,
                "max_masks": ("INT", max_masks),
            },
            "optional": {
                "region": region,
                "device_mode": DEVICE_MODE_INPUT,
                "concept": CONCEPT_INPUT,
                "preset": ([CUSTOM, *PRESETS], preset),
                "hq": PREDICT_INPUTS["hq"],
                "show_result": SHOW_RESULT_INPUT,
                "tiles": TILES_INPUT,
            },
        }

    def execute(
        self,
        sam_model: Segmenter,
        image: Tensor,
        points_per_side: int = _DEFAULTS["points_per_side"],
        points_per_batch: int = _DEFAULTS["points_per_batch"],
        pred_iou_thresh: float = _DEFAULTS["pred_iou_thresh"],
        stability_score_thresh: float = _DEFAULTS["stability_score_thresh"],
        stability_score_offset: float = _DEFAULTS["stability_score_offset"],
        box_nms_thresh: float = _DEFAULTS["box_nms_thresh"],
        crop_n_layers: int = _DEFAULTS["crop_n_layers"],
        crop_nms_thresh: float = _DEFAULTS["crop_nms_thresh"],
        crop_overlap_ratio: float = _DEFAULTS["crop_overlap_ratio"],
        crop_n_points_downscale_factor: int = _DEFAULTS["crop_n_points_downscale_factor"],
        min_mask_region_area: int = _DEFAULTS["min_mask_region_area"],
        max_masks: int = 0,
        region: Tensor | None = None,
        device_mode: DeviceMode = "AUTO",
        concept: Concept | None = None,
        preset: str = CUSTOM,
        hq: bool = True,
        tiles: str = "off",
    ) -> Result:
        custom = AutoMaskOptions(
            points_per_side,
            points_per_batch,
            pred_iou_thresh,
            stability_score_thresh,
            stability_score_offset,
            box_nms_thresh,
            crop_n_layers,
            crop_nms_thresh,
            crop_overlap_ratio,
            crop_n_points_downscale_factor,
            min_mask_region_area,
        )
        options = replace(
            custom if preset == CUSTOM else preset_options(preset, sam_model),
            points_per_batch=points_per_batch,
            concept=concept,
            hq=hq,
            tiles=tiles,
        )
        frames = Frames(image)
        regions, gathered = _regions(region, len(frames), frames.size), _Gathered(frames, max_masks)
        everything_each(sam_model, frames, options, regions, gathered.take, device_mode)
        return _outputs(frames, gathered.found, self.wants("overlay"), self.wants("labels"))


def _regions(region: Tensor | None, frames: int, size: tuple[int, int]) -> list[np.ndarray | None]:
    """One bool `[H, W]` per frame, or None for everywhere."""
    if region is None:
        return [None] * frames
    masks = resize_masks(as_masks(region, "region"), size).cpu().numpy() > 0.5
    if len(masks) not in (1, frames):
        raise SAMError(
            f"the batch size of region is {len(masks)}, but that of image is {frames}: connect one mask, or one per frame."
        )
    return list(masks) if len(masks) == frames else list(masks) * frames


class _Gathered:
    """The masks of each frame as they come, for as long as the outputs that they make fit into memory.

    Args:
        frames: all of them.
        most: masks of a frame that are used; 0: all.

    Raises:
        SAMError: what does not depend on the masks does not fit.
    """

    def __init__(self, frames: Frames, most: int) -> None:
        self.frames, self.most = frames, most
        self.found: list[list[FoundMask]] = []
        _check_memory(self.found, len(frames), frames.size)

    def take(self, _: int, masks: list[FoundMask]) -> None:
        """The masks of the next frame; SAMError where they do not fit."""
        self.found.append(masks[: self.most or None])
        _check_memory(self.found, len(self.frames), self.frames.size)


def _outputs(frames: Frames, found: list[list[FoundMask]], is_whole: bool, has_labels: bool) -> Result:
    """Each output is allocated once and filled in place, a frame at a time; a frame without a mask has an empty one.

    Without `is_whole` the overlay has the frames that the node itself shows, and is no output.
    """
    masks = torch.zeros(_count(found), *frames.size)
    overlay = torch.empty(len(frames) if is_whole else min(len(frames), MOST_SHOWN), *frames.size, 3)
    labels = torch.zeros(len(frames) * has_labels, *frames.size)
    position = 0
    for index, (frame, objects) in enumerate(zip(frames, found, strict=True)):
        own = masks[position : position + len(objects)].numpy()
        position += len(objects) or 1
        _fill(own, labels[index].numpy() if has_labels else None, objects)
        if index < len(overlay):
            put_frame(overlay[index], legend(paint_masks(frame, own), counted(len(objects), "mask")))
    boxes = [[_box(one, index) for one in objects] for index, objects in enumerate(found)]
    scores = [score for objects in found for score in ([one.score for one in objects] or [0.0])]
    where = result_device()
    shown = [Found(torch.zeros(0, *frames.size, dtype=torch.bool), [one.score for one in objects]) for objects in found]
    drawn = overlay[: len(frames) * is_whole].to(where)
    return Result((masks.to(where), boxes, scores, drawn, labels.to(where)), overlay, shown)


def _count(found: list[list[FoundMask]]) -> int:
    return sum(len(objects) or 1 for objects in found)


def _fill(masks: np.ndarray, labels: np.ndarray | None, objects: list[FoundMask]) -> None:
    """A frame's masks float32 `[N, H, W]` and, where it is wanted, its label map `[H, W]`, 0 before, each inside its box."""
    for rank, (mask, one) in enumerate(zip(masks, objects, strict=True), start=1):
        x1, y1, x2, y2 = one.box
        inside, pixels = (slice(y1, y2 + 1), slice(x1, x2 + 1)), one.pixels
        mask[inside] = pixels
        if labels is not None:
            labels[inside][pixels] = rank / len(objects)


def _box(found: FoundMask, frame: int) -> BoundingBox:
    x1, y1, x2, y2 = found.box
    extra = {"score": found.score, "stability": found.stability, "frame_index": frame}
    return BoundingBox(x=x1, y=y1, width=x2 + 1 - x1, height=y2 + 1 - y1, **extra)


def _check_memory(found: list[list[FoundMask]], frames: int, size: tuple[int, int]) -> None:
    """Refuse as soon as the outputs would exceed free memory, before more work that cannot fit either."""
    count, pixels = _count(found), size[0] * size[1]
    needed, free = pixels * (count * _MASK_BYTES + frames * _FRAME_BYTES), free_result_bytes()
    if free is not None and needed > free:
        raise SAMError(
            f"{count} masks of {size[1]}x{size[0]} pixels need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: set "
            f"max_masks, raise pred_iou_thresh, or use fewer frames. Frames segmented so far: {len(found)} of {frames}."
        )

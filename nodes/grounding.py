"""Words as prompts: Load Grounding DINO, Text to Boxes, SAM Segment Text."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sam import (
    GROUNDING_MODELS,
    Detail,
    DeviceMode,
    FoundBoxes,
    FramePrediction,
    GroundingModel,
    GroundingOptions,
    PredictOptions,
    PromptInputs,
    Segmenter,
    find_boxes,
    objects_per_frame,
    result_device,
    segment_each,
)
from ..utils.boxes import BoundingBox
from ..utils.images import Frames, cutout, put_frame
from ..utils.marks import Marks
from ..utils.overlay import legend, paint_boxes, paint_masks
from ..utils.stacks import MaskStack
from .common import (
    CATEGORY,
    DETAIL_INPUT,
    DEVICE_MODE_INPUT,
    MOST_SHOWN,
    SAM_MODEL_INPUT,
    SHOW_RESULT_INPUT,
    TILES_INPUT,
    Found,
    MakesLarge,
    Result,
    ShowsResult,
    with_tooltip,
)
from .model import ModelLoader
from .predict import OPTION_INPUTS, Results
from .segs import WordsDetector

_DEFAULTS = {field.name: field.default for field in fields(GroundingOptions)}
_SHARE = {"min": 0.0, "max": 1.0, "step": 0.01}

_TILES = (
    "Also search overlapping tiles of a large image at full resolution, to find small objects. Boxes that a seam cuts are "
    "joined. auto: tiles of 800 pixels. 2 to 8: so many along the longer side. Use it with detail, which makes the masks sharp."
)

GROUNDING_MODEL_INPUT = ("SAMKIT_GROUNDING_MODEL", {"tooltip": "A model from Load Grounding DINO."})
WORDS_INPUTS: dict[str, Any] = {
    "text": (
        "STRING",
        {
            "default": "",
            "multiline": True,
            "tooltip": 'The objects to find, for example "cat. dog.". Separate them with full stops, commas or new '
            "lines. Use English.",
        },
    ),
    "box_threshold": (
        "FLOAT",
        {
            "default": _DEFAULTS["box_threshold"],
            **_SHARE,
            "tooltip": "Discard boxes whose best word does not score above this value.",
        },
    ),
    "text_threshold": (
        "FLOAT",
        {
            "default": _DEFAULTS["text_threshold"],
            **_SHARE,
            "tooltip": "The label of a box consists of the words that score above this value.",
        },
    ),
    "nms_threshold": (
        "FLOAT",
        {
            "default": _DEFAULTS["nms_threshold"],
            **_SHARE,
            "tooltip": "Non-maximum suppression: of two boxes that overlap by more than this IoU, the one with the lower score "
            "is removed, even if the labels differ. 1 disables this.",
        },
    ),
    "max_boxes": (
        "INT",
        {
            "default": _DEFAULTS["max_boxes"],
            "min": 0,
            "max": 10_000,
            "tooltip": "Maximum number of boxes per frame. Those with the highest scores are used. 0 disables this limit.",
        },
    ),
}


class GroundingLoader(ModelLoader):
    """`SAMKit_GroundingLoader`: a Grounding DINO by name, from the `grounding-dino` folders or the hub."""

    MODELS = GROUNDING_MODELS
    TOOLTIP = "A folder in models/grounding-dino, or a known model, which is downloaded on first use."
    DESCRIPTION = (
        "Loads a Grounding DINO model from models/grounding-dino, which detects the objects that a text names. Requires "
        "the transformers library. Known models are downloaded and verified on first use."
    )
    SEARCH_ALIASES = ["grounding dino", "groundingdino", "grounded sam", "text detection", "open vocabulary", "load detector"]
    RETURN_TYPES = ("SAMKIT_GROUNDING_MODEL",)
    RETURN_NAMES = ("grounding_model",)
    OUTPUT_TOOLTIPS = ("The model, for Text to Boxes and SAM Segment Text.",)


class TextToBoxes(MakesLarge):
    """`SAMKit_TextToBoxes`."""

    DESCRIPTION = (
        "Detects the objects that a text names and returns their boxes, as prompts for SAM Segment and SAM Predict "
        "Mask. A frame without a detection has no boxes, so SAM gives it an empty mask."
    )
    SEARCH_ALIASES = [
        "grounding dino",
        "grounded sam",
        "text to bbox",
        "detect",
        "detect object",
        "object detection",
        "open vocabulary detection",
        "find object",
        "find",
    ]
    CATEGORY = CATEGORY
    LARGE = ("overlay",)
    RETURN_TYPES = ("BOUNDING_BOX", "STRING", "IMAGE", "BBOX_DETECTOR")
    RETURN_NAMES = ("bboxes", "labels", "overlay", "bbox_detector")
    OUTPUT_IS_LIST = (False, True, False, False)
    OUTPUT_TOOLTIPS = (
        "The boxes, one list per frame, highest score first, each with label and score. Empty if nothing was found.",
        "The labels of the boxes, frame by frame. An empty text for a frame without a detection.",
        "The images with the boxes, labels and scores drawn on them.",
        "A detector of the same words, for Impact Pack's FaceDetailer and other nodes with a BBOX_DETECTOR input.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "grounding_model": GROUNDING_MODEL_INPUT,
                "image": ("IMAGE", {"tooltip": "The images to search, every frame of a batch. Alpha is ignored."}),
                **WORDS_INPUTS,
            },
            "optional": {"device_mode": DEVICE_MODE_INPUT},
        }

    def execute(
        self,
        grounding_model: GroundingModel,
        image: Tensor,
        text: str = "",
        box_threshold: float = _DEFAULTS["box_threshold"],
        text_threshold: float = _DEFAULTS["text_threshold"],
        nms_threshold: float = _DEFAULTS["nms_threshold"],
        max_boxes: int = _DEFAULTS["max_boxes"],
        device_mode: DeviceMode = "AUTO",
    ) -> tuple[list[list[BoundingBox]], list[str], Tensor, WordsDetector]:
        options = GroundingOptions(box_threshold, text_threshold, nms_threshold, max_boxes)
        frames = Frames(image)
        found = find_boxes(grounding_model, frames, text, options, device_mode)
        detector = WordsDetector(grounding_model, text, options, device_mode)
        return bounding_boxes(found), _labels(found), _overlay(frames, found if self.wants("overlay") else []), detector


class SegmentText(MakesLarge, ShowsResult):
    """`SAMKit_SegmentText`."""

    DESCRIPTION = (
        "Segments the objects that a text names: Text to Boxes and SAM Segment in one node. The image embedding is cached."
    )
    SEARCH_ALIASES = [
        "sam",
        "sam2",
        "segment anything",
        "grounded sam",
        "grounding dino",
        "text to mask",
        "mask from text",
        "mask by text",
        "words to mask",
        "segment by text",
        "segment object",
        "select object",
        "find object",
        "clipseg",
        "find and mask",
        "inpaint mask",
        "person mask",
        "cutout",
        "cut out",
        "remove background",
        "background removal",
        "isolate object",
        "extract object",
    ]
    CATEGORY = CATEGORY
    LARGE = ("overlay", "cutout")
    RETURN_TYPES = ("MASK", "BOUNDING_BOX", "FLOAT", "STRING", "IMAGE", "IMAGE")
    RETURN_NAMES = ("masks", "bboxes", "scores", "labels", "overlay", "cutout")
    OUTPUT_IS_LIST = (False, False, True, True, False, False)
    OUTPUT_TOOLTIPS = (
        "Masks in frame order: one per frame, or with individual_masks one per object. Empty for a frame without a detection.",
        "The detected boxes, one list per frame, highest score first, each with a label and a score.",
        "Predicted quality (IoU) of each object's mask. 0 for a frame without a detection.",
        "The labels of the objects, frame by frame. An empty text for a frame without a detection.",
        "The images with the mask, box, label and score of each object.",
        "The images with the objects' masks as alpha: transparent outside the objects.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        options = {name: OPTION_INPUTS[name] for name in ("individual_masks", "mask_threshold", "device_mode", "hq")}
        options["show_result"] = SHOW_RESULT_INPUT
        options |= {"detail": DETAIL_INPUT, "tiles": with_tooltip(TILES_INPUT, _TILES)}
        return {
            "required": {
                "sam_model": SAM_MODEL_INPUT,
                "grounding_model": GROUNDING_MODEL_INPUT,
                "image": ("IMAGE", {"tooltip": "The images to segment, every frame of a batch. Alpha is ignored."}),
                **WORDS_INPUTS,
            },
            "optional": options,
        }

    def execute(
        self,
        sam_model: Segmenter,
        grounding_model: GroundingModel,
        image: Tensor,
        text: str = "",
        box_threshold: float = _DEFAULTS["box_threshold"],
        text_threshold: float = _DEFAULTS["text_threshold"],
        nms_threshold: float = _DEFAULTS["nms_threshold"],
        max_boxes: int = _DEFAULTS["max_boxes"],
        individual_masks: bool = False,
        mask_threshold: float = 0.0,
        device_mode: DeviceMode = "AUTO",
        hq: bool = True,
        detail: Detail = "off",
        tiles: str = "off",
    ) -> Result:
        wanted = GroundingOptions(box_threshold, text_threshold, nms_threshold, max_boxes, tiles)
        frames = Frames(image)
        found = find_boxes(grounding_model, frames, text, wanted, device_mode)
        options = PredictOptions(mask_threshold=mask_threshold, hq=hq, logits=False)
        geometry = sam_model.geometry(frames.size)
        prompts = objects_per_frame(PromptInputs(boxes=[Marks(one.boxes) for one in found]), len(frames), geometry)
        results, merged = Results(prompts, geometry, options, individual_masks), MaskStack(len(frames), frames.size)
        is_whole, has_cutout = self.wants("overlay"), self.wants("cutout")
        # The node itself shows the first frames of it.
        overlay = torch.empty(len(frames) if is_whole else min(len(frames), MOST_SHOWN), *frames.size, 3)

        def take(index: int, predicted: FramePrediction) -> None:
            results.take(index, predicted)
            if has_cutout and individual_masks:
                merged.put(index, predicted.masks.any(0, keepdim=True))
            if index < len(overlay):
                painted = paint_masks(frames[index], predicted.masks.cpu().numpy())
                put_frame(overlay[index], _painted_boxes(painted, found[index]))

        segment_each(sam_model, frames, prompts, take, options, device_mode, detail, report=results.report)
        masks, _, scores, _ = results.outputs()
        where = result_device()
        cut = torch.empty(0, *frames.size, 4, device=where)
        if has_cutout:
            cut = cutout(image, merged.filled(where) if individual_masks else masks)
        nothing = torch.zeros(0, *frames.size, dtype=torch.bool)
        shown = [Found(nothing, one.scores, results.looked.get(index)) for index, one in enumerate(found)]
        drawn = overlay[: len(frames) * is_whole].to(where)
        return Result((masks, bounding_boxes(found), scores, _labels(found), drawn, cut), overlay, shown)


def bounding_boxes(found: list[FoundBoxes]) -> list[list[BoundingBox]]:
    """Found boxes as BOUNDING_BOX, a list per frame."""
    return [[_box(*each) for each in zip(*one, strict=True)] for one in found]


def _box(corners: np.ndarray, score: float, label: str) -> BoundingBox:
    x1, y1, x2, y2 = corners.tolist()
    return BoundingBox(x=x1, y=y1, width=x2 - x1, height=y2 - y1, score=score, label=label)


def _labels(found: list[FoundBoxes]) -> list[str]:
    """One per mask of SAM Segment Text: ComfyUI cannot hand on a list output with nothing in it."""
    return [label for one in found for label in one.labels or [""]]


def _overlay(images: Frames, found: list[FoundBoxes]) -> Tensor:
    """Images with their boxes and a legend, as an IMAGE, for as many as there are boxes of."""
    overlay = torch.empty(len(found), *images.size, 3)
    for place, frame, boxes in zip(overlay, images, found, strict=False):
        put_frame(place, _painted_boxes(frame, boxes))
    return overlay.to(result_device())


def _painted_boxes(frame: np.ndarray, found: FoundBoxes) -> np.ndarray:
    """An image uint8 `[H, W, 3]` with its boxes and a legend."""
    captions = [f"{label} {score:.2f}".strip() for label, score in zip(found.labels, found.scores, strict=True)]
    with_boxes = paint_boxes(frame, found.boxes, captions)
    return with_boxes if captions else legend(with_boxes, "nothing found")

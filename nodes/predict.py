"""SAM Predict Mask (from an embedding) and SAM Segment (from an image): the same prompts, options and outputs."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sam import (
    ABSENT_LOGIT,
    CANDIDATES,
    MULTIMASK,
    Candidate,
    Concept,
    Detail,
    DeviceMode,
    FramePrediction,
    Looked,
    Multimask,
    PredictOptions,
    Prompt,
    PromptInputs,
    SAMEmbedding,
    SAMError,
    Segmenter,
    as_embedding,
    decode_each,
    has_regions,
    objects_per_frame,
    result_device,
    segment_each,
)
from ..sam.geometry import Geometry
from ..utils.batch_manager import first_frame
from ..utils.boxes import BoundingBox, BoxForm, tight_box
from ..utils.stacks import MaskStack, joined
from .common import (
    CATEGORY,
    CONCEPT_INPUT,
    DETAIL_INPUT,
    DEVICE_MODE_INPUT,
    SAM_MODEL_INPUT,
    SHOW_RESULT_INPUT,
    UNCONNECTED,
    MakesLarge,
    Result,
    Shown,
    ShowsResult,
)
from .prompt_inputs import (
    BOX_FORM_INPUT,
    FRAME_OFFSET_INPUT,
    META_BATCH_INPUT,
    PROMPT_INPUTS,
    parse_prompts,
    refuse_nothing,
    refuse_shares,
)

Outputs = Result  # of masks, boxes per frame, scores and logits

OPTION_INPUTS: dict[str, Any] = {
    "candidate": (
        list(CANDIDATES),
        {
            "default": "best",
            "tooltip": "Which of SAM's candidate masks to use: the highest predicted score (best), the smallest, middle or "
            "largest area, or all of them, highest score first, each as a separate mask.",
        },
    ),
    "multimask": (
        list(MULTIMASK),
        {
            "default": "auto",
            "tooltip": "on: three candidates per object. off: one. auto: three for a single point, which is ambiguous, and "
            "one otherwise.",
        },
    ),
    "individual_masks": (
        "BOOLEAN",
        {"default": False, "tooltip": "On: one mask per object and frame. Off: one mask per frame that merges its objects."},
    ),
    "mask_threshold": (
        "FLOAT",
        {
            "default": 0.0,
            "min": -20.0,
            "max": 20.0,
            "step": 0.1,
            "tooltip": "A pixel is in the mask if its logit is above this value. Higher values give smaller masks. SAM uses 0.",
        },
    ),
    "device_mode": DEVICE_MODE_INPUT,
    "hq": (
        "BOOLEAN",
        {
            "default": True,
            "tooltip": "Use SAM-HQ's masks (on) or plain SAM's (off). Ignored by models other than SAM-HQ.",
        },
    ),
}

_LAST_INPUTS = {
    "box_form": BOX_FORM_INPUT,
    "concept": CONCEPT_INPUT,
    "show_result": SHOW_RESULT_INPUT,
    "frame_offset": FRAME_OFFSET_INPUT,
    "meta_batch": META_BATCH_INPUT,
    "detail": DETAIL_INPUT,
}
_HIDDEN_INPUTS = {"prompt": "PROMPT"}
_SOCKETS = "positive_coords, negative_coords, bboxes, mask_prompt or logits"


class _Predictor(MakesLarge, ShowsResult):
    """What the two nodes declare alike."""

    SEARCH_ALIASES = [
        "sam",
        "sam2",
        "sam 2",
        "segment anything",
        "segment object",
        "select object",
        "object",
        "object mask",
        "mask from points",
        "mask from box",
        "points to mask",
        "box to mask",
        "bbox to mask",
        "inpaint mask",
        "cutout",
        "sam detector",
    ]
    CATEGORY = CATEGORY
    LARGE = ("logits",)
    RETURN_TYPES = ("MASK", "BOUNDING_BOX", "FLOAT", "SAMKIT_LOGITS")
    RETURN_NAMES = ("masks", "bboxes", "scores", "logits")
    OUTPUT_IS_LIST = (False, False, True, False)
    OUTPUT_TOOLTIPS = (
        "Masks in frame order: one per frame, or with individual_masks one per object.",
        "Tight boxes around the objects, one list per frame, each with its score.",
        "Predicted quality (IoU) of each object's mask. 0 for a frame without an object.",
        "SAM's low-resolution logits of each object. Connect them to the next prediction to refine the mask.",
    )


class PredictMask(_Predictor):
    """`SAMKit_PredictMask`."""

    DESCRIPTION = (
        "Predicts masks from an image embedding and any combination of points, boxes, masks and logits. "
        "Prompts are in pixels of the source image. A connected prompt that is empty gives empty masks."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        image = ("IMAGE", {"tooltip": "The encoded image. Needed for detail, and for an embedding from another pack."})
        return {
            "required": {
                "sam_model": SAM_MODEL_INPUT,
                "embedding": ("SAM_EMBEDDING", {"tooltip": "An embedding from Get SAM Embedding, made with the same model."}),
            },
            "optional": {**PROMPT_INPUTS, "image": image, **OPTION_INPUTS, **_LAST_INPUTS},
            "hidden": _HIDDEN_INPUTS,
        }

    def execute(
        self,
        sam_model: Segmenter,
        embedding: np.ndarray,
        positive_coords: str | None = None,
        negative_coords: str | None = None,
        bboxes: Any = UNCONNECTED,
        mask_prompt: Tensor | None = None,
        logits: Tensor | None = None,
        image: Tensor | None = None,
        candidate: Candidate = "best",
        multimask: Multimask = "auto",
        individual_masks: bool = False,
        mask_threshold: float = 0.0,
        device_mode: DeviceMode = "AUTO",
        hq: bool = True,
        box_form: BoxForm = "auto",
        concept: Concept | None = None,
        frame_offset: int = -1,
        meta_batch: Any = None,
        detail: Detail = "off",
        prompt: Mapping[str, Any] | None = None,
    ) -> Outputs:
        known = as_embedding(embedding, sam_model, image)
        offset = frame_offset if meta_batch is None else first_frame(meta_batch, prompt, len(known), frame_offset)
        given = parse_prompts(len(known), positive_coords, negative_coords, bboxes, mask_prompt, logits, box_form, offset)
        refuse_nothing(given, _SOCKETS)
        refuse_shares(given, known.original_size)
        options = PredictOptions(candidate, multimask, mask_threshold, hq, concept, self.wants("logits"))
        return predict(sam_model, known, given, options, individual_masks, device_mode, image, detail)


class Segment(_Predictor):
    """`SAMKit_Segment`."""

    DESCRIPTION = (
        "Segments the objects that points, boxes or a rough mask select, in one node. The image embedding is cached, so "
        "changing a prompt does not encode the image again. Prompts are in image pixels."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "sam_model": SAM_MODEL_INPUT,
                "image": ("IMAGE", {"tooltip": "The images to segment, every frame of a batch. Alpha is ignored."}),
            },
            "optional": {**PROMPT_INPUTS, **OPTION_INPUTS, **_LAST_INPUTS},
            "hidden": _HIDDEN_INPUTS,
        }

    def execute(
        self,
        sam_model: Segmenter,
        image: Tensor,
        positive_coords: str | None = None,
        negative_coords: str | None = None,
        bboxes: Any = UNCONNECTED,
        mask_prompt: Tensor | None = None,
        logits: Tensor | None = None,
        candidate: Candidate = "best",
        multimask: Multimask = "auto",
        individual_masks: bool = False,
        mask_threshold: float = 0.0,
        device_mode: DeviceMode = "AUTO",
        hq: bool = True,
        box_form: BoxForm = "auto",
        concept: Concept | None = None,
        frame_offset: int = -1,
        meta_batch: Any = None,
        detail: Detail = "off",
        prompt: Mapping[str, Any] | None = None,
    ) -> Outputs:
        frames, *size = image.shape[:3]
        offset = frame_offset if meta_batch is None else first_frame(meta_batch, prompt, frames, frame_offset)
        given = parse_prompts(frames, positive_coords, negative_coords, bboxes, mask_prompt, logits, box_form, offset)
        refuse_nothing(given, _SOCKETS)
        refuse_shares(given, tuple(size))
        options = PredictOptions(candidate, multimask, mask_threshold, hq, concept, self.wants("logits"))
        geometry = sam_model.geometry(tuple(size))
        prompts = objects_per_frame(given, frames, geometry)
        results = Results(prompts, geometry, options, individual_masks)
        segment_each(sam_model, image, prompts, results.take, options, device_mode, detail, report=results.report)
        return results.outputs(image)


def predict(
    model: Segmenter,
    embedding: SAMEmbedding,
    given: PromptInputs,
    options: PredictOptions,
    individual_masks: bool,
    device_mode: DeviceMode = "AUTO",
    image: Tensor | None = None,
    detail: Detail = "off",
) -> Outputs:
    """Prompts on embedded images to the four outputs of both nodes; `image` is what they are shown on, if they are.

    Raises:
        SAMError: detail, or marks with a region, without the image.
    """
    if detail != "off" and image is None:
        raise SAMError(f"detail is {detail}: it needs the image, to encode cuts of it. Connect the embedded image to image.")
    geometry = model.geometry(embedding.original_size)
    prompts = objects_per_frame(given, len(embedding), geometry)
    is_seen_in_parts = detail != "off" or has_regions(prompts)
    if is_seen_in_parts and image is None:
        raise SAMError("The marks have a region of the image: it is encoded by itself. Connect the embedded image to image.")
    results = Results(prompts, geometry, options, individual_masks)
    if not is_seen_in_parts:
        decode_each(model, embedding, prompts, results.take, options, device_mode)
    else:
        segment_each(model, image, prompts, results.take, options, device_mode, detail, embedding, results.report)
    return results.outputs(image)


class Results:
    """The four outputs of both nodes, gathered frame by frame.

    Args:
        prompts: the objects of each frame.
        geometry: how each lies in the model's input.
        options: what was asked for.
        individual_masks: see the nodes.
    """

    def __init__(
        self, prompts: Sequence[Sequence[Prompt]], geometry: Geometry, options: PredictOptions, individual_masks: bool
    ) -> None:
        self.geometry, self.options, self.apart = geometry, options, individual_masks or options.candidate == "all"
        self.masks, self.shown = MaskStack(len(prompts), geometry.original), Shown(len(prompts))
        self.looked: dict[int, Looked] = {}
        self.bboxes: list[list[BoundingBox]] = [[] for _ in prompts]
        self.scores: list[list[float]] = [[] for _ in prompts]
        # How many candidates an object has is only known once it is decoded; otherwise the output is filled as they come.
        self.parts = [torch.zeros(0)] * len(prompts) if options.candidate == "all" else []
        *self.places, count = accumulate((max(1, len(objects)) for objects in prompts), initial=0)
        count = count if options.logits and not self.parts else 0
        self.logits = torch.empty(count, 1, *geometry.grid, device=result_device())

    def report(self, index: int, looked: Looked) -> None:
        """What became of second looks at a frame, before its masks come."""
        self.looked[index] = looked

    def take(self, index: int, found: FramePrediction) -> None:
        """A frame without objects gets one empty mask, so that no frame is ever lost from a batch."""
        self.bboxes[index] = _scored_boxes(found.masks, found.scores)
        self.shown.put(index, found.masks, found.scores.tolist(), self.looked.get(index))
        if not len(found.masks):
            found = self._placeholder(found)
        together = not self.apart and len(found.masks) > 1
        self.masks.put(index, found.masks.any(0, keepdim=True) if together else found.masks)
        self.scores[index] = found.scores.tolist()
        if self.parts:
            self.parts[index] = found.logits
        elif self.options.logits:
            self.logits[self.places[index] : self.places[index] + len(found.logits)] = found.logits

    def _placeholder(self, found: FramePrediction) -> FramePrediction:
        logits = found.logits.new_full((int(self.options.logits), 1, *self.geometry.grid), ABSENT_LOGIT)
        return FramePrediction(found.masks.new_zeros(1, *self.geometry.original), found.scores.new_zeros(1), logits)

    def outputs(self, image: Tensor | None = None) -> Outputs:
        """The outputs, shown on `image`; there are no logits where nothing is connected to them."""
        scores, logits = [score for frame in self.scores for score in frame], joined(self.parts) if self.parts else self.logits
        masks = self.masks.filled(result_device())
        return Result((masks, self.bboxes, scores, logits), image, self.shown.found)


def _scored_boxes(masks: Tensor, scores: Tensor) -> list[BoundingBox]:
    boxes = zip(map(tight_box, masks), scores.tolist(), strict=True)
    return [BoundingBox(**box, score=score) for box, score in boxes if box is not None]

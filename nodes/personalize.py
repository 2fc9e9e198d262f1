"""SAM Personalize: one example of an object, and the same object in other images."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sam import (
    METHODS,
    Concept,
    DeviceMode,
    FoundObjects,
    Method,
    PersonalizeOptions,
    Segmenter,
    personalize_each,
    result_device,
)
from ..utils.images import Frames
from ..utils.stacks import MaskStack
from .common import CATEGORY, CONCEPT_INPUT, SAM_MODEL_INPUT, SHOW_RESULT_INPUT, Result, Shown, ShowsResult
from .predict import OPTION_INPUTS


class Personalize(ShowsResult):
    """`SAMKit_Personalize`."""

    DESCRIPTION = (
        "Finds the object of a reference image in other images, without text prompts or training (PerSAM). The node "
        "compares the model's image features, so results depend on the checkpoint."
    )
    SEARCH_ALIASES = [
        "sam",
        "segment anything",
        "persam",
        "one shot",
        "few shot",
        "reference",
        "example",
        "find the same",
        "find object",
        "personalise",
    ]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("MASK", "FLOAT", "MASK", "STRING")
    RETURN_NAMES = ("masks", "scores", "similarity", "positive_coords")
    OUTPUT_IS_LIST = (False, True, False, False)
    OUTPUT_TOOLTIPS = (
        "Masks in frame order: one per frame, or with individual_masks one per object found.",
        "Similarity of each object to the reference: the mean of similarity inside its mask. 0 for a frame without an object.",
        "One heat map per frame: the similarity of each pixel to the reference, 0 to 1.",
        "The point at which each object was found, as JSON: one list of points per frame. Connect it to positive_coords "
        "of SAM Segment.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        mask = {"tooltip": "The mask of the object in the reference image. Connect one mask per reference image."}
        images = {"tooltip": "The images to search, every frame of a batch. Alpha is ignored."}
        max_objects = {"default": 1, "min": 1, "max": 100, "tooltip": "Maximum number of objects to find per frame."}
        min_score = {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01}
        method = {
            "default": "parts and color",
            "tooltip": "persam: segments the most similar place. persam-f: the same, and learns from the references how "
            "to weight SAM's candidate masks. parts: compares several places part by part, by their "
            "features. parts and color: also compares colors.",
        }
        return {
            "required": {
                "sam_model": SAM_MODEL_INPUT,
                "reference_image": (
                    "IMAGE",
                    {"tooltip": "An image of the object. With several images, their similarities are averaged."},
                ),
                "reference_mask": ("MASK", mask),
                "image": ("IMAGE", images),
                "max_objects": ("INT", max_objects),
                "min_score": (
                    "FLOAT",
                    {**min_score, "tooltip": "Discard results with a lower similarity score. See scores."},
                ),
            },
            "optional": {
                **{name: OPTION_INPUTS[name] for name in ("individual_masks", "hq", "device_mode")},
                "concept": CONCEPT_INPUT,
                "show_result": SHOW_RESULT_INPUT,
                "method": (list(METHODS), method),
            },
        }

    def execute(
        self,
        sam_model: Segmenter,
        reference_image: Tensor,
        reference_mask: Tensor,
        image: Tensor,
        max_objects: int = 1,
        min_score: float = 0.0,
        individual_masks: bool = False,
        hq: bool = True,
        device_mode: DeviceMode = "AUTO",
        concept: Concept | None = None,
        method: Method = "parts and color",
    ) -> Result:
        options = PersonalizeOptions(max_objects, min_score, hq, concept=concept, method=method)
        frames = Frames(image)
        masks, similarity = MaskStack(len(frames), frames.size), torch.empty(len(frames), *frames.size)
        scores, points = [[0.0]] * len(frames), [np.zeros((0, 2))] * len(frames)
        shown = Shown(len(frames))

        def take(index: int, found: FoundObjects) -> None:
            masks.put(index, _of_frame(found.masks, individual_masks))
            similarity[index] = found.similarity
            scores[index], points[index] = found.scores.tolist() or [0.0], found.points
            shown.put(index, found.masks, found.scores.tolist())

        references = Frames(reference_image, "reference_image")
        personalize_each(sam_model, references, reference_mask, frames, take, options, device_mode)
        where = result_device()
        flat = [score for frame in scores for score in frame]
        return Result((masks.filled(where), flat, similarity.to(where), _as_json(points)), image, shown.found)


def _of_frame(masks: Tensor, individually: bool) -> Tensor:
    """A frame's masks `[N, H, W]`, each on its own or together; an empty one where there are none."""
    return masks if individually and len(masks) else masks.any(0, keepdim=True)


def _as_json(points: list[np.ndarray]) -> str:
    """Points `[N, 2]` (x, y) of each frame as STRING coords, a list per frame."""
    return json.dumps([[{"x": x, "y": y} for x, y in frame.tolist()] for frame in points])

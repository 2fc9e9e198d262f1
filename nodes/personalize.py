"""SAM Personalize: one example of a thing, and the same thing in other pictures."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sam import DeviceMode, PersonalizeOptions, Segmenter, personalize
from .common import CATEGORY, DEVICE_MODE_INPUT, SAM_MODEL_INPUT
from .predict import OPTION_INPUTS


class Personalize:
    """`SAMKit_Personalize`."""

    DESCRIPTION = (
        "Show a thing in one picture, and find it in others, without words and without training (PerSAM). It goes by the "
        "model's own features: the better the checkpoint, the better it finds."
    )
    SEARCH_ALIASES = ["sam", "segment anything", "persam", "one shot", "reference", "example", "find the same", "personalise"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("MASK", "FLOAT", "MASK", "STRING")
    RETURN_NAMES = ("masks", "scores", "similarity", "positive_coords")
    OUTPUT_IS_LIST = (False, True, False, False)
    OUTPUT_TOOLTIPS = (
        "Masks in frame order: one per frame, or one per thing and frame with individual_masks.",
        "How like the example each thing is: the mean of similarity inside its mask; 0 where a frame has none.",
        "One heat map per frame: how like the example each place is, 0 to 1.",
        "Where each thing was looked for: JSON, a list of points per frame, for SAM Segment's positive_coords.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        mask = {"tooltip": "The thing in the reference image; a mask for each where there are several."}
        images = {"tooltip": "The pictures to look in, every frame of a batch; alpha is ignored."}
        max_objects = {"default": 1, "min": 1, "max": 100, "tooltip": "Look for at most this many such things in a frame."}
        min_score = {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "sam_model": SAM_MODEL_INPUT,
                "reference_image": (
                    "IMAGE",
                    {"tooltip": "A picture of the thing; of several, what they have in common counts."},
                ),
                "reference_mask": ("MASK", mask),
                "image": ("IMAGE", images),
                "max_objects": ("INT", max_objects),
                "min_score": (
                    "FLOAT",
                    {**min_score, "tooltip": "Leave out what is less like the example than this; see scores."},
                ),
            },
            "optional": {name: OPTION_INPUTS[name] for name in ("individual_masks", "hq")} | {"device_mode": DEVICE_MODE_INPUT},
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
    ) -> tuple[Tensor, list[float], Tensor, str]:
        options = PersonalizeOptions(max_objects, min_score, hq)
        found = personalize(sam_model, reference_image, reference_mask, image, options, device_mode)
        masks = [_of_frame(masks, individual_masks) for masks in found.masks]
        scores = [score for frame in found.scores for score in frame.tolist() or [0.0]]
        stacked = torch.cat(masks).float() if masks else found.similarity
        return stacked, scores, found.similarity, _as_json(found.points)


def _of_frame(masks: Tensor, individually: bool) -> Tensor:
    """A frame's masks `[N, H, W]`, each on its own or together; an empty one where there are none."""
    return masks if individually and len(masks) else masks.any(0, keepdim=True)


def _as_json(points: list[np.ndarray]) -> str:
    """Points `[N, 2]` (x, y) of each frame as STRING coords, a list per frame."""
    return json.dumps([[{"x": x, "y": y} for x, y in frame.tolist()] for frame in points])

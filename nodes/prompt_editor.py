"""SAM Prompt Editor: marks set by hand on the image. The browser's half is `web/prompt_editor.js`."""

from typing import Any

import torch
from torch import Tensor

from ..sam import PredictOptions, PromptInputs, SAMEmbedding, Segmenter, encode, remember, result_device
from ..utils.comfy import save_temporary
from ..utils.images import image_to_frames
from .common import CATEGORY, SAM_MODEL_INPUT
from .editor_text import EditorPrompts, parse_editor
from .predict import Outputs, predict

MOST_IMAGES = 64  # frames of a batch that the editor can show


def segment_marks(model: Segmenter, embedding: SAMEmbedding, prompts: EditorPrompts, given: PromptInputs) -> Outputs:
    """Masks of the editor's marks, one per frame, by SAM Predict Mask's own function; the preview's too."""
    multimask = "auto" if prompts.candidate == "best" else "on"
    return predict(model, embedding, given, PredictOptions(prompts.candidate, multimask), False)


class PromptEditor:
    """`SAMKit_PromptEditor`."""

    DESCRIPTION = (
        "Click on the image and see the mask at once. Left click: on the object; right click: not on it; drag: a box. "
        "The marks go out as points and boxes, for SAM Predict Mask, ComfyUI's SAM3 Detect and others; the mask from the "
        "connected model goes out too."
    )
    SEARCH_ALIASES = ["sam", "segment anything", "points editor", "click", "interactive segmentation", "sam editor", "sam3"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("STRING", "STRING", "BOUNDING_BOX", "MASK", "IMAGE")
    RETURN_NAMES = ("positive_coords", "negative_coords", "bboxes", "masks", "image")
    OUTPUT_TOOLTIPS = (
        "Points on the object, as JSON.",
        "Points that are not on the object, as JSON.",
        "The boxes that were drawn.",
        "One mask per frame, of all objects together; all zero where no model is connected or nothing is marked.",
        "The image, unchanged.",
    )
    OUTPUT_NODE = True  # so that a graph that ends here runs, and shows its image
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "Left click: on the object. Right click: not on it. Drag: a box. See the help page for the keys."
        widget = {"default": "{}", "socketless": True, "widgetType": "SAMKIT_PROMPTS", "tooltip": tooltip}
        model = (SAM_MODEL_INPUT[0], {"tooltip": "Connect a model to see the mask as you click, and to get masks."})
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The image to mark; of a batch, every frame."}),
                "prompts": ("STRING", widget),
            },
            "optional": {"sam_model": model},
        }

    def execute(self, image: Tensor, prompts: str = "{}", sam_model: Segmenter | None = None) -> dict[str, Any]:
        parsed, frames = parse_editor(prompts), len(image)
        shown = {"samkit_images": save_temporary(image_to_frames(image[:MOST_IMAGES]))}
        masks = torch.zeros(image.shape[:3], device=result_device())
        if sam_model is not None:
            shown["samkit_model"] = [remember(sam_model)]
            if parsed.marks:
                masks = segment_marks(sam_model, encode(sam_model, image), parsed, parsed.given(range(frames)))[0]
        return {"ui": shown, "result": (*parsed.outputs(frames), masks, image)}

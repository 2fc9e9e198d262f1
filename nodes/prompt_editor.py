"""SAM Prompt Editor: objects marked by hand on the image. The browser's half is `web/prompt_editor.js`."""

import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..sam import (
    FramePrediction,
    GroundingModel,
    PredictOptions,
    SAMEmbedding,
    Segmenter,
    as_segmenter,
    objects_per_frame,
    remember,
    result_device,
    segment_each_way,
)
from ..utils.comfy_files import save_temporary
from ..utils.finish import finish_mask
from ..utils.images import Frames, bounded, cutout
from ..utils.text import counted
from .common import CATEGORY, SAM_MODEL_INPUT, MakesLarge
from .editor.contract import for_browser
from .editor.text import EditorObject, EditorPrompts, parse_editor
from .predict import Outputs, predict

log = logging.getLogger("samkit")

MOST_IMAGES = 64  # frames of a batch that the editor can show


def segment_marks(
    model: Segmenter, embedding: SAMEmbedding, prompts: EditorPrompts, frames: Iterable[int], only: int
) -> Outputs:
    """Masks of one of the editor's objects, one per frame: SAM Predict Mask's, finished and painted; the preview's too.

    Args:
        model: the one that made the embedding.
        embedding: of the images.
        prompts: the editor's.
        frames: the images' numbers, as the marks have them.
        only: the object's place.
    """
    one, frames = prompts.objects[only], list(frames)
    given = prompts.given(frames, embedding.original_size, only)
    masks, *others = predict(model, embedding, given, options_of(one), False)
    return torch.stack([finish_object(mask, one, frame) for mask, frame in zip(masks, frames, strict=True)]), *others


def options_of(one: EditorObject) -> PredictOptions:
    """How an object's marks become its mask."""
    return PredictOptions(one.candidate, "auto" if one.candidate == "best" else "on", logits=False)


def finish_object(mask: Tensor, one: EditorObject, frame: int) -> Tensor:
    """An object's mask `[H, W]` in a frame, finished and painted. Where it has neither mask nor paint it has none."""
    patches = [patch for patch in one.paint if patch.frame in (None, frame)]
    if not patches and not (one.finish.has_effect and bool(mask.any())):
        return mask
    return torch.from_numpy(finish_mask(mask.cpu().numpy(), one.finish, patches)).to(mask.device)


class PromptEditor(MakesLarge):
    """`SAMKit_PromptEditor`."""

    DESCRIPTION = (
        "Click on the image and see the mask at once. Left-click: a point on the object. Right-click: a point that is "
        "not on it. Drag: a box. N: another object. Outputs the masks of the connected model, and the points and boxes "
        "for SAM Predict Mask, ComfyUI's SAM3 Detect and other nodes."
    )
    SEARCH_ALIASES = [
        "sam",
        "sam2",
        "sam3",
        "segment anything",
        "select object",
        "segment object",
        "object selection",
        "object",
        "click",
        "click to mask",
        "points editor",
        "mask editor",
        "inpaint mask",
        "interactive segmentation",
        "magic wand",
        "quick selection",
        "lasso",
        "rotoscope",
        "roi",
        "cutout",
        "cut out",
        "isolate object",
        "extract object",
        "crop object",
        "remove background",
        "background removal",
        "sam editor",
    ]
    CATEGORY = CATEGORY
    LARGE = ("masks", "cutout")
    RETURN_TYPES = ("STRING", "STRING", "BOUNDING_BOX", "MASK", "IMAGE", "STRING", "IMAGE")
    RETURN_NAMES = ("positive_coords", "negative_coords", "bboxes", "masks", "image", "labels", "cutout")
    OUTPUT_IS_LIST = (False, False, False, False, False, True, False)
    OUTPUT_TOOLTIPS = (
        "Points on the objects, as JSON. With several objects, each point names the object that it belongs to.",
        "Points that are not on the objects, as JSON.",
        "The boxes drawn in the editor.",
        "One mask per frame that merges all objects, or with individual_masks one per object and frame. The mask is "
        "empty where nothing is marked or painted. Without a model, it contains only what is painted.",
        "The image, unchanged.",
        "The names of the objects, in the order of the editor's list.",
        "The image with each mask as its alpha: transparent outside the mask.",
    )
    OUTPUT_NODE = True  # so that a graph that ends here runs, and shows its image
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = (
            "Left-click: a point on the object. Right-click: a point that is not on it. Drag: a box. The help "
            "page lists the keys."
        )
        widget = {"default": "{}", "socketless": True, "widgetType": "SAMKIT_PROMPTS", "tooltip": tooltip}
        widget["samkit_contract"] = for_browser()
        model = (SAM_MODEL_INPUT[0], {"tooltip": "Connect a model to see the masks as you click, and to get masks."})
        apart = {
            "default": False,
            "tooltip": "On: one mask per object and frame. Off: one mask per frame that merges its objects.",
        }
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The image to segment. In a batch, each frame can have its own marks."}),
                "prompts": ("STRING", widget),
            },
            "optional": {
                "sam_model": model,
                "individual_masks": ("BOOLEAN", apart),
                "grounding_model": (
                    "SAMKIT_GROUNDING_MODEL",
                    {"tooltip": "Connect Load Grounding DINO to find objects by words."},
                ),
            },
        }

    def execute(
        self,
        image: Tensor,
        prompts: str = "{}",
        sam_model: Segmenter | None = None,
        individual_masks: bool = False,
        grounding_model: GroundingModel | None = None,
    ) -> dict[str, Any]:
        """The editor finds words by `grounding_model`, and a run takes the objects that it has made of them."""
        parsed, (frames, *size) = parse_editor(prompts), image.shape[:3]
        shown = {"samkit_images": save_temporary(islice(Frames(image), MOST_IMAGES))}
        if outside := parsed.outside(tuple(size)):
            log.warning(
                "SAM Prompt Editor ignores %s outside the image of %dx%d pixels.", counted(outside, "mark"), *size[::-1]
            )
        if sam_model is not None:
            shown["samkit_model"] = [remember(sam_model)]
        made = _Made(image, parsed, individual_masks, *map(self.wants, self.LARGE))
        made.fill(sam_model)
        labels = [one.name for one in parsed.objects if one.has_content] or [""]
        result = (*parsed.outputs(frames, tuple(size)), made.masks, bounded(image), labels, made.cutout)
        return {"ui": shown, "result": result}


class _Made:
    """The outputs `masks` and `cutout`: what is wanted of them is allocated once and filled a frame at a time.

    Args:
        image: IMAGE of B frames.
        prompts: the editor's.
        apart: one mask per object and frame, instead of one per frame.
        has_masks, has_cutout: what is wanted.
    """

    def __init__(self, image: Tensor, prompts: EditorPrompts, apart: bool, has_masks: bool, has_cutout: bool) -> None:
        self.image, self.prompts, self.apart = image, prompts, apart
        self.objects = [(place, one) for place, one in enumerate(prompts.objects) if one.has_content]
        self.rows = max(1, len(self.objects)) if apart else 1
        (count, *size), where = image.shape[:3], result_device()
        self.masks = torch.empty(count * self.rows * has_masks, *size, device=where)
        self.cutout = torch.empty(count * self.rows * has_cutout, *size, 4, device=where)

    def fill(self, model: Segmenter | None) -> None:
        """Make the masks of all frames. Without a model an object has its paint; where nothing is wanted, nothing is done."""
        count, *size = self.image.shape[:3]
        if not (len(self.masks) or len(self.cutout)):
            return
        if model is None or not self.objects:
            nothing = torch.zeros(*size, dtype=torch.bool, device=result_device())
            for index in range(count):
                self._put(index, [nothing] * len(self.objects) or [nothing])
            return
        frame, asked = as_segmenter(model).frame(tuple(size)), []
        for place, one in self.objects:
            given = self.prompts.given(range(count), tuple(size), place)
            asked.append((objects_per_frame(given, count, frame), options_of(one)))

        def take(index: int, found: list[FramePrediction]) -> None:
            self._put(index, [one.masks.any(0) for one in found])

        segment_each_way(model, self.image, asked, take)

    def _put(self, index: int, masks: Sequence[Tensor]) -> None:
        """Masks bool `[H, W]` of a frame, one for each object, or an empty one."""
        made = [finish_object(mask, one, index) for mask, (_, one) in zip(masks, self.objects, strict=False)] or masks
        made = torch.stack([mask.float() for mask in made])
        made = made if self.apart else made.amax(0, keepdim=True)
        rows = slice(index * self.rows, (index + 1) * self.rows)
        if len(self.masks):
            self.masks[rows] = made
        if len(self.cutout):
            self.cutout[rows] = cutout(self.image[index : index + 1], made)

"""SAM Prompt Editor: objects marked by hand on the image. The browser's half is `web/prompt_editor.js`."""

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..sam import (
    FramePrediction,
    GroundingModel,
    ImagePredictor,
    Looked,
    PredictOptions,
    Prompt,
    ReadyImage,
    SecondLook,
    Segmenter,
    clip_region,
    objects_per_frame,
    predict_in_region,
    prompt_each,
    remember,
    result_device,
    stay_loaded,
)
from ..sam.geometry import Size
from ..sam.store.memory import one_run
from ..utils.comfy import Progress
from ..utils.comfy_files import save_temporary
from ..utils.finish import finish_mask
from ..utils.images import Frames, bounded, cutout
from ..utils.marks import Region
from ..utils.text import counted
from .common import CATEGORY, SAM_MODEL_INPUT, MakesLarge
from .editor.contract import for_browser
from .editor.text import EditorObject, EditorPrompts, parse_editor

log = logging.getLogger("samkit")

MOST_IMAGES = 1024  # frames of a batch that the editor can show
MOST_PIXELS = 1 << 30  # of them together: files in the temp folder, with about a byte a pixel


class FirstLook(NamedTuple):
    """What SAM gives for an object's marks.

    Attributes:
        prompts: its marks, in pixels of the frame.
        found: masks of the frame; logits on the grid of the object's region, where it has one.
        options: that they were made with.
    """

    prompts: list[Prompt]
    found: FramePrediction
    options: PredictOptions


def first_look(
    image: ImagePredictor,
    prompts: EditorPrompts,
    frame: int,
    only: int,
    start: np.ndarray | None = None,
    size: Size | None = None,
    logits: bool = False,
) -> FirstLook:
    """The masks of one of the editor's objects on a frame, as SAM Segment makes them.

    Args:
        image: the frame, or the region of it that the object has.
        prompts: the editor's.
        frame: the frame's number, as the marks have it.
        only: the object's place.
        start: a mask bool `[H, W]` that the marks correct.
        size: (H, W) of the frame, where `image` is a region of it.
        logits: whether they are wanted.
    """
    one, size = prompts.objects[only], size or image.geometry.original
    given = prompts.given([frame], size, only)
    if start is not None and start.shape == size:
        given = replace(given, mask=torch.from_numpy(start).float()[None])
    region = clip_region(one.region, size)
    objects = [replace(prompt, region=region) for prompt in objects_per_frame(given, 1, image.model.geometry(size))[0]]
    options = PredictOptions(one.candidate, "auto" if one.candidate == "best" else "on", logits=logits)
    if region is None:
        return FirstLook(objects, image.predict(objects, options), options)
    return FirstLook(objects, predict_in_region(image, region, size, objects, options), options)


def segment_marks(
    image: ImagePredictor,
    prompts: EditorPrompts,
    frame: int,
    only: int,
    start: np.ndarray | None = None,
    size: Size | None = None,
) -> tuple[Tensor, float]:
    """The mask of one of the editor's objects on a frame by a first look, finished and painted; the preview's too.

    Args:
        image, prompts, frame, only, start, size: see `first_look`.

    Returns:
        float32 `[H, W]` in 0..1, and the predicted IoU; without a mark on this frame nothing but paint, and 0.
    """
    masks, scores, _ = first_look(image, prompts, frame, only, start, size).found
    return finish_object(masks.any(0).float(), prompts.objects[only], frame), min(scores.tolist(), default=0.0)


@torch.no_grad()
def look_again(
    model: Segmenter, pixels: np.ndarray, prompts: EditorPrompts, frame: int, only: int, first: FirstLook
) -> tuple[Tensor, float, Looked]:
    """`segment_marks` by second looks at what the first one has found, as `prompts.detail` says. Not in the body of a `placed`.

    Args:
        model: that the first look was made with.
        pixels: the frame, uint8 `[H, W, 3]`.
        prompts, frame, only: see `first_look`.
        first: with its logits.

    Returns:
        The mask and the predicted IoU as `segment_marks` gives them, and what became of the object.
    """
    second = SecondLook(model, pixels.shape[:2], prompts.detail, first.options, "AUTO")
    (masks, scores, _), looked = second.refine(pixels, first.prompts, first.found)
    return finish_object(masks.any(0).float(), prompts.objects[only], frame), min(scores.tolist(), default=0.0), looked


def finish_object(mask: Tensor, one: EditorObject, frame: int) -> Tensor:
    """An object's mask `[H, W]` on a frame, finished and painted. Where it has neither mask nor paint it stays empty."""
    patches = [patch for patch in one.paint if patch.frame in (None, frame)]
    if not (patches or (one.finish.has_effect and bool(mask.any()))):
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
        images = Frames(image)
        first = images[:1]  # a single image is checked when it is read, whether it is shown or not
        most = min(len(images), MOST_IMAGES, max(1, MOST_PIXELS // (size[0] * size[1])))
        others = (images[index] for index in range(1, most))
        shown = {"samkit_images": save_temporary(chain(first, others))}
        if outside := parsed.outside(tuple(size)):
            log.warning(
                "SAM Prompt Editor ignores %s outside the image of %dx%d pixels.", counted(outside, "mark"), *size[::-1]
            )
        if sam_model is not None:
            shown["samkit_model"] = [remember(sam_model)]
        masks, cut = _masks_and_cutout(sam_model, image, parsed, individual_masks, *map(self.wants, self.LARGE))
        labels = [one.name for one in parsed.objects if one.has_content] or [""]
        result = (*parsed.outputs(frames, tuple(size)), masks, bounded(image), labels, cut)
        return {"ui": shown, "result": result}


def _masks_and_cutout(
    model: Segmenter | None, image: Tensor, prompts: EditorPrompts, apart: bool, has_masks: bool, has_cutout: bool
) -> tuple[Tensor, Tensor]:
    """The outputs `masks` and `cutout`: what is wanted of them is allocated once and filled a frame at a time.

    Without a model an object has its paint; where there is no object, a frame has one empty mask.
    """
    made = [(place, one) for place, one in enumerate(prompts.objects) if one.has_content]
    (count, *size), where = image.shape[:3], result_device()
    rows = max(1, len(made)) if apart else 1
    masks = torch.empty(count * rows * has_masks, *size, device=where)
    cut = torch.empty(count * rows * has_cutout, *size, 4, device=where)

    def put(frame: int, found: list[Tensor]) -> None:
        together = torch.stack(found) if apart else torch.stack(found).amax(0, keepdim=True)
        place = slice(frame * rows, frame * rows + rows)
        if has_masks:
            masks[place] = together
        if has_cutout:
            cut[place] = cutout(image[frame : frame + 1], together)

    def segment(frame: int, ready: ImagePredictor) -> None:
        put(frame, [segment_marks(ready, prompts, frame, place)[0] for place, _ in made])

    is_in_parts = prompts.detail != "off" or any(one.region is not None for _, one in made)
    if model is not None and made and is_in_parts and (has_masks or has_cutout):
        _segment_in_parts(model, Frames(image), prompts, [place for place, _ in made], put)
    elif model is not None and made and (has_masks or has_cutout):
        prompt_each(model, image, segment)
    elif has_masks or has_cutout:
        empty = torch.zeros(*size, device=where)
        for frame in range(count):
            put(frame, [finish_object(empty, one, frame) for _, one in made] or [empty])
    return masks, cut


def _segment_in_parts(
    model: Segmenter, frames: Frames, prompts: EditorPrompts, places: list[int], put: Callable[[int, list[Tensor]], None]
) -> None:
    """Hand on the masks of the objects at some places frame by frame, each seen in its region, and again as the detail says."""
    progress = Progress(len(frames) * len(places))
    with stay_loaded(model), one_run():
        for index in range(len(frames)):
            pixels, found = frames[index], []
            ready: dict[Region | None, ReadyImage] = {}
            for place in places:
                progress.check_interrupted()
                region = clip_region(prompts.objects[place].region, frames.size)
                if region not in ready:
                    ready[region] = ReadyImage(model, part_of(pixels, region))
                with ready[region].predictor() as image:
                    first = first_look(image, prompts, index, place, size=frames.size, logits=True)
                found.append(look_again(model, pixels, prompts, index, place, first)[0])
                progress.advance()
            put(index, found)


def part_of(pixels: np.ndarray, region: Region | None) -> np.ndarray:
    """A region of an image `[H, W, 3]`; all of it where there is none."""
    if region is None:
        return pixels
    x1, y1, x2, y2 = region
    return pixels[y1:y2, x1:x2]

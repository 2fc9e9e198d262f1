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
from ..utils.layers import layers_of
from ..utils.marks import Region
from ..utils.text import counted
from .common import CATEGORY, SAM_MODEL_INPUT, MakesLarge
from .editor.contract import for_browser
from .editor.text import EditorObject, EditorPrompts, parse_editor

log = logging.getLogger("samkit")

MOST_IMAGES = 1024  # frames of a batch that the editor can show
MOST_PIXELS = 1 << 30  # of them together: files in the temp folder, with about a byte a pixel


class MarkedObject(NamedTuple):
    """One of the editor's objects on a frame.

    Attributes:
        prompts: the editor's.
        place: of the object among them.
        frame: its number, as the marks have it.
        size: (H, W) of the frame.
        start: a mask bool `[H, W]` that the marks correct.
    """

    prompts: EditorPrompts
    place: int
    frame: int
    size: Size
    start: np.ndarray | None = None

    def finished(self, mask: Tensor) -> Tensor:
        """Its mask `[H, W]`, finished and painted."""
        return finish_object(mask, self.prompts.objects[self.place], self.frame)


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


def first_look(image: ImagePredictor, marked: MarkedObject, logits: bool = False) -> FirstLook:
    """The masks of an object on a frame, as SAM Segment makes them.

    Args:
        image: the frame, or the region of it that the object has.
        marked: the object.
        logits: whether they are wanted.
    """
    prompts, place, frame, size, start = marked
    one, given = prompts.objects[place], prompts.given([frame], size, place)
    if start is not None and start.shape == size:
        given = replace(given, mask=torch.from_numpy(start).float()[None])
    region = clip_region(one.region, size)
    objects = [replace(prompt, region=region) for prompt in objects_per_frame(given, 1, image.model.geometry(size))[0]]
    options = PredictOptions(one.candidate, "auto" if one.candidate == "best" else "on", logits=logits)
    if region is None:
        return FirstLook(objects, image.predict(objects, options), options)
    return FirstLook(objects, predict_in_region(image, region, size, objects, options), options)


def segment_marks(image: ImagePredictor, marked: MarkedObject) -> tuple[Tensor, float]:
    """The mask of an object on a frame by a first look, finished and painted; the preview's too. Arguments: see `first_look`.

    Returns:
        float32 `[H, W]` in 0..1, and the predicted IoU; without a mark on this frame nothing but paint, and 0.
    """
    masks, scores, _ = first_look(image, marked).found
    return marked.finished(masks.any(0).float()), min(scores.tolist(), default=0.0)


@torch.no_grad()
def look_again(model: Segmenter, pixels: np.ndarray, marked: MarkedObject, first: FirstLook) -> tuple[Tensor, float, Looked]:
    """`segment_marks` by second looks at what the first one has found, as `detail` says. Not in the body of a `placed`.

    Args:
        model: that the first look was made with.
        pixels: the frame, uint8 `[H, W, 3]`.
        marked: the object.
        first: with its logits.

    Returns:
        The mask and the predicted IoU as `segment_marks` gives them, and what became of the object.
    """
    second = SecondLook(model, marked.size, marked.prompts.detail, first.options, "AUTO")
    (masks, scores, _), looked = second.refine(pixels, first.prompts, first.found)
    return marked.finished(masks.any(0).float()), min(scores.tolist(), default=0.0), looked


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
    LARGE = ("masks", "cutout", "layers")
    RETURN_TYPES = ("STRING", "STRING", "BOUNDING_BOX", "MASK", "IMAGE", "STRING", "IMAGE", "LAYERS")
    RETURN_NAMES = ("positive_coords", "negative_coords", "bboxes", "masks", "image", "labels", "cutout", "layers")
    OUTPUT_IS_LIST = (False, False, False, False, False, True, False, True)
    OUTPUT_TOOLTIPS = (
        "Points on the objects, as JSON. With several objects, each point names the object that it belongs to.",
        "Points that are not on the objects, as JSON.",
        "The boxes drawn in the editor.",
        "One mask per frame that merges all objects, or with individual_masks one per object and frame. The mask is "
        "empty where nothing is marked or painted. Without a model, it contains only what is painted.",
        "The image, unchanged.",
        "The names of the objects, in the order of the editor's list.",
        "The image with each mask as its alpha: transparent outside the mask.",
        "One layer per object, cut out and named, for Create Layered Image and its layer editor. ComfyUI has them since 0.31: "
        "older versions have no node that takes layers.",
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
        wanted = set(filter(self.wants, self.LARGE))
        masks, cut, layers = _made_of_masks(sam_model, image, parsed, individual_masks, wanted)
        labels = [one.name for one in parsed.objects if one.has_content] or [""]
        result = (*parsed.outputs(frames, tuple(size)), masks, bounded(image), labels, cut, layers)
        return {"ui": shown, "result": result}


def _made_of_masks(
    model: Segmenter | None, image: Tensor, prompts: EditorPrompts, apart: bool, wanted: set[str]
) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """The outputs `masks`, `cutout` and `layers`: what is wanted of them is allocated once and filled a frame at a time.

    Without a model an object has its paint; where there is no object, a frame has one empty mask.
    """
    made = [(place, one) for place, one in enumerate(prompts.objects) if one.has_content]
    (count, *size), where = image.shape[:3], result_device()
    rows = max(1, len(made)) if apart else 1
    masks = torch.empty(count * rows * ("masks" in wanted), *size, device=where)
    cut = torch.empty(count * rows * ("cutout" in wanted), *size, 4, device=where)
    layers = []

    def put(frame: int, found: list[Tensor]) -> None:
        together = torch.stack(found) if apart else torch.stack(found).amax(0, keepdim=True)
        place = slice(frame * rows, frame * rows + rows)
        if "masks" in wanted:
            masks[place] = together
        if "cutout" in wanted:
            cut[place] = cutout(image[frame : frame + 1], together)
        if "layers" in wanted:
            layers.append(layers_of(image[frame : frame + 1], found[: len(made)], [one.name for _, one in made]))

    def segment(frame: int, ready: ImagePredictor) -> None:
        put(frame, [segment_marks(ready, MarkedObject(prompts, place, frame, tuple(size)))[0] for place, _ in made])

    is_in_parts = prompts.detail != "off" or any(one.region is not None for _, one in made)
    if model is not None and made and is_in_parts and wanted:
        _segment_in_parts(model, Frames(image), prompts, [place for place, _ in made], put)
    elif model is not None and made and wanted:
        prompt_each(model, image, segment)
    elif wanted:
        empty = torch.zeros(*size, device=where)
        for frame in range(count):
            put(frame, [finish_object(empty, one, frame) for _, one in made] or [empty])
    return masks, cut, layers


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
                marked = MarkedObject(prompts, place, index, frames.size)
                with ready[region].predictor() as image:
                    first = first_look(image, marked, logits=True)
                found.append(look_again(model, pixels, marked, first)[0])
                progress.advance()
            put(index, found)


def part_of(pixels: np.ndarray, region: Region | None) -> np.ndarray:
    """A region of an image `[H, W, 3]`; all of it where there is none."""
    if region is None:
        return pixels
    x1, y1, x2, y2 = region
    return pixels[y1:y2, x1:x2]

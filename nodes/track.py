"""SAM Track: objects that are prompted on any frames of a film, on all of its frames."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..sam import (
    DIRECTIONS,
    MOST_STEADIED,
    TRACK_METHODS,
    Detail,
    DeviceMode,
    Direction,
    FilmPrompt,
    PromptInputs,
    SAMError,
    Segmenter,
    Track,
    TrackedFrame,
    TrackMethod,
    TrackOptions,
    named_objects,
    result_device,
)
from ..sam import track as follow
from ..utils.batch_manager import first_frame
from ..utils.boxes import BoundingBox, BoxForm, tight_box
from ..utils.images import as_image, resize_masks
from ..utils.marks import NO_BOXES, NO_POINTS, Name
from ..utils.stacks import MaskStack
from ..utils.text import counted
from .common import (
    CATEGORY,
    DETAIL_INPUT,
    DEVICE_MODE_INPUT,
    SAM_MODEL_INPUT,
    SHOW_RESULT_INPUT,
    UNCONNECTED,
    Result,
    Shown,
    ShowsResult,
    with_tooltip,
)
from .editor.tracked import TrackedMasks
from .predict import OPTION_INPUTS
from .prompt_inputs import (
    BOX_FORM_INPUT,
    FRAME_OFFSET_INPUT,
    META_BATCH_INPUT,
    PROMPT_INPUTS,
    parse_prompts,
    refuse_nothing,
    refuse_shares,
)

_FRAMES = " In a list of such lists, each list is a frame's, and an empty list means no prompt there. One list is frame 0's."
_POINTS = "Points {}, as JSON: a list of objects with x and y in image pixels. Points with the same object key mark one object."
TRACK_TYPE = "SAMKIT_TRACK"
_PROMPTS = {
    "positive_coords": _POINTS.format("on the object") + _FRAMES,
    "negative_coords": _POINTS.format("that are not on the object") + _FRAMES,
    "bboxes": "Boxes around objects: ComfyUI's boxes, (x1, y1, x2, y2), or Impact Pack's SEGS." + _FRAMES,
    "mask_prompt": "Masks of objects on the frame mask_frame, one per object in order of the objects. A mask alone is used "
    "as it is. An empty mask is ignored.",
}
_FRAME_OFFSET = (
    "For frames that are a part of a film: the number of the first one in the film, from 0. Prompts per frame and mask_frame "
    "are then those of the whole film, and track is that of the part before. -1: these are all frames."
)
_META_BATCH = (
    "VideoHelperSuite's Meta Batch Manager that splits the film. frame_offset then follows each part, prompts are those of the "
    "whole film, and each part goes on where the one before has ended. The direction must be forward."
)
_FILL_FLICKER = (
    "Fill an object's gaps of up to so many frames, where it is missing between two frames with it, by the mask of the nearer "
    "frame, moved to where the object is in between. 0 fills none."
)
_REMOVE_BLINKS = (
    "Then remove an object where it appears for up to so many frames between two frames without it. Marked frames stay as they "
    "are. 0 removes none."
)
_DETAIL = (
    "Segment each object of each frame again in a cut of the frame around it, for sharp masks of objects that are small in a "
    "large frame. auto: as long as that gains resolution. 1 to 3: so many times. Each cut is encoded. How objects are followed "
    "does not change."
)


class TrackObjects(ShowsResult):
    """`SAMKit_Track`.

    ComfyUI keeps a node's object from one run to the next. So does VideoHelperSuite's manager, which runs a workflow once for
    each part: what the node has made of a part is what the next one goes on from. And what it has made of a whole film spares
    the next run what another prompt does not change.
    """

    _last: Track | None = None
    _earlier: Track | None = None
    DESCRIPTION = (
        "Follows objects through a film: mark them on any frame, and get their masks on every frame. SAM 2 and SAM 2.1 use "
        "their memory, other models the last mask. A second SAM Track with further prompts computes only what they change."
    )
    SEARCH_ALIASES = [
        "sam",
        "sam2",
        "sam 2",
        "video",
        "film",
        "track object",
        "tracking",
        "video segmentation",
        "propagate mask",
        "rotoscope",
        "rotoscoping",
        "mask video",
    ]
    CATEGORY = CATEGORY
    OUTPUT_NODE = True  # so that a graph that ends here runs, and the editor gets its masks from ComfyUI's cache too
    RETURN_TYPES = ("MASK", "BOUNDING_BOX", "FLOAT", TRACK_TYPE)
    RETURN_NAMES = ("masks", "bboxes", "scores", "track")
    OUTPUT_IS_LIST = (False, False, True, False)
    OUTPUT_TOOLTIPS = (
        "Masks in frame order: with individual_masks one per object, an empty one where it is absent; otherwise one per frame.",
        "Tight boxes around the objects, one list per frame, each with its score and the object as its label.",
        "Probability that each object is visible on each frame, in the order of individual masks.",
        "What is known of the film. Connect it to another SAM Track to correct objects or to add some.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "sam_model": SAM_MODEL_INPUT,
                "image": ("IMAGE", {"tooltip": "The frames of the film, in order. Alpha is ignored."}),
            },
            "optional": {
                **{name: with_tooltip(PROMPT_INPUTS[name], tooltip) for name, tooltip in _PROMPTS.items()},
                "track": (
                    TRACK_TYPE,
                    {
                        "tooltip": "The track of another SAM Track on the same film, to correct it or add to it, or on the "
                        "part of the film before this one, to go on."
                    },
                ),
                "mask_frame": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1_000_000_000,
                        "tooltip": "The frame that mask_prompt belongs to, counted from 0.",
                    },
                ),
                "direction": (
                    list(DIRECTIONS),
                    {
                        "default": "forward",
                        "tooltip": "forward: from an object's first prompt to the end of the film. backward: from its last "
                        "prompt to the start. both: from its first prompt to the end, and then to the start.",
                    },
                ),
                "method": (
                    list(TRACK_METHODS),
                    {
                        "default": "auto",
                        "tooltip": "memory: SAM 2's memory of earlier frames. follow: for any model, the mask that best fits "
                        "the last mask and how the object looked where it was marked. auto: memory if the model has one.",
                    },
                ),
                "individual_masks": OPTION_INPUTS["individual_masks"],
                "non_overlapping": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Give a pixel that several objects claim to the most certain one."},
                ),
                "device_mode": DEVICE_MODE_INPUT,
                "box_form": BOX_FORM_INPUT,
                "show_result": SHOW_RESULT_INPUT,
                "frame_offset": with_tooltip(FRAME_OFFSET_INPUT, _FRAME_OFFSET),
                "meta_batch": with_tooltip(META_BATCH_INPUT, _META_BATCH),
                "fill_flicker": ("INT", {"default": 0, "min": 0, "max": MOST_STEADIED, "tooltip": _FILL_FLICKER}),
                "remove_blinks": ("INT", {"default": 0, "min": 0, "max": MOST_STEADIED, "tooltip": _REMOVE_BLINKS}),
                "detail": with_tooltip(DETAIL_INPUT, _DETAIL),
            },
            "hidden": {"prompt": "PROMPT"},
        }

    def execute(
        self,
        sam_model: Segmenter,
        image: Tensor,
        positive_coords: str | None = None,
        negative_coords: str | None = None,
        bboxes: Any = UNCONNECTED,
        mask_prompt: Tensor | None = None,
        track: Track | None = None,
        mask_frame: int = 0,
        direction: Direction = "forward",
        method: TrackMethod = "auto",
        individual_masks: bool = False,
        non_overlapping: bool = False,
        device_mode: DeviceMode = "AUTO",
        box_form: BoxForm = "auto",
        frame_offset: int = -1,
        meta_batch: Any = None,
        fill_flicker: int = 0,
        remove_blinks: int = 0,
        detail: Detail = "off",
        prompt: Mapping[str, Any] | None = None,
    ) -> Result:
        frames, *size = as_image(image).shape[:3]
        if track is not None and not isinstance(track, Track):
            raise SAMError(f"track is of type {type(track).__name__}: connect the track output of SAM Track.")
        offset = frame_offset if meta_batch is None else first_frame(meta_batch, prompt, frames, frame_offset)
        given = parse_prompts(frames, positive_coords, negative_coords, bboxes, mask_prompt, None, box_form, offset, True)
        if track is None:
            refuse_nothing(given, "positive_coords, negative_coords, bboxes or mask_prompt")
        refuse_shares(given, tuple(size))
        known, first = track, max(0, offset)
        prompts = film_prompts(
            given, None if offset >= 0 else frames, tuple(size), mask_frame, () if track is None else track.names
        )
        last, self._last = self._last, None
        if last is not None and last.end == first > max(0, frame_offset):
            known = last
            if track is not None:
                prompts = _joined(track.prompts, prompts)
        names = list(dict.fromkeys((*(() if known is None else known.names), *prompts)))
        results = _Results(names, frames, tuple(size), individual_masks, first)
        options = TrackOptions(direction, non_overlapping, method, fill_flicker, remove_blinks, detail)
        is_whole = offset < 0
        now = follow(
            sam_model,
            image,
            prompts,
            results.take,
            options,
            known,
            device_mode,
            None if is_whole else offset,
            self._earlier if is_whole else None,
        )
        self._earlier = now if is_whole else None
        if meta_batch is not None:
            self._last = now
        more = dict if offset >= 0 else lambda: results.film.shown(direction, now.computed)
        return results.outputs(now, image, more)


def _joined(
    prompts: Mapping[Name, Mapping[int, FilmPrompt]], more: Mapping[Name, Mapping[int, FilmPrompt]]
) -> Mapping[Name, Mapping[int, FilmPrompt]]:
    """Prompts of a track and those that are added to them, and replace some."""
    return {name: {**prompts.get(name, {}), **more.get(name, {})} for name in (*prompts, *more)}


def film_prompts(
    given: PromptInputs, frames: int | None, size: tuple[int, int], mask_frame: int, known: tuple[Name, ...]
) -> Mapping[Name, Mapping[int, FilmPrompt]]:
    """Prompts by object and frame.

    Args:
        given: points and boxes per frame, and masks of one frame.
        frames: number of frames; None: of a film in parts, which is not known, so points and boxes may differ in it.
        size: (H, W) of a frame.
        mask_frame: the frame that the masks belong to; each is that of one object, in order.
        known: the objects of a track, which come first.

    Raises:
        SAMError: a point outside the image, or masks of a frame that is not there.
    """
    nothing = {"positive": NO_POINTS, "negative": NO_POINTS, "boxes": NO_BOXES}
    lists = {name: one for name in nothing if (one := getattr(given, name))}
    count = max(map(len, lists.values()), default=0) if frames is None else frames
    given = replace(given, **{name: [*one, *[nothing[name]] * (count - len(one))] for name, one in lists.items()})
    prompts: dict[Name, dict[int, FilmPrompt]] = {}
    for frame in range(count):
        for name, prompt in named_objects(given, frame, size).items():
            prompts.setdefault(name, {})[frame] = FilmPrompt(prompt.points, prompt.labels, prompt.box)
    if given.mask is None or not bool((given.mask > 0).any()):
        return prompts
    if frames is not None and mask_frame >= frames:
        raise SAMError(f"mask_frame is {mask_frame}, but the film has {counted(frames, 'frame')}: 0 to {frames - 1}.")
    names = list(dict.fromkeys((*known, *prompts)))
    numbers = (f"#{number}" for number in range(1, len(given.mask) + len(names) + 1))
    names += [name for name in numbers if name not in names]
    for name, mask in zip(names, given.mask, strict=False):
        if bool((mask > 0).any()):
            inside = resize_masks(mask[None], size)[0] >= 0.5
            other = prompts.setdefault(name, {}).get(mask_frame, FilmPrompt())
            prompts[name][mask_frame] = FilmPrompt(other.points, other.labels, other.box, inside)
    return prompts


class _Results:
    """The outputs, gathered frame by frame.

    Args:
        names: the objects.
        frames: how many there are.
        size: (H, W) of each.
        apart: a mask for each object, and not one for each frame.
        first: the number of the first of them in the film.
    """

    def __init__(self, names: list[Name], frames: int, size: tuple[int, int], apart: bool, first: int) -> None:
        self.names, self.apart, self.first = names, apart, first
        self.masks, self.shown = MaskStack(frames, size), Shown(frames)
        self.film = TrackedMasks(names, frames, size)
        self.bboxes: list[list[BoundingBox]] = [[] for _ in range(frames)]
        self.scores: list[list[float]] = [[] for _ in range(frames)]

    def take(self, found: TrackedFrame) -> None:
        """A film without objects gets one empty mask per frame."""
        index, masks, scores = found.index - self.first, found.masks, found.object_scores.sigmoid().tolist()
        self.film.put(index, masks)
        self.shown.put(index, masks, [score for score, mask in zip(scores, masks, strict=True) if mask.any()], found.looked)
        for name, mask, score in zip(self.names, masks, scores, strict=True):
            if box := tight_box(mask):
                self.bboxes[index].append(BoundingBox(**box, score=score, label=str(name), object=name))
        if not self.apart or not len(masks):
            masks = masks.any(0, keepdim=True) if len(masks) else masks.new_zeros(1, *masks.shape[1:])
        self.masks.put(index, masks)
        self.scores[index] = scores or [0.0]

    def outputs(self, known: Track, image: Tensor, more: Callable[[], Mapping[str, Any]]) -> Result:
        """Masks, boxes, scores and track, shown on the film; `more` is for the prompt editor."""
        scores = [score for frame in self.scores for score in frame]
        return Result((self.masks.filled(result_device()), self.bboxes, scores, known), image, self.shown.found, more)

"""What the nodes that take prompts declare alike, and how they read it."""

from typing import Any

from torch import Tensor

from ..sam import PromptInputs, SAMError
from ..utils.boxes import BOX_FORMS, BOX_TYPES, BoxForm, boxes_per_frame
from ..utils.images import as_masks
from ..utils.points import points_per_frame, refuse_normalised
from .common import UNCONNECTED

# Without braces: the browser's translations take them for placeholders.
_POINTS = (
    "Points {}, as JSON: a list of objects with x and y in image pixels, for example from SAM Prompt Editor. "
    "A list of such lists gives points per frame."
)
PROMPT_INPUTS: dict[str, Any] = {
    "positive_coords": ("STRING", {"forceInput": True, "tooltip": _POINTS.format("on the object")}),
    "negative_coords": ("STRING", {"forceInput": True, "tooltip": _POINTS.format("that are not on the object")}),
    "bboxes": (
        BOX_TYPES,
        {
            "forceInput": True,
            "tooltip": "Boxes around objects: ComfyUI's boxes, (x1, y1, x2, y2), or Impact Pack's SEGS. One box and all points "
            "make one object; each of several boxes is an object. A list of lists gives boxes per frame.",
        },
    ),
    "mask_prompt": (
        "MASK",
        {"tooltip": "A rough mask of the object, with the aspect ratio of the image. An empty mask is ignored."},
    ),
    "logits": (
        "SAMKIT_LOGITS",
        {"tooltip": "The logits of an earlier prediction, to refine its mask. They take precedence over mask_prompt."},
    ),
}

BOX_FORM_INPUT: tuple[Any, ...] = (
    list(BOX_FORMS),
    {
        "default": "auto",
        "tooltip": "How to read boxes of four numbers. auto and xyxy: (x1, y1, x2, y2). xywh: (x, y, width, height). "
        "ComfyUI's boxes and SEGS are always read correctly.",
    },
)
FRAME_OFFSET_INPUT: tuple[Any, ...] = (
    "INT",
    {
        "default": -1,
        "min": -1,
        "max": 1_000_000_000,
        "tooltip": "For a batch that is part of a video: the index of its first frame in the video, from 0. Lists of "
        "points and boxes per frame then cover the whole video. -1: the lists cover this batch only.",
    },
)
META_BATCH_INPUT: tuple[Any, ...] = (
    "VHS_BatchManager",
    {
        "tooltip": "VideoHelperSuite's Meta Batch Manager that splits the video. frame_offset then follows each batch, and "
        "lists of points and boxes per frame cover the whole video. Leave it unconnected if a node makes the lists from each "
        "batch.",
    },
)


def parse_prompts(
    frames: int,
    positive: str | None,
    negative: str | None,
    bboxes: Any,
    mask: Tensor | None,
    logits: Tensor | None,
    box_form: BoxForm = "auto",
    frame_offset: int = -1,
    is_film: bool = False,
) -> PromptInputs:
    """Prompt sockets -> typed prompts, which may be none.

    A connected socket of boxes that carries None is a detector that found nothing.

    Args:
        frames: number of frames B.
        positive, negative, bboxes, mask, logits, box_form: what came through the sockets.
        frame_offset, is_film: see `utils.boxes.spread`.

    Raises:
        SAMError: an input has another form than it should.
    """
    return PromptInputs(
        positive=None if positive is None else points_per_frame(positive, frames, "positive_coords", frame_offset, is_film),
        negative=None if negative is None else points_per_frame(negative, frames, "negative_coords", frame_offset, is_film),
        boxes=None if bboxes is UNCONNECTED else boxes_per_frame(bboxes, frames, box_form, frame_offset, is_film),
        mask=None if mask is None else as_masks(mask, "mask_prompt"),
        logits=logits,
    )


def refuse_nothing(given: PromptInputs, sockets: str) -> None:
    """Raise SAMError where none of the sockets of prompts, whose names are given for the message, is connected."""
    if given.is_empty:
        raise SAMError(f"No prompt connected. Connect at least one of {sockets}.")


def refuse_shares(given: PromptInputs, size: tuple[int, int]) -> None:
    """Refuse points and boxes in shares of an image (H, W) instead of its pixels, see `refuse_normalised`."""
    marks = {"positive_coords": given.positive, "negative_coords": given.negative, "bboxes": given.boxes}
    refuse_normalised({name: [one.rows for one in frames or ()] for name, frames in marks.items()}, size)

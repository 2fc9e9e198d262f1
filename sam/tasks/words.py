"""Words -> boxes, by Grounding DINO."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...utils.boxes import Boxes
from ...utils.comfy import Progress
from ..errors import SAMError
from ..geometry import Size
from ..kernels.nms import non_maximum_suppression
from ..models.in_transformers.grounding import GroundingModel
from ..placement.devices import DeviceMode, placed
from ..placement.memory import fitting, in_batches
from ..prompts import clip_boxes

_FRAMES_AT_ONCE = 4
_FRAME_BYTES = 1 << 30  # about what a frame needs at the model's 800x1333
_BETWEEN_PHRASES = re.compile(r"[.,\n]")


@dataclass(frozen=True)
class GroundingOptions:
    """What counts as found.

    Attributes:
        box_threshold: keep boxes whose best word scores above this.
        text_threshold: a box's label is made of the words that score above this.
        nms_threshold: of two boxes that overlap by more than this (IoU), whatever their labels, the worse is dropped.
        max_boxes: keep this many per image, the best; 0 keeps all.
    """

    box_threshold: float = 0.35
    text_threshold: float = 0.25
    nms_threshold: float = 0.7
    max_boxes: int = 0

    def __post_init__(self) -> None:
        for name in ("box_threshold", "text_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise SAMError(f"{name} is {getattr(self, name)}: it must be 0 to 1.")
        if self.max_boxes < 0:
            raise SAMError(f"max_boxes is {self.max_boxes}: it must be at least 0 (0 disables the limit).")


class FoundBoxes(NamedTuple):
    """What was found in one image, best first: corners `[N, 4]` in pixels, N scores in 0..1, N labels."""

    boxes: Boxes
    scores: list[float]
    labels: list[str]


def normalise_text(text: str) -> str:
    """Phrases between full stops, commas or line ends to what the model was trained on: `"cat. remote control."`.

    Raises:
        SAMError: there is no phrase.
    """
    phrases = (" ".join(phrase.split()).lower() for phrase in _BETWEEN_PHRASES.split(text))
    once = list(dict.fromkeys(phrase for phrase in phrases if phrase))
    if not once:
        raise SAMError(f'text is {text!r}: name at least one object to find, such as "cat. dog.".')
    return ". ".join(once) + "."


@torch.no_grad()
def find_boxes(
    grounding: GroundingModel,
    frames: Sequence[np.ndarray],
    text: str,
    options: GroundingOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> list[FoundBoxes]:
    """Boxes around the objects that a text names.

    Args:
        grounding: see `load_grounding`.
        frames: B images uint8 `[H, W, 3]` of one size; some are run at a time.
        text: see `normalise_text`.
        options: see `GroundingOptions`; None: its defaults.
        device_mode: see `placed`.

    Returns:
        What was found in each image. Boxes may end a little outside of it, as transformers has them.

    Raises:
        SAMError: there is no phrase in the text, or more than the model reads.
    """
    options, caption = options or GroundingOptions(), normalise_text(text)
    _check_length(grounding, caption)
    progress, found = Progress(len(frames)), []
    with placed(grounding.network, device_mode, _FRAME_BYTES * min(len(frames), _FRAMES_AT_ONCE)) as device:

        def detect(some: Sequence[np.ndarray]) -> list[FoundBoxes]:
            progress.check_interrupted()
            results = _detect(grounding, list(some), caption, options, device)
            return [_best(result, frame.shape[:2], options) for result, frame in zip(results, some, strict=True)]

        for boxes in in_batches(frames, fitting(device, _FRAME_BYTES, _FRAMES_AT_ONCE), detect):
            found += boxes
            progress.advance(len(boxes))
    return found


def _check_length(grounding: GroundingModel, caption: str) -> None:
    tokens, limit = len(grounding.processor.tokenizer(caption)["input_ids"]), grounding.network.config.max_text_len
    if tokens > limit:
        raise SAMError(f"text has {tokens} tokens, but the limit of the model is {limit}: name fewer objects.")


def _detect(
    grounding: GroundingModel, frames: list[np.ndarray], caption: str, options: GroundingOptions, device: torch.device
) -> list[dict[str, Any]]:
    """transformers' own result for some images: `boxes`, `scores` and labels of each."""
    inputs = grounding.processor(images=frames, text=[caption] * len(frames), return_tensors="pt").to(device)
    outputs = grounding.network(**inputs)
    post_process = grounding.processor.post_process_grounded_object_detection
    # Called `box_threshold` at first; both names are taken by some versions of 4, the new one alone by 5.
    name = "threshold" if "threshold" in inspect.signature(post_process).parameters else "box_threshold"
    return post_process(
        outputs,
        inputs["input_ids"],
        text_threshold=options.text_threshold,
        target_sizes=[frame.shape[:2] for frame in frames],
        **{name: options.box_threshold},
    )


def _best(result: dict[str, Any], size: Size, options: GroundingOptions) -> FoundBoxes:
    """Without duplicates, best first, no more than are wanted, and none that has no area in the image."""
    boxes, scores = (result[name].float().cpu() for name in ("boxes", "scores"))
    # `labels` held the words before `text_labels` did, and will hold numbers.
    labels = result["text_labels"] if "text_labels" in result else result["labels"]
    kept = [index for index in non_maximum_suppression(boxes, scores, options.nms_threshold) if _shows(boxes[index], size)]
    kept = kept[: options.max_boxes or None]
    return FoundBoxes(boxes[kept].double().numpy().reshape(-1, 4), scores[kept].tolist(), [labels[index] for index in kept])


def _shows(box: Tensor, size: Size) -> bool:
    return len(clip_boxes(box.double().numpy()[None], size)) > 0

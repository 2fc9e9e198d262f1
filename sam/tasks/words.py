"""Words -> boxes, by Grounding DINO."""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...utils.boxes import Boxes
from ...utils.checks import one_of
from ...utils.comfy import Progress
from ...utils.images import resize_pil
from ...utils.marks import Marks
from ..errors import SAMError
from ..geometry import Size, Window
from ..kernels.nms import non_maximum_suppression
from ..models.in_transformers.grounding import GroundingModel
from ..placement.devices import DeviceMode, placed
from ..placement.memory import fitting, in_batches
from ..prompts import clip_boxes
from .tiles import TILES, join_seams, tile_windows, without_other_levels

_FRAMES_AT_ONCE = 4
_TILE_SIDE = 800  # pixels: what the model brings the shorter side of an image to
_FRAME_BYTES = 1 << 30  # about what a frame needs at the model's 800x1333
# Also the full stops, commas and semicolons that keyboards for Chinese and Japanese type.
_BETWEEN_PHRASES = re.compile("[.,;\n\uff0e\uff61\u3002\uff0c\uff64\u3001\uff1b]")
_BETWEEN_WORDS = re.compile(r"[.?]")  # which the model's tokenizer keeps as tokens of their own
_LEAST, _LONGEST = 8, 2048  # pixels of a side
_MOST_RATIO = 8  # of the long side to the short one: of a longer image too few places are left for the model's queries


@dataclass(frozen=True)
class GroundingOptions:
    """What counts as found.

    Attributes:
        box_threshold: keep boxes whose best word scores above this.
        text_threshold: a box's label is made of the words that score above this.
        nms_threshold: of two boxes that overlap by more than this (IoU), whatever their labels, the worse is dropped.
        max_boxes: keep this many per image, the best; 0 keeps all.
        tiles: overlapping tiles that are searched beside the image, see `TILES`; `auto`: of as many pixels as the model takes,
            `off`: none. Boxes of two tiles that are parts of one object are joined.
    """

    box_threshold: float = 0.35
    text_threshold: float = 0.25
    nms_threshold: float = 0.7
    max_boxes: int = 0
    tiles: str = "off"

    def __post_init__(self) -> None:
        one_of(self.tiles, TILES, "tiles")
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
    """Phrases between full stops, commas, semicolons or line ends to what the model was trained on: `"cat. remote control."`.

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
    tiles = [tile_windows(frame.shape[:2], options.tiles, _TILE_SIDE) if options.tiles != "off" else [] for frame in frames]
    progress, found = Progress(len(frames) + sum(map(len, tiles))), []
    with placed(grounding.network, device_mode, _FRAME_BYTES * min(len(frames), _FRAMES_AT_ONCE)) as device:

        def detect(some: Sequence[np.ndarray]) -> list[FoundBoxes]:
            progress.check_interrupted()
            results = _detect(grounding, list(some), caption, options, device)
            return [_best(result, frame.shape[:2], options) for result, frame in zip(results, some, strict=True)]

        for boxes in in_batches(frames, fitting(device, _FRAME_BYTES, _FRAMES_AT_ONCE), detect):
            found += boxes
            progress.advance(len(boxes))
        for index, windows in enumerate(tiles):
            cuts = _Cuts(frames[index], windows) if windows else []
            in_tiles = []
            for boxes in in_batches(cuts, fitting(device, _FRAME_BYTES, _FRAMES_AT_ONCE), detect):
                in_tiles += boxes
                progress.advance(len(boxes))
            if windows:
                found[index] = _with_tiles(found[index], windows, in_tiles, frames[index].shape[:2], options)
    return found


class _Cuts(Sequence[np.ndarray]):
    """Windows of an image uint8 `[H, W, 3]`."""

    def __init__(self, image: np.ndarray, windows: Sequence[Window]) -> None:
        self.image, self.windows = image, windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        x1, y1, x2, y2 = self.windows[index]
        return self.image[y1:y2, x1:x2]


def _with_tiles(
    found: FoundBoxes, windows: Sequence[Window], in_tiles: Sequence[FoundBoxes], size: Size, options: GroundingOptions
) -> FoundBoxes:
    """What was found in an image (H, W), and what was found in its tiles, each object once."""
    parts = [part for window, boxes in zip(windows, in_tiles, strict=True) for part in _parts(boxes, window)]
    labels = dict.fromkeys(part.label for part in parts)
    joined = [one for label in labels for one in join_seams([part for part in parts if part.label == label], size)]
    kept = without_other_levels([*joined, *_parts(found, (0, 0, size[1], size[0]))], options.nms_threshold)
    kept = sorted(kept, key=lambda one: -one.score)[: options.max_boxes or None]
    ends = np.array([one.ends for one in kept], np.float64).reshape(-1, 4)
    return FoundBoxes(ends, [one.score for one in kept], [one.label for one in kept])


def _parts(found: FoundBoxes, window: Window) -> list["_Part"]:
    """The boxes of a window, in pixels of the image."""
    return [_Part(tuple((box + np.tile(window[:2], 2)).tolist()), window, *rest) for box, *rest in zip(*found, strict=True)]


@dataclass(frozen=True)
class _Part:
    """A box that was found in a part of an image, see `tiles.Part`."""

    ends: tuple[float, float, float, float]
    crop: Window
    score: float
    label: str

    @property
    def area(self) -> float:
        return (self.ends[2] - self.ends[0]) * (self.ends[3] - self.ends[1])

    def iou(self, other: "_Part", window: tuple[float, float, float, float]) -> float:
        boxes = np.array([self.ends, other.ends])
        low, high = np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])
        common = float((high.min(0) - low.max(0)).clip(min=0).prod())
        union = float((high - low).clip(min=0).prod(1).sum()) - common
        return common / union if union else 0.0

    def joined(self, others: Sequence["_Part"], crop: Window) -> "_Part":
        ends = np.array([self.ends, *(one.ends for one in others)])
        score = max(self.score, *(one.score for one in others)) if others else self.score
        return replace(self, ends=(*ends[:, :2].min(0).tolist(), *ends[:, 2:].max(0).tolist()), crop=crop, score=score)


def _check_length(grounding: GroundingModel, caption: str) -> None:
    tokens, limit = len(grounding.processor.tokenizer(caption)["input_ids"]), grounding.network.config.max_text_len
    if tokens > limit:
        raise SAMError(f"text has {tokens} tokens, but the limit of the model is {limit}: name fewer objects.")


def _detect(
    grounding: GroundingModel, frames: list[np.ndarray], caption: str, options: GroundingOptions, device: torch.device
) -> list[dict[str, Any]]:
    """transformers' own result for some images: `boxes`, `scores` and labels of each."""
    images, sizes = zip(*map(_detectable, frames), strict=True)
    inputs = grounding.processor(images=list(images), text=[caption] * len(frames), return_tensors="pt").to(device)
    outputs = grounding.network(**inputs)
    post_process = grounding.processor.post_process_grounded_object_detection
    # Called `box_threshold` at first; both names are taken by some versions of 4, the new one alone by 5.
    name = "threshold" if "threshold" in inspect.signature(post_process).parameters else "box_threshold"
    results = post_process(
        outputs,
        inputs["input_ids"],
        text_threshold=options.text_threshold,
        target_sizes=list(sizes),
        **{name: options.box_threshold},
    )
    special = grounding.processor.tokenizer.all_special_tokens
    for result, frame, size in zip(results, frames, sizes, strict=True):
        # `labels` held the words before `text_labels` did, and will hold numbers.
        words = result["text_labels"] if "text_labels" in result else result["labels"]
        result["words"] = [_cleaned(label, special) for label in words]
        if size != frame.shape[:2]:
            limits = torch.tensor([frame.shape[1], frame.shape[0]] * 2, device=result["boxes"].device)
            result["boxes"] = torch.minimum(result["boxes"], limits)
    return results


def _detectable(frame: np.ndarray) -> tuple[np.ndarray, Size]:
    """An image that the model can take, and the size (H, W) in pixels of the source that its boxes refer to.

    One of few rows or columns is continued at the bottom or on the right by the last of them, so that boxes keep their place. A
    very long one is shrunk before: one row of 100,000 pixels would need gigabytes otherwise.
    """
    height, width = frame.shape[:2]
    if min(height, width) >= max(_LEAST, math.ceil(max(height, width) / _MOST_RATIO)):
        return frame, (height, width)
    scale = min(1.0, _LONGEST / max(height, width))
    small = [max(1, round(side * scale)) for side in (height, width)]
    least = max(_LEAST, math.ceil(max(small) / _MOST_RATIO))
    margins = [max(0, least - side) for side in small]
    image = np.pad(resize_pil(frame, (small[0], small[1])), ((0, margins[0]), (0, margins[1]), (0, 0)), mode="edge")
    whole = [round(side * (part + margin) / part) for side, part, margin in zip((height, width), small, margins, strict=True)]
    return image, (whole[0], whole[1])


def _cleaned(label: str, special: Sequence[str]) -> str:
    """The words of a label, without the tokens that only separate them: `"a cat. [SEP]"` is a cat. `"[SEP]"` is empty."""
    for token in special:
        label = label.replace(token, " ")
    return " ".join(_BETWEEN_WORDS.sub(" ", label).split())


def _best(result: dict[str, Any], size: Size, options: GroundingOptions) -> FoundBoxes:
    """Without duplicates, best first, no more than are wanted, and none that has no area in the image."""
    boxes, scores = (result[name].float().cpu() for name in ("boxes", "scores"))
    kept = [index for index in non_maximum_suppression(boxes, scores, options.nms_threshold) if _shows(boxes[index], size)]
    kept = kept[: options.max_boxes or None]
    labels = [result["words"][index] for index in kept]
    return FoundBoxes(boxes[kept].double().numpy().reshape(-1, 4), scores[kept].tolist(), labels)


def _shows(box: Tensor, size: Size) -> bool:
    return len(clip_boxes(Marks(box.double().numpy()[None]), size)) > 0

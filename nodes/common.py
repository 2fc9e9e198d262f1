"""What every node declares alike, and how a node shows its result."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..sam import DETAILS, DEVICE_MODES, TILES, Looked
from ..utils.comfy import is_connected
from ..utils.comfy_files import save_results
from ..utils.overlay import result_image, result_text

CATEGORY = "Art Venture/Segmentation"

UNCONNECTED: Any = object()
"""The value of an optional input that nothing is connected to; None is what a connected one may carry."""

SAM_MODEL_TYPES = "AV_SAM_MODEL,SAM_MODEL"
"""Art Venture's socket and Impact Pack's: what carries a SAM in one of them is understood in the other."""

SAM_MODEL_INPUT = (SAM_MODEL_TYPES, {"tooltip": "A SAM model from Load SAM Model, or a SAM from another pack."})
DEVICE_MODE_INPUT: tuple[Any, ...] = (
    list(DEVICE_MODES),
    {
        "default": "AUTO",
        "tooltip": "AUTO: run on the GPU if there is one; ComfyUI may offload the model afterwards. "
        "Prefer GPU: stay on the GPU unless ComfyUI needs the memory. CPU: run on the CPU.",
    },
)
CONCEPT_INPUT: tuple[Any, ...] = (
    "SAMKIT_CONCEPT",
    {
        "tooltip": "A concept from SAM Teach or Load SAM Concept, made with the same model. With a concept, each prompt "
        "gives one mask: that of the taught object."
    },
)

SHOW_RESULT_INPUT = (
    "BOOLEAN",
    {
        "default": True,
        "tooltip": "Show the result in the node after a run: an overlay with the number of objects, scores and time, "
        "for up to 64 frames of a batch. API workflows that omit this input show nothing.",
    },
)


DETAIL_INPUT: tuple[Any, ...] = (
    list(DETAILS),
    {
        "default": "off",
        "tooltip": "Segment each object again in a cut of the image around it, for sharp masks of objects that are small in a "
        "large image. auto: as long as that gains resolution. 1 to 3: so many times. Each cut is encoded like an image.",
    },
)
TILES_INPUT: tuple[Any, ...] = (
    list(TILES),
    {
        "default": "off",
        "tooltip": "Also segment overlapping tiles of a large image at full resolution, to find small objects. Masks that a "
        "seam cuts are joined. auto: tiles of half the size of the model's input. 2 to 8: so many along the longer side.",
    },
)


def with_tooltip(declared: tuple[Any, ...], tooltip: str) -> tuple[Any, ...]:
    """An input declared as another one, with a tooltip of its own."""
    return declared[0], {**declared[1], "tooltip": tooltip}


MOST_SHOWN = 64  # frames of a batch


@dataclass(frozen=True)
class Found:
    """What was found in one frame.

    Attributes:
        masks: bool `[N, H, W]`, to be tinted; `[0, H, W]` where the image shows them already.
        scores: one per object.
        looked: what became of second looks, if there were any.
    """

    masks: Tensor
    scores: Sequence[float]
    looked: Looked | None = None


class PackedFound:
    """`Found` with a bit per pixel, for the frames of a long batch."""

    def __init__(self, masks: Tensor, scores: Sequence[float], looked: Looked | None = None) -> None:
        self.scores, self.looked, self._shape = scores, looked, tuple(masks.shape)
        self._bits = np.packbits(masks.cpu().numpy())

    @property
    def masks(self) -> Tensor:
        """The masks bool `[N, H, W]`."""
        return torch.from_numpy(np.unpackbits(self._bits, count=math.prod(self._shape)).view(bool)).view(self._shape)


class Shown:
    """What was found in the frames of a batch that are shown.

    Args:
        frames: how many there are.
    """

    def __init__(self, frames: int) -> None:
        self._kind = Found if frames == 1 else PackedFound
        self._found: dict[int, Found | PackedFound] = {}

    def put(self, frame: int, masks: Tensor, scores: list[float], looked: Looked | None = None) -> None:
        """Masks bool `[N, H, W]` and scores of a frame, and what became of second looks."""
        if frame < MOST_SHOWN:
            self._found[frame] = self._kind(masks, scores, looked)

    @property
    def found(self) -> "list[Found | PackedFound]":
        """One for each frame that is shown, in order."""
        return [self._found[frame] for frame in sorted(self._found)]


class Result(tuple[Any, ...]):
    """A node's outputs, which also know how they are shown.

    Attributes:
        image: IMAGE `[B, H, W, C]` that the objects are shown on; None: on black.
        found: per frame.
        more: makes what the pack's own half in the browser gets besides, where the result is shown.
    """

    image: Tensor | None
    found: "Sequence[Found | PackedFound]"
    more: Callable[[], Mapping[str, Any]]

    def __new__(
        cls,
        outputs: tuple[Any, ...],
        image: Tensor | None,
        found: "Sequence[Found | PackedFound]",
        more: Callable[[], Mapping[str, Any]] = dict,
    ) -> "Result":
        """The outputs as a tuple."""
        result = super().__new__(cls, outputs)
        result.image, result.found, result.more = image, found, more
        return result


class ShowsResult:
    """A node that shows its result in ComfyUI. Its `execute` gives a `Result`, which is a tuple to everybody else."""

    FUNCTION = "run"

    def run(self, show_result: bool = False, **inputs: Any) -> tuple[Any, ...] | dict[str, Any]:
        """What ComfyUI calls: `execute`, and where it is wanted, an image of each frame's result in the temp folder."""
        started = time.perf_counter()
        result = self.execute(**inputs)
        if not show_result:
            return tuple(result)
        return {"ui": {"images": shown(result, time.perf_counter() - started), **result.more()}, "result": tuple(result)}


def shown(result: Result, seconds: float) -> list[dict[str, str]]:
    """Save an image of each frame's result; their names, for ComfyUI's `ui`."""
    frames = [None] * len(result.found) if result.image is None else result.image
    each = list(zip(frames, result.found, strict=False))[:MOST_SHOWN]
    return save_results([result_image(frame, one.masks, _text(one, seconds)) for frame, one in each])


def _text(found: "Found | PackedFound", seconds: float) -> str:
    """The note below a frame."""
    text, looked = result_text(found.scores, seconds), found.looked and str(found.looked)
    return f"{text}, detail: {looked}" if looked else text


class MakesLarge:
    """A node whose large outputs are only made where they are connected; outside ComfyUI, always.

    Attributes:
        LARGE: their names.
    """

    LARGE: ClassVar[tuple[str, ...]]
    RETURN_NAMES: ClassVar[tuple[str, ...]]

    @classmethod
    def wants(cls, name: str) -> bool:
        """Whether to make an output: not where ComfyUI says that nothing is connected to it."""
        return is_connected(cls.RETURN_NAMES.index(name)) is not False

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """ComfyUI's cache must not hand on results without an output to a graph in which it is connected."""
        return " ".join(filter(cls.wants, cls.LARGE))


class SavesFile:
    """What the nodes declare alike that save what they get as one `.safetensors` file."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("STRING",)
    OUTPUT_NODE = True
    FUNCTION = "execute"


def saving_inputs(name: str, kind: str, tooltip: str, prefix: str) -> dict[str, Any]:
    """The inputs of such a node: the socket of that name and type, and where the file goes."""
    where = {"default": prefix, "tooltip": "Folder and name of the file, below ComfyUI's output folder."}
    return {"required": {name: (kind, {"tooltip": tooltip}), "filename_prefix": ("STRING", where)}}

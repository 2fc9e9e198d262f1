"""Words -> boxes: Grounding DINO, through transformers, which is imported only when it is needed.

"Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", arXiv 2303.05499.
"""

import inspect
import json
import logging
import re
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..utils.boxes import Boxes
from ..utils.comfy import Progress
from .device import DeviceMode, placed
from .embedding import Size
from .errors import SAMError
from .nms import non_maximum_suppression
from .prompts import clip_boxes

log = logging.getLogger("samkit")

MODEL_TYPE = "grounding-dino"
# Of each row one is needed; transformers 5 writes what prepares pictures into processor_config.json.
_FILES = (("config.json",), ("preprocessor_config.json", "processor_config.json"), ("tokenizer.json", "vocab.txt"))
NEEDED = f"{', '.join(' or '.join(names) for names in _FILES)}, and weights such as model.safetensors"
_FRAMES_AT_ONCE = 4  # at the model's 800x1333 a frame needs about a gigabyte
# Which of them an incomplete or damaged folder raises differs between versions of transformers.
_LOADING_FAILURES = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, SafetensorError)
_BETWEEN_PHRASES = re.compile(r"[.,\n]")


@dataclass(frozen=True, eq=False)
class GroundingModel:
    """A Grounding DINO and what prepares its inputs.

    Attributes:
        network: transformers' `GroundingDinoForObjectDetection`.
        processor: transformers' `GroundingDinoProcessor`.
        folder: where both were loaded from.
    """

    network: nn.Module
    processor: Any
    folder: Path


@dataclass(frozen=True)
class GroundingOptions:
    """What counts as found.

    Attributes:
        box_threshold: keep boxes whose best word scores above this.
        text_threshold: a box's label is made of the words that score above this.
        nms_threshold: of two boxes that overlap by more than this (IoU), whatever their labels, the worse is dropped.
        max_boxes: keep this many per picture, the best; 0 keeps all.
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
            raise SAMError(f"max_boxes is {self.max_boxes}: it must be at least 0, which keeps all.")


class FoundBoxes(NamedTuple):
    """What was found in one picture, best first: corners `[N, 4]` in pixels, N scores in 0..1, N labels."""

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
        raise SAMError(f'text is {text!r}: name what to look for, such as "cat. dog.", or one thing per line.')
    return ". ".join(once) + "."


_loaded: weakref.WeakValueDictionary[tuple[Any, ...], GroundingModel] = weakref.WeakValueDictionary()
_turn = threading.Lock()


def load_grounding(folder: Path) -> GroundingModel:
    """Load a Grounding DINO on the CPU, or the one that is loaded from there already, for as long as anybody holds it.

    Args:
        folder: transformers' form: `config.json`, safetensors weights, `preprocessor_config.json` and a tokenizer.

    Raises:
        SAMError: transformers is absent, the folder is incomplete or damaged, or what it holds is no Grounding DINO.
    """
    transformers = _transformers()
    _check_kind(folder)
    if not is_complete(folder):  # transformers 5 would make up a tokenizer without words
        raise SAMError(f"{folder} is not complete: it needs {NEEDED}.")
    with _turn:
        key = folder_state(folder)
        model = _loaded.get(key)
        if model is None:
            model = _loaded[key] = _load(transformers, folder)
        return model


def is_complete(folder: Path) -> bool:
    """Whether all is there that loading needs."""
    has_files = all(any((folder / name).is_file() for name in names) for names in _FILES)
    return has_files and any(folder.glob("*.safetensors"))


def folder_state(folder: Path) -> tuple[Any, ...]:
    """Changes when a file in the folder does."""
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return str(folder), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise SAMError(
            'finding things by words needs transformers, which is not installed here: pip install "transformers>=4.50" '
            f"with the Python that runs this. ({error})"
        ) from error
    return transformers


def _check_kind(folder: Path) -> None:
    """transformers itself would fill a model of another kind with random weights, and warn."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise SAMError(f"{folder} holds no model in transformers' form: its config.json cannot be read. ({error})") from error
    if kind != MODEL_TYPE:
        raise SAMError(f"{folder.name} is a model of type {kind!r}: it must be {MODEL_TYPE!r}.")


def _load(transformers: ModuleType, folder: Path) -> GroundingModel:
    try:
        # ComfyUI runs nodes in inference mode; weights made there could not be moved or used outside it.
        with torch.inference_mode(False), torch.no_grad():
            network, report = transformers.GroundingDinoForObjectDetection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            processor = transformers.GroundingDinoProcessor.from_pretrained(folder, local_files_only=True)
    except _LOADING_FAILURES as error:
        raise SAMError(f"{folder.name} was not loaded from {folder}: {_first_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise SAMError(f"{folder.name} was not loaded: its weights lack {len(missing)} tensors ({missing[0]}, ...).")
    log.info("loaded %s with transformers %s", folder.name, transformers.__version__)
    return GroundingModel(network.float().eval().requires_grad_(False), processor, folder)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@torch.no_grad()
def find_boxes(
    grounding: GroundingModel,
    frames: Sequence[np.ndarray],
    text: str,
    options: GroundingOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> list[FoundBoxes]:
    """Where the things are that a text names.

    Args:
        grounding: see `load_grounding`.
        frames: B pictures uint8 `[H, W, 3]` of one size; some are run at a time.
        text: see `normalise_text`.
        options: see `GroundingOptions`; None: its defaults.
        device_mode: see `placed`.

    Returns:
        What was found in each picture. Boxes may end a little outside of it, as transformers has them.

    Raises:
        SAMError: there is no phrase in the text, or more than the model reads.
    """
    options, caption = options or GroundingOptions(), normalise_text(text)
    _check_length(grounding, caption)
    progress, found = Progress(len(frames)), []
    with placed(grounding.network, device_mode) as device:
        for start in range(0, len(frames), _FRAMES_AT_ONCE):
            progress.check_interrupted()
            some = list(frames[start : start + _FRAMES_AT_ONCE])
            results = _detect(grounding, some, caption, options, device)
            found += [_best(result, frame.shape[:2], options) for result, frame in zip(results, some, strict=True)]
            progress.advance(len(some))
    return found


def _check_length(grounding: GroundingModel, caption: str) -> None:
    tokens, limit = len(grounding.processor.tokenizer(caption)["input_ids"]), grounding.network.config.max_text_len
    if tokens > limit:
        raise SAMError(f"text has {tokens} tokens, but the model reads {limit}: name fewer things.")


def _detect(
    grounding: GroundingModel, frames: list[np.ndarray], caption: str, options: GroundingOptions, device: torch.device
) -> list[dict[str, Any]]:
    """transformers' own answer for some pictures: `boxes`, `scores` and labels of each."""
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
    """Without duplicates, best first, no more than are wanted, and none that has no area in the picture."""
    boxes, scores = (result[name].float().cpu() for name in ("boxes", "scores"))
    # `labels` held the words before `text_labels` did, and will hold numbers.
    labels = result["text_labels"] if "text_labels" in result else result["labels"]
    kept = [index for index in non_maximum_suppression(boxes, scores, options.nms_threshold) if _shows(boxes[index], size)]
    kept = kept[: options.max_boxes or None]
    return FoundBoxes(boxes[kept].double().numpy().reshape(-1, 4), scores[kept].tolist(), [labels[index] for index in kept])


def _shows(box: Tensor, size: Size) -> bool:
    return len(clip_boxes(box.double().numpy()[None], size)) > 0

"""Embedding + prompts -> masks, scores, logits. Stateless: nothing stays between calls, so threads may share a model."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from ...utils.checks import one_of
from ...utils.comfy import Progress
from ...utils.text import counted
from ..errors import SAMError
from ..geometry import Geometry, Size
from ..kernels.decoder import Decoded, Guidance
from ..kernels.upsample import resize_logits
from ..models.base import Segmenter, Wanted
from ..models.concept import Concept, checked_concept
from ..models.features import IMAGE, Features
from ..placement.devices import DeviceMode, placed, result_device
from ..placement.memory import fitting, in_batches
from ..prompts import Prompt, shape_of, to_model_input
from ..store.embedding import SAMEmbedding
from ..store.memory import passing
from .embed import OTHER_MODEL, Encoded, as_embedding, encode_one

Candidate: TypeAlias = Literal["best", "smallest", "middle", "largest", "all"]
CANDIDATES: tuple[str, ...] = get_args(Candidate)
Multimask: TypeAlias = Literal["auto", "on", "off"]
MULTIMASK: tuple[str, ...] = get_args(Multimask)

_PROMPTS_PER_BATCH = 64
PROMPT_BYTES = 64 << 20
"""About what a decoder needs on a GPU for a prompt."""
_UPSCALED_ELEMENTS = 1 << 26  # 256 MiB of float32 at a time
_UPSCALED_BYTES = 13  # of a pixel: it is float32 in the square, cut out and at full size, then bool


@dataclass(frozen=True)
class PredictOptions:
    """How prompts become masks.

    Attributes:
        candidate: which of SAM's candidates to keep of each object: the `best` predicted IoU, the `smallest`, `middle` or
            `largest` area in source pixels, or `all`, best first.
        multimask: three candidates (`on`), one (`off`), or three for a single click and one otherwise (`auto`).
        mask_threshold: a pixel is in the mask where its logit is above this.
        hq: with a SAM-HQ model, its fine masks; off gives plain SAM's. Ignored by other models.
        concept: what was taught, or None. With it `auto` gives one mask: the one that was taught.
        logits: off, no logits are returned: those of a long batch take a good part of its masks' memory.
    """

    candidate: Candidate = "best"
    multimask: Multimask = "auto"
    mask_threshold: float = 0.0
    hq: bool = True
    concept: Concept | None = None
    logits: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("candidate", CANDIDATES), ("multimask", MULTIMASK)):
            one_of(getattr(self, name), choices, name)


class Prediction(NamedTuple):
    """The result of `decode`: lists with one tensor per image, N entries in each, in the order of the image's prompts.

    Attributes:
        masks: bool `[N, H, W]` in source pixels.
        scores: float32 `[N]`, predicted IoU.
        logits: float32 `[N, 1, 4h, 4w]`, low-resolution mask logits, a prompt for the next call; without `options.logits`
            `[0, 1, 4h, 4w]`.
    """

    masks: list[Tensor]
    scores: list[Tensor]
    logits: list[Tensor]


class FramePrediction(NamedTuple):
    """The masks, scores and logits of one image, see `Prediction`."""

    masks: Tensor
    scores: Tensor
    logits: Tensor


Take: TypeAlias = Callable[[int, FramePrediction], None]
"""Takes the masks of a frame, by its index."""


def decode(
    model: Segmenter,
    embedding: SAMEmbedding,
    prompts: Sequence[Sequence[Prompt]],
    options: PredictOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> Prediction:
    """Turn prompts into masks, as `SamPredictor.predict_torch` does, for every image and object at once.

    Args:
        model: the model that made the embedding; ours or any `segment_anything` Sam.
        embedding: B images.
        prompts: B lists of objects; an empty list gives no entry for that image.
        options: see `PredictOptions`; None: its defaults.
        device_mode: see `placed`.

    Raises:
        SAMError: the embedding is another model's or lacks what SAM-HQ needs, the counts differ, or prompts have a region.
    """
    found: list[FramePrediction] = []
    decode_each(model, embedding, prompts, lambda _, frame: found.append(frame), options, device_mode)
    masks, scores, logits = zip(*found, strict=True) if found else ((), (), ())
    return Prediction(list(masks), list(scores), list(logits))


@torch.no_grad()
def decode_each(
    model: Segmenter,
    embedding: SAMEmbedding,
    prompts: Sequence[Sequence[Prompt]],
    take: Take,
    options: PredictOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> None:
    """`decode`, with the masks of each image handed on as they come, so that they need not all be there at once.

    Args:
        take: gets the index and the masks of each image, in order.
        model, embedding, prompts, options, device_mode: see `decode`, as for what is raised.
    """
    embedding = as_embedding(embedding, model)
    check_count(prompts, len(embedding))
    if has_regions(prompts):
        raise SAMError("Prompts have a region, which the model has to see alone: an embedding of the image is not enough.")
    options = options or PredictOptions()
    progress = Progress(len(prompts))
    with placed(model.network, device_mode, prompt_bytes(prompts)) as device, passing(len(prompts)):
        for index, objects in enumerate(prompts):
            progress.check_interrupted()
            take(
                index,
                ImagePredictor(model, features_of(embedding, index, device), embedding.original_size, options).predict(objects),
            )
            progress.advance()


def check_count(prompts: Sequence[Sequence[Prompt]], images: int) -> None:
    """Raise SAMError unless there is one list of prompts per image."""
    if len(prompts) != images:
        raise SAMError(f"There are prompts for {counted(len(prompts), 'image')}, but embeddings of {images}.")


def has_regions(prompts: Sequence[Sequence[Prompt]]) -> bool:
    """Whether an object is to be answered from a region of its image, see `Prompt`."""
    return any(prompt.region is not None for objects in prompts for prompt in objects)


def prompt_bytes(prompts: Sequence[Sequence[Prompt]]) -> int:
    """What a decoder needs on a GPU for as many prompts as it takes at a time."""
    return PROMPT_BYTES * min(_PROMPTS_PER_BATCH, max(map(len, prompts), default=0))


def features_of(embedding: SAMEmbedding, index: int, device: torch.device) -> Features:
    """One of the images of an embedding, ready to be prompted on a device."""
    maps = {IMAGE: embedding.view(np.ndarray)[index]} | {name: values[index] for name, values in embedding.maps.items()}
    return Features(maps, embedding.image_keys[index], device)


class ImagePredictor:
    """One image that is ready to be prompted, as often as one likes, while `placed` keeps its model on the image's device.

    It takes the place of segment_anything's `SamPredictor` after `set_image`, but nothing that it is called with stays in it.

    Args:
        model: that made the features.
        features: of the image; its device is where the model is.
        size: (H, W) of the image.
        options: see `PredictOptions`; for prompts that come without their own.

    Attributes:
        geometry: how the image lies in the model's input.
        model, features, options: the same.

    Raises:
        SAMError: the concept of the options was made for another model.
    """

    def __init__(self, model: Segmenter, features: Features, size: Size, options: PredictOptions) -> None:
        self.model, self.features, self.options = model, features, options
        self.geometry: Geometry = model.geometry(size)
        self.device, self.result_device = features.device, result_device()
        tokens = checked_concept(options.concept, model)
        self.concept = None if tokens is None else tokens.to(self.device)

    def on(self, device: torch.device) -> "ImagePredictor":
        """The same image on a device; itself, where it is there."""
        if device == self.device:
            return self
        return ImagePredictor(self.model, self.features.on(device), self.geometry.original, self.options)

    def predict(
        self, objects: Sequence[Prompt], options: PredictOptions | None = None, guidance: Guidance | None = None
    ) -> FramePrediction:
        """Masks, scores and logits of objects (see `Prediction`), all under the one `guidance`.

        `options` takes precedence over those of the predictor, but for the concept.
        """
        options = options or self.options
        nothing = torch.zeros(0, *self.geometry.grid, device=self.device), torch.zeros(0, device=self.device)
        chosen = [nothing] * (len(objects) or 1)
        for members in _batches(objects):
            some = [objects[i] for i in members]
            ambiguous = some[0].is_single_click and self.concept is None
            several = options.multimask == "on" or (options.multimask == "auto" and ambiguous)
            wanted = Wanted(several, hq=options.hq, guidance=guidance, concept=self.concept)
            logits, scores, _ = self.decode(some, wanted)
            for row, member in enumerate(members):
                chosen[member] = self._pick(logits[row], scores[row], options)
        logits, scores = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        masks, asked = self.upscale(logits, options), logits if options.logits else logits[:0].clone()
        return FramePrediction(masks, scores.to(self.result_device), asked[:, None].to(self.result_device))

    def decode(self, prompts: list[Prompt], wanted: Wanted) -> Decoded:
        """Logits and predicted IoUs of n prompts, which must share a shape (see `shape_of`).

        Raises:
            SAMError: the model does not support what is wanted.
        """

        def decode(some: Sequence[int]) -> Decoded:
            part = slice(some[0], some[-1] + 1)
            guided = wanted._replace(guidance=wanted.guidance and wanted.guidance.of(part))
            found = self.model.decode(self.features, to_model_input(prompts[part], self.geometry, self.device), guided)
            return found._replace(rows=found.rows + part.start)

        at_once = fitting(self.device, PROMPT_BYTES, len(prompts))
        parts = list(in_batches(range(len(prompts)), at_once, decode))
        return parts[0] if len(parts) == 1 else Decoded(*(torch.cat(some) for some in zip(*parts, strict=True)))

    def _pick(self, logits: Tensor, scores: Tensor, options: PredictOptions) -> tuple[Tensor, Tensor]:
        if options.candidate in ("best", "all"):
            order = scores.argsort(descending=True, stable=True)
            picked = order if options.candidate == "all" else order[:1]
        else:
            order = self.upscale(logits, options).flatten(1).sum(1).argsort(stable=True)
            place = {"smallest": 0, "middle": (len(order) - 1) // 2, "largest": len(order) - 1}[options.candidate]
            picked = order[place : place + 1].to(logits.device)
        return logits[picked], scores[picked]

    def upscale(self, logits: Tensor, options: PredictOptions | None = None) -> Tensor:
        """Low-resolution logits `[N, 4h, 4w]` -> masks bool `[N, H, W]`, a bounded number at a time."""
        options = options or self.options
        height, width = self.geometry.original
        pixels = max(height * width, self.geometry.side**2)
        masks = torch.zeros(len(logits), height, width, dtype=torch.bool, device=self.result_device)

        def upscale(some: Sequence[int]) -> None:
            part = slice(some[0], some[-1] + 1)
            masks[part] = (resize_logits(logits[part], self.geometry) > options.mask_threshold).to(self.result_device)

        at_once = fitting(self.device, _UPSCALED_BYTES * pixels, max(1, _UPSCALED_ELEMENTS // pixels))
        list(in_batches(range(len(logits)), at_once, upscale))
        return masks


class ReadyImage:
    """An image that is encoded now and prompted again and again: what a device has of it stays there from one time to the next.

    Args:
        model: see `load_model`, or `as_segmenter` for another pack's.
        image: uint8 `[H, W, 3]`.
        device_mode: see `placed`.

    Attributes:
        key: its content key.
        size: (H, W).

    Raises:
        SAMError: what `encode` raises.
    """

    def __init__(self, model: Segmenter, image: np.ndarray, device_mode: DeviceMode = "AUTO") -> None:
        self._model, self._device_mode = model, device_mode
        self._identity = self._model.encoder_identity
        self.key, self._encoded = encode_one(self._model, [image], device_mode)
        self.size: Size = image.shape[:2]
        self._predictor: ImagePredictor | None = None

    @contextlib.contextmanager
    @torch.no_grad()
    def predictor(self) -> Iterator[ImagePredictor]:
        """In the body, the model is on the device of the predictor, which is to be given one object at a time.

        Raises:
            SAMError: the model has other weights than when the image was encoded.
        """
        if self._model.encoder_identity != self._identity:
            raise SAMError(OTHER_MODEL)
        with placed(self._model.network, self._device_mode, PROMPT_BYTES) as device:
            if self._predictor is None or self._predictor.device != device:
                features = self._encoded.features(self.key, device)
                self._predictor = ImagePredictor(self._model, features, self.size, PredictOptions())
                self._encoded = Encoded(self._encoded.maps)
            yield self._predictor

    def release(self) -> None:
        """Drop what a device has of the image; the next `predictor` brings it there again."""
        self._predictor, self._encoded = None, Encoded(self._encoded.maps)

    @property
    def geometry(self) -> Geometry:
        """How the image lies in the model's input."""
        return self._model.geometry(self.size)

    def feature_map(self) -> Tensor:
        """The image's main feature map, float32 `[C, h, w]` on the CPU."""
        return torch.tensor(self._encoded.maps[IMAGE])


def _batches(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Indices of prompts that may share a decoder call."""
    alike = defaultdict(list)
    for index, prompt in enumerate(prompts):
        alike[shape_of(prompt)].append(index)
    for members in alike.values():
        for start in range(0, len(members), _PROMPTS_PER_BATCH):
            yield members[start : start + _PROMPTS_PER_BATCH]

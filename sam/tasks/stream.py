"""Long batches in bounded memory: some images are encoded, decoded and dropped before the next ones are encoded."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...utils.comfy import Progress
from ..models.base import Segmenter
from ..models.families import as_segmenter
from ..placement import devices
from ..placement.devices import DeviceMode, device_for, placed
from ..placement.memory import chunk
from ..prompts import Prompt
from ..store.embedding import SAMEmbedding
from ..store.memory import one_run, passing
from .embed import Encoded, EncoderRun
from .predict import FrameDecoder, FramePrediction, PredictOptions, Take, check_count, prompt_bytes

_FLOAT = 4  # bytes

Use: TypeAlias = Callable[[int, SAMEmbedding, torch.device], None]
"""Uses the embedding `[1, C, h, w]` of a frame, by its index, with the model on a device."""


@torch.no_grad()
def segment_each(
    model: Any,
    images: Tensor | Sequence[np.ndarray],
    prompts: Sequence[Sequence[Prompt]],
    take: Take,
    options: PredictOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> None:
    """`encode` and `decode` for batches of any length: the masks of each image are handed on, and its embedding is dropped.

    What is handed on is what `decode` gives for the image alone. The embedding cache gets as many images as it has room for.

    Args:
        images, device_mode: see `encode`.
        take: gets the index and the masks of each image; equal images come together, the others in order.
        model, prompts, options: see `decode`.

    Raises:
        SAMError: what `encode` and `decode` raise.
    """
    asked = [(prompts, options or PredictOptions())]
    segment_each_way(model, images, asked, lambda index, found: take(index, found[0]), device_mode)


@torch.no_grad()
def segment_each_way(
    model: Any,
    images: Tensor | Sequence[np.ndarray],
    asked: Sequence[tuple[Sequence[Sequence[Prompt]], PredictOptions]],
    take: Callable[[int, list[FramePrediction]], None],
    device_mode: DeviceMode = "AUTO",
) -> None:
    """`segment_each` for several sets of prompts, each with its own options: an image is encoded once for all of them.

    Args:
        asked: prompts and options of each set.
        take: gets the index of each image, and the masks of each set.
        model, images, device_mode: see `segment_each`, as for what is raised.
    """
    segmenter = as_segmenter(model)
    run = EncoderRun(segmenter, images, device_mode)
    for prompts, _ in asked:
        check_count(prompts, len(run.frames))

    def use(index: int, embedding: SAMEmbedding, device: torch.device) -> None:
        decoders = [FrameDecoder(segmenter, embedding, device, options) for _, options in asked]
        take(index, [decoder.decode(0, prompts[index]) for decoder, (prompts, _) in zip(decoders, asked, strict=True)])

    each_embedding(run, use, max((prompt_bytes(prompts) for prompts, _ in asked), default=0))


def each_embedding(run: EncoderRun, use: Use, working_bytes: int = 0) -> None:
    """Encode images a chunk at a time, each distinct one once, and use their embeddings before the next chunk.

    Args:
        run: the images.
        use: see `Use`.
        working_bytes: what it needs on a GPU besides the weights.
    """
    model, keys = run.model, list(run.places)
    progress = Progress(2 * len(run.frames))
    size = chunk(device_for(run.device_mode), _feature_bytes(model))
    # Outside ComfyUI, AUTO would take the model off the GPU after every chunk.
    staying = devices.stay_loaded(model.network) if run.device_mode == "AUTO" else contextlib.nullcontext()
    with staying, one_run(), passing(len(run.frames)):
        for start in range(0, len(keys), size):
            some, encoded = keys[start : start + size], {}
            run.each(some, progress, encoded.__setitem__)
            with placed(model.network, run.device_mode, working_bytes) as device:
                for key in some:
                    _use_one(run, key, encoded.pop(key), use, device, progress)


def _use_one(run: EncoderRun, key: str, encoded: Encoded, use: Use, device: torch.device, progress: Progress) -> None:
    """Use an image's features for every frame that shows it."""
    embedding = run.embedding({name: values[None] for name, values in encoded.maps.items()}, [key])
    for index in run.places[key]:
        progress.check_interrupted()
        use(index, embedding, device)
        progress.advance()


def _feature_bytes(model: Segmenter) -> int:
    """Bytes of an image's feature maps."""
    return _FLOAT * sum(math.prod(shape) for shape in model.map_shapes.values())

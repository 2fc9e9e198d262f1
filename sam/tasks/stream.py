"""Long batches in bounded memory: some images are encoded, decoded and dropped before the next ones are encoded."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...utils.comfy import Progress
from ..models.base import Segmenter
from ..placement import devices
from ..placement.devices import DeviceMode, device_for, placed
from ..placement.memory import chunk
from ..prompts import Prompt
from ..store.embedding import SAMEmbedding
from ..store.memory import one_run, passing
from .detail import Detail, Report, segment_in_detail
from .embed import EncoderRun
from .predict import PROMPT_BYTES, ImagePredictor, PredictOptions, Take, check_count, has_regions, prompt_bytes

_FLOAT = 4  # bytes

Use: TypeAlias = Callable[[int, ImagePredictor], None]
"""Uses an image that is ready to be prompted, by its index, while the model is on its device."""


@torch.no_grad()
def segment_each(
    model: Segmenter,
    images: Tensor | Sequence[np.ndarray],
    prompts: Sequence[Sequence[Prompt]],
    take: Take,
    options: PredictOptions | None = None,
    device_mode: DeviceMode = "AUTO",
    detail: Detail = "off",
    embedding: SAMEmbedding | None = None,
    report: Report | None = None,
) -> None:
    """`encode` and `decode` for batches of any length: the masks of each image are handed on, and its embedding is dropped.

    What is handed on is what `decode` gives for the image alone. The embedding cache gets as many images as it has room for.

    Args:
        images, device_mode: see `encode`.
        take: gets the index and the masks of each image; equal images come together, the others in order.
        model, prompts, options: see `decode`.
        detail: second looks at each object, see `SecondLook`; `off`: none.
        embedding: with detail or regions, that of the images, where they are encoded already.
        report: with detail, takes what became of the objects of each image, see `Looked`.

    Raises:
        SAMError: what `encode` and `decode` raise, or there is no such detail.
    """
    options = options or PredictOptions()
    if detail != "off" or has_regions(prompts):
        segment_in_detail(model, images, prompts, take, options, device_mode, detail, embedding, report)
        return
    run = EncoderRun(model, images, device_mode)
    check_count(prompts, len(run.frames))
    each_image(run, lambda index, image: take(index, image.predict(prompts[index])), options, prompt_bytes(prompts))


@torch.no_grad()
def prompt_each(model: Segmenter, images: Tensor | Sequence[np.ndarray], use: Use, device_mode: DeviceMode = "AUTO") -> None:
    """Encode a batch of any length; each image is handed on ready to be prompted, by one object at a time, and dropped.

    Args:
        images, device_mode: see `encode`.
        use: see `Use`; equal images come together, the others in order.
        model: see `decode`.

    Raises:
        SAMError: what `encode` raises.
    """
    each_image(EncoderRun(model, images, device_mode), use, PredictOptions(), PROMPT_BYTES)


def each_image(run: EncoderRun, use: Use, options: PredictOptions, working_bytes: int = 0) -> None:
    """Encode images a chunk at a time, each distinct one once, and use them before the next chunk.

    Args:
        run: the images.
        use: see `Use`; equal images come together, and are one.
        options: of the predictors.
        working_bytes: what `use` needs on a GPU besides the weights.
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
                    image = ImagePredictor(model, encoded.pop(key).features(key, device), run.size, options)
                    for index in run.places[key]:
                        progress.check_interrupted()
                        use(index, image)
                        progress.advance()


def _feature_bytes(model: Segmenter) -> int:
    """Bytes of an image's feature maps."""
    return _FLOAT * sum(math.prod(shape) for shape in model.map_shapes.values())

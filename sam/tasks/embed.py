"""Images -> SAMEmbedding, and the cache by which changing a prompt never encodes an image again."""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...utils.comfy import Progress
from ...utils.images import image_to_frames, resize_pil
from ...utils.text import counted
from ..errors import SAMError
from ..geometry import Size
from ..models.base import IMAGE, Segmenter
from ..models.families import as_segmenter
from ..placement import devices
from ..placement.devices import DeviceMode, device_for, placed
from ..placement.memory import attempt, fitting, halved
from ..placement.precision import encoder_dtype
from ..placement.transfer import Download, upload
from ..store.embedding import SAMEmbedding, knows_its_image
from ..store.keys import image_key
from ..store.memory import ByteCache, one_run

log = logging.getLogger("samkit")

CACHE_BYTES = 512 << 20  # 128 images for stock SAM, at 4 MiB each
_IMAGES_ON_GPU = 8
_BYTES_PER_IMAGE = 1 << 30  # of an encoder that does not say, see `_bytes_needed`


class Encoded(NamedTuple):
    """The feature maps of one image by name, `[C, h, w]` each, read-only."""

    maps: Mapping[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        return sum(values.nbytes for values in self.maps.values())


cache: ByteCache[Encoded] = ByteCache(CACHE_BYTES)


def encode(model: Any, images: Tensor | Sequence[np.ndarray], device_mode: DeviceMode = "AUTO") -> SAMEmbedding:
    """Embed images; those whose embedding by these weights is in the cache are not encoded again.

    Args:
        model: ours or any `segment_anything` Sam.
        images: an IMAGE tensor `[B, H, W, C]` in 0..1, or B uint8 arrays `[H, W, 3]` of one size.
        device_mode: see `placed`.

    Returns:
        Embeddings `[B, C, h, w]`, one per image, in order; a single one is read-only (`copy` it to change it).

    Raises:
        SAMError: images of another form (see `image_to_frames`) or of different sizes, weights or embeddings with values that
            are not finite, or not a model.
    """
    segmenter = as_segmenter(model)
    frames = _as_frames(images)
    original_size = _common_size(images, frames)
    keys = [image_key(frame) for frame in frames]
    identity = segmenter.encoder_identity
    with one_run():
        encoded = _look_up_or_run(segmenter, identity, frames, keys, device_mode)
    maps = {name: _together([one.maps[name] for one in encoded], shape) for name, shape in segmenter.map_shapes.items()}
    resized = segmenter.frame(original_size).resized
    return SAMEmbedding(maps.pop(IMAGE), original_size, resized, identity, keys, maps)


@contextlib.contextmanager
def stay_loaded(model: Any) -> Iterator[None]:
    """In the body, calls in the mode `AUTO` leave a model on the GPU from one to the next, also outside ComfyUI.

    Args:
        model: ours or any `segment_anything` Sam.

    Raises:
        SAMError: not a model.
    """
    with devices.stay_loaded(as_segmenter(model).network):
        yield


def _together(arrays: list[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Stacked; a single one is not copied, and stays read-only as it is in the cache."""
    if not arrays:
        return np.zeros((0, *shape), np.float32)
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _look_up_or_run(
    model: Segmenter, identity: str, frames: list[np.ndarray], keys: list[str], device_mode: DeviceMode
) -> list[Encoded]:
    progress = Progress(len(frames))
    known = identity, str(encoder_dtype(model, device_for(device_mode)))
    found: dict[str, Encoded] = {}
    missing: OrderedDict[str, np.ndarray] = OrderedDict()
    for key, frame in zip(keys, frames, strict=True):
        encoded = cache.get((*known, key))
        if encoded is None:
            missing[key] = frame
        else:
            found[key] = encoded
    progress.advance(len(frames) - len(missing))
    log.debug("encoding %d of %d images, the rest is cached", len(missing), len(frames))
    if missing:
        with placed(model.network, device_mode, _memory_required(model, len(missing), device_mode)) as device:
            for key, encoded in _run_encoder(model, missing, device, progress):
                found[key] = encoded
                cache.put((*known, key), encoded)
    return [found[key] for key in keys]


def _memory_required(model: Segmenter, images: int, device_mode: DeviceMode) -> int:
    """What the encoder needs on a GPU for as many images as it takes at a time."""
    fixed, each = _bytes_needed(model, encoder_dtype(model, device_for(device_mode)))
    return fixed + each * min(images, _IMAGES_ON_GPU)


def _bytes_needed(model: Segmenter, dtype: torch.dtype) -> tuple[int, int]:
    """Working memory of the encoder: for any number of images, and for each. A model says so by a method `working_bytes`."""
    said = getattr(model, "working_bytes", None)
    return (0, _BYTES_PER_IMAGE) if said is None else said(dtype)


@torch.no_grad()
def _run_encoder(
    model: Segmenter, frames: Mapping[str, np.ndarray], device: torch.device, progress: Progress
) -> Iterator[tuple[str, Encoded]]:
    """Encode images uint8 `[H, W, 3]` of one size, by their keys; what is done before a Cancel is handed over.

    A GPU takes some at a time, half as many once they did not fit, and works on them while the CPU resizes the next.
    """
    names, dtype, size = list(frames), encoder_dtype(model, device), _images_at_a_time(model, device)
    running: tuple[list[str], Download] | None = None
    while names:
        progress.check_interrupted()
        some = names[:size]
        begun = attempt(lambda some: _begin(model, [frames[name] for name in some], device, dtype), some)
        if running is not None:
            yield from _separate(*running, progress)
            running = None
        if begun is None:
            size = halved(len(some))
            continue
        running, names = (some, begun[0]), names[len(some) :]
        if device.type == "cpu":  # nothing runs on
            yield from _separate(*running, progress)
            running = None
    if running is not None:
        yield from _separate(*running, progress)


def _images_at_a_time(model: Segmenter, device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    fixed, each = _bytes_needed(model, encoder_dtype(model, device))
    return fitting(device, each, _IMAGES_ON_GPU, fixed)


def _begin(model: Segmenter, frames: list[np.ndarray], device: torch.device, dtype: torch.dtype) -> Download:
    """Some images of one size through the encoder, from the resize on the CPU to the way back."""
    resized = np.stack([resize_pil(frame, model.frame(frame.shape[:2]).resized) for frame in frames])
    pixels = upload(np.ascontiguousarray(resized.transpose(0, 3, 1, 2)), device)
    return Download(model.features(pixels, dtype))


def _separate(names: list[str], done: Download, progress: Progress) -> Iterator[tuple[str, Encoded]]:
    """A batch's results to one read-only entry per image, in memory of its own: a cached one must not hold the whole batch."""
    arrays = done.arrays()
    for key, array in arrays.items():
        _refuse_not_finite(key, array)
    for index, name in enumerate(names):
        maps = {key: array[index].copy() for key, array in arrays.items()}
        for values in maps.values():
            values.setflags(write=False)
        yield name, Encoded(maps)
    progress.advance(len(names))


def _refuse_not_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise SAMError(
            f"The encoder's {name} features have values that are NaN or infinite: its precision is too low for these weights. "
            "Choose precision fp32 in the loader."
        )


def _as_frames(images: Tensor | Sequence[np.ndarray]) -> list[np.ndarray]:
    if isinstance(images, (list, tuple, np.ndarray)):
        return [_as_frame(image) for image in images]
    return image_to_frames(images)


def _as_frame(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        seen = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        raise SAMError(f"An image must be a uint8 array [H, W, 3], but this one is {seen}.")
    if 0 in image.shape:
        raise SAMError(f"An image has a side of 0 pixels: its shape is {image.shape}.")
    return np.ascontiguousarray(image)


def _common_size(images: Tensor | Sequence[np.ndarray], frames: list[np.ndarray]) -> Size:
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) > 1:
        raise SAMError(f"The images have {len(sizes)} different sizes ({sorted(sizes)}). Encode each size in a separate call.")
    if sizes:
        return sizes.pop()
    if isinstance(images, Tensor):
        return images.shape[1], images.shape[2]
    raise SAMError("There are no images to encode. Pass at least one.")


def as_embedding(embedding: np.ndarray, model: Any, images: Tensor | None = None) -> SAMEmbedding:
    """Make sure that an embedding is one of `model` (and of `images`), and complete another pack's bare array.

    Args:
        embedding: SAMEmbedding, or float `[B, C, h, w]` as the Art Venture nodes make it.
        model: the model that will decode it.
        images: the images as an IMAGE; needed for a bare array, checked against where the embedding knows its own.

    Raises:
        SAMError: the embedding is another model's or other images', has another shape, or is bare with no `images`.
    """
    segmenter = as_segmenter(model)
    expected = segmenter.map_shapes[IMAGE]
    if not isinstance(embedding, np.ndarray) or embedding.ndim != 4 or embedding.shape[1:] != expected:
        seen = embedding.shape if isinstance(embedding, np.ndarray) else f"a {type(embedding).__name__}"
        raise SAMError(
            f"The embedding is {seen}, but this model's are (B, {', '.join(map(str, expected))}). Run Get SAM Embedding again."
        )
    keys = None if images is None else [image_key(frame) for frame in image_to_frames(images)]
    if keys is not None and len(keys) != len(embedding):
        raise SAMError(
            f"The image input has {counted(len(keys), 'frame')}, but the embedding has {len(embedding)}. "
            "Connect the embedded image."
        )
    if knows_its_image(embedding):
        return _checked(embedding, segmenter, keys)
    if images is None:
        raise SAMError("This embedding comes from another pack and lacks its image's size. Connect the image as well.")
    if not np.isfinite(embedding).all():
        raise SAMError("The embedding has values that are NaN or infinite. Run Get SAM Embedding again.")
    size = (int(images.shape[1]), int(images.shape[2]))
    return SAMEmbedding(embedding, size, segmenter.frame(size).resized, segmenter.encoder_identity, keys)


def _checked(embedding: SAMEmbedding, model: Segmenter, keys: list[str] | None) -> SAMEmbedding:
    if embedding.encoder_identity != model.encoder_identity:
        raise SAMError("The embedding was created with a different model. Run Get SAM Embedding again.")
    for index, key in enumerate(keys or ()):
        if key != embedding.image_keys[index]:
            raise SAMError(f"Frame {index} of the image input is not the embedded image. Connect the embedded image.")
    return embedding

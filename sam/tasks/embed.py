"""Images -> SAMEmbedding, and the cache by which changing a prompt never encodes an image again."""

import contextlib
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...utils.comfy import Progress
from ...utils.comfy_folders import user_folder
from ...utils.images import Frames, resize_pil
from ...utils.text import counted
from ..datasets.films import FilmFrames
from ..errors import SAMError
from ..geometry import Size
from ..models.base import Segmenter, checked_model, optional_member
from ..models.features import IMAGE, Features, all_finite
from ..placement import devices
from ..placement.devices import DeviceMode, device_for, placed
from ..placement.memory import attempt, fitting, halved
from ..placement.precision import encoder_dtype
from ..placement.transfer import Download, is_on, upload
from ..store.disk import DiskCache
from ..store.embedding import SAMEmbedding, knows_its_image
from ..store.keys import image_keys
from ..store.memory import ByteCache, one_run

log = logging.getLogger("samkit")

CACHE_BYTES = 512 << 20  # 128 images for stock SAM, at 4 MiB each
_DISK_GB = 10
_IMAGES_ON_GPU = 8
OTHER_MODEL = "The embedding was created with a different model. Run Get SAM Embedding again."
_BYTES_PER_IMAGE = 1 << 30  # of an encoder that does not say, see `_bytes_needed`


class Encoded(NamedTuple):
    """The feature maps of one image.

    Attributes:
        maps: by name, `[C, h, w]` each, read-only; their values are finite.
        on_device: the same where the encoder has just made them, while a run uses them; a cached one has none.
    """

    maps: Mapping[str, np.ndarray]
    on_device: Mapping[str, Tensor] | None = None

    def features(self, key: str, device: torch.device) -> Features:
        """The image ready to be prompted on a device; maps that are there already are not uploaded.

        Args:
            key: the image's.
        """
        here = self.on_device if self.on_device and is_on(self.on_device[IMAGE], device) else self.maps
        return Features(here, key, device, is_finite=True)

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        return sum(values.nbytes for values in self.maps.values())


cache: ByteCache[Encoded] = ByteCache(CACHE_BYTES)


def disk_cache() -> DiskCache | None:
    """The second level of the cache, where it is switched on: by a folder, by a limit, or by both.

    `SAMKIT_CACHE_DIR` is the folder (default: below ComfyUI's user folder), `SAMKIT_CACHE_GB` the limit (default: 10).
    """
    folder, limit = os.environ.get("SAMKIT_CACHE_DIR", ""), os.environ.get("SAMKIT_CACHE_GB", "")
    return _disk_cache(folder, limit) if folder or limit else None


@functools.cache
def _disk_cache(folder: str, limit: str) -> DiskCache | None:
    try:
        size = float(limit or _DISK_GB)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        if size != 0:
            log.warning("SAMKIT_CACHE_GB is %r: it must be a number of gigabytes. The embedding cache on disk is off.", limit)
        return None
    parent = Path(folder).expanduser() if folder else user_folder() / "samkit"
    return DiskCache(parent / "embeddings", int(size * 1e9))


def encode(model: Segmenter, images: Tensor | Sequence[np.ndarray], device_mode: DeviceMode = "AUTO") -> SAMEmbedding:
    """Embed images; those whose embedding by these weights is in the cache are not encoded again.

    Args:
        model: see `load_model`, or `as_segmenter` for another pack's.
        images: an IMAGE tensor `[B, H, W, C]` in 0..1, or B uint8 arrays `[H, W, 3]` of one size.
        device_mode: see `placed`.

    Returns:
        Embeddings `[B, C, h, w]`, one per image, in order; a single one is read-only (`copy` it to change it).

    Raises:
        SAMError: images of another form (see `Frames`) or of different sizes, weights or embeddings with values that
            are not finite, or not a model.
    """
    run = EncoderRun(model, images, device_mode)
    maps = _Maps(run)
    with one_run():
        run.each(list(run.places), Progress(len(images)), maps.take)
    return run.embedding(maps.values, run.keys)


def encode_one(model: Segmenter, image: Tensor | Sequence[np.ndarray], device_mode: DeviceMode) -> tuple[str, Encoded]:
    """The key and feature maps of one image, in a form of `encode`'s; for a part of a task, which has the progress bar."""
    found: list[tuple[str, Encoded]] = []
    run = EncoderRun(model, image, device_mode)
    run.each(run.keys, Progress(None), lambda *one: found.append(one))
    return found[0]


class EncoderRun:
    """Images of one size that one model encodes, each distinct one once.

    Args:
        model: that encodes them.
        images, device_mode: see `encode`.

    Attributes:
        frames: the images, uint8 `[H, W, 3]`.
        keys: the content key of each.
        places: where each distinct image is among them, by its key.
    """

    def __init__(self, model: Segmenter, images: Tensor | Sequence[np.ndarray], device_mode: DeviceMode) -> None:
        self.model, self.device_mode, self.frames = checked_model(model), device_mode, as_frames(images)
        self.size = _common_size(self.frames)
        self.identity, self.keys = model.encoder_identity, image_keys(self.frames)
        self.places: dict[str, list[int]] = {}
        for index, key in enumerate(self.keys):
            self.places.setdefault(key, []).append(index)

    def each(self, keys: Sequence[str], progress: Progress, take: Callable[[str, Encoded], None]) -> None:
        """Hand on the feature maps of some of the images, by the cache or by the encoder; `progress` moves by their frames."""
        device = device_for(self.device_mode)
        known = self.identity, str(encoder_dtype(self.model, device))
        missing = []
        disk = disk_cache()
        for key in keys:
            encoded = cache.get((*known, key)) or self._on_disk(disk, known, key)
            if encoded is None:
                missing.append(key)
            else:
                take(key, encoded)
                progress.advance(len(self.places[key]))
        log.debug("encoding %d of %d images, the rest is cached", len(missing), len(keys))
        if missing:
            with placed(self.model.network, self.device_mode, _memory_required(self.model, len(missing), device)) as device:
                for key, encoded in _run_encoder(self.model, self._frame_of, missing, device):
                    cache.put((*known, key), Encoded(encoded.maps))
                    if disk is not None:
                        disk.put(repr((*known, key)), encoded.maps)
                    take(key, encoded)
                    progress.advance(len(self.places[key]))

    def _on_disk(self, disk: DiskCache | None, known: tuple[str, str], key: str) -> Encoded | None:
        """What another process, or this one before it was restarted, has made of an image."""
        maps = disk.get(repr((*known, key))) if disk is not None else None
        expected = {name: (tuple(shape), np.dtype(np.float32)) for name, shape in self.model.map_shapes.items()}
        if maps is None or {name: (one.shape, one.dtype) for name, one in maps.items()} != expected:
            return None
        if not all(map(all_finite, maps.values())):
            return None
        encoded = Encoded(maps)
        cache.put((*known, key), encoded)
        return encoded

    def _frame_of(self, key: str) -> np.ndarray:
        return self.frames[self.places[key][0]]

    def embedding(self, maps: Mapping[str, np.ndarray], keys: Sequence[str]) -> SAMEmbedding:
        """Maps `[n, C, h, w]` of the images with these keys, with what is known of them."""
        others = {name: values for name, values in maps.items() if name != IMAGE}
        return SAMEmbedding(maps[IMAGE], self.size, self.model.geometry(self.size).resized, self.identity, keys, others)


@contextlib.contextmanager
def stay_loaded(model: Segmenter) -> Iterator[None]:
    """In the body, calls in the mode `AUTO` leave a model on the GPU from one to the next, also outside ComfyUI.

    Args:
        model: see `load_model`, or `as_segmenter` for another pack's.

    Raises:
        SAMError: not a model.
    """
    with devices.stay_loaded(model.network):
        yield


class _Maps:
    """Maps `[B, C, h, w]` of all images of a run, filled as they come; a single one is not copied, and stays read-only."""

    def __init__(self, run: EncoderRun) -> None:
        self.places, self.count = run.places, len(run.frames)
        shapes = {} if self.count else run.model.map_shapes
        self.values = {name: np.zeros((0, *shape), np.float32) for name, shape in shapes.items()}

    def take(self, key: str, encoded: Encoded) -> None:
        for name, values in encoded.maps.items():
            if self.count == 1:
                self.values[name] = values[None]
                continue
            if name not in self.values:
                self.values[name] = np.empty((self.count, *values.shape), np.float32)
            self.values[name][self.places[key]] = values


def _memory_required(model: Segmenter, images: int, device: torch.device) -> int:
    """What the encoder needs on a GPU for as many images as it takes at a time."""
    fixed, each = _bytes_needed(model, encoder_dtype(model, device))
    return fixed + each * min(images, _IMAGES_ON_GPU)


def _bytes_needed(model: Segmenter, dtype: torch.dtype) -> tuple[int, int]:
    """Working memory of the encoder: for any number of images, and for each."""
    said = optional_member(model, "working_bytes")
    return (0, _BYTES_PER_IMAGE) if said is None else said(dtype)


@torch.no_grad()
def _run_encoder(
    model: Segmenter, frame_of: Callable[[str], np.ndarray], names: list[str], device: torch.device
) -> Iterator[tuple[str, Encoded]]:
    """Encode images uint8 `[H, W, 3]` of one size, by their keys; what is done before a Cancel is handed over.

    A GPU takes some at a time, half as many once they did not fit, and works on them while the CPU resizes the next.
    """
    dtype, size = encoder_dtype(model, device), _images_at_a_time(model, device)
    running: tuple[list[str], dict[str, Tensor], Download] | None = None
    while names:
        Progress.check_interrupted()
        some = names[:size]
        begun = attempt(lambda some: _begin(model, [frame_of(name) for name in some], device, dtype), some)
        if running is not None:
            yield from _separate(*running)
            running = None
        if begun is None:
            size = halved(len(some))
            continue
        running, names = (some, *begun[0]), names[len(some) :]
        if device.type == "cpu":  # nothing runs on
            yield from _separate(*running)
            running = None
    if running is not None:
        yield from _separate(*running)


def _images_at_a_time(model: Segmenter, device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    fixed, each = _bytes_needed(model, encoder_dtype(model, device))
    return fitting(device, each, _IMAGES_ON_GPU, fixed)


def _begin(
    model: Segmenter, frames: list[np.ndarray], device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Tensor], Download]:
    """Some images of one size through the encoder, from the resize on the CPU to the maps on the device and their way back."""
    resized = np.stack([resize_pil(frame, model.geometry(frame.shape[:2]).resized) for frame in frames])
    pixels = upload(np.ascontiguousarray(resized.transpose(0, 3, 1, 2)), device)
    maps = model.features(pixels, dtype)
    return maps, Download(maps)


def _separate(names: list[str], made: dict[str, Tensor], done: Download) -> Iterator[tuple[str, Encoded]]:
    """A batch's results, one for each image.

    Arrays are read-only and in memory of their own: a cached one must not hold the whole batch. Maps on a GPU are parts of the
    batch's, which go with the last of them.
    """
    arrays = done.arrays()
    for key, array in arrays.items():
        if not all_finite(array):
            raise SAMError(
                f"The encoder's {key} features have values that are NaN or infinite: its precision is too low for these "
                "weights. Choose precision fp32 in the loader."
            )
    for index, name in enumerate(names):
        maps = {key: array[index].copy() for key, array in arrays.items()}
        for values in maps.values():
            values.setflags(write=False)
        on_device = {key: values[index] for key, values in made.items() if values.device.type != "cpu"}
        yield name, Encoded(maps, on_device or None)


def as_frames(images: Tensor | Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Images, in any form that `encode` takes, as uint8 arrays `[H, W, 3]`."""
    if isinstance(images, (Frames, FilmFrames)):
        return images
    return [_as_frame(image) for image in images] if isinstance(images, (list, tuple, np.ndarray)) else Frames(images)


def _as_frame(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        seen = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        raise SAMError(f"An image must be a uint8 array [H, W, 3], but this one is {seen}.")
    if 0 in image.shape:
        raise SAMError(f"An image has a side of 0 pixels: its shape is {image.shape}.")
    return np.ascontiguousarray(image)


def _common_size(frames: Sequence[np.ndarray]) -> Size:
    if isinstance(frames, (Frames, FilmFrames)):
        return frames.size
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) > 1:
        raise SAMError(f"The images have {len(sizes)} different sizes ({sorted(sizes)}). Encode each size in a separate call.")
    if sizes:
        return sizes.pop()
    raise SAMError("There are no images to encode. Pass at least one.")


def as_embedding(embedding: np.ndarray, model: Segmenter, images: Tensor | None = None) -> SAMEmbedding:
    """Make sure that an embedding is one of `model` (and of `images`), and complete another pack's bare array.

    Args:
        embedding: SAMEmbedding, or float `[B, C, h, w]` as the Art Venture nodes make it.
        model: the model that will decode it.
        images: the images as an IMAGE; needed for a bare array, checked against where the embedding knows its own.

    Raises:
        SAMError: the embedding is another model's or other images', has another shape, or is bare with no `images`.
    """
    expected = checked_model(model).map_shapes[IMAGE]
    if not isinstance(embedding, np.ndarray) or embedding.ndim != 4 or embedding.shape[1:] != expected:
        seen = embedding.shape if isinstance(embedding, np.ndarray) else f"a {type(embedding).__name__}"
        raise SAMError(
            f"The embedding is {seen}, but this model's are (B, {', '.join(map(str, expected))}). Run Get SAM Embedding again."
        )
    keys = None if images is None else image_keys(Frames(images))
    if keys is not None and len(keys) != len(embedding):
        raise SAMError(
            f"The image input has {counted(len(keys), 'frame')}, but the embedding has {len(embedding)}. "
            "Connect the embedded image."
        )
    if knows_its_image(embedding):
        return _checked(embedding, model, keys)
    if images is None:
        raise SAMError("This embedding comes from another pack and lacks its image's size. Connect the image as well.")
    size = (int(images.shape[1]), int(images.shape[2]))
    return SAMEmbedding(embedding, size, model.geometry(size).resized, model.encoder_identity, keys)


def _checked(embedding: SAMEmbedding, model: Segmenter, keys: list[str] | None) -> SAMEmbedding:
    if embedding.encoder_identity != model.encoder_identity:
        raise SAMError(OTHER_MODEL)
    for name, expected in model.map_shapes.items():
        seen = embedding.maps[name].shape if name in embedding.maps else (len(embedding), *expected)
        if seen != (len(embedding), *expected):
            raise SAMError(f"The embedding's map {name} is {seen}, and not as the model makes it. Run Get SAM Embedding again.")
    for index, key in enumerate(keys or ()):
        if key != embedding.image_keys[index]:
            raise SAMError(f"Frame {index} of the image input is not the embedded image. Connect the embedded image.")
    return embedding

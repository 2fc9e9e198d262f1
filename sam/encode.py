"""Pictures -> SAMEmbedding, and the cache that makes every prompt after the first free."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from ..utils.comfy import Progress
from ..utils.images import image_to_frames, resize_pil
from ..utils.threads import in_threads
from .cache import ByteCache
from .device import DeviceMode, device_for, placed
from .embedding import SAMEmbedding, Size, knows_its_image
from .errors import SAMError
from .fast_encoder import run_encoder
from .hq import HQMaskDecoder
from .model import encoder_dtype, identity_of

log = logging.getLogger("samkit")

CACHE_BYTES = 512 << 20  # 128 pictures for stock SAM, at 4 MiB each
_PICTURES_ON_GPU = 8
_HASHED = 1 << 19  # bytes at a time
_HASHED_BYTES = 64 << 20  # of pictures whose hash is remembered
_SAMPLED = 4099  # every so many values tell which of them a picture looks like


class Encoded(NamedTuple):
    """One picture's embedding `[C, h, w]`, and with SAM-HQ its fine features `[C/8, 4h, 4w]`; both read-only."""

    values: np.ndarray
    fine: np.ndarray | None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self.values.nbytes + (0 if self.fine is None else self.fine.nbytes)


cache: ByteCache[Encoded] = ByteCache(CACHE_BYTES)


class _Hashed(NamedTuple):
    """A picture's own copy in pieces, and its content hash."""

    pieces: list[np.ndarray]
    key: str

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(piece.nbytes for piece in self.pieces)


_hashed: ByteCache[_Hashed] = ByteCache(_HASHED_BYTES)


def encode(model: Sam, images: Tensor | Sequence[np.ndarray], device_mode: DeviceMode = "AUTO") -> SAMEmbedding:
    """Embed pictures; those whose embedding by these weights is in the cache are not encoded again.

    Args:
        model: ours or any `segment_anything` Sam.
        images: an IMAGE tensor `[B, H, W, C]` in 0..1, or B uint8 arrays `[H, W, 3]` of one size.
        device_mode: see `placed`.

    Returns:
        Embeddings `[B, C, h, w]`, one per picture, in order; a single one is read-only (`copy` it to change it).

    Raises:
        SAMError: pictures of another form (see `image_to_frames`), or of different sizes.
    """
    frames = image_to_frames(images) if isinstance(images, Tensor) else [_as_frame(image) for image in images]
    original_size = _common_size(images, frames)
    identity, keys = identity_of(model), [image_key(frame) for frame in frames]
    encoded = _look_up_or_run(model, frames, keys, identity, device_mode)
    grid = model.prompt_encoder.image_embedding_size
    nothing = np.zeros((0, model.prompt_encoder.embed_dim, *grid), np.float32)
    values = _together([one.values for one in encoded]) if encoded else nothing
    fine = _together([one.fine for one in encoded]) if encoded and encoded[0].fine is not None else None
    return SAMEmbedding(values, original_size, input_size(original_size, model), identity, keys, fine)


def _together(arrays: list[np.ndarray]) -> np.ndarray:
    """Stacked; a single one is not copied, and stays read-only as the cache has it."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _look_up_or_run(
    model: Sam, frames: list[np.ndarray], keys: list[str], identity: str, device_mode: DeviceMode
) -> list[Encoded]:
    progress = Progress(len(frames))
    dtype = str(encoder_dtype(model, device_for(device_mode)))
    found: dict[str, Encoded] = {}
    missing = OrderedDict()
    for key, frame in zip(keys, frames, strict=True):
        values = cache.get((identity, dtype, key))
        if values is None:
            missing[key] = frame
        else:
            found[key] = values
    progress.advance(len(frames) - len(missing))
    log.debug("encoding %d of %d pictures, the rest is remembered", len(missing), len(frames))
    if missing:
        with placed(model, device_mode) as device:
            for keys_done, values in _run_encoder(model, missing, device, progress):
                for key, value in zip(keys_done, values, strict=True):
                    found[key] = value
                    cache.put((identity, dtype, key), value)
                progress.advance(len(keys_done))
    return [found[key] for key in keys]


@torch.no_grad()
def _run_encoder(
    model: Sam, frames: dict[str, np.ndarray], device: torch.device, progress: Progress
) -> Iterator[tuple[list[str], list[Encoded]]]:
    """Pictures uint8 `[H, W, 3]` of one size to their keys and embeddings, by the steps of `SamPredictor.set_image`.

    A GPU takes some at a time, and works on them while the CPU resizes the next.
    """
    dtype, size = encoder_dtype(model, device), 1 if device.type == "cpu" else _PICTURES_ON_GPU
    names = list(frames)
    running: tuple[list[str], tuple[Tensor, ...]] | None = None
    for start in range(0, len(names), size):
        progress.check_interrupted()
        some = names[start : start + size]
        resized = [resize_pil(frames[name], input_size(frames[name].shape[:2], model)) for name in some]
        pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
        if device.type == "cuda":
            pixels = pixels.pin_memory()
        features = _features(model, model.preprocess(pixels.to(device, non_blocking=True)), dtype)
        if running is not None:
            yield running[0], _separate(running[1])
        running = some, features
        if device.type == "cpu":  # nothing runs on: hand it over, so that a cancelled batch keeps what is done
            yield running[0], _separate(running[1])
            running = None
    if running is not None:
        yield running[0], _separate(running[1])


def _features(model: Sam, pixels: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Embeddings `[b, C, h, w]` of preprocessed pixels, and with SAM-HQ the fine features `[b, C/8, 4h, 4w]`."""
    if not isinstance(model.mask_decoder, HQMaskDecoder):
        return (run_encoder(model.image_encoder, pixels, dtype)[0],)
    features, early = run_encoder(model.image_encoder, pixels, dtype, early=True)
    return features, model.mask_decoder.fine_features(features, early)


def _separate(features: tuple[Tensor, ...]) -> list[Encoded]:
    """A batch's tensors to one read-only entry per picture."""
    arrays = [part.cpu().contiguous().numpy() for part in features]  # a convolution may answer channels last
    for array in arrays:
        array.setflags(write=False)
    values, fine = arrays if len(arrays) > 1 else (arrays[0], [None] * len(arrays[0]))
    return [Encoded(*pair) for pair in zip(values, fine, strict=True)]


def input_size(original_size: Size, model: Sam) -> Size:
    """(h, w) of a picture (H, W) after its long side was brought to the model's; at least one pixel.

    `ResizeLongestSide.get_preprocess_shape`, which gives 0 for a side under 1/2048 of the other.
    """
    scale = model.image_encoder.img_size * 1.0 / max(original_size)
    height, width = (max(1, int(side * scale + 0.5)) for side in original_size)
    return height, width


def image_key(frame: np.ndarray) -> str:
    """Content hash of a uint8 picture `[H, W, 3]`: of its shape and of its pieces' hashes, which threads compute.

    A picture that comes again is compared, value by value, with the copy of the one that looks like it: that is faster.
    """
    pixels = np.ascontiguousarray(frame).reshape(-1)
    pieces = [pixels[start : start + _HASHED] for start in range(0, len(pixels), _HASHED)]
    looks = frame.shape, pixels[::_SAMPLED].tobytes()
    known = _hashed.get(looks)
    if known is None or not all(map(np.array_equal, pieces, known.pieces)):
        digests = in_threads(lambda piece: hashlib.sha256(piece).digest(), pieces)
        key = hashlib.sha256(b"".join([f"{frame.shape}".encode(), *digests])).hexdigest()
        known = _Hashed([piece.copy() for piece in pieces], key)
        _hashed.put(looks, known)
    return known.key


def _as_frame(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        seen = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise SAMError(f"a picture must be a uint8 array [H, W, 3], but is {seen}.")
    if 0 in image.shape:
        raise SAMError(f"a picture has a side of 0 pixels: its shape is {image.shape}.")
    return np.ascontiguousarray(image)


def _common_size(images: Tensor | Sequence[np.ndarray], frames: list[np.ndarray]) -> Size:
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) > 1:
        raise SAMError(f"the pictures have {len(sizes)} sizes ({sorted(sizes)}): encode each size in a call of its own.")
    if sizes:
        return sizes.pop()
    if isinstance(images, Tensor):
        return images.shape[1], images.shape[2]
    raise SAMError("there are no pictures to encode: give at least one.")


def as_embedding(embedding: np.ndarray, model: Sam, images: Tensor | None = None) -> SAMEmbedding:
    """Make sure that an embedding is one of `model` (and of `images`), and complete another pack's bare array.

    Args:
        embedding: SAMEmbedding, or float `[B, C, h, w]` as the Art Venture nodes make it.
        model: the model that will decode it.
        images: the pictures as an IMAGE; needed for a bare array, checked against where the embedding knows its own.

    Raises:
        SAMError: the embedding is another model's or other pictures', has another shape, or is bare with no `images`.
    """
    expected = (model.prompt_encoder.embed_dim, *model.prompt_encoder.image_embedding_size)
    if not isinstance(embedding, np.ndarray) or embedding.ndim != 4 or embedding.shape[1:] != expected:
        seen = embedding.shape if isinstance(embedding, np.ndarray) else type(embedding).__name__
        raise SAMError(f"the embedding is {seen}, but this model makes (B, {', '.join(map(str, expected))}): embed again.")
    frames = None if images is None else [image_key(frame) for frame in image_to_frames(images)]
    if frames is not None and len(frames) != len(embedding):
        raise SAMError(f"image has {len(frames)} frames, but the embedding {len(embedding)}: wire the embedded image.")
    if knows_its_image(embedding):
        return _checked(embedding, model, frames)
    if images is None:
        raise SAMError("this embedding does not know its picture's size (it is another pack's): wire image as well.")
    if not np.isfinite(embedding).all():
        raise SAMError("the embedding has values that are NaN or infinite: embed the image again.")
    size = (int(images.shape[1]), int(images.shape[2]))
    return SAMEmbedding(embedding, size, input_size(size, model), identity_of(model), frames)


def _checked(embedding: SAMEmbedding, model: Sam, frames: list[str] | None) -> SAMEmbedding:
    if embedding.model_identity != identity_of(model):
        raise SAMError("the embedding was made by another model: embed the image with the model that is wired here.")
    for index, key in enumerate(frames or ()):
        if key != embedding.image_keys[index]:
            raise SAMError(f"frame {index} of image is not the picture that was embedded: wire the embedded image.")
    return embedding

"""Image files as SAM sees them."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import SAMError

log = logging.getLogger("samkit")

_ORIENTATION = 0x0112
_MAPPED_PIXELS = 1 << 24  # of a TIFF file that is not read but mapped, where that can be
_ROWS = 64  # of an image that are copied at a time
_MOST_PIXELS = 1 << 29  # of an image file; as by default, twice as many are refused
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 `[H, W, 3]`, turned upright as its EXIF data says, as ComfyUI's Load Image does.

    A large TIFF file of plain RGB is mapped, where tifffile is there: only what is used of it is in memory. Of several frames
    it is the first. Gray levels of 16 bits become those of 8 bits by the range of the type, and so do integers of 32
    bits that need no more; floats by the least of the ranges 0..1, 0..255 and 0..65535 that has all of them.

    Raises:
        OSError, ValueError, SyntaxError: the file is damaged, not an image, or its values fit no range.
    """
    if (mapped := _mapped(path)) is not None:
        return mapped
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # its other frames are the same photograph for other displays
            log.warning("%s has %d frames: only the first one is segmented.", path.name, frames)
        ImageOps.exif_transpose(image, in_place=True)  # no copy: of a large image it takes a second
        if image.mode != "F" and not image.mode.startswith("I"):
            return _as_array(image if image.mode == "RGB" else image.convert("RGB"))
        values = np.asarray(image).astype(np.float64)
    least, most = values.min(), values.max()
    if not (0 <= least <= most <= 65535):  # also for NaN
        raise SAMError(f"its gray levels are from {least:g} to {most:g}: save it with 8 or 16 bits per channel.")
    top = 1 if image.mode == "F" and most <= 1 else 255 if image.mode == "F" and most <= 255 else 65535
    if top == 65535 and most < 4096:
        log.warning("%s has gray levels up to %g of 65535, and looks black to SAM: stretch its levels.", path.name, most)
    return np.repeat((values * (255 / top)).round().astype(np.uint8)[..., None], 3, axis=-1)


def _as_array(image: Image.Image) -> np.ndarray:
    """An RGB image as uint8 `[H, W, 3]`; some rows at a time, since PIL makes two copies on the way."""
    width, height = image.size
    values = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS):
        bottom = min(top + _ROWS, height)
        values[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return values


@contextlib.contextmanager
def large_images() -> Iterator[None]:
    """In the body, images of up to a gigapixel are opened. PIL refuses those of more than 179 megapixels otherwise."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _mapped(path: Path) -> np.ndarray | None:
    """A large TIFF file whose first frame is plain RGB of 8 bits and upright, mapped; None: it is another one."""
    if path.suffix.lower() not in (".tif", ".tiff") or path.stat().st_size < 3 * _MAPPED_PIXELS:
        return None
    try:
        import tifffile
    except ImportError:
        return None
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        is_plain = page.dtype == np.uint8 and page.shape[2:] == (3,) and page.photometric == tifffile.PHOTOMETRIC.RGB
        turned = page.tags.get(_ORIENTATION)
        if not is_plain or not page.is_memmappable or len(file.pages) > 1 or (turned is not None and turned.value != 1):
            return None
    return tifffile.memmap(path, page=0, mode="r")


def is_turned(path: Path) -> bool:
    """Whether an image file lies on its side or is mirrored, and its EXIF data says how to show it."""
    with Image.open(path) as image:
        return image.getexif().get(_ORIENTATION, 1) != 1


def upright(path: Path) -> bytes:
    """The content of an image file that every reader sees upright: its own, or of one that is turned, that of a new one.

    The new one has the format of the file, JPEG at quality 95, and its other EXIF data.
    """
    if not is_turned(path):
        return path.read_bytes()
    file = io.BytesIO()
    with Image.open(path) as image:
        straight = ImageOps.exif_transpose(image)
        straight.save(file, format=image.format, exif=straight.getexif(), **({"quality": 95} if image.format == "JPEG" else {}))
    return file.getvalue()

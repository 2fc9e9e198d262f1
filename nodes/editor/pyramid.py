"""Large images for the browser: reduced levels and tiles of them on demand, so that it never has all pixels at once."""

import contextlib
import io
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from ...sam import SAMError
from ...sam.datasets.images import read_image
from ...sam.store.memory import ByteCache
from .contract import PYRAMID
from .jobs import RefusedError
from .preview import Subject, check_pixels, find_image, frames_of

_LEVELS: ByteCache[np.ndarray] = ByteCache(640 << 20)  # of an image of 134 million pixels all
_building = threading.Lock()


def level_count(width: int, height: int) -> int:
    """How many levels an image has: each is half as large as the one before, and the last one is a single tile."""
    count = 1
    while max(width, height) > PYRAMID.tile:
        width, height, count = (width + 1) // 2, (height + 1) // 2, count + 1
    return count


def tile_of(subject: Subject, level: int, column: int, row: int) -> tuple[bytes, str]:
    """A tile of an image, and its content type: exact at full resolution (level 0), JPEG where it is reduced.

    Args:
        subject: the image.
        level: the resolution is divided by 2 to the power of it.
        column, row: of the tile in its level.

    Raises:
        RefusedError: as `find_image` and `frames_of`; 404, there is no such tile.
    """
    path, stamp = find_image(subject)
    pixels = _level(path, stamp, subject, level)
    side = PYRAMID.tile
    tile = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
    if not tile.size:
        raise RefusedError(404, f"{subject.filename} has no tile {column}, {row} at level {level}.")
    file = io.BytesIO()
    if level:
        Image.fromarray(tile).save(file, format="JPEG", quality=90, subsampling=0)
        return file.getvalue(), "image/jpeg"
    Image.fromarray(tile).save(file, format="PNG", compress_level=1)
    return file.getvalue(), "image/png"


def begin_tiles(subject: Subject) -> None:
    """Make the levels of an image that the browser shows in tiles. Before its encoding, which would read the file meanwhile."""
    with contextlib.suppress(RefusedError, OSError, MemoryError):  # whoever asks for the image is told
        path, stamp = find_image(subject)
        if check_pixels(path, subject) > 1:
            return
        with Image.open(path) as header:
            width, height = header.size
        if width * height > PYRAMID.pixels:
            _level(path, stamp, subject, level_count(width, height) - 1)


def _level(path: Path, stamp: tuple[int, int], subject: Subject, level: int) -> np.ndarray:
    """An image uint8 `[h, w, 3]`, reduced by means to a level; it is read once for all levels, by one thread."""
    key = path, stamp, subject.frame
    found = _LEVELS.get((key, level))
    if found is not None:
        return found
    with _building:
        if (found := _LEVELS.get((key, level))) is not None:
            return found
        pixels = _LEVELS.get((key, 0))
        if pixels is None:
            pixels = _pixels(path, subject)
            _LEVELS.put((key, 0), pixels)
        height, width = pixels.shape[:2]
        if level >= level_count(width, height):
            raise RefusedError(404, f"{subject.filename} has {level_count(width, height)} levels: there is no level {level}.")
        if level == 0:
            return pixels
        reduced = Image.fromarray(pixels)
        for number in range(1, level_count(width, height)):  # all of them: each takes a quarter of the time of the one before
            reduced = reduced.reduce(2)
            _LEVELS.put((key, number), np.asarray(reduced))
            if number == level:
                pixels = np.asarray(reduced)
        return pixels


def _pixels(path: Path, subject: Subject) -> np.ndarray:
    """The frame of a subject, uint8 `[H, W, 3]`. A single one is not read as floats, which takes much longer."""
    if check_pixels(path, subject) > 1:
        return frames_of(path, subject)[subject.frame]
    try:
        return read_image(path)
    except (OSError, ValueError, SyntaxError, SAMError) as error:
        raise RefusedError(404, f"{subject.filename} cannot be read: {error}") from error

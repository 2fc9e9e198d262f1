"""What every reader of data sets shares: images by their number, and one sentence for what another program wrote otherwise."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from ...utils.checks import is_number
from ...utils.text import shown
from ..errors import SAMError
from ..geometry import Size
from .images import read_image
from .objects import LabeledImage

_PLACE = "samkit: place"
_SHAPE = re.compile(rb'"(?:segmentation|points|rle)"\s*:\s*(?=\[)')


class ReadImage(NamedTuple):
    """An image of a data set: pixels uint8 `[H, W, 3]`, turned upright, and its objects."""

    pixels: np.ndarray
    labeled: LabeledImage


class DataSet(Protocol):
    """Images by their number.

    Attributes:
        form: what messages call it.
        names: of the images, in the order of the file, or sorted where there is none.
    """

    form: str
    names: Sequence[str]

    def labels(self, index: int) -> set[str]:
        """The labels of an image's objects; its pixels and masks are not read."""
        ...

    def image_of(self, index: int) -> Path:
        """The file of an image.

        Raises:
            SAMError: it is not there.
        """
        ...

    def read(self, index: int) -> ReadImage:
        """An image with its objects, in the file's order.

        Raises:
            SAMError: the image is not there or damaged, or its objects are not what the form says.
        """
        ...


def loaded_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        SAMError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SAMError(f"{path} was not read as JSON: {error}") from error


class Outlined:
    """A JSON file without its shapes, which are nearly all that a large file has: they are parsed for images that are read.

    Attributes:
        content: of the file; for a list of numbers that is a `segmentation` (COCO), `points` or an `rle` (Label Studio) it has
            an object that `numbers` takes.

    Raises:
        SAMError: the file cannot be read, or is not JSON.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: list[tuple[int, int]] = []
        try:
            self.content: Any = json.loads(self._outline(path.read_bytes()))
        except (OSError, ValueError, RecursionError):
            self.content = loaded_json(path)  # which says what is wrong, in terms of the file

    def _outline(self, text: bytes) -> bytes:
        """The text with an object for each list; their ends are looked for by what cannot be in one, which is quick."""
        parts, done = [], 0
        for shape in _SHAPE.finditer(text):
            start = shape.end()
            ends = (text.find(mark, start) for mark in (b'"', b"}"))
            end = text.rfind(b"]", start, min(end for end in ends if end >= 0)) + 1
            if end > start:
                parts += [text[done:start], b'{"%s":%d}' % (_PLACE.encode(), len(self._places))]
                self._places.append((start, end))
                done = end
        return b"".join([*parts, text[done:]])

    def numbers(self, value: Any) -> Any:
        """The list that an object in `content` stands for; any other value as it is."""
        if not isinstance(value, dict) or _PLACE not in value:
            return value
        start, end = self._places[value[_PLACE]]
        with self._path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(end - start))


def loaded_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where it is something else. Raises as `loaded_json`."""
    value = loaded_json(path)
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
    """What another program may have written otherwise than its form says becomes one sentence that names the place.

    Raises:
        SAMError: the body met a value of another type or range, or a file that cannot be read.
    """
    try:
        yield
    except SAMError as error:
        raise SAMError(str(error) if str(what) in str(error) else f"{what}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, OSError, SyntaxError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise SAMError(f"{what} is not of the form that it should have: {reason}.") from error
    except Image.DecompressionBombError as error:
        raise SAMError(f"{what} has an image of too many pixels: {error}") from error


def as_text(value: Any, what: str) -> str:
    """A text that is not empty.

    Raises:
        SAMError: it is not one.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise SAMError(f"{what} is {shown(value)}: it must be text.")
    return value


def as_score(value: Any) -> float | None:
    """A score, or None.

    Raises:
        SAMError: it is not a finite number.
    """
    if value is not None and not is_number(value):
        raise SAMError(f"score is {shown(value)}: it must be a finite number.")
    return None if value is None else float(value)


def is_inside(path: Path, within: Sequence[Path]) -> bool:
    """Whether a path is in one of these folders, also where a link leads; without folders it always is."""
    return not within or any(path.resolve().is_relative_to(folder.resolve()) for folder in within)


def check_inside(path: Path, within: Sequence[Path]) -> None:
    """Raise SAMError where a file is in none of the folders that may be read."""
    with reading(path):
        if not is_inside(path, within):
            raise SAMError(f"a link leads out of {' and '.join(map(str, within))}.")


def find_image(name: str, folders: Sequence[Path], within: Sequence[Path]) -> Path:
    """The image of a name in the first folder that has it; a name never leads out of its folder, nor out of `within`."""
    for folder in folders:
        path = folder / name
        with reading(path):
            if is_inside(path, [folder]) and is_inside(path, within) and path.is_file():
                return path
    raise SAMError(f"there is no image {name} in {' or '.join(map(str, folders))}: say where the images are by image_folder.")


def pixels_of(path: Path) -> np.ndarray:
    """See `read_image`; what is wrong with the file is one sentence."""
    with reading(path):
        return read_image(path)


def check_size(found: tuple[Any, ...], size: Size, what: str) -> None:
    """Raise SAMError where the size (H, W) that a file names is not its image's."""
    if found != size:
        seen = f"{shown(found[1])}x{shown(found[0])} pixels, but its image {size[1]}x{size[0]}"
        raise SAMError(f"{what} has {seen}: the image was changed, or turned by its EXIF data, since it was annotated.")

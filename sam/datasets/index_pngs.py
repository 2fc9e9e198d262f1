"""One palette PNG for each image, as DAVIS has them: value 0 is background, the others are the objects, in order."""

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ...utils.text import counted
from ..errors import SAMError
from .objects import Category, LabeledImage, Record, record_of, visible

_MOST = 255


class IndexPngs:
    """Folders `images`, with copies of the images, and `masks`, with a PNG for each of them.

    The form has no labels and no scores, and a pixel has one value: where objects overlap, it is that of the smallest one. In
    a film an object has the same value on all frames.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.image_folder: Path | None = folder / "images"

    def entry(self, image: LabeledImage) -> tuple[Record, dict[str, bytes]]:
        """What is recorded of an image, and the files that belong to it, by their paths below the data set.

        Raises:
            SAMError: it has more than 255 objects, or is of a film that has.
        """
        seen = visible(image)
        numbers = [one.track or place for place, one in enumerate(seen, 1)]
        if (most := max(numbers, default=0)) > _MOST:
            raise SAMError(f"{image.file_name} has {counted(most, 'object')}, but an index PNG has values for {_MOST}.")
        values = np.zeros(image.size, np.uint8)
        for number, one in sorted(zip(numbers, seen, strict=True), key=lambda pair: -int(pair[1].mask.sum())):
            values[one.mask] = number
        file, png = io.BytesIO(), Image.fromarray(values, "P")
        png.putpalette(palette())
        png.save(file, format="PNG")
        record = record_of(image, numbers)
        return record, {_path(record): file.getvalue()}

    def files_of(self, record: Record) -> set[str]:
        """The copy of the image, and its PNG."""
        return {f"images/{record['file_name']}", _path(record)}

    def names(self) -> set[str]:
        """None: the form has no list of images."""
        return set()

    def write(self, records: Sequence[Record], continued: bool = False, categories: Sequence[Category] = ()) -> None:
        """Nothing: an image's own file is all that there is of it."""

    def extend(self, records: Sequence[Record], categories: Sequence[Category] = ()) -> None:
        """Nothing, as `write`."""


def palette() -> list[int]:
    """Red, green and blue of 256 values: PASCAL VOC's and DAVIS' colors, in which each bit of a value sets one of a color."""
    return [
        sum((value >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for value in range(256) for channel in range(3)
    ]


def _path(record: Record) -> str:
    return f"masks/{PurePosixPath(record['file_name']).with_suffix('.png')}"

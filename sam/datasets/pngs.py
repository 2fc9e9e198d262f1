"""A PNG for each mask, and a manifest that says what it is of."""

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ...utils.files import write_whole
from .json_file import as_json, read_json
from .objects import Category, LabeledImage, Record, record_of, visible


class Pngs:
    """A folder with `masks` (grayscale PNGs, 255 inside) and `manifest.json`.

    The manifest is `{"images": [{"file_name", "width", "height", "objects": [{"mask", "label", "score", "area", "bbox"}]}]}`,
    where `mask` is relative to the folder.
    """

    image_folder: Path | None = None

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def entry(self, image: LabeledImage) -> tuple[Record, dict[str, bytes]]:
        """What is recorded of an image, and the files that belong to it, by their paths below the data set."""
        stem = PurePosixPath(image.file_name).with_suffix("")
        files = [_png(one.mask) for one in visible(image)]
        names = [f"masks/{stem}_{index:03}.png" for index in range(len(files))]
        return record_of(image, names), dict(zip(names, files, strict=True))

    def files_of(self, record: Record) -> set[str]:
        """The masks."""
        return {one["segmentation"] for one in record["objects"]}

    def names(self) -> set[str]:
        """The images that the manifest lists.

        Raises:
            SAMError: the file is not a manifest.
        """
        return {one["file_name"] for one in self._images()}

    def write(self, records: Sequence[Record], continued: bool = False, categories: Sequence[Category] = ()) -> None:
        """Write the manifest with these images only; their masks are there. Nothing in it is numbered."""
        self._write([], records)

    def extend(self, records: Sequence[Record], categories: Sequence[Category] = ()) -> None:
        """Add images to the manifest, which need not be there; an image that it has stays.

        Raises:
            SAMError: the file is not a manifest.
        """
        images, names = self._images(), self.names()
        self._write(images, [record for record in records if record["file_name"] not in names])

    def _images(self) -> list[Record]:
        return (read_json(self.path / "manifest.json", ("images",)) or {"images": []})["images"]

    def _write(self, images: list[Record], records: Sequence[Record]) -> None:
        listed = [*images, *({**record, "objects": [_named(one) for one in record["objects"]]} for record in records)]
        write_whole(self.path / "manifest.json", as_json({"images": listed}))


def _named(one: Record) -> Record:
    return {"mask": one["segmentation"], **{key: value for key, value in one.items() if key != "segmentation"}}


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()

"""YOLO segmentation text as Ultralytics reads it: a line for each object, with its class and one polygon.

https://docs.ultralytics.com/datasets/segment/
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .files import write_whole
from .objects import LabeledImage, Record, labels_in, record_of, visible
from .polygons import yolo_polygon

_DIGITS = 6  # of a coordinate in 0..1: a hundredth of a pixel in an image of 10,000


class Yolo:
    """A folder with `images`, `labels` (a text for each image), `data.yaml` and `classes.txt`.

    Classes are numbered from 0 in the order in which they first appear. The format has no scores.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.image_folder: Path | None = folder / "images"

    def entry(self, image: LabeledImage) -> tuple[Record, dict[str, bytes]]:
        """What is recorded of an image, and the files that belong to it, by their paths below the data set."""
        return record_of(image, [yolo_polygon(one.mask) for one in visible(image)]), {}

    def write(self, records: Sequence[Record]) -> None:
        """Write the texts of these images, and the list of their classes."""
        self._write(records, [])

    def extend(self, records: Sequence[Record]) -> None:
        """Add images; classes that are there keep their numbers."""
        path = self.path / "classes.txt"
        self._write(records, path.read_text(encoding="utf-8").splitlines() if path.is_file() else [])

    def _write(self, records: Sequence[Record], known: Sequence[str]) -> None:
        classes = labels_in(records, known)
        numbers = {label: number for number, label in enumerate(classes)}
        for record in records:
            path = self.path / "labels" / PurePosixPath(record["file_name"]).with_suffix(".txt")
            write_whole(path, _lines(record, numbers).encode())
        names = json.dumps(classes, ensure_ascii=False)  # which is YAML too
        write_whole(self.path / "data.yaml", f"train: images\nval: images\nnc: {len(classes)}\nnames: {names}\n".encode())
        write_whole(self.path / "classes.txt", "".join(f"{label}\n" for label in classes).encode())


def _lines(record: Record, numbers: dict[str, int]) -> str:
    sides = record["width"], record["height"]
    lines = []
    for one in record["objects"]:
        shares = (value / sides[index % 2] for index, value in enumerate(one["segmentation"]))
        lines.append(" ".join([str(numbers[one["label"]]), *(f"{share:.{_DIGITS}f}" for share in shares)]) + "\n")
    return "".join(lines)

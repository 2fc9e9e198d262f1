"""YOLO segmentation text as Ultralytics reads it: a line for each object, with its class and one polygon.

https://docs.ultralytics.com/datasets/segment/
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ...utils.files import write_whole
from ..errors import SAMError
from .objects import Category, LabeledImage, Record, labels_in, record_of, visible
from .polygons import yolo_polygon

_DIGITS = 6  # of a coordinate in 0..1: a hundredth of a pixel in an image of 10,000


class Yolo:
    """A folder with `images`, `labels` (a text for each image), `data.yaml` and `classes.txt`.

    Classes are numbered from 0 in the order in which they first appear. The format has no scores. A text lies where readers
    look for it: they replace the last folder `images` in an image's path by `labels` (`img2label_paths` of Ultralytics).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.image_folder: Path | None = folder / "images"

    def entry(self, image: LabeledImage) -> tuple[Record, dict[str, bytes]]:
        """What is recorded of an image, and the files that belong to it, by their paths below the data set."""
        return record_of(image, [yolo_polygon(one.mask) for one in visible(image)]), {}

    def files_of(self, record: Record) -> set[str]:
        """The copy of the image, and its text."""
        return {f"images/{record['file_name']}", _label_path(record)}

    def names(self) -> set[str]:
        """None: the format lists its classes only."""
        return set()

    def write(self, records: Sequence[Record], continued: bool = False, categories: Sequence[Category] = ()) -> None:
        """Write the texts of these images, and the list of classes: if `continued` those in it, then the given ones.

        A class is its place in the list, so that the numbers of given ones are those of their order.
        """
        path = self.path / "classes.txt"
        known = path.read_text(encoding="utf-8").splitlines() if continued and path.is_file() else []
        classes = labels_in(records, [*known, *(one.name for one in sorted(categories))])
        numbers = {label: number for number, label in enumerate(classes)}
        for record in records:
            write_whole(self.path / _label_path(record), _lines(record, numbers).encode())
        names = json.dumps(classes, ensure_ascii=False)  # which is YAML too
        # Without `nc`, which Ultralytics counts itself: CVAT's import fails on it (cvat-ai/cvat#8958).
        write_whole(self.path / "data.yaml", f"train: images\nval: images\nnames: {names}\n".encode())
        write_whole(path, "".join(f"{label}\n" for label in classes).encode())

    def check(self, categories: Sequence[Category]) -> None:
        """Whether these categories are its first classes, in the order of their ids, or will be.

        Raises:
            SAMError: it has other ones.
        """
        path, given = self.path / "classes.txt", [one.name for one in sorted(categories)]
        known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else given
        if known[: len(given)] != given[: len(known)]:
            seen, wanted = ", ".join(known)[:200], ", ".join(given)[:200]
            raise SAMError(
                f"{path} has the classes {seen}, which do not begin with {wanted}: classes keep their numbers within a data "
                "set. Choose another name for it."
            )

    def extend(self, records: Sequence[Record], categories: Sequence[Category] = ()) -> None:
        """Add images; classes that are there keep their numbers."""
        self.write(records, continued=True, categories=categories)


def _label_path(record: Record) -> str:
    folder, _, below = f"/images/{record['file_name']}".rpartition("/images/")
    return str(PurePosixPath(f"{folder}/labels/{below}").with_suffix(".txt")).lstrip("/")


def _lines(record: Record, numbers: dict[str, int]) -> str:
    sides = record["width"], record["height"]
    lines = []
    for one in record["objects"]:
        shares = (value / sides[index % 2] for index, value in enumerate(one["segmentation"]))
        lines.append(" ".join([str(numbers[one["label"]]), *(f"{share:.{_DIGITS}f}" for share in shares)]) + "\n")
    return "".join(lines)

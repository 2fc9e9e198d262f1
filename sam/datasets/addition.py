"""Images that are added to a data set all at once, whatever happens in between."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...utils.comfy_files import locked
from ...utils.files import remove_parts, write_whole, writing
from .coco import Coco
from .formats import Format, FormatName, data_set
from .json_file import as_json, read_json
from .objects import Category, LabeledImage, Record
from .yolo import Yolo

_STAGED, _RECORDS = ".adding", "records.json"


class Addition:
    """Images that are being added, see `adding_to`."""

    def __init__(self, target: Format, staged: Path) -> None:
        self._target, self._staged = target, staged
        self.records: list[Record] = []

    def add(self, image: LabeledImage, content: bytes) -> None:
        """Prepare one image and its masks.

        Args:
            image: its `file_name` is below the folder `images` of the data set.
            content: of the image's file.
        """
        record, files = self._target.entry(image)
        for name, data in {**files, f"images/{image.file_name}": content}.items():
            write_whole(self._staged / name, data)
        self.records.append(record)


@contextlib.contextmanager
def adding_to(root: Path, name: FormatName, categories: Sequence[Category] = ()) -> Iterator[Addition]:
    """Add images to the data set in a folder: all of them, or after an error, a Cancel or a kill none.

    Files are prepared in a folder inside. When all are there, their records are written; from then on the addition is valid,
    and what a process did not finish is finished by the next one. Other processes wait meanwhile.

    Args:
        root: the folder; a COCO file in it is called `annotations.json`.
        name: of the format.
        categories: of another data set, which this one has too, with their numbers, where the format numbers its categories.

    Raises:
        SAMError: a file cannot be written, another process is writing for too long, there is a file of another kind, or
            the data set has other numbers for these categories.
    """
    with locked(root):
        _finish(root)
        target = _data_set(root, name)
        target.names()
        if isinstance(target, (Coco, Yolo)):
            target.check(categories)
        addition = Addition(target, root / _STAGED)
        try:
            yield addition
            if addition.records:
                prepared = {"format": name, "records": addition.records, "categories": list(categories)}
                write_whole(root / _STAGED / _RECORDS, as_json(prepared))
        finally:
            _finish(root)


def _finish(root: Path) -> None:
    """Move prepared files to their places if their records are there, and record them; else remove them."""
    staged = root / _STAGED
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if staged.is_dir():  # else no process was killed while it wrote here
            remove_parts(root)
        prepared = read_json(staged / _RECORDS, ("records",))
        if prepared is not None:
            for path in [path for path in staged.rglob("*") if path.is_file() and path != staged / _RECORDS]:
                place = root / path.relative_to(staged)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
            categories = [Category(*one) for one in prepared.get("categories", ())]  # which earlier versions did not have
            _data_set(root, prepared["format"]).extend(prepared["records"], categories)
            (staged / _RECORDS).unlink()  # first: without it, the rest is not an addition any more
        if staged.is_dir():
            shutil.rmtree(staged)


def _data_set(root: Path, name: str) -> Format:
    return data_set(name, root / "annotations.json" if name.startswith("COCO") else root)

"""The formats by name, behind one face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, get_args

from ...utils.checks import one_of
from .coco import Coco
from .cvat import Cvat
from .index_pngs import IndexPngs
from .label_studio import LabelStudio
from .labelme import Labelme
from .objects import Category, LabeledImage, Record
from .pngs import Pngs
from .yolo import Yolo

FormatName: TypeAlias = Literal["COCO RLE", "COCO polygons", "YOLO", "PNG", "labelme", "CVAT", "Label Studio", "index PNG"]
FORMATS: tuple[str, ...] = get_args(FormatName)


class Format(Protocol):
    """A data set at one place.

    Attributes:
        path: its file or folder.
        image_folder: where the format wants the images; None: anywhere.
    """

    path: Path
    image_folder: Path | None

    def entry(self, image: LabeledImage) -> tuple[Record, dict[str, bytes]]:
        """What is recorded of an image, and the files that belong to it, by their paths below the data set."""
        ...

    def files_of(self, record: Record) -> set[str]:
        """The files that belong to this image alone, by their paths below the data set; not only those that `entry` gives."""
        ...

    def names(self) -> set[str]:
        """The images that the data set lists; none where it has no list, as YOLO, labelme and index PNGs.

        Raises:
            SAMError: a file in its place is of another kind.
        """
        ...

    def write(self, records: Sequence[Record], continued: bool = False, categories: Sequence[Category] = ()) -> None:
        """Make the data set of these images only.

        Args:
            records: of the images.
            continued: what is there keeps the numbers of its categories.
            categories: that it begins with otherwise, whether or not they are used.
        """
        ...

    def extend(self, records: Sequence[Record], categories: Sequence[Category] = ()) -> None:
        """Add images to what is there, and categories whether or not they are used; what is there stays as it is."""
        ...


def data_set(name: str, path: Path) -> Format:
    """A data set in the format `name`, one of `FORMATS`: a file for COCO, a folder for the others.

    Raises:
        SAMError: there is no such format.
    """
    one_of(name, FORMATS, "format")
    if name.startswith("COCO"):
        return Coco(path, polygons=name.endswith("polygons"))
    folders = {"YOLO": Yolo, "PNG": Pngs, "labelme": Labelme, "CVAT": Cvat, "Label Studio": LabelStudio, "index PNG": IndexPngs}
    return folders[name](path)

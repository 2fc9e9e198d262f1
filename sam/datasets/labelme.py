"""labelme's files (https://github.com/wkentaro/labelme), one beside each image; masks are shapes of the kind `mask`, exact."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from .json_file import as_json
from .objects import Category, LabeledImage, Record, record_of, visible

_VERSION = "5.2.0"  # the first that has masks


class Labelme:
    """A folder `images` with copies of the images, and beside each its file. The form has no scores and no list of labels."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.image_folder: Path | None = folder / "images"

    def entry(self, image: LabeledImage) -> tuple[Record, dict[str, bytes]]:
        """What is recorded of an image, and the files that belong to it, by their paths below the data set."""
        seen = visible(image)
        record, shapes = record_of(image, [None] * len(seen)), []
        for one, known in zip(seen, record["objects"], strict=True):
            left, top, width, height = (int(side) for side in known["bbox"])
            file = io.BytesIO()
            Image.fromarray(one.mask[top : top + height, left : left + width]).save(file, format="PNG")
            shapes.append(
                {
                    "label": known["label"],
                    "points": [[left, top], [left + width - 1, top + height - 1]],  # the second corner belongs to the box
                    "group_id": None,
                    "description": "",
                    "shape_type": "mask",
                    "flags": {},
                    "mask": base64.b64encode(file.getvalue()).decode(),
                }
            )
        sides = {"imageHeight": image.size[0], "imageWidth": image.size[1]}
        name = PurePosixPath(image.file_name).name
        content = {"version": _VERSION, "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, **sides}
        return record, {_path(record): as_json(content)}

    def files_of(self, record: Record) -> set[str]:
        """The copy of the image, and its file."""
        return {f"images/{record['file_name']}", _path(record)}

    def names(self) -> set[str]:
        """None: the form has no list of images."""
        return set()

    def write(self, records: Sequence[Record], continued: bool = False, categories: Sequence[Category] = ()) -> None:
        """Nothing: an image's own file is all that there is of it."""

    def extend(self, records: Sequence[Record], categories: Sequence[Category] = ()) -> None:
        """Nothing, as `write`."""


def _path(record: Record) -> str:
    return f"images/{PurePosixPath(record['file_name']).with_suffix('.json')}"

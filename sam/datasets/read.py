"""Data sets that annotators and this pack have written: images, and in each its objects with labels and exact masks.

Opening reads the list of images; an image and its masks are read when they are asked for, one at a time.
"""

import base64
import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from ...utils.text import counted, shown
from ..errors import SAMError
from ..geometry import Size
from .drawing import drawn_polygon, polygon_mask, shape_mask
from .files import read_json
from .images import IMAGE_SUFFIXES, read_image
from .objects import DEFAULT_LABEL, LabeledImage, LabeledMask
from .rle import decode_mask

_COCO = "images", "annotations", "categories"
_BACKGROUND = 0  # of a PNG whose values are objects
_MOST_VALUES = 255
_HALF = 127  # of a gray level: above it, a pixel is in the mask
_FAR = 1e6  # no coordinate of an image is as large


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

    def read(self, index: int) -> ReadImage:
        """An image with its objects, in the file's order.

        Raises:
            SAMError: the image is not there or damaged, or its objects are not what the form says.
        """
        ...


def open_data_set(path: Path, image_folder: Path | None = None, within: Path | None = None) -> DataSet:
    """The data set in a file or a folder, whose form is found out by what is there.

    - COCO instance JSON: a file, or a folder with `annotations.json` or `annotations/instances_*.json`. Run lengths as text or
      as lists, and polygons, of which an object is the union.
    - YOLO labels: a folder with `labels`, `images` and `classes.txt`, or `data.yaml` with a list of names in one line. Lines of
      four numbers are boxes.
    - labelme: one of its files, or a folder of them. Polygons, rectangles, circles and masks; shapes with one label and
      `group_id` are one object.
    - PNGs of this pack: a folder with `manifest.json`.
    - Masks as images: a folder with `images` and `masks`, paired by name; each value but 0 is an object, its label the number,
      or *object* where there is only one.

    Args:
        path: the file or folder.
        image_folder: where the images are, if not beside it or in `images`.
        within: no image outside of this folder is read, wherever the data set or a link says that it is; None: from anywhere.

    Raises:
        SAMError: there is nothing, or nothing that this reads.
    """
    if not path.exists():
        raise SAMError(f"there is no file or folder {path}.")
    if path.is_file():
        found = _of_file(path, image_folder, within)
        if found is not None:
            return found
    elif (path / "manifest.json").is_file():
        return PngSet(path, image_folder, within)
    elif (path / "labels").is_dir():
        return YoloSet(path, image_folder, within)
    else:
        listed = [path / "annotations.json", *sorted((path / "annotations").glob("instances_*.json"))]
        for file in listed:
            if file.is_file() and (found := _of_file(file, image_folder, within)) is not None:
                return found
        if (path / "masks").is_dir():
            return MaskSet(path, image_folder, within)
        files = sorted(path.rglob("*.json"))
        if files and isinstance(_loaded(files[0]).get("shapes"), list):
            return LabelmeSet(path, files, image_folder, within)
    raise SAMError(
        f"{path} is not a data set that can be read: a COCO file, a folder with YOLO's labels, labelme's files, a "
        "manifest.json of this pack, or the folders images and masks."
    )


def _of_file(path: Path, image_folder: Path | None, within: Path | None) -> DataSet | None:
    content = _loaded(path)
    if all(isinstance(content.get(name), list) for name in _COCO):
        return CocoSet(path, content, image_folder, within)
    if isinstance(content.get("shapes"), list):
        return LabelmeSet(path.parent, [path], image_folder, within)
    if path.name == "manifest.json":
        return PngSet(path.parent, image_folder, within)
    return None


def _loaded(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SAMError(f"{path} was not read as JSON: {error}") from error
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def _reading(what: object) -> Iterator[None]:
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


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise SAMError(f"{what} is {shown(value)}: it must be text.")
    return value


def _score(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    if value is not None and not is_number:
        raise SAMError(f"score is {shown(value)}: it must be a finite number.")
    return None if value is None else float(value)


def _image(name: str, folders: Sequence[Path], within: Path | None) -> np.ndarray:
    """The image of a name in the first folder that has it; a name never leads out of its folder, nor out of `within`."""
    for folder in folders:
        path = folder / name
        with _reading(path):
            bounds = [folder.resolve(), *([] if within is None else [within.resolve()])]
            if all(path.resolve().is_relative_to(bound) for bound in bounds) and path.is_file():
                return read_image(path)
    raise SAMError(f"there is no image {name} in {' or '.join(map(str, folders))}: say where the images are by image_folder.")


def _check_size(found: tuple[Any, ...], size: Size, what: str) -> None:
    if found != size:
        seen = f"{shown(found[1])}x{shown(found[0])} pixels, but its image {size[1]}x{size[0]}"
        raise SAMError(f"{what} has {seen}: the image was changed, or turned by its EXIF data, since it was annotated.")


class CocoSet:
    """A COCO file; see `open_data_set`."""

    form = "COCO"

    def __init__(
        self, path: Path, content: Mapping[str, Any], image_folder: Path | None = None, within: Path | None = None
    ) -> None:
        self.path, self._within = path, within
        beside = [path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images"]
        self._folders = [image_folder] if image_folder else beside
        with _reading(path):
            self.names = [_text(one["file_name"], "file_name") for one in content["images"]]
            self._labels = {one["id"]: _text(one["name"], "the name of a category") for one in content["categories"]}
            place = {one["id"]: index for index, one in enumerate(content["images"])}
            self._objects: list[list[Mapping[str, Any]]] = [[] for _ in self.names]
            for one in content["annotations"]:
                self._objects[place[one["image_id"]]].append(one)

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        with _reading(self.path):
            return {self._labels.get(one.get("category_id"), DEFAULT_LABEL) for one in self._objects[index]}

    def read(self, index: int) -> ReadImage:
        """See `DataSet`; regions of crowds are objects like the others."""
        pixels = _image(self.names[index], self._folders, self._within)
        size, objects = pixels.shape[:2], []
        for one in self._objects[index]:
            what = f"annotation {shown(one.get('id'))} of {self.path.name}"
            with _reading(what):
                value = one["segmentation"]
                if isinstance(value, dict):
                    _check_size(tuple(value["size"]), size, what)  # first: a size that is not true may need any memory
                    mask = decode_mask(value)
                else:
                    parts = [polygon_mask(part, size) for part in value]
                    mask = np.logical_or.reduce(parts) if parts else np.zeros(size, bool)
                label = self._labels.get(one.get("category_id"), DEFAULT_LABEL)
                objects.append(LabeledMask(mask, label, _score(one.get("score"))))
        return ReadImage(pixels, LabeledImage(self.names[index], size, objects))


class YoloSet:
    """A folder of YOLO labels; see `open_data_set`. Polygons are drawn as Ultralytics draws them."""

    form = "YOLO"

    def __init__(self, folder: Path, image_folder: Path | None = None, within: Path | None = None) -> None:
        self._labels_folder, self._images, self._within = folder / "labels", image_folder or folder / "images", within
        if not self._images.is_dir():
            raise SAMError(
                f"there is no folder {self._images} with the images of {folder}: say where they are by image_folder."
            )
        found = [path for path in self._images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
        self.names = sorted(path.relative_to(self._images).as_posix() for path in found)
        self._classes = _class_names(folder)

    def _lines(self, index: int) -> list[tuple[str, np.ndarray]]:
        """Label and numbers of each object; the text lies where Ultralytics looks for it (see `yolo.py`)."""
        name = self.names[index]
        before, inside, after = f"/{name}".rpartition("/images/")
        nested = self._images / f"{before}/labels/{after}".lstrip("/") if inside else self._labels_folder / name
        path, lines = nested.with_suffix(".txt"), []
        with _reading(path):
            texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number, line in enumerate(texts, start=1):
            try:
                kind, *shares = line.split()
                values = np.array(shares, np.float64)
                if len(values) != 4 and (len(values) < 6 or len(values) % 2):
                    raise ValueError(f"{len(values)} numbers")
                if not (np.abs(values) < _FAR).all():
                    raise ValueError("numbers that are no shares of the image")
                lines.append((self._classes.get(int(kind), kind), values))
            except ValueError as error:
                raise SAMError(f"line {number} of {path} is not a class and a polygon or a box: {error}.") from error
        return lines

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return {label for label, _ in self._lines(index)}

    def read(self, index: int) -> ReadImage:
        """See `DataSet`."""
        pixels = _image(self.names[index], [self._images], self._within)
        (height, width), objects = pixels.shape[:2], []
        for label, values in self._lines(index):
            if len(values) == 4:
                x, y, across, down = values * [width, height, width, height]
                corners = np.array([x - across / 2, y - down / 2, x + across / 2, y + down / 2])
                left, top, right, bottom = np.clip(np.round(corners), 0, [width, height, width, height]).astype(int)
                mask = np.zeros((height, width), bool)
                mask[top:bottom, left:right] = True
            else:
                mask = drawn_polygon(values.reshape(-1, 2) * [width, height], (height, width))
            objects.append(LabeledMask(mask, label))
        return ReadImage(pixels, LabeledImage(self.names[index], (height, width), objects))


def _class_names(folder: Path) -> dict[int, str]:
    """Names by number, of `classes.txt` or of `names: [...]` in `data.yaml`; a class without a name is called by its number."""
    try:
        if (folder / "classes.txt").is_file():
            return dict(enumerate((folder / "classes.txt").read_text(encoding="utf-8").splitlines()))
        for line in (folder / "data.yaml").read_text(encoding="utf-8").splitlines():
            if line.startswith("names:"):
                names = json.loads(line.removeprefix("names:").strip().replace("'", '"'))
                return dict(enumerate(map(str, names)))
    except (OSError, ValueError):
        return {}
    return {}


class LabelmeSet:
    """Files of labelme; see `open_data_set`."""

    form = "labelme"

    def __init__(
        self, folder: Path, files: Sequence[Path], image_folder: Path | None = None, within: Path | None = None
    ) -> None:
        self._files, self._image_folder, self._within = list(files), image_folder, within
        self.names = [path.relative_to(folder).with_suffix("").as_posix() for path in self._files]

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return {str(shape.get("label") or DEFAULT_LABEL) for shape in self._shapes(index)}

    def _shapes(self, index: int) -> list[dict[str, Any]]:
        shapes = _loaded(self._files[index]).get("shapes")
        if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
            raise SAMError(f"{self._files[index]} is not a file of labelme: it has no list of shapes.")
        return shapes

    def read(self, index: int) -> ReadImage:
        """See `DataSet`; points and lines have no area, and are left out."""
        file = self._files[index]
        content = _loaded(file)
        name = str(content.get("imagePath") or f"{file.stem}.png").replace("\\", "/")
        folder = self._image_folder or file.parent
        if ".." in PurePosixPath(name).parts:  # labelme writes so where files and images have folders of their own
            folder, name = (folder / PurePosixPath(name).parent).resolve(), PurePosixPath(name).name
        pixels = _image(name, [folder], self._within)
        size, masks = pixels.shape[:2], {}
        for number, shape in enumerate(self._shapes(index)):
            kind = shape.get("shape_type") or "polygon"
            if kind in ("point", "points", "line", "linestrip"):
                continue
            label, group = str(shape.get("label") or DEFAULT_LABEL), shape.get("group_id")
            with _reading(f"shape {number} of {file}"):
                key = (label, "group", group) if group is not None else (label, "shape", number)
                points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
                if not (np.abs(points) < _FAR).all():
                    raise SAMError("its points are not in pixels of an image.")
                mask = _labelme_mask(shape, points, size) if kind == "mask" else shape_mask(str(kind), points, size)
                masks[key] = mask | masks[key] if key in masks else mask
        objects = [LabeledMask(mask, label) for (label, *_), mask in masks.items()]
        return ReadImage(pixels, LabeledImage(name, size, objects))


def _labelme_mask(shape: Mapping[str, Any], points: np.ndarray, size: Size) -> np.ndarray:
    """A mask that labelme stores as a PNG of its box; its second corner belongs to the box, and every value but 0 is inside."""
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
        inside = np.asarray(image) > 0
    mask, (left, top) = np.zeros(size, bool), np.round(points[0]).astype(int)
    height, width = inside.shape
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise SAMError(
            f"its mask of {width}x{height} pixels at ({left}, {top}) is not inside the image of {size[1]}x{size[0]}."
        )
    mask[top : top + height, left : left + width] = inside
    return mask


class PngSet:
    """PNGs with a manifest of this pack; see `open_data_set`."""

    form = "PNG"

    def __init__(self, folder: Path, image_folder: Path | None = None, within: Path | None = None) -> None:
        self._folder, self._within = folder, within
        self._images = [image_folder] if image_folder else [folder / "images", folder, folder.parent]
        self._records = (read_json(folder / "manifest.json", ("images",)) or {"images": []})["images"]
        with _reading(folder / "manifest.json"):
            self.names = [_text(record["file_name"], "file_name") for record in self._records]
            self._labels = [{_text(one["label"], "label") for one in record["objects"]} for record in self._records]

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return self._labels[index]

    def read(self, index: int) -> ReadImage:
        """See `DataSet`."""
        pixels, objects = _image(self.names[index], self._images, self._within), []
        for number, one in enumerate(self._records[index]["objects"]):
            with _reading(f"object {number} of {self.names[index]} in manifest.json"):
                mask = _image(_text(one["mask"], "mask"), [self._folder], self._within)[..., 0] > _HALF
                _check_size(mask.shape, pixels.shape[:2], one["mask"])
                objects.append(LabeledMask(mask, one["label"], _score(one.get("score"))))
        return ReadImage(pixels, LabeledImage(self.names[index], pixels.shape[:2], objects))


class MaskSet:
    """Images and masks paired by name; see `open_data_set`."""

    form = "masks"

    def __init__(self, folder: Path, image_folder: Path | None = None, within: Path | None = None) -> None:
        self._masks, self._images, self._within = folder / "masks", image_folder or folder / "images", within
        images = {path.with_suffix("").relative_to(self._images).as_posix(): path for path in _below(self._images)}
        pairs = [(path, path.with_suffix("").relative_to(self._masks).as_posix()) for path in _below(self._masks)]
        self._pairs = [(images[name], path) for path, name in pairs if name in images]
        if not self._pairs:
            raise SAMError(f"no file in {self._masks} has the name of an image in {self._images}: they are paired by name.")
        self.names = [image.relative_to(self._images).as_posix() for image, _ in self._pairs]

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return {label for label, _ in self._objects(index)}

    def _objects(self, index: int) -> list[tuple[str, np.ndarray]]:
        path = self._pairs[index][1]
        with _reading(path):
            if self._within is not None and not path.resolve().is_relative_to(self._within.resolve()):
                raise SAMError(f"a link leads out of {self._within}.")
            with Image.open(path) as image:
                is_index = image.mode in ("L", "P", "1") or image.mode.startswith("I")
                values = np.asarray(image if is_index else image.convert("L"))
        found = np.unique(values)
        found = found[found != _BACKGROUND]
        if len(found) > _MOST_VALUES:
            raise SAMError(f"{path} has {counted(len(found), 'value')}: it is not a mask, in which each value is an object.")
        return [(DEFAULT_LABEL if len(found) == 1 else str(value), values == value) for value in found]

    def read(self, index: int) -> ReadImage:
        """See `DataSet`."""
        image, path = self._pairs[index]
        pixels = _image(image.name, [image.parent], self._within)
        objects = [LabeledMask(mask, label) for label, mask in self._objects(index)]
        for one in objects:
            _check_size(one.mask.shape, pixels.shape[:2], str(path))
        return ReadImage(pixels, LabeledImage(self.names[index], pixels.shape[:2], objects))


def _below(folder: Path) -> list[Path]:
    found = [Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names]
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)

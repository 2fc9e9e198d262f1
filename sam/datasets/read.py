"""Data sets that annotators and this pack have written: images, and in each its objects with labels and exact masks.

Opening reads the list of images; an image and its masks are read when they are asked for, one at a time.
"""

import base64
import contextlib
import gc
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ...utils.text import counted, shown
from ..errors import SAMError
from ..geometry import Size
from .cvat import CvatSet
from .drawing import drawn_polygon, polygon_mask, shape_mask, turned_box_mask
from .images import IMAGE_SUFFIXES
from .json_file import read_json
from .label_studio import LabelStudioSet
from .objects import DEFAULT_LABEL, LabeledImage, LabeledMask
from .reading import (
    DataSet,
    Outlined,
    ReadImage,
    as_score,
    as_text,
    check_inside,
    check_size,
    find_image,
    loaded_object,
    pixels_of,
    reading,
)
from .rle import decode_mask

_COCO = "images", "annotations", "categories"
_BACKGROUND = 0  # of a PNG whose values are objects
_MOST_VALUES = 255
_HALF = 127  # of a gray level: above it, a pixel is in the mask
_WITHOUT_AREA = ("point", "points", "line", "linestrip")  # of labelme's shapes
_FAR = 1e6  # no coordinate of an image is as large


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Meanwhile Python does not look for cycles among its objects, which it would do many times while a large file is read."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def open_data_set(path: Path, image_folder: Path | None = None, within: Sequence[Path] = ()) -> DataSet:
    """The data set in a file or a folder, whose form is found out by what is there.

    - COCO instance JSON: a file, or a folder with `annotations.json` or `annotations/instances_*.json`. Run lengths as text or
      as lists, and polygons, of which an object is the union.
    - YOLO labels: a folder with `labels`, `images`, and `classes.txt` or `data.yaml` with `names`. Lines of four numbers are
      boxes.
    - labelme: one of its files, or a folder of them. Polygons, rectangles, circles and masks; shapes with one label and
      `group_id` are one object.
    - CVAT's XML for images: a file, or a folder with `annotations.xml`. Masks, polygons, boxes and ellipses; shapes with one
      label and `group_id` are one object.
    - Label Studio's JSON export. Brushes, polygons, rectangles and ellipses of the first annotation of a task.
    - PNGs of this pack: a folder with `manifest.json`.
    - Masks as images: a folder with `images` and `masks`, paired by name; each value but 0 is an object, its label the number,
      or *object* where there is only one.

    Args:
        path: the file or folder.
        image_folder: where the images are, if not beside it or in `images`.
        within: no file outside of these folders is read, wherever the data set or a link says that it is; empty: from anywhere.

    Raises:
        SAMError: there is nothing, or nothing that this reads.
    """
    if not path.exists():
        raise SAMError(f"there is no file or folder {path}.")
    if path.is_file():
        check_inside(path, within)
        found = _of_file(path, image_folder, within)
        if found is not None:
            return found
    elif (path / "manifest.json").is_file():
        check_inside(path / "manifest.json", within)
        return PngSet(path, image_folder, within)
    elif (path / "labels").is_dir():
        return YoloSet(path, image_folder, within)
    else:
        listed = [path / "annotations.json", path / "annotations.xml", *sorted((path / "annotations").glob("instances_*.json"))]
        for file in listed:
            if file.is_file():
                check_inside(file, within)
                if (found := _of_file(file, image_folder, within)) is not None:
                    return found
        if (path / "masks").is_dir():
            return MaskSet(path, image_folder, within)
        files = sorted(path.rglob("*.json"))
        for file in files:
            check_inside(file, within)
        if files and isinstance(loaded_object(files[0]).get("shapes"), list):
            inside = path / "images"  # where this pack writes them
            return LabelmeSet(
                inside if all(file.is_relative_to(inside) for file in files) else path, files, image_folder, within
            )
        if files and (found := _of_file(files[0], image_folder, within)) is not None:  # an export of Label Studio
            return found
    raise SAMError(
        f"{path} is not a data set that can be read: a COCO file, a folder with YOLO's labels, labelme's files, CVAT's XML for "
        "images, Label Studio's JSON, a manifest.json of this pack, or the folders images and masks."
    )


def _of_file(path: Path, image_folder: Path | None, within: Sequence[Path]) -> DataSet | None:
    if path.suffix.lower() == ".xml":
        return CvatSet(path, image_folder, within)
    outlined = Outlined(path)
    content = outlined.content
    if isinstance(content, list):  # COCO's results are lists, too, but without tasks
        is_export = bool(content) and all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in content)
        return LabelStudioSet(path, outlined, image_folder, within) if is_export else None
    if not isinstance(content, dict):
        return None
    if all(isinstance(content.get(name), list) for name in _COCO):
        return CocoSet(path, outlined, image_folder, within)
    if isinstance(content.get("shapes"), list):
        return LabelmeSet(path.parent, [path], image_folder, within)
    if path.name == "manifest.json":
        return PngSet(path.parent, image_folder, within)
    return None


class CocoSet:
    """A COCO file; see `open_data_set`.

    Args:
        path: of the file.
        outlined: its content.
        image_folder, within: see `open_data_set`.
    """

    form = "COCO"

    def __init__(self, path: Path, outlined: Outlined, image_folder: Path | None = None, within: Sequence[Path] = ()) -> None:
        self.path, self._within, self._numbers, content = path, within, outlined.numbers, outlined.content
        beside = [path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images"]
        self._folders = [image_folder] if image_folder else beside
        with reading(path):
            self.names = [as_text(one["file_name"], "file_name") for one in content["images"]]
            self._labels = {one["id"]: as_text(one["name"], "the name of a category") for one in content["categories"]}
            place = {one["id"]: index for index, one in enumerate(content["images"])}
            self._objects: list[list[Mapping[str, Any]]] = [[] for _ in self.names]
            for one in content["annotations"]:
                self._objects[place[one["image_id"]]].append(one)

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        with reading(self.path):
            return {self._labels.get(one.get("category_id"), DEFAULT_LABEL) for one in self._objects[index]}

    def image_of(self, index: int) -> Path:
        """See `DataSet`."""
        return find_image(self.names[index], self._folders, self._within)

    def read(self, index: int) -> ReadImage:
        """See `DataSet`; regions of crowds are objects like the others."""
        pixels = pixels_of(self.image_of(index))
        size, objects = pixels.shape[:2], []
        for one in self._objects[index]:
            what = f"annotation {shown(one.get('id'))} of {self.path.name}"
            with reading(what):
                value = self._numbers(one["segmentation"])
                if isinstance(value, dict):
                    check_size(tuple(value["size"]), size, what)  # first: a size that is not true may need any memory
                    mask = decode_mask(value)
                else:
                    parts = [polygon_mask(part, size) for part in value]
                    mask = np.logical_or.reduce(parts) if parts else np.zeros(size, bool)
                label = self._labels.get(one.get("category_id"), DEFAULT_LABEL)
                track = one.get("track_id")
                objects.append(LabeledMask(mask, label, as_score(one.get("score")), track if type(track) is int else None))
        return ReadImage(pixels, LabeledImage(self.names[index], size, objects))


class YoloSet:
    """A folder of YOLO labels; see `open_data_set`. Polygons are drawn as Ultralytics draws them."""

    form = "YOLO"

    def __init__(self, folder: Path, image_folder: Path | None = None, within: Sequence[Path] = ()) -> None:
        self._labels_folder, self._images, self._within = folder / "labels", image_folder or folder / "images", within
        if not self._images.is_dir():
            raise SAMError(
                f"there is no folder {self._images} with the images of {folder}: say where they are by image_folder."
            )
        found = [path for path in self._images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
        self.names = sorted(path.relative_to(self._images).as_posix() for path in found)
        for name in ("classes.txt", "data.yaml"):
            check_inside(folder / name, within)
        self.classes = _class_names(folder)

    def text_of(self, index: int) -> Path:
        """The text with the labels of an image, which need not be there; it lies where Ultralytics looks for it (`yolo.py`)."""
        name = self.names[index]
        before, inside, after = f"/{name}".rpartition("/images/")
        nested = self._images / f"{before}/labels/{after}".lstrip("/") if inside else self._labels_folder / name
        path = nested.with_suffix(".txt")
        check_inside(path, self._within)
        return path

    def _lines(self, index: int) -> list[tuple[str, np.ndarray]]:
        """Label and numbers of each object."""
        path, lines = self.text_of(index), []
        with reading(path):
            texts = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
        for number, line in enumerate(texts, start=1):
            if not line.strip():
                continue  # as Ultralytics does
            try:
                kind, *shares = line.split()
                values = np.array(shares, np.float64)
                if len(values) != 4 and (len(values) < 6 or len(values) % 2):
                    raise ValueError(f"{len(values)} numbers")
                if not (np.abs(values) < _FAR).all():
                    raise ValueError("numbers that are no shares of the image")
                lines.append((self.classes.get(int(kind), kind), values))
            except ValueError as error:
                raise SAMError(f"line {number} of {path} is not a class and a polygon or a box: {error}.") from error
        return lines

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return {label for label, _ in self._lines(index)}

    def image_of(self, index: int) -> Path:
        """See `DataSet`."""
        return find_image(self.names[index], [self._images], self._within)

    def read(self, index: int) -> ReadImage:
        """See `DataSet`."""
        pixels = pixels_of(self.image_of(index))
        (height, width), objects = pixels.shape[:2], []
        for label, values in self._lines(index):
            if len(values) == 4:
                x, y, across, down = values * [width, height, width, height]
                box = x - across / 2, y - down / 2, x + across / 2, y + down / 2
                mask = turned_box_mask(box, 0, (x, y), (height, width))
            else:
                mask = drawn_polygon(values.reshape(-1, 2) * [width, height], (height, width))
            objects.append(LabeledMask(mask, label))
        return ReadImage(pixels, LabeledImage(self.names[index], (height, width), objects))


def _class_names(folder: Path) -> dict[int, str]:
    """Names by number, of `classes.txt` or of `names` in `data.yaml`, a list or a mapping of numbers to names.

    A class without a name is called by its number.
    """
    import yaml  # takes as long to import as all of this file

    try:
        if (folder / "classes.txt").is_file():
            return dict(enumerate((folder / "classes.txt").read_text(encoding="utf-8-sig").splitlines()))
        settings = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    names = settings.get("names") if isinstance(settings, dict) else None
    if isinstance(names, list):
        return dict(enumerate(map(str, names)))
    return {number: str(name) for number, name in names.items() if type(number) is int} if isinstance(names, dict) else {}


class LabelmeSet:
    """Files of labelme; see `open_data_set`. The name of an image is that of its file with the ending of the image there.

    Args:
        folder: that names are relative to.
        files: in order.
        image_folder: of the images, which may have the same folders inside; None: they are beside their files.
        within: see `open_data_set`.
    """

    form = "labelme"

    def __init__(
        self, folder: Path, files: Sequence[Path], image_folder: Path | None = None, within: Sequence[Path] = ()
    ) -> None:
        self._files, self._image_folder, self._within = list(files), image_folder, within
        below = [path.relative_to(folder).parent for path in self._files]
        self._folders = [image_folder / one if image_folder else file.parent for file, one in zip(files, below, strict=True)]
        there = {place: _image_names(place) for place in set(self._folders)}
        names = [there[place].get(file.stem, file.stem) for place, file in zip(self._folders, files, strict=True)]
        self.names = [(one / name).as_posix() for one, name in zip(below, names, strict=True)]

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return {str(shape.get("label") or DEFAULT_LABEL) for shape in self._shapes(index)}

    def file_of(self, index: int) -> Path:
        """The file of an image."""
        return self._files[index]

    def records(self, index: int) -> list[list[int]]:
        """The places of each object's shapes in the file, in the order of `read`."""
        found: dict[tuple[Any, ...], list[int]] = {}
        for number, shape in enumerate(self._shapes(index)):
            if (shape.get("shape_type") or "polygon") not in _WITHOUT_AREA:
                found.setdefault(_labelme_key(shape, number), []).append(number)
        return list(found.values())

    def _shapes(self, index: int) -> list[dict[str, Any]]:
        shapes = loaded_object(self._files[index]).get("shapes")
        if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
            raise SAMError(f"{self._files[index]} is not a file of labelme: it has no list of shapes.")
        return shapes

    def image_of(self, index: int) -> Path:
        """See `DataSet`."""
        file = self._files[index]
        name = str(loaded_object(file).get("imagePath") or f"{file.stem}.png").replace("\\", "/")
        folders = [self._folders[index], self._image_folder or file.parent]
        if ".." in PurePosixPath(name).parts:  # labelme writes so where files and images have folders of their own
            folders = [(folder / PurePosixPath(name).parent).resolve() for folder in folders]
            name = PurePosixPath(name).name
        return find_image(name, folders, self._within)

    def read(self, index: int) -> ReadImage:
        """See `DataSet`; points and lines have no area, and are left out."""
        pixels, file = pixels_of(self.image_of(index)), self._files[index]
        size, masks = pixels.shape[:2], {}
        for number, shape in enumerate(self._shapes(index)):
            kind = shape.get("shape_type") or "polygon"
            if kind in _WITHOUT_AREA:
                continue
            with reading(f"shape {number} of {file}"):
                key = _labelme_key(shape, number)
                points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
                if not (np.abs(points) < _FAR).all():
                    raise SAMError("its points are not in pixels of an image.")
                mask = _labelme_mask(shape, points, size) if kind == "mask" else shape_mask(str(kind), points, size)
                masks[key] = mask | masks[key] if key in masks else mask
        objects = [LabeledMask(mask, label) for (label, *_), mask in masks.items()]
        return ReadImage(pixels, LabeledImage(self.names[index], size, objects))


def _labelme_key(shape: Mapping[str, Any], number: int) -> tuple[Any, ...]:
    """What shapes of one object have in common; its label is the first part."""
    label, group = str(shape.get("label") or DEFAULT_LABEL), shape.get("group_id")
    return (label, "group", group) if group is not None else (label, "shape", number)


def _image_names(folder: Path) -> dict[str, str]:
    """The names of the images in a folder by those without their ending."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.stem: path.name for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}


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

    def __init__(self, folder: Path, image_folder: Path | None = None, within: Sequence[Path] = ()) -> None:
        self.folder, self._within = folder, within
        self._images = [image_folder] if image_folder else [folder / "images", folder, folder.parent]
        self._records = (read_json(folder / "manifest.json", ("images",)) or {"images": []})["images"]
        with reading(folder / "manifest.json"):
            self.names = [as_text(record["file_name"], "file_name") for record in self._records]
            self._labels = [{as_text(one["label"], "label") for one in record["objects"]} for record in self._records]

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return self._labels[index]

    def image_of(self, index: int) -> Path:
        """See `DataSet`."""
        return find_image(self.names[index], self._images, self._within)

    def read(self, index: int) -> ReadImage:
        """See `DataSet`."""
        pixels, objects = pixels_of(self.image_of(index)), []
        for number, one in enumerate(self._records[index]["objects"]):
            with reading(f"object {number} of {self.names[index]} in manifest.json"):
                mask = pixels_of(find_image(as_text(one["mask"], "mask"), [self.folder], self._within))[..., 0] > _HALF
                check_size(mask.shape, pixels.shape[:2], one["mask"])
                objects.append(LabeledMask(mask, one["label"], as_score(one.get("score"))))
        return ReadImage(pixels, LabeledImage(self.names[index], pixels.shape[:2], objects))


class MaskSet:
    """Images and masks paired by name; see `open_data_set`."""

    form = "masks"

    def __init__(self, folder: Path, image_folder: Path | None = None, within: Sequence[Path] = ()) -> None:
        self._masks, self._images, self._within = folder / "masks", image_folder or folder / "images", within
        images = {path.with_suffix("").relative_to(self._images).as_posix(): path for path in _below(self._images)}
        pairs = [(path, path.with_suffix("").relative_to(self._masks).as_posix()) for path in _below(self._masks)]
        self._pairs = [(images[name], path) for path, name in pairs if name in images]
        if not self._pairs:
            raise SAMError(f"no file in {self._masks} has the name of an image in {self._images}: they are paired by name.")
        self.names = [image.relative_to(self._images).as_posix() for image, _ in self._pairs]

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return {one.label for one in self._objects(index)}

    def mask_of(self, index: int) -> Path:
        """The file with the masks of an image."""
        path = self._pairs[index][1]
        check_inside(path, self._within)
        return path

    def _objects(self, index: int) -> list[LabeledMask]:
        path = self.mask_of(index)
        with reading(path), Image.open(path) as image:
            is_index = image.mode in ("L", "P", "1") or image.mode.startswith("I")
            values = np.asarray(image if is_index else image.convert("L"))
        found = np.unique(values)
        found = found[found != _BACKGROUND]
        if len(found) > _MOST_VALUES:
            raise SAMError(f"{path} has {counted(len(found), 'value')}: it is not a mask, in which each value is an object.")
        labels = [DEFAULT_LABEL if len(found) == 1 else str(value) for value in found]
        return [LabeledMask(values == value, label, track=int(value)) for value, label in zip(found, labels, strict=True)]

    def image_of(self, index: int) -> Path:
        """See `DataSet`."""
        return find_image(self._pairs[index][0].name, [self._pairs[index][0].parent], self._within)

    def read(self, index: int) -> ReadImage:
        """See `DataSet`."""
        path = self.mask_of(index)
        pixels = pixels_of(self.image_of(index))
        objects = self._objects(index)
        for one in objects:
            check_size(one.mask.shape, pixels.shape[:2], str(path))
        return ReadImage(pixels, LabeledImage(self.names[index], pixels.shape[:2], objects))


def _below(folder: Path) -> list[Path]:
    found = [Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names]
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)

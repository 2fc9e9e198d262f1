"""CVAT's own XML ("CVAT for images 1.1"): read with masks, polygons, boxes and ellipses, and written with masks, exact.

Source: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/, and files that datumaro 1.13 writes in this form.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ...utils.files import write_whole
from ..errors import SAMError
from ..geometry import Size
from .drawing import ellipse_mask, polygon_mask, turned_box_mask
from .objects import DEFAULT_LABEL, Category, LabeledImage, LabeledMask, Record, record_of, visible
from .reading import ReadImage, check_size, find_image, pixels_of, reading

_VERSION = "1.1"
# XML 1.0 has no form for these, whatever they are escaped to.
NOT_IN_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 65534, 65535], " ")
_WITHOUT_AREA = ("polyline", "points", "skeleton", "cuboid", "tag")
_MOST_RUNS = 1 << 24


class CvatSet:
    """A file of CVAT. Shapes with one label and `group_id` are one object; lines, points and cuboids are left out."""

    form = "CVAT"

    def __init__(self, path: Path, image_folder: Path | None = None, within: Sequence[Path] = ()) -> None:
        self.path, self._file, self._within = path, path.name, within
        self._folders = [image_folder] if image_folder else [path.parent / "images", path.parent]
        with reading(path):
            root = ElementTree.parse(path).getroot()
            if root.tag != "annotations":
                raise SAMError("it is not a file of CVAT: its root must be <annotations>.")
            if root.find("track") is not None:
                raise SAMError("it holds tracks of a video. Export it from CVAT as CVAT for images 1.1.")
            self._images = root.findall("image")
            self.names = [image.attrib["name"] for image in self._images]

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return {shape.get("label", DEFAULT_LABEL) for shape in self._images[index] if shape.tag not in _WITHOUT_AREA}

    def records(self, index: int) -> list[list[int]]:
        """The places of each object's shapes among those of the image, in the order of `read`."""
        found: dict[tuple[str, Any], list[int]] = {}
        for number, shape in enumerate(self._images[index]):
            if shape.tag not in _WITHOUT_AREA:
                found.setdefault(_key(shape, number), []).append(number)
        return list(found.values())

    def image_of(self, index: int) -> Path:
        """See `DataSet`."""
        return find_image(self.names[index], self._folders, self._within)

    def read(self, index: int) -> ReadImage:
        """See `DataSet`."""
        image, name, masks = self._images[index], self.names[index], {}
        pixels = pixels_of(self.image_of(index))
        size = pixels.shape[:2]
        with reading(f"image {name} of {self._file}"):
            check_size((int(image.attrib["height"]), int(image.attrib["width"])), size, f"image {name} of {self._file}")
        for number, shape in enumerate(image):
            if shape.tag in _WITHOUT_AREA:
                continue
            key = _key(shape, number)
            with reading(f"shape {number} of image {name} of {self._file}"):
                mask = _mask_of(shape.tag, shape.attrib, size)
                masks[key] = masks[key] | mask if key in masks else mask
        objects = [LabeledMask(mask, label) for (label, _), mask in masks.items()]
        return ReadImage(pixels, LabeledImage(name, size, objects))


def _key(shape: ElementTree.Element, number: int) -> tuple[str, Any]:
    """What shapes of one object have in common; its label is the first part."""
    label, group = shape.get("label", DEFAULT_LABEL), shape.get("group_id", "0")
    return (label, number) if group in ("", "0") else (label, f"group {group}")


def _mask_of(kind: str, shape: Mapping[str, str], size: Size) -> np.ndarray:
    """The mask bool `[H, W]` of a shape. Polygons are drawn as pycocotools draws them, which CVAT itself uses for masks."""
    if kind == "mask":
        left, top, width, height = (int(float(shape[side])) for side in ("left", "top", "width", "height"))
        if not (0 <= left <= left + width <= size[1] and 0 <= top <= top + height <= size[0]):
            raise SAMError(f"its box of {width}x{height} pixels at ({left}, {top}) is not inside the image.")
        runs = np.array([int(run) for run in shape["rle"].split(",") if run.strip()], np.int64)
        if (runs < 0).any() or len(runs) > _MOST_RUNS or runs.sum() != width * height:
            raise SAMError(f"its run lengths are not those of {width}x{height} pixels.")
        mask, inside = np.zeros(size, bool), np.arange(len(runs)) % 2 == 1  # row by row in the box, and background first
        mask[top : top + height, left : left + width] = np.repeat(inside, runs).reshape(height, width)
        return mask
    turn = float(shape.get("rotation", 0))
    if kind == "box":
        left, top, right, bottom = (float(shape[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        return turned_box_mask((left, top, right, bottom), turn, ((left + right) / 2, (top + bottom) / 2), size)
    if kind == "ellipse":
        x, y, across, down = (float(shape[side]) for side in ("cx", "cy", "rx", "ry"))
        return ellipse_mask((x, y), (across, down), turn, size)
    if kind == "polygon":
        return polygon_mask([float(number) for point in shape["points"].split(";") for number in point.split(",")], size)
    raise SAMError(f"it is a {kind!r}: only masks, polygons, boxes and ellipses can be read.")


class Cvat:
    """A folder with `annotations.xml`, and `images` with copies of the images. The form has no scores."""

    def __init__(self, folder: Path) -> None:
        self.path, self._file = folder, folder / "annotations.xml"
        self.image_folder: Path | None = folder / "images"

    def entry(self, image: LabeledImage) -> tuple[Record, dict[str, bytes]]:
        """What is recorded of an image, and the files that belong to it, by their paths below the data set."""
        return record_of(image, [cvat_runs(one.mask) for one in visible(image)]), {}

    def files_of(self, record: Record) -> set[str]:
        """The copy of the image."""
        return {f"images/{record['file_name']}"}

    def names(self) -> set[str]:
        """The images that the file lists.

        Raises:
            SAMError: the file is not one of CVAT.
        """
        return {one.get("name", "") for one in self._read().findall("image")}

    def write(self, records: Sequence[Record], continued: bool = False, categories: Sequence[Category] = ()) -> None:
        """Write the file with these images only. Labels have no numbers in it."""
        self._write(_empty(), records)

    def extend(self, records: Sequence[Record], categories: Sequence[Category] = ()) -> None:
        """Add images to the file, which need not be there; what it holds stays, also of these images.

        Raises:
            SAMError: the file is not one of CVAT.
        """
        root, known = self._read(), self.names()
        self._write(root, [record for record in records if record["file_name"].translate(NOT_IN_XML) not in known])

    def _read(self) -> ElementTree.Element:
        if not self._file.exists():
            return _empty()
        try:
            root = ElementTree.parse(self._file).getroot()
        except ElementTree.ParseError as error:
            raise SAMError(f"{self._file} is not XML, and was left as it is: choose another name. ({error})") from error
        if root.tag != "annotations":
            raise SAMError(f"{self._file} is not a file of CVAT, and was left as it is: choose another name.")
        return root

    def _write(self, root: ElementTree.Element, records: Sequence[Record]) -> None:
        first = 1 + max((int(one.get("id", -1)) for one in root.findall("image")), default=-1)
        for number, record in enumerate(records, first):
            sides = {"width": str(record["width"]), "height": str(record["height"])}
            name = record["file_name"].translate(NOT_IN_XML)
            image = ElementTree.SubElement(root, "image", {"id": str(number), "name": name, **sides})
            for one in record["objects"]:
                box = {key: str(int(side)) for key, side in zip(("left", "top", "width", "height"), one["bbox"], strict=True)}
                label = one["label"].translate(NOT_IN_XML)
                what = {"label": label, "source": "auto", "occluded": "0", "rle": one["segmentation"], **box, "z_order": "0"}
                ElementTree.SubElement(image, "mask", what)
        listed = root.find("meta/task/labels")  # without them, datumaro refuses a file
        if listed is not None:
            known = {one.findtext("name") for one in listed}
            for label in dict.fromkeys(shape.get("label", "") for image in root.findall("image") for shape in image):
                if label not in known:
                    entry = ElementTree.SubElement(listed, "label")
                    ElementTree.SubElement(entry, "name").text = label
                    ElementTree.SubElement(entry, "attributes")
        ElementTree.indent(root)
        write_whole(self._file, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _empty() -> ElementTree.Element:
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = _VERSION
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    ElementTree.SubElement(task, "mode").text = "annotation"
    ElementTree.SubElement(task, "labels")
    return root


def cvat_runs(mask: np.ndarray) -> str:
    """Run lengths of the mask `[H, W]` inside its box, row by row, the first of them of background."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].ravel()
    ends = np.flatnonzero(np.diff(inside)) + 1
    lengths = np.diff([0, *ends, len(inside)]).tolist()
    return ", ".join(map(str, [0, *lengths] if inside[0] else lengths))

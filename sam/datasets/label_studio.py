"""Label Studio's JSON: its export read, with brushes, polygons, rectangles and ellipses, and its import written, with brushes.

Source: https://labelstud.io/guide/export, https://labelstud.io/guide/tasks, and the run lengths of label-studio-sdk 2.1.2
(`label_studio_sdk.converter.brush`), whose `decode_rle` reads what is written here.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from ...utils.files import write_whole
from ...utils.text import shown
from ..errors import SAMError
from ..geometry import Size
from .drawing import ellipse_mask, polygon_mask, turned_box_mask
from .images import IMAGE_SUFFIXES
from .json_file import as_json
from .objects import DEFAULT_LABEL, Category, LabeledImage, LabeledMask, Record, record_of, visible
from .reading import Outlined, ReadImage, check_size, find_image, loaded_json, pixels_of, reading

_REGIONS = ("brush", "polygon", "rectangle", "ellipse")
_CHANNELS = 4  # of an image of a brush: red, green, blue and alpha, which is the mask; written with 255 in all of them
_SIZES, _VALUE_BITS = (3, 4, 8, 16), 8  # as written: bits of a length less 1, and of a value
_UPLOADED = 8  # hexadecimal digits and a dash, which Label Studio puts before the name of an uploaded file
_HEADER = 32, 5, 4  # bits of the number of values, of the size of a value less 1, of each of four sizes of a length less 1


class LabelStudioSet:
    """A file of tasks. Of each task the first annotation that was not cancelled is read; points have no area, and are left out.

    An image is looked for by its path below the folder, then by the ends of this path, with and without what Label Studio puts
    before the name of an upload. A folder `images` beside the file is not part of a name.
    """

    form = "Label Studio"

    def __init__(self, path: Path, outlined: Outlined, image_folder: Path | None = None, within: Sequence[Path] = ()) -> None:
        self.path, self._file, self._within, self._numbers, tasks = path, path.name, within, outlined.numbers, outlined.content
        self._folders = [image_folder] if image_folder else [path.parent, path.parent / "images"]
        with reading(path):
            self._results = [_results(task) for task in tasks]
            self._shapes = [_shapes(results) for results in self._results]
            found = [self._found(_image_of(task)) for task in tasks]
        self.names, self._places = [name for name, _ in found], [folders for _, folders in found]

    def _found(self, address: str) -> tuple[str, list[Path]]:
        """The name of an image, and the folders that it is below one of."""
        query = parse_qs(urlsplit(address).query)
        path = PurePosixPath((query["d"][0] if "d" in query else unquote(urlsplit(address).path)).lstrip("/"))
        prefix, _, rest = path.name.partition("-")
        is_upload = len(prefix) == _UPLOADED and all(digit in "0123456789abcdef" for digit in prefix)
        ends = ["/".join(path.parts[first:]) for first in range(len(path.parts)) if ".." not in path.parts[first:]]
        for name in [*ends, *([rest] if is_upload and rest else [])]:
            for folder in self._folders:
                if (folder / name).is_file():
                    is_inside = folder == self._folders[0] and len(self._folders) > 1 and name.startswith("images/")
                    return (name.removeprefix("images/"), self._folders[1:]) if is_inside else (name, [folder])
        return path.name, self._folders

    def records(self, index: int) -> list[list[int]]:
        """The places of each object's results in its annotation, that of the region first, in the order of `read`."""
        regions: dict[Any, int] = {}
        own: dict[Any, list[int]] = {}
        for place, result in enumerate(self._results[index]):
            key = result.get("id", place)
            own.setdefault(key, []).append(place)
            if _kind_of(result) in _REGIONS:
                regions[key] = place
        return [[place, *(other for other in own[key] if other != place)] for key, place in regions.items()]

    def labels(self, index: int) -> set[str]:
        """See `DataSet`."""
        return {label for label, _, _ in self._shapes[index]}

    def image_of(self, index: int) -> Path:
        """See `DataSet`."""
        return find_image(self.names[index], self._places[index], self._within)

    def read(self, index: int) -> ReadImage:
        """See `DataSet`."""
        name, objects = self.names[index], []
        pixels = pixels_of(self.image_of(index))
        size = pixels.shape[:2]
        for number, (label, kind, result) in enumerate(self._shapes[index]):
            what = f"region {number} of {name} in {self._file}"
            with reading(what):
                check_size((result["original_height"], result["original_width"]), size, what)
                value = {key: self._numbers(one) for key, one in result["value"].items()}
                objects.append(LabeledMask(_mask_of(kind, value, size), label))
        return ReadImage(pixels, LabeledImage(name, size, objects))


def _image_of(task: Mapping[str, Any]) -> str:
    """The address of a task's image: of its data the first that ends as an image does."""
    for value in task["data"].values():
        if (
            isinstance(value, str)
            and PurePosixPath(urlsplit(value).query or urlsplit(value).path).suffix.lower() in IMAGE_SUFFIXES
        ):
            return value
    raise SAMError(f"a task has no image: its data is {shown(task['data'])}.")


def _results(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    for annotation in task.get("annotations") or task.get("completions") or []:
        if not annotation.get("was_cancelled"):
            return list(annotation["result"])
    return []


def _kind_of(result: Mapping[str, Any]) -> str:
    return str(result.get("type", "")).removesuffix("labels")


def _shapes(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Label, kind and result of each region with an area. A label may stand in a result of its own, with the region's id."""
    labels: dict[Any, str] = {}
    regions: dict[Any, tuple[str, Mapping[str, Any]]] = {}
    for place, result in enumerate(results):
        value, key = result.get("value") or {}, result.get("id", place)
        kind = _kind_of(result)
        named = next((value[one] for one in (f"{kind}labels", "labels") if value.get(one)), None)
        if named:
            labels[key] = ", ".join(map(str, named))
        if kind in _REGIONS:
            regions[key] = kind, result
    return [(labels.get(key, DEFAULT_LABEL), kind, result) for key, (kind, result) in regions.items()]


def _mask_of(kind: str, value: Mapping[str, Any], size: Size) -> np.ndarray:
    """The mask bool `[H, W]` of a region; all numbers but a brush's are in percent of the image's sides."""
    height, width = size
    if kind == "brush":
        return decode_brush(value["rle"], size)
    if kind == "polygon":
        return polygon_mask((np.array(value["points"], np.float64) / 100 * [width, height]).ravel().tolist(), size)
    x, y, turn = float(value["x"]) / 100 * width, float(value["y"]) / 100 * height, float(value.get("rotation") or 0)
    if kind == "ellipse":
        return ellipse_mask((x, y), (float(value["radiusX"]) / 100 * width, float(value["radiusY"]) / 100 * height), turn, size)
    across, down = float(value["width"]) / 100 * width, float(value["height"]) / 100 * height
    return turned_box_mask((x, y, x + across, y + down), turn, (x, y), size)


def decode_brush(rle: Sequence[int], size: Size) -> np.ndarray:
    """The mask bool `[H, W]` of a brush: the pixels whose alpha is not 0.

    Args:
        rle: bytes of a stream of bits. After a header come runs: a bit that says whether one value is repeated, two bits for
            the size of the length, the length less 1, and the value or the values. These are of an image `[H, W, 4]`.
        size: (H, W).

    Raises:
        SAMError: they are not the run lengths of an image of that size.
    """
    bits = "".join(f"{byte:08b}" for byte in bytes(rle))
    place = 0

    def read(count: int) -> int:
        """The number in the next `count` bits."""
        nonlocal place
        place += count
        if place > len(bits):
            raise SAMError("its run lengths end too soon.")
        return int(bits[place - count : place], 2)

    number, width, sizes = read(_HEADER[0]), read(_HEADER[1]) + 1, [read(_HEADER[2]) + 1 for _ in range(4)]
    if number != _CHANNELS * size[0] * size[1]:
        raise SAMError(f"its run lengths are not those of an image of {size[1]}x{size[0]} pixels.")
    values, at = np.zeros(number, np.uint8), 0
    while at < number:
        is_run, end = read(1), at + 1 + read(sizes[read(2)])
        if end > number:
            raise SAMError("its run lengths are of more values than the image has.")
        if is_run:
            values[at:end] = min(read(width), 255)
        else:
            values[at:end] = [min(read(width), 255) for _ in range(end - at)]
        at = end
    return values.reshape(*size, _CHANNELS)[..., -1] > 0


class LabelStudio:
    """A folder with `tasks.json`, `labels.xml` and `images` with copies of the images. The form has no scores for regions.

    `tasks.json` is to be imported; `labels.xml` is the labeling configuration of the project. The images are those of local
    storage: `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT` is the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._file = folder, folder / "tasks.json"
        self.image_folder: Path | None = folder / "images"

    def entry(self, image: LabeledImage) -> tuple[Record, dict[str, bytes]]:
        """What is recorded of an image, and the files that belong to it, by their paths below the data set."""
        return record_of(image, [encode_brush(one.mask) for one in visible(image)]), {}

    def files_of(self, record: Record) -> set[str]:
        """The copy of the image."""
        return {f"images/{record['file_name']}"}

    def names(self) -> set[str]:
        """The images that the file lists.

        Raises:
            SAMError: the file is not a list of tasks.
        """
        return {_name_of(task) for task in self._tasks()}

    def write(self, records: Sequence[Record], continued: bool = False, categories: Sequence[Category] = ()) -> None:
        """Write the file with these images only. Labels have no numbers in it."""
        self._write([], records)

    def extend(self, records: Sequence[Record], categories: Sequence[Category] = ()) -> None:
        """Add images to the file, which need not be there; what it holds stays, also of these images.

        Raises:
            SAMError: the file is not a list of tasks.
        """
        tasks, names = self._tasks(), self.names()
        self._write(tasks, [record for record in records if record["file_name"] not in names])

    def _tasks(self) -> list[dict[str, Any]]:
        tasks = loaded_json(self._file) if self._file.exists() else []
        if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
            raise SAMError(f"{self._file} is not a list of Label Studio's tasks, and was left as it is: choose another name.")
        return tasks

    def _write(self, tasks: list[dict[str, Any]], records: Sequence[Record]) -> None:
        tasks = [*tasks, *map(_task, records)]
        results = (result for task in tasks for one in task.get("annotations", []) for result in one["result"])
        labels = dict.fromkeys(label for result in results for label in result["value"].get("brushlabels", []))
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", {"name": "image", "value": "$image", "zoom": "true"})
        brushes = ElementTree.SubElement(view, "BrushLabels", {"name": "label", "toName": "image"})
        for label in labels:
            ElementTree.SubElement(brushes, "Label", {"value": label})
        ElementTree.indent(view)
        write_whole(self.path / "labels.xml", ElementTree.tostring(view, encoding="utf-8") + b"\n")
        write_whole(self._file, as_json(tasks))


def _task(record: Record) -> dict[str, Any]:
    results = []
    for number, one in enumerate(record["objects"]):
        # Regions of one id are one region, so it is not the number alone.
        region = hashlib.sha256(f"{record['file_name']} {number}".encode()).hexdigest()[:10]
        value = {"format": "rle", "rle": one["segmentation"], "brushlabels": [one["label"]]}
        sides = {"original_width": record["width"], "original_height": record["height"], "image_rotation": 0}
        where = {"id": region, "from_name": "label", "to_name": "image", "type": "brushlabels", "origin": "manual"}
        results.append({**where, **sides, "value": value})
    image = f"/data/local-files/?d={quote('images/' + record['file_name'])}"
    return {"data": {"image": image}, "annotations": [{"result": results}]}


def _name_of(task: dict[str, Any]) -> str:
    query = parse_qs(urlsplit(str(task["data"].get("image", ""))).query)
    return query.get("d", [""])[0].removeprefix("images/")


def encode_brush(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of a mask bool `[H, W]`, see `label_studio.decode_brush`: bytes of a stream of bits.

    Every run is one of equal values. A length of more than 65,536 is cut.
    """
    values = np.repeat(mask.ravel(), _CHANNELS)
    ends = [*(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    most, begin = 1 << _SIZES[-1], 0
    bits = [f"{len(values):032b}{_VALUE_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for end in ends:
        value = f"{255 * int(values[begin]):08b}"
        while begin < end:
            length = min(end - begin, most)
            index = next(place for place, size in enumerate(_SIZES) if length <= 1 << size)
            bits.append(f"1{index:02b}{length - 1:0{_SIZES[index]}b}{value}")
            begin += length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))

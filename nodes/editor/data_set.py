"""A data set in the editor: the objects of one of its images, and what was accepted of them written back."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...sam import SAMError
from ...sam.datasets.correct import write_back
from ...sam.datasets.objects import LabeledMask
from ...sam.datasets.reading import DataSet, ReadImage
from ...utils.comfy_files import locked
from ...utils.comfy_folders import data_folder
from ...utils.overlay import colour
from ...utils.patches import encode_runs, paint_over, parse_patch
from ...utils.text import counted
from ..load_masks import found_path, opened_data_set
from .contract import LIMITS, VERSIONS
from .jobs import RefusedError
from .preview import text_of, whole_of
from .text import check_keys

PLACE_KEYS = {"path", "image_folder", "index"}
ACCEPT_KEYS = {*PLACE_KEYS, "stamp", "objects"}


def opened(body: Mapping[str, Any]) -> dict[str, Any]:
    """An image of a data set: its place, its name for ComfyUI, the editor's text of its objects, and a stamp of them.

    Raises:
        SAMError: a field is of another form; there is no such data set or image, or SAM Load Masks may not read it.
    """
    check_keys(body, PLACE_KEYS, "the body")
    index, data = _place(body)
    pixels, labeled = read = data.read(index)
    if len(labeled.objects) > LIMITS.objects:
        raise SAMError(
            f"{data.names[index]} has {counted(len(labeled.objects), 'object')}: the editor takes {LIMITS.objects} at most."
        )
    objects = []
    for number, one in enumerate(labeled.objects):
        red, green, blue = colour(number).tolist()
        paint = {"paint": [_patch(one.mask)]} if one.mask.any() else {}
        name = one.label[: LIMITS.name]
        objects.append({"name": name, "colour": f"#{red:02x}{green:02x}{blue:02x}", "candidate": "best", "marks": [], **paint})
    height, width = pixels.shape[:2]
    return {
        "count": len(data.names),
        "name": data.names[index],
        "form": data.form,
        "image": _image_name(data, index),
        "text": {"version": VERSIONS[-1], "objects": objects, "size": [width, height]} if objects else {},
        "stamp": _stamp(read),
    }


def accepted(body: Mapping[str, Any]) -> dict[str, Any]:
    """Write the objects of an image back; `changed` says how many are not as they were.

    Raises:
        SAMError: as `opened`, or the form cannot hold the objects.
        RefusedError: 409, the data set has others than those that were opened.
    """
    check_keys(body, ACCEPT_KEYS, "the body")
    listed = body.get("objects")
    if not isinstance(listed, list) or len(listed) > LIMITS.objects:
        seen = f"has {len(listed)}" if isinstance(listed, list) else f"is a {type(listed).__name__}"
        raise SAMError(f"objects {seen}: it must be a list of at most {LIMITS.objects} objects.")
    with locked(found_path(text_of(body, "path"), "path")):
        index, data = _place(body)
        read = data.read(index)
        if _stamp(read) != text_of(body, "stamp"):
            raise RefusedError(409, f"{data.names[index]} has been changed in the data set since it was opened. Open it again.")
        objects = []
        for number, one in enumerate(listed):
            if not isinstance(one, Mapping):
                raise SAMError(f"objects[{number}] is not a JSON object.")
            check_keys(one, {"name", "mask"}, f"objects[{number}]")
            mask = paint_over(np.zeros(read.labeled.size, bool), [parse_patch(one.get("mask"))])
            objects.append(LabeledMask(mask, text_of(one, "name")))
        return {"changed": write_back(data, index, _with_long_names(objects, read))}


def _place(body: Mapping[str, Any]) -> tuple[int, DataSet]:
    name, data = text_of(body, "path"), opened_data_set(text_of(body, "path"), text_of(body, "image_folder", ""))
    index = whole_of(body, "index", LIMITS.far)
    if index >= len(data.names):
        raise SAMError(f"index is {index}, but {name} has {counted(len(data.names), 'image')}.")
    return index, data


def _patch(mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    runs = encode_runs(mask[top:bottom, left:right])
    return {"x": left, "y": top, "width": right - left, "height": bottom - top, "runs": runs}


def _stamp(read: ReadImage) -> str:
    """Changes with the image's size and objects."""
    digest = hashlib.sha256(repr(read.labeled.size).encode())
    for one in read.labeled.objects:
        digest.update(repr(one.label).encode() + np.packbits(one.mask).tobytes())
    return digest.hexdigest()[:32]


def _with_long_names(objects: list[LabeledMask], read: ReadImage) -> list[LabeledMask]:
    """Labels as the data set has them, where the editor has only their beginning."""
    whole = {one.label[: LIMITS.name]: one.label for one in read.labeled.objects}
    return [LabeledMask(one.mask, whole.get(one.label, one.label)) for one in objects]


def _image_name(data: DataSet, index: int) -> dict[str, str]:
    """ComfyUI's name of an image."""
    path = data.image_of(index)
    for kind in ("input", "output"):
        folder = data_folder(kind).resolve()
        if path.resolve().is_relative_to(folder):
            below = path.resolve().relative_to(folder)
            parent = below.parent.as_posix()
            return {"filename": below.name, "subfolder": "" if parent == "." else parent, "type": kind}
    raise SAMError(f"{path} is in neither the input nor the output folder of ComfyUI.")

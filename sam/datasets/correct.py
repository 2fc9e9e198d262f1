"""Corrected masks, written back into the data set that they came from, in its form: what is as it was stays, byte for byte."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from ...utils.boxes import tight_box
from ...utils.checks import is_number
from ...utils.files import write_whole, writing
from ...utils.text import shown
from ..errors import SAMError
from .cvat import NOT_IN_XML, CvatSet, cvat_runs
from .json_text import place_of, with_elements
from .label_studio import LabelStudioSet, encode_brush
from .objects import LabeledMask
from .polygons import coco_polygons, yolo_polygon
from .read import CocoSet, LabelmeSet, MaskSet, PngSet, YoloSet
from .reading import DataSet, as_text, reading
from .rle import encode_mask, runs
from .score import iou

_ALIKE = 0.3  # IoU of a corrected object with what it was
_DIGITS = 6
_MOST_VALUE = 255
_LABEL = re.compile(rb"""\slabel\s*=\s*("[^"]*"|'[^']*')""")
_KEPT = re.compile(r"""\s(group_id|occluded|z_order)\s*=\s*("[^"]*"|'[^']*')""")


class Change(NamedTuple):
    """What becomes of an object of an image.

    Attributes:
        was: its number among the objects that were read; None: it is new.
        now: None: it is removed.
        is_same: its pixels are as they were, and so is all but its label.
    """

    was: int | None
    now: LabeledMask | None
    is_same: bool = False


class Files(NamedTuple):
    """Files to write, with their content, and files to remove."""

    written: dict[Path, bytes]
    removed: list[Path]


def write_back(data: DataSet, index: int, objects: Sequence[LabeledMask]) -> int:
    """Give an image other objects. One is an object that was read if both have the same pixels, or a label and many pixels.

    Args:
        data: see `open_data_set`.
        index: of the image.
        objects: all that the image has; those with an empty mask are left out.

    Returns:
        How many objects have been changed, added or removed. Where it is 0, no file was touched.

    Raises:
        SAMError: the form cannot hold them, or a file cannot be read or written.
    """
    before = data.read(index).labeled.objects
    changes = changes_of(before, [one for one in objects if one.mask.any()])
    if not changes:
        return 0
    for change in changes:
        if change.now is not None:  # a file with another label could not be written, or read again
            as_text(change.now.label, "the label of an object")
            with reading(f"the label {shown(change.now.label)}"):
                change.now.label.encode()
    writers: dict[type, Callable[..., Files]] = {
        CocoSet: _coco,
        YoloSet: _yolo,
        LabelmeSet: _labelme,
        CvatSet: _cvat,
        LabelStudioSet: _label_studio,
        PngSet: _pngs,
        MaskSet: _index_png,
    }
    files = writers[type(data)](data, index, changes, before)
    for path, content in files.written.items():
        write_whole(path, content)
    for path in files.removed:
        with writing(path):
            path.unlink(missing_ok=True)
    return len(changes)


def changes_of(before: Sequence[LabeledMask], after: Sequence[LabeledMask]) -> list[Change]:
    """What has to be done to objects, so that they are others."""
    left, changes, rest = list(range(len(before))), [], []
    for one in after:  # all pixels first: the label may be another
        same = [number for number in left if np.array_equal(before[number].mask, one.mask)]
        same.sort(key=lambda number: before[number].label != one.label)
        if not same:
            rest.append(one)
            continue
        left.remove(same[0])
        if before[same[0]].label != one.label:
            changes.append(Change(same[0], one, is_same=True))
    for one in rest:
        alike = [(iou(before[number].mask, one.mask), -number) for number in left if before[number].label == one.label]
        most, number = max(alike, default=(0.0, 0))
        if most > _ALIKE:
            left.remove(-number)
        changes.append(Change(-number if most > _ALIKE else None, one))
    return changes + [Change(number, None) for number in left if before[number].mask.any()]


def _text_of(path: Path) -> str:
    with reading(path):
        return path.read_bytes().decode("utf-8")


def _parsed(text: str) -> Any:
    """JSON; a text of Windows' Notepad may begin with a byte order mark, which `json_text` keeps."""
    return json.loads(text.removeprefix("\ufeff"))


def _next_id(used: Iterable[Any]) -> int:
    """A number above all that are in use. Ids may be text, and in files of other programs some are missing."""
    numbers = [int(one) for one in used if is_number(one) or (isinstance(one, str) and one.isdecimal())]
    return 1 + max(numbers, default=0)


def _box(mask: np.ndarray) -> list[int]:
    return [int(side) for side in (tight_box(mask) or {}).values()]


def _coco(data: CocoSet, index: int, changes: Sequence[Change], before: Sequence[LabeledMask]) -> Files:
    text = _text_of(data.path)
    document = _parsed(text)
    image_id = document["images"][index]["id"]
    places = [place for place, one in enumerate(document["annotations"]) if one["image_id"] == image_id]
    numbers = {one["name"]: one["id"] for one in document["categories"]}
    categories: list[dict[str, Any]] = []
    is_polygons = bool(document["annotations"]) and isinstance(document["annotations"][0].get("segmentation"), list)
    next_id = _next_id(one.get("id") for one in document["annotations"])
    used = [*numbers.values(), *(one.get("category_id") for one in document["annotations"])]  # also those without a name
    changed: dict[int, Any] = {}
    added: list[dict[str, Any]] = []
    for change in changes:
        if change.now is None:
            changed[places[change.was]] = None
            continue
        label, mask = change.now.label, change.now.mask
        if label not in numbers:
            numbers[label] = _next_id([*used, *numbers.values()])
            categories.append({"id": numbers[label], "name": label, "supercategory": ""})
        old = {} if change.was is None else document["annotations"][places[change.was]]
        new = {**old, "category_id": numbers[label]}
        if not change.is_same:
            form = old.get("segmentation", [] if is_polygons else {})
            coded: Any = coco_polygons(mask) if isinstance(form, list) else encode_mask(mask)
            if isinstance(form, dict) and isinstance(form.get("counts"), list):
                coded = {"size": list(mask.shape), "counts": runs(mask).tolist()}
            new |= {"segmentation": coded, "area": int(mask.sum()), "bbox": _box(mask)}
        if change.was is None:
            added.append({"id": next_id, "image_id": image_id, "iscrowd": 0, **new})
            next_id += 1
        else:
            changed[places[change.was]] = new
    text = with_elements(text, place_of(text, "annotations"), changed, added)
    if categories:
        text = with_elements(text, place_of(text, "categories"), {}, categories)
    return Files({data.path: text.encode()}, [])


def _yolo(data: YoloSet, index: int, changes: Sequence[Change], before: Sequence[LabeledMask]) -> Files:
    path = data.text_of(index)
    lines = _text_of(path).removeprefix("\ufeff").splitlines(keepends=True) if path.is_file() else []
    places = [place for place, line in enumerate(lines) if line.strip()]  # of the objects; the others are empty
    numbers = {name: number for number, name in reversed(data.classes.items())}
    now: dict[int, str | None] = {}
    added = []
    for change in changes:
        place = None if change.was is None else places[change.was]
        if change.now is None:
            now[place] = None
            continue
        label = change.now.label
        if label not in numbers and not label.isdecimal():
            known = ", ".join(data.classes.values())
            raise SAMError(f"the data set has no class {label!r}: use one of {known}, or add it to its classes first.")
        number = str(numbers.get(label, label))
        if change.is_same:
            now[place] = lines[place].replace(lines[place].split()[0], number, 1)
        elif place is None:
            added.append(_yolo_line(number, change.now.mask))
        else:
            now[place] = _yolo_line(number, change.now.mask)
    written = [now.get(place, line) for place, line in enumerate(lines)]
    if any(len(line.split()) > 5 for line in [*filter(None, written), *added]):
        # Ultralytics leaves out an image that has boxes beside polygons.
        for one, place in zip(before, places, strict=True):
            line = written[place]
            if line is not None and len(line.split()) == 5:
                written[place] = _yolo_line(line.split()[0], one.mask)
    kept = [line for line in written if line is not None]
    if kept and added and not kept[-1].endswith("\n"):
        kept[-1] += "\n"
    return Files({path: "".join([*kept, *added]).encode()}, [])


def _yolo_line(number: str, mask: np.ndarray) -> str:
    height, width = mask.shape
    shares = (value / (height if place % 2 else width) for place, value in enumerate(yolo_polygon(mask)))
    return " ".join([number, *(f"{share:.{_DIGITS}f}" for share in shares)]) + "\n"


def _labelme(data: LabelmeSet, index: int, changes: Sequence[Change], before: Sequence[LabeledMask]) -> Files:
    path, places = data.file_of(index), data.records(index)
    text = _text_of(path)
    shapes = _parsed(text)["shapes"]
    changed: dict[int, Any] = {}
    added = []
    for change in changes:
        own = [] if change.was is None else places[change.was]
        if change.now is not None and change.is_same:
            changed |= {place: {**shapes[place], "label": change.now.label} for place in own}
            continue
        changed |= dict.fromkeys(own)
        if change.now is None:
            continue
        left, top, width, height = _box(change.now.mask)
        file = io.BytesIO()
        Image.fromarray(change.now.mask[top : top + height, left : left + width]).save(file, format="PNG")
        old = shapes[own[0]] if own else {"group_id": None, "description": "", "flags": {}}
        new = {
            **old,
            "label": change.now.label,
            "points": [[left, top], [left + width - 1, top + height - 1]],  # the second corner belongs to the box
            "shape_type": "mask",
            "mask": base64.b64encode(file.getvalue()).decode(),
        }
        if own:
            changed[own[0]] = new
        else:
            added.append(new)
    return Files({path: with_elements(text, place_of(text, "shapes"), changed, added).encode()}, [])


def _label_studio(data: LabelStudioSet, index: int, changes: Sequence[Change], before: Sequence[LabeledMask]) -> Files:
    text = _text_of(data.path)
    task = _parsed(text)[index]
    name = "annotations" if task.get("annotations") or "completions" not in task else "completions"
    listed = task.get(name) or []
    place = next((number for number, one in enumerate(listed) if not one.get("was_cancelled")), None)
    results, records = (listed[place]["result"], data.records(index)) if place is not None else ([], [])
    tools = [one for one in results if str(one.get("type", "")).startswith("brush")] or results
    changed: dict[int, Any] = {}
    added = []
    for change in changes:
        own = [] if change.was is None else records[change.was]
        if change.now is None:
            changed |= dict.fromkeys(own)
            continue
        label, (height, width) = change.now.label, change.now.mask.shape
        if change.is_same:
            changed |= {number: _relabeled(results[number], label) for number in own}
            continue
        changed |= dict.fromkeys(own[1:])
        old = results[own[0]] if own else {}
        tool = old or (tools[0] if tools else {"from_name": "label", "to_name": "image"})
        where = {"from_name": tool.get("from_name"), "to_name": tool.get("to_name"), "origin": "manual", "image_rotation": 0}
        sides = {"original_width": width, "original_height": height}
        value: dict[str, Any] = {"format": "rle", "rle": encode_brush(change.now.mask), "brushlabels": [label]}
        kind, polygons = "brushlabels", coco_polygons(change.now.mask)
        if str(old.get("type", "")).startswith("polygon") and len(polygons) == 1:  # of one part: it stays a polygon
            points = np.array(polygons[0]).reshape(-1, 2) * 100 / [width, height]
            kind, value = "polygonlabels", {"points": points.tolist(), "closed": True, "polygonlabels": [label]}
        new = {**where, **old, **sides, "type": kind, "value": value}
        if own:
            changed[own[0]] = new
        else:
            used = {str(one.get("id")) for one in [*results, *added]}
            number = next(number for number in range(len(used) + 1) if f"samkit{number:04}" not in used)
            added.append({"id": f"samkit{number:04}", **new})
    if place is not None:
        span = place_of(text, index, name, place, "result")
        return Files({data.path: with_elements(text, span, changed, added).encode()}, [])
    task[name] = [*listed, {"result": added}]
    return Files({data.path: with_elements(text, place_of(text), {index: task}, []).encode()}, [])


def _relabeled(result: Mapping[str, Any], label: str) -> dict[str, Any]:
    value = dict(result.get("value") or {})
    for key in [key for key in value if key == "labels" or key.endswith("labels")]:
        value[key] = [label]
    return {**result, "value": value}


def _pngs(data: PngSet, index: int, changes: Sequence[Change], before: Sequence[LabeledMask]) -> Files:
    path = data.folder / "manifest.json"
    text = _text_of(path)
    objects = _parsed(text)["images"][index]["objects"]
    stem, used = PurePosixPath(data.names[index]).with_suffix(""), {one["mask"] for one in objects}
    changed: dict[int, Any] = {}
    added, written, removed = [], {}, []
    for change in changes:
        if change.now is None:
            changed[change.was] = None
            removed.append(data.folder / objects[change.was]["mask"])
            continue
        mask = change.now.mask
        name = next(name for number in range(len(used) + 1) if (name := f"masks/{stem}_{number:03}.png") not in used)
        old = {"mask": name} if change.was is None else objects[change.was]
        new = {**old, "label": change.now.label, "area": int(mask.sum()), "bbox": _box(mask)}
        if not change.is_same:
            file = io.BytesIO()
            Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
            written[data.folder / new["mask"]] = file.getvalue()
        used.add(new["mask"])
        if change.was is None:
            added.append(new)
        else:
            changed[change.was] = new
    text = with_elements(text, place_of(text, "images", index, "objects"), changed, added)
    return Files({**written, path: text.encode()}, removed)


def _index_png(data: MaskSet, index: int, changes: Sequence[Change], before: Sequence[LabeledMask]) -> Files:
    path = data.mask_of(index)
    if path.suffix.lower() != ".png":
        raise SAMError(f"{path} is not a PNG, which keeps every value: save the masks as PNG first.")
    with reading(path), Image.open(path) as image:
        mode, palette = image.mode, image.getpalette()
        values = np.array(image if mode in ("L", "P") else image.convert("L"))
    old_values = [int(values[one.mask][0]) for one in before]
    for change in changes:
        if change.was is not None:
            values[before[change.was].mask] = 0
    used = {int(value) for value in np.unique(values)}
    for change in sorted(changes, key=lambda one: -int(one.now.mask.sum()) if one.now else 0):
        if change.now is None:
            continue
        value = int(change.now.label) if re.fullmatch(r"[1-9]\d{0,2}", change.now.label) else 0
        if not 0 < value <= _MOST_VALUE:
            value = old_values[change.was] if change.was is not None else next(v for v in range(1, 257) if v not in used)
        if value > _MOST_VALUE:
            raise SAMError(f"{path} has all of its {_MOST_VALUE} values in use.")
        values[change.now.mask] = value
        used.add(value)
    png, file = Image.fromarray(values, "P" if mode == "P" else "L"), io.BytesIO()
    if mode == "P" and palette:
        png.putpalette(palette)
    png.save(file, format="PNG")
    return Files({path: file.getvalue()}, [])


def _cvat(data: CvatSet, index: int, changes: Sequence[Change], before: Sequence[LabeledMask]) -> Files:
    with reading(data.path):
        content = data.path.read_bytes()
        shapes, (end, is_closed), labels = _shapes_of(content, index)
    places, inserted = data.records(index), b""
    edits: list[tuple[int, int, bytes]] = []
    for change in changes:
        own = [] if change.was is None else [shapes[place] for place in places[change.was]]
        if change.now is not None and labels and change.now.label not in labels:
            known = ", ".join(sorted(labels))
            raise SAMError(f"the task has no label {change.now.label!r}: use one of {known}, or add it to the task in CVAT.")
        if change.now is not None and change.is_same:
            label = f" label={_quoted(change.now.label)}".encode().replace(b"\\", rb"\\")
            edits += [(start, stop, _LABEL.sub(label, content[start:stop], count=1)) for start, stop, _ in own]
            continue
        for number, (start, stop, inner) in enumerate(own):
            first = number == 0 and change.now is not None
            edits.append((start, stop, _mask_element(change.now, content[start:stop], inner) if first else b""))
        if change.now is not None and not own:
            inserted += b"  " + _mask_element(change.now, b"", b"") + b"\n  "
    # An image without a shape may be one tag, `<image .../>`.
    edits.append((end, end + 2, b">\n  " + inserted + b"</image>") if inserted and is_closed else (end, end, inserted))
    for start, stop, new in sorted(edits, reverse=True):
        content = content[:start] + new + content[stop:]
    return Files({data.path: content}, [])


def _mask_element(one: LabeledMask, old: bytes, inner: bytes) -> bytes:
    """A mask in place of a shape, with what the shape has inside, and with its group and place in the order."""
    left, top, width, height = _box(one.mask)
    start = old.partition(b">")[0].decode("utf-8")
    kept = "".join(f" {name}={value}" for name, value in _KEPT.findall(start))
    kept = kept or ' occluded="0" z_order="0"'
    box = f'left="{left}" top="{top}" width="{width}" height="{height}"'
    head = f'<mask label={_quoted(one.label)} source="manual"{kept} rle="{cvat_runs(one.mask)}" {box}>'
    return head.encode() + inner + b"</mask>"


def _quoted(label: str) -> str:
    return quoteattr(label.translate(NOT_IN_XML))


def _shapes_of(content: bytes, index: int) -> tuple[list[tuple[int, int, bytes]], tuple[int, bool], set[str]]:
    """Where each shape of an image begins and ends, with what is inside; the image's end; and the labels of the task.

    The end is where more shapes can follow, or where `/>` is in the image's tag, which the second part says.
    """
    found: list[tuple[int, int, bytes]] = []
    labels: set[str] = set()
    stack: list[str] = []
    seen, begun, opened, closed, is_one_tag, text = -1, 0, 0, 0, False, ""

    def start(name: str, _: dict[str, str]) -> None:
        """A tag begins: count images, and note where a shape of the wanted one is."""
        nonlocal seen, begun, opened, closed, is_one_tag, text
        stack.append(name)
        text = ""
        if stack == ["annotations", "image"]:
            seen += 1
            if seen == index:
                stop = _end_of_tag(content, parser.CurrentByteIndex)
                is_one_tag, closed = content[stop - 2 : stop] == b"/>", stop - 2
        if stack[:2] == ["annotations", "image"] and len(stack) == 3 and seen == index:
            begun = parser.CurrentByteIndex
            opened = _end_of_tag(content, begun)

    def end(name: str) -> None:
        """A tag ends: list the shape, the image's end, or the label that it was."""
        nonlocal closed
        at = parser.CurrentByteIndex
        if stack[:2] == ["annotations", "image"] and seen == index:
            if len(stack) == 3:
                is_empty = content[opened - 2 : opened] == b"/>"
                found.append((begun, opened if is_empty else _end_of_tag(content, at), b"" if is_empty else content[opened:at]))
            elif len(stack) == 2 and not is_one_tag:
                closed = at
        if stack[-2:] == ["label", "name"]:
            labels.add(text)
        stack.pop()

    def characters(more: str) -> None:
        """Text of the tag, in parts."""
        nonlocal text
        text += more

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, characters
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise SAMError(f"it is not XML: {error}.") from error
    return found, (closed, is_one_tag), labels


def _end_of_tag(content: bytes, at: int) -> int:
    """After the `>` of a tag that begins at a place; quoted values may have that sign, too."""
    match = re.compile(rb"""<(?:[^>"']|"[^"]*"|'[^']*')*>""").match(content, at)
    return match.end() if match else at

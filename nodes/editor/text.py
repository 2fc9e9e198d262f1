"""The prompt editor's text: its form and its checks. The node reads it, and so does the preview."""

import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from ...sam import DETAILS, Candidate, Detail, PromptInputs, SAMError
from ...utils.boxes import BoundingBox
from ...utils.checks import one_of
from ...utils.finish import Finish
from ...utils.marks import Marks, Region, region_in
from ...utils.patches import Patch
from .contract import BOX_KEYS, COLOUR, EDITOR_CANDIDATES, KEYS, LIMITS, OBJECT_KEYS, POINT_KEYS, VERSIONS
from .finishing import check_paint, parse_finish, parse_paint

Size = tuple[int, int]
Mark = dict[str, Any]


@dataclass(frozen=True)
class EditorObject:
    """One object of the editor's list.

    Attributes:
        marks: points `{x, y, label}` (1 = on the object, 0 = not) and boxes `{x, y, width, height}` in source pixels, each for
            every frame or, with `frame`, for one; JSON objects that have been checked.
        candidate: which of SAM's candidates to take.
        name: for people; need not be unique.
        colour: `#rrggbb`, of the preview.
        finish: what is done to its mask: its own, or that of all objects.
        paint: brush strokes on its mask.
        region: the part of the image that its marks are answered from; None: all of it.
    """

    marks: tuple[Mark, ...] = ()
    candidate: Candidate = "best"
    name: str = "Object 1"
    colour: str = COLOUR
    finish: Finish = field(default_factory=Finish)
    paint: tuple[Patch, ...] = ()
    region: Region | None = None

    @property
    def has_content(self) -> bool:
        """Whether it makes a mask."""
        return bool(self.marks or self.paint)


@dataclass(frozen=True)
class EditorPrompts:
    """What the editor's widget holds.

    Attributes:
        objects: in the order of the list. The marks of one among several make one object; those of a single one follow SAM
            Predict Mask's rule, by which each of several boxes is an object (as in version 1 of the text).
        detail: second looks at each object, see `SecondLook`.
    """

    objects: tuple[EditorObject, ...] = ()
    detail: Detail = "off"

    @property
    def marks(self) -> tuple[Mark, ...]:
        """All objects' marks, in order."""
        return tuple(mark for one in self.objects for mark in one.marks)

    @property
    def has_names(self) -> bool:
        """Whether marks go out with the object that they belong to: of several objects, and of one that is marked frame by
        frame, so that SAM Track knows it again when there is another one. Several boxes on a frame are objects of their own.
        """
        if len(self.objects) != 1:
            return True
        boxes = [mark.get("frame") for mark in self.marks if "width" in mark]
        is_one = len(boxes) == len(set(boxes)) and not (None in boxes and len(boxes) > 1)
        return is_one and any("frame" in mark for mark in self.marks)

    def given(self, frames: Iterable[int], size: Size, only: int | None = None) -> PromptInputs:
        """The prompts of some of a batch's images, by their numbers. Marks that lie outside of the image are left out.

        Args:
            frames: numbers of the images.
            size: (H, W) of each.
            only: the place of one object; None: all objects.
        """
        name_of = (lambda place: place + 1) if self.has_names else (lambda place: None)
        places = range(len(self.objects)) if only is None else [only]
        listed = [(name_of(place), mark, self.objects[place].region) for place in places for mark in self.objects[place].marks]
        inside = [one for one in listed if _is_inside(one[1], size)]
        per_frame = [[one for one in inside if one[1].get("frame", index) == index] for index in frames]
        return PromptInputs(
            positive=[_points(marks, 1) for marks in per_frame],
            negative=[_points(marks, 0) for marks in per_frame],
            boxes=[_boxes(marks) for marks in per_frame],
        )

    def outputs(self, frames: int, size: Size) -> tuple[str, str, list[Any]]:
        """`positive_coords`, `negative_coords` and `bboxes`: plain lists where every frame has the same, else one per frame."""
        plain = not any("frame" in mark for mark in self.marks)
        given = self.given(range(1 if plain else frames), size)
        positive, negative = (
            [_as_dicts(part, lambda x, y: {"x": x, "y": y}) for part in parts] for parts in (given.positive, given.negative)
        )
        boxes = [_as_dicts(part, _bounding_box) for part in given.boxes]
        positive, negative, boxes = (parts[0] if plain else parts for parts in (positive, negative, boxes))
        return json.dumps(positive), json.dumps(negative), boxes

    def outside(self, size: Size) -> int:
        """How many marks lie outside of an image (H, W)."""
        return sum(not _is_inside(mark, size) for mark in self.marks)


def parse_editor(value: Any) -> EditorPrompts:
    """The widget's JSON, as text or parsed, every key optional.

    Version 2 is `{"version": 2, "finish": {...}, "objects": [{"name", "colour", "candidate", "marks": [...], "finish": {...},
    "paint": [...]}]}`; the `finish` of all objects is that of those without their own. Version 3 may also have `detail`, and a
    `region` `{x, y, width, height}` for each object. Version 1 is `{"version": 1, "marks":
    [...], "candidate": "best"}`, a single object.

    Raises:
        SAMError: not JSON, or JSON of another form, with the field's name.
    """
    state = _read(value)
    if "objects" not in state:
        read = _parse_object({key: state[key] for key in ("marks", "candidate") if key in state}, "prompts")
        return EditorPrompts((read,) if read.has_content else ())
    objects = state["objects"]
    if not isinstance(objects, list) or len(objects) > LIMITS.objects:
        seen = f"has {len(objects)}" if isinstance(objects, list) else f"is a {type(objects).__name__}"
        raise SAMError(f"prompts.objects {seen}: it must be a list of at most {LIMITS.objects} objects.")
    finish = parse_finish(state.get("finish", {}), "prompts.finish")
    parsed = [
        _parse_object(one, f"prompts.objects[{index}]", f"Object {index + 1}", finish) for index, one in enumerate(objects)
    ]
    if sum(len(one.marks) for one in parsed) > LIMITS.marks:
        raise SAMError(f"The objects in prompts have more than {LIMITS.marks} marks: remove some.")
    check_paint(patch for one in parsed for patch in one.paint)
    detail = one_of(state.get("detail", "off"), DETAILS, "prompts.detail")
    return EditorPrompts(tuple(parsed) if any(one.has_content for one in parsed) else (), detail)


def _read(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise SAMError(f"prompts is not JSON ({error}): it is what the editor's widget writes.") from error
    if not isinstance(value, Mapping):
        raise SAMError(f"prompts is a {type(value).__name__}: it must be a JSON object with objects or marks.")
    version = value.get("version", 2 if "objects" in value else 1)
    if isinstance(version, bool) or not isinstance(version, int) or version not in VERSIONS:
        readable = " and ".join(map(str, VERSIONS))
        raise SAMError(
            f"prompts.version is {reprlib.repr(version)}: this version of the pack reads {readable}. Update the pack."
        )
    check_keys(value, KEYS[version], "prompts")
    return value


def check_keys(value: Mapping[str, Any], known: set[str], place: str) -> None:
    """Raise SAMError where a JSON object has another key."""
    unknown = sorted(map(str, value.keys() - known))
    if unknown:
        raise SAMError(f"{place} has an unknown key {unknown[0][:40]!r}.")


def _parse_object(value: Any, place: str, name: str = "Object 1", finish: Finish | None = None) -> EditorObject:
    if not isinstance(value, Mapping):
        raise SAMError(f"{place} is {reprlib.repr(value)}: it must be a JSON object with marks.")
    check_keys(value, OBJECT_KEYS, place)
    candidate, marks = value.get("candidate", "best"), value.get("marks", [])
    one_of(candidate, EDITOR_CANDIDATES, f"{place}.candidate")
    if not isinstance(marks, list) or len(marks) > LIMITS.marks:
        seen = f"has {len(marks)}" if isinstance(marks, list) else f"is a {type(marks).__name__}"
        raise SAMError(f"{place}.marks {seen}: it must be a list of at most {LIMITS.marks} marks.")
    for index, mark in enumerate(marks):
        _check_mark(mark, f"{place}.marks[{index}]")
    name, colour = _text(value, place, "name", name), parse_colour(value.get("colour", COLOUR), f"{place}.colour")
    finish = parse_finish(value["finish"], f"{place}.finish") if "finish" in value else finish or Finish()
    paint, region = parse_paint(value.get("paint", []), f"{place}.paint"), region_in(value, place)
    return EditorObject(tuple(marks), candidate, name, colour, finish, paint, region)


def parse_colour(value: Any, place: str) -> str:
    """The text of a colour, checked.

    Raises:
        SAMError: it is another value.
    """
    if not isinstance(value, str) or not re.fullmatch(r"#[0-9a-f]{6}", value):
        raise SAMError(f"{place} is {reprlib.repr(value)}: it must have the form {COLOUR}.")
    return value


def _text(value: Mapping[str, Any], place: str, key: str, default: str) -> str:
    text = value.get(key, default)
    if not isinstance(text, str) or not 0 < len(text) <= LIMITS.name:
        raise SAMError(f"{place}.{key} is {reprlib.repr(text)}: it must be text of 1 to {LIMITS.name} characters.")
    return text


def _check_mark(mark: Any, place: str) -> None:
    keys = set(mark) - {"frame"} if isinstance(mark, Mapping) else None
    if keys not in (POINT_KEYS, BOX_KEYS):
        form = "{x, y, label} or {x, y, width, height}, and may have frame"
        raise SAMError(f"{place} is {reprlib.repr(mark)}: it must be {form}.")
    for key in sorted(keys):
        number = mark[key]
        if not isinstance(number, Real) or isinstance(number, bool) or not abs(number) < LIMITS.far:
            raise SAMError(f"{place}.{key} is {reprlib.repr(number)}: it must be a number of pixels below {LIMITS.far}.")
    if "label" in keys and mark["label"] not in (0, 1):
        raise SAMError(f"{place}.label is {mark['label']}: it must be 1 (on the object) or 0 (not on it).")
    if "width" in keys and min(mark["width"], mark["height"]) <= 0:
        raise SAMError(f"{place} is {mark['width']} by {mark['height']} pixels: both must be above 0.")
    frame = mark.get("frame", 0)
    if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame < LIMITS.far:
        raise SAMError(f"{place}.frame is {reprlib.repr(frame)}: it must be a frame's number from 0.")


def _is_inside(mark: Mark, size: Size) -> bool:
    """Whether a pixel of the image (H, W) lies under a mark; the editor's `isOutside` is the same."""
    (height, width), x, y = size, mark["x"], mark["y"]
    if "width" in mark:
        return x < width and y < height and x + mark["width"] > 0 and y + mark["height"] > 0
    return 0 <= x <= width and 0 <= y <= height


_Listed = list[tuple[int | None, Mark, Region | None]]  # name, mark and region


def _points(marks: _Listed, label: int) -> Marks:
    found = [(name, (mark["x"], mark["y"]), region) for name, mark, region in marks if mark.get("label") == label]
    return Marks.of([place for _, place, _ in found], [name for name, _, _ in found], 2, [region for *_, region in found])


def _boxes(marks: _Listed) -> Marks:
    found = [(name, (m["x"], m["y"], m["x"] + m["width"], m["y"] + m["height"]), one) for name, m, one in marks if "width" in m]
    return Marks.of([corners for _, corners, _ in found], [name for name, _, _ in found], 4, [region for *_, region in found])


def _as_dicts(marks: Marks, form: Any) -> list[dict[str, Any]]:
    """Points or boxes as JSON objects, each with its `object` and its `region` where it has one."""
    listed = []
    for row, name, region in zip(marks.rows.tolist(), marks.names, marks.regions, strict=True):
        more = {} if name is None else {"object": name}
        listed.append({**form(*row), **more, **({} if region is None else {"region": _bounding_box(*region)})})
    return listed


def _bounding_box(x1: float, y1: float, x2: float, y2: float) -> BoundingBox:
    return BoundingBox(x=x1, y=y1, width=x2 - x1, height=y2 - y1)

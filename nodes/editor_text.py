"""The prompt editor's text: its form and its checks. The node reads it, and so does the preview."""

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..sam import Candidate, PromptInputs, SAMError
from ..utils.boxes import BoundingBox, Boxes

VERSION = 1
MOST_MARKS = 1000
_CANDIDATES = ("best", "smallest", "middle", "largest")
_POINT, _BOX = {"x", "y", "label"}, {"x", "y", "width", "height"}
_FAR = 1e6  # no image has more pixels a side, and no float32 loses a tenth of one below


@dataclass(frozen=True)
class EditorPrompts:
    """What the editor's widget holds: marks in source pixels, as JSON objects that have been checked.

    Attributes:
        marks: points `{x, y, label}` (1 = on the object, 0 = not) and boxes `{x, y, width, height}`, each for every frame or,
            with `frame`, for one.
        candidate: which of SAM's candidates to take.
    """

    marks: tuple[dict[str, Any], ...] = ()
    candidate: Candidate = "best"

    def given(self, frames: Iterable[int]) -> PromptInputs:
        """The prompts of some of a batch's images, by their numbers."""
        per_frame = [[mark for mark in self.marks if mark.get("frame", index) == index] for index in frames]
        return PromptInputs(
            positive=[_points(marks, 1) for marks in per_frame],
            negative=[_points(marks, 0) for marks in per_frame],
            boxes=[_boxes(marks) for marks in per_frame],
        )

    def outputs(self, frames: int) -> tuple[str, str, list[Any]]:
        """`positive_coords`, `negative_coords` and `bboxes`: plain lists where every frame has the same, else one per frame."""
        plain = not any("frame" in mark for mark in self.marks)
        given = self.given(range(1 if plain else frames))
        positive, negative = ([[_xy(point) for point in part] for part in parts] for parts in (given.positive, given.negative))
        boxes = [[_bounding_box(box) for box in part] for part in given.boxes]
        positive, negative, boxes = (parts[0] if plain else parts for parts in (positive, negative, boxes))
        return json.dumps(positive), json.dumps(negative), boxes


def parse_editor(value: Any) -> EditorPrompts:
    """The widget's JSON `{"version": 1, "marks": [...], "candidate": "best"}`, as text or parsed, every key optional.

    Raises:
        SAMError: not JSON, or JSON of another form, with the field's name.
    """
    state = _read(value)
    candidate, marks = state.get("candidate", "best"), state.get("marks", [])
    if candidate not in _CANDIDATES:
        raise SAMError(f"prompts.candidate is {reprlib.repr(candidate)}: choose one of {', '.join(_CANDIDATES)}.")
    if not isinstance(marks, list) or len(marks) > MOST_MARKS:
        seen = f"has {len(marks)}" if isinstance(marks, list) else f"is a {type(marks).__name__}"
        raise SAMError(f"prompts.marks {seen}: it must be a list of at most {MOST_MARKS} marks.")
    for index, mark in enumerate(marks):
        _check_mark(mark, f"prompts.marks[{index}]")
    return EditorPrompts(tuple(marks), candidate)


def _read(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise SAMError(f"prompts is not JSON ({error}): it is what the editor's widget writes.") from error
    if not isinstance(value, Mapping):
        raise SAMError(f"prompts is a {type(value).__name__}: it must be a JSON object with marks.")
    unknown = sorted(map(str, value.keys() - {"version", "marks", "candidate"}))
    if unknown:
        raise SAMError(f"prompts has an unknown key {unknown[0][:40]!r}.")
    version = value.get("version", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise SAMError(f"prompts.version is {reprlib.repr(version)}: this pack reads {VERSION}. Update it.")
    return value


def _check_mark(mark: Any, place: str) -> None:
    keys = set(mark) - {"frame"} if isinstance(mark, Mapping) else None
    if keys not in (_POINT, _BOX):
        form = "{x, y, label} or {x, y, width, height}, and may have frame"
        raise SAMError(f"{place} is {reprlib.repr(mark)}: it must be {form}.")
    for key in sorted(keys):
        number = mark[key]
        if not isinstance(number, Real) or isinstance(number, bool) or not abs(number) < _FAR:
            raise SAMError(f"{place}.{key} is {reprlib.repr(number)}: it must be a number of pixels below {_FAR:.0f}.")
    if "label" in keys and mark["label"] not in (0, 1):
        raise SAMError(f"{place}.label is {mark['label']}: it must be 1 (on the object) or 0 (not on it).")
    if "width" in keys and min(mark["width"], mark["height"]) <= 0:
        raise SAMError(f"{place} is {mark['width']} by {mark['height']} pixels: both must be above 0.")
    frame = mark.get("frame", 0)
    if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame < _FAR:
        raise SAMError(f"{place}.frame is {reprlib.repr(frame)}: it must be a frame's number from 0.")


def _points(marks: list[dict[str, Any]], label: int) -> np.ndarray:
    found = [(mark["x"], mark["y"]) for mark in marks if mark.get("label") == label]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _boxes(marks: list[dict[str, Any]]) -> Boxes:
    found = [(m["x"], m["y"], m["x"] + m["width"], m["y"] + m["height"]) for m in marks if "width" in m]
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def _xy(point: np.ndarray) -> dict[str, float]:
    return {"x": float(point[0]), "y": float(point[1])}


def _bounding_box(box: np.ndarray) -> BoundingBox:
    x1, y1, x2, y2 = box.tolist()
    return BoundingBox(x=x1, y=y1, width=x2 - x1, height=y2 - y1)

"""STRING coords, the JSON form of points that core's SAM3 Detect and KJNodes' Points Editor share, -> arrays."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .boxes import spread
from .checks import is_coordinate
from .errors import SAMError
from .marks import NO_POINTS, Marks, name_in, region_in

_FORM = '[{"x": 12.5, "y": 40}, ...], or a list of such lists, one per frame'
_SMALLEST = 2  # pixels; in an image of that side, points between 0 and 1 are not unusual
_SLACK = 0.02  # a detector's boxes may end a little outside of the image


def points_per_frame(text: str, frames: int, name: str, frame_offset: int = -1, is_film: bool = False) -> list[Marks]:
    """Parse coordinates into the points of each frame.

    Args:
        text: JSON `[{"x":, "y":}, ...]` in source pixels (the same points for every frame), or a list of such lists (one per
            frame; a single one is used for every frame). An empty text, quoted or not, is an empty list, and empty objects
            are left out: other packs' editors say "nothing" so. A point may name its `object`, and the `region` that it is
            to be answered from.
        frames: number of frames B.
        name: the input's name, for messages.
        frame_offset, is_film: see `spread`; in a film a list of points is that of the first frame.

    Returns:
        The points of B frames.

    Raises:
        SAMError: not JSON, or JSON of another form.
    """
    try:
        value = _without_nothing(json.loads(text) if text.strip() else [])
    except (ValueError, RecursionError) as error:
        raise SAMError(f"{name} is not JSON ({error}): it must be {_FORM}.") from error
    if not isinstance(value, list):
        raise SAMError(f"{name} is {str(value)[:80]!r}, which is not a JSON list: it must be {_FORM}.")
    if value and all(isinstance(item, list) for item in value):
        each = spread(value, frames, name, frame_offset, is_film)
        return [_parse(points, f"{name}[{i}]") for i, points in enumerate(each)]
    points = _parse(value, name)
    return [points, *[NO_POINTS] * (max(0, frame_offset) + frames - 1)] if is_film else [points] * frames


def _without_nothing(value: Any) -> Any:
    """An empty text as an empty list; a list without its empty objects."""
    if isinstance(value, str) and not value.strip():
        return []
    if not isinstance(value, list):
        return value
    return [_without_nothing(item) if isinstance(item, list) else item for item in value if item != {}]


def refuse_normalised(given: Mapping[str, Sequence[np.ndarray]], size: tuple[int, int]) -> None:
    """Refuse coordinates that another node has divided by the image's size.

    All marks are judged together: one click in the first pixel says nothing where other marks are far away.

    Args:
        given: by the input's name, for each frame points `[P, 2]` (x, y) or boxes `[N, 4]` (x1, y1, x2, y2).
        size: (H, W) of the image in pixels.

    Raises:
        SAMError: all of them lie within 0 and 1 on an image that is larger, and not all on whole pixels.
    """
    given = {name: [rows for rows in frames if len(rows)] for name, frames in given.items()}
    given = {name: frames for name, frames in given.items() if frames}
    if not given or min(size) <= _SMALLEST:
        return
    every = np.concatenate([rows.reshape(-1, 2) for frames in given.values() for rows in frames])
    if ((every < -_SLACK) | (every > 1 + _SLACK)).any() or not (every % 1).any():
        return
    has_boxes = any(frames[0].shape[1] == 4 for frames in given.values())
    (x, y), what = every[0], "coordinates" if has_boxes else "points"
    advice = "Multiply them by the width and the height." if has_boxes else "Turn normalize off in the Points Editor."
    raise SAMError(
        f"All {what} of {' and '.join(given)} are between 0 and 1 (the first at x={x:g}, y={y:g}), but the image has "
        f"{size[1]}x{size[0]} pixels, and coordinates are pixels. {advice}"
    )


def _parse(points: list[Any], place: str) -> Marks:
    for index, point in enumerate(points):
        if not _is_point(point):
            raise SAMError(f"{place}[{index}] is {str(point)[:80]!r}: it must be an object with finite numbers x and y.")
    names, regions = ([read(point, f"{place}[{index}]") for index, point in enumerate(points)] for read in (name_in, region_in))
    return Marks.of([(point["x"], point["y"]) for point in points], names, 2, regions)


def _is_point(point: Any) -> bool:
    if not isinstance(point, Mapping):
        return False
    return is_coordinate(point.get("x")) and is_coordinate(point.get("y"))

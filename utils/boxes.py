"""BOUNDING_BOX and the community's BBOX forms <-> xyxy arrays; mask -> tight box."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias, TypedDict

import numpy as np
from torch import Tensor

from .errors import SAMError
from .names import name_in, named


class BoundingBox(TypedDict, total=False):
    """ComfyUI core's BOUNDING_BOX, in pixels."""

    x: float
    y: float
    width: float
    height: float
    score: float
    label: str
    stability: float
    frame_index: int
    object: str | float


Boxes: TypeAlias = np.ndarray
"""float64 `[N, 4]` corners (x1, y1, x2, y2) in pixels."""

BOX_TYPES = "BOUNDING_BOX,BBOX,SEGS"
"""The sockets that boxes come through: core's, the community's, and those of Impact Pack's detectors."""

_FAR = 1e300  # whole numbers may be larger than any float
_FORMS = "{x, y, width, height}, (x1, y1, x2, y2), a list of them, a list of lists (one per frame), or SEGS"


def boxes_per_frame(value: Any, frames: int) -> list[Boxes]:
    """Parse BOUNDING_BOX or BBOX into one array of boxes per frame.

    Args:
        value: a box (dict, or a sequence of four numbers), a list of boxes (the same for every frame), or a list of such
            lists (one per frame; a single one counts for every frame). Impact Pack's SEGS stand for a list of boxes.
        frames: number of frames B.

    Returns:
        B arrays `[N_b, 4]`, corners in order, boxes in their order.

    Raises:
        SAMError: anything else, with the item and its place.
    """
    value = _as_list(value)
    if len(value) and all(_is_list(item) and not _is_box(item) for item in value):
        return [_parse(boxes, f"bboxes[{i}]") for i, boxes in enumerate(spread(value, frames, "bboxes"))]
    return [_parse(value, "bboxes")] * frames


def _as_list(value: Any) -> Sequence[Any]:
    """A box to a list of it, and each SEGS to a list of its boxes."""
    if _is_segs(value):
        return _boxes_of_segs(value)
    if _is_box(value):
        return [value]
    if not _is_list(value):
        raise SAMError(f"bboxes is {_short(value)}: it must be {_FORMS}.")
    return [_boxes_of_segs(item) if _is_segs(item) else item for item in value]


def _is_segs(value: Any) -> bool:
    """Whether this is Impact Pack's `((H, W), [SEG, ...])`; a SEG is known by what it has, as the pack need not be there."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(part, (list, tuple)) for part in value):
        return False
    size, found = value
    return len(size) == 2 and all(map(_is_number, size)) and all(hasattr(one, "bbox") for one in found)


def _boxes_of_segs(value: Any) -> list[BoundingBox]:
    return [_box_of_seg(one, f"bboxes[1][{i}].bbox") for i, one in enumerate(value[1])]


def _box_of_seg(one: Any, place: str) -> BoundingBox:
    x1, y1, x2, y2 = _corners(one.bbox, place)
    box = BoundingBox(x=x1, y=y1, width=x2 - x1, height=y2 - y1)
    if getattr(one, "confidence", None) is not None:
        box["score"] = float(np.asarray(one.confidence).reshape(-1)[0])  # some detectors put it into an array
    if getattr(one, "label", None) is not None:
        box["label"] = str(one.label)
    return box


def spread(per_frame: Sequence[Any], frames: int, name: str) -> Sequence[Any]:
    """One item per frame: as many as there are frames, or one for all of them.

    Raises:
        SAMError: any other number of items.
    """
    if len(per_frame) == 1:
        return list(per_frame) * frames
    if len(per_frame) != frames:
        raise SAMError(f"the number of lists in {name} is {len(per_frame)}: it must be 1, or one per frame ({frames}).")
    return per_frame


def _parse(boxes: Sequence[Any], place: str) -> Boxes:
    corners = [_corners(box, f"{place}[{i}]") for i, box in enumerate(boxes)]
    return named(corners, [name_in(box, f"{place}[{i}]") for i, box in enumerate(boxes)], 4)


def _corners(box: Any, place: str) -> tuple[float, float, float, float]:
    if not _is_box(box):
        raise SAMError(f"{place} is {_short(box)}: it must be {_FORMS}.")
    if isinstance(box, Mapping):
        x, y, width, height = (float(box[key]) for key in ("x", "y", "width", "height"))
        corners = (x, y, x + width, y + height)
    else:
        corners = tuple(float(number) for number in box)
    if not np.isfinite(corners).all():
        raise SAMError(f"{place} is {_short(box)}: its numbers must be finite.")
    x1, y1, x2, y2 = corners
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, (np.ndarray, Tensor)) and value.ndim > 0)


def _is_box(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_number(value.get(key)) for key in ("x", "y", "width", "height"))
    return _is_list(value) and len(value) == 4 and all(_is_number(item) for item in value)


def _is_number(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim or (isinstance(value, Tensor) and value.is_complex()):
            return False
        value = value.item()
    return isinstance(value, Real) and not isinstance(value, bool) and not abs(value) >= _FAR


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def flat_boxes(value: Any) -> list[BoundingBox]:
    """BOUNDING_BOX in any of its forms to one flat list of dicts in order, with scores and labels kept.

    Raises:
        SAMError: an item that is not a box.
    """
    value = _as_list(value)
    flat = [box for item in value for box in ([item] if _is_box(item) or not _is_list(item) else item)]
    return [_as_dict(box, f"bboxes[{i}]") for i, box in enumerate(flat)]


def _as_dict(box: Any, place: str) -> BoundingBox:
    x1, y1, x2, y2 = _corners(box, place)
    extra = {key: box[key] for key in ("score", "label", "object") if key in box} if isinstance(box, Mapping) else {}
    return BoundingBox(x=x1, y=y1, width=x2 - x1, height=y2 - y1, **extra)


def tight_box(mask: Tensor) -> BoundingBox | None:
    """Smallest box around a mask `[H, W]` (nonzero = inside), in whole pixels; None where the mask is empty."""
    values = mask.cpu().numpy()
    inside = values if values.dtype == bool else values != 0
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return BoundingBox(x=x, y=y, width=int(columns[-1]) + 1 - x, height=int(rows[-1]) + 1 - y)

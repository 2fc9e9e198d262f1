"""BOUNDING_BOX and the community's BBOX forms <-> xyxy arrays; mask -> tight box."""

import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from .errors import SAMError
from .marks import NO_BOXES, Marks, name_in, region_in
from .text import shown


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
    region: dict[str, float]


Boxes: TypeAlias = np.ndarray
"""float64 `[N, 4]` corners (x1, y1, x2, y2) in pixels."""

BOX_TYPES = "BOUNDING_BOX,BBOX,SEGS"
"""The sockets that boxes come through: core's, the community's, and those of Impact Pack's detectors."""

BoxForm: TypeAlias = Literal["auto", "xyxy", "xywh"]
BOX_FORMS: tuple[str, ...] = get_args(BoxForm)
"""What four numbers are: two corners (`auto` too), or a corner, the width and the height."""

log = logging.getLogger("samkit")

_FAR = 1e300  # whole numbers may be larger than any float
_FORMS = "{x, y, width, height}, (x1, y1, x2, y2), a list of them, a list of lists (one per frame), or SEGS"


def boxes_per_frame(
    value: Any, frames: int, form: BoxForm = "auto", frame_offset: int = -1, is_film: bool = False
) -> list[Marks]:
    """Parse BOUNDING_BOX or BBOX into the boxes of each frame.

    Args:
        value: a box (dict, or a sequence of four numbers), a list of boxes (the same for every frame), or a list of such
            lists (one per frame; a single one counts for every frame). Impact Pack's SEGS stand for a list of boxes. None is
            what a detector's socket carries that found nothing: no boxes.
        frames: number of frames B.
        form: of sequences of four numbers; dicts and SEGS say themselves what they are.
        frame_offset, is_film: see `spread`; in a film a list of boxes is that of the first frame.

    Returns:
        The boxes of B frames, corners in order, boxes in their order.

    Raises:
        SAMError: anything else, with the item and its place.
    """
    value = _as_list(value)
    if _is_one_per_frame(value, frames):
        log.info("bboxes: a list of %d boxes for %d frames is read as one box per frame.", len(value), frames)
        value = [[box] for box in value]
    if len(value) and all(_is_list(item) and not _is_box(item) for item in value):
        each = spread(value, frames, "bboxes", frame_offset, is_film)
        return [_parse(boxes, f"bboxes[{i}]", form) for i, boxes in enumerate(each)]
    boxes = _parse(value, "bboxes", form)
    return [boxes, *[NO_BOXES] * (max(0, frame_offset) + frames - 1)] if is_film else [boxes] * frames


def _is_one_per_frame(value: Sequence[Any], frames: int) -> bool:
    """Whether this is what Florence2toCoordinates gives with `batch`: lists of four numbers, as many as there are frames."""
    return frames > 1 and len(value) == frames and all(isinstance(box, list) and _is_box(box) for box in value)


def _as_list(value: Any) -> Sequence[Any]:
    """A box to a list of it, and each SEGS to a list of its boxes; empty dicts, the Points Editor's "no box", are left out."""
    if value is None or (isinstance(value, Mapping) and not value):
        return []
    if _is_segs(value):
        return _boxes_of_segs(value)
    if _is_box(value):
        return [value]
    if not _is_list(value):
        raise SAMError(f"bboxes is {shown(value)}: it must be {_FORMS}.")
    return [_without_empty(_boxes_of_segs(item) if _is_segs(item) else item) for item in _without_empty(value)]


def _without_empty(value: Any) -> Any:
    """A list without its empty dicts; what is no list of dicts, as it is."""
    is_any = isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) and not item for item in value)
    return [item for item in value if not (isinstance(item, Mapping) and not item)] if is_any else value


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
    extra = {"score": getattr(one, "confidence", None), "label": getattr(one, "label", None)}
    return BoundingBox(**box, **_known(extra, place))


def spread(per_frame: Sequence[Any], frames: int, name: str, frame_offset: int = -1, is_film: bool = False) -> Sequence[Any]:
    """One item per frame: as many as there are frames, or one for all of them.

    Args:
        per_frame: the items.
        frames: number of frames B.
        name: the input's name, for messages.
        frame_offset: the number, in the whole film, of the first of the frames, where the items are those of the whole film:
            those of other frames are left out, and a frame after the last item has none. -1: the items are these frames' own.
        is_film: a single item is the first frame's, and a frame after the last item has none. With a `frame_offset` the items
            of the whole film are given back, so many or more.

    Raises:
        SAMError: any other number of items.
    """
    if is_film and (frame_offset >= 0 or len(per_frame) <= frames):
        return [*per_frame, *[[]] * (max(0, frame_offset) + frames - len(per_frame))]
    if len(per_frame) == 1:
        return list(per_frame) * frames
    if frame_offset >= 0:
        own = list(per_frame[frame_offset : frame_offset + frames])
        return own + [[]] * (frames - len(own))
    if len(per_frame) != frames:
        raise SAMError(f"the number of lists in {name} is {len(per_frame)}: it must be 1, or one per frame ({frames}).")
    return per_frame


def _parse(boxes: Sequence[Any], place: str, form: BoxForm) -> Marks:
    corners = [_corners(box, f"{place}[{i}]", form) for i, box in enumerate(boxes)]
    names, regions = ([read(box, f"{place}[{i}]") for i, box in enumerate(boxes)] for read in (name_in, region_in))
    return Marks.of(corners, names, 4, regions)


def _corners(box: Any, place: str, form: BoxForm = "auto") -> tuple[float, float, float, float]:
    if not _is_box(box):
        raise SAMError(f"{place} is {shown(box)}: it must be {_FORMS}.")
    has_size = isinstance(box, Mapping) or form == "xywh"
    numbers = [box[key] for key in ("x", "y", "width", "height")] if isinstance(box, Mapping) else box
    x1, y1, x2, y2 = (float(number) for number in numbers)
    if has_size:
        x2, y2 = x1 + x2, y1 + y2
    if not np.isfinite((x1, y1, x2, y2)).all():
        raise SAMError(f"{place} is {shown(box)}: its numbers must be finite.")
    if form == "auto" and not has_size and (x2 < x1 or y2 < y1):
        log.warning("%s is %s, which is read as two corners. If it is (x, y, width, height), set box_form to xywh.", place, box)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _is_list(value: Any) -> bool:
    if isinstance(value, Tensor):
        return _is_dense(value) and value.ndim > 0
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _is_dense(value: Tensor) -> bool:
    return not (value.is_nested or value.is_meta or value.is_quantized) and value.layout is torch.strided


def _is_box(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_number(value.get(key)) for key in ("x", "y", "width", "height"))
    return _is_list(value) and len(value) == 4 and all(_is_number(item) for item in value)


def _is_number(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim or (isinstance(value, Tensor) and not _is_dense(value)):
            return False
        value = value.item()
    return isinstance(value, Real) and not isinstance(value, bool) and not abs(value) >= _FAR


def nested_boxes(value: Any, form: BoxForm = "auto") -> list[list[BoundingBox]]:
    """Boxes in any of their forms to lists of dicts, with scores, labels and frames: one list per frame, or one for all.

    Raises:
        SAMError: an item that is not a box.
    """
    value = _as_list(value)
    is_nested = len(value) and all(_is_list(item) and not _is_box(item) for item in value)
    lists = enumerate(value) if is_nested else [(None, value)]
    places = [("bboxes" if index is None else f"bboxes[{index}]", boxes) for index, boxes in lists]
    return [[_as_dict(box, f"{place}[{i}]", form) for i, box in enumerate(boxes)] for place, boxes in places]


def _as_dict(box: Any, place: str, form: BoxForm = "auto") -> BoundingBox:
    x1, y1, x2, y2 = _corners(box, place, form)
    extra = _known(box, place) if isinstance(box, Mapping) else {}
    return BoundingBox(x=x1, y=y1, width=x2 - x1, height=y2 - y1, **extra)


def _known(box: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What a box says of itself besides its place: `score`, `label`, `object`, `frame_index` and `region`, as far as it
    has them.

    Raises:
        SAMError: one of them is of another kind, or a score is not finite.
    """
    known = {key: box[key] for key in ("score", "label", "object", "frame_index", "region") if box.get(key) is not None}
    if "score" in known:
        score = known["score"]
        if (
            isinstance(score, (np.ndarray, Tensor)) and _is_list(score) and math.prod(score.shape) == 1
        ):  # as some detectors give it
            score = score.reshape(-1)[0]
        if not _is_number(score) or not np.isfinite(float(score)):
            raise SAMError(f"{place}.score is {shown(score)}: it must be a finite number.")
        known["score"] = float(score)
    if "label" in known:
        label = known["label"]
        if not isinstance(label, str) and not _is_number(label):
            raise SAMError(f"{place}.label is {shown(label)}: it must be text or a number.")
        known["label"] = str(label)
    if "object" in known:
        known["object"] = name_in(box, place)
    if "region" in known:
        region_in(box, place)
    if "frame_index" in known:
        frame = known["frame_index"]
        if not _is_number(frame) or float(frame) != int(frame) or frame < 0:
            raise SAMError(f"{place}.frame_index is {shown(frame)}: it must be a whole number from 0.")
        known["frame_index"] = int(frame)
    return known


def corners_of(box: BoundingBox) -> tuple[float, float, float, float]:
    """A box as (x1, y1, x2, y2)."""
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


def tight_box(mask: Tensor | np.ndarray) -> BoundingBox | None:
    """Smallest box around a mask `[H, W]` (nonzero = inside), in whole pixels; None where the mask is empty."""
    values = mask.cpu().numpy() if isinstance(mask, Tensor) else mask
    inside = values if values.dtype == bool else values != 0
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return BoundingBox(x=x, y=y, width=int(columns[-1]) + 1 - x, height=int(rows[-1]) + 1 - y)

"""What a data set records: images, and in each its objects, one mask with a label and a score to an object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...utils.boxes import tight_box
from ..geometry import Size

DEFAULT_LABEL = "object"


@dataclass(frozen=True)
class LabeledMask:
    """One object of an image.

    Attributes:
        mask: bool `[H, W]`; an object with an empty mask is not recorded.
        label: its category; empty: `DEFAULT_LABEL`.
        score: SAM's predicted IoU, a detector's score, or of a film the probability that it is visible; None: not known.
        track: its number among the objects of a film, the same on all frames; None: not known.
    """

    mask: np.ndarray
    label: str = DEFAULT_LABEL
    score: float | None = None
    track: int | None = None


@dataclass(frozen=True)
class LabeledImage:
    """An image and its objects.

    Attributes:
        file_name: relative to the data set's folder of images, with `/`.
        size: (H, W), also that of every mask.
        objects: in order.
    """

    file_name: str
    size: Size
    objects: Sequence[LabeledMask]


class Category(NamedTuple):
    """A category that a data set begins with, under the number that another data set gives it."""

    number: int
    name: str


Record = dict[str, Any]
"""A `LabeledImage` as JSON: `file_name`, `width`, `height`, and `objects`, each with `label`, `score` where it is known, `area`
in pixels, `bbox` [x, y, width, height] and `segmentation`, whose form is the format's. A frame has its `film` and its
`frame_index` there as well, and its objects have a `track`. A film's record has a `file_name` and `frames`, a record each."""


def images_in(record: Record) -> list[Record]:
    """The records of the images: of a film its frames, else the record itself."""
    return record.get("frames", [record])


def record_of(image: LabeledImage, segmentations: Sequence[Any]) -> Record:
    """The record of an image, with one segmentation for each of `visible(image)`."""
    height, width = image.size
    objects = [_object(one, value) for one, value in zip(visible(image), segmentations, strict=True)]
    return {"file_name": image.file_name, "width": width, "height": height, "objects": objects}


def visible(image: LabeledImage) -> list[LabeledMask]:
    """The objects that have a pixel."""
    return [one for one in image.objects if one.mask.any()]


def _object(one: LabeledMask, segmentation: Any) -> Record:
    x, y, width, height = (tight_box(one.mask) or {}).values()
    label = " ".join(one.label.split()) or DEFAULT_LABEL  # a line of text is a class in YOLO's files
    score = {} if one.score is None else {"score": float(one.score)}
    track = {} if one.track is None else {"track": one.track}
    area = int(np.count_nonzero(one.mask))
    return {"label": label, **score, **track, "area": area, "bbox": [x, y, width, height], "segmentation": segmentation}


def labels_in(records: Sequence[Record], known: Sequence[str] = ()) -> list[str]:
    """Every label once: those that are known, then the others in the order in which they first appear."""
    return list(dict.fromkeys([*known, *(one["label"] for record in records for one in record["objects"])]))

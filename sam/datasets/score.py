"""How well the masks of one data set are those of another: COCO's average precision, mean IoU and boundary F, by category."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ...utils.boxes import tight_box
from ..errors import SAMError
from .objects import LabeledMask
from .reading import DataSet

ALL = "all"
REACH = 2  # pixels that two outlines may lie apart
_WORST = 12  # objects that are remembered for people to look at
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_MOST = 100  # of an image's objects of one category, the best ones, as COCO counts them


class Score(NamedTuple):
    """A category's score.

    Attributes:
        category: its name; `all` is the mean over categories for `ap` and `ap50`, and over objects for the others.
        objects: number of true objects.
        ap: COCO's AP: mean over IoU thresholds from 0.5 to 0.95.
        ap50: the same at 0.5.
        iou: mean over true objects of the IoU with the best found object of the category; 0 where there is none.
        boundary: mean F of the outlines of these pairs, within `REACH` pixels.
    """

    category: str
    objects: int
    ap: float
    ap50: float
    iou: float
    boundary: float


class Pair(NamedTuple):
    """A true object and the found one that is most like it, by their numbers among the objects of an image.

    Attributes:
        iou: of the two; 0 where there is no found object.
        image: the number of the image in the true data set.
        wanted: the number of the true object.
        found_image: the number of the same image in the data set that is compared.
        found: the number of the found object; None where no object of the category touches the true one.
    """

    iou: float
    image: int
    wanted: int
    found_image: int
    found: int | None


class Comparison(NamedTuple):
    """What `score` returns.

    Attributes:
        rows: one for each category of the truth, in the order of their first object, and `all` as the last one.
        worst: the true objects with the lowest IoU, the lowest first.
    """

    rows: list[Score]
    worst: list[Pair]


def score(found: DataSet, truth: DataSet) -> Comparison:
    """Compare the images that both data sets name; an object without a score counts as one with the score 1.

    Source: `COCOeval` of pycocotools 2.0, for segmentations of all sizes; regions of crowds are objects here.

    Raises:
        SAMError: no image is in both, or what `DataSet.read` raises.
    """
    places = {name: index for index, name in enumerate(found.names)}
    pairs = [(places[name], index) for index, name in enumerate(truth.names) if name in places]
    if not pairs:
        raise SAMError("the data sets have no image in common: their file names must be relative to the same folder.")
    matches: dict[str, _Matches] = {}
    worst: list[Pair] = []
    for ours, theirs in pairs:
        seen, known = found.read(ours).labeled.objects, truth.read(theirs).labeled.objects
        for label in dict.fromkeys([one.label for one in (*known, *seen)]):
            some, wanted = (
                [number for number, one in enumerate(objects) if one.label == label and one.mask.any()]
                for objects in (seen, known)
            )
            best = matches.setdefault(label, _Matches()).add([seen[one] for one in some], [known[one] for one in wanted])
            for number, (value, place) in zip(wanted, best, strict=True):
                worst.append(Pair(value, theirs, number, ours, some[place] if value else None))
        worst = sorted(worst, key=lambda pair: pair.iou)[:_WORST]
    rows = [one.score(label) for label, one in matches.items() if one.objects]
    if not rows:
        raise SAMError("the truth has no object in the images that both data sets have.")
    every = [one for one in matches.values() if one.objects]
    count = sum(row.objects for row in rows)
    means = (float(np.mean([getattr(row, name) for row in rows])) for name in ("ap", "ap50"))
    over_objects = (
        float(np.sum([value for one in every for value in getattr(one, name)]) / count) for name in ("ious", "edges")
    )
    return Comparison([*rows, Score(ALL, count, *means, *over_objects)], worst)


class _Matches:
    """What is known of one category after some images."""

    def __init__(self) -> None:
        self.objects = 0
        self.scores: list[float] = []
        self.right: list[np.ndarray] = []  # of each found object, at which thresholds it is a true one
        self.ious: list[float] = []
        self.edges: list[float] = []

    def add(self, found: Sequence[LabeledMask], wanted: Sequence[LabeledMask]) -> list[tuple[float, int]]:
        """The found and the true objects of this category in one more image.

        Returns:
            For each true object its IoU with the found one that is most like it, and the number of that one.
        """
        self.objects += len(wanted)
        scores = np.array([1.0 if one.score is None else one.score for one in found])
        order = np.argsort(-scores, kind="stable")
        found, scores, pairs = [found[index] for index in order], scores[order], []
        ious = np.array([[iou(one.mask, other.mask) for other in wanted] for one in found]).reshape(len(found), len(wanted))
        for column, other in enumerate(wanted):
            best = int(ious[:, column].argmax()) if len(found) else -1
            self.ious.append(float(ious[best, column]) if best >= 0 else 0.0)
            pairs.append((self.ious[-1], int(order[best]) if best >= 0 else 0))
            self.edges.append(boundary_f(found[best].mask, other.mask) if best >= 0 else 0.0)
        for threshold_ious, value in zip(self._matched(ious[:_MOST]), scores[:_MOST], strict=True):
            self.right.append(threshold_ious)
            self.scores.append(float(value))
        return pairs

    @staticmethod
    def _matched(ious: np.ndarray) -> Iterator[np.ndarray]:
        """For each found object, best score first: at which thresholds the free true object that it fits best is above."""
        free = np.ones((len(_THRESHOLDS), ious.shape[1]), bool)
        for row in ious:
            right = np.zeros(len(_THRESHOLDS), bool)
            for place, threshold in enumerate(_THRESHOLDS):
                candidates = np.where(free[place] & (row >= min(threshold, 1 - 1e-10)), row, -1.0)
                if candidates.size and candidates.max() >= 0:
                    # Of equal ones COCO takes the last.
                    free[place, len(candidates) - 1 - int(candidates[::-1].argmax())] = False
                    right[place] = True
            yield right

    def score(self, label: str) -> Score:
        """The score of all images so far; there must be a true object."""
        precisions = self._precisions()
        iou_mean, edge_mean = (float(np.mean(values)) for values in (self.ious, self.edges))
        return Score(label, self.objects, float(np.mean(precisions)), float(precisions[0]), iou_mean, edge_mean)

    def _precisions(self) -> np.ndarray:
        """At each threshold, precision averaged over 101 recalls: that of the best place with such a recall or a higher one."""
        if not self.right:
            return np.zeros(len(_THRESHOLDS))
        order = np.argsort(-np.array(self.scores), kind="stable")
        right = np.cumsum(np.array(self.right)[order], 0).T
        recall, precision = right / self.objects, right / np.arange(1, len(order) + 1)
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        found = []
        for recalls, values in zip(recall, best, strict=True):
            places = np.searchsorted(recalls, _RECALLS, side="left")
            found.append(np.where(places < len(values), values[np.minimum(places, len(values) - 1)], 0.0).mean())
        return np.array(found)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks bool `[H, W]`, 0 where both are empty."""
    box, second = tight_box(one), tight_box(other)
    if box is None or second is None:
        return 0.0
    left, top = max(box["x"], second["x"]), max(box["y"], second["y"])
    right = min(box["x"] + box["width"], second["x"] + second["width"])
    bottom = min(box["y"] + box["height"], second["y"] + second["height"])
    if left >= right or top >= bottom:
        return 0.0
    both = int(np.count_nonzero(one[top:bottom, left:right] & other[top:bottom, left:right]))
    return both / (int(np.count_nonzero(one)) + int(np.count_nonzero(other)) - both)


def boundary_f(one: np.ndarray, other: np.ndarray) -> float:
    """F of two masks' outlines bool `[H, W]`: a pixel of one is right within `REACH` pixels of the other.

    Source: the contour measure of DAVIS (Perazzi et al., 2016), with a distance in pixels.
    """
    edges = [_outline(mask) for mask in (one, other)]
    near = [_within_reach(edge) for edge in edges]
    precision, recall = (
        np.count_nonzero(edge & around) / max(1, np.count_nonzero(edge)) for edge, around in zip(edges, near[::-1], strict=True)
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that touch the outside with a side; what is outside of the image is outside."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _within_reach(edge: np.ndarray) -> np.ndarray:
    height, width = edge.shape
    padded, near = np.pad(edge, REACH), np.zeros_like(edge)
    for down in range(-REACH, REACH + 1):
        for across in range(-REACH, REACH + 1):
            if down**2 + across**2 <= REACH**2:
                near |= padded[REACH + down : REACH + down + height, REACH + across : REACH + across + width]
    return near

"""Find all like this: of the segments of an image, those that resemble an object that is marked, there or in another image."""

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...sam import Cutout, example_of, resemblances
from ...utils.finish import INSIDE
from ...utils.patches import ADD, parse_patch
from .preview import Prepared, Question, Subject, find_image, frames_of, object_of, parse_choice, parse_subject, text_of

LEAST = 0.0
"""The least similarity of what is told to the browser, which shows what is above a limit that can be moved."""
UNSURE = 0.5, 0.7
"""Predicted IoU and stability of the segments that are compared: masks that SAM is less sure of than usual, since what does not
resemble the object is left out anyway."""
_SAME = 0.5  # of the smaller one's area: what two masks of one object share
_PATCH = ("x", "y", "width", "height", "runs")


@dataclass(frozen=True)
class Wanted:
    """What resembles the object of a question, in an image."""

    subject: Subject
    like: Question
    editor: str

    @property
    def key(self) -> Hashable:
        """What tells the object from another, beside what its image and its model are."""
        return repr(self.like.prompts), self.like.only


def parse_alike(body: Mapping[str, Any]) -> Wanted:
    """Check the fields `image`, `model`, `like` and `editor` of a request.

    Raises:
        SAMError: as `parse_subject` and `parse_choice`.
    """
    subject, like = parse_subject(body), object_of(body, "like", {"image", "prompts", "object"})
    question = parse_choice({"object": 0, **like, "model": body.get("model")})
    return Wanted(subject, question, text_of(body, "editor"))


def alike(wanted: Wanted, segments: bytes, here: Prepared, there: Prepared, mask: np.ndarray) -> Callable[[], bytes]:
    """The work to compare the segments of an image with an object: JSON as that of the segments, the most similar first.

    Each segment has `alike`, its similarity. Left out are those of the object itself, and the less similar of two that share
    most of one.

    Args:
        wanted: the request.
        segments: as `everything` gives them.
        here: the image.
        there: the image of the object.
        mask: the object's, float `[H, W]` in 0..1.

    Raises (the work):
        SAMError: the object's mask is empty.
    """

    def work() -> bytes:
        found, inside = json.loads(segments), mask > INSIDE
        example = example_of(there.image, _frame(wanted.like.subject), inside)
        cutouts = [_cutout(one) for one in found["segments"]]
        scores = resemblances(here.image, _frame(wanted.subject), cutouts, example)
        taken = [Cutout(0, 0, inside)] if here.image.key == there.image.key else []
        listed = []
        for index in np.argsort(-scores, kind="stable"):
            if scores[index] >= LEAST and not any(_is_same(cutouts[index], other) for other in taken):
                taken.append(cutouts[index])
                listed.append({**found["segments"][index], "alike": round(float(scores[index]), 4)})
        return json.dumps({**found, "segments": listed}).encode()

    return work


def _frame(subject: Subject) -> np.ndarray:
    path, _ = find_image(subject)
    return frames_of(path, subject)[subject.frame]


def _cutout(segment: Mapping[str, Any]) -> Cutout:
    patch = parse_patch({key: segment[key] for key in _PATCH})
    return Cutout(patch.x, patch.y, patch.kinds() == ADD)


def _is_same(one: Cutout, other: Cutout) -> bool:
    """Whether two masks share most of the smaller one."""
    top, left = max(one.y, other.y), max(one.x, other.x)
    bottom = min(mask.y + mask.pixels.shape[0] for mask in (one, other))
    right = min(mask.x + mask.pixels.shape[1] for mask in (one, other))
    if top >= bottom or left >= right:
        return False
    own, its = (mask.pixels[top - mask.y : bottom - mask.y, left - mask.x : right - mask.x] for mask in (one, other))
    return int((own & its).sum()) > _SAME * min(int(one.pixels.sum()), int(other.pixels.sum()))

"""Words in the prompt editor: the boxes that SAM Segment Text finds, by the model that is connected to the editor."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from ...sam import GROUNDING_MODELS, GroundingModel, find_boxes, normalise_text
from ...utils.boxes import BoundingBox
from ..grounding import bounding_boxes
from .preview import Subject, find_image, frames_of, name_of, object_of, on_this_machine, parse_image, text_of


@dataclass(frozen=True)
class Wanted:
    """A text to find in an image, by the Grounding DINO of a name."""

    image: Subject
    model_name: str
    text: str
    editor: str


@dataclass(frozen=True)
class Words:
    """What was found. It has the model, which stays loaded for as long as the result is cached: more words come soon."""

    boxes: list[BoundingBox]
    model: GroundingModel


def parse_words(body: Mapping[str, Any]) -> Wanted:
    """Check the fields `image`, `grounding`, `text` and `editor` of a request.

    Raises:
        SAMError: a field is missing, unknown, or of another type or range; the text names nothing.
    """
    image, grounding = parse_image(body), object_of(body, "grounding", {"model_name"})
    model_name, text = name_of(grounding, "grounding.model_name", parts=1), text_of(body, "text")
    normalise_text(text)
    return Wanted(image, model_name, text, text_of(body, "editor"))


def words(wanted: Wanted) -> tuple[Hashable, Callable[[], Words]]:
    """The key of an image, a model and a text, and the work to find it, with SAM Segment Text's own defaults.

    Raises:
        RefusedError: 404, there is no such image or model.
    """
    path, stamp = find_image(wanted.image)
    entry = on_this_machine(GROUNDING_MODELS.find(wanted.model_name))

    def work() -> Words:
        frame = frames_of(path, wanted.image)[wanted.image.frame]
        model = entry.load()
        (found,) = bounding_boxes(find_boxes(model, [frame], wanted.text))
        return Words(found, model)

    return ("words", path, stamp, wanted.image.frame, entry.path, entry.stamp, wanted.text), work

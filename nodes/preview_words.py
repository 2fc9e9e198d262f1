"""Words in the prompt editor: the boxes that SAM Segment Text finds, by the model that is connected to the editor."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from ..sam import GroundingModel, find_boxes, load_grounding, normalise_text
from ..sam.models.in_transformers.folder import folder_state
from ..sam.weights.registry import GROUNDING
from ..utils.boxes import BoundingBox
from .aliases import GROUNDING_ALIASES
from .grounding import bounding_boxes, present_model
from .preview import Subject, find_image, frames_of, name_of, object_of, parse_image, text_of
from .preview_jobs import RefusedError


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
    folder = present_model(wanted.model_name)
    if folder is None:
        raise _absent(GROUNDING_ALIASES.get(wanted.model_name, wanted.model_name))

    def work() -> Words:
        frame = frames_of(path, wanted.image)[wanted.image.frame]
        model = load_grounding(folder)
        (found,) = bounding_boxes(find_boxes(model, [frame], wanted.text))
        return Words(found, model)

    return ("words", path, stamp, wanted.image.frame, folder_state(folder), wanted.text), work


def _absent(name: str) -> RefusedError:
    if name not in GROUNDING:
        return RefusedError(404, f"there is no complete model {name} in models/grounding-dino on this machine.")
    return RefusedError(404, f"{name} is not on this machine yet. A run downloads it.", name)

"""The example images that come with the pack."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageSequence

from .errors import SAMError

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path(__file__).resolve().parent.parent / "example_workflows"
ENDINGS = (".png", ".webp")  # of images and of films


def example_names() -> list[str]:
    """File names of the example images and films, the scene that most examples use first."""
    names = (path.name for ending in ENDINGS for path in FOLDER.glob(f"*{ending}"))
    return sorted(names, key=lambda name: (name != "samkit_scene.png", name))


def example_path(name: str) -> Path | None:
    """Full path of an example image, or None where there is none of that name."""
    return FOLDER / name if name in example_names() else None


def example_image(name: str) -> "Tensor":
    """An example image as an IMAGE float32 `[1, H, W, 3]`; a film has more frames.

    Raises:
        SAMError: there is no such image.
    """
    from .images import frames_to_image  # here: downloads need names, but no torch

    path = example_path(name)
    if path is None:
        raise SAMError(f"there is no example image {name!r}: choose one of {', '.join(example_names())}.")
    with Image.open(path) as image:
        return frames_to_image([np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])

"""What the editor in the browser and this pack agree on: versions, keys and limits of the editor's text, stated here alone.

The browser gets `for_browser()` with the node's inputs, and stops at the same limits before a run has to refuse. Limits of
paint and of finishing belong to `utils`, which SAM Refine Mask uses too.
"""

from typing import Any, NamedTuple

from ...utils.finish import LIMITS as FINISH_LIMITS
from ...utils.patches import MOST_PIXELS, MOST_SIDE, MOST_TEXT

VERSIONS = (1, 2, 3)  # the third is the second with detail and regions: a text without them is of the second
EDITOR_CANDIDATES = ("best", "smallest", "middle", "largest")
COLOUR = "#1e90ff"  # the blue of SAM's own notebooks
KEYS = {
    1: {"version", "marks", "candidate"},
    2: {"version", "objects", "size", "finish"},
    3: {"version", "objects", "size", "finish", "detail"},
}
OBJECT_KEYS = {"name", "colour", "candidate", "hidden", "locked", "marks", "finish", "paint", "region"}
POINT_KEYS, BOX_KEYS = {"x", "y", "label"}, {"x", "y", "width", "height"}  # and frame
WORK = ("segments", "words", "look")  # what takes long, by the names that a cancel has for it


class Limits(NamedTuple):
    """The most of each."""

    objects: int = 256
    marks: int = 1000  # of all objects together
    name: int = 200  # characters
    patches: int = 256  # of one object
    runs: int = MOST_TEXT  # characters of a patch
    side: int = MOST_SIDE  # of a patch's place, size and frame
    pixels: int = MOST_PIXELS  # of a patch
    painted: int = 4 * MOST_PIXELS  # pixels of all patches together: a few bytes of text can be many pixels
    far: int = 1_000_000  # coordinates and frames are below this: no float32 loses a tenth of a pixel there
    words: int = 512  # characters of the words to find, and of names in requests


class Pyramid(NamedTuple):
    """How the browser gets large images."""

    tile: int = 512  # pixels of a side
    pixels: int = 1 << 25  # of an image that it still has whole


PYRAMID = Pyramid()
LIMITS = Limits()
MOST_BYTES = 2 * LIMITS.runs + (1 << 20)
"""Of a request: an object has one patch for all frames and one for the shown frame; a thousand marks take 60 KB."""


def for_browser() -> dict[str, Any]:
    """What the editor has to know, as JSON."""
    finish = {name: list(limits) for name, limits in FINISH_LIMITS.items()}
    return {
        "version": VERSIONS[-1],
        "candidates": list(EDITOR_CANDIDATES),
        "limits": LIMITS._asdict(),
        "pyramid": PYRAMID._asdict(),
        "finish": finish,
    }

"""The parts of the editor's text that finish a mask: `finish` (see `Finish`) and `paint` (patches of brush strokes)."""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

from ...sam import SAMError
from ...utils.finish import Finish
from ...utils.patches import Patch, parse_patch
from .contract import LIMITS

_KINDS: dict[str, type] = {field.name: type(field.default) for field in fields(Finish)}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number"}


def parse_finish(value: Any, place: str) -> Finish:
    """A JSON object with some of `Finish`'s options.

    Raises:
        SAMError: another form, with the field's name.
    """
    if not isinstance(value, Mapping):
        raise SAMError(f"{place} is {reprlib.repr(value)}: it must be a JSON object with options such as grow.")
    for name, option in value.items():
        kind = _KINDS.get(name)
        if kind is None:
            raise SAMError(f"{place} has an unknown key {str(name)[:40]!r}.")
        is_right = isinstance(option, Real if kind is float else kind) and (kind is bool) == isinstance(option, bool)
        if not is_right:
            raise SAMError(f"{place}.{name} is {reprlib.repr(option)}: it must be {_NAMES[kind]}.")
    try:
        return Finish(**value)
    except SAMError as error:
        raise SAMError(f"{place}.{error}") from error


def parse_paint(value: Any, place: str) -> tuple[Patch, ...]:
    """A list of patches: those for every frame or for one.

    Raises:
        SAMError: another form, with the field's name.
    """
    if not isinstance(value, list) or len(value) > LIMITS.patches:
        seen = f"has {len(value)}" if isinstance(value, list) else f"is a {type(value).__name__}"
        raise SAMError(f"{place} {seen}: it must be a list of at most {LIMITS.patches} patches.")
    patches = []
    for index, one in enumerate(value):
        try:
            patches.append(parse_patch(one))
        except SAMError as error:
            raise SAMError(f"{place}[{index}]: {error}") from error
    return tuple(patches)


def check_paint(patches: Iterable[Patch]) -> None:
    """A few bytes of text can be many pixels, and all of them are work.

    Raises:
        SAMError: the patches have too many pixels together.
    """
    pixels = sum(patch.width * patch.height for patch in patches)
    if pixels > LIMITS.painted:
        raise SAMError(f"The paint in prompts has {pixels} pixels: it may have at most {LIMITS.painted}. Remove some.")

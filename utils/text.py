"""Words in messages."""

import reprlib
from numbers import Number
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel = 3
_MOST = 200  # characters
_PLAIN = (str, bytes, Number, list, tuple, dict, set)


def counted(number: int, noun: str) -> str:
    """A number with its noun in the right form: `1 point`, `2 points`, `0 boxes`."""
    ending = "es" if noun.endswith(("x", "s", "ch", "sh")) else "s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{ending}"


def shown(value: Any) -> str:
    """Any value in a few words: a plain one as Python writes it, shortened; a tensor or an array by its type and shape."""
    if getattr(value, "is_nested", False):  # such a tensor has no shape
        return f"of type {type(value).__name__}, nested"
    if getattr(value, "ndim", 0):
        return f"of type {type(value).__name__}, {value.dtype}, shape {tuple(value.shape)}"
    if value is not None and not isinstance(value, _PLAIN):
        return f"of type {type(value).__name__}"
    try:
        text = _short.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."

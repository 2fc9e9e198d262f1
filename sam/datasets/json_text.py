"""JSON text that is changed in places: every other byte stays as it is."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Span = tuple[int, int]
"""Where a value begins in a text, and where it ends."""

_SPACE = re.compile(r"[\ufeff \t\r\n]*")  # a byte order mark may stand before a text
_decoder = json.JSONDecoder()


def members(text: str, at: int) -> dict[str, Span]:
    """The values of a JSON object that begins at a place, by their keys. The text has been read as JSON."""
    found, at = {}, _skip(text, at + 1)
    while text[at] != "}":
        key, at = _decoder.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _decoder.raw_decode(text, start)
        found[key], at = (start, end), _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def elements(text: str, at: int) -> list[Span]:
    """The elements of a JSON list that begins at a place. The text has been read as JSON."""
    found, at = [], _skip(text, at + 1)
    while text[at] != "]":
        _, end = _decoder.raw_decode(text, at)
        found.append((at, end))
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def place_of(text: str, *path: str | int) -> Span:
    """Where a value is, by the keys and numbers that lead to it."""
    start = _skip(text, 0)
    end = _decoder.raw_decode(text, start)[1]
    for part in path:
        start, end = members(text, start)[part] if isinstance(part, str) else elements(text, start)[part]
    return start, end


def with_elements(text: str, span: Span, changed: Mapping[int, Any], added: Sequence[Any]) -> str:
    """A text in which a list has other elements.

    Args:
        text: JSON.
        span: of the list in it.
        changed: new elements by their numbers; None removes one.
        added: elements after them.
    """
    places = elements(text, span[0])
    written: list[tuple[str, str]] = []  # what is before an element, and the element
    end = span[0] + 1
    for number, (start, stop) in enumerate(places):
        before, end = text[end:start], stop
        if number not in changed:
            written.append((before, text[start:stop]))
        elif changed[number] is not None:
            written.append((before, _dumped(changed[number])))
    last = text[end : span[1] - 1]  # before the bracket
    between = text[places[0][1] : places[1][0]] if len(places) > 1 else ","
    first = text[span[0] + 1 : places[0][0]] if places else ""
    written += [(between, _dumped(one)) for one in added]
    inside = "".join(((before if index else first) + value) for index, (before, value) in enumerate(written))
    return text[: span[0] + 1] + inside + last + text[span[1] - 1 :]


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()

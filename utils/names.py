"""Points and boxes that know which object each of them belongs to."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .checks import is_number
from .errors import SAMError

Name: TypeAlias = str | float
"""The value of the key `object` of a point or a box."""


class NamedRows(np.ndarray):
    """float64 `[N, k]`: an array as any other, that also has the `object` of each row; what is computed from it has none."""

    names: tuple[Name | None, ...] | None = None


def named(rows: Any, names: Sequence[Name | None], columns: int) -> np.ndarray:
    """Rows as float64 `[N, columns]`, with the object of each; a plain array where no row has one."""
    array = np.array(rows, dtype=np.float64).reshape(-1, columns)
    if all(name is None for name in names):
        return array
    array = array.view(NamedRows)
    array.names = tuple(names)
    return array


def names_of(rows: np.ndarray) -> tuple[Name | None, ...]:
    """The object of each row, None for a row without."""
    names = getattr(rows, "names", None)
    return (None,) * len(rows) if names is None else names


def rows_where(rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The rows of `rows` `[N, k]` for which bool `[N]` holds, with their objects."""
    names = [name for name, kept in zip(names_of(rows), keep, strict=True) if kept]
    return named(np.asarray(rows)[keep], names, rows.shape[1])


def name_in(item: Any, place: str) -> Name | None:
    """The `object` of a point or a box in JSON's form, None where it has none.

    Raises:
        SAMError: it is neither a text nor a finite number.
    """
    name = item.get("object") if isinstance(item, dict) else None
    if name is None or isinstance(name, str) or is_number(name):
        return name
    raise SAMError(f"{place}.object is {str(name)[:80]!r}: it must be text or a number.")

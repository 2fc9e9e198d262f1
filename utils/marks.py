"""Points and boxes that know which object each of them belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .checks import is_number
from .errors import SAMError

Name: TypeAlias = str | float
"""The value of the key `object` of a point or a box."""


@dataclass(frozen=True)
class Marks:
    """Points, or boxes, of one image.

    Attributes:
        rows: float64 `[N, 2]` (x, y), or `[N, 4]` corners (x1, y1, x2, y2), in pixels of the image.
        names: the object that each belongs to, None for one without; by default none has one.
    """

    rows: np.ndarray
    names: tuple[Name | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", (None,) * len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], names: Sequence[Name | None], columns: int) -> "Marks":
        """Marks of lists of numbers, also of none; `columns` is 2 for points and 4 for boxes."""
        return cls(np.array(rows, dtype=np.float64).reshape(-1, columns), tuple(names))

    def where(self, keep: np.ndarray) -> "Marks":
        """Those for which bool `[N]` holds."""
        return Marks(self.rows[keep], tuple(name for name, kept in zip(self.names, keep, strict=True) if kept))

    def of_object(self, name: Name | None) -> np.ndarray:
        """The rows of one object, or, for None, of those that belong to none."""
        return self.rows[np.array([one is None if name is None else one == name for one in self.names], dtype=bool)]


NO_POINTS, NO_BOXES = Marks(np.zeros((0, 2))), Marks(np.zeros((0, 4)))


def name_in(item: Any, place: str) -> Name | None:
    """The `object` of a point or a box in JSON's form, None where it has none.

    Raises:
        SAMError: it is neither a text nor a finite number.
    """
    name = item.get("object") if isinstance(item, dict) else None
    if name is None or isinstance(name, str) or is_number(name):
        return name
    raise SAMError(f"{place}.object is {str(name)[:80]!r}: it must be text or a number.")

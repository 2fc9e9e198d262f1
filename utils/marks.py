"""Points and boxes that know which object each of them belongs to, and from which part of the image it is to be answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, TypeAlias

import numpy as np

from .checks import is_number
from .errors import SAMError

Name: TypeAlias = str | float
"""The value of the key `object` of a point or a box."""
Region: TypeAlias = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in pixels of an image, without the last column and row: the key `region` of a point or a box."""

_FAR = 1 << 24  # pixels: whole numbers above are not exact in float32


@dataclass(frozen=True)
class Marks:
    """Points, or boxes, of one image.

    Attributes:
        rows: float64 `[N, 2]` (x, y), or `[N, 4]` corners (x1, y1, x2, y2), in pixels of the image.
        names: the object that each belongs to, None for one without; by default none has one.
        regions: the part of the image that each is to be answered from, None for all of it; by default none has one.
    """

    rows: np.ndarray
    names: tuple[Name | None, ...] = ()
    regions: tuple[Region | None, ...] = ()

    def __post_init__(self) -> None:
        for attribute in ("names", "regions"):
            if not getattr(self, attribute):
                object.__setattr__(self, attribute, (None,) * len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[float]],
        names: Sequence[Name | None],
        columns: int,
        regions: Sequence[Region | None] = (),
    ) -> "Marks":
        """Marks of lists of numbers, also of none; `columns` is 2 for points and 4 for boxes."""
        return cls(np.array(rows, dtype=np.float64).reshape(-1, columns), tuple(names), tuple(regions))

    def where(self, keep: np.ndarray) -> "Marks":
        """Those for which bool `[N]` holds."""
        names, regions = (tuple(compress(values, keep)) for values in (self.names, self.regions))
        return Marks(self.rows[keep], names, regions)

    def of_object(self, name: Name | None) -> "Marks":
        """Those of one object, or, for None, those that belong to none."""
        return self.where(np.array([one is None if name is None else one == name for one in self.names], dtype=bool))

    def of_region(self, region: Region | None) -> "Marks":
        """Those of one region, or, for None, those that have none."""
        return self.where(np.array([one == region for one in self.regions], dtype=bool))


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


def region_in(item: Any, place: str) -> Region | None:
    """The `region` of a point or a box in JSON's form, in whole pixels, None where it has none.

    Raises:
        SAMError: it is not `{x, y, width, height}` with numbers of pixels, or has no area.
    """
    value = item.get("region") if isinstance(item, Mapping) else None
    if value is None:
        return None
    keys = ("x", "y", "width", "height")
    numbers = [value.get(key) for key in keys] if isinstance(value, Mapping) else []
    if not numbers or not all(is_number(one) and abs(one) < _FAR for one in numbers):
        raise SAMError(f"{place}.region is {str(value)[:80]!r}: it must be {{x, y, width, height}}, in pixels.")
    x, y, width, height = numbers
    region = (round(x), round(y), round(x + width), round(y + height))
    if region[2] <= region[0] or region[3] <= region[1]:
        raise SAMError(f"{place}.region is {width:g} by {height:g} pixels: both must be above 0.")
    return region

"""Tiles of a large image: where they lie, and how what is found in them becomes one mask, or one box, for each object."""

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from ...utils.checks import one_of
from ..geometry import Size, Window, tiles_of

TILES: tuple[str, ...] = ("off", "auto", *map(str, range(2, 9)))
"""None, as many as the model's resolution needs, or so many along the image's longer side."""

_OVERLAP = 0.25  # of two tiles, in sides of one
_SEAM = 4  # pixels: what ends this near to a tile's edge, but not to the image's, may go on beyond it
_ALONG_SEAM = 0.6  # least IoU of two parts of one object, where their tiles overlap
_SAME_OBJECT = 0.5  # least IoU of one object seen at two resolutions or in two tiles
_SAME_MASK = 0.75  # the same in one tile, where an object and a part of it may overlap by more than half


class Part(Protocol):
    """A mask or a box that was found in a part of an image.

    Attributes:
        crop: the part.
        score: the higher, the better.
    """

    @property
    def crop(self) -> Window: ...

    @property
    def score(self) -> float: ...

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) of the box around it, in pixels of the image, without the last column and row."""
        ...

    @property
    def area(self) -> float:
        """Pixels."""
        ...

    def iou(self, other: "Part", window: tuple[float, float, float, float]) -> float:
        """IoU of what this and another one have in a window of the image; 0 where that is nothing."""
        ...

    def joined(self, others: Sequence["Part"], crop: Window) -> "Part":
        """This and others as one that was found in `crop`."""
        ...


Found = TypeVar("Found", bound=Part)


def tile_windows(size: Size, tiles: str, side: int) -> list[Window]:
    """The tiles of an image, which overlap; none where one would be the image itself.

    Args:
        size: (H, W) of the image.
        tiles: one of `TILES`.
        side: pixels on a side of a tile, where `tiles` is `auto`.

    Raises:
        SAMError: there is no such choice.
    """
    if one_of(tiles, TILES, "tiles") == "off":
        return []
    if tiles != "auto":
        side = math.ceil(max(size) / (1 + (int(tiles) - 1) * (1 - _OVERLAP)))
    windows = tiles_of(size, side, _OVERLAP)
    return windows if len(windows) > 1 else []


def join_seams(found: Sequence[Found], size: Size) -> list[Found]:
    """What was found in tiles, parts of one object that a seam cuts joined; what is cut off and has no other part is left out.

    Args:
        found: those whose `crop` is their tile, without duplicates in a tile.
        size: (H, W) of the image.
    """
    sides = [_seams(one, size) for one in found]
    whole = [one for one, cut in zip(found, sides, strict=True) if not any(cut)]
    parts = [
        (one, cut)
        for one, cut in zip(found, sides, strict=True)
        if any(cut) and not any(other.crop != one.crop and one.iou(other, one.crop) >= _ALONG_SEAM for other in whole)
    ]
    groups = list(range(len(parts)))
    for index, (one, _) in enumerate(parts):
        for place, (other, _) in enumerate(parts[:index]):
            if one.crop == other.crop or groups[index] == groups[place]:
                continue
            if one.iou(other, _common(one.crop, other.crop)) >= _ALONG_SEAM:
                old, new = groups[index], groups[place]
                groups = [new if group == old else group for group in groups]
    joined = []
    for group in dict.fromkeys(groups):
        members = [part for part, own in zip(parts, groups, strict=True) if own == group]
        crops = [one.crop for one, _ in members]
        if all(_goes_on(one.crop, cut, crops) for one, cut in members):
            first, *others = sorted((one for one, _ in members), key=lambda one: -one.area)
            joined.append(first.joined(others, _around(crops)))
    return whole + joined


def without_other_levels(found: Sequence[Found], box_threshold: float) -> list[Found]:
    """What was found in tiles and in the whole image, each object once: at the highest resolution, then with the best score.

    Args:
        found: of all levels; `crop` says in what each was found.
        box_threshold: what has a box that overlaps that of a better one by more than this IoU is removed, as with crops.
    """
    ordered = sorted(found, key=lambda one: (_area(one.crop), -one.score))
    ends = np.array([one.ends for one in ordered], np.float64).reshape(-1, 4)
    areas = np.array([one.area for one in ordered], np.float64)
    boxes = (ends[:, 2:] - ends[:, :2]).prod(1)
    kept: list[int] = []
    for index, one in enumerate(ordered):
        low, high = np.maximum(ends[kept, :2], ends[index, :2]), np.minimum(ends[kept, 2:], ends[index, 2:])
        common = (high - low).clip(min=0).prod(1)
        if (common / (boxes[kept] + boxes[index] - common) > box_threshold).any():
            continue
        # No two of which one is less than half as large overlap by half.
        smaller, larger = np.minimum(areas[kept], areas[index]), np.maximum(areas[kept], areas[index])
        rivals = (ordered[kept[place]] for place in np.flatnonzero((common > 0) & (smaller >= _SAME_OBJECT * larger)))
        if not any(_is_same(one, rival) for rival in rivals):
            kept.append(index)
    return [ordered[index] for index in kept]


def _is_same(one: Part, other: Part) -> bool:
    """Whether two are one object's."""
    return one.iou(other, _around([one.ends, other.ends])) >= (_SAME_MASK if one.crop == other.crop else _SAME_OBJECT)


def _seams(one: Part, size: Size) -> tuple[bool, bool, bool, bool]:
    """Whether it ends at the left, upper, right and lower edge of its tile, where that is not the image's."""
    (x1, y1, x2, y2), (left, top, right, bottom), (height, width) = one.ends, one.crop, size
    return (
        left > 0 and x1 - left < _SEAM,
        top > 0 and y1 - top < _SEAM,
        right < width and right - x2 < _SEAM,
        bottom < height and bottom - y2 < _SEAM,
    )


def _goes_on(tile: Window, cut: Sequence[bool], tiles: Sequence[Window]) -> bool:
    """Whether some of the tiles of an object go on beyond each edge of one of them that cuts it."""
    around = _around(tiles)
    beyond = (around[0] < tile[0], around[1] < tile[1], around[2] > tile[2], around[3] > tile[3])
    return all(there for there, is_cut in zip(beyond, cut, strict=True) if is_cut)


def _around(windows: Sequence[Window]) -> Window:
    """The window around some."""
    lefts, tops, rights, bottoms = zip(*windows, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _common(one: Window, other: Window) -> Window:
    """What two windows have in common; of an empty one, a side is not above 0."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def _area(window: Window) -> int:
    return (window[2] - window[0]) * (window[3] - window[1])

"""Masks as polygons that give back the same pixels.

A polygon encloses the area of the mask's pixels: its edges lie a little inside of the pixels' borders. Readers disagree on
where a pixel is: pycocotools takes it for the area from x to x + 1, and Ultralytics cuts coordinates to the pixel that they lie
in, and fills with OpenCV, border included. These polygons are right for both, and their boxes have a width and a height even of
the thinnest mask. Only a reader that rounds coordinates (supervision) finds a pixel more at right and bottom edges. A hole is
cut in through a slit of no width, because neither COCO nor YOLO has holes, and goes around the other way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Points = list[tuple[float, float]]

_TOP_LEFT, _TOP_RIGHT, _BOTTOM_LEFT, _BOTTOM_RIGHT = 1, 2, 4, 8
_STRAIGHT = (0, 3, 5, 10, 12, 15)  # of the four pixels around a corner: no border, or one that goes straight on
_DIAGONALS = (6, 9)
# Of a pixel, from its border to the polygon's edge. pycocotools rounds to fifths of a pixel; YOLO's six digits are a hundredth
# of a pixel in an image of 10,000.
_INSET = 0.02
_STRETCH = 128  # points of a border
_MOST_JOINED = 100  # the time to join them grows with the square of their number


@dataclass(frozen=True)
class _Part:
    """A connected part of a mask: its polygon, holes cut in, and its area in pixels."""

    points: Points
    area: float


def coco_polygons(mask: np.ndarray) -> list[list[float]]:
    """A mask bool `[H, W]` as COCO's polygons, one for each connected part: `[x1, y1, x2, y2, ...]` in pixels.

    `pycocotools` gives back the same mask. A part is 4-connected: pixels that touch at a corner only are two parts.
    """
    return [[number for point in part.points for number in point] for part in _parts(mask)]


def yolo_polygon(mask: np.ndarray) -> list[float]:
    """A mask bool `[H, W]` as the one polygon that YOLO has for an object: `[x1, y1, x2, y2, ...]` in pixels.

    Parts are joined by lines, which readers draw one pixel wide. A part with no more pixels than its line is left out, and so
    is what comes after the largest hundred.
    """
    parts = sorted(_parts(mask), key=lambda part: -part.area)
    joined: Points = parts[0].points if parts else []
    for part in parts[1:_MOST_JOINED]:
        here, there, distance = _nearest(np.array(joined), np.array(part.points))
        if part.area > distance - 1:
            around = [*part.points[there:], *part.points[: there + 1]]
            joined = [*joined[: here + 1], *around, *joined[here:]]
    return [number for point in joined for number in point]


def _nearest(ones: np.ndarray, others: np.ndarray) -> tuple[int, int, float]:
    """The nearest two of points `[N, 2]` and `[M, 2]`, as their numbers, and their distance along the axis that is longer.

    Points that follow each other on a border lie together, so that whole stretches of both are compared by their boxes, and
    only stretches that may be nearer than the nearest points so far are compared point by point.
    """
    boxes = []
    for points in (ones, others):
        starts = np.arange(0, len(points), _STRETCH)
        low, high = (function.reduceat(points, starts, axis=0) for function in (np.minimum, np.maximum))
        boxes.append((low, high))
    (low, high), (other_low, other_high) = boxes
    best = 0, 0, np.inf
    for index in range(len(low)):  # a row of pairs at a time: the matrix of all of them is large for a grainy mask
        gaps = np.maximum(other_low - high[index], low[index] - other_high).max(-1)
        for other in np.argsort(gaps, kind="stable"):
            if gaps[other] >= best[2]:
                break
            first, second = index * _STRETCH, other * _STRETCH
            between = np.abs(ones[first : first + _STRETCH, None] - others[None, second : second + _STRETCH]).max(-1)
            here, there = np.unravel_index(between.argmin(), between.shape)
            if between[here, there] < best[2]:
                best = first + int(here), second + int(there), float(between[here, there])
    return best


def _parts(mask: np.ndarray) -> list[_Part]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    inside = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    return _Border(inside).parts(float(left) - 1, float(top) - 1)


class _Border:
    """The corners of a mask's border, each with its neighbors, and the rings that they make.

    Args:
        inside: bool `[h, w]`, the mask with a border of pixels that are not in it.
    """

    def __init__(self, inside: np.ndarray) -> None:
        self.inside = inside
        around = inside.astype(np.uint8)
        code = (
            around[:-1, :-1] * _TOP_LEFT
            + around[:-1, 1:] * _TOP_RIGHT
            + around[1:, :-1] * _BOTTOM_LEFT
            + around[1:, 1:] * _BOTTOM_RIGHT
        )
        times = np.where(np.isin(code, _STRAIGHT), 0, np.where(np.isin(code, _DIAGONALS), 2, 1))
        # Row by row; where pixels touch at a corner only, the border passes twice.
        rows, columns = np.nonzero(times)
        again = times[rows, columns]
        self.y, self.x = np.repeat(rows, again) + 1, np.repeat(columns, again) + 1
        code = np.repeat(code[rows, columns], again)
        second = np.concatenate([[False], (np.diff(self.y) == 0) & (np.diff(self.x) == 0)])
        self.across = np.arange(len(self.x)) ^ 1  # in a row, corners are ends of one edge in pairs
        self.down, self.tops = self._vertical_neighbors(np.where(code == _DIAGONALS[0], ~second, second))
        self.keys = self.x[self.tops] * len(inside) + self.y[self.tops]
        has_right, has_below = self.x[self.across] > self.x, self.y[self.down] > self.y
        wanted = np.where(has_below, _BOTTOM_RIGHT, _TOP_RIGHT)
        self.begins = (code & wanted) > 0  # the vertical edge has the mask on its right
        self.covers = (code & np.where(has_right, _BOTTOM_RIGHT, _BOTTOM_LEFT)) > 0  # the horizontal edge has it below
        self.points = list(
            zip(
                np.where(self.begins, self.x + _INSET, self.x - _INSET).tolist(),
                np.where(self.covers, self.y + _INSET, self.y - _INSET).tolist(),
                strict=True,
            )
        )

    def _vertical_neighbors(self, tie: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The other end of each corner's vertical edge; and the upper ends, sorted by x, then y."""
        order = np.lexsort((tie, self.y, self.x))
        down = np.empty_like(order)
        down[order[0::2]], down[order[1::2]] = order[1::2], order[0::2]
        return down, order[0::2]

    def rings(self) -> list[list[int]]:
        """Corners in the order of the border; the first is the topmost, of these the leftmost, and its next is to its right."""
        across, down = self.across.tolist(), self.down.tolist()
        seen, found = bytearray(len(across)), []
        for first in range(len(across)):
            if not seen[first]:
                ring, corner = [], first
                while not seen[corner]:
                    ring += [corner, across[corner]]
                    seen[corner] = seen[across[corner]] = 1
                    corner = down[across[corner]]
                found.append(ring)
        return found

    def parts(self, x: float, y: float) -> list[_Part]:
        """Each outer ring with its holes, moved by (x, y)."""
        rings = self.rings()
        owner = {corner: place for place, ring in enumerate(rings) for corner in ring}
        holes: dict[int, list[int]] = {}  # by the upper corner of the edge that a hole's slit starts at
        children: dict[int, list[int]] = {}
        for place, ring in enumerate(rings):
            if not self.covers[ring[0]]:
                edge = self._edge_left_of(ring[0])
                holes.setdefault(edge, []).append(place)
                children.setdefault(owner[edge], []).append(place)
        parts = []
        for place, ring in enumerate(rings):
            if self.covers[ring[0]]:
                members = [place]
                for member in members:  # which grows as it goes
                    members += children.get(member, [])
                points = self._cut(members, rings, holes)
                outer, *inner = (abs(self._area(rings[member])) for member in members)
                area = outer - sum(inner)
                parts.append(_Part([(px + x, py + y) for px, py in points], area))
        return parts

    def _edge_left_of(self, corner: int) -> int:
        """The upper corner of the mask's left edge in the row of pixels that begins at a hole's first corner."""
        row, column = self.y[corner], self.x[corner]
        left = int(np.flatnonzero(~self.inside[row, :column])[-1]) + 1
        return int(self.tops[np.searchsorted(self.keys, left * len(self.inside) + row, "right") - 1])

    def _cut(self, members: Sequence[int], rings: list[list[int]], holes: dict[int, list[int]]) -> Points:
        """The points of an outer ring and of all holes in it, as one ring."""
        done: dict[int, Points] = {}
        for place in reversed(members):  # the innermost first
            ring, points, is_outer = rings[place], [], place == members[0]
            for corner, following in pairwise([*ring, ring[0]]):
                points.append(self.points[corner])
                if self.down[corner] == following and (corner in holes or following in holes):
                    upward = following in holes
                    cuts = sorted(holes[following if upward else corner], key=lambda h: self.y[rings[h][0]], reverse=upward)
                    for hole in cuts:
                        # The other way around than the outer ring, with the holes that are cut into it, so that areas add up.
                        around = done[hole][::-1] if is_outer else done[hole]
                        points += self._slit(corner, rings[hole], around)
            done[place] = points
        return done[members[0]]

    def _slit(self, corner: int, ring: list[int], points: Points) -> Points:
        """From a vertical edge to a hole on its right, around the hole, and back."""
        y = float(self.y[ring[0]]) + _INSET
        start, end = (self.points[corner][0], y), (points[0][0], y)
        return [start, end, *points, end, start]

    def _area(self, ring: list[int]) -> float:
        x, y = self.x[ring], self.y[ring]
        return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2

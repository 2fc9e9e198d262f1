"""Polygons to masks, as the tools that wrote them draw them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ...utils.text import counted
from ..errors import SAMError
from ..geometry import Size

_FINER = 5  # points of a border for each pixel
_FAR = 1e8  # no coordinate of an image is as large


def polygon_mask(points: Sequence[float], size: Size) -> np.ndarray:
    """The mask bool `[H, W]` of one of COCO's polygons `[x1, y1, x2, y2, ...]`, which `pycocotools` draws alike.

    A pixel is the area from x to x + 1. The border is followed in fifths of pixels; where it passes a column's center, it turns
    the mask on or off for all pixels below it in that column.

    Source: `rleFrPoly` in cocoapi's `common/maskApi.c`.

    Raises:
        SAMError: it has no three points, or a coordinate is not finite.
    """
    height, width = size
    corners = np.asarray(points, np.float64).reshape(-1, 2) if len(points) % 2 == 0 else np.zeros((0, 2))
    if len(corners) < 3 or not np.isfinite(corners).all() or np.abs(corners).max() > _FAR:
        raise SAMError(f"a polygon has the coordinates {str(list(points))[:60]}: it needs three points or more, in pixels.")
    corners = np.trunc(_FINER * corners + 0.5).astype(np.int64)
    x, y = _followed(np.concatenate([corners, corners[:1]]))
    turns = np.flatnonzero(np.diff(x))
    before, after = (x[turns], y[turns]), (x[turns + 1], y[turns + 1])
    columns = (np.where(after[0] < before[0], after[0], after[0] - 1) + 0.5) / _FINER - 0.5
    is_center = (np.floor(columns) == columns) & (columns >= 0) & (columns <= width - 1)
    rows = np.ceil(np.clip((np.minimum(after[1], before[1]) + 0.5) / _FINER - 0.5, 0, height))
    places = (columns * height + rows)[is_center].astype(np.int64)
    changes = np.bincount(places[places < height * width], minlength=height * width)
    return (np.cumsum(changes) % 2 == 1).reshape(width, height).T


def _followed(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every point of the border's grid, corner after corner: x and y, int64 `[m]`."""
    start, end = corners[:-1], corners[1:]
    across = np.abs(end - start)
    is_wide = across[:, 0] >= across[:, 1]
    steps = np.where(is_wide, across[:, 0], across[:, 1])
    edge = np.repeat(np.arange(len(steps)), steps + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    along, other = np.where(is_wide, 0, 1), np.where(is_wide, 1, 0)
    rows = np.arange(len(steps))
    is_back = start[rows, along] > end[rows, along]
    low = np.where(is_back[:, None], end, start)
    high = np.where(is_back[:, None], start, end)
    slope = (high[rows, other] - low[rows, other]) / np.maximum(steps, 1)
    place = np.where(is_back[edge], steps[edge] - step, step)
    first = place + low[rows, along][edge]
    second = np.trunc(low[rows, other][edge] + slope[edge] * place + 0.5).astype(np.int64)
    return np.where(is_wide[edge], first, second), np.where(is_wide[edge], second, first)


def drawn_polygon(points: np.ndarray, size: Size) -> np.ndarray:
    """The mask bool `[H, W]` of a polygon `[N, 2]` of YOLO's labels: corners are pixels, and the outline belongs to it.

    Source: `polygon2mask` in ultralytics' `data/utils.py`, which truncates the corners and fills with OpenCV.
    """
    image, corners = Image.new("L", (size[1], size[0])), np.trunc(points).astype(np.int64)
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners.tolist()], fill=1)
    mask = np.array(image) > 0
    x, y = _outline(corners).T
    inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
    mask[y[inside], x[inside]] = True
    return mask


def _outline(corners: np.ndarray) -> np.ndarray:
    """The pixels int64 `[M, 2]` of a polygon's edges; from left to right, a half is rounded to where the edge began.

    Source: `LineIterator` in OpenCV's `drawing.cpp`.
    """
    following = np.roll(corners, -1, axis=0)
    is_back = (following[:, 0] < corners[:, 0])[:, None]
    start, way = np.where(is_back, following, corners), np.abs(following - corners)
    sign = np.sign(np.where(is_back, corners - following, following - corners))
    steps, least = way.max(1), way.min(1)
    edge = np.repeat(np.arange(len(steps)), steps + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    across = -((steps[edge] - 2 * step * least[edge]) // np.maximum(2 * steps[edge], 1))
    is_wide = (way[:, 0] >= way[:, 1])[edge]
    moved = np.stack([np.where(is_wide, step, across), np.where(is_wide, across, step)], -1)
    return start[edge] + sign[edge] * moved


def shape_mask(kind: str, points: np.ndarray, size: Size) -> np.ndarray:
    """The mask bool `[H, W]` of a shape of labelme, which draws with Pillow, the outline included.

    Args:
        kind: polygon, rectangle (two corners), oriented_rectangle (four corners) or circle (center and a point on it).
        points: float64 `[N, 2]`.
        size: (H, W).

    Raises:
        SAMError: the shape has too few points, or is of another kind.
    """
    least = {"polygon": 3, "rectangle": 2, "oriented_rectangle": 4, "circle": 2}
    if len(points) < least.get(kind, len(points) + 1):
        seen = f"a {kind!r} of {counted(len(points), 'point')}"
        raise SAMError(f"a shape is {seen}: only polygons, rectangles, circles and masks can be read.")
    image = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(image)
    if kind == "circle":
        (x, y), radius = points[0], float(np.hypot(*(points[1] - points[0])))
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)
    elif kind == "rectangle":
        draw.rectangle([*points[:2].min(0), *points[:2].max(0)], outline=1, fill=1)
    else:
        draw.polygon([tuple(point) for point in points], outline=1, fill=1)
    return np.asarray(image) > 0


def turned_box_mask(box: Sequence[float], degrees: float, pivot: tuple[float, float], size: Size) -> np.ndarray:
    """The mask bool `[H, W]` of a box (x1, y1, x2, y2) turned clockwise about a point (x, y).

    An upright box takes the pixels from its rounded left and top side to before its rounded right and bottom side; of a turned
    one, the pixels are those of its polygon (see `polygon_mask`).

    Raises:
        SAMError: a number is not finite.
    """
    x1, y1, x2, y2 = box
    if not np.isfinite([*box, degrees]).all() or max(map(abs, box)) > _FAR:
        raise SAMError(f"a box has the corners {str(tuple(box))[:60]}: they must be pixels of the image.")
    if degrees % 360 == 0:
        mask = np.zeros(size, bool)
        left, top, right, bottom = np.clip(np.round([x1, y1, x2, y2]), 0, [size[1], size[0]] * 2).astype(int)
        mask[top:bottom, left:right] = True
        return mask
    angle = np.deg2rad(degrees)
    around = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) - pivot
    turned = around @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + pivot
    return polygon_mask(turned.ravel().tolist(), size)


def ellipse_mask(center: tuple[float, float], radii: tuple[float, float], degrees: float, size: Size) -> np.ndarray:
    """The mask bool `[H, W]` of an ellipse turned clockwise: the pixels whose center is in it.

    Args:
        center: (x, y) in pixels.
        radii: along the ellipse's own x and y.
        degrees: clockwise.
        size: (H, W).

    Raises:
        SAMError: a number is not finite, or a radius is not positive.
    """
    if not np.isfinite([*center, *radii, degrees]).all() or min(radii) <= 0:
        raise SAMError(f"an ellipse has the center {center} and the radii {radii}: the radii must be positive.")
    y, x = np.ogrid[: size[0], : size[1]]
    right, down, angle = x + 0.5 - center[0], y + 0.5 - center[1], np.deg2rad(degrees)
    along = right * np.cos(angle) + down * np.sin(angle)
    across = down * np.cos(angle) - right * np.sin(angle)
    return (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1

"""Procedural scenes with exact masks: the data the bundled demonstration checkpoint learns from and is measured on.

A scene is a photo of overlapping shapes on a textured ground, with the visible mask of every object. It is a pure
function of an integer seed, so a held-out set is a range of seeds and nothing has to be stored or downloaded.

Rules a scene keeps:
  * masks are modal: what another object hides is not in the mask;
  * a part lies wholly on its whole, and the whole's mask includes it; any other object keeps out of the inside of
    the ones below, so "a thing on top of a thing" and "a part of a thing" never look the same;
  * every object stands out from what it is drawn on by its mean colour;
  * objects of which too little, or only scraps, can be seen are not listed.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

LONG_SIDES = (384, 640)
RATIOS = (1.0, 4 / 3, 3 / 4, 16 / 9, 3 / 2, 2 / 3)
SMALLEST, LARGEST = 0.05, 0.6  # extent of an object, in long sides of the photo
MIN_VISIBLE = 0.4  # share of an object's drawn area that must remain in sight
MIN_ACROSS = 0.042  # diameter of the disc of the same visible area, in long sides
MIN_CONTRAST = 38.0  # RGB distance (0..441) between an object's mean colour and what it is drawn on
SUPERSAMPLE = 3


@dataclass(frozen=True)
class Crowd:
    """How many objects a scene has, and how large they are.

    counts: the least number and one more than the most. smallest, largest: extent in long sides of the photo, by a power of
    a random number between them. visible: the diameter of the disc of the least area that is in sight, in long sides. tries:
    places for an object, which may not lie inside another one.
    """

    counts: tuple[int, int]
    smallest: float
    largest: float
    power: float
    visible: float
    tries: int


FEW = Crowd((3, 13), SMALLEST, LARGEST, 0.9, MIN_ACROSS, 4)


@dataclass(frozen=True)
class Scene:
    """One photo and its objects.

    image: uint8 [H, W, 3] RGB. masks: bool [N, H, W], visible pixels of each object. names: N shape names.
    parents: for each object the index of the whole it is a part of, or -1.
    """

    image: NDArray[np.uint8]
    masks: Mask
    names: tuple[str, ...]
    parents: tuple[int, ...]


@dataclass(frozen=True)
class _Placed:
    """A shape on the canvas: coverage float32 [h, w] in 0..1 and its top-left corner in canvas pixels."""

    name: str
    coverage: Array
    left: int
    top: int
    across: float

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that the coverage lies on."""
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


# --- outlines: closed curves float [K, 2] in the unit disc; the second curve, if any, is a hole ---------------------


def _polar(radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Closed curve [K, 2] from K radii at even angles."""
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _ellipse(rng: Generator) -> list[NDArray[np.float64]]:
    return [_polar(np.ones(48))]


def _polygon(rng: Generator) -> list[NDArray[np.float64]]:
    corners = int(rng.integers(3, 9))
    angle = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    return [np.stack([np.cos(angle), np.sin(angle)], axis=1) * rng.uniform(0.75, 1.0, (corners, 1))]


def _box(rng: Generator) -> list[NDArray[np.float64]]:
    """A superellipse: exponent 3 is a cushion, 30 nearly a rectangle."""
    power = 2 / rng.choice([3.0, 5.0, 10.0, 30.0])
    unit = _polar(np.ones(96))
    return [np.sign(unit) * np.abs(unit) ** power / (2**0.5) ** (1 - power)]


def _blob(rng: Generator) -> list[NDArray[np.float64]]:
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    waves = np.arange(2, 7)
    size = rng.normal(0, 0.35, len(waves)) / waves
    radius = 1 + (size[:, None] * np.cos(waves[:, None] * angle + rng.uniform(0, 6.3, (len(waves), 1)))).sum(0)
    return [_polar(np.clip(radius, 0.35, None) / max(radius.max(), 0.5))]


def _star(rng: Generator) -> list[NDArray[np.float64]]:
    tips = int(rng.integers(4, 9))
    return [_polar(np.where(np.arange(2 * tips) % 2 == 0, 1.0, rng.uniform(0.45, 0.75)))]


def _ring(rng: Generator) -> list[NDArray[np.float64]]:
    outer = _polar(np.ones(48))
    return [outer, outer * rng.uniform(0.4, 0.6)]


def _capsule(rng: Generator) -> list[NDArray[np.float64]]:
    round_end = rng.uniform(0.3, 0.6)
    unit = _polar(np.ones(48)) * round_end
    unit[:, 0] += np.sign(unit[:, 0]) * (1 - round_end)
    return [unit]


def _cross(rng: Generator) -> list[NDArray[np.float64]]:
    arm = rng.uniform(0.3, 0.5)
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)]) * 0.95]


def _drop(rng: Generator) -> list[NDArray[np.float64]]:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return [np.stack([np.cos(t), np.sin(t) * np.sin(t / 2) ** rng.uniform(0.7, 1.5)], axis=1)]


def _crescent(rng: Generator) -> list[NDArray[np.float64]]:
    bow = rng.uniform(0.75, 1.2)
    t = np.linspace(-bow, bow, 24)
    outer = np.stack([np.cos(t), np.sin(t) * 1.05], axis=1)
    inner = np.stack([np.cos(t[::-1]) * 0.25 + np.cos(bow) * 0.75, np.sin(t[::-1]) * 1.05], axis=1)
    curve = np.concatenate([outer, inner])
    return [(curve - (curve.max(0) + curve.min(0)) / 2) / 1.0]


def _gear(rng: Generator) -> list[NDArray[np.float64]]:
    teeth = int(rng.integers(7, 13))
    return [_polar(np.where(np.arange(4 * teeth) % 4 < 2, 1.0, rng.uniform(0.75, 0.88)))]


SHAPES: dict[str, Callable[[Generator], list[NDArray[np.float64]]]] = {
    "ellipse": _ellipse,
    "polygon": _polygon,
    "box": _box,
    "blob": _blob,
    "star": _star,
    "ring": _ring,
    "capsule": _capsule,
    "cross": _cross,
    "drop": _drop,
    "crescent": _crescent,
    "gear": _gear,
}
SHAPE_ODDS = np.array([0.17, 0.14, 0.16, 0.18, 0.07, 0.06, 0.07, 0.04, 0.05, 0.03, 0.03])


# --- colour and texture ---------------------------------------------------------------------------------------------


def _colour(rng: Generator, hue: float) -> Array:
    """RGB 0..255 [3]: mostly muted, half of them near the scene's hue, as photographs are."""
    shade = hue + rng.normal(0, 0.07) if rng.random() < 0.5 else rng.random()
    saturation = rng.beta(1.6, 3.2) if rng.random() < 0.85 else rng.uniform(0.6, 1.0)
    return np.array(colorsys.hsv_to_rgb(shade % 1.0, saturation, 0.08 + 0.9 * rng.beta(1.8, 1.5)), np.float32) * 255


def _distinct_colour(rng: Generator, hue: float, ground: Array) -> Array:
    """A colour that stands out from the mean colour `ground` [3]; the farthest of the tries if none is far enough."""
    best, reach = ground, -1.0
    for _ in range(12):
        colour = _colour(rng, hue)
        distance = float(np.linalg.norm(colour - ground))
        if distance > MIN_CONTRAST * rng.uniform(1.0, 1.6):
            return colour
        if distance > reach:
            best, reach = colour, distance
    return best


def _upsample(field: Array, height: int, width: int) -> Array:
    """Smooth (bicubic) enlargement of float32 [h, w] to [height, width]."""
    return np.asarray(Image.fromarray(field, mode="F").resize((width, height), Image.Resampling.BICUBIC))


def _clouds(rng: Generator, height: int, width: int, finest: int = 6) -> Array:
    """1/f noise float32 [height, width] in 0..1: octaves of enlarged white noise; `finest` = cell of the last one."""
    total = np.zeros((height, width), np.float32)
    cell = max(height, width) / rng.uniform(1.5, 4)
    gain = 1.0
    while cell >= finest and gain > 0.05:
        rows, cols = int(height / cell) + 2, int(width / cell) + 2
        total += gain * _upsample(rng.standard_normal((rows, cols), dtype=np.float32), height, width)
        cell, gain = cell / 2.3, gain * 0.55
    return np.clip(0.5 + 0.3 * total, 0, 1)


def _axes(height: int, width: int) -> tuple[Array, Array]:
    """Row [1, width] and column [height, 1] of pixel offsets from the middle."""
    x = np.arange(width, dtype=np.float32)[None] - width / 2
    return x, np.arange(height, dtype=np.float32)[:, None] - height / 2


def _pattern(rng: Generator, height: int, width: int, across: float) -> Array:
    """A pattern float32 [height, width] in 0..1 for a thing `across` pixels wide."""
    kind = rng.choice(7, p=[0.14, 0.22, 0.08, 0.14, 0.07, 0.05, 0.30])
    x, y = _axes(height, width)
    turn = rng.uniform(0, np.pi)
    cos, sin = float(np.cos(turn)), float(np.sin(turn))  # Python floats keep the arrays float32
    along, beside = x * cos + y * sin, y * cos - x * sin
    period = float(max(3.0, min(across * rng.uniform(0.06, 0.3), 60.0)))
    if kind == 0:
        return np.zeros((height, width), np.float32)
    if kind == 1:
        return np.clip(0.5 + along / max(across, 1.0), 0, 1)
    if kind == 2:
        centre = (rng.uniform(-0.3, 0.3, 2) * across).astype(np.float32)
        return np.clip(np.hypot(x - centre[0], y - centre[1]) / max(across, 1.0), 0, 1)
    if kind == 3:
        wave = np.sin(along * (2 * np.pi / period))
        return np.clip(0.5 + wave * float(rng.choice([0.5, 3.0])), 0, 1)
    if kind == 4:
        wave = np.sin(along * (2 * np.pi / period)) * np.sin(beside * (2 * np.pi / period))
        return np.clip(0.5 + 4 * wave, 0, 1)
    if kind == 5:
        wave = np.cos(along * (2 * np.pi / period)) + np.cos(beside * (2 * np.pi / period))
        return np.clip((wave - rng.uniform(0.4, 1.2)) * 3, 0, 1)
    return _clouds(rng, height, width, finest=2)


def _texture(rng: Generator, height: int, width: int, across: float, colour: Array, contrast: float) -> Array:
    """float32 [height, width, 3]: `colour` varied by a pattern of a second colour and by fine grain."""
    second = colour + rng.normal(0, contrast, 3).astype(np.float32) * 0.5 + np.float32(rng.normal(0, contrast))
    pattern = _pattern(rng, height, width, across)
    pattern = pattern - pattern.mean()  # keep the mean colour, by which the object stands out
    paint = colour + pattern[..., None] * (second - colour)
    if rng.random() < 0.4:
        grain = rng.standard_normal((height, width, 1), dtype=np.float32)
        paint = paint + grain * np.float32(rng.uniform(2, 12))
    return paint


def _ground(rng: Generator, height: int, width: int, hue: float) -> Array:
    """The background, float32 [height, width, 3]: one texture, or two that meet at a soft horizon or cloud edge."""
    extent = float(max(height, width))
    canvas = _texture(rng, height, width, extent * rng.uniform(0.2, 1.0), _colour(rng, hue), rng.uniform(5, 45))
    if rng.random() < 0.45:
        other = _texture(rng, height, width, extent * rng.uniform(0.2, 1.0), _colour(rng, hue), rng.uniform(5, 35))
        if rng.random() < 0.5:
            level = rng.uniform(0.25, 0.75) * height + np.arange(width) * rng.normal(0, 0.06)
            blend = np.clip((np.arange(height)[:, None] - level[None]) / rng.uniform(1, 25) + 0.5, 0, 1)
        else:
            blend = np.clip((_clouds(rng, height, width, 12) - 0.5) * rng.uniform(1, 6) + 0.5, 0, 1)
        canvas = canvas + blend[..., None].astype(np.float32) * (other - canvas)
    return canvas


# --- placing and painting -------------------------------------------------------------------------------------------


def _place(
    rng: Generator, height: int, width: int, across: float, centre: tuple[float, float], smallest: float = SMALLEST
) -> _Placed | None:
    """A random shape about `across` pixels long at `centre` (x, y), cut to the canvas; None if nothing is inside.

    No shape is thinner than `smallest` long sides of the canvas.
    """
    name = str(rng.choice(list(SHAPES), p=SHAPE_ODDS / SHAPE_ODDS.sum()))
    curves = SHAPES[name](rng)
    thinnest = min(0.9, smallest * max(height, width) / across)
    aspect = rng.uniform(max(0.45, thinnest), 1.0)
    turn = rng.uniform(0, 2 * np.pi) if rng.random() < 0.75 else 0.0
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    curves = [curve * [1.0, aspect] * (across / 2) @ rotate + centre for curve in curves]
    low, high = np.floor(curves[0].min(0)).astype(int), np.ceil(curves[0].max(0)).astype(int) + 1
    left, top = max(low[0], 0), max(low[1], 0)
    right, bottom = min(high[0], width), min(high[1], height)
    if right - left < 4 or bottom - top < 4:
        return None
    sheet = Image.new("L", ((right - left) * SUPERSAMPLE, (bottom - top) * SUPERSAMPLE))
    draw = ImageDraw.Draw(sheet)
    for ink, curve in zip((255, 0), curves, strict=False):
        draw.polygon([tuple(p) for p in (curve - [left, top]) * SUPERSAMPLE], fill=ink)
    coverage = np.asarray(sheet.reduce(SUPERSAMPLE), np.float32) / 255
    return _Placed(name, coverage, int(left), int(top), float(across))


def _shade(rng: Generator, placed: _Placed, paint: Array) -> Array:
    """Light on an object: a slope of brightness, or the roundness of a solid, or a darker rim."""
    height, width = placed.coverage.shape
    kind = rng.random()
    if kind < 0.35:
        x, y = _axes(height, width)
        turn = rng.uniform(0, 2 * np.pi)
        along = x * float(np.cos(turn)) + y * float(np.sin(turn))
        return paint * (1 + rng.uniform(0.1, 0.35) * along / (placed.across / 2 + 1))[..., None]
    if kind < 0.65:
        radius = placed.across * (0.12 if kind < 0.55 else 0.03) + 0.5
        sheet = Image.fromarray((placed.coverage * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
        inner = np.asarray(sheet, np.float32) / 255
        return paint * (1 - rng.uniform(0.2, 0.6) * (1 - inner))[..., None]
    return paint


def _cast_shadow(rng: Generator, canvas: Array, placed: _Placed) -> None:
    """Darken the canvas where the object's soft shadow falls (in place)."""
    reach = int(np.clip(placed.across * rng.uniform(0.05, 0.16), 2, 24))
    offset = rng.integers(-reach, reach + 1, 2)
    sheet = Image.fromarray(np.pad(placed.coverage * 255, 2 * reach).astype(np.uint8))
    soft = np.asarray(sheet.filter(ImageFilter.BoxBlur(reach * rng.uniform(0.3, 0.8))), np.float32) / 255
    top, left = placed.top - 2 * reach + offset[1], placed.left - 2 * reach + offset[0]
    rows = slice(max(top, 0), min(top + soft.shape[0], canvas.shape[0]))
    cols = slice(max(left, 0), min(left + soft.shape[1], canvas.shape[1]))
    piece = soft[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
    canvas[rows, cols] *= 1 - np.float32(rng.uniform(0.2, 0.55)) * piece[..., None]


def _paint(rng: Generator, canvas: Array, placed: _Placed, hue: float, is_part: bool) -> None:
    """Draw the object onto the canvas (in place) in a colour that stands out from what it covers."""
    window = canvas[placed.window]
    cover = placed.coverage[..., None]
    ground = (window * cover).sum((0, 1)) / max(float(cover.sum()), 1.0)
    colour = _distinct_colour(rng, hue, ground)
    if not is_part and rng.random() < 0.5:
        _cast_shadow(rng, canvas, placed)
    paint = _texture(rng, *placed.coverage.shape, placed.across, colour, rng.uniform(3, 40))
    paint = _shade(rng, placed, paint)
    if rng.random() < 0.15:  # a slightly out-of-focus edge
        sheet = Image.fromarray((placed.coverage * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))
        cover = np.asarray(sheet, np.float32)[..., None] / 255
    window += cover * (paint - window)


def _clutter(rng: Generator, canvas: Array) -> None:
    """Thin lines and specks on the ground that are nobody's object (in place)."""
    height, width = canvas.shape[:2]
    sheet = Image.new("L", (width, height))
    draw = ImageDraw.Draw(sheet)
    for _ in range(int(rng.integers(2, 12))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.4:
            reach = rng.normal(0, max(height, width) * 0.3, 2)
            draw.line([x, y, x + reach[0], y + reach[1]], fill=255, width=int(rng.integers(1, 3)))
        else:
            r = rng.uniform(0.5, 2.5)
            draw.ellipse([x - r, y - r, x + r, y + r], fill=255)
    cover = np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.6)), np.float32)[..., None] / 255
    canvas += cover * np.float32(rng.uniform(0.3, 0.9)) * (_colour(rng, rng.random()) - canvas)


# --- the camera -----------------------------------------------------------------------------------------------------


def _camera(rng: Generator, canvas: Array) -> NDArray[np.uint8]:
    """What a camera does to the canvas float32 [H, W, 3]: vignette, exposure, blur, noise, JPEG. Returns uint8."""
    height, width = canvas.shape[:2]
    if rng.random() < 0.35:
        x, y = _axes(height, width)
        canvas = canvas * (1 - rng.uniform(0.2, 0.8) * (x**2 + y**2) / (height**2 + width**2) * 2)[..., None]
    canvas = canvas * rng.normal(1, 0.05, 3).astype(np.float32) * np.float32(rng.uniform(0.8, 1.15))
    photo = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    if rng.random() < 0.6:
        noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.gamma(2, 2.5))
        photo = Image.fromarray(np.clip(np.asarray(photo, np.float32) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        packed = io.BytesIO()
        photo.save(packed, "JPEG", quality=int(rng.integers(35, 95)))
        photo = Image.open(packed).convert("RGB")
    return np.array(photo)


# --- scenes ---------------------------------------------------------------------------------------------------------


def _image_size(rng: Generator) -> tuple[int, int]:
    """A random (height, width)."""
    long_side = int(rng.integers(LONG_SIDES[0], LONG_SIDES[1] + 1))
    ratio = float(rng.choice(RATIOS))
    return (round(long_side / ratio), long_side) if ratio >= 1 else (long_side, round(long_side * ratio))


def _lies_inside(owner: NDArray[np.int16], placed: _Placed) -> bool:
    """Whether what the shape covers belongs almost wholly to one earlier object (then it would look like a part)."""
    under = owner[placed.window][placed.coverage >= 0.5]
    if under.size == 0:
        return True
    return int(np.bincount(under + 1, minlength=2)[1:].max()) > 0.85 * under.size


def _place_part(rng: Generator, owner: NDArray[np.int16], whole: int, across: float) -> _Placed | None:
    """A part on object `whole`, cut to what can be seen of it; None where it does not fit well."""
    rows, cols = np.nonzero(owner == whole)
    if len(rows) < 200:
        return None
    pick = int(rng.integers(len(rows)))
    placed = _place(rng, *owner.shape, across * rng.uniform(0.25, 0.55), (float(cols[pick]), float(rows[pick])))
    if placed is None:
        return None
    home = owner[placed.window] == whole
    if (placed.coverage * home).sum() < 0.8 * placed.coverage.sum():
        return None
    return _Placed(placed.name, placed.coverage * home, placed.left, placed.top, placed.across)


def _is_visible(mask: Mask, drawn: float, least: float) -> bool:
    """Whether enough of an object (of `drawn` pixels) is in sight, mostly in one piece, and a disc of `least` pixels."""
    area = int(mask.sum())
    if area < MIN_VISIBLE * drawn or area < np.pi / 4 * least**2:
        return False
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    pieces, _ = ndimage.label(mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1])
    return int(np.bincount(pieces.ravel())[1:].max()) >= 0.85 * area


def _draw_objects(
    rng: Generator, canvas: Array, hue: float, crowd: Crowd = FEW
) -> tuple[NDArray[np.int16], list[_Placed], list[int]]:
    """Paint all objects, large ones mostly first. Returns owner int16 [H, W] (-1 = ground), shapes, parents."""
    height, width = canvas.shape[:2]
    long_side = max(height, width)
    owner = np.full((height, width), -1, np.int16)
    shapes: list[_Placed] = []
    parents: list[int] = []
    count = int(rng.integers(*crowd.counts))
    sizes = crowd.smallest * (crowd.largest / crowd.smallest) ** (rng.random(count) ** crowd.power)
    for across in sizes[np.argsort(-sizes * rng.uniform(0.7, 1.4, count))] * long_side:
        for _ in range(crowd.tries):
            centre = (float(rng.uniform(0.03, 0.97) * width), float(rng.uniform(0.03, 0.97) * height))
            placed = _place(rng, height, width, float(across), centre, crowd.smallest)
            if placed is not None and not _lies_inside(owner, placed):
                break
        else:
            continue
        whole = len(shapes)
        _paint(rng, canvas, placed, hue, is_part=False)
        owner[placed.window][placed.coverage >= 0.5] = whole
        shapes.append(placed)
        parents.append(-1)
        if across > 0.18 * long_side and rng.random() < 0.25:
            part = _place_part(rng, owner, whole, float(across))
            if part is not None:
                _paint(rng, canvas, part, hue, is_part=True)
                owner[part.window][part.coverage >= 0.5] = len(shapes)
                shapes.append(part)
                parents.append(whole)
    return owner, shapes, parents


def make_scene(seed: int, size: tuple[int, int] | None = None, crowd: Crowd = FEW) -> Scene:
    """The scene of a seed. size: (height, width) in pixels; by default a random one. At least one object is listed."""
    rng = np.random.default_rng(seed)
    while True:
        height, width = size or _image_size(rng)
        hue = float(rng.random())
        canvas = _ground(rng, height, width, hue)
        if rng.random() < 0.3:
            _clutter(rng, canvas)
        owner, shapes, parents = _draw_objects(rng, canvas, hue, crowd)
        kept = _in_sight(owner, shapes, parents, crowd.visible)
        if kept:
            return _photograph(rng, canvas, owner, shapes, parents, kept)


def _masks(owner: NDArray[np.int16], parents: list[int]) -> list[Mask]:
    """What can be seen of every object drawn, its parts included."""
    masks = [owner == i for i in range(len(parents))]
    for child, whole in enumerate(parents):
        if whole >= 0:
            masks[whole] |= masks[child]
    return masks


def _in_sight(owner: NDArray[np.int16], shapes: list[_Placed], parents: list[int], visible: float = MIN_ACROSS) -> list[int]:
    """Indices of the objects of which enough can be seen."""
    least = visible * max(owner.shape)
    drawn = [float((shape.coverage >= 0.5).sum()) for shape in shapes]
    return [i for i, mask in enumerate(_masks(owner, parents)) if _is_visible(mask, drawn[i], least)]


def _photograph(
    rng: Generator,
    canvas: Array,
    owner: NDArray[np.int16],
    shapes: list[_Placed],
    parents: list[int],
    kept: list[int],
) -> Scene:
    """The scene of a finished canvas, with the objects that are `kept`."""
    masks, place = _masks(owner, parents), {old: new for new, old in enumerate(kept)}
    return Scene(
        image=_camera(rng, canvas),
        masks=np.stack([masks[i] for i in kept]),
        names=tuple(shapes[i].name for i in kept),
        parents=tuple(place.get(parents[i], -1) for i in kept),
    )


# --- the same thing twice -------------------------------------------------------------------------------------------


def make_pair(seed: int, size: tuple[int, int] | None = None) -> tuple[Scene, Scene]:
    """Two scenes, each with the same thing as its last object: one shape, colour and texture; another place, scale and ground.

    All else in them is drawn as in any scene, before the thing, which nothing hides. Its size is 0.12 to 0.4 of the long
    side, in the second scene 0.6 to 0.85 or 1.2 to 1.6 times that of the first. size: (height, width) in pixels of both; by
    default each has a random one.
    """
    rng = np.random.default_rng([seed, 2])
    thing, colour = int(rng.integers(1 << 31)), _colour(rng, rng.random())
    first = rng.uniform(0.16, 0.28)
    second = first * (rng.uniform(0.6, 0.85) if rng.random() < 0.5 else rng.uniform(1.2, 1.6))
    return tuple(
        _scene_with(np.random.default_rng([seed, k]), thing, colour, share, size) for k, share in enumerate((first, second))
    )


def _scene_with(rng: Generator, thing: int, colour: Array, share: float, size: tuple[int, int] | None) -> Scene:
    """A scene with the thing of seed `thing` on top, `share` of the long side across, where its colour stands out."""
    while True:
        height, width = size or _image_size(rng)
        hue = float(rng.random())
        canvas = _ground(rng, height, width, hue)
        if rng.random() < 0.3:
            _clutter(rng, canvas)
        owner, shapes, parents = _draw_objects(rng, canvas, hue)
        for _ in range(20):
            placed = _place_thing(rng, owner, thing, share * max(height, width))
            if placed is not None and _stands_out(canvas, placed, colour):
                _paint_thing(canvas, placed, thing, colour)
                owner[placed.window][placed.coverage >= 0.5] = len(shapes)
                shapes, parents = [*shapes, placed], [*parents, -1]
                return _photograph(rng, canvas, owner, shapes, parents, _in_sight(owner, shapes, parents))


def _place_thing(rng: Generator, owner: NDArray[np.int16], thing: int, across: float) -> _Placed | None:
    """The thing at a random place wholly inside the photo and not inside another object; None where that fails."""
    height, width = owner.shape
    reach = across / 2 + 2
    if 2 * reach >= min(height, width):
        return None
    centre = (float(rng.uniform(reach, width - reach)), float(rng.uniform(reach, height - reach)))
    placed = _place(np.random.default_rng(thing), height, width, across, centre)
    return None if placed is None or _lies_inside(owner, placed) else placed


def _stands_out(canvas: Array, placed: _Placed, colour: Array) -> bool:
    """Whether the mean colour of what a shape would cover differs enough from `colour`."""
    cover = placed.coverage[..., None]
    ground = (canvas[placed.window] * cover).sum((0, 1)) / max(float(cover.sum()), 1.0)
    return float(np.linalg.norm(colour - ground)) > MIN_CONTRAST


def _paint_thing(canvas: Array, placed: _Placed, thing: int, colour: Array) -> None:
    """Draw the thing onto the canvas (in place): its texture is a function of its seed, at the scale of its size."""
    rng = np.random.default_rng([thing, 1])
    paint = _texture(rng, *placed.coverage.shape, placed.across, colour, rng.uniform(3, 40))
    window, cover = canvas[placed.window], placed.coverage[..., None]
    window += cover * (paint - window)


# --- prompts from masks ---------------------------------------------------------------------------------------------


def tight_box(mask: Mask) -> tuple[float, float, float, float]:
    """The tightest xyxy box in pixels around a non-empty mask bool [H, W]; the far edges are the last pixel's index."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(cols[0]), float(rows[0]), float(cols[-1]), float(rows[-1])


def interior_point(mask: Mask) -> tuple[float, float]:
    """The pixel (x, y) of a non-empty mask bool [H, W] farthest from its edge; the photo's border counts as edge."""
    left, top, right, bottom = (int(v) for v in tight_box(mask))
    inside = ndimage.distance_transform_edt(np.pad(mask[top : bottom + 1, left : right + 1], 1))
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    return float(left + x - 1), float(top + y - 1)

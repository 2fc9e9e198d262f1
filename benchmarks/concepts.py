"""Scenes of concepts that the bundled checkpoint segments badly: each a pure function of a seed, with the exact mask.

- `mushroom`, a whole of several parts: cap and stem in two colors. The base answers a click with the part under it.
- `tip`, one part of a whole: the end of a pill beyond a thin groove, in the pill's own color. The base answers with the pill.
- `checks`, a texture: a checkered field in two colors, among plain shapes. The base answers with one check, or a few.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 384
_FINE = 2 * SIZE  # shapes are drawn at twice the size, for soft edges


class Taught(NamedTuple):
    """An image uint8 [H, W, 3], and the concept's mask bool [H, W]."""

    image: np.ndarray
    mask: np.ndarray


Draw = Callable[[ImageDraw.ImageDraw], object]


class _Canvas:
    """An image under construction."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rows, self.columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
        self.pixels = self.paint()

    def paint(self, base: np.ndarray | None = None) -> np.ndarray:
        """A color with a gradient and noise, float [H, W, 3]."""
        rng = self.rng
        base = rng.uniform(20, 235, 3) if base is None else base
        slope, angle = rng.uniform(-40, 40, 3), rng.uniform(0, 2 * math.pi)
        ramp = (self.columns - 0.5) * math.cos(angle) + (self.rows - 0.5) * math.sin(angle)
        return base + slope * ramp[..., None] + rng.normal(0, 6, (SIZE, SIZE, 1))

    def apart_from(self, other: np.ndarray, far: float = 90.0) -> np.ndarray:
        """A color at least `far` from another one."""
        while True:
            color = self.rng.uniform(20, 235, 3)
            if np.linalg.norm(color - other) > far:
                return color

    def put(self, draw: Draw, paint: np.ndarray) -> np.ndarray:
        """Fill a shape; returns its mask bool [H, W]."""
        sheet = Image.new("L", (_FINE, _FINE), 0)
        draw(ImageDraw.Draw(sheet))
        alpha = np.asarray(sheet.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)[..., None] / 255
        self.pixels = self.pixels * (1 - alpha) + paint * alpha
        return alpha[..., 0] > 0.5

    def place(self, low: float, high: float) -> tuple[float, float]:
        """A place (x, y) on the fine sheet."""
        return tuple(self.rng.uniform(low, high, 2) * _FINE)

    def distractors(self, count: int) -> None:
        """Plain ellipses."""
        for _ in range(count):
            (x, y), (a, b) = self.place(0.1, 0.9), self.rng.uniform(0.04, 0.12, 2) * _FINE
            self.put(lambda d, x=x, y=y, a=a, b=b: d.ellipse([x - a, y - b, x + a, y + b], fill=255), self.paint())

    def taught(self, mask: np.ndarray) -> Taught:
        return Taught(np.clip(self.pixels, 0, 255).astype(np.uint8), mask)


def mushroom(seed: int) -> Taught:
    """The whole mushroom, cap and stem."""
    rng = np.random.default_rng([seed, 1])
    canvas = _Canvas(rng)
    canvas.distractors(3)
    (x, y), r = (rng.uniform(0.3, 0.7) * _FINE, rng.uniform(0.3, 0.6) * _FINE), rng.uniform(0.12, 0.22) * _FINE
    half, tall = r * rng.uniform(0.25, 0.45), r * rng.uniform(0.9, 1.4)
    cap_color = rng.uniform(20, 235, 3)
    stem = canvas.put(
        lambda d: d.rectangle([x - half, y, x + half, y + tall], fill=255), canvas.paint(canvas.apart_from(cap_color))
    )
    cap = canvas.put(
        lambda d: d.pieslice([x - r, y - r * 0.8, x + r, y + r * 0.8], 180, 360, fill=255), canvas.paint(cap_color)
    )
    return canvas.taught(cap | stem)


def tip(seed: int) -> Taught:
    """The shorter end of a pill, beyond its groove."""
    rng = np.random.default_rng([seed, 2])
    canvas = _Canvas(rng)
    canvas.distractors(3)
    x, y = canvas.place(0.35, 0.65)
    long, wide = rng.uniform(0.18, 0.28) * _FINE, rng.uniform(0.07, 0.11) * _FINE
    angle = rng.uniform(0, 2 * math.pi)
    along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    color = canvas.apart_from(canvas.pixels[SIZE // 2, SIZE // 2])
    paint, cut = canvas.paint(color), long * rng.uniform(0.1, 0.35)

    def pill(d: ImageDraw.ImageDraw) -> None:
        corners = [np.array([x, y]) + s * long * along + t * wide * across for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        d.polygon([tuple(corner) for corner in corners], fill=255)
        for end in (-1, 1):
            cx, cy = np.array([x, y]) + end * long * along
            d.ellipse([cx - wide, cy - wide, cx + wide, cy + wide], fill=255)

    def groove(d: ImageDraw.ImageDraw) -> None:
        middle = np.array([x, y]) + cut * along
        d.line([tuple(middle - wide * across), tuple(middle + wide * across)], fill=255, width=6)

    whole = canvas.put(pill, paint)
    dark = canvas.put(groove, paint * 0.75)
    place = (canvas.columns * _FINE - x) * along[0] + (canvas.rows * _FINE - y) * along[1]
    return canvas.taught(whole & (place > cut) & ~dark)


def checks(seed: int) -> Taught:
    """A checkered field."""
    rng = np.random.default_rng([seed, 3])
    canvas = _Canvas(rng)
    canvas.distractors(4)
    (x, y), corners = canvas.place(0.35, 0.65), int(rng.integers(5, 9))
    turns = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * math.pi / corners
    reach = rng.uniform(0.16, 0.26) * _FINE * rng.uniform(0.8, 1.1, corners)
    outline = [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(reach, turns, strict=True)]
    color = rng.uniform(20, 235, 3)
    light, dark = canvas.paint(color), canvas.paint(canvas.apart_from(color, 130.0))
    angle, period = rng.uniform(0, math.pi), rng.uniform(0.12, 0.2)
    along = canvas.columns * math.cos(angle) + canvas.rows * math.sin(angle)
    across = canvas.rows * math.cos(angle) - canvas.columns * math.sin(angle)
    wave = (np.sin(2 * math.pi * along / period) * np.sin(2 * math.pi * across / period))[..., None]
    return canvas.taught(canvas.put(lambda d: d.polygon(outline, fill=255), np.where(wave > 0, light, dark)))


CONCEPTS: dict[str, Callable[[int], Taught]] = {"mushroom": mushroom, "tip": tip, "checks": checks}

#!/usr/bin/env python3
"""The icon and the banner of the registry: an object under its mask, and the click that made it.

    .venv/bin/python tools/make_icon.py

Writes docs/icon.png (400x400) and docs/banner.png (1260x540, 21:9), the same bytes each time. Needs numpy and Pillow.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parent.parent / "docs"
ICON, BANNER = (400, 400), (1260, 540)
FINER = 4  # everything is drawn this many times larger, then reduced

BACK, QUIET, INK = (24, 26, 31), (46, 50, 58), (236, 238, 242)
OBJECT, MASK = (150, 104, 62), (30, 144, 255)  # the mask has the blue of the editor's first object


def blob(center: tuple[float, float], radius: float, waves: tuple[tuple[int, float, float], ...]) -> list[tuple[float, float]]:
    """A round outline with waves (how many around, how high, where they begin): points."""
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    radii = radius * (1 + sum(height * np.sin(count * angles + start) for count, height, start in waves))
    return [*zip(center[0] + radii * np.cos(angles), center[1] + radii * np.sin(angles), strict=True)]


def motif(canvas: Image.Image, center: tuple[float, float], size: float) -> None:
    """Draw the motif: objects that are not selected, one under its mask, and the point on it."""
    draw = ImageDraw.Draw(canvas)
    x, y = center
    draw.polygon(blob((x - 0.36 * size, y + 0.30 * size), 0.17 * size, ((5, 0.10, 0.4),)), fill=QUIET)
    draw.polygon(blob((x + 0.38 * size, y - 0.34 * size), 0.11 * size, ()), fill=QUIET)
    waves = ((3, 0.09, 0.9), (5, 0.07, 2.0), (2, 0.05, 0.2))
    inside = tuple(round(0.4 * own + 0.6 * mask) for own, mask in zip(OBJECT, MASK, strict=True))
    draw.polygon(blob((x, y), 0.342 * size, waves), fill=MASK)
    draw.polygon(blob((x, y), 0.318 * size, waves), fill=inside)
    point(draw, (x + 0.02 * size, y - 0.02 * size), 0.085 * size)


def point(draw: ImageDraw.ImageDraw, center: tuple[float, float], radius: float) -> None:
    """The editor's mark of a positive point: a white disk with a plus."""
    x, y = center
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=INK)
    arm, half = 0.58 * radius, 0.13 * radius
    draw.rectangle([x - arm, y - half, x + arm, y + half], fill=MASK)
    draw.rectangle([x - half, y - arm, x + half, y + arm], fill=MASK)


def icon() -> Image.Image:
    """The icon, 400x400."""
    canvas = Image.new("RGB", (ICON[0] * FINER, ICON[1] * FINER), BACK)
    motif(canvas, (canvas.width / 2, canvas.height / 2), canvas.width)
    return canvas.resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The banner, 21:9: the motif, the name and what it is for."""
    canvas = Image.new("RGB", (BANNER[0] * FINER, BANNER[1] * FINER), BACK)
    motif(canvas, (0.24 * canvas.width, canvas.height / 2), 0.95 * canvas.height)
    draw = ImageDraw.Draw(canvas)
    for text, size, height, fill in (("SAM Kit", 150, 205, INK), ("Click. Get the mask.", 58, 335, MASK)):
        draw.text((560 * FINER, height * FINER), text, fill, ImageFont.load_default(size * FINER), anchor="lm")
    return canvas.resize(BANNER, Image.Resampling.LANCZOS)


def main() -> None:
    """Write both files."""
    for name, made in (("icon", icon()), ("banner", banner())):
        made.quantize(128, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

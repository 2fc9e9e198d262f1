"""Procedural films with exact masks: a few objects of `scenes` that move, turn and pass behind each other.

What `benchmarks/track.py` measures following on. Like a scene, a film is a pure function of an integer seed. As a script, this
writes the film of the templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import load_pack  # noqa: F401  the scenes are found by it
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scenes import MIN_CONTRAST, Array, Mask, _colour, _ground, _place, _shade, _texture

EXAMPLE = Path(__file__).resolve().parent.parent / "example_workflows" / "samkit_film.webp"
EXAMPLE_SEED, EXAMPLE_FRAMES, EXAMPLE_SIZE = 2_000_000, 24, (240, 320)
_MILLISECONDS = 125  # that a frame of it is shown
HIDDEN = 0.6  # most of the object behind that is seen where it is hidden most
SEEN = 0.85  # least of each object that is seen on the first and the last frame
_SIZES = (0.17, 0.3)  # of an object, in sides of the frame
_SPRITE = 1.5  # pixels of a sprite for a pixel of the frame


@dataclass(frozen=True)
class Film:
    """Frames and the objects in them.

    frames: T of uint8 [H, W, 3] RGB. masks: bool [T, N, H, W], what can be seen of each object; the first one passes behind
    the second.
    """

    frames: list[NDArray[np.uint8]]
    masks: Mask


@dataclass(frozen=True)
class _Path:
    """Where an object is: x, y [T] in pixels, its turn [T] in radians and its scale [T]."""

    x: Array
    y: Array
    turn: Array
    scale: Array


def make_film(seed: int, count: int = 24, size: tuple[int, int] = (320, 320), objects: int = 3) -> Film:
    """The film of a seed. size: (height, width) of its `count` frames."""
    rng = np.random.default_rng([seed, 3])
    while True:
        film = _draw(rng, count, size, objects)
        if film is not None:
            return film


def _draw(rng: Generator, count: int, size: tuple[int, int], objects: int) -> Film | None:
    """A film; None where the first object does not pass behind the second as it should."""
    height, width = size
    hue, side = float(rng.random()), min(size)
    pan = rng.uniform(-0.8, 0.8, 2) * count
    margin = int(np.abs(pan).max()) + 2
    ground = _ground(rng, height + 2 * margin, width + 2 * margin, hue)
    colours = _colours(rng, hue, ground, objects)
    sprites = [_sprite(rng, colour, side * rng.uniform(*_SIZES)) for colour in colours]
    if any(sprite is None for sprite in sprites):
        return None
    paths = _paths(rng, count, size, objects)
    gain = rng.normal(1, 0.05, 3).astype(np.float32) * np.float32(rng.uniform(0.8, 1.15))
    noise, blur = rng.gamma(2, 1.5), float(rng.uniform(0.0, 0.8))
    frames, masks, whole = [], [], []
    for t in range(count):
        left, top = (margin + pan * t / count).round().astype(int)
        canvas = ground[top : top + height, left : left + width].copy()
        seen: list[Mask] = [np.zeros(size, bool)] * objects
        areas = [0] * objects
        for number in (*range(2, objects), 0, 1):  # the first object behind the second
            paint, cover = _posed(sprites[number], paths[number], t, size)
            canvas += cover[..., None] * (paint - canvas)
            inside = cover >= 0.5
            seen = [mask & ~inside for mask in seen]
            seen[number], areas[number] = inside, int(inside.sum())
        image = Image.fromarray(np.clip(canvas * gain, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
        grain = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(noise)
        frames.append(np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8))
        masks.append(seen)
        whole.append(areas)
    found = np.array(masks)
    share = found.sum((2, 3)) / np.maximum(np.array(whole), 1)
    if share[[0, -1]].min() < SEEN or share[:, 0].min() > HIDDEN or np.array(whole)[0].min() < 0.3 * (_SIZES[0] * side) ** 2:
        return None
    return Film(frames, found)


def _colours(rng: Generator, hue: float, ground: Array, count: int) -> list[Array]:
    """Mean colours that stand out from the ground and from each other."""
    taken = [ground.mean((0, 1))]
    while len(taken) <= count:
        colour = _colour(rng, hue)
        if min(float(np.linalg.norm(colour - other)) for other in taken) > MIN_CONTRAST:
            taken.append(colour)
    return taken[1:]


def _sprite(rng: Generator, colour: Array, across: float) -> tuple[Image.Image, list[Image.Image]] | None:
    """An object's coverage, and its paint in three channels, larger than it is shown and on a square that it can turn in."""
    side = int(across * _SPRITE * 1.5) + 8
    placed = _place(rng, side, side, across * _SPRITE, (side / 2, side / 2))
    if placed is None:
        return None
    cover, paint = np.zeros((side, side), np.float32), np.broadcast_to(colour, (side, side, 3)).astype(np.float32)
    texture = _texture(rng, *placed.coverage.shape, placed.across, colour, rng.uniform(3, 40))
    cover[placed.window], paint[placed.window] = placed.coverage, _shade(rng, placed, texture)
    return Image.fromarray(cover), [Image.fromarray(np.ascontiguousarray(paint[..., k])) for k in range(3)]


def _paths(rng: Generator, count: int, size: tuple[int, int], objects: int) -> list[_Path]:
    """Bent ways through the frame; the first two meet about the middle of the film."""
    height, width = size
    time = np.linspace(0, 1, count, dtype=np.float32)
    meeting, when = rng.uniform(0.4, 0.6, 2) * [width, height], float(rng.uniform(0.4, 0.6))
    heading = rng.uniform(0, 2 * np.pi)
    paths = []
    for number in range(objects):
        if number < 2:  # from two sides, so that they part again
            angle = heading + number * rng.uniform(0.6, 1.4) * np.pi
            way = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.4, 0.62) * np.array([width, height])
            x, y = (meeting[k] + way[k] * (time - when) for k in (0, 1))
        else:
            ends = rng.uniform(0.15, 0.85, (2, 2)) * [width, height]
            x, y = (ends[0, k] + (ends[1, k] - ends[0, k]) * time for k in (0, 1))
        bend = rng.uniform(-0.1, 0.1, 2) * [width, height]
        bow = (time - when) ** 2 * 2 if number < 2 else np.sin(np.pi * time)
        turn = rng.uniform(-np.pi, np.pi) + rng.uniform(-0.06, 0.06) * count * time
        paths.append(_Path(x + bend[0] * bow, y + bend[1] * bow, turn, np.exp(rng.uniform(-0.25, 0.25) * time)))
    return paths


def _posed(sprite: tuple[Image.Image, list[Image.Image]], path: _Path, t: int, size: tuple[int, int]) -> tuple[Array, Array]:
    """An object's paint float32 [H, W, 3] and coverage [H, W] on a frame."""
    cover, paint = sprite
    middle, zoom = cover.width / 2, _SPRITE / float(path.scale[t])
    cos, sin = float(np.cos(path.turn[t])) * zoom, float(np.sin(path.turn[t])) * zoom
    x, y = float(path.x[t]), float(path.y[t])
    turned = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    shape = size[1], size[0]
    moved = [
        np.asarray(one.transform(shape, Image.Transform.AFFINE, turned, Image.Resampling.BILINEAR)) for one in (cover, *paint)
    ]
    return np.stack(moved[1:], -1), np.clip(moved[0], 0, 1)


def example_film() -> Film:
    """The film of the templates, as it was drawn."""
    return make_film(EXAMPLE_SEED, EXAMPLE_FRAMES, EXAMPLE_SIZE)


def write_example(path: Path = EXAMPLE) -> None:
    """Write it as an animated WebP, which ComfyUI's Load Image opens as a batch."""
    first, *others = map(Image.fromarray, example_film().frames)
    first.save(path, save_all=True, append_images=others, duration=_MILLISECONDS, loop=0, quality=85, method=6)


if __name__ == "__main__":
    write_example()

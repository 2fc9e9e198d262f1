"""What the demonstration checkpoint learns from: scenes as the model sees them, in pairs, and prompts for their objects."""

from __future__ import annotations

import os
import queue
from dataclasses import dataclass

import numpy as np
import torch
import torch.multiprocessing as mp
from demo_network import CORNER_A, CORNER_B, NEGATIVE, PAD, PIXEL_MEAN, PIXEL_STD, POSITIVE
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scenes import Mask, Scene, interior_point, make_pair, make_scene, tight_box
from scipy import ndimage
from torch import Tensor

EVAL_SEEDS = 1_000_000_000  # training seeds stay below, held-out ones start here
EDGE_POINTS = 384  # places near an object's edge that a view has; a step takes some of them
EDGE_REACH = 2.5  # how far they are from it, in source pixels

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """A scene as the model at one input size sees it, before padding.

    image: uint8 [h, w, 3]. targets: uint8 [N, h/2, w/2], share (of 255) of each 2x2 pixels that the object covers.
    boxes: float32 [N, 4] xyxy and points: float32 [N, 2] (most interior pixel), both in model pixels.
    edges: float32 [N, EDGE_POINTS, 2], continuous places (x, y; a pixel's middle is at one half) near the object's edge in
    model pixels, and inside: float32 [N, EDGE_POINTS], how far each is in the object (0..1), from the source's pixels.
    """

    image: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    boxes: Floats
    points: Floats
    edges: Floats
    inside: Floats


@dataclass(frozen=True)
class Duo:
    """Two scenes by input size; `same`: the last object of both is one object (`scenes.make_pair`)."""

    scenes: tuple[dict[int, View], dict[int, View]]
    same: bool


def training_size(rng: Generator) -> tuple[int, int]:
    """An image size whose resized sides are multiples of 4 at every input size, so that flips keep the mask grid."""
    unit = int(rng.choice([6, 7, 8, 9, 10]))
    short = int(rng.choice([36, 42, 44, 48, 54, 64])) * unit
    return (short, 64 * unit) if rng.random() < 0.6 else (64 * unit, short)


def edge_points(rng: Generator, mask: Mask) -> tuple[Floats, Floats]:
    """Places near the edge of a mask bool [H, W] (x, y; a pixel's middle is at one half) and the mask there, interpolated.

    PointRend's and SAM-HQ's points, taken where the truth is uncertain and not where the prediction is: these need no
    prediction. The border of the image is not an edge.
    """
    wide = np.pad(mask, 1, mode="edge")
    edge = mask & ~(wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:])
    rows, cols = np.nonzero(edge if edge.any() else mask)
    pick = rng.integers(len(rows), size=EDGE_POINTS)
    places = np.stack([cols[pick], rows[pick]], 1) + 0.5 + rng.uniform(-EDGE_REACH, EDGE_REACH, (EDGE_POINTS, 2))
    places = np.clip(places, 0.5, np.array(mask.shape[::-1]) - 0.5)
    inside = ndimage.map_coordinates(mask.astype(np.float32), places.T[::-1] - 0.5, order=1)
    return places.astype(np.float32), inside.astype(np.float32)


def make_views(scene: Scene, rng: Generator, sizes: tuple[int, ...]) -> dict[int, View]:
    """A scene at every input size: PIL bilinear for the image, as the predictor does, and area for the masks."""
    height, width = scene.image.shape[:2]
    boxes = np.array([tight_box(m) for m in scene.masks], np.float32)
    points = np.array([interior_point(m) for m in scene.masks], np.float32)
    edges, inside = (np.stack(each) for each in zip(*(edge_points(rng, m) for m in scene.masks), strict=True))
    views = {}
    for size in sizes:
        scale = size / max(height, width)
        new_h, new_w = int(height * scale + 0.5), int(width * scale + 0.5)
        image = np.array(Image.fromarray(scene.image).resize((new_w, new_h), Image.Resampling.BILINEAR))
        sheets = [Image.fromarray(m.view(np.uint8) * 255) for m in scene.masks]
        targets = [np.asarray(sheet.resize((new_w // 2, new_h // 2), Image.Resampling.BOX)) for sheet in sheets]
        factor = np.array([new_w / width, new_h / height] * 2, np.float32)
        views[size] = View(image, np.stack(targets), boxes * factor, points * factor[:2], edges * factor[:2], inside)
    return views


def make_duo(rng: Generator, sizes: tuple[int, ...], same: float) -> Duo:
    """Two fresh scenes; with probability `same` they show one object twice."""
    if rng.random() < same:
        pair = make_pair(int(rng.integers(EVAL_SEEDS)), training_size(rng))
        return Duo(tuple(make_views(scene, rng, sizes) for scene in pair), True)
    scenes = (make_scene(int(rng.integers(EVAL_SEEDS)), training_size(rng)) for _ in range(2))
    return Duo(tuple(make_views(scene, rng, sizes) for scene in scenes), False)


def produce(out: mp.Queue, seed: int, sizes: tuple[int, ...], same: float) -> None:
    """Endless duos into a queue; a process of low priority."""
    os.nice(10)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    while True:
        out.put(make_duo(rng, sizes, same))


class Pool:
    """Duos kept for reuse: filled from the producers as fast as they come, the oldest replaced when full."""

    def __init__(self, source: mp.Queue, capacity: int, first: int) -> None:
        """Wait for `first` duos, then go on with what is there."""
        self.source, self.capacity, self.made = source, capacity, first
        self.items: list[Duo] = [source.get() for _ in range(first)]

    def refill(self) -> None:
        """Take what the producers have ready, without waiting."""
        for _ in range(4):
            try:
                item = self.source.get_nowait()
            except queue.Empty:
                return
            if len(self.items) < self.capacity:
                self.items.append(item)
            else:
                self.items[self.made % self.capacity] = item
            self.made += 1

    def draw(self, rng: Generator, img_size: int) -> tuple[View, View, bool]:
        """A random duo, flipped and transposed at random; the colour channels permuted at times, but not of one object."""
        duo = self.items[int(rng.integers(len(self.items)))]
        one, two = (augment(rng, views[img_size], recolour=not duo.same) for views in duo.scenes)
        return one, two, duo.same


def augment(rng: Generator, view: View, recolour: bool) -> View:
    """Random transposition, flips and, at times, another order of the colour channels."""
    image, targets, boxes, points, edges = view.image, view.targets, view.boxes, view.points, view.edges
    if rng.random() < 0.5:
        image, targets = image.transpose(1, 0, 2), targets.transpose(0, 2, 1)
        boxes, points, edges = boxes[:, [1, 0, 3, 2]], points[:, ::-1], edges[..., ::-1]
    height, width = image.shape[:2]
    boxes, points, edges = boxes.copy(), points.copy(), edges.copy()
    for axis, side in ((0, width), (1, height)):
        if rng.random() < 0.5:
            image, targets = np.flip(image, 1 - axis), np.flip(targets, 2 - axis)
            boxes[:, [axis, axis + 2]] = side - 1 - boxes[:, [axis + 2, axis]]
            points[:, axis] = side - 1 - points[:, axis]
            edges[..., axis] = side - edges[..., axis]
    if recolour and rng.random() < 0.4:
        image = image[..., rng.permutation(3)]
    return View(image, targets, boxes, points, edges, view.inside)


def to_input(image: NDArray[np.uint8], img_size: int) -> Tensor:
    """uint8 [h, w, 3] in the model frame -> float32 [3, img_size, img_size], normalised, then padded with zeros."""
    padded = np.zeros((img_size, img_size, 3), np.float32)
    padded[: image.shape[0], : image.shape[1]] = (image - PIXEL_MEAN) / PIXEL_STD
    return torch.from_numpy(padded).permute(2, 0, 1)


@dataclass
class Batch:
    """S scenes, two of each duo in succession, with P prompts each, B = S * P.

    images: float32 [S, 3, size, size]. targets: float32 [B, 1, size/2, size/2] in 0..1, twice as fine as the logits.
    coords [B, K, 2] in model pixels and labels [B, K]: the first prompts. edges [B, E, 2] and inside [B, E]: see View.
    objects: float32 [S, N, size/2, size/2] of 0 and 1, all objects of each scene, the last one last, padded in front with
    empty masks. hit: bool [B, N], the objects that the first prompt may mean (those under a click, the one in a box).
    asked: bool [B, N], the one whose mask is wanted; none for a click on the ground. same: bool [S/2], see Duo.
    """

    images: Tensor
    targets: Tensor
    coords: Tensor
    labels: Tensor
    edges: Tensor
    inside: Tensor
    objects: Tensor
    hit: Tensor
    asked: Tensor
    same: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(**{key: value.to(device) for key, value in vars(self).items()})


@dataclass(frozen=True)
class _Prompt:
    """A first prompt: two places and labels, the object that is asked for (or -1), and those that it may mean."""

    coords: Floats
    labels: list[int]
    asked: int
    hit: list[int]


def box_prompt(rng: Generator, view: View, index: int) -> _Prompt:
    """The box of an object, one in five jittered."""
    box = view.boxes[index]
    side = np.array([box[2] - box[0], box[3] - box[1]] * 2, np.float32)
    jitter = rng.normal(0, 0.06, 4) * side * (rng.random() < 0.2)
    limit = np.array(view.image.shape[1::-1] * 2, np.float32)
    corners = np.clip(box + np.clip(jitter, -12, 12), 0, limit).reshape(2, 2).astype(np.float32)
    return _Prompt(corners, [CORNER_A, CORNER_B], index, [index])


def click_prompt(rng: Generator, view: View, index: int) -> _Prompt:
    """A click on an object: its most interior pixel, or any."""
    click = view.points[index]
    if rng.random() < 0.6:
        anywhere = random_cell(rng, view.targets[index] >= 160, 2)
        click = click if anywhere is None else anywhere
    return _click(click, view, index)


def stray_prompt(rng: Generator, view: View) -> _Prompt:
    """A click anywhere in the image, as segment everything clicks; it means the smallest object there, or none."""
    height, width = view.image.shape[:2]
    click = np.array([rng.uniform(0, width - 1), rng.uniform(0, height - 1)], np.float32)
    under = _under(click, view)
    index = min(under, key=lambda i: int(view.targets[i].sum()), default=-1)
    return _click(click, view, index)


def _click(place: Floats, view: View, index: int) -> _Prompt:
    coords = np.stack([place, np.zeros(2, np.float32)]).astype(np.float32)
    return _Prompt(coords, [POSITIVE, PAD], index, sorted({*_under(place, view), *([index] if index >= 0 else [])}))


def _under(place: Floats, view: View) -> list[int]:
    """The objects at a place (x, y) in model pixels."""
    col, row = (min(int(v) // 2, side - 1) for v, side in zip(place, view.targets.shape[:0:-1], strict=True))
    return [int(i) for i in np.flatnonzero(view.targets[:, row, col] >= 128)]


def random_cell(rng: Generator, cells: Mask, side: int) -> Floats | None:
    """A random model pixel (x, y) within the marked cells, each `side` pixels wide; None if there are none."""
    flat = np.flatnonzero(cells)
    if not len(flat):
        return None
    row, col = divmod(int(flat[rng.integers(len(flat))]), cells.shape[1])
    return np.array([col, row], np.float32) * side + rng.uniform(0, side - 1, 2).astype(np.float32)


def first_prompts(rng: Generator, view: View, count: int, stray: float) -> list[_Prompt]:
    """First prompts for `count` objects, as different ones as there are; each is a stray click with probability `stray`."""
    objects = len(view.targets)
    order = np.concatenate([rng.permutation(objects) for _ in range(count // objects + 1)])[:count]
    prompts = []
    for index in order:
        kind = stray_prompt(rng, view) if rng.random() < stray else None
        prompts.append(kind or (box_prompt if rng.random() < 0.5 else click_prompt)(rng, view, int(index)))
    return prompts


def make_batch(rng: Generator, pool: Pool, img_size: int, duos: int, prompts: int, stray: float, edges: int) -> Batch:
    """Draw scenes, objects, first prompts and `edges` places near each object's edge."""
    drawn = [pool.draw(rng, img_size) for _ in range(duos)]
    views = [view for one, two, _ in drawn for view in (one, two)]
    asked = [(view, prompt) for view in views for prompt in first_prompts(rng, view, prompts, stray)]
    grid, most = img_size // 2, max(len(view.targets) for view in views)
    targets = np.zeros((len(asked), 1, grid, grid), np.float32)
    objects = np.zeros((len(views), most, grid, grid), np.float32)
    hit, wanted = (np.zeros((len(asked), most), bool) for _ in range(2))
    places, inside = np.zeros((len(asked), edges, 2), np.float32), np.zeros((len(asked), edges), np.float32)
    for own, view in zip(objects, views, strict=True):
        own[-len(view.targets) :, : view.targets.shape[1], : view.targets.shape[2]] = view.targets >= 128
    for b, (view, prompt) in enumerate(asked):
        first, index = most - len(view.targets), prompt.asked
        hit[b, [first + i for i in prompt.hit]] = True
        if index >= 0:
            wanted[b, first + index] = True
            targets[b, 0, : view.targets.shape[1], : view.targets.shape[2]] = view.targets[index] / np.float32(255)
            chosen = rng.integers(view.edges.shape[1], size=edges)
            places[b], inside[b] = view.edges[index, chosen], view.inside[index, chosen]
    return Batch(
        images=torch.stack([to_input(view.image, img_size) for view in views]),
        targets=torch.from_numpy(targets),
        coords=torch.from_numpy(np.stack([prompt.coords for _, prompt in asked])),
        labels=torch.tensor([prompt.labels for _, prompt in asked]),
        edges=torch.from_numpy(places),
        inside=torch.from_numpy(inside),
        objects=torch.from_numpy(objects),
        hit=torch.from_numpy(hit),
        asked=torch.from_numpy(wanted),
        same=torch.tensor([same for _, _, same in drawn]),
    )


def corrective_click(rng: Generator, predicted: Mask, wanted: Mask) -> tuple[Floats, int]:
    """A click (x, y) in model pixels and its label where two low-resolution masks [G, G] differ.

    Half of them at the middle of the largest error region, as the measurement does; else anywhere in the error.
    """
    wrong = predicted ^ wanted
    if not wrong.any():
        anywhere = random_cell(rng, wanted, 4)
        return (np.zeros(2, np.float32), PAD) if anywhere is None else (anywhere, POSITIVE)
    if rng.random() < 0.5:
        click = random_cell(rng, wrong, 4)
        assert click is not None
        row, col = int(click[1]) // 4, int(click[0]) // 4
    else:
        col, row = (int(v) for v in interior_point(largest_piece(wrong)))
        click = np.array([col * 4 + 1.5, row * 4 + 1.5], np.float32)
    return click, POSITIVE if wanted[row, col] else NEGATIVE


def largest_piece(mask: Mask) -> Mask:
    """The largest connected component of a non-empty mask bool [H, W]."""
    pieces, count = ndimage.label(mask)
    return mask if count == 1 else pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())

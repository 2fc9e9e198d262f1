"""Prompts that are drawn anew for every step, so that no prompt is learned by heart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from ..prompts import PromptTensors
from .examples import Example

_INNER = 0.5  # of the way from the edge to the middle
_JITTER = 0.05  # standard deviation of a box's edges, of its sides


@dataclass(frozen=True)
class Drawer:
    """Prompts in pixels of a model's square input.

    Attributes:
        cell: pixels of the square on a side of a cell of the grid.
        device: of the tensors.
    """

    cell: float
    device: torch.device

    def clicks(self, cells: Tensor, rng: Generator, count: int) -> PromptTensors:
        """`count` single positive clicks somewhere on cells bool `[4h, 4w]`."""
        return self.points([[place] for place in _somewhere(cells, rng, count)], np.ones((count, 1)))

    def points(self, places: list[list[tuple[int, int]]], labels: np.ndarray) -> PromptTensors:
        """Points at the middle of cells (row, column), n prompts of P points each, with labels `[n, P]`."""
        middle = (np.array(places, dtype=np.float64)[..., ::-1] + 0.5) * self.cell
        coords = torch.from_numpy(middle.astype(np.float32)).to(self.device)
        return PromptTensors((coords, torch.from_numpy(labels.astype(np.int32)).to(self.device)), None, None)

    def on_object(self, example: Example, rng: Generator, count: int) -> PromptTensors:
        """Clicks on the object, every second one well inside it, where people click."""
        inner = example.mask & (example.depth >= _INNER)
        halves = [_somewhere(cells, rng, 1)[0] for cells in [inner, example.mask] * ((count + 1) // 2)]
        return self.points([[place] for place in halves[:count]], np.ones((count, 1)))

    def several(self, example: Example, rng: Generator, count: int) -> PromptTensors:
        """Two or three points on the object, or two and one beside it, for each of `count` prompts."""
        many, beside = int(rng.integers(2, 4)), (example.inside > _INNER) & ~example.mask
        labels = np.ones((count, many))
        places = [_somewhere(example.mask, rng, many) for _ in range(count)]
        if many > 2 and bool(beside.any()) and rng.random() < _INNER:
            labels[:, -1] = 0
            places = [[*some[:-1], *_somewhere(beside, rng, 1)] for some in places]
        return self.points(places, labels)

    def boxes(self, masks: Sequence[Tensor], rng: Generator) -> PromptTensors:
        """A box around each mask bool `[4h, 4w]`, each edge off by a little; no mask is empty."""
        edges = np.array([_edges(mask) for mask in masks], dtype=np.float64)
        sides = np.tile(edges[:, 2:] - edges[:, :2], 2)
        jittered = (edges + rng.normal(0, _JITTER, edges.shape) * sides) * self.cell
        boxes = np.clip(jittered, 0, self.cell * len(masks[0])).astype(np.float32)
        return PromptTensors(None, torch.from_numpy(boxes).to(self.device), None)

    def held_out(self, example: Example, seed: int, count: int) -> PromptTensors:
        """Clicks that are always the same: the middle of the object, then random places on it."""
        rng = np.random.default_rng(seed)
        middle = np.unravel_index(int(example.depth.argmax()), example.depth.shape)
        places = [(int(middle[0]), int(middle[1])), *_somewhere(example.mask, rng, count - 1)]
        return self.points([[place] for place in places], np.ones((count, 1)))


def _edges(mask: Tensor) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) in cells."""
    rows, columns = np.nonzero(mask.numpy())
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def _somewhere(cells: Tensor, rng: Generator, count: int) -> list[tuple[int, int]]:
    """Random cells (row, column) of those that are set."""
    rows, columns = np.nonzero(cells.numpy())
    picked = rng.integers(len(rows), size=count)
    return [(int(rows[i]), int(columns[i])) for i in picked]

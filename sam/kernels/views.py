"""Mask logits of one view of an image on the grid of another one, see `geometry.View`."""

import torch
from torch import Tensor

from ..geometry import View


def resampled(logits: Tensor, source: View, target: View, outside: float) -> Tensor:
    """Logits of one view, interpolated at the cells of a finer one.

    Args:
        logits: float32 `[n, h, w]` on the grid of `source`.
        source, target: of one image.
        outside: the value of cells that are not in the target's window: the padding of its input.

    Returns:
        float32 `[n, 4h, 4w]` on the grid of `target`.
    """
    rows, columns = (_places(source, target, axis, logits.shape[1 + axis]).to(logits.device) for axis in (0, 1))
    inside = (rows.sum(1) > 0)[:, None] & (columns.sum(1) > 0)[None]
    return torch.where(inside, rows @ logits @ columns.T, logits.new_tensor(outside))


def averaged(values: Tensor, source: View, target: View) -> tuple[Tensor, Tensor]:
    """Values of one view, averaged over the cells of a coarser one.

    Args:
        values: float32 `[h, w]` on the grid of `source`.
        source, target: of one image.

    Returns:
        The means float32 `[4h, 4w]` on the grid of `target` over what the source's window covers of each cell, 0 where that is
        nothing; and which share of each cell it covers.
    """
    rows, columns = (_overlaps(source, target, axis).to(values.device) for axis in (0, 1))
    covered = rows.sum(1)[:, None] * columns.sum(1)[None]
    return rows @ values @ columns.T / covered.clamp(min=1e-6), covered


def _edges(view: View, axis: int) -> tuple[Tensor, float]:
    """The edges of a grid's cells on an axis, in pixels of the image, float64 `[count + 1]`; and where the window ends."""
    start, end = view.window[1 - axis], view.window[3 - axis]
    return start + torch.arange(view.geometry.grid[axis] + 1, dtype=torch.float64) / view.geometry.cells[axis], float(end)


def _places(source: View, target: View, axis: int, count: int) -> Tensor:
    """The matrix float32 `[of target, of source]` that interpolates at the middles of the target's cells, 0 in its padding."""
    edges, end = _edges(target, axis)
    middles = (edges[1:] + edges[:-1]) / 2
    places = (middles - source.window[1 - axis]) * source.geometry.cells[axis] - 0.5
    # The padding of the source is no image: what lies in it would be mixed into the image's last cells.
    last = min(count - 1, int((source.window[3 - axis] - source.window[1 - axis]) * source.geometry.cells[axis] - 1e-6))
    places = places.clamp(0, last)
    first = places.floor().long()
    share = places - first
    matrix = torch.zeros(len(middles), count, dtype=torch.float64)
    row = torch.arange(len(middles))
    matrix[row, first] += 1 - share
    matrix[row, (first + 1).clamp(max=count - 1)] += share
    return (matrix * (middles < end)[:, None]).float()


def _overlaps(source: View, target: View, axis: int) -> Tensor:
    """The matrix float32 `[of target, of source]`: which share of a cell of the target each cell of the source covers."""
    (own, end), (other, _) = _edges(source, axis), _edges(target, axis)
    own = own.clamp(max=end)
    low, high = torch.maximum(other[:-1, None], own[None, :-1]), torch.minimum(other[1:, None], own[None, 1:])
    return ((high - low).clamp(min=0) / (other[1:] - other[:-1])[:, None]).float()

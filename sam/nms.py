"""Of boxes that overlap, only the best."""

from collections.abc import Callable

import torch
from torch import Tensor


def _all(index: int) -> bool:
    return True


def non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float, counts: Callable[[int], bool] = _all) -> list[int]:
    """Greedy suppression, as `torchvision.ops.nms` does it, in plain torch.

    Args:
        boxes: float `[N, 4]` (x1, y1, x2, y2).
        scores: float `[N]`; of equal ones the first goes before.
        threshold: a box that overlaps a kept one by a larger IoU is dropped.
        counts: whether the box of an index counts at all; asked, best first, only of those that no kept one has dropped. The
            result is that of the boxes that count alone.

    Returns:
        Indices of the kept boxes, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for index in range(len(boxes)):
        if not alive[index] or not counts(int(order[index])):
            continue
        kept.append(int(order[index]))
        low = torch.maximum(boxes[index, :2], boxes[index:, :2])
        high = torch.minimum(boxes[index, 2:], boxes[index:, 2:])
        overlap = (high - low).clamp(min=0).prod(1)
        alive[index:] &= ~(overlap / (area[index] + area[index:] - overlap) > threshold)
    return kept

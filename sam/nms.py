"""Of boxes that overlap, only the best."""

import torch
from torch import Tensor


def non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Greedy suppression, as `torchvision.ops.nms` does it, in plain torch.

    Args:
        boxes: float `[N, 4]` (x1, y1, x2, y2).
        scores: float `[N]`; of equal ones the first goes before.
        threshold: a box that overlaps a kept one by a larger IoU is dropped.

    Returns:
        Indices of the kept boxes, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for index in range(len(boxes)):
        if not alive[index]:
            continue
        kept.append(int(order[index]))
        low = torch.maximum(boxes[index, :2], boxes[index:, :2])
        high = torch.minimum(boxes[index, 2:], boxes[index:, 2:])
        overlap = (high - low).clamp(min=0).prod(1)
        alive[index:] &= ~(overlap / (area[index] + area[index:] - overlap) > threshold)
    return kept

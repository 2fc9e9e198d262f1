"""Non-maximum suppression, as `torchvision.ops.nms` does it, in plain torch."""

import torch
from torch import Tensor


class Suppression:
    """Greedy suppression, best box first: whoever keeps a box removes those that overlap it too much.

    Args:
        boxes: float `[N, 4]` (x1, y1, x2, y2).
        threshold: a box whose IoU with a kept one is above this is removed.
    """

    def __init__(self, boxes: Tensor, threshold: float) -> None:
        self.boxes, self.threshold = boxes, threshold
        self.area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        self.removed = torch.zeros(len(boxes), dtype=torch.bool)

    def is_removed(self, index: int) -> bool:
        """Whether a kept box overlaps this one too much."""
        return bool(self.removed[index])

    def keep(self, index: int) -> None:
        """Keep a box, and remove the others that overlap it too much."""
        low = torch.maximum(self.boxes[index, :2], self.boxes[:, :2])
        high = torch.minimum(self.boxes[index, 2:], self.boxes[:, 2:])
        overlap = (high - low).clamp(min=0).prod(1)
        self.removed |= overlap / (self.area[index] + self.area - overlap) > self.threshold


def best_first(scores: Tensor) -> list[int]:
    """Indices of scores `[N]`, highest first; of equal ones the first takes precedence."""
    return scores.argsort(descending=True, stable=True).tolist()


def non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Indices of the boxes that remain, best first.

    Args:
        boxes: float `[N, 4]` (x1, y1, x2, y2).
        scores: float `[N]`.
        threshold: a box whose IoU with a better one that remains is above this is removed.
    """
    kept, suppression = [], Suppression(boxes, threshold)
    for index in best_first(scores):
        if not suppression.is_removed(index):
            suppression.keep(index)
            kept.append(index)
    return kept

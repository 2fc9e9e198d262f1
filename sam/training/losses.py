"""What training makes small: dice and cross entropy of masks, and the error of the predicted IoU."""

import torch
from torch import Tensor
from torch.nn import functional as F

_BCE = 2.0


def mask_loss(logits: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Dice loss and twice the binary cross entropy, the mean over n masks; padding takes no part.

    Args:
        logits: `[n, h, w]`.
        target: `[h, w]` or `[n, h, w]` in 0..1.
        inside: `[h, w]`, the weight of each cell.
    """
    target = target.expand_as(logits)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * inside
    bce = each.sum((1, 2)) / inside.sum().clamp(min=1)
    probable, wanted = logits.sigmoid() * inside, target * inside
    both, total = (probable * wanted).sum((1, 2)), probable.sum((1, 2)) + wanted.sum((1, 2))
    return (_BCE * bce + 1 - (2 * both + 1) / (total + 1)).mean()


@torch.no_grad()
def iou(logits: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """IoU `[n]` of masks `[n, h, w]`, where logits are above 0, with a target `[h, w]` or `[n, h, w]`, at one half."""
    seen, wanted = (logits > 0) & (inside > 0.5), ((target > 0.5) & (inside > 0.5)).expand_as(logits)
    union = (seen | wanted).sum((1, 2))
    return torch.where(union > 0, (seen & wanted).sum((1, 2)) / union.clamp(min=1), 1.0)

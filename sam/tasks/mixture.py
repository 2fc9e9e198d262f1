"""PerSAM-F: two learned weights that mix SAM's three candidates ("Personalize Segment Anything Model with One Shot",
arXiv 2305.03048, section 3.3, after Personalize-SAM's `persam_f.py`)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

MIXED = 3
_EPOCHS, _RATE, _EPSILON = 1000, 1e-3, 1e-4  # the reference's
_ALPHA, _GAMMA = 0.25, 2  # of the focal loss


def mix(logits: Tensor, weights: Tensor) -> Tensor:
    """One mask of three: the first candidate has what the two weights leave of 1.

    Args:
        logits: `[3, h, w]`.
        weights: `[2]`, of the second and the third candidate.

    Returns:
        Logits `[h, w]`.
    """
    return (logits * torch.cat([1 - weights.sum(0, keepdim=True), weights])[:, None, None]).sum(0)


def mixture_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice and focal loss of mixed logits `[h, w]` against a mask `[h, w]` of 0 and 1."""
    probable = logits.sigmoid()
    dice = 1 - (2 * (probable * target).sum() + 1) / (probable.sum() + target.sum() + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = 1 - (probable * target + (1 - probable) * (1 - target))
    share = _ALPHA * target + (1 - _ALPHA) * (1 - target)
    return dice + (share * entropy * missed**_GAMMA).mean()


def learn_mixture(examples: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The weights `[2]` that make the mixed masks of examples most like their masks; 1/3 each at the start.

    Args:
        examples: for each, its candidates' logits `[3, h, w]` and its mask `[h, w]` of 0 and 1.
    """
    with torch.inference_mode(False), torch.enable_grad():
        fixed = [(logits.detach().clone(), target.detach().clone()) for logits, target in examples]
        weights = torch.full((MIXED - 1,), 1 / MIXED, device=fixed[0][0].device, requires_grad=True)
        optimizer = torch.optim.AdamW([weights], lr=_RATE, eps=_EPSILON)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
        for _ in range(_EPOCHS):
            loss = torch.stack([mixture_loss(mix(logits, weights), target) for logits, target in fixed]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return weights.detach()

"""The loop that training shares: rounds of steps, the best round, an early stop, Cancel."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...utils.comfy import Progress

_WARM_UP = 0.05
_LEAST_GAIN = 1e-4
_AVERAGE = 0.95  # what a step leaves of the running average


@dataclass
class History:
    """How a training went.

    Attributes:
        losses: of each step.
        scores: what was measured after each round, higher is better: one number for each held-out mask.
        best: the index of the best round; -1 before the first.
        stopped: why it ended before its last step, or "".
    """

    losses: list[float] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    best: int = -1
    stopped: str = ""

    @property
    def scores_of_best(self) -> list[float]:
        """What was measured after the best round."""
        return self.scores[self.best]

    def add(self, scores: list[float]) -> bool:
        """Note what was measured; whether it is the best so far. Without any number the last round is the best."""
        is_best = self.best < 0 or not scores or sum(scores) > sum(self.scores_of_best) + _LEAST_GAIN * len(scores)
        self.scores.append(scores)
        if is_best:
            self.best = len(self.scores) - 1
        return is_best


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: at most.
        rate: the highest learning rate; it rises over the first twentieth and falls to zero as a cosine does.
        decay: AdamW's weight decay.
        round_steps: after how many steps the result is measured.
        patience: rounds without a better result after which training ends.
        end: after how many steps to end, whatever the learning rate then is; None: after all.
    """

    steps: int
    rate: float
    decay: float = 0.0
    round_steps: int = 16
    patience: int = 15
    end: int | None = None

    @property
    def last(self) -> int:
        """Number of steps to do."""
        return self.steps if self.end is None else min(self.end, self.steps)

    def factor(self, step: int) -> float:
        """Share of the learning rate at a step."""
        warm = max(1, int(_WARM_UP * self.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


def train(
    parameters: Sequence[Tensor],
    schedule: Schedule,
    loss_of: Callable[[int], Tensor],
    measure: Callable[[], list[float]],
    progress: Progress,
) -> History:
    """Train, and leave the parameters as they were after the best round.

    What is measured and left is their running average, since single steps on single images are noisy.

    Args:
        parameters: leaves that require gradients; changed in place.
        schedule: see `Schedule`.
        loss_of: the loss of a step.
        measure: the result now, see `History.scores`.
        progress: one step of it for each step.
    """
    optimizer = torch.optim.AdamW(parameters, lr=schedule.rate, weight_decay=schedule.decay)
    history, average = History(), _copied(parameters)
    best = average
    for step in range(schedule.last):
        if progress.is_interrupted() and history.best >= 0:
            history.stopped = "cancelled"
            break
        progress.check_interrupted()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * schedule.factor(step)
        history.losses.append(_step(optimizer, loss_of(step)))
        for one, parameter in zip(average, parameters, strict=True):
            one.lerp_(parameter.detach(), max(1 - _AVERAGE, 1 / (step + 1)))
        progress.advance()
        if (step + 1) % schedule.round_steps and step + 1 < schedule.last:
            continue
        if history.add(_measured(parameters, average, measure)):
            best = _copied(average)
        elif len(history.scores) - 1 - history.best >= schedule.patience:
            history.stopped = "no further gain"
            break
    _set(parameters, best)
    return history


def _measured(parameters: Sequence[Tensor], average: Sequence[Tensor], measure: Callable[[], list[float]]) -> list[float]:
    """What the average is worth; the parameters are as before afterwards."""
    current = _copied(parameters)
    _set(parameters, average)
    try:
        return measure()
    finally:
        _set(parameters, current)


def _copied(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())

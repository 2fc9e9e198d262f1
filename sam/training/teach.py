"""Learned prompts: a few tokens beside those of a prompt, and the model as it is ("Prompt-Tuning SAM", arXiv 2504.16739)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from ...utils.comfy import Progress
from ..errors import SAMError
from ..models.base import Segmenter, identity_of
from ..models.concept import Concept, name_of
from ..placement.devices import DeviceMode, placed
from .drawing import Drawer
from .examples import Example, ReadyExamples, make_examples
from .loop import History, Schedule, train
from .losses import iou, mask_loss
from .trainable import Trainable, Tried

TOKENS = 8
SINGLE, SEVERAL = slice(0, 1), slice(1, None)
_CLICKS = 2  # of a step
_TRIED = 5  # clicks on a held-out mask
_ROUND = 16  # steps, at least
_START = 0.02  # standard deviation of the tokens at the start
_TRAINING_BYTES = 1 << 30
_MIRRORED = 0.5  # of the steps: twice as many images, nearly
_LEAST_TO_SPLIT = 5  # masks: with fewer, each is left out once
_OTHER_EVERY = 3  # steps: a click on what resembles the object, where that is given


@dataclass(frozen=True)
class TeachOptions:
    """How long and how fast to learn.

    Attributes:
        steps: at most; each is one image with two clicks on it.
        rate: the highest learning rate.
        seed: of everything that is random; the same seed gives the same result.
    """

    steps: int = 480
    rate: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.rate <= 1:
            raise SAMError(
                f"steps is {self.steps} and learning_rate is {self.rate:g}: use at least 1 step, and a rate of 0 to 1."
            )


class Row(NamedTuple):
    """A held-out mask: its place among the images, and the mean IoU of clicks on it before and after."""

    index: int
    before: float
    after: float


@dataclass(frozen=True)
class Lesson:
    """What came of teaching.

    Attributes:
        losses: of each step.
        rows: of each held-out mask.
        held_out: whether they took no part in training; of a single mask there is no other to measure on.
        helped: whether the mean IoU rose; where it did not, the base is given back.
        stopped: why training ended early, or "".
    """

    losses: list[float]
    rows: list[Row]
    held_out: bool
    helped: bool
    stopped: str


def teach(
    model: Segmenter,
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    negatives: Sequence[Tensor] | None = None,
    options: TeachOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> tuple[Concept, Lesson]:
    """Learn tokens with which a click on the object gives the object's mask.

    Args:
        model: see `load_model`, or `as_segmenter` for another pack's.
        images, masks, negatives: see `make_examples`.
        options: see `TeachOptions`; None: its defaults.
        device_mode: see `placed`.

    Returns:
        The concept, without tokens where it did not help, and what was measured.

    Raises:
        SAMError: see `make_examples`; or the model's decoder cannot be trained.
    """
    with torch.inference_mode(False):
        examples = make_examples(model, images, masks, negatives, device_mode)
    return teach_examples(model, examples, options, device_mode)


def teach_examples(
    model: Segmenter, examples: list[Example], options: TeachOptions | None = None, device_mode: DeviceMode = "AUTO"
) -> tuple[Concept, Lesson]:
    """The same of images that are encoded already, outside of inference mode; see `teach`."""
    with torch.inference_mode(False), placed(model.network, device_mode, _TRAINING_BYTES) as device, torch.enable_grad():
        tokens, lesson = _Teacher(model, examples, options or TeachOptions(), device).learn()
    if not lesson.helped:
        tokens = tokens[:0]
    return Concept(tokens.detach().cpu(), identity_of(model), name_of(model)), lesson


class _Teacher:
    """One model, its examples, and how to learn."""

    def __init__(self, model: Segmenter, examples: list[Example], options: TeachOptions, device: torch.device) -> None:
        self.trainable, self.options, self.device = Trainable(model, device), options, device
        self.examples = ReadyExamples(examples, device)
        self.drawer = Drawer(model.geometry((1, 1)).side / len(examples[0].target), device)
        self.before = [self._before(index) for index in range(len(examples))]

    def learn(self) -> tuple[Tensor, Lesson]:
        """The tokens, and what was measured."""
        everyone = list(range(len(self.examples)))
        if 1 < len(everyone) < _LEAST_TO_SPLIT:
            return self._leave_each_out(everyone)
        mixed = np.random.default_rng(self.options.seed).permutation(everyone).tolist()
        held_out = sorted(mixed[: len(everyone) // _LEAST_TO_SPLIT]) or everyone
        taught = [index for index in everyone if index not in held_out] or everyone
        tokens, history = self._train(taught, held_out, self._schedule(len(taught)), Progress(self.options.steps))
        return tokens, self._lesson([history], held_out, history.scores_of_best, len(everyone) > 1)

    def _leave_each_out(self, everyone: list[int]) -> tuple[Tensor, Lesson]:
        """Few masks: each is left out once, for half of the steps; then all are learned from, for as long as was best."""
        steps = self.options.steps
        halved = replace(self._schedule(len(everyone) - 1), steps=math.ceil(steps / 2), patience=steps)
        progress = Progress(len(everyone) * halved.steps + steps)
        histories = []
        for index in everyone:
            others = [other for other in everyone if other != index]
            tokens, history = self._train(others, [index], halved, progress)
            if history.stopped:  # cancelled: these are the best so far
                return tokens, self._lesson([history], [index], history.scores_of_best, True)
            histories.append(history)
        curves = np.array([[score[0] for score in history.scores] for history in histories])
        best = int(curves.mean(0).argmax())
        schedule = replace(self._schedule(len(everyone)), end=math.ceil(steps * (best + 1) / curves.shape[1]))
        tokens, history = self._train(everyone, [], schedule, progress)
        return tokens, self._lesson([*histories, history], everyone, curves[:, best].tolist(), True)

    def _schedule(self, count: int) -> Schedule:
        return Schedule(self.options.steps, self.options.rate, round_steps=max(_ROUND, count))

    def _train(self, taught: list[int], measured: list[int], schedule: Schedule, progress: Progress) -> tuple[Tensor, History]:
        """Tokens from some examples, the best round chosen by others; the last one where there are none."""
        numbers = torch.Generator().manual_seed(self.options.seed)
        width = self.trainable.decoder.iou_token.weight.shape[1]
        tokens = (_START * torch.randn(TOKENS, width, generator=numbers)).to(self.device).requires_grad_(True)
        rng = np.random.default_rng(self.options.seed)

        def loss_of(step: int) -> Tensor:
            return self._loss(self.examples[taught[int(rng.integers(len(taught)))]], tokens, rng, step)

        history = train([tokens], schedule, loss_of, lambda: [self._after(index, tokens) for index in measured], progress)
        return tokens.detach(), history

    def _loss(self, example: Example, tokens: Tensor, rng: Generator, step: int) -> Tensor:
        example = example.mirrored if rng.random() < _MIRRORED else example
        shared = self.trainable.share(example.features)
        target, inside = example.target.to(self.device), example.inside.to(self.device)
        if example.other is not None and step % _OTHER_EVERY == 0:
            prompts, target = self.drawer.clicks(example.other, rng, _CLICKS), torch.zeros_like(target)
        else:
            prompts = self.drawer.on_object(example, rng, _CLICKS)
        found = self.trainable.run(shared, prompts, SINGLE, tokens)
        logits, scores = found.logits[:, 0], found.scores[:, 0]
        return mask_loss(logits, target, inside) + F.mse_loss(scores, iou(logits, target, inside))

    @torch.no_grad()
    def _before(self, index: int) -> float:
        """Mean IoU of the base's best candidate for the held-out clicks on a mask."""
        found = self._tried(index, SEVERAL if self.trainable.decoder.num_mask_tokens > 1 else SINGLE, None)
        best = found.logits[torch.arange(_TRIED), found.scores.argmax(1)]
        return self._mean_iou(best, index)

    @torch.no_grad()
    def _after(self, index: int, tokens: Tensor) -> float:
        return self._mean_iou(self._tried(index, SINGLE, tokens).logits[:, 0], index)

    def _tried(self, index: int, wanted: slice, tokens: Tensor | None) -> Tried:
        example = self.examples[index]
        prompts = self.drawer.held_out(example, self.options.seed, _TRIED)
        return self.trainable.run(self.trainable.share(example.features), prompts, wanted, tokens)

    def _mean_iou(self, logits: Tensor, index: int) -> float:
        example = self.examples[index]
        return float(iou(logits, example.target.to(self.device), example.inside.to(self.device)).mean())

    def _lesson(self, histories: list[History], measured: list[int], after: list[float], held_out: bool) -> Lesson:
        rows = [Row(index, self.before[index], score) for index, score in zip(measured, after, strict=True)]
        helped = sum(row.after - row.before for row in rows) > 0
        losses = [loss for history in histories for loss in history.losses]
        return Lesson(losses, rows, held_out, helped, histories[-1].stopped)

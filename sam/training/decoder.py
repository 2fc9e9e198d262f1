"""The mask decoder itself, trained on some masks, and bound to what the base says of everything else.

Beside the masks, each step has clicks and boxes on places that were not taught, on the same images and on mirrored ones; there
the decoder is to give what the base gives, masks and scores ("Learning without Forgetting", arXiv 1606.09282). At the end the
weights are drawn back towards the base until they agree there ("Robust fine-tuning of zero-shot models", arXiv 2109.01903).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from ...utils.comfy import Progress
from ..errors import SAMError
from ..kernels.decoder import SharedImage
from ..models.base import Segmenter
from ..models.concept import name_of
from ..models.families import as_segmenter, identity_of
from ..placement.devices import DeviceMode, placed
from ..prompts import PromptTensors
from .drawing import Drawer
from .examples import Example, make_examples, make_others
from .loop import History, Schedule, train
from .losses import iou, mask_loss
from .retrained import Retrained, is_trainable, with_decoder
from .teach import Lesson, Row
from .trainable import Trainable, Tried

EVERY, SINGLE = slice(None), 0
_CLICKS, _ANCHORS = 2, 3
_ANCHOR, _SCORE = 4.0, 1.0  # weights of the anchor and of the predicted IoU in the loss
_CERTAIN = 10.0  # logits beyond this are as certain
_DECAY = 0.01
_MIRRORED = 0.5  # of the steps
_LEAST_TO_SPLIT = 5
_ROUND = 16
_TRIED, _AGREED = 3, 8
_SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)  # of the way from the base to what was trained
_AGREEMENT = 0.88  # ordinary clicks then lose about 0.02 IoU, see benchmarks/teach.py
_TRAINING_BYTES = 2 << 30


@dataclass(frozen=True)
class DecoderOptions:
    """How long and how fast to train.

    Attributes:
        steps: at most; each is one image with two prompts on its object and four elsewhere.
        rate: the highest learning rate.
        seed: of everything that is random; the same seed gives the same result.
    """

    steps: int = 480
    rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.rate <= 1:
            raise SAMError(f"steps is {self.steps} and learning_rate {self.rate:g}: use at least 1 step, and a rate of 0 to 1.")


def train_decoder(
    model: Any,
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    others: Sequence[Tensor] = (),
    options: DecoderOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> tuple[Any, Lesson]:
    """Train a copy of a model's mask decoder.

    Args:
        model: ours or any `segment_anything` Sam; it is not changed.
        images, masks: see `make_examples`.
        others: IMAGE tensors of anything else, where the decoder is to stay as it is; they need no masks.
        options: see `DecoderOptions`; None: its defaults.
        device_mode: see `placed`.

    Returns:
        The model with the trained decoder, for every use of a model, or `model` itself where it did not help; and what was
        measured.

    Raises:
        SAMError: see `make_examples`; or the model's decoder cannot be trained.
    """
    segmenter, options = as_segmenter(model), options or DecoderOptions()
    with torch.inference_mode(False):
        examples = make_examples(segmenter, images, masks, None, device_mode)
        elsewhere = make_others(segmenter, others, device_mode)
        with placed(segmenter.network, device_mode, _TRAINING_BYTES) as device, torch.enable_grad():
            weights, lesson = _Trainer(segmenter, examples, elsewhere, options, device).learn()
    if not lesson.helped:
        return model, lesson
    change = Retrained({name: weight.cpu() for name, weight in weights.items()}, identity_of(segmenter), name_of(segmenter))
    return with_decoder(model, change, Path(f"{change.base_name} with a trained decoder")), lesson


class _Trainer:
    """A decoder, the base's, the examples, and images of anything else."""

    def __init__(
        self,
        model: Segmenter,
        examples: list[Example],
        others: list[Example],
        options: DecoderOptions,
        device: torch.device,
    ) -> None:
        self.base, self.trained = Trainable(model, device), Trainable(model, device)
        self.examples, self.options, self.device = examples, options, device
        self.checked, self.others = others[: len(others) // _LEAST_TO_SPLIT], others[len(others) // _LEAST_TO_SPLIT :]
        self.drawer = Drawer(model.frame((1, 1)).side / len(examples[0].target), device)
        self.parameters = {
            name: weight.requires_grad_(True) for name, weight in self.trained.decoder.named_parameters() if is_trainable(name)
        }
        self.start = {name: weight.detach().clone() for name, weight in self.parameters.items()}

    def learn(self) -> tuple[dict[str, Tensor], Lesson]:
        """The weights, and what was measured."""
        everyone = list(range(len(self.examples)))
        mixed = np.random.default_rng(self.options.seed).permutation(everyone).tolist()
        held_out = sorted(mixed[: max(len(everyone) // _LEAST_TO_SPLIT, 1)])
        taught = [index for index in everyone if index not in held_out] or everyone
        before = [self._measured(self.base, index) for index in held_out]
        history = self._train(taught, held_out)
        weights, after = self._drawn_back(held_out)
        rows = [Row(*row) for row in zip(held_out, before, after, strict=True)]
        helped = sum(after) > sum(before)
        return weights, Lesson(history.losses, rows, len(everyone) > 1, helped, history.stopped)

    def _train(self, taught: list[int], held_out: list[int]) -> History:
        rng = np.random.default_rng(self.options.seed)
        schedule = Schedule(self.options.steps, self.options.rate, _DECAY, max(_ROUND, len(taught)))

        def loss_of(step: int) -> Tensor:
            self.trained.plan = self.trained.planned()
            example = self.examples[taught[int(rng.integers(len(taught)))]]
            some = self.others if self.others and step % 4 else [self.examples[index] for index in taught]
            other = some[int(rng.integers(len(some)))]
            example = example.mirrored() if rng.random() < _MIRRORED else example
            return self._loss(example, rng) + _ANCHOR * self._anchor(other, rng, bool(step % 2))

        def measure() -> list[float]:
            self.trained.plan = self.trained.planned()
            return [self._measured(self.trained, index) for index in held_out]

        return train(list(self.parameters.values()), schedule, loss_of, measure, Progress(self.options.steps))

    def _loss(self, example: Example, rng: Generator) -> Tensor:
        """Of prompts on the object: the single mask, the best candidate, and all predicted IoUs."""
        shared = self.trained.share(example.features)
        prompts = self._prompts(example, rng, shared)
        target, inside = example.target.to(self.device), example.inside.to(self.device)
        found = self.trained.run(shared, prompts, EVERY)
        single = mask_loss(found.logits[:, SINGLE], target, inside)
        others = range(1, found.logits.shape[1])
        best = [
            torch.stack([mask_loss(found.logits[row : row + 1, token], target, inside) for token in others]).min()
            for row in range(len(found.logits))
            if len(others)
        ]
        actual = iou(found.logits.flatten(0, 1), target, inside).view_as(found.scores)
        total = single + (torch.stack(best).mean() if best else 0)
        return total + _SCORE * F.mse_loss(found.scores, actual)

    def _prompts(self, example: Example, rng: Generator, shared: SharedImage) -> PromptTensors:
        """Clicks, up to three points, a box that is not exact, or a click with the logits of an earlier one."""
        kind = rng.random()
        if kind < 0.6:
            return self.drawer.on_object(example, rng, _CLICKS)
        if kind < 0.75:
            return self.drawer.several(example, rng, _CLICKS)
        if kind < 0.9:
            return self.drawer.boxes(example, rng, _CLICKS)
        clicks = self.drawer.on_object(example, rng, _CLICKS)
        with torch.no_grad():
            earlier = self.trained.run(shared, clicks, slice(0, 1)).logits
        return PromptTensors(clicks.points, None, earlier)

    def _anchor(self, example: Example, rng: Generator, mirrored: bool) -> Tensor:
        """How far masks and scores are from the base's, where nothing was taught."""
        new, old = self._both(example, self._elsewhere(example, rng, mirrored), mirrored)
        distance = F.mse_loss(new.logits.clamp(-_CERTAIN, _CERTAIN), old.logits.clamp(-_CERTAIN, _CERTAIN)) / _CERTAIN
        return distance + _SCORE * F.mse_loss(new.scores, old.scores) * _CERTAIN

    def _both(self, example: Example, prompts: PromptTensors, mirrored: bool) -> tuple[Tried, Tried]:
        features = example.features.mirrored() if mirrored else example.features
        with torch.no_grad():
            old = self.base.run(self.base.share(features), prompts, EVERY)
        return self.trained.run(self.trained.share(features), prompts, EVERY), old

    def _elsewhere(self, example: Example, rng: Generator, mirrored: bool) -> PromptTensors:
        cells = (example.inside > 0.5) & ~example.mask
        cells = cells if bool(cells.any()) else example.inside > 0.5
        cells = cells.flip(1) if mirrored else cells
        return self.drawer.clicks(cells, rng, _ANCHORS)

    @torch.no_grad()
    def _measured(self, trainable: Trainable, index: int) -> float:
        """Mean IoU of the best candidate for the held-out clicks on a mask."""
        example = self.examples[index]
        prompts = self.drawer.held_out(example, self.options.seed, _TRIED)
        best = _best(trainable.run(trainable.share(example.features), prompts, EVERY))
        return float(iou(best, example.target.to(self.device), example.inside.to(self.device)).mean())

    @torch.no_grad()
    def _agreement(self, held_out: list[int]) -> float:
        """Mean IoU of the best masks with the base's, where nothing was taught."""
        rng, found = np.random.default_rng(self.options.seed), []
        for example in self.checked or [self.examples[index] for index in held_out]:
            for mirrored in (False, True):
                prompts = [self._elsewhere(example, rng, mirrored) for _ in range(-(-_AGREED // _ANCHORS))]
                for some in prompts:
                    new, old = (_best(tried) for tried in self._both(example, some, mirrored))
                    found.append(iou(new, (old > 0).float(), example.inside.flip(1) if mirrored else example.inside))
        return float(torch.cat(found).mean())

    def _drawn_back(self, held_out: list[int]) -> tuple[dict[str, Tensor], list[float]]:
        """The largest share of the way from the base that leaves what was not taught as it is."""
        whole = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        for share in _SHARES:
            self._set({name: self.start[name].lerp(weight, share) for name, weight in whole.items()})
            if self._agreement(held_out) >= _AGREEMENT:
                break
        return copy.deepcopy(self._weights()), [self._measured(self.trained, index) for index in held_out]

    @torch.no_grad()
    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            self.parameters[name].copy_(weight)
        self.trained.plan = self.trained.planned()

    def _weights(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.parameters.items()}


def _best(tried: Tried) -> Tensor:
    """The masks `[n, h, w]` that a click gives: of several candidates, the one with the highest predicted IoU."""
    first = 1 if tried.logits.shape[1] > 1 else 0
    rows = torch.arange(len(tried.logits), device=tried.logits.device)
    return tried.logits[rows, first + tried.scores[:, first:].argmax(1)]

"""A mask decoder that is trained on some masks, beside the model's own, and that knows what it was taught.

Each step has prompts on the object: their masks, and the IoU that the decoder is to predict. And it has prompts elsewhere, on
the same images and on others: there the decoder is to predict an IoU of 0, so that the model's own decoder answers (see
`models.taught`). Its masks there are bound to those of the base, which makes it learn the object rather than its few images
("Learning without Forgetting", arXiv 1606.09282).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from ...utils.comfy import Progress
from ..errors import SAMError
from ..kernels.decoder import SharedImage
from ..models.base import Segmenter, identity_of
from ..models.concept import name_of
from ..models.retrained import Retrained, is_trainable, with_decoder
from ..models.taught import SURE
from ..placement.devices import DeviceMode, placed
from ..prompts import PromptTensors
from .drawing import Drawer
from .examples import Example, ReadyExamples, covered, make_examples, make_others
from .loop import History, Schedule, train
from .losses import iou, mask_loss
from .teach import Lesson, Row
from .trainable import Trainable, Tried

EVERY, SINGLE = slice(None), slice(0, 1)
_CLICKS, _ELSEWHERE = 2, 4  # prompts of a step
_MASK, _ANCHOR = 2.0, 4.0  # weights in the loss; that of the predicted IoU is 1
_CERTAIN = 10.0  # logits beyond this are as certain
_LEAST, _MOST = 1e-3, 1 - 1e-3  # of a predicted IoU, for its entropy
_DECAY = 0.01
_MIRRORED = 0.5  # of the steps
_LEAST_TO_SPLIT = 5
_ROUND = 16
_TRIED, _TRIED_ELSEWHERE = 5, 6
_TRAINING_BYTES = 2 << 30


@dataclass(frozen=True)
class DecoderOptions:
    """How long and how fast to train.

    Attributes:
        steps: at most; each is one image with two prompts on its object, and one with four elsewhere.
        rate: the highest learning rate.
        seed: of everything that is random; the same seed gives the same result.
    """

    steps: int = 480
    rate: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.rate <= 1:
            raise SAMError(f"steps is {self.steps} and learning_rate {self.rate:g}: use at least 1 step, and a rate of 0 to 1.")


def train_decoder(
    model: Segmenter,
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    others: Sequence[Tensor] = (),
    options: DecoderOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> tuple[Segmenter, Lesson]:
    """Train a copy of a model's mask decoder.

    Args:
        model: see `load_model`, or `as_segmenter` for another pack's; it is not changed.
        images, masks: see `make_examples`.
        others: IMAGE tensors of anything else, where the model's own decoder is to answer; they need no masks.
        options: see `DecoderOptions`; None: its defaults.
        device_mode: see `placed`.

    Returns:
        The model with the trained decoder beside its own, for every use of a model, or `model` itself where it did not help;
        and what was measured.

    Raises:
        SAMError: see `make_examples`; or the model's decoder cannot be trained.
    """
    options = options or DecoderOptions()
    with torch.inference_mode(False):
        examples = make_examples(model, images, masks, None, device_mode)
        elsewhere = make_others(model, others, device_mode)
        with placed(model.network, device_mode, _TRAINING_BYTES) as device, torch.enable_grad():
            weights, lesson = _Trainer(model, examples, elsewhere, options, device).learn()
    if not lesson.helped:
        return model, lesson
    change = Retrained({name: weight.cpu() for name, weight in weights.items()}, identity_of(model), name_of(model))
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
        self.examples, self.options, self.device = ReadyExamples(examples, device), options, device
        checked = len(others) // _LEAST_TO_SPLIT
        self.checked, self.others = ReadyExamples(others[:checked], device), ReadyExamples(others[checked:], device)
        self.drawer = Drawer(model.geometry((1, 1)).side / len(examples[0].target), device)
        self.before: dict[int, Tensor] = {}  # the base's masks of the held-out clicks on an example
        self.parameters = {
            name: weight.requires_grad_(True) for name, weight in self.trained.decoder.named_parameters() if is_trainable(name)
        }

    def learn(self) -> tuple[dict[str, Tensor], Lesson]:
        """The weights, and what was measured."""
        everyone = list(range(len(self.examples)))
        mixed = np.random.default_rng(self.options.seed).permutation(everyone).tolist()
        held_out = sorted(mixed[: max(len(everyone) // _LEAST_TO_SPLIT, 1)])
        taught = [index for index in everyone if index not in held_out] or everyone
        history = self._train(taught, held_out)
        self.trained.plan = self.trained.planned()
        rows = [Row(index, *self._measured(index)) for index in held_out]
        helped = sum(row.after - row.before for row in rows) > 0
        weights = {name: weight.detach() for name, weight in self.parameters.items()}
        return weights, Lesson(history.losses, rows, len(everyone) > 1, helped, history.stopped)

    def _train(self, taught: list[int], held_out: list[int]) -> History:
        rng = np.random.default_rng(self.options.seed)
        schedule = Schedule(self.options.steps, self.options.rate, _DECAY, max(_ROUND, len(taught)))

        def loss_of(step: int) -> Tensor:
            self.trained.plan = self.trained.planned()
            example = self.examples[taught[int(rng.integers(len(taught)))]]
            if self.others and step % 2:
                other = self.others[int(rng.integers(len(self.others)))]
            else:
                other = self.examples[taught[int(rng.integers(len(taught)))]]
            example, other = (one.mirrored if rng.random() < _MIRRORED else one for one in (example, other))
            return self._loss(example, rng) + self._loss_elsewhere(other, rng)

        def measure() -> list[float]:
            self.trained.plan = self.trained.planned()
            return [self._measured(index)[1] + self._left(index) for index in held_out]

        return train(list(self.parameters.values()), schedule, loss_of, measure, Progress(self.options.steps))

    def _loss(self, example: Example, rng: Generator) -> Tensor:
        """Of prompts on the object: the single mask, and its predicted IoU."""
        shared = self.trained.share(example.features)
        target, inside = example.target.to(self.device), example.inside.to(self.device)
        logits, scores = self.trained.run(shared, self._on_object(example, rng, shared), SINGLE)
        return _MASK * mask_loss(logits[:, 0], target, inside) + _score_loss(scores[:, 0], iou(logits[:, 0], target, inside))

    def _on_object(self, example: Example, rng: Generator, shared: SharedImage) -> PromptTensors:
        """Clicks, up to three points, a box that is not exact, or a click with the logits of an earlier one."""
        kind = rng.random()
        if kind < 0.6:
            return self.drawer.on_object(example, rng, _CLICKS)
        if kind < 0.75:
            return self.drawer.several(example, rng, _CLICKS)
        if kind < 0.9:
            return self.drawer.boxes([example.mask] * _CLICKS, rng)
        clicks = self.drawer.on_object(example, rng, _CLICKS)
        with torch.no_grad():
            earlier = self.trained.run(shared, clicks, SINGLE).logits
        return PromptTensors(clicks.points, None, earlier)

    def _loss_elsewhere(self, example: Example, rng: Generator) -> Tensor:
        """Of prompts elsewhere: how far masks are from the base's, and predicted IoUs from 0."""
        with torch.no_grad():
            base = self.base.share(example.features)
            prompts = self._elsewhere(example, base, rng)
            old = self.base.run(base, prompts, SINGLE)
        new = self.trained.run(self.trained.share(example.features), prompts, SINGLE)
        distance = F.mse_loss(new.logits.clamp(-_CERTAIN, _CERTAIN), old.logits.clamp(-_CERTAIN, _CERTAIN)) / _CERTAIN
        return _ANCHOR * distance + _score_loss(new.scores, torch.zeros_like(new.scores))

    def _elsewhere(self, example: Example, base: SharedImage, rng: Generator) -> PromptTensors:
        """Clicks off the object; or what may follow them: such clicks with the base's logits, or boxes around its masks."""
        clicks, kind = self.drawer.clicks(_off(example), rng, _ELSEWHERE), rng.random()
        if kind < 0.6:
            return clicks
        masks = _best(self.base.run(base, clicks, EVERY))
        if kind < 0.75:
            return PromptTensors(clicks.points, None, masks[:, None])
        return self.drawer.boxes([mask.cpu() > 0 for mask in masks], rng) if bool((masks > 0).any((1, 2)).all()) else clicks

    @torch.no_grad()
    def _measured(self, index: int) -> tuple[float, float]:
        """Mean IoU of the held-out clicks on a mask, before and after."""
        example = self.examples[index]
        target, inside = example.target.to(self.device), example.inside.to(self.device)
        prompts = self.drawer.held_out(example, self.options.seed, _TRIED)
        answers = self._before(index, prompts), self._after(index, prompts)
        return tuple(float(iou(masks, target, inside).mean()) for masks in answers)

    def _before(self, index: int, prompts: PromptTensors) -> Tensor:
        """The base's masks, logits `[n, 4h, 4w]`, of an example's held-out prompts; neither of them ever changes."""
        if index not in self.before:
            self.before[index] = _best(self.base.run(self.base.share(self.examples[index].features), prompts, EVERY))
        return self.before[index]

    def _after(self, index: int, prompts: PromptTensors) -> Tensor:
        """Those that the model gives with the trained decoder."""
        logits, scores = self.trained.run(self.trained.share(self.examples[index].features), prompts, SINGLE)
        return torch.where(scores[:, :, None] > SURE, logits[:, 0], self._before(index, prompts))

    @torch.no_grad()
    def _left(self, index: int) -> float:
        """Share of clicks where nothing was taught that are left to the base: on a held-out image, and on held-out others."""
        rng, scores = np.random.default_rng(self.options.seed), []
        for example in (self.examples[index], *self.checked):
            prompts = self.drawer.clicks(_off(example), rng, _TRIED_ELSEWHERE)
            scores.append(self.trained.rate(self.trained.share(example.features), prompts, SINGLE))
        return float((torch.cat(scores) <= SURE).float().mean())


def _off(example: Example) -> Tensor:
    """bool `[4h, 4w]`: the image but for the object; all of it where the object fills it."""
    image = covered(example.inside)  # an image of one pixel's width covers no cell half
    cells = image & ~example.mask
    return cells if bool(cells.any()) else image


def _score_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    """Of predicted IoUs: squared error, and the entropy, which draws those apart that are to be 0 and those that are not."""
    return F.mse_loss(scores, wanted) + F.binary_cross_entropy(scores.clamp(_LEAST, _MOST), wanted)


def _best(tried: Tried) -> Tensor:
    """The masks `[n, h, w]` that a click gives: of several candidates, the one with the highest predicted IoU."""
    first = 1 if tried.logits.shape[1] > 1 else 0
    rows = torch.arange(len(tried.logits), device=tried.logits.device)
    return tried.logits[rows, first + tried.scores[:, first:].argmax(1)]

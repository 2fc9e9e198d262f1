"""An object on one frame of a film, followed there without a memory: any model that segments images can do it.

Prompts are made from the last mask, moved on as the object moved before: points inside it, its box, its logits. Of the masks
that the model gives, the one is taken that best fits the last mask and the object's appearance where it was prompted (features
as in SAM Personalize, and color). One point is where the whole image is most similar to the object, so that it is found again
after it was lost. Where no mask looks like it, it is lost.

All maps lie on the grid of the model's mask logits, which covers its square input.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry import Geometry, Size
from ..kernels.decoder import Decoded
from ..kernels.resemblance import match
from ..models.base import Segmenter, Wanted, optional_member
from ..models.features import Features
from ..prompts import Prompt, PromptTensors, on_grid, to_model_input

# What a candidate's rating is the sum of. Chosen on `tools/films.py` 0 to 13, with the demonstration model.
_OVERLAP, _LOOKS, _COLOR, _PREDICTED, _AREA = 1.0, 2.0, 1.0, 0.5, 0.1
_FAR_COLOR = 100.0  # levels between two mean colors that have nothing in common
_SURROUNDINGS = 0.5  # how much a place that also looks like what surrounded the object is less similar to it
_LOST = 1.9  # least that looks, color and predicted IoU must come to
_CERTAINTY = 6.0  # logits of the score for a unit of the rating
_MARGIN = 0.1  # of the last box, at each side
_RING = (3, 12)  # cells from the object that its surroundings begin and end at
_SMALLEST = 4  # cells of a mask
_CLIP = 10.0  # of logits that become a prompt
_LONGEST_LEAP = 3  # frames that a lost object is thought to move on for
CERTAIN = 10.0
"""The score of what was prompted; with the opposite sign, of an empty mask."""


class Looks(NamedTuple):
    """How an object looks on a frame where it was prompted, on the CPU.

    Attributes:
        local: features of unit length `[P, C]` of the cells of the object.
        around: the same of what surrounds it, `[Q, C]`.
        color: mean color `[3]`, 0..255.
        area: cells of the logits' grid.
    """

    local: Tensor
    around: Tensor
    color: Tensor
    area: float

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.local.nbytes + self.around.nbytes + self.color.nbytes


class Followed(NamedTuple):
    """Where an object was last seen, on the CPU.

    Attributes:
        logits: float16 `[4h, 4w]`.
        frame: on which.
        motion: (x, y) in cells per frame, in the direction in which it is followed.
    """

    logits: Tensor
    frame: int
    motion: tuple[float, float]

    @property
    def nbytes(self) -> int:
        """Bytes of the logits."""
        return self.logits.nbytes


class Candidate(NamedTuple):
    """A mask that may be the object.

    Attributes:
        logits: `[4h, 4w]`; above 0 a cell is in the mask.
        rating: the larger, the better it fits; -inf for an empty one.
        score: logit that it is the object at all.
    """

    logits: Tensor
    rating: float
    score: float


class FollowFrame:
    """A frame's features on the model's device, for as long as `placed` keeps the model there.

    Args:
        model: that made the features.
        features: of the frame.
        image: the frame, uint8 `[H, W, 3]`.
        geometry: how it lies in the model's input.
    """

    def __init__(self, model: Segmenter, features: Features, image: np.ndarray, geometry: Geometry) -> None:
        self.model, self.features, self.geometry = model, features, geometry
        self.takes_masks = optional_member(model, "takes_masks") is not False
        values = features.tensor()
        self.coarse: Size = (values.shape[1], values.shape[2])
        self.cells = F.normalize(values.flatten(1).T, dim=1)
        colors = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
        self.colors = torch.cat([on_grid(channel, geometry, geometry.grid) for channel in colors]).to(values.device)
        self.valid = on_grid(torch.ones(geometry.original), geometry, geometry.grid)[0].to(values.device) > 0.5

    @torch.no_grad()
    def prompted(self, prompt: Prompt, before: Tensor | None) -> Tensor:
        """Logits `[4h, 4w]` of an object by prompts in pixels of the frame: the best of the candidates for a single click.

        Args:
            prompt: of the object.
            before: logits `[4h, 4w]` of the mask that the prompts correct, if there is one.
        """
        hint = None if before is None else self._hint(before)
        several = prompt.is_single_click and hint is None
        tensors = to_model_input([prompt], self.geometry, self.valid.device)
        if hint is not None and tensors.masks is None:
            tensors = replace(tensors, masks=hint)
        found = self._decoded(tensors, several)
        return found.logits[0, int(found.scores[0].argmax())]

    def given(self, mask: Tensor) -> Tensor:
        """Logits `[4h, 4w]` of a mask `[H, W]` in 0..1 that is known."""
        share = on_grid(mask.float().cpu(), self.geometry, self.geometry.grid)[0].to(self.valid.device)
        return (2 * share - 1) * _CLIP

    def looks(self, logits: Tensor) -> Looks | None:
        """How the object in a mask `[4h, 4w]` looks; None where it is empty."""
        mask = self._mask(logits)
        if not bool(mask.any()):
            return None
        inside = self._coarse(mask)
        around = _grown(mask, _RING[1]) & ~_grown(mask, _RING[0]) & self.valid
        beside = self._coarse(around) & ~inside if bool(around.any()) else inside & False
        color = self.colors[:, mask].mean(1)
        return Looks(self.cells[inside].cpu(), self.cells[beside].cpu(), color.cpu(), float(mask.sum()))

    @torch.no_grad()
    def followed(self, last: Followed, looks: Sequence[Looks], index: int) -> Candidate:
        """The object on this frame, whose number is `index`; its score is below 0 where it is lost."""
        device = self.valid.device
        looks = [Looks(*(part.to(device) for part in one[:3]), one.area) for one in looks]
        gone = abs(index - last.frame)
        leap = min(gone, _LONGEST_LEAP)
        guess = _moved(last.logits.to(device).float(), round(last.motion[0] * leap), round(last.motion[1] * leap))
        if not bool(self._mask(guess).any()):
            guess = last.logits.to(device).float()
        mask = self._mask(guess)
        found = self._candidates(guess, mask, self._similarity(looks))
        trust = _OVERLAP / gone
        best = max((self._rated(*one, mask, trust, looks) for one in found), key=lambda one: one.rating)
        if best.rating == -math.inf:
            return best
        again = self._decoded(PromptTensors(None, self._box(best.logits > 0), self._hint(best.logits)), several=False)
        refined = self._rated(again.logits[0, 0], float(again.scores[0, 0]), mask, trust, looks)
        return max(best, refined, key=lambda one: one.rating)

    def _candidates(self, guess: Tensor, mask: Tensor, similarity: Tensor) -> list[tuple[Tensor, float]]:
        """Logits and predicted IoU of the masks that prompts made of a guess give."""
        reach = max(1, int(float(mask.sum()) ** 0.5 / 2))
        near, alike = _blurred(_grown(mask, reach // 2 + 1), reach), _blurred(similarity > similarity.max() - 0.1, reach)
        weights = [_blurred(mask, reach) * mask * (0.3 + similarity), near * similarity, alike * similarity]
        places = [int(weight.argmax()) for weight in weights]
        width = mask.shape[1]
        points = torch.tensor([(place % width + 0.5, place // width + 0.5) for place in places], device=mask.device)
        points = (points * self._pixels)[:, None]
        labels = torch.ones(len(points), 1, dtype=torch.int32, device=mask.device)
        box, hint = self._box(mask, _MARGIN), self._hint(guess)
        asked = [
            self._decoded(PromptTensors((points, labels), None, None), several=True),
            self._decoded(PromptTensors(None, box, None), several=False),
            self._decoded(PromptTensors((points[:1], labels[:1]), box, None), several=False),
        ]
        if hint is not None:
            two = PromptTensors((points[:2], labels[:2]), None, hint.expand(2, -1, -1, -1))
            asked += [self._decoded(one, several=False) for one in (two, PromptTensors(None, box, hint))]
        masks = [mask for one in asked for mask in one.logits.flatten(0, 1)]
        return list(zip(masks, torch.cat([one.scores.flatten() for one in asked]).tolist(), strict=True))

    def _rated(self, logits: Tensor, predicted: float, guess: Tensor, trust: float, looks: Sequence[Looks]) -> Candidate:
        mask = self._mask(logits)
        area = int(mask.sum())
        if area < _SMALLEST:
            return Candidate(logits, -math.inf, -CERTAIN)
        own, color = self.cells[self._coarse(mask)], self.colors[:, mask].mean(1)
        likeness = max(match(one.local, own) for one in looks)
        distance = min(1.0, min(float((color - one.color).norm()) for one in looks) / _FAR_COLOR)
        certainty = _LOOKS * likeness - _COLOR * distance + _PREDICTED * predicted
        overlap = int((mask & guess).sum()) / int((mask | guess).sum())
        size = min(abs(math.log(area / one.area)) for one in looks)
        return Candidate(logits, certainty + trust * overlap - _AREA * size, _CERTAINTY * (certainty - _LOST))

    def _similarity(self, looks: Sequence[Looks]) -> Tensor:
        """How similar each cell's surroundings are to the object, and how little to what was around it: `[4h, 4w]`, 0..1."""
        each = []
        for one in looks:
            own = (self.cells @ F.normalize(one.local.mean(0), dim=0) + (self.cells @ one.local.T).amax(1)) / 2
            each.append(own - _SURROUNDINGS * (self.cells @ one.around.T).amax(1) if len(one.around) else own)
        coarse = torch.stack(each).mean(0).view(1, 1, *self.coarse)
        fine = F.interpolate(coarse, self.geometry.grid, mode="bilinear", align_corners=False)[0, 0]
        fine = torch.where(self.valid, fine, fine.min())
        return (fine - fine.min()) / (fine.max() - fine.min()).clamp(min=1e-6)

    def _decoded(self, prompt: PromptTensors, several: bool) -> Decoded:
        found = self.model.decode(self.features, prompt, Wanted(several))
        return found._replace(logits=found.logits - self.model.mask_threshold)

    def _hint(self, logits: Tensor) -> Tensor | None:
        """Logits `[4h, 4w]` as a mask prompt; None for a model that takes none, which has to do with points and boxes."""
        return logits.clamp(-_CLIP, _CLIP)[None, None] if self.takes_masks else None

    def _mask(self, logits: Tensor) -> Tensor:
        return (logits > 0) & self.valid

    def _coarse(self, mask: Tensor) -> Tensor:
        """The cells bool `[h * w]` of the features that a mask `[4h, 4w]` covers by half, or most."""
        share = F.adaptive_avg_pool2d(mask[None].float(), self.coarse).flatten()
        return share >= min(0.5, float(share.max()))

    @property
    def _pixels(self) -> float:
        """Pixels of the square for a cell of the logits."""
        return self.geometry.side / self.geometry.grid[1]

    def _box(self, mask: Tensor, margin: float = 0.0) -> Tensor:
        """The box `[1, 4]` around a mask that is not empty, in pixels of the square; `margin` of its sides is added at each."""
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        low, high = torch.stack([columns[0], rows[0]]).float(), torch.stack([columns[-1], rows[-1]]).float() + 1
        more = margin * (high - low)
        return torch.cat([low - more, high + more]).mul(self._pixels).clamp(0, self.geometry.side)[None]


def kept(logits: Tensor, index: int, last: Followed | None) -> Followed:
    """What is followed from a frame on: logits `[4h, 4w]` of a mask that is not empty, and where the last one was."""
    motion = (0.0, 0.0)
    if last is not None and last.frame != index:
        step = (_middle(logits) - _middle(last.logits.to(logits).float())) / abs(index - last.frame)
        before = torch.tensor(last.motion, device=step.device) if any(last.motion) else step
        motion = tuple(((step + before) / 2).tolist())
    return Followed(logits.half().cpu(), index, motion)


def _middle(logits: Tensor) -> Tensor:
    """The mean place (x, y) of a mask's cells."""
    return (logits > 0).nonzero().float().mean(0).flip(0)


def _moved(logits: Tensor, x: int, y: int) -> Tensor:
    """Logits `[h, w]` moved by whole cells; what comes in is not in the mask."""
    height, width = logits.shape
    moved = torch.full_like(logits, -_CLIP)
    if abs(x) < width and abs(y) < height:
        part = logits[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
        moved[max(0, y) : height - max(0, -y), max(0, x) : width - max(0, -x)] = part
    return moved


def _blurred(mask: Tensor, reach: int) -> Tensor:
    """A mask `[h, w]` averaged over squares with sides of about `reach` cells."""
    return F.avg_pool2d(mask[None].float(), reach | 1, 1, reach // 2)[0]


def _grown(mask: Tensor, reach: int) -> Tensor:
    return F.max_pool2d(mask[None].float(), 2 * reach + 1, 1, reach)[0] > 0

"""A mask decoder through which gradients flow: the model's own arithmetic on copies of its weights."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SAMError
from ..kernels.decoder import FastDecoder, Rated, SharedImage
from ..kernels.linear import AtenLinear
from ..models.base import DecoderParts, Segmenter, optional_member, with_concept
from ..models.features import Features
from ..prompts import PromptTensors


class Tried(NamedTuple):
    """Mask logits `[n, T, 4h, 4w]` and predicted IoUs `[n, T]` of n prompts: the single mask first, then the candidates."""

    logits: Tensor
    scores: Tensor


class Trainable:
    """The decoder of a model, copied: whatever is done to it, no weight, gradient or mode of the model changes.

    Args:
        model: whose decoder it is; on `device`.
        device: where to train.

    Raises:
        SAMError: the model's decoder cannot be trained.
    """

    def __init__(self, model: Segmenter, device: torch.device) -> None:
        find = optional_member(model, "decoder_parts")
        if find is None:
            raise SAMError(f"A {type(model).__name__} cannot be taught. Use a model from Load SAM Model.")
        parts: DecoderParts = find()
        self.kind, self.maps = parts.kind, parts.maps
        self.prompts, self.decoder = (copy.deepcopy(part).to(device).float() for part in (parts.prompts, parts.decoder))
        self.prompts.eval().requires_grad_(False)
        self.decoder.eval().requires_grad_(False)
        self.device = device
        self.plan = self.planned()

    def planned(self) -> FastDecoder:
        """A plan of the decoder as it is now; gradients flow into weights that require them."""
        return self.kind(self.decoder, self.prompts, AtenLinear)

    def share(self, features: Features) -> SharedImage:
        """What the prompts of an image on the device share; made once for each image, unless the decoder is being trained."""
        if any(weight.requires_grad for weight in self.decoder.parameters()):
            return self._share([features.tensor(name) for name in self.maps])
        return features.shared(self.maps, self, self._share)

    def _share(self, maps: list[Tensor]) -> SharedImage:
        return self.plan.share(maps[0], tuple(maps[1:]))

    def run(self, shared: SharedImage, prompts: PromptTensors, wanted: slice, concept: Tensor | None = None) -> Tried:
        """Decode n prompts of one image.

        Args:
            shared: see `share`.
            prompts: in pixels of the square input.
            wanted: which of the mask tokens.
            concept: learned tokens, or None.
        """
        rated = self._rated(shared, prompts, concept)
        return Tried(self.plan.masks(rated, wanted, shared), rated.scores[:, wanted])

    def rate(self, shared: SharedImage, prompts: PromptTensors, wanted: slice) -> Tensor:
        """The predicted IoUs `[n, T]` of `run`, without its masks."""
        return self._rated(shared, prompts, None).scores[:, wanted]

    def _rated(self, shared: SharedImage, prompts: PromptTensors, concept: Tensor | None) -> Rated:
        sparse, dense = self.prompts(points=prompts.points, boxes=prompts.boxes, masks=prompts.masks)
        return self.plan.rate(shared, with_concept(sparse, concept), None if prompts.masks is None else dense)

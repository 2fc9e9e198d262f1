"""One frame of a film: objects that are prompted on it or followed onto it, as SAM 2's `SAM2Base.track_step` finds them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ....utils.images import resize_masks
from ...errors import SAMError
from ...kernels.decoder import FastDecoder
from ...prompts import PromptTensors
from ..features import IMAGE, Features
from .memory import NO_OBJECT, Memory, Recalled, Remembered
from .model import HIGH_RES, SAM2Model

_GIVEN_SCALE, _GIVEN_BIAS = 20.0, -10.0  # logits of a given mask (`_use_mask_as_output`)
_CLIP = 32.0  # of the logits that a correction gets
_NOTHING = PromptTensors(None, None, None)


class Seen(NamedTuple):
    """An object on a frame.

    Attributes:
        logits: low-resolution mask logits `[4h, 4w]`, `NO_OBJECT` where it is absent.
        object_score: logit `[]` that it is in the image.
        pointer: `[C]`.
    """

    logits: Tensor
    object_score: Tensor
    pointer: Tensor


class FilmFrame:
    """A frame's features on the model's device, for as long as `placed` keeps the model there.

    Args:
        model: that made the features, and tracks.
        features: of the frame.

    Raises:
        SAMError: the model has no memory.
    """

    def __init__(self, model: SAM2Model, features: Features) -> None:
        self.model, self.memory = model, memory_of(model)
        self.image = features.tensor(IMAGE)
        self.features = self.image - model.no_mem_embed.view(-1, 1, 1)
        self.finer = [features.tensor(name) for name in HIGH_RES]
        self.plan = model.decoder_plan(features.device)
        self.finer_tokens = None if self.plan is None else self.plan.finer_tokens(*self.finer)

    @torch.no_grad()
    def begun(self, prompt: PromptTensors) -> Seen:
        """An object by its first prompts, in the frame's coordinates; no memory is used."""
        return self._decoded(self.image, prompt)

    @torch.no_grad()
    def given(self, mask: Tensor) -> Seen:
        """An object whose mask `[H, W]` is given: it is the answer, and the decoder makes a pointer of it."""
        side = self.model.side
        mask = resize_masks(mask[None].to(self.image), (side, side)).ge(0.5).float()[None]
        prompt = PromptTensors(None, None, self.memory.mask_downsample(mask))
        # The single mask's pointer, as in Meta's sam2; transformers takes that of the best of three.
        seen = self._decoded(self.features, prompt, single=True)
        full = mask * _GIVEN_SCALE + _GIVEN_BIAS
        logits = F.interpolate(full, seen.logits.shape, mode="bilinear", align_corners=False, antialias=True)[0, 0]
        is_there = mask.any()
        pointer = torch.where(is_there, seen.pointer, self.memory.no_obj_ptr[0])
        return Seen(logits, torch.where(is_there, _GIVEN_SCALE + _GIVEN_BIAS, _GIVEN_BIAS), pointer)

    @torch.no_grad()
    def conditioned(self, objects: Sequence[Recalled], film_frames: int) -> list[Tensor]:
        """The frame's features `[C, h, w]` for each of some objects, see `Memory.conditioned`."""
        plan = self.model.memory_plan(self.features.device)
        return self.memory.conditioned(self.features, objects, film_frames, plan)

    @torch.no_grad()
    def followed(self, conditioned: Tensor) -> Seen:
        """An object by what is remembered of it."""
        return self._decoded(conditioned, _NOTHING)

    @torch.no_grad()
    def corrected(self, conditioned: Tensor, prompt: PromptTensors, before: Seen) -> Seen:
        """An object by what is remembered of it and by prompts, which also see the mask that they correct.

        The logits that Meta's `add_new_points_or_box` feeds back are clipped; transformers feeds back none.
        """
        masks = before.logits.clamp(-_CLIP, _CLIP)[None, None] if prompt.masks is None else prompt.masks
        return self._decoded(conditioned, PromptTensors(prompt.points, prompt.boxes, masks))

    @torch.no_grad()
    def remembered(self, seen: Seen, prompted: bool) -> Remembered:
        """What the frame leaves behind of an object, on the CPU; `prompted`: whether its mask was made from prompts."""
        kept = self.memory.remembered(self.features, seen.logits, seen.pointer, seen.object_score, prompted)
        return Remembered(*(part.cpu() for part in kept))

    def _decoded(self, image: Tensor, prompt: PromptTensors, single: bool = False) -> Seen:
        """The best of three masks for one point or none, as `_use_multimask` has it; else the single one, or the best if that
        is not stable. The pointer is always that of the token that was asked for.
        """
        points = 0 if prompt.points is None else prompt.points[0].shape[1]
        several = not single and points + 2 * (prompt.boxes is not None) <= 1
        sparse, dense = self.model.sam_prompt_encoder(prompt.points, prompt.boxes, prompt.masks)
        decoder = self.model.sam_mask_decoder
        if self.plan is None:
            places = self.model.sam_prompt_encoder.get_dense_pe()
            dense = self.model.sam_prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1) if dense is None else dense
            masks, scores, object_score, tokens = decoder.plainly(image, self.finer, places, sparse, dense)
            token = 1 + int(scores[0, 1:].argmax()) if several else 0
            logits = decoder.decode_plainly(masks, scores, object_score, several, None, False).logits[0]
            logits, token = (logits[token - 1] if several else logits[0]), tokens[:, token]
        else:
            shared = FastDecoder.share(self.plan, image, self.finer_tokens)
            rated = self.plan.rate(shared, sparse, dense)
            best = 1 + int(rated.scores[0, 1:].argmax()) if several else 0
            masks = self.plan.masks(rated, slice(best, best + 1), shared) if several else self.plan.single(rated, shared)[0]
            logits, token = masks[0, 0], rated.queries[:, 1 + best]
            object_score = self.plan.object_scores(rated)
        is_there = object_score > 0
        pointer = self.memory.pointers(token, is_there)[0]
        return Seen(torch.where(is_there, logits, NO_OBJECT), object_score[0], pointer)


def memory_of(model: SAM2Model) -> Memory:
    """The part of a model that follows objects.

    Raises:
        SAMError: it has none.
    """
    if model.memory is None:
        raise SAMError(
            f"{model.checkpoint.name} cannot track: {model.memory_fault}. Load a whole file of SAM 2, SAM 2.1 or EdgeTAM, "
            "such as sam2.1_hiera_tiny.pt."
        )
    return model.memory

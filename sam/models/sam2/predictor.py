"""segment_anything's `SamPredictor` on a SAM 2 model, for nodes of other packs that make one (WAS Node Suite's SAM Image Mask).

The predictor fits the long side of an image to the square and pads the rest; SAM 2 stretches the image over the square. The
predictor calls four parts of a model, one after the other, and hands on what each returns without looking at it. So the first
two hand on what the decoder needs: the maps with the size that the prompts are measured in, and the prompts as they are.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...geometry import Size
from ...prompts import PromptTensors
from ..base import Segmenter, Wanted
from ..features import Features

_LEVELS = 255


class PreparedImage(NamedTuple):
    """An image as `SamPredictor` hands it from one part of the model to the next.

    Attributes:
        features: its maps.
        resized: (h, w) of the image that the predictor made, whose pixels the prompts are measured in.
    """

    features: Features
    resized: Size


def prepared(model: Segmenter, pixels: Tensor) -> PreparedImage:
    """Encode an image uint8 or float in 0..255 `[1, 3, h, w]`, its long side that of the model's square; in float32."""
    resized = (int(pixels.shape[2]), int(pixels.shape[3]))
    square = model.geometry(resized).resized
    stretched = F.interpolate(pixels.float(), square, mode="bilinear", antialias=True, align_corners=False)
    maps = model.features(stretched.round().clamp(0, _LEVELS), torch.float32)
    return PreparedImage(Features({name: values[0] for name, values in maps.items()}, "", pixels.device), resized)


class AsGiven:
    """In the place of the prompt encoder: the prompts as they are."""

    def __call__(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[PromptTensors, None]:
        return PromptTensors(points, boxes, masks), None

    def get_dense_pe(self) -> None:
        """The positions of the image's tokens, which the model's own decoder has."""


class PredictorDecoder:
    """In the place of the mask decoder: SAM 2's own prompt encoder and mask decoder."""

    def __init__(self, model: Segmenter) -> None:
        self.model = model

    def __call__(
        self,
        image_embeddings: PreparedImage,
        image_pe: None,
        sparse_prompt_embeddings: PromptTensors,
        dense_prompt_embeddings: None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Low-resolution logits `[n, W, 4h, 4w]` of the stretched image, and predicted IoUs `[n, W]`."""
        prompts, (height, width) = sparse_prompt_embeddings, image_embeddings.resized
        side, points, boxes = self.model.geometry((height, width)).side, prompts.points, prompts.boxes
        if points is not None:
            points = points[0] * points[0].new_tensor([side / width, side / height]), points[1]
        if boxes is not None:
            boxes = boxes * boxes.new_tensor([side / width, side / height] * 2)
        stretched = PromptTensors(points, boxes, prompts.masks)
        found = self.model.decode(image_embeddings.features, stretched, Wanted(multimask_output))
        return found.logits, found.scores


class ForPredictor:
    """What segment_anything's `SamPredictor` calls of a model; a base of those that stretch an image over the square."""

    image_format = "RGB"

    @property
    def prompt_encoder(self) -> AsGiven:
        """For the predictor alone: `sam_prompt_encoder` is the module."""
        return AsGiven()

    @property
    def mask_decoder(self) -> PredictorDecoder:
        """For the predictor alone: `sam_mask_decoder` is the module."""
        return PredictorDecoder(self)

    def preprocess(self, pixels: Tensor) -> PreparedImage:
        """An image `[1, 3, h, w]` whose long side is that of the square, encoded: `image_encoder` hands it on."""
        return prepared(self, pixels)

    def postprocess_masks(self, masks: Tensor, input_size: Size, original_size: Size) -> Tensor:
        """Low-resolution logits `[n, W, 4h, 4w]` at the image's size; `input_size` does not matter, as nothing was padded."""
        return F.interpolate(masks, tuple(original_size), mode="bilinear", align_corners=False)

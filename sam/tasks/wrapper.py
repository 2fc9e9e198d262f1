"""Our models as Impact Pack's: what its SAM_MODEL is called with, through this pack's encoder, cache and device rules."""

from collections.abc import Sequence

import numpy as np

from ..errors import SAMError
from ..models.base import Segmenter
from ..models.efficient_sam import EfficientSAM
from ..models.sam import SAMModel
from ..models.sam2 import SAM2Model
from ..prompts import Prompt
from .predict import FramePrediction, PredictOptions
from .stream import segment_each


class SAMWrapper:
    """The `sam_wrapper` of a model, as `impact.core.SAMWrapper` of ComfyUI-Impact-Pack (7 and 8) is called.

    Args:
        model: one of ours.

    Attributes:
        model: the same.
    """

    def __init__(self, model: Segmenter) -> None:
        self.model = model

    def prepare_device(self) -> None:
        """Nothing to do: `predict` places the model, and ComfyUI's memory manager makes room for it."""

    def release_device(self) -> None:
        """Nothing to do: the memory manager offloads the model when something else needs the memory."""

    def predict(
        self,
        image: np.ndarray,
        points: Sequence[tuple[float, float]],
        plabs: Sequence[int],
        bbox: Sequence[float] | None,
        threshold: float,
    ) -> list[np.ndarray]:
        """The masks of one object; an image that comes again is not encoded again.

        Args:
            image: uint8 `[H, W, 3]` RGB; alpha is ignored.
            points: (x, y) in pixels.
            plabs: for each point 1 (on the object) or 0 (not on it).
            bbox: (x1, y1, x2, y2) in pixels, or None.
            threshold: the lowest predicted IoU.

        Returns:
            bool `[H, W]` each: all of the model's candidates that reach the threshold, highest score first; where none does,
            the best one. None where there is neither a point nor a box.

        Raises:
            SAMError: not as many labels as points, or an image of another form.
        """
        if len(points) != len(plabs):
            raise SAMError(f"sam_wrapper.predict got points: {len(points)}; labels: {len(plabs)}. Each point needs one label.")
        box = None if bbox is None else np.asarray(bbox, dtype=np.float64)
        prompt = Prompt(np.asarray(points, np.float64).reshape(-1, 2), np.asarray(plabs, np.int32), box)
        if box is None and not len(prompt.points):
            return []
        found: list[FramePrediction] = []
        options = PredictOptions("all", "on", logits=False)
        segment_each(self.model, [image[..., :3]], [[prompt]], lambda _, one: found.append(one), options)
        masks, scores = found[0].masks.cpu().numpy(), found[0].scores.tolist()
        return [mask for mask, score in zip(masks, scores, strict=True) if score >= threshold] or [masks[0]]


# Here and not in the classes: a wrapper encodes and decodes, which is the floor above the models. As a property it makes no
# circle of references, so a model is freed with its last user.
SAMModel.sam_wrapper = SAM2Model.sam_wrapper = EfficientSAM.sam_wrapper = property(SAMWrapper)

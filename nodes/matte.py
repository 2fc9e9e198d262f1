"""Soft edges: Load ViTMatte, SAM Soft Edges."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sam import MATTE_MODELS, DeviceMode, MatteModel, MatteOptions, SAMError, result_device, soft_edges
from ..utils.images import as_masks, image_to_frames
from .common import CATEGORY, DEVICE_MODE_INPUT
from .model import ModelLoader

_DEFAULTS = {field.name: field.default for field in fields(MatteOptions)}
_PIXELS = {"min": 0, "max": 256}


class MatteLoader(ModelLoader):
    """`SAMKit_MatteLoader`: a ViTMatte by name, from the `vitmatte` folders or the hub."""

    MODELS = MATTE_MODELS
    TOOLTIP = "A folder in models/vitmatte, or a known model, which is downloaded on first use."
    DESCRIPTION = (
        "Loads a ViTMatte model from models/vitmatte, for SAM Soft Edges. Requires the transformers library. Known "
        "models are downloaded on first use."
    )
    SEARCH_ALIASES = ["vitmatte", "matting", "alpha matting", "load matting model"]
    RETURN_TYPES = ("SAMKIT_MATTE_MODEL",)
    RETURN_NAMES = ("matte_model",)
    OUTPUT_TOOLTIPS = ("The model, for SAM Soft Edges.",)


class Matte:
    """`SAMKit_Matte`."""

    DESCRIPTION = (
        "Gives masks soft edges that follow the image: hair, fur, glass, motion blur (ViTMatte). Only a band around the "
        "mask's outline changes; the rest stays fully opaque or fully transparent."
    )
    SEARCH_ALIASES = [
        "matting",
        "vitmatte",
        "alpha",
        "alpha matte",
        "hair",
        "fur",
        "trimap",
        "refine edge",
        "feather",
        "cutout",
        "cut out",
        "remove background",
        "background removal",
        "transparent background",
        "sam",
    ]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("MASK",)
    RETURN_NAMES = ("alpha",)
    OUTPUT_TOOLTIPS = ("The masks with soft edges, in the order of the input.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        grow = "How far the soft edge may extend outside the mask, in pixels. For hair, use the length of the loose strands."
        shrink = "How far the soft edge may extend into the mask, in pixels."
        return {
            "required": {
                "matte_model": ("SAMKIT_MATTE_MODEL", {"tooltip": "A model from Load ViTMatte."}),
                "image": ("IMAGE", {"tooltip": "The images that the masks belong to. Alpha is ignored."}),
                "masks": ("MASK", {"tooltip": "One mask per image, or several per image in frame order, from any node."}),
                "grow": ("INT", {"default": _DEFAULTS["grow"], **_PIXELS, "tooltip": grow}),
                "shrink": ("INT", {"default": _DEFAULTS["shrink"], **_PIXELS, "tooltip": shrink}),
            },
            "optional": {"device_mode": DEVICE_MODE_INPUT},
        }

    def execute(
        self,
        matte_model: MatteModel,
        image: Tensor,
        masks: Tensor,
        grow: int = _DEFAULTS["grow"],
        shrink: int = _DEFAULTS["shrink"],
        device_mode: DeviceMode = "AUTO",
    ) -> tuple[Tensor]:
        options, given, images = MatteOptions(grow, shrink), as_masks(masks, "masks"), image_to_frames(image)
        frames = _frame_of_each(images, len(given))
        found = soft_edges(matte_model, frames, list(given.cpu().numpy()), options, device_mode)
        # Without masks, one empty mask per image: no node loses frames of a batch.
        alpha = torch.from_numpy(np.stack(found)) if found else torch.zeros(image.shape[:3])
        return (alpha.to(result_device()),)


def _frame_of_each(frames: list[np.ndarray], masks: int) -> list[np.ndarray]:
    """The image of each mask: of N images each has as many masks, in frame order."""
    if not frames or masks % len(frames):
        raise SAMError(f"masks: {masks}, images: {len(frames)}. Connect one mask per image, or as many for each image.")
    return [frame for frame in frames for _ in range(masks // len(frames))]

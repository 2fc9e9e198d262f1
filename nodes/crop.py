"""Inpaint an object at the sampler's own size: SAM Crop to Mask, SAM Stitch Crop."""

from typing import Any

from torch import Tensor

from ..utils.crops import Crops, cut, stitch
from .common import CATEGORY

_MULTIPLES = ("8", "16", "32", "64", "1")


class CropToMask:
    """`SAMKit_CropToMask`."""

    DESCRIPTION = (
        "Cuts images around their masks, for any sampler: all of its pixels go to the object. SAM Stitch Crop puts the "
        "result back. Pixels outside the masks stay exactly as they are."
    )
    SEARCH_ALIASES = ["crop", "inpaint crop", "crop and stitch", "crop by mask", "crop mask", "zoom in", "detailer", "sam"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "MASK", "SAMKIT_CROP")
    RETURN_NAMES = ("image", "masks", "crop")
    OUTPUT_TOOLTIPS = (
        "The crops, one per mask, all of one size.",
        "The masks of the crops, for the sampler.",
        "Where the crops are, for SAM Stitch Crop.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        context = "Width and height of the crops, in those of the largest mask. The surroundings tell a sampler what fits."
        side = "Resize the crops to this many pixels on the long side: the size that the model was made for. 0: do not resize."
        multiple = (
            "Width and height of the crops become multiples of this many pixels. Models that work in latent space need 8."
        )
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The images that the masks belong to."}),
                "masks": ("MASK", {"tooltip": "One mask per image, or several per image in frame order. May be soft."}),
                "context": ("FLOAT", {"default": 1.5, "min": 1.0, "max": 10.0, "step": 0.1, "tooltip": context}),
                "side": ("INT", {"default": 1024, "min": 0, "max": 8192, "step": 8, "tooltip": side}),
                "multiple_of": (list(_MULTIPLES), {"default": "8", "tooltip": multiple}),
            }
        }

    def execute(
        self, image: Tensor, masks: Tensor, context: float = 1.5, side: int = 1024, multiple_of: str = "8"
    ) -> tuple[Tensor, Tensor, Crops]:
        crops, images, parts = cut(image, masks, context, side, int(multiple_of))
        return images, parts, crops


class StitchCrop:
    """`SAMKit_StitchCrop`."""

    DESCRIPTION = (
        "Puts what a sampler made of the crops of SAM Crop to Mask back into the images. The masks blend: soft edges "
        "stay soft, and pixels where a mask is 0 stay exactly as they are."
    )
    SEARCH_ALIASES = ["stitch", "inpaint stitch", "crop and stitch", "paste", "uncrop", "composite", "sam"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The images, at their own size.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "crop": ("SAMKIT_CROP", {"tooltip": "From SAM Crop to Mask."}),
                "image": ("IMAGE", {"tooltip": "What the sampler made of the crops, one per crop, at any size."}),
            }
        }

    def execute(self, crop: Crops, image: Tensor) -> tuple[Tensor]:
        return (stitch(crop, image),)

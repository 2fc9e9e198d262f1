"""SAM Kit Example Image."""

from typing import Any

from torch import Tensor

from ..utils.comfy_files import save_temporary
from ..utils.examples import example_image, example_names
from ..utils.images import image_to_frames
from .common import CATEGORY


class ExampleImage:
    """`SAMKit_ExampleImage`: an image that comes with the pack, so that its templates run at once."""

    DESCRIPTION = (
        "Outputs an example image that is bundled with the pack, so that the templates run without your own files. For "
        "your own images, use Load Image."
    )
    SEARCH_ALIASES = ["sam", "sample image", "test image", "demo image"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The example image. samkit_film has 24 frames, all others have one.",)
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = (
            "samkit_scene: objects to click on. samkit_film: objects that move. samkit_reference and samkit_other_scene: one "
            "object in two images."
        )
        return {"required": {"image": (example_names(), {"tooltip": tooltip})}}

    def show(self, image: str) -> dict[str, Any]:
        """What ComfyUI calls: the output, and the image to show in the node."""
        (output,) = self.execute(image)
        return {"ui": {"images": save_temporary(image_to_frames(output))}, "result": (output,)}

    def execute(self, image: str) -> tuple[Tensor]:
        return (example_image(image),)

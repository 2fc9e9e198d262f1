"""What every node declares alike."""

from typing import Any

from ..sam import DEVICE_MODES

CATEGORY = "Art Venture/Segmentation"

SAM_MODEL_INPUT = ("AV_SAM_MODEL", {"tooltip": "A model from Load SAM Model, or any pack's segment_anything Sam."})
DEVICE_MODE_INPUT: tuple[Any, ...] = (
    list(DEVICE_MODES),
    {
        "default": "AUTO",
        "tooltip": "AUTO: on the GPU where there is one; ComfyUI may move the model out afterwards. "
        "Prefer GPU: stay there, unless ComfyUI needs the room. CPU: run on the CPU.",
    },
)

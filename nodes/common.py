"""What every node declares alike."""

from typing import Any

from ..sam import DEVICE_MODES

CATEGORY = "Art Venture/Segmentation"

SAM_MODEL_INPUT = ("AV_SAM_MODEL", {"tooltip": "A SAM model from Load SAM Model, or a segment_anything Sam from another pack."})
DEVICE_MODE_INPUT: tuple[Any, ...] = (
    list(DEVICE_MODES),
    {
        "default": "AUTO",
        "tooltip": "AUTO: run on the GPU if there is one; ComfyUI may offload the model afterwards. "
        "Prefer GPU: stay on the GPU unless ComfyUI needs the memory. CPU: run on the CPU.",
    },
)

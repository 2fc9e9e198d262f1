"""What every node declares alike."""

from typing import Any

from ..sam import DEVICE_MODES

CATEGORY = "Art Venture/Segmentation"

UNCONNECTED: Any = object()
"""The value of an optional input that nothing is connected to; None is what a connected one may carry."""

SAM_MODEL_TYPES = "AV_SAM_MODEL,SAM_MODEL"
"""Art Venture's socket and Impact Pack's: what carries a SAM in one of them is understood in the other."""

SAM_MODEL_INPUT = (SAM_MODEL_TYPES, {"tooltip": "A SAM model from Load SAM Model, or a SAM from another pack."})
DEVICE_MODE_INPUT: tuple[Any, ...] = (
    list(DEVICE_MODES),
    {
        "default": "AUTO",
        "tooltip": "AUTO: run on the GPU if there is one; ComfyUI may offload the model afterwards. "
        "Prefer GPU: stay on the GPU unless ComfyUI needs the memory. CPU: run on the CPU.",
    },
)
CONCEPT_INPUT: tuple[Any, ...] = (
    "SAMKIT_CONCEPT",
    {
        "tooltip": "A concept from SAM Teach or Load SAM Concept, made with the same model. Each prompt then gives one mask of "
        "the concept. Without it nothing changes."
    },
)

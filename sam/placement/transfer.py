"""To a device and back while it computes. Only pinned memory is copied without waiting: elsewhere that is not safe."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device; to a CUDA GPU without waiting for the copy."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch does not reuse pinned memory before the copy is done


class Download:
    """Results on their way to the CPU. On CUDA the copy begins at once, after what is computed now and before what comes next.

    Args:
        tensors: by name; on other devices they are copied when they are asked for.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: part.contiguous() for name, part in tensors.items()}  # a convolution may answer channels last
        self._arrived = None
        if any(part.device.type == "cuda" for part in self._tensors.values()):
            self._tensors = {name: _to_pinned(part) for name, part in self._tensors.items()}
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def arrays(self) -> dict[str, np.ndarray]:
        """The results, once they are here; what was begun later is not waited for.

        On CUDA they lie in pinned memory, of which there is little: copy what is to stay.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        return {name: part.cpu().numpy() for name, part in self._tensors.items()}


def _to_pinned(part: Tensor) -> Tensor:
    return torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True)


def is_on(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is there; a device without a number is any of its kind."""
    return tensor.device.type == device.type and (device.index is None or tensor.device.index == device.index)

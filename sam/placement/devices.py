"""Which device a run takes, and the model's way there and back."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import nn

from ..errors import SAMError
from .host import CPU, host

DeviceMode = Literal["AUTO", "Prefer GPU", "CPU"]
DEVICE_MODES: tuple[str, ...] = get_args(DeviceMode)

# A model is on one device at a time, so two threads (the queue, a preview) take turns where there are two devices.
_turn = threading.RLock()


@contextlib.contextmanager
def placed(network: nn.Module, mode: DeviceMode) -> Iterator[torch.device]:
    """Run the body with a model on the device that `mode` asks for.

    Inside ComfyUI, `AUTO` and `Prefer GPU` hand the model to its memory manager, which makes room before, may evict it
    after, and frees it on "Unload Models". Outside, `AUTO` moves it back to the CPU afterwards and `Prefer GPU` leaves it.
    Threads take turns with the whole body, except where there is only the CPU: so a preview never holds up the queue there.

    Args:
        network: the model's weights.
        mode: see above.

    Yields:
        The device that the model is on.

    Raises:
        SAMError: `mode` is not one of `DEVICE_MODES`.
    """
    device = device_for(mode)
    with contextlib.ExitStack() as turn:
        turn.enter_context(_turn)
        _place(network, mode)
        if device_for("AUTO").type == "cpu":
            turn.close()
        try:
            yield device
        finally:
            if mode == "AUTO" and device.type != "cpu":
                host().after_auto(network)


def _place(network: nn.Module, mode: DeviceMode) -> None:
    # Weights that are moved in inference mode, in which ComfyUI runs nodes, could not be changed or trained any more.
    with torch.inference_mode(False):
        if mode == "CPU":
            host().unload(network)
        else:
            host().load(network)


def device_for(mode: DeviceMode) -> torch.device:
    """The device that `mode` runs on, on this machine, now.

    Raises:
        SAMError: `mode` is not one of `DEVICE_MODES`.
    """
    if mode not in DEVICE_MODES:
        raise SAMError(f"device_mode is {mode!r}: choose one of {', '.join(DEVICE_MODES)}.")
    return CPU if mode == "CPU" else host().device()


def result_device() -> torch.device:
    """Where IMAGE and MASK results belong: ComfyUI's intermediate device, the CPU outside ComfyUI."""
    return host().result_device()


def free_result_bytes() -> int | None:
    """Free memory where results belong, in bytes; None where this machine does not say."""
    return host().free_result_bytes()

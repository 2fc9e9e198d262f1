"""Which device a run takes, and the model's way there and back."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import nn

from ...utils.checks import one_of
from ...utils.comfy import is_quiet, is_running
from ..errors import BusyError
from ..models.base import optional_member
from .host import CPU, host
from .precision import encoder_dtype
from .resident import resident_of

DeviceMode = Literal["AUTO", "Prefer GPU", "CPU"]
DEVICE_MODES: tuple[str, ...] = get_args(DeviceMode)

# A network has one set of weights at a time, so two threads (the queue, a preview) take turns where there are two devices.
_turn = threading.RLock()
_staying: "weakref.WeakKeyDictionary[nn.Module, int]" = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def placed(network: nn.Module, mode: DeviceMode, memory_required: int = 0) -> Iterator[torch.device]:
    """Run the body with a network on the device that `mode` asks for.

    The network's own weights stay on the CPU; on a GPU copies take their place in the body, see `Resident`. Inside ComfyUI,
    `AUTO` and `Prefer GPU` hand them to its memory manager, which makes room before, may evict them after, and frees them on
    "Unload Models". Outside, `AUTO` drops them afterwards (see `stay_loaded`) and `Prefer GPU` leaves them.
    Threads take turns with the whole body, except where there is only the CPU: so a preview never holds up the queue there.

    Args:
        network: the model's weights.
        mode: see above.
        memory_required: bytes that the body will need on a GPU besides the weights.

    Yields:
        The device that the network is on: the CPU, too, where the GPU has no room for it.

    Raises:
        SAMError: `mode` is not one of `DEVICE_MODES`.
        BusyError: this is a preview, and ComfyUI has begun to run a prompt on the same device.
    """
    wanted = device_for(mode)
    with contextlib.ExitStack() as turn:
        turn.enter_context(_turn)
        device = _place(network, wanted, memory_required)
        if device_for("AUTO").type == "cpu":
            turn.close()
        try:
            with contextlib.nullcontext() if device.type == "cpu" else resident_of(network).in_place():
                yield device
        finally:
            if mode == "AUTO" and device.type != "cpu" and not _staying.get(network):
                host().after_auto(network)


def _place(network: nn.Module, device: torch.device, memory_required: int) -> torch.device:
    # Weights that are moved in inference mode, in which ComfyUI runs nodes, could not be changed or trained any more.
    with torch.inference_mode(False), torch.no_grad():
        if device.type == "cpu":
            host().unload(network)
            return CPU
        if is_quiet() and is_running():  # it may have begun since the preview looked; loading could evict what it uses
            raise BusyError("ComfyUI is running a prompt: the preview waits until it is done.")
        dtype = encoder_dtype(network, device) if optional_member(network, "lowered_weights") else torch.float32
        return host().load(network, dtype, memory_required)


@contextlib.contextmanager
def stay_loaded(network: nn.Module) -> Iterator[None]:
    """In the body, runs in the mode `AUTO` leave a network on the GPU from call to call; outside ComfyUI it goes at the end."""
    with _turn:
        _staying[network] = _staying.get(network, 0) + 1
    try:
        yield
    finally:
        with _turn:
            _staying[network] -= 1
            if not _staying[network]:
                del _staying[network]
                if resident_of(network).device is not None:
                    host().after_auto(network)


def device_for(mode: DeviceMode) -> torch.device:
    """The device that `mode` runs on, on this machine, now.

    Raises:
        SAMError: `mode` is not one of `DEVICE_MODES`.
    """
    one_of(mode, DEVICE_MODES, "device_mode")
    return CPU if mode == "CPU" else host().device()


def result_device() -> torch.device:
    """Where IMAGE and MASK results belong: ComfyUI's intermediate device, the CPU outside ComfyUI."""
    return host().result_device()


def free_result_bytes() -> int | None:
    """Free memory where results belong, in bytes; None where this machine does not say."""
    return host().free_bytes(result_device())

"""Where a model runs and where it rests: the only user of ComfyUI's model management."""

import contextlib
import os
import threading
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..utils.comfy import inside_comfyui
from .errors import SAMError
from .plans import weights_of

DeviceMode = Literal["AUTO", "Prefer GPU", "CPU"]
DEVICE_MODES: tuple[str, ...] = get_args(DeviceMode)

_CPU = torch.device("cpu")
_PATCHER = "_samkit_patcher"
# A model has one place at a time, so two threads (the queue, a preview) take turns where there are two places.
_turn = threading.RLock()


@contextlib.contextmanager
def placed(model: nn.Module, mode: DeviceMode) -> Iterator[torch.device]:
    """Run the body with `model` on the device that `mode` asks for.

    Inside ComfyUI, `AUTO` and `Prefer GPU` hand the model to its memory manager, which makes room before, may evict it
    after, and frees it on "Unload Models". Outside, `AUTO` moves it back to the CPU afterwards and `Prefer GPU` leaves it.
    Threads take turns with the whole body, except where there is but the CPU: so a preview never holds up the queue there.

    Yields:
        The device that the model is on.

    Raises:
        SAMError: `mode` is none of `DEVICE_MODES`.
    """
    device = device_for(mode)
    with contextlib.ExitStack() as turn:
        turn.enter_context(_turn)
        _place(model, mode, device)
        if device_for("AUTO").type == "cpu":
            turn.close()
        try:
            yield device
        finally:
            if mode == "AUTO" and device.type != "cpu" and not inside_comfyui():
                _move(model, _CPU)


def _place(model: nn.Module, mode: DeviceMode, device: torch.device) -> None:
    if mode == "CPU":
        _to_cpu(model)
    elif inside_comfyui():
        _load_through_comfyui(model)
    else:
        _move(model, device)


def device_for(mode: DeviceMode) -> torch.device:
    """The device that `mode` runs on, on this machine, now.

    Raises:
        SAMError: `mode` is none of `DEVICE_MODES`.
    """
    if mode not in DEVICE_MODES:
        raise SAMError(f"device_mode is {mode!r}: choose one of {', '.join(DEVICE_MODES)}.")
    if mode == "CPU":
        return _CPU
    if inside_comfyui():
        import comfy.model_management

        return comfy.model_management.get_torch_device()
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else _CPU


def result_device() -> torch.device:
    """Where IMAGE and MASK results belong: ComfyUI's intermediate device, the CPU outside ComfyUI."""
    if not inside_comfyui():
        return _CPU
    import comfy.model_management

    return comfy.model_management.intermediate_device()


def free_result_bytes() -> int | None:
    """Free memory where results go, in bytes; None where this machine does not tell."""
    if inside_comfyui():
        import comfy.model_management

        return int(comfy.model_management.get_free_memory(result_device()))
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


class _Managed(nn.Module):
    """A model as ComfyUI's ModelPatcher wants it: with a `device` that can be assigned, which neither a `Sam`'s nor a
    transformers model's own can.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.device = _CPU


def _load_through_comfyui(model: nn.Module) -> None:
    import comfy.model_management

    # A plain nn.Linear cannot run with its weights elsewhere, so a partial load is no use to us.
    comfy.model_management.load_models_gpu([_patcher(model)], force_full_load=True)


def _patcher(model: nn.Module) -> Any:
    """ComfyUI's handle on the model; kept on the model, so that both go together."""
    import comfy.model_management
    import comfy.model_patcher

    if getattr(model, _PATCHER, None) is None:
        device = comfy.model_management.get_torch_device()
        setattr(model, _PATCHER, comfy.model_patcher.ModelPatcher(_Managed(model), device, _CPU))
    return getattr(model, _PATCHER)


def _to_cpu(model: nn.Module) -> None:
    """Bring the model to the CPU, through ComfyUI's manager where that holds it, so that its accounts stay true."""
    patcher = getattr(model, _PATCHER, None)
    if patcher is not None and inside_comfyui():
        import comfy.model_management as management

        others = [loaded for loaded in management.current_loaded_models if loaded.model is not patcher]
        management.free_memory(1e30, patcher.load_device, keep_loaded=others)
    _move(model, _CPU)


def _move(model: nn.Module, device: torch.device) -> None:
    """`model.to(device)`, which takes a millisecond even where everything is there already."""
    if device.type == "cpu" and all(part.is_cpu for part in chain(islice(model.buffers(), 1), weights_of(model))):
        return  # which is known several times sooner than by comparing devices
    wanted = device.type, device.index
    for part in chain(islice(model.buffers(), 1), weights_of(model)):
        if wanted not in ((part.device.type, part.device.index), (part.device.type, None)):
            model.to(device)
            return

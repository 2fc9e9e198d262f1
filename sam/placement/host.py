"""ComfyUI or not: devices, free memory and loading of models. The only user of ComfyUI's model management."""

import os
from typing import Any, Protocol

import torch
from torch import nn

from ...utils.comfy import inside_comfyui
from ..store.weights import tensors_of

CPU = torch.device("cpu")
_PATCHER = "_samkit_patcher"


class Host(Protocol):
    """How a process places models."""

    def device(self) -> torch.device:
        """The device that models run on, unless the CPU is asked for."""
        ...

    def result_device(self) -> torch.device:
        """Where IMAGE and MASK results belong."""
        ...

    def free_result_bytes(self) -> int | None:
        """Free memory where results belong, in bytes; None where this machine does not say."""
        ...

    def load(self, model: nn.Module) -> None:
        """Bring a model to `device`."""
        ...

    def unload(self, model: nn.Module) -> None:
        """Bring a model to the CPU."""
        ...

    def after_auto(self, model: nn.Module) -> None:
        """What follows a run in the mode AUTO."""
        ...


class PlainHost:
    """A script, a notebook, pytest: models are moved by hand."""

    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else CPU

    def result_device(self) -> torch.device:
        return CPU

    def free_result_bytes(self) -> int | None:
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None

    def load(self, model: nn.Module) -> None:
        move(model, self.device())

    def unload(self, model: nn.Module) -> None:
        move(model, CPU)

    def after_auto(self, model: nn.Module) -> None:
        self.unload(model)


class ComfyUIHost:
    """A ComfyUI server: its memory manager makes room before, may evict afterwards, and frees on "Unload Models"."""

    def device(self) -> torch.device:
        import comfy.model_management

        return comfy.model_management.get_torch_device()

    def result_device(self) -> torch.device:
        import comfy.model_management

        return comfy.model_management.intermediate_device()

    def free_result_bytes(self) -> int | None:
        import comfy.model_management

        return int(comfy.model_management.get_free_memory(self.result_device()))

    def load(self, model: nn.Module) -> None:
        import comfy.model_management

        # A plain nn.Linear cannot run with its weights elsewhere, so a partial load is no use to us.
        comfy.model_management.load_models_gpu([_patcher(model)], force_full_load=True)

    def unload(self, model: nn.Module) -> None:
        """Through ComfyUI's manager where it has the model, so that its accounts stay true."""
        patcher = getattr(model, _PATCHER, None)
        if patcher is not None:
            import comfy.model_management as management

            others = [loaded for loaded in management.current_loaded_models if loaded.model is not patcher]
            management.free_memory(1e30, patcher.load_device, keep_loaded=others)
        move(model, CPU)

    def after_auto(self, model: nn.Module) -> None:
        """Nothing: the manager evicts the model when something else needs the memory."""


_PLAIN, _COMFYUI = PlainHost(), ComfyUIHost()


def host() -> Host:
    """The host of this process."""
    return _COMFYUI if inside_comfyui() else _PLAIN


class _Managed(nn.Module):
    """A model as ComfyUI's ModelPatcher wants it: with a `device` that can be assigned, which neither a `Sam`'s nor a
    transformers model's own can.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.device = CPU


def _patcher(model: nn.Module) -> Any:
    """ComfyUI's handle on the model; stored on the model, so that both go together."""
    import comfy.model_management
    import comfy.model_patcher

    if getattr(model, _PATCHER, None) is None:
        device = comfy.model_management.get_torch_device()
        setattr(model, _PATCHER, comfy.model_patcher.ModelPatcher(_Managed(model), device, CPU))
    return getattr(model, _PATCHER)


def move(model: nn.Module, device: torch.device) -> None:
    """`model.to(device)`, which takes a millisecond even where everything is there already."""
    tensors = tensors_of(model)
    if device.type == "cpu" and all(part.is_cpu for part in tensors):
        return  # which is known several times sooner than by comparing devices
    wanted = device.type, device.index
    for part in tensors:
        if wanted not in ((part.device.type, part.device.index), (part.device.type, None)):
            model.to(device)
            return

"""ComfyUI or not: devices, free memory and loading of models. The only user of ComfyUI's model management."""

import logging
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ...utils.comfy import inside_comfyui
from ..models.base import optional_member
from ..store.weights import tensors_of
from .resident import Resident, resident_of

log = logging.getLogger("samkit")

CPU = torch.device("cpu")
_MEMORY = Path("/proc/meminfo")
_GEFORCE_16 = ("1660", "1650", "1630", "MX450", "MX550", "T500", "T550", "T600", "T1000", "T1200", "T2000", "CMP 30HX")


class Host(Protocol):
    """How a process places models."""

    def device(self) -> torch.device:
        """The device that models run on, unless the CPU is asked for."""
        ...

    def result_device(self) -> torch.device:
        """Where IMAGE and MASK results belong."""
        ...

    def free_bytes(self, device: torch.device) -> int | None:
        """Free memory on a device, in bytes; None where this machine does not say."""
        ...

    def preferred_dtype(self, device: torch.device) -> torch.dtype:
        """What an image encoder best computes in on a device."""
        ...

    def load(self, network: nn.Module, dtype: torch.dtype, memory_required: int) -> torch.device:
        """Load a network on `device()`, its encoder's weights in `dtype`.

        Args:
            memory_required: bytes that the run will need there besides the weights.

        Returns:
            Where the weights are now: the CPU where they could not be loaded.
        """
        ...

    def unload(self, network: nn.Module) -> None:
        """Take a network off its device; its own weights are on the CPU afterwards."""
        ...

    def after_auto(self, network: nn.Module) -> None:
        """What follows a run in the mode AUTO."""
        ...

    def release_unused(self) -> None:
        """Give memory that torch has set aside on the device back to it."""
        ...


class PlainHost:
    """A script, a notebook, pytest: models are loaded and unloaded by hand."""

    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps") if torch.backends.mps.is_available() else CPU

    def result_device(self) -> torch.device:
        return CPU

    def free_bytes(self, device: torch.device) -> int | None:
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)[0]
        if _MEMORY.exists():  # Linux: what the cache of files takes is given up when it is needed
            lines = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
            return int(lines["MemAvailable"].split()[0]) << 10
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None

    def preferred_dtype(self, device: torch.device) -> torch.dtype:
        """fp16 from Volta on, but for the GeForce 16 series, where it gives NaN; elsewhere than on CUDA fp32."""
        if device.type != "cuda":
            return torch.float32
        if torch.version.hip is not None:
            return torch.float16
        name = torch.cuda.get_device_name(device)
        is_good = torch.cuda.get_device_capability(device) >= (7, 0) and not any(card in name for card in _GEFORCE_16)
        return torch.float16 if is_good else torch.float32

    def load(self, network: nn.Module, dtype: torch.dtype, memory_required: int) -> torch.device:
        device, resident = self.device(), _stale_dropped(network, self.device(), dtype)
        if resident.device is None:
            resident.load(device)
        return device

    def unload(self, network: nn.Module) -> None:
        resident_of(network).drop()
        move(network, CPU)

    def after_auto(self, network: nn.Module) -> None:
        self.unload(network)

    def release_unused(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class ComfyUIHost:
    """A ComfyUI server: its memory manager makes room before, may evict afterwards, and frees on "Unload Models"."""

    def __init__(self) -> None:
        self._has_warned = False

    def device(self) -> torch.device:
        import comfy.model_management

        return comfy.model_management.get_torch_device()

    def result_device(self) -> torch.device:
        import comfy.model_management

        return comfy.model_management.intermediate_device()

    def free_bytes(self, device: torch.device) -> int | None:
        import comfy.model_management

        return int(comfy.model_management.get_free_memory(device))

    def preferred_dtype(self, device: torch.device) -> torch.dtype:
        """ComfyUI's own choice on NVIDIA's and AMD's cards, which knows `--force-fp32` and old cards; elsewhere fp32."""
        import comfy.model_management as management

        if device.type != "cuda":
            return torch.float32
        if management.should_use_fp16(device):
            return torch.float16
        return torch.bfloat16 if management.should_use_bf16(device) else torch.float32

    def load(self, network: nn.Module, dtype: torch.dtype, memory_required: int) -> torch.device:
        """Through the manager; where that leaves the weights on the CPU (`--novram`) they are loaded by hand if they fit."""
        import comfy.model_management as management

        device, owner = self.device(), _owner_of(network)
        if owner is not None and owner.load_device == device:  # its weights are then there for both
            management.load_models_gpu([owner], memory_required=memory_required)
        resident = _stale_dropped(network, device, dtype, self._drop)
        patcher = _patcher(resident, device)
        # Nothing of it is loaded partially: an nn.Linear cannot run with its weights elsewhere.
        management.load_models_gpu([patcher], memory_required=memory_required, force_full_load=True)
        if not resident.is_loaded(device) and resident.nbytes + memory_required < management.get_free_memory(device):
            patcher.patch_model(device_to=device)
        if resident.is_loaded(device):
            return device
        self._warn(device)
        self.unload(network)
        return CPU

    def _warn(self, device: torch.device) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("ComfyUI did not load SAM's weights on %s, and they do not fit there: SAM runs on the CPU.", device)

    def unload(self, network: nn.Module) -> None:
        """Through ComfyUI's manager where it has the model, so that its accounts stay true."""
        self._drop(resident_of(network))
        self._free(_owner_of(network))
        move(network, CPU)

    def _drop(self, resident: Resident) -> None:
        self._free(resident.patcher)
        resident.drop()

    @staticmethod
    def _free(patcher: Any) -> None:
        """Unload one model, and no other."""
        if patcher is not None:
            import comfy.model_management as management

            others = [loaded for loaded in management.current_loaded_models if loaded.model is not patcher]
            management.free_memory(1e30, patcher.load_device, keep_loaded=others)

    def after_auto(self, network: nn.Module) -> None:
        """Nothing: the manager evicts the model when something else needs the memory."""

    def release_unused(self) -> None:
        import comfy.model_management

        comfy.model_management.soft_empty_cache()


_PLAIN, _COMFYUI = PlainHost(), ComfyUIHost()


def host() -> Host:
    """The host of this process."""
    return _COMFYUI if inside_comfyui() else _PLAIN


class SAMWeights(nn.Module):
    """A resident as ComfyUI's ModelPatcher wants it: a module with a `device` that can be assigned, and with `to`.

    It has no parameters of its own, so the manager never unloads a part of it; it is the name that ComfyUI logs.
    """

    def __init__(self, resident: Resident) -> None:
        super().__init__()
        self._resident = weakref.ref(resident)  # which has the patcher, which has this
        self.device = CPU

    def to(self, device: torch.device) -> "SAMWeights":
        """Make the copies, or drop them."""
        resident = self._resident()
        if resident is not None:
            if device.type == "cpu":
                resident.drop()
            elif not resident.is_loaded(device):
                resident.load(device)
        return self


def _patcher(resident: Resident, device: torch.device) -> Any:
    """ComfyUI's handle on a resident; stored on it, so that both go together."""
    import comfy.model_patcher

    if resident.patcher is None or resident.patcher.load_device != device:
        resident.patcher = comfy.model_patcher.ModelPatcher(SAMWeights(resident), device, CPU)
    if resident.device is None:  # what it will be
        resident.patcher.size = resident.nbytes
    return resident.patcher


def _owner_of(network: nn.Module) -> Any:
    """ComfyUI's handle on the model that shares its weights with a network, or None."""
    owner = optional_member(network, "owner")
    return None if owner is None else owner()


def _stale_dropped(
    network: nn.Module, device: torch.device, dtype: torch.dtype, drop: Callable[[Resident], None] = Resident.drop
) -> Resident:
    """A network's resident, ready for `load`: without copies that are elsewhere, of older weights, or in another type."""
    resident = resident_of(network)
    if resident.device is not None and (resident.dtype != dtype or not resident.is_loaded(device)):
        drop(resident)
    resident.dtype = dtype
    return resident


def move(network: nn.Module, device: torch.device) -> None:
    """`network.to(device)`, which takes a millisecond even where everything is there already."""
    tensors = tensors_of(network)
    if device.type == "cpu" and all(part.is_cpu for part in tensors):
        return  # which is known several times sooner than by comparing devices
    wanted = device.type, device.index
    for part in tensors:
        if wanted not in ((part.device.type, part.device.index), (part.device.type, None)):
            network.to(device)
            return

"""A stand-in for a device that is neither a CPU nor a CUDA GPU: it computes on the CPU, and refuses what such a device refuses.

Tensors on it say that they are on `mps`. As on an Apple GPU, float64 is refused there; a mixture with tensors of the CPU is
refused as everywhere, and values can be read only after a copy to the CPU. Copies in both directions are counted.
"""

import contextlib
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("mps", 0)


# What asks for the device's own library before it comes to any tensor.
ASK_FOR_THE_DEVICE = {
    torch.Tensor.__getitem__,
    torch.Tensor.__setitem__,
    torch.Tensor.contiguous,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__bool__,
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.nonzero,
    torch.Tensor.new_tensor,
    torch.Tensor.new_empty,
    torch.Tensor.new_zeros,
    torch.Tensor.new_full,
    torch.nn.functional.scaled_dot_product_attention,
}


class OnDevice(torch.Tensor):
    """A tensor of the stand-in; `on_cpu` has its values."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.on_cpu = inner
        return made

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        stays = function is torch.Tensor.copy_ and all(isinstance(one, OnDevice) for one in arguments)
        if function in ASK_FOR_THE_DEVICE or stays:
            plain = tree_map_only(OnDevice, lambda one: one.on_cpu, (arguments, options or {}))
            found = function(*plain[0], **plain[1])
            return tree_map_only(torch.Tensor, OnDevice, found)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*arguments, **(options or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return run(function, arguments, options or {})


class StandIn(TorchDispatchMode):
    """While it is on, tensors can be made on the device, and copied to it."""

    def __init__(self):
        super().__init__()
        self.copies = Counter()  # "up" and "down", by the shape of what was copied

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return run(function, arguments, options or {}, self.copies)


class FromValues(TorchFunctionMode):
    """While it is on, tensors are made on the device of Python's numbers and numpy's arrays, which no other mode sees."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        device = options.get("device")
        if function in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == DEVICE.type:
            return function(*arguments, **{**options, "device": "cpu"}).to(DEVICE)
        return function(*arguments, **options)


def run(function, arguments, options, copies=None):
    flat, _ = tree_flatten((arguments, options))
    tensors = [one for one in flat if isinstance(one, torch.Tensor)]
    on_device = [isinstance(one, OnDevice) for one in tensors]
    wanted = options.get("device")
    goes_there = any(on_device) if wanted is None else torch.device(wanted).type == DEVICE.type
    is_copy = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if any(on_device) and not is_copy:
        for tensor, there in zip(tensors, on_device, strict=True):
            if not there and tensor.ndim:
                raise RuntimeError(f"Expected all tensors to be on the same device ({function})")
    if function is torch.ops.aten.copy_.default:
        goes_there = on_device[0]
    if is_copy and tensors and goes_there != on_device[-1] and copies is not None:
        copies["up" if goes_there else "down", tuple(tensors[-1].shape)] += 1
    if function is torch.ops.aten._local_scalar_dense.default and any(on_device) and copies is not None:
        copies["down", ()] += 1
    if wanted is not None:
        options = {**options, "device": torch.device("cpu")}
    plain = tree_map_only(OnDevice, lambda one: one.on_cpu, (arguments, options))
    found = function(*plain[0], **plain[1])
    if not goes_there:
        return found
    same = {id(one.on_cpu): one for one in tensors if isinstance(one, OnDevice)}

    def placed(one):
        if one.dtype == torch.float64:
            raise TypeError(
                f"Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it ({function})"
            )
        return same.get(id(one)) if id(one) in same else OnDevice(one)

    return tree_map_only(torch.Tensor, placed, found)


@contextlib.contextmanager
def stand_in_device(monkeypatch):
    """In the body, the stand-in is the device that models run on outside ComfyUI."""
    from samkit.sam.placement.host import PlainHost

    monkeypatch.setattr(PlainHost, "device", lambda self: DEVICE)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `Module.to` cannot put such tensors into parameters
    try:
        with StandIn() as mode, FromValues():
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)

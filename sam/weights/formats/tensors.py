"""What a tensor of a checkpoint must be to serve as a weight."""

import re

import torch
from torch import Tensor

from ...errors import SAMError
from ..limits import shortened

_DTYPES = {
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
}
_NOT_WEIGHTS = re.compile(r"(^|\.)(num_batches_tracked|attention_bias_idxs)$")
_MOST_LETTERS, _MOST_BLOCKS = 500, 255
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def to_weights(state: dict[str, Tensor], file: str) -> None:
    """Make every tensor of a state dict a finite, contiguous float32 one, in place; drop what is not a weight.

    One tensor at a time is converted, so a file in float16 or float64 never needs twice its memory.

    Args:
        state: the names of the file.
        file: its name, for messages.

    Raises:
        SAMError: a name or a tensor that no SAM has; the text names the tensor.
    """
    _check_memory(state, file)
    for name in list(state):
        if _NOT_WEIGHTS.search(name):
            del state[name]
        else:
            _check_name(name, file)
            state[name] = _weight(state[name], f"{file} was not loaded: its tensor {shortened(name)}")


def _check_memory(state: dict[str, Tensor], file: str) -> None:
    """Tensors may share memory, as the two names of one layer do; but a stride of 0 makes any size of nothing."""
    held: dict[int, int] = {}
    needed = 0
    for tensor in state.values():
        if not _problem(tensor):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            needed += tensor.numel() * tensor.element_size()
    if needed > 2 * sum(held.values()):
        raise SAMError(
            f"{file} was not loaded: its tensors would need {needed} bytes of memory, but it holds only {sum(held.values())}."
        )


def _check_name(name: str, file: str) -> None:
    """The number of a block is what a model is built from: one that is absurd would build for hours."""
    if len(name) > _MOST_LETTERS:
        raise SAMError(f"{file} was not loaded: the name of a tensor has {len(name)} characters ({shortened(name)}).")
    if not name.isprintable():
        raise SAMError(f"{file} was not loaded: a tensor's name has characters that cannot be printed ({shortened(name)}).")
    if any(len(number) > 4 or int(number) > _MOST_BLOCKS for number in _NUMBER.findall(name)):
        raise SAMError(f"{file} was not loaded: no SAM has as many blocks as its tensor {shortened(name)} says.")


def _weight(tensor: Tensor, what: str) -> Tensor:
    if problem := _problem(tensor):
        raise SAMError(f"{what} {problem}. Get the checkpoint in float32, float16 or bfloat16.")
    try:
        weight = tensor.detach().float().contiguous()
    except (RuntimeError, MemoryError) as error:
        raise SAMError(f"{what} could not be converted to float32 ({str(error).splitlines()[0][:200]}).") from error
    if weight.untyped_storage().nbytes() > weight.numel() * weight.element_size():
        weight = weight.clone()  # a small part of a large storage would hold all of it
    if not torch.isfinite(weight.sum()):  # one pass without a mask; a sum may overflow, so only then each value is tested
        count = weight.numel() - int(torch.isfinite(weight).sum())
        if count:
            raise SAMError(
                f"{what} has NaN or infinite values ({count} of {weight.numel()}): "
                "the checkpoint is damaged, or its training failed. Get it again, or use another."
            )
    return weight


def _problem(tensor: Tensor) -> str:
    """Why a tensor is not a weight; empty where it is."""
    if tensor.is_meta:
        return "has no values (it is on the meta device)"
    if tensor.is_quantized:
        return f"is quantized ({_plain(tensor.dtype)})"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is not dense ({_plain(tensor.layout)})"
    if tensor.dtype not in _DTYPES:
        return f"holds {_plain(tensor.dtype)}, and a weight must be floating point"
    return "" if tensor.numel() else f"has no values (its shape is {tuple(tensor.shape)})"


def _plain(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")

"""Read a checkpoint file. No code of the file is ever run."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import SAMError

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_HEADER_AT = 8  # safetensors: a length in 8 bytes, whose first may well be a pickle's, then the JSON header
_DAMAGED = "the file is truncated or damaged: fetch it again"


def read_checkpoint(path: Path) -> object:
    """Read a `.pth` (zip or legacy pickle, tensors only) or `.safetensors` file, told apart by content.

    Returns:
        What the file holds, tensors on the CPU, mapped from the file where the format allows.

    Raises:
        SAMError: no such file, damaged, or a pickle that would run code.
    """
    if not path.is_file():
        raise SAMError(f"there is no file {path}.")
    with path.open("rb") as file:
        start = file.read(_HEADER_AT + 1)
    if start.startswith(_ZIP_MAGIC):
        return _read_torch(path, mmap=True)
    if start.startswith(_PICKLE_MAGIC) and start[_HEADER_AT:] != b"{":
        return _read_torch(path, mmap=False)
    return _read_safetensors(path)


def _read_torch(path: Path, mmap: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise SAMError(
            f"{path.name} was not loaded: it is damaged, or holds more than tensors and would run code of its own. "
            f"Get the checkpoint as .safetensors, or from its publisher. ({reason})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise SAMError(f"{path.name} was not loaded: {_DAMAGED}. ({str(error).splitlines()[0]})") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise SAMError(
            f"{path.name} was not loaded: it is neither a PyTorch nor a safetensors file, or {_DAMAGED}. ({error})"
        ) from error

"""Read a checkpoint file into a state dict with SAM's own key names. No code of the file is ever run."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import SAMError

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_DAMAGED = "the file is truncated or damaged: fetch it again"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a `.pth` (zip or legacy pickle, tensors only) or `.safetensors` file, told apart by content.

    Returns:
        Tensors on the CPU, mapped from the file where the format allows.

    Raises:
        SAMError: no such file, damaged, a pickle that would run code, or not a dict of tensors.
    """
    if not path.is_file():
        raise SAMError(f"there is no file {path}.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == _ZIP_MAGIC or magic.startswith(_PICKLE_MAGIC):
        content = _read_torch(path, mmap=magic == _ZIP_MAGIC)
    else:
        content = _read_safetensors(path)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise SAMError(f"{path.name} is no SAM checkpoint: it does not hold a plain dict of tensors.")
    return dict(content)


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

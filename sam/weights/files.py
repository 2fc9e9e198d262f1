"""Read a checkpoint file. No code of the file is ever run."""

import json
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import SAMError

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_HEADER_AT = 8  # safetensors: a length in 8 bytes, whose first may well be a pickle's, then the JSON header
INDEX_SUFFIX = ".safetensors.index.json"
_SHARD = re.compile(r"^(.+)-\d{5}-of-\d{5}\.safetensors$")
_DAMAGED = "the file is truncated or damaged: fetch it again"


def read_checkpoint(path: Path) -> object:
    """Read a `.pth` (zip or legacy pickle, tensors only) or `.safetensors` file, told apart by content.

    Args:
        path: the file; one of several shards, or their index, stands for all of them, and a folder for what is in it.

    Returns:
        What the file holds, tensors on the CPU, mapped from the file where the format allows.

    Raises:
        SAMError: no such file, damaged, or a pickle that would run code.
    """
    path = _entry(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    with path.open("rb") as file:
        start = file.read(_HEADER_AT + 1)
    if start.startswith(_ZIP_MAGIC):
        return _read_torch(path, mmap=True)
    if start.startswith(_PICKLE_MAGIC) and start[_HEADER_AT:] != b"{":
        return _read_torch(path, mmap=False)
    return _read_safetensors(path)


def checkpoint_files(path: Path) -> list[Path]:
    """All files that `read_checkpoint(path)` reads: the file, or the index of shards and every shard that it names.

    Raises:
        SAMError: there is no such file, or the index cannot be read.
    """
    path = _entry(path)
    return [path, *(path.parent / name for name in shard_names(path))] if path.name.endswith(INDEX_SUFFIX) else [path]


def checkpoint_stamp(path: Path) -> tuple[tuple[int, ...], ...]:
    """What changes when a file of the checkpoint is written or replaced: size, times of change and number of each.

    Raises:
        SAMError: as `checkpoint_files`, or one of them is missing.
    """
    return tuple(_stamp(file) for file in checkpoint_files(path))


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        stat = file.stat()
    except OSError as error:
        raise SAMError(f"{file.name} cannot be read: {error.strerror}.") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _entry(path: Path) -> Path:
    """The one file that stands for a checkpoint: itself, the index of its shards, or what is in its folder."""
    try:
        path = _index_of(_in_folder(path) if path.is_dir() else path)
        is_file = path.is_file()
    except OSError as error:  # a name that no file system takes; a folder that may not be entered
        raise SAMError(f"{path.name[:100]} cannot be read: {error.strerror}.") from error
    if not is_file:
        raise SAMError(f"there is no file {path}.")
    return path


def _in_folder(folder: Path) -> Path:
    """The weights in a folder as transformers saves one."""
    names = ("model.safetensors", f"model{INDEX_SUFFIX}", "pytorch_model.bin")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise SAMError(f"there is none of {', '.join(names)} in the folder {folder}.")
    return found


def _index_of(path: Path) -> Path:
    """A shard's index, where the path is that of a shard; else the path."""
    match = _SHARD.match(path.name)
    index = path.with_name(f"{match[1]}{INDEX_SUFFIX}") if match else path
    return index if index.is_file() else path


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, all of them beside it.

    Raises:
        SAMError: it is no such index, or names a file that lies elsewhere.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SAMError(f"{index.name} was not loaded: it is no index of shards. ({error})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise SAMError(f"{index.name} was not loaded: it names {name!r}, which is no file beside it.")
    return names


def _read_shards(index: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in shard_names(index):
        if not (index.parent / name).is_file():
            raise SAMError(f"{index.name} was not loaded: {name} is missing beside it.")
        state |= _read_safetensors(index.parent / name)
    missing = sorted(json.loads(index.read_text(encoding="utf-8"))["weight_map"].keys() - state.keys())
    if missing:
        raise SAMError(f"{index.name} was not loaded: its shards lack {len(missing)} of its tensors ({missing[0]}, ...).")
    return state


def _read_torch(path: Path, mmap: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        if "ImageEncoderViT" in str(error) or "segment_anything" in str(error):
            raise SAMError(
                f"{path.name} was not loaded: it is a whole model with its code, as SlimSAM's global ones are, and no plain "
                f"weights. Use SlimSAM-uniform-50.safetensors or SlimSAM-uniform-77.safetensors. ({reason})"
            ) from error
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

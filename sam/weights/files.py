"""Read a checkpoint file. No code of the file is ever run."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from ..errors import SAMError
from .formats import keras
from .limits import MOST_BYTES, MOST_TENSORS
from .safetensors_file import read_safetensors
from .torch_file import read_legacy, read_zip

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_HEADER_AT = 8  # safetensors: a length in 8 bytes, whose first may well be a pickle's, then the JSON header
INDEX_SUFFIX = ".safetensors.index.json"
_SHARD = re.compile(r"^(.+)-\d{5}-of-\d{5}\.safetensors$")
_SHARD_NAME = re.compile(r"[\w][\w .()+-]*\.safetensors")  # a plain file name: no folder, no drive
_MOST_INDEX = 16 << 20


def read_checkpoint(path: Path) -> object:
    """Read a `.pth` (zip or legacy pickle, tensors only), `.safetensors` or Keras `.h5` file, told apart by content.

    Args:
        path: the file; one of several shards, or their index, stands for all of them, and a folder for what is in it.

    Returns:
        What the file holds, tensors on the CPU, in memory that is never the file's: whatever becomes of the file later does not
        reach them.

    Raises:
        SAMError: no such file, damaged, too large for a SAM, changed while it was read, or a pickle that would run code.
    """
    files = checkpoint_files(path)
    total = sum(_stamp(file)[0] for file in files)
    if total > MOST_BYTES:
        raise SAMError(f"{files[0].name} was not loaded: it has {total / 1e9:.0f} GB; the largest SAM has less than 6.")
    return _read_shards(files[0]) if files[0].name.endswith(INDEX_SUFFIX) else _read(files[0])


def _read(path: Path, reader: Callable[[BinaryIO, str], object] | None = None) -> object:
    """What one file holds; the reader is chosen by its first bytes."""
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            content = (reader or _reader_for(file))(file, path.name)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise SAMError(f"{path.name} cannot be read: {error.strerror}.") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise SAMError(f"{path.name} was changed while it was read: load it again when it is complete.")
    return content


def _reader_for(file: BinaryIO) -> Callable[[BinaryIO, str], object]:
    start = file.read(_HEADER_AT + 1)
    file.seek(0)
    if start.startswith(_ZIP_MAGIC):
        return read_zip
    if start.startswith(keras.MAGIC):
        return keras.read_keras
    return read_legacy if start.startswith(_PICKLE_MAGIC) and start[_HEADER_AT:] != b"{" else read_safetensors


def checkpoint_files(path: Path) -> list[Path]:
    """All files that `read_checkpoint(path)` reads: the file, or the index of shards and every shard that it names.

    Raises:
        SAMError: there is no such file, the index cannot be read, or a shard of it is missing.
    """
    path = _entry(path)
    names = shard_names(path) if path.name.endswith(INDEX_SUFFIX) else []
    for name in names:
        if not (path.parent / name).is_file():
            raise SAMError(f"{path.name} was not loaded: the shard {name} is missing from its folder.")
    return [path, *(path.parent / name for name in names)]


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
    """The weights in a folder as transformers or keras-hub saves one."""
    names = ("model.safetensors", f"model{INDEX_SUFFIX}", "pytorch_model.bin", keras.WEIGHTS)
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise SAMError(f"there is not one of {', '.join(names)} in the folder {folder}.")
    return found


def _index_of(path: Path) -> Path:
    """A shard's index, where the path is that of a shard; else the path."""
    match = _SHARD.match(path.name)
    index = path.with_name(f"{match[1]}{INDEX_SUFFIX}") if match else path
    return index if index.is_file() else path


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, all of them beside it.

    Raises:
        SAMError: it is not such an index, or names a file that lies elsewhere.
    """
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    """Which file has which tensor."""
    try:
        if index.stat().st_size > _MOST_INDEX:
            raise ValueError(f"it has {index.stat().st_size} bytes")
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(found, dict) or len(found) > MOST_TENSORS:
            raise TypeError("its weight_map does not say for each tensor in which file it is")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SAMError(f"{index.name} was not loaded: it is not an index of shards. ({str(error)[:100]})") from error
    for name in found.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise SAMError(
                f"{index.name} was not loaded: it names {str(name)[:100]!r}, which is not a safetensors file beside it."
            )
    return found


def _read_shards(index: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in shard_names(index):
        state |= _read(index.parent / name, read_safetensors)
    missing = sorted(_weight_map(index).keys() - state.keys())
    if missing:
        raise SAMError(
            f"{index.name} was not loaded: tensors are missing from its shards ({len(missing)}, the first is {missing[0]})."
        )
    return state

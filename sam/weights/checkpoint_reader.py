"""Read a checkpoint file. No code of the file is ever run."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import SAMError
from .formats import keras
from .limits import MOST_BYTES, MOST_TENSORS, shortened
from .safetensors_file import read_safetensors
from .torch_file import read_legacy, read_zip

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_HEADER_AT = 8  # safetensors: a length in 8 bytes, whose first may well be a pickle's, then the JSON header
# One checkpoint in several files, as transformers and accelerate write it: model.safetensors.index.json names the shards
# model-00001-of-00002.safetensors; a variant has model.safetensors.index.fp16.json and model.fp16-00001-of-00002.safetensors.
_INDEX = re.compile(r"^(?P<stem>.+)\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json$")
_SHARD = re.compile(r"^(?P<stem>.+?)(?:\.(?P<variant>\w+))?-\d{5}-of-\d{5}\.(?P<kind>safetensors|bin)$")
_SHARD_NAME = re.compile(r"[\w][\w .()+-]*")  # a plain file name: no folder, no drive
_VARIANT = re.compile(r"^(?:model\.\w+\.safetensors|pytorch_model\.\w+\.bin)$")
_MOST_INDEX = 16 << 20
_ADAPTER_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
PREFERRED = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", keras.WEIGHTS
)  # fmt: skip
"""The weights in a folder that transformers, accelerate or keras-hub saved; the first that is there."""


def is_index(name: str) -> bool:
    """Whether a file of this name lists the shards of a checkpoint."""
    return _INDEX.match(name) is not None


def read_checkpoint(path: Path) -> object:
    """Read a `.pth` (zip or legacy pickle), `.safetensors` or Keras `.h5` file, told apart by content.

    Args:
        path: the file; one of several shards, or their index, stands for all of them, and a folder for what is in it.

    Returns:
        What the file holds, tensors on the CPU, in memory that is never the file's: whatever becomes of the file later does not
        reach them. An object of a pickle that is neither data nor a tensor is an `Opaque`: nothing of it was run.

    Raises:
        SAMError: no such file, not a checkpoint or one that has to be converted, damaged, too large for a SAM, or changed while
            it was read.
    """
    files = checkpoint_files(path)
    total = sum(file_stamp(file)[0] for file in files)
    if total > MOST_BYTES:
        raise SAMError(f"{files[0].name} was not loaded: it has {total / 1e9:.0f} GB; the largest SAM has less than 6.")
    return _read_shards(files[0]) if is_index(files[0].name) else read_file(files[0])


def read_file(path: Path) -> object:
    """What one file holds; the reader is chosen by its first bytes. Result and errors as of `read_checkpoint`."""
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            content = _reader_for(file)(file, path.name)
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
    names = shard_names(path) if is_index(path.name) else []
    for name in names:
        if not (path.parent / name).is_file():
            raise SAMError(f"{path.name} was not loaded: the shard {name} is missing from its folder.")
    return [path, *(path.parent / name for name in names)]


def checkpoint_stamp(path: Path) -> tuple[tuple[int, ...], ...]:
    """What changes when a file of the checkpoint is written or replaced: size, times of change and number of each.

    Raises:
        SAMError: as `checkpoint_files`, or one of them is missing.
    """
    return tuple(file_stamp(file) for file in checkpoint_files(path))


def file_stamp(file: Path) -> tuple[int, ...]:
    """What changes when one file is written or replaced: size, times of change and number.

    Raises:
        SAMError: it is missing.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise SAMError(f"{file.name} cannot be read: {error.strerror}.") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def files_of_folder(folder: Path) -> list[Path]:
    """All files of a model that is a folder, sorted."""
    return [file for file in sorted(folder.iterdir()) if file.is_file()]


def _entry(path: Path) -> Path:
    """The one file that stands for a checkpoint: itself, the index of its shards, or what is in its folder."""
    try:
        refuse_other_forms(path)
        path = _index_of(_in_folder(path) if path.is_dir() else path)
        is_file = path.is_file()
    except OSError as error:  # a name that no file system takes; a folder that may not be entered
        raise SAMError(f"{path.name[:100]} cannot be read: {error.strerror}.") from error
    if not is_file:
        goes = f": it is a link to {path.readlink()}, which is not there" if path.is_symlink() else ""
        raise SAMError(f"there is no file {path}{goes}.")
    return path


def refuse_other_forms(path: Path) -> None:
    """Raise SAMError for a folder, or a file in one, that holds weights in a form that only another tool can put together."""
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".distcp" or path.name == ".metadata" or (folder == path and (path / ".metadata").is_file()):
        raise SAMError(
            f"{path.name} was not loaded: it is a distributed checkpoint of PyTorch. Convert its folder to one file: "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, 'weights.pth')."
        )
    if (adapter := adapter_files(path)) is not None:
        base = str(read_json(adapter[1]).get("base_model_name_or_path") or "another model")
        raise SAMError(
            f"{path.name} was not loaded: it is an adapter of peft for {shortened(base)}, not a model. Load SAM Model loads it "
            f"together with its model from a folder in models/sams; in Python, load_model(model, adapter={path.name!r}) does."
        )
    if path.name.endswith(".weights.json") or re.search(r"_\d{5}\.weights\.h5$", path.name):
        raise SAMError(
            f"{path.name} was not loaded: it belongs to a Keras checkpoint in several files. Save it as one: "
            "model.save_weights('sam.weights.h5') without max_shard_size."
        )


def adapter_files(path: Path) -> tuple[Path, Path] | None:
    """The weights and the configuration of an adapter of peft, by its folder or its weights; None for whatever else.

    The weights may be missing.
    """
    try:
        folder = path if path.is_dir() else path.parent
        config = folder / "adapter_config.json"
        if not config.is_file() or (folder == path and weights_of_folder(path) is not None):
            return None
        if folder != path:
            return (path, config) if path.name in _ADAPTER_NAMES else None
        weights = [folder / name for name in _ADAPTER_NAMES]
        return next(filter(Path.is_file, weights), weights[0]), config
    except OSError:  # a folder that may not be entered; whoever reads it says so
        return None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a small file beside weights; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MOST_INDEX else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def weights_of_folder(folder: Path) -> Path | None:
    """The weights in a folder as transformers, accelerate or keras-hub saves one; None where there are none.

    A variant such as `model.fp16.safetensors` is taken where there is nothing else.
    """
    found = next((folder / name for name in PREFERRED if (folder / name).is_file()), None)
    if found is None and folder.is_dir():
        variants = sorted(path for path in folder.iterdir() if _VARIANT.match(path.name) or _is_variant_index(path.name))
        # Of the halves, float16 has more digits; an index is a file name that ends in .json.
        variants.sort(key=lambda path: (not re.search(r"fp32|float32", path.name), "fp16" not in path.name))
        found = next((path for path in variants if path.is_file()), None)
    return found


def _is_variant_index(name: str) -> bool:
    match = _INDEX.match(name)
    return match is not None and match["variant"] is not None


def _in_folder(folder: Path) -> Path:
    found = weights_of_folder(folder)
    if found is None:
        raise SAMError(f"there is not one of {', '.join(PREFERRED)} in the folder {folder}.")
    return found


def _index_of(path: Path) -> Path:
    """A shard's index, where the path is that of a shard; else the path."""
    match = _SHARD.match(path.name)
    if match is None:
        return path
    stem, variant, kind = match["stem"], match["variant"], match["kind"]
    names = [f"{stem}.{kind}.index.{variant}.json", f"{stem}.{variant}.{kind}.index.json"] if variant else []
    return next(
        (path.with_name(name) for name in [*names, f"{stem}.{kind}.index.json"] if path.with_name(name).is_file()), path
    )


def shard_group(name: str) -> tuple[str, str] | None:
    """What the names of all shards of one checkpoint have in common, so that a list shows it once; None for any other name."""
    match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5}\.(?:safetensors|bin))|(.+)_\d{5}(\.weights\.h5)", name, re.DOTALL)
    return (match[1] or match[3], match[2] or match[4]) if match else None


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
    kind = _INDEX.match(index.name)["kind"]
    for name in found.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or not name.endswith(f".{kind}"):
            raise SAMError(f"{index.name} was not loaded: it names {str(name)[:100]!r}, which is not a {kind} file beside it.")
    return found


def _read_shards(index: Path) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name in shard_names(index):
        content = read_file(index.parent / name)
        if not isinstance(content, dict):
            raise SAMError(
                f"{name} was not loaded: it is a shard of {index.name}, but does not hold a dict of tensors by name."
            )
        state |= content
    missing = sorted(_weight_map(index).keys() - state.keys())
    if missing:
        raise SAMError(
            f"{index.name} was not loaded: tensors are missing from its shards ({len(missing)}, the first is {missing[0]})."
        )
    return state

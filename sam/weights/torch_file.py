"""Read PyTorch's `.pth`, zip or legacy pickle, into memory of our own. No code of the file is ever run."""

import io
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import SAMError
from .limits import MOST_TENSORS, shortened
from .pickles import Global, Storage, read_pickle

SAVE_ALONE = "torch.save(model.state_dict(), 'weights.pth')"
"""The line that writes a file that every reader reads."""

DAMAGED = "the file is truncated or damaged: download it again"
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch.save wrote before 1.6
_LOCAL_HEADER, _NAME_LENGTHS = 30, 26  # of a zip's member: its bytes follow the header, its name and an extra field
# What reading a file that is cut or changed raises; each was seen.
_UNREADABLE = (
    RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError,
    struct.error, zipfile.BadZipFile, NotImplementedError,
)  # fmt: skip
_STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
_QUANTIZED = {"QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32"}


def read_zip(file: BinaryIO, name: str) -> object:
    """What a zip that `torch.save` wrote holds, read from `file`; `name` is for messages.

    Returns:
        Containers, numbers, texts and tensors; an `Opaque` for whatever else is in it.

    Raises:
        SAMError: damaged, compressed, not of `torch.save`, or tensors that are larger than the file.
    """
    return _explained(_read_zip, file, name)


def read_legacy(file: BinaryIO, name: str) -> object:
    """What a pickle that `torch.save` wrote before PyTorch 1.6 holds. Arguments, result and errors as of `read_zip`."""
    return _explained(_read_legacy, file, name)


def _read_zip(file: BinaryIO, name: str) -> object:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        _check_members(archive.infolist(), os.fstat(file.fileno()).st_size, name)
        (root,) = (one.removesuffix("data.pkl") for one in members if one.endswith("/data.pkl"))
        big_endian = f"{root}byteorder" in members and archive.read(f"{root}byteorder") == b"big"
        content = io.BytesIO(_bytes_of(file, members[f"{root}data.pkl"]))
    loaded: dict[str, Storage] = {}

    def find(kind: Global, key: str, count: int, _: Any) -> Storage:
        if key not in loaded:
            dtype = _dtype_of(kind)
            member = members[f"{root}data/{key}"]
            if dtype is not None and count * dtype.itemsize > member.file_size:
                raise ValueError(f"a storage of {count} elements in {member.file_size} bytes")
            values = None
            if dtype is not None:
                _go_to(file, member)
                values = _read_values(file, dtype, count, big_endian)
            loaded[key] = Storage(values, _QUANTIZED.get(kind.name, kind.name))
        return loaded[key]

    return read_pickle(content, name, find)


def _check_members(members: list[zipfile.ZipInfo], size: int, name: str) -> None:
    """`torch.save` never compresses: what is stored as it is cannot be larger than the file."""
    names = {member.filename for member in members}
    if len(members) > 2 * MOST_TENSORS:
        raise SAMError(f"{name} was not loaded: it has {len(members)} parts; a SAM checkpoint has a few hundred.")
    if len(names) != len(members):
        raise SAMError(f"{name} was not loaded: two of its parts have the same name.")
    if any(one.endswith("/constants.pkl") for one in names):
        raise SAMError(f"{name} was not loaded: it is a TorchScript program. Get the checkpoint as plain weights.")
    if any(one.endswith(("/models/model.json", "serialized_exported_program.json")) for one in names):
        raise SAMError(
            f"{name} was not loaded: it is a program of torch.export. Save the weights of the model alone: {SAVE_ALONE}."
        )
    if {"config.json", "model.weights.h5"} <= names:
        raise SAMError(
            f"{name} was not loaded: it is a Keras archive. Unzip it and load its model.weights.h5, or save the weights alone: "
            "model.save_weights('sam.weights.h5')."
        )
    if sum(one.endswith("/data.pkl") for one in names) != 1:
        found = ", ".join(shortened(one) for one in sorted(names)[:3]) or "nothing"
        raise SAMError(f"{name} was not loaded: it is a zip archive that torch.save did not write. It contains {found}.")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise SAMError(f"{name} was not loaded: it is compressed, which PyTorch's own files never are.")
    total = sum(member.file_size for member in members)
    if total > size:
        raise SAMError(f"{name} was not loaded: it would need {total} bytes of memory, but has only {size} bytes.")


def _go_to(file: BinaryIO, member: zipfile.ZipInfo) -> None:
    """Its bytes themselves: `zipfile` would compare a checksum, which torch.save leaves out where it is told to."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    file.seek(member.header_offset + _LOCAL_HEADER + sum(struct.unpack_from("<HH", header, _NAME_LENGTHS)))


def _bytes_of(file: BinaryIO, member: zipfile.ZipInfo) -> bytes:
    _go_to(file, member)
    return file.read(member.file_size)


def _dtype_of(kind: Global) -> torch.dtype | None:
    """Of a storage's elements; None where they are quantized."""
    if kind.name in _QUANTIZED:
        return None
    return _STORAGES[kind.name]


def _read_values(file: BinaryIO, dtype: torch.dtype, count: int, big_endian: bool) -> Tensor:
    """The next `count` elements of the file; it is known that the file has them."""
    data = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    if not data.numel():
        return data.view(dtype)
    if file.readinto(memoryview(data.numpy())) != data.numel():
        raise EOFError("it ends within a tensor")
    values = data.view(dtype)
    if big_endian != (sys.byteorder == "big"):
        values.untyped_storage().byteswap(dtype)
    return values


class _Bounded:
    """A file of which no read takes more memory than there is left of it: a pickle may announce any length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""
        return self._file.read(max(0, min(count, self._size - self._file.tell())))


def _read_legacy(file: BinaryIO, name: str) -> object:
    """A magic number, a protocol, the system, the content, the keys of the storages; then these, each after its length."""
    size = os.fstat(file.fileno()).st_size
    pickles: Any = _Bounded(file)
    waiting: dict[str, tuple[torch.dtype, int, Tensor]] = {}
    quantized: dict[str, tuple[int, int]] = {}

    def find(kind: Global, key: str, count: int, part: Any) -> Storage:
        dtype = _dtype_of(kind)
        if dtype is None:
            quantized[key] = (count, 4 if "32" in kind.name else 1)
            return Storage(None, _QUANTIZED[kind.name])
        if key not in waiting:
            promised = sum(length * one.itemsize for one, length, _ in waiting.values())
            if promised + count * dtype.itemsize > size:
                raise ValueError(f"a storage of {count} elements in {size} bytes")
            waiting[key] = (dtype, count, torch.empty(count, dtype=dtype))
        return Storage(waiting[key][2], kind.name, int(part[1]) if isinstance(part, tuple) else 0)

    if read_pickle(pickles, name, find) != _MAGIC:
        raise SAMError(
            f"{name} was not loaded: it is a plain pickle, which torch.save did not write, and opening it would run code of "
            f"the file. Save the weights of the model alone: {SAVE_ALONE}."
        )
    read_pickle(pickles, name, find)
    system = read_pickle(pickles, name, find)
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    content = read_pickle(pickles, name, find)
    for key in read_pickle(pickles, name, find):
        (length,) = struct.unpack(">q" if big_endian else "<q", file.read(8))
        if str(key) in quantized:
            count, width = quantized[str(key)]
            file.seek(count * width, os.SEEK_CUR)
            continue
        dtype, count, memory = waiting.pop(str(key))
        if length != count:
            raise ValueError(f"a storage of {length} elements in place of {count}")
        memory.copy_(_read_values(file, dtype, count, big_endian))
    if waiting:
        raise EOFError("a storage is missing")
    return content


def _explained(read: Callable[[BinaryIO, str], object], file: BinaryIO, name: str) -> object:
    """`read(file, name)`, with every way in which that fails as a SAMError."""
    try:
        return read(file, name)
    except SAMError:
        raise
    except _UNREADABLE as error:
        said = shortened((str(error).splitlines() or [""])[0])
        raise SAMError(f"{name} was not loaded: {DAMAGED}. ({type(error).__name__}: {said})") from error

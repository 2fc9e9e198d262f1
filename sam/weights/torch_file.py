"""Read PyTorch's `.pth`, zip or legacy pickle, into memory of our own. No code of the file is ever run."""

import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import SAMError
from .limits import MOST_TENSORS

DAMAGED = "the file is truncated or damaged: download it again"
_LEGACY_PICKLES = 5  # a magic number, a protocol, the system, the content, the storages' keys; the storages follow
# What torch's own reader raises for a file that is cut or changed; each was seen.
_UNREADABLE = (
    RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
    MemoryError, ImportError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_zip(file: BinaryIO, name: str) -> object:
    """What a zip that `torch.save` wrote holds, read from `file`; `name` is for messages.

    Raises:
        SAMError: damaged, compressed, a pickle that would run code, or tensors that are larger than the file.
    """
    return _explained(_read_zip, file, name)


def read_legacy(file: BinaryIO, name: str) -> object:
    """What a pickle that `torch.save` wrote before PyTorch 1.6 holds. Arguments and errors as of `read_zip`."""
    return _explained(_read_legacy, file, name)


def _read_zip(file: BinaryIO, name: str) -> object:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_members(members, os.fstat(file.fileno()).st_size, name)
        for member in members:
            if member.filename.endswith("/data.pkl"):
                with archive.open(member) as content:
                    _check_pickle(content, name)
    return _load(file, name)


def _check_members(members: list[zipfile.ZipInfo], size: int, name: str) -> None:
    """`torch.save` never compresses: what is stored as it is cannot be larger than the file."""
    names = {member.filename for member in members}
    if len(members) > 2 * MOST_TENSORS:
        raise SAMError(f"{name} was not loaded: it has {len(members)} parts; a SAM checkpoint has a few hundred.")
    if len(names) != len(members):
        raise SAMError(f"{name} was not loaded: two of its parts have the same name.")
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise SAMError(f"{name} was not loaded: it is a TorchScript program. Get the checkpoint as plain weights.")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise SAMError(f"{name} was not loaded: it is compressed, which PyTorch's own files never are.")
    total = sum(member.file_size for member in members)
    if total > size:
        raise SAMError(f"{name} was not loaded: it would need {total} bytes of memory, but has only {size} bytes.")


def _read_legacy(file: BinaryIO, name: str) -> object:
    """Of a file that ends too early as much is checked as torch's reader would see before it says so itself."""
    for _ in range(_LEGACY_PICKLES):
        try:
            _check_pickle(file, name)
        except SAMError:
            raise
        except _UNREADABLE:
            break
    return _load(file, name)


def _check_pickle(content: Any, name: str) -> None:
    """Refuse what costs before torch's reader, which decides what may be called, has seen it: it allows `bytearray(n)`."""
    tensors = 0
    for opcode, argument, _ in pickletools.genops(content):
        tensors += opcode.name == "BINPERSID"
        if tensors > MOST_TENSORS:
            raise SAMError(f"{name} was not loaded: it has more than {MOST_TENSORS} tensors; a SAM has a few hundred.")
        if opcode.name == "GLOBAL" and argument.endswith(" bytearray"):
            raise SAMError(f"{name} was not loaded: it contains an object that is not a tensor: {argument.replace(' ', '.')}.")


def _load(file: BinaryIO, name: str) -> object:
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    needed, size = sum(value.numel() * value.element_size() for value in _tensors_in(content)), os.fstat(file.fileno()).st_size
    if needed > 2 * size:  # tensors may share memory, as the two names of one layer do; a stride of 0 makes any size of nothing
        raise SAMError(f"{name} was not loaded: its tensors would need {needed} bytes of memory, but the file has only {size}.")
    return content


def _tensors_in(content: object) -> Iterator[Tensor]:
    """Tensors with data of their own, in a dict or in the dicts in it: no deeper one is ever used as weights."""
    outer = list(content.values()) if isinstance(content, Mapping) else []
    inner = [value for mapping in outer if isinstance(mapping, Mapping) for value in mapping.values()]
    for value in outer + inner:
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
            yield value


def _explained(read: Callable[[BinaryIO, str], object], file: BinaryIO, name: str) -> object:
    """`read(file, name)`, with every way in which that fails as a SAMError."""
    try:
        return read(file, name)
    except SAMError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        if "ImageEncoderViT" in str(error) or "segment_anything" in str(error):
            raise SAMError(
                f"{name} was not loaded: it is a pickled model that includes code, like the SlimSAM-global files. "
                f"Use SlimSAM-uniform-50.safetensors or SlimSAM-uniform-77.safetensors. ({reason})"
            ) from error
        raise SAMError(
            f"{name} was not loaded: it is damaged, or it contains objects that would run code. "
            f"Get the checkpoint as .safetensors, or from its publisher. ({reason})"
        ) from error
    except _UNREADABLE as error:
        said = (str(error).splitlines() or [""])[0][:200]
        raise SAMError(f"{name} was not loaded: {DAMAGED}. ({type(error).__name__}: {said})") from error

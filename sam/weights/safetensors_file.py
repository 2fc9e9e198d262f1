"""Read a `.safetensors` file into memory of our own.

The library maps the file, so that a file which is overwritten later changes a loaded model's answers, or ends the process when
it has become shorter. Here every byte is read once, into the tensor that it belongs to, and the whole header is checked first.
"""

import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import SAMError
from .limits import MOST_TENSORS, shortened

_LENGTH = 8  # bytes of the header's length, little-endian; the header, JSON, follows it
_MOST_HEADER = 16 << 20
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip
_QUANTIZED = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")  # the format has them, for scales and blocks: no weights as they are
# What lies under a checkpoint's name and is none, by its first bytes.
_OTHERS = (
    (rb"version https://git-lfs",
     "is a Git LFS pointer and not the file itself: run git lfs pull where it was cloned, or download the file"),
    (rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml|!--)",
     "is a web page, such as a sign-in or an error: download the file again, after signing in if the site requires it"),
    (rb"GGUF", "is a GGUF file, which holds quantized weights: get the checkpoint as .safetensors or .pth"),
)  # fmt: skip
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")


@dataclass(frozen=True)
class _Entry:
    """One tensor of the header; its bytes are `begin` to `end` after the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(file: BinaryIO, name: str) -> dict[str, Tensor]:
    """All tensors of a file, in the order in which they lie there.

    Args:
        file: open for reading, at its start.
        name: of the file, for messages.

    Raises:
        SAMError: it is not a safetensors file, or its header does not fit it.
    """
    return read_with_metadata(file, name)[0]


def read_with_metadata(file: BinaryIO, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`read_safetensors`, and the file's metadata: texts by name, none where it has none."""
    size = os.fstat(file.fileno()).st_size
    header, start = _header(file, size, name)
    metadata = header.pop("__metadata__", None)
    entries = sorted((_entry(key, value, name) for key, value in header.items()), key=lambda entry: entry.begin)
    _check_layout(entries, size - start, name)
    tensors = {entry.name: _read(file, entry, name) for entry in entries}
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return tensors, {key: value for key, value in texts if isinstance(value, str)}


def read_metadata(path: Path) -> dict[str, str]:
    """A file's metadata alone; none of a file that is not one of safetensors, or not there."""
    try:
        with path.open("rb") as file:
            texts = _header(file, path.stat().st_size, path.name)[0].get("__metadata__")
    except (OSError, SAMError):
        return {}
    return texts if isinstance(texts, dict) else {}


def _header(file: BinaryIO, size: int, name: str) -> tuple[dict[str, Any], int]:
    """The header, and where the data begin."""
    _check_start(file, size, name)
    length = int.from_bytes(file.read(_LENGTH), "little")
    if length > min(_MOST_HEADER, size - _LENGTH):
        raise _unreadable(name, f"its first {_LENGTH} bytes announce a header of {length} bytes")
    text = file.read(length)
    if text.count(b'"data_offsets"') > MOST_TENSORS:
        raise SAMError(f"{name} was not loaded: it has more than {MOST_TENSORS} tensors; a SAM checkpoint has a few hundred.")
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, f"its header is not valid: {str(error)[:100]}") from error
    if not isinstance(header, dict):
        raise _unreadable(name, "its header is not a JSON object")
    return header, _LENGTH + length


def _check_start(file: BinaryIO, size: int, name: str) -> None:
    """Name what is not a checkpoint at all: nobody gets another file by fetching it again."""
    if not size:
        raise SAMError(f"{name} was not loaded: the file is empty: get it again.")
    start = file.read(200)
    file.seek(0)
    for pattern, what in _OTHERS:
        if re.match(pattern, start, re.IGNORECASE):
            raise SAMError(f"{name} was not loaded: it {what}.")
    if _TEXT.fullmatch(start):
        words = shortened(start.decode()[:60])
        raise SAMError(f"{name} was not loaded: it is a text that begins with {words!r}, not a checkpoint.")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(key: str, value: Any, name: str) -> _Entry:
    if isinstance(value, dict) and value.get("dtype") in _QUANTIZED:
        raise SAMError(
            f"{name} was not loaded: its tensor {shortened(key)} has the type {value['dtype']}, which is for quantized "
            "weights. Get the checkpoint in float32, float16 or bfloat16."
        )
    try:
        dtype, shape, (begin, end) = _DTYPES[value["dtype"]], tuple(value["shape"]), value["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError("a number is negative or not an integer")
        if len(shape) > 8 or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{shape} of {value['dtype']} does not have {end - begin} bytes")
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(name, f"tensor {shortened(key)} has a header that is not valid: {str(error)[:100]}") from error
    return _Entry(key, dtype, shape, begin, end)


def _check_layout(entries: list[_Entry], available: int, name: str) -> None:
    """Every byte of the data belongs to one tensor: so no header can ask for more memory than the file has bytes."""
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise _unreadable(name, f"tensor {shortened(entry.name)} begins at byte {entry.begin}, not {position}")
        position = entry.end
    if position != available:
        raise _unreadable(name, f"its header describes {position} bytes of weights, and it has {available}")


def _read(file: BinaryIO, entry: _Entry, name: str) -> Tensor:
    data = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
    rest = memoryview(data.numpy())
    while rest:
        count = file.readinto(rest)
        if not count:
            raise _unreadable(name, f"it ends within tensor {shortened(entry.name)}")
        rest = rest[count:]
    tensor = data.view(entry.dtype)
    if sys.byteorder == "big":
        tensor.untyped_storage().byteswap(entry.dtype)
    return tensor.view(entry.shape)


def _unreadable(name: str, reason: str) -> SAMError:
    return SAMError(
        f"{name} was not loaded: it is neither a PyTorch nor a safetensors file, or the file is truncated or damaged: "
        f"fetch it again. ({reason})"
    )

"""Models that are loaded, so that one file, under whatever names, is one model in memory."""

import hashlib
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

from segment_anything.modeling import Sam

from .base import Precision
from .families import identity_of, load_model
from .sam import SAMModel

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Loaded:
    """A live model, and the file it came from as that was."""

    model: "weakref.ref[SAMModel]"
    path: Path
    stamp: tuple[int, int]
    precision: Precision
    sample: str


_loaded: list[_Loaded] = []
_remembered: weakref.WeakValueDictionary[str, Sam] = weakref.WeakValueDictionary()
_turn = threading.Lock()


def remember(model: Sam) -> str:
    """Make a model, wherever it came from, known to `recall` for as long as anybody holds it. Returns its identity."""
    identity = identity_of(model)
    _remembered[identity] = model
    return identity


def recall(identity: str) -> Sam | None:
    """The model that was remembered under `identity`, or None where it is gone."""
    return _remembered.get(identity)


def load_shared(path: Path, precision: Precision = "auto") -> SAMModel:
    """`load_model`, or the model that is already loaded from a file of the same content, for as long as anybody holds it.

    Files are told apart by size and samples, and compared whole before they are taken for one; a file that has changed since
    is loaded anew. Raises what `load_model` raises.
    """
    if not path.is_file():  # a folder, or nothing
        return load_model(path, precision)
    with _turn:
        _loaded[:] = [entry for entry in _loaded if entry.model() is not None]
        stamp, sample = _stamp(path), None
        for entry in _loaded:
            model = entry.model()
            if model is None or entry.precision != precision:
                continue
            if (entry.path, entry.stamp) == (path, stamp):
                return model
            sample = sample or _sample(path)
            if entry.sample == sample and _is_unchanged(entry) and _digest(entry.path) == _digest(path):
                _loaded.append(_Loaded(entry.model, path, stamp, precision, sample))
                return model
        model = load_model(path, precision)
        _loaded.append(_Loaded(weakref.ref(model), path, stamp, precision, sample or _sample(path)))
        return model


def _is_unchanged(entry: _Loaded) -> bool:
    return entry.path.is_file() and _stamp(entry.path) == entry.stamp


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _sample(path: Path) -> str:
    """Hash of the size and of pieces all over the file: a millisecond where the whole takes seconds."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(number * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

"""Models that are loaded, so that one file, under whatever names, is one model in memory."""

import hashlib
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..errors import SAMError
from ..weights.checkpoint_reader import checkpoint_files, checkpoint_stamp
from .base import Precision, Segmenter, identity_of
from .families import load_model
from .sam import ForeignSAM, SAMModel

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14
_CHUNK = 1 << 20
Stamp: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Loaded:
    """A live model, and the checkpoint it came from, all files of it, as they were."""

    model: "weakref.ref[SAMModel]"
    path: Path
    stamp: Stamp
    precision: Precision
    sample: str


_loaded: list[_Loaded] = []
_remembered: weakref.WeakValueDictionary[str, Segmenter] = weakref.WeakValueDictionary()
_turn = threading.Lock()


def remember(model: Segmenter) -> str:
    """Make a model, wherever it came from, known to `recall` for as long as it is in use. Returns its identity."""
    identity = identity_of(model)
    # What is made for a call only is gone after it; what it was made for is not.
    _remembered[identity] = model.network if isinstance(model, ForeignSAM) else model
    return identity


def recall(identity: str) -> Segmenter | None:
    """The model that `remember` got under `identity`, or None where it is gone."""
    return _remembered.get(identity)


def load_shared(path: Path, precision: Precision = "auto") -> SAMModel:
    """`load_model`, or the model that is already loaded from a checkpoint of the same content, for as long as it is in use.

    A checkpoint is all its files: an index and its shards are one. Checkpoints are told apart by sizes and samples, and
    compared whole before they are taken for one; one that has changed since is loaded anew. Raises what `load_model` raises.
    """
    try:
        return _load_shared(path, precision)
    except OSError as error:
        raise SAMError(f"{path.name} cannot be read: {error.strerror}.") from error


def _load_shared(path: Path, precision: Precision) -> SAMModel:
    with _turn:
        _loaded[:] = [entry for entry in _loaded if entry.model() is not None]
        stamp, sample = checkpoint_stamp(path), None
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
    try:
        return checkpoint_stamp(entry.path) == entry.stamp
    except SAMError:  # a file of it is gone
        return False


def _sample(path: Path) -> str:
    """Hash of each file's size and of pieces all over it: a millisecond where the whole takes seconds."""
    digest = hashlib.sha256()
    for name in checkpoint_files(path):
        size = name.stat().st_size
        digest.update(f"{size} ".encode())
        with name.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _digest(path: Path) -> str:
    """Hash of the content of each file, in the checkpoint's own order; where the files lie does not matter."""
    digest = hashlib.sha256()
    for name in checkpoint_files(path):
        digest.update(f"{name.stat().st_size} ".encode())
        with name.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()

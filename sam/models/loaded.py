"""Models that are loaded, so that one file, under whatever names, is one model in memory."""

import hashlib
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ..errors import SAMError
from ..weights.checkpoint_reader import adapter_files, checkpoint_files, file_stamp
from .base import Precision, Segmenter, identity_of
from .families import load_model
from .sam import ForeignSAM

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14
_CHUNK = 1 << 20
Stamp: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Loaded:
    """A live model, and the checkpoint and the adapter that it came from, all files of them, as they were."""

    model: "weakref.ref[Segmenter]"
    source: "_Source"
    stamp: Stamp
    precision: Precision
    sample: str


class _Source(NamedTuple):
    """A checkpoint, and an adapter that is merged into it, if any."""

    path: Path
    adapter: Path | None

    def files(self) -> list[Path]:
        """All files of the two.

        Raises:
            SAMError: one of them is not there.
        """
        return [*checkpoint_files(self.path), *((adapter_files(self.adapter) or ()) if self.adapter else ())]

    def stamp(self) -> Stamp:
        """What changes when one of the files is written or replaced."""
        return tuple(file_stamp(file) for file in self.files())


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


def load_shared(path: Path, precision: Precision = "auto", adapter: Path | None = None) -> Segmenter:
    """`load_model`, or the model that is already loaded from a checkpoint of the same content, for as long as it is in use.

    A checkpoint is all its files: an index and its shards are one, and so are a checkpoint and an adapter that is merged into
    it. Checkpoints are told apart by sizes and samples, and compared whole before they are taken for one; one that has changed
    since is loaded anew. Raises what `load_model` raises.
    """
    try:
        return _load_shared(_Source(path, adapter), precision)
    except OSError as error:
        raise SAMError(f"{path.name} cannot be read: {error.strerror}.") from error


def _load_shared(source: _Source, precision: Precision) -> Segmenter:
    with _turn:
        _loaded[:] = [entry for entry in _loaded if entry.model() is not None]
        stamp, sample = source.stamp(), None
        for entry in _loaded:
            model = entry.model()
            if model is None or entry.precision != precision:
                continue
            if (entry.source, entry.stamp) == (source, stamp):
                return model
            sample = sample or _sample(source)
            if entry.sample == sample and _is_unchanged(entry) and _digest(entry.source) == _digest(source):
                _loaded.append(_Loaded(entry.model, source, stamp, precision, sample))
                return model
        model = load_model(source.path, precision, source.adapter)
        _loaded.append(_Loaded(weakref.ref(model), source, stamp, precision, sample or _sample(source)))
        return model


def _is_unchanged(entry: _Loaded) -> bool:
    try:
        return entry.source.stamp() == entry.stamp
    except SAMError:  # a file of it is gone
        return False


def _sample(source: _Source) -> str:
    """Hash of each file's size and of pieces all over it: a millisecond where the whole takes seconds."""
    digest = hashlib.sha256()
    for name in source.files():
        size = name.stat().st_size
        digest.update(f"{size} ".encode())
        with name.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _digest(source: _Source) -> str:
    """Hash of the content of each file, in the checkpoint's own order; where the files lie does not matter."""
    digest = hashlib.sha256()
    for name in source.files():
        digest.update(f"{name.stat().st_size} ".encode())
        with name.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()

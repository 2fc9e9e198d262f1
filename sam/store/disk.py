"""Arrays by key in a folder that several processes share: a file is there whole and right, or it is not there.

It imports nothing of this pack and no torch, so that a test may start many processes of it.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

log = logging.getLogger("samkit")

SUFFIX = ".samkit-embedding"
_PART = ".samkit-part"
_DIGEST = 32  # bytes of the SHA-256 that a file begins with: of its key and of all that follows
_ABANDONED = 3600.0  # seconds after which a part is a dead process's
_SLACK = 0.05  # of the limit: as much is written before the folder is counted again


class DiskCache:
    """Arrays by key; the files used least recently are removed above a limit.

    Nothing here raises: a cache that cannot be read or written is as good as none, which the log says once.

    Args:
        folder: it is made when it is first written to; only files with this module's endings are ever removed from it.
        limit: most bytes of all files. Processes that write at once may exceed it for a moment.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._written = limit  # since the folder was last counted: before it ever was, too much
        self._has_warned = False

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays under a key, read-only; None where there are none, or where their file is damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            if data[:_DIGEST] != _digest(key, data[_DIGEST:]):
                log.warning("%s in the embedding cache is damaged, and is ignored.", path.name)
                return None
            os.utime(path)  # when it was used; many file systems do not note reading
            arrays = {name: values.copy() for name, values in load(data[_DIGEST:]).items()}
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            self._warn("read", error)
            return None
        for values in arrays.values():
            values.setflags(write=False)
        return arrays

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays under a key: beside the others first, then under their name."""
        data = save({name: np.ascontiguousarray(values) for name, values in arrays.items()})
        part = self.folder / f"{os.getpid()}-{secrets.token_hex(8)}{_PART}"
        try:
            if _DIGEST + len(data) > self.limit:
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                stack.callback(part.unlink, missing_ok=True)
                with part.open("xb") as file:
                    file.write(_digest(key, data))
                    file.write(data)
                part.replace(self._path(key))
            self._written += _DIGEST + len(data)
            if self._written > _SLACK * self.limit:
                self._shrink()
        except OSError as error:
            self._warn("written", error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}{SUFFIX}"

    def _shrink(self) -> None:
        """Remove parts of dead processes, and the files used least recently, down to what leaves some room."""
        self._written, files = 0, []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process is doing the same
                stat = path.stat()
                if path.suffix == SUFFIX:
                    files.append((stat.st_mtime_ns, stat.st_size, path))
                elif path.suffix == _PART and time.time() - stat.st_mtime > _ABANDONED:
                    path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= (1 - _SLACK) * self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _warn(self, what: str, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("The embedding cache in %s cannot be %s: %s", self.folder, what, error)


def _digest(key: str, data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(key.encode()).digest() + data).digest()

"""Files that are whole at any moment, and the lock by which one process at a time adds to a data set."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import SAMError

_WAIT = 600  # seconds for another process that adds to the same data set


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there: readers see the old one or the new one, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def as_json(value: Any) -> bytes:
    """JSON as it is written here: compact, text as it is, a line end at its end."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


def read_json(path: Path, lists: tuple[str, ...]) -> dict[str, Any] | None:
    """A JSON object that has these lists; None where there is no such file.

    Raises:
        SAMError: the file holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise SAMError(f"{path} is not JSON, and was left as it is: choose another name. ({error})") from error
    if not isinstance(value, dict) or not all(isinstance(value.get(name), list) for name in lists):
        raise SAMError(f"{path} has no {' and '.join(lists)}, and was left as it is: choose another name.")
    return value


@contextlib.contextmanager
def locked(place: Path, wait: float = _WAIT) -> Iterator[None]:
    """In the body, this process alone may add to the data set `place`; a process that ends gives the lock back.

    Raises:
        SAMError: another process had it for `wait` seconds.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.with_name(f".{place.name}.lock"), timeout=wait):
            yield
    except Timeout as error:
        raise SAMError(f"{place} is being written by another process: wait for it, or choose another name.") from error

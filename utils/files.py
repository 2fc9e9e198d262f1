"""Files that are there whole or not at all, and what the system refuses, said in one sentence."""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from .errors import SAMError

_PART = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses in the body becomes one sentence that names the file and says what to do.

    Raises:
        SAMError: the body raised `OSError`, or safetensors' own error of a file that it could not write.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number is None and (found := re.search(r"os error (\d+)", str(error))):
            number = int(found[1])
        advice = "Choose another place."
        if number in _FULL:
            advice = "Free some space on this disk, or choose another one, and run again."
        elif number in _CLOSED:
            advice = "Make its folder writable, or choose another one."
        reason = getattr(error, "strerror", None) or str(error)
        raise SAMError(f"{path} cannot be written: {reason.rstrip('.')}. {advice}") from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The body writes a file beside `path`, whose path it is given; then it gets the name. Readers see all of it or nothing.

    What a process that was killed has left can be found by `remove_parts`.

    Raises:
        SAMError: see `writing`.
    """
    part = path.with_name(f".{path.name}{_PART}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write bytes to a file, see `whole`."""
    with whole(path) as part:
        part.write_bytes(content)


def remove_parts(folder: Path, pattern: str = "**/.*") -> None:
    """Remove what killed processes have left of files that `whole` was to write, where nobody else is writing now.

    Args:
        folder: of the files.
        pattern: of what a part's name has before its ending, as `Path.glob` takes it.
    """
    with writing(folder):
        for part in list(folder.glob(pattern + _PART)):
            part.unlink(missing_ok=True)

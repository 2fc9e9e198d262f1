"""Names from outside as paths inside a models folder, and nowhere else."""

import re
from pathlib import Path

from ..errors import SAMError

_LONGEST, _LONGEST_PART = 1000, 200
_ODD = re.compile(r'[\\:*?"<>|]|[. ]$|^\.|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)  # on Windows, or hidden


def is_plain(name: str) -> bool:
    """Whether a relative path with `/` means the same on every system, and stays below the folder that it is put in."""
    return len(name) <= _LONGEST and all(map(_is_plain_part, name.split("/")))


def _is_plain_part(part: str) -> bool:
    return bool(part) and part.isprintable() and not _ODD.search(part) and len(part.encode()) <= _LONGEST_PART


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, where that is inside the folder, links on the way resolved. Nothing is created.

    Raises:
        SAMError: it is not.
    """
    path = folder / name
    if not is_plain(name) or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise SAMError(f"{name[:200]!r} does not stay inside {folder}: nothing was written.")
    return path

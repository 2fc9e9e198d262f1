"""Names from outside as paths inside a models folder, and nowhere else."""

from pathlib import Path

from ...utils.paths import is_plain
from ..errors import SAMError


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, where that is inside the folder, links on the way resolved. Nothing is created.

    Raises:
        SAMError: it is not.
    """
    path = folder / name
    if not is_plain(name) or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise SAMError(f"{name[:200]!r} does not stay inside {folder}: nothing was written.")
    return path

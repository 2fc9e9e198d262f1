"""Models that are folders: what a loader lists, where the folder of a name is, and how it gets there."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..sam import SAMError
from ..sam.models.in_transformers.folder import FolderModel, folder_state
from ..sam.weights.download import fetch_folder
from ..sam.weights.registry import KnownFolder


def available(folders: Sequence[Path], known: Mapping[str, KnownFolder]) -> list[str]:
    """What a loader lists: folders that are there, then known models; the same names before and after a download."""
    present: set[str] = set()
    for folder in folders:
        with contextlib.suppress(OSError):  # a folder that may not be read, or a link that leads to itself
            names = (path.parent.name for path in folder.glob("*/config.json"))
            present.update(name for name in names if not name.startswith("."))  # that is a download in progress
    return sorted(present) + [name for name in known if name not in present]


def find(name: str, kind: type[FolderModel], folders: Sequence[Path], known: Mapping[str, KnownFolder]) -> Path:
    """The folder of that name, fetched if it is known and not there or not complete.

    Raises:
        SAMError: there is no such folder, or it could not be fetched.
    """
    folder = complete(name, kind, folders, known)
    if folder is not None:
        return folder
    if name in known:
        return fetch_folder(known[name], list(folders))
    raise SAMError(
        f"there is no complete model {name!r} in {', '.join(map(str, folders))}: create a folder of that name "
        f"with {kind.needed()}."
    )


def complete(name: str, kind: type[FolderModel], folders: Sequence[Path], known: Mapping[str, KnownFolder]) -> Path | None:
    """The first folder of that name that has all that loading needs; what is complete is never fetched."""
    if name not in available(folders, known):
        return None
    for folder in folders:
        with contextlib.suppress(OSError):
            if kind.is_complete(folder / name):
                return folder / name
    return None


def state(folder: Path | None) -> str:
    """A text that changes when a file in the folder does; nothing raises here, since ComfyUI asks before it runs anything."""
    try:
        return "" if folder is None else repr(folder_state(folder))
    except OSError:
        return ""

"""Fetch a file, verify it, and only then give it its name.

A file lands complete and verified or not at all: the transfer goes to a staging folder beside the target, the hash is compared
there, and a rename puts it in place. Whatever breaks off leaves its part there, to be continued by the next attempt.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ...utils.comfy import Progress
from ...utils.paths import is_plain
from ..errors import SAMError
from .hub_file import fetch_from_hub_file
from .network import is_disk_full, is_offline, network_errors, said
from .publisher import fetch_from_publisher, open_own
from .registry import KnownFolder, RemoteFile

log = logging.getLogger("samkit")
_CHUNK = 1 << 20
_STAGING = ".samkit-download"


def fetch(remote: RemoteFile, folders: list[Path]) -> Path:
    """Download `remote` into the first writable of `folders`, from the hub, else from its publisher.

    Returns:
        The path of the verified file.

    Raises:
        SAMError: its name leaves the folder, offline, no writable folder, a full disk, or no source gave the right file; the
            text names every reason.
    """
    inside(folders[0], remote.name)
    if is_offline():
        raise SAMError(
            f"{remote.name} is not in {folders[0]} and HF_HUB_OFFLINE forbids fetching it: {_by_hand(remote, folders[0])}."
        )
    folder = _first_writable(folders, _by_hand(remote, folders[0]))
    target = inside(folder, remote.name)
    with _turn(folder, remote):  # another graph, or another ComfyUI on the same folder, may fetch it, too
        if target.is_dir():
            raise SAMError(f"{remote.name} cannot be fetched: {target} is a folder. Remove or rename it.")
        if not target.is_file():
            _fetch(remote, folder / _STAGING, target)
    return target


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, where that is inside the folder, links on the way resolved. Nothing is created.

    Raises:
        SAMError: it is not.
    """
    path = folder / name
    if not is_plain(name) or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise SAMError(f"{name[:200]!r} does not stay inside {folder}: nothing was written.")
    return path


def fetch_folder(known: KnownFolder, folders: list[Path]) -> Path:
    """Download the files of `known` that are not there yet, each as `fetch` does, the weights last.

    Args:
        known: the model.
        folders: for such models; one that has a part of it already gets the rest.

    Returns:
        The folder of that name, complete.

    Raises:
        SAMError: as `fetch`; what has arrived stays, and is not fetched again.
    """
    begun = [folder for folder in folders if (folder / known.name).is_dir()]
    names = ", ".join(file.filename for file in known.files)
    by_hand = f"put these files from {known.repo_id} on the Hugging Face Hub into {(begun or folders)[0] / known.name}: {names}"
    if is_offline():
        raise SAMError(f"{known.name} is not complete in {folders[0]}, and HF_HUB_OFFLINE forbids downloads: {by_hand}.")
    folder = _first_writable([*begun, *folders], by_hand)
    for file in known.files:
        fetch(file, [folder])
    return folder / known.name


@contextlib.contextmanager
def _turn(folder: Path, remote: RemoteFile) -> Iterator[None]:
    """In the body, nobody else fetches into `folder`, and the staging folder is there and ours. Cancel ends the wait."""
    staging, path = folder / _STAGING, folder / f"{_STAGING}.lock"
    if path.is_symlink() or path.is_dir():
        raise SAMError(f"{path} is not a file of this pack: remove it.")
    lock = FileLock(path)
    try:
        while not lock.is_locked:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=1)
                break
            Progress.check_interrupted()
    except OSError as error:
        raise SAMError(
            f"{folder} cannot be written ({said(error)}): change its permissions, or {_by_hand(remote, folder)}."
        ) from error
    try:
        _make_own(staging)
        yield
    finally:
        lock.release()


def _make_own(staging: Path) -> None:
    """A folder without a link in it, so that nothing written there lands elsewhere."""
    if staging.is_symlink() or (staging.exists() and not staging.is_dir()):
        raise SAMError(f"{staging} is not a folder of this pack: remove it.")
    try:
        if any(path.is_symlink() for path in staging.rglob("*")):
            shutil.rmtree(staging)
        staging.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise SAMError(f"{staging} cannot be written: {said(error)}.") from error


def _fetch(remote: RemoteFile, staging: Path, target: Path) -> None:
    failures = []
    # What is not verified is not taken, so without a sum of ours the publisher's bytes would be fetched in vain.
    for source in (_from_hub, _from_publisher) if remote.url and remote.sha256 else (_from_hub,):
        name = source.__name__.removeprefix("_from_")
        try:
            _put(source(remote, staging), target)
        except network_errors() as error:
            if is_disk_full(error):
                raise _disk_full(remote, staging, error) from error
            log.warning("%s: the %s failed: %s", remote.name, name, said(error))
            failures.append(f"{name}: {said(error)}")
            continue
        shutil.rmtree(staging, ignore_errors=True)
        return
    raise SAMError(
        f"could not download {remote.name} ({'; '.join(failures)}). Download {_address(remote)} to {target} manually."
    )


def _from_hub(remote: RemoteFile, staging: Path) -> Path:
    arrived, wanted = fetch_from_hub_file(remote, staging)
    return _verified(arrived, wanted)


def _from_publisher(remote: RemoteFile, staging: Path) -> Path:
    return _verified(fetch_from_publisher(remote, staging), str(remote.sha256))


def _put(arrived: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    arrived.replace(target)


def _disk_full(remote: RemoteFile, staging: Path, error: Exception) -> SAMError:
    """What has arrived is of no use while the disk is full, and takes room: it goes."""
    shutil.rmtree(staging, ignore_errors=True)
    size = f"{remote.size / 1e6:.0f} MB" if remote.size else "its size"
    return SAMError(
        f"{remote.name} could not be fetched: the disk of {staging.parent} is full ({said(error)}). Free {size} there."
    )


def _address(remote: RemoteFile) -> str:
    return remote.url or f"{remote.filename} from {remote.repo_id} on the Hugging Face Hub"


def _by_hand(remote: RemoteFile, folder: Path) -> str:
    """What a user does where the pack may not: which file to get from where, and where it has to be."""
    return f"download {_address(remote)} elsewhere and put it there as {folder / remote.name}"


def _first_writable(folders: list[Path], by_hand: str) -> Path:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise SAMError(
        f"none of these folders is writable: {', '.join(map(str, folders))}. Change the permissions of one, or {by_hand}."
    )


def _verified(path: Path, wanted: str) -> Path:
    """The file, on the disk for good; removed, and a SAMError, where its content does not have the hash `wanted`."""
    size = path.stat().st_size
    # A small file of a repository has git's own hash, which begins with a header; a large one has a SHA-256.
    digest = hashlib.sha256() if len(wanted) == 64 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with open_own(path) as file:
        while chunk := file.read(_CHUNK):
            Progress.check_interrupted()
            digest.update(chunk)
        os.fsync(file.fileno())
    if digest.hexdigest() != wanted:
        path.unlink()
        raise SAMError(
            f"the download has {size} bytes and {digest.name.upper()} {digest.hexdigest()}, but {wanted} was expected"
        )
    return path

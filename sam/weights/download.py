"""Fetch a known checkpoint, verify it, and only then give it its name.

A file lands complete and verified or not at all: the transfer goes to a staging folder beside the target, the SHA-256 is
compared there, and a rename puts it in place.
"""

import hashlib
import inspect
import logging
import os
import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...utils.comfy import Progress
from ..errors import SAMError
from .registry import KnownFolder, RemoteFile

log = logging.getLogger("samkit")
_CHUNK = 1 << 20


def fetch(remote: RemoteFile, folders: list[Path]) -> Path:
    """Download `remote` into the first writable of `folders`, from the hub, else from its publisher.

    Returns:
        The path of the verified file.

    Raises:
        SAMError: offline, no writable folder, or no source gave the right file; the text names every reason.
    """
    if is_offline():
        raise SAMError(
            f"{remote.name} is not in {folders[0]} and HF_HUB_OFFLINE forbids fetching it: "
            f"download {_address(remote)} elsewhere and put it there under that name."
        )
    folder = _first_writable(folders)
    staging, target = folder / ".samkit-download", folder / remote.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{staging}.lock"):  # another graph, or another ComfyUI on the same folder, may fetch it, too
        if not target.is_file():
            _fetch(remote, staging, target)
    return target


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
    if is_offline():
        names = ", ".join(file.filename for file in known.files)
        raise SAMError(
            f"{known.name} is not complete in {folders[0]} and HF_HUB_OFFLINE forbids fetching it: "
            f"put these files of the hub's {known.repo_id} into {(begun or folders)[0] / known.name}: {names}."
        )
    folder = _first_writable([*begun, *folders])
    for file in known.files:
        fetch(file, [folder])
    return folder / known.name


def is_offline() -> bool:
    """Whether the user forbids asking the hub, as huggingface_hub reads it; that looks only once, at its import."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _fetch(remote: RemoteFile, staging: Path, target: Path) -> None:
    failures = []
    for source in (_from_hub, _from_publisher) if remote.url else (_from_hub,):
        try:
            arrived = source(remote, staging)
            _verify(arrived, remote)
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("%s: %s failed: %s", remote.name, source.__name__.strip("_"), error)
            failures.append(f"{source.__name__.strip('_')}: {error}")
            continue
        arrived.replace(target)
        shutil.rmtree(staging, ignore_errors=True)
        return
    raise SAMError(f"could not fetch {remote.name} ({'; '.join(failures)}). Download {_address(remote)} to {target} by hand.")


def _address(remote: RemoteFile) -> str:
    return remote.url or f"{remote.filename} of the hub's {remote.repo_id}"


def _first_writable(folders: list[Path]) -> Path:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise SAMError(f"none of these folders can be written: {', '.join(map(str, folders))}.")


def _from_hub(remote: RemoteFile, staging: Path) -> Path:
    """Through huggingface_hub: resume, proxies, HF_ENDPOINT and tokens are its business."""
    from huggingface_hub import hf_hub_download

    options = {"endpoint": endpoint()} if endpoint() else {}
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:  # huggingface_hub before 1.0 has no such hook
        options["tqdm_class"] = _console_and_node_bar()
    return Path(hf_hub_download(remote.repo_id, remote.filename, revision=remote.revision, local_dir=staging, **options))


def endpoint() -> str | None:
    """The hub's address where the user set another one; huggingface_hub itself looks only once, at its import."""
    return os.environ.get("HF_ENDPOINT") or None


def _console_and_node_bar() -> type:
    from tqdm.auto import tqdm

    class Bar(tqdm):
        """The hub's console bar, which also moves ComfyUI's and hears its Cancel."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._node = Progress(int(self.total)) if self.total else None

        def update(self, n: float | None = 1) -> bool | None:
            """Move both bars on by n bytes."""
            Progress.check_interrupted()
            if self._node is not None:
                self._node.advance(int(n or 0))
            return super().update(n)

    return Bar


def _from_publisher(remote: RemoteFile, staging: Path) -> Path:
    url, size = str(remote.url), remote.size or 0
    staging.mkdir(parents=True, exist_ok=True)
    target = staging / f"{remote.name}.part"  # no checkpoint's ending: half a file must not be listed as one
    progress = Progress(size)
    log.info("fetching %s (%.0f MB) from %s", remote.name, size / 1e6, url)
    with urllib.request.urlopen(url, timeout=60) as response, target.open("wb") as file:
        _in_chunks(response.read, lambda chunk: (file.write(chunk), progress.advance(len(chunk))))
    return target


def _verify(path: Path, remote: RemoteFile) -> None:
    """Raise ValueError, and remove the file, where its content is not the known one's, or what the hub says it is."""
    wanted, size = remote.sha256 or _hubs_hash(remote), path.stat().st_size
    # A small file of a repository has git's own hash, which begins with a header; a large one has a SHA-256.
    digest = hashlib.sha256() if len(wanted) == 64 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        _in_chunks(file.read, digest.update)
    if digest.hexdigest() != wanted:
        path.unlink()
        raise SAMError(f"got {size} bytes with {digest.name.upper()} {digest.hexdigest()}, not the file with {wanted}")


def _hubs_hash(remote: RemoteFile) -> str:
    """What the hub keeps of a file as its ETag: the SHA-256 of a large one, git's SHA-1 of a small one."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(remote.repo_id, remote.filename, revision=remote.revision, endpoint=endpoint())
    etag = get_hf_file_metadata(url).etag or ""
    if not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", etag):
        raise SAMError(f"the hub has no hash of {remote.filename} in {remote.repo_id}, so it cannot be verified")
    return etag


def _in_chunks(read: Callable[[int], bytes], use: Callable[[bytes], object]) -> None:
    while chunk := read(_CHUNK):
        Progress.check_interrupted()
        use(chunk)

"""Fetch a known checkpoint, verify it, and only then give it its name.

A file lands complete and verified or not at all: the transfer goes to a staging folder beside the target, the SHA-256 is
compared there, and a rename puts it in place.
"""

import hashlib
import inspect
import logging
import os
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

from ...utils.comfy import Progress
from ..errors import SAMError
from .registry import KnownCheckpoint

log = logging.getLogger("samkit")
_CHUNK = 1 << 20


def fetch(known: KnownCheckpoint, folders: list[Path]) -> Path:
    """Download `known` into the first writable of `folders`, from the hub, else from its publisher.

    Returns:
        The path of the verified file.

    Raises:
        SAMError: offline, no writable folder, or no source gave the right file; the text names every reason.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise SAMError(
            f"{known.name} is not in {folders[0]} and HF_HUB_OFFLINE forbids fetching it: "
            f"download {known.url} elsewhere and put it there."
        )
    folder = _first_writable(folders)
    staging = folder / ".samkit-download"
    failures = []
    for source in (_from_hub, _from_publisher):
        try:
            arrived = source(known, staging)
            _verify(arrived, known)
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("%s: %s failed: %s", known.name, source.__name__.strip("_"), error)
            failures.append(f"{source.__name__.strip('_')}: {error}")
            continue
        arrived.replace(folder / known.name)
        shutil.rmtree(staging, ignore_errors=True)
        return folder / known.name
    raise SAMError(f"could not fetch {known.name} ({'; '.join(failures)}). Download {known.url} into {folder} by hand.")


def _first_writable(folders: list[Path]) -> Path:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise SAMError(f"none of the sams folders can be written: {', '.join(map(str, folders))}.")


def _from_hub(known: KnownCheckpoint, staging: Path) -> Path:
    """Through huggingface_hub: resume, proxies, HF_ENDPOINT and tokens are its business."""
    from huggingface_hub import hf_hub_download

    options = {}
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:  # huggingface_hub before 1.0 has no such hook
        options["tqdm_class"] = _console_and_node_bar(Progress(known.size))
    return Path(hf_hub_download(known.repo_id, known.filename, local_dir=staging, **options))


def _console_and_node_bar(progress: Progress) -> type:
    from tqdm.auto import tqdm

    class Bar(tqdm):
        """The hub's console bar, which also moves ComfyUI's and hears its Cancel."""

        def update(self, n: float | None = 1) -> bool | None:
            progress.check_interrupted()
            progress.advance(int(n or 0))
            return super().update(n)

    return Bar


def _from_publisher(known: KnownCheckpoint, staging: Path) -> Path:
    staging.mkdir(parents=True, exist_ok=True)
    target = staging / f"{known.name}.part"  # no checkpoint's ending: half a file must not be listed as one
    progress = Progress(known.size)
    log.info("fetching %s (%.0f MB) from %s", known.name, known.size / 1e6, known.url)
    with urllib.request.urlopen(known.url, timeout=60) as response, target.open("wb") as file:
        _in_chunks(response.read, lambda chunk: (file.write(chunk), progress.advance(len(chunk))))
    return target


def _verify(path: Path, known: KnownCheckpoint) -> None:
    """Raise ValueError, and remove the file, where its content is not the known one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        _in_chunks(file.read, digest.update)
    if digest.hexdigest() != known.sha256:
        size = path.stat().st_size
        path.unlink()
        raise SAMError(f"got {size} bytes with SHA-256 {digest.hexdigest()}, not {known.size} with {known.sha256}")


def _in_chunks(read: Callable[[int], bytes], use: Callable[[bytes], object]) -> None:
    while chunk := read(_CHUNK):
        Progress.check_interrupted()
        use(chunk)

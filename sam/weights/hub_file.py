"""A file from the Hugging Face hub. Resume, proxies, HF_ENDPOINT and tokens are huggingface_hub's business."""

import inspect
import re
from pathlib import Path
from typing import Any

from ...utils.comfy import Progress
from ..errors import SAMError
from .network import PATIENCE, endpoint
from .registry import RemoteFile

_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


def fetch_from_hub_file(remote: RemoteFile, staging: Path) -> tuple[Path, str]:
    """Transfer a file of a repository to `staging`.

    The hub is first asked, once and with little patience, what it has: its library asks a dead one six times, for 24 seconds.

    Returns:
        The file, not verified; and the hash it must have: ours, or what the hub keeps as its ETag: the SHA-256 of a large file,
        git's SHA-1 of a small one.

    Raises:
        SAMError, or one of `network_errors()`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(remote.repo_id, remote.filename, revision=remote.revision, endpoint=endpoint())
    found = get_hf_file_metadata(url, timeout=PATIENCE)
    wanted = remote.sha256 or found.etag or ""
    if not _HASH.fullmatch(wanted):
        raise SAMError(f"the hub has no hash of {remote.filename} in {remote.repo_id}, so it cannot be verified")
    options = {"endpoint": endpoint()} if endpoint() else {}
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:  # huggingface_hub before 1.0 has no such hook
        options["tqdm_class"] = _console_and_node_bar()
    revision = found.commit_hash or remote.revision  # what the hash is of, though the branch may move on meanwhile
    path = hf_hub_download(
        remote.repo_id, remote.filename, revision=revision, local_dir=staging, etag_timeout=PATIENCE, **options
    )
    return Path(path), wanted


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

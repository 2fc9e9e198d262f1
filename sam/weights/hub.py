"""A SAM from any repository of the Hugging Face hub: which of its files are the weights, and where they go."""

from pathlib import Path

from ..errors import SAMError
from .download import endpoint, fetch, is_offline
from .files import INDEX_SUFFIX, shard_names
from .registry import RemoteFile

# keras-hub's names for the original checkpoints; its own files are of another format.
_KERAS = {f"sam_{size}_sa1b": f"facebook/sam-vit-{size}" for size in ("base", "large", "huge")}
_PREFERRED = ("model.safetensors", f"model{INDEX_SUFFIX}", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def fetch_from_hub(repo_id: str, revision: str, filename: str, folders: list[Path]) -> Path:
    """The weights of a repository, fetched once, verified, below `<owner>/<name>` in the first writable of `folders`.

    Args:
        repo_id: `owner/name`, `hf://owner/name`, or keras-hub's `sam_base_sa1b`, `sam_large_sa1b`, `sam_huge_sa1b`.
        revision: branch, tag or commit; empty is the newest.
        filename: inside the repository; empty is the weights as transformers names them, or the only ones there.
        folders: the `sams` folders.

    Returns:
        The file, or the index of its shards.

    Raises:
        SAMError: the name is none, there is no such file, or it could not be fetched.
    """
    owner, name = _repository(repo_id)
    place = f"{owner}/{name}" + (f"@{revision}" if revision else "")
    wanted = [filename] if filename else list(_PREFERRED)
    present = next((folder / place / one for one in wanted for folder in folders if (folder / place / one).is_file()), None)
    chosen = present.name if present and not filename else filename or _choose(f"{owner}/{name}", revision, folders)
    path = present or fetch(RemoteFile(f"{place}/{chosen}", f"{owner}/{name}", chosen, revision or None), folders)
    for shard in shard_names(path) if path.name.endswith(INDEX_SUFFIX) else ():
        if not (path.parent / shard).is_file():
            remote = RemoteFile(f"{place}/{shard}", f"{owner}/{name}", shard, revision or None)
            fetch(remote, [path.parents[len(Path(place).parts)]])
    return path


def _repository(repo_id: str) -> tuple[str, str]:
    repo_id = repo_id.strip()
    parts = _KERAS.get(repo_id, repo_id).removeprefix("hf://").strip("/").split("/")
    if len(parts) != 2 or any(not part or part.startswith(".") or "\\" in part for part in parts):
        raise SAMError(f"repo_id is {repo_id!r}: it must be owner/name, hf://owner/name, or one of {', '.join(_KERAS)}.")
    return parts[0], parts[1]


def _choose(repo_id: str, revision: str, folders: list[Path]) -> str:
    """The weights among a repository's files."""
    if is_offline():
        raise SAMError(f"{repo_id} is not in {folders[0]} and HF_HUB_OFFLINE forbids asking the hub for it.")
    from huggingface_hub import HfApi

    try:
        names = HfApi(endpoint=endpoint()).list_repo_files(repo_id, revision=revision or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise SAMError(f"could not list the files of {repo_id} on the hub: {error}") from error
    preferred = [name for name in _PREFERRED if name in names]
    found = preferred[:1] or [name for name in names if name.endswith(_SUFFIXES)]
    if len(found) == 1:
        return found[0]
    said = f"choose one as filename: {', '.join(found)}" if found else f"there is nothing that ends in {', '.join(_SUFFIXES)}"
    raise SAMError(f"{repo_id} has {len(found)} files that may be weights: {said}.")

"""A SAM from any repository of the Hugging Face hub: which of its files are the weights, and where they go."""

import re
from pathlib import Path

from ...utils.paths import is_plain
from ...utils.text import counted
from ..errors import SAMError
from .checkpoint_reader import PREFERRED, is_index, refuse_other_forms, shard_names, weights_of_folder
from .download import fetch
from .network import PATIENCE, endpoint, is_offline, network_errors, said
from .registry import RemoteFile

# keras-hub's names, alone, stand for the original checkpoints, which need no h5py; hf://keras/... is keras-hub's own file.
_KERAS = {f"sam_{size}_sa1b": f"facebook/sam-vit-{size}" for size in ("base", "large", "huge")}
_NAME, _REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII), re.compile(r"[\w./-]+", re.ASCII)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_KAGGLE = "kaggle://"


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
        SAMError: a name that is not one or would lead elsewhere, no such file, one that could not be fetched, or a folder that
            is there and holds weights in a form that has to be converted. Names are checked before the disk is touched.
    """
    owner, name = _repository(repo_id)
    _check_revision(revision)
    if filename:
        _check_filename(filename)
    place = f"{owner}/{name}" + (f"@{revision}" if revision else "")
    wanted = [filename] if filename else list(PREFERRED)
    present = next((folder / place / one for one in wanted for folder in folders if (folder / place / one).is_file()), None)
    if present is None and not filename:
        present = _in_another_form([folder / place for folder in folders])
    chosen = present.name if present and not filename else filename or _choose(f"{owner}/{name}", revision, folders)
    path = present or fetch(RemoteFile(f"{place}/{chosen}", f"{owner}/{name}", chosen, revision or None), folders)
    beside = f"{chosen.rpartition('/')[0]}/".lstrip("/")
    for shard in shard_names(path) if is_index(path.name) else ():
        if not (path.parent / shard).is_file():
            remote = RemoteFile(f"{place}/{beside}{shard}", f"{owner}/{name}", f"{beside}{shard}", revision or None)
            fetch(remote, [path.parents[f"{place}/{chosen}".count("/")]])
    return path


def _in_another_form(places: list[Path]) -> Path | None:
    """A variant such as `model.fp16.safetensors` that is there, where the hub cannot be asked for what it has."""
    for place in places:
        if place.is_dir():
            refuse_other_forms(place)
            if is_offline() and (found := weights_of_folder(place)):
                return found
    return None


def _repository(repo_id: str) -> tuple[str, str]:
    repo_id = repo_id.strip()
    if repo_id.startswith(_KAGGLE):
        name = next((name for name in _KERAS if name in repo_id.split("/")), None)
        use = f"use hf://keras/{name}, which has the same weights" if name else "download the preset and load its folder"
        raise SAMError(f"repo_id is {repo_id[:200]!r}, but Kaggle gives files to its own client only: {use}.")
    parts = _KERAS.get(repo_id, repo_id).removeprefix("hf://").strip("/").split("/")
    if len(parts) != 2 or not all(_NAME.fullmatch(part) and is_plain(part) for part in parts):
        shown = repr(repo_id[:200])
        raise SAMError(f"repo_id is {shown}: it must be owner/name, hf://owner/name, or one of {', '.join(_KERAS)}.")
    return parts[0], parts[1]


def _check_revision(revision: str) -> None:
    if revision and not (_REVISION.fullmatch(revision) and is_plain(revision)):
        raise SAMError(f"revision is {revision[:200]!r}: it must be a branch, a tag or a commit, such as main or refs/pr/1.")


def _check_filename(filename: str) -> None:
    if not is_plain(filename):
        raise SAMError(
            f"filename is {filename[:200]!r}: it must be a path inside the repository, with /, such as model.safetensors."
        )
    if not filename.endswith((*_SUFFIXES, ".weights.h5")) and not is_index(filename.rpartition("/")[2]):
        raise SAMError(f"filename is {filename[:200]!r}: weights end in {', '.join(_SUFFIXES)} or .safetensors.index.json.")


def _choose(repo_id: str, revision: str, folders: list[Path]) -> str:
    """The weights among a repository's files."""
    if is_offline():
        raise SAMError(f"{repo_id} is not in {folders[0]}, and HF_HUB_OFFLINE forbids downloads.")
    from huggingface_hub import HfApi

    try:  # not list_repo_files, which asks a dead hub six times, for 24 seconds
        listed = HfApi(endpoint=endpoint()).model_info(repo_id, revision=revision or None, timeout=PATIENCE)
        names = [sibling.rfilename for sibling in listed.siblings or () if is_plain(sibling.rfilename)]
    except network_errors() as error:
        raise SAMError(
            f"could not list the files of {repo_id} on the hub ({said(error)}). Check the name and the connection, or put the "
            f"file into {folders[0]} manually and use Load SAM Model."
        ) from error
    preferred = [name for name in PREFERRED if name in names]
    if not preferred and "adapter_config.json" in names:
        raise SAMError(
            f"{repo_id} is an adapter of peft, not a model: download its adapter_model.safetensors and adapter_config.json "
            f"into a folder in {folders[0]}, and choose it in Load SAM Model."
        )
    found = preferred[:1] or [name for name in names if name.endswith(_SUFFIXES)]
    if len(found) == 1:
        return found[0]
    advice = f"set filename to one of {', '.join(found)}" if found else f"no file name ends in {', '.join(_SUFFIXES)}"
    raise SAMError(f"{repo_id} has {counted(len(found), 'file')} that may be weights: {advice}.")

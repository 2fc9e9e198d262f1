"""ComfyUI's folders of models, of results and of its user; outside ComfyUI, folders of the same names in the pack."""

import contextlib
import os
from pathlib import Path

from .comfy import inside_comfyui

PACK = Path(__file__).resolve().parent.parent
CHECKPOINT_SUFFIXES = frozenset({".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".h5"})
CONCEPT_FOLDER, DECODER_FOLDER = "sam_concepts", "sam_decoders"
_SAVED = (CONCEPT_FOLDER, DECODER_FOLDER)  # as core's `loras`: what is trained is saved, and found again, in `output/<kind>`
_SAVED_AS = ".safetensors"
_CORES = ("checkpoints",)  # which are listed as core lists them, and not changed here


def model_folders(kind: str) -> list[Path]:
    """Folders that hold models of one kind, in order of preference; `models/<kind>` is one of them.

    The pack's kinds are the community's, so they are registered here; core's `checkpoints` are only looked at. Folders that
    extra_model_paths.yaml or other packs have added stay as they are.
    """
    if not inside_comfyui():
        return [PACK / "models" / kind, *([PACK / "output" / kind] if kind in _SAVED else [])]
    import folder_paths

    if kind not in _CORES:
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
    if kind in _SAVED:
        folder_paths.add_model_folder_path(kind, str(data_folder("output") / kind))
    return [Path(path) for path in folder_paths.folder_names_and_paths[kind][0]]


def model_names(kind: str) -> list[str]:
    """Names of the weights in the folders of a kind, with `/` or the system's separator. What a name leads to may have gone.

    Subfolders are included. The set of file endings that ComfyUI lists is widened by those of checkpoints.
    """
    names = _names_in(kind)
    return [name for name in names if name.endswith(_SAVED_AS)] if kind in _SAVED else names


def _names_in(kind: str) -> list[str]:
    folders = model_folders(kind)
    if not inside_comfyui():
        return [
            os.path.relpath(os.path.join(place, file), folder)  # noqa: PTH118  as ComfyUI does, whatever bytes a name has
            for folder in folders
            for place, _, files in os.walk(folder)
            for file in files
            if Path(file).suffix in CHECKPOINT_SUFFIXES
        ]
    import folder_paths

    paths, suffixes = folder_paths.folder_names_and_paths[kind]
    if kind not in _CORES and CHECKPOINT_SUFFIXES - set(suffixes):
        folder_paths.folder_names_and_paths[kind] = (paths, set(suffixes) | CHECKPOINT_SUFFIXES)
    try:
        return folder_paths.get_filename_list(kind)
    except OSError:  # a linked folder that it had listed has gone, which it only sees where the link is
        folder_paths.filename_list_cache.pop(kind, None)
        return folder_paths.get_filename_list(kind)


def model_path(kind: str, name: str) -> Path | None:
    """Full path of a file by a name as `model_names` lists it, or None where there is none of that name.

    A graph from another system has that system's separator in its names, which is understood.
    """
    if kind in _SAVED and not name.endswith(_SAVED_AS):
        return None
    for one in dict.fromkeys((name, name.replace("\\", "/"), name.replace("/", os.sep))):
        with contextlib.suppress(OSError, ValueError):  # a name that no file system takes; a folder that may not be entered
            if (found := _exact_path(kind, one)) is not None:
                return found
    return None


def _exact_path(kind: str, name: str) -> Path | None:
    folders = model_folders(kind)
    if not inside_comfyui():
        listed = name in _names_in(kind)
        return next((folder / name for folder in folders if listed and (folder / name).is_file()), None)
    import folder_paths

    found = folder_paths.get_full_path(kind, name)
    return Path(found) if found else None


def model_link(kind: str, name: str) -> str | None:
    """Where a name that `model_names` lists leads, if it is a link; else None."""
    for folder in model_folders(kind):
        with contextlib.suppress(OSError, ValueError):
            return str((folder / name).readlink())
    return None


def user_folder() -> Path:
    """Where what belongs to this server's user is stored: ComfyUI's user folder; outside ComfyUI, `user` in the pack."""
    if not inside_comfyui():
        return PACK / "user"
    import folder_paths

    return Path(folder_paths.get_user_directory())


def data_folder(kind: str) -> Path:
    """ComfyUI's folder `input`, `output` or `temp`; outside ComfyUI, a folder of that name in the pack."""
    if not inside_comfyui():
        return PACK / kind
    import folder_paths

    return Path(folder_paths.get_directory_by_type(kind))

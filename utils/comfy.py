"""The only door to ComfyUI's folders, progress bar and interruption, with a stand-in for each outside ComfyUI.

ComfyUI is imported inside functions, and only when it is already running in this process: the pack must load in pytest,
in a script and in a notebook, where a folder of that name on `sys.path` must not be started by accident.
"""

import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
CHECKPOINT_SUFFIXES = frozenset({".pth", ".pt", ".safetensors"})
_FOLDER, _GROUNDING_FOLDER = "sams", "grounding-dino"


def inside_comfyui() -> bool:
    """Whether this process is a ComfyUI server (its `folder_paths` is loaded before any custom node)."""
    return "folder_paths" in sys.modules


def sams_folders() -> list[Path]:
    """Folders that hold SAM checkpoints, in order of preference; outside ComfyUI, `models/sams` in the pack.

    Folders that extra_model_paths.yaml or other packs have added stay as they are, and only the set of file endings is
    widened.
    """
    folders = _model_folders(_FOLDER)
    if inside_comfyui():
        import folder_paths

        paths, suffixes = folder_paths.folder_names_and_paths[_FOLDER]
        if CHECKPOINT_SUFFIXES - set(suffixes):
            folder_paths.folder_names_and_paths[_FOLDER] = (paths, set(suffixes) | CHECKPOINT_SUFFIXES)
    return folders


def grounding_folders() -> list[Path]:
    """Folders that hold one folder per Grounding DINO, in order of preference; outside ComfyUI, below the pack's `models`."""
    return _model_folders(_GROUNDING_FOLDER)


def _model_folders(kind: str) -> list[Path]:
    """Neither `sams` nor `grounding-dino` is core's, but the community's: so they are registered here."""
    if not inside_comfyui():
        return [PACK / "models" / kind]
    import folder_paths

    folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
    return [Path(path) for path in folder_paths.folder_names_and_paths[kind][0]]


def checkpoint_names() -> list[str]:
    """Names of the files in the `sams` folders, subfolders included, sorted, with `/` or the system's separator."""
    folders = sams_folders()
    if inside_comfyui():
        import folder_paths

        return sorted(set(folder_paths.get_filename_list(_FOLDER)))
    return sorted(
        str(path.relative_to(folder))
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*")
        if path.suffix in CHECKPOINT_SUFFIXES
    )


def checkpoint_path(name: str) -> Path | None:
    """Full path of a file that `checkpoint_names` lists, or None where there is none of that name."""
    folders = sams_folders()
    if inside_comfyui():
        import folder_paths

        found = folder_paths.get_full_path(_FOLDER, name)
        return Path(found) if found else None
    if name not in checkpoint_names():
        return None
    return next(folder / name for folder in folders if (folder / name).is_file())


class Progress:
    """ComfyUI's progress bar and interruption; does nothing outside ComfyUI.

    Args:
        total: number of steps (or bytes) to come.
    """

    def __init__(self, total: int) -> None:
        self._bar = None
        if inside_comfyui():
            import comfy.utils

            self._bar = comfy.utils.ProgressBar(total)

    def advance(self, steps: int = 1) -> None:
        """Move the bar on by `steps`."""
        if self._bar is not None:
            self._bar.update(steps)

    @staticmethod
    def check_interrupted() -> None:
        """Raise ComfyUI's own exception if the user pressed Cancel; never to be caught here."""
        if inside_comfyui():
            import comfy.model_management

            comfy.model_management.throw_exception_if_processing_interrupted()

"""Save SAM Embedding and Load SAM Embedding."""

from typing import Any

import numpy as np

from ..sam import SAMEmbedding, SAMError, load_embedding, save_embedding
from ..utils.comfy_files import annotated_path, files_ending, new_output
from .common import CATEGORY, SavesFile, saving_inputs

_SUFFIX = ".safetensors"
_FOLDERS = ("input", "output")


class SaveEmbedding(SavesFile):
    """`SAMKit_SaveEmbedding`."""

    DESCRIPTION = (
        "Saves an embedding with all its feature maps to a .safetensors file in ComfyUI's output folder. Encode on a "
        "fast machine, then prompt on another one with Load SAM Embedding and the same checkpoint."
    )
    SEARCH_ALIASES = ["sam", "save embedding", "export embedding", "store embedding", "safetensors"]
    RETURN_NAMES = ("name",)
    OUTPUT_TOOLTIPS = ("The name of the file, as Load SAM Embedding lists it.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return saving_inputs("embedding", "SAM_EMBEDDING", "An embedding from Get SAM Embedding.", "samkit/embedding")

    def execute(self, embedding: np.ndarray, filename_prefix: str = "samkit/embedding") -> dict[str, Any]:
        with new_output(filename_prefix, _SUFFIX) as (path, name):
            save_embedding(embedding, path)
        return {"ui": {"text": [name]}, "result": (name,)}


class LoadEmbedding:
    """`SAMKit_LoadEmbedding`."""

    DESCRIPTION = "Loads an embedding saved by Save SAM Embedding, from ComfyUI's input or output folder."
    SEARCH_ALIASES = ["sam", "load embedding", "import embedding", "read embedding", "safetensors"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("SAM_EMBEDDING",)
    RETURN_NAMES = ("sam_embedding",)
    OUTPUT_TOOLTIPS = ("The embedding, for SAM Predict Mask with the model that made it.",)
    FUNCTION = "execute"
    LOOKED_UP = ("name",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A .safetensors file in ComfyUI's input or output folder. Press R to list new files."
        return {"required": {"name": (files_ending(_SUFFIX, _FOLDERS), {"tooltip": tooltip})}}

    @classmethod
    def IS_CHANGED(cls, name: str | None = None) -> str:
        """Size, times of change and number of the file; a linked input arrives as None, and nothing may raise here."""
        path = annotated_path(name, _FOLDERS) if name else None
        try:
            stat = path.stat() if path else None
        except OSError:
            return ""
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}" if stat else ""

    def execute(self, name: str) -> tuple[SAMEmbedding]:
        path = annotated_path(name, _FOLDERS)
        if path is None:
            raise SAMError(f"there is no file {name[:200]!r} in ComfyUI's input and output folders.")
        return (load_embedding(path),)

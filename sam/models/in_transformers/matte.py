"""ViTMatte, which finds how opaque each pixel of an edge is, in transformers.

"ViTMatte: Boosting Image Matting with Pretrained Plain Vision Transformers", arXiv 2305.15272.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...weights.catalog import ModelFolders
from ...weights.registry import MATTING
from .folder import FolderModel, load_folder


@dataclass(frozen=True, eq=False)
class MatteModel(FolderModel):
    """A ViTMatte and what prepares its inputs; see `FolderModel`."""

    MODEL_TYPE: ClassVar[str] = "vitmatte"
    NETWORK: ClassVar[str] = "VitMatteForImageMatting"
    PROCESSOR: ClassVar[str] = "VitMatteImageProcessor"
    FILES: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("config.json",),
        ("preprocessor_config.json", "processor_config.json"),
    )
    PURPOSE: ClassVar[str] = "SAM Soft Edges"


def load_matte(folder: Path) -> MatteModel:
    """Load a ViTMatte; see `load_folder`.

    Args:
        folder: `config.json`, safetensors weights and `preprocessor_config.json`.
    """
    return load_folder(MatteModel, folder)


MATTE_MODELS = ModelFolders(
    kind="vitmatte",
    known=MATTING,
    load=load_matte,
    is_complete=MatteModel.is_complete,
    advice=f"create a folder of that name with {MatteModel.needed()}",
)

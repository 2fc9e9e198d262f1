"""Grounding DINO, which finds objects by words, in transformers.

"Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", arXiv 2303.05499.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...weights.catalog import ModelFolders
from ...weights.registry import GROUNDING, GROUNDING_ALIASES
from .folder import FolderModel, load_folder


@dataclass(frozen=True, eq=False)
class GroundingModel(FolderModel):
    """A Grounding DINO and what prepares its inputs; see `FolderModel`."""

    MODEL_TYPE: ClassVar[str] = "grounding-dino"
    NETWORK: ClassVar[str] = "GroundingDinoForObjectDetection"
    PROCESSOR: ClassVar[str] = "GroundingDinoProcessor"
    # transformers 5 writes the image settings into processor_config.json.
    FILES: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("config.json",),
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "vocab.txt"),
    )
    PURPOSE: ClassVar[str] = "Finding objects by words"


def load_grounding(folder: Path) -> GroundingModel:
    """Load a Grounding DINO; see `load_folder`.

    Args:
        folder: `config.json`, safetensors weights, `preprocessor_config.json` and a tokenizer.
    """
    return load_folder(GroundingModel, folder)


GROUNDING_MODELS = ModelFolders(
    kind="grounding-dino",
    known=GROUNDING,
    aliases=GROUNDING_ALIASES,
    load=load_grounding,
    is_complete=GroundingModel.is_complete,
    advice=f"create a folder of that name with {GroundingModel.needed()}",
)

"""SAM, SAM 2 and their relatives by name. A trained decoder is loaded into the model that it was made for."""

from collections.abc import Callable
from pathlib import Path

from ...utils.comfy_folders import DECODER_FOLDER
from ..weights.catalog import Catalog
from ..weights.registry import BUNDLED, KNOWN, SAM_ALIASES
from .base import Precision
from .loaded import load_shared
from .retrained import with_decoder
from .sam import SAMModel
from .taught_files import base_of_decoder, load_decoder


def _load_onto(load_base: Callable[[Precision], SAMModel], path: Path, precision: Precision = "auto") -> SAMModel:
    change = load_decoder(path)  # first: what is damaged downloads nothing
    return with_decoder(load_base(precision), change, path)


SAM_MODELS = Catalog(
    kind="sams",
    more=("sam2", "sam", DECODER_FOLDER),  # sam2: where the packs for SAM 2 put theirs; sam: RMBG and A1111
    known=KNOWN,
    aliases=SAM_ALIASES,
    bundled=BUNDLED,
    load=load_shared,
    base_of=base_of_decoder,
    load_onto=_load_onto,
)

"""SAM, SAM 2 and their relatives by name. A trained decoder and a LoRA adapter are loaded into what they were made for."""

import re
from pathlib import Path

from ...utils.comfy_folders import DECODER_FOLDER
from ..errors import SAMError
from ..weights.adapters import named_base, read_adapter
from ..weights.catalog import Catalog, Entry
from ..weights.registry import BUNDLED, KNOWN, SAM_ALIASES
from .base import Precision, Segmenter
from .loaded import load_shared
from .retrained import with_decoder
from .taught_files import base_of_decoder, load_decoder


def _base_of(path: Path) -> str | None:
    return base_of_decoder(path) if (base := named_base(path)) is None else base


def _load_onto(base: Entry[Segmenter], path: Path, precision: Precision = "auto") -> Segmenter:
    if named_base(path) is None:
        change = load_decoder(path)  # first: what is damaged downloads nothing
        return with_decoder(base.load(precision), change, path)
    name = read_adapter(path).name
    if base.base is not None:
        raise SAMError(f"{name} cannot be merged into {base.name}, which is not a whole model. Choose a model in base_model.")
    return load_shared(base.fetch(), precision, path)


SAM_MODELS = Catalog(
    kind="sams",
    more=("sam2", "sam", DECODER_FOLDER),  # sam2: where the packs for SAM 2 put theirs; sam: RMBG and A1111
    among=("checkpoints", re.compile(r"(?i)(?:^|[\\/])sam[_-]?3[^\\/]*$")),  # where ComfyUI's own nodes want SAM 3
    known=KNOWN,
    aliases=SAM_ALIASES,
    bundled=BUNDLED,
    load=load_shared,
    base_of=_base_of,
    load_onto=_load_onto,
)

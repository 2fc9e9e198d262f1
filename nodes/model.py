"""Load SAM Model."""

from pathlib import Path
from typing import Any

from ..sam import PRECISIONS, Precision, SAMError, SAMModel, is_decoder, load_decoder, load_shared, with_decoder
from ..sam.weights.download import fetch
from ..sam.weights.files import checkpoint_stamp
from ..sam.weights.hub import fetch_from_hub
from ..sam.weights.registry import BUNDLED, KNOWN
from ..utils.comfy import checkpoint_names, checkpoint_path, sams_folders
from .aliases import SAM_ALIASES, is_listed
from .common import CATEGORY, SAM_MODEL_TYPES

PRECISION_INPUT: tuple[Any, ...] = (
    list(PRECISIONS),
    {
        "default": "auto",
        "tooltip": "Precision of the image encoder. auto: what ComfyUI uses itself, mostly fp16 on a GPU, and fp32 on a CPU. "
        "The prompt encoder and the mask decoder always run in fp32.",
    },
)


class SAMModelLoader:
    """`AV_SAMLoader`: a checkpoint by name, from the `sams` folders, the pack itself, or its publisher."""

    DESCRIPTION = (
        "Loads a SAM checkpoint from models/sams. The model type is detected from the weights, not from the file name. "
        "Known checkpoints are downloaded and verified on first use."
    )
    SEARCH_ALIASES = [
        "sam",
        "sam2",
        "sam 2",
        "sam-hq",
        "mobilesam",
        "segment anything",
        "segment anything 2",
        "sam model loader",
        "sam loader",
        "load sam",
        "segmentation model",
    ]
    CATEGORY = CATEGORY
    RETURN_TYPES = (SAM_MODEL_TYPES,)
    RETURN_NAMES = ("sam_model",)
    OUTPUT_TOOLTIPS = ("The SAM model, for every node with a SAM model input: those of this pack, of Impact Pack and others.",)
    FUNCTION = "load_model"
    LOOKED_UP = ("model_name",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = available_names()
        return {
            "required": {
                "model_name": (
                    names,
                    {
                        "samkit_labels": {name: label_of(name) for name in names},
                        "tooltip": "A file in models/sams, or a known checkpoint, which is downloaded on first use. "
                        "samkit_demo.safetensors is bundled: a small model for demonstrations, not a substitute for SAM.",
                    },
                ),
            },
            "optional": {
                "precision": PRECISION_INPUT,
            },
        }

    @classmethod
    def IS_CHANGED(cls, model_name: str | None = None, precision: str | None = None) -> str:
        """A checkpoint with a file that was replaced on disk is loaded anew. Linked inputs are None; nothing may raise here."""
        try:
            model_name = SAM_ALIASES.get(model_name, model_name)
            path = (checkpoint_path(model_name) or BUNDLED.get(model_name)) if model_name else None
            return str(checkpoint_stamp(path)) if path else ""
        except (SAMError, OSError):
            return ""

    @classmethod
    def VALIDATE_INPUTS(cls, model_name: str | None = None) -> bool | str:
        """The list, and what other packs' loaders call the same checkpoints."""
        return is_listed(model_name, available_names(), SAM_ALIASES)

    def load_model(self, model_name: str, precision: Precision = "auto") -> tuple[SAMModel]:
        return (load_named(model_name, precision),)


class SAMHubLoader:
    """`SAMKit_HubLoader`: a SAM from any repository of the Hugging Face hub."""

    DESCRIPTION = (
        "Loads a SAM model from a Hugging Face Hub repository: Meta's format or transformers' format, SlimSAM, SAM-HQ, "
        "MobileSAM, or a fine-tune. The file is downloaded once to models/sams and verified. The model type is detected from "
        "the weights."
    )
    SEARCH_ALIASES = ["sam", "sam2", "segment anything", "hugging face", "sam hub loader", "keras sam"]
    CATEGORY = CATEGORY
    RETURN_TYPES = (SAM_MODEL_TYPES,)
    RETURN_NAMES = ("sam_model",)
    OUTPUT_TOOLTIPS = ("The SAM model, for every node with a SAM model input: those of this pack, of Impact Pack and others.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        repo = "owner/name, hf://owner/name, or keras-hub's sam_base_sa1b, sam_large_sa1b or sam_huge_sa1b (Meta's weights)."
        return {
            "required": {"repo_id": ("STRING", {"default": "facebook/sam-vit-base", "tooltip": repo})},
            "optional": {
                "revision": ("STRING", {"default": "", "tooltip": "Branch, tag or commit. Leave empty for the latest."}),
                "filename": (
                    "STRING",
                    {"default": "", "tooltip": "A file in the repository. Leave empty to detect the weights."},
                ),
                "precision": PRECISION_INPUT,
            },
        }

    def execute(
        self,
        repo_id: str = "facebook/sam-vit-base",
        revision: str = "",
        filename: str = "",
        precision: Precision = "auto",
    ) -> tuple[SAMModel]:
        path = fetch_from_hub(repo_id, revision.strip(), filename.strip(), sams_folders())
        return (load_shared(path, precision),)


def available_names() -> list[str]:
    """What the loader lists: files that are there, then known checkpoints; the same names before and after a download."""
    present = checkpoint_names()
    return present + [name for name in (*BUNDLED, *KNOWN) if name not in present]


def label_of(name: str) -> str:
    """What the list in the browser shows for a name: with the size, and whether a run downloads it. Values stay names."""
    path = checkpoint_path(name) or BUNDLED.get(name)
    size = _size_on_disk(path) if path else KNOWN[name].file.size
    notes = [f"{size / 1e6:,.0f} MB"] if size else []
    return f"{name} ({', '.join(notes + ['not downloaded'] * (path is None))})" if notes or path is None else name


def _size_on_disk(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # it has just gone
        return None


def load_named(name: str, precision: Precision = "auto", above: tuple[str, ...] = ()) -> SAMModel:
    """The model of a name that the loader lists; a trained decoder is applied to the model that it was made for.

    Args:
        name: see `find_checkpoint`.
        precision: see `load_shared`.
        above: files whose base this is.

    Raises:
        SAMError: what `find_checkpoint` and `load_shared` raise; or a decoder's base is not there or has other weights.
    """
    path = find_checkpoint(name)
    if not is_decoder(path):
        return load_shared(path, precision)
    change = load_decoder(path)
    base = next((other for other in available_names() if Path(other).name == change.base_name), None)
    if base is None or name in above:
        raise SAMError(f"{path.name} was made for {change.base_name}, which is not in models/sams: put it there.")
    return with_decoder(load_named(base, precision, (*above, name)), change, path)


def find_checkpoint(name: str) -> Path:
    """The file of that name, fetched if it is known and absent; a user's own file comes before a bundled one.

    Raises:
        SAMError: there is no such file, or it could not be fetched.
    """
    path = checkpoint_path(name)
    if path is not None:
        return path
    if name in SAM_ALIASES:
        return find_checkpoint(SAM_ALIASES[name])
    if name in BUNDLED:
        return BUNDLED[name]
    if name in KNOWN:
        return fetch(KNOWN[name].file, sams_folders())
    raise SAMError(
        f"there is no checkpoint {name!r} in {', '.join(map(str, sams_folders()))}: put it there, or choose another one."
    )

"""Load SAM Model."""

from pathlib import Path
from typing import Any

from ..sam import PRECISIONS, Precision, SAMError, SAMModel, is_decoder, load_decoder, load_shared, with_decoder
from ..sam.weights.download import fetch
from ..sam.weights.files import checkpoint_files, checkpoint_stamp, shard_group
from ..sam.weights.hub import fetch_from_hub
from ..sam.weights.registry import BUNDLED, KNOWN
from ..sam.weights.safetensors_file import read_metadata
from ..utils.comfy import checkpoint_link, checkpoint_names, checkpoint_path, sams_folders
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
        """A checkpoint with a file that was replaced on disk is loaded anew, and so is a trained decoder when the model that it
        was made for was replaced. Linked inputs are None; nothing may raise here.
        """
        try:
            paths = local_paths(model_name) if model_name else []
            return " ".join(str(checkpoint_stamp(path)) for path in paths)
        except (SAMError, OSError):
            return ""

    @classmethod
    def VALIDATE_INPUTS(cls, model_name: str | None = None) -> bool | str:
        """The list, what other packs' loaders call the same checkpoints, and names of files that the list shows otherwise: a
        shard, or a path with another system's separator.
        """
        listed = is_listed(model_name, available_names(), SAM_ALIASES)
        return True if listed is not True and isinstance(model_name, str) and local_path(model_name) else listed

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
    """What the loader lists: files that are there, then known checkpoints; the same names before and after a download.

    A checkpoint in shards is listed by its first shard. Of a preset of keras-hub, the file that holds all weights is listed.
    """
    present, groups = [], set()
    files = checkpoint_names()
    for name in files:
        group = shard_group(name)
        is_task = name.endswith("task.weights.h5") and name.replace("task.weights.h5", "model.weights.h5") in files
        if group not in groups and not is_task:
            present.append(name)
        groups.update([group] if group else [])
    return present + [name for name in (*BUNDLED, *KNOWN) if name not in present]


def label_of(name: str) -> str:
    """What the list in the browser shows for a name: with the size, and whether a run downloads it. Values stay names."""
    path = checkpoint_path(name) or BUNDLED.get(name)
    if path is None and name not in KNOWN:  # a link to nothing, or it has just gone
        return f"{name} (missing)"
    size = _size_on_disk(path) if path else KNOWN[name].file.size
    notes = [f"{size / 1e6:,.0f} MB"] if size else []
    return f"{name} ({', '.join(notes + ['not downloaded'] * (path is None))})" if notes or path is None else name


def _size_on_disk(path: Path) -> int | None:
    """Of a checkpoint in shards, all of them."""
    try:
        files = checkpoint_files(path) if shard_group(path.name) else [path]
        return sum(file.stat().st_size for file in files)
    except (OSError, SAMError):  # it has just gone, or a shard is missing
        return None


def load_named(name: str, precision: Precision = "auto", above: tuple[Path, ...] = ()) -> SAMModel:
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
    base = _base_of(path)
    if base is None or path in above:
        raise SAMError(f"{path.name} was made for {change.base_name}, which is not in models/sams: put it there.")
    return with_decoder(load_named(base, precision, (*above, path)), change, path)


def _base_of(path: Path) -> str | None:
    """The listed name of the checkpoint that a trained decoder was made for; None for any other file, or where it is gone."""
    wanted = read_metadata(path).get("base_name") if is_decoder(path) else None
    if not isinstance(wanted, str):
        return None
    names = ((name, name.replace("\\", "/").rpartition("/")[2]) for name in available_names())
    group = shard_group(wanted)
    return next((name for name, file in names if file == wanted or (group and shard_group(file) == group)), None)


def local_path(name: str) -> Path | None:
    """The file of a name, where it is on this machine; a user's own file comes before a bundled one."""
    known = SAM_ALIASES.get(name, name)
    return checkpoint_path(name) or (checkpoint_path(known) if known != name else None) or BUNDLED.get(known)


def local_paths(name: str) -> list[Path]:
    """The file of a name, and below a trained decoder the one that it was made for; ends before the first that is not here."""
    paths: list[Path] = []
    wanted: str | None = name
    while wanted is not None:
        path = local_path(wanted)
        if path is None or path in paths:
            break
        paths.append(path)
        wanted = _base_of(path)
    return paths


def missing_base(path: Path) -> str | None:
    """What a trained decoder was made for, where that is not on this machine; None for any other file."""
    if not is_decoder(path):
        return None
    base = _base_of(path)
    return read_metadata(path)["base_name"] if base is None or local_path(base) is None else None


def find_checkpoint(name: str) -> Path:
    """The file of that name, fetched if it is known and absent; a user's own file comes before a bundled one.

    Raises:
        SAMError: there is no such file, or it could not be fetched.
    """
    path = local_path(name)
    if path is not None:
        return path
    known = KNOWN.get(SAM_ALIASES.get(name, name))
    if known is not None:
        return fetch(known.file, sams_folders())
    link = checkpoint_link(name) if name in checkpoint_names() else None
    if link is not None:
        raise SAMError(f"{name!r} is a link to {link}, and nothing is there: put the file there, or remove the link.")
    raise SAMError(
        f"there is no checkpoint {name!r} in {', '.join(map(str, sams_folders()))}: put it there, or choose another one."
    )

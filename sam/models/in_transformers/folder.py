"""Models that transformers runs, each a folder of files; transformers is imported only when one is loaded."""

import itertools
import json
import logging
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from ...errors import SAMError
from ...weights.checkpoint_reader import file_stamp, files_of_folder

log = logging.getLogger("samkit")

# Which of them an incomplete or damaged folder raises differs between versions of transformers.
_LOADING_FAILURES = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, SafetensorError)


@dataclass(frozen=True, eq=False)
class FolderModel:
    """A model and what prepares its inputs. A subclass says which: see the class attributes.

    Attributes:
        network: transformers' class of the name `NETWORK`.
        processor: transformers' class of the name `PROCESSOR`.
        folder: where both were loaded from.
        MODEL_TYPE: of `config.json`.
        FILES: what the folder needs besides weights; of each row one.
        PURPOSE: what needs it, as the subject of a sentence.
    """

    network: nn.Module
    processor: Any
    folder: Path

    MODEL_TYPE: ClassVar[str]
    NETWORK: ClassVar[str]
    PROCESSOR: ClassVar[str]
    FILES: ClassVar[tuple[tuple[str, ...], ...]]
    PURPOSE: ClassVar[str]

    @classmethod
    def needed(cls) -> str:
        """The files that a folder needs, for messages."""
        return f"{', '.join(' or '.join(names) for names in cls.FILES)}, and weights such as model.safetensors"

    @classmethod
    def is_complete(cls, folder: Path) -> bool:
        """Whether all is there that loading needs."""
        has_files = all(any((folder / name).is_file() for name in names) for names in cls.FILES)
        return has_files and any(folder.glob("*.safetensors"))


Model = TypeVar("Model", bound=FolderModel)
_loaded: weakref.WeakValueDictionary[tuple[Any, ...], FolderModel] = weakref.WeakValueDictionary()
_turn = threading.Lock()


def load_folder(kind: type[Model], folder: Path) -> Model:
    """Load a model on the CPU, or the one that is loaded from there already, for as long as it is in use.

    Args:
        kind: of the model.
        folder: transformers' form: `config.json`, safetensors weights and what else `kind.FILES` lists.

    Raises:
        SAMError: transformers is absent, the folder is incomplete or damaged, or what it contains is of another kind.
    """
    transformers = _transformers(kind)
    _check_kind(kind, folder)
    if not kind.is_complete(folder):  # transformers 5 would make up a tokenizer without words
        raise SAMError(f"the model in {folder} is not complete: it needs {kind.needed()}.")
    with _turn:
        key = (kind, folder, *((path.name, file_stamp(path)) for path in files_of_folder(folder)))
        model = _loaded.get(key)
        if model is None:
            model = _loaded[key] = _load(transformers, kind, folder)
        return model


def _transformers(kind: type[FolderModel]) -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise SAMError(
            f'{kind.PURPOSE} needs transformers, which is not installed here: pip install "transformers>=4.50" '
            f"with the Python that runs this. ({error})"
        ) from error
    return transformers


def _check_kind(kind: type[FolderModel], folder: Path) -> None:
    """transformers itself would fill a model of another kind with random weights, and warn."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise SAMError(
            f"{folder} does not hold a model in transformers' format: its config.json cannot be read. ({error})"
        ) from error
    if found != kind.MODEL_TYPE:
        raise SAMError(f"{folder.name} is a model of type {found!r}: it must be {kind.MODEL_TYPE!r}.")


def _load(transformers: ModuleType, kind: type[Model], folder: Path) -> Model:
    try:
        # ComfyUI runs nodes in inference mode; weights made there could not be moved or used outside it.
        with torch.inference_mode(False), torch.no_grad():
            network, report = getattr(transformers, kind.NETWORK).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            processor = getattr(transformers, kind.PROCESSOR).from_pretrained(folder, local_files_only=True)
    except _LOADING_FAILURES as error:
        raise SAMError(f"{folder.name} was not loaded from {folder}: {_first_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise SAMError(
            f"{folder.name} was not loaded: tensors are missing from its weights ({len(missing)}, the first is {missing[0]})."
        )
    log.info("loaded %s with transformers %s", folder.name, transformers.__version__)
    return kind(_owned(network.float().eval().requires_grad_(False)), processor, folder)


def _owned(network: nn.Module) -> nn.Module:
    """The network with weights of its own: transformers' are views of the mapped file, and a file that is cut then ends the
    process (SIGBUS), or one that is overwritten changes the answers.
    """
    with torch.inference_mode(False), torch.no_grad():
        for tensor in itertools.chain(network.parameters(), network.buffers()):
            tensor.data = tensor.data.clone()
    return network


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

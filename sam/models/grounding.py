"""Grounding DINO, which finds objects by words: loaded through transformers, which is imported only when it is needed.

"Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", arXiv 2303.05499.
"""

import itertools
import json
import logging
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ..errors import SAMError

log = logging.getLogger("samkit")

MODEL_TYPE = "grounding-dino"
# Of each row one is needed; transformers 5 writes the image settings into processor_config.json.
_FILES = (("config.json",), ("preprocessor_config.json", "processor_config.json"), ("tokenizer.json", "vocab.txt"))
NEEDED = f"{', '.join(' or '.join(names) for names in _FILES)}, and weights such as model.safetensors"
# Which of them an incomplete or damaged folder raises differs between versions of transformers.
_LOADING_FAILURES = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, SafetensorError)


@dataclass(frozen=True, eq=False)
class GroundingModel:
    """A Grounding DINO and what prepares its inputs.

    Attributes:
        network: transformers' `GroundingDinoForObjectDetection`.
        processor: transformers' `GroundingDinoProcessor`.
        folder: where both were loaded from.
    """

    network: nn.Module
    processor: Any
    folder: Path


_loaded: weakref.WeakValueDictionary[tuple[Any, ...], GroundingModel] = weakref.WeakValueDictionary()
_turn = threading.Lock()


def load_grounding(folder: Path) -> GroundingModel:
    """Load a Grounding DINO on the CPU, or the one that is loaded from there already, for as long as it is in use.

    Args:
        folder: transformers' form: `config.json`, safetensors weights, `preprocessor_config.json` and a tokenizer.

    Raises:
        SAMError: transformers is absent, the folder is incomplete or damaged, or what it contains is not a Grounding DINO.
    """
    transformers = _transformers()
    _check_kind(folder)
    if not is_complete(folder):  # transformers 5 would make up a tokenizer without words
        raise SAMError(f"the model in {folder} is not complete: it needs {NEEDED}.")
    with _turn:
        key = folder_state(folder)
        model = _loaded.get(key)
        if model is None:
            model = _loaded[key] = _load(transformers, folder)
        return model


def is_complete(folder: Path) -> bool:
    """Whether all is there that loading needs."""
    has_files = all(any((folder / name).is_file() for name in names) for names in _FILES)
    return has_files and any(folder.glob("*.safetensors"))


def folder_state(folder: Path) -> tuple[Any, ...]:
    """Changes when a file in the folder does."""
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return str(folder), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise SAMError(
            'Finding objects by words needs transformers, which is not installed here: pip install "transformers>=4.50" '
            f"with the Python that runs this. ({error})"
        ) from error
    return transformers


def _check_kind(folder: Path) -> None:
    """transformers itself would fill a model of another kind with random weights, and warn."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise SAMError(
            f"{folder} does not hold a model in transformers' format: its config.json cannot be read. ({error})"
        ) from error
    if kind != MODEL_TYPE:
        raise SAMError(f"{folder.name} is a model of type {kind!r}: it must be {MODEL_TYPE!r}.")


def _load(transformers: ModuleType, folder: Path) -> GroundingModel:
    try:
        # ComfyUI runs nodes in inference mode; weights made there could not be moved or used outside it.
        with torch.inference_mode(False), torch.no_grad():
            network, report = transformers.GroundingDinoForObjectDetection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            processor = transformers.GroundingDinoProcessor.from_pretrained(folder, local_files_only=True)
    except _LOADING_FAILURES as error:
        raise SAMError(f"{folder.name} was not loaded from {folder}: {_first_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise SAMError(
            f"{folder.name} was not loaded: tensors are missing from its weights ({len(missing)}, the first is {missing[0]})."
        )
    log.info("loaded %s with transformers %s", folder.name, transformers.__version__)
    return GroundingModel(_owned(network.float().eval().requires_grad_(False)), processor, folder)


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

"""What was taught, as `.safetensors` files: written whole or not at all, read with every doubt."""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ...utils.files import write_whole
from ..errors import SAMError
from ..weights.safetensors_file import read_metadata, read_with_metadata
from .base import Segmenter
from .concept import Concept, name_of
from .retrained import Retrained, retrained_from

_KIND = "samkit"
CONCEPT = "concept-1"
DECODER, REPLACING = "decoder-2", "decoder-1"
"""A decoder beside the model's own, and one in its place, which earlier versions wrote."""
_MOST_BYTES = 1 << 30


def save_concept(concept: Concept, path: Path) -> None:
    """Write a concept.

    Raises:
        SAMError: it has no tokens, since it did not help; or the file cannot be written.
    """
    if not isinstance(concept, Concept):
        raise SAMError(f"concept is a {type(concept).__name__}, not a concept. Connect SAM Teach.")
    if not len(concept.tokens):
        raise SAMError("There is nothing to save: teaching did not improve the held-out masks, so the concept is empty.")
    write(path, CONCEPT, {"tokens": concept.tokens}, concept.base, concept.base_name)


def load_concept(path: Path) -> Concept:
    """Read a concept.

    Raises:
        SAMError: there is no such file, or it is damaged, or not a concept.
    """
    tensors, metadata = read(path, (CONCEPT,), "a concept of SAM Teach")
    tokens = tensors.get("tokens")
    if tokens is None or tokens.ndim != 2 or tokens.dtype != torch.float32 or not len(tokens):
        raise SAMError(f"{path.name} was not loaded: it has no learned tokens [K, C] of type float32.")
    if not bool(torch.isfinite(tokens).all()):
        raise SAMError(f"{path.name} was not loaded: its tokens have values that are NaN or infinite.")
    return Concept(tokens, metadata["base"], metadata["base_name"])


def save_decoder(model: Segmenter, path: Path) -> None:
    """Write the trained decoder of a model, and what it was made for.

    Raises:
        SAMError: the model's decoder was not trained here; or the file cannot be written.
    """
    change = retrained_from(model)
    if change is None:
        raise SAMError(f"There is nothing to save: {name_of(model)} has no trained decoder. Connect SAM Train Decoder.")
    write(path, REPLACING if change.replaces else DECODER, dict(change.weights), change.base, change.base_name)


def base_of_decoder(path: Path) -> str | None:
    """The name of the file that a trained decoder was made for, empty where it does not say; None for any other file."""
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    return str(metadata.get("base_name", "")) if metadata.get(_KIND) in (DECODER, REPLACING) else None


def load_decoder(path: Path) -> Retrained:
    """Read a trained decoder, for `with_decoder`.

    Raises:
        SAMError: there is no such file, or it is damaged, or not a trained decoder.
    """
    tensors, metadata = read(path, (DECODER, REPLACING), "a decoder of SAM Train Decoder")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise SAMError(f"{path.name} was not loaded: {name} has values that are NaN, infinite or not floats.")
    return Retrained(tensors, metadata["base"], metadata["base_name"], metadata[_KIND] == REPLACING)


def write(path: Path, kind: str, tensors: dict[str, Tensor], base: str, base_name: str) -> None:
    """Write tensors, and what they were made for, to a file that appears when it is complete.

    Raises:
        SAMError: the file cannot be written.
    """
    metadata = {_KIND: kind, "base": base, "base_name": base_name}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    write_whole(path, content)


def read(path: Path, kinds: tuple[str, ...], what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `write` has written.

    Raises:
        SAMError: there is no such file, or it is damaged, too large, or of another kind.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > _MOST_BYTES:
                raise SAMError(f"{path.name} was not loaded: {size / 1e9:.0f} GB is too large for {what}.")
            tensors, metadata = read_with_metadata(file, path.name)
    except OSError as error:
        raise SAMError(f"{path.name} cannot be read: {error.strerror}.") from error
    if metadata.get(_KIND) not in kinds or not {"base", "base_name"} <= metadata.keys():
        raise SAMError(f"{path.name} was not loaded: it is not {what}.")
    return tensors, metadata

"""SAMEmbedding <-> one `.safetensors` file: embedded on one machine, prompted on another."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from torch import Tensor

from ...utils.files import whole
from ..errors import SAMError
from ..models.features import IMAGE
from ..store.embedding import SAMEmbedding, knows_its_image
from ..weights.limits import shortened
from ..weights.safetensors_file import read_with_metadata

_FORMAT = "samkit embedding 1"
_MOST_MAPS, _MOST_PIXELS, _MOST_LETTERS = 16, 1 << 20, 200


def save_embedding(embedding: np.ndarray, path: Path) -> None:
    """Write an embedding with all its maps, sizes and identities; the file is there whole or not at all.

    Args:
        embedding: of this pack.
        path: of the file, in a folder that exists.

    Raises:
        SAMError: an array of another pack, which lacks what there is to store, or a file that cannot be written.
    """
    if not knows_its_image(embedding):
        raise SAMError("This embedding comes from another pack and lacks its image's size. Use this pack's Get SAM Embedding.")
    values = {"original_size": embedding.original_size, "input_size": embedding.input_size}
    values |= {"encoder_identity": embedding.encoder_identity, "image_keys": embedding.image_keys}
    metadata = {"format": _FORMAT, **{name: json.dumps(value) for name, value in values.items()}}
    maps = {IMAGE: embedding.view(np.ndarray), **embedding.maps}
    with whole(path) as part:
        save_file({name: np.ascontiguousarray(one, "<f4") for name, one in maps.items()}, part, metadata)


def load_embedding(path: Path) -> SAMEmbedding:
    """Read what `save_embedding` wrote; whose model made it is checked when it is decoded.

    Raises:
        SAMError: the file is missing, truncated, damaged, or not such a file.
    """
    try:
        with path.open("rb") as file:
            tensors, metadata = read_with_metadata(file, path.name)
    except OSError as error:
        raise SAMError(f"{path.name} cannot be read: {error.strerror}.") from error
    if metadata.get("format") != _FORMAT:
        raise SAMError(f"{path.name} is not an embedding that Save SAM Embedding has written.")
    try:
        known = {name: json.loads(metadata[name]) for name in ("original_size", "input_size", "encoder_identity", "image_keys")}
        return _checked(tensors, **known)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SAMError(f"{path.name} is a damaged embedding: {shortened(str(error))}. Save it again.") from error


def _checked(
    tensors: dict[str, Tensor], original_size: Any, input_size: Any, encoder_identity: Any, image_keys: Any
) -> SAMEmbedding:
    """The embedding of a file, each of its parts checked; ValueError says which one is wrong."""
    maps = {name: tensor.numpy() for name, tensor in tensors.items()}
    frames = len(maps[IMAGE])
    for name, values in maps.items():
        if values.dtype != np.float32 or values.ndim != 4 or len(values) != frames or not np.isfinite(values).all():
            raise ValueError(f"{name} has another shape or type, or values that are not finite")
    if len(maps) > _MOST_MAPS or not all(map(_is_size, (original_size, input_size))):
        raise ValueError("its sizes are wrong")
    if not isinstance(image_keys, list) or len(image_keys) != frames or not all(map(_is_name, (encoder_identity, *image_keys))):
        raise ValueError("it does not say what its images or its model are")
    values = maps.pop(IMAGE)
    return SAMEmbedding(values, original_size, input_size, encoder_identity, image_keys, maps)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and 0 < side <= _MOST_PIXELS for side in value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_LETTERS and value.isprintable()

"""SAMEmbedding: the image encoder's output, an ndarray that carries where it came from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...utils.text import shown
from ..errors import SAMError
from ..geometry import Size


class SAMEmbedding(np.ndarray):
    """Image embeddings, float32 `[B, C, h, w]`, C-contiguous, with what a decoder needs to know about the images.

    It is an ndarray, so every pack that takes the Art Venture SAM_EMBEDDING takes it. Copies, slices along B and pickles
    keep the attributes; a result of arithmetic is a plain ndarray, since it is no longer the embedding of the images.

    Attributes:
        original_size: (H, W) of the images.
        input_size: (h, w) of the resized image inside the model's square input.
        encoder_identity: content hash of the encoder weights that made it.
        image_keys: content hash of each image, B of them.
        maps: further feature maps by name, float32 `[B, C', h', w']`: SAM-HQ's `fine` features, SAM 2's finer levels.
    """

    original_size: Size
    input_size: Size
    encoder_identity: str
    image_keys: tuple[str, ...]
    maps: dict[str, np.ndarray]

    def __new__(
        cls,
        values: np.ndarray,
        original_size: Size,
        input_size: Size,
        encoder_identity: str,
        image_keys: Sequence[str],
        maps: Mapping[str, np.ndarray] | None = None,
    ) -> "SAMEmbedding":
        """Wrap `values` `[B, C, h, w]`; see the class for the rest."""
        embedding = np.ascontiguousarray(values, dtype=np.float32).view(cls)
        embedding.original_size = (int(original_size[0]), int(original_size[1]))
        embedding.input_size = (int(input_size[0]), int(input_size[1]))
        embedding.encoder_identity = encoder_identity
        embedding.image_keys = tuple(image_keys)
        embedding.maps = dict(maps or {})
        return embedding

    def _like(self, values: np.ndarray, keys: Sequence[str], maps: Mapping[str, np.ndarray]) -> "SAMEmbedding":
        return SAMEmbedding(values, self.original_size, self.input_size, self.encoder_identity, keys, maps)

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __getitem__(self, index: Any) -> Any:
        picked = self.view(np.ndarray)[index]
        along_frames = index if not isinstance(index, tuple) else index[0] if len(index) == 1 else None
        if not knows_its_image(self) or along_frames is None or picked.ndim != 4:
            return picked
        keys = np.array(self.image_keys, dtype=object)[along_frames]
        return self._like(picked, list(keys), {name: values[along_frames] for name, values in self.maps.items()})

    def copy(self, order: str = "C") -> "SAMEmbedding":
        """An independent copy with the same attributes."""
        values = self.view(np.ndarray).copy()
        return self._like(values, self.image_keys, self.maps) if knows_its_image(self) else values

    def __copy__(self) -> "SAMEmbedding":
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> "SAMEmbedding":
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        values = self.view(np.ndarray)
        if not knows_its_image(self):
            return values.__reduce__()
        known = self.original_size, self.input_size, self.encoder_identity, self.image_keys, self.maps
        return SAMEmbedding, (values, *known)


def knows_its_image(embedding: np.ndarray) -> bool:
    """Whether an array is a whole SAMEmbedding, and not another pack's array or a reshaped view of one."""
    return isinstance(embedding, SAMEmbedding) and embedding.ndim == 4 and hasattr(embedding, "image_keys")


def checked_embedding(embedding: Any, name: str = "embedding") -> np.ndarray:
    """Check that what came through a socket has the form of an embedding, and hand it on. Its values are not read.

    Args:
        embedding: SAMEmbedding, or another pack's array float `[B, C, h, w]`.
        name: the input's name, for messages.

    Raises:
        SAMError: it is not an array of that form, or what a SAMEmbedding knows of its images and its maps does not fit it.
    """
    if not isinstance(embedding, np.ndarray) or embedding.ndim != 4 or embedding.dtype.kind != "f" or 0 in embedding.shape[1:]:
        raise SAMError(f"{name} is {shown(embedding)}: it must be an array [B, C, h, w] of floats. Connect Get SAM Embedding.")
    if knows_its_image(embedding) and not _is_whole(embedding):
        raise SAMError(f"{name} is damaged: its maps or its sizes do not fit its images. Run Get SAM Embedding again.")
    return embedding


def _is_whole(embedding: SAMEmbedding) -> bool:
    known = vars(embedding)
    sizes, maps, keys = (known.get("original_size"), known.get("input_size")), known.get("maps"), known.get("image_keys")
    return (
        all(isinstance(size, tuple) and len(size) == 2 and min(size) > 0 for size in sizes)
        and isinstance(known.get("encoder_identity"), str)
        and isinstance(keys, tuple)
        and len(keys) == len(embedding)
        and all(isinstance(key, str) for key in keys)
        and isinstance(maps, dict)
        and all(_is_map(one, len(embedding)) for one in maps.values())
    )


def _is_map(values: Any, frames: int) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim == 4 and len(values) == frames

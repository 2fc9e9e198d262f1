"""Get SAM Embedding, and SAM Embedding to Image."""

from typing import Any

import numpy as np
from torch import Tensor

from ..sam import DeviceMode, SAMEmbedding, SAMError, Segmenter, encode, knows_its_image
from ..utils.images import frames_to_image
from ..utils.overlay import principal_components
from .common import CATEGORY, DEVICE_MODE_INPUT, SAM_MODEL_INPUT

EMBEDDING_MODES = ("bytes", "pca")


class GetSAMEmbedding:
    """`GetSAMEmbedding`: every frame of an image through the image encoder."""

    DESCRIPTION = (
        "Runs SAM's image encoder, the slow part, once per image. SAM Predict Mask then turns the embedding and any number of "
        "prompts into masks at almost no cost. Embeddings are cached by content: the same image is not encoded twice."
    )
    SEARCH_ALIASES = ["sam", "segment anything", "image embedding", "encode image", "sam encode", "set image"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("SAM_EMBEDDING",)
    RETURN_NAMES = ("sam_embedding",)
    OUTPUT_TOOLTIPS = ("The embeddings [B, C, h, w], one per frame, with the size of the images.",)
    FUNCTION = "get_sam_embedding"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "sam_model": SAM_MODEL_INPUT,
                "image": ("IMAGE", {"tooltip": "The images to encode, every frame of a batch. Alpha is ignored."}),
            },
            "optional": {"device_mode": DEVICE_MODE_INPUT},
        }

    def get_sam_embedding(self, image: Tensor, sam_model: Segmenter, device_mode: DeviceMode = "AUTO") -> tuple[SAMEmbedding]:
        embedding = encode(sam_model, image, device_mode)
        return (embedding if embedding.flags.writeable else embedding.copy(),)  # other packs' nodes may write to it


class SAMEmbeddingToImage:
    """`SAMEmbeddingToImage`: an embedding as an image, to save it as PNG or to view it."""

    DESCRIPTION = (
        "Converts an embedding to an image. bytes: the raw float32 bytes as RGBA pixels, the format of the Art Venture "
        "node. PNG preserves the bytes exactly; a lossy format or premultiplied alpha destroys them. pca: a "
        "visualization in which regions with similar features have similar colors."
    )
    SEARCH_ALIASES = ["sam", "save embedding", "embedding png", "pca", "visualize embedding"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("One image per frame of the embedding: RGBA for bytes, RGB for pca.",)
    FUNCTION = "sam_embedding_to_noise_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "embedding": ("SAM_EMBEDDING", {"tooltip": "An embedding from Get SAM Embedding, or from another pack."})
            },
            "optional": {
                "mode": (
                    list(EMBEDDING_MODES),
                    {
                        "default": "bytes",
                        "tooltip": "bytes: lossless, for saving. pca: the first three principal components as colors.",
                    },
                )
            },
        }

    def sam_embedding_to_noise_image(self, embedding: np.ndarray, mode: str = "bytes") -> tuple[Tensor]:
        if not len(embedding):
            raise SAMError("The embedding has no frames: there is nothing to show.")
        values = np.asarray(embedding, dtype="<f4")
        if mode == "bytes":
            return (frames_to_image([_bytes_as_rgba(frame) for frame in values]),)
        if not np.isfinite(values).all():
            raise SAMError("The embedding has values that are NaN or infinite. Run Get SAM Embedding again.")
        known = knows_its_image(embedding)
        size, inside = (embedding.original_size, embedding.input_size) if known else (None, None)
        return (frames_to_image([principal_components(frame, inside, size) for frame in values]),)


def _bytes_as_rgba(values: np.ndarray) -> np.ndarray:
    """float32 `[C, h, w]` -> uint8 `[h * w / 4, C * 4, 4]`, a float per pixel; stock SAM's is 1024x1024."""
    channels, height, width = values.shape
    wide = channels * 4 if height * width % 4 == 0 else channels
    return np.frombuffer(values.tobytes(), np.uint8).reshape(-1, wide, 4)

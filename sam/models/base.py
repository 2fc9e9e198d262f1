"""The protocol that every promptable model implements; tasks, nodes and the preview know nothing else of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry import Frame, Size
from ..kernels.decoder import Decoded, FastDecoder, Guidance
from ..prompts import PromptTensors

IMAGE = "image"
"""The name of the main feature map, which a SAMEmbedding itself is."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True)
class Features:
    """The feature maps of one image, as a decoder takes them.

    Attributes:
        maps: name to float32 `[C, h, w]`.
        key: content key of the image, under which a decoder may cache what it derives from the maps.
        device: where the decoder runs.
    """

    maps: Mapping[str, np.ndarray]
    key: str
    device: torch.device

    def mirrored(self) -> "Features":
        """The maps of the same image from right to left, nearly: encoders are not symmetric."""
        return Features({name: values[..., ::-1].copy() for name, values in self.maps.items()}, "", self.device)

    def tensor(self, name: str = IMAGE) -> Tensor:
        """A map `[C, h, w]` on the device; a read-only array is copied, since torch has no read-only tensors."""
        values = self.maps[name]
        return torch.as_tensor(values if values.flags.writeable else values.copy(), device=self.device)


class Wanted(NamedTuple):
    """What to decode of each prompt.

    Attributes:
        several: SAM's candidates; otherwise the single mask.
        above: leave out prompts of which no candidate's predicted IoU exceeds this; None leaves out none.
        hq: with SAM-HQ, its fine masks; otherwise plain SAM's. Ignored by other models.
        guidance: of an example, or None.
        concept: learned tokens `[K, C]`, which follow the tokens of every prompt, or None (see `Concept`).
    """

    several: bool
    above: float | None = None
    hq: bool = True
    guidance: Guidance | None = None
    concept: Tensor | None = None


class DecoderParts(NamedTuple):
    """What makes masks of feature maps and prompts, for training.

    Attributes:
        prompts: the prompt encoder.
        decoder: the mask decoder.
        kind: the plan that runs the decoder; where gradients are on, so that they flow.
        maps: names of the feature maps that `kind.share` takes, the main one first.
    """

    prompts: nn.Module
    decoder: nn.Module
    kind: type[FastDecoder]
    maps: tuple[str, ...]


def with_concept(sparse: Tensor, concept: Tensor | None) -> Tensor:
    """Prompt tokens `[n, K, C]` and after them those of a concept `[L, C]`; the very same tokens where there is none."""
    return sparse if concept is None else torch.cat([sparse, concept.to(sparse).expand(len(sparse), -1, -1)], 1)


class Segmenter(Protocol):
    """A promptable model: images to feature maps, feature maps and prompts to mask logits."""

    @property
    def family(self) -> str:
        """What it is, for messages: "SAM", "SAM-HQ"."""
        ...

    @property
    def network(self) -> nn.Module:
        """The module that placement moves between devices."""
        ...

    @property
    def precision(self) -> Precision:
        """What the encoder computes in, see `placement.precision`; decoders always compute in float32."""
        ...

    @property
    def mask_threshold(self) -> float:
        """The logit above which a pixel is in a mask."""
        ...

    @property
    def map_shapes(self) -> Mapping[str, tuple[int, int, int]]:
        """(C, h, w) of each feature map by name; `IMAGE` is always among them."""
        ...

    @property
    def encoder_identity(self) -> str:
        """Content hash of the weights that make feature maps; embeddings are cached and checked by it."""
        ...

    @property
    def decoder_identity(self) -> str:
        """Content hash of the weights that make masks."""
        ...

    @property
    def tracks(self) -> bool:
        """Whether it can follow objects through a film by a memory, see `tasks.track`."""
        ...

    def frame(self, original: Size) -> Frame:
        """How an image (H, W) lies in the model's input."""
        ...

    def features(self, pixels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Encode images.

        Args:
            pixels: uint8 `[b, 3, h, w]` on the network's device, resized to `frame(...).resized`.
            dtype: what to compute in.

        Returns:
            Maps float32 `[b, C, h, w]` by name.
        """
        ...

    def decode(self, features: Features, prompts: PromptTensors, wanted: Wanted) -> Decoded:
        """Mask logits and predicted IoUs of n prompts on one image; the W masks of a prompt are those `wanted`.

        Raises:
            SAMError: the maps lack what the model needs, or it does not support the guidance.
        """
        ...

    def decoder_parts(self) -> DecoderParts:
        """What makes masks, for training; the modules are the model's own.

        Raises:
            SAMError: the model's mask decoder is not one that this pack can train.
        """
        ...

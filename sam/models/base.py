"""The protocol that every promptable model implements; tasks, nodes and the preview know nothing else of a model."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ..errors import SAMError
from ..geometry import Geometry, Size
from ..kernels.decoder import Decoded, FastDecoder, Guidance
from ..prompts import PromptTensors
from .features import Features

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


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
    """A promptable model: images to feature maps, feature maps and prompts to mask logits.

    Optional members, which `optional_member` reads:
        decoder_parts(): what makes masks, see `DecoderParts`, without which a model cannot be taught. Raises SAMError where its
            mask decoder is not one that this pack can train.
        working_bytes(dtype): what the encoder needs on a GPU beside its weights, in bytes: for any number of images, and for
            each.
        tracks: whether it can follow objects through a film by a memory, see `tasks.track`.
        takes_masks: whether a mask may be a prompt; where it is False, `decode` raises SAMError for one.
        pred_iou_thresh: what the automatic mask generator of its own family keeps by default, 0..1.

    And of its `network`:
        lowered_weights(): the tensors that are only used in the encoder's type; on a GPU they are loaded in it.
        owner(): ComfyUI's handle on a model that shares its weights with this one, or None.
    """

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
        """(C, h, w) of each feature map by name; `features.IMAGE` is always among them."""
        ...

    @property
    def encoder_identity(self) -> str:
        """Content hash of the weights that make feature maps; embeddings are cached and checked by it."""
        ...

    @property
    def decoder_identity(self) -> str:
        """Content hash of the weights that make masks."""
        ...

    def geometry(self, original: Size) -> Geometry:
        """How an image (H, W) lies in the model's input."""
        ...

    def features(self, pixels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Encode images.

        Args:
            pixels: uint8 `[b, 3, h, w]` on the network's device, resized to `geometry(...).resized`.
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


Member: TypeAlias = Literal[
    "decoder_parts", "working_bytes", "pred_iou_thresh", "takes_masks", "tracks", "lowered_weights", "owner"
]


def optional_member(owner: Segmenter | nn.Module, name: Member) -> Any:
    """An optional member of a `Segmenter` or its network; None where it has none."""
    return getattr(owner, name, None)


def checked_model(model: Segmenter) -> Segmenter:
    """A model that a caller from Python gives, who may have forgotten what a node's socket does for everybody.

    Raises:
        SAMError: it does not follow the protocol.
    """
    if not hasattr(type(model), "encoder_identity"):
        raise SAMError(f"model is a {type(model).__name__}: pass as_segmenter(model), which makes another pack's model usable.")
    return model


def identity_of(model: Segmenter) -> str:
    """Content hash of a model's weights, the same wherever they are and whatever file they came from.

    It is computed once, and again when the weights have been changed since (see `weights_changed`).

    Raises:
        SAMError: a weight is NaN or infinite.
    """
    return f"{model.encoder_identity}-{model.decoder_identity}"

"""Segment Anything (arXiv 2304.02643) behind the protocol: segment_anything's `Sam`, SAM-HQ and MobileSAM."""

import threading
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, Sam
from torch import Tensor, nn

from ..errors import SAMError
from ..geometry import Geometry, Size, fit_long_side
from ..kernels import encoder as fast_encoder
from ..kernels.decoder import Decoded, FastDecoder
from ..kernels.linear import AtenLinear, cpu_linear
from ..kernels.plans import Plans
from ..kernels.self_test import decoder_works_on, encoder_works_on
from ..prompts import PromptTensors
from ..store.identity import Identities
from .base import DecoderParts, Precision, Wanted, with_concept
from .features import IMAGE, Features
from .hq import FINE, FastHQDecoder, HQMaskDecoder
from .taught import combined, of_taught, taught_decoders, taught_parts
from .tiny_vit import TinyViT, run_tiny_vit

_DECODERS: dict[type, type[FastDecoder]] = {MaskDecoder: FastDecoder, HQMaskDecoder: FastHQDecoder}
_decoder_plans: dict[type, Plans[FastDecoder]] = {kind: Plans() for kind in _DECODERS.values()}
_identities = Identities()
_TINY_BYTES, _STOCK_BYTES = 1 << 30, 3 << 30  # for an image of 1024x1024


class SAMFamily:
    """The protocol over a `Sam`: `network` is one, and `precision` is its own or the caller's."""

    network: Sam
    precision: Precision

    @property
    def family(self) -> str:
        """Told apart by the parts that the model has."""
        if self.is_hq:
            return "Light HQ-SAM" if self.is_tiny else "SAM-HQ"
        return "MobileSAM" if self.is_tiny else "SAM"

    @property
    def is_hq(self) -> bool:
        """Whether the mask decoder is SAM-HQ's."""
        return isinstance(self.network.mask_decoder, HQMaskDecoder)

    @property
    def is_tiny(self) -> bool:
        """Whether the image encoder is MobileSAM's."""
        return isinstance(self.network.image_encoder, TinyViT)

    @property
    def map_shapes(self) -> dict[str, tuple[int, int, int]]:
        """The embedding, and SAM-HQ's fine features."""
        prompts = self.network.prompt_encoder
        (height, width), channels = prompts.image_embedding_size, prompts.embed_dim
        shapes = {IMAGE: (channels, height, width)}
        return shapes | ({FINE: (channels // 8, 4 * height, 4 * width)} if self.is_hq else {})

    @property
    def encoder_identity(self) -> str:
        """Hash of the image encoder, and of the layers that make SAM-HQ's fine features."""
        parts = {"image_encoder": self.network.image_encoder}
        if self.is_hq:
            decoder = self.network.mask_decoder
            parts |= {"embedding_encoder": decoder.embedding_encoder, "compress_vit_feat": decoder.compress_vit_feat}
        return _identities.of(self.network.image_encoder, parts, self._label)

    @property
    def decoder_identity(self) -> str:
        """Hash of the prompt encoder and the mask decoders."""
        parts = {"prompt_encoder": self.network.prompt_encoder, "mask_decoder": self.network.mask_decoder}
        return _identities.of(self.network.mask_decoder, parts | dict(taught_parts(self.network)), self._label)

    @property
    def _label(self) -> str:
        """What messages call the model."""
        checkpoint = getattr(self.network, "checkpoint", None)
        return f"the weights of this {self.family} model" if checkpoint is None else checkpoint.name

    def geometry(self, original: Size) -> Geometry:
        """SAM fits the long side and pads bottom and right."""
        side = self.network.image_encoder.img_size
        return Geometry(original, fit_long_side(original, side), side, self.network.prompt_encoder.mask_input_size, True)

    def working_bytes(self, dtype: torch.dtype) -> tuple[int, int]:
        """About what the image encoder needs on a GPU beside the weights: for any number of images, and for each."""
        encoder = self.network.image_encoder
        if fast_encoder.supports(encoder):
            return fast_encoder.working_bytes(encoder, dtype)
        return 0, _TINY_BYTES if self.is_tiny else _STOCK_BYTES

    @torch.no_grad()
    def features(self, pixels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Segmenter.features`: normalised, padded, encoded."""
        values, early = run_encoder(self.network.image_encoder, self.network.preprocess(pixels), dtype, self.is_hq)
        if not self.is_hq:
            return {IMAGE: values}
        return {IMAGE: values, FINE: self.network.mask_decoder.fine_features(values, early)}

    @torch.no_grad()
    def decode(self, features: Features, prompts: PromptTensors, wanted: Wanted) -> Decoded:
        """See `Segmenter.decode`."""
        if wanted.hq and self.is_hq and FINE not in features.maps:
            raise SAMError(
                "The embedding lacks the fine features that SAM-HQ needs. Use this pack's Get SAM Embedding, or turn hq off."
            )
        decoders = [self.network.mask_decoder, *taught_decoders(self.network)]
        found = self._decode_by(decoders, 0, features, prompts, wanted)
        asked = wanted.concept is None and (wanted.hq or not self.is_hq)
        for index in range(1, len(decoders) if asked else 0):
            taught = self._decode_by(decoders, index, features, prompts, of_taught(wanted))
            found = combined(found, taught, wanted.above)
        return found

    def _decode_by(
        self, decoders: list[nn.Module], index: int, features: Features, prompts: PromptTensors, wanted: Wanted
    ) -> Decoded:
        """By one of the network's mask decoders."""
        decoder, hq = decoders[index], wanted.hq and self.is_hq
        sparse, dense = self.network.prompt_encoder(points=prompts.points, boxes=prompts.boxes, masks=prompts.masks)
        sparse = with_concept(sparse, wanted.concept)
        tokens = slice(1, None) if wanted.several and decoder.num_mask_tokens > 1 else slice(0, 1)
        if not supports_decoder(self.network):
            return self._decode_slowly(decoder, features, sparse, dense, tokens, wanted)
        plan = decoder_plan(decoder, self.network.prompt_encoder, features.device, hq)
        key, names = (self.decoder_identity, index, hq), (IMAGE, FINE) if hq else (IMAGE,)
        shared = features.shared(names, key, lambda maps: plan.share(maps[0], tuple(maps[1:])))
        return plan(shared, sparse, None if prompts.masks is None else dense, tokens, wanted.above, wanted.guidance)

    def decoder_parts(self) -> DecoderParts:
        """See `DecoderParts`; of SAM-HQ, what makes its fine masks."""
        prompts, decoder = self.network.prompt_encoder, self.network.mask_decoder
        if type(decoder) not in _DECODERS:
            raise SAMError(f"This mask decoder ({type(decoder).__name__}) cannot be trained. Use a model from Load SAM Model.")
        return DecoderParts(prompts, decoder, _DECODERS[type(decoder)], (IMAGE, FINE) if self.is_hq else (IMAGE,))

    def _decode_slowly(
        self, decoder: nn.Module, features: Features, sparse: Tensor, dense: Tensor, tokens: slice, wanted: Wanted
    ) -> Decoded:
        """By the decoder's own forward, where the fast one does not know it, or is wrong on this device."""
        if wanted.guidance is not None:
            raise SAMError(
                f"SAM Personalize does not support this mask decoder "
                f"({type(decoder).__name__}). Use a model from Load SAM Model."
            )
        places = self.network.prompt_encoder.get_dense_pe()
        given = features.tensor()[None], places, sparse, dense
        is_fine = wanted.hq and isinstance(decoder, HQMaskDecoder)
        logits, scores = decoder.predict_fine_masks(*given, features.tensor(FINE)) if is_fine else decoder.predict_masks(*given)
        logits, scores = logits[:, tokens], scores[:, tokens]
        above = wanted.above
        rows = torch.arange(len(scores), device=scores.device) if above is None else (scores > above).any(1).nonzero()[:, 0]
        return Decoded(logits[rows], scores[rows], rows)


class SAMModel(SAMFamily, Sam):
    """segment_anything's `Sam`, which every pack that takes one accepts, behind the protocol.

    Attributes:
        checkpoint: the file that it was loaded from.
        precision: what the image encoder computes in; prompt encoder and mask decoder stay float32.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: nn.Module,
        mask_decoder: nn.Module,
        checkpoint: Path,
        precision: Precision = "auto",
    ) -> None:
        Sam.__init__(self, image_encoder, prompt_encoder, mask_decoder)
        self.checkpoint = checkpoint
        self.precision = precision

    @property
    def network(self) -> Sam:
        """The module that placement moves: itself."""
        return self

    def lowered_weights(self) -> list[Tensor]:
        """The weights that are only used in the image encoder's type; on a GPU they are loaded in it."""
        return fast_encoder.lowered_weights(self.image_encoder)

    @property
    def identity(self) -> str:
        """Content hash of all weights."""
        return f"{self.encoder_identity}-{self.decoder_identity}"


class ForeignSAM(SAMFamily):
    """Another pack's plain `Sam` behind the protocol; it has no precision of its own and gets float32."""

    def __init__(self, sam: Sam) -> None:
        self.network, self.precision = sam, "fp32"

    @property
    def mask_threshold(self) -> float:
        """The other pack's own."""
        return self.network.mask_threshold


def run_encoder(
    encoder: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32, early: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Image embeddings, by the fast forward where it can run this encoder, else by the encoder's own.

    Args:
        encoder: an image encoder, with its weights on the device of `images`.
        images: float32 `[B, 3, S, S]`, normalised and padded.
        dtype: what to compute in; the residual stream stays float32.
        early: whether the early features are needed too, from which SAM-HQ makes its fine ones.

    Returns:
        Embeddings float32 `[B, C, h, w]`, and the early features float32 `[B, h, w, E]`: the first global block's output, or
        TinyViT's second stage.
    """
    if fast_encoder.supports(encoder) and encoder_works_on(images.device):
        return fast_encoder.plan_for(encoder, images.device, dtype)(images, early)
    if isinstance(encoder, TinyViT):
        return run_tiny_vit(encoder, images, dtype)
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return _run_stock(encoder, images, early)


def _run_stock(encoder: nn.Module, images: Tensor, early: bool) -> tuple[Tensor, Tensor | None]:
    """The encoder's own forward."""
    if not early:
        return encoder(images).float(), None
    seen: list[Tensor] = []
    caller = threading.get_ident()  # another thread may be running the same encoder on another image

    def keep(_: nn.Module, __: object, out: Tensor) -> None:
        """Take the early features as the encoder makes them."""
        if threading.get_ident() == caller:
            seen.append(out.float())

    hook = encoder.blocks[_first_global(encoder)].register_forward_hook(keep)
    try:
        return encoder(images).float(), seen[0]
    finally:
        hook.remove()


def _first_global(encoder: ImageEncoderViT) -> int:
    return next(index for index, block in enumerate(encoder.blocks) if block.window_size == 0)


def supports_decoder(network: Sam) -> bool:
    """Whether the mask decoder is one that the fast decoder can run, where it is."""
    return type(network.mask_decoder) in _DECODERS and decoder_works_on(network.mask_decoder.iou_token.weight.device)


def decoder_plan(decoder: nn.Module, prompts: nn.Module, device: torch.device, hq: bool = True) -> FastDecoder:
    """The plan for the weights of a mask decoder and a prompt encoder, cached until they change or move.

    SAM-HQ keeps SAM's own weights as they were: with `hq` off, a plain decoder on them is plain SAM.
    """
    linear = cpu_linear(torch.float32) if device.type == "cpu" else AtenLinear
    kind = _DECODERS[type(decoder)] if hq else FastDecoder
    return _decoder_plans[kind].get(decoder, (device, linear), lambda: kind(decoder, prompts, linear), also=prompts)

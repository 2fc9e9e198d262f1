"""SAM 2 and 2.1, EdgeTAM, and SAM 3's clicks: an image encoder, SAM's prompts and decoder with two finer maps, and a memory.

"SAM 2: Segment Anything in Images and Videos" (arXiv 2408.00714). The image path is that of sam2's `SAM2ImagePredictor` and of
transformers' `Sam2Model`, the parity reference; it does not touch the memory, which only films need and not every file has.
SAM 3 (arXiv 2511.16719) has the same decoder on another encoder.
"""

import logging
import re
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor, nn

from ....utils.text import counted
from ...errors import SAMError
from ...geometry import Geometry, Size
from ...kernels import hiera as fast_hiera
from ...kernels import repvit as fast_repvit
from ...kernels import vit_det as fast_vit_det
from ...kernels.hiera import FastHiera
from ...kernels.linear import AtenLinear, LinearKind, cpu_linear
from ...kernels.memory_attention import FastMemoryAttention
from ...kernels.plans import Plans
from ...kernels.repvit import FastRepViT
from ...kernels.self_test import works_on
from ...kernels.vit_det import FastViTDet
from ...prompts import PromptTensors
from ...store.identity import Identities
from ..base import DecoderParts, Precision, Wanted, with_concept
from ..features import IMAGE, Features
from ..taught import of_taught, taught_decoders, taught_parts
from .hiera import HieraShape, ImageEncoder, read_hiera
from .mask_decoder import FastSAM2Decoder, SAM2Decoded, SAM2MaskDecoder, SAM2PromptEncoder
from .memory import Memory, build_memory
from .predictor import ForPredictor
from .repvit import BODY, RepViTEncoder, RepViTShape, folded, read_repvit
from .self_test import decoder_error, encoder_error, memory_error, repvit_error, vit_det_error
from .vit_det import ViTDetEncoder, ViTDetShape, is_vit_det, read_vit_det

log = logging.getLogger("samkit")

HIGH_RES = ("high_res_0", "high_res_1")
"""Names of the two finer maps, of strides 4 and 8; Meta's `high_res_feats`."""

_DECODER_HEADS, _DECODER_DEPTH = 8, 2
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_GREY_LEVELS = 255.0
_IMAGES_ALONE = "SAM 3"


class SAM2Model(ForPredictor, nn.Module):
    """A SAM 2 or 2.1 model, EdgeTAM's, or SAM 3's for clicks; see `Segmenter` for what every family does.

    Args:
        shape: of the image encoder.
        decoder: widths of the decoder, see `read_decoder`.
        checkpoint: the file that it was loaded from.
        precision: what the image encoder computes in; prompt encoder and mask decoder stay float32.
        family: "SAM 2.1", "SAM 2", "EdgeTAM" or "SAM 3", for messages.

    Attributes:
        memory: the video part; None where the file has none, or none that is whole.
        memory_fault: why it has none, for messages.
        shared_with: ComfyUI's handle on the model whose weights these are; None where they are its own.
    """

    memory: Memory | None
    shared_with: "weakref.ref[object] | None" = None
    memory_fault = "the file holds an image model alone"
    mask_threshold = 0.0
    pred_iou_thresh = 0.8  # what `SAM2AutomaticMaskGenerator` keeps by default

    def __init__(
        self,
        shape: HieraShape | RepViTShape | ViTDetShape,
        decoder: Mapping[str, int],
        checkpoint: Path,
        precision: Precision = "auto",
        family: str = "SAM 2",
    ) -> None:
        super().__init__()
        self.checkpoint, self.precision, self.family, self.side = checkpoint, precision, family, shape.side
        self.grid = grid = shape.grid
        self.image_encoder = _ENCODERS[type(shape)](shape)
        self.sam_prompt_encoder = SAM2PromptEncoder(
            shape.channels, (grid, grid), (self.side, self.side), decoder["mask_in_chans"]
        )
        self.sam_mask_decoder = _mask_decoder(shape.channels, decoder)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, shape.channels))
        self.memory = None
        channels = shape.channels
        fine, middle = (channels // 8, 4 * grid, 4 * grid), (channels // 4, 2 * grid, 2 * grid)
        self.map_shapes = MappingProxyType({IMAGE: (channels, grid, grid), **dict(zip(HIGH_RES, (fine, middle), strict=True))})

    @property
    def network(self) -> nn.Module:
        """What placement moves between devices: the model itself."""
        return self

    @property
    def memory_identity(self) -> str:
        """Content hash of the memory, which makes tracks together with what the two other identities stand for."""
        return "" if self.memory is None else _identities.of(self.memory, {"memory": self.memory}, self.checkpoint.name)

    @property
    def tracks(self) -> bool:
        """Whether the checkpoint has the memory that follows objects through a film."""
        return self.memory is not None

    def geometry(self, original: Size) -> Geometry:
        """The image is resized to the whole square, whatever its proportions; each axis has a scale of its own."""
        grid = 4 * self.grid
        return Geometry(original, (self.side, self.side), self.side, (grid, grid), through_square=False)

    def owner(self) -> object | None:
        """ComfyUI's handle on the model that shares its weights with this one, while it lives; else None."""
        return None if self.shared_with is None else self.shared_with()

    def lowered_weights(self) -> list[Tensor]:
        """The weights that are only used in the image encoder's type; on a GPU they are loaded in it."""
        return _KINDS[type(self.image_encoder)].lowered(self.image_encoder)

    @property
    def encoder_identity(self) -> str:
        """Hash of the image encoder, and of what else makes the maps: the decoder's first convolutions and `no_mem_embed`."""
        decoder, no_memory = self.sam_mask_decoder, nn.ParameterList([self.no_mem_embed])
        parts = {"image_encoder": self.image_encoder, "conv_s0": decoder.conv_s0, "conv_s1": decoder.conv_s1}
        return _identities.of(self.image_encoder, {**parts, "no_mem_embed": no_memory}, self.checkpoint.name)

    @property
    def decoder_identity(self) -> str:
        """Hash of the prompt encoder and the mask decoders."""
        parts = {"prompt_encoder": self.sam_prompt_encoder, "mask_decoder": self.sam_mask_decoder}
        return _identities.of(self.sam_mask_decoder, parts | dict(taught_parts(self)), self.checkpoint.name)

    @torch.no_grad()
    def features(self, pixels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Segmenter.features`: normalised, encoded."""
        pixels = self._normalised(pixels)
        if works_on(pixels.device, _KINDS[type(self.image_encoder)].error):
            fine, middle, image = self._encoder_plan(dtype)(pixels)
        else:
            own = next(self.image_encoder.parameters()).dtype  # of shared weights; all others are float32
            dtype = dtype if own == torch.float32 else own
            with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype != torch.float32):
                fine, middle, image = (values.float() for values in self.image_encoder(pixels))
            fine, middle = self.sam_mask_decoder.conv_s0(fine), self.sam_mask_decoder.conv_s1(middle)
            image = image + self.no_mem_embed.view(1, -1, 1, 1)
        return {IMAGE: image, HIGH_RES[0]: fine, HIGH_RES[1]: middle}

    @torch.no_grad()
    def decode(self, features: Features, prompts: PromptTensors, wanted: Wanted) -> SAM2Decoded:
        """See `Segmenter.decode`; the single mask gives way to the best candidate where it is not stable.

        Raises:
            SAMError: the embedding lacks the finer maps.
        """
        if not all(name in features.maps for name in HIGH_RES):
            raise SAMError(
                f"The embedding lacks the high-resolution maps that {self.family} needs. Use this pack's Get SAM Embedding."
            )
        decoders = [self.sam_mask_decoder, *taught_decoders(self)]
        found = self._decode_by(decoders, 0, features, prompts, wanted)
        for index in range(1, len(decoders) if wanted.concept is None else 0):
            taught = self._decode_by(decoders, index, features, prompts, of_taught(wanted))
            found = found.combined(taught, wanted.above)
        return found

    def _decode_by(
        self, decoders: list[SAM2MaskDecoder], index: int, features: Features, prompts: PromptTensors, wanted: Wanted
    ) -> SAM2Decoded:
        """By one of the model's mask decoders."""
        sparse, dense = self.sam_prompt_encoder(prompts.points, prompts.boxes, prompts.masks)
        sparse, names, key = with_concept(sparse, wanted.concept), (IMAGE, *HIGH_RES), (self.decoder_identity, index)
        strictly = wanted.concept is not None or index > 0
        if not works_on(features.device, decoder_error):
            if wanted.guidance is not None:
                raise SAMError("SAM Personalize cannot run SAM 2 on this device. Choose device_mode CPU.")
            places, (image, *finer) = self.sam_prompt_encoder.get_dense_pe(), map(features.tensor, names)
            dense = self.sam_prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1) if dense is None else dense
            found = decoders[index].plainly(image, finer, places, sparse, dense)
            return decoders[index].decode_plainly(*found[:3], wanted.several, wanted.above, strictly)
        plan = self._plan_of(decoders[index], features.device)
        shared = features.shared(names, key, lambda maps: plan.share(maps[0], tuple(maps[1:])))
        return plan.decode(shared, sparse, dense, wanted.several, wanted.above, wanted.guidance, strictly)

    def decoder_parts(self) -> DecoderParts:
        """See `DecoderParts`."""
        return DecoderParts(self.sam_prompt_encoder, self.sam_mask_decoder, FastSAM2Decoder, (IMAGE, *HIGH_RES))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.no_mem_embed.device

    def _normalised(self, pixels: Tensor) -> Tensor:
        colours = _KINDS[type(self.image_encoder)].colours
        mean, std = (_GREY_LEVELS * pixels.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in colours)
        return (pixels.float() - mean) / std

    def _encoder_plan(self, dtype: torch.dtype) -> FastHiera | FastRepViT | FastViTDet:
        linear, no_memory = self._linear(dtype), self.no_mem_embed
        finer = (self.sam_mask_decoder.conv_s0, self.sam_mask_decoder.conv_s1)
        key = no_memory.data_ptr(), no_memory._version, dtype, linear

        def make() -> FastHiera | FastRepViT | FastViTDet:
            """The plan for this kind of encoder."""
            kind = _KINDS[type(self.image_encoder)].plan
            return kind(self.image_encoder, finer, no_memory.flatten(), dtype, linear)

        return _encoders.get(self.image_encoder, key, make, also=self.sam_mask_decoder)

    def decoder_plan(self, device: torch.device) -> FastSAM2Decoder | None:
        """The plan that runs the model's own mask decoder; None on a device where it is not right."""
        return self._plan_of(self.sam_mask_decoder, device) if works_on(device, decoder_error) else None

    def memory_plan(self, device: torch.device) -> FastMemoryAttention | None:
        """The plan that runs the model's memory attention on a CPU; None elsewhere, and where it is not right."""
        if self.memory is None or device.type != "cpu" or not works_on(device, memory_error):
            return None
        attention, linear = self.memory.memory_attention, cpu_linear(torch.float32)
        return _memories.get(attention, linear, lambda: FastMemoryAttention(attention, linear))

    def _plan_of(self, decoder: SAM2MaskDecoder, device: torch.device) -> FastSAM2Decoder:
        prompts, linear = self.sam_prompt_encoder, self._linear(torch.float32)
        return _decoders.get(decoder, (device, linear), lambda: FastSAM2Decoder(decoder, prompts, linear), also=prompts)

    def _linear(self, dtype: torch.dtype) -> LinearKind:
        return cpu_linear(dtype) if self.no_mem_embed.device.type == "cpu" else AtenLinear


class _Kind(NamedTuple):
    """How an image encoder runs: its plan, the plan's self-test, the weights it lowers, and the pixels' mean and deviation."""

    plan: type[FastHiera] | type[FastRepViT] | type[FastViTDet]
    error: Callable[[torch.device], float]
    lowered: Callable[[nn.Module], list[Tensor]]
    colours: tuple[tuple[float, ...], tuple[float, ...]]


_KINDS: dict[type, _Kind] = {
    ImageEncoder: _Kind(FastHiera, encoder_error, fast_hiera.lowered_weights, _IMAGENET),
    RepViTEncoder: _Kind(FastRepViT, repvit_error, fast_repvit.lowered_weights, _IMAGENET),
    ViTDetEncoder: _Kind(FastViTDet, vit_det_error, fast_vit_det.lowered_weights, _HALVES),
}
_ENCODERS: dict[type, type[nn.Module]] = {
    HieraShape: ImageEncoder,
    RepViTShape: RepViTEncoder,
    ViTDetShape: ViTDetEncoder,
}
_identities = Identities()
_encoders: Plans[FastHiera | FastRepViT | FastViTDet] = Plans()
_decoders: Plans[FastSAM2Decoder] = Plans()
_memories: Plans[FastMemoryAttention] = Plans()


def _mask_decoder(channels: int, decoder: Mapping[str, int]) -> SAM2MaskDecoder:
    transformer = TwoWayTransformer(
        depth=_DECODER_DEPTH,
        embedding_dim=channels,
        num_heads=_DECODER_HEADS,
        mlp_dim=1,  # replaced by SAM2MaskDecoder's own
        attention_downsample_rate=decoder["downsample"],
    )
    return SAM2MaskDecoder(
        mlp_dim=decoder["mlp_dim"],
        transformer_dim=channels,
        transformer=transformer,
        num_multimask_outputs=decoder["num_mask_tokens"] - 1,
        iou_head_depth=decoder["iou_head_depth"],
        iou_head_hidden_dim=decoder["iou_head_hidden_dim"],
    )


def read_decoder(shapes: Mapping[str, torch.Size], family: str) -> dict[str, int]:
    """Widths of the prompt encoder and mask decoder, from a state dict's shapes under Meta's names; `family` is for messages.

    Raises:
        SAMError: a tensor is missing, or has an unknown shape.
    """
    root = "sam_mask_decoder."
    try:
        channels = shapes[root + "iou_token.weight"][1]
        depths = [int(match[1]) for name in shapes if (match := re.match(rf"{root}iou_prediction_head\.layers\.(\d+)\.", name))]
        if not depths:
            raise KeyError(f"{root}iou_prediction_head.layers.0.*")
        return {
            "mask_in_chans": shapes["sam_prompt_encoder.mask_downscaling.3.weight"][0],
            "mlp_dim": shapes[root + "transformer.layers.0.mlp.layers.0.weight"][0],
            "downsample": channels // shapes[root + "transformer.layers.0.cross_attn_token_to_image.q_proj.weight"][0],
            "num_mask_tokens": shapes[root + "mask_tokens.weight"][0],
            "iou_head_depth": 1 + max(depths),
            "iou_head_hidden_dim": shapes[root + "iou_prediction_head.layers.0.weight"][0],
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        what = family if family in ("EdgeTAM", "SAM 3") else "SAM 2"
        raise SAMError(f"this is not a whole {what} checkpoint: {error} is missing or has an unknown shape.") from error


def build_sam2(
    state: Mapping[str, Tensor],
    checkpoint: Path,
    precision: Precision = "auto",
    family: str = "SAM 2",
    video: Mapping[str, Tensor] | None = None,
) -> SAM2Model:
    """The model that a state dict holds; its size is detected from the weights.

    Args:
        state: tensors under Meta's names, as `to_sam2_names` gives them; of any float type.
        checkpoint: the file that they came from.
        precision, family: see `SAM2Model`.
        video: the tensors of the video part, as `to_video_names` gives them. What is not whole of it is left out with a line in
            the log: images do not need it.

    Raises:
        SAMError: the weights are not those of a published size, or tensors are missing, unknown or of a different shape.
    """
    model = _assembled({name: tensor.float() for name, tensor in state.items()}, checkpoint, precision, family)
    if model.family == _IMAGES_ALONE:
        model.memory_fault = f"this pack runs {model.family} on images alone"
        return model
    memory = build_memory(video or {})
    if isinstance(memory, str):
        model.memory_fault = f"its video part is not whole: {memory}"
        log.warning("%s cannot track: %s", checkpoint.name, model.memory_fault)
    else:
        model.memory = memory
    return model.eval().requires_grad_(False)


def share_sam3(state: Mapping[str, Tensor], checkpoint: Path) -> SAM2Model:
    """SAM 3 for clicks on the very parameters of a loaded model: the large ones are in memory once.

    The norms, the prompt encoder and the mask decoder, which compute in float32, are copied: one weight in fifty.

    Args:
        state: parameters under the names of our model, as `formats.sam3.for_clicks` gives them, of one float type.
        checkpoint: what to call it.

    Raises:
        SAMError: as of `build_sam2`.
    """
    is_shared = re.compile(r"image_encoder\.(?!.*\b(?:norm\d|ln_pre)\.)")
    weights = {name: one if is_shared.match(name) else one.detach().float().clone() for name, one in state.items()}
    types = {one.dtype for name, one in weights.items() if is_shared.match(name)}
    if len(types) != 1 or not types <= _PRECISION_OF.keys():
        raise SAMError(
            f"{checkpoint.name} holds weights of {', '.join(map(str, types))}: load it in float16, bfloat16 or float32."
        )
    model = _assembled(weights, checkpoint, _PRECISION_OF[types.pop()], "SAM 3")
    model.memory_fault = "this pack runs SAM 3 on images alone"
    return model


_PRECISION_OF: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def _assembled(state: dict[str, Tensor], checkpoint: Path, precision: Precision, family: str) -> SAM2Model:
    """The image model on the very tensors of a state dict; see `build_sam2`."""
    is_edge = any(name.startswith(BODY) for name in state)
    family = "EdgeTAM" if is_edge else "SAM 3" if is_vit_det(state) else family
    try:
        state = folded(state) if is_edge else state
        shapes = {name: tensor.shape for name, tensor in state.items()}
        read = {"EdgeTAM": read_repvit, "SAM 3": read_vit_det}.get(family, read_hiera)
        encoder, decoder = read(shapes), read_decoder(shapes, family)
    except SAMError as error:
        raise SAMError(f"{checkpoint.name}: {error}") from error
    with torch.device("meta"):
        model = SAM2Model(encoder, decoder, checkpoint, precision, family).eval().requires_grad_(False)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong:
        what = f"SAM 2 checkpoint of size {encoder.size.name}" if isinstance(encoder, HieraShape) else f"{family} checkpoint"
        raise SAMError(
            f"{checkpoint.name} is not a whole {what}: {counted(len(wrong), 'tensor')} "
            f"missing, unknown or of a different shape ({', '.join(wrong[:3])})."
        )
    model.load_state_dict(state, assign=True)
    return model

"""What makes EfficientSAM a Segmenter. The parity reference is yformer/EfficientSAM's `efficient_sam.py`."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ....utils.text import counted
from ...errors import SAMError
from ...geometry import Geometry, Size
from ...kernels.decoder import Decoded
from ...kernels.linear import AtenLinear, LinearKind, cpu_linear
from ...kernels.plain_vit import FastPlainViT, lowered_weights
from ...kernels.plans import Plans
from ...kernels.self_test import works_on
from ...prompts import PromptTensors
from ...store.identity import Identities
from ..base import DecoderParts, Precision, Wanted, with_concept
from ..features import IMAGE, Features
from ..sam2.predictor import ForPredictor
from ..taught import combined, of_taught, taught_decoders, taught_parts
from .decoder import DecoderShape, EfficientMaskDecoder, EfficientPromptEncoder, FastEfficientDecoder
from .encoder import PlainViT, PlainViTShape
from .self_test import decoder_error, encoder_error

_MEAN, _STD, _GREY_LEVELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255.0
_HEAD = 64  # channels of a head; the checkpoint does not show how many there are
_PATCH, _GRID = 16, 64  # nor the side of the input, which is SAM's: 1024 pixels in patches of 16
_OWN = "prompt_encoder.bbox_top_left_embeddings.weight"


class EfficientSAM(ForPredictor, nn.Module):
    """EfficientSAM Ti or S; see `Segmenter` for what every family does. It takes points and boxes, and no mask prompts.

    Args:
        encoder, decoder: shapes of the two.
        checkpoint: the file that it was loaded from.
        precision: what the image encoder computes in; prompt encoder and mask decoder stay float32.
    """

    family = "EfficientSAM"
    mask_threshold = 0.0
    takes_masks = False
    pred_iou_thresh = 0.7  # what the reference's notebook for everything keeps

    def __init__(self, encoder: PlainViTShape, decoder: DecoderShape, checkpoint: Path, precision: Precision = "auto") -> None:
        super().__init__()
        self.checkpoint, self.precision = checkpoint, precision
        self.image_encoder = PlainViT(encoder)
        self.side, grid = self.image_encoder.img_size, (encoder.grid, encoder.grid)
        self.sam_prompt_encoder = EfficientPromptEncoder(encoder.channels, grid, self.side)
        self.sam_mask_decoder = EfficientMaskDecoder(decoder)

    @property
    def map_shapes(self) -> dict[str, tuple[int, int, int]]:
        """The embedding alone."""
        return {IMAGE: (self.image_encoder.neck[0].out_channels, self.image_encoder.grid, self.image_encoder.grid)}

    @property
    def network(self) -> nn.Module:
        """What placement moves between devices: the model itself."""
        return self

    def geometry(self, original: Size) -> Geometry:
        """The image is resized to the whole square, whatever its proportions; each axis has a scale of its own."""
        grid = 4 * self.image_encoder.grid
        return Geometry(original, (self.side, self.side), self.side, (grid, grid), through_square=False)

    def lowered_weights(self) -> list[Tensor]:
        """The weights that are only used in the image encoder's type; on a GPU they are loaded in it."""
        return lowered_weights(self.image_encoder)

    @property
    def encoder_identity(self) -> str:
        """Hash of the image encoder."""
        return _identities.of(self.image_encoder, {"image_encoder": self.image_encoder}, self.checkpoint.name)

    @property
    def decoder_identity(self) -> str:
        """Hash of the prompt encoder and the mask decoders."""
        parts = {"prompt_encoder": self.sam_prompt_encoder, "mask_decoder": self.sam_mask_decoder}
        return _identities.of(self.sam_mask_decoder, parts | dict(taught_parts(self)), self.checkpoint.name)

    @property
    def identity(self) -> str:
        """Content hash of all weights."""
        return f"{self.encoder_identity}-{self.decoder_identity}"

    @torch.no_grad()
    def features(self, pixels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Segmenter.features`: normalised, encoded."""
        mean, std = (_GREY_LEVELS * pixels.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (_MEAN, _STD))
        pixels = (pixels.float() - mean) / std
        if not works_on(pixels.device, encoder_error):
            with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype != torch.float32):
                return {IMAGE: self.image_encoder(pixels).float()}
        linear = self._linear(dtype)
        plan = _encoders.get(
            self.image_encoder, (pixels.device, dtype, linear), lambda: FastPlainViT(self.image_encoder, dtype, linear)
        )
        return {IMAGE: plan(pixels)}

    @torch.no_grad()
    def decode(self, features: Features, prompts: PromptTensors, wanted: Wanted) -> Decoded:
        """See `Segmenter.decode`.

        Raises:
            SAMError: there is a mask prompt, or guidance on a device on which the fast decoder is not right.
        """
        decoders = [self.sam_mask_decoder, *taught_decoders(self)]
        found = self._decode_by(decoders, 0, features, prompts, wanted)
        for index in range(1, len(decoders) if wanted.concept is None else 0):
            found = combined(found, self._decode_by(decoders, index, features, prompts, of_taught(wanted)), wanted.above)
        return found

    def _decode_by(
        self, decoders: list[EfficientMaskDecoder], index: int, features: Features, prompts: PromptTensors, wanted: Wanted
    ) -> Decoded:
        """By one of the model's mask decoders."""
        sparse, _ = self.sam_prompt_encoder(prompts.points, prompts.boxes, prompts.masks)
        sparse, tokens = with_concept(sparse, wanted.concept), slice(1, None) if wanted.several else slice(0, 1)
        if not works_on(features.device, decoder_error):
            if wanted.guidance is not None:
                raise SAMError("SAM Personalize cannot run EfficientSAM on this device. Choose device_mode CPU.")
            places = self.sam_prompt_encoder.get_dense_pe()
            logits, scores = decoders[index].plainly(features.tensor(IMAGE), places, sparse)
            logits, scores, above = logits[:, tokens], scores[:, tokens], wanted.above
            every = torch.arange(len(scores), device=scores.device)
            rows = every if above is None else every[(scores > above).any(1)]
            return Decoded(logits[rows], scores[rows], rows)
        plan = self._plan_of(decoders[index], features.device)
        shared = features.shared((IMAGE,), (self.decoder_identity, index), lambda maps: plan.share(maps[0]))
        return plan(shared, sparse, None, tokens, wanted.above, wanted.guidance)

    def decoder_parts(self) -> DecoderParts:
        """See `DecoderParts`."""
        return DecoderParts(self.sam_prompt_encoder, self.sam_mask_decoder, FastEfficientDecoder, (IMAGE,))

    def _plan_of(self, decoder: EfficientMaskDecoder, device: torch.device) -> FastEfficientDecoder:
        prompts, linear = self.sam_prompt_encoder, self._linear(torch.float32)
        return _decoders.get(decoder, (device, linear), lambda: FastEfficientDecoder(decoder, prompts, linear), also=prompts)

    def _linear(self, dtype: torch.dtype) -> LinearKind:
        return cpu_linear(dtype) if self.device.type == "cpu" else AtenLinear

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.sam_prompt_encoder.point_embeddings.weight.device


_identities = Identities()
_encoders: Plans[FastPlainViT] = Plans()
_decoders: Plans[FastEfficientDecoder] = Plans()


def is_efficient_sam(state: Mapping[str, Tensor]) -> bool:
    """Whether a model's tensors are those of EfficientSAM: no other family has corners of boxes by these names."""
    return _OWN in state


def build_efficient_sam(state: Mapping[str, Tensor], checkpoint: Path, precision: Precision = "auto") -> EfficientSAM:
    """The model that a state dict holds; its size is detected from the weights.

    Args:
        state: tensors under the reference's names, float32.
        checkpoint: the file that they came from.
        precision: see `EfficientSAM`.

    Raises:
        SAMError: tensors are missing, unknown or of a different shape.
    """
    renamed = {re.sub(r"^(prompt_encoder|mask_decoder)\.", r"sam_\1.", name): tensor for name, tensor in state.items()}
    shapes = {name: tensor.shape for name, tensor in renamed.items()}
    try:
        encoder, decoder = _read_encoder(shapes), _read_decoder(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise SAMError(
            f"{checkpoint.name} is not a whole EfficientSAM checkpoint: {error} is missing or has an unknown shape."
        ) from error
    with torch.device("meta"):
        model = EfficientSAM(encoder, decoder, checkpoint, precision)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong:
        raise SAMError(
            f"{checkpoint.name} is not a whole EfficientSAM checkpoint: {counted(len(wrong), 'tensor')} missing, unknown or of "
            f"a different shape ({', '.join(wrong[:3])})."
        )
    model.load_state_dict(renamed, assign=True)
    return model.eval().requires_grad_(False)


def _read_encoder(shapes: Mapping[str, torch.Size]) -> PlainViTShape:
    root = "image_encoder."
    width, _, patch, _ = shapes[root + "patch_embed.proj.weight"]
    places = shapes[root + "pos_embed"][1]
    if patch != _PATCH or (width > _HEAD and width % _HEAD):
        raise ValueError(root + "patch_embed.proj.weight")
    if math.isqrt(places - 1) ** 2 != places - 1:
        raise ValueError(root + "pos_embed")
    return PlainViTShape(
        width=width,
        depth=_count(shapes, rf"{root}blocks\.(\d+)\."),
        heads=max(1, width // _HEAD),
        hidden=shapes[root + "blocks.0.mlp.fc1.weight"][0],
        patch=patch,
        grid=_GRID,
        places=places,
        channels=shapes[root + "neck.0.weight"][0],
    )


def _read_decoder(shapes: Mapping[str, torch.Size]) -> DecoderShape:
    root = "sam_mask_decoder."
    layer, upscaling = root + "transformer.layers.0.", root + "final_output_upscaling_layers."
    tokens, channels = shapes[root + "mask_tokens.weight"]
    return DecoderShape(
        channels=channels,
        depth=_count(shapes, rf"{root}transformer\.layers\.(\d+)\."),
        mlp_dim=shapes[layer + "mlp.layers.0.0.weight"][0],
        downsample=channels // shapes[layer + "cross_attn_token_to_image.q_proj.weight"][0],
        mask_tokens=tokens,
        half=shapes[upscaling + "0.0.weight"][1],
        fine=shapes[upscaling + "1.0.weight"][1],
        iou_depth=_count(shapes, rf"{root}iou_prediction_head\.layers\.(\d+)\."),
        iou_hidden=shapes[root + "iou_prediction_head.layers.0.0.weight"][0],
        mask_depth=_count(shapes, rf"{root}output_hypernetworks_mlps\.0\.layers\.(\d+)\."),
    )


def _count(shapes: Mapping[str, torch.Size], pattern: str) -> int:
    numbers = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    if not numbers:
        raise KeyError(pattern.replace("\\", "").replace("(d+)", "0") + "*")
    return 1 + max(numbers)

"""EfficientSAM's prompt encoder and mask decoder: like SAM's, without mask prompts, and with other MLPs, attention and norms.

After yformer/EfficientSAM's `efficient_sam_decoder.py`, `two_way_transformer.py` and `mlp.py`, under their names;
`FastEfficientDecoder` runs the weights.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import SAMError
from ...geometry import Size
from ...kernels.decoder import FastDecoder
from ...kernels.linear import LinearKind

PROMPT_TOKENS = 6
"""The model was trained with as many points and corners for each object: fewer are filled up, as in the reference."""
_HEADS = 8
_NONE, _POINT, _TOP_LEFT, _BOTTOM_RIGHT = -1, 1, 2, 3  # labels; a negative point (0) has its position alone


@dataclass(frozen=True)
class DecoderShape:
    """Widths and depths of the mask decoder; `half` and `fine` are the channels after each upscaling."""

    channels: int
    depth: int
    mlp_dim: int
    downsample: int
    mask_tokens: int
    half: int
    fine: int
    iou_depth: int
    iou_hidden: int
    mask_depth: int


class EfficientPromptEncoder(nn.Module):
    """Points and boxes -> tokens. The two corners of a box are points with kinds of their own."""

    def __init__(self, channels: int, grid: Size, side: int) -> None:
        super().__init__()
        self.image_embedding_size, self.input_image_size = grid, (side, side)
        self.pe_layer = PositionEmbeddingRandom(channels // 2)
        self.invalid_points = nn.Embedding(1, channels)
        self.point_embeddings = nn.Embedding(1, channels)
        self.bbox_top_left_embeddings = nn.Embedding(1, channels)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, channels)

    @property
    def no_mask_embed(self) -> nn.Embedding:
        """What SAM adds to an image's tokens where there is no mask prompt: nothing here."""
        return nn.Embedding.from_pretrained(torch.zeros_like(self.point_embeddings.weight))

    def get_dense_pe(self) -> Tensor:
        """Positions of the image's tokens, `[1, C, h, w]`."""
        return self.pe_layer(self.image_embedding_size)[None]

    def forward(self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None) -> tuple[Tensor, None]:
        """Embed n prompts.

        Args:
            points: coordinates `[n, P, 2]` in pixels of the square input and labels `[n, P]`, or None.
            boxes: `[n, 4]` (x1, y1, x2, y2), or None.
            masks: None: the model takes none.

        Returns:
            Tokens `[n, max(6, K), C]`, and nothing in the place of a mask prompt.

        Raises:
            SAMError: there is a mask prompt.
        """
        if masks is not None:
            raise SAMError(
                "EfficientSAM takes points and boxes, not masks or logits. Disconnect mask_prompt and logits and remove brush "
                "strokes, or use a SAM or SAM 2 model."
            )
        given = [] if points is None else [points]
        if boxes is not None:
            corners = torch.tensor([_TOP_LEFT, _BOTTOM_RIGHT], device=boxes.device).expand(len(boxes), -1)
            given.append((boxes.reshape(-1, 2, 2), corners))
        coords, labels = (torch.cat(parts, 1) for parts in zip(*given, strict=True))
        missing = max(0, PROMPT_TOKENS - coords.shape[1])
        coords, labels = F.pad(coords, (0, 0, 0, missing), value=-1.0), F.pad(labels, (0, missing), value=_NONE)
        tokens = self.pe_layer.forward_with_coords(coords + 0.5, self.input_image_size)  # a pixel's centre
        kinds = (_NONE, self.invalid_points), (_POINT, self.point_embeddings)
        kinds += (_TOP_LEFT, self.bbox_top_left_embeddings), (_BOTTOM_RIGHT, self.bbox_bottom_right_embeddings)
        for label, embedding in kinds:
            tokens = tokens + embedding.weight * (labels == label)[..., None]
        return tokens, None


class EfficientMaskDecoder(nn.Module):
    """The weights of EfficientSAM's mask decoder; `FastEfficientDecoder` runs them."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        channels, self.num_mask_tokens = shape.channels, shape.mask_tokens
        self.transformer = _Transformer(shape)
        self.iou_token, self.mask_tokens = nn.Embedding(1, channels), nn.Embedding(shape.mask_tokens, channels)
        self.final_output_upscaling_layers = nn.ModuleList(
            [
                nn.Sequential(nn.ConvTranspose2d(channels, shape.half, 2, 2), nn.GroupNorm(1, shape.half), nn.GELU()),
                nn.Sequential(nn.ConvTranspose2d(shape.half, shape.fine, 2, 2), nn.Identity(), nn.GELU()),
            ]
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            _MLP(channels, channels, shape.fine, shape.mask_depth) for _ in range(shape.mask_tokens)
        )
        self.iou_prediction_head = _MLP(channels, shape.iou_hidden, shape.mask_tokens, shape.iou_depth)

    @property
    def output_upscaling(self) -> tuple[nn.Module, ...]:
        """The layers in the order of SAM's decoder."""
        (first, norm, gelu), (second, _, last) = self.final_output_upscaling_layers
        return first, norm, gelu, second, last

    def plainly(self, features: Tensor, places: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """All masks of n prompts of one image, as the reference's `predict_masks` computes them.

        Args:
            features: `[C, h, w]`.
            places: `[1, C, h, w]`, the positions of the image's tokens.
            sparse: embedded prompts `[n, K, C]`.

        Returns:
            Logits `[n, M, 4h, 4w]` and predicted IoUs `[n, M]`.
        """
        count, (channels, height, width) = len(sparse), features.shape
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(count, -1, -1), sparse], 1)
        image, places = (x.reshape(-1, channels, height * width).transpose(1, 2) for x in (features, places))
        queries, image = self.transformer(image.expand(count, -1, -1), places.expand(count, -1, -1), tokens)
        upscaled = image.transpose(1, 2).reshape(count, channels, height, width)
        for layer in self.final_output_upscaling_layers:
            upscaled = layer(upscaled)
        masks = [network(queries[:, 1 + index]) for index, network in enumerate(self.output_hypernetworks_mlps)]
        logits = torch.einsum("nmc,nchw->nmhw", torch.stack(masks, 1), upscaled)
        return logits, self.iou_prediction_head(queries[:, 0])


class _MLP(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * depth]
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(one, other), nn.GELU()) for one, other in pairwise(widths))
        self.fc = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.fc(x)


class _Transformer(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(shape, index == 0) for index in range(shape.depth))
        self.final_attn_token_to_image = Attention(shape.channels, _HEADS, shape.downsample)
        self.norm_final_attn = nn.LayerNorm(shape.channels)

    def forward(self, image: Tensor, places: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens and positions `[n, N, C]` and prompt tokens `[n, t, C]` -> queries `[n, t, C]` and image tokens."""
        queries = prompt
        for layer in self.layers:
            queries, image = layer(queries, image, prompt, places)
        attended = self.final_attn_token_to_image(q=queries + prompt, k=image + places, v=image)
        return self.norm_final_attn(queries + attended), image


class _Layer(nn.Module):
    def __init__(self, shape: DecoderShape, skips_places: bool) -> None:
        super().__init__()
        channels = shape.channels
        self.skip_first_layer_pe = skips_places
        self.self_attn = Attention(channels, _HEADS)
        self.cross_attn_token_to_image = Attention(channels, _HEADS, shape.downsample)
        self.cross_attn_image_to_token = Attention(channels, _HEADS, shape.downsample)
        self.mlp = _MLP(channels, shape.mlp_dim, channels, 1)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(channels) for _ in range(4))

    def forward(self, queries: Tensor, image: Tensor, prompt: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.norm1(attend_to_self(self, queries, prompt))
        queries = self.norm2(queries + self.cross_attn_token_to_image(q=queries + prompt, k=image + places, v=image))
        queries = self.norm3(queries + self.mlp(queries))
        image = self.norm4(image + self.cross_attn_image_to_token(q=image + places, k=queries + prompt, v=queries))
        return queries, image


def attend_to_self(layer: nn.Module, queries: Tensor, prompt: Tensor) -> Tensor:
    """Unlike in SAM, positions stay in the tokens, and the first layer adds to them too."""
    queries = queries if layer.skip_first_layer_pe else queries + prompt
    return queries + layer.self_attn(q=queries, k=queries, v=queries)


class FastEfficientDecoder(FastDecoder):
    """`FastDecoder` for an `EfficientMaskDecoder`: its norm after the first upscaling is of a whole image at once."""

    def __init__(self, decoder: EfficientMaskDecoder, prompts: EfficientPromptEncoder, linear: LinearKind) -> None:
        super().__init__(decoder, prompts, linear)
        self.attend_to_self = attend_to_self

    def upscale(self, image: Tensor) -> Tensor:
        """Image tokens `[n, N, C]` -> `[n, N*16, C/8]`, see `FastDecoder.upscale`."""
        (count, tokens, channels), norm = image.shape, self.norm
        half = self.upscale_first.plain(image.reshape(-1, channels)).view(count, tokens * 4 * norm.num_channels)
        half = F.layer_norm(half, half.shape[1:], eps=norm.eps).view(-1, norm.num_channels)
        half = F.gelu(torch.addcmul(norm.bias, half, norm.weight))
        fine = F.gelu(self.upscale_second.plain(half)) if torch.is_grad_enabled() else self.upscale_second.gelu(half)
        return fine.view(count, tokens * 16, self.fine_channels)

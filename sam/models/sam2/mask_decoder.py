"""SAM 2's prompt encoder and mask decoder: SAM's, with two finer maps, one more output token, and boxes as pairs of points.

After facebookresearch/sam2's `prompt_encoder.py` and `mask_decoder.py`, under Meta's names; `FastSAM2Decoder` runs the weights.
"""

from collections.abc import Sequence
from itertools import product

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.decoder import Decoded, FastDecoder, Guidance, Rated, SharedImage, in_parts
from ...kernels.linear import Linear, LinearKind
from ..taught import combined, sources

# A single mask whose area changes by more than a fiftieth where the threshold moves by 0.05 gives way to the best candidate:
# `dynamic_multimask_via_stability` of sam2's build_sam.py, which transformers has as the default.
STABILITY_DELTA, STABILITY_THRESHOLD = 0.05, 0.98
_TOP_LEFT, _BOTTOM_RIGHT, _PADDING = 2, 3, -1  # labels beside 0 and 1
_TOKENS_AT_A_TIME = 2048  # of the image, that are upscaled on a CPU
_SINGLE, _SEVERAL = slice(0, 1), slice(1, None)  # of the mask tokens

Points = tuple[Tensor, Tensor]


class SAM2PromptEncoder(PromptEncoder):
    """SAM's prompt encoder, but for what becomes a token.

    A box is two points, and one that is not a point follows in any case; with a mask prompt alone there are two of those, as in
    training (`SAM2Base._forward_sam_heads`) and in transformers' `Sam2Model`.
    """

    def forward(self, points: Points | None, boxes: Tensor | None, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embed n prompts.

        Args:
            points: coordinates `[n, P, 2]` in pixels of the square input and labels `[n, P]`, or None.
            boxes: `[n, 4]` (x1, y1, x2, y2), or None.
            masks: logits `[n, 1, 4h, 4w]`, or None.

        Returns:
            Tokens `[n, K, C]`, and embedded mask prompts `[n, C, h, w]` or None.
        """
        coords, labels = self._all_points(points, boxes, masks)
        return self._embed_points(coords, labels, pad=True), None if masks is None else self.mask_downscaling(masks)

    def _all_points(self, points: Points | None, boxes: Tensor | None, masks: Tensor | None) -> Points:
        given = [] if points is None else [points]
        if boxes is not None:
            corners = torch.tensor([_TOP_LEFT, _BOTTOM_RIGHT], device=boxes.device).expand(len(boxes), -1)
            given.append((boxes.reshape(-1, 2, 2), corners))
        if not given:
            count, device = (1 if masks is None else len(masks)), self.no_mask_embed.weight.device
            given.append((torch.zeros(count, 1, 2, device=device), torch.full((count, 1), _PADDING, device=device)))
        coords, labels = zip(*given, strict=True)
        return torch.cat(coords, 1), torch.cat(labels, 1)

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        """Tokens `[n, P (+ 1), C]`; a label is 0 or 1, 2 or 3 for a box's corners, -1 for padding."""
        if pad:
            points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=_PADDING)
        placed = self.pe_layer.forward_with_coords(points + 0.5, self.input_image_size)  # a pixel's centre
        kinds = torch.cat([embedding.weight for embedding in self.point_embeddings])
        known = placed + kinds[labels.clamp(min=0).long()]
        return torch.where((labels == _PADDING)[..., None], self.not_a_point_embed.weight, known)


class SAM2MaskDecoder(MaskDecoder):
    """The weights of a SAM 2 mask decoder; `FastSAM2Decoder` runs them.

    Args:
        mlp_dim: width of the transformer's hidden layers.
        transformer_dim, **decoder: see `MaskDecoder`.
    """

    def __init__(self, *, mlp_dim: int, transformer_dim: int, **decoder: object) -> None:
        super().__init__(transformer_dim=transformer_dim, **decoder)
        for layer in self.transformer.layers:
            layer.mlp = MLP(transformer_dim, mlp_dim, transformer_dim, 2)
        self.iou_prediction_head.sigmoid_output = True
        self.obj_score_token = nn.Embedding(1, transformer_dim)
        self.pred_obj_score_head = MLP(transformer_dim, transformer_dim, 1, 3)
        self.conv_s0 = nn.Conv2d(transformer_dim, transformer_dim // 8, 1)
        self.conv_s1 = nn.Conv2d(transformer_dim, transformer_dim // 4, 1)

    def plainly(
        self, features: Tensor, finer: Sequence[Tensor], places: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All masks of n prompts of one image, as `MaskDecoder.predict_masks` of sam2's `mask_decoder.py` computes them.

        Args:
            features: `[C, h, w]`.
            finer: `[C/8, 4h, 4w]` and `[C/4, 2h, 2w]`, of `conv_s0` and `conv_s1`.
            places: `[1, C, h, w]`, the position encoding of the image's tokens.
            sparse, dense: embedded prompts `[n, K, C]` and `[n or 1, C, h, w]`.

        Returns:
            Logits `[n, M, 4h, 4w]`, predicted IoUs `[n, M]`, object scores `[n]` and mask tokens `[n, M, C]`.
        """
        count, (channels, height, width) = len(sparse), features.shape
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        image = (features + dense).expand(count, -1, -1, -1)
        tokens = torch.cat([own.expand(count, -1, -1), sparse], 1)
        queries, image = self.transformer(image, places.expand(count, -1, -1, -1), tokens)
        first, norm, gelu, second, last = self.output_upscaling
        half = gelu(norm(first(image.transpose(1, 2).reshape(count, channels, height, width)) + finer[1]))
        upscaled = last(second(half) + finer[0])
        tokens = queries[:, 2 : 2 + self.num_mask_tokens]
        masks = [mlp(tokens[:, index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)]
        logits = torch.einsum("nmc,nchw->nmhw", torch.stack(masks, 1), upscaled)
        return logits, self.iou_prediction_head(queries[:, 1]), self.pred_obj_score_head(queries[:, 0])[:, 0], tokens

    def decode_plainly(
        self, logits: Tensor, scores: Tensor, object_scores: Tensor, several: bool, above: float | None, strictly: bool
    ) -> "SAM2Decoded":
        """Of what `plainly` gives, what `FastSAM2Decoder.decode` gives."""
        rows = torch.arange(len(logits), device=logits.device)
        if several:
            logits, scores = logits[:, _SEVERAL], scores[:, _SEVERAL]
        elif strictly:
            logits, scores = logits[:, _SINGLE], scores[:, _SINGLE]
        else:
            chosen = torch.where(is_stable(logits[:, 0]), 0, 1 + scores[:, _SEVERAL].argmax(1))
            logits, scores = logits[rows, chosen][:, None], scores[rows, chosen][:, None]
        kept = rows if above is None else rows[(scores > above).any(1)]
        return SAM2Decoded.of(Decoded(logits[kept], scores[kept], kept), object_scores[kept])


class SAM2Decoded(Decoded):
    """`Decoded`, with what SAM 2 also tells of a prompt.

    Attributes:
        object_scores: logits `[m]` that what was prompted is in the image at all; above 0 it is.
    """

    object_scores: Tensor

    @classmethod
    def of(cls, decoded: Decoded, object_scores: Tensor) -> "SAM2Decoded":
        """The same results, with the object scores."""
        whole = cls(*decoded)
        whole.object_scores = object_scores
        return whole

    def combined(self, taught: "SAM2Decoded", above: float | None) -> "SAM2Decoded":
        """See `taught.combined`."""
        taken = sources(self, taught, above)
        if taken is None:
            return self
        object_scores = torch.cat([self.object_scores, taught.object_scores])[taken]
        return SAM2Decoded.of(combined(self, taught, above), object_scores)


class FastSAM2Decoder(FastDecoder):
    """`FastDecoder` for a `SAM2MaskDecoder`: finer maps are added while it upscales.

    They are shared as tokens in the order of `upscale`, finest first: `[N*16, C/8]` and `[N*4, C/4]`.
    """

    def __init__(self, decoder: SAM2MaskDecoder, prompts: SAM2PromptEncoder, linear: LinearKind) -> None:
        super().__init__(decoder, prompts, linear)
        self.own_tokens = torch.cat([self.own_tokens, decoder.obj_score_token.weight])
        self.object_network = decoder.pred_obj_score_head

    def share(self, features: Tensor, finer: tuple[Tensor, ...] = ()) -> SharedImage:
        """Compute what the prompts of an image share, from its maps `[C, h, w]`, and `[C/8, 4h, 4w]` and `[C/4, 2h, 2w]`."""
        return super().share(features, self.finer_tokens(*finer))

    def finer_tokens(self, fine: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """The finer maps as tokens, see above."""
        height, width = self.grid
        fine_tokens = fine.view(-1, height, 2, 2, width, 2, 2).permute(1, 4, 2, 5, 3, 6, 0).reshape(-1, len(fine))
        middle_tokens = middle.view(-1, height, 2, width, 2).permute(1, 3, 2, 4, 0).reshape(-1, len(middle))
        return fine_tokens, middle_tokens

    def object_scores(self, rated: Rated) -> Tensor:
        """Logits `[n]` that what rated prompts show is in the image."""
        return self.object_network(rated.queries[:, 1 + self.mask_tokens])[:, 0]

    def masks(self, rated: Rated, wanted: slice, shared: SharedImage) -> Tensor:
        """Low-resolution logits `[n, W, 4h, 4w]` of rated prompts, of W wanted tokens.

        On a CPU one prompt and some image tokens at a time: more of what they are upscaled to stays in its cache.
        """
        hyper, tokens = self.hyper(rated, wanted), rated.image.shape[1]
        finer = [values.view(tokens, -1) for values in shared.finer]
        if torch.is_grad_enabled() or not hyper.is_cpu:
            return self.to_grid(hyper @ self.upscale_onto(rated.image, *finer).transpose(1, 2))
        values = hyper.new_empty(*hyper.shape[:2], tokens * 16)
        for row, start in product(range(len(hyper)), range(0, tokens, _TOKENS_AT_A_TIME)):
            part = slice(start, start + _TOKENS_AT_A_TIME)
            upscaled = self.upscale_onto(rated.image[row : row + 1, part], *(each[part] for each in finer))[0]
            values[row, :, 16 * part.start : 16 * part.stop] = hyper[row] @ upscaled.T
        return self.to_grid(values)

    def upscale_onto(self, image: Tensor, fine: Tensor, middle: Tensor) -> Tensor:
        """`upscale` of image tokens `[n, T, C]`; finer maps `[T, 16 * C/8]` and `[T, 4 * C/4]` are added after each layer."""
        (count, tokens, _), norm, gelu = image.shape, self.norm, F.gelu if torch.is_grad_enabled() else torch.ops.aten.gelu_
        half = _plus(self.upscale_first, image, middle).view(-1, *norm.weight.shape)
        half = gelu(F.layer_norm(half, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        upscaled = gelu(_plus(self.upscale_second, half.view(count, tokens * 4, -1), fine.reshape(tokens * 4, -1)))
        return upscaled.view(count, tokens * 16, self.fine_channels)

    def decode(
        self,
        shared: SharedImage,
        sparse: Tensor,
        dense: Tensor | None,
        several: bool,
        above: float | None = None,
        guidance: Guidance | None = None,
        strictly: bool = False,
    ) -> SAM2Decoded:
        """Decode n prompts of one image.

        Args:
            shared, sparse, dense, guidance: see `FastDecoder.rate`.
            several: the candidates, or the single mask.
            above: leave out prompts of which no decoded mask's predicted IoU exceeds this; None leaves out none.
            strictly: the single mask is that of its token, stable or not: what was taught.
        """
        wanted, is_fixed = _SEVERAL if several else _SINGLE, several or strictly

        def decode(part: slice) -> tuple[Tensor, ...]:
            """Logits, predicted IoUs, row numbers and object scores of some of the prompts."""
            guided = None if guidance is None else guidance.of(part)
            rated = self.rate(shared, sparse[part], None if dense is None else dense[part], guided)
            rows = torch.arange(part.start, part.start + len(rated.scores), device=sparse.device)
            if above is not None and is_fixed:
                kept = (rated.scores[:, wanted] > above).any(1)
                rated, rows = Rated(*(x[kept] for x in rated)), rows[kept]
            masks = self._tokens(wanted, rated, shared) if is_fixed else self.single(rated, shared)
            return *masks, rows, self.object_scores(rated)

        found = in_parts(decode, len(sparse), sparse.device)
        *decoded, object_scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        if above is not None and not several:
            kept = decoded[1][:, 0] > above
            decoded, object_scores = [x[kept] for x in decoded], object_scores[kept]
        return SAM2Decoded.of(Decoded(*decoded), object_scores)

    def _tokens(self, wanted: slice, rated: Rated, shared: SharedImage) -> tuple[Tensor, Tensor]:
        return self.masks(rated, wanted, shared), rated.scores[:, wanted]

    def single(self, rated: Rated, shared: SharedImage) -> tuple[Tensor, Tensor]:
        """The single mask where it is stable, else the best candidate: logits `[n, 1, 4h, 4w]` and predicted IoUs `[n, 1]`."""
        masks = self.masks(rated, slice(None), shared)
        best = 1 + rated.scores[:, _SEVERAL].argmax(1)
        chosen = torch.where(is_stable(masks[:, 0]), 0, best)
        rows = torch.arange(len(masks), device=masks.device)
        return masks[rows, chosen][:, None], rated.scores[rows, chosen][:, None]


def _plus(layer: Linear, x: Tensor, other: Tensor) -> Tensor:
    """`layer` of `[n, T, K]` plus `[T, N]`, the same for all n: `[n, T, N]`."""
    if torch.is_grad_enabled():
        return layer.plain(x.flatten(0, 1)).view(*x.shape[:2], -1) + other
    if len(x) == 1:
        return layer.plus(x[0], other)[None]
    return layer.plain(x.flatten(0, 1)).view(*x.shape[:2], -1).add_(other)


def is_stable(logits: Tensor) -> Tensor:
    """Whether masks `[n, h, w]` hardly change where their threshold moves a little: bool `[n]`; an empty one is stable."""
    inner = (logits > STABILITY_DELTA).flatten(1).sum(1)
    outer = (logits > -STABILITY_DELTA).flatten(1).sum(1)
    return torch.where(outer > 0, inner / outer, 1.0) >= STABILITY_THRESHOLD

"""MaskDecoder.predict_masks with the same weights and the same arithmetic, several times faster, above all for many prompts.

What differs from segment_anything's mask_decoder.py and transformer.py, none of it in the result but for the order of sums:

- What all prompts of an image share is computed once: the first layer's keys, values and queries of the image (they differ
  only after the first layer).
- Cross attention with few tokens never projects the image: `q (W x)` is computed as `(q W) x`, 7 tokens x 8 heads wide.
- Transposed convolutions with stride = kernel are linear layers on channels-last tokens; only the final logits are shuffled,
  two neighbours at a time.
- The predicted IoU comes first: prompts that it rejects are never upscaled.
- One or two prompts at a time on each core of a CPU (workers.py), so that their 4 MiB each stay in the cache.

Where gradients are on, nothing is written in place, so that the same arithmetic can be trained (with `AtenLinear`).

The parts are separate, so that other decoders of the family (further output tokens, other upscaling) can be built of them.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .linear import Linear, LinearKind
from .workers import for_each

_PROMPTS_AT_A_TIME = 64  # on a GPU
_MANY = 8  # prompts for each core: then two at a time share what an operation costs besides its arithmetic

Found = TypeVar("Found")


class SharedImage(NamedTuple):
    """What all prompts of one image share; N = h*w.

    Attributes:
        tokens: `[1, N, C]`, the embedding with the no-mask prompt added.
        keys, values, queries: `[1, N, I]`, the first layer's projections of it, in both directions.
        finer: finer feature maps that a relative of SAM renders its masks with, `[1, C', h', w']` each.
    """

    tokens: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    finer: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(part.numel() * part.element_size() for part in (*self[:4], *self.finer))


class Rated(NamedTuple):
    """Decoded prompts before their masks.

    Attributes:
        queries: all output tokens `[n, t, C]`: the IoU token, T mask tokens, those of a relative of SAM, the prompt's.
        image: image tokens `[n, N, C]`.
        scores: predicted IoUs `[n, T]`.
    """

    queries: Tensor
    image: Tensor
    scores: Tensor


class Guidance(NamedTuple):
    """Where to attend and what for, learned from an example ("Personalize Segment Anything", arXiv 2305.03048, section 3.2).

    The arithmetic is that of transformers' `SamModel` (5.x) with `attention_similarity` and `target_embedding`.

    Attributes:
        attention: `[1 or n, N]`, added to the scores by which the tokens attend to the image, in every layer but the
            final attention: target-guided attention.
        target: `[1 or n, C]`, added to all tokens before every layer: target-semantic prompting.
    """

    attention: Tensor
    target: Tensor

    def of(self, part: slice) -> "Guidance":
        """The guidance of some prompts; a single row is for all of them."""
        return Guidance(*(rows if len(rows) == 1 else rows[part] for rows in self))


class Decoded(NamedTuple):
    """Masks of prompts, before they are upsampled.

    Attributes:
        logits: low-resolution mask logits float32 `[m, W, 4h, 4w]`.
        scores: predicted IoUs `[m, W]`.
        rows: which of the n prompts they are, `[m]`.
    """

    logits: Tensor
    scores: Tensor
    rows: Tensor


def in_parts(decode: Callable[[slice], Found], prompts: int, device: torch.device) -> list[Found]:
    """What `decode` gives for some prompts at a time, in order; on a CPU for one or two on each core."""
    on_each_core = 2 if prompts >= _MANY * torch.get_num_threads() else 1
    at_a_time = on_each_core if device.type == "cpu" else _PROMPTS_AT_A_TIME
    parts = [slice(start, min(prompts, start + at_a_time)) for start in range(0, max(1, prompts), at_a_time)]
    if device.type != "cpu" or len(parts) < torch.get_num_threads():  # a prompt alone is for all cores
        return [decode(part) for part in parts]
    found: list[Found | None] = [None] * len(parts)

    def run(index: int) -> None:
        """Decode one part; several threads write to places of their own."""
        found[index] = decode(parts[index])

    for_each(run, range(len(parts)))
    return found


class FastDecoder:
    """A plan to run one mask decoder on one device, in float32.

    Args:
        decoder: segment_anything's MaskDecoder; its weights are used where they are.
        prompts: its PromptEncoder.
        linear: which linear layers for the upscaling.
    """

    def __init__(self, decoder: nn.Module, prompts: nn.Module, linear: LinearKind) -> None:
        # Its parts and not the decoder itself: the plan is cached for as long as the decoder lives, and must not be the reason.
        self.transformer, self.score, self.networks = (
            decoder.transformer,
            decoder.iou_prediction_head,
            decoder.output_hypernetworks_mlps,
        )
        self.mask_tokens = decoder.num_mask_tokens
        self.grid = prompts.image_embedding_size
        self.no_mask = prompts.no_mask_embed.weight
        self.own_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        self.places = prompts.get_dense_pe().flatten(2)[0].T.contiguous()
        first, self.norm, _, second, _ = decoder.output_upscaling
        self.upscale_first, self.upscale_second = _as_linear(first, linear), _as_linear(second, linear)
        self.fine_channels = second.out_channels
        self.attend_to_self = _attend_to_self  # a relative of SAM may have another

    def share(self, features: Tensor, finer: tuple[Tensor, ...] = ()) -> SharedImage:
        """Compute what the prompts of an image share, from its embedding `[C, h, w]` and finer maps."""
        tokens = (features.flatten(1).T + self.no_mask)[None].contiguous()
        into, back = (getattr(self.transformer.layers[0], f"cross_attn_{way}") for way in ("token_to_image", "image_to_token"))
        placed = tokens + self.places
        return SharedImage(tokens, into.k_proj(placed), into.v_proj(tokens), back.q_proj(placed), finer)

    def rate(self, shared: SharedImage, sparse: Tensor, dense: Tensor | None, guidance: Guidance | None = None) -> Rated:
        """The transformer and the IoU head, `MaskDecoder.predict_masks` up to the masks.

        Args:
            shared: see `share`.
            sparse: prompt tokens `[n, K, C]`.
            dense: embedded mask prompts `[n, C, h, w]`, or None where no prompt has one.
            guidance: of an example, or None.
        """
        prompt = torch.cat([self.own_tokens.expand(len(sparse), -1, -1), sparse], 1)
        queries, image = self._transform(shared, prompt, dense, guidance)
        return Rated(queries, image, self.score(queries[:, 0]))

    def masks(self, rated: Rated, wanted: slice, shared: SharedImage) -> Tensor:
        """Low-resolution logits `[n, W, 4h, 4w]` of rated prompts, of W wanted tokens."""
        return self.to_grid(self.hyper(rated, wanted) @ self.upscale(rated.image).transpose(1, 2))

    def hyper(self, rated: Rated, wanted: slice) -> Tensor:
        """The wanted tokens' weights of the upscaled channels, `[n, W, C/8]`."""
        tokens = rated.queries[:, 1 : 1 + self.mask_tokens][:, wanted]
        return torch.stack([network(tokens[:, i]) for i, network in enumerate(self.networks[wanted])], 1)

    def upscale(self, image: Tensor) -> Tensor:
        """Image tokens `[n, N, C]` -> `[n, N*16, C/8]`: each token's 4x4 pixels, as 2x2 of 2x2 (see `to_grid`)."""
        n, tokens, channels = image.shape
        norm, width = self.norm, self.norm.weight.shape[0]
        half = self.upscale_first.plain(image.reshape(-1, channels)).view(-1, width)
        if torch.is_grad_enabled():
            half = F.gelu(F.layer_norm(half, (width,), norm.weight, norm.bias, norm.eps))
            return F.gelu(self.upscale_second.plain(half)).view(n, tokens * 16, self.fine_channels)
        half = torch.ops.aten.gelu_(F.layer_norm(half, (width,), norm.weight, norm.bias, norm.eps))
        return self.upscale_second.gelu(half).view(n, tokens * 16, self.fine_channels)

    def to_grid(self, values: Tensor) -> Tensor:
        """Values `[n, T, N*16]` in the order of `upscale` -> `[n, T, 4h, 4w]`."""
        (n, count, _), (height, width) = values.shape, self.grid
        if torch.is_grad_enabled():
            fine = values.view(n, count, height, width, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
            return fine.reshape(n, count, 4 * height, 4 * width)
        # Two float32 that stay neighbours are moved as one number of 64 bits: a twelfth of the time.
        pairs = values.view(torch.int64).view(n, count, height, width, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5)
        return pairs.reshape(n, count, 4 * height, 2 * width).view(torch.float32)

    def to_maps(self, upscaled: Tensor) -> Tensor:
        """What `upscale` gives as maps `[n, C/8, 4h, 4w]`, in memory with their channels last."""
        (n, _, channels), (height, width) = upscaled.shape, self.grid
        fine = upscaled.view(n, height, width, 2, 2, 2, 2, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return fine.reshape(n, 4 * height, 4 * width, channels).permute(0, 3, 1, 2)

    def __call__(
        self,
        shared: SharedImage,
        sparse: Tensor,
        dense: Tensor | None,
        wanted: slice,
        above: float | None = None,
        guidance: Guidance | None = None,
    ) -> Decoded:
        """Decode n prompts of one image.

        Args:
            shared, sparse, dense, guidance: see `rate`.
            wanted: the W mask tokens to decode; the first is SAM's single mask, the others are its candidates.
            above: leave out prompts of which no wanted mask's predicted IoU exceeds this; None leaves out none.
        """

        def decode(part: slice) -> tuple[Tensor, Tensor, Tensor]:
            """Logits, predicted IoUs and row numbers of some of the prompts."""
            guided = None if guidance is None else guidance.of(part)
            rated = self.rate(shared, sparse[part], None if dense is None else dense[part], guided)
            rows = torch.arange(part.start, part.start + len(rated.scores), device=sparse.device)
            if above is not None:
                kept = (rated.scores[:, wanted] > above).any(1)
                rated, rows = Rated(*(x[kept] for x in rated)), rows[kept]
            return self.masks(rated, wanted, shared), rated.scores[:, wanted], rows

        found = in_parts(decode, len(sparse), sparse.device)
        return Decoded(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _transform(
        self, shared: SharedImage, prompt: Tensor, dense: Tensor | None, guidance: Guidance | None
    ) -> tuple[Tensor, Tensor]:
        """TwoWayTransformer.forward: queries `[n, t, C]` and image tokens `[n, N, C]`."""
        bias = target = None
        if guidance is not None:
            bias, target = guidance.attention[:, None, None], guidance.target[:, None]
            prompt = prompt + target  # PerSAM adds it in place, and so to the tokens' positions too
        queries, attend = prompt, self._first_attention(shared, dense, prompt)
        for index, layer in enumerate(self.transformer.layers):
            if target is not None and index:
                queries = queries + target
            queries = layer.norm1(self.attend_to_self(layer, queries, prompt))
            into, back = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            queries = layer.norm2(queries + attend.to_image(into, queries + prompt, bias))
            queries = layer.norm3(queries + layer.mlp(queries))
            image = attend.to_tokens(back, queries + prompt, queries)
            image = F.layer_norm(image, image.shape[-1:], layer.norm4.weight, layer.norm4.bias, layer.norm4.eps)
            attend = _attention_to(image, self.places, into, prompt)
        last = self.transformer.final_attn_token_to_image
        queries = queries + attend.to_image(last, queries + prompt, None)
        return self.transformer.norm_final_attn(queries), image

    def _first_attention(self, shared: SharedImage, dense: Tensor | None, prompt: Tensor) -> "CrossAttention":
        """A mask prompt replaces the no-mask one, for each prompt in its own way: nothing is shared then."""
        if dense is None:
            return _Shared(shared)
        image = shared.tokens + (dense.flatten(2).transpose(1, 2) - self.no_mask)
        return _attention_to(image, self.places, self.transformer.layers[0].cross_attn_token_to_image, prompt)


class CrossAttention(Protocol):
    """Both directions of cross attention between t tokens and one state of the image, in one way of computing them."""

    def to_image(self, attn: nn.Module, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Tokens `[n, t, C]` attend to the image: `[n, t, C]`, to be added to them.

        Args:
            attn: the layer.
            tokens: with their positions.
            bias: `[n or 1, 1, 1, N]`, added to the scores, or None.
        """

    def to_tokens(self, attn: nn.Module, tokens: Tensor, values: Tensor) -> Tensor:
        """The image attends to tokens `[n, t, C]` with other `values`: the image's next state `[n, N, C]`, not normalised."""


class _Shared:
    """The first layer without mask prompts: keys, values and queries of the image are the same for all prompts."""

    def __init__(self, shared: SharedImage) -> None:
        self.shared = shared

    def to_image(self, attn: nn.Module, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """See `CrossAttention.to_image`."""
        asking = _heads(attn, attn.q_proj(tokens))
        mixed = _mix(asking, _heads(attn, self.shared.keys), _heads(attn, self.shared.values), bias)
        return attn.out_proj(mixed.transpose(1, 2).flatten(2))

    def to_tokens(self, attn: nn.Module, tokens: Tensor, values: Tensor) -> Tensor:
        """See `CrossAttention.to_tokens`."""
        scores = _scores(_heads(attn, attn.k_proj(tokens)), _heads(attn, self.shared.queries))
        image = self.shared.tokens.repeat(len(tokens), 1, 1)
        return _add_answer(attn, scores, values, image)


class _Absorbed:
    """With few tokens: the projections are applied to the tokens, and the image `[n, N, C]` is never projected."""

    def __init__(self, image: Tensor, places: Tensor) -> None:
        self.image, self.placed = image, image + places

    def to_image(self, attn: nn.Module, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """See `CrossAttention.to_image`."""
        weights = _weights(self._scores(attn, attn.q_proj(tokens), attn.k_proj), bias)
        seen = (weights.flatten(1, 2) @ self.image).view(*weights.shape[:3], -1)
        mixed = seen @ _by_head(attn, attn.v_proj).transpose(1, 2) + attn.v_proj.bias.view(attn.num_heads, 1, -1)
        return attn.out_proj(mixed.transpose(1, 2).flatten(2))

    def to_tokens(self, attn: nn.Module, tokens: Tensor, values: Tensor) -> Tensor:
        """See `CrossAttention.to_tokens`."""
        return _add_answer(attn, self._scores(attn, attn.k_proj(tokens), attn.q_proj), values, self.image)

    def _scores(self, attn: nn.Module, tokens: Tensor, projection: nn.Linear) -> Tensor:
        """`_scores` of projected tokens `[n, t, I]` and `projection` of the image and its positions, applied to the tokens."""
        tokens = _heads(attn, tokens) * (attn.internal_dim // attn.num_heads) ** -0.5
        of_bias = tokens @ projection.bias.view(attn.num_heads, -1, 1)
        absorbed = (tokens @ _by_head(attn, projection)).flatten(1, 2)
        scores = torch.baddbmm(of_bias.flatten(1, 2), absorbed, self.placed.transpose(1, 2))
        return scores.view(*tokens.shape[:3], -1)


class _Projected:
    """With many tokens: the image `[n, N, C]` is projected, as stock code does."""

    def __init__(self, image: Tensor, places: Tensor) -> None:
        self.image, self.placed = image, image + places

    def to_image(self, attn: nn.Module, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """See `CrossAttention.to_image`."""
        asking, keys = _heads(attn, attn.q_proj(tokens)), _heads(attn, attn.k_proj(self.placed))
        mixed = _mix(asking, keys, _heads(attn, attn.v_proj(self.image)), bias)
        return attn.out_proj(mixed.transpose(1, 2).flatten(2))

    def to_tokens(self, attn: nn.Module, tokens: Tensor, values: Tensor) -> Tensor:
        """See `CrossAttention.to_tokens`."""
        scores = _scores(_heads(attn, attn.k_proj(tokens)), _heads(attn, attn.q_proj(self.placed)))
        return _add_answer(attn, scores, values, self.image)


def _attention_to(image: Tensor, places: Tensor, attn: nn.Module, tokens: Tensor) -> CrossAttention:
    return (_Absorbed if _is_narrow(attn, tokens) else _Projected)(image, places)


def _add_answer(attn: nn.Module, scores: Tensor, values: Tensor, image: Tensor) -> Tensor:
    """What image tokens get from `values` `[n, t, C]` by scores `[n, heads, t, N]`, added to `image` `[n, N, C]`.

    In place: `image` is the decoder's own, and the state before is not read again, except for gradients.
    """
    tracked = torch.is_grad_enabled()
    weights = torch.softmax(scores, 2)  # over the tokens, which do not lie innermost: a softmax of 7 numbers is slow
    narrow, values = _is_narrow(attn, values), _heads(attn, attn.v_proj(values))
    if narrow:  # a head's weights sum to one, so each head may bring its share of the bias
        out = attn.out_proj.weight.view(-1, attn.num_heads, values.shape[-1]).permute(1, 2, 0)
        answers = (values @ out + attn.out_proj.bias / attn.num_heads).flatten(1, 2)
        add = image.baddbmm if tracked else image.baddbmm_
        return add(weights.flatten(1, 2).transpose(1, 2), answers)
    answer = attn.out_proj((weights.transpose(2, 3) @ values).transpose(1, 2).flatten(2))
    return image + answer if tracked else image.add_(answer)


def _attend_to_self(layer: nn.Module, queries: Tensor, prompt: Tensor) -> Tensor:
    if layer.skip_first_layer_pe:
        return layer.self_attn(q=queries, k=queries, v=queries)
    placed = queries + prompt
    return queries + layer.self_attn(q=placed, k=placed, v=queries)


def _is_narrow(attn: nn.Module, tokens: Tensor) -> bool:
    """Whether multiplying the image by the tokens' own matrix is less work than projecting it."""
    return tokens.shape[1] * attn.num_heads < attn.internal_dim


def _heads(attn: nn.Module, x: Tensor) -> Tensor:
    """`[n, t, I]` -> `[n, heads, t, d]`."""
    return x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)


def _by_head(attn: nn.Module, projection: nn.Linear) -> Tensor:
    """A projection's weight `[I, C]` -> `[heads, d, C]`."""
    return projection.weight.view(attn.num_heads, -1, projection.in_features)


def _scores(tokens: Tensor, image: Tensor) -> Tensor:
    """Scaled scores `[n, heads, t, N]` of tokens `[n, heads, t, d]` and image `[n or 1, heads, N, d]`."""
    tokens = tokens * tokens.shape[-1] ** -0.5
    if len(image) == len(tokens):
        return tokens @ image.transpose(2, 3)
    n, heads, count, size = tokens.shape  # one image for all: one product per head
    together = tokens.transpose(0, 1).reshape(heads, n * count, size) @ image[0].transpose(1, 2)
    return together.view(heads, n, count, -1).transpose(0, 1)


def _weights(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Attention over the image from scores `[n, heads, t, N]` and a bias `[n or 1, 1, 1, N]`."""
    return torch.softmax(scores if bias is None else scores + bias, -1)


def _mix(asking: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of `[n, heads, t, d]` over keys and values `[n or 1, heads, N, d]`; for `bias` see `_weights`."""
    weights = _weights(_scores(asking, keys), bias)
    if len(values) == len(weights):
        return weights @ values
    n, heads, count, tokens = weights.shape
    together = weights.transpose(0, 1).reshape(heads, n * count, tokens) @ values[0]
    return together.view(heads, n, count, -1).transpose(0, 1)


def _as_linear(convolution: nn.ConvTranspose2d, linear: LinearKind) -> Linear:
    """A transposed convolution of stride = kernel = 2 as a layer with outputs (row, column, channel)."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
    return linear(weight, convolution.bias.repeat(4), torch.float32)

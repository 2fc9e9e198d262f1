"""MaskDecoder.predict_masks with the same weights and the same arithmetic, several times faster, above all for many prompts.

What differs from segment_anything's mask_decoder.py and transformer.py, none of it in the result but for the order of sums:

- What all prompts of a picture share is computed once: the first layer's keys, values and queries of the picture (they differ
  only from the first answer on), and, once for a model, every projection of the positions.
- Cross attention with few tokens never projects the picture: `q (W x)` is computed as `(q W) x`, 7 tokens x 8 heads wide.
- Transposed convolutions with stride = kernel are linear layers on channels-last tokens; only the final logits are shuffled.
- The predicted IoU comes first: prompts that it rejects are never upscaled.
- A few prompts at a time, so that their 4 MiB each stay in the cache.

The parts are separate, so that other decoders of the family (further output tokens, other upscaling) can be built of them.
"""

from typing import NamedTuple

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from .linear import Linear, LinearKind

_PROMPTS_AT_A_TIME = {"cpu": 2}
_ALL = 64  # elsewhere


class Picture(NamedTuple):
    """What all prompts of one picture share; N = h*w.

    Attributes:
        tokens: `[1, N, C]`, the embedding with the no-mask prompt added.
        keys, values, queries: `[1, N, I]`, the first layer's projections of it, in both directions.
    """

    tokens: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(part.numel() * part.element_size() for part in self)


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
    """What an example says about where to look and what for ("Personalize Segment Anything", arXiv 2305.03048, section 3.2).

    The arithmetic is that of transformers' `SamModel` (5.x) with `attention_similarity` and `target_embedding`.

    Attributes:
        attention: `[1 or n, N]`, added to the scores by which the tokens attend to the picture, in every layer but the
            last look: target-guided attention.
        target: `[1 or n, C]`, added to all tokens before every layer: target-semantic prompting.
    """

    attention: Tensor
    target: Tensor

    def of(self, part: slice) -> "Guidance":
        """The guidance of some prompts; one row counts for all."""
        return Guidance(*(rows if len(rows) == 1 else rows[part] for rows in self))


class FastDecoder:
    """A plan to run one model's mask decoder on one device, in float32.

    Args:
        model: one with segment_anything's MaskDecoder; its weights are used where they are.
        linear: which linear layers for the upscaling.
    """

    def __init__(self, model: Sam, linear: LinearKind) -> None:
        # Its parts and not the decoder itself: the plan is kept for as long as the decoder lives, and must not be why it does.
        decoder = model.mask_decoder
        self.transformer, self.score, self.networks = (
            decoder.transformer,
            decoder.iou_prediction_head,
            decoder.output_hypernetworks_mlps,
        )
        self.mask_tokens = decoder.num_mask_tokens
        self.grid = model.prompt_encoder.image_embedding_size
        self.absent = model.prompt_encoder.no_mask_embed.weight
        self.own_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        place = model.prompt_encoder.get_dense_pe().flatten(2)[0].T.contiguous()
        layers, last = self.transformer.layers, self.transformer.final_attn_token_to_image
        self.key_places = [layer.cross_attn_token_to_image.k_proj(place) for layer in layers] + [last.k_proj(place)]
        self.query_places = [layer.cross_attn_image_to_token.q_proj(place) for layer in layers]
        first, self.norm, _, second, _ = decoder.output_upscaling
        self.upscale_first, self.upscale_second = _as_linear(first, linear), _as_linear(second, linear)
        self.fine_channels = second.out_channels

    def look_at(self, features: Tensor) -> Picture:
        """Compute what the prompts of a picture share, from its embedding `[C, h, w]`."""
        tokens = (features.flatten(1).T + self.absent)[None].contiguous()
        into, back = (getattr(self.transformer.layers[0], f"cross_attn_{way}") for way in ("token_to_image", "image_to_token"))
        keys = F.linear(tokens, into.k_proj.weight) + self.key_places[0]
        queries = F.linear(tokens, back.q_proj.weight) + self.query_places[0]
        return Picture(tokens, keys, into.v_proj(tokens), queries)

    def rate(self, picture: Picture, sparse: Tensor, dense: Tensor | None, guidance: Guidance | None = None) -> Rated:
        """The transformer and the IoU head, `MaskDecoder.predict_masks` up to the masks.

        Args:
            picture: see `look_at`.
            sparse: prompt tokens `[n, K, C]`.
            dense: embedded mask prompts `[n, C, h, w]`, or None where no prompt has one.
            guidance: of an example, or None.
        """
        prompt = torch.cat([self.own_tokens.expand(len(sparse), -1, -1), sparse], 1)
        queries, image = self._transform(picture, prompt, dense, guidance)
        scores = self.score(queries[:, 0])
        return Rated(queries, image, scores)

    def masks(self, rated: Rated, wanted: slice, fine: Tensor | None) -> Tensor:
        """Low-resolution logits `[n, W, 4h, 4w]` of rated prompts, of W wanted tokens; `fine` features are a relative's."""
        return self.draw(rated, wanted, self.upscale(rated.image))

    def draw(self, rated: Rated, wanted: slice, upscaled: Tensor) -> Tensor:
        """The wanted tokens' logits on `upscale`d image tokens."""
        tokens = rated.queries[:, 1 : 1 + self.mask_tokens][:, wanted]
        networks = self.networks[wanted]
        hyper = torch.stack([network(tokens[:, i]) for i, network in enumerate(networks)], 1)
        return self.to_grid(hyper @ upscaled.transpose(1, 2))

    def upscale(self, image: Tensor) -> Tensor:
        """Image tokens `[n, N, C]` -> `[n, N*16, C/8]`: each token's 4x4 pixels, as 2x2 of 2x2 (see `to_grid`)."""
        n, tokens, channels = image.shape
        norm, width = self.norm, self.norm.weight.shape[0]
        fine = image.new_empty(n * tokens, 4 * width)
        self.upscale_first.into(image.reshape(-1, channels), fine)
        fine = F.gelu(F.layer_norm(fine.view(-1, width), (width,), norm.weight, norm.bias, norm.eps))
        return self.upscale_second.gelu(fine).view(n, tokens * 16, self.fine_channels)

    def to_grid(self, values: Tensor) -> Tensor:
        """Values `[n, T, N*16]` in the order of `upscale` -> `[n, T, 4h, 4w]`."""
        height, width = self.grid
        fine = values.view(*values.shape[:2], height, width, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return fine.reshape(*values.shape[:2], 4 * height, 4 * width)

    def __call__(
        self,
        picture: Picture,
        sparse: Tensor,
        dense: Tensor | None,
        wanted: slice,
        above: float | None = None,
        fine: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[m, W, 4h, 4w]`, predicted IoUs `[m, W]`, and which of the n prompts they are, `[m]`.

        Args:
            picture, sparse, dense, guidance: see `rate`.
            wanted: the W mask tokens to decode; the first is SAM's single mask, the others are its candidates.
            above: leave out prompts of which no wanted mask's predicted IoU exceeds this; None leaves out none.
            fine: see `masks`.
        """
        results = []
        size = _PROMPTS_AT_A_TIME.get(sparse.device.type, _ALL)
        for start in range(0, len(sparse), size):
            part = slice(start, start + size)
            guided = None if guidance is None else guidance.of(part)
            rated = self.rate(picture, sparse[part], None if dense is None else dense[part], guided)
            index = torch.arange(start, start + len(rated.scores), device=sparse.device)
            if above is not None:
                kept = (rated.scores[:, wanted] > above).any(1)
                rated, index = Rated(*(x[kept] for x in rated)), index[kept]
            results.append((self.masks(rated, wanted, fine), rated.scores[:, wanted], index))
        logits, scores, indices = zip(*results, strict=True)
        return torch.cat(logits), torch.cat(scores), torch.cat(indices)

    def _transform(
        self, picture: Picture, prompt: Tensor, dense: Tensor | None, guidance: Guidance | None
    ) -> tuple[Tensor, Tensor]:
        """TwoWayTransformer.forward: queries `[n, t, C]` and image tokens `[n, N, C]`."""
        bias = target = None
        if guidance is not None:
            bias, target = guidance.attention[:, None, None], guidance.target[:, None]
            prompt = prompt + target  # PerSAM adds it in place, and so to the tokens' places too
        queries = prompt
        # A mask prompt replaces the no-mask one, for each prompt in its own way: nothing is shared then.
        image = None if dense is None else picture.tokens + (dense.flatten(2).transpose(1, 2) - self.absent)
        for index, layer in enumerate(self.transformer.layers):
            if target is not None and index:
                queries = queries + target
            queries = layer.norm1(_attend_to_self(layer, queries, prompt))
            known = picture if image is None else None
            into, places = layer.cross_attn_token_to_image, self.key_places[index]
            looked = self._look(into, queries + prompt, image, places, known, bias)
            queries = layer.norm2(queries + looked)
            queries = layer.norm3(queries + layer.mlp(queries))
            asked = self._ask(layer.cross_attn_image_to_token, queries + prompt, queries, image, index, known)
            image = F.layer_norm(asked, asked.shape[-1:], layer.norm4.weight, layer.norm4.bias, layer.norm4.eps)
        last = self.transformer.final_attn_token_to_image
        queries = queries + self._look(last, queries + prompt, image, self.key_places[-1], None)
        return self.transformer.norm_final_attn(queries), image

    def _look(
        self,
        attn: nn.Module,
        tokens: Tensor,
        image: Tensor | None,
        places: Tensor,
        known: Picture | None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Tokens `[n, t, C]` attend to the picture: `[n, t, C]`, to be added to them; `bias` is added to the scores."""
        asked = _heads(attn, attn.q_proj(tokens))
        if known is not None:
            mixed = _mix(asked, _heads(attn, known.keys), _heads(attn, known.values), bias)
        elif _is_narrow(attn, tokens):
            weights = _weights(_absorbed_scores(attn, asked, image, attn.k_proj, places), bias)
            seen = (weights.flatten(1, 2) @ image).view(*weights.shape[:3], -1)
            mixed = seen @ _by_head(attn, attn.v_proj).transpose(1, 2) + attn.v_proj.bias.view(attn.num_heads, 1, -1)
        else:
            keys = F.linear(image, attn.k_proj.weight) + places
            mixed = _mix(asked, _heads(attn, keys), _heads(attn, attn.v_proj(image)), bias)
        return attn.out_proj(mixed.transpose(1, 2).flatten(2))

    def _ask(
        self, attn: nn.Module, tokens: Tensor, values: Tensor, image: Tensor | None, index: int, known: Picture | None
    ) -> Tensor:
        """The picture attends to tokens `[n, t, C]` with other `values`: the answer, added to `image` `[n, N, C]` in place."""
        keys, values = _heads(attn, attn.k_proj(tokens)), _heads(attn, attn.v_proj(values))
        narrow = _is_narrow(attn, tokens)
        if known is not None:
            scores = _scores(keys, _heads(attn, known.queries))
            image = known.tokens.repeat(len(tokens), 1, 1)
        elif narrow:
            scores = _absorbed_scores(attn, keys, image, attn.q_proj, self.query_places[index])
        else:
            scores = _scores(keys, _heads(attn, F.linear(image, attn.q_proj.weight) + self.query_places[index]))
        weights = torch.softmax(scores, 2)  # over the tokens, which do not lie innermost: a softmax of 7 numbers is slow
        if narrow:  # a head's weights sum to one, so each head may bring its share of the bias
            out = attn.out_proj.weight.view(-1, attn.num_heads, values.shape[-1]).permute(1, 2, 0)
            answers = (values @ out + attn.out_proj.bias / attn.num_heads).flatten(1, 2)
            return image.baddbmm_(weights.flatten(1, 2).transpose(1, 2), answers)
        mixed = (weights.transpose(2, 3) @ values).transpose(1, 2).flatten(2)
        return image.add_(attn.out_proj(mixed))


def _attend_to_self(layer: nn.Module, queries: Tensor, prompt: Tensor) -> Tensor:
    if layer.skip_first_layer_pe:
        return layer.self_attn(q=queries, k=queries, v=queries)
    placed = queries + prompt
    return queries + layer.self_attn(q=placed, k=placed, v=queries)


def _is_narrow(attn: nn.Module, tokens: Tensor) -> bool:
    """Whether multiplying the picture by the tokens' own matrix is less work than projecting it."""
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
    n, heads, count, size = tokens.shape  # one picture for all: one product per head
    together = tokens.transpose(0, 1).reshape(heads, n * count, size) @ image[0].transpose(1, 2)
    return together.view(heads, n, count, -1).transpose(0, 1)


def _weights(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Attention over the picture from scores `[n, heads, t, N]` and a bias `[n or 1, 1, 1, N]`."""
    return torch.softmax(scores if bias is None else scores + bias, -1)


def _mix(asked: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of `[n, heads, t, d]` over keys and values `[n or 1, heads, N, d]`; for `bias` see `_weights`."""
    weights = _weights(_scores(asked, keys), bias)
    if len(values) == len(weights):
        return weights @ values
    n, heads, count, tokens = weights.shape
    together = weights.transpose(0, 1).reshape(heads, n * count, tokens) @ values[0]
    return together.view(heads, n, count, -1).transpose(0, 1)


def _absorbed_scores(attn: nn.Module, tokens: Tensor, image: Tensor, projection: nn.Linear, places: Tensor) -> Tensor:
    """`_scores` of tokens and `projection(image + position)`, the projection applied to the tokens; places has its bias."""
    n, heads, count, size = tokens.shape
    scores = _scores(tokens, _heads(attn, places[None])).reshape(n, heads * count, -1)
    absorbed = (tokens * size**-0.5) @ _by_head(attn, projection)
    return torch.baddbmm(scores, absorbed.flatten(1, 2), image.transpose(1, 2)).view(n, heads, count, -1)


def _as_linear(convolution: nn.ConvTranspose2d, linear: LinearKind) -> Linear:
    """A transposed convolution of stride = kernel = 2 as a layer with outputs (row, column, channel)."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
    return linear(weight, convolution.bias.repeat(4), torch.float32)

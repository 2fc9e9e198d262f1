"""The demonstration SAM as it is trained: its architecture, how it grows, and its forward pass for a whole batch.

Modules come from `segment_anything.modeling`, so the weights load in the stock package. Training runs them through the
batched functions below. They are not the runtime's: those have no gradient and one image at a time, as stock code has, and a
training step needs both, many images and their prompts together.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn import functional as F

PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)
NEGATIVE, POSITIVE, CORNER_A, CORNER_B, PAD = 0, 1, 2, 3, -1  # point labels of SAM's prompt encoder
PATCH, WINDOW, WIDTH = 16, 8, 128
PLAIN_BLOCKS = "wwgwwg"  # of an encoder trained from scratch: w attends in windows, g to the whole image

State = dict[str, Tensor]
_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.(.+)")


def build_sam(img_size: int, blocks: str = PLAIN_BLOCKS) -> Sam:
    """The demonstration architecture at an input of img_size x img_size pixels; 2.4 M parameters with PLAIN_BLOCKS."""
    grid = img_size // PATCH
    encoder = ImageEncoderViT(
        img_size=img_size, patch_size=PATCH, embed_dim=WIDTH, depth=len(blocks), num_heads=4, mlp_ratio=4, out_chans=WIDTH,
        qkv_bias=True, use_rel_pos=True, window_size=WINDOW,
        global_attn_indexes=tuple(i for i, kind in enumerate(blocks) if kind == "g"),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    prompt_encoder = PromptEncoder(
        embed_dim=WIDTH, image_embedding_size=(grid, grid), input_image_size=(img_size, img_size), mask_in_chans=16
    )
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=512, num_heads=8),
        transformer_dim=WIDTH, iou_head_depth=3, iou_head_hidden_dim=256,
    )  # fmt: skip
    return Sam(encoder, prompt_encoder, decoder, PIXEL_MEAN.tolist(), PIXEL_STD.tolist())


def size_of(state: State) -> int:
    """Side of the square input of a state dict, in pixels."""
    return state["image_encoder.pos_embed"].shape[1] * PATCH


def blocks_of(state: State) -> str:
    """The encoder's blocks in order, w for a window and g for a global one, from their relative positions."""
    spans = {int(m[1]): value.shape[0] for key, value in state.items() if (m := _BLOCK.match(key)) and m[2] == "attn.rel_pos_h"}
    whole = 2 * size_of(state) // PATCH - 1
    return "".join("g" if spans[i] == whole else "w" for i in range(len(spans)))


def insert_blocks(state: State, after: list[int]) -> State:
    """The same function with more encoder blocks: a copy of each block numbered in `after`, behind it, that adds nothing yet.

    The copy's output projections are zero, so that both residual branches are (as in Net2Net's deeper networks, and as
    zero-initialised residual branches are trained). Its norms, queries, keys and hidden layer begin as the block's own.
    """
    order = [i for i in range(len(blocks_of(state))) for _ in range(1 + after.count(i))]
    grown = {key: value for key, value in state.items() if not _BLOCK.match(key)}
    for new, old in enumerate(order):
        prefix = f"image_encoder.blocks.{old}."
        is_copy = new > 0 and order[new - 1] == old
        for key, value in state.items():
            if key.startswith(prefix):
                silent = is_copy and key.startswith((prefix + "attn.proj.", prefix + "mlp.lin2."))
                grown[f"image_encoder.blocks.{new}.{key[len(prefix) :]}"] = torch.zeros_like(value) if silent else value.clone()
    return grown


def resize_state(state: State, img_size: int) -> State:
    """A Sam state dict carried over to another input size: pos_embed bicubic, global rel_pos linear, the rest as is."""
    target = build_sam(img_size, blocks_of(state)).state_dict()
    moved = {}
    for key, value in state.items():
        want = target[key].shape
        if value.shape != want and key.endswith("pos_embed"):
            grid = F.interpolate(value.permute(0, 3, 1, 2), size=want[1:3], mode="bicubic", align_corners=False)
            value = grid.permute(0, 2, 3, 1).contiguous()
        elif value.shape != want:
            value = F.interpolate(value.T[None], size=want[0], mode="linear", align_corners=False)[0].T.contiguous()
        moved[key] = value
    return moved


def write_checkpoint(state: State, path: Path) -> None:
    """Write the weights in float16 as .safetensors under a temporary name, then move them into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".part")
    notes = {
        "title": "SAM Kit demonstration checkpoint",
        "license": "Apache-2.0",
        "img_size": str(size_of(state)),
        "note": "Trained on procedural scenes only; for demonstrations and tests, no substitute for SAM.",
    }
    save_file({key: value.detach().cpu().half().contiguous() for key, value in state.items()}, half, metadata=notes)
    half.chmod(0o644)  # safetensors leaves it readable by its owner only
    half.replace(path)


# --- the forward pass -----------------------------------------------------------------------------------------------


def encode(sam: Sam, images: Tensor) -> Tensor:
    """ImageEncoderViT.forward on images float32 [S, 3, size, size]; embeddings [S, h*w, C], channels last."""
    encoder = sam.image_encoder
    x = encoder.patch_embed(images) + encoder.pos_embed
    for block in encoder.blocks:
        y, grid = block.norm1(x), x.shape[1:3]
        if block.window_size:
            y, padded = window_partition(y, block.window_size)
            y = window_unpartition(_attend_grid(block.attn, y), block.window_size, padded, grid)
        else:
            y = _attend_grid(block.attn, y)
        x = x + y
        x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


def _attend_grid(attn: nn.Module, x: Tensor) -> Tensor:
    """The encoder's attention on x [B, H, W, C].

    The decomposed relative positions are folded into the product of queries and keys: the queries carry their biases
    for every row and column, the keys a one-hot row and column. One matrix product then does what stock code does
    with two more passes over the attention matrix.
    """
    batch, height, width, _ = x.shape
    heads = attn.num_heads
    q, k, v = attn.qkv(x).reshape(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    grid = q.reshape(batch, heads, height, width, -1)
    rows = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(height, height, attn.rel_pos_h)).flatten(2, 3)
    cols = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(width, width, attn.rel_pos_w)).flatten(2, 3)
    row_hot = torch.eye(height, device=x.device).repeat_interleave(width, 0).expand(batch, heads, -1, -1)
    col_hot = torch.eye(width, device=x.device).repeat(height, 1).expand(batch, heads, -1, -1)
    scores = torch.cat([q * attn.scale, rows, cols], -1) @ torch.cat([k, row_hot, col_hot], -1).transpose(-1, -2)
    mixed = torch.softmax(scores, -1) @ v
    return attn.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))


def fourier(sam: Sam, places: Tensor) -> Tensor:
    """PositionEmbeddingRandom on places [..., 2] in 0..1 -> [..., C].

    Written without a matrix product: in bfloat16 that would round the coordinates to whole pixels and worse.
    """
    matrix = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    places = 2 * places - 1
    angle = 2 * np.pi * (places[..., :1] * matrix[0] + places[..., 1:] * matrix[1])
    return torch.cat([angle.sin(), angle.cos()], -1)


def dense_places(sam: Sam) -> Tensor:
    """Positional encoding of the embedding grid, [1, h*w, C] (PromptEncoder.get_dense_pe, channels last)."""
    height, width = sam.prompt_encoder.image_embedding_size
    device = sam.pixel_mean.device
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    grid = torch.stack([x[None].expand(height, -1), y[:, None].expand(-1, width)], -1)
    return fourier(sam, grid.reshape(1, -1, 2))


def embed_points(sam: Sam, coords: Tensor, labels: Tensor) -> Tensor:
    """Sparse prompt tokens [B, K, C] from coords [B, K, 2] (x, y in the model frame) and labels [B, K].

    Boxes are two points labelled CORNER_A and CORNER_B, as in PromptEncoder._embed_boxes.
    """
    encoder = sam.prompt_encoder
    tokens = fourier(sam, (coords + 0.5) / encoder.input_image_size[0])
    tokens = tokens * (labels != PAD)[..., None]
    table = torch.cat([encoder.not_a_point_embed.weight] + [e.weight for e in encoder.point_embeddings])
    return tokens + table[labels + 1]


def embed_masks(sam: Sam, masks: Tensor | None, given: Tensor | None, count: int) -> Tensor:
    """Dense prompt tokens [B, h*w, C] from logits [B, 1, 4h, 4w]; rows where given [B] is False have no mask prompt."""
    encoder = sam.prompt_encoder
    height, width = encoder.image_embedding_size
    absent = encoder.no_mask_embed.weight.reshape(1, 1, -1)
    if masks is None or given is None:
        return absent.expand(count, height * width, -1)
    dense = encoder.mask_downscaling(masks).flatten(2).transpose(1, 2)
    return torch.where(given[:, None, None], dense, absent)


def decode(sam: Sam, image: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """MaskDecoder.predict_masks for prompts of several photos at once.

    image: embeddings [S, h*w, C] of S photos; sparse [S*P, K, C] and dense [S*P, h*w, C]: P prompts per photo.
    Returns logits float32 [S*P, 4, 4h, 4w] and predicted IoU [S*P, 4]. The transposed convolutions (kernel = stride)
    are written as linear layers, which keeps the channels last and saves most of the time.
    """
    decoder = sam.mask_decoder
    height, width = sam.prompt_encoder.image_embedding_size
    count = sparse.shape[0]
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None].expand(count, -1, -1)
    tokens = torch.cat([own, sparse], 1)
    keys = image.repeat_interleave(count // image.shape[0], 0) + dense
    place = dense_places(sam)
    queries = tokens
    for layer in decoder.transformer.layers:
        queries, keys = _two_way(layer, queries, keys, tokens, place)
    attended = _attend(decoder.transformer.final_attn_token_to_image, queries + tokens, keys + place, keys)
    queries = decoder.transformer.norm_final_attn(queries + attended)
    first, norm, _, second, _ = decoder.output_upscaling
    pixels = _deconvolve(first, keys)
    pixels = F.gelu(F.layer_norm(pixels, pixels.shape[-1:], norm.weight, norm.bias, norm.eps))
    pixels = F.gelu(_deconvolve(second, pixels))  # [B, hw, 4, 4, C/8]
    hyper = torch.stack([mlp(queries[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 2)
    masks = pixels.reshape(count, -1, pixels.shape[-1]).float() @ hyper.float()
    masks = masks.view(count, height, width, 2, 2, 2, 2, 4).permute(0, 7, 1, 3, 5, 2, 4, 6)
    scores = decoder.iou_prediction_head(queries[:, 0])
    return masks.reshape(count, 4, 4 * height, 4 * width), scores.float()


def _two_way(layer: nn.Module, queries: Tensor, keys: Tensor, tokens: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """TwoWayAttentionBlock.forward on queries [B, K, C] and keys [B, h*w, C] with their positions."""
    if layer.skip_first_layer_pe:
        queries = _attend(layer.self_attn, queries, queries, queries)
    else:
        queries = queries + _attend(layer.self_attn, queries + tokens, queries + tokens, queries)
    queries = layer.norm1(queries)
    placed = keys + place
    queries = layer.norm2(queries + _attend(layer.cross_attn_token_to_image, queries + tokens, placed, keys))
    queries = layer.norm3(queries + layer.mlp(queries))
    keys = layer.norm4(keys + _attend(layer.cross_attn_image_to_token, placed, queries + tokens, queries))
    return queries, keys


def _attend(layer: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The decoder's attention; many queries on few keys are computed transposed, as a softmax over 8 numbers is slow."""
    q, k, v = (
        layer._separate_heads(project(x), layer.num_heads)
        for project, x in ((layer.q_proj, q), (layer.k_proj, k), (layer.v_proj, v))
    )
    scale = q.shape[-1] ** -0.5
    if q.shape[2] <= k.shape[2]:
        mixed = torch.softmax((q * scale) @ k.transpose(-1, -2), -1) @ v
        return layer.out_proj(layer._recombine_heads(mixed))
    mixed = v.transpose(-1, -2) @ torch.softmax((k * scale) @ q.transpose(-1, -2), 2)
    return layer.out_proj(mixed.flatten(1, 2).transpose(1, 2))


def _deconvolve(layer: nn.ConvTranspose2d, tokens: Tensor) -> Tensor:
    """ConvTranspose2d with kernel 2 and stride 2 on channels-last tokens [..., C] -> [..., 4, D], 4 = row-major 2x2."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    out = F.linear(tokens, weight, layer.bias.repeat(4))
    return out.view(*tokens.shape[:-1], 4, -1)

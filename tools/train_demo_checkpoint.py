"""Train the small demonstration SAM on procedural scenes and write it as one .safetensors file in Meta's key layout.

    python tools/train_demo_checkpoint.py --output sam/weights/bundled/samkit_demo.safetensors

The defaults make a similar checkpoint, not the bundled one: its model card describes that run. A run can be stopped and
continued with --resume: the full state is written next to the log in --work-dir. The exported weights are the exponential
moving average.

Modules come from `segment_anything.modeling`, so the file loads in the stock package. Training runs their weights through the
batched functions below. They are not the runtime's: those have no gradient and one image at a time, as stock code has, and a
training step needs both, many images and their prompts together.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from scenes import Mask, Scene, interior_point, make_scene, tight_box
from scipy import ndimage
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger("train")

SIZES = (256, 512)  # model input in the first and in the second stage
PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)
SCORE_WEIGHT = 5.0  # of the predicted IoU's error: with 1, the best candidate was there but not chosen
ROUNDS = (3, 1, 2, 1)  # prompt rounds of successive steps, once the first click has caught on
EVAL_SEEDS = 1_000_000_000  # training seeds stay below, held-out ones start here
NEGATIVE, POSITIVE, CORNER_A, CORNER_B, PAD = 0, 1, 2, 3, -1  # point labels of SAM's prompt encoder


# --- the model ------------------------------------------------------------------------------------------------------


def build_sam(img_size: int) -> Sam:
    """The demonstration architecture at an input of img_size x img_size pixels, 2.2 M parameters."""
    width, grid = 128, img_size // 16
    encoder = ImageEncoderViT(
        img_size=img_size, patch_size=16, embed_dim=width, depth=6, num_heads=4, mlp_ratio=4, out_chans=width,
        qkv_bias=True, use_rel_pos=True, window_size=8, global_attn_indexes=(2, 5),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    prompt_encoder = PromptEncoder(
        embed_dim=width, image_embedding_size=(grid, grid), input_image_size=(img_size, img_size), mask_in_chans=16
    )
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=512, num_heads=8),
        transformer_dim=width, iou_head_depth=3, iou_head_hidden_dim=256,
    )  # fmt: skip
    return Sam(encoder, prompt_encoder, decoder, PIXEL_MEAN.tolist(), PIXEL_STD.tolist())


def resize_state(state: dict[str, Tensor], img_size: int) -> dict[str, Tensor]:
    """A Sam state dict carried over to another input size: pos_embed bicubic, global rel_pos linear, the rest as is."""
    target = build_sam(img_size).state_dict()
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
    """MaskDecoder.predict_masks for prompts of several pictures at once.

    image: embeddings [S, h*w, C] of S pictures; sparse [S*P, K, C] and dense [S*P, h*w, C]: P prompts per picture.
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


# --- training data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A scene as the model at one input size sees it, before padding.

    image: uint8 [h, w, 3]. targets: uint8 [N, h/2, w/2], share (of 255) of each 2x2 pixels that the object covers.
    boxes: float32 [N, 4] xyxy and points: float32 [N, 2] (most interior pixel), both in model pixels.
    """

    image: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    points: NDArray[np.float32]


def training_size(rng: Generator) -> tuple[int, int]:
    """A picture size whose resized sides are multiples of 4 at every input size, so that flips keep the mask grid."""
    unit = int(rng.choice([6, 7, 8]))
    short = int(rng.choice([36, 42, 44, 48, 54, 64])) * unit
    return (short, 64 * unit) if rng.random() < 0.6 else (64 * unit, short)


def make_views(scene: Scene) -> dict[int, View]:
    """A scene at every input size: PIL bilinear for the picture, as the predictor does, and area for the masks."""
    height, width = scene.image.shape[:2]
    boxes = np.array([tight_box(m) for m in scene.masks], np.float32)
    points = np.array([interior_point(m) for m in scene.masks], np.float32)
    views = {}
    for size in SIZES:
        scale = size / max(height, width)
        new_h, new_w = int(height * scale + 0.5), int(width * scale + 0.5)
        image = np.array(Image.fromarray(scene.image).resize((new_w, new_h), Image.Resampling.BILINEAR))
        sheets = [Image.fromarray(m.view(np.uint8) * 255) for m in scene.masks]
        targets = [np.asarray(sheet.resize((new_w // 2, new_h // 2), Image.Resampling.BOX)) for sheet in sheets]
        factor = np.array([new_w / width, new_h / height] * 2, np.float32)
        views[size] = View(image, np.stack(targets), boxes * factor, points * factor[:2])
    return views


def produce(out: mp.Queue, seed: int) -> None:
    """Endless scenes, each as one View per input size, into a queue; a process of low priority."""
    os.nice(10)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    while True:
        out.put(make_views(make_scene(int(rng.integers(EVAL_SEEDS)), training_size(rng))))


class Pool:
    """Scenes kept for reuse: filled from the producers as fast as they come, the oldest replaced when full."""

    def __init__(self, source: mp.Queue, capacity: int, first: int) -> None:
        """Wait for `first` scenes, then go on with what is there."""
        self.source, self.capacity, self.made = source, capacity, first
        self.items: list[dict[int, View]] = [source.get() for _ in range(first)]

    def refill(self) -> None:
        """Take what the producers have ready, without waiting."""
        for _ in range(8):
            try:
                item = self.source.get_nowait()
            except queue.Empty:
                return
            if len(self.items) < self.capacity:
                self.items.append(item)
            else:
                self.items[self.made % self.capacity] = item
            self.made += 1

    def draw(self, rng: Generator, img_size: int) -> View:
        """A random scene, flipped, transposed and with its colour channels permuted at random."""
        view = self.items[int(rng.integers(len(self.items)))][img_size]
        return augment(rng, view)


def augment(rng: Generator, view: View) -> View:
    """Random transposition, flips and, at times, another order of the colour channels."""
    image, targets, boxes, points = view.image, view.targets, view.boxes, view.points
    if rng.random() < 0.5:
        image, targets = image.transpose(1, 0, 2), targets.transpose(0, 2, 1)
        boxes, points = boxes[:, [1, 0, 3, 2]], points[:, ::-1]
    height, width = image.shape[:2]
    for axis, side in ((0, width), (1, height)):
        if rng.random() < 0.5:
            image, targets = np.flip(image, 1 - axis), np.flip(targets, 2 - axis)
            boxes, points = boxes.copy(), points.copy()
            boxes[:, [axis, axis + 2]] = side - 1 - boxes[:, [axis + 2, axis]]
            points[:, axis] = side - 1 - points[:, axis]
    if rng.random() < 0.4:
        image = image[..., rng.permutation(3)]
    return View(image, targets, boxes, points)


def to_input(image: NDArray[np.uint8], img_size: int) -> Tensor:
    """uint8 [h, w, 3] in the model frame -> float32 [3, img_size, img_size], normalised, then padded with zeros."""
    padded = np.zeros((img_size, img_size, 3), np.float32)
    padded[: image.shape[0], : image.shape[1]] = (image - PIXEL_MEAN) / PIXEL_STD
    return torch.from_numpy(padded).permute(2, 0, 1)


@dataclass
class Batch:
    """S scenes with P prompts each, B = S * P.

    images: float32 [S, 3, size, size]. targets: float32 [B, 1, size/2, size/2] in 0..1, twice as fine as the logits.
    coords [B, K, 2] in model pixels and labels [B, K]: the first prompts.
    """

    images: Tensor
    targets: Tensor
    coords: Tensor
    labels: Tensor


def first_prompt(rng: Generator, view: View, index: int) -> tuple[NDArray[np.float32], list[int]]:
    """A click (coords [2, 2] with a padding point) or a jittered box for one object, and the two labels."""
    if rng.random() < 0.5:
        box = view.boxes[index]
        side = np.array([box[2] - box[0], box[3] - box[1]] * 2, np.float32)
        jitter = rng.normal(0, 0.06, 4) * side * (rng.random() < 0.2)
        limit = np.array(view.image.shape[1::-1] * 2, np.float32)
        return np.clip(box + np.clip(jitter, -12, 12), 0, limit).reshape(2, 2).astype(np.float32), [CORNER_A, CORNER_B]
    click = view.points[index]
    if rng.random() < 0.6:
        click = random_cell(rng, view.targets[index] >= 160, 2)
        click = view.points[index] if click is None else click
    return np.stack([click, np.zeros(2, np.float32)]).astype(np.float32), [POSITIVE, PAD]


def random_cell(rng: Generator, cells: Mask, side: int) -> NDArray[np.float32] | None:
    """A random model pixel (x, y) within the marked cells, each `side` pixels wide; None if there are none."""
    flat = np.flatnonzero(cells)
    if not len(flat):
        return None
    row, col = divmod(int(flat[rng.integers(len(flat))]), cells.shape[1])
    return np.array([col, row], np.float32) * side + rng.uniform(0, side - 1, 2).astype(np.float32)


def make_batch(rng: Generator, pool: Pool, img_size: int, scenes: int, prompts: int) -> Batch:
    """Draw scenes, objects and first prompts."""
    grid = img_size // 2
    images, coords, labels = [], [], []
    targets = np.zeros((scenes * prompts, 1, grid, grid), np.float32)
    for s in range(scenes):
        view = pool.draw(rng, img_size)
        images.append(to_input(view.image, img_size))
        count = len(view.targets)
        order = np.concatenate([rng.permutation(count) for _ in range(prompts // count + 1)])[:prompts]
        for p, index in enumerate(order):
            xy, label = first_prompt(rng, view, int(index))
            coords.append(xy)
            labels.append(label)
            rows, cols = view.targets.shape[1:]
            targets[s * prompts + p, 0, :rows, :cols] = view.targets[index] / np.float32(255)
    return Batch(torch.stack(images), torch.from_numpy(targets), torch.from_numpy(np.stack(coords)), torch.tensor(labels))


def corrective_click(rng: Generator, predicted: Mask, wanted: Mask) -> tuple[NDArray[np.float32], int]:
    """A click (x, y) in model pixels and its label where two low-resolution masks [G, G] differ.

    Half of them at the middle of the largest error region, as the measurement does; else anywhere in the error.
    """
    wrong = predicted ^ wanted
    if not wrong.any():
        anywhere = random_cell(rng, wanted, 4)
        return (np.zeros(2, np.float32), PAD) if anywhere is None else (anywhere, POSITIVE)
    if rng.random() < 0.5:
        click = random_cell(rng, wrong, 4)
        assert click is not None
        row, col = int(click[1]) // 4, int(click[0]) // 4
    else:
        col, row = (int(v) for v in interior_point(largest_piece(wrong)))
        click = np.array([col * 4 + 1.5, row * 4 + 1.5], np.float32)
    return click, POSITIVE if wanted[row, col] else NEGATIVE


def largest_piece(mask: Mask) -> Mask:
    """The largest connected component of a non-empty mask bool [H, W]."""
    pieces, count = ndimage.label(mask)
    return mask if count == 1 else pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())


# --- losses ---------------------------------------------------------------------------------------------------------


def mask_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss [B, M] (2 x BCE + 2 x dice) of logits [B, M, h, w] against soft targets [B, 1, h, w], and their IoU [B, M].

    The IoU is of the thresholded mask with the soft target (sum of minima over sum of maxima), so that it counts parts of
    cells at the target's edge.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets.expand_as(logits), reduction="none").flatten(2).mean(2)
    chance = logits.sigmoid().flatten(2)
    wanted = targets.flatten(2)
    inter, total = (chance @ wanted.transpose(1, 2))[..., 0], chance.square().sum(2) + wanted.square().sum(2)
    dice = 1 - (2 * inter + 1) / (total + 1)
    with torch.no_grad():
        inside = (logits.flatten(2) > 0).float()
        low = torch.minimum(inside, wanted).sum(2)
        iou = low / (inside.sum(2) + wanted.sum(2) - low).clamp(min=1e-6)
    return 2 * bce + 2 * dice, iou


def round_loss(logits: Tensor, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scalar loss of a prompt round and the IoU [B, 4]: token 0 by itself, the best of tokens 1 to 3, the IoU head.

    Those two are compared with targets [B, 1, 2G, 2G] after enlargement, as in use: what a small object's edge needs
    of the logits [B, 4, G, G] is that they interpolate well.
    """
    loss, iou = mask_losses(logits, F.avg_pool2d(targets, 2))
    best = 1 + loss[:, 1:].argmin(1)
    pair = torch.stack([logits[:, 0], logits[torch.arange(len(best)), best]], 1)
    fine, _ = mask_losses(F.interpolate(pair, scale_factor=2, mode="bilinear", align_corners=False), targets)
    spare = 0.02 * loss[:, 1:].mean()  # keeps every candidate alive
    return fine.mean(0).sum() + spare + SCORE_WEIGHT * F.mse_loss(scores, iou), iou


def step_loss(sam: Sam, batch: Batch, rounds: int, rng: Generator) -> tuple[Tensor, list[float]]:
    """Loss over all prompt rounds, and for the log the mean IoU per round (best-scored candidate, then token 0)."""
    device = batch.images.device
    total = torch.zeros((), device=device)
    seen: list[float] = []
    coords, labels = batch.coords, batch.labels
    previous: Tensor | None = None
    given: Tensor | None = None
    image = encode(sam, batch.images)
    for turn in range(rounds):
        sparse = embed_points(sam, coords, labels)
        logits, scores = decode(sam, image, sparse, embed_masks(sam, previous, given, len(coords)))
        loss, iou = round_loss(logits, scores, batch.targets)
        total = total + loss
        pick = 1 + scores[:, 1:].argmax(1) if turn == 0 else torch.zeros(len(iou), dtype=torch.long, device=device)
        seen.append(float(iou.gather(1, pick[:, None]).mean()))
        if turn + 1 < rounds:
            pick = torch.where((labels == CORNER_A).any(1), 0, pick)
            previous = logits.detach()[torch.arange(len(pick)), pick][:, None]
            coords, labels = add_clicks(rng, batch, previous, coords, labels)
            given = torch.from_numpy(rng.random(len(pick)) < 0.9).to(device)
    return total / rounds, seen


def add_clicks(rng: Generator, batch: Batch, logits: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Put one corrective click per prompt in front of the points so far (the padding or the box stays last)."""
    predicted = (logits[:, 0] > 0).cpu().numpy()
    wanted = (F.avg_pool2d(batch.targets[:, 0], 2) >= 0.5).cpu().numpy()
    clicks = [corrective_click(rng, p, w) for p, w in zip(predicted, wanted, strict=True)]
    xy = torch.from_numpy(np.stack([c for c, _ in clicks]))[:, None].to(coords)
    sign = torch.tensor([s for _, s in clicks])[:, None].to(labels)
    return torch.cat([xy, coords], 1), torch.cat([sign, labels], 1)


# --- measurement ----------------------------------------------------------------------------------------------------


def mask_iou(predicted: Mask, wanted: Mask) -> float:
    """Intersection over union of two masks bool [H, W]; 1 if both are empty."""
    union = int((predicted | wanted).sum())
    return int((predicted & wanted).sum()) / union if union else 1.0


def error_click(predicted: Mask, wanted: Mask) -> tuple[tuple[float, float], int]:
    """The most interior pixel (x, y) of the largest error region and its label; a positive one if there is no error."""
    wrong = predicted ^ wanted
    if not wrong.any():
        return interior_point(wanted), POSITIVE
    x, y = interior_point(largest_piece(wrong))
    return (x, y), POSITIVE if wanted[int(y), int(x)] else NEGATIVE


class SceneDecoder:
    """One encoded scene: prompts in source pixels to masks at source size, for all its objects at once."""

    def __init__(self, sam: Sam, image: NDArray[np.uint8]) -> None:
        """image: uint8 [H, W, 3]."""
        self.sam, self.size = sam, sam.image_encoder.img_size
        self.height, self.width = image.shape[:2]
        scale = self.size / max(self.height, self.width)
        self.new_h, self.new_w = int(self.height * scale + 0.5), int(self.width * scale + 0.5)
        picture = Image.fromarray(image).resize((self.new_w, self.new_h), Image.Resampling.BILINEAR)
        self.device = sam.pixel_mean.device
        x = to_input(np.asarray(picture), self.size)[None].to(self.device)
        self.embedding = encode(sam, x)

    def __call__(self, coords: NDArray[np.float32], labels: NDArray[np.int64], logits: Tensor | None) -> tuple[Tensor, Tensor]:
        """Source-pixel coords [N, K, 2], labels [N, K], logits [N, 1, G, G] or None -> logits [N, 4, G, G], IoU [N, 4]."""
        factor = np.array([self.new_w / self.width, self.new_h / self.height], np.float32)
        xy = torch.from_numpy(coords.astype(np.float32) * factor).to(self.device)
        sparse = embed_points(self.sam, xy, torch.from_numpy(labels).to(self.device))
        given = None if logits is None else torch.ones(len(xy), dtype=torch.bool, device=self.device)
        return decode(self.sam, self.embedding, sparse, embed_masks(self.sam, logits, given, len(xy)))

    def masks(self, logits: Tensor) -> Mask:
        """Logits [N, G, G] -> masks bool [N, H, W], by Sam.postprocess_masks and threshold 0."""
        full = self.sam.postprocess_masks(logits[:, None], (self.new_h, self.new_w), (self.height, self.width))
        return (full[:, 0] > 0).cpu().numpy()


@torch.inference_mode()
def measure_scene(sam: Sam, scene: Scene) -> NDArray[np.float64]:
    """IoU [N, 4] of every object: click (best-scored of three), box (token 0), click + 1, click + 2 corrections."""
    decoder = SceneDecoder(sam, scene.image)
    count = len(scene.masks)
    result = np.zeros((count, 4))
    boxes = np.array([tight_box(m) for m in scene.masks], np.float32).reshape(count, 2, 2)
    logits, _ = decoder(boxes, np.tile([CORNER_A, CORNER_B], (count, 1)), None)
    result[:, 1] = [mask_iou(p, w) for p, w in zip(decoder.masks(logits[:, 0]), scene.masks, strict=True)]
    coords = np.array([[interior_point(m), (0, 0)] for m in scene.masks], np.float32)
    labels = np.tile([POSITIVE, PAD], (count, 1))
    logits, scores = decoder(coords, labels, None)
    chosen = logits[torch.arange(count), 1 + scores[:, 1:].argmax(1)]
    for column in (0, 2, 3):
        if column:
            logits, _ = decoder(coords, labels, chosen[:, None])
            chosen = logits[:, 0]
        predicted = decoder.masks(chosen)
        result[:, column] = [mask_iou(p, w) for p, w in zip(predicted, scene.masks, strict=True)]
        clicks = [error_click(p, w) for p, w in zip(predicted, scene.masks, strict=True)]
        coords = np.concatenate([np.array([[c] for c, _ in clicks], np.float32), coords], 1)
        labels = np.concatenate([np.array([[s] for _, s in clicks]), labels], 1)
    return result


def measure(sam: Sam, seeds: Iterator[int] | range) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU [objects, 4] over the scenes of the seeds, and the diameter [objects] of each object in long sides."""
    ious, sizes = [], []
    for seed in seeds:
        scene = make_scene(seed)
        ious.append(measure_scene(sam, scene))
        sizes.extend(np.sqrt(m.sum() * 4 / np.pi) / max(m.shape) for m in scene.masks)
    return np.concatenate(ious), np.array(sizes)


# --- the run --------------------------------------------------------------------------------------------------------


class Average:
    """Exponential moving average of a model's parameters; early on the window grows with the steps."""

    def __init__(self, sam: Sam, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.state = {key: value.detach().clone() for key, value in sam.state_dict().items()}

    @torch.no_grad()
    def update(self, sam: Sam) -> None:
        """Move towards the model by one step."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        own, new = list(self.state.values()), list(sam.state_dict().values())
        torch._foreach_lerp_(own, new, weight)


def learning_rate(args: argparse.Namespace, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine from args.lr to a fiftieth of it over the whole run (progress 0..1)."""
    cosine = 0.5 * (1 + np.cos(np.pi * min(progress, 1.0)))
    return float(args.lr * min(1.0, (step + 1) / args.warmup) * (0.02 + 0.98 * cosine))


def make_optimizer(sam: Sam, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases, norms and embeddings."""
    named = [(key, p) for key, p in sam.named_parameters() if p.requires_grad]
    plain = [p for key, p in named if p.ndim < 2 or "embed" in key or "rel_pos" in key or "token" in key]
    chosen = {id(p) for p in plain}
    groups = [
        {"params": [p for _, p in named if id(p) not in chosen], "weight_decay": args.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), foreach=True)


def share_gradients(sam: Sam, world: int) -> None:
    """Replace every gradient by its mean over the processes."""
    params = [p for p in sam.parameters() if p.requires_grad]
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if world == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world
    for p, piece in zip(params, flat.split([p.numel() for p in params]), strict=True):
        p.grad = piece.view_as(p)


def write_checkpoint(state: dict[str, Tensor], path: Path, img_size: int) -> None:
    """Write the weights as .safetensors under a temporary name, then move them into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".part")
    notes = {
        "title": "SAM Kit demonstration checkpoint",
        "license": "Apache-2.0",
        "img_size": str(img_size),
        "note": "Trained on procedural scenes only; for demonstrations and tests, no substitute for SAM.",
    }
    save_file({key: value.detach().cpu().float().contiguous() for key, value in state.items()}, half, metadata=notes)
    half.chmod(0o644)  # safetensors leaves it readable by its owner only
    half.replace(path)


class Run:
    """One process of the training run: model, optimiser, average, data."""

    def __init__(self, args: argparse.Namespace, rank: int, source: mp.Queue) -> None:
        self.args, self.rank = args, rank
        self.device = torch.device(args.device if args.device == "cpu" else f"cuda:{rank % torch.cuda.device_count()}")
        self.step, self.elapsed = 0, 0.0
        torch.manual_seed(args.seed)
        saved = torch.load(self.state_path, weights_only=True) if args.resume else None
        self.set_size(saved["size"] if saved else SIZES[0], saved["model"] if saved else None)
        if saved:
            self.step, self.elapsed = saved["step"], saved["elapsed"]
            self.average.state = {key: value.to(self.device) for key, value in saved["average"].items()}
            self.average.steps = saved["average_steps"]
            self.optimizer.load_state_dict(saved["optimizer"])
        self.rng = np.random.default_rng([args.seed, rank, self.step])
        self.pool = Pool(source, args.pool, args.first_scenes)

    @property
    def state_path(self) -> Path:
        """Where the full state for --resume is kept."""
        return Path(self.args.work_dir) / "state.pt"

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or, with --minutes, by time, whichever is further."""
        by_time = self.elapsed / (60 * self.args.minutes) if self.args.minutes else 0.0
        return max(self.step / self.args.steps, by_time)

    def set_size(self, size: int, state: dict[str, Tensor] | None) -> None:
        """Build the model for an input size, with the given weights, and a fresh optimiser and average."""
        self.size = size
        self.sam = build_sam(size)
        if state is not None:
            self.sam.load_state_dict(resize_state(state, size))
        else:
            nn.init.trunc_normal_(self.sam.image_encoder.pos_embed, std=0.02)
        self.sam.to(self.device)
        self.sam.prompt_encoder.pe_layer.requires_grad_(False)
        self.optimizer = make_optimizer(self.sam, self.args)
        self.average = Average(self.sam, self.args.ema)

    def grow(self) -> None:
        """Go over to the next input size, keeping weights, average and the optimiser's moments where shapes allow."""
        moments = {key: self.optimizer.state.get(p) for key, p in self.sam.named_parameters()}
        average = self.average
        self.set_size(SIZES[1], self.sam.state_dict())
        for key, p in self.sam.named_parameters():
            old = moments[key]
            if old and old["exp_avg"].shape == p.shape:
                self.optimizer.state[p] = old
        self.average.state = resize_state(average.state, self.size)
        self.average.steps = average.steps

    def train_step(self) -> tuple[float, list[float]]:
        """One optimiser step on a fresh batch; the loss and the IoU per round."""
        args = self.args
        rounds = ROUNDS[self.step % len(ROUNDS)] if self.progress >= args.rounds_from else 1
        self.pool.refill()
        batch = make_batch(self.rng, self.pool, self.size, args.scenes, args.prompts)
        if self.device.type != "cpu":
            batch = Batch(*(t.to(self.device) for t in (batch.images, batch.targets, batch.coords, batch.labels)))
        loss, seen = step_loss(self.sam, batch, rounds, self.rng)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        share_gradients(self.sam, args.processes)
        nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        rate = learning_rate(args, self.step, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.average.update(self.sam)
        return float(loss.detach()), seen

    def save(self) -> None:
        """Write the averaged weights and the full state, each atomically."""
        folder = Path(self.args.work_dir)
        write_checkpoint(self.average.state, folder / "latest.safetensors", self.size)
        half = self.state_path.with_suffix(".part")
        torch.save(
            {
                "model": self.sam.state_dict(),
                "average": self.average.state,
                "average_steps": self.average.steps,
                "optimizer": self.optimizer.state_dict(),
                "size": self.size,
                "step": self.step,
                "elapsed": self.elapsed,
            },
            half,
        )
        half.replace(self.state_path)

    def evaluate(self, scenes: int) -> None:
        """Log the three protocols on held-out scenes, overall and for small objects."""
        sam = build_sam(self.size)
        sam.load_state_dict(self.average.state)
        ious, sizes = measure(sam.to(self.device).eval(), range(EVAL_SEEDS, EVAL_SEEDS + scenes))
        names = ("click", "box", "click+1", "click+2")
        for label, chosen in (("all", sizes > 0), ("small", sizes < 0.09), ("large", sizes >= 0.2)):
            figures = " ".join(f"{n} {v:.3f}" for n, v in zip(names, ious[chosen].mean(0), strict=True))
            log.info("eval step %d %s (%d objects): %s", self.step, label, int(chosen.sum()), figures)

    def agreed_progress(self) -> float:
        """Progress as the first process sees it, so that all change stage at the same step."""
        if self.args.processes == 1:
            return self.progress
        clock = torch.tensor([self.elapsed], dtype=torch.float64)
        dist.broadcast(clock, 0)
        self.elapsed = float(clock)
        return self.progress

    def loop(self) -> None:
        """Train to the end of the schedule."""
        args = self.args
        begun = time.monotonic() - self.elapsed
        losses: list[float] = []
        rounds: list[list[float]] = []
        next_eval = self.elapsed + 60 * args.eval_minutes
        while self.progress < 1:
            if self.size != SIZES[1] and self.progress >= args.large_from:
                self.grow()
            loss, seen = self.train_step()
            losses.append(loss)
            rounds.append(seen)
            self.step += 1
            self.elapsed = time.monotonic() - begun
            self.agreed_progress()
            if self.rank == 0 and self.step % args.log_every == 0:
                means = [np.mean([r[i] for r in rounds if len(r) > i]) for i in range(max(len(r) for r in rounds))]
                shown = " ".join(f"{m:.3f}" for m in means)
                log.info(
                    "step %d (%.1f min, %.2f step/s, size %d, lr %.1e, %d scenes made) loss %.4f iou %s",
                    self.step, self.elapsed / 60, self.step / self.elapsed, self.size,
                    self.optimizer.param_groups[0]["lr"], self.pool.made, np.mean(losses), shown,
                )  # fmt: skip
                losses, rounds = [], []
            if self.rank == 0 and self.step % args.save_every == 0:
                self.save()
            if self.elapsed > next_eval:
                next_eval += 60 * args.eval_minutes
                if self.rank == 0:
                    self.evaluate(args.eval_scenes)


def work(rank: int, args: argparse.Namespace, source: mp.Queue) -> None:
    """Body of one training process."""
    torch.set_num_threads(args.threads)
    if args.bf16:  # products of float32 tensors in bfloat16, where the processor can; everything else stays float32
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    Path(args.work_dir).mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.processes > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(args.port))
        dist.init_process_group("gloo", rank=rank, world_size=args.processes)
    run = Run(args, rank, source)
    if rank == 0:
        log.info("parameters: %d", sum(p.numel() for p in run.sam.parameters()))
    run.loop()
    if rank == 0:
        run.save()
        run.evaluate(args.eval_scenes)
        write_checkpoint(run.average.state, Path(args.output), run.size)
        log.info("wrote %s after %d steps and %.1f minutes", args.output, run.step, run.elapsed / 60)
    if args.processes > 1:
        dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    """The command line; the defaults make a checkpoint like the bundled one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="samkit_demo.safetensors", help="file to write at the end")
    work = str(Path(tempfile.gettempdir()) / "samkit_demo_train")
    parser.add_argument("--work-dir", default=work, help="snapshots and state for --resume")
    parser.add_argument("--resume", action="store_true", help="continue from the state in --work-dir")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=0, help="also end after this time, schedule included")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--processes", type=int, default=2, help="data-parallel processes")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--port", type=int, default=29533)
    parser.add_argument("--producers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--scenes", type=int, default=2, help="scenes of a step, per process")
    parser.add_argument("--prompts", type=int, default=6, help="prompts per scene")
    parser.add_argument("--pool", type=int, default=3000, help="scenes each process keeps for reuse")
    parser.add_argument("--first-scenes", type=int, default=150, help="scenes to wait for before the first step")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--rounds-from", type=float, default=0.25, help="progress at which three rounds begin")
    parser.add_argument("--large-from", type=float, default=0.5, help="progress at which the larger input begins")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 products on CPU")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--eval-minutes", type=float, default=15)
    parser.add_argument("--eval-scenes", type=int, default=60)
    parser.add_argument("--smoke", action="store_true", help="a run of a few seconds, to see that everything works")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.first_scenes, args.pool, args.eval_scenes, args.processes = 6, 4, 8, 2, 1
        args.log_every, args.save_every = 2, 4
    return args


def main() -> None:
    """Start the producers and the training processes."""
    args = parse_arguments()
    context = mp.get_context("spawn")
    source = context.Queue(maxsize=128)
    producers = [
        context.Process(target=produce, args=(source, args.seed + 1000 * k + int(args.resume) * 77), daemon=True)
        for k in range(args.producers)
    ]
    for process in producers:
        process.start()
    workers = [context.Process(target=work, args=(rank, args, source)) for rank in range(args.processes)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    for process in producers:
        process.terminate()
    if any(process.exitcode for process in workers):
        raise SystemExit("a training process failed")


if __name__ == "__main__":
    main()

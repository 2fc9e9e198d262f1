"""What the demonstration checkpoint is trained for: masks, their edges, true scores, features that know an object again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from demo_batches import Batch, corrective_click
from demo_network import CORNER_A, decode, embed_masks, embed_points, encode
from numpy.random import Generator
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

SCORE_WEIGHT = 5.0  # of the predicted IoU's squared error: with 1, the best candidate was there but not chosen
TEMPERATURE = 0.07  # of the cosine similarities between features


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss weighs beside the masks' own."""

    edges: float = 0.5
    scores: float = SCORE_WEIGHT
    alike: float = 0.1


def mask_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss [B, M] (2 x BCE + 2 x dice) of logits [B, M, h, w] against soft targets [B, 1, h, w]."""
    bce = F.binary_cross_entropy_with_logits(logits, targets.expand_as(logits), reduction="none").flatten(2).mean(2)
    chance = logits.sigmoid().flatten(2)
    wanted = targets.flatten(2)
    inter, total = (chance @ wanted.transpose(1, 2))[..., 0], chance.square().sum(2) + wanted.square().sum(2)
    return 2 * bce + 2 * (1 - (2 * inter + 1) / (total + 1))


def edge_losses(logits: Tensor, batch: Batch) -> Tensor:
    """BCE [B, M] of logits [B, M, G, G], interpolated as in use, at the batch's places near the wanted object's edge."""
    grid = batch.edges * (2 / batch.images.shape[-1]) - 1
    there = F.grid_sample(logits, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]
    wanted = batch.inside[:, None].expand_as(there)
    return F.binary_cross_entropy_with_logits(there, wanted, reduction="none").mean(2)


@torch.no_grad()
def true_ious(logits: Tensor, objects: Tensor, meant: Tensor) -> Tensor:
    """IoU [B, M] of logits [B, M, G, G], enlarged and thresholded, with the object that fits best among those meant.

    objects: [S, N, 2G, 2G] of 0 and 1, B = S * P. meant: bool [B, N]; a row without any has IoU 0: there is no object.
    """
    fine = F.interpolate(logits, size=objects.shape[-2:], mode="bilinear", align_corners=False)
    scenes, count = objects.shape[0], fine.shape[0] // objects.shape[0]
    found = (fine > 0).float().view(scenes, -1, fine.shape[-1] * fine.shape[-2])
    objects = objects.flatten(2)
    inter = found @ objects.transpose(1, 2)
    union = found.sum(2)[..., None] + objects.sum(2)[:, None] - inter
    iou = (inter / union.clamp(min=1)).view(scenes * count, fine.shape[1], -1)
    return (iou * meant[:, None]).amax(2)


@dataclass(frozen=True)
class Answer:
    """A prompt round: logits [B, 4, G, G], predicted IoU [B, 4], true IoU [B, 4], and where that is known, bool [B]."""

    logits: Tensor
    scores: Tensor
    ious: Tensor
    known: Tensor


def prompt_rounds(sam: Sam, batch: Batch, rounds: int, rng: Generator, image: Tensor | None = None) -> Iterator[Answer]:
    """Decode a batch's first prompts, then again with a correction each. `image`: the embeddings, if they are there.

    Later rounds know no truth for a click on the ground: what its correction should be is not defined.
    """
    if image is None:
        image = embeddings(sam, batch)
    coords, labels, meant = batch.coords, batch.labels, batch.hit
    real = batch.asked.any(1)
    previous: Tensor | None = None
    given: Tensor | None = None
    for turn in range(rounds):
        with _half(batch):
            sparse = embed_points(sam, coords, labels)
            logits, scores = decode(sam, image, sparse, embed_masks(sam, previous, given, len(coords)))
        logits, scores = logits.float(), scores.float()
        yield Answer(logits, scores, true_ious(logits, batch.objects, meant), real if turn else torch.ones_like(real))
        if turn + 1 < rounds:
            pick = 1 + scores[:, 1:].argmax(1) if turn == 0 else torch.zeros_like(labels[:, 0])
            pick = torch.where((labels == CORNER_A).any(1), 0, pick)
            previous = logits.detach()[torch.arange(len(pick)), pick][:, None]
            coords, labels = add_clicks(rng, batch, previous, coords, labels)
            given = torch.from_numpy(rng.random(len(pick)) < 0.9).to(image.device)
            meant = batch.asked


def embeddings(sam: Sam, batch: Batch) -> Tensor:
    """Features of the batch's scenes, float32 [S, h*w, C]."""
    with _half(batch):
        return encode(sam, batch.images).float()


def round_loss(answer: Answer, batch: Batch, weights: Weights) -> Tensor:
    """Scalar loss of a prompt round: token 0 by itself, the best of tokens 1 to 3, the IoU head.

    The masks are compared with targets [B, 1, 2G, 2G] after enlargement, as in use: what a small object's edge needs of the
    logits is that they interpolate well. Prompts that ask for no object teach the IoU head alone.
    """
    logits, real = answer.logits, batch.asked.any(1).float()
    coarse = mask_losses(logits, F.avg_pool2d(batch.targets, 2))
    best = 1 + coarse[:, 1:].argmin(1)
    pair = torch.stack([logits[:, 0], logits[torch.arange(len(best)), best]], 1)
    enlarged = F.interpolate(pair, scale_factor=2, mode="bilinear", align_corners=False)
    each = mask_losses(enlarged, batch.targets) + weights.edges * edge_losses(pair, batch)
    spare = 0.02 * coarse[:, 1:].mean(1)  # keeps every candidate alive
    loss = ((each.sum(1) + spare) * real).sum() / real.sum().clamp(min=1)
    error, known = (answer.scores - answer.ious).square().mean(1), answer.known.float()
    return loss + weights.scores * (error * known).sum() / known.sum().clamp(min=1)


def _half(batch: Batch) -> torch.autocast:
    """Products in bfloat16, where the processor can; the losses stay outside, for bfloat16 counts to 256 only."""
    return torch.autocast(batch.images.device.type, torch.bfloat16)


def alike_loss(image: Tensor, batch: Batch) -> Tensor:
    """InfoNCE on features [S, h*w, C] of scenes that show one object twice; 0 where no scenes of the batch do.

    The object of one scene, the mean of its features, must be more similar to itself in the other scene than any other object
    of it; and PerSAM's location prior there must be highest inside the object.
    """
    side = int(image.shape[1] ** 0.5)
    share = F.adaptive_avg_pool2d(batch.objects, side).flatten(2)
    covered = (share >= share.amax(2, keepdim=True).clamp(max=0.5)) & (share > 0)
    cells = F.normalize(image.float(), dim=-1)
    means = covered.float() @ image.float() / covered.sum(2, keepdim=True).clamp(min=1)
    means = F.normalize(means, dim=-1)
    present = covered.any(2)
    terms = [
        _one_way(cells, means, covered, present, 2 * k + a, 2 * k + 1 - a)
        for k in torch.nonzero(batch.same)[:, 0].tolist()
        for a in range(2)
    ]
    return torch.stack(terms).mean() if terms else image.new_zeros(())


def _one_way(cells: Tensor, means: Tensor, covered: Tensor, present: Tensor, shown: int, other: int) -> Tensor:
    """The last object of scene `shown`, looked for in scene `other`: among its objects, and among its cells."""
    example = means[shown, -1]
    among = (means[other] @ example / TEMPERATURE).masked_fill(~present[other], -torch.inf)
    local = (cells[other] @ cells[shown][covered[shown, -1]].T).amax(1)
    prior = (cells[other] @ example + local) / 2 / TEMPERATURE
    inside = prior.masked_fill(~covered[other, -1], -torch.inf)
    return among.logsumexp(0) - among[-1] + prior.logsumexp(0) - inside.logsumexp(0)


def step_loss(sam: Sam, batch: Batch, rounds: int, rng: Generator, weights: Weights) -> tuple[Tensor, list[float]]:
    """Loss over all prompt rounds, and for the log the mean IoU per round (best-scored candidate, then token 0).

    The last number is the loss of `alike_loss`.
    """
    image, real = embeddings(sam, batch), batch.asked.any(1)
    seen: list[float] = []
    total = torch.zeros((), device=image.device)
    for answer in prompt_rounds(sam, batch, rounds, rng, image):
        total = total + round_loss(answer, batch, weights) / rounds
        pick = torch.zeros_like(real, dtype=torch.long) if seen else 1 + answer.scores[:, 1:].argmax(1)
        seen.append(float(answer.ious.gather(1, pick[:, None])[real].mean()))
    alike = alike_loss(image, batch)
    return total + weights.alike * alike, [*seen, float(alike.detach())]


def add_clicks(rng: Generator, batch: Batch, logits: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Put one corrective click per prompt in front of the points so far (the padding or the box stays last)."""
    predicted = (logits[:, 0] > 0).cpu().numpy()
    wanted = (F.avg_pool2d(batch.targets[:, 0], 2) >= 0.5).cpu().numpy()
    clicks = [corrective_click(rng, p, w) for p, w in zip(predicted, wanted, strict=True)]
    xy = torch.from_numpy(np.stack([c for c, _ in clicks]))[:, None].to(coords)
    sign = torch.tensor([s for _, s in clicks])[:, None].to(labels)
    return torch.cat([xy, coords], 1), torch.cat([sign, labels], 1)

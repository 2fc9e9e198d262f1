"""Fit the predicted IoU of a demonstration checkpoint to the true one: the last step after `train_demo_checkpoint.py`.

    python tools/demo_model/calibrate_demo_scores.py trained.safetensors calibrated.safetensors

The IoU head of the mask decoder is a small network on one token. So the tokens of many prompts are collected once, each with
the true IoU of its masks, and the head is trained on them in seconds. The masks stay as they are; which candidate is the best,
and what segment everything returns, gets better. Prompts are those of training: clicks, boxes, corrections, and clicks anywhere
in the image, as segment everything clicks: where there is no object, the true IoU is 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from demo_batches import Batch, Pool, make_batch, make_duo
from demo_losses import prompt_rounds
from demo_network import blocks_of, build_sam, size_of, write_checkpoint
from numpy.random import Generator
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger("calibrate")

KNEE = 0.05  # errors above it weigh as they are, those below by their square


class Samples(NamedTuple):
    """Tokens float32 [N, C], what the IoU head sees, and the true IoU [N, 4] of the masks of each."""

    tokens: Tensor
    ious: Tensor


@torch.no_grad()
def collect(sam: Sam, batch: Batch, rounds: int, rng: Generator) -> Samples:
    """The samples of a batch's prompts over some rounds of corrections."""
    seen: list[Tensor] = []
    hook = sam.mask_decoder.iou_prediction_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    try:
        found = [(answer.known, answer.ious) for answer in prompt_rounds(sam, batch, rounds, rng)]
    finally:
        hook.remove()
    return Samples(
        torch.cat([tokens[known] for tokens, (known, _) in zip(seen, found, strict=True)]),
        torch.cat([ious[known] for known, ious in found]),
    )


def collect_many(sam: Sam, scenes: int, prompts: int, stray: float, rng: Generator) -> Samples:
    """The samples of fresh scenes, three rounds each."""
    parts = []
    size = sam.image_encoder.img_size
    for done in range(0, scenes, 2):
        source: queue.Queue = queue.Queue()
        source.put(make_duo(rng, (size,), 0.0))
        parts.append(collect(sam, make_batch(rng, Pool(source, 1, 1), size, 1, prompts, stray, 1), 3, rng))
        if done % 20 == 0:
            log.info("%d of %d scenes", done, scenes)
    return Samples(*(torch.cat(column) for column in zip(*parts, strict=True)))


def fit(head: nn.Module, samples: Samples, steps: int, rate: float) -> None:
    """Train the IoU head (in place) on random parts of the samples, with a cosine decay of the learning rate."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        pick = torch.randint(len(samples.tokens), (512,))
        loss = F.smooth_l1_loss(head(samples.tokens[pick]), samples.ious[pick], beta=KNEE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def quality(head: nn.Module, samples: Samples) -> tuple[float, float, float]:
    """Mean error of the predicted IoU; mean IoU of the best-scored candidate of three; and of the truly best one."""
    scores, ious = head(samples.tokens), samples.ious
    chosen = ious.gather(1, 1 + scores[:, 1:].argmax(1, keepdim=True))
    return float((scores - ious).abs().mean()), float(chosen.mean()), float(ious[:, 1:].amax(1).mean())


def main() -> None:
    """Collect, fit, report on samples that were not fitted, write."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("output")
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--prompts", type=int, default=24, help="prompts per scene")
    parser.add_argument("--stray", type=float, default=0.4, help="share of clicks that may miss every object")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    state = {key: value.float() for key, value in load_file(args.checkpoint).items()}
    sam = build_sam(size_of(state), blocks_of(state))
    sam.load_state_dict(state)
    every = collect_many(sam, args.scenes, args.prompts, args.stray, np.random.default_rng([args.seed, 3]))
    last = len(every.tokens) // 5  # whole scenes at the end, but for one that is divided
    head = sam.mask_decoder.iou_prediction_head
    fitted, unseen = (Samples(*(column[part] for column in every)) for part in (slice(None, -last), slice(-last, None)))
    for moment in ("before", "after"):
        log.info(
            "%s: mean error %.3f, IoU of the best-scored candidate %.3f, of the best one %.3f", moment, *quality(head, unseen)
        )
        if moment == "before":
            fit(head, fitted, args.steps, args.lr)
    write_checkpoint(sam.state_dict(), Path(args.output))


if __name__ == "__main__":
    main()

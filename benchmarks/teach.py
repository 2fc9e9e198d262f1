#!/usr/bin/env python3
"""What teaching is worth, and what it costs.

    python dev.py bench teach                                              # both tables
    python benchmarks/teach.py [--concepts tip] [--masks 16 4] [--fresh 50]     # the quality alone, in pieces

Quality: the bundled checkpoint is taught the concepts of `concepts.py` from 16, 4 and 1 masks. Mean IoU of one click, in the
middle of the mask, on 50 fresh scenes before and after; and, to see that nothing is forgotten, of one click on objects of
ordinary scenes. Settings were chosen on other seeds; see results/teach.md for the one exception.

Time: 16 masks x 30 epochs = 480 steps with a ViT-B of random weights on cached embeddings, beside segment_anything's own
decoder doing the same steps.
"""

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from concepts import CONCEPTS, Taught
from harness import Report, Table, as_image, interleaved, photo, ratio, sam

log = logging.getLogger("benchmark")

from samkit.nodes.model import SAMModelLoader  # noqa: E402
from samkit.sam import (  # noqa: E402
    DecoderOptions,
    PredictOptions,
    Prompt,
    Segmenter,
    TeachOptions,
    as_segmenter,
    decode,
    encode,
    teach,
    train_decoder,
)
from samkit.sam.models.features import Features  # noqa: E402
from samkit.sam.prompts import PromptTensors  # noqa: E402
from samkit.sam.training.losses import iou, mask_loss  # noqa: E402
from samkit.sam.training.trainable import Trainable  # noqa: E402
from scenes import interior_point, make_scene  # noqa: E402
from train_demo_checkpoint import EVAL_SEEDS, mask_iou  # noqa: E402

TAUGHT_SEED, FRESH_SEED = 2_000_000, 3_000_000
ORDINARY_SEED = EVAL_SEEDS + 5000
OTHER_SEED, OTHERS = EVAL_SEEDS + 6000, 16
MASKS, FRESH, ORDINARY = (16, 4, 1), 50, 25
STEPS = 480
TIMED_STEPS = 6
TRIED_STEPS = 48  # of the nodes' own training
CLICKS = 2


def as_inputs(taught: Sequence[Taught]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """IMAGE and MASK lists."""
    images = [torch.from_numpy(one.image)[None].float() / 255 for one in taught]
    return images, [torch.from_numpy(one.mask)[None].float() for one in taught]


def clicked(model: Any, image: np.ndarray, mask: np.ndarray, concept: Any = None) -> float:
    """IoU of one click in the middle of a mask."""
    prompt = Prompt(np.array([interior_point(mask)], dtype=np.float64), np.array([1], np.int32))
    found = decode(model, encode(model, [image]), [[prompt]], PredictOptions(concept=concept))
    return mask_iou(found.masks[0][0].numpy(), mask)


def fresh_iou(model: Any, name: str, count: int, concept: Any = None) -> float:
    """Mean IoU on fresh scenes of a concept."""
    scenes = [CONCEPTS[name](FRESH_SEED + seed) for seed in range(count)]
    return float(np.mean([clicked(model, one.image, one.mask, concept) for one in scenes]))


def ordinary_iou(model: Any, count: int = ORDINARY) -> float:
    """Mean IoU on the objects of ordinary scenes."""
    scenes = [make_scene(ORDINARY_SEED + seed) for seed in range(count)]
    return float(np.mean([clicked(model, scene.image, mask) for scene in scenes for mask in scene.masks]))


def quality(model: Any, name: str, masks: Sequence[int], fresh: int) -> Table:
    """Level 2: learned prompts."""
    columns = ["concept", "masks", "IoU before", "IoU after", "gain", "held-out IoU before", "after", "seconds"]
    table = Table(f"Learned prompts: {name}", columns)
    before = fresh_iou(model, name, fresh)
    for count in masks:
        inputs = as_inputs([CONCEPTS[name](TAUGHT_SEED + seed) for seed in range(count)])
        encode(model, torch.cat(inputs[0]))
        begun = time.monotonic()
        concept, lesson = teach(model, *inputs, options=TeachOptions())
        seconds = time.monotonic() - begun
        after = fresh_iou(model, name, fresh, concept)
        held_out = [f"{statistics.mean(column):.3f}" for column in list(zip(*lesson.rows, strict=True))[1:]]
        row = [name, str(count), f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}", *held_out, f"{seconds:.0f}"]
        table.rows.append(row)
        log.info(" | ".join(row))
    return table


def decoder_quality(model: Any, name: str, fresh: int, others: int) -> Table:
    """Level 3: the mask decoder, trained on 16 masks, with `others` unlabeled images of ordinary scenes or without."""
    columns = [
        "concept",
        "other images",
        "IoU before",
        "IoU after",
        "gain",
        "ordinary clicks before",
        "after",
        "change",
        "seconds",
    ]
    table = Table(f"Trained decoder, {MASKS[0]} masks: {name}", columns)
    inputs = as_inputs([CONCEPTS[name](TAUGHT_SEED + seed) for seed in range(MASKS[0])])
    scenes = [torch.from_numpy(make_scene(OTHER_SEED + seed).image)[None].float() / 255 for seed in range(others)]
    begun = time.monotonic()
    trained, lesson = train_decoder(model, *inputs, scenes)
    seconds = time.monotonic() - begun
    concept = fresh_iou(model, name, fresh), fresh_iou(trained, name, fresh)
    ordinary = ordinary_iou(model), ordinary_iou(trained)
    figures = [text for one in (concept, ordinary) for text in (*(f"{value:.3f}" for value in one), f"{one[1] - one[0]:+.3f}")]
    table.rows.append([name, str(others), *figures, f"{seconds:.0f}"])
    table.note = lesson.stopped and f"It ended early: {lesson.stopped}."
    return table


def measure(models: list[str], device: torch.device) -> Report:
    """Time, then quality."""
    (model,) = SAMModelLoader().load_model("samkit_demo.safetensors")
    report = Report("teach", [timed_steps(models[0], device)])
    report.tables += [quality(model, name, MASKS, FRESH) for name in CONCEPTS]
    report.tables += [decoder_quality(model, name, FRESH, others) for name in CONCEPTS for others in (0, OTHERS)]
    report.numbers = {table.title: table.rows for table in report.tables}
    return report


def timed_steps(name: str, device: torch.device) -> Table:
    """Seconds of 480 steps of each kind, ours and the plain decoder's, from some steps of each in turn."""
    plain = sam(name).to(device)
    size = plain.prompt_encoder.image_embedding_size
    numbers = torch.Generator().manual_seed(0)
    features = torch.randn(plain.prompt_encoder.embed_dim, *size, generator=numbers)
    target = torch.zeros(4 * size[0], 4 * size[1], device=device)
    target[60:140, 80:200] = 1
    candidates = {}
    for whole, what in ((False, "tokens"), (True, "decoder")):
        candidates[f"{what}, ours"] = _our_step(plain, features, target, whole, device)
        candidates[f"{what}, segment_anything"] = _plain_step(plain, features.to(device), target, whole)
    seconds = interleaved(candidates, device, TIMED_STEPS)
    table = Table(
        f"{STEPS} steps (16 masks x 30 epochs), {name}, cached embeddings", ["trained", "segment_anything", "ours", "ratio"]
    )
    for what in ("tokens", "decoder"):
        ours, theirs = seconds[f"{what}, ours"], seconds[f"{what}, segment_anything"]
        times = [f"{STEPS * statistics.median(each):.0f} s" for each in (theirs, ours)]
        table.rows.append([what, *times, f"{ratio(theirs, ours):.2f}x"])
    for what, run in (("SAM Teach", _teach), ("SAM Train Decoder", _train)):
        table.rows.append([f"{what}, all of it", "", f"{_whole(as_segmenter(plain), run):.0f} s", ""])
    table.note = (
        f"The first rows: one image with {CLICKS} clicks a step; the median of {TIMED_STEPS} steps, times {STEPS}. The last "
        f"rows: {TRIED_STEPS} steps of the nodes' own training, with held-out masks and prompts elsewhere, scaled to {STEPS}."
    )
    return table


def _teach(*given: Any) -> None:
    teach(*given, options=TeachOptions(steps=TRIED_STEPS))


def _train(*given: Any) -> None:
    train_decoder(*given, options=DecoderOptions(steps=TRIED_STEPS))


def _whole(model: Segmenter, run: Callable[..., None]) -> float:
    """Seconds of 480 steps on 16 masks of one image, which is encoded before, from a smaller number of steps."""
    image, mask = as_image(photo(1024, 1024)), torch.zeros(1, 1024, 1024)
    mask[:, 300:700, 200:600] = 1
    images, masks = [image] * MASKS[0], [mask] * MASKS[0]
    encode(model, image, "CPU")
    begun = time.monotonic()
    run(model, images, masks)
    return (time.monotonic() - begun) * STEPS / TRIED_STEPS


def _prompts(device: torch.device) -> PromptTensors:
    return PromptTensors(
        (torch.full((CLICKS, 1, 2), 500.0, device=device), torch.ones(CLICKS, 1, dtype=torch.int, device=device)), None, None
    )


def _loss(logits: torch.Tensor, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    inside = torch.ones_like(target)
    return mask_loss(logits, target, inside) + (scores - iou(logits, target, inside)).square().mean()


def _our_step(plain: torch.nn.Module, features: torch.Tensor, target: torch.Tensor, whole: bool, device: torch.device) -> Any:
    trainable = Trainable(as_segmenter(plain), device)
    maps = Features({"image": features.numpy()}, "", device)
    tokens, optimizer = _learned(trainable.decoder, whole, device)

    def step() -> None:
        if whole:
            trainable.plan = trainable.planned()
        found = trainable.run(trainable.share(maps), _prompts(device), slice(0, 1), tokens)
        _finish(optimizer, _loss(found.logits[:, 0], found.scores[:, 0], target))

    return step


def _plain_step(plain: torch.nn.Module, features: torch.Tensor, target: torch.Tensor, whole: bool) -> Any:
    import copy

    device = features.device
    decoder, prompts = copy.deepcopy(plain.mask_decoder).requires_grad_(False), plain.prompt_encoder
    tokens, optimizer = _learned(decoder, whole, device)

    def step() -> None:
        with torch.no_grad():
            sparse, dense = prompts(points=_prompts(device).points, boxes=None, masks=None)
        sparse = sparse if tokens is None else torch.cat([sparse, tokens.expand(len(sparse), -1, -1)], 1)
        logits, scores = decoder.predict_masks(features[None], prompts.get_dense_pe(), sparse, dense)
        _finish(optimizer, _loss(logits[:, 0], scores[:, 0], target))

    return step


def _learned(decoder: torch.nn.Module, whole: bool, device: torch.device) -> tuple[torch.Tensor | None, torch.optim.Optimizer]:
    if whole:
        return None, torch.optim.AdamW(decoder.requires_grad_(True).parameters(), lr=1e-5)
    tokens = torch.zeros(8, decoder.iou_token.weight.shape[1], device=device, requires_grad=True)
    return tokens, torch.optim.AdamW([tokens], lr=1e-5)


def _finish(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="*", default=list(CONCEPTS), choices=list(CONCEPTS))
    parser.add_argument("--masks", nargs="*", type=int, default=list(MASKS))
    parser.add_argument("--fresh", type=int, default=FRESH)
    parser.add_argument("--decoder", type=int, metavar="OTHERS", help="train the decoder instead, with so many other images")
    parser.add_argument("--time", metavar="MODEL", help="time the steps of this model instead")
    chosen = parser.parse_args()
    if chosen.time:
        log.info(timed_steps(chosen.time, torch.device("cpu")).markdown())
        return
    (model,) = SAMModelLoader().load_model("samkit_demo.safetensors")
    for name in chosen.concepts:
        if chosen.decoder is None:
            log.info(quality(model, name, chosen.masks, chosen.fresh).markdown())
        else:
            log.info(decoder_quality(model, name, chosen.fresh, chosen.decoder).markdown())


if __name__ == "__main__":
    main()

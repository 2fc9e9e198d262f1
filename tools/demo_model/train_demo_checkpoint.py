"""Train the small demonstration SAM on procedural scenes and write it as one .safetensors file in Meta's key layout.

    python tools/demo_model/train_demo_checkpoint.py --output sam/weights/bundled/samkit_demo.safetensors

From scratch, it makes a checkpoint like the bundled one, whose model card describes an older recipe. To go on from a
checkpoint, and to add encoder blocks to it that change nothing at first (here behind the second and the fifth):

    python tools/demo_model/train_demo_checkpoint.py --start samkit_demo.safetensors --insert 1 4 \
        --minutes 240 --output better.safetensors

A run can be stopped, paused or killed, and continued with --resume: the full state is written to --work-dir every few minutes.
On a GPU it is the same command with --device cuda. The exported weights are the exponential moving average, in float16.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from demo_batches import EVAL_SEEDS, Pool, largest_piece, make_batch, produce, to_input
from demo_losses import Weights, step_loss
from demo_network import (
    CORNER_A,
    CORNER_B,
    NEGATIVE,
    PAD,
    POSITIVE,
    State,
    blocks_of,
    build_sam,
    decode,
    embed_masks,
    embed_points,
    encode,
    insert_blocks,
    resize_state,
    size_of,
    write_checkpoint,
)
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from scenes import Mask, Scene, interior_point, make_scene, tight_box
from segment_anything.modeling import Sam
from torch import Tensor, nn

log = logging.getLogger("train")

SIZES = (256, 512)  # model input in the first and in the second stage
ROUNDS = (3, 1, 2, 1)  # prompt rounds of successive steps, once the first click has caught on
MOST_PAUSED = datetime.timedelta(hours=24)  # how long one process may wait for another: a run may be stopped for a while


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
        photo = Image.fromarray(image).resize((self.new_w, self.new_h), Image.Resampling.BILINEAR)
        self.device = sam.pixel_mean.device
        x = to_input(np.asarray(photo), self.size)[None].to(self.device)
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


class Run:
    """One process of the training run: model, optimiser, average, data."""

    def __init__(self, args: argparse.Namespace, rank: int, source: mp.Queue) -> None:
        self.args, self.rank = args, rank
        self.device = torch.device(args.device if args.device == "cpu" else f"cuda:{rank % torch.cuda.device_count()}")
        self.step, self.elapsed = 0, 0.0
        torch.manual_seed(args.seed)
        saved = torch.load(self.state_path, weights_only=True) if args.resume and self.state_path.exists() else None
        self.set_model(saved["model"] if saved else self.beginning())
        if saved:
            self.step, self.elapsed = saved["step"], saved["elapsed"]
            self.average.state = {key: value.to(self.device) for key, value in saved["average"].items()}
            self.average.steps = saved["average_steps"]
            self.optimizer.load_state_dict(saved["optimizer"])
        self.rng = np.random.default_rng([args.seed, rank, self.step])
        self.weights = Weights(args.edge_weight, args.score_weight, args.alike_weight)
        self.pool = Pool(source, args.pool, args.first_duos)

    @property
    def state_path(self) -> Path:
        """Where the full state for --resume is kept."""
        return Path(self.args.work_dir) / "state.pt"

    @property
    def size(self) -> int:
        """Side of the model's square input, in pixels."""
        return self.sam.image_encoder.img_size

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or, with --minutes, by time, whichever is further."""
        by_time = self.elapsed / (60 * self.args.minutes) if self.args.minutes else 0.0
        return max(self.step / self.args.steps, by_time)

    def beginning(self) -> State:
        """The weights before the first step: those of --start with the blocks of --insert, or fresh ones."""
        if self.args.start:
            return insert_blocks({key: value.float() for key, value in load_file(self.args.start).items()}, self.args.insert)
        sam = build_sam(SIZES[0])
        nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
        return sam.state_dict()

    def set_model(self, state: State) -> None:
        """Build the model of the given weights, and a fresh optimiser and average."""
        self.sam = build_sam(size_of(state), blocks_of(state))
        self.sam.load_state_dict(state)
        self.sam.to(self.device)
        self.sam.prompt_encoder.pe_layer.requires_grad_(False)
        for key, p in self.sam.named_parameters():
            p.requires_grad_(p.requires_grad and key.startswith(tuple(self.args.only)))
        self.optimizer = make_optimizer(self.sam, self.args)
        self.average = Average(self.sam, self.args.ema)

    def enlarge(self) -> None:
        """Go over to the next input size, keeping weights, average and the optimiser's moments where shapes allow."""
        moments = {key: self.optimizer.state.get(p) for key, p in self.sam.named_parameters()}
        average = self.average
        self.set_model(resize_state(self.sam.state_dict(), SIZES[1]))
        for key, p in self.sam.named_parameters():
            old = moments[key]
            if old and old["exp_avg"].shape == p.shape:
                self.optimizer.state[p] = old
        self.average.state = resize_state(average.state, SIZES[1])
        self.average.steps = average.steps

    def train_step(self) -> tuple[float, list[float]]:
        """One optimiser step on a fresh batch; the loss, the IoU per round and the loss on features."""
        args = self.args
        rounds = ROUNDS[self.step % len(ROUNDS)] if args.start or self.progress >= args.rounds_from else 1
        if self.step % args.refill_every == 0:
            self.pool.refill()
        batch = make_batch(self.rng, self.pool, self.size, args.duos, args.prompts, args.stray, args.edges)
        loss, seen = step_loss(self.sam, batch.to(self.device), rounds, self.rng, self.weights)
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
        write_checkpoint(self.average.state, Path(self.args.work_dir) / "latest.safetensors")
        half = self.state_path.with_suffix(".part")
        torch.save(
            {
                "model": self.sam.state_dict(),
                "average": self.average.state,
                "average_steps": self.average.steps,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "elapsed": self.elapsed,
            },
            half,
        )
        half.replace(self.state_path)

    def evaluate(self, scenes: int) -> None:
        """Log the three protocols on held-out scenes, overall and for small objects."""
        sam = build_sam(self.size, blocks_of(self.average.state))
        sam.load_state_dict(self.average.state)
        ious, sizes = measure(sam.to(self.device).eval(), range(EVAL_SEEDS, EVAL_SEEDS + scenes))
        names = ("click", "box", "click+1", "click+2")
        for label, chosen in (("all", sizes > 0), ("small", sizes < 0.09), ("large", sizes >= 0.2)):
            figures = " ".join(f"{n} {v:.3f}" for n, v in zip(names, ious[chosen].mean(0), strict=True))
            log.info("eval step %d %s (%d objects): %s", self.step, label, int(chosen.sum()), figures)

    def agree_on_time(self) -> None:
        """Take over the first process's clock, so that all change stage, and end, at the same step."""
        if self.args.processes > 1:
            clock = torch.tensor([self.elapsed], dtype=torch.float64)
            dist.broadcast(clock, 0)
            self.elapsed = float(clock)

    def log_progress(self, losses: list[float], seen: list[list[float]]) -> None:
        """One line: speed, learning rate, mean loss, mean IoU per round, mean loss on features."""
        means = [np.mean([each[i] for each in seen if len(each) > i + 1]) for i in range(max(map(len, seen)) - 1)]
        log.info(
            "step %d (%.1f min, %.2f step/s, size %d, lr %.1e, %d duos made) loss %.4f iou %s features %.3f",
            self.step, self.elapsed / 60, self.step / self.elapsed, self.size, self.optimizer.param_groups[0]["lr"],
            self.pool.made, np.mean(losses), " ".join(f"{m:.3f}" for m in means), np.mean([each[-1] for each in seen]),
        )  # fmt: skip

    def loop(self) -> None:
        """Train to the end of the schedule."""
        args = self.args
        begun = time.monotonic() - self.elapsed
        losses: list[float] = []
        seen: list[list[float]] = []
        next_eval, next_save = self.elapsed + 60 * args.eval_minutes, self.elapsed + 60 * args.save_minutes
        while self.progress < 1:
            if self.size != SIZES[1] and self.progress >= args.large_from:
                self.enlarge()
            loss, each = self.train_step()
            losses.append(loss)
            seen.append(each)
            self.step += 1
            self.elapsed = time.monotonic() - begun
            self.agree_on_time()
            if self.rank == 0 and self.step % args.log_every == 0:
                self.log_progress(losses, seen)
                losses, seen = [], []
            if self.rank == 0 and self.elapsed > next_save:
                next_save = self.elapsed + 60 * args.save_minutes
                self.save()
            if self.rank == 0 and self.elapsed > next_eval:
                next_eval = self.elapsed + 60 * args.eval_minutes
                self.evaluate(args.eval_scenes)


def work(rank: int, args: argparse.Namespace, source: mp.Queue) -> None:
    """Body of one training process."""
    torch.set_num_threads(args.threads)
    Path(args.work_dir).mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.processes > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(args.port))
        dist.init_process_group("gloo", rank=rank, world_size=args.processes, timeout=MOST_PAUSED)
    run = Run(args, rank, source)
    if rank == 0:
        log.info("parameters: %d", sum(p.numel() for p in run.sam.parameters()))
    run.loop()
    if rank == 0:
        run.save()
        run.evaluate(args.eval_scenes)
        write_checkpoint(run.average.state, Path(args.output))
        log.info("wrote %s after %d steps and %.1f minutes", args.output, run.step, run.elapsed / 60)
    if args.processes > 1:
        dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="samkit_demo.safetensors", help="file to write at the end")
    work = str(Path(tempfile.gettempdir()) / "samkit_demo_train")
    parser.add_argument("--work-dir", default=work, help="snapshots and state for --resume")
    parser.add_argument("--resume", action="store_true", help="continue from the state in --work-dir, if there is one")
    parser.add_argument("--start", help="checkpoint to go on from, instead of from scratch")
    parser.add_argument("--insert", type=int, nargs="*", default=[], help="its blocks to add a block behind, from 0")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of the parameters to train")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=0, help="also end after this time, schedule included")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--processes", type=int, default=2, help="data-parallel processes")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--port", type=int, default=29533)
    parser.add_argument("--producers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--duos", type=int, default=1, help="pairs of scenes of a step, per process")
    parser.add_argument("--prompts", type=int, default=6, help="prompts per scene")
    parser.add_argument("--same", type=float, default=0.5, help="share of the pairs that show one object twice")
    parser.add_argument("--stray", type=float, default=0.2, help="share of clicks that may miss every object")
    parser.add_argument("--edges", type=int, default=192, help="places near an object's edge that a prompt's loss sees")
    parser.add_argument("--edge-weight", type=float, default=Weights.edges)
    parser.add_argument("--score-weight", type=float, default=Weights.scores)
    parser.add_argument("--alike-weight", type=float, default=Weights.alike)
    parser.add_argument("--pool", type=int, default=1000, help="pairs of scenes each process keeps for reuse")
    parser.add_argument("--first-duos", type=int, default=80, help="pairs to wait for before the first step")
    parser.add_argument("--refill-every", type=int, default=1, help="steps between looks for new pairs")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--rounds-from", type=float, default=0.25, help="progress at which three rounds begin")
    parser.add_argument("--large-from", type=float, default=0.5, help="progress at which the larger input begins")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--save-minutes", type=float, default=5)
    parser.add_argument("--eval-minutes", type=float, default=15)
    parser.add_argument("--eval-scenes", type=int, default=60)
    parser.add_argument("--smoke", action="store_true", help="a run of a few seconds, to see that everything works")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.first_duos, args.pool, args.eval_scenes, args.processes = 6, 2, 4, 2, 1
        args.log_every, args.save_minutes, args.rounds_from, args.prompts = 2, 0.01, 0.0, 2
    return args


def main() -> None:
    """Start the producers and the training processes."""
    args = parse_arguments()
    context = mp.get_context("spawn")
    source = context.Queue(maxsize=64)
    sizes = SIZES[1:] if args.start else SIZES
    seeds = [args.seed + 1000 * k + int(args.resume) * int(time.time()) for k in range(args.producers)]
    producers = [context.Process(target=produce, args=(source, seed, sizes, args.same), daemon=True) for seed in seeds]
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

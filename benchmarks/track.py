#!/usr/bin/env python3
"""Part `track`: SAM 2.1's memory beside transformers' Sam2VideoModel; as a script, how well objects are followed.

    python dev.py bench track
    python benchmarks/track.py [--films 40] [--first-seed 1000000] [--checkpoint samkit_demo.safetensors] [--method auto]

The part measures seconds per frame. The script follows objects through drawn films, from one click each on the first frame. The
films are those of `tools/films.py`: 24 frames of 320x320 pixels and three objects, of which one passes behind another.
Each object is clicked on at its most interior pixel of the first frame. Its masks are compared with what can be seen of it, by
IoU; a frame on which nothing of it can be seen counts 1 for an empty mask and 0 for any other. Beside it is what the same click
gives on every frame by itself.

The seeds below 1000 were used to choose the constants of `sam/tasks/follow.py`.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from films import Film, make_film
from load_pack import load_pack
from scenes import Mask, interior_point

load_pack()

from samkit.nodes.model import SAMModelLoader  # noqa: E402
from samkit.sam import FilmPrompt, Prompt, Segmenter, TrackedFrame, TrackOptions, load_model, segment_each, track  # noqa: E402
from samkit.sam.datasets.films import FilmFrames  # noqa: E402
from samkit.sam.models.sam2 import hiera  # noqa: E402
from samkit.sam.tasks.embed import cache  # noqa: E402

log = logging.getLogger("benchmark")

FIRST_SEED = 1_000_000


def iou(one: Mask, other: Mask) -> float:
    """Of two masks bool [H, W]; 1 for two empty ones."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def followed_and_alone(model: Any, film: Film, method: str) -> tuple[np.ndarray, np.ndarray]:
    """IoU [T, N] of each object on each frame of a film, followed and not followed."""
    count, objects = film.masks.shape[:2]
    points = [np.array([interior_point(mask)]) for mask in film.masks[0]]
    label = np.array([1], np.int32)
    followed, alone = np.zeros((count, objects)), np.zeros((count, objects))

    def take(found: TrackedFrame) -> None:
        followed[found.index] = [iou(*pair) for pair in zip(found.masks.numpy(), film.masks[found.index], strict=True)]

    prompts = {number: {0: FilmPrompt(point, label)} for number, point in enumerate(points)}
    track(model, film.frames, prompts, take, TrackOptions(method=method))

    def take_alone(index: int, found: Any) -> None:
        alone[index] = [iou(*pair) for pair in zip(found.masks.numpy(), film.masks[index], strict=True)]

    segment_each(model, film.frames, [[Prompt(point, label) for point in points]] * count, take_alone)
    return followed, alone


FRAMES, LAST, OBJECTS, ROUNDS, SIDE = 10, 2, (1, 3), 2, 1024  # the last frames attend to as many memories as there may be
LENGTHS, SMALL_SIDE = (50, 500), 256
MEMORY = """
from track import *
model = small_model()
start()
track(model, Noise({count}), {{0: {{0: click(place(0))}}}}, lambda found: cache.clear(), TrackOptions(method="memory"))
"""


class Noise(FilmFrames):
    """A film of random frames, made when they are needed."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.size = SMALL_SIDE, SMALL_SIDE

    def __getitem__(self, index: int) -> np.ndarray:
        self._cached.clear()  # that of the reader is not what is measured
        return super().__getitem__(index)

    def _load(self, index: int) -> Iterator[tuple[int, np.ndarray]]:
        yield index, np.random.default_rng(index).integers(0, 256, (*self.size, 3), dtype=np.uint8)


def small_model() -> Segmenter:
    """A SAM 2.1 with a small encoder, so that 500 frames take a minute: what stays of a frame is a 16th of that of tiny's."""
    from reference_sam2 import SMALL

    hiera.SIZES[16, 8] = hiera.HieraSize("small", 1, (8, 4, 6, 3), (4,), SMALL_SIDE)
    return saved_and_loaded(SMALL, SMALL_SIDE)[1]


def saved_and_loaded(shape: dict[str, Any], side: int) -> tuple[Any, Segmenter]:
    """transformers' model of a shape of Hiera with seeded random weights, and ours of its file."""
    from reference_track import random_video

    theirs = random_video(shape, side)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, load_model(folder, "fp32")


def click(place: np.ndarray) -> FilmPrompt:
    """One click at (x, y)."""
    return FilmPrompt(np.reshape(place, (1, 2)), np.array([1], np.int32))


def place(number: int) -> np.ndarray:
    """Where the object of a number is in the film of `Noise`."""
    return np.random.default_rng(number).uniform(0.2 * SMALL_SIDE, 0.8 * SMALL_SIDE, 2)


@torch.no_grad()
def measure(models: list[str], device: torch.device) -> Any:
    """Seconds per frame of a film with one object and with three, by memory, and what its length costs in memory; `models` are
    SAM's and say nothing here.
    """
    from harness import Report, Table, interleaved, peak_memory, ratio
    from reference_sam2 import TINY
    from reference_track import processor

    theirs, ours = (model.to(device) for model in saved_and_loaded(TINY, SIDE))
    numbers = np.random.default_rng(0)
    frames = [numbers.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(FRAMES)]
    places = numbers.uniform(100, SIDE - 100, (max(OBJECTS), 1, 2))
    report = Report("track")
    head = ["objects, frames", "transformers (sdpa)", "ours", "faster by"]
    table = Table("SAM 2.1 tiny by memory, seconds per frame, float32", head)
    reader, ends = processor(SIDE), list[float]()
    for count in OBJECTS:

        def by_transformers(count: int = count) -> None:
            session = reader.init_video_session(video=frames, inference_device=device, dtype=torch.float32)
            points = [[point.tolist() for point in places[:count]]]
            reader.add_inputs_to_inference_session(
                session, frame_idx=0, obj_ids=list(range(count)), input_points=points, input_labels=[[[1]] * count]
            )
            for _ in theirs.propagate_in_video_iterator(session, start_frame_idx=0):
                ends.append(time.perf_counter())

        def by_us(count: int = count) -> None:
            cache.clear()
            prompts = {number: {0: click(places[number])} for number in range(count)}
            track(ours, frames, prompts, lambda found: ends.append(time.perf_counter()), TrackOptions(method="memory"))

        ends.clear()
        seconds = interleaved({"transformers": by_transformers, "ours": by_us}, device, ROUNDS, warm_up=0)
        stamps = np.reshape(ends, (ROUNDS, 2, FRAMES))
        last = {
            who: ((one[:, -1] - one[:, -1 - LAST]) / LAST).tolist()
            for who, one in zip(seconds, stamps.swapaxes(0, 1), strict=True)
        }
        whole = {who: [one / FRAMES for one in values] for who, values in seconds.items()}
        for name, found in ((f"{count}, all {FRAMES}", whole), (f"{count}, the last {LAST}", last)):
            report.numbers[name] = found
            times = [f"{statistics.median(found[who]):.2f} s" for who in ("transformers", "ours")]
            table.rows.append([name, *times, f"**{ratio(found['transformers'], found['ours']):.2f}x**"])
    table.note = (
        f"A film of {FRAMES} frames of {SIDE}x{SIDE} pixels, one click on each object on the first frame. Encoding included. "
        "The last frames attend to seven memories, as all later ones would."
    )
    memory = Table("Peak memory of a film of one object, without the caches of frames and embeddings", ["frames", "memory"])
    used = [peak_memory(MEMORY.format(count=count)) for count in LENGTHS]
    report.numbers["memory"] = dict(zip(map(str, LENGTHS), used, strict=True))
    memory.rows = [[str(count), f"{value / 2**20:.0f} MB"] for count, value in zip(LENGTHS, used, strict=True)]
    memory.note = f"A small SAM 2.1 with seeded random weights, frames of {SMALL_SIDE}x{SMALL_SIDE} pixels."
    report.tables += [table, memory]
    return report


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--checkpoint", default="samkit_demo.safetensors", help="a name that the loader node knows")
    parser.add_argument("--method", default="auto")
    args = parser.parse_args()
    model, begun = SAMModelLoader().load_model(args.checkpoint)[0], time.monotonic()
    each = []
    for seed in range(args.first_seed, args.first_seed + args.films):
        each.append(followed_and_alone(model, make_film(seed), args.method))
        log.info("%d: %s, last frame %s", seed, each[-1][0].mean(0).round(2), each[-1][0][-1].round(2))
    followed, alone = np.array(each).swapaxes(0, 1)
    log.info("\n| %d films | all frames | last frame |\n|---|---|---|", args.films)
    for name, values in (("followed", followed), ("the same click on every frame", alone)):
        log.info("| %s | %.3f | %.3f |", name, values.mean(), values[:, -1].mean())
    hidden = (followed[:, :, 0], followed[:, :, 1:])
    log.info("the object that passes behind: %.3f, the others: %.3f", *(part.mean() for part in hidden))
    log.info("%.0f s", time.monotonic() - begun)


if __name__ == "__main__":
    main()

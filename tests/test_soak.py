"""Memory after much use, threads at once, and reduced precision: nothing grows, nothing mixes, nothing is lost."""

import gc
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, Interrupted, install
from reference import random_sam
from samkit.nodes.automask import AutoMask
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import encode, load_model, load_shared
from samkit.sam.kernels.plans import forget_plans
from samkit.sam.models import features
from samkit.sam.tasks import embed
from scenes import make_scene

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")  # noqa: PTH110
FREE = 8 << 20  # what an allocator may keep either way


def resident():
    gc.collect()
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_growth(work, count):
    """`work(i)` for i in 0..count: the second half adds nothing to resident memory but what an allocator may keep.

    Caches are full and pools are made by then. A share of what the process has would hide what matters: 5 % of a process with
    torch in it is 50 MB, which is 100 kB for each of 500 prompts.
    """
    for index in range(count // 2):
        work(index)
    before = resident()
    for index in range(count // 2, count):
        work(index)
    grown = resident() - before
    assert grown < FREE, f"{grown / count * 2:.0f} bytes more each time"


def coords(index, width=80, height=60):
    return json.dumps([{"x": index * 7 % width, "y": index * 11 % height}])


def test_a_thousand_prompts_over_fifty_images(tiny_model):
    images = [as_image(make_image(60, 80, seed)) for seed in range(50)]
    check_growth(lambda i: Segment().execute(tiny_model, images[i % 50], coords(i), candidate="all"), 1000)


def test_two_hundred_loads_of_three_checkpoints(tmp_path):
    for seed in range(3):
        sam = random_sam(32, 3, 2, (1,), grid=8, window=3, out_chans=32, mlp_dim=64, seed=seed)
        torch.save(sam.state_dict(), tmp_path / f"{seed}.pth")
    image = as_image(make_image(60, 80))
    check_growth(lambda i: Segment().execute(load_model(tmp_path / f"{i % 3}.pth"), image, coords(i)), 200)


def test_a_hundred_runs_interrupted_midway(tiny_model, monkeypatch, tmp_path):
    comfy = install(monkeypatch, FakeComfyUI(tmp_path))
    images = as_image(*(make_image(60, 80, seed) for seed in range(8)))

    def interrupted(index):
        comfy.bars.clear()
        embed.cache.clear()
        comfy.interrupted_after = 1 + index % 9
        with pytest.raises(Interrupted):
            AutoMask().execute(tiny_model, images, points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0)

    check_growth(interrupted, 100)


def test_eight_threads_give_what_one_gives(tiny_model, tmp_path, tiny_sam):
    """Runs, predictions, segment everything, a model that loads, and what is derived from another forgotten, all at once."""
    torch.save(tiny_sam.state_dict(), tmp_path / "again.pth")
    images = [as_image(make_image(60, 80, seed)) for seed in range(4)]
    (embedding,) = GetSAMEmbedding().get_sam_embedding(images[3], tiny_model)
    options = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    works = [
        *(lambda i, k=k: Segment().execute(tiny_model, images[k], coords(i))[3] for k in range(3)),
        lambda i: PredictMask().execute(tiny_model, embedding, coords(i))[3],
        lambda i: AutoMask().execute(tiny_model, images[i % 4], **options)[0],
        lambda i: Segment().execute(load_shared(tmp_path / "again.pth"), images[i % 4], coords(i))[3],
    ]
    expected = [[work(i) for i in range(6)] for work in works]
    start = threading.Barrier(8)

    def several(work):
        start.wait(60)
        return [work(i) for i in range(6)]

    def disturb(what):
        start.wait(60)
        for _ in range(6):
            what()

    def unload():
        """What unloading does on any device: on a CPU the weights stay, and what was derived from them goes."""
        forget_plans(tiny_model)

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(several, work) for work in works]
        others = [pool.submit(disturb, what) for what in (unload, lambda: (embed.cache.clear(), features.cache.clear()))]
        for other in others:
            other.result(120)
        for one, serial in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.result(120), serial, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reduced_precision_keeps_the_demo_scenes_masks(demo_model, monkeypatch, dtype):
    """What a GPU computes in: the encoder in 16 bits, decoders in float32."""
    agreement = []
    for seed in (1_000_000_001, 1_000_000_003, 1_000_000_005):
        scene = make_scene(seed)
        image = as_image(scene.image)
        points = [np.argwhere(mask).mean(0) for mask in scene.masks]
        boxes = [(x - 25, y - 25, x + 25, y + 25) for y, x in points]
        exact = Segment().execute(demo_model, image, bboxes=boxes, individual_masks=True)
        with monkeypatch.context() as patch:
            patch.setattr(embed, "encoder_dtype", lambda model, device: dtype)
            rounded = Segment().execute(demo_model, image, bboxes=boxes, individual_masks=True)
        assert torch.isfinite(rounded[3]).all() and not torch.equal(exact[3], rounded[3])
        union = torch.maximum(exact[0], rounded[0]).flatten(1).sum(1).clamp(min=1)
        agreement += (torch.minimum(exact[0], rounded[0]).flatten(1).sum(1) / union).tolist()
    assert len(agreement) >= 10 and np.mean(agreement) >= 0.99 and np.median(agreement) >= 0.99, agreement


def test_an_encoder_of_sixteen_bits_never_gives_nan_masks(tiny_model, monkeypatch):
    monkeypatch.setattr(embed, "encoder_dtype", lambda model, device: torch.float16)
    embedding = encode(tiny_model, as_image(make_image(60, 80)))
    assert np.isfinite(embedding).all()
    assert torch.isfinite(PredictMask().execute(tiny_model, embedding, coords(3))[3]).all()

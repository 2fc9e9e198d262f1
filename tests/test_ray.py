"""A folder under Ray: every result once, whatever dies, and equal to the serial run's."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samkit.sam import AutoMaskOptions
from samkit.sam.tasks.distributed import RayRunner
from samkit.sam.tasks.folders import FolderTask, find_images, run_here, segment_folder

pytestmark = pytest.mark.ray
COUNT = 1000


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason='the optional extra: pip install "ray[data]"')
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray's workers have: sums in another order differ in the last digit of a score
    yield ray
    torch.set_num_threads(threads)
    ray.shutdown()


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_ours(pid):
    """Whether a process descends from this one."""
    while pid > 1:
        pid = parent(pid)
        if pid == os.getpid():
            return True
    return False


def actors():
    """Processes of our actors: Ray names a worker's process by what it does."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().decode(errors="replace")
            if name.startswith("ray::") and "Segmenting" in name and is_ours(int(folder.name)):
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux to find the actor to kill")
def test_a_thousand_images_over_two_actors_one_of_which_is_killed(ray, tiny_sam, tmp_path):
    torch.save(tiny_sam.state_dict(), tmp_path / "tiny.pth")
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)).save(folder / f"{index:04}.png", compress_level=0)
    options = AutoMaskOptions(2, pred_iou_thresh=-1.0, stability_score_thresh=0.0)
    task = FolderTask("everything", "COCO RLE", tmp_path / "tiny.pth", device_mode="CPU", everything=options)
    images = find_images([folder])[1]
    names, killed = [], []

    def report(result):
        names.append(result.file_name)
        if len(names) == COUNT // 3 and not killed:
            first, second = actors()
            os.kill(first, signal.SIGKILL)
            killed.append(first)

    summary = segment_folder(task, images, tmp_path / "ray.json", RayRunner(actors=2), report)
    assert killed and killed[0] not in actors()
    assert summary == (COUNT, 0, {})
    assert sorted(names) == [image.file_name for image in images]
    segment_folder(task, images, tmp_path / "serial.json", run_here)
    ours, theirs = (json.loads((tmp_path / name).read_bytes()) for name in ("ray.json", "serial.json"))
    assert ours["images"] == theirs["images"]
    different = [pair for pair in zip(ours["annotations"], theirs["annotations"], strict=True) if pair[0] != pair[1]]
    assert not different[:2], len(different)


def test_bad_images_are_errors_there_too(ray, tiny_sam, tmp_path):
    torch.save(tiny_sam.state_dict(), tmp_path / "tiny.pth")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_text("")
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / "images" / "good.png")
    task = FolderTask("everything", "PNG", tmp_path / "tiny.pth", device_mode="CPU", everything=AutoMaskOptions(2))
    images = find_images([tmp_path / "images"])[1]
    summary = segment_folder(task, images, tmp_path / "out", RayRunner(actors=1))
    assert summary.done == 1 and summary.errors["bad.png"].startswith("UnidentifiedImageError")

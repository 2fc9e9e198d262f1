"""The bundled checkpoint segments; the scenes that it was trained on and is measured by; the demo."""

import re
import subprocess
import sys

import numpy as np
import pytest
from load_pack import ROOT
from PIL import Image
from samkit.sam.weights.registry import BUNDLED
from scenes import interior_point, make_scene, tight_box

sys.path.append(str(ROOT / "benchmarks"))
CHECKPOINT = BUNDLED["samkit_demo.safetensors"]
CARD = CHECKPOINT.with_suffix(".md")


def test_it_is_small_enough_to_ship():
    assert CHECKPOINT.stat().st_size <= 10_000_000


def test_the_card_says_what_it_is_and_what_it_reaches():
    card = CARD.read_text(encoding="utf-8")
    assert "not a substitute for SAM" in card and "Apache-2.0" in card and "benchmarks/demo_checkpoint.py" in card
    assert re.search(r"\| all objects \| \d+ \| 0\.\d{3} \| 0\.\d{3} \| 0\.\d{3} \| 0\.\d{3} \|", card)


def test_it_segments_scenes_that_it_has_never_seen(demo_model):
    """A sample of the benchmark's scenes; the bars leave room for the sample's chance below the card's figures."""
    from demo_checkpoint import FIRST_SEED, measure_scene

    ious = np.array([iou for seed in range(8) for iou in measure_scene(demo_model, make_scene(FIRST_SEED + seed))])
    click, box, _, corrected = ious.mean(0)
    assert click > 0.75 and box > 0.8 and corrected > 0.8, ious.mean(0)


def test_a_scene_is_a_function_of_its_seed():
    one, again, other = make_scene(5), make_scene(5), make_scene(6)
    assert np.array_equal(one.image, again.image) and np.array_equal(one.masks, again.masks)
    assert one.image.shape != other.image.shape or not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("seed", range(5))
def test_masks_fit_their_picture(seed):
    scene = make_scene(seed)
    assert scene.image.dtype == np.uint8 and scene.masks.dtype == bool
    assert scene.masks.shape[1:] == scene.image.shape[:2] and scene.masks.any((1, 2)).all()
    assert len(scene.names) == len(scene.parents) == len(scene.masks)
    for child, whole in enumerate(scene.parents):
        assert whole < 0 or (scene.masks[child] <= scene.masks[whole]).all(), "a whole includes its parts"
    for index, mask in enumerate(scene.masks):
        x, y = interior_point(mask)
        x1, y1, x2, y2 = tight_box(mask)
        assert mask[int(y), int(x)] and x1 <= x <= x2 and y1 <= y <= y2, index


def test_the_most_interior_point_keeps_away_from_the_edge_of_the_picture():
    mask = np.zeros((40, 40), bool)
    mask[:21, :11] = True
    x, y = interior_point(mask)
    assert 4 <= x <= 6 and 4 <= y <= 16


def test_the_bundled_image_is_the_generators():
    from demo import IMAGE, SCENE_SEED, SCENE_SIZE

    drawn = make_scene(SCENE_SEED, SCENE_SIZE).image.astype(int)
    assert np.abs(np.array(Image.open(IMAGE).convert("RGB")) - drawn).mean() < 1


def test_the_demo_finds_what_it_asks_for(tmp_path):
    result = subprocess.run([sys.executable, ROOT / "tools" / "demo.py"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ious = [float(line.split()[-3]) for line in result.stdout.splitlines() if re.match(r"[1-7] ", line)]
    assert len(ious) == 7 and np.mean(ious) > 0.75, result.stdout
    for path in (ROOT / "demo_output").glob("*_mask.png"):
        assert set(np.unique(np.array(Image.open(path)))) == {0, 255}


def test_training_runs_through_and_writes_a_checkpoint_that_loads(tmp_path):
    from samkit.sam import load_model

    output = tmp_path / "trained.safetensors"
    script = ROOT / "tools" / "train_demo_checkpoint.py"
    command = [sys.executable, script, "--smoke", "--output", output, "--work-dir", tmp_path / "work"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert load_model(output).image_encoder.img_size in (256, 512)

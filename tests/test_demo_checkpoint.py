"""The bundled checkpoint segments; the scenes that it was trained on and is measured by; how it is trained; the demo."""

import queue
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from calibrate_demo_scores import collect, fit, quality
from demo_batches import EDGE_REACH, edge_points, make_batch, make_duo
from demo_losses import Weights, alike_loss, edge_losses, prompt_rounds, step_loss, true_ious
from demo_network import blocks_of, build_sam, encode, insert_blocks, resize_state, write_checkpoint
from load_pack import ROOT
from PIL import Image
from safetensors.torch import load_file
from samkit.sam import load_model
from samkit.sam.weights.registry import BUNDLED
from scenes import interior_point, make_pair, make_scene, tight_box
from scipy import ndimage
from segment_anything import SamPredictor
from train_demo_checkpoint import Pool, Run, parse_arguments

sys.path.append(str(ROOT / "benchmarks"))
CHECKPOINT = BUNDLED["samkit_demo.safetensors"]
CARD = CHECKPOINT.with_suffix(".md")


def test_it_is_small_enough_to_ship():
    assert CHECKPOINT.stat().st_size <= 10_000_000


def test_the_card_says_what_it_is_and_what_it_reaches():
    card = CARD.read_text(encoding="utf-8")
    assert "not a substitute for SAM" in card and "Apache-2.0" in card and "tools/demo_model/measure_demo_checkpoint.py" in card
    assert re.search(r"\| all objects \| \d+ \| 0\.\d{3} \| 0\.\d{3} \| 0\.\d{3} \| 0\.\d{3} \|", card)


def test_it_segments_scenes_that_it_has_never_seen(demo_model):
    """A sample of the benchmark's scenes; the bars leave room for the sample's chance below the card's figures."""
    from measure_demo_checkpoint import FIRST_SEED, measure_scene

    measured = [one for seed in range(8) for one in measure_scene(demo_model, make_scene(FIRST_SEED + seed))]
    ious = np.array([one.ious for one in measured])
    click, box, _, corrected = ious.mean(0)
    assert click > 0.75 and box > 0.8 and corrected > 0.8, ious.mean(0)


def test_a_scene_is_a_function_of_its_seed():
    one, again, other = make_scene(5), make_scene(5), make_scene(6)
    assert np.array_equal(one.image, again.image) and np.array_equal(one.masks, again.masks)
    assert one.image.shape != other.image.shape or not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("seed", range(5))
def test_masks_fit_their_image(seed):
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


def test_the_most_interior_point_keeps_away_from_the_edge_of_the_image():
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
    ious = [float(line.split()[-3]) for line in result.stdout.splitlines() if re.match(r"[1-8] ", line)]
    assert len(ious) == 8 and np.mean(ious) > 0.75 and ious[-1] > 0.75, result.stdout
    with Image.open(ROOT / "demo_output" / "8_track.png") as strip:
        assert strip.size == (6 * 320, 240)
    for path in (ROOT / "demo_output").glob("*_mask.png"):
        assert set(np.unique(np.array(Image.open(path)))) == {0, 255}


def test_the_boundary_score_is_that_of_its_definition():
    """DAVIS' db_eval_boundary: each outline is compared with the other one, dilated by a disc."""
    from measure_demo_checkpoint import boundary_f, outline

    rng = np.random.default_rng(0)
    y, x = np.mgrid[-2:3, -2:3]
    for _ in range(6):
        one, two = (ndimage.gaussian_filter(rng.standard_normal((40, 50)), 4) > 0.02 for _ in range(2))
        near_one, near_two = (ndimage.binary_dilation(outline(m), x**2 + y**2 <= 4) for m in (one, two))
        precision, recall = near_two[outline(one)].mean(), near_one[outline(two)].mean()
        assert boundary_f(one, two) == pytest.approx(2 * precision * recall / (precision + recall))


def test_the_boundary_score_forgives_two_pixels_and_not_three():
    from measure_demo_checkpoint import boundary_f, outline

    square, moved, empty = np.zeros((3, 40, 40), bool)
    square[10:30, 10:30] = True
    moved[12:32, 10:30] = True
    assert outline(square).sum() == 4 * 20  # half of them inside: at the top and on the left it runs outside, as seg2bmap's
    assert boundary_f(square, square) == boundary_f(empty, empty) == boundary_f(square, moved) == 1
    assert boundary_f(square, np.roll(square, 3, 0)) < 0.75
    assert boundary_f(square, empty) == boundary_f(empty, square) == 0


def test_a_pair_of_a_given_size_is_that_size_and_others_stay_as_they_were():
    shown, other = make_pair(3, (216, 384))
    assert shown.image.shape == other.image.shape == (216, 384, 3)
    assert [scene.image.shape for scene in make_pair(1_000_003_000)] == [(259, 389, 3), (262, 393, 3)]


@pytest.fixture(scope="module")
def bundled():
    """The bundled checkpoint's weights, float32."""
    return {key: value.float() for key, value in load_file(CHECKPOINT).items()}


def test_more_blocks_change_nothing_at_first(bundled):
    bundled = resize_state(bundled, 256)
    grown = insert_blocks(bundled, [1, 4])
    kinds = blocks_of(bundled)
    assert blocks_of(grown) == kinds[:2] + kinds[1:5] + kinds[4:] and len(blocks_of(grown)) == len(kinds) + 2
    one, two = build_sam(256, kinds), build_sam(256, blocks_of(grown))
    one.load_state_dict(bundled)
    two.load_state_dict(grown)
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 256, 256), np.float32))
    with torch.no_grad():
        stock = one.image_encoder(image)
        assert torch.equal(two.image_encoder(image), stock)
        assert torch.allclose(encode(two, image), stock.flatten(2).transpose(1, 2), atol=1e-4)


def test_a_float16_file_loads_in_float32_here_and_in_the_stock_package(bundled, tmp_path, demo_model):
    """Rounding to float16 moves no mask by much; the runtime and segment_anything read the same numbers from the file."""
    path = tmp_path / "half.safetensors"
    write_checkpoint(bundled, path)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    assert path.stat().st_size < 0.6 * sum(value.numel() * 4 for value in bundled.values())
    ours, stock = load_model(path), build_sam(512, blocks_of(bundled)).half()
    stock.load_state_dict(load_file(path))
    stock = stock.float().eval()
    assert {value.dtype for value in ours.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, stock.state_dict()[key]) for key, value in ours.state_dict().items())
    scene = make_scene(11)
    predictor = SamPredictor(stock)
    predictor.set_image(scene.image)
    masks, scores, _ = predictor.predict(box=np.array(tight_box(scene.masks[0])), multimask_output=False)
    assert (masks[0] & scene.masks[0]).sum() / (masks[0] | scene.masks[0]).sum() > 0.8 and 0.5 < scores[0] < 1.1


def test_edge_points_lie_at_the_edge_and_know_which_side_they_are_on():
    mask = np.zeros((60, 80), bool)
    mask[:, :33] = True  # its edge is the line x = 33; the border of the image is not an edge of it
    places, inside = edge_points(np.random.default_rng(0), mask)
    assert np.abs(places[:, 0] - 32.5).max() <= EDGE_REACH and places[:, 1].min() >= 0.5 and places[:, 1].max() <= 59.5
    assert np.allclose(inside, np.clip(33.5 - places[:, 0], 0, 1), atol=1e-5)


@pytest.fixture(scope="module")
def pool():
    """A pool of two pairs of scenes: one without and one with an object in both."""
    source = queue.Queue()
    for same in (0.0, 1.0):
        source.put(make_duo(np.random.default_rng(4), (128, 256), same))
    return Pool(source, 2, 2)


def test_a_batch_keeps_places_masks_and_prompts_together(pool):
    """Whatever was flipped: edge points are in or out as the target says, clicks are on the objects that they may mean."""
    batch = make_batch(np.random.default_rng(0), pool, 256, 4, 4, 0.3, 64)
    perfect = (torch.nn.functional.avg_pool2d(batch.targets, 2) - 0.5) * 60
    real = batch.asked.any(1)
    assert real.sum() > 20 and not real.all()
    assert edge_losses(perfect, batch)[real].mean() < 0.35 * edge_losses(perfect.flip(3), batch)[real].mean()
    cells = (batch.coords[:, 0] / 2).long()
    clicks = batch.labels[:, 0] == 1
    scene = torch.arange(len(cells)) // 4
    under = batch.objects[scene, :, cells[:, 1].clamp(max=127), cells[:, 0].clamp(max=127)] > 0
    assert (under == batch.hit)[clicks].float().mean() > 0.98
    assert (batch.asked <= batch.hit).all() and not batch.hit[clicks & ~real].any()


def test_the_true_iou_is_that_of_the_best_object_meant():
    objects = torch.zeros(1, 3, 8, 8)
    objects[0, 0, :4, :4] = objects[0, 1, :4] = objects[0, 2, 4:] = 1
    logits = objects[:, 1:2].repeat(4, 1, 1, 1) - 0.5
    meant = torch.tensor([[True, False, False], [True, True, False], [False, False, True], [False, False, False]])
    assert true_ious(logits, objects, meant)[:, 0].tolist() == [0.5, 1.0, 0.0, 0.0]


def test_features_that_know_the_object_again_have_the_smaller_loss(pool):
    pool.items = pool.items[::-1]
    batch = make_batch(np.random.default_rng(1), pool, 256, 3, 2, 0.0, 8)
    assert batch.same.any()
    side, width = 16, 12
    share = torch.nn.functional.adaptive_avg_pool2d(batch.objects, side).flatten(2)
    known = torch.nn.functional.pad(share.flip(1).transpose(1, 2), (0, width - share.shape[1])) + 0.01  # the last one first
    assert alike_loss(known, batch) < 0.5 * alike_loss(torch.rand(known.shape) + 0.01, batch)


def test_a_step_teaches_every_part(pool):
    """Each parameter of the network gets a gradient from a step, and the loss is a number."""
    torch.manual_seed(0)
    sam = build_sam(128)
    rng = np.random.default_rng(2)
    batch = make_batch(rng, pool, 128, 2, 3, 0.3, 16)
    loss, seen = step_loss(sam, batch, 3, rng, Weights())
    loss.backward()
    assert np.isfinite(float(loss.detach())) and len(seen) == 4
    untaught = [key for key, p in sam.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [key for key in untaught if "gaussian" not in key and "rel_pos" not in key and "point_embeddings" not in key]


def test_the_scores_of_a_checkpoint_are_fitted_and_nothing_else(pool):
    """The collected tokens are what the IoU head sees, and fitting them brings its error down."""
    torch.manual_seed(0)
    sam, rng = build_sam(128), np.random.default_rng(3)
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    batch = make_batch(rng, pool, 128, 2, 6, 0.4, 1)
    samples = collect(sam, batch, 2, rng)
    head = sam.mask_decoder.iou_prediction_head
    first = next(prompt_rounds(sam, batch, 1, rng))
    assert torch.allclose(head(samples.tokens[: len(first.scores)]), first.scores, atol=0.02)  # bfloat16 against float32
    assert torch.allclose(samples.ious[: len(first.scores)], first.ious)
    assert len(first.scores) < len(samples.tokens) < 2 * len(first.scores)  # no second round for clicks on the ground
    error = quality(head, samples)[0]
    fit(head, samples, 60, 1e-3)
    assert quality(head, samples)[0] < 0.5 * error
    changed = {key for key, value in sam.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("mask_decoder.iou_prediction_head.") for key in changed)


def test_a_run_that_was_stopped_goes_on_where_it_was(pool, tmp_path, monkeypatch):
    monkeypatch.setattr("train_demo_checkpoint.SIZES", (128, 256))

    def run(*more):
        source = queue.Queue()
        for item in pool.items:
            source.put(item)
        monkeypatch.setattr(sys, "argv", ["train", "--smoke", "--work-dir", str(tmp_path), "--prompts", "2", *more])
        return Run(parse_arguments(), 0, source)

    first = run()
    first.train_step()
    first.step, first.elapsed = 1, 12.5
    first.save()
    again = run("--resume")
    assert (again.step, again.elapsed) == (1, 12.5)
    assert all(torch.equal(value, first.sam.state_dict()[key]) for key, value in again.sam.state_dict().items())
    assert all(torch.equal(value, first.average.state[key]) for key, value in again.average.state.items())
    assert len(again.optimizer.state_dict()["state"]) == len(first.optimizer.state_dict()["state"]) > 0
    again.train_step()


def test_training_runs_through_and_writes_a_checkpoint_that_loads(tmp_path):
    output = tmp_path / "trained.safetensors"
    script = ROOT / "tools" / "demo_model" / "train_demo_checkpoint.py"
    command = [sys.executable, script, "--smoke", "--output", output, "--work-dir", tmp_path / "work"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert load_model(output).image_encoder.img_size in (256, 512)

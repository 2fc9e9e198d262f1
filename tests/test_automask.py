"""Segment everything against segment_anything's SamAutomaticMaskGenerator: the same set of masks."""

import inspect
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import make_image
from fakes import FakeComfyUI, Interrupted, install
from reference import random_sam
from samkit.nodes.automask import AutoMask
from samkit.sam import PRESETS, SAMError, as_segmenter
from samkit.sam.kernels.nms import Suppression, best_first, non_maximum_suppression
from samkit.sam.tasks import everything
from samkit.sam.tasks.everything import AutoMaskOptions, FoundMask, as_dicts, remove_small_regions, segment_everything
from samkit.utils.boxes import tight_box
from scenes import make_scene
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils import amg
from torchvision.ops import nms

LOOSE = {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.5, "points_per_side": 8}


def check_equal(model, photo, **options):
    """Same count, each mask matched at IoU >= 0.999, boxes within 1 px, scores within 1e-3."""
    ours = segment_everything(as_segmenter(model), photo, AutoMaskOptions(**options))
    theirs = SamAutomaticMaskGenerator(model, **options).generate(photo)
    assert len(ours) == len(theirs)
    left = [mask.full(photo.shape[:2]) for mask in ours]
    for record in theirs:
        wanted = record["segmentation"]
        ious = [(mask & wanted).sum() / max(1, (mask | wanted).sum()) for mask in left]
        best = int(np.argmax(ious))
        assert ious[best] >= 0.999, record["bbox"]
        match = ours[best]
        x, y, width, height = record["bbox"]
        assert np.abs(np.array(match.box) - (x, y, x + width, y + height)).max() <= 1
        assert match.score == pytest.approx(record["predicted_iou"], abs=1e-3)
        assert match.stability == pytest.approx(record["stability_score"], abs=1e-3)
        assert match.area == pytest.approx(record["area"], rel=1e-3)
        assert np.allclose(match.point, record["point_coords"][0])
    return ours


@pytest.mark.parametrize("form", ["binary_mask", "coco_rle"])
def test_the_dicts_are_segment_anythings(tiny_model, tiny_sam, photo, form):
    as_mask = np.asarray
    if form == "coco_rle":
        as_mask = pytest.importorskip("pycocotools.mask", reason="the reference needs it; the pack does not").decode
    options = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 3, "box_nms_thresh": 1.0}
    found = as_dicts(segment_everything(tiny_model, photo, AutoMaskOptions(**options)), photo.shape[:2], form)
    wanted = SamAutomaticMaskGenerator(tiny_sam, output_mode=form, **options).generate(photo)
    assert len(found) == len(wanted) > 2
    by_place = lambda record: (*record["point_coords"][0], round(record["predicted_iou"], 3))  # noqa: E731
    for one, other in zip(sorted(found, key=by_place), sorted(wanted, key=by_place), strict=True):
        assert list(one) == list(other) and [type(value) for value in one.values()] == [type(v) for v in other.values()]
        for key in ("bbox", "crop_box", "area", "predicted_iou", "stability_score"):
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-3), key
        assert np.allclose(one["point_coords"], other["point_coords"])
        assert np.mean(as_mask(one["segmentation"]) != as_mask(other["segmentation"])) < 1e-3


def test_supervision_takes_the_dicts(demo_model):
    supervision = pytest.importorskip("supervision", reason="a development requirement; the pack does not need it")
    photo = make_scene(1_000_000_001).image
    dicts = as_dicts(segment_everything(demo_model, photo, AutoMaskOptions(**LOOSE)), photo.shape[:2])
    detections = supervision.Detections.from_sam(dicts)
    assert len(detections) == len(dicts) > 2
    assert (np.sort(detections.mask.sum((1, 2))) == np.sort([one["area"] for one in dicts])).all()


def test_the_dicts_of_a_crop_have_its_place():
    one = FoundMask(np.packbits(np.ones(6, bool)), (10, 20, 12, 21), 0.5, 0.75, (11.0, 20.5), (8, 16, 40, 48))
    (record,) = as_dicts([one], (60, 80))
    assert record.pop("segmentation")[20:22, 10:13].all()
    assert record == {
        "area": 6,
        "bbox": [10, 20, 2, 1],
        "predicted_iou": 0.5,
        "point_coords": [[11.0, 20.5]],
        "stability_score": 0.75,
        "crop_box": [8, 16, 32, 32],
    }


def test_an_unknown_form_of_dicts_is_refused():
    with pytest.raises(SAMError, match="choose one of binary_mask"):
        as_dicts([], (4, 4), "uncompressed_rle")


@pytest.mark.parametrize("seed", range(3))
def test_scenes_give_the_generators_masks(demo_model, seed):
    found = check_equal(demo_model, make_scene(1_000_000_000 + seed).image, **LOOSE)
    assert len(found) >= 3


def test_the_defaults_give_the_generators_masks(demo_model):
    photo = make_scene(1_000_000_003).image
    check_equal(demo_model, photo, points_per_side=12)


@pytest.mark.parametrize(
    "options",
    [
        {"crop_n_layers": 1},
        {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
        {"stability_score_thresh": 0.0, "pred_iou_thresh": 0.0, "points_per_side": 4},
        {"stability_score_offset": 0.2, "points_per_batch": 7},
        {"box_nms_thresh": 0.2},
    ],
    ids=str,
)
def test_every_option_gives_the_generators_masks(demo_model, options):
    check_equal(demo_model, make_scene(1_000_000_001).image, **{**LOOSE, **options})


@pytest.mark.parametrize("size", [(60, 80), (33, 100), (250, 90)])
def test_a_random_sam_gives_the_generators_masks(size):
    sam = random_sam(32, 3, 2, (1,), grid=8, window=3, out_chans=32, mlp_dim=64)
    check_equal(sam, make_image(*size), pred_iou_thresh=0.0, stability_score_thresh=0.2, points_per_side=6)


def test_small_regions_are_removed_as_with_opencv(demo_model):
    pytest.importorskip("cv2", reason="the reference needs OpenCV; the pack does not")
    check_equal(demo_model, make_scene(1_000_000_001).image, **LOOSE, min_mask_region_area=100)
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((40, 50)) < rng.uniform(0.2, 0.8)
        for holes in (True, False):
            ours, changed = remove_small_regions(mask, 12, holes)
            theirs, also = amg.remove_small_regions(mask, 12, "holes" if holes else "islands")
            assert changed == also and np.array_equal(ours, theirs)


def test_small_regions():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12], mask[5, 5], mask[16, 16] = True, False, True
    filled, changed = remove_small_regions(mask, 4, holes=True)
    assert changed and filled[5, 5] and filled[16, 16]
    clean, changed = remove_small_regions(filled, 4, holes=False)
    assert changed and not clean[16, 16] and clean[5, 5]
    assert remove_small_regions(clean, 4, holes=False)[1] is False
    kept, _ = remove_small_regions(mask, 1000, holes=False)
    assert kept[2, 2] and not kept[16, 16], "the largest island always stays"


def test_suppression_is_torchvisions():
    torch.manual_seed(0)
    for threshold in (0.1, 0.5, 0.7):
        corner = torch.rand(300, 2) * 50
        boxes = torch.cat([corner, corner + torch.rand(300, 2) * 30], 1).round()
        scores = (torch.rand(300) * 20).round() / 20
        assert non_maximum_suppression(boxes, scores, threshold) == nms(boxes, scores, threshold).tolist()
    assert non_maximum_suppression(torch.zeros(0, 4), torch.zeros(0), 0.5) == []


def test_boxes_that_are_skipped_remove_nothing():
    torch.manual_seed(0)
    corner = torch.rand(200, 2) * 40
    boxes, scores = torch.cat([corner, corner + torch.rand(200, 2) * 30], 1), torch.rand(200)
    counting = (torch.rand(200) < 0.6).nonzero()[:, 0]
    suppression, kept = Suppression(boxes, 0.4), []
    left = [index for index in best_first(scores) if index in counting]
    for index in left:
        if not suppression.is_removed(index):
            suppression.keep(index)
            kept.append(index)
    assert kept == counting[nms(boxes[counting], scores[counting], 0.4)].tolist()


def test_what_non_maximum_suppression_removes_is_never_rendered(demo_model, monkeypatch):
    rendered, render = [], everything._Upsampler.render
    monkeypatch.setattr(everything._Upsampler, "render", lambda self, mask: rendered.append(mask.box) or render(self, mask))
    candidates, made = [], everything._Candidate
    monkeypatch.setattr(everything, "_Candidate", lambda *args: candidates.append(made(*args)) or candidates[-1])
    found = segment_everything(demo_model, make_scene(1_000_000_001).image, AutoMaskOptions(**LOOSE))
    assert len(found) <= len(rendered) < len(candidates) / 2


def test_little_memory_gives_the_same_masks(demo_model, monkeypatch):
    photo = make_scene(1_000_000_001).image
    plenty = segment_everything(demo_model, photo, AutoMaskOptions(**LOOSE))
    monkeypatch.setattr("samkit.sam.tasks.everything._MOST_WAITING", 0)
    little = segment_everything(demo_model, photo, AutoMaskOptions(**LOOSE))
    assert len(plenty) == len(little) > 3
    for one, other in zip(plenty, little, strict=True):
        assert one.box == other.box and one.stability == other.stability and np.array_equal(one.bits, other.bits)


def test_a_region_limits_the_grid(demo_model):
    photo = make_scene(1_000_000_001).image
    region = np.zeros(photo.shape[:2], bool)
    region[: photo.shape[0] // 2] = True
    everywhere = segment_everything(demo_model, photo, AutoMaskOptions(**LOOSE))
    above = segment_everything(demo_model, photo, AutoMaskOptions(**LOOSE), region)
    assert 0 < len(above) < len(everywhere)
    assert all(mask.point[1] < photo.shape[0] // 2 for mask in above)


def test_nothing_found_is_an_answer(demo_model):
    photo = make_scene(1_000_000_001).image
    for layers in (0, 1):
        options = AutoMaskOptions(points_per_side=4, pred_iou_thresh=2.0, crop_n_layers=layers, min_mask_region_area=10)
        assert segment_everything(demo_model, photo, options) == []
    nowhere = np.zeros(photo.shape[:2], bool)
    assert segment_everything(demo_model, photo, AutoMaskOptions(points_per_side=4), nowhere) == []


def test_masks_come_largest_first(demo_model):
    found = segment_everything(demo_model, make_scene(1_000_000_002).image, AutoMaskOptions(**LOOSE))
    areas = [mask.area for mask in found]
    assert areas == sorted(areas, reverse=True) and areas[-1] > 0


@pytest.mark.parametrize("options", [{"points_per_side": 0}, {"points_per_batch": 0}, {"crop_n_layers": 9}], ids=str)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(SAMError, match=next(iter(options))):
        AutoMaskOptions(**options)


def node(model, *images, **options):
    image = torch.from_numpy(np.stack(images)).float() / 255
    return AutoMask().execute(model, image, **{**LOOSE, **options})


def test_the_nodes_defaults_are_the_generators():
    theirs = inspect.signature(SamAutomaticMaskGenerator).parameters
    ours = inspect.signature(AutoMask.execute).parameters
    shared = theirs.keys() & ours.keys()
    assert len(shared) == 11
    assert {name: theirs[name].default for name in shared} == {name: ours[name].default for name in shared}


def test_without_a_preset_the_raw_values_are_used(demo_model):
    """What a graph of an older version, which has no preset, gives."""
    scene = make_scene(1_000_000_000, (240, 320)).image
    plain, custom = node(demo_model, scene), node(demo_model, scene, preset="custom")
    assert AutoMask.INPUT_TYPES()["optional"]["preset"][1]["default"] == "custom"
    assert torch.equal(plain[0], custom[0]) and len(plain[0]) > 3


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_the_generator_with_its_parameters(demo_model, preset, monkeypatch):
    """Those of the advanced inputs do not matter, but for how many points are decoded at once."""
    used, run = [], everything.everything_each
    monkeypatch.setattr("samkit.nodes.automask.everything_each", lambda *args: used.append(args[2]) or run(*args))
    scene = make_scene(1_000_000_000, (120, 160)).image
    masks, *_ = node(demo_model, scene, preset=preset, points_per_side=2, points_per_batch=100, max_masks=1)
    options = PRESETS[preset]
    (given,) = used
    assert given == replace(options, points_per_batch=100) and len(masks) <= 1
    grid = {"points_per_side": 6, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.5}  # to be quick, and to find something
    theirs = {key: value for key, value in asdict(replace(options, **grid)).items() if key not in ("hq", "concept", "tiles")}
    check_equal(demo_model, scene, **theirs)


def test_presets_find_what_they_say():
    few, balanced, many = (PRESETS[name] for name in ("few and large", "balanced", "many and small"))
    assert balanced == AutoMaskOptions()
    assert few.points_per_side < balanced.points_per_side and few.pred_iou_thresh > balanced.pred_iou_thresh
    assert many.crop_n_layers > balanced.crop_n_layers and many.pred_iou_thresh < balanced.pred_iou_thresh


def test_a_preset_that_is_not_there_is_refused(demo_model):
    with pytest.raises(SAMError, match="preset is 'all': choose one of custom, few and large, balanced, many and small"):
        node(demo_model, make_scene(1_000_000_000, (60, 80)).image, preset="all")


def test_the_raw_parameters_are_folded_away_and_nothing_else():
    inputs = {name: spec for group in AutoMask.INPUT_TYPES().values() for name, spec in group.items()}
    folded = {name for name, (_, options) in inputs.items() if options.get("advanced")}
    assert folded == set(inspect.signature(SamAutomaticMaskGenerator).parameters) & set(inputs)


def test_the_nodes_outputs_fit_together(demo_model):
    scenes = [make_scene(1_000_000_000 + seed, (240, 320)).image for seed in range(2)]
    masks, bboxes, scores, overlay, labels = node(demo_model, *scenes)
    flat = [box for frame in bboxes for box in frame]
    assert masks.shape == (len(flat), 240, 320) and len(scores) == len(flat) and masks.dtype == torch.float32
    assert overlay.shape == (2, 240, 320, 3) and labels.shape == (2, 240, 320)
    for mask, box, score in zip(masks, flat, scores, strict=True):
        tight = tight_box(mask)
        assert {key: box[key] for key in tight} == tight and box["score"] == score and 0.5 <= box["stability"] <= 1
    for index, frame in enumerate(bboxes):
        assert {box["frame_index"] for box in frame} == {index}
        own = masks[: len(frame)] if index == 0 else masks[-len(frame) :]
        areas = own.flatten(1).sum(1).tolist()
        assert areas == sorted(areas, reverse=True)
        smallest = own[-1] > 0
        assert (labels[index][smallest] == 1).all() and (labels[index][~own.bool().any(0)] == 0).all()
        assert set(torch.unique(labels[index]).tolist()) <= {np.float32(i / len(frame)) for i in range(len(frame) + 1)}
        inside = own.bool().any(0)
        changed = (overlay[index] - torch.from_numpy(scenes[index]) / 255).abs().sum(-1) > 0.01
        assert changed[inside].float().mean() > 0.9


def test_only_so_many_masks_and_only_where_asked(demo_model):
    scene = make_scene(1_000_000_001, (240, 320)).image
    everything = node(demo_model, scene)
    two = node(demo_model, scene, max_masks=2)
    assert torch.equal(two[0], everything[0][:2]) and two[1] == [everything[1][0][:2]]
    nowhere = node(demo_model, scene, region=torch.zeros(1, 64, 64))
    assert nowhere[0].shape == (1, 240, 320) and not nowhere[0].any() and not nowhere[4].any()
    assert nowhere[1:3] == ([[]], [0.0])
    with pytest.raises(SAMError, match="the batch size of region is 3, but that of image is 1"):
        node(demo_model, scene, region=torch.ones(3, 240, 320))


def test_too_many_masks_for_the_memory_are_refused_before(demo_model, monkeypatch):
    monkeypatch.setattr("samkit.nodes.automask.free_result_bytes", lambda: 1000)
    with pytest.raises(SAMError, match=r"masks of 320x240 pixels need 0.0 GB, but 0.0 GB are free: set max_masks"):
        node(demo_model, make_scene(1_000_000_001, (240, 320)).image)


def test_progress_moves_per_batch_and_cancel_stops_within_one(demo_model, monkeypatch, tmp_path):
    comfy = install(monkeypatch, FakeComfyUI(tmp_path))
    scene = make_scene(1_000_000_001, (240, 320)).image
    segment_everything(demo_model, scene, AutoMaskOptions(points_per_side=4, points_per_batch=3, crop_n_layers=1))
    assert (comfy.bars[0].total, comfy.bars[0].current) == (5 * 6, 5 * 6)
    comfy.interrupted_after = 2
    with pytest.raises(Interrupted):
        segment_everything(demo_model, scene, AutoMaskOptions(points_per_side=4, points_per_batch=3))
    assert comfy.bars[-1].current <= 2 or comfy.bars[-2].current <= 2

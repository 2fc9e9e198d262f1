"""Second looks: what they find is compared with drawings, and with segment_anything's own predictor on the cut."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bright_model import BrightModel, discs, iou
from conftest import as_image, make_image
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.track import TrackObjects
from samkit.sam import (
    PredictOptions,
    Prompt,
    SAMError,
    SecondLook,
    TrackOptions,
    decode,
    encode,
    segment_each,
    track,
)
from samkit.sam.geometry import Geometry, View, cut_around, fit_long_side
from samkit.sam.kernels.views import averaged, resampled
from samkit.sam.models.sam import run_encoder
from samkit.sam.tasks import detail as second
from samkit.sam.tasks.track import FilmPrompt
from scenes import Crowd, interior_point, make_scene, tight_box
from segment_anything import SamPredictor
from test_devices import model as small_model  # noqa: F401  a fixture

SIZE = 480, 640
SMALL = (300, 200, 14)  # a disc of three cells in the whole image
CLICK = json.dumps([{"x": 300, "y": 200}])


def geometry(original, squashes, side=128):
    resized = (side, side) if squashes else fit_long_side(original, side)
    return Geometry(original, resized, side, (side // 4, side // 4), not squashes)


def view(window, squashes, side=128):
    x1, y1, x2, y2 = window
    return View(window, geometry((y2 - y1, x2 - x1), squashes, side))


@pytest.fixture(params=[False, True], ids=["padded", "squashed"])
def bright(request):
    return BrightModel(request.param, 256)


@pytest.fixture
def runs(monkeypatch):
    """Counts the image encoder's forward passes."""
    counted = []
    counting = lambda encoder, images, *args: counted.append(len(images)) or run_encoder(encoder, images, *args)  # noqa: E731
    monkeypatch.setattr("samkit.sam.models.sam.run_encoder", counting)
    return counted


@pytest.fixture
def any_object(monkeypatch):
    """Random weights do not find one object twice: whatever a second look sees is taken."""
    monkeypatch.setattr(second, "_SAME_OBJECT", -9.0)


class TestCuts:
    """Where a cut lies."""

    def test_it_has_the_box_and_a_margin_and_lies_in_the_image(self):
        rng = np.random.default_rng(0)
        for _ in range(300):
            height, width = rng.integers(300, 5000, 2).tolist()
            across = rng.uniform(5, 250, 2)
            x, y = rng.uniform(0, np.array([width, height]) - across)
            box = (x, y, x + across[0], y + across[1])
            x1, y1, x2, y2 = cut_around(box, (height, width), 128)
            side = max(x2 - x1, y2 - y1)
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and side >= 128
            assert (x2 - x1, y2 - y1) == (min(side, width), min(side, height))
            margin = 0.15 * max(across) - 1  # rounded to pixels
            assert x1 <= max(0, x - margin) and y1 <= max(0, y - margin)
            assert x2 >= min(width, box[2] + margin) and y2 >= min(height, box[3] + margin)
            assert side <= max(129, 1.5 * 2**0.5 * max(across) + 1)

    def test_a_narrow_image_is_whole_on_that_axis(self):
        assert cut_around((1000, 10, 1200, 40), (60, 3000), 128)[1::2] == (0, 60)
        assert cut_around((0, 0, 640, 480), SIZE, 128) == (0, 0, 640, 480)

    def test_boxes_that_nearly_agree_mostly_have_one_cut(self):
        rng = np.random.default_rng(1)
        same = 0
        for _ in range(200):
            corner, across = rng.uniform(500, 2000, 2), rng.uniform(40, 400)
            box = np.array([*corner, *(corner + across)])
            same += cut_around(box, (3000, 4000), 256) == cut_around(box + rng.normal(0, 0.01 * across, 4), (3000, 4000), 256)
        assert same > 150


class TestLogitsOfAView:
    """Logits from one grid to another, beside torch's own sampling and beside means of many pixels."""

    @pytest.mark.parametrize("squashes", [False, True])
    @pytest.mark.parametrize("window", [(200, 100, 328, 228), (500, 350, 640, 480), (0, 0, 60, 200)], ids=str)
    def test_finer_ones_are_interpolated(self, squashes, window):
        torch.manual_seed(0)
        whole, cut = view((0, 0, 640, 480), squashes), view(window, squashes)
        logits = torch.randn(1, 32, 32)
        found = resampled(logits, whole, cut, -7.0)[0]
        rows, columns = ((torch.arange(32) + 0.5) / cells for cells in cut.geometry.cells)
        y, x = (rows + window[1]) * whole.geometry.cells[0], (columns + window[0]) * whole.geometry.cells[1]
        places = torch.stack(torch.meshgrid(y / 16 - 1, x / 16 - 1, indexing="ij")[::-1], -1)[None].float()
        inside = (rows < window[3] - window[1])[:, None] & (columns < window[2] - window[0])[None]
        edge = (
            (480 - 1) * whole.geometry.cells[0] - 1
        ) / 16 - 1  # the last cells of the image border on padding, which is none
        sure = inside & (places[0, ..., 1] < edge)
        expected = F.grid_sample(logits[None], places, align_corners=False, padding_mode="border")[0, 0]
        assert sure.sum() > 100
        torch.testing.assert_close(found[sure], expected[sure], atol=1e-4, rtol=0)
        assert (found[~inside] == -7.0).all()

    @pytest.mark.parametrize("squashes", [False, True])
    def test_coarser_ones_are_means(self, squashes):
        torch.manual_seed(0)
        whole, cut = view((0, 0, 640, 480), squashes), view((200, 100, 328, 228), squashes)
        values = torch.rand(32, 32)
        means, covered = averaged(values, cut, whole)
        sums, counts = np.zeros((32, 32)), np.zeros((32, 32))
        fine = np.arange(128 * 8) / 8 + 1 / 16  # eighths of pixels
        own_y, own_x = ((fine * cells).astype(int) for cells in cut.geometry.cells)
        y, x = (((fine + start) * cells).astype(int) for start, cells in zip((100, 200), whole.geometry.cells, strict=True))
        np.add.at(sums, (y[:, None], x[None]), values.numpy()[own_y[:, None], own_x[None]])
        np.add.at(counts, (y[:, None], x[None]), 1)
        cell = 64 / np.prod(whole.geometry.cells)
        np.testing.assert_allclose(covered, counts / cell, atol=0.03)
        some = counts > 0.2 * cell
        assert some.sum() > 20
        np.testing.assert_allclose(means.numpy()[some], (sums / counts.clip(1))[some], atol=0.03)


class TestADrawing:
    """A model that sees bright regions, and discs."""

    def segment(self, model, image, masks=None, **inputs):
        return Segment().execute(model, as_image(image), **inputs)

    @pytest.mark.parametrize("prompt", [{"positive_coords": CLICK}, {"bboxes": (286, 186, 314, 214)}], ids=["click", "box"])
    def test_a_small_object_becomes_sharp(self, bright, prompt):
        image, (truth,) = discs(SIZE, SMALL)
        before, after = (self.segment(bright, image, **prompt, detail=detail)[0][0] for detail in ("off", "auto"))
        assert iou(before, truth) < 0.9 and iou(after, truth) > 0.96

    def test_marks_box_and_mask_lie_where_the_object_is_in_the_cut(self, bright):
        image, _ = discs(SIZE, SMALL, (330, 215, 9))
        self.segment(
            bright, image, positive_coords=CLICK, negative_coords='[{"x": 330, "y": 215}, {"x": 20, "y": 20}]', detail="1"
        )
        light, prompts = bright.prompts[-1]
        (points, labels), boxes, masks = prompts.points, prompts.boxes, prompts.masks
        assert boxes is None and labels.tolist() == [[1, 0]], "the second negative point lies outside the cut"
        (x, y), (other_x, other_y) = (points[0] / 4).long().tolist()
        assert light[y, x] > 0.9 and light[other_y, other_x] > 0.9
        near = np.hypot(*(np.indices(light.shape) - np.array([y, x])[:, None, None])) < 10
        assert iou(masks[0, 0] > 0, (light > 0.5) & near) > 0.5
        self.segment(bright, image, bboxes=(286, 186, 314, 214), detail="1")
        light, prompts = bright.prompts[-1]
        x1, y1, x2, y2 = (prompts.boxes[0] / 4).tolist()
        rows, columns = np.indices(light.shape) + 0.5
        in_box = (columns > x1) & (columns < x2) & (rows > y1) & (rows < y2)
        assert (light[in_box] > 0.5).mean() > 0.7 and in_box.sum() > 30

    def test_what_fills_the_image_costs_nothing_and_stays(self, bright):
        image, _ = discs(SIZE, (320, 240, 200))
        without = self.segment(bright, image, positive_coords=CLICK)
        assert bright.encoded == 1
        for detail in ("auto", "1", "3"):
            again = self.segment(bright, image, positive_coords=CLICK, detail=detail)
            assert all(
                torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
                for one, two in zip(without, again, strict=True)
            )
        assert bright.encoded == 1

    def test_what_is_another_object_is_kept_and_said(self, bright, monkeypatch):
        image, _ = discs(SIZE, SMALL)
        without = self.segment(bright, image, positive_coords=CLICK)
        real = second.ImagePredictor.predict

        def elsewhere(self, objects, *rest):
            found = real(self, objects, *rest)
            if not objects or objects[0].logits is None:
                return found
            corner = torch.full_like(found.logits, -10.0)
            corner[..., :6, :6] = 10.0
            return found._replace(logits=corner)

        monkeypatch.setattr(second.ImagePredictor, "predict", elsewhere)
        after = self.segment(bright, image, positive_coords=CLICK, detail="auto")
        assert torch.equal(without[0], after[0]) and torch.equal(without[3], after[3]) and without[2] == after[2]
        assert str(after.found[0].looked) == "1 as before"

    def test_looks_are_counted_by_the_object(self, bright):
        image, _ = discs(SIZE, SMALL, (100, 240, 60), (500, 400, 14))
        coords = json.dumps([{"x": x, "y": y, "object": x} for x, y in ((300, 200), (100, 240), (500, 400), (620, 20))])
        looked = self.segment(bright, image, positive_coords=coords, detail="auto").found[0].looked
        assert looked == (3, 0, 1), "three discs are sharper, and where nothing is, there is none"

    def test_many_objects_of_many_images_are_each_as_alone(self, bright):
        images = [discs(SIZE, SMALL, (x, 400, 20))[0] for x in (60, 320, 560)]
        coords = json.dumps([[{"x": 300, "y": 200, "object": 1}, {"x": x, "y": 400, "object": 2}] for x in (60, 320, 560)])
        apart = {"individual_masks": True, "detail": "auto"}
        masks, boxes, scores, logits = Segment().execute(bright, as_image(*images), coords, **apart)
        assert len(masks) == len(scores) == len(logits) == 6
        for index, image in enumerate(images):
            own = json.dumps(json.loads(coords)[index])
            alone = Segment().execute(bright, as_image(image), own, **apart)
            assert torch.equal(alone[0], masks[2 * index : 2 * index + 2]) and alone[1] == [boxes[index]]
            assert torch.equal(alone[3], logits[2 * index : 2 * index + 2])
        together, *_ = Segment().execute(bright, as_image(*images), coords, detail="auto")
        assert torch.equal(together[1], torch.maximum(masks[2], masks[3]))

    def test_objects_with_one_cut_share_it(self, bright):
        image, (truth,) = discs(SIZE, SMALL)
        coords = json.dumps([{"x": x, "y": 200, "object": x} for x in (296, 300, 304)])
        masks, *_ = self.segment(bright, image, positive_coords=coords, individual_masks=True, detail="auto")
        assert bright.encoded == 2, "the image, and one cut"
        assert all(iou(mask, truth) > 0.96 for mask in masks)

    def test_what_the_whole_image_does_not_show_is_found_at_its_point(self, bright):
        """Its first mask is nothing, or something else, of which the model is not sure."""
        image, (truth, _) = discs(SIZE, (300, 200, 4), (100, 400, 60))
        before, after = (self.segment(bright, image, positive_coords=CLICK, detail=detail) for detail in ("off", "1"))
        assert not before[0].any() and before[2] == [BrightModel.unsure]
        assert (
            iou(after[0][0], truth) > 0.8
            and after[2] == pytest.approx([BrightModel.sure])
            and str(after.found[0].looked) == "1 sharper"
        )
        nothing = self.segment(bright, image, positive_coords='[{"x": 500, "y": 300}]', detail="1")
        assert not nothing[0].any() and nothing.found[0].looked == (0, 0, 1)

    @pytest.mark.parametrize(("detail", "cuts"), [("1", 1), ("2", 2), ("3", 3), ("auto", 3)])
    def test_an_object_is_seen_in_no_more_cuts_than_it_may_be(self, bright, detail, cuts):
        """There is nothing at the click, in no cut, so that the model is never sure."""
        image, _ = discs((2000, 3000), (100, 400, 60))
        self.segment(bright, image, positive_coords='[{"x": 1500, "y": 900}]', detail=detail)
        assert bright.encoded == 1 + cuts

    def test_what_is_too_large_to_be_overlooked_is_not_put_in_the_place_of_a_mask(self, bright, monkeypatch):
        image, (truth,) = discs(SIZE, (300, 200, 55))
        monkeypatch.setattr(BrightModel, "sure", 0.5)
        before = self.segment(bright, image, positive_coords=CLICK)
        monkeypatch.setattr(second, "_SURE", 0.6)
        monkeypatch.setattr(second, "_LEAST_GAIN", 1.4)
        monkeypatch.setattr(second.SecondLook, "_cut", lambda *_: None)
        real = second.SecondLook._seen
        monkeypatch.setattr(second.SecondLook, "_seen", lambda *given: real(*given)._replace(scores=torch.tensor([0.99])))
        after = self.segment(bright, image, positive_coords=CLICK, detail="1")
        assert torch.equal(before[0], after[0]), "11 cells across"

    def test_the_logits_say_the_sharp_mask_on_the_grid_of_the_image(self, bright):
        image, (truth,) = discs(SIZE, (300, 200, 60))
        *_, logits = self.segment(bright, image, positive_coords=CLICK, detail="auto")
        assert logits.shape == (1, 1, 64, 64)
        again, *_ = self.segment(bright, image, positive_coords=CLICK, logits=logits)
        assert iou(again[0], truth) > 0.9
        tiny, _ = discs(SIZE, (300, 200, 6))
        assert (self.segment(bright, tiny, positive_coords=CLICK, detail="auto")[3] > 0).sum() <= 4

    @pytest.mark.parametrize("options", [{"candidate": "all", "multimask": "on"}, {"candidate": "smallest"}], ids=str)
    def test_candidates_are_each_looked_at(self, bright, options):
        image, (truth,) = discs(SIZE, SMALL)
        masks, _, scores, logits = self.segment(bright, image, positive_coords=CLICK, detail="auto", **options)
        count = 3 if options["candidate"] == "all" else 1
        assert len(masks) == len(scores) == len(logits) == count and all(iou(mask, truth) > 0.96 for mask in masks)

    def test_a_mask_alone_gets_a_box(self, bright):
        image, (truth,) = discs(SIZE, SMALL)
        refined, looked = SecondLook(bright, SIZE, "auto", PredictOptions(), "AUTO").refine_masks(
            image, [None, None], torch.from_numpy(np.stack([truth, truth & False]))
        )
        assert looked == (1, 0, 1) and iou(refined[0], truth) > 0.96 and not refined[1].any()
        assert all(prompts.points is None and prompts.boxes is not None for _, prompts in bright.prompts)

    def test_specks_far_away_do_not_make_the_cut_larger(self, bright):
        image, (truth, speck) = discs(SIZE, (300, 200, 45), (620, 460, 4))
        mask = torch.from_numpy(truth | speck)[None]
        refined, looked = SecondLook(bright, SIZE, "auto", PredictOptions(), "AUTO").refine_masks(image, [None], mask)
        assert looked.sharper == 1 and iou(refined[0], truth) > 0.95

    def test_no_look_without_marks_or_masks(self, bright):
        image, _ = discs(SIZE, SMALL)
        masks, bboxes, scores, logits = self.segment(bright, image, positive_coords="[]", detail="auto")
        assert not masks.any() and bboxes == [[]] and scores == [0.0] and len(logits) == 1 and bright.encoded <= 1


class TestTheNodes:
    """What the inputs do."""

    def test_predict_mask_needs_the_image(self, bright):
        image = as_image(discs(SIZE, SMALL)[0])
        (embedding,) = GetSAMEmbedding().get_sam_embedding(image, bright)
        with pytest.raises(SAMError, match="detail is auto: it needs the image.*Connect the embedded image"):
            PredictMask().execute(bright, embedding, CLICK, detail="auto")
        found = PredictMask().execute(bright, embedding, CLICK, image=image, detail="auto")
        other = Segment().execute(bright, image, CLICK, detail="auto")
        assert torch.equal(found[0], other[0]) and found[2] == other[2] and torch.equal(found[3], other[3])
        with pytest.raises(SAMError, match="not the embedded image"):
            PredictMask().execute(bright, embedding, CLICK, image=1 - image, detail="auto")

    def test_an_embedding_of_other_images_is_refused(self, bright):
        image, other = discs(SIZE, SMALL)[0], discs(SIZE, (300, 100, 14))[0]
        prompt = Prompt(np.array([[300.0, 200]]), np.ones(1, np.int32))
        with pytest.raises(SAMError, match="not that of the images"):
            segment_each(bright, [image], [[prompt]], print, detail="auto", embedding=encode(bright, [other]))

    def test_there_are_no_other_details(self, bright):
        for detail in ("4", "on", 1):
            with pytest.raises(SAMError, match="detail is .*: choose one of off, auto, 1, 2, 3"):
                Segment().execute(bright, as_image(discs(SIZE, SMALL)[0]), CLICK, detail=detail)
        with pytest.raises(SAMError, match="detail is"):
            TrackOptions(detail="4")


@pytest.mark.parametrize("method", ["follow"])
def test_films_get_sharp_masks_and_are_followed_as_without(bright, method):
    film = [discs(SIZE, (260 + 12 * t, 200, 14)) for t in range(4)]
    frames, truth = as_image(*(image for image, _ in film)), [masks[0] for _, masks in film]
    coords = json.dumps([[{"x": 260, "y": 200}]])
    before, *_, known = TrackObjects().execute(bright, frames, coords, method=method, individual_masks=True)
    after, *_, seen = TrackObjects().execute(bright, frames, coords, method=method, individual_masks=True, detail="auto")
    for index in range(4):
        assert iou(after[index], truth[index]) > max(0.94, iou(before[index], truth[index]))
    answers = [next(iter(one.objects.values())).answers for one in (known, seen)]
    assert all(np.array_equal(answers[0][frame].bits, answers[1][frame].bits) for frame in range(4))
    again, *_ = TrackObjects().execute(bright, frames, track=seen, individual_masks=True, detail="auto", method=method)
    assert torch.equal(again, after), "of a known track, too"


def test_masks_of_a_film_that_are_given_stay_and_overlaps_stay_resolved(bright):
    image, (truth, _) = discs(SIZE, SMALL, (370, 205, 13))
    given = torch.from_numpy(truth).roll(3, 1)
    prompts = {
        1: {0: FilmPrompt(mask=given)},
        2: {0: FilmPrompt(np.array([[370.0, 205]]), np.ones(1, np.int32))},
    }
    found = []
    options = TrackOptions(method="follow", detail="auto", non_overlapping=True)
    track(bright, [image], prompts, found.append, options)
    assert (found[0].masks.sum(0) <= 1).all() and found[0].looked.sharper == 1
    assert iou(found[0].masks[0], given) > 0.7, "what is given was not replaced"


@pytest.mark.parametrize("small_model", ["SAM", "MobileSAM", "SAM 2"], indirect=True)
class TestFamilies:
    """Small configurations with random weights."""

    prompts = {"positive_coords": '[{"x": 300, "y": 200}]', "negative_coords": '[{"x": 310, "y": 220}]'}

    def test_off_is_what_it_was(self, small_model):  # noqa: F811
        image = as_image(make_image(*SIZE), make_image(*SIZE, 1))
        new = Segment().execute(small_model, image, **self.prompts, detail="off")
        old = Segment().execute(small_model, image, **self.prompts)
        prompt = Prompt(np.array([[300.0, 200], [310, 220]]), np.array([1, 0], np.int32))
        expected = decode(small_model, encode(small_model, image), [[prompt], [prompt]])
        for one in (new, old):
            assert torch.equal(one[0], torch.cat(expected.masks).float()) and torch.equal(one[3], torch.cat(expected.logits))
            assert one[2] == torch.cat(expected.scores).tolist()

    def test_a_second_look_is_a_prediction_in_the_cut(self, small_model, any_object, monkeypatch):  # noqa: F811
        image = make_image(*SIZE)
        first = Segment().execute(small_model, as_image(image), bboxes=(280, 180, 320, 220))
        found = Segment().execute(small_model, as_image(image), bboxes=(280, 180, 320, 220), detail="1")
        x1, y1, x2, y2 = window = cut_around((280, 180, 320, 220), SIZE, 32)
        whole, cut = (View(one, small_model.geometry((one[3] - one[1], one[2] - one[0]))) for one in ((0, 0, 640, 480), window))
        logits = resampled(first[3][0], whole, cut, -10.0)
        box = np.array([280.0 - x1, 180 - y1, 320 - x1, 220 - y1])
        alone = decode(small_model, encode(small_model, [image[y1:y2, x1:x2].copy()]), [[Prompt(box=box, logits=logits)]])
        expected = torch.zeros_like(first[0][0])  # the box says that the object is nowhere else
        expected[y1:y2, x1:x2] = alone.masks[0][0].float()
        assert torch.equal(found[0][0], expected) and found[2] == alone.scores[0].tolist()
        assert not torch.equal(found[0], first[0])


def test_the_cut_is_predicted_as_segment_anything_does(tiny_sam, tiny_model, any_object):
    image, box = make_image(*SIZE), np.array([270.0, 170, 330, 230])
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(image)
    _, _, low = predictor.predict(box=box, multimask_output=False)
    x1, y1, x2, y2 = window = cut_around(tuple(box), SIZE, 32)
    logits = resampled(torch.from_numpy(low), view((0, 0, 640, 480), False), view(window, False), -10.0)
    assert (logits > 0).any(), "a mask prompt, or this tests less than it should"
    predictor.set_image(np.ascontiguousarray(image[y1:y2, x1:x2]))
    expected, scores, _ = predictor.predict(box=box - [x1, y1, x1, y1], mask_input=logits.numpy(), multimask_output=False)
    found = Segment().execute(tiny_model, as_image(image), bboxes=tuple(box), detail="1")
    assert (found[0][0, y1:y2, x1:x2].numpy() == expected[0]).mean() > 0.999 and expected.any()
    assert found[2] == pytest.approx(scores.tolist(), abs=1e-3)


class TestTheDemoModel:
    """Large scenes that are drawn: see also `benchmarks/detail.py`."""

    crowd = Crowd((12, 16), 24 / 1500, 300 / 1500, 1.2, 20 / 1500, 30)

    def scene(self, seed=5_000_000):
        return make_scene(seed, (1000, 1500), self.crowd)

    def test_a_click_costs_one_more_encoding_and_the_second_one_none(self, demo_model, runs):
        scene = self.scene()
        sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in map(tight_box, scene.masks)]
        mask = scene.masks[int(np.argmin(np.abs(np.array(sides) - 90)))]
        x, y = interior_point(mask)
        image = as_image(scene.image)
        once = Segment().execute(demo_model, image, json.dumps([{"x": x, "y": y}]), detail="1")
        assert runs == [1, 1] and once.found[0].looked.sharper == 1
        again = Segment().execute(demo_model, image, json.dumps([{"x": x, "y": y}]), detail="1")
        assert runs == [1, 1] and torch.equal(once[0], again[0])
        Segment().execute(demo_model, image, json.dumps([{"x": x, "y": y}, {"x": x + 3, "y": y + 3}]), detail="1")
        assert runs == [1, 1], "a second click on the object is answered from the cache"

    def test_small_objects_become_sharper(self, demo_model):
        scene = self.scene()
        small = [mask for mask in scene.masks if max(np.subtract(tight_box(mask)[2:], tight_box(mask)[:2])) < 60]
        assert len(small) >= 3
        values = {}
        for detail in ("off", "auto"):
            prompts, found = [Prompt(box=np.array(tight_box(mask)) + [0, 0, 1, 1]) for mask in small], []
            segment_each(demo_model, [scene.image], [prompts], lambda _, one: found.append(one), detail=detail)  # noqa: B023
            values[detail] = np.mean([iou(*pair) for pair in zip(found[0].masks, small, strict=True)])
        assert values["auto"] > values["off"] + 0.1, values

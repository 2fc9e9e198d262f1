"""Objects followed through a film by models without a memory, on films whose masks are known because they are drawn."""

import json

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from films import make_film
from samkit.nodes.track import TrackObjects
from samkit.sam.errors import SAMError
from samkit.sam.geometry import Geometry
from samkit.sam.models.features import Features
from samkit.sam.tasks import follow
from samkit.sam.tasks import track as tracking
from samkit.sam.tasks.follow import Followed, FollowFrame, kept
from samkit.sam.tasks.track import FilmPrompt, TrackOptions, track
from scenes import interior_point
from test_family import BoxModel

SIZE = 160, 200
RED, BLUE = (230, 30, 20), (20, 60, 230)


def clicks(*points, labels=None):
    return FilmPrompt(np.array(points, float), np.array(labels or [1] * len(points), np.int32))


def disc(x, y, radius=22):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def drawn(*frames):
    """Discs on a gray ground: for each frame (color, mask), the last one in front."""
    ground = (110 + make_image(*SIZE).astype(float) * 0.12).astype(np.uint8)
    film = []
    for discs in frames:
        image = ground.copy()
        for color, mask in discs:
            image[mask] = color
        film.append(image)
    return film


def iou(one, other):
    one, other = np.asarray(one, bool), np.asarray(other, bool)
    return (one & other).sum() / max(1, (one | other).sum())


def tracked(model, frames, prompts, direction="forward", **options):
    found = {}
    known = track(model, frames, prompts, lambda one: found.__setitem__(one.index, one), TrackOptions(direction), **options)
    assert sorted(found) == list(range(len(frames)))
    return found, known


def equal(one, other):
    return all(
        torch.equal(one[frame].masks, other[frame].masks) and torch.equal(one[frame].object_scores, other[frame].object_scores)
        for frame in one
    )


def test_three_objects_are_followed_through_a_drawn_film(demo_model):
    """A film whose seed was not used to choose any constant; the figures of 40 are those of `benchmarks/track.py`."""
    film = make_film(2_000_000, count=10)
    prompts = {number: {0: clicks(interior_point(mask))} for number, mask in enumerate(film.masks[0])}
    found, known = tracked(demo_model, film.frames, prompts)
    values = np.array([[iou(*pair) for pair in zip(found[t].masks, film.masks[t], strict=True)] for t in range(10)])
    assert values.mean() > 0.75 and values[-1].mean() > 0.6, values.round(2)
    assert known.names == (0, 1, 2)


class TestADisc:
    """One that moves over a gray ground."""

    path = [(40 + 12 * t, 60 + 5 * t) for t in range(8)]

    def film(self, hidden=(), path=None):
        places = path or self.path
        return drawn(*([] if t in hidden else [(RED, disc(*place))] for t, place in enumerate(places)))

    @pytest.mark.parametrize(("direction", "start"), [("forward", 0), ("backward", 7), ("both", 4)])
    def test_every_way(self, demo_model, direction, start):
        found, _ = tracked(demo_model, self.film(), {1: {start: clicks(self.path[start])}}, direction)
        assert min(iou(found[t].masks[0], disc(*place)) for t, place in enumerate(self.path)) > 0.8
        assert all(found[t].object_scores[0] > 0 for t in range(8)) and found[start].object_scores[0] == follow.CERTAIN

    def test_frames_before_the_first_prompt_are_empty(self, demo_model):
        found, _ = tracked(demo_model, self.film(), {1: {3: clicks(self.path[3])}})
        assert not any(found[t].masks.any() or found[t].object_scores[0] > -1000 for t in range(3)) and found[3].masks.any()

    def test_a_lost_one_has_no_mask_and_is_found_again_elsewhere(self, demo_model):
        path = [*self.path[:5], (150, 30), (150, 30), (148, 34)]
        hidden = (2, 3, 4, 5)
        found, _ = tracked(demo_model, self.film(hidden, path), {1: {0: clicks(path[0])}})
        for t, place in enumerate(path):
            if t in hidden:
                assert not found[t].masks.any() and found[t].object_scores[0] <= 0, t
            else:
                assert iou(found[t].masks[0], disc(*place)) > 0.8 and found[t].object_scores[0] > 0, t

    def test_another_one_that_lies_where_it_was_is_not_taken_for_it(self, demo_model):
        """The red one has moved on, and a blue one has taken its place."""
        film = drawn([(RED, disc(60, 80))], [(RED, disc(60, 80))], [(BLUE, disc(60, 80)), (RED, disc(110, 80))])
        found, _ = tracked(demo_model, film, {1: {0: clicks((60, 80))}})
        assert iou(found[2].masks[0], disc(110, 80)) > 0.8

    def test_of_two_that_look_alike_it_is_the_one_that_lies_where_it_moves_to(self, demo_model):
        ways = [[(30 + 14 * t, 60) for t in range(8)], [(170 - 14 * t, 108) for t in range(8)]]
        film = drawn(*([(RED, disc(*way[t])) for way in ways] for t in range(8)))
        found, _ = tracked(demo_model, film, {number: {0: clicks(way[0])} for number, way in enumerate(ways)})
        for number, way in enumerate(ways):
            assert min(iou(found[t].masks[number], disc(*way[t])) for t in range(8)) > 0.8

    def test_a_correction_wins_on_its_frame_and_is_followed(self, demo_model):
        other = [(150, 130 - 6 * t) for t in range(8)]
        film = drawn(*([(RED, disc(*self.path[t])), (BLUE, disc(*other[t], radius=16))] for t in range(8)))
        prompts = {1: {0: clicks(self.path[0]), 4: clicks(other[4], self.path[4], labels=[1, 0])}}
        found, known = tracked(demo_model, film, prompts)
        assert min(iou(found[t].masks[0], disc(*self.path[t])) for t in range(4)) > 0.8
        assert min(iou(found[t].masks[0], disc(*other[t], radius=16)) for t in range(4, 8)) > 0.7
        assert known.prompted_frames(1) == (0, 4)

    def test_a_given_mask_is_the_mask(self, demo_model):
        given = FilmPrompt(mask=torch.from_numpy(disc(*self.path[0])))
        found, _ = tracked(demo_model, self.film(), {1: {0: given}})
        assert iou(found[0].masks[0], given.mask) > 0.95 and iou(found[7].masks[0], disc(*self.path[7])) > 0.8

    def test_an_empty_mask_says_that_it_is_not_there(self, demo_model):
        empty = FilmPrompt(mask=torch.zeros(SIZE, dtype=torch.bool))
        found, _ = tracked(demo_model, self.film()[:3], {1: {0: clicks(self.path[0]), 1: empty}})
        assert not found[1].masks.any() and found[1].object_scores[0] == -follow.CERTAIN
        assert iou(found[2].masks[0], disc(*self.path[2])) > 0.8
        never, _ = tracked(demo_model, self.film()[:2], {1: {0: empty}})
        assert not any(never[t].masks.any() or never[t].object_scores[0] > 0 for t in (0, 1))


class TestGoingOn:
    """What a second call computes, counted; and that its masks are those of one call with everything."""

    first = {"a": {0: clicks((40, 60))}, "b": {2: clicks((120, 90), (130, 100))}}
    film = staticmethod(lambda count=8: [make_image(*SIZE, seed) for seed in range(count)])

    @pytest.fixture
    def counted(self, monkeypatch):
        calls = []
        plain = FollowFrame.followed

        def followed(frame, last, looks, index):
            calls.append(index)
            return plain(frame, last, looks, index)

        monkeypatch.setattr(FollowFrame, "followed", followed)
        return calls

    @pytest.fixture(autouse=True)
    def never_lost(self, monkeypatch):
        """Noise and random weights: whatever is found is taken for the object."""
        monkeypatch.setattr(follow, "_LOST", -9.0)

    @pytest.mark.parametrize(
        ("more", "frames"),
        [
            ({}, []),
            ({"a": {0: clicks((40, 60))}}, []),
            ({"a": {5: clicks((50, 60))}}, [5, 6, 7]),
            ({"c": {6: clicks((60, 30))}}, [7]),
            ({"b": {2: clicks((20, 20))}}, [3, 4, 5, 6, 7]),
        ],
        ids=["nothing", "the same", "a correction", "an object", "another first click"],
    )
    def test_only_what_changes_is_computed(self, tiny_model, counted, more, frames):
        film = self.film()
        before, known = tracked(tiny_model, film, self.first)
        assert sorted(counted) == sorted([*range(1, 8), *range(3, 8)])
        counted.clear()
        after, again = tracked(tiny_model, film, more, known=known)
        assert counted == frames
        every = {name: {**self.first.get(name, {}), **more.get(name, {})} for name in {**self.first, **more}}
        assert equal(after, tracked(tiny_model, film, every)[0])
        assert again.names == tuple(every) and equal(tracked(tiny_model, film, {}, known=known)[0], before)

    def test_a_long_film_keeps_few_masks_and_gives_the_same(self, tiny_model, monkeypatch, counted):
        film, prompts = self.film(30), {1: {3: clicks((30, 25))}}
        before, whole = tracked(tiny_model, film, prompts, "both")
        monkeypatch.setattr(tracking, "_MEMORY_BYTES", 6 * 32 * 32 * 2)
        long, known = tracked(tiny_model, film, prompts, "both")
        assert equal(long, before) and len(known.objects[1].maps) < 12 < len(whole.objects[1].maps) == 30
        assert known.nbytes < whole.nbytes
        counted.clear()
        more = {1: {24: clicks((50, 20), labels=[0])}}
        corrected, _ = tracked(tiny_model, film, more, "both", known=known)
        assert len(counted) < 15
        assert equal(corrected, tracked(tiny_model, film, {1: {**prompts[1], **more[1]}}, "both")[0])

    @pytest.mark.parametrize("cuts", [(7,), (2, 5, 6, 11)], ids=["two", "five"])
    def test_a_film_in_parts_is_the_film(self, tiny_model, counted, cuts):
        film, every = self.film(13), {**self.first, "a": {**self.first["a"], 9: clicks((70, 60), (20, 20), labels=[1, 0])}}
        whole, _ = tracked(tiny_model, film, every)
        assert len(counted) == 12 + 10
        counted.clear()
        found, known = {}, None
        for start, end in zip((0, *cuts), (*cuts, 13), strict=True):
            known = track(
                tiny_model, film[start:end], every, lambda one: found.__setitem__(one.index, one), None, known, "AUTO", start
            )
        assert sorted(found) == list(range(13)) and equal(found, whole) and known.end == 13
        assert len(counted) == 12 + 10 and all(found[t].masks[0].any() for t in range(13))


class TestMethod:
    def test_auto_is_memory_where_there_is_one(self, tiny_model):
        film, prompts = [make_image(*SIZE)] * 2, {1: {0: clicks((40, 60))}}
        assert tracked(tiny_model, film, prompts)[1].model.endswith("-follow")
        with pytest.raises(SAMError, match=r"SAM models have no memory .*Choose the method follow, .*sam2.1_hiera_tiny.pt"):
            track(tiny_model, film, prompts, print, TrackOptions(method="memory"))
        with pytest.raises(SAMError, match="method is 'guess': choose one of auto, memory, follow"):
            TrackOptions(method="guess")

    def test_the_node(self, tiny_model):
        film = as_image(make_image(*SIZE), make_image(*SIZE, 1))
        points = json.dumps([{"x": 40, "y": 60}])
        masks, bboxes, scores, known = TrackObjects().execute(tiny_model, film, points, method="follow")
        found, _ = tracked(tiny_model, [make_image(*SIZE), make_image(*SIZE, 1)], {"#1": {0: clicks((40, 60))}})
        assert torch.equal(masks.bool(), torch.cat([found[t].masks for t in (0, 1)])) and len(bboxes) == len(scores) == 2
        with pytest.raises(SAMError, match="no memory to track with"):
            TrackObjects().execute(tiny_model, film, points, method="memory")

    def test_a_family_of_thirty_lines(self):
        film = [make_image(60, 80)] * 3
        box = FilmPrompt(box=np.array([20.0, 15, 40, 45]))
        found, _ = tracked(BoxModel(), film, {1: {0: box}})
        assert all(found[t].masks[0, 17:43, 22:38].all() and found[t].object_scores[0] > 0 for t in range(3))


class TestParts:
    """What a frame is made of, on a model whose masks are known."""

    def frame(self, model=None):
        image, frame = make_image(60, 80), Geometry((60, 80), (64, 64), 64, (64, 64), False)
        features = {"image": np.random.default_rng(0).standard_normal((3, 16, 16)).astype(np.float32)}
        return FollowFrame(model or BoxModel(), Features(features, "", torch.device("cpu")), image, frame)

    def test_motion_is_that_of_the_mask(self):
        one, other = torch.full((2, 64, 64), -5.0)
        one[10:20, 10:20] = other[14:24, 18:28] = 5.0
        first = kept(one, 0, None)
        second = kept(other, 2, first)
        assert first.motion == (0.0, 0.0) and second.motion == (4.0, 2.0) and second.frame == 2
        third = kept(other.roll((4, 8), (0, 1)), 3, second)
        assert third.motion == (6.0, 3.0), "half of what it was, half of what it is"
        assert kept(other, 1, second).motion == (2.0, 1.0), "backwards"

    @pytest.mark.parametrize("move", [(5, 3), (-5, 3), (0, -7), (100, 0), (0, 0)])
    def test_moved_logits(self, move):
        logits = torch.arange(64.0).view(8, 8)
        moved = follow._moved(logits, *move)
        for y in range(8):
            for x in range(8):
                at = y - move[1], x - move[0]
                assert moved[y, x] == (logits[at] if min(at) >= 0 and max(at) < 8 else -10)

    def test_looks_are_those_of_the_inside_and_of_a_ring(self):
        frame, logits = self.frame(), torch.full((64, 64), -3.0)
        logits[24:40, 24:40] = 3.0
        looks = frame.looks(logits)
        assert looks.area == 256 and looks.local.shape == (16, 3)
        cells = frame.cells.view(16, 16, 3)
        torch.testing.assert_close(looks.local, cells[6:10, 6:10].reshape(-1, 3))
        assert 16 < len(looks.around) <= 12 * 12 - 16 and looks.nbytes > 0
        torch.testing.assert_close(looks.color, frame.colors[:, 24:40, 24:40].mean((1, 2)))
        assert frame.looks(torch.full((64, 64), -1.0)) is None

    def test_padding_is_not_looked_at(self, tiny_model):
        """A tall image, whose right side is padding in SAM's square."""
        frame = tiny_model.geometry((80, 30))
        features = Features({"image": np.ones(tiny_model.map_shapes["image"], np.float32)}, "", torch.device("cpu"))
        one = FollowFrame(tiny_model, features, make_image(80, 30), frame)
        assert one.valid[:, :10].all() and not one.valid[:, 13:].any()
        everything = one.looks(torch.ones(frame.grid))
        assert everything.area == int(one.valid.sum())

    def test_a_rating_is_of_overlap_looks_color_and_predicted_iou(self):
        """On an image and features that are the same everywhere, and then not."""
        frame, image = Geometry((64, 64), (64, 64), 64, (64, 64), False), np.full((64, 64, 3), 80, np.uint8)
        values = np.ones((3, 16, 16), np.float32)
        values[:, :, 8:] = np.array([1.0, -1, 0], np.float32)[:, None, None]  # at a right angle to the left half's
        image[:, 32:] = 130
        one = FollowFrame(BoxModel(), Features({"image": values}, "", torch.device("cpu")), image, frame)
        here, below, right = torch.full((3, 64, 64), -3.0)
        here[8:16, 8:16] = below[40:48, 8:16] = right[8:16, 40:48] = 3.0
        looks, guess = [one.looks(here)], here > 0
        same, moved, other = (one._rated(logits, 0.9, guess, 1.0, looks) for logits in (here, below, right))
        assert same.rating - moved.rating == pytest.approx(1.0) and same.score == pytest.approx(moved.score)
        assert moved.rating - other.rating == pytest.approx(2.0 + 0.5 * 3**0.5, abs=1e-3), (
            "two of looks, and of color 50 of 100"
        )
        assert same.score > 0 > other.score
        assert one._rated(here, 0.5, guess, 1.0, looks).rating == pytest.approx(same.rating - 0.2)
        assert one._rated(here, 0.9, guess, 0.25, looks).rating == pytest.approx(same.rating - 0.75), "long ago"

    def test_nothing_is_found_where_the_model_gives_no_mask(self):
        class Nothing(BoxModel):
            def decode(self, features, prompts, wanted):
                found = super().decode(features, prompts, wanted)
                return found._replace(logits=found.logits - 100)

        frame, logits = self.frame(Nothing()), torch.full((64, 64), -3.0)
        logits[24:40, 24:40] = 3.0
        last = Followed(logits.half(), 0, (0.0, 0.0))
        assert frame.followed(last, [frame.looks(logits)], 1).score == -follow.CERTAIN

"""Gaps of tracked objects that are filled, and blinks that are removed."""

import json

import numpy as np
import pytest
import torch
from conftest import as_image
from samkit.nodes.track import TrackObjects
from samkit.sam import FilmPrompt, SAMError, TrackOptions
from samkit.sam.tasks import track as tracking
from samkit.sam.tasks.steady import _moved, steady
from scipy.ndimage import shift
from test_follow import RED, SIZE, clicks, disc, drawn, iou, tracked


def film_of(*objects):
    """A film by one text for each object: a cross where it is there, a disc that moves by (6, 2) pixels a frame."""
    count = len(objects[0])
    masks = np.zeros((count, len(objects), *SIZE), bool)
    for number, text in enumerate(objects):
        for t, one in enumerate(text):
            if one == "x":
                masks[t, number] = place(t, number)
    return masks


def place(t, number=0):
    return disc(40 + 6 * t, 40 + 2 * t + 70 * number)


def steadied(masks, fill=0, remove=0, decided=None, apart=False):
    bits = [np.packbits(each.reshape(len(each), -1), axis=1) for each in masks]
    steady(bits, SIZE, decided or [()] * masks.shape[1], fill, remove, apart)
    return np.array([np.unpackbits(one, axis=1, count=SIZE[0] * SIZE[1]).reshape(-1, *SIZE) for one in bits]).astype(bool)


def as_text(masks, number=0):
    return "".join("x" if mask.any() else "." for mask in masks[:, number])


@pytest.mark.parametrize(
    ("before", "fill", "remove", "after"),
    [
        ("xx.xx", 1, 0, "xxxxx"),
        ("xx..x", 1, 0, "xx..x"),
        ("xx..x", 2, 0, "xxxxx"),
        (".xx.x..", 2, 0, ".xxxx.."),
        ("..x..", 0, 1, "....."),
        ("..xx.", 0, 1, "..xx."),
        ("..xx.x.", 0, 2, "......."),
        ("x..x", 0, 2, "x..x"),
        ("x.x.x", 1, 1, "xxxxx"),
        (".x.x.", 1, 2, ".xxx."),
        ("..x.x..", 1, 1, "..xxx.."),
        ("xx.xx...x..xxx", 1, 1, "xxxxx......xxx"),
        ("....", 2, 2, "...."),
        ("xxxx", 2, 2, "xxxx"),
        ("x", 2, 2, "x"),
        ("x.x..", 0, 0, "x.x.."),
    ],
)
def test_where_an_object_is(before, fill, remove, after):
    masks = film_of(before, before[::-1])
    found = steadied(masks, fill, remove)
    assert as_text(found) == after and as_text(found, 1) == after[::-1]
    kept = [t for t in range(len(before)) if before[t] == after[t]]
    assert all(np.array_equal(found[t, 0], masks[t, 0]) for t in kept)


def test_what_is_filled_lies_where_the_object_is_in_between():
    """The disc moves evenly, so that the truth is known."""
    found = steadied(film_of("xx..x"), 2)
    assert all(np.array_equal(found[t, 0], place(t)) for t in (2, 3))


def test_the_nearer_frame_has_the_shape_and_the_other_one_bounds_it():
    masks = np.zeros((5, 1, *SIZE), bool)
    masks[0, 0, 50:71, 50:71] = True
    masks[4, 0] = disc(60, 60, 10)
    masks[4, 0, 58:63, 58:63] = False
    found = steadied(masks, 3)
    assert np.array_equal(found[1, 0], masks[0, 0]) and np.array_equal(found[2, 0], masks[0, 0])
    assert np.array_equal(found[3, 0], masks[4, 0])
    masks[4, 0, :, :60] = False
    found = steadied(masks, 3)
    assert found[1, 0].sum() == 21 * np.flatnonzero(masks[4, 0].any(0)).size


@pytest.mark.parametrize("by", [(0, 0), (3, -5), (-4, 7), (11, 0), (0, -90), (90, 3)])
def test_what_moves_out_of_the_frame_is_gone(by):
    mask = np.random.default_rng(0).random((11, 17)) > 0.5
    assert np.array_equal(_moved(mask, np.array(by)), shift(mask.astype(int), by, order=0).astype(bool))


@pytest.mark.parametrize(("before", "decided"), [("xx.xx", 2), ("xx..x", 2), ("..x..", 2), (".xx..", 1)])
def test_what_was_prompted_stays(before, decided):
    assert as_text(steadied(film_of(before), 2, 2, [[decided]])) == before
    assert as_text(steadied(film_of(before), 2, 2, [[0]])) != before


def test_objects_that_do_not_overlap_are_not_made_to():
    masks = film_of("x.x", "xxx")
    masks[1, 1] = place(1) & disc(50, 50)
    assert (steadied(masks, 1)[1].sum(0) > 1).any()
    found = steadied(masks, 1, apart=True)
    assert not (found[1].sum(0) > 1).any() and found[1, 0].any() and np.array_equal(found[1, 1], masks[1, 1])


class TestTrack:
    """A disc that is hidden on two frames of seven."""

    path = [(40 + 12 * t, 60 + 5 * t) for t in range(7)]
    hidden = 3, 4

    def film(self):
        return drawn(*([] if t in self.hidden else [(RED, disc(*place))] for t, place in enumerate(self.path)))

    def tracked(self, model, **options):
        found = []
        prompts = {1: {0: clicks(self.path[0])}}
        known = tracking.track(model, self.film(), prompts, found.append, TrackOptions(**options))
        return found, known

    def test_a_gap_is_filled_and_the_track_stays(self, demo_model):
        plain, known = tracked(demo_model, self.film(), {1: {0: clicks(self.path[0])}})
        found, other = self.tracked(demo_model, fill_flicker=2)
        assert [one.index for one in found] == list(range(7))
        for one in found:
            assert torch.equal(one.object_scores, plain[one.index].object_scores)
            if one.index in self.hidden:
                assert not plain[one.index].masks.any() and iou(one.masks[0], disc(*self.path[one.index])) > 0.75
            else:
                assert torch.equal(one.masks, plain[one.index].masks)
        bits = [{t: answer.bits.tobytes() for t, answer in each.objects[1].answers.items()} for each in (known, other)]
        assert bits[0] == bits[1]
        assert not any(one.masks.any() for one in self.tracked(demo_model, fill_flicker=1)[0][3:5])

    def test_a_blink_is_removed_but_not_where_it_was_marked(self, demo_model):
        empty = FilmPrompt(mask=torch.zeros(SIZE, dtype=torch.bool))
        prompts = {1: {0: clicks(self.path[0]), 1: empty, 3: empty}}
        film = drawn(*([(RED, disc(*place))] for place in self.path[:4]))
        for remove, wanted in ((0, [True, False, True, False]), (1, [True, False, False, False])):
            found = []
            tracking.track(demo_model, film, prompts, found.append, TrackOptions(remove_blinks=remove))
            assert [bool(one.masks.any()) for one in found] == wanted
        found = []
        marked = {1: {**prompts[1], 2: clicks(self.path[2])}}
        tracking.track(demo_model, film, marked, found.append, TrackOptions(fill_flicker=1, remove_blinks=1))
        assert [bool(one.masks.any()) for one in found] == [True, False, True, False]

    def test_the_node(self, demo_model):
        points = json.dumps([{"x": 40, "y": 60}])
        call = TrackObjects().execute
        masks, bboxes, scores, known = call(demo_model, as_image(*self.film()), points, fill_flicker=2)
        found, _ = self.tracked(demo_model, fill_flicker=2)
        assert torch.equal(masks.bool(), torch.cat([one.masks for one in found]))
        assert all(len(one) == 1 for one in bboxes) and len(scores) == 7 and scores[3] < 0.5
        plain = call(demo_model, as_image(*self.film()), "", track=known)
        assert [len(one) for one in plain[1]] == [1, 1, 1, 0, 0, 1, 1]

    def test_a_film_without_objects(self, demo_model):
        found = []
        tracking.track(demo_model, self.film()[:2], {}, found.append, TrackOptions(fill_flicker=1))
        assert [tuple(one.masks.shape) for one in found] == [(0, *SIZE)] * 2

    def test_a_part_of_a_film(self, demo_model):
        found, known = {}, None
        prompts = {1: {0: clicks(self.path[0])}}
        options = TrackOptions(fill_flicker=2)
        for start, end in ((0, 2), (2, 7)):
            known = tracking.track(
                demo_model,
                self.film()[start:end],
                prompts,
                lambda one: found.__setitem__(one.index, one),
                options,
                known,
                "AUTO",
                start,
            )
        assert [bool(found[t].masks.any()) for t in range(7)] == [True] * 7

    @pytest.mark.parametrize("name", ["fill_flicker", "remove_blinks"])
    @pytest.mark.parametrize("value", [-1, 9])
    def test_out_of_range(self, name, value):
        with pytest.raises(SAMError, match=rf"{name} is {value}: choose 0 to 8 frames"):
            TrackOptions(**{name: value})

"""A film in the prompt editor, without a browser: its marks on their way to SAM Track, its frames and masks on the way back."""

import asyncio
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, Interrupted, install
from films import EXAMPLE
from PIL import Image, ImageSequence
from samkit.nodes.editor import preview as preview_module
from samkit.nodes.editor import routes
from samkit.nodes.editor.preview import Preview
from samkit.nodes.editor.tracked import TrackedMasks, TrackedPlace
from samkit.nodes.predict import Segment
from samkit.nodes.prompt_editor import PromptEditor
from samkit.nodes.track import TrackObjects
from samkit.sam import SAMError

SIZE = 60, 80
FRAMES = 5


@pytest.fixture
def comfy(monkeypatch, tmp_path, tiny_sam):
    for folder in ("input", "temp", "models/sams"):
        (tmp_path / folder).mkdir(parents=True)
    torch.save(tiny_sam.state_dict(), tmp_path / "models" / "sams" / "tiny.pth")
    Image.fromarray(make_image(*SIZE)).save(tmp_path / "input" / "one.png")
    first, *others = (Image.fromarray(make_image(*SIZE, seed)) for seed in range(FRAMES))
    first.save(tmp_path / "input" / "film.webp", save_all=True, append_images=others, lossless=True)
    return install(monkeypatch, FakeComfyUI(tmp_path))


def film():
    return as_image(*(make_image(*SIZE, seed) for seed in range(FRAMES)))


def text(*objects):
    listed = [{"name": f"Object {place}", "marks": marks} for place, marks in enumerate(objects)]
    return json.dumps({"version": 2, "objects": listed})


def at(x, y, frame=None, label=1):
    return {"x": x, "y": y, "label": label, **({} if frame is None else {"frame": frame})}


def track(node, model, prompts, **options):
    positive, negative, boxes, *_ = PromptEditor().execute(film(), prompts)["result"]
    return node.run(
        sam_model=model,
        image=film(),
        positive_coords=positive,
        negative_coords=negative,
        bboxes=boxes,
        method="follow",
        **options,
    )


def post(handler, body, preview=None):
    reply = asyncio.run(routes.reply_to(handler, preview or Preview(), "application/json", json.dumps(body).encode()))
    return reply.status, reply


def shown_mask(reply):
    return np.array(Image.open(io.BytesIO(reply.body)).convert("RGBA"))[..., 3] > 127


class TestMarks:
    """What the editor gives is what SAM Track takes: prompts of each object on the frames that it is marked on."""

    def test_objects_are_the_same_on_all_frames(self, tiny_model):
        prompts = text([at(30, 25, 0), at(50, 20, 3, label=0)], [{"x": 10, "y": 10, "width": 30, "height": 40, "frame": 2}])
        known = track(TrackObjects(), tiny_model, prompts)[3]
        assert known.names == (1, 2) and known.prompted_frames(1) == (0, 3) and known.prompted_frames(2) == (2,)

    def test_another_object_does_not_rename_the_first(self, tiny_model):
        node = TrackObjects()
        assert track(node, tiny_model, text([at(30, 25, 1)]))[3].names == (1,)
        known = track(node, tiny_model, text([at(30, 25, 1)], [at(60, 30, 2)]))[3]
        assert known.computed == {1: 0, 2: 3}

    def test_marks_without_a_frame_are_the_first_ones(self, tiny_model):
        known = track(TrackObjects(), tiny_model, text([at(30, 25)], [at(60, 30)]))[3]
        assert known.names == (1, 2) and {known.prompted_frames(name) for name in known.names} == {(0,)}


class TestTracked:
    """The masks of a run, as the browser gets them."""

    PROMPTS = text([at(30, 25, 0)], [at(60, 30, 2)])

    def run(self, tiny_model, prompts=PROMPTS, **options):
        answer = track(TrackObjects(), tiny_model, prompts, individual_masks=True, show_result=True, **options)
        return answer["result"][0].view(FRAMES, 2, *SIZE) > 0, answer["ui"]["samkit_track"][0]

    def test_each_mask_is_that_of_the_run(self, comfy, tiny_model):
        masks, told = self.run(tiny_model)
        assert told["direction"] == "forward" and [one["name"] for one in told["objects"]] == [1, 2]
        assert [one["computed"] for one in told["objects"]] == [5, 3]
        seen = np.array([[int(flag) for flag in one["seen"]] for one in told["objects"]], bool)
        assert (seen == masks.any((2, 3)).numpy().T).all() and seen.any()
        for place, frame in np.argwhere(seen).tolist():
            question = {"track": {"file": told["file"], "object": place, "frame": frame}, "colour": "#ff9500", "form": "mask"}
            status, reply = post(routes.tracked, question)
            assert status == 200 and (shown_mask(reply) == masks[frame, place].numpy()).all()
            assert reply.headers["X-SAMKit-Area"] == str(int(masks[frame, place].sum()))
        assert np.array(Image.open(io.BytesIO(reply.body)).convert("RGBA"))[shown_mask(reply)][0, :3].tolist() == [255, 149, 0]

    def test_they_are_those_that_the_options_leave(self, comfy, tiny_model):
        masks, told = self.run(tiny_model, non_overlapping=True, fill_flicker=2)
        place = TrackedPlace(told["file"], 0, 0)
        assert (place.mask() == masks[0, 0].numpy()).all()

    def test_equal_masks_are_one_file_and_others_another(self, comfy, tiny_model):
        files = {self.run(tiny_model)[1]["file"] for _ in range(2)}
        other = text([at(30, 25, 0)], [at(40, 20, 2)])
        assert len(files) == 1 and self.run(tiny_model, other)[1]["file"] not in files
        assert not list((comfy.root / "temp").glob(".*"))

    def test_without_show_result_and_of_a_part_there_are_none(self, comfy, tiny_model):
        assert isinstance(track(TrackObjects(), tiny_model, self.PROMPTS), tuple)
        part = track(TrackObjects(), tiny_model, self.PROMPTS, show_result=True, frame_offset=0)
        assert list(part["ui"]) == ["images"]

    def test_outside_comfyui_nothing_is_written(self, tiny_model):
        answer = track(TrackObjects(), tiny_model, self.PROMPTS, show_result=True)
        assert list(answer["ui"]) == ["images"]

    def test_a_run_that_ends_before_its_end_shows_nothing(self, comfy, tiny_model):
        comfy.interrupted_after = 7
        with pytest.raises(Interrupted):
            self.run(tiny_model)
        assert not [path for path in (comfy.root / "temp").iterdir() if "track" in path.name]

    def test_a_full_disk_does_not_end_the_run(self, comfy, tiny_model, monkeypatch):
        real = zipfile.ZipFile.writestr

        def full(self, *given):
            real(self, *given)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
        answer = track(TrackObjects(), tiny_model, self.PROMPTS, show_result=True)
        assert list(answer["ui"]) == ["images"] and not [
            path for path in (comfy.root / "temp").iterdir() if "track" in path.name
        ]

    @pytest.mark.parametrize(
        ("change", "status", "said"),
        [
            ({"track": {"file": "samkit_track_" + 32 * "0" + ".zip", "object": 0, "frame": 0}}, 404, "no longer there"),
            ({"track": {"file": "../models/sams/tiny.pth", "object": 0, "frame": 0}}, 400, "track.file is '../models"),
            ({"track": {"file": "samkit_track_" + 32 * "0" + ".zip/x", "object": 0, "frame": 0}}, 400, "track.file"),
            ({"track": {"object": 9}}, 404, "no longer there"),
            ({"track": {"frame": 99}}, 404, "no longer there"),
            ({"track": {"frame": -1}}, 400, "track.frame is -1"),
            ({"track": {"frame": "0"}}, 400, "track.frame is '0'"),
            ({"track": {"more": 1}}, 400, "unknown key 'more'"),
            ({"track": None}, 400, "track is missing"),
            ({"colour": "red"}, 400, "colour is 'red'"),
            ({"colour": None}, 400, "colour is None"),
            ({"form": "film"}, 400, "form is 'film'"),
            ({"more": 1}, 400, "unknown key 'more'"),
        ],
    )
    def test_what_is_refused(self, comfy, tiny_model, change, status, said):
        told = self.run(tiny_model)[1]
        body = {"track": {"file": told["file"], "object": 0, "frame": 0}, "colour": "#ff9500", "form": "tint"}
        assert post(routes.tracked, body)[0] == 200
        one = change.get("track")
        body |= {**change, **({"track": {**body["track"], **one}} if one else {})}
        answered, reply = post(routes.tracked, body)
        assert answered == status and said in json.loads(reply.body)["error"]

    @pytest.mark.parametrize("cut", [0, 20, 100])
    def test_a_damaged_file_is_refused(self, comfy, tiny_model, cut):
        told = self.run(tiny_model)[1]
        path = comfy.root / "temp" / told["file"]
        path.write_bytes(path.read_bytes()[:cut])
        question = {"track": {"file": told["file"], "object": 0, "frame": 0}, "colour": "#ff9500"}
        assert post(routes.tracked, question)[0] == 404


def test_a_film_of_many_frames_takes_little_memory():
    """Masks of half an image, 400 frames of 640x480: 61 MB as bits."""
    packed, mask = TrackedMasks([1, 2], 400, (480, 640)), torch.zeros(2, 480, 640, dtype=torch.bool)
    mask[0, 100:400, 100:500] = True
    for frame in range(400):
        packed.put(frame, mask)
    assert sum(len(part) for each in packed._packed for part in each) < 1_000_000


class TestStart:
    """The preview of a correction begins with the mask that was tracked."""

    def question(self, start=None, **others):
        body = {
            "image": {"filename": "film.webp", "frame": 3},
            "model": {"model_name": "tiny.pth"},
            "editor": "one",
            "sequence": 1,
        }
        prompts = {"version": 2, "objects": [{"marks": [at(30, 25), at(60, 40, label=0)]}]}
        return {**body, "prompts": prompts, "object": 0, "form": "mask", **({"start": start} if start else {}), **others}

    def test_it_is_sam_segments_mask_prompt(self, comfy, tiny_model):
        mask = torch.zeros(1, *SIZE, dtype=torch.bool)
        mask[0, 10:50, 20:60] = True
        packed = TrackedMasks([1], FRAMES, SIZE)
        packed.put(3, mask)
        (told,) = packed.shown("forward", {})["samkit_track"]
        status, reply = post(routes.ask, self.question({"file": told["file"], "object": 0, "frame": 3}))
        points = [json.dumps([{"x": x, "y": y}]) for x, y in ((30, 25), (60, 40))]
        expected = Segment().execute(tiny_model, film()[3:4], *points, mask_prompt=mask.float())[0][0] > 0
        assert status == 200 and (shown_mask(reply) == expected.numpy()).all()
        alone = post(routes.ask, self.question())[1]
        assert (shown_mask(alone) != expected.numpy()).any(), "the mask makes a difference here"

    def test_one_of_another_size_is_not_used(self, comfy):
        packed = TrackedMasks([1], FRAMES, (30, 40))
        packed.put(3, torch.ones(1, 30, 40, dtype=torch.bool))
        (told,) = packed.shown("forward", {})["samkit_track"]
        replies = [
            post(routes.ask, self.question(start))[1] for start in ({"file": told["file"], "object": 0, "frame": 3}, None)
        ]
        assert replies[0].status == 200 and (shown_mask(replies[0]) == shown_mask(replies[1])).all()

    def test_without_one_that_has_gone_the_preview_goes_on(self, comfy):
        start = {"file": "samkit_track_" + 32 * "0" + ".zip", "object": 0, "frame": 3}
        status, reply = post(routes.ask, self.question(start))
        assert status == 200 and (shown_mask(reply) == shown_mask(post(routes.ask, self.question())[1])).all()
        assert post(routes.ask, self.question({**start, "file": "x"}))[0] == 400


def get(**query):
    return asyncio.run(routes.frame({name: str(value) for name, value in query.items()}))


class TestFrames:
    """The frames of a file that has several."""

    @pytest.mark.parametrize(("name", "count"), [("one.png", 1), ("film.webp", FRAMES)])
    def test_they_are_counted(self, comfy, name, count):
        status, reply = post(routes.frames, {"image": {"filename": name}})
        assert status == 200 and json.loads(reply.body) == {"frames": count}

    def test_each_is_the_one_that_load_image_gives(self, comfy):
        for frame in range(FRAMES):
            reply = get(filename="film.webp", frame=frame)
            assert (reply.status, reply.content_type) == (200, "image/png")
            assert (np.array(Image.open(io.BytesIO(reply.body))) == make_image(*SIZE, frame)).all()
        assert get(filename="film.webp", type="input", subfolder="").body == get(filename="film.webp", frame=0).body

    def test_the_packs_own_film_too(self, comfy):
        status, reply = post(routes.frames, {"image": {"filename": EXAMPLE.name, "type": "example"}})
        assert status == 200 and json.loads(reply.body) == {"frames": 24}
        with Image.open(EXAMPLE) as stored:
            expected = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(stored)][15]
        reply = get(filename=EXAMPLE.name, type="example", frame=15)
        assert (np.array(Image.open(io.BytesIO(reply.body))) == expected).all()

    def test_a_thumbnail_is_small(self, comfy):
        reply = get(filename="one.png", side=32)
        assert (reply.status, reply.content_type) == (200, "image/jpeg")
        assert Image.open(io.BytesIO(reply.body)).size == (32, 24)
        assert Image.open(io.BytesIO(get(filename="one.png", side=9_999_999).body)).size == (80, 60)

    def test_a_film_is_read_once_for_all_its_frames_and_again_when_it_changes(self, comfy):
        for frame in range(FRAMES):
            get(filename="film.webp", frame=frame)
        assert len(comfy.images_loaded) == 1
        first, *others = (Image.fromarray(make_image(*SIZE, seed)) for seed in (7, 8))
        first.save(comfy.root / "input" / "film.webp", save_all=True, append_images=others, lossless=True)
        assert json.loads(post(routes.frames, {"image": {"filename": "film.webp"}})[1].body) == {"frames": 2}
        assert len(comfy.images_loaded) == 2

    @pytest.mark.parametrize(
        ("query", "status"),
        [
            ({"filename": "film.webp", "frame": FRAMES}, 404),
            ({"filename": "film.webp", "frame": -1}, 400),
            ({"filename": "film.webp", "frame": "1" * 9}, 400),
            ({"filename": "film.webp", "side": "x"}, 400),
            ({"filename": "none.webp"}, 404),
            ({"filename": "../input/film.webp"}, 400),
            ({"filename": "film.webp", "subfolder": ".."}, 400),
            ({"filename": "film.webp", "type": "models"}, 400),
            ({}, 400),
        ],
    )
    def test_what_is_refused(self, comfy, query, status):
        reply = get(**query)
        assert reply.status == status and json.loads(reply.body)["error"]

    def test_a_file_with_too_many_pixels_is_refused(self, comfy, monkeypatch):
        monkeypatch.setattr(preview_module, "_MOST_PIXELS", FRAMES * SIZE[0] * SIZE[1] - 1)
        assert post(routes.frames, {"image": {"filename": "film.webp"}})[0] == 413
        assert get(filename="film.webp").status == 413 and get(filename="one.png").status == 200
        with pytest.raises(SAMError, match="pixels"):
            preview_module.count_frames(preview_module.parse_image({"image": {"filename": "film.webp"}}))

"""Folders of films to data sets: each film once, its objects under one number on all frames; and the command."""

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from load_pack import ROOT
from PIL import Image
from pycocotools.coco import COCO
from samkit import segment_folder as command
from samkit.sam import FilmPrompt, SAMError, TrackOptions, load_model, track
from samkit.sam.datasets import films as reading
from samkit.sam.datasets.films import FolderFrames, VideoFrames, frame_order
from samkit.sam.datasets.formats import FORMATS
from samkit.sam.datasets.rle import encode_mask
from samkit.sam.tasks import films as films_module
from samkit.sam.tasks.films import film_prompts, find_films, read_film_masks, read_film_prompts, track_here
from samkit.sam.tasks.folders import FolderTask, segment_folder
from samkit.sam.tasks.words import FoundBoxes
from scipy import ndimage
from test_folders import tree
from test_follow import BLUE, RED, SIZE, disc, drawn
from test_kills import killed_at

DEMO = ROOT / "sam" / "weights" / "bundled" / "samkit_demo.safetensors"
WAY = [(40 + 12 * t, 60 + 5 * t) for t in range(4)]
OTHER = [(150, 110 - 6 * t) for t in range(4)]
CLICKS = {
    "one": [
        {"object": "ball", "label": "ball", "positive_coords": [{"x": 40, "y": 60}]},
        {"object": "late", "frame": 2, "bbox": {"x": 133, "y": 81, "width": 34, "height": 34}},
    ],
    "deep/two": [{"positive_coords": [{"x": 150, "y": 110}]}, {"positive_coords": [{"x": 40, "y": 60}]}],
}


def frames_of(ways):
    """A film of discs, the second one smaller and blue."""
    return drawn(
        *([(RED, disc(*WAY[t]))] * ("red" in ways) + [(BLUE, disc(*OTHER[t], radius=16))] * ("blue" in ways) for t in range(4))
    )


def write_video(path, frames, rate=10, **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1" if path.suffix == ".mkv" else "libx264", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = options.pop("pix_fmt", "bgr0" if path.suffix == ".mkv" else "yuv420p")
        stream.options = options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def films(tmp_path):
    """Two folders of four frames, whose numbers have no leading zeros in one of them."""
    for name, numbers in (("one", ["8", "9", "10", "11"]), ("deep/two", ["00000", "00001", "00002", "00003"])):
        folder = tmp_path / "films" / name
        folder.mkdir(parents=True)
        for number, frame in zip(numbers, frames_of("red blue"), strict=True):
            Image.fromarray(frame).save(folder / f"{number}.png")
    return tmp_path / "films"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "clicks.json"
    path.write_text(json.dumps(CLICKS))
    return path


def task(form="COCO RLE", **options):
    return FolderTask("prompts", form, DEMO, track=TrackOptions(**options))


def run(task, films, prompts, output, **options):
    return segment_folder(task, read_film_prompts(prompts, find_films([films])[1])[0], output, track_here, **options)


def test_coco_has_the_masks_of_track_and_one_track_id_to_an_object(films, prompts, tmp_path):
    """Read by pycocotools; the lists are those that TAO's toolkit indexes."""
    assert run(task(), films, prompts, tmp_path / "out.json") == (2, 0, {})
    document, coco = json.loads((tmp_path / "out.json").read_bytes()), COCO(tmp_path / "out.json")
    names = ["deep/two/00000.png", "deep/two/00001.png", "deep/two/00002.png", "deep/two/00003.png"]
    assert [one["file_name"] for one in document["images"]] == [*names, *(f"one/{number}.png" for number in (8, 9, 10, 11))]
    assert [(one["video_id"], one["frame_index"]) for one in document["images"]] == [(v, t) for v in (1, 2) for t in range(4)]
    assert [(one["id"], one["name"], one["width"], one["height"]) for one in document["videos"]] == [
        (1, "deep/two", *SIZE[::-1]),
        (2, "one", *SIZE[::-1]),
    ]
    labels = {one["id"]: one["name"] for one in document["categories"]}
    tracks = {one["id"]: (one["video_id"], labels[one["category_id"]]) for one in document["tracks"]}
    assert tracks == {1: (1, "object"), 2: (1, "object"), 3: (2, "ball"), 4: (2, "object")}
    clicks = {
        3: {0: FilmPrompt(np.array([[40.0, 60]]), np.array([1]))},
        4: {2: FilmPrompt(box=np.array([133.0, 81, 167, 115]))},
    }
    wanted = {}
    pixels = [np.array(Image.open(films / "one" / f"{number}.png")) for number in (8, 9, 10, 11)]
    track(load_model(DEMO), pixels, clicks, lambda one: wanted.__setitem__(one.index, one))
    found = {}
    for one in document["annotations"]:
        image, owner = coco.imgs[one["image_id"]], tracks[one["track_id"]]
        assert image["video_id"] == owner[0] and labels[one["category_id"]] == owner[1]
        if owner[0] == 2:
            found[one["track_id"], image["frame_index"]] = coco.annToMask(one), one["score"]
    assert sorted(found) == [(3, 0), (3, 1), (3, 2), (3, 3), (4, 2), (4, 3)]
    for (owner, frame), (mask, score) in found.items():
        assert np.array_equal(mask, wanted[frame].masks[owner - 3].numpy())
        assert score == pytest.approx(float(wanted[frame].object_scores[owner - 3].sigmoid()))


@pytest.mark.parametrize(("form", "codec"), [("mp4", "h264"), ("webm", "vp9")])
def test_an_overlay_is_the_film_with_its_masks(form, codec, films, prompts, tmp_path):
    """Decoded by PyAV: of the film's length, size and rate, tinted inside of the masks alone."""
    shutil.rmtree(films / "deep")
    write_video(films / "clip.mkv", [frame[:-1, :-1] for frame in frames_of("red")], rate=5)
    prompts.write_text(json.dumps({"one": CLICKS["one"], "clip.mkv": CLICKS["one"][:1]}))
    made = replace(task(), overlays=tmp_path / "seen", overlay_form=form)
    assert run(made, films, prompts, tmp_path / "out.json") == (2, 0, {})
    assert made.settings() == task().settings()
    coco = COCO(tmp_path / "out.json")
    for name, rate, size in (("one", 10, SIZE), ("clip", 5, SIZE)):  # an odd side gets the next row or column once more
        with av.open(str(tmp_path / "seen" / f"{name}.{form}")) as video:
            stream = video.streams.video[0]
            assert stream.codec_context.name in (codec, f"lib{codec}") or codec in stream.codec_context.name
            assert stream.average_rate == rate
            decoded = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(stream)]
        assert len(decoded) == 4 and decoded[0].shape[:2] == size
        for t, frame in enumerate(decoded):
            (image,) = [
                one for one in coco.imgs.values() if one["file_name"].startswith(f"{name}/") and one["frame_index"] == t
            ]
            masks = [coco.annToMask(coco.anns[number]).astype(bool) for number in coco.getAnnIds(image["id"])]
            inside = np.logical_or.reduce(masks)
            change = np.abs(frame - frames_of("red blue" if name == "one" else "red")[t]).sum(2)[
                : len(inside), : inside.shape[1]
            ]
            far = ~ndimage.binary_dilation(inside, iterations=6)
            assert change[inside].mean() > 3 * change[far].mean(), (name, t)


def test_overlays_need_films_and_a_pyav_that_can_write_them(films, prompts, tmp_path, monkeypatch, capsys):
    arguments = [str(films), "--everything", "--coco", str(tmp_path / "out.json"), "--overlay", str(tmp_path / "seen")]
    assert command.main(arguments) == 2 and "add --track" in capsys.readouterr().err
    monkeypatch.setattr(av, "codecs_available", {"h263"})
    made = replace(task(), overlays=tmp_path / "seen")
    errors = run(made, films, prompts, tmp_path / "out.json")[2]
    assert "cannot write mp4" in errors["one"] and not (tmp_path / "seen").exists()


def box_of(place, radius=22):
    x, y = place
    return [x - radius, y - radius, x + radius, y + radius]


class Detector:
    """Stands for Grounding DINO, which is tested in test_grounding.py: the boxes of the discs in a frame, by their color."""

    def __init__(self, monkeypatch):
        self.frames = 0
        monkeypatch.setattr(films_module, "load_grounding", lambda folder: folder.name)
        monkeypatch.setattr(films_module, "find_boxes", self.find)

    def find(self, grounding, frames, text, options, device_mode):
        assert (grounding, text, len(frames)) == ("dino", "red. blue.", 1)
        self.frames += 1
        boxes, labels = [], []
        for label, color in (("red", RED), ("blue", BLUE)):
            rows, columns = np.nonzero(np.abs(frames[0].astype(int) - color).sum(2) == 0)
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1.0, rows.max() + 1.0])
                labels.append(label)
        return [FoundBoxes(np.array(boxes, float).reshape(-1, 4), [0.5] * len(boxes), labels)]


def words_task(tmp_path, every, **options):
    (tmp_path / "dino").mkdir(exist_ok=True)
    return FolderTask(
        "words",
        "COCO RLE",
        DEMO,
        grounding=tmp_path / "dino",
        text="red. blue.",
        track=TrackOptions(**options),
        words_every=every,
    )


@pytest.fixture
def coming(tmp_path):
    """A red disc on all of 6 frames, and a blue one from frame 3 on."""
    folder = tmp_path / "films" / "one"
    folder.mkdir(parents=True)
    way = [(40 + 12 * t, 60 + 5 * t) for t in range(6)]
    for t, place in enumerate(way):
        (frame,) = drawn([(RED, disc(*place)), *([(BLUE, disc(150, 120 - 5 * t, 16))] if t > 2 else [])])
        Image.fromarray(frame).save(folder / f"{t}.png")
    return tmp_path / "films"


@pytest.mark.parametrize(("every", "looked", "first"), [(2, 3, 4), (3, 2, 3), (1, 6, 3), (16, 1, None)])
def test_words_are_looked_for_again_and_what_is_tracked_is_no_new_object(every, looked, first, coming, tmp_path, monkeypatch):
    detector = Detector(monkeypatch)
    root, found, _ = find_films([coming])
    assert segment_folder(words_task(tmp_path, every), found, tmp_path / "out.json", track_here) == (1, 0, {})
    coco = COCO(tmp_path / "out.json")
    labels = {one["id"]: coco.cats[one["category_id"]]["name"] for one in coco.dataset["tracks"]}
    assert detector.frames == looked and labels == ({1: "red"} if first is None else {1: "red", 2: "blue"})
    seen = {number: [] for number in labels}
    for one in coco.anns.values():
        seen[one["track_id"]].append(coco.imgs[one["image_id"]]["frame_index"])
    assert seen[1] == list(range(6)) and (first is None or seen[2] == list(range(first, 6)))
    prompts = {1: {0: FilmPrompt(box=np.array(box_of((40, 60))) + [0.0, 0, 1, 1])}}
    wanted = {}
    pixels = [np.array(Image.open(coming / "one" / f"{t}.png")) for t in range(6)]
    track(load_model(DEMO), pixels, prompts, lambda one: wanted.__setitem__(one.index, one))
    for one in coco.anns.values():
        if one["track_id"] == 1:
            assert np.array_equal(coco.annToMask(one), wanted[coco.imgs[one["image_id"]]["frame_index"]].masks[0].numpy())


def test_words_go_backward_too_and_gaps_are_filled_in_the_whole_film(coming, tmp_path, monkeypatch):
    """The last step knows the whole film: an object that is found in the middle is followed to the start."""
    Detector(monkeypatch)
    folder = coming / "one"
    shutil.copy(folder / "3.png", folder / "2.png")  # the blue one is on frame 2, too
    root, found, _ = find_films([coming])
    assert segment_folder(words_task(tmp_path, 3, direction="both"), found, tmp_path / "both.json", track_here).errors == {}
    coco = COCO(tmp_path / "both.json")
    blue = {coco.imgs[one["image_id"]]["frame_index"] for one in coco.anns.values() if one["track_id"] == 2}
    assert blue == {2, 3, 4, 5}


def test_words_that_find_nothing_leave_frames_without_objects(coming, tmp_path, monkeypatch):
    Detector(monkeypatch)
    monkeypatch.setattr(films_module, "find_boxes", lambda *_: [FoundBoxes(np.zeros((0, 4)), [], [])])
    root, found, _ = find_films([coming])
    assert segment_folder(words_task(tmp_path, 2), found, tmp_path / "out.json", track_here) == (1, 0, {})
    coco = COCO(tmp_path / "out.json")
    assert len(coco.imgs) == 6 and not coco.anns
    with pytest.raises(SAMError, match="words_every was 2 and is 3"):
        segment_folder(words_task(tmp_path, 3), found, tmp_path / "out.json", track_here)
    with pytest.raises(SAMError, match="words_every is 0"):
        words_task(tmp_path, 0)


def boxes_of(kind, masks, films, tmp_path, frames=(0, 2)):
    """Masks of the film "one" as a data set: {object: {frame: mask}}."""
    names = ["8.png", "9.png", "10.png", "11.png"]
    if kind == "index":
        for folder in ("masks", "images"):
            (tmp_path / "set" / folder / "one").mkdir(parents=True)
        for frame in frames:
            values = sum(np.uint8(name) * each[frame] for name, each in masks.items() if frame in each)
            Image.fromarray(values).save(tmp_path / "set" / "masks" / "one" / names[frame])
            shutil.copy(films / "one" / names[frame], tmp_path / "set" / "images" / "one")
        return tmp_path / "set"
    images = [{"id": frame, "file_name": f"one/{names[frame]}", "width": SIZE[1], "height": SIZE[0]} for frame in frames]
    labels = {name: 1 if kind == "track" else place for place, name in enumerate(masks, 1)}
    annotations = [
        {"id": len(masks) * frame + labels[name], "image_id": frame, "category_id": labels[name], "iscrowd": 0}
        | {"segmentation": encode_mask(each[frame])}
        | ({"track_id": name + 40} if kind == "track" else {})
        for frame in frames
        for name, each in masks.items()
        if frame in each
    ]
    categories = [{"id": number, "name": f"ball {number}"} for number in sorted(set(labels.values()))]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return tmp_path / "set.json"


@pytest.mark.parametrize("kind", ["track", "label", "index"])
def test_the_masks_of_a_data_set_are_prompts(kind, films, tmp_path):
    """Those of an object on two frames; the truth is the runtime with the same masks."""
    masks = {1: {0: disc(*WAY[0]), 2: disc(*WAY[2])}, 2: {2: disc(*OTHER[2], radius=16)}}
    path = boxes_of(kind, masks, films, tmp_path)
    root, found, _ = find_films([films])
    chosen, errors = read_film_masks(path, found, root)
    assert [film.file_name for film in chosen] == ["one"] and not errors
    assert segment_folder(task(), chosen, tmp_path / "out.json", track_here) == (1, 0, {})
    wanted = {}
    prompts = {name: {t: FilmPrompt(mask=torch.from_numpy(mask)) for t, mask in each.items()} for name, each in masks.items()}
    pixels = [np.array(Image.open(films / "one" / f"{number}.png")) for number in (8, 9, 10, 11)]
    track(load_model(DEMO), pixels, prompts, lambda one: wanted.__setitem__(one.index, one))
    coco = COCO(tmp_path / "out.json")
    seen = {(one["track_id"], coco.imgs[one["image_id"]]["frame_index"]): coco.annToMask(one) for one in coco.anns.values()}
    assert sorted(seen) == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3)]
    for (number, frame), mask in seen.items():
        assert np.array_equal(mask, wanted[frame].masks[number - 1].numpy())


def test_what_was_tracked_can_be_prompts_again(films, prompts, tmp_path):
    run(task(), films, prompts, tmp_path / "out.json")
    root, found, _ = find_films([films])
    chosen, errors = read_film_masks(tmp_path / "out.json", found, root)
    assert not errors and segment_folder(task(), chosen, tmp_path / "again.json", track_here) == (2, 0, {})
    first, again = COCO(tmp_path / "out.json"), COCO(tmp_path / "again.json")
    assert len(again.anns) == len(first.anns) and {one["track_id"] for one in again.anns.values()} == {1, 2, 3, 4}
    for number, one in first.anns.items():
        mask, other = first.annToMask(one), again.annToMask(again.anns[number])
        assert (mask & other).sum() > 0.95 * (mask | other).sum(), "at the resolution of the model's masks"


def test_masks_that_may_be_of_one_object_and_names_that_are_not_frames(films, tmp_path):
    masks = {1: {0: disc(*WAY[0]), 2: disc(*WAY[2])}, 2: {0: disc(*OTHER[0]), 2: disc(*OTHER[2], radius=16)}}
    path = boxes_of("label", masks, films, tmp_path)
    document = json.loads(path.read_text())
    for one in document["annotations"]:
        one["category_id"] = 1
    document["images"].append({"id": 9, "file_name": "two/9.png", "width": 1, "height": 1})
    path.write_text(json.dumps(document))
    root, found, _ = find_films([films])
    chosen, errors = read_film_masks(path, found, root)
    assert not chosen and "not a frame of the films" in errors["two/9.png"]
    assert "does not say which of its masks are one object" in errors["one"]
    document["images"] = document["images"][:1]
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] == 0]
    path.write_text(json.dumps(document))
    (film,), errors = read_film_masks(path, found, root)
    assert not errors and [one["object"] for one in film.prompts] == [1, 2], "masks of a single frame are an object each"
    document["images"][0]["file_name"] = "none.png"
    path.write_text(json.dumps(document))
    with pytest.raises(SAMError, match=r"set.json has no mask of a frame of the films"):
        read_film_masks(path, found, root)


def test_index_pngs_have_one_value_to_an_object(films, prompts, tmp_path):
    """Also where an earlier one is absent: the value is the object's, not its place among those that are seen."""
    content = {**CLICKS, "one": CLICKS["one"][::-1]}
    prompts.write_text(json.dumps(content))
    run(task("index PNG"), films, prompts, tmp_path / "out")
    masks = {path.name: np.array(Image.open(path)) for path in sorted((tmp_path / "out" / "masks" / "one").iterdir())}
    assert [sorted(set(masks[f"{number}.png"].flat)) for number in (8, 9, 10, 11)] == [[0, 2], [0, 2], [0, 1, 2], [0, 1, 2]]
    for t, number in enumerate((8, 9, 10, 11)):
        assert ((masks[f"{number}.png"] == 2) & disc(*WAY[t])).sum() > 0.8 * disc(*WAY[t]).sum()
    with Image.open(tmp_path / "out" / "masks" / "deep" / "two" / "00003.png") as image:
        assert image.mode == "P" and image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    copy = tmp_path / "out" / "images" / "one" / "10.png"
    assert copy.read_bytes() == (films / "one" / "10.png").read_bytes()


def test_a_video_is_tracked_and_its_frames_are_copied(films, tmp_path):
    shutil.rmtree(films / "deep")
    write_video(films / "clip.mkv", frames_of("red"))
    (tmp_path / "clicks.json").write_text(json.dumps({"clip.mkv": CLICKS["one"][:1]}))
    summary = run(task(), films, tmp_path / "clicks.json", tmp_path / "out.json", copies=tmp_path / "copies")
    assert summary == (1, 0, {})
    coco = COCO(tmp_path / "out.json")
    assert [one["file_name"] for one in coco.imgs.values()] == [f"clip/0000{t}.jpg" for t in range(4)]
    for t, one in enumerate(coco.anns.values()):
        mask = coco.annToMask(one).astype(bool)
        assert (mask & disc(*WAY[t])).sum() / (mask | disc(*WAY[t])).sum() > 0.8
        copied = np.array(Image.open(tmp_path / "copies" / coco.imgs[one["image_id"]]["file_name"])).astype(int)
        assert np.abs(copied - frames_of("red")[t]).mean() < 3
    assert len(coco.anns) == 4


@pytest.mark.parametrize("form", ["COCO RLE", "index PNG"])
def test_killed_at_any_step_and_run_again_it_is_the_same(form, films, prompts, tmp_path):
    chosen = read_film_prompts(prompts, find_films([films])[1])[0]

    def work(place):
        return segment_folder(task(form), chosen, tmp_path / place / "out", track_here)

    work("whole")
    wanted = tree(tmp_path / "whole" / "out")
    kills = 0
    for step in range(0, 200, 3 if form == "COCO RLE" else 13):
        if not killed_at(step, lambda: work("killed")):
            break
        kills += 1
    assert kills >= 3
    journal = tmp_path / "killed" / "out.journal"
    done = journal.read_bytes().count(b"\n") - 1
    summary = work("killed")
    assert summary.before == done and summary.done == 2 - done
    assert tree(tmp_path / "killed" / "out") == wanted
    assert work("killed") == (0, 2, {})


def test_a_film_that_changed_is_tracked_again_and_loses_its_old_files(films, prompts, tmp_path):
    run(task("index PNG"), films, prompts, tmp_path / "out")
    (films / "one" / "11.png").unlink()
    assert run(task("index PNG"), films, prompts, tmp_path / "out") == (1, 1, {})
    names = sorted(path.name for path in (tmp_path / "out").rglob("one/*"))
    assert names == sorted(["8.png", "9.png", "10.png"] * 2)
    content = {"one": [*CLICKS["one"], {"object": "ball", "frame": 1, "positive_coords": [{"x": 52, "y": 65}]}]}
    prompts.write_text(json.dumps(content))
    assert run(task("index PNG"), films, prompts, tmp_path / "out") == (1, 0, {})
    assert not list((tmp_path / "out").rglob("two/*"))


def test_other_options_need_another_output(films, prompts, tmp_path):
    run(task(), films, prompts, tmp_path / "out.json")
    with pytest.raises(SAMError, match=r"begun with other settings \(track was .*'forward'.*'both'"):
        run(task(direction="both"), films, prompts, tmp_path / "out.json")


def test_a_film_that_fails_is_reported_and_the_others_are_tracked(films, prompts, tmp_path):
    (films / "one" / "9.png").write_bytes(b"nothing")
    summary = run(task(), films, prompts, tmp_path / "out.json")
    assert summary.done == 1 and list(summary.errors) == ["one"] and "UnidentifiedImageError" in summary.errors["one"]
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(films / "one" / "9.png")
    said = run(task(), films, prompts, tmp_path / "out.json").errors["one"]
    assert "its frame 9.png has 40x30 pixels, but 8.png has 200x160" in said


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"frame": 4, "positive_coords": [{"x": 4, "y": 4}]}], "frame 4 lies outside the film, which has 4 frames: 0 to 3"),
        ([{"positive_coords": [{"x": 400, "y": 4}]}], "outside the image of 200x160"),
        ([{"object": "a", "frame": 1}], "no prompt inside the image"),
        ([{"object": 1, "bbox": {"x": 1, "y": 1, "width": 9, "height": 9}}] * 2, "Object 1 has two entries for frame 0"),
        (
            [{"object": 1, "frame": t, "label": "ab"[t], "positive_coords": [{"x": 4, "y": 4}]} for t in (0, 1)],
            "labels 'a' and 'b'",
        ),
    ],
    ids=["frame", "point", "nothing", "twice", "labels"],
)
def test_prompts_that_do_not_fit_a_film(items, message, films, tmp_path):
    (tmp_path / "clicks.json").write_text(json.dumps({"one": items}))
    assert message in run(task(), films, tmp_path / "clicks.json", tmp_path / "out.json").errors["one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be a JSON object"),
        ({"one": {}}, "'one' must be a list of objects with bbox, frame, label, negative_coords, object"),
        ({"one": [{"box": 1}]}, "must be a list of objects with"),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, "'images' must be a list .* a film: a folder of frames"),
        ({"one": [{"frame": -1}]}, "a frame of 'one' is -1: it must be a whole number"),
        ({"one": [{"frame": True}]}, "a frame of 'one' is True"),
        ({"one": [{"object": []}]}, r"an object of 'one' is \[\]: it must be text or a number"),
    ],
)
def test_a_prompts_file_of_another_form(content, message, films, tmp_path):
    (tmp_path / "clicks.json").write_text(json.dumps(content))
    with pytest.raises(SAMError, match=message):
        read_film_prompts(tmp_path / "clicks.json", find_films([films])[1])


def test_objects_without_a_name_do_not_take_one_that_is_given(demo_model):
    point = {"positive_coords": [{"x": 4, "y": 4}]}
    items = [point, {**point, "object": "#1", "frame": 1}, point, {**point, "object": "#1", "label": "cup"}]
    prompts, labels = film_prompts(items, demo_model.geometry(SIZE), "other")
    assert {name: sorted(frames) for name, frames in prompts.items()} == {"#2": [0], "#1": [0, 1], "#3": [0]}
    assert labels == {"#2": "other", "#1": "cup", "#3": "other"}


class TestFinding:
    def test_folders_with_images_and_video_files(self, films, tmp_path):
        (films / "clip.MP4").write_bytes(b"")
        (films / "one" / "x.psd").write_bytes(b"")
        root, found, unread = find_films([films])
        assert root == films.resolve() and unread == ["one/x.psd"]
        assert [(one.file_name, one.stem, one.frames[:3]) for one in found] == [
            ("clip.MP4", "clip", ()),
            ("deep/two", "deep/two", ("00000.png", "00001.png", "00002.png")),
            ("one", "one", ("8.png", "9.png", "10.png")),
        ]

    def test_a_film_itself_is_named_by_its_folder(self, films):
        root, found, _ = find_films([films / "one"])
        assert root == films.resolve() and [one.file_name for one in found] == ["one"]
        assert [one.file_name for one in find_films([films / "one", films / "deep" / "two"])[1]] == ["deep/two", "one"]

    def test_nothing(self, tmp_path):
        with pytest.raises(SAMError, match=r"no folder of frames and no video file \(.*\.mp4"):
            find_films([tmp_path])

    def test_a_folder_and_a_video_of_one_name(self, films, prompts, tmp_path):
        write_video(films / "one.mkv", frames_of("red"))
        prompts.write_text(json.dumps({**CLICKS, "one.mkv": CLICKS["one"][:1]}))
        summary = run(task(), films, prompts, tmp_path / "out.json")
        assert summary.done == 2 and "differs from that of one only in the extension" in summary.errors["one.mkv"]

    def test_order(self):
        names = ["a10", "a9", "a", "b1", "a09", "A9", "9", "10"]
        assert sorted(names, key=frame_order) == ["9", "10", "A9", "a", "a09", "a9", "a10", "b1"]


class TestFrames:
    """Random access to frames that are read in order; the truth is the frames that were written, without loss."""

    film = [np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8) for seed in range(9)]

    @pytest.fixture(params=["folder", "video"])
    def read(self, request, tmp_path, monkeypatch):
        monkeypatch.setattr(reading, "_CACHED_BYTES", 3 * 20 * 30 * 3)
        if request.param == "video":
            write_video(tmp_path / "a.mkv", self.film)
            return VideoFrames(tmp_path / "a.mkv")
        for number, frame in enumerate(self.film):
            Image.fromarray(frame).save(tmp_path / f"{number}.png")
        return FolderFrames([tmp_path / f"{number}.png" for number in range(9)])

    def test_any_order(self, read):
        assert len(read) == 9 and read.size == (20, 30)
        for index in (0, 1, 2, 0, 8, 7, 6, 3, 8, -1, 4, 4):
            assert np.array_equal(read[index], self.film[index]), index
            assert len(read._cached) <= 3
        assert all(np.array_equal(*pair) for pair in zip(read[2:7:2], self.film[2:7:2], strict=True))
        with pytest.raises(IndexError):
            read[9]

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not say which files are open")
    @pytest.mark.parametrize("needed", [0, 3])
    def test_a_video_that_nobody_needs_is_closed_at_once(self, needed, tmp_path):
        """Its decoder's threads end with it. A forked process that found them later, among objects that hold each other, would
        wait for them forever."""
        write_video(tmp_path / "a.mkv", self.film)

        def is_open():
            return any(link.is_symlink() and link.readlink() == tmp_path / "a.mkv" for link in Path("/proc/self/fd").iterdir())

        gc.disable()
        try:
            frames = VideoFrames(tmp_path / "a.mkv")
            assert np.array_equal(frames[needed], self.film[needed]) and is_open()
            del frames
            assert not is_open()
        finally:
            gc.enable()

    def test_names_that_differ_in_the_extension(self, tmp_path):
        with pytest.raises(SAMError, match=r"its frames a\.jpg and a\.png differ only in the extension"):
            FolderFrames([tmp_path / "a.jpg", tmp_path / "a.png"])

    def test_what_is_not_a_video(self, tmp_path):
        (tmp_path / "a.mp4").write_bytes(b"nothing" * 100)
        with pytest.raises(SAMError, match=r"a\.mp4 cannot be decoded: .*Invalid data"):
            VideoFrames(tmp_path / "a.mp4")
        with av.open(str(tmp_path / "a.wav"), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
        (tmp_path / "a.wav").rename(tmp_path / "sound.avi")
        with pytest.raises(SAMError, match=r"sound\.avi has no video frame"):
            VideoFrames(tmp_path / "sound.avi")

    def test_a_video_with_b_frames_has_all_of_its_frames(self, tmp_path):
        """Frames come in the order in which they are shown."""
        shades = [np.full((32, 48, 3), 10 + 12 * t, np.uint8) for t in range(20)]
        write_video(tmp_path / "a.mp4", shades, bf="3", g="8")
        frames = VideoFrames(tmp_path / "a.mp4")
        means = [float(frame.mean()) for frame in frames]
        assert len(means) == 20 and np.abs(np.array(means) - [10 + 12 * t for t in range(20)]).max() < 4

    def test_a_video_that_lies_on_its_side_is_turned(self, tmp_path):
        """The matrix is that of a telephone that is held upright: 90 degrees clockwise."""
        frame = np.zeros((32, 48, 3), np.uint8)
        frame[:, :16] = 250
        write_video(tmp_path / "a.mp4", [frame] * 2)
        content = (tmp_path / "a.mp4").read_bytes()
        one = (1 << 16).to_bytes(4, "big")
        zero, minus, unit = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True), (1 << 30).to_bytes(4, "big")
        plain = one + zero * 3 + one + zero * 3 + unit
        place = content.index(plain, content.index(b"tkhd"))
        turned = zero + one + zero + minus + zero * 4 + unit
        (tmp_path / "b.mp4").write_bytes(content[:place] + turned + content[place + len(plain) :])
        frames = VideoFrames(tmp_path / "b.mp4")
        assert frames.size == (48, 32)
        assert frames[0][:14].mean() > 200 and frames[0][18:].mean() < 50


class TestCommand:
    def test_tracks_and_says_so(self, films, prompts, tmp_path, capsys):
        prompts.write_text(json.dumps({**CLICKS, "none": []}))
        arguments = [
            films,
            "--track",
            "--prompts",
            prompts,
            "--index-png",
            tmp_path / "out",
            "--model",
            "samkit_demo.safetensors",
        ]
        assert command.main([str(one) for one in arguments]) == 1
        said = capsys.readouterr().err
        assert "none: skipped. it is in the prompts, but not among the films" in said
        assert "Tracked now: 2; before: 0; skipped: 1." in said
        assert command.main([str(one) for one in [*arguments, "--direction", "both"]]) == 2
        assert "track was" in capsys.readouterr().err
        assert command.main([str(one) for one in [*arguments, "--direction", "both", "--restart"]]) == 1
        first = np.array(Image.open(tmp_path / "out" / "masks" / "one" / "8.png"))
        assert set(first.flat) == {0, 1, 2}, "the box of frame 2 is followed backward"

    @pytest.mark.parametrize("name", [one for one in FORMATS if not one.startswith("COCO") and one != "index PNG"])
    def test_formats_without_objects_across_frames(self, name):
        with pytest.raises(SAMError, match=f"{name} does not say which masks of a film are one object: write --coco or"):
            task(name)

    @pytest.mark.parametrize("options", [["--everything"], ["--prompts", "x", "--ray"], ["--prompts", "x", "--teach", "y"]])
    def test_other_modes(self, options, films, tmp_path, capsys):
        assert command.main([str(films), "--track", *options, "--coco", str(tmp_path / "out.json")]) == 2
        assert "--track follows the objects of --prompts, --words or --boxes-from, on this machine" in capsys.readouterr().err

    def test_sheets_of_a_video(self, films, tmp_path, capsys):
        write_video(films / "clip.mkv", frames_of("red"))
        (tmp_path / "clicks.json").write_text(json.dumps({"clip.mkv": CLICKS["one"][:1]}))
        arguments = [films, "--track", "--prompts", tmp_path / "clicks.json", "--coco", tmp_path / "out.json"]
        arguments += ["--review", tmp_path / "sheets", "--model", "samkit_demo.safetensors"]
        assert command.main([str(one) for one in arguments]) == 2
        assert "--score and --review need the frames of clip.mkv as files: add --upright FOLDER" in capsys.readouterr().err
        assert command.main([str(one) for one in [*arguments, "--upright", tmp_path / "frames"]]) == 0
        assert len(list((tmp_path / "sheets").iterdir())) == 1

"""Folders to data sets: each image once, whatever happens in between; and the command."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_picture
from load_pack import ROOT
from PIL import Image
from samkit import segment_folder as command
from samkit.sam import AutoMaskOptions, Prompt, SAMError, decode, encode, load_model, segment_everything
from samkit.sam.datasets.formats import FORMATS
from samkit.sam.datasets.journal import Journal
from samkit.sam.datasets.rle import encode_mask
from samkit.sam.tasks import folders
from samkit.sam.tasks.folders import FolderTask, Worker, find_images, read_prompts, run_here, segment_folder
from samkit.sam.tasks.words import FoundBoxes

LOOSE = AutoMaskOptions(2, pred_iou_thresh=-1.0, stability_score_thresh=0.0)
NAMES = ["a.png", "b.jpg", "day 1/a.png", "day 1/größe.webp", "z.bmp"]


@pytest.fixture
def photos(tmp_path):
    """Five images in two folders."""
    for seed, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_picture(60, 80, seed)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def checkpoint(tiny_sam, tmp_path):
    torch.save(tiny_sam.state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


@pytest.fixture
def task(checkpoint):
    return FolderTask("everything", "COCO RLE", checkpoint, label="shape", everything=LOOSE)


def with_format(task, name):
    return FolderTask(task.mode, name, task.checkpoint, label=task.label, everything=task.everything)


def run(task, photos, output, **options):
    return segment_folder(task, find_images([photos], output)[1], output, **options)


def masks_in(path):
    """{file name: [(segmentation, label, score)]}."""
    document = json.loads(path.read_bytes())
    names = {one["id"]: one["name"] for one in document["categories"]}
    images = {one["id"]: one["file_name"] for one in document["images"]}
    found = {name: [] for name in images.values()}
    for one in document["annotations"]:
        found[images[one["image_id"]]].append((one["segmentation"], names[one["category_id"]], one["score"]))
    return found


def tree(place):
    """Every file of a data set with its bytes; without the journal, which is in the order of the work, and the lock."""
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {path.relative_to(place.parent): path.read_bytes() for path in files}


def test_everything_is_what_segment_everything_finds(task, photos, tmp_path):
    summary = run(task, photos, tmp_path / "out.json")
    assert summary == (5, 0, {})
    found, model = masks_in(tmp_path / "out.json"), load_model(task.checkpoint)
    assert list(found) == sorted(NAMES)
    for name, listed in found.items():
        pixels = np.array(Image.open(photos / name).convert("RGB"))
        wanted = segment_everything(model, pixels, LOOSE)
        assert listed == [(encode_mask(one.full((60, 80))), "shape", one.score) for one in wanted] and listed


def test_words_are_boxes_with_labels_and_scores(task, photos, tmp_path, monkeypatch):
    (tmp_path / "dino").mkdir()
    boxes = FoundBoxes(np.array([[5.0, 5, 40, 40], [30, 20, 70, 55]]), [0.75, 0.5], ["cat", ""])
    monkeypatch.setattr(folders, "load_grounding", lambda folder: folder.name)
    seen = []
    monkeypatch.setattr(folders, "find_boxes", lambda grounding, frames, text, *_: seen.append((grounding, text)) or [boxes])
    words = FolderTask("words", "COCO RLE", task.checkpoint, grounding=tmp_path / "dino", text="cat. dog.", label="other")
    run(words, photos, tmp_path / "out.json")
    assert set(seen) == {("dino", "cat. dog.")} and len(seen) == 5
    model, pixels = load_model(task.checkpoint), make_picture(60, 80, 0)
    prompts = [Prompt(np.zeros((0, 2)), np.zeros(0, np.int32), box) for box in boxes.boxes]
    wanted = decode(model, encode(model, [pixels]), [prompts]).masks[0].numpy()
    assert masks_in(tmp_path / "out.json")["a.png"] == [
        (encode_mask(wanted[0]), "cat", 0.75),
        (encode_mask(wanted[1]), "other", 0.5),
    ]


PROMPTS = {
    "a.png": [
        {"label": "cup", "positive_coords": [{"x": 30, "y": 25}], "negative_coords": [{"x": 3, "y": 5}]},
        {"bbox": {"x": 10, "y": 10, "width": 30, "height": 20}},
    ],
    "z.bmp": [],
}


def test_prompts_are_one_object_each(task, photos, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps({**PROMPTS, "none.png": []}))
    images, unknown = read_prompts(tmp_path / "prompts.json", find_images([photos])[1])
    assert [one.file_name for one in images] == ["a.png", "z.bmp"] and unknown == ["none.png"]
    prompted = FolderTask("prompts", "COCO RLE", task.checkpoint)
    assert segment_folder(prompted, images, tmp_path / "out.json") == (2, 0, {})
    model = load_model(task.checkpoint)
    objects = [
        Prompt(np.array([[30.0, 25], [3, 5]]), np.array([1, 0], np.int32)),
        Prompt(np.zeros((0, 2)), np.zeros(0, np.int32), np.array([10.0, 10, 40, 30])),
    ]
    wanted = decode(model, encode(model, [make_picture(60, 80, 0)]), [objects])
    masks, scores = wanted.masks[0].numpy(), wanted.scores[0].tolist()
    assert masks_in(tmp_path / "out.json") == {
        "a.png": [(encode_mask(masks[0]), "cup", scores[0]), (encode_mask(masks[1]), "object", scores[1])],
        "z.bmp": [],
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"a.png": {}}', '{"a.png": [3]}', '{"a.png": [{"box": [1, 2, 3, 4]}]}'])
def test_prompts_of_another_form_are_refused(content, tmp_path):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(SAMError, match=r"prompts\.json"):
        read_prompts(tmp_path / "prompts.json", [])


def test_a_bad_image_is_reported_and_skipped_and_tried_again(task, photos, tmp_path):
    whole = (photos / "a.png").read_bytes()
    (photos / "a.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.png").write_text("not an image")
    summary = run(task, photos, tmp_path / "out.json")
    assert (summary.done, set(summary.errors)) == (4, {"a.png", "text.png"})
    assert all(error.startswith(("OSError", "UnidentifiedImageError", "SyntaxError")) for error in summary.errors.values())
    assert list(masks_in(tmp_path / "out.json")) == sorted({*NAMES} - {"a.png"})
    (photos / "a.png").write_bytes(whole)
    (photos / "text.png").unlink()
    assert run(task, photos, tmp_path / "out.json") == (1, 4, {})


def test_a_finished_image_is_never_done_twice_and_a_changed_one_is(task, photos, tmp_path, monkeypatch):
    run(task, photos, tmp_path / "out.json")
    first = (tmp_path / "out.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(folders, "Worker", None)  # the model is not even loaded
        assert run(task, photos, tmp_path / "out.json") == (0, 5, {})
    assert (tmp_path / "out.json").read_bytes() == first
    Image.fromarray(make_picture(60, 80, 9)).save(photos / "a.png")
    assert run(task, photos, tmp_path / "out.json") == (1, 4, {})
    assert masks_in(tmp_path / "out.json")["a.png"] != json.loads(first)["annotations"]


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(make_picture(60, 80)).save(tmp_path / "a.jpg", exif=exif)
    assert folders.read_image(tmp_path / "a.jpg").shape == (80, 60, 3)


def test_other_settings_are_refused_by_name(task, photos, tmp_path):
    run(task, photos, tmp_path / "out.json")
    with pytest.raises(SAMError, match=r"out\.json\.journal .*label was 'shape' and is 'object'"):
        run(FolderTask("everything", "COCO RLE", task.checkpoint, everything=LOOSE), photos, tmp_path / "out.json")


def test_another_process_at_the_same_output_is_refused(task, photos, tmp_path):
    def runner(task, images):
        with pytest.raises(SAMError, match="another process"):
            run(task, photos, tmp_path / "out.json")
        return run_here(task, images)

    assert run(task, photos, tmp_path / "out.json", run=runner).done == 5


@pytest.mark.parametrize("name", ["YOLO", "PNG"])
def test_names_that_differ_in_the_ending_only_are_reported(name, task, photos, tmp_path):
    Image.fromarray(make_picture(60, 80)).save(photos / "a.jpg")
    summary = run(with_format(task, name), photos, tmp_path / "out")
    assert summary.done == 5 and "that of a.jpg only in the extension" in summary.errors["a.png"]


def test_the_output_in_the_folder_of_images_is_left_out(task, photos):
    for _ in range(2):
        assert sum(run(with_format(task, "YOLO"), photos, photos / "out")[:2]) == 5


def test_folders_without_images_or_that_are_not_there_are_refused(tmp_path):
    for path, message in ((tmp_path, "no image"), (tmp_path / "none", "There is no file or folder")):
        with pytest.raises(SAMError, match=message):
            find_images([path])


def test_names_are_relative_to_what_folders_have_in_common(photos):
    root, images, _ = find_images([photos / "day 1", photos / "a.png"])
    assert root == photos and [one.file_name for one in images] == ["a.png", "day 1/a.png", "day 1/größe.webp"]


def test_a_journal_forgets_an_unfinished_line_only(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, {"a": 1}) as journal:
        journal.add("x", [1], {"objects": []})
        journal.add("y", [1], {"objects": []})
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Journal(path, {"a": 1}) as journal:
            assert len(journal.records) == max(0, whole[:length].count(b"\n") - 1)
            journal.add("z", [2], {})
        with Journal(path, {"a": 1}) as journal:
            assert journal.has("z", [2]) and not journal.has("z", [3])


@pytest.mark.parametrize("content", [b"hello\n", b"[]\n", b'{"samkit_journal": 9}\n'])
def test_what_is_not_a_journal_is_left_alone(content, tmp_path):
    (tmp_path / "journal").write_bytes(content)
    with pytest.raises(SAMError, match="not a journal"):
        Journal(tmp_path / "journal", {})
    assert (tmp_path / "journal").read_bytes() == content


def _child(task, photos, output):
    torch.set_num_threads(1)
    run(task, photos, output)


def kill_at(process, is_time):
    """Kill a process at the first moment at which `is_time()`, or never if it ends before."""
    alive = (lambda: process.poll() is None) if isinstance(process, subprocess.Popen) else process.is_alive
    while alive():
        if is_time():
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait() if isinstance(process, subprocess.Popen) else process.join()


def size_of(path):
    return path.stat().st_size if path.is_file() else 0


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
@pytest.mark.parametrize("name", FORMATS)
def test_a_killed_run_goes_on_and_gives_the_same_output(name, task, photos, tmp_path):
    task, context = with_format(task, name), multiprocessing.get_context("fork")
    run(task, photos, tmp_path / "whole" / "out")
    most = size_of(tmp_path / "whole" / "out.journal")
    moments = sorted(random.Random(name).sample(range(200, most), 3))
    output, journal = tmp_path / "killed" / "out", tmp_path / "killed" / "out.journal"
    before = 0
    for moment in moments:
        process = context.Process(target=_child, args=(task, photos, output))
        process.start()
        kill_at(process, lambda moment=moment: size_of(journal) >= moment)
        now = journal.read_bytes().count(b"\n") - 1
        assert now >= before
        before = now
    summary = run(task, photos, output)
    assert summary.before >= before > 0 and summary.done + summary.before == 5
    assert {str(name): content for name, content in tree(output).items()} == {
        str(name): content for name, content in tree(tmp_path / "whole" / "out").items()
    }


def test_the_command_segments_and_says_so(checkpoint, photos, tmp_path, capsys):
    options = ["--points-per-side", "2", "--pred-iou-thresh", "-1", "--stability-score-thresh", "0", "--label", "shape"]
    arguments = [photos, "--everything", "--coco", tmp_path / "out.json", "--model", checkpoint, *options]
    assert command.main([str(one) for one in arguments]) == 0
    assert "Segmented now: 5; before: 0; skipped: 0." in capsys.readouterr().err
    (photos / "bad.png").write_text("")
    assert command.main([str(one) for one in arguments]) == 1
    said = capsys.readouterr().err
    assert "bad.png: skipped. UnidentifiedImageError" in said and "now: 0; before: 5; skipped: 1" in said
    assert command.main([str(one) for one in [*arguments, "--polygons"]]) == 2
    assert "format was 'COCO RLE' and is 'COCO polygons'" in capsys.readouterr().err
    assert command.main([str(one) for one in [*arguments, "--polygons", "--restart"]]) == 1
    assert isinstance(json.loads((tmp_path / "out.json").read_bytes())["annotations"][0]["segmentation"], list)


def test_ctrl_c_says_how_to_go_on(checkpoint, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Worker, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = [photos, "--everything", "--coco", tmp_path / "out.json", "--model", checkpoint]
    assert command.main([str(one) for one in arguments]) == 130
    assert "Run the same command to go on" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["x", "--everything"], ["x", "--coco", "a"], ["x", "--words", "a", "--everything"]])
def test_a_mode_and_an_output_are_needed(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and ("required" in said or "not allowed" in said)


def test_the_script_runs_in_a_folder_of_any_name(tmp_path):
    (tmp_path / "SAM Kit (1)").symlink_to(ROOT, target_is_directory=True)
    script = tmp_path / "SAM Kit (1)" / "segment_folder.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "none", "--everything", "--coco", "x.json", "--model", "samkit_demo.safetensors"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "There is no file or folder" in done.stderr, done.stderr


def test_the_project_names_the_command():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'samkit-segment = "samkit.segment_folder:main"' in project and callable(command.main)


@pytest.mark.exhaustive
def test_installed_with_pip_it_is_a_command(tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", ROOT], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    script = tmp_path / "site" / "bin" / "samkit-segment"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and "--everything" in done.stdout, done.stderr
    demo = tmp_path / "site" / "samkit" / "sam" / "weights" / "bundled" / "samkit_demo.safetensors"
    assert demo.is_file()
    installed = {path.parent.relative_to(tmp_path / "site" / "samkit") for path in (tmp_path / "site").rglob("__init__.py")}
    assert installed >= {path.parent.relative_to(ROOT) for path in (ROOT / "sam").rglob("__init__.py")}


@pytest.mark.exhaustive
def test_the_command_killed_at_twenty_moments(photos, checkpoint, tmp_path):
    """The real command, from its start to its end."""
    for seed in range(5, 25):
        Image.fromarray(make_picture(60, 80, seed)).save(photos / f"{seed}.png")
    options = ["--points-per-side", "8", "--pred-iou-thresh", "-1", "--stability-score-thresh", "0", "--device-mode", "CPU"]

    def start(folder):
        arguments = [photos, "--everything", "--yolo", tmp_path / folder / "out", "--model", checkpoint, *options]
        return subprocess.Popen([sys.executable, ROOT / "segment_folder.py", *arguments], stderr=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    most = size_of(tmp_path / "whole" / "out.journal")
    moments = sorted(random.Random(0).sample(range(most + 1), 20))
    journal = tmp_path / "killed" / "out.journal"
    for moment in moments:
        kill_at(start("killed"), lambda moment=moment: size_of(journal) >= moment)
    assert start("killed").wait() == 0
    assert list(tree(tmp_path / "killed" / "out").values()) and tree(tmp_path / "killed" / "out") == tree(
        tmp_path / "whole" / "out"
    )

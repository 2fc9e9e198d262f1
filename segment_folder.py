#!/usr/bin/env python3
"""Segments folders of images with SAM, and writes the masks as a data set: COCO, YOLO, PNGs, or an annotation tool's files.

    python segment_folder.py photos --everything --coco masks.json
    python segment_folder.py photos --words "cat. dog." --yolo cats_and_dogs
    python segment_folder.py photos --prompts boxes.json --png masks
    python segment_folder.py photos --boxes-from labels.xml --cvat corrected
    python segment_folder.py photos --everything --teach corrected --coco masks.json --review sheets
    python segment_folder.py films --track --prompts clicks.json --index-png masks

A run that was stopped or killed goes on where it was when it is started again. An image that cannot be segmented is reported
and skipped. The exit status is 0 if every image was segmented, 1 if some were skipped, 2 if nothing could be done, and 130
after Ctrl-C. See docs/scale.md.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "samkit"
OUTPUTS = {
    "coco": "COCO RLE",
    "yolo": "YOLO",
    "png": "PNG",
    "labelme": "labelme",
    "cvat": "CVAT",
    "label_studio": "Label Studio",
    "index_png": "index PNG",
}
"""The options that say what to write, and the format of each."""


def load_pack() -> ModuleType:
    """The pack as a package: the installed one that this file belongs to, or the folder it lies in, whatever that is called."""
    if __package__:
        return importlib.import_module(__package__)
    if NAME not in sys.modules:
        root = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location(NAME, root / "__init__.py", submodule_search_locations=[str(root)])
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return sys.modules[NAME]


def part(name: str) -> ModuleType:
    """A module of the pack, by its dotted name in it."""
    return importlib.import_module(f"{load_pack().__name__}.{name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    chosen = make_parser().parse_args(arguments)
    try:
        return run(chosen)
    except part("sam").SAMError as error:
        say(f"{Path(sys.argv[0]).name}: {error}")
        return 2
    except KeyboardInterrupt:
        say("Stopped. Run the same command to go on.")
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The options, those of the modes by the fields of their dataclasses."""
    sam = part("sam")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGES", help="folders, with their subfolders, and image files"
    )
    modes = parser.add_argument_group("what to segment").add_mutually_exclusive_group(required=True)
    modes.add_argument("--everything", action="store_true", help="all objects")
    modes.add_argument("--words", metavar="TEXT", help='the objects that a text names: "cat. dog."')
    modes.add_argument("--prompts", type=Path, metavar="FILE", help="points and boxes per image, see docs/scale.md")
    modes.add_argument(
        "--boxes-from",
        type=Path,
        metavar="PATH",
        help="the objects that a data set has boxes or masks of, in any form that is read",
    )
    parser.add_argument(
        "--track",
        action="store_true",
        help="each folder of images and each video file is a film, whose objects are followed through it: those of --prompts, "
        "--words, or --boxes-from, which gives masks of frames",
    )
    outputs = parser.add_argument_group("what to write").add_mutually_exclusive_group(required=True)
    outputs.add_argument("--coco", type=Path, metavar="FILE", help="COCO instance JSON")
    outputs.add_argument("--yolo", type=Path, metavar="FOLDER", help="YOLO segmentation text, with copies of the images")
    outputs.add_argument("--png", type=Path, metavar="FOLDER", help="a PNG per mask, and a manifest")
    outputs.add_argument("--labelme", type=Path, metavar="FOLDER", help="labelme's files, with copies of the images")
    outputs.add_argument("--cvat", type=Path, metavar="FOLDER", help="CVAT's XML, with copies of the images")
    outputs.add_argument("--label-studio", type=Path, metavar="FOLDER", help="Label Studio's tasks, with copies of the images")
    outputs.add_argument("--index-png", type=Path, metavar="FOLDER", help="a palette PNG per image, with copies of the images")
    parser.add_argument(
        "--upright",
        type=Path,
        metavar="FOLDER",
        help="with --coco, --png: upright copies of the images, and the frames of video files",
    )
    parser.add_argument(
        "--words-every",
        type=int,
        default=16,
        metavar="N",
        help="with --track, --words: frames after which objects are looked for again",
    )
    parser.add_argument(
        "--overlay", type=Path, metavar="FOLDER", help="with --track: videos of the films with their masks (PyAV)"
    )
    parser.add_argument(
        "--overlay-form",
        choices=part("sam.datasets.overlays").OVERLAY_FORMS,
        default="mp4",
        help="of these (default: %(default)s)",
    )
    parser.add_argument("--polygons", action="store_true", help="with --coco: polygons instead of run lengths")
    parser.add_argument("--label", default="object", help="the category of objects without a label (default: %(default)s)")
    parser.add_argument("--categories", type=Path, metavar="FILE", help="with --coco and --yolo: categories of this COCO file")
    parser.add_argument(
        "--score",
        type=Path,
        metavar="PATH",
        help="compare the masks with a data set of true ones, in any form, and show the worst",
    )
    parser.add_argument("--review", type=Path, metavar="FOLDER", help="contact sheets of the images with their masks")
    parser.add_argument("--restart", action="store_true", help="forget what an earlier run has done")
    models = parser.add_argument_group("models and devices")
    models.add_argument(
        "--model", default="sam_vit_b_01ec64.pth", help="a checkpoint's path or known name (default: %(default)s)"
    )
    models.add_argument(
        "--base-model", default="", metavar="NAME", help="with a LoRA adapter: the model that it was trained on"
    )
    models.add_argument("--grounding", default="grounding-dino-tiny", help="with --words: a folder or a known name")
    models.add_argument("--precision", default="auto", choices=sam.PRECISIONS)
    models.add_argument("--device-mode", default="Prefer GPU", choices=sam.DEVICE_MODES)
    meant = models.add_mutually_exclusive_group()
    meant.add_argument("--concept", type=Path, metavar="FILE", help="a concept of SAM Teach: which object is meant")
    meant.add_argument(
        "--teach", type=Path, metavar="PATH", help="teach the model the objects of a data set first, in any form that is read"
    )
    models.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="run under Ray: on this machine, or on a cluster")
    models.add_argument("--actors", type=int, default=0, metavar="N", help="with --ray: how many copies of the model")
    large = parser.add_argument_group("large images")
    large.add_argument(
        "--detail",
        default="off",
        choices=sam.DETAILS,
        help="with --prompts, --boxes-from, --words and --track: segment each object again in a cut around it (default: off)",
    )
    large.add_argument(
        "--tiles",
        default="off",
        choices=sam.TILES,
        help="with --everything and --words: also search overlapping tiles at full resolution (default: off)",
    )
    choices = {"direction": sam.DIRECTIONS, "method": sam.TRACK_METHODS}
    for title, options in (
        ("with --everything", sam.AutoMaskOptions),
        ("with --words", sam.GroundingOptions),
        ("with --track", sam.TrackOptions),
    ):
        group = parser.add_argument_group(title)
        for field in fields(options):
            name, kind = f"--{field.name.replace('_', '-')}", type(field.default)
            if kind is bool:  # `--hq False`, as well as `--no-hq`
                group.add_argument(name, type=_is_yes, nargs="?", const=True, default=field.default, metavar="yes|no")
                group.add_argument(f"--no{name[1:]}", dest=field.name, action="store_false")
            elif field.name not in ("concept", "detail", "tiles"):
                group.add_argument(name, type=kind, default=field.default, choices=choices.get(field.name))
    return parser


def _is_yes(text: str) -> bool:
    """A choice of yes or no."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return words[text.lower()]


def run(chosen: argparse.Namespace) -> int:
    """Segment what was chosen, and say how it went."""
    folders = part("sam.tasks.folders")
    output = next(path for name in OUTPUTS if (path := getattr(chosen, name)))
    worst = output.with_name(f"{output.name}.worst.jpg")
    written = [path for path in (output, chosen.upright, chosen.review, chosen.overlay, worst) if path is not None]
    check_read(chosen, output)
    if chosen.track:
        return run_films(chosen, output, written)
    if chosen.overlay:
        raise part("sam").SAMError("--overlay makes videos of films: add --track, or make contact sheets by --review.")
    root, images, unread = folders.find_images(chosen.images, *written)
    if chosen.score:
        open_set(chosen.score, root)  # what is wrong with it is said before the images are segmented
    task, left_out = make_task(chosen, folders), {}
    if chosen.teach:
        task = replace(task, concept=taught(chosen.teach, task, output, root))
    if chosen.prompts:
        images, unknown = folders.read_prompts(chosen.prompts, images)
        left_out = dict.fromkeys(unknown, "it is in the prompts, but not among the images")
    elif chosen.boxes_from:
        images, left_out = folders.read_boxes(chosen.boxes_from, images, root)
    runner = folders.run_here if chosen.ray is None else part("sam.tasks.distributed").RayRunner(chosen.ray, chosen.actors)
    with Bar(len(images)) as bar:
        summary = folders.segment_folder(task, images, output, runner, bar.advance, chosen.restart, chosen.upright)
    errors = summary.errors | unread_errors(unread) | left_out
    say_skipped(errors)
    if chosen.upright is None and (chosen.coco or chosen.png):
        say_turned(folders.turned(images))
    if chosen.score or chosen.review:
        show(chosen, output, root, worst)
    say(f"Segmented now: {summary.done}; before: {summary.before}; skipped: {len(errors)}. {output}, images in {root}")
    return 1 if errors else 0


def run_films(chosen: argparse.Namespace, output: Path, written: Sequence[Path]) -> int:
    """Track the objects of films, and say how it went."""
    sam, films, folders = part("sam"), part("sam.tasks.films"), part("sam.tasks.folders")
    if chosen.everything or chosen.teach or chosen.ray is not None:
        raise sam.SAMError(
            "--track follows the objects of --prompts, --words or --boxes-from, on this machine: leave out --everything, "
            "--teach and --ray."
        )
    root, found, unread = films.find_films(chosen.images, *written)
    task = make_task(chosen, folders)
    left_out = {}
    if chosen.prompts:
        found, unknown = films.read_film_prompts(chosen.prompts, found)
        left_out = dict.fromkeys(unknown, "it is in the prompts, but not among the films")
    elif chosen.boxes_from:
        found, left_out = films.read_film_masks(chosen.boxes_from, found, root)
    shown = chosen.score or chosen.review
    if shown and chosen.coco and not chosen.upright and (videos := [one.file_name for one in found if not one.frames]):
        raise sam.SAMError(f"--score and --review need the frames of {videos[0]} as files: add --upright FOLDER.")
    with Bar(len(found), "film") as bar:
        summary = folders.segment_folder(task, found, output, films.track_here, bar.advance, chosen.restart, chosen.upright)
    errors = summary.errors | unread_errors(unread) | left_out
    say_skipped(errors)
    if chosen.upright is None and chosen.coco:
        say_turned(folders.turned(file for film in found for file in film.files))
    if shown:
        show(chosen, output, chosen.upright or root, output.with_name(f"{output.name}.worst.jpg"))
    say(f"Tracked now: {summary.done}; before: {summary.before}; skipped: {len(errors)}. {output}, films in {root}")
    return 1 if errors else 0


def unread_errors(names: Sequence[str]) -> dict[str, str]:
    """Why images of other kinds are skipped."""
    return dict.fromkeys(names, "images of this kind cannot be read: convert it to PNG or JPEG")


def say_skipped(errors: dict[str, str]) -> None:
    """What was skipped, and why."""
    for name, error in errors.items():
        say(f"{name}: skipped. {error}")


def say_turned(found: Sequence[str]) -> None:
    """Which images some readers show otherwise than their masks lie."""
    if found:
        names = ", ".join(found[:5]) + (" ..." if len(found) > 5 else "")
        say(f"Turned by their EXIF data: {names}. Masks are of the upright image: --upright FOLDER writes copies that are.")


def check_read(chosen: argparse.Namespace, output: Path) -> None:
    """Raise SAMError where the output would replace what the command reads."""
    for option in ("prompts", "boxes_from", "categories", "score", "teach"):
        source = getattr(chosen, option)
        if source is None:
            continue
        places = [source.resolve(), source.resolve() / "annotations.json"]
        if option not in ("prompts", "categories"):  # a file of a data set stands for its folder
            places.append(source.resolve().parent)
        if output.resolve() in places:
            raise part("sam").SAMError(
                f"{output} would replace {source}, which --{option.replace('_', '-')} reads: choose another output."
            )


def show(chosen: argparse.Namespace, output: Path, root: Path, worst: Path) -> None:
    """Score what was written, and make the pictures of it."""
    sheets = part("sam.datasets.sheets")
    found = open_set(output, root if chosen.coco or chosen.png else None)  # the other forms have copies of the images
    if chosen.score:
        truth = open_set(chosen.score, root)
        compared = part("sam.datasets.score").score(found, truth)
        labels, known = (set().union(*map(data.labels, range(len(data.names)))) for data in (found, truth))
        if labels and labels.isdisjoint(known):
            listed = [", ".join(sorted(some)[:20]) for some in (labels, known)]
            say(f"The masks are called {listed[0]}, and the true objects {listed[1]}: only those of one name are compared.")
        say_score(compared.rows)
        sheets.write_worst(found, truth, compared.worst, worst)
        say(f"The objects with the lowest IoU: {worst}")
    if chosen.review:
        say(f"Contact sheets: {sheets.write_review(found, chosen.review)} in {chosen.review}")


def open_set(path: Path, images: Path | None = None) -> Any:
    """A data set, whose images are in a folder, or beside it."""
    return part("sam.datasets.read").open_data_set(path, images)


def taught(path: Path, task: Any, output: Path, root: Path) -> Any:
    """What a data set teaches the task's model; None where it does not help.

    The concept is in a file beside the output, under a name that changes with all that it was learned from: a run that goes on
    uses it, and `--concept` can.
    """
    sam, training = part("sam"), part("sam.training.from_data_set")
    data = open_set(path)
    try:
        data.read(0)
    except (sam.SAMError, IndexError):  # its images are those of the folder
        data = open_set(path, root)
    counted = part("utils.text").counted
    objects = training.ShownObjects(data, task.label)
    model = sam.SAM_MODELS.at(task.checkpoint, task.base_model).load(task.precision)
    file = output.with_name(f"{output.name}.taught-{objects.key(model)}.safetensors")
    if file.is_file():
        return sam.load_concept(file)
    concept, lesson = training.teach_data_set(model, objects, device_mode=task.device_mode)
    before, after = (sum(column) / len(lesson.rows) for column in list(zip(*lesson.rows, strict=True))[1:])
    where = "held-out masks" if lesson.held_out else "the only mask"
    say(f"Taught with {counted(len(objects), 'image')}. IoU of a click on {where}: {before:.3f} before, {after:.3f} after.")
    if not lesson.helped:
        say("That is not better, so the model is used as it is.")
        return None
    sam.save_concept(concept, file)
    return concept


def say_score(rows: Sequence[Any]) -> None:
    """The scores as a table, on the standard output."""
    width = max(8, *(len(row.category) for row in rows))
    sys.stdout.write(f"{'category':<{width}}  objects     AP   AP50    IoU  boundary F\n")
    for row in rows:
        numbers = f"{row.ap:7.3f}{row.ap50:7.3f}{row.iou:7.3f}{row.boundary:12.3f}"
        sys.stdout.write(f"{row.category:<{width}}  {row.objects:7}{numbers}\n")


def form_of(chosen: argparse.Namespace) -> str:
    """The name of the data set's format."""
    if chosen.coco and chosen.polygons:
        return "COCO polygons"
    return next(name for option, name in OUTPUTS.items() if getattr(chosen, option))


def make_task(chosen: argparse.Namespace, folders: ModuleType) -> Any:
    """The options as a task, with the models' files found, or fetched where they are known."""
    sam = part("sam")
    kinds = {"everything": sam.AutoMaskOptions, "found": sam.GroundingOptions, "track": sam.TrackOptions}
    options = {
        name: kind(**{f.name: getattr(chosen, f.name) for f in fields(kind) if f.name != "concept"})
        for name, kind in kinds.items()
        if name != "track" or chosen.track
    }
    if chosen.detail != "off" and chosen.everything:
        raise sam.SAMError("--detail makes the masks of objects sharp that are prompted: with --everything, use --tiles.")
    if chosen.tiles != "off" and not (chosen.everything or chosen.words is not None):
        raise sam.SAMError(
            "--tiles finds small objects with --everything and --words: for objects that are prompted, use --detail."
        )
    path, grounding = Path(chosen.model), None
    if chosen.words is not None:
        folder = Path(chosen.grounding)
        grounding = folder if folder.is_dir() else sam.GROUNDING_MODELS.find(chosen.grounding).fetch()
    return folders.FolderTask(
        mode="everything" if chosen.everything else "words" if chosen.words is not None else "prompts",
        format=form_of(chosen),
        checkpoint=path.resolve() if path.is_file() else sam.SAM_MODELS.find(chosen.model).fetch(),
        base_model=chosen.base_model,
        precision=chosen.precision,
        device_mode=chosen.device_mode,
        grounding=grounding and grounding.resolve(),
        text=chosen.words or "",
        label=chosen.label,
        concept=chosen.concept and sam.load_concept(chosen.concept),
        categories=part("sam.datasets.coco").read_categories(chosen.categories) if chosen.categories else (),
        words_every=chosen.words_every,
        overlays=chosen.overlay,
        overlay_form=chosen.overlay_form,
        detail=chosen.detail,
        **options,
    )


class Bar:
    """A progress bar on a terminal, and nothing elsewhere."""

    def __init__(self, total: int, unit: str = "image") -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit=unit, disable=None)

    def advance(self, result: Any) -> None:
        """One image more."""
        self._bar.update()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def say(text: str) -> None:
    """A line for the user."""
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())

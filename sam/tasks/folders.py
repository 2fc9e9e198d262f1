"""Folders of images to data sets: each image once, whatever happens in between."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from ...utils.boxes import boxes_per_frame
from ...utils.points import points_per_frame
from ..datasets.files import locked, write_whole
from ..datasets.formats import Format, FormatName, data_set
from ..datasets.journal import Journal
from ..datasets.objects import DEFAULT_LABEL, LabeledImage, LabeledMask, Record
from ..errors import SAMError
from ..models.base import Precision
from ..models.families import load_model
from ..models.in_transformers.grounding import load_grounding
from ..placement.devices import DeviceMode
from ..prompts import NO_POINTS, Prompt, PromptInputs, objects_per_frame
from .embed import encode
from .everything import AutoMaskOptions, segment_everything
from .predict import PredictOptions, decode
from .words import FoundBoxes, GroundingOptions, find_boxes, normalise_text

Mode: TypeAlias = Literal["everything", "words", "prompts"]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
# What PIL raises for files that are damaged, not images, or far too large; our own errors are ValueErrors.
_BAD_IMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_PROMPT_KEYS = {"label", "positive_coords", "negative_coords", "bbox"}


@dataclass(frozen=True)
class FolderTask:
    """What is done with each image; picklable.

    Attributes:
        mode: `everything`, `words` (see `find_boxes`) or `prompts`.
        format: of the data set, see `data_set`.
        checkpoint: see `load_model`.
        precision: of the image encoder.
        device_mode: see `placed`.
        grounding: a folder, see `load_grounding`; for `words`.
        text: the words.
        label: the category of what has no label of its own.
        everything, found: options of the modes `everything` and `words`.
    """

    mode: Mode
    format: FormatName
    checkpoint: Path
    precision: Precision = "auto"
    device_mode: DeviceMode = "Prefer GPU"
    grounding: Path | None = None
    text: str = ""
    label: str = DEFAULT_LABEL
    everything: AutoMaskOptions = field(default_factory=AutoMaskOptions)
    found: GroundingOptions = field(default_factory=GroundingOptions)

    def __post_init__(self) -> None:
        if self.mode == "words":
            normalise_text(self.text)
            if self.grounding is None:
                raise SAMError("The mode words needs a Grounding DINO model.")

    def settings(self) -> dict[str, Any]:
        """All that a record depends on, besides its image and prompts, as JSON. A model is known by its name and size."""
        options = {"everything": asdict(self.everything), "words": asdict(self.found), "prompts": {}}[self.mode]
        words = {"text": normalise_text(self.text), "grounding": self.grounding.name} if self.grounding is not None else {}
        model = f"{self.checkpoint.name}, {self.checkpoint.stat().st_size} bytes"
        common = {"mode": self.mode, "format": self.format, "model": model, "precision": self.precision, "label": self.label}
        return {**common, **words, **options}


class ImageFile(NamedTuple):
    """An image to segment: its path, its name in the data set, and its objects for the mode `prompts` (see `read_prompts`)."""

    path: Path
    file_name: str
    prompts: tuple[dict[str, Any], ...] = ()

    def stamp(self) -> list[Any]:
        """Changes when the file or its prompts do."""
        stat = self.path.stat()
        prompts = hashlib.sha256(json.dumps(self.prompts, sort_keys=True).encode()).hexdigest()[:16]
        return [stat.st_size, stat.st_mtime_ns, prompts]


class Result(NamedTuple):
    """What became of an image: a record and the files that belong to it, or an error."""

    file_name: str
    record: Record | None
    files: dict[str, bytes]
    error: str = ""


class Summary(NamedTuple):
    """How many images were segmented now, how many had been before, and the errors of the others by file name."""

    done: int
    before: int
    errors: dict[str, str]


class Worker:
    """A model that is loaded once, and turns images into results. Bad images give an error; nothing is raised for them."""

    def __init__(self, task: FolderTask) -> None:
        self.task = task
        self.model = load_model(task.checkpoint, task.precision)
        self.grounding = load_grounding(task.grounding) if task.grounding is not None else None
        self._format = data_set(task.format, Path())  # writes nothing

    def __call__(self, image: ImageFile) -> Result:
        try:
            pixels = read_image(image.path)
            objects = self._segment(pixels, image.prompts)
            labeled = LabeledImage(image.file_name, pixels.shape[:2], objects)
            return Result(image.file_name, *self._format.entry(labeled))
        except _BAD_IMAGE as error:
            return Result(image.file_name, None, {}, f"{type(error).__name__}: {error}".partition("\n")[0])

    def _segment(self, pixels: np.ndarray, prompts: Sequence[Mapping[str, Any]]) -> list[LabeledMask]:
        task = self.task
        if task.mode == "everything":
            found = segment_everything(self.model, pixels, task.everything, device_mode=task.device_mode)
            return [LabeledMask(one.full(pixels.shape[:2]), task.label, one.score) for one in found]
        if task.mode == "words":
            boxes = find_boxes(self.grounding, [pixels], task.text, task.found, task.device_mode)[0]
            return self._in_boxes(pixels, boxes)
        frame = self.model.frame(pixels.shape[:2])
        objects = [_prompt(one, lambda given: objects_per_frame(given, 1, frame)[0]) for one in prompts]
        masks, scores = self._decode(pixels, objects)
        labels = [str(one.get("label") or task.label) for one in prompts]
        return [LabeledMask(*each) for each in zip(masks, labels, scores, strict=True)]

    def _in_boxes(self, pixels: np.ndarray, found: FoundBoxes) -> list[LabeledMask]:
        prompts = [Prompt(NO_POINTS, np.zeros(0, np.int32), box) for box in found.boxes]
        masks, _ = self._decode(pixels, prompts)
        labels = [label or self.task.label for label in found.labels]
        return [LabeledMask(*each) for each in zip(masks, labels, found.scores, strict=True)]

    def _decode(self, pixels: np.ndarray, prompts: list[Prompt]) -> tuple[list[np.ndarray], list[float]]:
        if not prompts:
            return [], []
        task = self.task
        found = decode(
            self.model, encode(self.model, [pixels], task.device_mode), [prompts], PredictOptions(), task.device_mode
        )
        return list(found.masks[0].cpu().numpy()), found.scores[0].tolist()


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 `[H, W, 3]`, turned upright as its EXIF data says, as ComfyUI's Load Image does."""
    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _prompt(one: Mapping[str, Any], checked: Callable[[PromptInputs], list[Prompt]]) -> Prompt:
    """One object of the prompts file; everything that it has is one object."""
    parts = {name: one.get(name, []) for name in ("positive_coords", "negative_coords")}
    points = {name: points_per_frame(json.dumps(value), 1, name)[0] for name, value in parts.items()}
    boxes = boxes_per_frame(one["bbox"], 1)[0] if "bbox" in one else np.zeros((0, 4))
    objects = checked(PromptInputs([np.asarray(points["positive_coords"])], [np.asarray(points["negative_coords"])], [boxes]))
    if len(objects) != 1:
        raise SAMError(f"An object of the prompts file has no prompt inside the image, or several boxes: {str(one)[:80]}.")
    return objects[0]


def find_images(paths: Iterable[Path], leave_out: Path | None = None) -> tuple[Path, list[ImageFile]]:
    """The images in folders, with their subfolders, and single files.

    Args:
        paths: folders and files.
        leave_out: a folder whose files do not belong to them, such as the output.

    Returns:
        The folder that names are relative to, and the images sorted by name.

    Raises:
        SAMError: a path is not there, or there is no image.
    """
    paths = [path.resolve() for path in paths]
    for path in paths:
        if not path.exists():
            raise SAMError(f"There is no file or folder {path}.")
    files = {file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])}
    images = sorted(file for file in files if file.suffix.lower() in SUFFIXES and file.is_file())
    if leave_out is not None:
        images = [file for file in images if not file.is_relative_to(leave_out.resolve())]
    if not images:
        raise SAMError(f"There is no image ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, paths))}.")
    folders = [path if path.is_dir() else path.parent for path in paths]
    root = folders[0] if len(folders) == 1 else Path(*_common(folders))
    return root, sorted((ImageFile(file, file.relative_to(root).as_posix()) for file in images), key=lambda one: one.file_name)


def _common(folders: Sequence[Path]) -> list[str]:
    """The parts that paths begin with alike."""
    alike = []
    for parts in zip(*(folder.parts for folder in folders), strict=False):
        if len(set(parts)) > 1:
            break
        alike.append(parts[0])
    if not alike:
        raise SAMError(f"The folders {', '.join(map(str, folders))} have no folder in common.")
    return alike


def read_prompts(path: Path, images: Sequence[ImageFile]) -> tuple[list[ImageFile], list[str]]:
    """Give images their prompts: JSON `{"a.jpg": [{"label", "positive_coords", "negative_coords", "bbox"}, ...], ...}`.

    Each item is one object; coordinates have the form of the nodes' inputs.

    Returns:
        The images that the file names, and the names in it that are not images.

    Raises:
        SAMError: the file is not there, or has another form.
    """
    try:
        prompts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SAMError(f"{path} was not read as JSON: {error}") from error
    if not isinstance(prompts, dict):
        raise SAMError(f'{path} must be a JSON object {{"image.jpg": [objects]}}, but is a {type(prompts).__name__}.')
    for name, objects in prompts.items():
        is_list = isinstance(objects, list) and all(isinstance(one, dict) and one.keys() <= _PROMPT_KEYS for one in objects)
        if not is_list:
            raise SAMError(f"{path}: {name!r} must be a list of objects with {', '.join(sorted(_PROMPT_KEYS))}.")
    known = {image.file_name for image in images}
    chosen = [image._replace(prompts=tuple(prompts[image.file_name])) for image in images if image.file_name in prompts]
    return chosen, [name for name in prompts if name not in known]


Runner: TypeAlias = Callable[[FolderTask, Sequence[ImageFile]], Iterator[Result]]


def run_here(task: FolderTask, images: Sequence[ImageFile]) -> Iterator[Result]:
    """Results of images, one after the other, in this process; the model is loaded for the first one."""
    worker = None
    for image in images:
        worker = worker or Worker(task)
        yield worker(image)


def segment_folder(
    task: FolderTask,
    images: Sequence[ImageFile],
    output: Path,
    run: Runner = run_here,
    report: Callable[[Result], None] = lambda result: None,
) -> Summary:
    """Segment images, and write them as one data set.

    What is done is in a journal beside the output. After a crash or a kill, the same call goes on with the images that are not
    in it, and the result is the same; after images were added or changed, it segments those. An image that fails is reported
    and left out; it is tried again by the next call.

    Args:
        task: what to do.
        images: see `find_images`; names must differ.
        output: a file for COCO, a folder for the other formats.
        run: how to get results, in any order.
        report: called with each result.

    Raises:
        SAMError: the journal is of another task, or another process is writing there.
    """
    target = data_set(task.format, output)
    journal_path = output.with_name(f"{output.name}.journal")
    with locked(output, wait=0), Journal(journal_path, task.settings()) as journal:
        errors = _names_taken_twice(images) if not task.format.startswith("COCO") else {}
        stamps = {image.file_name: image.stamp() for image in images if image.file_name not in errors}
        to_do = [
            image for image in images if image.file_name in stamps and not journal.has(image.file_name, stamps[image.file_name])
        ]
        paths = {image.file_name: image.path for image in to_do}
        for result in run(task, to_do):
            if result.record is None:
                errors[result.file_name] = result.error
            else:
                _write_files(target, result, paths[result.file_name])
                journal.add(result.file_name, stamps[result.file_name], result.record)
            report(result)
        finished = [name for name in stamps if name not in errors]
        target.write([journal.records[name] for name in finished])
    done = sum(name not in errors for name in paths)
    return Summary(done, len(finished) - done, errors)


def _write_files(target: Format, result: Result, source: Path) -> None:
    for name, content in result.files.items():
        write_whole(target.path / name, content)
    if target.image_folder is not None:
        write_whole(target.image_folder / result.file_name, source.read_bytes())


def _names_taken_twice(images: Sequence[ImageFile]) -> dict[str, str]:
    """Errors for images whose names differ in the ending only: their labels or masks would have one name."""
    first: dict[str, str] = {}
    errors = {}
    for image in images:
        owner = first.setdefault(str(PurePosixPath(image.file_name).with_suffix("")), image.file_name)
        if owner != image.file_name:
            errors[image.file_name] = f"its name differs from that of {owner} only in the extension: rename one of them"
    return errors

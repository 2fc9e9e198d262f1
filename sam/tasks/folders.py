"""Folders of images to data sets: each image once, whatever happens in between."""

import contextlib
import glob
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from PIL import Image

from ...utils.boxes import boxes_per_frame, tight_box
from ...utils.checks import one_of
from ...utils.comfy_files import locked
from ...utils.files import remove_parts, write_whole, writing
from ...utils.marks import NO_BOXES, Marks
from ...utils.points import points_per_frame
from ..datasets.formats import FormatName, data_set
from ..datasets.images import IMAGE_SUFFIXES, is_turned, large_images, read_image, upright
from ..datasets.journal import Journal, recorded
from ..datasets.objects import DEFAULT_LABEL, Category, LabeledImage, LabeledMask, Record, images_in
from ..datasets.read import open_data_set
from ..datasets.reading import loaded_json
from ..errors import SAMError
from ..geometry import Geometry, Size
from ..models.base import Precision
from ..models.checkpoints import SAM_MODELS
from ..models.concept import Concept
from ..models.in_transformers.grounding import load_grounding
from ..placement.devices import DeviceMode
from ..prompts import Prompt, PromptInputs, objects_per_frame
from .detail import DETAILS, Detail
from .everything import AutoMaskOptions, segment_everything
from .found_masks import FoundMask
from .predict import PredictOptions
from .stream import segment_each
from .track import TrackOptions
from .words import FoundBoxes, GroundingOptions, find_boxes, normalise_text

log = logging.getLogger("samkit")

Mode: TypeAlias = Literal["everything", "words", "prompts"]
# Images of other kinds, which are reported, since whoever has them in the folder expects them in the data set.
UNREAD = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".exr", ".hdr", ".tga", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw"}
)
# What PIL raises for files that are damaged, not images, or far too large; our own errors are ValueErrors.
BAD_IMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
# A RuntimeError is what torch raises for a device's memory, too: the next image may be smaller.
FAILURES = (*BAD_IMAGE, RuntimeError, MemoryError)
_FILM_FORMATS = ("COCO RLE", "COCO polygons", "index PNG")
_CHUNK = 1 << 20
_MOST_FAILURES = 3  # of the model, before any success: the next image would fail alike
PROMPT_KEYS = frozenset({"label", "positive_coords", "negative_coords", "bbox"})


@dataclass(frozen=True)
class FolderTask:
    """What is done with each image; picklable.

    Attributes:
        mode: `everything`, `words` (see `find_boxes`) or `prompts`.
        format: of the data set, see `data_set`.
        checkpoint: the path of a model, of a trained decoder, or of an adapter.
        precision: of the image encoder.
        device_mode: see `placed`.
        grounding: a folder, see `load_grounding`; for `words`.
        text: the words.
        label: the category of what has no label of its own.
        concept: see `PredictOptions`.
        categories: that the data set begins with, in COCO and YOLO.
        everything, found: options of the modes `everything` and `words`.
        base_model: with an adapter, the name of the model that it was trained on; empty is the one that it names.
        track: how the objects of films are followed; None: images are segmented, each on its own.
        words_every: with `track` and the mode `words`, how many frames later objects are looked for again.
        overlays: a folder for the films with their masks painted on them; None: none.
        overlay_form: of these, see `write_overlay`.
        detail: second looks at the objects of the modes `words` and `prompts`, see `SecondLook`. `track` has its own.
    """

    mode: Mode
    format: FormatName
    checkpoint: Path
    precision: Precision = "auto"
    device_mode: DeviceMode = "Prefer GPU"
    grounding: Path | None = None
    text: str = ""
    label: str = DEFAULT_LABEL
    concept: Concept | None = None
    categories: tuple[Category, ...] = ()
    everything: AutoMaskOptions = field(default_factory=AutoMaskOptions)
    found: GroundingOptions = field(default_factory=GroundingOptions)
    base_model: str = ""
    track: TrackOptions | None = None
    words_every: int = 16
    overlays: Path | None = None
    overlay_form: str = "mp4"
    detail: Detail = "off"

    def __post_init__(self) -> None:
        one_of(self.detail, DETAILS, "detail")
        if self.mode == "words":
            normalise_text(self.text)
            if self.grounding is None:
                raise SAMError("The mode words needs a Grounding DINO model.")
        if self.track is not None and (self.mode == "everything" or self.concept is not None):
            raise SAMError(
                "Only objects that are prompted or named are tracked: leave out the concept, and choose the mode prompts or "
                "words."
            )
        if self.words_every < 1:
            raise SAMError(f"words_every is {self.words_every}: it must be at least 1 frame.")
        if self.track is not None and self.format not in _FILM_FORMATS:
            raise SAMError(
                f"{self.format} does not say which masks of a film are one object: write --coco or --index-png, which do."
            )

    def settings(self) -> dict[str, Any]:
        """All that a record depends on, besides its image and prompts, as JSON. Models are known by their content."""
        options = {"everything": asdict(self.everything), "words": asdict(self.found), "prompts": {}}[self.mode]
        options.pop("concept", None)
        # What is off is left out: a journal that was begun before there was such an option goes on.
        if options.get("tiles") == "off":
            del options["tiles"]
        detail = {} if self.detail == "off" or self.track is not None else {"detail": self.detail}
        grounding, concept = {}, {}
        if self.grounding is not None:
            files = sorted(path for path in self.grounding.glob("*") if path.suffix in (".json", ".txt", ".safetensors"))
            grounding = {"text": normalise_text(self.text), "grounding": _content(self.grounding.name, files)}
        if self.concept is not None:
            concept = {"concept": hashlib.sha256(self.concept.tokens.numpy().tobytes()).hexdigest()[:16]}
        model = _content(self.checkpoint.name, SAM_MODELS.at(self.checkpoint, self.base_model).files)
        common = {"mode": self.mode, "format": self.format, "model": model, "precision": self.precision, "label": self.label}
        categories = {"categories": [list(one) for one in self.categories]} if self.categories else {}
        track = {"track": asdict(self.track)} if self.track is not None else {}
        if track and self.track.detail == "off":
            del track["track"]["detail"]
        if self.track is not None and self.mode == "words":
            track["words_every"] = self.words_every
        return {**common, **grounding, **concept, **categories, **track, **detail, **options}


def _content(name: str, files: Iterable[Path]) -> str:
    """A name with a hash of the content of files: a model trained further has the same name and size."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return f"{name}, sha256 {digest.hexdigest()[:16]}"


class Source(Protocol):
    """What is segmented as a whole, and stands in the journal as one: an image file, or a film.

    Attributes:
        file_name: its name in the data set.
        stem: what the names of its masks' files begin with.
    """

    @property
    def file_name(self) -> str: ...

    @property
    def stem(self) -> str: ...

    def stamp(self) -> list[Any]:
        """Changes when the files or the prompts do."""
        ...

    def images(self, is_upright: bool) -> Iterator[tuple[str, bytes]]:
        """The image files for a copy of the data set, by their names in it; upright: see `datasets.images.upright`."""
        ...


class ImageFile(NamedTuple):
    """An image to segment: its path, its name in the data set, and its objects for the mode `prompts` (see `read_prompts`)."""

    path: Path
    file_name: str
    prompts: tuple[dict[str, Any], ...] = ()

    def stamp(self) -> list[Any]:
        """Changes when the file or its prompts do."""
        stat = self.path.stat()
        return [stat.st_size, stat.st_mtime_ns, prompts_hash(self.prompts)]

    @property
    def stem(self) -> str:
        """See `Source`."""
        return str(PurePosixPath(self.file_name).with_suffix(""))

    def images(self, is_upright: bool) -> Iterator[tuple[str, bytes]]:
        """See `Source`."""
        yield self.file_name, upright(self.path) if is_upright else self.path.read_bytes()


def prompts_hash(prompts: Sequence[Mapping[str, Any]]) -> str:
    """Changes when prompts of a file do."""
    return hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()[:16]


class ImageResult(NamedTuple):
    """What became of an image: a record and the files that belong to it, or an error, of the image or of the model."""

    file_name: str
    record: Record | None
    files: dict[str, bytes]
    error: str = ""
    is_models: bool = False


def failed(source: Source, error: BaseException, is_models: bool) -> ImageResult:
    """The result of a source that cannot be segmented."""
    return ImageResult(source.file_name, None, {}, f"{type(error).__name__}: {error}".partition("\n")[0], is_models)


class Summary(NamedTuple):
    """How many images were segmented now, how many had been before, and the errors of the others by file name."""

    done: int
    before: int
    errors: dict[str, str]


def turned(images: Iterable[ImageFile]) -> list[str]:
    """The names of the images that only readers of EXIF data see as their masks lie; damaged files are not among them."""
    found = []
    for image in images:
        with contextlib.suppress(*BAD_IMAGE):
            if is_turned(image.path):
                found.append(image.file_name)
    return found


class Worker:
    """A model that is loaded once, and turns images into results. What fails gives an error; nothing is raised for it."""

    def __init__(self, task: FolderTask) -> None:
        self.task = task
        self.model = SAM_MODELS.at(task.checkpoint, task.base_model).load(task.precision)
        self.grounding = load_grounding(task.grounding) if task.grounding is not None else None
        self._format = data_set(task.format, Path())  # writes nothing

    def __call__(self, image: ImageFile) -> ImageResult:
        read = False
        try:
            with large_images():
                pixels = read_image(image.path)
            geometry = self.model.geometry(pixels.shape[:2])
            prompts = [prompt_of(one, geometry) for one in image.prompts]
            read = True
            objects = self._segment(pixels, prompts, [str(one.get("label") or self.task.label) for one in image.prompts])
            labeled = LabeledImage(image.file_name, pixels.shape[:2], objects)
            return ImageResult(image.file_name, *self._format.entry(labeled))
        except FAILURES as error:
            return failed(image, error, read)

    def _segment(self, pixels: np.ndarray, prompts: list[Prompt], labels: list[str]) -> list[LabeledMask]:
        task = self.task
        if task.mode == "everything":
            options = replace(task.everything, concept=task.concept)
            found = segment_everything(self.model, pixels, options, device_mode=task.device_mode)
            return [_FoundObject(one, pixels.shape[:2], task.label) for one in found]
        if task.mode == "words":
            boxes = find_boxes(self.grounding, [pixels], task.text, task.found, task.device_mode)[0]
            return self._in_boxes(pixels, boxes)
        masks, scores = self._decode(pixels, prompts)
        return [LabeledMask(*each) for each in zip(masks, labels, scores, strict=True)]

    def _in_boxes(self, pixels: np.ndarray, found: FoundBoxes) -> list[LabeledMask]:
        prompts = [Prompt(box=box) for box in found.boxes]
        masks, _ = self._decode(pixels, prompts)
        labels = [label or self.task.label for label in found.labels]
        return [LabeledMask(*each) for each in zip(masks, labels, found.scores, strict=True)]

    def _decode(self, pixels: np.ndarray, prompts: list[Prompt]) -> tuple[list[np.ndarray], list[float]]:
        if not prompts:
            return [], []
        task = self.task
        options, found = PredictOptions(concept=task.concept, logits=False), []
        segment_each(self.model, [pixels], [prompts], lambda _, one: found.append(one), options, task.device_mode, task.detail)
        return list(found[0].masks.cpu().numpy()), found[0].scores.tolist()


class _FoundObject(LabeledMask):
    """A mask of segment everything, whole only while somebody uses it: thousands of a large image would not fit into memory."""

    def __init__(self, found: FoundMask, size: Size, label: str) -> None:
        for name, value in {"found": found, "size": size, "label": label, "score": found.score, "track": None}.items():
            object.__setattr__(self, name, value)

    @property
    def mask(self) -> np.ndarray:
        """See `LabeledMask`."""
        return self.found.full(self.size)


def prompt_of(one: Mapping[str, Any], geometry: Geometry) -> Prompt:
    """One object of the prompts file; everything that it has is one object, whatever it names."""
    names = ("positive_coords", "negative_coords")
    points = [Marks(points_per_frame(json.dumps(one.get(name, [])), 1, name)[0].rows) for name in names]
    if isinstance(one.get("bbox"), list):  # corners for one reader, a corner and a size for another
        raise SAMError(f'bbox is {str(one["bbox"])[:80]}: write it as {{"x", "y", "width", "height"}}.')
    boxes = boxes_per_frame(one["bbox"], 1)[0] if "bbox" in one else NO_BOXES
    (objects,) = objects_per_frame(PromptInputs(*([marks] for marks in (*points, boxes))), 1, geometry)
    if len(objects) != 1:
        raise SAMError(f"An object of the prompts file has no prompt inside the image, or several boxes: {str(one)[:80]}.")
    return objects[0]


def find_images(paths: Iterable[Path], *leave_out: Path) -> tuple[Path, list[ImageFile], list[str]]:
    """The images in folders, with their subfolders and linked folders, and single files.

    Args:
        paths: folders and files.
        leave_out: files and folders that do not belong to them, such as the output.

    Returns:
        The folder that names are relative to, the images sorted by name, and the names of images that nothing here can read.

    Raises:
        SAMError: a path is not there, or there is no image.
    """
    paths, files = find_files(paths, leave_out)
    readable = readable_suffixes()
    images = [file for file in files if file.suffix.lower() in readable]
    others = [file for file in files if file.suffix.lower() in (IMAGE_SUFFIXES | UNREAD) - readable]
    if not images:
        raise SAMError(f"There is no image ({', '.join(sorted(readable))}) in {', '.join(map(str, paths))}.")
    root = common_folder([path if path.is_dir() else path.parent for path in paths])
    found = sorted((ImageFile(file, file.relative_to(root).as_posix()) for file in images), key=lambda one: one.file_name)
    return root, found, sorted(file.relative_to(root).as_posix() for file in others)


def find_files(paths: Iterable[Path], leave_out: Iterable[Path]) -> tuple[list[Path], set[Path]]:
    """Paths without links in them, and all files that they are or have below them, but for those in `leave_out`.

    Raises:
        SAMError: a path is not there.
    """
    paths = [path.resolve() for path in paths]
    for path in paths:
        if not path.exists():
            raise SAMError(f"There is no file or folder {path}.")
    files = {file for path in paths for file in (_files_in(path) if path.is_dir() else [path])}
    others = [path.resolve() for path in leave_out]
    return paths, {file for file in files if not any(file.resolve().is_relative_to(path) for path in others)}


def readable_suffixes() -> set[str]:
    """The endings of the image files that can be read here, in lower case."""
    return IMAGE_SUFFIXES & Image.registered_extensions().keys()


def _files_in(folder: Path) -> Iterator[Path]:
    """All files below a folder; a folder that several links lead to is entered once."""
    entered = set()
    for place, inside, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in entered:
            inside.clear()
            continue
        entered.add(real)
        yield from (file for name in names if (file := Path(place, name)).is_file())


def common_folder(folders: Sequence[Path]) -> Path:
    """The innermost folder that all of these are in, or are.

    Raises:
        SAMError: there is none, as on two drives.
    """
    alike = []
    for parts in zip(*(folder.parts for folder in folders), strict=False):
        if len(set(parts)) > 1:
            break
        alike.append(parts[0])
    if not alike:
        raise SAMError(f"The folders {', '.join(map(str, folders))} have no folder in common.")
    return Path(*alike)


def read_prompts(path: Path, images: Sequence[ImageFile]) -> tuple[list[ImageFile], list[str]]:
    """Give images their prompts: JSON `{"a.jpg": [{"label", "positive_coords", "negative_coords", "bbox"}, ...], ...}`.

    Each item is one object; coordinates have the form of the nodes' inputs. Of a COCO file, the boxes are taken.

    Returns:
        The images that the file names, and the names in it that are not images.

    Raises:
        SAMError: the file is not there, or has another form.
    """
    prompts = loaded_json(path)
    if not isinstance(prompts, dict):
        raise SAMError(f'{path} must be a JSON object {{"image.jpg": [objects]}}, but is a {type(prompts).__name__}.')
    if {"images", "annotations", "categories"} <= prompts.keys():
        prompts = _boxes_of_coco(path, prompts)
    for name, objects in prompts.items():
        is_list = isinstance(objects, list) and all(isinstance(one, dict) and one.keys() <= PROMPT_KEYS for one in objects)
        if not is_list:
            raise SAMError(f"{path}: {name!r} must be a list of objects with {', '.join(sorted(PROMPT_KEYS))}.")
    known = {image.file_name for image in images}
    chosen = [image._replace(prompts=tuple(prompts[image.file_name])) for image in images if image.file_name in prompts]
    return chosen, [name for name in prompts if name not in known]


def _boxes_of_coco(path: Path, document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The boxes of a COCO file, as prompts; regions of crowds are not objects."""
    try:
        names = {one["id"]: one["file_name"] for one in document["images"]}
        labels = {one["id"]: one["name"] for one in document["categories"]}
        prompts: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
        for one in document["annotations"]:
            if not one.get("iscrowd"):
                box = dict(zip(("x", "y", "width", "height"), one["bbox"], strict=True))
                prompts[names[one["image_id"]]].append({"label": labels[one["category_id"]], "bbox": box})
        return prompts
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SAMError(f"{path} is not a COCO file with boxes: {type(error).__name__} {error}.") from error


def read_boxes(path: Path, images: Sequence[ImageFile], root: Path) -> tuple[list[ImageFile], dict[str, str]]:
    """Give images the boxes of a data set as prompts; of an object that has a mask, the box around it.

    Args:
        path: of the data set, in any form that `open_data_set` reads.
        images: see `find_images`.
        root: the folder that their names are relative to.

    Returns:
        The images that the data set has, and why others of it were left out, by name.

    Raises:
        SAMError: the data set cannot be read, or none of its images is among them.
    """
    data, known = open_data_set(path, root), {image.file_name: image for image in images}
    chosen: list[ImageFile] = []
    errors: dict[str, str] = {}
    for index, name in enumerate(data.names):
        if name not in known:
            errors[name] = f"it is in {path.name}, but not among the images"
            continue
        try:
            objects = data.read(index).labeled.objects
        except SAMError as error:
            errors[name] = str(error)
            continue
        boxes = [{"label": one.label, "bbox": dict(box)} for one in objects if (box := tight_box(one.mask))]
        chosen.append(known[name]._replace(prompts=tuple(boxes)))
    if not chosen:
        raise SAMError(f"{path} has none of the images in {root}: its names are relative to that folder.")
    return sorted(chosen, key=lambda image: image.file_name), errors


Runner: TypeAlias = Callable[[FolderTask, Sequence[Any]], Iterator[ImageResult]]
"""Makes results of sources, all of one kind: of images, or of films."""


def run_here(task: FolderTask, images: Sequence[ImageFile]) -> Iterator[ImageResult]:
    """Results of images, one after the other, in this process; the model is loaded for the first one."""
    worker = None
    for image in images:
        worker = worker or Worker(task)
        yield worker(image)


def segment_folder(
    task: FolderTask,
    images: Sequence[Source],
    output: Path,
    run: Runner = run_here,
    report: Callable[[ImageResult], None] = lambda result: None,
    restart: bool = False,
    copies: Path | None = None,
) -> Summary:
    """Segment images, and write them as one data set.

    What is done is in a journal beside the output. After a crash or a kill, the same call goes on with the images that are not
    in it, and the result is the same; after images were added or changed, it segments those. An image that fails is reported
    and left out; it is tried again by the next call. Images that are not there any more leave the data set, with their files.
    Categories keep the numbers that they have.

    Args:
        task: what to do.
        images: see `find_images`, or films, see `find_films`; names must differ.
        output: a file for COCO, a folder for the other formats.
        run: how to get results, in any order.
        report: called with each result.
        copies: a folder for copies of the images that every reader sees upright; None: none.
        restart: forget what an earlier run has done, whatever its settings were; the files that it made are removed.

    Raises:
        SAMError: the journal is of another task, another process is writing there, a file cannot be written, or the model fails
            with the first images.
    """
    target = data_set(task.format, output)
    journal_path = output.with_name(f"{output.name}.journal")
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(output, wait=0))
        before = recorded(journal_path, task.format)
        if restart:
            with writing(journal_path):
                journal_path.unlink(missing_ok=True)
        journal = stack.enter_context(Journal(journal_path, task.settings()))
        is_folder = not task.format.startswith("COCO")
        remove_parts(output, "**/.*") if is_folder else remove_parts(output.parent, f".{glob.escape(output.name)}")
        errors = _unfit_names(images, is_folder or task.track is not None)
        stamps = {image.file_name: image.stamp() for image in images if image.file_name not in errors}
        to_do = [
            image for image in images if image.file_name in stamps and not journal.has(image.file_name, stamps[image.file_name])
        ]
        is_continued = bool(journal.records)
        sources = {image.file_name: image for image in to_do}
        failures, successes = 0, 0
        for result in run(task, to_do):
            if result.record is None:
                errors[result.file_name] = result.error
                failures += result.is_models
                if failures == _MOST_FAILURES and not successes:
                    raise SAMError(f"The model failed with each of the first images: {result.error}")
            else:
                successes += 1
                for name, content in result.files.items():
                    write_whole(target.path / name, content)
                if target.image_folder is not None:
                    for name, content in sources[result.file_name].images(is_upright=False):
                        write_whole(target.image_folder / name, content)
                journal.add(result.file_name, stamps[result.file_name], result.record)
            report(result)
        finished = [name for name in stamps if name not in errors]
        for image in images if copies is not None else ():
            if image.file_name not in stamps or image.file_name in errors:
                continue
            names = [one["file_name"] for one in images_in(journal.records[image.file_name])]
            if image.file_name in sources or not all((copies / name).is_file() for name in names):
                for name, content in image.images(is_upright=True):
                    write_whole(copies / name, content)
        records = [journal.records[name] for name in finished]
        target.write([one for record in records for one in images_in(record)], is_continued, task.categories)

        def files_of(some: Iterable[Record]) -> set[str]:
            return set().union(*(target.files_of(one) for record in some for one in images_in(record)))

        wanted = files_of(records)
        for name in journal.records.keys() - set(finished):
            if files_of([journal.records[name]]) - wanted:
                journal.forget(name)
        left = files_of([*before, *journal.records.values()]) - wanted
        for name in left:
            with writing(target.path / name):
                (target.path / name).unlink(missing_ok=True)
    return Summary(successes, len(finished) - successes, errors)


def _unfit_names(images: Sequence[Source], in_one_folder: bool) -> dict[str, str]:
    """Errors for names that are not text, and, in one folder, for those that differ in the ending only."""
    first: dict[str, str] = {}
    errors = {}
    for image in images:
        try:
            image.file_name.encode()
        except UnicodeEncodeError:  # from an old archive, or another system's disk
            errors[image.file_name] = "its name is not valid UTF-8: rename it"
            continue
        owner = first.setdefault(image.stem, image.file_name)
        if in_one_folder and owner != image.file_name:
            errors[image.file_name] = f"its name differs from that of {owner} only in the extension: rename one of them"
    return errors

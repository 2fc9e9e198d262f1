"""Folders of films to data sets: each film once, whatever happens in between; see `folders`."""

import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ...utils.boxes import corners_of, tight_box
from ...utils.checks import is_number
from ...utils.marks import Name
from ...utils.text import shown
from ..datasets.films import VIDEO_SUFFIXES, FilmFrames, FolderFrames, VideoFrames, frame_order, video_reader
from ..datasets.formats import data_set
from ..datasets.images import upright
from ..datasets.objects import DEFAULT_LABEL, LabeledImage, LabeledMask, Record
from ..datasets.overlays import write_overlay
from ..datasets.read import open_data_set
from ..datasets.reading import loaded_json
from ..datasets.rle import decode_mask, encode_mask
from ..errors import SAMError
from ..geometry import Geometry, Size
from ..models.checkpoints import SAM_MODELS
from ..models.in_transformers.grounding import load_grounding
from .folders import (
    FAILURES,
    PROMPT_KEYS,
    UNREAD,
    FolderTask,
    ImageFile,
    ImageResult,
    common_folder,
    failed,
    find_files,
    prompt_of,
    prompts_hash,
    readable_suffixes,
)
from .track import FilmPrompt, Track, TrackedFrame, TrackOptions, track
from .words import find_boxes

_KEYS = PROMPT_KEYS | {"frame", "object"}
_SAME = 0.5  # least IoU of the box around an object and of one that is found for it
_LEVEL = 1  # of zlib: masks are mostly runs of equal bytes


class Film(NamedTuple):
    """A film to track: a `Source`.

    Attributes:
        path: a folder of frames, or a video file.
        file_name: its name in the data set and in the prompts.
        frames: the names of a folder's frames, in order; none of a video file's.
        prompts: see `read_film_prompts`.
    """

    path: Path
    file_name: str
    frames: tuple[str, ...] = ()
    prompts: tuple[dict[str, Any], ...] = ()

    @property
    def stem(self) -> str:
        """The folder of its frames in the data set."""
        return self.file_name if self.frames else str(PurePosixPath(self.file_name).with_suffix(""))

    @property
    def files(self) -> list[ImageFile]:
        """The image files of a folder of frames."""
        return [ImageFile(self.path / name, f"{self.stem}/{name}") for name in self.frames]

    def frame_name(self, index: int) -> str:
        """The name of a frame in the data set. Those of a video are numbered as in DAVIS."""
        return f"{self.stem}/{self.frames[index] if self.frames else f'{index:05d}.jpg'}"

    def open(self) -> FilmFrames:
        """The frames, see `FolderFrames` and `VideoFrames`."""
        return FolderFrames([one.path for one in self.files]) if self.frames else VideoFrames(self.path)

    def stamp(self) -> list[Any]:
        """See `Source`."""
        stats = [(name, path.stat()) for name, path in [(one.file_name, one.path) for one in self.files] or [("", self.path)]]
        content = json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
        return [len(stats), hashlib.sha256(content.encode()).hexdigest()[:16], prompts_hash(self.prompts)]

    def images(self, is_upright: bool) -> Iterator[tuple[str, bytes]]:
        """See `Source`; of a video its frames as JPEG files."""
        for one in self.files:
            yield one.file_name, upright(one.path) if is_upright else one.path.read_bytes()
        if not self.frames:
            for index, frame in enumerate(self.open()):
                file = io.BytesIO()
                Image.fromarray(frame).save(file, format="JPEG", quality=95)
                yield self.frame_name(index), file.getvalue()


def find_films(paths: Iterable[Path], *leave_out: Path) -> tuple[Path, list[Film], list[str]]:
    """The films in folders, with their subfolders: each folder that has images in it, and each video file.

    Args:
        paths: folders of films, films, and video files.
        leave_out: files and folders that do not belong to them, such as the output.

    Returns:
        The folder that names are relative to, the films sorted by name, and the names of images that nothing here can read.

    Raises:
        SAMError: a path is not there, or there is no film.
    """
    paths, files = find_files(paths, leave_out)
    readable, folders = readable_suffixes(), dict[Path, list[str]]()
    for file in files:
        if file.suffix.lower() in readable:
            folders.setdefault(file.parent, []).append(file.name)
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    if not folders and not videos:
        endings = ", ".join(sorted(readable | VIDEO_SUFFIXES))
        raise SAMError(f"There is no folder of frames and no video file ({endings}) in {', '.join(map(str, paths))}.")
    # A film is named by its own folder or file, so it lies below the folder that names are relative to.
    root = common_folder([path if path.is_dir() and path not in folders else path.parent for path in paths])
    films = [Film(file, file.relative_to(root).as_posix()) for file in videos]
    for folder, names in folders.items():
        films.append(Film(folder, folder.relative_to(root).as_posix(), tuple(sorted(names, key=frame_order))))
    unread = sorted(file.relative_to(root).as_posix() for file in files if file.suffix.lower() in UNREAD - readable)
    return root, sorted(films, key=lambda one: one.file_name), unread


def read_film_prompts(path: Path, films: Sequence[Film]) -> tuple[list[Film], list[str]]:
    """Give films their prompts, from JSON.

    It is `{"bear": [{"frame", "object", "label", "positive_coords", "negative_coords", "bbox"}, ...], "clip.mp4": ...}`. Each
    item has the prompts of one object on one frame; `frame` is counted from 0, and is 0 where it is not given. Items with the
    same `object` are one object; an item without it is an object of its own. Coordinates have the form of the nodes' inputs.

    Returns:
        The films that the file names, and the names in it that are not films.

    Raises:
        SAMError: the file is not there, or has another form.
    """
    prompts = loaded_json(path)
    if not isinstance(prompts, dict):
        raise SAMError(f'{path} must be a JSON object {{"film": [prompts]}}, but is a {type(prompts).__name__}.')
    for name, items in prompts.items():
        if not isinstance(items, list) or not all(isinstance(one, dict) and one.keys() <= _KEYS for one in items):
            raise SAMError(
                f"{path}: {name!r} must be a list of objects with {', '.join(sorted(_KEYS))}, and its name "
                "that of a film: a folder of frames, or a video file."
            )
        for one in items:
            frame, own = one.get("frame", 0), one.get("object")
            if type(frame) is not int or frame < 0:
                raise SAMError(f"{path}: a frame of {name!r} is {shown(frame)}: it must be a whole number, 0 or more.")
            if own is not None and not isinstance(own, str) and not is_number(own):
                raise SAMError(f"{path}: an object of {name!r} is {shown(own)}: it must be text or a number.")
    known = {film.file_name for film in films}
    chosen = [film._replace(prompts=tuple(prompts[film.file_name])) for film in films if film.file_name in prompts]
    return chosen, [name for name in prompts if name not in known]


def read_film_masks(path: Path, films: Sequence[Film], root: Path) -> tuple[list[Film], dict[str, str]]:
    """Give films the masks of a data set as prompts: an object's mask on a frame is its mask there.

    The data set's images are frames of the films, by name. Which masks of a film are one object is said by their track (COCO's
    `track_id`, the value in an index PNG), or by their label where no frame has two with one label. Masks of a single frame are
    an object each.

    Args:
        path: of the data set, in any form that `open_data_set` reads.
        films: see `find_films`; only the frames of folders are files with a name.
        root: the folder that their names are relative to.

    Returns:
        The films that have masks, and why others, or frames, were left out, by name.

    Raises:
        SAMError: the data set cannot be read, or none of its images is a frame.
    """
    data = open_data_set(path, None if (path / "images").is_dir() else root)
    places = {film.frame_name(index): (film, index) for film in films for index in range(len(film.frames))}
    found: dict[str, dict[int, list[LabeledMask]]] = {}
    errors: dict[str, str] = {}
    for number, name in enumerate(data.names):
        if name not in places:
            errors[name] = f"it is in {path.name}, but not a frame of the films"
            continue
        film, index = places[name]
        try:
            objects = [one for one in data.read(number).labeled.objects if one.mask.any()]
        except SAMError as error:
            errors[name] = str(error)
            continue
        if objects:
            found.setdefault(film.file_name, {})[index] = objects
    chosen = []
    for film in films:
        frames = found.get(film.file_name, {})
        objects = [one for each in frames.values() for one in each]
        if not objects:
            continue
        is_tracked = all(one.track is not None for one in objects)
        is_named = all(len({one.label for one in each}) == len(each) for each in frames.values())
        if not is_tracked and not is_named and len(frames) > 1:
            errors[film.file_name] = (
                f"{path.name} does not say which of its masks are one object: give them a track_id, give each object of a "
                "frame a label of its own, or leave the masks of one frame"
            )
            continue
        items = [
            {
                "frame": index,
                "object": one.track if is_tracked else one.label if is_named else place,
                "label": one.label,
                "mask": encode_mask(one.mask),
            }
            for index, each in sorted(frames.items())
            for place, one in enumerate(each, 1)
        ]
        labels = {item["object"]: item["label"] for item in reversed(items) if item["label"] != DEFAULT_LABEL}
        chosen.append(film._replace(prompts=tuple({**one, "label": labels.get(one["object"], "")} for one in items)))
    if not found:
        raise SAMError(f"{path} has no mask of a frame of the films in {root}: its names are relative to that folder.")
    return chosen, errors


def film_prompts(
    items: Sequence[Mapping[str, Any]], geometry: Geometry, label: str
) -> tuple[dict[Name, dict[int, FilmPrompt]], dict[Name, str]]:
    """Items of a prompts file as prompts by object and frame, and the label of each object.

    Args:
        items: see `read_film_prompts` and `read_film_masks`; objects are in the order in which they first appear in it.
        geometry: of the film's frames.
        label: of objects without one.

    Raises:
        SAMError: an object has two items on one frame, or two labels, or an item's prompt is not one (see `prompt_of`).
    """
    named = {one.get("object") for one in items}
    unnamed = (name for number in range(1, 2 * len(items) + 1) if (name := f"#{number}") not in named)
    prompts: dict[Name, dict[int, FilmPrompt]] = {}
    labels: dict[Name, str] = {}
    for one in items:
        name = one.get("object")
        name = next(unnamed) if name is None else name
        frame, own = one.get("frame", 0), str(one.get("label") or "")
        if frame in prompts.setdefault(name, {}):
            raise SAMError(
                f"Object {name!r} has two entries for frame {frame} in the prompts file: put all its points into one."
            )
        if own and labels.setdefault(name, own) != own:
            raise SAMError(
                f"Object {name!r} has the labels {labels[name]!r} and {own!r} in the prompts file: an object has one."
            )
        if "mask" in one:
            prompts[name][frame] = FilmPrompt(mask=torch.from_numpy(decode_mask(one["mask"])))
            continue
        prompt = prompt_of(one, geometry)
        prompts[name][frame] = FilmPrompt(prompt.points, prompt.labels, prompt.box)
    return prompts, {name: labels.get(name, label) for name in prompts}


class FilmWorker:
    """A model that is loaded once, and turns films into results. What fails gives an error; nothing is raised for it."""

    def __init__(self, task: FolderTask) -> None:
        self.task = task
        self.model = SAM_MODELS.at(task.checkpoint, task.base_model).load(task.precision)
        self.grounding = load_grounding(task.grounding) if task.grounding is not None else None
        self._format = data_set(task.format, Path())  # writes nothing

    def _named(self, frames: FilmFrames) -> tuple[Track, dict[Name, str]]:
        """What words name, followed forward, and the label of each object.

        It is looked for every so many frames. What is found where an object of its label was followed to is that object;
        anything else is a new one.
        """
        task = self.task
        forward = replace(task.track or TrackOptions(), direction="forward", fill_flicker=0, remove_blinks=0)
        known, labels, last = None, dict[Name, str](), np.zeros((0, *frames.size), bool)

        def take(one: TrackedFrame) -> None:
            nonlocal last
            last = one.masks.cpu().numpy()

        for first in range(0, len(frames), task.words_every):
            some = frames[first : first + task.words_every]
            if known is not None:  # on a frame that is looked at, where the known ones are now
                known = track(self.model, some[:1], {}, take, forward, known, task.device_mode, first)
            (found,) = find_boxes(self.grounding, some[:1], task.text, task.found, task.device_mode)
            boxes = map(tight_box, last)
            taken = [(label, corners_of(box)) for label, box in zip(labels.values(), boxes, strict=True) if box]
            prompts: dict[Name, dict[int, FilmPrompt]] = {}
            for box, label in zip(found.boxes, found.labels, strict=True):
                label = label or task.label
                if not any(label == other and _iou(box, corners) >= _SAME for other, corners in taken):
                    name = len(labels) + 1
                    labels[name], prompts[name] = label, {first: FilmPrompt(box=box)}
            known = track(self.model, some, prompts, lambda _: None, forward, known, task.device_mode, first)
        return known, labels

    def __call__(self, film: Film) -> ImageResult:
        is_models = False
        try:
            frames = film.open()
            known = None
            if self.task.mode == "words":
                is_models = True
                (known, labels), prompts = self._named(frames), {}
            else:
                prompts, labels = film_prompts(film.prompts, self.model.geometry(frames.size), self.task.label)
            records: dict[int, Record] = {}
            files: dict[str, bytes] = {}
            masks: dict[int, tuple[int, bytes]] = {}  # of each frame, for the overlay

            def take(found: TrackedFrame) -> None:
                index, scores = found.index, found.object_scores.sigmoid().tolist()
                if self.task.overlays is not None:
                    masks[index] = len(scores), zlib.compress(np.packbits(found.masks.cpu().numpy()).tobytes(), _LEVEL)
                each = zip(found.masks.cpu().numpy(), labels.values(), scores, range(1, len(scores) + 1), strict=True)
                image = LabeledImage(film.frame_name(index), frames.size, [LabeledMask(*one) for one in each])
                record, own = self._format.entry(image)
                records[index] = {**record, "film": film.stem, "frame_index": index}
                files.update(own)

            is_models = True
            track(self.model, frames, prompts, take, self.task.track, known, self.task.device_mode)
            record = {"file_name": film.file_name, "frames": [records[index] for index in range(len(frames))]}
            if self.task.overlays is not None:
                form = self.task.overlay_form
                each = (_unpacked(*masks[index], frames.size) for index in range(len(frames)))
                write_overlay(self.task.overlays / f"{film.stem}.{form}", form, frames, each)
            return ImageResult(film.file_name, record, files)
        except FAILURES as error:
            return failed(film, error, is_models and not isinstance(error, SAMError))


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two boxes (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = *np.maximum(one[:2], other[:2]), *np.minimum(one[2:], other[2:])
    shared = max(0.0, x2 - x1) * max(0.0, y2 - y1)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / max(areas - shared, 1e-9)


def _unpacked(count: int, packed: bytes, size: Size) -> np.ndarray:
    """Masks bool `[N, H, W]` of a frame (H, W)."""
    shape = count, *size
    return np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=math.prod(shape)).reshape(shape).astype(bool)


def track_here(task: FolderTask, films: Sequence[Film]) -> Iterator[ImageResult]:
    """Results of films, one after the other, in this process; the model is loaded for the first one.

    Raises:
        SAMError: PyAV is not installed, and one of the films is a video file.
    """
    if any(not film.frames for film in films):
        video_reader()
    worker = None
    for film in films:
        worker = worker or FilmWorker(task)
        yield worker(film)

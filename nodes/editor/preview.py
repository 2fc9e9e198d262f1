"""The prompt editor's live preview, without a server: what a request may say, and the work for it, off the event loop."""

import asyncio
import io
import logging
import math
import re
import reprlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageColor
from torch import Tensor

from ...sam import PRECISIONS, SAM_MODELS, Candidate, Looked, ReadyImage, SAMError, Segmenter, clip_region, recall
from ...sam.geometry import Size
from ...sam.store.memory import ByteCache
from ...sam.weights.catalog import Entry
from ...utils.checks import one_of
from ...utils.comfy import Progress
from ...utils.comfy_files import EXAMPLE, IMAGE_FOLDERS, image_path, is_linked_out, load_image_file
from ...utils.finish import INSIDE
from ...utils.images import image_to_frames
from ...utils.marks import Region
from ...utils.overlay import FORMS, mask_image
from ...utils.text import counted
from ..prompt_editor import FirstLook, MarkedObject, first_look, look_again, part_of, segment_marks
from .contract import LIMITS, PYRAMID
from .jobs import Job, Jobs, RefusedError, check_idle, run_quietly
from .text import EditorObject, EditorPrompts, check_keys, parse_colour, parse_editor
from .tracked import TRACKED_FILE, TrackedPlace

log = logging.getLogger("samkit")

_MOST_PIXELS = 1 << 26  # of all frames of a file together
_MOST_OF_ONE = 1 << 27  # of an image that is alone in its file
_MOST_SENT = 1 << 23  # pixels of a mask of a large image
_THUMBNAIL = 96
_PREPARED = 16
_EDITORS = 256
_frames_seen: ByteCache[np.ndarray] = ByteCache(512 << 20)  # which parts of are encoded
_last_film: dict[tuple[Path, tuple[int, int] | None], list[np.ndarray]] = {}  # one, or none yet
Place: TypeAlias = tuple[int, int, int, int]
"""(x, y, width, height) in pixels of an image."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Subject:
    """Which image, and which model, by ComfyUI's names."""

    filename: str
    subfolder: str
    kind: str
    frame: int
    model_name: str | None
    precision: str
    identity: str | None
    base_model: str = ""


@dataclass(frozen=True)
class Question:
    """A preview that somebody asks for: of the object at the place `only`, or of all together; `form` as `mask_image` has it.

    `start` is the mask that SAM Track had there, which the marks correct. With `place`, the PNG of a large image has only the
    part of the mask that is not empty.
    """

    subject: Subject
    prompts: EditorPrompts
    only: int | None
    editor: str = ""
    sequence: int = 0
    form: str = "tint"
    start: TrackedPlace | None = None
    place: bool = False

    @property
    def places(self) -> Sequence[int]:
        """Of the objects that it is about."""
        return range(len(self.prompts.objects)) if self.only is None else [self.only]

    @property
    def objects(self) -> list[EditorObject]:
        """Those."""
        return [self.prompts.objects[place] for place in self.places]


@dataclass(frozen=True)
class Prepared:
    """An image that is ready for prompts."""

    model: Segmenter
    image: ReadyImage
    small: np.ndarray
    frames: int
    seconds: float
    stamp: str


@dataclass(frozen=True)
class Answer:
    """A mask, as an image file to lay over the image or its `place` there, what tells the image's content, and of looks."""

    file: bytes
    content_type: str
    score: float
    area: int
    milliseconds: float
    stamp: str
    looked: Looked | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Choice:
    """One of SAM's candidates, as a small PNG of its mask on the image."""

    candidate: Candidate
    score: float
    area: int
    png: bytes


def parse_subject(body: Mapping[str, Any]) -> Subject:
    """Check the fields `image` and `model` of a request.

    Raises:
        SAMError: a field is missing, unknown, or of another type or range.
    """
    image, model = parse_image(body), object_of(body, "model", {"model_name", "precision", "identity", "base_model"})
    precision = choice_of(model, "model.precision", PRECISIONS, "auto")
    if ("model_name" in model) == ("identity" in model):
        raise SAMError("model must have either model_name or identity.")
    if "identity" in model:
        return replace(image, precision=precision, identity=text_of(model, "model.identity"))
    base = name_of(model, "model.base_model", parts=16, default="")
    return replace(image, precision=precision, model_name=name_of(model, "model.model_name", parts=16), base_model=base)


def parse_image(body: Mapping[str, Any]) -> Subject:
    """Check the field `image` of a request. The subject has no model.

    Raises:
        SAMError: a field is missing, unknown, or of another type or range.
    """
    image = object_of(body, "image", {"filename", "subfolder", "type", "frame"})
    filename = name_of(image, "image.filename", parts=1)
    subfolder = name_of(image, "image.subfolder", parts=16, default="")
    kind = choice_of(image, "image.type", (*IMAGE_FOLDERS, EXAMPLE), "input")
    return Subject(filename, subfolder, kind, whole_of(image, "image.frame", 1 << 20), None, "auto", None)


def parse_question(body: Mapping[str, Any]) -> Question:
    """Check the fields of a preview request: those of `parse_choice`, `editor`, `sequence`, `form`, `start` and `place`.

    Raises:
        SAMError: as `parse_choice` and `parse_tracked`; a field is of another type.
    """
    choice = parse_choice(body)
    editor, sequence = text_of(body, "editor"), whole_of(body, "sequence", 1 << 53)
    start = None if body.get("start") is None else parse_tracked(body, "start")
    form, place = choice_of(body, "form", FORMS, "tint"), body.get("place", False)
    if not isinstance(place, bool):
        raise SAMError(f"place is {reprlib.repr(place)}: it must be true or false.")
    return replace(choice, editor=editor, sequence=sequence, form=form, start=start, place=place)


def parse_tracked(body: Mapping[str, Any], field: str) -> TrackedPlace:
    """Check a field of a request that names a mask of SAM Track: `{file, object, frame}`.

    Raises:
        SAMError: it is missing, unknown, or of another type or range.
    """
    value = object_of(body, field, {"file", "object", "frame"})
    file = text_of(value, f"{field}.file")
    if not re.fullmatch(TRACKED_FILE, file):
        raise SAMError(f"{field}.file is {file[:80]!r}: it must be the name of a file that SAM Track has shown.")
    return TrackedPlace(file, whole_of(value, f"{field}.object", 1 << 20), whole_of(value, f"{field}.frame", 1 << 20))


def tracked_image(body: Mapping[str, Any]) -> tuple[bytes, str, int]:
    """The mask that a request names by `track`, as an image file in its `colour` and `form`, its content type, and its area.

    Raises:
        SAMError: as `parse_tracked`.
        RefusedError: as `TrackedPlace.mask`.
    """
    check_keys(body, {"track", "colour", "form"}, "the body")
    place, form = parse_tracked(body, "track"), choice_of(body, "form", FORMS, "tint")
    colour = ImageColor.getrgb(parse_colour(body.get("colour"), "colour"))
    mask = place.mask()
    return *mask_image(mask, colour, form), int(mask.sum())


def parse_choice(body: Mapping[str, Any]) -> Question:
    """Check the fields of a request for candidates: those of `parse_subject`, `prompts` and `object`.

    Raises:
        SAMError: as `parse_subject` and `parse_editor`; there is no such object.
    """
    prompts, subject = parse_editor(body.get("prompts")), parse_subject(body)
    only = None if body.get("object") is None else whole_of(body, "object", 1 << 20)
    if only is not None and only >= len(prompts.objects):
        raise SAMError(f"object is {only}, but prompts has {counted(len(prompts.objects), 'object')}. Use an index from 0.")
    return Question(subject, prompts, only)


def object_of(body: Mapping[str, Any], name: str, known: set[str]) -> Mapping[str, Any]:
    """A field of a request that is a JSON object of known keys.

    Raises:
        SAMError: it is missing, not an object, or has another key.
    """
    value = body.get(name)
    if not isinstance(value, Mapping):
        raise SAMError(f"{name} is missing, or not a JSON object.")
    check_keys(value, known, name)
    return value


def text_of(values: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A text field of a request.

    Raises:
        SAMError: it is missing and has no default, or is not a text, or too long.
    """
    value = values.get(name.split(".")[-1], default)
    if not isinstance(value, str) or not (value or default == "") or len(value) > LIMITS.words or "\0" in value:
        seen = "is missing: it " if value is None else ""
        raise SAMError(f"{name} {seen}must be text of 1 to {LIMITS.words} characters.")
    return value


def choice_of(values: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str | None = None) -> str:
    """A field of a request that is one of some texts.

    Raises:
        SAMError: it is another.
    """
    return one_of(values.get(name.split(".")[-1], default), choices, name)


def whole_of(values: Mapping[str, Any], name: str, limit: int) -> int:
    """A field of a request that is a whole number from 0 to below a limit; 0 where it is missing.

    Raises:
        SAMError: it is another.
    """
    value = values.get(name.split(".")[-1], 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise SAMError(f"{name} is {reprlib.repr(value)}: it must be a whole number from 0 to {limit - 1}.")
    return value


def name_of(values: Mapping[str, Any], field: str, parts: int, default: str | None = None) -> str:
    """A field of a request that is a name inside ComfyUI's folders: nothing absolute, no way up, no drive.

    Raises:
        SAMError: it is another, or not a text.
    """
    name = text_of(values, field, default)
    pieces = name.replace("\\", "/").split("/") if name else []
    if len(pieces) > parts or any(piece in ("", ".", "..") or ":" in piece for piece in pieces):
        raise SAMError(f"{field} is {name[:80]!r}: it must be a name inside ComfyUI's folder.")
    return name


class Preview:
    """Answers the editors: images are encoded one at a time, once each; of an editor's questions only the newest counts."""

    def __init__(self) -> None:
        self._encoding = ThreadPoolExecutor(1, "samkit-encode")
        self._decoding = ThreadPoolExecutor(1, "samkit-decode")
        self._prepared: OrderedDict[_Key, asyncio.Future[Prepared]] = OrderedDict()
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._on_device: list[ReadyImage] = []
        self.jobs, self.looks = Jobs(), Jobs()  # apart: a second look does not wait for all segments of an image

    async def prepare(self, subject: Subject, region: Region | None = None) -> Prepared:
        """Load and encode, or wait for whoever does, or take what was done; of an image, or of one region of it.

        Raises:
            RefusedError: 404, there is no such image or model; 503, ComfyUI is at work.
        """
        loop = asyncio.get_running_loop()
        key, work = await loop.run_in_executor(None, look_up, subject, partial(_prepare, region=region))
        key = replace(key, region=region)
        if key not in self._prepared:
            check_idle()
            self._keep_only(key.model)
            task = self._prepared[key] = loop.run_in_executor(self._encoding, run_quietly, work)
            task.add_done_callback(lambda done: self._forget_failure(key, done))
        self._prepared.move_to_end(key)
        return await asyncio.shield(self._prepared[key])  # somebody who goes away does not end it for the others

    def _keep_only(self, model: object) -> None:
        """Make room for one more image; what was prepared keeps its model alive, so only one model's is kept."""
        while len(self._prepared) >= _PREPARED:
            self._prepared.popitem(last=False)
        for key in [key for key in self._prepared if key.model != model]:
            del self._prepared[key]

    def _forget_failure(self, key: "_Key", task: "asyncio.Future[Prepared]") -> None:
        if (task.cancelled() or task.exception() is not None) and self._prepared.get(key) is task:
            del self._prepared[key]

    async def ask(self, question: Question) -> Answer:
        """The mask of a question's marks.

        Raises:
            RefusedError: as `prepare`; 409, the same editor has asked something newer.
        """
        self._check_newest(question)
        self._newest[question.editor] = question.sequence
        self._newest.move_to_end(question.editor)
        while len(self._newest) > _EDITORS:
            self._newest.popitem(last=False)
        prepared = await self._prepare_all(question)
        return await self._decoded(prepared, lambda: self._answer(question, prepared))

    async def look(self, question: Question) -> Answer | Job:
        """The mask by second looks, as the detail of the prompts says, or the work for it, which the next call tells of.

        It runs beside the first answers, which never wait for it. Of an editor's looks only the latest is waited for.

        Raises:
            RefusedError: as `prepare`; 409, cancelled.
        """
        prepared = await self._prepare_all(question)
        key, pixels = await asyncio.get_running_loop().run_in_executor(None, look_up, question.subject, _pixels)
        asked = question.subject, repr(question.prompts), question.only, question.form, question.start, question.place
        work = partial(self._look, question, prepared, pixels)
        return await self.looks.ask("look", (key, asked), work, question.editor)

    def _look(self, question: Question, prepared: "_Parts", pixels: Callable[[], np.ndarray]) -> Answer:
        started = time.perf_counter()
        # Prompts of an image are decoded one after the other, these among the first answers.
        first = self._decoding.submit(run_quietly, lambda: self._alone(prepared, lambda: _first_looks(question, prepared)))
        looks, frame = first.result(), pixels()
        found = []
        for marked, one in looks:
            Progress.check_interrupted()
            found.append(look_again(prepared.whole.model, frame, marked, one))
        mask, score = _together([(mask, score) for mask, score, _ in found], prepared.whole.image.size)
        looked = Looked(*map(sum, zip(*(one for *_, one in found), strict=True))) if found else Looked(0, 0, 0)
        return _as_answer(question, prepared, mask, score, started, looked)

    async def _prepare_all(self, question: Question) -> "_Parts":
        """The image of a question, and the regions of it that its objects are seen in."""
        whole = await self.prepare(question.subject)
        regions = {clip_region(one.region, whole.image.size) for one in question.objects}
        parts = {region: await self.prepare(question.subject, region) for region in regions if region is not None}
        return _Parts(whole, {None: whole, **parts})

    async def choices(self, question: Question) -> list[Choice]:
        """SAM's candidates for a question's object, smallest first.

        Raises:
            RefusedError: as `prepare`.
        """
        prepared = await self._prepare_all(question)
        return await self._decoded(prepared, lambda: _choices(question, prepared))

    async def mask(self, question: Question) -> np.ndarray:
        """The mask of a question's marks, float32 `[H, W]` in 0..1.

        Raises:
            RefusedError: as `prepare`.
        """
        prepared = await self._prepare_all(question)
        return await self._decoded(prepared, lambda: _mask(question, prepared)[0])

    async def _decoded(self, prepared: "_Parts", work: Callable[[], Value]) -> Value:
        """What the work gives, one after the other."""
        alone = partial(self._alone, prepared, work)
        return await asyncio.get_running_loop().run_in_executor(self._decoding, run_quietly, alone)

    def _alone(self, prepared: "_Parts", work: Callable[[], Value]) -> Value:
        """What the work gives, by the thread that decodes; of the images only the last ones stay on a device."""
        images = [part.image for part in prepared.by_region.values()]
        for image in self._on_device:
            if image not in images:
                image.release()
        self._on_device = images
        return work()

    def _check_newest(self, question: Question) -> None:
        if self._newest.get(question.editor, 0) > question.sequence:
            raise RefusedError(409, "Superseded by a newer request of this editor.")

    def _answer(self, question: Question, prepared: "_Parts") -> Answer:
        self._check_newest(question)
        started = time.perf_counter()
        mask, score = _mask(question, prepared)
        return _as_answer(question, prepared, mask, score, started)


class _Parts(NamedTuple):
    """An image that is ready for prompts, and the regions of it that some objects are seen in; without a region, the image."""

    whole: Prepared
    by_region: dict[Region | None, Prepared]

    def of(self, marked: MarkedObject) -> Prepared:
        """What an object is seen in."""
        return self.by_region[clip_region(marked.prompts.objects[marked.place].region, marked.size)]


def _as_answer(
    question: Question, prepared: _Parts, mask: np.ndarray, score: float, started: float, looked: Looked | None = None
) -> Answer:
    objects = question.prompts.objects
    colour = objects[question.only or 0].colour if objects else EditorObject().colour
    area, place = _area(mask), None
    if question.place and mask.size > PYRAMID.pixels:
        mask, place = _filled(mask)
    file, kind = mask_image(mask, ImageColor.getrgb(colour), question.form)
    return Answer(file, kind, score, area, 1000 * (time.perf_counter() - started), prepared.whole.stamp, looked, place)


def _filled(mask: np.ndarray) -> tuple[np.ndarray, Place]:
    """The part of a mask `[H, W]` of a large image that is not empty, and its place; sampled, where it is large itself."""
    rows, columns = (np.flatnonzero((mask > 0).any(axis)) for axis in (1, 0))
    if not len(rows):
        return mask[:1, :1], (0, 0, 1, 1)
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    step = math.ceil(math.sqrt((bottom - top) * (right - left) / _MOST_SENT))
    part = mask[top:bottom:step, left:right:step]
    return part, (left, top, part.shape[1] * step, part.shape[0] * step)


def _mask(question: Question, prepared: _Parts) -> tuple[np.ndarray, float]:
    """float32 `[H, W]` in 0..1 of the object that is asked for, or of all together, and the lowest score."""
    found = []
    for marked in _marked(question, prepared):
        with prepared.of(marked).image.predictor() as image:
            found.append(segment_marks(image, marked))
    return _together(found, prepared.whole.image.size)


def _first_looks(question: Question, prepared: _Parts) -> list[tuple[MarkedObject, FirstLook]]:
    """The first masks of the object that is asked for, or of all, with their logits."""
    found = []
    for marked in _marked(question, prepared):
        with prepared.of(marked).image.predictor() as image:
            found.append((marked, first_look(image, marked, logits=True)))
    return found


def _marked(question: Question, prepared: _Parts) -> list[MarkedObject]:
    """The object that is asked for, or all of them."""
    frame, size = question.subject.frame, prepared.whole.image.size
    start = None if question.start is None else question.start.mask_if_there()
    return [MarkedObject(question.prompts, place, frame, size, start) for place in question.places]


def _together(found: list[tuple[Tensor, float]], size: Size) -> tuple[np.ndarray, float]:
    """Masks `[H, W]` of objects as one, and the lowest of their scores."""
    if not found:
        return np.zeros(size, np.float32), 0.0
    if len(found) == 1:  # of a large image, each copy is hundreds of megabytes
        return found[0][0].cpu().numpy(), found[0][1]
    return np.stack([mask.cpu().numpy() for mask, _ in found]).max(0), min(score for _, score in found)


def _area(mask: np.ndarray) -> int:
    return int((mask > INSIDE).sum())


def _choices(question: Question, prepared: _Parts) -> list[Choice]:
    made = []
    for candidate in ("smallest", "middle", "largest"):
        objects = tuple(replace(one, candidate=candidate) for one in question.prompts.objects)
        mask, score = _mask(replace(question, prompts=EditorPrompts(objects)), prepared)
        made.append(Choice(candidate, score, _area(mask), _thumbnail(prepared.whole.small, mask > INSIDE)))
    return made


def _small(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.array(image)


def _thumbnail(small: np.ndarray, mask: np.ndarray) -> bytes:
    """The small image uint8 `[h, w, 3]`, dimmed but for the mask bool `[H, W]` of the large one, as PNG."""
    height, width = small.shape[:2]
    inside = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    file = io.BytesIO()
    Image.fromarray(np.where(inside[..., None], small, small // 4)).save(file, format="PNG")
    return file.getvalue()


@dataclass(frozen=True)
class _Key:
    """What tells an image and a model from all others, as they are on disk now."""

    image: tuple[Path, tuple[int, int], int]
    model: object
    region: Region | None = None


Work = Callable[[Subject, Path, tuple[int, int], Callable[[], Segmenter]], Value]


def look_up(subject: Subject, work: Work[Value]) -> tuple[_Key, Callable[[], Value]]:
    """The key of an image and model, and the work that is to be done with the file, its stamp and the model.

    Raises:
        RefusedError: 404, there is no such image or model.
    """
    image, stamp = find_image(subject)
    model_key, load = _model(subject)
    return _Key((image, stamp, subject.frame), model_key), lambda: work(subject, image, stamp, load)


def find_image(subject: Subject) -> tuple[Path, tuple[int, int]]:
    """The file of an image, and its state.

    Raises:
        RefusedError: 404, there is no such image.
    """
    image = image_path(subject.filename, subject.subfolder, subject.kind)
    stamp = _stamp(image) if image is not None else None
    if image is None and is_linked_out(subject.filename, subject.subfolder, subject.kind):
        raise RefusedError(
            404,
            f"{subject.filename} lies behind a link that leads out of ComfyUI's {subject.kind} folder, which the live preview "
            "does not follow. Runs follow it: mark the image as usual, and run to see the masks.",
        )
    if image is None or stamp is None:
        raise RefusedError(404, f"there is no image {subject.filename} in ComfyUI's {subject.kind} folder.")
    return image, stamp


def _model(subject: Subject) -> tuple[object, Callable[[], Segmenter]]:
    if subject.identity is not None:
        model = recall(subject.identity)
        if model is None:
            raise RefusedError(404, "the model of the last run is no longer loaded: run the graph once.")
        return subject.identity, lambda: model
    entry = on_this_machine(SAM_MODELS.find(subject.model_name or "", subject.base_model))
    return (entry.path, entry.stamp, subject.precision), lambda: entry.load(subject.precision)


def on_this_machine(entry: Entry[Value]) -> Entry[Value]:
    """A model that can be loaded without a download.

    Raises:
        RefusedError: 404, it is not one.
    """
    if (reason := entry.absence) is not None:
        raise RefusedError(404, reason, entry.name if entry.path is None and entry.known else None)
    return entry


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file's state from another; None where it has gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _prepare(
    subject: Subject,
    path: Path,
    stamp: tuple[int, int],
    load: Callable[[], Segmenter],
    region: Region | None = None,
) -> Prepared:
    started = time.perf_counter()
    if region is not None:
        frame, count = _pixels(subject, path, stamp), 1
    else:
        frames = frames_of(path, subject)
        frame, count = frames[subject.frame], len(frames)
    model, seen = load(), part_of(frame, region)
    ready, seconds = ReadyImage(model, seen), time.perf_counter() - started
    return Prepared(model, ready, _small(seen), count, seconds, version_of(stamp))


def _pixels(subject: Subject, path: Path, stamp: tuple[int, int], load: object = None) -> np.ndarray:
    """The frame of a subject, uint8 `[H, W, 3]`; those that were needed last are there, others are read from the file again."""
    key = path, stamp, subject.frame
    frame = _frames_seen.get(key)
    if frame is None:
        frame = frames_of(path, subject)[subject.frame]
        _frames_seen.put(key, frame)
    return frame


def version_of(stamp: tuple[int, int]) -> str:
    """A file's state as a short text."""
    return "-".join(f"{part:x}" for part in stamp)


def frames_of(path: Path, subject: Subject) -> list[np.ndarray]:
    """The frames of an image file, uint8 `[H, W, 3]`; the subject's is among them.

    Raises:
        RefusedError: 404, it cannot be read, or has no such frame; 413, it has too many pixels.
    """
    frames = _frames(path, subject)
    if subject.frame >= len(frames):
        raise RefusedError(404, f"{subject.filename} has {counted(len(frames), 'frame')}: there is no frame {subject.frame}.")
    return frames


def _frames(path: Path, subject: Subject) -> list[np.ndarray]:
    """Frames of a file; those of the last film stay for its next frame, which would have to read all of them again."""
    if check_pixels(path, subject) < 2:
        return _read_frames(path, subject)
    key = path, _stamp(path)
    frames = _last_film.get(key)
    if frames is None:
        frames = _read_frames(path, subject)
        _last_film.clear()
        _last_film[key] = frames
    return frames


def _read_frames(path: Path, subject: Subject) -> list[np.ndarray]:
    try:
        return image_to_frames(load_image_file(path, subject.kind))
    except Exception as error:  # PIL, PyAV and zlib have a dozen kinds of their own for a damaged file
        log.debug("%s cannot be read: %s", path, error)
        raise RefusedError(404, f"{subject.filename} is not an image that Load Image can read.") from error


def count_frames(subject: Subject) -> int:
    """How many frames Load Image makes of a file.

    Raises:
        RefusedError: as `find_image` and `frames_of`.
    """
    path, _ = find_image(subject)
    return len(_frames(path, subject)) if check_pixels(path, subject) > 1 else 1


def frame_image(subject: Subject, side: int) -> tuple[bytes, str]:
    """A frame of a file for the browser, and its content type: as PNG, or with a `side` above 0 as a thumbnail of such a side.

    Raises:
        RefusedError: as `find_image` and `frames_of`.
    """
    path, _ = find_image(subject)
    image, file = Image.fromarray(frames_of(path, subject)[subject.frame]), io.BytesIO()
    if not side:
        image.save(file, format="PNG", compress_level=1)
        return file.getvalue(), "image/png"
    image.thumbnail((side, side))
    image.save(file, format="JPEG", quality=80)
    return file.getvalue(), "image/jpeg"


def check_pixels(path: Path, subject: Subject) -> int:
    """Refuse a file by its header: a few bytes on disk can be gigabytes once they are decoded. Else its number of frames."""
    try:
        with Image.open(path) as header:
            count = getattr(header, "n_frames", 1)
            pixels = header.width * header.height * count
    except Image.DecompressionBombError:
        pixels = None
    except Exception as error:  # as above; what PIL cannot open cannot be bounded
        log.debug("%s cannot be read: %s", path, error)
        raise RefusedError(404, f"{subject.filename} is not an image that Load Image can read.") from error
    most = _MOST_PIXELS if pixels is not None and count > 1 else _MOST_OF_ONE
    if pixels is None or pixels > most:
        seen = "more" if pixels is None else f"{pixels / 1e6:.0f} million"
        raise RefusedError(413, f"{subject.filename} has {seen} pixels: the preview takes at most {most / 1e6:.0f} million.")
    return count

"""Objects followed through a film: prompts on any frame, masks of every frame.

For each object on its own: its first prompted frame begins it, each next frame sees what the frames before have left behind,
and prompts on a later frame correct what was followed there and count for what comes after. What is left behind is SAM 2's
memory (`models.sam2.memory`), or for other models the last mask and how the object looks (`follow`). So a mask depends on the
images and prompts up to its frame and on nothing else, neither on other objects nor on how often the film was tracked: what a
`Track` knows already of that is not computed again.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from ...utils.checks import one_of
from ...utils.comfy import Progress
from ...utils.marks import Name
from ...utils.text import counted
from ..errors import SAMError
from ..geometry import Geometry, Size
from ..kernels.upsample import resize_logits
from ..models.base import Segmenter, optional_member
from ..models.features import IMAGE, Features
from ..models.sam2 import SAM2Model
from ..models.sam2.film import FilmFrame, memory_of
from ..models.sam2.memory import MOST_POINTERS, NO_OBJECT, Recalled
from ..placement import devices
from ..placement.devices import DeviceMode, device_for, placed, result_device
from ..placement.memory import chunk
from ..prompts import Prompt, mask_to_logits, to_model_input
from ..store.memory import one_run, passing
from .detail import DETAILS, Detail, Looked, SecondLook
from .embed import Encoded, EncoderRun
from .follow import CERTAIN, Candidate, Followed, FollowFrame, Looks, kept
from .predict import PROMPT_BYTES, PredictOptions
from .steady import steady

Direction: TypeAlias = Literal["forward", "backward", "both"]
DIRECTIONS: tuple[str, ...] = get_args(Direction)
TrackMethod: TypeAlias = Literal["auto", "memory", "follow"]
TRACK_METHODS: tuple[str, ...] = get_args(TrackMethod)
MOST_STEADIED = 8
"""Frames of the longest gap that is filled, or appearance that is removed."""

_FLOAT = 4  # bytes
_MEMORY_BYTES = 64 << 20  # of all memories of a film that a track keeps
_FOLLOWED_PROMPTS = 8  # that a model decodes at a time where it follows
_WORKING_BYTES = 1 << 30  # of the memory attention on a GPU, for an object and seven memories


@dataclass(frozen=True)
class FilmPrompt:
    """All prompts of one object on one frame.

    Attributes:
        points, labels, box: see `Prompt`, in pixels of the frame.
        mask: bool `[H, W]`, or None. Alone it is the object's mask there, and an empty one says that the object is not there;
            beside points or a box it is a rough one.
    """

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    box: np.ndarray | None = None
    mask: Tensor | None = None

    @property
    def is_mask(self) -> bool:
        """Whether the mask is given, and not to be found."""
        return self.mask is not None and not len(self.points) and self.box is None

    def as_prompt(self, geometry: Geometry) -> Prompt:
        """The same for an image, its mask as logits; the mask is then a rough one."""
        logits = None if self.mask is None else mask_to_logits(self.mask.float(), geometry)
        return Prompt(self.points, self.labels, self.box, logits)

    @property
    def key(self) -> str:
        """Hash of the content."""
        parts = [np.asarray(self.points, np.float64), np.asarray(self.labels, np.int32)]
        parts.append(np.zeros(0) if self.box is None else np.asarray(self.box, np.float64))
        parts.append(np.zeros(0) if self.mask is None else self.mask.cpu().numpy())
        return hashlib.sha256(b"".join(f"{part.shape}".encode() + part.tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True)
class TrackOptions:
    """How objects are followed.

    Attributes:
        direction: `forward` from an object's first prompted frame to the film's end, `backward` from its last prompted frame to
            the start, or `both`: forward from the first prompted frame, and then backward from it.
        non_overlapping: a pixel that several masks have is left to the one with the highest logit.
        method: `memory`, which only SAM 2 has; `follow`, by the last mask and how the object looks, which any model can do; or
            `auto`: memory where the model has one, else follow.
        fill_flicker: fill gaps of an object of up to so many frames between two frames with it, see `steady`; 0: none.
        remove_blinks: then remove appearances of up to so many frames between two frames without it; 0: none. Both change what
            is handed on and not the track, and frames on which the object was prompted stay as they are.
        detail: second looks at what was found on each frame, see `SecondLook`, before that. They do not change how objects are
            followed, nor masks that are given.
    """

    direction: Direction = "forward"
    non_overlapping: bool = False
    method: TrackMethod = "auto"
    fill_flicker: int = 0
    remove_blinks: int = 0
    detail: Detail = "off"

    def __post_init__(self) -> None:
        for name in ("fill_flicker", "remove_blinks"):
            if not 0 <= getattr(self, name) <= MOST_STEADIED:
                raise SAMError(f"{name} is {getattr(self, name)}: choose 0 to {MOST_STEADIED} frames.")
        for name, choices in (("direction", DIRECTIONS), ("method", TRACK_METHODS), ("detail", DETAILS)):
            one_of(getattr(self, name), choices, name)


class _Answer(NamedTuple):
    """An object on a frame: its mask, a bit per pixel, its object score, and float16 logits where overlaps are resolved."""

    bits: np.ndarray
    object_score: float
    logits: Tensor | None


@dataclass(frozen=True)
class _ObjectTrack:
    """What is known of one object.

    Attributes:
        prompts: by frame.
        order: the frames that it was followed on, in that order.
        answers: by frame.
        pointers, maps: what each frame has left behind: the two parts of `Remembered`; or how the object looks where it was
            prompted, and what is followed from there on. Of long films only some maps are kept.
    """

    prompts: Mapping[int, FilmPrompt] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    answers: dict[int, _Answer] = field(default_factory=dict)
    pointers: dict[int, Tensor | Looks] = field(default_factory=dict)
    maps: dict[int, Tensor | Followed] = field(default_factory=dict)

    def until(self, index: int) -> "_ObjectTrack":
        """A copy that knows the first frames of the order alone."""
        known = set(self.order[:index])
        parts = (
            {frame: one for frame, one in part.items() if frame in known} for part in (self.answers, self.pointers, self.maps)
        )
        return _ObjectTrack(self.prompts, self.order[:index], *parts)


@dataclass(frozen=True)
class Track:
    """What is known of a film's objects. It is never changed: `track` makes a new one.

    Attributes:
        model: identity of the model and the method that made it.
        keys: content keys of the film's frames.
        size: (H, W) of a frame.
        non_overlapping: see `TrackOptions`.
        objects: by name, in the order in which they were first prompted.
        first: the number, in the film, of the first of these frames.
        computed: how many frames of each object the call that made it had to compute.
    """

    model: str
    keys: tuple[str, ...]
    size: Size
    non_overlapping: bool
    objects: Mapping[Name, _ObjectTrack]
    first: int = 0
    computed: Mapping[Name, int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The number of the frame after the last one that is known."""
        return self.first + len(self.keys)

    @property
    def prompts(self) -> dict[Name, dict[int, FilmPrompt]]:
        """All prompts, by object and frame."""
        return {name: dict(one.prompts) for name, one in self.objects.items()}

    @property
    def names(self) -> tuple[Name, ...]:
        """The objects, in order."""
        return tuple(self.objects)

    def prompted_frames(self, name: Name) -> tuple[int, ...]:
        """The frames on which an object has prompts, in order."""
        return tuple(sorted(self.objects[name].prompts))

    @property
    def nbytes(self) -> int:
        """Bytes of what it keeps of the film, masks included."""
        answers = (answer for one in self.objects.values() for answer in one.answers.values())
        masks = sum(answer.bits.nbytes + (0 if answer.logits is None else answer.logits.nbytes) for answer in answers)
        parts = (part for one in self.objects.values() for part in (*one.maps.values(), *one.pointers.values()))
        return masks + sum(part.nbytes for part in parts)


class TrackedFrame(NamedTuple):
    """The objects on a frame.

    Attributes:
        index: of the frame, in the film.
        masks: bool `[N, H, W]`, empty where an object is absent or was not followed to this frame.
        object_scores: float32 `[N]`, logits that each object is in the image; `NO_OBJECT` where it was not followed to.
        logits: low-resolution mask logits `[4h, 4w]` by name, of the objects that were computed now; none where masks are
            changed by `fill_flicker` or `remove_blinks`.
        looked: what became of second looks; None without `detail`.
    """

    index: int
    masks: Tensor
    object_scores: Tensor
    logits: Mapping[Name, Tensor]
    looked: Looked | None = None


@torch.no_grad()
def track(
    model: Segmenter,
    images: Tensor | Sequence[np.ndarray],
    prompts: Mapping[Name, Mapping[int, FilmPrompt]],
    take: Callable[[TrackedFrame], None],
    options: TrackOptions | None = None,
    known: Track | None = None,
    device_mode: DeviceMode = "AUTO",
    first_frame: int | None = None,
    earlier: Track | None = None,
) -> Track:
    """Follow objects through a film; the masks of each frame are handed on as soon as they are complete.

    An image is encoded once for all objects, and its features are dropped before the next one (twice where objects that begin
    on different frames are followed in both directions, unless the embedding cache still has it).

    A film may come in parts, in order: each call takes the track of the part before. The masks are those of the film in one
    piece; if the film is shorter than 16 frames, those that memory gives may differ by a few pixels, since a date in it is a
    share of the film's length, which is not known before its end.

    Args:
        model: see `load_model`, or `as_segmenter` for another pack's.
        images: the frames, see `encode`.
        prompts: by object and frame. Beside a `known` track, those that are new; they replace the object's own on that frame.
        take: gets each frame once. Frames on which nothing is to be computed come first, the others in the order of the work;
            with `fill_flicker` or `remove_blinks`, all come in order after the last one was computed.
        options: see `TrackOptions`; None: its defaults.
        known: what an earlier call made of the same film, or of the parts before; what does not change is not computed again.
        device_mode: see `placed`.
        first_frame: the number, in the film, of the first of the images, where they are a part of a film. Prompts may then be
            those of the whole film: those of later parts only name their objects. None: the images are the whole film.
        earlier: what was made of the film before by other prompts, which do not matter now: up to the first frame on which the
            prompts of an object differ, it is not computed again. A track of another film, model or method is ignored.

    Returns:
        What is known now, up to the last of the images, for the next call.

    Raises:
        SAMError: the method is `memory` and the model has none, a prompt lies outside the film or is empty, the known track
            belongs to another film, model or method, or images of earlier parts are needed: for another direction than forward,
            or for prompts there that the track does not know; and what `encode` raises.
    """
    options = options or TrackOptions()
    by_memory = options.method == "memory" or (options.method == "auto" and bool(optional_member(model, "tracks")))
    run, first = EncoderRun(model, images, device_mode), first_frame or 0
    if first_frame is not None and options.direction != "forward":
        raise SAMError(
            f"direction is {options.direction!r}, but the film comes in parts, and an earlier part is gone when a later one "
            "comes. Choose forward, or track the film in one piece: disconnect meta_batch and set frame_offset to -1."
        )
    end = first + len(run.keys)
    if by_memory:
        method: _Method = _ByMemory(model, end if first_frame is None else max(end, MOST_POINTERS), run.size)
    else:
        method = _ByFollowing(model, run, first)
    identity = "-".join((model.encoder_identity, model.decoder_identity, method.identity))
    keys = tuple(run.keys)
    if known is not None:
        _check_known(known, identity, run, first_frame)
        keys, first_known = known.keys[: first - known.first] + keys, known.first
    else:
        first_known = first
    before = {} if known is None else known.objects
    _check(prompts, first, end, run.size, before, is_part=first_frame is not None)
    names = list(dict.fromkeys((*before, *(name for name, frames in prompts.items() if frames))))
    thinned = _Thinned(end, len(names), method, first)
    made = Track(identity, keys, run.size, options.non_overlapping, {}, first_known)
    reusable = earlier.objects if earlier is not None and replace(earlier, objects={}, computed={}) == made else {}
    works = []
    for name in names:
        old = before.get(name, _ObjectTrack())
        if known is not None and known.non_overlapping != options.non_overlapping:
            old = _ObjectTrack(old.prompts)
        now = {frame: one for frame, one in {**old.prompts, **prompts.get(name, {})}.items() if frame < end}
        choices = (_Work(name, one, now, options.direction, thinned) for one in (old, reusable.get(name)) if one is not None)
        works.append(min(choices, key=lambda work: work.count))
    for work in works:
        if (needed := min((frame for side in work.left for frame in side), default=first)) < first:
            raise SAMError(
                f"Object {work.name!r} would have to be followed from frame {needed} again, but the images begin with frame "
                f"{first}. Track the parts of the film in order, all with the same options."
            )
    computed = {work.name: work.count for work in works}
    held = _Held(run.size) if options.fill_flicker or options.remove_blinks else None
    _Film(method, run, first, works, take if held is None else held.put, options).run()
    if held is not None:
        held.hand_on(take, [{frame - first for frame in work.prompts} for work in works], options)
    objects = {work.name: work.track for work in works}
    return replace(made, objects=objects, computed=computed)


def _check_known(known: Track, identity: str, run: EncoderRun, first_frame: int | None) -> None:
    """Refuse a track that is not one of the film that these images are, or are the next part of."""
    if known.model != identity:
        raise SAMError(
            "The track was made with a different model or method. Connect the model that made it, or track without it."
        )
    if first_frame is None and (known.first or known.keys != tuple(run.keys)):
        raise SAMError(
            f"The track belongs to other images: it has {counted(len(known.keys), 'frame')}, and the image input "
            f"{len(run.keys)}. Connect the images that it was made of, or track without it. For the next part of a film, set "
            "frame_offset."
        )
    if first_frame is None:
        return
    if not known.first <= first_frame <= known.end:
        raise SAMError(
            f"The track has the frames {known.first} to {known.end - 1} of the film, and the images begin with frame "
            f"{first_frame}. Track the parts of a film in order, without a gap: the next one begins with frame {known.end}."
        )
    both = zip(known.keys[first_frame - known.first :], run.keys, strict=False)
    if known.size != run.size or any(one != other for one, other in both):
        raise SAMError(
            f"The track belongs to other images than the {counted(len(run.keys), 'frame')} from frame {first_frame} on. "
            "Connect the film that it was made of, or track without it."
        )


def _check(
    prompts: Mapping[Name, Mapping[int, FilmPrompt]],
    first: int,
    end: int,
    size: Size,
    before: Mapping[Name, _ObjectTrack],
    is_part: bool,
) -> None:
    for name, each in prompts.items():
        for frame, prompt in each.items():
            place = f"The prompt of object {name!r} on frame {frame}"
            if not 0 <= frame < end and not (is_part and frame >= end):
                raise SAMError(f"{place} lies outside the film, which has {counted(end, 'frame')}: 0 to {end - 1}.")
            if prompt.mask is None and prompt.box is None and not len(prompt.points):
                raise SAMError(f"{place} is empty: it must have points, a box or a mask.")
            if prompt.mask is not None and tuple(prompt.mask.shape) != tuple(size):
                seen = tuple(prompt.mask.shape)
                raise SAMError(f"{place} has a mask of the shape {seen}, but the images have {tuple(size)}.")
            known = before[name].prompts.get(frame) if name in before else None
            if frame < first and (known is None or known.key != prompt.key):
                raise SAMError(
                    f"{place} lies before these images, which are the frames {first} to {end - 1} of the film, and no track of "
                    "the frames before has it. Connect the track of the part before, or run the film again from its start."
                )


class _Held:
    """The frames of a film whose masks are made steady before they are handed on: a bit per pixel until then."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.frames: dict[int, tuple[np.ndarray, TrackedFrame]] = {}

    def put(self, found: TrackedFrame) -> None:
        """Take a frame."""
        bits = np.packbits(found.masks.flatten(1).cpu().numpy(), axis=1)
        self.frames[found.index] = bits, found._replace(masks=torch.zeros(0), logits={})

    def hand_on(self, take: Callable[[TrackedFrame], None], prompted: Sequence[Collection[int]], options: TrackOptions) -> None:
        """All frames in order; those that an object was prompted on, counted from the first of them, keep its mask."""
        film = [self.frames[index][0] for index in sorted(self.frames)]
        steady(film, self.size, prompted, options.fill_flicker, options.remove_blinks, options.non_overlapping)
        height, width = self.size
        for index, bits in zip(sorted(self.frames), film, strict=True):
            masks = np.unpackbits(bits, axis=1, count=height * width).reshape(len(bits), height, width).astype(bool)
            take(self.frames[index][1]._replace(masks=torch.from_numpy(masks).to(result_device())))


class _Thinned:
    """Which maps a track keeps, so that a long film takes no more than a short one.

    Beside those of prompted frames, around where an object begins and before the first of the images: all of a short film; of a
    long one as many in a row as a frame attends to, once in every `period` frames. From such a place on, an object is followed
    as if it had never been left.
    """

    def __init__(self, frames: int, objects: int, method: "_Method", first: int) -> None:
        self.frames, self.window, self.first = frames, method.window, first
        every = frames * objects * method.map_bytes
        self.period = 1 if every <= _MEMORY_BYTES else max(self.window + 1, math.ceil(every * self.window / _MEMORY_BYTES))

    def keeps(self, frame: int, start: int) -> bool:
        """Whether the map of a frame without prompts stays, of an object that begins on the frame `start`."""
        is_before = self.first - self.window <= frame < self.first
        return is_before or frame % self.period < self.window or abs(frame - start) <= self.window


class _Work:
    """One object, and what is to be computed of it.

    Args:
        name: of the object.
        old: what is known of it.
        prompts: all of them, by frame.
        direction: see `TrackOptions`.
        thinned: which maps are kept.

    Attributes:
        track: what is known now.
        left: for each of the two sweeps, forward and backward, the frames that are to be computed, in order.
        count: how many these are.
    """

    def __init__(
        self, name: Name, old: _ObjectTrack, prompts: Mapping[int, FilmPrompt], direction: Direction, thinned: _Thinned
    ) -> None:
        self.name, self.prompts, self.thinned = name, prompts, thinned
        outermost = max if direction == "backward" else min
        self.start = outermost(prompts, default=thinned.frames)  # in a later part of the film
        forward = range(self.start, thinned.frames) if direction != "backward" else range(0)
        backward = range(self.start - (direction == "both"), -1, -1) if direction != "forward" else range(0)
        order = (*forward, *backward)
        same = 0
        for frame, other in zip(order, old.order, strict=False):
            keys = [one[frame].key if frame in one else None for one in (prompts, old.prompts)]
            if frame != other or keys[0] != keys[1]:
                break
            same += 1
        while same and same < len(order) and not self._is_ready(order[:same], order[same], old, same >= len(forward)):
            same -= 1
        self.track = old.until(same)
        self.track = _ObjectTrack(prompts, order, self.track.answers, self.track.pointers, self.track.maps)
        self.left = tuple(forward)[same:], tuple(backward)[max(0, same - len(forward)) :]
        self._left = tuple(map(frozenset, self.left))
        self.count = sum(map(len, self.left))

    def _is_ready(self, done: Sequence[int], frame: int, old: _ObjectTrack, backward: bool) -> bool:
        """Whether the maps that a frame attends to are all there."""
        sign, known = (-1 if backward else 1), set(done)
        wanted = (frame - sign * age for age in range(1, self.thinned.window + 1))
        return all(one in old.maps for one in wanted if one in known)

    def recalled(self, frame: int, backward: bool) -> Recalled:
        """What a frame attends to: prompted frames that are known, the last frames before it, and their pointers."""
        sign, track = (-1 if backward else 1), self.track
        prompted = [one for one in track.answers if one in self.prompts]
        maps = [(0, track.maps[one]) for one in prompted]
        for age in range(self.thinned.window, 0, -1):
            one = frame - sign * age
            if one in track.answers and one not in self.prompts:
                maps.append((age, track.maps[one]))
        dates = [(sign * (frame - one), one) for one in prompted]  # none lies ahead: a sweep begins at the outermost of them
        recent = range(1, min(self.thinned.frames, MOST_POINTERS))
        dates += [(age, frame - sign * age) for age in recent if frame - sign * age not in self.prompts]
        return Recalled(maps, [(date, track.pointers[one]) for date, one in dates if one in track.pointers])

    def left_in(self, side: int) -> frozenset[int]:
        """The frames that are to be computed in a sweep."""
        return self._left[side]

    def before(self, frame: int, backward: bool) -> Followed | None:
        """What is followed to a frame: what the one before it has left behind."""
        return self.track.maps.get(frame + (1 if backward else -1))

    def looks(self) -> list[Looks]:
        """How the object looks on the frames that it was prompted on, as far as they are known."""
        return list(self.track.pointers.values())

    def put(self, frame: int, answer: _Answer, map_: Tensor | Followed | None, pointer: Tensor | Looks | None) -> None:
        """Take what was found on a frame, and what it leaves behind."""
        track = self.track
        track.answers[frame] = answer
        if pointer is not None:
            track.pointers[frame] = pointer
        if map_ is not None:
            track.maps[frame] = map_
        for one in list(track.maps):
            is_near = abs(one - frame) <= self.thinned.window
            if not (is_near or one in self.prompts or self.thinned.keeps(one, self.start)):
                del track.maps[one]


class _Found(NamedTuple):
    """An object on a frame: logits `[4h, 4w]`, the logit `[]` that it is there, and what the frame leaves behind of it."""

    logits: Tensor
    score: Tensor
    map: Tensor | Followed | None
    pointer: Tensor | Looks | None


class _Method(Protocol):
    """How objects are followed.

    Attributes:
        identity: beside the model's own.
        window: the frames before one that it may need the maps of.
        map_bytes: of a map.
        working_bytes: what it needs on a GPU besides the weights.
    """

    identity: str
    window: int
    map_bytes: int
    working_bytes: int

    def step(self, index: int, backward: bool, works: Sequence[_Work], features: Features) -> list[_Found]:
        """Each of some objects on a frame."""
        ...


class _ByMemory:
    """`_Method` by SAM 2's memory, for a film of `frames` frames of a size.

    Raises:
        SAMError: the model has none.
    """

    working_bytes = _WORKING_BYTES

    def __init__(self, model: Segmenter, frames: int, size: Size) -> None:
        if not isinstance(model, SAM2Model):
            raise SAMError(
                f"{model.family} models have no memory to track with. Choose the method follow, or load a SAM 2 or SAM 2.1 "
                "checkpoint, such as sam2.1_hiera_tiny.pt."
            )
        shape = memory_of(model).shape
        self.model, self.frames, self.geometry, self.identity = model, frames, model.geometry(size), model.memory_identity
        self.window, self.map_bytes = shape.frames - 1, 2 * math.prod(model.map_shapes[IMAGE][1:]) * shape.width

    def step(self, index: int, backward: bool, works: Sequence[_Work], features: Features) -> list[_Found]:
        """See `_Method.step`."""
        frame = FilmFrame(self.model, features)
        asked = [work.prompts.get(index) for work in works]
        pairs = zip(works, asked, strict=True)
        follow = [work for work, prompt in pairs if work.track.answers and not (prompt and prompt.is_mask)]
        maps = frame.conditioned([work.recalled(index, backward) for work in follow], self.frames) if follow else []
        attended = dict(zip((work.name for work in follow), maps, strict=True))
        found = []
        for work, prompt in zip(works, asked, strict=True):
            conditioned = attended.get(work.name)
            if prompt is None:
                seen = frame.followed(conditioned)
            elif prompt.is_mask:
                seen = frame.given(prompt.mask.float())
            else:
                tensors = to_model_input([prompt.as_prompt(self.geometry)], self.geometry, features.device)
                if conditioned is None:
                    seen = frame.begun(tensors)
                else:
                    seen = frame.corrected(conditioned, tensors, frame.followed(conditioned))
            left = frame.remembered(seen, prompt is not None)
            found.append(_Found(seen.logits, seen.object_score, left.map, left.pointer))
        return found


class _ByFollowing:
    """`_Method` of any model, see `follow`, for the images of a run, whose first one has the number `first` in the film."""

    identity, window, working_bytes = "follow", 1, _FOLLOWED_PROMPTS * PROMPT_BYTES

    def __init__(self, model: Segmenter, run: EncoderRun, first: int) -> None:
        self.model, self.images, self.first, self.geometry = model, run.frames, first, model.geometry(run.size)
        self.map_bytes = 2 * math.prod(self.geometry.grid)

    def step(self, index: int, backward: bool, works: Sequence[_Work], features: Features) -> list[_Found]:
        """See `_Method.step`."""
        frame = FollowFrame(self.model, features, self.images[index - self.first], self.geometry)
        return [self._found(frame, index, work, work.before(index, backward)) for work in works]

    def _found(self, frame: FollowFrame, index: int, work: _Work, last: Followed | None) -> _Found:
        prompt, looks = work.prompts.get(index), work.looks()
        nothing = torch.full(self.geometry.grid, NO_OBJECT, device=frame.features.device)
        if prompt is not None and prompt.is_mask:
            logits = frame.given(prompt.mask)
        else:
            is_followed = last is not None and bool(looks)
            seen = frame.followed(last, looks, index) if is_followed else Candidate(nothing, -math.inf, -CERTAIN)
            if prompt is None:
                if seen.score <= 0:
                    return _Found(nothing, torch.tensor(seen.score), last, None)
                return _Found(seen.logits, torch.tensor(seen.score), kept(seen.logits, index, last), None)
            logits = frame.prompted(prompt.as_prompt(self.geometry), seen.logits if seen.score > 0 else None)
        own = frame.looks(logits)
        if own is None:
            return _Found(nothing, torch.tensor(-CERTAIN), last, None)
        return _Found(logits, torch.tensor(CERTAIN), kept(logits, index, None), own)


class _Film:
    """The sweeps over a film, forward and backward, that compute what is left of some objects."""

    def __init__(
        self,
        method: _Method,
        run: EncoderRun,
        first: int,
        works: Sequence[_Work],
        take: Callable[[TrackedFrame], None],
        options: TrackOptions,
    ) -> None:
        self.model, self.method, self.images, self.works, self.take, self.options = run.model, method, run, works, take, options
        self.keys, self.first, self.second = dict(enumerate(run.keys, first)), first, None
        if options.detail != "off":
            self.second = SecondLook(run.model, run.size, options.detail, PredictOptions(), run.device_mode)
        self.geometry: Geometry = self.model.geometry(run.size)
        self.result_device = result_device()

    def run(self) -> None:
        """Compute, and hand on every frame."""
        sweeps = [sorted({frame for work in self.works for frame in work.left[side]}, reverse=side == 1) for side in (0, 1)]
        last = {frame: side for side, frames in enumerate(sweeps) for frame in frames}
        progress = Progress(sum(map(len, sweeps)))
        feature_bytes = _FLOAT * sum(math.prod(shape) for shape in self.model.map_shapes.values())
        mode = self.images.device_mode
        size = chunk(device_for(mode), feature_bytes)
        # Outside ComfyUI, AUTO would take the model off the GPU after every chunk.
        staying = devices.stay_loaded(self.model.network) if mode == "AUTO" else contextlib.nullcontext()
        found: dict[int, dict[Name, Tensor]] = {}
        with staying, one_run(), passing(len(self.images.keys)):
            for index in self.keys:
                if index not in last:
                    progress.check_interrupted()
                    self._hand_on(index, {})
            for side, frames in enumerate(sweeps):
                for start in range(0, len(frames), size):
                    some, encoded = frames[start : start + size], {}
                    keys = dict.fromkeys(self.keys[frame] for frame in some)
                    self.images.each(list(keys), Progress(None), encoded.__setitem__)
                    with placed(self.model.network, mode, self.method.working_bytes) as device:
                        for index in some:
                            progress.check_interrupted()
                            now = self._step(index, side, encoded[self.keys[index]], device)
                            found[index] = {**found.get(index, {}), **now}
                            if last[index] == side and self.second is None:
                                self._hand_on(index, found.pop(index))
                            progress.advance()
                    # Second looks encode cuts, which needs a turn of its own on the device.
                    for index in some if self.second is not None else ():
                        if last[index] == side:
                            self._hand_on(index, found.pop(index))

    def _step(self, index: int, side: int, encoded: Encoded, device: torch.device) -> dict[Name, Tensor]:
        """All that is left to compute on one frame in one sweep; the logits by object."""
        works = [work for work in self.works if index in work.left_in(side)]
        each = self.method.step(index, side == 1, works, encoded.features(self.keys[index], device))
        for work, one in zip(works, each, strict=True):
            work.put(index, self._answer(one), one.map, one.pointer)
        return {work.name: one.logits.to(self.result_device) for work, one in zip(works, each, strict=True)}

    def _answer(self, found: _Found) -> _Answer:
        score = float(found.score)
        if self.options.non_overlapping:
            return _Answer(np.zeros(0, np.uint8), score, found.logits.half().cpu())
        mask = resize_logits(found.logits[None], self.geometry)[0] > 0
        return _Answer(np.packbits(mask.cpu().numpy()), score, None)

    def _hand_on(self, index: int, logits: Mapping[Name, Tensor]) -> None:
        answers = [work.track.answers.get(index) for work in self.works]
        height, width = self.images.size
        masks = torch.zeros(len(answers), height, width, dtype=torch.bool)
        highest = torch.zeros(height, width)
        for row, answer in enumerate(answers):
            if answer is None:
                continue
            if answer.logits is None:
                bits = np.unpackbits(answer.bits, count=height * width)
                masks[row] = torch.from_numpy(bits).view(height, width)
            else:
                full = resize_logits(answer.logits.float()[None], self.geometry)[0]
                masks[row] = full > highest
                masks[:row] &= ~masks[row]
                highest = torch.maximum(highest, full)
        looked = None
        if self.second is not None:
            masks, looked = self._looked_at_again(index, masks, self.second)
        scores = torch.tensor([NO_OBJECT if answer is None else answer.object_score for answer in answers])
        self.take(TrackedFrame(index, masks.to(self.result_device), scores, logits, looked))

    def _looked_at_again(self, index: int, masks: Tensor, second: SecondLook) -> tuple[Tensor, Looked]:
        """The masks bool `[N, H, W]` of a frame after second looks, but for those that were given; what became of them."""
        rows, marks = [], []
        for row, work in enumerate(self.works):
            given = work.prompts.get(index)
            if masks[row].any() and not (given is not None and given.is_mask):
                rows.append(row)
                marks.append(None if given is None else Prompt(given.points, given.labels, given.box))
        refined = masks.clone()
        refined[rows], looked = second.refine_masks(self.images.frames[index - self.first], marks, masks[rows])
        if self.options.non_overlapping:
            refined = torch.where(refined.sum(0) > 1, masks, refined)
        return refined, looked

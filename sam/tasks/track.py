"""Objects followed through a film by SAM 2's memory: prompts on any frame, masks of every frame.

For each object on its own: its first prompted frame begins it, each next frame sees what is remembered of the frames before,
and prompts on a later frame correct what was followed there and are a memory for what comes after. So a mask depends on the
images and prompts up to its frame and on nothing else, neither on other objects nor on how often the film was tracked: what a
`Track` knows already of that is not computed again.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from ...utils.comfy import Progress
from ...utils.names import Name
from ...utils.text import counted
from ..errors import SAMError
from ..geometry import Frame, Size
from ..kernels.upsample import resize_logits
from ..models.base import IMAGE, Features
from ..models.families import as_segmenter
from ..models.sam2 import SAM2Model
from ..models.sam2.film import FilmFrame, Seen, memory_of
from ..models.sam2.memory import MOST_POINTERS, NO_OBJECT, Recalled, Remembered
from ..placement import devices
from ..placement.devices import DeviceMode, device_for, placed, result_device
from ..placement.memory import chunk
from ..prompts import Prompt, mask_to_logits, to_model_frame
from ..store.memory import one_run, passing
from .embed import Encoded, EncoderRun

Direction: TypeAlias = Literal["forward", "backward", "both"]
DIRECTIONS: tuple[str, ...] = get_args(Direction)

_FLOAT = 4  # bytes
_MEMORY_BYTES = 64 << 20  # of all memories of a film that a track keeps
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
    """

    direction: Direction = "forward"
    non_overlapping: bool = False

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise SAMError(f"direction is {self.direction!r}: choose one of {', '.join(DIRECTIONS)}.")


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
        pointers, maps: what each frame has left behind (see `Remembered`); of long films only some maps are kept.
    """

    prompts: Mapping[int, FilmPrompt] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    answers: dict[int, _Answer] = field(default_factory=dict)
    pointers: dict[int, Tensor] = field(default_factory=dict)
    maps: dict[int, Tensor] = field(default_factory=dict)

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
        model: identity of the model that made it.
        keys: content keys of the film's frames.
        size: (H, W) of a frame.
        non_overlapping: see `TrackOptions`.
        objects: by name, in the order in which they were first prompted.
    """

    model: str
    keys: tuple[str, ...]
    size: Size
    non_overlapping: bool
    objects: Mapping[Name, _ObjectTrack]

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
        index: of the frame.
        masks: bool `[N, H, W]`, empty where an object is absent or was not followed to this frame.
        object_scores: float32 `[N]`, logits that each object is in the image; `NO_OBJECT` where it was not followed to.
        logits: low-resolution mask logits `[4h, 4w]` by name, of the objects that were computed now.
    """

    index: int
    masks: Tensor
    object_scores: Tensor
    logits: Mapping[Name, Tensor]


@torch.no_grad()
def track(
    model: Any,
    images: Tensor | Sequence[np.ndarray],
    prompts: Mapping[Name, Mapping[int, FilmPrompt]],
    take: Callable[[TrackedFrame], None],
    options: TrackOptions | None = None,
    known: Track | None = None,
    device_mode: DeviceMode = "AUTO",
) -> Track:
    """Follow objects through a film; the masks of each frame are handed on as soon as they are complete.

    An image is encoded once for all objects, and its features are dropped before the next one (twice where objects that begin
    on different frames are followed in both directions, unless the embedding cache still has it).

    Args:
        model: a SAM 2 or SAM 2.1 model with a memory.
        images: the frames, see `encode`.
        prompts: by object and frame. Beside a `known` track, those that are new; they replace the object's own on that frame.
        take: gets each frame once. Frames on which nothing is to be computed come first, the others in the order of the work.
        options: see `TrackOptions`; None: its defaults.
        known: what an earlier call made of the same film; what does not change is not computed again.
        device_mode: see `placed`.

    Returns:
        What is known now, for the next call.

    Raises:
        SAMError: the model cannot track, a prompt lies outside the film or is empty, or the known track belongs to another film
            or model; and what `encode` raises.
    """
    segmenter, options = as_segmenter(model), options or TrackOptions()
    if not isinstance(segmenter, SAM2Model):
        raise SAMError(
            f"{segmenter.family} models have no memory to track with. Load a SAM 2 or SAM 2.1 checkpoint, such as "
            "sam2.1_hiera_tiny.pt."
        )
    memory_of(segmenter)
    run = EncoderRun(segmenter, images, device_mode)
    identity = "-".join((segmenter.encoder_identity, segmenter.decoder_identity, segmenter.memory_identity))
    if known is not None and known.model != identity:
        raise SAMError("The track was made with a different model. Connect the model that made it, or track without it.")
    if known is not None and known.keys != tuple(run.keys):
        raise SAMError(
            f"The track belongs to other images: it has {counted(len(known.keys), 'frame')}, and the image input "
            f"{len(run.keys)}. Connect the images that it was made of, or track without it."
        )
    _check(prompts, len(run.keys), run.size)
    before = {} if known is None else known.objects
    names = list(dict.fromkeys((*before, *(name for name, frames in prompts.items() if frames))))
    thinned = _Thinned(len(run.keys), len(names), segmenter)
    works = []
    for name in names:
        old = before.get(name, _ObjectTrack())
        if known is not None and known.non_overlapping != options.non_overlapping:
            old = _ObjectTrack(old.prompts)
        works.append(_Work(name, old, {**old.prompts, **prompts.get(name, {})}, options.direction, thinned))
    _Film(segmenter, run, works, take, options).run()
    objects = {work.name: work.track for work in works}
    return Track(identity, tuple(run.keys), run.size, options.non_overlapping, objects)


def _check(prompts: Mapping[Name, Mapping[int, FilmPrompt]], frames: int, size: Size) -> None:
    for name, each in prompts.items():
        for frame, prompt in each.items():
            place = f"The prompt of object {name!r} on frame {frame}"
            if not 0 <= frame < frames:
                raise SAMError(f"{place} lies outside the film, which has {counted(frames, 'frame')}: 0 to {frames - 1}.")
            if prompt.mask is None and prompt.box is None and not len(prompt.points):
                raise SAMError(f"{place} is empty: it must have points, a box or a mask.")
            if prompt.mask is not None and tuple(prompt.mask.shape) != tuple(size):
                seen = tuple(prompt.mask.shape)
                raise SAMError(f"{place} has a mask of the shape {seen}, but the images have {tuple(size)}.")


class _Thinned:
    """Which maps a track keeps, so that a long film takes no more than a short one.

    Beside those of prompted frames and around where an object begins: all of a short film; of a long one as many in a row as a
    frame attends to, once in every `period` frames. From such a place on, an object is followed as if it had never been left.
    """

    def __init__(self, frames: int, objects: int, model: SAM2Model) -> None:
        self.frames = frames
        shape, grid = memory_of(model).shape, model.map_shapes[IMAGE][1:]
        every = frames * objects * math.prod(grid) * shape.width * 2
        self.window = shape.frames - 1
        self.period = 1 if every <= _MEMORY_BYTES else max(self.window + 1, math.ceil(every * self.window / _MEMORY_BYTES))

    def keeps(self, frame: int, start: int) -> bool:
        """Whether the map of a frame without prompts stays, of an object that begins on the frame `start`."""
        return frame % self.period < self.window or abs(frame - start) <= self.window


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
    """

    def __init__(
        self, name: Name, old: _ObjectTrack, prompts: Mapping[int, FilmPrompt], direction: Direction, thinned: _Thinned
    ) -> None:
        self.name, self.prompts, self.thinned = name, prompts, thinned
        self.start = max(prompts) if direction == "backward" else min(prompts)
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
        dates = [(sign * (frame - one), one) for one in prompted if sign * (frame - one) >= 0]
        recent = range(1, min(self.thinned.frames, MOST_POINTERS))
        dates += [(age, frame - sign * age) for age in recent if frame - sign * age not in self.prompts]
        return Recalled(maps, [(date, track.pointers[one]) for date, one in dates if one in track.pointers])

    def left_in(self, side: int) -> frozenset[int]:
        """The frames that are to be computed in a sweep."""
        return self._left[side]

    def put(self, frame: int, answer: _Answer, kept: Remembered) -> None:
        """Take what was found on a frame."""
        track = self.track
        track.answers[frame], track.pointers[frame], track.maps[frame] = answer, kept.pointer, kept.map
        for one in list(track.maps):
            is_near = abs(one - frame) <= self.thinned.window
            if not (is_near or one in self.prompts or self.thinned.keeps(one, self.start)):
                del track.maps[one]


class _Film:
    """The sweeps over a film, forward and backward, that compute what is left of some objects."""

    def __init__(
        self,
        model: SAM2Model,
        run: EncoderRun,
        works: Sequence[_Work],
        take: Callable[[TrackedFrame], None],
        options: TrackOptions,
    ) -> None:
        self.model, self.images, self.works, self.take, self.options = model, run, works, take, options
        self.frame: Frame = model.frame(run.size)
        self.result_device = result_device()

    def run(self) -> None:
        """Compute, and hand on every frame."""
        sweeps = [sorted({frame for work in self.works for frame in work.left[side]}, reverse=side == 1) for side in (0, 1)]
        last = {frame: side for side, frames in enumerate(sweeps) for frame in frames}
        progress = Progress(sum(map(len, sweeps)))
        for index in range(len(self.images.keys)):
            if index not in last:
                progress.check_interrupted()
                self._hand_on(index, {})
        feature_bytes = _FLOAT * sum(math.prod(shape) for shape in self.model.map_shapes.values())
        mode = self.images.device_mode
        size = chunk(device_for(mode), feature_bytes)
        # Outside ComfyUI, AUTO would take the model off the GPU after every chunk.
        staying = devices.stay_loaded(self.model.network) if mode == "AUTO" else contextlib.nullcontext()
        found: dict[int, dict[Name, Tensor]] = {}
        with staying, one_run(), passing(len(self.images.keys)):
            for side, frames in enumerate(sweeps):
                for start in range(0, len(frames), size):
                    some, encoded = frames[start : start + size], {}
                    keys = dict.fromkeys(self.images.keys[frame] for frame in some)
                    self.images.each(list(keys), Progress(None), encoded.__setitem__)
                    with placed(self.model.network, mode, _WORKING_BYTES) as device:
                        for index in some:
                            progress.check_interrupted()
                            now = self._step(index, side, encoded[self.images.keys[index]], device)
                            found[index] = {**found.get(index, {}), **now}
                            if last[index] == side:
                                self._hand_on(index, found.pop(index))
                            progress.advance()

    def _step(self, index: int, side: int, encoded: Encoded, device: torch.device) -> dict[Name, Tensor]:
        """All that is left to compute on one frame in one sweep; the logits by object."""
        works = [work for work in self.works if index in work.left_in(side)]
        frame = FilmFrame(self.model, Features(encoded.maps, self.images.keys[index], device))
        asked = {work.name: work.prompts.get(index) for work in works}
        follow = [work for work in works if work.track.answers and not (asked[work.name] and asked[work.name].is_mask)]
        recalled = [work.recalled(index, side == 1) for work in follow]
        maps = frame.conditioned(recalled, len(self.images.keys)) if follow else []
        attended = dict(zip((work.name for work in follow), maps, strict=True))
        found: dict[Name, Tensor] = {}
        for work in works:
            prompt, conditioned = asked[work.name], attended.get(work.name)
            if prompt is None:
                seen = frame.followed(conditioned)
            elif prompt.is_mask:
                seen = frame.given(prompt.mask.float())
            else:
                logits = None if prompt.mask is None else mask_to_logits(prompt.mask.float(), self.frame)
                tensors = to_model_frame([Prompt(prompt.points, prompt.labels, prompt.box, logits)], self.frame, device)
                if conditioned is None:
                    seen = frame.begun(tensors)
                else:
                    seen = frame.corrected(conditioned, tensors, frame.followed(conditioned))
            work.put(index, self._answer(seen), frame.remembered(seen, prompt is not None))
            found[work.name] = seen.logits.to(self.result_device)
        return found

    def _answer(self, seen: Seen) -> _Answer:
        score = float(seen.object_score)
        if self.options.non_overlapping:
            return _Answer(np.zeros(0, np.uint8), score, seen.logits.half().cpu())
        mask = resize_logits(seen.logits[None], self.frame)[0] > 0
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
                full = resize_logits(answer.logits.float()[None], self.frame)[0]
                masks[row] = full > highest
                masks[:row] &= ~masks[row]
                highest = torch.maximum(highest, full)
        scores = torch.tensor([NO_OBJECT if answer is None else answer.object_score for answer in answers])
        self.take(TrackedFrame(index, masks.to(self.result_device), scores, logits))

"""The second look: an object again, in a cut of the image around its mask, where the model has more pixels for it.

A model gets its own number of pixels of an image, whatever its size, and answers in a quarter of them. A cut around an object
is encoded like an image, and prompted by the same marks and the first mask. The answer takes the place of the first mask where
the two are one object.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...utils.checks import one_of
from ...utils.comfy import Progress
from ..errors import SAMError
from ..geometry import Size, View, Window, cut_around, cut_at
from ..kernels.views import averaged, resampled
from ..models.base import Segmenter, optional_member
from ..placement import devices
from ..placement.devices import DeviceMode, placed
from ..prompts import ABSENT_LOGIT, Prompt, mask_to_logits
from ..store.embedding import SAMEmbedding
from ..store.memory import one_run, passing
from .embed import Encoded, EncoderRun, as_embedding, encode_one
from .predict import FramePrediction, ImagePredictor, PredictOptions, Take, check_count, features_of, prompt_bytes
from .regions import marks_in, predict_in_region

Detail: TypeAlias = Literal["off", "auto", "1", "2", "3"]
DETAILS: tuple[str, ...] = get_args(Detail)
Box: TypeAlias = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels of the image."""

# Chosen on the scenes that the script `benchmarks/detail.py` draws, with the demonstration model.
_LOOKS = {"off": 0, "auto": 3, "1": 1, "2": 2, "3": 3}
_LEAST_GAIN = 1.5  # of resolution
_SAME_OBJECT, _SAME_SMALL_OBJECT = 0.8, 0.3  # least agreement of two masks of one object
_SMALL_CELLS = 400  # of a mask that the last look has seen so small that its shape is uncertain
_SURE = 0.8  # predicted IoU below which a mask says little about what is meant
_EDGE_CELLS = 2  # from the edge of a cut: what ends there may go on
_SCALES = 3  # cuts around a point, each twice as large as the one before
_UNSEEN = 8  # cells of the whole image's grid: what is larger would have been in its mask
_TRIMMED = 0.01  # of a mask at each side: specks far from it do not make its cut larger


class Looked(NamedTuple):
    """How many objects of an image have a mask of a second look.

    Attributes:
        sharper: objects whose mask a second look has replaced.
        kept: those of which it saw something else, so that they have their first mask.
        alike: those for which no cut has a higher resolution, so that there was none.
    """

    sharper: int
    kept: int
    alike: int

    def __str__(self) -> str:
        """For the note below a result; empty where there was no second look."""
        said = {"sharper": self.sharper, "as before": self.kept}
        return ", ".join(f"{count} {name}" for name, count in said.items() if count)


Report: TypeAlias = Callable[[int, Looked], None]
"""Takes what became of the objects of an image, by its index, before their masks are handed on."""


@dataclass
class _Object:
    """An object while it is looked for.

    Attributes:
        prompt: its marks, in pixels of the image.
        first: the view that it was first seen in: the whole image, or a region of it.
        view: that it was last seen in.
        logits: its mask there, float32 `[4h, 4w]`.
        score: predicted IoU.
        mask: the same in the image, bool `[H, W]`.
        looks: how many cuts it was seen in.
        sharper: whether the mask is a second look's.
        kept: whether the last look saw something else.
        is_done: whether there is nothing more to gain.
    """

    prompt: Prompt
    first: View
    view: View
    logits: Tensor
    score: float
    mask: Tensor
    looks: int = 0
    sharper: bool = False
    kept: bool = False
    is_done: bool = False


class SecondLook:
    """How one model looks again at objects that it has found.

    Args:
        model: see `load_model`, or `as_segmenter` for another pack's.
        size: (H, W) of the images.
        detail: how many cuts each object is seen in at most: as many as gain resolution, up to 3 (`auto`), or so many where
            there is some to gain. `off`: none.
        options: what the first masks were made with.
        device_mode: see `placed`.

    Raises:
        SAMError: there is no such detail.
    """

    def __init__(self, model: Segmenter, size: Size, detail: Detail, options: PredictOptions, device_mode: DeviceMode) -> None:
        one_of(detail, DETAILS, "detail")
        self.model, self.size, self.device_mode = model, size, device_mode
        self.is_auto = detail == "auto"
        self.looks = _LOOKS[detail]
        self.options = replace(options, candidate="best", multimask="off", logits=True)
        self.whole = View((0, 0, size[1], size[0]), model.geometry(size))
        self.takes_masks = optional_member(model, "takes_masks") is not False

    def refine(self, image: np.ndarray, prompts: Sequence[Prompt], found: FramePrediction) -> tuple[FramePrediction, Looked]:
        """Look again at all objects of an image, those with one cut together. Not in the body of a `placed`.

        Args:
            image: uint8 `[H, W, 3]`.
            prompts: those that each mask was made of.
            found: masks, scores and logits of the first look, logits on the grid of the prompt's region where it has one; its
                masks are changed in place.

        Returns:
            The same with the masks, scores and logits of the last look, on the grid of the whole image, and what became of the
            objects.
        """
        objects = []
        for prompt, mask, score, logits in zip(prompts, *found, strict=True):
            first = self.whole if prompt.region is None else self._view(prompt.region)
            objects.append(_Object(prompt, first, first, logits[0], float(score), mask))
        for _ in range(self.looks):
            cuts: dict[Window, list[_Object]] = {}
            for one in objects:
                if (window := self._cut(one)) is not None:
                    cuts.setdefault(window, []).append(one)
            for window, members in cuts.items():
                Progress.check_interrupted()
                self._look(image, window, members)
        for one in objects if self.looks else ():
            self._look_at_points(image, one)
        scores = found.scores.new_tensor([one.score for one in objects])
        logits = [self._on_the_whole(one, first[0]) for one, first in zip(objects, found.logits, strict=True)]
        together = torch.stack(logits)[:, None] if logits else found.logits
        sharper, kept = sum(one.sharper for one in objects), sum(one.kept and not one.sharper for one in objects)
        return FramePrediction(found.masks, scores, together), Looked(sharper, kept, len(objects) - sharper - kept)

    def refine_masks(self, image: np.ndarray, prompts: Sequence[Prompt | None], masks: Tensor) -> tuple[Tensor, Looked]:
        """`refine` for masks bool `[N, H, W]` that are known without their logits, and an image's marks where there are any."""
        marks, first = [], []
        for prompt, mask in zip(prompts, masks, strict=True):
            logits = mask_to_logits(mask.float(), self.whole.geometry)
            marks.append(prompt or Prompt())
            first.append(torch.full((1, *self.whole.geometry.grid), ABSENT_LOGIT) if logits is None else logits)
        grid = self.whole.geometry.grid
        logits = torch.stack(first).to(masks.device) if first else masks.new_zeros(0, 1, *grid, dtype=torch.float32)
        found = FramePrediction(masks.clone(), torch.ones(len(masks)), logits)
        refined, looked = self.refine(image, marks, found)
        return refined.masks, looked

    def _cut(self, one: _Object) -> Window | None:
        """The cut that an object is to be seen in next; None where it would gain nothing, from then on."""
        if one.is_done:
            return None
        box = self._extents(one)
        if box is not None:
            window = cut_around(box, self.size, max(self.whole.geometry.grid))
            view = self._view(window)
            if view.gain(one.view if self.is_auto else one.first) >= _LEAST_GAIN:
                return window
        one.is_done = True
        return None

    def _view(self, window: Window) -> View:
        x1, y1, x2, y2 = window
        return View(window, self.model.geometry((y2 - y1, x2 - x1)))

    def _extents(self, one: _Object) -> Box | None:
        """The box that an object's cut is made around: its own, else the mask's, and its points on the object.

        None where there is neither a box nor a mask.
        """
        box = one.prompt.box
        around = _box_around(one.logits > self.options.mask_threshold, one.view) if box is None else tuple(box.tolist())
        if around is None:
            return None
        points = one.prompt.points[one.prompt.labels == 1]
        corners = np.concatenate([np.reshape(around, (2, 2)), points])
        return (*corners.min(0).tolist(), *corners.max(0).tolist())

    def _seen(self, image: np.ndarray, view: View, prompts: list[Prompt], options: PredictOptions) -> FramePrediction:
        """What prompts give in a view of an image, which is encoded, or taken from the cache."""
        x1, y1, x2, y2 = view.window
        key, encoded = encode_one(self.model, [image[y1:y2, x1:x2]], self.device_mode)
        with placed(self.model.network, self.device_mode, prompt_bytes([prompts])) as device:
            return ImagePredictor(self.model, encoded.features(key, device), view.geometry.original, options).predict(prompts)

    def _look(self, image: np.ndarray, window: Window, objects: list[_Object]) -> None:
        """See objects in a cut that is made around them."""
        x1, y1, x2, y2 = window
        view = self._view(window)
        found = self._seen(image, view, [self._in_view(one, view) for one in objects], self.options)
        for one, mask, score, logits in zip(objects, *found, strict=True):
            one.looks += 1
            is_small = int((one.logits > self.options.mask_threshold).sum()) < _SMALL_CELLS
            one.kept = self._agreement(one, logits[0], view) < (_SAME_SMALL_OBJECT if is_small else _SAME_OBJECT)
            if one.kept:
                one.is_done = True
                continue
            if one.prompt.box is not None:  # it says that the object is nowhere else
                one.mask[:] = False
            one.view, one.logits, one.score, one.sharper = view, logits[0], float(score), True
            one.mask[y1:y2, x1:x2] = mask

    def _look_at_points(self, image: np.ndarray, one: _Object) -> None:
        """See what lies under the points of an object whose mask the model is not sure of, in smaller and larger cuts.

        What is too small for the whole image to show is not in its mask; in a cut, the model is sure of it.
        """
        points = one.prompt.points[one.prompt.labels == 1]
        if one.prompt.box is not None or one.prompt.region is not None or not len(points) or one.score >= _SURE:
            return
        for scale in range(_SCALES):
            window = cut_at(points[0], self.size, max(self.whole.geometry.grid) << scale)
            view, (x1, y1, x2, y2) = self._view(window), window
            if one.looks == self.looks or view.gain(self.whole) < _LEAST_GAIN:
                return
            if ((points < (x1, y1)) | (points > (x2, y2))).any():
                continue
            Progress.check_interrupted()
            one.looks += 1
            marks = self._in_view(one, view)
            found = self._seen(image, view, [Prompt(marks.points, marks.labels)], replace(self.options, multimask="auto"))
            score, logits = float(found.scores[0]), found.logits[0, 0]
            around = _box_around(logits > self.options.mask_threshold, view)
            if score >= _SURE and around is not None and self._is_unseen(around) and not self._is_cut_off(around, window):
                one.view, one.logits, one.score, one.sharper = view, logits, score, True
                one.mask[:] = False
                one.mask[y1:y2, x1:x2] = found.masks[0]
                return

    def _is_unseen(self, box: Box) -> bool:
        """Whether what has a box is so small that the whole image does not show it well."""
        rows, columns = self.whole.geometry.cells
        return max((box[2] - box[0]) * columns, (box[3] - box[1]) * rows) <= _UNSEEN

    def _is_cut_off(self, box: Box, window: Window) -> bool:
        """Whether a box ends at an edge of a window that is not the image's."""
        cell = _EDGE_CELLS / min(self._view(window).geometry.cells)
        (x1, y1, x2, y2), (left, top, right, bottom) = box, window
        return (
            (left > 0 and x1 < left + cell)
            or (top > 0 and y1 < top + cell)
            or (right < self.size[1] and x2 > right - cell)
            or (bottom < self.size[0] and y2 > bottom - cell)
        )

    def _in_view(self, one: _Object, view: View) -> Prompt:
        """The marks of an object that fall into a window, in its pixels, and the last mask, where that has a part there.

        Where there are no marks, or the model takes no mask, the box around the mask is one.
        """
        points, labels, box = marks_in(one.prompt, view.window)
        if box is None and not (self.takes_masks and len(points)):
            around = np.array(_box_around(one.logits > self.options.mask_threshold, one.view))
            box = marks_in(Prompt(box=around), view.window)[2]
        logits = resampled(one.logits[None], one.view, view, ABSENT_LOGIT) if self.takes_masks else None
        if logits is not None and not bool((logits > self.options.mask_threshold).any()):
            logits = None
        return Prompt(points, labels, box, logits)

    def _agreement(self, one: _Object, logits: Tensor, view: View) -> float:
        """How far the mask in a view and the last one are one object, 0..1: their IoU on the grid of the last one.

        Only the window is compared, and cells beside an edge of the other mask are right: the last look saw no better. With a
        box, it is also the object that was meant where the mask has that box.
        """
        mask = logits > self.options.mask_threshold
        own = _box_around(mask, view)
        if own is None:
            return 0.0
        share, covered = averaged(mask.float(), view, one.view)
        now = share >= min(0.5, float(share.max()))
        before = (one.logits > self.options.mask_threshold) & (covered > 0.5)
        wrong = (before & ~_grown(now)).sum() + (now & ~_grown(before)).sum()
        agreement = 1 - float(wrong) / float((before | now).sum())
        return agreement if one.prompt.box is None else max(agreement, _box_iou(own, one.prompt.box))

    def _on_the_whole(self, one: _Object, first: Tensor) -> Tensor:
        """An object's logits `[4h, 4w]` on the grid of the image; the first ones, where it is smaller than a cell."""
        if one.first is not self.whole:
            values, covered = averaged(first, one.first, self.whole)
            first = values * covered + ABSENT_LOGIT * (1 - covered)
        if not one.sharper:
            return first
        values, covered = averaged(one.logits, one.view, self.whole)
        merged = values * covered + first * (1 - covered)
        return merged if bool((merged > self.options.mask_threshold).any()) else first


def _box_around(mask: Tensor, view: View) -> Box | None:
    """The box of a mask bool `[4h, 4w]` in a view, without specks, in pixels of the image; None if empty."""
    x1, y1, x2, y2 = view.window
    ends = []
    for axis, (start, end) in enumerate(((y1, y2), (x1, x2))):
        cell = view.geometry.cells[axis]
        counts = mask.sum(1 - axis).cpu()[: int(np.ceil((end - start) * cell))].double()
        total, sums = float(counts.sum()), counts.cumsum(0)
        if not total:
            return None
        first, last = int((sums > _TRIMMED * total).byte().argmax()), int((sums >= (1 - _TRIMMED) * total).byte().argmax())
        ends.append((start + first / cell, min(start + (last + 1) / cell, float(end))))
    (top, bottom), (left, right) = ends
    return left, top, right, bottom


def _box_iou(one: Box, other: np.ndarray) -> float:
    corners = np.array([one, other]).reshape(2, 2, 2)
    common = float((corners[:, 1].min(0) - corners[:, 0].max(0)).clip(min=0).prod())
    return common / (float((corners[:, 1] - corners[:, 0]).prod(1).sum()) - common)


def _grown(mask: Tensor) -> Tensor:
    """A mask bool `[h, w]`, by one cell larger."""
    return F.max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0


@torch.no_grad()
def segment_in_detail(
    model: Segmenter,
    images: Tensor | Sequence[np.ndarray],
    prompts: Sequence[Sequence[Prompt]],
    take: Take,
    options: PredictOptions,
    device_mode: DeviceMode,
    detail: Detail,
    embedding: SAMEmbedding | None = None,
    report: Report | None = None,
) -> None:
    """`segment_each` with regions and second looks: an image at a time, which is encoded and decoded before its cuts are.

    Args:
        detail: see `SecondLook`.
        embedding: of the images, where they are encoded already.
        report: see `Report`.
        model, images, prompts, take, options, device_mode: see `segment_each`.

    Raises:
        SAMError: what `segment_each` raises, there is no such detail, or the embedding is that of other images.
    """
    run = EncoderRun(model, images, device_mode)
    check_count(prompts, len(run.frames))
    if embedding is not None and list(as_embedding(embedding, model).image_keys) != list(run.keys):
        raise SAMError("The embedding is not that of the images. Pass the images that were encoded.")
    second, kept = SecondLook(model, run.size, detail, options, device_mode), replace(options, logits=True)
    progress = Progress(sum(1 + len(objects) for objects in prompts))
    # Outside ComfyUI, AUTO would take the model off the GPU after every cut.
    staying = devices.stay_loaded(model.network) if device_mode == "AUTO" else contextlib.nullcontext()
    with staying, one_run(), passing(len(run.frames)):
        for index, (key, objects) in enumerate(zip(run.keys, prompts, strict=True)):
            progress.check_interrupted()
            parts: list[FramePrediction] = []
            owners: list[int] = []
            for region in dict.fromkeys(one.region for one in objects) or [None]:
                places = [place for place, one in enumerate(objects) if one.region == region]
                encoded: dict[str, Encoded] = {}
                if region is not None:
                    x1, y1, x2, y2 = region
                    seen, encoded[region] = encode_one(model, [run.frames[index][y1:y2, x1:x2]], device_mode)
                elif embedding is None:
                    run.each([key], Progress(None), encoded.__setitem__)
                with placed(model.network, device_mode, prompt_bytes([objects])) as device:
                    if region is not None:
                        part = ImagePredictor(model, encoded[region].features(seen, device), (y2 - y1, x2 - x1), kept)
                        predict = functools.partial(predict_in_region, part, region, run.size, options=kept)
                    else:
                        own = embedding is not None
                        features = features_of(embedding, index, device) if own else encoded[key].features(key, device)
                        predict = ImagePredictor(model, features, run.size, kept).predict
                    if options.candidate == "all":  # how many an object has is only known where it is alone
                        each = [(predict([objects[place]]), place) for place in places] or [(predict([]), 0)]
                        owners += [place for one, place in each for _ in one.masks]
                        parts += [one for one, _ in each]
                    else:
                        parts.append(predict([objects[place] for place in places]))
                        owners += places
            found = parts[0] if len(parts) == 1 else FramePrediction(*map(torch.cat, zip(*parts, strict=True)))
            refined, looked = second.refine(run.frames[index], [objects[place] for place in owners], found)
            worth = [-float(score) for score in refined.scores] if options.candidate == "all" else [0.0] * len(owners)
            order = sorted(range(len(owners)), key=lambda row: (owners[row], worth[row]))
            if order != list(range(len(order))):
                refined = FramePrediction(*(part[order] for part in refined))
            if report is not None:
                report(index, looked)
            take(index, refined if options.logits else refined._replace(logits=refined.logits[:0].clone()))
            progress.advance(1 + len(objects))

"""Typed prompts: which of them make one object, and their way from source pixels into the model's input."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.boxes import Boxes
from ..utils.images import resize_masks
from ..utils.marks import NO_BOXES, NO_POINTS, Marks, Name, Region
from ..utils.text import counted
from .errors import SAMError
from .geometry import Geometry, Size, Window

# SAM 2's own scale and bias for a mask used as output (`_use_mask_as_output`): 0 at one half, -10 for "not here".
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0
ABSENT_LOGIT = _MASK_BIAS


@dataclass(frozen=True)
class Prompt:
    """All prompts of one object, in pixels of the source image.

    Attributes:
        points: float `[P, 2]` (x, y), positive ones first.
        labels: int `[P]`, 1 = on the object, 0 = not on it.
        box: float `[4]` (x1, y1, x2, y2), or None.
        logits: low-resolution mask logits float32 `[1, 4h, 4w]`, or None.
        region: the part of the image that the model is to see alone, see `predict_in_region`; None: all of it.
    """

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    box: np.ndarray | None = None
    logits: Tensor | None = None
    region: Window | None = None

    @property
    def is_single_click(self) -> bool:
        """Whether this is one point and nothing else: the case in which SAM offers three candidates."""
        return len(self.points) == 1 and self.box is None and self.logits is None


def group(positive: Marks, negative: Marks, boxes: Marks) -> list[Prompt]:
    """Group the prompts of one image by the object that they belong to.

    All that name the same `object` are one (several boxes of it: the box around them), in the order in which the objects first
    appear in `positive`, `negative`, `boxes`. The others follow, grouped among themselves: with no box, all points are one
    object. With one box, it and all points are one object. With several, each is an object: a positive point belongs to the
    smallest box around it, stray positive points together make one more object; a negative point belongs to every box around
    it, a stray one to all objects. Those without a name are grouped by region before.

    Args:
        positive, negative: points of the image.
        boxes: boxes of it.

    Returns:
        One prompt per object; of those without a name boxes in their order, the object of stray points last; none where there
        is nothing.

    Raises:
        SAMError: the marks of an object have different regions.
    """
    prompts = []
    for name in _names((positive, negative, boxes)):
        own = positive.of_object(name), negative.of_object(name), boxes.of_object(name)
        regions = _regions(own)
        if len(regions) > 1:
            raise SAMError(f"The marks of object {name} have {len(regions)} different regions. Give all of them one.")
        prompts.append(replace(_prompt_of(*(marks.rows for marks in own)), region=regions[0]))
    unnamed = positive.of_object(None), negative.of_object(None), boxes.of_object(None)
    for region in _regions(unnamed):
        found = _group_unnamed(*(marks.of_region(region).rows for marks in unnamed))
        prompts += [replace(prompt, region=region) for prompt in found]
    return prompts


def _regions(given: Sequence[Marks]) -> list[Region | None]:
    """The regions that marks have, in the order in which they first appear."""
    return list(dict.fromkeys(region for marks in given for region in marks.regions))


def _names(given: Sequence[Marks]) -> list[Name]:
    """The objects that marks name, in the order in which they first appear."""
    return [name for name in dict.fromkeys(name for marks in given for name in marks.names) if name is not None]


def _prompt_of(positive: np.ndarray, negative: np.ndarray, boxes: Boxes) -> Prompt:
    """One object of everything."""
    around = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]) if len(boxes) else None
    return _prompt(positive, negative, around)


def _group_unnamed(positive: np.ndarray, negative: np.ndarray, boxes: Boxes) -> list[Prompt]:
    if len(boxes) <= 1:
        return [_prompt_of(positive, negative, boxes)] if len(positive) + len(negative) + len(boxes) else []
    owner = _smallest_box_around(positive, boxes)
    inside = _contains(boxes, negative)
    stray = ~inside.any(0)
    prompts = [_prompt(positive[owner == i], negative[inside[i] | stray], box) for i, box in enumerate(boxes)]
    if (owner < 0).any():
        prompts.append(_prompt(positive[owner < 0], negative[stray], None))
    return prompts


def _prompt(positive: np.ndarray, negative: np.ndarray, box: np.ndarray | None) -> Prompt:
    labels = np.concatenate([np.ones(len(positive), np.int32), np.zeros(len(negative), np.int32)])
    return Prompt(np.concatenate([positive, negative]), labels, box)


def _contains(boxes: Boxes, points: np.ndarray) -> np.ndarray:
    """bool `[N, P]`: whether box N contains point P, edges included."""
    x, y = points[:, 0], points[:, 1]
    x1, y1, x2, y2 = (column[:, None] for column in boxes.T)
    return (x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)


def _smallest_box_around(points: np.ndarray, boxes: Boxes) -> np.ndarray:
    """int `[P]`: index of the smallest box that contains each point, -1 where none does."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    areas = np.where(_contains(boxes, points), area[:, None], np.inf)
    return np.where(np.isfinite(areas).any(0), areas.argmin(0), -1)


def clip_boxes(boxes: Marks, size: Size) -> Marks:
    """Clip boxes to an image (H, W) and drop those with no area left: a detector that found nothing there."""
    height, width = size
    corners = np.clip(boxes.rows, 0.0, [width, height, width, height])
    return replace(boxes, rows=corners).where((corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1]))


def mask_to_logits(mask: Tensor, geometry: Geometry) -> Tensor | None:
    """A mask as SAM's mask prompt, aligned with the image inside the model's square.

    It is resized to the resized image's size, padded to the square, averaged down to the decoder's grid, and scaled to
    logits. A plain squash to the grid would misplace it on every padded image that is not square.

    Args:
        mask: `[H, W]` in 0..1, of the image's proportions.
        geometry: how the image lies in the model's input.

    Returns:
        float32 `[1, 4h, 4w]`, or None for a mask with nothing in it (LoadImage's answer for "no alpha" is one).
    """
    if not bool((mask > 0).any()):
        return None
    return on_grid(mask, geometry, geometry.grid) * _MASK_SCALE + _MASK_BIAS


def on_grid(values: Tensor, geometry: Geometry, grid: Size) -> Tensor:
    """An image's map `[H, W]` averaged over a grid (h, w) on the model's square: `[1, h, w]`, 0 in the padding."""
    resized = resize_masks(values[None], geometry.resized)
    padding = (0, geometry.side - geometry.resized[1], 0, geometry.side - geometry.resized[0])
    return F.adaptive_avg_pool2d(F.pad(resized, padding), grid)


@dataclass(frozen=True)
class PromptTensors:
    """Prompts of one shape in the model's input, as `PromptEncoder` takes them."""

    points: tuple[Tensor, Tensor] | None
    boxes: Tensor | None
    masks: Tensor | None


def to_model_input(prompts: Sequence[Prompt], geometry: Geometry, device: torch.device) -> PromptTensors:
    """Batch prompts that all have as many points, and all or none a box and logits (see `shape_of`).

    Coordinates are scaled in float64 and rounded once to float32, as `ResizeLongestSide.apply_coords` does.

    Args:
        prompts: N of them.
        geometry: how the image lies in the model's input; each axis has a scale of its own.
        device: of the tensors.
    """
    (height, width), (resized_height, resized_width) = geometry.original, geometry.resized
    scale = np.array([resized_width / width, resized_height / height])
    first = prompts[0]
    points = boxes = masks = None
    if len(first.points):
        coords = np.stack([prompt.points for prompt in prompts]) * scale
        labels = np.stack([prompt.labels for prompt in prompts])
        points = _float32(coords, device), torch.from_numpy(labels).to(device)
    if first.box is not None:
        corners = np.stack([prompt.box for prompt in prompts]).reshape(-1, 2, 2) * scale
        boxes = _float32(corners.reshape(-1, 4), device)
    if first.logits is not None:
        masks = torch.stack([prompt.logits for prompt in prompts]).to(device, torch.float32)
    return PromptTensors(points, boxes, masks)


def _float32(values: np.ndarray, device: torch.device) -> Tensor:
    """Rounded on the CPU: Apple's GPUs have no float64 to round from."""
    return torch.from_numpy(values.astype(np.float32)).to(device)


def shape_of(prompt: Prompt) -> tuple[int, bool, bool]:
    """What prompts must agree in to share a batch: padding points to equal numbers would change SAM's answer."""
    return len(prompt.points), prompt.box is not None, prompt.logits is not None


@dataclass(frozen=True)
class PromptInputs:
    """What a caller gave as prompts for B images; None where an input was not given at all.

    Attributes:
        positive, negative: the points of each image.
        boxes: the boxes of each image.
        mask: `[N, H, W]` in 0..1, one for all, one per image, or one per object in order.
        logits: `[N, 1, 4h, 4w]`, assigned like `mask`; logits, being exact, take precedence over it.
    """

    positive: Sequence[Marks] | None = None
    negative: Sequence[Marks] | None = None
    boxes: Sequence[Marks] | None = None
    mask: Tensor | None = None
    logits: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was given (something given that is empty is an answer, not nothing)."""
        return all(value is None for value in (self.positive, self.negative, self.boxes, self.mask, self.logits))


def objects_per_frame(given: PromptInputs, count: int, geometry: Geometry) -> list[list[Prompt]]:
    """Validate what was given, and group it into objects.

    Args:
        given: the prompts, `count` entries in each list.
        count: number of images B.
        geometry: how each of the images lies in the model's input.

    Returns:
        For each image its objects; none where its prompts are empty.

    Raises:
        SAMError: a point outside the image, or masks or logits of a wrong number, shape or value.
    """
    grouped = [_group_image(given, index, geometry.original) for index in range(count)]
    dense = _dense_prompts(given, grouped, geometry)
    return [[prompt for prompt in map(_with_logits, *pair) if prompt] for pair in zip(grouped, dense, strict=True)]


def _group_image(given: PromptInputs, index: int, original: Size) -> list[Prompt | None]:
    """The objects of one image; a single None, for a mask to fill, where points and boxes make none."""
    return list(group(*_marks(given, index, original))) or [None]


def named_objects(given: PromptInputs, index: int, original: Size) -> dict[Name, Prompt]:
    """The objects of one image (H, W) by name, but for masks and logits; those without a name are `#1`, `#2` and so on.

    Raises:
        SAMError: a point outside the image.
    """
    marks = _marks(given, index, original)
    prompts, names = group(*marks), _names(marks)
    names += [f"#{number}" for number in range(1, len(prompts) - len(names) + 1)]
    return dict(zip(names, prompts, strict=True))


def _marks(given: PromptInputs, index: int, original: Size) -> tuple[Marks, Marks, Marks]:
    """Positive points, negative points and boxes of one image, checked and clipped, as their regions are."""
    positive, negative = (
        _inside(points[index], original, name) if points else NO_POINTS
        for name, points in (("positive_coords", given.positive), ("negative_coords", given.negative))
    )
    boxes = clip_boxes(given.boxes[index], original) if given.boxes else NO_BOXES
    positive, negative, boxes = (
        replace(marks, regions=tuple(clip_region(region, original) for region in marks.regions))
        for marks in (positive, negative, boxes)
    )
    return positive, negative, boxes


def clip_region(region: Region | None, size: Size) -> Window | None:
    """The part of a region that lies in an image (H, W); None where that is nothing, or all of the image."""
    if region is None:
        return None
    (x1, y1, x2, y2), (height, width) = region, size
    clipped = max(0, x1), max(0, y1), min(width, x2), min(height, y2)
    is_empty = clipped[2] <= clipped[0] or clipped[3] <= clipped[1]
    return None if is_empty or clipped == (0, 0, width, height) else clipped


def _inside(points: Marks, size: Size, name: str) -> Marks:
    height, width = size
    outside = ((points.rows < 0) | (points.rows > [width, height])).any(1)
    if outside.any():
        x, y = points.rows[outside][0]
        raise SAMError(
            f"{name} has {counted(int(outside.sum()), 'point')} outside the image of {width}x{height} pixels (the first at "
            f"x={x:g}, y={y:g}). Coordinates are pixels of the source image."
        )
    return points


def _dense_prompts(given: PromptInputs, grouped: list[list[Prompt | None]], geometry: Geometry) -> list[list[Tensor | None]]:
    """Mask logits `[1, 4h, 4w]`, or None, for each object of each image."""
    if given.logits is not None:
        each = _checked_logits(given.logits, geometry)
    elif given.mask is not None:
        each = [mask_to_logits(mask, geometry) for mask in given.mask]
    else:
        each = []
    name = "logits" if given.logits is not None else "mask_prompt"
    shared = iter(_share(each, [len(objects) for objects in grouped], name))
    return [[next(shared) for _ in objects] for objects in grouped]


def _checked_logits(logits: Tensor, geometry: Geometry) -> list[Tensor]:
    expected = (1, *geometry.grid)
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[1:] != expected:
        seen = tuple(logits.shape) if isinstance(logits, Tensor) else f"of a {type(logits).__name__}"
        raise SAMError(f"logits has the shape {seen}, but this model needs (N, {', '.join(map(str, expected))}).")
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).sum())
        raise SAMError(f"logits has {counted(bad, 'NaN or infinite value')}. Connect the logits of a prediction.")
    return list(logits)


def _share(each: list[Tensor | None], objects: list[int], name: str) -> list[Tensor | None]:
    """One item per object, from one for all, one per image, or one per object."""
    if len(each) in (0, 1):
        return (each or [None]) * sum(objects)
    if len(each) == sum(objects):
        return each
    if len(each) == len(objects):
        return [item for item, count in zip(each, objects, strict=True) for _ in range(count)]
    raise SAMError(
        f"{name} has {counted(len(each), 'mask')} for {counted(len(objects), 'image')} with {counted(sum(objects), 'object')}. "
        "Connect one for all, one per image, or one per object."
    )


def _with_logits(prompt: Prompt | None, logits: Tensor | None) -> Prompt | None:
    if prompt is None:
        return None if logits is None else Prompt(logits=logits)
    return replace(prompt, logits=logits)

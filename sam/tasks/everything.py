"""Segment everything: SAM's automatic mask generator, with the reference's result and less work.

The steps are those of segment_anything's `automatic_mask_generator.py`. What is left out is what does not change the result:
masks that the predicted IoU rejects are never upsampled, nor are those that non-maximum suppression removes; of them only the
edges are, to know the box. The others are upsampled only inside the box that they can reach.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...utils.checks import one_of
from ...utils.comfy import Progress
from ...utils.images import Frames
from ...utils.regions import regions
from ..datasets.rle import encode_mask
from ..errors import SAMError
from ..geometry import Geometry, Size
from ..kernels.nms import Suppression, best_first, non_maximum_suppression
from ..kernels.upsample import Reach, axes, extents
from ..models.base import Segmenter, Wanted, optional_member
from ..models.concept import Concept
from ..placement import devices
from ..placement.devices import DeviceMode, placed
from ..prompts import Prompt
from ..store.memory import one_run, passing
from .embed import encode_one
from .found_masks import Box, FoundMask
from .predict import PROMPT_BYTES, ImagePredictor, PredictOptions
from .tiles import TILES, join_seams, tile_windows, without_other_levels

_MOST_WAITING = 512 << 20  # bytes of logits: two thousand of stock SAM's masks
_TILE_ZOOM = 2  # a tile by `auto` is half as large as the model's input: models are unsure of what is very small in it
_EDGE = 20  # pixels: a mask that ends this near to a crop's edge, but not to the image's, is cut off by it


@dataclass(frozen=True)
class AutoMaskOptions:
    """The parameters of `SamAutomaticMaskGenerator`, under its names and with its defaults; and what they decode.

    Attributes:
        hq: see `PredictOptions`.
        concept: what was taught, or None. With it every point gives one mask, the one that was taught, and not three.
        tiles: overlapping tiles that are segmented beside the image, see `TILES`; `auto`: half as large as the model's
            input, with half as many points a side, `off`: none. Unlike with crops, masks of two tiles that are parts of one
            object are joined.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    concept: Concept | None = None
    hq: bool = True
    tiles: str = "off"

    def __post_init__(self) -> None:
        one_of(self.tiles, TILES, "tiles")
        for name in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor"):
            if getattr(self, name) < 1:
                raise SAMError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        if not 0 <= self.crop_n_layers <= 5:
            raise SAMError(f"crop_n_layers is {self.crop_n_layers}: it must be 0 to 5 (layer n has 4^n crops).")


PRESETS: dict[str, AutoMaskOptions] = {
    "few and large": AutoMaskOptions(points_per_side=16, pred_iou_thresh=0.9, box_nms_thresh=0.5, min_mask_region_area=100),
    "balanced": AutoMaskOptions(),
    # What segment_anything's automatic_mask_generator_example.ipynb uses to find more masks.
    "many and small": AutoMaskOptions(
        pred_iou_thresh=0.86,
        stability_score_thresh=0.92,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
    ),
}
"""Parameters by what they find; "balanced" is SAM's defaults."""


def preset_options(name: str, model: Segmenter) -> AutoMaskOptions:
    """The parameters of a preset for a model; "balanced" is what the generator of its own family has by default.

    Args:
        name: one of `PRESETS`.
        model: see `load_model`, or `as_segmenter` for another pack's. SAM 2's `SAM2AutomaticMaskGenerator` has a
            pred_iou_thresh of 0.8.

    Raises:
        SAMError: there is no such preset, or not a model.
    """
    options = PRESETS[one_of(name, [*PRESETS], "preset")]
    own = optional_member(model, "pred_iou_thresh") if name == "balanced" else None
    return options if own is None else replace(options, pred_iou_thresh=own)


def as_dicts(found: Sequence[FoundMask], size: Size, mask_format: str = "binary_mask") -> list[dict[str, Any]]:
    """Masks in the form of `SamAutomaticMaskGenerator.generate`, for what takes its result (supervision's `from_sam`).

    Args:
        found: the masks of one image.
        size: (H, W) of the image.
        mask_format: of `segmentation`: `binary_mask`, bool `[H, W]`, or `coco_rle`, COCO's run-length encoding.

    Returns:
        For each mask, in the order of `found`: `segmentation`, `area`, `bbox` and `crop_box` [x, y, width, height] (of `bbox`
        as there, from the first to the last pixel: one less than the mask is wide and high), `predicted_iou`, `point_coords`
        [[x, y]], `stability_score`.

    Raises:
        SAMError: there is no such `mask_format`.
    """
    one_of(mask_format, ("binary_mask", "coco_rle"), "mask_format")
    encode = encode_mask if mask_format == "coco_rle" else np.asarray
    return [
        {
            "segmentation": encode(one.full(size)),
            "area": one.area,
            "bbox": _sides(one.box),
            "predicted_iou": one.score,
            "point_coords": [list(one.point)],
            "stability_score": one.stability,
            "crop_box": _sides(one.crop),
        }
        for one in found
    ]


def _sides(box: Box) -> list[int]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def segment_everything(
    model: Segmenter,
    image: np.ndarray,
    options: AutoMaskOptions,
    region: np.ndarray | None = None,
    device_mode: DeviceMode = "AUTO",
) -> list[FoundMask]:
    """Every mask that a grid of clicks finds in an image, duplicates removed.

    Args:
        model: see `load_model`, or `as_segmenter` for another pack's.
        image: uint8 `[H, W, 3]`.
        options: see `AutoMaskOptions`.
        region: bool `[H, W]`; only grid points inside it are clicked. None: everywhere.
        device_mode: see `placed`.

    Returns:
        The masks, largest first; an empty mask is never listed.
    """
    return segment_every_image(model, [image], options, [region], device_mode)[0]


def segment_every_image(
    model: Segmenter,
    images: Sequence[np.ndarray],
    options: AutoMaskOptions,
    regions: Sequence[np.ndarray | None],
    device_mode: DeviceMode = "AUTO",
) -> list[list[FoundMask]]:
    """`segment_everything` for several images, with a region or None for each.

    Embeddings of all their crops share the cache: those that do not fit are encoded again by the next run, the others not.
    """
    found: list[list[FoundMask]] = []
    everything_each(model, images, options, regions, lambda _, masks: found.append(masks), device_mode)
    return found


@torch.no_grad()
def everything_each(
    model: Segmenter,
    images: Sequence[np.ndarray],
    options: AutoMaskOptions,
    regions: Sequence[np.ndarray | None],
    take: Callable[[int, list[FoundMask]], None],
    device_mode: DeviceMode = "AUTO",
) -> None:
    """`segment_every_image`, with the masks of each image handed on as they come; what `take` raises ends the work.

    Args:
        take: gets the index and the masks of each image, in order.
        model, options, device_mode: see `segment_everything`.
        images: uint8 `[H, W, 3]`.
        regions: of each image, bool `[H, W]` or None.
    """
    sizes = [images.size] * len(images) if isinstance(images, Frames) else [image.shape[:2] for image in images]
    generator = _MaskGenerator(model, options, device_mode)
    generator.progress = Progress(sum(map(generator.batches, sizes, regions)))
    staying = devices.stay_loaded(model.network) if device_mode == "AUTO" else contextlib.nullcontext()
    with staying, one_run(), passing(len(images)):
        for index, (image, region) in enumerate(zip(images, regions, strict=True)):
            take(index, generator.generate(image, region))


class _MaskGenerator:
    """segment_anything's `SamAutomaticMaskGenerator`: a model, how it looks for masks, where it runs, and the progress."""

    def __init__(self, model: Segmenter, options: AutoMaskOptions, device_mode: DeviceMode) -> None:
        self.model, self.options, self.device_mode, self.progress = model, options, device_mode, Progress(None)
        self.above = options.pred_iou_thresh if options.pred_iou_thresh > 0 else -math.inf

    def batches(self, size: Size, region: np.ndarray | None) -> int:
        """How many batches of points an image (H, W) has in all its crops and tiles."""
        every = _points_of_crops(size, self.options, region) + self._points_of_tiles(size, region)
        return sum(math.ceil(len(points) / self.options.points_per_batch) for _, points in every)

    def generate(self, image: np.ndarray, region: np.ndarray | None) -> list[FoundMask]:
        """The masks of an image uint8 `[H, W, 3]`, largest first; see `segment_everything`."""
        options, crops = self.options, _points_of_crops(image.shape[:2], self.options, region)
        found = [mask for crop, points in crops if len(points) for mask in self._of_crop(image, crop, points)]
        if len(crops) > 1:
            smallest_first = [1 / ((m.crop[2] - m.crop[0]) * (m.crop[3] - m.crop[1])) for m in found]
            found = _without_duplicates(found, smallest_first, options.crop_nms_thresh)
        found = self._with_tiles(image, region, found)
        if options.min_mask_region_area > 0:
            found = _without_small_regions(found, image.shape[:2], options)
        return sorted(found, key=lambda mask: -mask.area)

    def _points_of_tiles(self, size: Size, region: np.ndarray | None) -> list[tuple[Box, np.ndarray]]:
        """Each tile of an image, and its points."""
        if self.options.tiles == "off":
            return []
        is_auto, count = self.options.tiles == "auto", self.options.points_per_side
        windows = tile_windows(size, self.options.tiles, self.model.geometry(size).side // _TILE_ZOOM)
        count = max(1, count // _TILE_ZOOM) if is_auto else count
        return [(window, _points(window, count, region)) for window in windows]

    def _with_tiles(self, image: np.ndarray, region: np.ndarray | None, found: list[FoundMask]) -> list[FoundMask]:
        """What was found in an image, and what is found in its tiles, each object once."""
        tiles = self._points_of_tiles(image.shape[:2], region)
        parts = [mask for tile, points in tiles if len(points) for mask in self._of_crop(image, tile, points, is_tile=True)]
        if not tiles:
            return found
        joined = join_seams(parts, image.shape[:2])
        return without_other_levels([*joined, *found], self.options.crop_nms_thresh)

    def _of_crop(self, image: np.ndarray, crop: Box, points: np.ndarray, is_tile: bool = False) -> Iterator[FoundMask]:
        """The stable masks of a crop's points `[P, 2]` that non-maximum suppression leaves; others are never rendered.

        Those that the crop cuts off are left out, but for a tile's.
        """
        model, options, (x, y, right, bottom) = self.model, self.options, crop
        size = bottom - y, right - x
        key, encoded = encode_one(model, [image[y:bottom, x:right]], self.device_mode)
        upsampler = _Upsampler(model.geometry(size), model.mask_threshold, options)
        label, waiting = np.ones(1, np.int32), []
        with placed(model.network, self.device_mode, PROMPT_BYTES * min(len(points), options.points_per_batch)) as device:
            ready = ImagePredictor(model, encoded.features(key, device), size, PredictOptions(concept=options.concept))
            wanted = Wanted(ready.concept is None, self.above, options.hq, concept=ready.concept)
            for start in range(0, len(points), options.points_per_batch):
                self.progress.check_interrupted()
                batch = points[start : start + options.points_per_batch]
                decoded = ready.decode([Prompt(point[None], label) for point in batch], wanted)
                kept = decoded.scores > self.above
                clicks = batch[decoded.rows[kept.nonzero()[:, 0]].tolist()].tolist()
                outlined = upsampler.outlined(decoded.logits[kept].cpu())
                for mask, score, click in zip(outlined, decoded.scores[kept].tolist(), clicks, strict=True):
                    if mask is not None and (is_tile or not _is_cut_off(mask.box, crop, image.shape[:2])):
                        waiting.append(_Candidate(mask.box, score, tuple(click), mask))
                if sum(candidate.waiting_bytes for candidate in waiting) > _MOST_WAITING:
                    for candidate in waiting:
                        candidate.render(upsampler)
                    waiting = [candidate for candidate in waiting if candidate.rendered is not None]
                self.progress.advance()
        boxes = torch.tensor([candidate.box for candidate in waiting], dtype=torch.float32).reshape(-1, 4)
        suppression = Suppression(boxes, options.box_nms_thresh)
        for index in best_first(torch.tensor([candidate.score for candidate in waiting])):
            one = waiting[index]
            if suppression.is_removed(index):
                continue
            one.render(upsampler)
            if one.rendered is not None:
                suppression.keep(index)
                left, top, *end = one.box
                box, click = (left + x, top + y, end[0] + x, end[1] + y), (one.point[0] + x, one.point[1] + y)
                yield FoundMask(one.rendered.bits, box, one.score, one.rendered.stability, click, crop)


def _points_of_crops(size: Size, options: AutoMaskOptions, region: np.ndarray | None) -> list[tuple[Box, np.ndarray]]:
    each = (
        (crop, int(options.points_per_side / options.crop_n_points_downscale_factor**n)) for crop, n in _crops(size, options)
    )
    return [(crop, _points(crop, count, region)) for crop, count in each]


def _crops(size: Size, options: AutoMaskOptions) -> Iterator[tuple[Box, int]]:
    """The image, then for layer n 2^n by 2^n overlapping crops of it: (x1, y1, x2, y2) and the layer."""
    height, width = size
    yield (0, 0, width, height), 0
    for layer in range(1, options.crop_n_layers + 1):
        count = 2**layer
        overlap = int(options.crop_overlap_ratio * min(size) * (2 / count))
        wide, high = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        for column, row in product(range(count), repeat=2):
            x, y = (wide - overlap) * column, (high - overlap) * row
            if x < width and y < height:  # a side of few pixels has fewer crops than the layer asks for
                yield (x, y, min(x + wide, width), min(y + high, height)), layer


def _points(crop: Box, count: int, region: np.ndarray | None) -> np.ndarray:
    """The points (x, y) `[P, 2]` of a grid with `count` a side in a crop, in the crop's own pixels, row by row."""
    if not count:
        return np.zeros((0, 2))
    x1, y1, x2, y2 = crop
    places = np.linspace(1 / (2 * count), 1 - 1 / (2 * count), count)
    points = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2) * (x2 - x1, y2 - y1)
    if region is None:
        return points
    columns, rows = (points + np.array([x1, y1])).astype(int).T
    return points[region[rows, columns]]


@dataclass
class _Candidate:
    """A mask that waits for non-maximum suppression, in the crop's pixels; rendered only when it is needed.

    Attributes:
        outlined: what it is rendered from; None once it is.
        rendered: the mask; None before, and for one that is not stable.
    """

    box: Box
    score: float
    point: tuple[float, float]
    outlined: "_Outlined | None"
    rendered: "_Rendered | None" = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes of its logits."""
        return self.outlined.low.nbytes if self.outlined else 0

    def render(self, upsampler: "_Upsampler") -> None:
        """Upsample it, unless that is done."""
        if self.outlined is not None:
            self.rendered, self.outlined = upsampler.render(self.outlined), None


class _Upsampler:
    """Boxes and masks from the low-resolution logits of one crop, at its full size."""

    def __init__(self, geometry: Geometry, threshold: float, options: AutoMaskOptions) -> None:
        self.threshold, self.options = threshold, options
        self.rows, self.columns = axes(geometry)

    def outlined(self, logits: Tensor) -> Iterator["_Outlined | None"]:
        """Low-resolution logits `[n, 4h, 4w]` -> each mask, outlined; None if it is empty."""
        reach = logits.numpy() > self.threshold - abs(self.options.stability_score_offset)
        rows, columns = reach.any(2), reach.any(1)
        for low, row, column in zip(logits, rows, columns, strict=True):
            down, across = self.rows.reached_from(row), self.columns.reached_from(column)
            yield self._outlined(low[down.source, across.source], down, across) if down and across else None

    def _outlined(self, low: Tensor, down: Reach, across: Reach) -> "_Outlined | None":
        box = extents(low, down, across, self.threshold)
        return _Outlined(box, low.clone(), down, across) if box else None

    def render(self, mask: "_Outlined") -> "_Rendered | None":
        """The whole of a mask; None if it is not stable."""
        offset = self.options.stability_score_offset
        full = mask.down.pixels(mask.across.pixels(mask.low.T).T).numpy()
        union = _count(full, self.threshold - offset)
        stability = _count(full, self.threshold + offset) / union if union else 0.0
        if stability < self.options.stability_score_thresh:
            return None
        x1, y1, x2, y2 = mask.box
        top, left = mask.down.first, mask.across.first
        inside = full[y1 - top : y2 + 1 - top, x1 - left : x2 + 1 - left] > self.threshold
        return _Rendered(np.packbits(inside), stability)


class _Outlined(NamedTuple):
    """A mask's box, and the logits that reach it, with the pixels that they reach."""

    box: Box
    low: Tensor
    down: Reach
    across: Reach


class _Rendered(NamedTuple):
    """A mask's pixels inside its box (see `FoundMask.bits`) and its stability."""

    bits: np.ndarray
    stability: float


def _count(pixels: np.ndarray, threshold: float) -> int:
    return int(np.count_nonzero(pixels > threshold))


def _is_cut_off(box: Box, crop: Box, size: Size) -> bool:
    """Whether a box (in the crop's pixels) ends at an edge of the crop that is not an edge of the image."""
    x, y = crop[:2]
    placed_box = (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
    image = (0, 0, size[1], size[0])
    near = zip(placed_box, crop, image, strict=True)
    return any(abs(edge - cut) <= _EDGE and abs(edge - end) > _EDGE for edge, cut, end in near)


def _without_duplicates(masks: list[FoundMask], scores: list[float], threshold: float) -> list[FoundMask]:
    boxes = torch.tensor([mask.box for mask in masks], dtype=torch.float32).reshape(-1, 4)
    return [masks[i] for i in non_maximum_suppression(boxes, torch.tensor(scores), threshold)]


def _without_small_regions(masks: list[FoundMask], size: Size, options: AutoMaskOptions) -> list[FoundMask]:
    """Fill small holes, drop small islands, and remove what has become a duplicate, untouched masks first."""
    cleaned = [_cleaned(mask, size, options.min_mask_region_area) for mask in masks]
    untouched = [float(new is old) for new, old in zip(cleaned, masks, strict=True)]
    return _without_duplicates(cleaned, untouched, max(options.box_nms_thresh, options.crop_nms_thresh))


def _cleaned(found: FoundMask, size: Size, area: int) -> FoundMask:
    mask, filled = remove_small_regions(found.full(size), area, holes=True)
    mask, dropped = remove_small_regions(mask, area, holes=False)
    if not (filled or dropped):
        return found
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))
    return replace(found, bits=np.packbits(mask[box[1] : box[3] + 1, box[0] : box[2] + 1]), box=box)


def remove_small_regions(mask: np.ndarray, area: int, holes: bool) -> tuple[np.ndarray, bool]:
    """Fill holes, or drop islands, of fewer than `area` pixels (8-connected); the largest island always stays.

    segment_anything's `remove_small_regions`, without OpenCV.

    Args:
        mask: bool `[H, W]`.

    Returns:
        The mask, and whether it was changed.
    """
    labels, sizes = regions(~mask if holes else mask, True, "min_mask_region_area")
    small = sizes < area
    small[0] = False
    if not small.any():
        return mask, False
    if holes:
        return mask | small[labels], True
    if small[1:].all():
        small[1 + sizes[1:].argmax()] = False
    return mask & ~small[labels], True

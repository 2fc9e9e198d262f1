"""Segment everything: SAM's automatic mask generator, with the reference's result and less work.

The steps are those of segment_anything's `automatic_mask_generator.py`. What is left out is what does not change the result:
masks that the predicted IoU rejects are never upsampled, and the others only inside the box that they can reach.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from ..utils.comfy import Progress
from .decode import FrameDecoder
from .device import DeviceMode, placed
from .embedding import SAMEmbedding, Size
from .encode import encode
from .errors import SAMError
from .nms import non_maximum_suppression
from .prompts import Prompt

Box = tuple[int, int, int, int]
_EDGE = 20  # pixels: a mask that ends this near to a crop's edge, but not to the picture's, is cut off by it


@dataclass(frozen=True)
class AutoMaskOptions:
    """The parameters of `SamAutomaticMaskGenerator`, under its names and with its defaults."""

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

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor"):
            if getattr(self, name) < 1:
                raise SAMError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        if not 0 <= self.crop_n_layers <= 5:
            raise SAMError(f"crop_n_layers is {self.crop_n_layers}: it must be 0 to 5 (layer n has 4^n crops).")


@dataclass(frozen=True)
class FoundMask:
    """One mask, kept only where it has anything.

    Attributes:
        bits: uint8, the mask inside its box, row by row, eight pixels to a byte: thousands wait for the suppression.
        box: (x1, y1, x2, y2) in the picture, the last row and column included, as the reference has it.
        score: predicted IoU.
        stability: IoU of the masks at a higher and a lower threshold.
        point: (x, y) that asked for it.
        crop: (x1, y1, x2, y2) of the crop that it was found in.
    """

    bits: np.ndarray
    box: Box
    score: float
    stability: float
    point: tuple[float, float]
    crop: Box

    @property
    def pixels(self) -> np.ndarray:
        """The mask inside its box, bool `[h, w]`."""
        x1, y1, x2, y2 = self.box
        height, width = y2 - y1 + 1, x2 - x1 + 1
        return np.unpackbits(self.bits, count=height * width).astype(bool).reshape(height, width)

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.unpackbits(self.bits).sum())  # the last byte is filled up with zeros

    def full(self, size: Size) -> np.ndarray:
        """The mask bool `[H, W]` in a picture of that size."""
        mask = np.zeros(size, dtype=bool)
        x1, y1, x2, y2 = self.box
        mask[y1 : y2 + 1, x1 : x2 + 1] = self.pixels
        return mask


@torch.no_grad()
def segment_everything(
    model: Sam,
    picture: np.ndarray,
    options: AutoMaskOptions,
    region: np.ndarray | None = None,
    device_mode: DeviceMode = "AUTO",
) -> list[FoundMask]:
    """Every mask that a grid of clicks finds in a picture, duplicates removed.

    Args:
        model: ours or any `segment_anything` Sam.
        picture: uint8 `[H, W, 3]`.
        options: see `AutoMaskOptions`.
        region: bool `[H, W]`; only grid points inside it are clicked. None: everywhere.
        device_mode: see `placed`.

    Returns:
        The masks, largest first; an empty mask is never listed.
    """
    size: Size = picture.shape[:2]
    crops = [(crop, _points(crop, layer, options, region)) for crop, layer in _crops(size, options)]
    progress = Progress(sum(math.ceil(len(points) / options.points_per_batch) for _, points in crops))
    found: list[FoundMask] = []
    for crop, points in crops:
        if len(points):
            found += _segment_crop(model, picture, crop, points, options, progress, device_mode)
    if len(crops) > 1:
        smallest_first = [1 / ((m.crop[2] - m.crop[0]) * (m.crop[3] - m.crop[1])) for m in found]
        found = _without_duplicates(found, smallest_first, options.crop_nms_thresh)
    if options.min_mask_region_area > 0:
        found = _without_small_regions(found, size, options)
    return sorted(found, key=lambda mask: -mask.area)


def _crops(size: Size, options: AutoMaskOptions) -> Iterator[tuple[Box, int]]:
    """The picture, then for layer n 2^n by 2^n overlapping crops of it: (x1, y1, x2, y2) and the layer."""
    height, width = size
    yield (0, 0, width, height), 0
    for layer in range(1, options.crop_n_layers + 1):
        count = 2**layer
        overlap = int(options.crop_overlap_ratio * min(size) * (2 / count))
        wide, high = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        for column, row in product(range(count), repeat=2):
            x, y = (wide - overlap) * column, (high - overlap) * row
            yield (x, y, min(x + wide, width), min(y + high, height)), layer


def _points(crop: Box, layer: int, options: AutoMaskOptions, region: np.ndarray | None) -> np.ndarray:
    """The grid's points (x, y) `[P, 2]` in a crop, in the crop's own pixels, row by row."""
    count = int(options.points_per_side / options.crop_n_points_downscale_factor**layer)
    if not count:
        return np.zeros((0, 2))
    x1, y1, x2, y2 = crop
    places = np.linspace(1 / (2 * count), 1 - 1 / (2 * count), count)
    points = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2) * (x2 - x1, y2 - y1)
    if region is None:
        return points
    columns, rows = (points + np.array([x1, y1])).astype(int).T
    return points[region[rows, columns]]


def _segment_crop(
    model: Sam,
    picture: np.ndarray,
    crop: Box,
    points: np.ndarray,
    options: AutoMaskOptions,
    progress: Progress,
    device_mode: DeviceMode,
) -> list[FoundMask]:
    x1, y1, x2, y2 = crop
    embedding = encode(model, [np.ascontiguousarray(picture[y1:y2, x1:x2])], device_mode)
    upsampler = _Upsampler(embedding, model)
    found: list[FoundMask] = []
    with placed(model, device_mode) as device:
        frames = FrameDecoder(model, embedding, device, model.mask_threshold)
        for start in range(0, len(points), options.points_per_batch):
            progress.check_interrupted()
            batch = points[start : start + options.points_per_batch]
            found += _segment_batch(frames, batch, upsampler, options)
            progress.advance()
    found = [replace(mask, crop=crop) for mask in found if not _is_cut_off(mask.box, crop, picture.shape[:2])]
    found = _without_duplicates(found, [mask.score for mask in found], options.box_nms_thresh)
    return [_moved(mask, x1, y1) for mask in found]


def _segment_batch(
    frames: FrameDecoder, points: np.ndarray, upsampler: "_Upsampler", options: AutoMaskOptions
) -> list[FoundMask]:
    label = np.ones(1, np.int32)
    candidates = slice(1, None) if frames.model.mask_decoder.num_mask_tokens > 1 else slice(None)
    above = options.pred_iou_thresh if options.pred_iou_thresh > 0 else -math.inf
    logits, scores, rows = frames.run(0, [Prompt(point[None], label) for point in points], candidates, above)
    kept = scores > above
    owners = rows[kept.nonzero()[:, 0]].tolist()
    found = []
    for owner, mask, score in zip(
        owners, upsampler.masks(logits[kept].cpu(), frames.threshold, options), scores[kept], strict=True
    ):
        if mask is not None:
            found.append(replace(mask, score=score, point=(float(points[owner][0]), float(points[owner][1]))))
    return found


class _Upsampler:
    """`Sam.postprocess_masks` for one mask at a time, only where it can be above a threshold.

    Both of its bilinear resizes are one matrix per axis, and each full-size value is a convex combination of low-resolution
    ones: outside the box of low-resolution logits above a threshold, no full-size one is.
    """

    def __init__(self, embedding: SAMEmbedding, model: Sam) -> None:
        side, grid = model.image_encoder.img_size, model.prompt_encoder.mask_input_size
        inside, original = embedding.input_size, embedding.original_size
        self.rows, self.columns = (
            _Axis((_resize_matrix(inside[axis], original[axis]) @ _resize_matrix(grid[axis], side)[: inside[axis]]).float())
            for axis in (0, 1)
        )

    def masks(self, logits: Tensor, threshold: float, options: AutoMaskOptions) -> Iterator[FoundMask | None]:
        """Low-resolution logits `[n, 4h, 4w]` -> each mask with its box and stability; None if it is empty or unstable."""
        reach = logits > threshold - abs(options.stability_score_offset)
        rows, columns = reach.any(2).numpy(), reach.any(1).numpy()
        for low, row, column in zip(logits, rows, columns, strict=True):
            yield self._mask(low, row, column, threshold, options) if row.any() else None

    def _mask(
        self, low: Tensor, rows: np.ndarray, columns: np.ndarray, threshold: float, options: AutoMaskOptions
    ) -> FoundMask | None:
        offset = options.stability_score_offset
        down, across = self.rows.reached_from(rows), self.columns.reached_from(columns)
        if down is None or across is None:
            return None
        full = down.matrix @ low[down.source, across.source] @ across.matrix.T
        union = int((full > threshold - offset).count_nonzero())
        stability = int((full > threshold + offset).count_nonzero()) / union if union else 0.0
        if stability < options.stability_score_thresh:
            return None
        pixels = (full > threshold).numpy()
        if not pixels.any():
            return None
        y, x = (np.flatnonzero(pixels.any(axis))[[0, -1]] for axis in (1, 0))
        box = (across.start + int(x[0]), down.start + int(y[0]), across.start + int(x[1]), down.start + int(y[1]))
        return FoundMask(np.packbits(pixels[y[0] : y[1] + 1, x[0] : x[1] + 1]), box, 0.0, stability, (0.0, 0.0), box)


class _Reach(NamedTuple):
    """Full-size pixels from `start` on, and the part of an axis' matrix that makes them from the `source` logits."""

    start: int
    source: slice
    matrix: Tensor


class _Axis:
    """One axis of the resize: its matrix float32 `[full, low]`, and which low-resolution logits reach which pixels."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        taken = (matrix != 0).numpy()
        self.first_tap, self.last_tap = taken.argmax(1), taken.shape[1] - 1 - taken[:, ::-1].argmax(1)
        self.reaches = taken.any(0)
        self.first, self.last = taken.argmax(0), taken.shape[0] - 1 - taken[::-1].argmax(0)

    def reached_from(self, sources: np.ndarray) -> _Reach | None:
        """The pixels between the first and the last that the given logits (bool) reach; None if they reach none."""
        indices = np.flatnonzero(sources & self.reaches)
        if not len(indices):
            return None
        first, last = int(self.first[indices[0]]), int(self.last[indices[-1]])
        source = slice(int(self.first_tap[first]), int(self.last_tap[last]) + 1)
        return _Reach(first, source, self.matrix[first : last + 1, source])


def _resize_matrix(count: int, wanted: int) -> Tensor:
    """`F.interpolate(mode="bilinear", align_corners=False)` along one axis, as a matrix float64 `[wanted, count]`."""
    places = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * (count / wanted) - 0.5).clamp(min=0)
    first = places.floor().long().clamp(max=count - 1)
    share = places - first
    matrix = torch.zeros(wanted, count, dtype=torch.float64)
    row = torch.arange(wanted)
    matrix[row, first] += 1 - share
    matrix[row, (first + 1).clamp(max=count - 1)] += share
    return matrix


def _is_cut_off(box: Box, crop: Box, size: Size) -> bool:
    """Whether a box (in the crop's pixels) ends at an edge of the crop that is no edge of the picture."""
    x, y = crop[:2]
    placed_box = (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
    picture = (0, 0, size[1], size[0])
    near = zip(placed_box, crop, picture, strict=True)
    return any(abs(edge - cut) <= _EDGE and abs(edge - end) > _EDGE for edge, cut, end in near)


def _moved(mask: FoundMask, x: int, y: int) -> FoundMask:
    return replace(
        mask,
        box=(mask.box[0] + x, mask.box[1] + y, mask.box[2] + x, mask.box[3] + y),
        point=(mask.point[0] + x, mask.point[1] + y),
    )


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
    from scipy import ndimage  # ComfyUI's own requirement; only this option needs it

    regions, count = ndimage.label(~mask if holes else mask, structure=np.ones((3, 3)))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    small = sizes < area
    if not small.any():
        return mask, False
    if holes:
        return mask | np.isin(regions, np.flatnonzero(small) + 1), True
    large = np.flatnonzero(~small) if not small.all() else [int(sizes.argmax())]
    return np.isin(regions, np.asarray(large) + 1), True

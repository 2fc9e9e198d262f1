"""A data set for people to look at: contact sheets of its images with their masks, and the objects that were found worst."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...utils.boxes import tight_box
from ...utils.files import whole
from ...utils.overlay import captioned, paint_masks
from ...utils.text import counted
from ..errors import SAMError
from .objects import LabeledMask
from .reading import DataSet
from .score import Pair

_COLUMNS, _ROWS = 4, 3
_CELL = 320, 240  # pixels of an image on a sheet: width, height
_CAPTION = 100  # characters, two or three lines
_GROUND = 40, 40, 40
_MARGIN = 0.3  # of an object's sides, shown around it
_LEAST_MARGIN = 8  # pixels
_QUALITY = 90
_NAME = re.compile(r"review_\d{4,}\.jpg")


def write_review(data: DataSet, folder: Path) -> int:
    """Write the images of a data set with their masks as contact sheets `review_0001.jpg` and so on, of twelve images each.

    One image and one sheet are in memory at a time. An image that cannot be read is a gray cell with the reason. Sheets of an
    earlier call in the folder are replaced.

    Returns:
        The number of sheets.

    Raises:
        SAMError: a file cannot be written.
    """
    each, written = _COLUMNS * _ROWS, set()
    for first in range(0, len(data.names), each):
        cells = [_reviewed(data, index) for index in range(first, min(first + each, len(data.names)))]
        path = folder / f"review_{first // each + 1:04}.jpg"
        _save(cells, _COLUMNS, path)
        written.add(path.name)
    for path in list(folder.glob("review_*.jpg")):
        if _NAME.fullmatch(path.name) and path.name not in written:
            path.unlink(missing_ok=True)
    return len(written)


def write_worst(found: DataSet, truth: DataSet, worst: Sequence[Pair], path: Path) -> None:
    """Write objects as rows of a JPEG: the image around the object, its true mask, and the one that was found.

    Args:
        found, truth, worst: see `score`.
        path: of the file.

    Raises:
        SAMError: the file cannot be written, or what `DataSet.read` raises.
    """
    cells = []
    for pair in worst:
        pixels, labeled = truth.read(pair.image)
        wanted = labeled.objects[pair.wanted]
        masks = [wanted.mask]
        if pair.found is not None:
            masks.append(found.read(pair.found_image).labeled.objects[pair.found].mask)
        rows, columns = _around(np.logical_or.reduce(masks))
        shown = [masks[0], masks[1] if len(masks) > 1 else np.zeros_like(masks[0])]
        captions = f"{wanted.label}: {labeled.file_name}", "true", f"found, IoU {pair.iou:.2f}"
        for mask, caption in zip((np.zeros_like(masks[0]), *shown), captions, strict=True):
            cells.append(_cell(pixels[rows, columns], [mask[rows, columns]], caption))
    _save(cells, 3, path)


def _around(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a mask's box with a margin."""
    x, y, width, height = (int(side) for side in (tight_box(mask) or {}).values())
    margin = max(_LEAST_MARGIN, round(_MARGIN * max(width, height)))
    return slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin)


def _reviewed(data: DataSet, index: int) -> Image.Image:
    try:
        pixels, labeled = data.read(index)
    except SAMError as error:
        return _cell(np.full((_CELL[1], _CELL[0], 3), _GROUND, np.uint8), [], f"{data.names[index]}: {error}")
    return _cell(pixels, _masks(labeled.objects), f"{data.names[index]}: {counted(len(labeled.objects), 'object')}")


def _masks(objects: Sequence[LabeledMask]) -> list[np.ndarray]:
    return [one.mask for one in objects]


def _cell(pixels: np.ndarray, masks: Sequence[np.ndarray], caption: str) -> Image.Image:
    """An image in its place, as large as it fits; of a mask, what is left of it at that size, and a pixel at least."""
    height, width = pixels.shape[:2]
    scale = min(_CELL[0] / width, _CELL[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST))
    inside = []
    for mask in masks:
        shares = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX))
        inside.append(shares >= min(0.5, float(shares.max())) if shares.any() else np.zeros(shares.shape, bool))
    painted = paint_masks(small, np.array(inside).reshape(-1, *small.shape[:2]))
    cell = Image.new("RGB", _CELL, _GROUND)
    cell.paste(Image.fromarray(painted), ((_CELL[0] - size[0]) // 2, (_CELL[1] - size[1]) // 2))
    return captioned(cell, caption[:_CAPTION])


def _save(cells: Sequence[Image.Image], columns: int, path: Path) -> None:
    height = max(cell.height for cell in cells)
    sheet = Image.new("RGB", (_CELL[0] * min(columns, len(cells)), height * -(-len(cells) // columns)), _GROUND)
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % columns * _CELL[0], index // columns * height))
    with whole(path) as part:
        sheet.save(part, format="JPEG", quality=_QUALITY)

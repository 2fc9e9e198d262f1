"""Masks as run-length encodings of COCO, compressed as `pycocotools.mask.encode` compresses them."""

from typing import Any

import numpy as np

_MOST_CHARACTERS = 7  # of a run: 5 bits each, and no image has more than 2^34 pixels


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask bool `[H, W]` as `{"size": [H, W], "counts": text}`, exactly.

    Source: `rleEncode` and `rleToString` in cocoapi's `common/maskApi.c`.
    """
    height, width = mask.shape
    return {"size": [height, width], "counts": _compressed(runs(mask))}


def runs(mask: np.ndarray) -> np.ndarray:
    """Lengths int64 of the runs of a mask bool `[H, W]`, column by column, the first one outside the mask (it may be 0)."""
    columns = np.flatnonzero(mask.any(0))
    first, last = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
    height = len(mask)
    flat = mask[:, first:last].T.reshape(-1)  # nothing begins or ends in the other columns
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0] if len(flat) and flat[0] else [], changes]) + first * height
    ends_inside = len(starts) % 2 == 1
    if ends_inside:
        starts = np.append(starts, last * height)
    if len(starts) and starts[-1] == mask.size:
        starts = starts[:-1]
    return np.diff(np.concatenate([[0], starts, [mask.size]])).astype(np.int64)


def _compressed(counts: np.ndarray) -> str:
    """Each run as its difference from the one before last, in groups of 5 bits, lowest first, offset to printable text."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    characters = np.zeros((len(values), _MOST_CHARACTERS), np.uint8)
    used = np.zeros(characters.shape, bool)
    going = np.ones(len(values), bool)
    for place in range(_MOST_CHARACTERS):
        low = values & 0x1F
        values >>= 5
        more = np.where(low & 0x10, values != -1, values != 0)
        characters[:, place], used[:, place] = low + 0x20 * more + 48, going
        going &= more
    return characters[used].tobytes().decode("ascii")

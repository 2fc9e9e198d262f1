"""Masks as run-length encodings of COCO, compressed as `pycocotools.mask.encode` compresses them."""

from typing import Any

import numpy as np

from ..errors import SAMError

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


def decode_mask(coded: dict[str, Any]) -> np.ndarray:
    """The mask bool `[H, W]` of a run-length encoding of COCO, whose counts are a text, as of `encode_mask`, or a list.

    Source: `rleFrString` and `rleDecode` in cocoapi's `common/maskApi.c`.

    Raises:
        SAMError: it is of another form, or its runs are not those of an image of its size.
    """
    try:
        height, width = (int(side) for side in coded["size"])
        counts = coded["counts"]
        lengths = _expanded(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, np.int64).reshape(-1)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SAMError(f"a run-length encoding is not one of COCO: {type(error).__name__} {error}.") from error
    if height < 0 or width < 0 or (lengths < 0).any() or lengths.sum() != height * width:
        seen = f"{int(lengths.sum())} pixels for an image of {width}x{height}"
        raise SAMError(f"a run-length encoding has {seen}: the file is damaged, or its masks are of another image.")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T


def _expanded(text: str | bytes) -> np.ndarray:
    """The runs of a compressed text: groups of 5 bits, each but the first three runs a difference from the one before last."""
    groups = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    if not len(groups):
        return groups
    if (groups < 0).any() or (groups > 63).any() or groups[-1] & 0x20:
        raise ValueError("its text has other characters")
    ends = np.flatnonzero(groups & 0x20 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((groups & 0x1F) << (5 * place), starts)
    negative = groups[ends] & 0x10 > 0
    values -= np.where(negative, 1 << (5 * (ends - starts + 1)), 0)
    for index in range(3, len(values)):
        values[index] += values[index - 2]
    return values

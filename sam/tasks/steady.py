"""Masks of a film made steady: short gaps of an object are filled, and short appearances removed."""

import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from ..geometry import Size


def steady(
    film: Sequence[np.ndarray], size: Size, decided: Sequence[Collection[int]], fill: int, remove: int, apart: bool
) -> None:
    """Fill gaps of the objects of a film, and then remove blinks, in place.

    A gap is filled frame by frame with the mask of the nearer of the two frames around it (the earlier of two that are equally
    near), moved along the line between the centers of both masks to where the object is at that time, and without what lies
    outside the box of the other mask, moved there as well. If nothing is left, the object stays absent.

    Args:
        film: for each frame the masks of N objects, packed bits uint8 `[N, ceil(H W / 8)]`.
        size: (H, W) of a mask.
        decided: for each object the frames whose masks stay as they are.
        fill: frames of the longest gap between two frames with the object that is filled.
        remove: frames of the longest appearance between two frames without the object that is removed.
        apart: what is filled leaves pixels that other objects have to them.
    """
    numbers = range(len(decided))
    for number in numbers:
        for start, end in _inner(film, number, False, fill, decided[number]):
            around = [_unpacked(film[index][number], size) for index in (start - 1, end)]
            for index in range(start, end):
                mask = _between(*around, index - start + 1, end - index)
                for other in (other for other in numbers if apart and other != number):
                    mask &= ~_unpacked(film[index][other], size)
                film[index][number] = np.packbits(mask)
    for number in numbers:
        for start, end in _inner(film, number, True, remove, decided[number]):
            for index in range(start, end):
                film[index][number] = 0


def _inner(
    film: Sequence[np.ndarray], number: int, is_seen: bool, most: int, decided: Collection[int]
) -> Iterator[tuple[int, int]]:
    """Runs of at most `most` frames with or without an object, first and end, but for those at the film's ends and decided."""
    seen = np.array([masks[number].any() for masks in film])
    for start, end in itertools.pairwise((np.flatnonzero(seen[1:] != seen[:-1]) + 1).tolist()):
        if seen[start] == is_seen and end - start <= most and not any(start <= frame < end for frame in decided):
            yield start, end


def _unpacked(bits: np.ndarray, size: Size) -> np.ndarray:
    height, width = size
    return np.unpackbits(bits, count=height * width).reshape(size).astype(bool)


def _between(before: np.ndarray, after: np.ndarray, since: int, until: int) -> np.ndarray:
    """The mask of an object `since` frames after one mask and `until` frames before another."""
    centers = [np.argwhere(mask).mean(0) for mask in (before, after)]
    here = (centers[0] * until + centers[1] * since) / (since + until)
    moved = [_moved(mask, np.rint(here - center).astype(int)) for mask, center in zip((before, after), centers, strict=True)]
    nearer, other = moved if since <= until else moved[::-1]
    rows, columns = other.any(1), other.any(0)
    box = [np.flatnonzero(side)[[0, -1]] if side.any() else (1, 0) for side in (rows, columns)]
    found = np.zeros_like(nearer)
    inside = tuple(slice(first, last + 1) for first, last in box)
    found[inside] = nearer[inside]
    return found


def _moved(mask: np.ndarray, by: np.ndarray) -> np.ndarray:
    """A mask moved by rows and columns; what leaves the frame is gone."""
    moved = np.zeros_like(mask)
    onto = tuple(slice(max(0, step), max(0, side + min(0, step))) for step, side in zip(by, mask.shape, strict=True))
    of = tuple(slice(max(0, -step), max(0, side - max(0, step))) for step, side in zip(by, mask.shape, strict=True))
    moved[onto] = mask[of]
    return moved

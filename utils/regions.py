"""Connected regions of a mask. They need scipy, which is ComfyUI's own requirement."""

from types import ModuleType

import numpy as np

from .errors import SAMError


def regions(mask: np.ndarray, by_corners: bool, needed_by: str) -> tuple[np.ndarray, np.ndarray]:
    """The regions of a mask bool `[H, W]`, numbered from 1.

    Args:
        by_corners: pixels that touch at a corner belong together (8-connected), and not only those with a common side.
        needed_by: what needs scipy, for the message.

    Returns:
        The number of each pixel's region, int `[H, W]`, 0 outside of the mask; and the pixels of each number.

    Raises:
        SAMError: scipy is absent.
    """
    labels, count = ndimage(needed_by).label(mask, structure=np.ones((3, 3)) if by_corners else None)
    return labels, np.bincount(labels.ravel(), minlength=count + 1)


def ndimage(needed_by: str) -> ModuleType:
    """scipy's `ndimage`.

    Raises:
        SAMError: scipy is absent.
    """
    try:
        from scipy import ndimage as found  # here: only some options need it
    except ImportError as error:
        raise SAMError(f"{needed_by}: this needs scipy, which is not installed here: pip install scipy. ({error})") from error
    return found

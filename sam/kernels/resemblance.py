"""How much a mask resembles an example: its features part by part, and its color.

After P2SAM ("Part-aware Personalized Segment Anything Model", Zch0414/p2sam): the example is several parts, each part gives a
point, and of several results the one whose features are most similar to the example's is taken.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_ROUNDS = 10
_FAR = 3**0.5 * 255  # from black to white


def parts_of(local: Tensor, count: int) -> Tensor:
    """The means of clusters of features (k-means on the unit sphere, begun with features far from each other).

    Args:
        local: of unit length, `[P, C]`.
        count: of clusters, at most.

    Returns:
        `[K, C]` of unit length.
    """
    chosen = [int((local @ F.normalize(local.mean(0), dim=0)).argmax())]
    while len(chosen) < min(count, len(local)):
        chosen.append(int((local @ local[chosen].T).amax(1).argmin()))
    parts = local[chosen]
    for _ in range(_ROUNDS):
        owner = (local @ parts.T).argmax(1)
        means = [local[owner == i].mean(0) if bool((owner == i).any()) else part for i, part in enumerate(parts)]
        parts = F.normalize(torch.stack(means), dim=1)
    return parts


def match(one: Tensor, other: Tensor) -> float:
    """How well two sets of features `[P, C]` and `[Q, C]` of unit length match: the mean of each one's best match, both ways.

    So a mask of one part is worse than one of the whole, and so is a mask of more than the object.
    """
    similarity = one @ other.T
    return float(similarity.amax(1).mean() + similarity.amax(0).mean()) / 2


def mean_color(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean color of an image uint8 `[H, W, 3]` inside a mask bool `[H, W]` that is not empty."""
    return image[mask].mean(0)


def color_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Distance of two colors, 0..1."""
    return float(np.linalg.norm(one - other)) / _FAR

"""A model that sees bright regions, no sharper than its input is: what it finds in a cut or a tile, a drawing says."""

import numpy as np
import torch
from samkit.sam.geometry import Geometry, fit_long_side
from samkit.sam.models.base import Decoded
from scipy import ndimage
from torch import nn

DARK, LIGHT = 40, 220


class BrightModel:
    """An object is the bright region at its first point, or the largest one in its box.

    Args:
        squashes: whether an image fills the square, as with SAM 2, or is fitted and padded, as with SAM.
        side: pixels of the input; a cell of the logits is four of them.

    Attributes:
        encoded: how many images were encoded.
        prompts: the prompts of all calls in the model's input, with the image that they were for, `[4h, 4w]` in 0..1.
    """

    sure, unsure = 0.95, 0.5  # predicted IoU of an object, and of a prompt at which there is none
    family, precision, mask_threshold, takes_masks = "Bright", "fp32", 0.0, True

    def __init__(self, squashes=False, side=128):
        self.network, self.squashes, self.side, self.grid = nn.Module(), squashes, side, side // 4
        self.map_shapes = {"image": (1, self.grid, self.grid)}
        self.encoded, self.prompts = 0, []

    @property
    def encoder_identity(self):
        return f"bright {self.squashes} {self.side}"

    decoder_identity = encoder_identity

    def geometry(self, original):
        resized = (self.side, self.side) if self.squashes else fit_long_side(original, self.side)
        return Geometry(original, resized, self.side, (self.grid, self.grid), not self.squashes)

    def features(self, pixels, dtype):
        self.encoded += len(pixels)
        gray = pixels.float().mean(1, keepdim=True)
        padded = nn.functional.pad(gray, (0, self.side - gray.shape[3], 0, self.side - gray.shape[2]), value=DARK)
        return {"image": nn.functional.adaptive_avg_pool2d((padded - DARK) / (LIGHT - DARK), self.grid)}

    def decode(self, features, prompts, wanted):
        light = features.tensor()[0].cpu().numpy()
        self.prompts.append((light, prompts))
        labels, _ = ndimage.label(light > 0.5)
        count = len(prompts.points[0] if prompts.points is not None else prompts.boxes)
        scores = torch.full((count, 3 if wanted.several else 1), self.unsure)
        logits = torch.full((count, 3 if wanted.several else 1, self.grid, self.grid), -10.0)
        for index in range(count):
            label = self._label(labels, index, prompts)
            if label:
                scores[index] = self.sure
                around = ndimage.binary_dilation(labels == label, np.ones((3, 3)))
                logits[index] = torch.from_numpy(np.where(around, 20 * light - 10, -10).astype(np.float32))
        return Decoded(logits, scores, torch.arange(count))

    def _label(self, labels, index, prompts):
        if prompts.points is not None:
            x, y = (prompts.points[0][index, 0] / 4).long().clamp(0, self.grid - 1).tolist()
            return labels[y, x]
        x1, y1, x2, y2 = (prompts.boxes[index] / 4).round().long().tolist()
        counts = np.bincount(labels[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].ravel(), minlength=2)
        return int(counts[1:].argmax()) + 1 if counts[1:].any() else 0


def discs(size, *each):
    """A dark image uint8 `[H, W, 3]` with light discs (x, y, radius), and the mask of each."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    masks = [(columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2 for x, y, radius in each]
    image = np.full((*size, 3), DARK, np.uint8)
    for mask in masks:
        image[mask] = LIGHT
    return image, masks


def iou(one, other):
    one, other = np.asarray(one, bool), np.asarray(other, bool)
    return (one & other).sum() / max(1, (one | other).sum())

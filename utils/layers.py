"""Layers: the values of ComfyUI's socket type LAYERS, for its layer editor and other nodes of ComfyUI 0.31 and later."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .boxes import tight_box
from .images import cutout

VERSION = 1  # of the document, see ComfyUI's comfy_extras/nodes_compositor.py


def layers_of(image: Tensor, masks: Sequence[Tensor], names: Sequence[str]) -> dict[str, Any]:
    """An image's objects as layers, each cut out of the image and at its place, the first one lowest.

    Args:
        image: `[1, H, W, C]` floats.
        masks: of the objects, `[H, W]` in 0..1 each: the alpha of its layer. Where it is 0 everywhere there is no layer.
        names: of the objects.

    Returns:
        The document: `version`, `canvas` as (W, H), and `layers`, whose `image` is `[1, h, w, 4]` at pixel (`x`, `y`).
    """
    layers = []
    for mask, name in zip(masks, names, strict=True):
        box = tight_box(mask)
        if box is None:
            continue
        rows, columns = slice(box["y"], box["y"] + box["height"]), slice(box["x"], box["x"] + box["width"])
        cut = cutout(image[:, rows, columns], mask[None, rows, columns])
        layers.append({"type": "raster", "image": cut, "name": name, "x": box["x"], "y": box["y"]})
    height, width = image.shape[1:3]
    return {"version": VERSION, "canvas": (width, height), "layers": layers}

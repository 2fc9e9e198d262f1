"""Images with masks, as training needs them: feature maps, and the masks on the grid of the decoder's logits."""

import functools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...utils.comfy import Progress
from ...utils.images import as_image, as_masks
from ...utils.text import counted
from ..errors import SAMError
from ..geometry import Geometry
from ..models.base import Segmenter
from ..models.features import Features
from ..placement.devices import DeviceMode, device_for
from ..placement.host import CPU
from ..placement.memory import room
from ..prompts import on_grid
from ..tasks.embed import encode_one

MOST_EXAMPLES = 512
"""Their feature maps stay in memory, 4 MiB each for stock SAM and 17 MiB for SAM 2."""
_READY = 8  # times the bytes of an example's maps: with what its prompts share, and the same mirrored


@dataclass(frozen=True)
class Example:
    """One image and the object in it, on the decoder's grid (4h, 4w).

    Attributes:
        features: the image's feature maps.
        target: float32 `[4h, 4w]` in 0..1, the share of each cell that the object covers.
        inside: float32 `[4h, 4w]` in 0..1, the share that the image covers; the rest is padding.
        other: bool `[4h, 4w]`, where a click is not on the object but on something that resembles it; or None.
        depth: float32 `[4h, 4w]`, how far each cell of the object is from its edge, 0..1 of the farthest.
    """

    features: Features
    target: Tensor
    inside: Tensor
    other: Tensor | None
    depth: Tensor

    @functools.cached_property
    def mirrored(self) -> "Example":
        """The same from right to left."""
        other = None if self.other is None else self.other.flip(1)
        return Example(self.features.mirrored(), self.target.flip(1), self.inside.flip(1), other, self.depth.flip(1))

    def on(self, device: torch.device) -> "Example":
        """The same with its feature maps on a device; prompts are drawn from the masks, which stay on the CPU."""
        return replace(self, features=self.features.on(device))

    @property
    def mask(self) -> Tensor:
        """bool `[4h, 4w]`: the cells that the object covers half, or, of a tiny one, those that it covers most."""
        return covered(self.target)


def make_examples(
    model: Segmenter,
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    negatives: Sequence[Tensor] | None = None,
    device_mode: DeviceMode = "AUTO",
) -> list[Example]:
    """Encode images, each once, and bring their masks onto the grid.

    Args:
        model: the one to teach.
        images: IMAGE tensors `[B, H, W, C]`, of different sizes if you like; N images in all.
        masks: MASK tensors, N masks in all, in the order of the images; resized where a size differs.
        negatives: MASK tensors, N masks in all or one for each image, or None; empty ones are ignored.
        device_mode: see `encode`.

    Raises:
        SAMError: the numbers differ, there are none or too many, a mask is empty or has values that are not finite.
    """
    frames = [image[i : i + 1] for image in map(as_image, images) for i in range(len(image))]
    each = _as_many(masks, len(frames), "masks")
    others = [None] * len(frames) if negatives is None else _as_many(negatives, len(frames), "negative_masks")
    if not frames:
        raise SAMError("There is nothing to learn from: connect at least one image and its mask.")
    empty = [str(index) for index, mask in enumerate(each) if not bool((mask > 0.5).any())]
    if empty:
        raise SAMError(
            f"masks is empty for image {', '.join(empty[:8])} of {len(each)} (counted from 0). Paint over the object in every "
            "image. Load Image gives an empty mask for an image without alpha."
        )
    return examples_of(model, zip(frames, each, others, strict=True), len(frames), device_mode)


def examples_of(
    model: Segmenter, shown: Iterable[tuple[Tensor, Tensor, Tensor | None]], count: int, device_mode: DeviceMode = "AUTO"
) -> list[Example]:
    """Encode images one at a time, so that they need not be in memory together.

    Args:
        model: the one to teach.
        shown: IMAGE `[1, H, W, C]`, its mask `[1, h, w]` that is not empty, and None or what resembles the object.
        count: how many there are.
        device_mode: see `encode`.

    Raises:
        SAMError: there are too many, or a mask is lost at the model's resolution.
    """
    if count > MOST_EXAMPLES:
        raise SAMError(f"There are {counted(count, 'image')}: at most {MOST_EXAMPLES} fit into memory. Use fewer.")
    examples = _examples(model, shown, count, device_mode)
    lost = [str(index) for index, example in enumerate(examples) if not bool(example.mask.any())]
    if lost:  # a pixel of an image of thousands
        raise SAMError(
            f"masks is too small for image {', '.join(lost[:8])} of {count} (counted from 0): nothing of it is left at the "
            "model's resolution. Crop the image around the object."
        )
    return examples


def make_others(model: Segmenter, images: Sequence[Tensor], device_mode: DeviceMode = "AUTO") -> list[Example]:
    """Images without the object, as examples of nothing.

    Args:
        model, images, device_mode: see `make_examples`.

    Raises:
        SAMError: there are too many.
    """
    frames = [image[i : i + 1] for image in map(as_image, images) for i in range(len(image))]
    if len(frames) > MOST_EXAMPLES:
        raise SAMError(f"There are {counted(len(frames), 'other image')}: at most {MOST_EXAMPLES} fit into memory. Use fewer.")
    return _examples(model, ((frame, torch.zeros(1, *frame.shape[1:3]), None) for frame in frames), len(frames), device_mode)


class ReadyExamples(Sequence[Example]):
    """Examples on the device of a training. As many stay there as it has room for; others are uploaded when their turn comes.

    Args:
        examples: in order.
        device: where to train.
    """

    def __init__(self, examples: Sequence[Example], device: torch.device) -> None:
        self._examples, self._device = examples, device
        largest = max((example.features.nbytes for example in examples), default=1)
        self._room = room(device, _READY * largest, max(1, len(examples)))
        self._ready: OrderedDict[int, Example] = OrderedDict()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        if index not in self._ready:
            if len(self._ready) == self._room:
                self._ready.popitem(last=False)
            self._ready[index] = self._examples[index].on(self._device)
        self._ready.move_to_end(index)
        return self._ready[index]


def covered(target: Tensor) -> Tensor:
    """bool `[h, w]`: cells that a mask covers half, of shares in 0..1; of a tiny mask those that it covers most."""
    return (target > 0) & (target >= min(0.5, float(target.max())))


def _as_many(masks: Sequence[Tensor], count: int, name: str) -> list[Tensor]:
    """Each mask on its own, `[1, h, w]` on the CPU."""
    try:
        each = [mask[i : i + 1].cpu() for mask in map(as_masks, masks) for i in range(len(mask))]
    except SAMError as error:
        raise SAMError(f"{name}: {error}") from error
    if len(each) != count:
        raise SAMError(f"{name} has {counted(len(each), 'mask')} for {counted(count, 'image')}. Connect one for each image.")
    return each


def _examples(
    model: Segmenter, shown: Iterable[tuple[Tensor, Tensor, Tensor | None]], count: int, device_mode: DeviceMode
) -> list[Example]:
    """One of each image `[1, H, W, C]`; the first ones, as many as there is room for, stay on the device that encoded them."""
    device, progress, examples = device_for(device_mode), Progress(count), []
    for image, mask, other in shown:
        key, encoded = encode_one(model, image, device_mode)
        stays = len(examples) < room(device, _READY * encoded.nbytes, MOST_EXAMPLES)
        features = encoded.features(key, device if stays else CPU)
        geometry = model.geometry(tuple(image.shape[1:3]))
        target = on_grid(mask[0], geometry, geometry.grid)[0]
        wrong = (
            None if other is None or not bool((other > 0.5).any()) else covered(on_grid(other[0], geometry, geometry.grid)[0])
        )
        examples.append(Example(features, target, _inside(geometry), wrong, _depth(covered(target))))
        progress.advance()
    return examples


def _inside(geometry: Geometry) -> Tensor:
    padded = torch.zeros(1, 1, geometry.side, geometry.side)
    padded[..., : geometry.resized[0], : geometry.resized[1]] = 1
    return F.adaptive_avg_pool2d(padded, geometry.grid)[0, 0]


def _depth(mask: Tensor) -> Tensor:
    """Distance of each cell of a mask to its edge in cells, by erosion with a square; of the largest."""
    left, depth = mask.float()[None, None], torch.zeros(mask.shape)
    while bool(left.any()):
        depth += left[0, 0]
        left = -F.max_pool2d(-F.pad(left, (1, 1, 1, 1)), 3, stride=1)
    return depth / depth.max().clamp(min=1)

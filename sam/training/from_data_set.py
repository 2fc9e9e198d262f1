"""Teaching from a data set on disk, one image in memory at a time."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...utils.text import counted, shown
from ..datasets.reading import DataSet
from ..errors import SAMError
from ..models.base import Segmenter, identity_of
from ..models.concept import Concept
from ..placement.devices import DeviceMode
from .examples import MOST_EXAMPLES, examples_of
from .teach import Lesson, TeachOptions, teach_examples

_LISTED = 20  # labels in a message


class ShownObjects:
    """The images of a data set that show an object, and in each the union of its masks.

    Args:
        data: where they are.
        label: of the object. A data set with one label need not have this one: all its objects are the object then.

    Raises:
        SAMError: it has several labels, and this is none of them; no image has a pixel of it; or there are too many images.
    """

    def __init__(self, data: DataSet, label: str) -> None:
        found = [data.labels(index) for index in range(len(data.names))]
        labels = sorted(set().union(*found))
        if len(labels) > 1 and label not in labels:
            known = ", ".join(labels[:_LISTED])
            raise SAMError(f"the data set has the labels {known}: say by --label which of them to teach, not {shown(label)}.")
        wanted = {label} if label in labels else set(labels)
        self._data, self._wanted = data, wanted
        self._places = [index for index, there in enumerate(found) if there & wanted]
        if not self._places:
            raise SAMError("the data set has no object to learn from.")
        if len(self._places) > MOST_EXAMPLES:
            seen = counted(len(self._places), "image")
            raise SAMError(f"the data set shows the object in {seen}: use at most {MOST_EXAMPLES}.")
        self.digest, self._places = self._measured()

    def _measured(self) -> tuple[str, list[int]]:
        """A hash of all pixels and masks, and the images in which the object has a pixel."""
        digest, places = hashlib.sha256(), []
        for index in self._places:
            pixels, mask = self._read(index)
            if mask.any():
                places.append(index)
                for part in (pixels, mask):
                    digest.update(repr(part.shape).encode() + part.tobytes())
        if not places:
            raise SAMError("the objects of the data set have no pixel to learn from.")
        return digest.hexdigest(), places

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pixels, labeled = self._data.read(index)
        masks = [one.mask for one in labeled.objects if one.label in self._wanted]
        return pixels, np.logical_or.reduce([np.zeros(labeled.size, bool), *masks])

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, None]]:
        """IMAGE `[1, H, W, 3]` and MASK `[1, H, W]` of each, and nothing that only resembles the object."""
        for index in self._places:
            pixels, mask = self._read(index)
            yield torch.from_numpy(pixels.astype(np.float32) / 255)[None], torch.from_numpy(mask.astype(np.float32))[None], None

    def key(self, model: Segmenter) -> str:
        """What the concept depends on, besides how it is learned: 16 hexadecimal digits."""
        return hashlib.sha256(f"{self.digest} {identity_of(model)}".encode()).hexdigest()[:16]


def teach_data_set(
    model: Segmenter, objects: ShownObjects, options: TeachOptions | None = None, device_mode: DeviceMode = "AUTO"
) -> tuple[Concept, Lesson]:
    """Learn what a data set shows; see `teach`, which gives the same for the same images and masks."""
    with torch.inference_mode(False):
        examples = examples_of(model, objects, len(objects), device_mode)
    return teach_examples(model, examples, options, device_mode)

"""The masks of SAM Track's last run for the prompt editor: saved in ComfyUI's temp folder, and read one at a time."""

import contextlib
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...sam import SAMError
from ...utils.comfy import inside_comfyui
from ...utils.comfy_folders import data_folder
from ...utils.files import whole
from ...utils.marks import Name
from .jobs import RefusedError

TRACKED_FILE = r"samkit_track_[0-9a-f]{32}\.zip"
_SIZE = "size.json"
_LEVEL = 1  # of zlib: masks are mostly runs of equal bytes


class TrackedMasks:
    """The masks of a film's objects, gathered frame by frame, compressed, and saved as one file.

    Args:
        names: the objects.
        frames: how many there are.
        size: (H, W) of each.
    """

    def __init__(self, names: Sequence[Name], frames: int, size: tuple[int, int]) -> None:
        self.names, self.size = names, size
        self._packed: list[list[bytes]] = [[b""] * frames for _ in names]

    def put(self, frame: int, masks: Tensor) -> None:
        """The masks bool `[N, H, W]` of a frame, one per object."""
        for each, mask in zip(self._packed, masks.cpu().numpy(), strict=True):
            each[frame] = zlib.compress(np.packbits(mask).tobytes(), _LEVEL) if mask.any() else b""

    def shown(self, direction: str, computed: Mapping[Name, int]) -> dict[str, Any]:
        """What a node's `ui` says of them: the file, and for each object on which frames it is seen and how many of them were
        computed now. Nothing outside ComfyUI, or where the file cannot be written: a run does not end because of that.
        """
        if not inside_comfyui():
            return {}
        told = hashlib.sha256(json.dumps([self.size, [list(map(len, each)) for each in self._packed]]).encode())
        for each in self._packed:
            told.update(b"".join(each))
        file = f"samkit_track_{told.hexdigest()[:32]}.zip"
        path = data_folder("temp") / file
        try:
            if not path.is_file():
                self._save(file)
        except SAMError:
            if not path.is_file():  # else another process has just written the same
                return {}
        objects = [
            {"name": name, "seen": "".join("1" if packed else "0" for packed in each), "computed": computed.get(name, 0)}
            for name, each in zip(self.names, self._packed, strict=True)
        ]
        return {"samkit_track": [{"file": file, "direction": direction, "objects": objects}]}

    def _save(self, file: str) -> None:
        with whole(data_folder("temp") / file) as part, zipfile.ZipFile(part, "w") as made:
            made.writestr(_SIZE, json.dumps(self.size))
            for place, each in enumerate(self._packed):
                for frame, packed in enumerate(each):
                    if packed:
                        made.writestr(f"{place}/{frame}", packed)


@dataclass(frozen=True)
class TrackedPlace:
    """One mask of such a file: of the object at a place in its list, on a frame."""

    file: str
    object: int
    frame: int

    def mask_if_there(self) -> np.ndarray | None:
        """The mask, or None where it has gone."""
        with contextlib.suppress(RefusedError):
            return self.mask()
        return None

    def mask(self) -> np.ndarray:
        """The mask bool `[H, W]`.

        Raises:
            RefusedError: 404, the file has gone, as it does when ComfyUI starts, or has no such mask.
        """
        try:
            with zipfile.ZipFile(data_folder("temp") / self.file) as made:
                height, width = json.loads(made.read(_SIZE))
                bits = zlib.decompress(made.read(f"{self.object}/{self.frame}"))
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise RefusedError(404, "The masks of SAM Track's last run are no longer there. Run the workflow again.") from error
        count = math.prod((height, width))
        return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).view(bool).reshape(height, width)

"""Films as SAM sees them: a folder of frames, or a video file. A frame is read when it is needed, so length costs no memory."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import overload

import numpy as np

from ...utils.text import counted
from ..errors import SAMError
from ..geometry import Size
from .images import read_image

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv"})
_CACHED_BYTES = 256 << 20  # of the frames that were read last: each one is used twice, shortly after another


class FilmFrames(Sequence[np.ndarray]):
    """The frames of a film, uint8 `[H, W, 3]`, all of one size; the ones that were read last stay in memory.

    Attributes:
        size: (H, W) of each.
        rate: frames of a second.
    """

    size: Size
    rate: Fraction = Fraction(10)

    def __init__(self, count: int) -> None:
        self._count = count
        self._cached: dict[int, np.ndarray] = {}

    @abstractmethod
    def _load(self, index: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frames with their numbers, of which that of `index` is the last one."""

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index not in self._cached:
            for number, frame in self._load(index):
                self._cached[number] = frame
                if len(self._cached) > max(1, _CACHED_BYTES // frame.nbytes):
                    del self._cached[next(iter(self._cached))]
        return self._cached[index]


class FolderFrames(FilmFrames):
    """A film of image files, see `read_image`.

    Raises:
        SAMError: two names differ in the extension only, or, when it is read, a frame has another size than the first one.
        OSError, ValueError, SyntaxError: a file is damaged, or not an image.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(len(files))
        self._files = files
        first: dict[str, Path] = {}
        for file in files:
            if (other := first.setdefault(file.stem, file)) is not file:
                raise SAMError(f"its frames {other.name} and {file.name} differ only in the extension: rename one of them.")
        self.size = read_image(files[0]).shape[:2]

    def _load(self, index: int) -> Iterator[tuple[int, np.ndarray]]:
        frame = read_image(self._files[index])
        if frame.shape[:2] != self.size:
            sizes = [f"{width}x{height}" for height, width in (frame.shape[:2], self.size)]
            raise SAMError(
                f"its frame {self._files[index].name} has {sizes[0]} pixels, but {self._files[0].name} has {sizes[1]}: the "
                "frames of a film have one size, and a folder is one film."
            )
        yield index, frame


class VideoFrames(FilmFrames):
    """The frames of a video file's first video stream, turned as it says, as ComfyUI's Load Video decodes them.

    Frames are counted by decoding all of them, and decoded in order: to go back is to begin again, since jumps are not exact in
    every file.

    Raises:
        SAMError: PyAV is not installed, or the file has no frame that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decoded = _decode(path)
        first, count = next(self._decoded, None), 1
        if first is None:
            raise SAMError(f"{path.name} has no video frame.")
        self.size, self.rate = first[0].shape[:2], first[1] or self.rate
        for frame, _ in self._decoded:
            count += 1
            if frame.shape[:2] != self.size:
                raise SAMError(f"{path.name} changes its size at frame {count - 1}: convert it to a video of one size.")
        super().__init__(count)
        self._next = count

    def _load(self, index: int) -> Iterator[tuple[int, np.ndarray]]:
        if index < self._next:
            self._decoded, self._next = _decode(self.path), 0
        while self._next <= index:
            found = next(self._decoded, None)
            if found is None:
                raise SAMError(f"{self.path.name} had {counted(len(self), 'frame')}, and has {self._next}: was it changed?")
            self._next += 1
            yield self._next - 1, found[0]


def _decode(path: Path) -> Iterator[tuple[np.ndarray, Fraction | None]]:
    """The frames of a video file, uint8 `[H, W, 3]`, each with the file's frames of a second.

    Not a method: a film and what decodes it would hold each other, and the decoder's threads would live until Python searches
    for cycles. Where that happens in a forked process, which has none of those threads, it waits for them forever.
    """
    av = video_reader()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise; PyAV before 14 does not know
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns)), stream.average_rate
    except av.FFmpegError as error:
        raise SAMError(f"{path.name} cannot be decoded: {error}") from error


def video_reader() -> ModuleType:
    """PyAV, which reads video files.

    Raises:
        SAMError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise SAMError(
            f"PyAV is needed to read video files: pip install av. A folder of frames can be tracked without it. ({error})"
        ) from error
    return av


def frame_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """What names of frames are sorted by: numbers in them by value, so that `2.png` comes before `10.png`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)], name

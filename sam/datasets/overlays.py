"""Films with their masks painted on them, as video files to look through."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ...utils.files import whole
from ...utils.overlay import paint_masks
from ..errors import SAMError
from .films import FilmFrames, video_reader

OVERLAY_FORMS = ("mp4", "webm")
_CODECS = {"mp4": ("libx264", "mpeg4"), "webm": ("libvpx-vp9", "libvpx")}


def write_overlay(path: Path, form: str, frames: FilmFrames, masks: Iterable[np.ndarray]) -> None:
    """Write a film with masks in colors of their own, an object's the same on all frames.

    Args:
        path: of the video file.
        form: of `OVERLAY_FORMS`.
        frames: of the film.
        masks: for each frame bool `[N, H, W]`, one per object.

    Raises:
        SAMError: PyAV is not installed or cannot write this form, or the file cannot be written.
    """
    av = video_reader()
    codec = next((name for name in _CODECS[form] if name in av.codecs_available), None)
    if codec is None:
        raise SAMError(f"This PyAV cannot write {form}: it has none of the encoders {', '.join(_CODECS[form])}.")
    with whole(path) as part, av.open(str(part), "w", format=form) as container:
        stream = container.add_stream(codec, rate=frames.rate)
        (height, width), stream.pix_fmt = frames.size, "yuv420p"
        stream.height, stream.width = height + height % 2, width + width % 2  # colors are stored for two by two pixels
        for frame in _painted(frames, masks):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _painted(frames: FilmFrames, masks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for frame, each in zip(frames, masks, strict=True):
        painted = paint_masks(frame, each)
        margins = [(0, side % 2) for side in frames.size]
        yield np.pad(painted, (*margins, (0, 0)), mode="edge")

"""VideoHelperSuite's Meta Batch Manager, which runs a video in parts: where the part of the running prompt begins."""

from collections.abc import Mapping
from typing import Any

from .errors import SAMError
from .text import counted, shown

_NODE = "VHS_BatchManager"
_MOST = 1 << 40  # frames or parts


def first_frame(meta_batch: Any, prompt: Mapping[str, Any] | None, frames: int, frame_offset: int = -1) -> int:
    """The index, in the whole video, of the first frame of the running part, as `frame_offset` has it.

    Args:
        meta_batch: the manager. `frames_per_batch` is the number of frames in each part but the last. It does not always know
            its own node: when the last part of the video is combined, it forgets that, even if other nodes run later.
        prompt: ComfyUI's hidden input `PROMPT`. VideoHelperSuite queues the prompt again for each part, and counts that in
            the inputs of all its managers, as `requeue`. The queue's copy of the running prompt is of no use: its count may
            be that of the next part already.
        frames: number of frames of this part.
        frame_offset: the index of the first frame of the first part; -1: 0.

    Raises:
        SAMError: this is not a manager, the prompt has none, or the frames are not those of one part.
    """
    size = getattr(meta_batch, "frames_per_batch", None)
    nodes = prompt.values() if isinstance(prompt, Mapping) else ()
    managers = [node for node in nodes if isinstance(node, Mapping) and node.get("class_type") == _NODE]
    inputs = [given if isinstance(given := node.get("inputs"), Mapping) else {} for node in managers]
    counts = [given.get("requeue", 0) for given in inputs]
    if not _is_count(size) or not counts or not all(map(_is_count, counts)):
        raise SAMError(
            f"meta_batch is {shown(meta_batch)}: it must be the output of a Meta Batch Manager in this workflow. Without "
            "one, disconnect it and set frame_offset."
        )
    if frames > size:
        raise SAMError(
            f"The Meta Batch Manager splits the video into batches of {counted(size, 'frame')}, but this batch has {frames}. "
            "Connect it to the node that loads the video as well."
        )
    return max(0, frame_offset) + max(counts) * size


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST

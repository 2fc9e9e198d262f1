"""Everything under the pointer: segment everything for the prompt editor, as patches that it lights up and makes objects of."""

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...sam import PRESETS, FoundMask, Segmenter, preset_options, segment_everything
from ...utils.patches import encode_runs
from .preview import Subject, choice_of, frames_of, look_up, parse_subject, text_of, version_of

MOST_SEGMENTS = 1000
DEFAULT_PRESET = "balanced"


def parse_everything(body: Mapping[str, Any]) -> tuple[Subject, str, str]:
    """Check the fields `image`, `model`, `preset` and `editor` of a request.

    Raises:
        SAMError: as `parse_subject`; there is no such preset.
    """
    subject, editor = parse_subject(body), text_of(body, "editor")
    preset = choice_of(body, "preset", tuple(PRESETS), DEFAULT_PRESET)
    return subject, editor, preset


def everything(subject: Subject, preset: str, least: tuple[float, float] | None = None) -> tuple[Hashable, Callable[[], bytes]]:
    """The key of an image, a model and a preset, and the work to segment it: JSON `{width, height, stamp, segments}`.

    Args:
        subject: the image and the model.
        preset: see `preset_options`.
        least: predicted IoU and stability of masks that are not discarded; None: the preset's.

    Raises:
        RefusedError: 404, there is no such image or model.
    """

    def work(subject: Subject, path: Path, stamp: tuple[int, int], load: Callable[[], Segmenter]) -> bytes:
        frame = frames_of(path, subject)[subject.frame]
        model = load()
        options = preset_options(preset, model)
        if least is not None:
            options = replace(options, pred_iou_thresh=least[0], stability_score_thresh=least[1])
        found = segment_everything(model, frame, options)[:MOST_SEGMENTS]
        height, width = frame.shape[:2]
        segments = [_segment(mask) for mask in found]
        return json.dumps({"width": width, "height": height, "stamp": version_of(stamp), "segments": segments}).encode()

    key, begun = look_up(subject, work)
    return (key, preset, least), begun


def _segment(found: FoundMask) -> dict[str, Any]:
    """A mask as a patch of its box (see `utils/patches.py`), with its score and area."""
    (x, y, *_), pixels = found.box, found.pixels
    height, width = pixels.shape
    place = {"x": int(x), "y": int(y), "width": width, "height": height}
    return {**place, "runs": encode_runs(pixels), "score": round(found.score, 4), "area": int(pixels.sum())}

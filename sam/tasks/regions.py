"""Prompts that are answered from a part of an image alone, which the model gets at a higher resolution than the whole image."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..geometry import Size, View, Window
from ..kernels.views import resampled
from ..prompts import ABSENT_LOGIT, Prompt
from .predict import FramePrediction, ImagePredictor, PredictOptions


def predict_in_region(
    image: ImagePredictor, region: Window, size: Size, prompts: Sequence[Prompt], options: PredictOptions
) -> FramePrediction:
    """Masks of prompts on an image by what the model sees of one region of it.

    Marks outside of the region are ignored: the model does not see what lies there. An object without a mark in the region has
    an empty mask.

    Args:
        image: the region, as an image of its own.
        region: where it lies in the image.
        size: (H, W) of the image.
        prompts: in pixels of the image.
        options: see `ImagePredictor.predict`. With `all` candidates, prompts come one at a time.

    Returns:
        Masks of the image `[N, H, W]`, scores, and logits on the grid of the region, whatever `options.logits` says.
    """
    whole, view = View((0, 0, size[1], size[0]), image.model.geometry(size)), View(region, image.geometry)
    seen = [_in_region(prompt, whole, view) for prompt in prompts]
    has_marks = [one.box is not None or one.logits is not None or len(one.points) > 0 for one in seen]
    found = image.predict([one for one, has in zip(seen, has_marks, strict=True) if has], replace(options, logits=True))
    count = len(found.scores) if all(has_marks) else len(prompts)
    rows = torch.ones(count, dtype=torch.bool) if all(has_marks) else torch.tensor(has_marks)
    masks = found.masks.new_zeros(count, *size)
    scores, logits = found.scores.new_zeros(count), found.logits.new_full((count, *found.logits.shape[1:]), ABSENT_LOGIT)
    x1, y1, x2, y2 = region
    masks[rows.to(masks.device), y1:y2, x1:x2] = found.masks
    scores[rows.to(scores.device)], logits[rows.to(logits.device)] = found.scores, found.logits
    return FramePrediction(masks, scores, logits)


def _in_region(prompt: Prompt, whole: View, view: View) -> Prompt:
    """The marks of an object that fall into a region, in its pixels."""
    points, labels, box = marks_in(prompt, view.window)
    logits = None if prompt.logits is None else resampled(prompt.logits, whole, view, ABSENT_LOGIT)
    if logits is not None and not bool((logits > 0).any()):
        logits = None
    if box is not None and (box[2:] <= box[:2]).any():
        box = None
    return Prompt(points, labels, box, logits)


def marks_in(prompt: Prompt, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The points that fall into a window, their labels, and the box as far as it does, in pixels of the window.

    A box that lies outside has no area.
    """
    x1, y1, x2, y2 = window
    corner, high = np.array([x1, y1]), np.array([x2 - x1, y2 - y1], np.float64)
    points = prompt.points - corner
    inside = ((points >= 0) & (points <= high)).all(1)
    box = None if prompt.box is None else np.clip(prompt.box.reshape(2, 2) - corner, 0, high).reshape(4)
    return points[inside], prompt.labels[inside], box

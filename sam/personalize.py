"""PerSAM: one example of a thing, and the same thing found in other pictures, without training.

"Personalize Segment Anything Model with One Shot" (arXiv 2305.03048), section 3.2, after Personalize-SAM's `persam.py`. What
differs: maps keep to the picture inside the model's square (there they are squashed onto it), the location prior is the mean of
the likeness to the example's mean feature and to its best matching local one, and a picture may hold several such things.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from ..utils.boxes import tight_box
from ..utils.comfy import Progress
from ..utils.images import as_masks
from .decode import FrameDecoder
from .device import DeviceMode, placed, result_device
from .embedding import SAMEmbedding, Size
from .encode import encode
from .errors import SAMError
from .fast_decoder import Guidance
from .prompts import Prompt, on_grid

_TRIES = 2  # per object wanted: a peak may lead back to what was found
_SAME = 0.5  # a mask that shares this much of the smaller one's area is what was found already


class Target(NamedTuple):
    """What R examples look like to the model.

    Attributes:
        mean: `[C]`, the mean feature of the thing, averaged over the examples.
        local: for each example its features, of unit length, `[P, C]`.
        means: for each example its mean feature, of unit length, `[C]`.
    """

    mean: Tensor
    local: list[Tensor]
    means: list[Tensor]


class Personalized(NamedTuple):
    """What `personalize` found in B pictures; lists with one entry per picture, N things in each, the likest first sought.

    Attributes:
        masks: bool `[N, H, W]` in source pixels.
        scores: float32 `[N]`, the mean similarity inside each mask, 0..1.
        points: float `[N, 2]` (x, y), where each was looked for.
        similarity: float32 `[B, H, W]`, the location prior: how like the example each pixel's surroundings are, 0..1.
    """

    masks: list[Tensor]
    scores: list[Tensor]
    points: list[np.ndarray]
    similarity: Tensor


@torch.no_grad()
def personalize(
    model: Sam,
    references: Tensor | Sequence[np.ndarray],
    reference_masks: Tensor,
    images: Tensor | Sequence[np.ndarray],
    max_objects: int = 1,
    min_score: float = 0.0,
    device_mode: DeviceMode = "AUTO",
    hq: bool = True,
    guided: bool = True,
) -> Personalized:
    """Find in pictures the thing that the references show.

    Args:
        model: ours or any `segment_anything` Sam.
        references, images: see `encode`; R and B pictures, the two of different sizes if you like.
        reference_masks: `[R, h, w]` in 0..1, the thing in each reference; resized where its size is another.
        max_objects: at most this many things in a picture.
        min_score: leave out what is less like the example than this, 0..1.
        device_mode: see `placed`.
        hq: see `decode`.
        guided: off, the example only tells where to click: the location prior without target-guided attention and
            target-semantic prompting.

    Raises:
        SAMError: a mask is empty, their number is not that of the references, or the model's decoder cannot be guided.
    """
    examples = encode(model, references, device_mode)
    masks = _checked_masks(reference_masks, examples)
    embedding = encode(model, images, device_mode)
    found, maps = [], torch.zeros(len(embedding), *embedding.original_size)
    progress = Progress(len(embedding))
    with placed(model, device_mode) as device:
        target = learn(model, examples, masks, device)
        frames = FrameDecoder(model, embedding, device, 0.0, hq)
        for index in range(len(embedding)):
            progress.check_interrupted()
            maps[index] = similarity_map(model, embedding, index, target)
            things = _things(frames, index, maps[index], target if guided else None, max_objects, min_score)
            found.append(_gathered(list(things), embedding.original_size))
            progress.advance()
    each, scores, points = (list(part) for part in zip(*found, strict=True)) if found else ([], [], [])
    return Personalized(each, scores, points, maps.clamp(0, 1).to(result_device()))


def _checked_masks(masks: Tensor, examples: SAMEmbedding) -> Tensor:
    """One mask for each reference, `[R, h, w]`, none of them empty."""
    masks = as_masks(masks).cpu()
    if len(masks) != len(examples):
        raise SAMError(f"reference_mask has {len(masks)} masks for {len(examples)} reference images: give one for each.")
    empty = [str(index) for index, mask in enumerate(masks) if not bool((mask > 0.5).any())]
    if empty:
        raise SAMError(
            f"reference_mask is empty for reference {', '.join(empty)} of {len(masks)} (counted from 0): paint over the thing "
            "to find. Load Image gives an empty mask for a picture without alpha."
        )
    return masks


def learn(model: Sam, examples: SAMEmbedding, masks: Tensor, device: torch.device) -> Target:
    """The thing in R embedded pictures, from its masks `[R, h, w]` of any size: the features of grid cells that it covers.

    A cell counts where the mask covers half of it; for a thing too small for that, those that it covers most.
    """
    grid = model.prompt_encoder.image_embedding_size
    local = []
    for values, mask in zip(examples.view(np.ndarray), masks, strict=True):
        share = on_grid(mask, examples.input_size, model, grid)
        covered = (share >= min(0.5, float(share.max()))).flatten()
        local.append(torch.tensor(values, device=device).flatten(1).T[covered.to(device)])
    means = [features.mean(0) for features in local]
    unit = [F.normalize(features, dim=-1) for features in local]
    return Target(torch.stack(means).mean(0), unit, [F.normalize(mean, dim=-1) for mean in means])


def similarity_map(model: Sam, embedding: SAMEmbedding, index: int, target: Target) -> Tensor:
    """The location prior of a picture, float32 `[H, W]` on the CPU, -1..1.

    For each reference the cosine with its mean feature and with its best matching local feature, averaged; the mean over
    the references; from the grid to source pixels as SAM's own logits go.
    """
    device = target.mean.device
    cells = F.normalize(torch.tensor(embedding.view(np.ndarray)[index], device=device).flatten(1).T, dim=-1)
    each = [(cells @ mean + (cells @ local.T).amax(1)) / 2 for mean, local in zip(target.means, target.local, strict=True)]
    grid = torch.stack(each).mean(0).view(1, 1, *model.prompt_encoder.image_embedding_size)
    fine = F.interpolate(grid, scale_factor=4, mode="bilinear", align_corners=False)
    return model.postprocess_masks(fine, embedding.input_size, embedding.original_size)[0, 0].cpu()


def extremes(similarity: Tensor) -> np.ndarray:
    """The most and the least similar pixel of a map `[H, W]`: float64 `[2, 2]` (x, y)."""
    width = similarity.shape[1]
    places = [int(similarity.argmax()), int(similarity.argmin())]
    return np.array([(place % width, place // width) for place in places], dtype=np.float64)


class _Thing(NamedTuple):
    mask: Tensor
    score: float
    point: np.ndarray


def _things(
    frames: FrameDecoder, index: int, similarity: Tensor, target: Target | None, max_objects: int, min_score: float
) -> Iterator[_Thing]:
    """One thing after the other, each where the similarity `[H, W]` is highest once the ones before are out of the way."""
    left, found = similarity.clone(), []
    lowest = extremes(similarity)[1]
    for _ in range(max_objects * _TRIES):
        peak = extremes(left)[0]
        if len(found) == max_objects or float(left.max()) < min_score:
            return
        guidance = None if target is None else guide(frames.model, left, frames.embedding.input_size, target)
        mask = _segment(frames, index, np.stack([peak, lowest]), guidance).cpu()
        area = int(mask.sum())
        score = float(similarity[mask].clamp(0, 1).mean()) if area else 0.0
        known = any(int((mask & other).sum()) > _SAME * min(area, int(other.sum())) for other in found)
        if area and not known and score >= min_score:
            found.append(mask)
            yield _Thing(mask, score, peak)
        left[mask | _around(peak, mask.shape, frames)] = similarity.min()


def _around(point: np.ndarray, size: Size, frames: FrameDecoder) -> Tensor:
    """The pixels within a grid cell of a point, bool `[H, W]`: they would lead to the same mask again."""
    reach = max(size) / max(frames.model.prompt_encoder.image_embedding_size)
    near = torch.zeros(size, dtype=torch.bool)
    (left, top), (right, bottom) = np.maximum(point - reach, 0).astype(int), np.ceil(point + reach).astype(int) + 1
    near[top:bottom, left:right] = True
    return near


def guide(model: Sam, similarity: Tensor, input_size: Size, target: Target) -> Guidance:
    """The decoder's guidance by a map `[H, W]`: standardised, squeezed into 0..1, and 0 outside the picture."""
    level = (similarity - similarity.mean()) / similarity.std().clamp(min=1e-6)
    attention = on_grid(level.sigmoid(), input_size, model, model.prompt_encoder.image_embedding_size)
    return Guidance(attention.flatten(1).to(target.mean.device), target.mean[None])


def _segment(frames: FrameDecoder, index: int, points: np.ndarray, guidance: Guidance | None) -> Tensor:
    """A mask bool `[H, W]` from a positive and a negative point `[2, 2]`, refined with its logits, then with its box."""
    prompt = Prompt(points, np.array([1, 0], np.int32))
    _, _, logits = frames.decode(index, [prompt], "best", "off", guidance)
    masks, _, logits = frames.decode(index, [replace(prompt, logits=logits[0])], "best", "on")
    box = tight_box(masks[0])
    if box is None:
        return masks[0]
    corners = np.array([box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]], dtype=np.float64)
    return frames.decode(index, [replace(prompt, logits=logits[0], box=corners)], "best", "on")[0][0]


def _gathered(things: list[_Thing], size: Size) -> tuple[Tensor, Tensor, np.ndarray]:
    """Things of one picture as masks `[N, H, W]`, scores `[N]` and points `[N, 2]`."""
    masks = torch.stack([thing.mask for thing in things]) if things else torch.zeros(0, *size, dtype=torch.bool)
    scores = torch.tensor([thing.score for thing in things], dtype=torch.float32)
    points = np.array([thing.point for thing in things], dtype=np.float64).reshape(-1, 2)
    return masks.to(result_device()), scores.to(result_device()), points

"""PerSAM: one example of an object, and the same object found in other images, without training.

"Personalize Segment Anything Model with One Shot" (arXiv 2305.03048), section 3.2, after Personalize-SAM's `persam.py`. What
differs: maps stay aligned with the image inside the model's square (there they are squashed onto it), the location prior is the
mean of the similarity to the example's mean feature and to its best matching local one, and an image may contain several such
objects.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...utils.boxes import tight_box
from ...utils.images import as_masks, resize_masks
from ...utils.text import counted
from ..errors import SAMError
from ..geometry import Frame, Size
from ..kernels.decoder import Guidance
from ..kernels.resemblance import color_distance, match, mean_color, parts_of
from ..kernels.upsample import resize_logits
from ..models.base import Wanted
from ..models.concept import Concept
from ..models.families import as_segmenter
from ..placement.devices import DeviceMode, result_device
from ..prompts import Prompt, on_grid
from ..store.embedding import SAMEmbedding
from ..training.mixture import CANDIDATES as MIXED
from ..training.mixture import learn_mixture, mix
from .embed import EncoderRun, as_frames, encode
from .predict import FrameDecoder, PredictOptions
from .stream import each_embedding

Method: TypeAlias = Literal["persam", "persam-f", "parts", "parts and color"]
METHODS: tuple[str, ...] = get_args(Method)

_PLACES, _PARTS = 8, 4  # that `parts` tries, and into which it divides an object
_TRIES = 2  # per object: a peak may lead back to what was found
_MISSES = 16  # in a row, that end the search, which would go on to the least similar pixel; 8 objects have no more tries
_SAME = 0.5  # a mask that shares this much of the smaller one's area is what was found already


class Target(NamedTuple):
    """The features of R examples.

    Attributes:
        mean: `[C]`, the mean feature of the object, averaged over the examples.
        local: for each example its features, of unit length, `[P, C]`.
        means: for each example its mean feature, of unit length, `[C]`.
        mixture: weights `[2]` that mix SAM's candidates (see `mix`), or None.
        parts: for each example the parts of the object, `[K, C]` of unit length.
        colors: for each example the mean color of the object.
    """

    mean: Tensor
    local: list[Tensor]
    means: list[Tensor]
    mixture: Tensor | None = None
    parts: Sequence[Tensor] = ()
    colors: Sequence[np.ndarray] = ()


class Personalized(NamedTuple):
    """What `personalize` found in B images; lists with one entry per image, N objects in each, the most similar place first.

    Attributes:
        masks: bool `[N, H, W]` in source pixels.
        scores: float32 `[N]`, the mean similarity inside each mask, 0..1.
        points: float `[N, 2]` (x, y), the click that found each.
        similarity: float32 `[B, H, W]`, the location prior: the similarity of each pixel's surroundings to the example, 0..1.
    """

    masks: list[Tensor]
    scores: list[Tensor]
    points: list[np.ndarray]
    similarity: Tensor


@dataclass(frozen=True)
class PersonalizeOptions:
    """How the object is searched for.

    Attributes:
        max_objects: at most this many objects in an image.
        min_score: discard objects with a lower similarity score, 0..1.
        hq: see `PredictOptions`.
        guided: off, the example only gives the place to click: the location prior without target-guided attention and
            target-semantic prompting.
        concept: what was taught, or None; see `PredictOptions`.
        method: one of `METHODS`. `persam-f` does not guide, but learns from the references how to mix SAM's candidates. `parts`
            tries several places, each again with a point for each part of the object, and takes what matches the references
            best, part by part; `parts and color` also by the mean color.
    """

    max_objects: int = 1
    min_score: float = 0.0
    hq: bool = True
    guided: bool = True
    concept: Concept | None = None
    method: Method = "persam"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SAMError(f"method is {self.method!r}: choose one of {', '.join(METHODS)}.")


class FoundObjects(NamedTuple):
    """What `personalize_each` found in one image, see `Personalized`.

    Attributes:
        masks: bool `[N, H, W]`.
        scores: float32 `[N]`.
        points: float `[N, 2]` (x, y).
        similarity: float32 `[H, W]` on the CPU, 0..1.
    """

    masks: Tensor
    scores: Tensor
    points: np.ndarray
    similarity: Tensor


def personalize(
    model: Any,
    references: Tensor | Sequence[np.ndarray],
    reference_masks: Tensor,
    images: Tensor | Sequence[np.ndarray],
    options: PersonalizeOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> Personalized:
    """Find in images the object that the references show.

    Args:
        model: ours or any `segment_anything` Sam.
        references, images: see `encode`; R and B images, the two of different sizes if you like.
        reference_masks: `[R, h, w]` in 0..1, the object in each reference; resized where its size is another.
        options: see `PersonalizeOptions`; None: its defaults.
        device_mode: see `placed`.

    Raises:
        SAMError: a mask is empty, their number is not that of the references, or the model's decoder cannot be guided.
    """
    run, found = EncoderRun(as_segmenter(model), images, device_mode), {}
    _find_each(run, references, reference_masks, found.__setitem__, options or PersonalizeOptions())
    each = [found[index] for index in range(len(run.frames))]
    maps = torch.stack([one.similarity for one in each]) if each else torch.zeros(0, *run.size)
    return Personalized(
        [one.masks for one in each], [one.scores for one in each], [one.points for one in each], maps.to(result_device())
    )


def personalize_each(
    model: Any,
    references: Tensor | Sequence[np.ndarray],
    reference_masks: Tensor,
    images: Tensor | Sequence[np.ndarray],
    take: Callable[[int, FoundObjects], None],
    options: PersonalizeOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> None:
    """`personalize` for batches of any length: what is found in an image is handed on, and its embedding is dropped.

    Args:
        take: gets the index of each image and what was found; equal images come together, the others in order.
        model, references, reference_masks, images, options, device_mode: see `personalize`, as for what is raised.
    """
    run = EncoderRun(as_segmenter(model), images, device_mode)
    _find_each(run, references, reference_masks, take, options or PersonalizeOptions())


@torch.no_grad()
def _find_each(
    run: EncoderRun,
    references: Tensor | Sequence[np.ndarray],
    reference_masks: Tensor,
    take: Callable[[int, FoundObjects], None],
    options: PersonalizeOptions,
) -> None:
    segmenter = run.model
    examples = encode(segmenter, references, run.device_mode)
    masks = _checked_masks(reference_masks, examples)
    predict = _predict_options(options)
    targets: dict[torch.device, Target] = {}  # a GPU that has no room left in the middle of a batch hands over to the CPU

    def use(index: int, embedding: SAMEmbedding, device: torch.device) -> None:
        if device not in targets:
            learned = learn(examples, masks, segmenter.frame(examples.original_size), device)
            shown = FrameDecoder(segmenter, examples, device, predict)
            targets[device] = _with_method(learned, shown, references, masks, options)
        frames = FrameDecoder(segmenter, embedding, device, predict)
        similarity = similarity_map(embedding, 0, frames.frame, targets[device])
        if targets[device].parts:
            objects = _compared(frames, 0, similarity, targets[device], options, run.frames[index])
        else:
            objects = _objects(frames, 0, similarity, targets[device], options)
        take(index, FoundObjects(*_gathered(list(objects), embedding.original_size), similarity.clamp_(0, 1)))

    each_embedding(run, use)


def _predict_options(options: PersonalizeOptions) -> PredictOptions:
    """SAM's candidates; with a concept the one mask that was taught."""
    taught = options.concept is not None and len(options.concept.tokens)
    return PredictOptions(multimask="off" if taught else "on", hq=options.hq, concept=options.concept)


def _checked_masks(masks: Tensor, examples: SAMEmbedding) -> Tensor:
    """One mask for each reference, `[R, h, w]`, none of them empty."""
    masks = as_masks(masks, "reference_mask").cpu()
    if len(masks) != len(examples):
        raise SAMError(
            f"reference_mask has {counted(len(masks), 'mask')} for {counted(len(examples), 'reference image')}. "
            "Connect one for each."
        )
    empty = [str(index) for index, mask in enumerate(masks) if not bool((mask > 0.5).any())]
    if empty:
        raise SAMError(
            f"reference_mask is empty for reference {', '.join(empty)} of {len(masks)} (counted from 0). Paint over the object "
            "to find. Load Image gives an empty mask for an image without alpha."
        )
    return masks


def learn(examples: SAMEmbedding, masks: Tensor, frame: Frame, device: torch.device) -> Target:
    """The object in R embedded images, from its masks `[R, h, w]` of any size: the features of grid cells that it covers.

    A cell belongs to the object where the mask covers half of it; for an object too small for that, the cells that it covers
    most do.
    """
    grid = examples.shape[-2:]
    local = []
    for values, mask in zip(examples.view(np.ndarray), masks, strict=True):
        share = on_grid(mask, frame, grid)
        covered = (share >= min(0.5, float(share.max()))).flatten()
        local.append(torch.tensor(values, device=device).flatten(1).T[covered.to(device)])
    means = [features.mean(0) for features in local]
    unit = [F.normalize(features, dim=-1) for features in local]
    return Target(torch.stack(means).mean(0), unit, [F.normalize(mean, dim=-1) for mean in means])


def similarity_map(embedding: SAMEmbedding, index: int, frame: Frame, target: Target) -> Tensor:
    """The location prior of an image, float32 `[H, W]` on the CPU, -1..1.

    For each reference the cosine with its mean feature and with its best matching local feature, averaged; the mean over
    the references; from the grid to source pixels as the model's own logits go.
    """
    device = target.mean.device
    cells = F.normalize(torch.tensor(embedding.view(np.ndarray)[index], device=device).flatten(1).T, dim=-1)
    each = [(cells @ mean + (cells @ local.T).amax(1)) / 2 for mean, local in zip(target.means, target.local, strict=True)]
    grid = torch.stack(each).mean(0).view(1, 1, *embedding.shape[-2:])
    fine = F.interpolate(grid, scale_factor=4, mode="bilinear", align_corners=False)
    return resize_logits(fine[0], frame)[0].cpu()


def extremes(similarity: Tensor) -> np.ndarray:
    """The most and the least similar pixel of a map `[H, W]`: float64 `[2, 2]` (x, y)."""
    width = similarity.shape[1]
    places = [int(similarity.argmax()), int(similarity.argmin())]
    return np.array([(place % width, place // width) for place in places], dtype=np.float64)


class _Object(NamedTuple):
    mask: Tensor
    score: float
    point: np.ndarray


def _objects(
    frames: FrameDecoder, index: int, similarity: Tensor, target: Target, options: PersonalizeOptions
) -> Iterator[_Object]:
    """One object after the other, each where the similarity `[H, W]` is highest once the ones before are erased from it."""
    left, found, misses = similarity.clone(), [], 0
    lowest = extremes(similarity)[1]
    for _ in range(options.max_objects * _TRIES):
        peak = extremes(left)[0]
        if len(found) == options.max_objects or misses == _MISSES or float(left.max()) < options.min_score:
            return
        misses += 1
        if target.mixture is None:
            guidance = guide(left, frames.frame, frames.embedding.shape[-2:], target) if options.guided else None
            mask = _segment(frames, index, np.stack([peak, lowest]), guidance).cpu()
        else:
            mask = _segment_mixed(frames, index, peak, target.mixture).cpu()
        score = _score(similarity, mask)
        if bool(mask.any()) and not _is_known(mask, found) and score >= options.min_score:
            found.append(mask)
            misses = 0
            yield _Object(mask, score, peak)
        left[mask | _around(peak, mask.shape, frames)] = similarity.min()


def _with_method(
    target: Target,
    shown: FrameDecoder,
    references: Tensor | Sequence[np.ndarray],
    masks: Tensor,
    options: PersonalizeOptions,
) -> Target:
    """What the method of the options needs besides."""
    if options.method == "persam-f":
        return target._replace(mixture=_mixture(shown, masks, target))
    return _with_parts(target, references, masks) if options.method.startswith("parts") else target


def _with_parts(target: Target, references: Tensor | Sequence[np.ndarray], masks: Tensor) -> Target:
    """What `_compared` needs of the references."""
    frames = as_frames(references)
    shown = [resize_masks(mask[None], frame.shape[:2])[0] for mask, frame in zip(masks, frames, strict=True)]
    colors = [mean_color(frame, (mask >= mask.max() / 2).numpy()) for mask, frame in zip(shown, frames, strict=True)]
    return target._replace(parts=[parts_of(local, _PARTS) for local in target.local], colors=colors)


def _compared(
    frames: FrameDecoder, index: int, similarity: Tensor, target: Target, options: PersonalizeOptions, image: np.ndarray
) -> Iterator[_Object]:
    """What was found at several places, the best match of the references first."""
    places = replace(options, max_objects=max(_PLACES, options.max_objects), min_score=0.0)
    lowest, rated = extremes(similarity)[1], []
    for one in _objects(frames, index, similarity, target, places):
        again = _segment_parts(frames, index, one, lowest, target)
        for found in (one, one._replace(mask=again, score=_score(similarity, again))):
            if bool(found.mask.any()):
                rated.append((_resemblance(frames, index, found.mask, target, options, image), found))
    taken: list[Tensor] = []
    for _, found in sorted(rated, key=lambda pair: -pair[0]):
        if len(taken) < options.max_objects and found.score >= options.min_score and not _is_known(found.mask, taken):
            taken.append(found.mask)
            yield found


def _cells(frames: FrameDecoder, index: int, mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features of unit length `[P, C]` of the grid cells that a mask `[H, W]` covers, and the cells' numbers `[P]`."""
    values = torch.tensor(frames.embedding.view(np.ndarray)[index], device=device)
    share = on_grid(mask.float().cpu(), frames.frame, values.shape[-2:]).flatten()
    numbers = (share >= min(0.5, float(share.max()))).nonzero()[:, 0].to(device)
    return F.normalize(values.flatten(1).T[numbers], dim=-1), numbers


def _segment_parts(frames: FrameDecoder, index: int, found: _Object, lowest: np.ndarray, target: Target) -> Tensor:
    """A mask prompted with a point for each part of the object inside what was found; parts that are not there have none."""
    cells, numbers = _cells(frames, index, found.mask, target.mean.device)
    similarity = cells @ torch.cat(list(target.parts)).T
    best, where = similarity.max(0)
    best, where = best.cpu(), numbers[where].cpu()
    kept = where[best >= best.mean() - best.std(correction=0)].unique().numpy()
    width = frames.embedding.shape[-1]
    (height_, width_), resized = frames.frame.original, frames.frame.resized
    scale = np.array([width_ / resized[1], height_ / resized[0]]) * frames.frame.side / width
    points = np.stack([kept % width + 0.5, kept // width + 0.5], 1) * scale
    points = np.concatenate([found.point[None], np.minimum(points, [width_, height_]), lowest[None]])
    labels = np.array([1] * (len(points) - 1) + [0], np.int32)
    return frames.decode(index, [Prompt(points, labels)], replace(frames.options, multimask="off"))[0][0].cpu()


def _resemblance(
    frames: FrameDecoder, index: int, mask: Tensor, target: Target, options: PersonalizeOptions, image: np.ndarray
) -> float:
    """How much a mask resembles the most similar of the references."""
    cells, _ = _cells(frames, index, mask, target.mean.device)
    each = [match(local, cells) for local in target.local]
    if options.method == "parts and color":
        color = mean_color(image, mask.cpu().numpy())
        each = [one - color_distance(color, other) for one, other in zip(each, target.colors, strict=True)]
    return max(each)


def _score(similarity: Tensor, mask: Tensor) -> float:
    return float(similarity[mask].clamp(0, 1).mean()) if bool(mask.any()) else 0.0


def _is_known(mask: Tensor, others: list[Tensor]) -> bool:
    area = int(mask.sum())
    return any(int((mask & other).sum()) > _SAME * min(area, int(other.sum())) for other in others)


def _around(point: np.ndarray, size: Size, frames: FrameDecoder) -> Tensor:
    """The pixels within a grid cell of a point, bool `[H, W]`: they would lead to the same mask again."""
    reach = max(size) / max(frames.embedding.shape[-2:])
    near = torch.zeros(size, dtype=torch.bool)
    (left, top), (right, bottom) = np.maximum(point - reach, 0).astype(int), np.ceil(point + reach).astype(int) + 1
    near[top:bottom, left:right] = True
    return near


def guide(similarity: Tensor, frame: Frame, grid: Size, target: Target) -> Guidance:
    """The decoder's guidance by a map `[H, W]`: standardised, squeezed into 0..1, and 0 outside the image."""
    level = (similarity - similarity.mean()) / similarity.std().clamp(min=1e-6)
    attention = on_grid(level.sigmoid(), frame, grid)
    return Guidance(attention.flatten(1).to(target.mean.device), target.mean[None])


def _segment(frames: FrameDecoder, index: int, points: np.ndarray, guidance: Guidance | None) -> Tensor:
    """A mask bool `[H, W]` from a positive and a negative point `[2, 2]`, refined with its logits, then with its box."""
    prompt = Prompt(points, np.array([1, 0], np.int32))
    _, _, logits = frames.decode(index, [prompt], replace(frames.options, multimask="off"), guidance)
    masks, _, logits = frames.decode(index, [replace(prompt, logits=logits[0])])
    box = tight_box(masks[0])
    if box is None:
        return masks[0]
    corners = np.array([box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]], dtype=np.float64)
    return frames.decode(index, [replace(prompt, logits=logits[0], box=corners)])[0][0]


def _mixture(frames: FrameDecoder, masks: Tensor, target: Target) -> Tensor:
    """PerSAM-F's weights: what mixes the candidates of a click on each reference to its mask `[R, h, w]`."""
    examples, frame = [], frames.frame
    height, width = (math.ceil(side * cells / frame.side) for side, cells in zip(frame.resized, frame.grid, strict=True))
    for index, mask in enumerate(masks):
        peak = extremes(similarity_map(frames.embedding, index, frame, target))[0]
        wanted = (on_grid(mask, frame, frame.grid)[0] > 0.5).float().to(frames.device)
        examples.append((_candidates(frames, index, peak)[:, :height, :width], wanted[:height, :width]))
    return learn_mixture(examples)


def _candidates(frames: FrameDecoder, index: int, point: np.ndarray) -> Tensor:
    """Logits `[3, 4h, 4w]` of SAM's candidates for a click."""
    found = frames.run(index, [Prompt(point[None], np.array([1], np.int32))], Wanted(True, hq=frames.options.hq)).logits[0]
    if len(found) != MIXED:
        raise SAMError(f"persam-f mixes {MIXED} candidates, but this model gives {len(found)}. Choose another method.")
    return found


def _segment_mixed(frames: FrameDecoder, index: int, point: np.ndarray, weights: Tensor) -> Tensor:
    """A mask bool `[H, W]` from a point: the mixed candidates, refined twice with the last pixels as a box, and logits."""
    prompt, logits = Prompt(point[None], np.array([1], np.int32)), mix(_candidates(frames, index, point), weights)[None]
    mask = frames.upscale(logits)[0]
    for _ in range(2):
        box = tight_box(mask)
        if box is None:
            break
        x, y = box["x"], box["y"]
        corners = np.array([x, y, x + box["width"] - 1, y + box["height"] - 1], dtype=np.float64)
        masks, _, refined = frames.decode(index, [replace(prompt, logits=logits, box=corners)])
        mask, logits = masks[0], refined[0]
    return mask


def _gathered(objects: list[_Object], size: Size) -> tuple[Tensor, Tensor, np.ndarray]:
    """Objects of one image as masks `[N, H, W]`, scores `[N]` and points `[N, 2]`."""
    masks = torch.stack([one.mask for one in objects]) if objects else torch.zeros(0, *size, dtype=torch.bool)
    scores = torch.tensor([one.score for one in objects], dtype=torch.float32)
    points = np.array([one.point for one in objects], dtype=np.float64).reshape(-1, 2)
    return masks.to(result_device()), scores.to(result_device()), points

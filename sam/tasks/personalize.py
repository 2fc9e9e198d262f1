"""PerSAM: one example of an object, and the same object found in other images, without training.

"Personalize Segment Anything Model with One Shot" (arXiv 2305.03048), section 3.2, after Personalize-SAM's `persam.py`. What
differs: maps stay aligned with the image inside the model's square (there they are squashed onto it), the location prior is the
mean of the similarity to the example's mean feature and to its best matching local one, and an image may contain several such
objects.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...utils.boxes import tight_box
from ...utils.checks import one_of
from ...utils.images import as_masks, resize_masks
from ...utils.text import counted
from ..errors import SAMError
from ..geometry import Geometry, Size
from ..kernels.decoder import Guidance
from ..kernels.resemblance import color_distance, match, mean_color, parts_of
from ..kernels.upsample import resize_logits
from ..models.base import Segmenter, Wanted, optional_member
from ..models.concept import Concept
from ..models.features import IMAGE
from ..placement.devices import DeviceMode, placed, result_device
from ..prompts import Prompt, on_grid
from .embed import EncoderRun
from .mixture import MIXED, learn_mixture, mix
from .predict import PROMPT_BYTES, ImagePredictor, PredictOptions
from .stream import each_image

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

    def on(self, device: torch.device) -> "Target":
        """The same on a device."""
        local, means, parts = ([one.to(device) for one in some] for some in (self.local, self.means, self.parts))
        mixture = None if self.mixture is None else self.mixture.to(device)
        return Target(self.mean.to(device), local, means, mixture, parts, self.colors)


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
        one_of(self.method, METHODS, "method")


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
    model: Segmenter,
    references: Tensor | Sequence[np.ndarray],
    reference_masks: Tensor,
    images: Tensor | Sequence[np.ndarray],
    options: PersonalizeOptions | None = None,
    device_mode: DeviceMode = "AUTO",
) -> Personalized:
    """Find in images the object that the references show.

    Args:
        model: see `load_model`, or `as_segmenter` for another pack's.
        references, images: see `encode`; R and B images, the two of different sizes if you like.
        reference_masks: `[R, h, w]` in 0..1, the object in each reference; resized where its size is another.
        options: see `PersonalizeOptions`; None: its defaults.
        device_mode: see `placed`.

    Raises:
        SAMError: a mask is empty, their number is not that of the references, or the model's decoder cannot be guided.
    """
    run, found = EncoderRun(_guidable(model), images, device_mode), {}
    _find_each(run, references, reference_masks, found.__setitem__, options or PersonalizeOptions())
    each = [found[index] for index in range(len(run.frames))]
    maps = torch.stack([one.similarity for one in each]) if each else torch.zeros(0, *run.size)
    return Personalized(
        [one.masks for one in each], [one.scores for one in each], [one.points for one in each], maps.to(result_device())
    )


def personalize_each(
    model: Segmenter,
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
    run = EncoderRun(_guidable(model), images, device_mode)
    _find_each(run, references, reference_masks, take, options or PersonalizeOptions())


def _guidable(model: Segmenter) -> Segmenter:
    """The model, if its masks can be refined by its own masks.

    Raises:
        SAMError: it takes no mask prompts.
    """
    if optional_member(model, "takes_masks") is False:
        raise SAMError(
            f"SAM Personalize does not support {model.family}: it refines masks by mask prompts, which {model.family} does not "
            "take. Use a SAM or SAM 2 model."
        )
    return model


@torch.no_grad()
def _find_each(
    run: EncoderRun,
    references: Tensor | Sequence[np.ndarray],
    reference_masks: Tensor,
    take: Callable[[int, FoundObjects], None],
    options: PersonalizeOptions,
) -> None:
    """See `personalize_each`."""
    shown = EncoderRun(run.model, references, run.device_mode)
    masks = _checked_masks(reference_masks, len(shown.frames))
    # SAM's candidates; with a concept the one mask that was taught.
    taught = options.concept is not None and len(options.concept.tokens)
    predict = PredictOptions(multimask="off" if taught else "on", hq=options.hq, concept=options.concept)
    learned = learn(shown, masks, options.method, predict)
    targets: dict[torch.device, Target] = {}  # a GPU that has no room left in the middle of a batch hands over to the CPU

    def use(index: int, image: ImagePredictor) -> None:
        if image.device not in targets:
            targets[image.device] = learned.on(image.device)
        target = targets[image.device]
        similarity = similarity_map(image, target)
        if target.parts:
            objects = list(_compared(image, similarity, target, options, run.frames[index]))
        else:
            objects = list(_objects(image, similarity, target, options))
        masks = torch.stack([one.mask for one in objects]) if objects else torch.zeros(0, *run.size, dtype=torch.bool)
        scores = torch.tensor([one.score for one in objects], dtype=torch.float32)
        points = np.array([one.point for one in objects], dtype=np.float64).reshape(-1, 2)
        found = masks.to(image.result_device), scores.to(image.result_device), points
        take(index, FoundObjects(*found, similarity.clamp_(0, 1)))

    each_image(run, use, predict)


def _checked_masks(masks: Tensor, count: int) -> Tensor:
    """One mask for each reference, `[R, h, w]`, none of them empty."""
    masks = as_masks(masks, "reference_mask").cpu()
    if not count:
        raise SAMError("There is no reference image. Connect an image that shows the object.")
    if len(masks) != count:
        raise SAMError(
            f"reference_mask has {counted(len(masks), 'mask')} for {counted(count, 'reference image')}. Connect one for each."
        )
    empty = [str(index) for index, mask in enumerate(masks) if not bool((mask > 0.5).any())]
    if empty:
        raise SAMError(
            f"reference_mask is empty for reference {', '.join(empty)} of {len(masks)} (counted from 0). Paint over the object "
            "to find. Load Image gives an empty mask for an image without alpha."
        )
    return masks


def learn(run: EncoderRun, masks: Tensor, method: Method, predict: PredictOptions) -> Target:
    """The object in R images, as a method needs it.

    Args:
        run: the images.
        masks: the object in each, `[R, h, w]` of any size.
        method: see `PersonalizeOptions`.
        predict: how SAM's candidates are decoded, for `persam-f`.
    """
    cells, shown = [torch.zeros(0)] * len(masks), {}

    def use(index: int, image: ImagePredictor) -> None:
        cells[index] = _cells(image, masks[index])[0]
        if method == "persam-f":  # it clicks on each image where it resembles all of them
            shown[index] = image

    each_image(run, use, predict)
    device = cells[-1].device
    cells = [features.to(device) for features in cells]
    means, unit = [features.mean(0) for features in cells], [F.normalize(features, dim=-1) for features in cells]
    target = Target(torch.stack(means).mean(0), unit, [F.normalize(mean, dim=-1) for mean in means])
    if method == "persam-f":
        with placed(run.model.network, run.device_mode, PROMPT_BYTES) as device:
            target = target.on(device)
            return target._replace(mixture=_mixture([shown[index].on(device) for index in range(len(masks))], masks, target))
    if not method.startswith("parts"):
        return target
    fitted = [resize_masks(mask[None], frame.shape[:2])[0] for mask, frame in zip(masks, run.frames, strict=True)]
    colors = [mean_color(frame, (mask >= mask.max() / 2).numpy()) for mask, frame in zip(fitted, run.frames, strict=True)]
    return target._replace(parts=[parts_of(local, _PARTS) for local in unit], colors=colors)


def _cells(image: ImagePredictor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features `[P, C]` of the grid cells that a mask `[h, w]` covers half, and the cells' numbers `[P]`.

    Of an object too small for that, the cells that it covers most.
    """
    values = image.features.tensor(IMAGE)
    share = on_grid(mask.float().cpu(), image.geometry, values.shape[-2:]).flatten()
    numbers = (share >= min(0.5, float(share.max()))).nonzero()[:, 0].to(values.device)
    return values.flatten(1).T[numbers], numbers


def similarity_map(image: ImagePredictor, target: Target) -> Tensor:
    """The location prior of an image, float32 `[H, W]` on the CPU, -1..1.

    For each reference the cosine with its mean feature and with its best matching local feature, averaged; the mean over
    the references; from the grid to source pixels as the model's own logits go.
    """
    values = image.features.tensor(IMAGE)
    cells = F.normalize(values.flatten(1).T, dim=-1)
    each = [(cells @ mean + (cells @ local.T).amax(1)) / 2 for mean, local in zip(target.means, target.local, strict=True)]
    grid = torch.stack(each).mean(0).view(1, 1, *values.shape[-2:])
    fine = F.interpolate(grid, scale_factor=4, mode="bilinear", align_corners=False)
    return resize_logits(fine[0], image.geometry)[0].cpu()


def extremes(similarity: Tensor) -> np.ndarray:
    """The most and the least similar pixel of a map `[H, W]`: float64 `[2, 2]` (x, y)."""
    width = similarity.shape[1]
    places = [int(similarity.argmax()), int(similarity.argmin())]
    return np.array([(place % width, place // width) for place in places], dtype=np.float64)


class _Object(NamedTuple):
    mask: Tensor
    score: float
    point: np.ndarray


def _objects(image: ImagePredictor, similarity: Tensor, target: Target, options: PersonalizeOptions) -> Iterator[_Object]:
    """One object after the other, each where the similarity `[H, W]` is highest once the ones before are erased from it."""
    left, found, misses = similarity.clone(), [], 0
    lowest = extremes(similarity)[1]
    for _ in range(options.max_objects * _TRIES):
        peak = extremes(left)[0]
        if len(found) == options.max_objects or misses == _MISSES or float(left.max()) < options.min_score:
            return
        misses += 1
        if target.mixture is None:
            guidance = guide(left, image.geometry, _grid(image), target) if options.guided else None
            mask = _segment(image, np.stack([peak, lowest]), guidance).cpu()
        else:
            mask = _segment_mixed(image, peak, target.mixture).cpu()
        score = _score(similarity, mask)
        if bool(mask.any()) and not _is_known(mask, found) and score >= options.min_score:
            found.append(mask)
            misses = 0
            yield _Object(mask, score, peak)
        left[mask | _around(peak, mask.shape, max(_grid(image)))] = similarity.min()


def _compared(
    image: ImagePredictor, similarity: Tensor, target: Target, options: PersonalizeOptions, pixels: np.ndarray
) -> Iterator[_Object]:
    """What was found at several places of an image uint8 `[H, W, 3]`, the best match of the references first."""
    places = replace(options, max_objects=max(_PLACES, options.max_objects), min_score=0.0)
    lowest, rated = extremes(similarity)[1], []
    for one in _objects(image, similarity, target, places):
        again = _segment_parts(image, one, lowest, target)
        for found in (one, one._replace(mask=again, score=_score(similarity, again))):
            if bool(found.mask.any()):
                rated.append((_resemblance(image, found.mask, target, options, pixels), found))
    taken: list[Tensor] = []
    for _, found in sorted(rated, key=lambda pair: -pair[0]):
        if len(taken) < options.max_objects and found.score >= options.min_score and not _is_known(found.mask, taken):
            taken.append(found.mask)
            yield found


def _segment_parts(image: ImagePredictor, found: _Object, lowest: np.ndarray, target: Target) -> Tensor:
    """A mask prompted with a point for each part of the object inside what was found; parts that are not there have none."""
    cells, numbers = _cells(image, found.mask)
    similarity = F.normalize(cells, dim=-1) @ torch.cat(list(target.parts)).T
    best, where = similarity.max(0)
    best, where = best.cpu(), numbers[where].cpu()
    kept = where[best >= best.mean() - best.std(correction=0)].unique().numpy()
    columns = _grid(image)[1]
    (height, width), resized = image.geometry.original, image.geometry.resized
    scale = np.array([width / resized[1], height / resized[0]]) * image.geometry.side / columns
    points = np.stack([kept % columns + 0.5, kept // columns + 0.5], 1) * scale
    points = np.concatenate([found.point[None], np.minimum(points, [width, height]), lowest[None]])
    labels = np.array([1] * (len(points) - 1) + [0], np.int32)
    return image.predict([Prompt(points, labels)], replace(image.options, multimask="off"))[0][0].cpu()


def _resemblance(image: ImagePredictor, mask: Tensor, target: Target, options: PersonalizeOptions, pixels: np.ndarray) -> float:
    """How much a mask resembles the most similar of the references."""
    cells = F.normalize(_cells(image, mask)[0], dim=-1)
    each = [match(local, cells) for local in target.local]
    if options.method == "parts and color":
        color = mean_color(pixels, mask.cpu().numpy())
        each = [one - color_distance(color, other) for one, other in zip(each, target.colors, strict=True)]
    return max(each)


def _score(similarity: Tensor, mask: Tensor) -> float:
    return float(similarity[mask].clamp(0, 1).mean()) if bool(mask.any()) else 0.0


def _is_known(mask: Tensor, others: list[Tensor]) -> bool:
    area = int(mask.sum())
    return any(int((mask & other).sum()) > _SAME * min(area, int(other.sum())) for other in others)


def _grid(image: ImagePredictor) -> Size:
    """Rows and columns of an image's main feature map."""
    return tuple(image.features.tensor(IMAGE).shape[-2:])


def _around(point: np.ndarray, size: Size, cells: int) -> Tensor:
    """The pixels within a grid cell of a point, bool `[H, W]`: they would lead to the same mask again."""
    reach = max(size) / cells
    near = torch.zeros(size, dtype=torch.bool)
    (left, top), (right, bottom) = np.maximum(point - reach, 0).astype(int), np.ceil(point + reach).astype(int) + 1
    near[top:bottom, left:right] = True
    return near


def guide(similarity: Tensor, geometry: Geometry, grid: Size, target: Target) -> Guidance:
    """The decoder's guidance by a map `[H, W]`: standardised, squeezed into 0..1, and 0 outside the image."""
    level = (similarity - similarity.mean()) / similarity.std().clamp(min=1e-6)
    attention = on_grid(level.sigmoid(), geometry, grid)
    return Guidance(attention.flatten(1).to(target.mean.device), target.mean[None])


def _segment(image: ImagePredictor, points: np.ndarray, guidance: Guidance | None) -> Tensor:
    """A mask bool `[H, W]` from a positive and a negative point `[2, 2]`, refined with its logits, then with its box."""
    prompt = Prompt(points, np.array([1, 0], np.int32))
    _, _, logits = image.predict([prompt], replace(image.options, multimask="off"), guidance)
    masks, _, logits = image.predict([replace(prompt, logits=logits[0])])
    box = tight_box(masks[0])
    if box is None:
        return masks[0]
    corners = np.array([box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]], dtype=np.float64)
    return image.predict([replace(prompt, logits=logits[0], box=corners)])[0][0]


def _mixture(images: Sequence[ImagePredictor], masks: Tensor, target: Target) -> Tensor:
    """PerSAM-F's weights: what mixes the candidates of a click on each reference to its mask `[R, h, w]`."""
    examples, geometry = [], images[0].geometry
    height, width = (
        math.ceil(side * cells / geometry.side) for side, cells in zip(geometry.resized, geometry.grid, strict=True)
    )
    for image, mask in zip(images, masks, strict=True):
        peak = extremes(similarity_map(image, target))[0]
        wanted = (on_grid(mask, geometry, geometry.grid)[0] > 0.5).float().to(image.device)
        examples.append((_candidates(image, peak)[:, :height, :width], wanted[:height, :width]))
    return learn_mixture(examples)


def _candidates(image: ImagePredictor, point: np.ndarray) -> Tensor:
    """Logits `[3, 4h, 4w]` of SAM's candidates for a click."""
    found = image.decode([Prompt(point[None], np.array([1], np.int32))], Wanted(True, hq=image.options.hq)).logits[0]
    if len(found) != MIXED:
        raise SAMError(f"persam-f mixes {MIXED} candidates, but this model gives {len(found)}. Choose another method.")
    return found


def _segment_mixed(image: ImagePredictor, point: np.ndarray, weights: Tensor) -> Tensor:
    """A mask bool `[H, W]` from a point: the mixed candidates, refined twice with the last pixels as a box, and logits."""
    prompt, logits = Prompt(point[None], np.array([1], np.int32)), mix(_candidates(image, point), weights)[None]
    mask = image.upscale(logits)[0]
    for _ in range(2):
        box = tight_box(mask)
        if box is None:
            break
        x, y = box["x"], box["y"]
        corners = np.array([x, y, x + box["width"] - 1, y + box["height"] - 1], dtype=np.float64)
        masks, _, refined = image.predict([replace(prompt, logits=logits, box=corners)])
        mask, logits = masks[0], refined[0]
    return mask

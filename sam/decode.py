"""Embedding + prompts -> masks, scores, logits. Stateless: nothing is kept between calls, so threads may share a model."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from ..utils.comfy import Progress
from .cache import ByteCache
from .decoders import decoder_for, supports
from .device import DeviceMode, placed, result_device
from .embedding import SAMEmbedding, Size
from .encode import as_embedding
from .errors import SAMError
from .fast_decoder import FastDecoder, Guidance, Picture
from .hq import HQMaskDecoder
from .prompts import Prompt, shape_of, to_model_frame

Candidate: TypeAlias = Literal["best", "smallest", "middle", "largest", "all"]
CANDIDATES: tuple[str, ...] = get_args(Candidate)
Multimask: TypeAlias = Literal["auto", "on", "off"]
MULTIMASK: tuple[str, ...] = get_args(Multimask)

_PROMPTS_PER_BATCH = 64
_UPSCALED_ELEMENTS = 1 << 26  # 256 MiB of float32 at a time

pictures: ByteCache[Picture] = ByteCache(96 << 20)  # nine of stock SAM, at 10 MiB each


class Prediction(NamedTuple):
    """What `decode` found: lists with one tensor per picture, N entries in each, in the order of the picture's prompts.

    Attributes:
        masks: bool `[N, H, W]` in source pixels.
        scores: float32 `[N]`, predicted IoU.
        logits: float32 `[N, 1, 4h, 4w]`, low-resolution mask logits, a prompt for the next call.
    """

    masks: list[Tensor]
    scores: list[Tensor]
    logits: list[Tensor]


@torch.no_grad()
def decode(
    model: Sam,
    embedding: SAMEmbedding,
    prompts: Sequence[Sequence[Prompt]],
    candidate: Candidate = "best",
    multimask: Multimask = "auto",
    mask_threshold: float = 0.0,
    device_mode: DeviceMode = "AUTO",
    hq: bool = True,
) -> Prediction:
    """Turn prompts into masks, as `SamPredictor.predict_torch` does, for every picture and object at once.

    Args:
        model: the model that made the embedding; ours or any `segment_anything` Sam.
        embedding: B pictures.
        prompts: B lists of objects; an empty list gives no entry for that picture.
        candidate: which of SAM's candidates to keep of each object: the `best` predicted IoU, the `smallest`, `middle` or
            `largest` area in source pixels, or `all`, best first.
        multimask: three candidates (`on`), one (`off`), or three for a single click and one otherwise (`auto`).
        mask_threshold: a pixel is in the mask where its logit is above this.
        device_mode: see `placed`.
        hq: with a SAM-HQ model, draw its fine masks; off gives plain SAM's. No other model minds.

    Raises:
        SAMError: the embedding is another model's or lacks what SAM-HQ needs, the counts differ, or an option is unknown.
    """
    _check(candidate, CANDIDATES, "candidate")
    _check(multimask, MULTIMASK, "multimask")
    embedding = as_embedding(embedding, model)
    if len(prompts) != len(embedding):
        raise SAMError(f"there are prompts for {len(prompts)} pictures, but embeddings of {len(embedding)}.")
    results = []
    progress = Progress(len(prompts))
    with placed(model, device_mode) as device:
        frames = FrameDecoder(model, embedding, device, mask_threshold, hq)
        for index, objects in enumerate(prompts):
            progress.check_interrupted()
            results.append(frames.decode(index, objects, candidate, multimask))
            progress.advance()
    masks, scores, logits = zip(*results, strict=True) if results else ((), (), ())
    return Prediction(list(masks), list(scores), list(logits))


def _check(value: str, options: tuple[str, ...], name: str) -> None:
    if value not in options:
        raise SAMError(f"{name} is {value!r}: choose one of {', '.join(options)}.")


class FrameDecoder:
    """Pictures and a model that are on one device, for as long as `placed` keeps the model there.

    Args:
        model: any `segment_anything` Sam.
        embedding: B pictures, by that model.
        device: where the model is.
        threshold: a pixel is in the mask where its logit is above this.
        hq: see `decode`.
    """

    def __init__(self, model: Sam, embedding: SAMEmbedding, device: torch.device, threshold: float, hq: bool = True) -> None:
        self.fine = embedding.fine if hq and isinstance(model.mask_decoder, HQMaskDecoder) else None
        if hq and self.fine is None and len(embedding) and isinstance(model.mask_decoder, HQMaskDecoder):
            raise SAMError("the embedding lacks what SAM-HQ draws with: use this pack's Get SAM Embedding, or turn hq off.")
        self.model, self.embedding, self.device, self.threshold = model, embedding, device, threshold
        self.fast = decoder_for(model, device, hq) if supports(model) else None
        self.resting = result_device()

    def decode(
        self,
        index: int,
        objects: Sequence[Prompt],
        candidate: Candidate,
        multimask: Multimask,
        guidance: Guidance | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks, scores and logits of one picture's objects (see `Prediction`), all under the one `guidance`."""
        grid = self.model.prompt_encoder.mask_input_size
        kept = [(torch.zeros(0, *grid, device=self.device), torch.zeros(0, device=self.device))] * (len(objects) or 1)
        for members in _batches(objects):
            some = [objects[i] for i in members]
            logits, scores, _ = self.run(index, some, self._tokens(some[0], multimask), guidance=guidance)
            for row, member in enumerate(members):
                kept[member] = self._pick(logits[row], scores[row], candidate)
        logits, scores = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return self._upscale(logits), scores.to(self.resting), logits[:, None].to(self.resting)

    def run(
        self,
        index: int,
        prompts: list[Prompt],
        wanted: slice,
        above: float | None = None,
        guidance: Guidance | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask tokens of one picture's n prompts, which must share a shape (see `shape_of`).

        Args:
            index: of the picture.
            prompts: n of them.
            wanted: the W mask tokens to decode; the first is SAM's single mask, the others are its candidates.
            above: leave out prompts of which no wanted mask's predicted IoU exceeds this; None leaves out none.
            guidance: of an example, or None.

        Returns:
            Logits float32 `[m, W, 4h, 4w]` and predicted IoUs `[m, W]` of those left, and which they are, `[m]`.

        Raises:
            SAMError: there is guidance, but the model's decoder is one that the pack does not know how to guide.
        """
        values = self.embedding.view(np.ndarray)[index]
        tensors = to_model_frame(prompts, self.embedding.original_size, self.embedding.input_size, self.device)
        encoder = self.model.prompt_encoder
        sparse, dense = encoder(points=tensors.points, boxes=tensors.boxes, masks=tensors.masks)
        if self.fast is not None:
            picture = self._picture(self.fast, values, self.embedding.image_keys[index])
            fine = None if self.fine is None else self._here(self.fine[index : index + 1])
            return self.fast(picture, sparse, None if tensors.masks is None else dense, wanted, above, fine, guidance)
        if guidance is not None:
            raise SAMError(
                f"this model's mask decoder is a {type(self.model.mask_decoder).__name__}, which takes no example to go by: "
                "use a model from Load SAM Model."
            )
        features = self._here(values)[None]
        logits, scores = self.model.mask_decoder.predict_masks(features, encoder.get_dense_pe(), sparse, dense)
        logits, scores = logits[:, wanted], scores[:, wanted]
        kept = torch.arange(len(scores)) if above is None else (scores > above).any(1).nonzero()[:, 0]
        return logits[kept], scores[kept], kept

    def _here(self, values: np.ndarray) -> Tensor:
        """An embedding's values on the device; a read-only array is copied, as torch knows no such thing."""
        return torch.as_tensor(values if values.flags.writeable else values.copy(), device=self.device)

    def _picture(self, fast: FastDecoder, values: np.ndarray, image_key: str) -> Picture:
        """What the prompts of a picture share; remembered where memory is plenty and arithmetic is slow."""
        if self.device.type != "cpu":
            return fast.look_at(self._here(values))
        # A writeable embedding may have been changed in place since it was made; the sum of its bits tells.
        bits = int(values.view(np.uint32).sum(dtype=np.uint64)) if values.flags.writeable else None
        key = self.embedding.model_identity, image_key, bits
        picture = pictures.get(key)
        if picture is None:
            picture = fast.look_at(self._here(values))
            pictures.put(key, picture)
        return picture

    def _tokens(self, prompt: Prompt, multimask: Multimask) -> slice:
        """Which mask tokens count: the first is SAM's single mask, the others its candidates (`MaskDecoder.forward`)."""
        several = multimask == "on" or (multimask == "auto" and prompt.is_single_click)
        return slice(1, None) if several and self.model.mask_decoder.num_mask_tokens > 1 else slice(0, 1)

    def _pick(self, logits: Tensor, scores: Tensor, candidate: Candidate) -> tuple[Tensor, Tensor]:
        if candidate in ("best", "all"):
            order = scores.argsort(descending=True, stable=True)
            picked = order if candidate == "all" else order[:1]
        else:
            order = self._upscale(logits).flatten(1).sum(1).argsort(stable=True)
            place = {"smallest": 0, "middle": (len(order) - 1) // 2, "largest": len(order) - 1}[candidate]
            picked = order[place : place + 1].to(logits.device)
        return logits[picked], scores[picked]

    def _upscale(self, logits: Tensor) -> Tensor:
        """Low-resolution logits `[N, 4h, 4w]` -> masks bool `[N, H, W]`, a bounded number at a time."""
        original: Size = self.embedding.original_size
        pixels = max(original[0] * original[1], self.model.image_encoder.img_size**2)
        masks = torch.zeros(len(logits), *original, dtype=torch.bool, device=self.resting)
        for part in torch.arange(len(logits)).split(max(1, _UPSCALED_ELEMENTS // pixels)):
            full = self.model.postprocess_masks(logits[part, None], self.embedding.input_size, original)
            masks[part] = (full[:, 0] > self.threshold).to(self.resting)
        return masks


def _batches(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Indices of prompts that may share a decoder call."""
    alike = defaultdict(list)
    for index, prompt in enumerate(prompts):
        alike[shape_of(prompt)].append(index)
    for members in alike.values():
        for start in range(0, len(members), _PROMPTS_PER_BATCH):
            yield members[start : start + _PROMPTS_PER_BATCH]

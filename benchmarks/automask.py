"""Part `automask`: segment everything, beside segment_anything's generator and transformers' mask-generation pipeline.

The weights are the same in all three: random, and scaled so that the generators, at their defaults, have masks to work on.
"""

import sys
import time
from typing import Any

import numpy as np
import torch
from harness import MODELS, Report, Table, peak_memory, photo, random_sam, timed, transformers_sam
from PIL import Image
from samkit.sam import as_segmenter
from samkit.sam.kernels.decoder import FastDecoder
from samkit.sam.tasks.embed import cache
from samkit.sam.tasks.everything import AutoMaskOptions, segment_everything
from samkit.sam.weights.formats import to_sam_names
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder

SIZES = ((1024, 1024), (1536, 2048))
MEMORY = """
import automask
frame = photo(*{size})
model = automask.lively({name!r}, frame)
run = automask.{way}(model)
start()
run(frame)
"""
_SHARE, _SPREAD, _GOOD = 0.95, 1000.0, 0.5
_CONSTANT = 3.0  # what a GELU hardly changes


@torch.no_grad()
def lively(name: str, frame: np.ndarray) -> torch.nn.Module:
    """segment_anything's Sam with random weights, scaled so that its generator finds masks on a photo, at its defaults.

    As they come, random masks are grains all over the photo: none is stable, and their boxes are all alike. So the last
    kernels of the encoder and of the upsampling are made constant, that masks hang together as SAM's do; logits are scaled up,
    and shifted down until a mask is a twentieth of the photo on average; the predicted IoU is shifted until half pass.
    """
    sam = random_sam(**MODELS[name])
    decoder = sam.mask_decoder
    last_up = decoder.output_upscaling[3]
    for convolution in (sam.image_encoder.neck[2], decoder.output_upscaling[0], last_up):
        convolution.weight[:] = convolution.weight[:, :, :1, :1].clone()
    heads = [mlp.layers[-1] for mlp in decoder.output_hypernetworks_mlps]
    last_up.weight[:, 0], last_up.bias[0] = 0.0, _CONSTANT  # one channel is constant: a mask's offset
    for head in heads:
        head.weight[0], head.bias[0] = 0.0, 0.0
    predictor = SamPredictor(sam)
    predictor.set_image(frame)
    side = torch.linspace(1 / 16, 15 / 16, 6)
    places = predictor.transform.apply_coords_torch(
        torch.cartesian_prod(side, side)[:, None] * torch.tensor(frame.shape[1::-1]), frame.shape[:2]
    )
    _, scores, logits = predictor.predict_torch(places, torch.ones(len(places), 1))
    for token in range(3):
        head, own = heads[token + 1], logits[:, token]
        scale = _SPREAD / own.std()
        head.weight.mul_(scale)
        head.bias.mul_(scale)
        head.bias[0] = -torch.quantile(own.flatten()[::4], _SHARE) * scale / _CONSTANT
        decoder.iou_prediction_head.layers[-1].bias[token + 1] += 0.88 - torch.quantile(scores[:, token], 1 - _GOOD)
    return sam


def ours(model: torch.nn.Module) -> Any:
    """Photo -> masks, by this pack."""

    def run(frame: np.ndarray) -> Any:
        cache.clear()
        return segment_everything(as_segmenter(model), frame, AutoMaskOptions())

    return run


def segment_anything(model: torch.nn.Module) -> Any:
    """Photo -> masks, by the reference generator."""
    return SamAutomaticMaskGenerator(model).generate


def transformers(model: torch.nn.Module) -> Any:
    """Photo -> masks, by transformers' pipeline with the same weights."""
    from transformers import SamImageProcessor, pipeline

    own = model.state_dict()
    width = own["image_encoder.pos_embed"].shape[-1]
    theirs = transformers_sam(next(name for name, shape in MODELS.items() if shape["embed_dim"] == width))
    with torch.no_grad():
        for name, value in to_sam_names(theirs.state_dict(), "transformers' own").items():
            value.copy_(own[name])  # the same memory under another name
    generator = pipeline("mask-generation", model=theirs, image_processor=SamImageProcessor(), device="cpu")
    return lambda frame: generator(Image.fromarray(frame), points_per_batch=64)


def measure(models: list[str], device: torch.device) -> Report:
    """Seconds in all and after the decoder, and peak memory; 32 points a side."""
    report = Report("automask")
    table = Table(
        f"Segment everything, {models[0]}, 32 points per side",
        ["image", "implementation", "total", "after decoder", "memory"],
    )
    for size in SIZES:
        frame = photo(*size)
        model = lively(models[0], frame)
        found = {}
        for way in (segment_anything, transformers, ours):
            total, inside, masks = _run_timed(way(model), frame)
            memory = peak_memory(MEMORY.format(name=models[0], size=size, way=way.__name__))
            found[way.__name__] = {"seconds": total, "after_decoder": total - inside, "bytes": memory, "masks": masks}
            after = "" if way is transformers else f"{total - inside:.2f} s"
            table.rows.append([f"{size[1]}x{size[0]}", way.__name__, f"{total:.1f} s", after, f"{memory / 1e6:.0f} MB"])
        report.numbers[f"{size[1]}x{size[0]}"] = found
        table.rows.append(_ratios(found))
    report.tables.append(table)
    return report


def _ratios(found: dict[str, dict[str, float]]) -> list[str]:
    reference, own = found["segment_anything"], found["ours"]
    faster = [f"**{reference[key] / own[key]:.1f}x**" for key in ("seconds", "after_decoder")]
    return ["", "ours compared with segment_anything", *faster, f"**{own['bytes'] / reference['bytes']:.2f}**"]


def _run_timed(run: Any, frame: np.ndarray) -> tuple[float, float, int]:
    """Seconds in all, seconds inside the encoders and the decoder, and the number of masks."""
    arithmetic = (
        (ImageEncoderViT, "forward"),
        (PromptEncoder, "forward"),
        (MaskDecoder, "forward"),
        (FastDecoder, "__call__"),
        (FastDecoder, "share"),
        (sys.modules["samkit.sam.models.sam"], "run_encoder"),
    )
    with timed(*arithmetic) as spent:
        begun = time.perf_counter()
        masks = run(frame)
        total = time.perf_counter() - begun
    return total, sum(spent), len(masks["masks"] if isinstance(masks, dict) else masks)

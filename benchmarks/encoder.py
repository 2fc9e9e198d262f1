"""Part `encoder`: the image encoder of each model, and how the cost grows with photos' sizes and in batches."""

import statistics

import torch
from harness import (
    Plot,
    Report,
    Table,
    as_image,
    encoder_flops,
    gemm_rate,
    interleaved,
    photo,
    ratio,
    sam,
    transformers_sam,
)
from samkit.sam import as_segmenter, encode
from samkit.sam.kernels.linear import bfloat16_pays
from samkit.sam.models.sam import run_encoder
from samkit.sam.tasks.embed import cache

SIZES = ((480, 640), (768, 1024), (1024, 1024), (1536, 2048), (3000, 4000))
BATCHES = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 16)}
ROUNDS, ROUNDS_OF_LARGE = 3, 1
LARGE = 2e12  # operations


@torch.no_grad()
def measure(models: list[str], device: torch.device) -> Report:
    """Ours, segment_anything's and transformers', on the same photo in one process."""
    report = Report("encoder")
    limit = gemm_rate(device)
    head = ["model", "segment_anything", "transformers (sdpa)", "ours", "over segment_anything", "over transformers"]
    table = Table("Image encoder, 1024x1024, float32" if device.type == "cpu" else "Image encoder, 1024x1024, fp16", head)
    table.columns += ["largest difference", "arithmetic limit", "reached"]
    for name in models:
        table.rows.append(_compare(name, device, limit, report))
    table.note = f"The limit: {limit / 1e9:.0f} GFLOP/s, this machine's best matrix product in the same run."
    report.tables.append(table)
    report.tables += [_sizes(models[0], device, report), _batches(models[0], device, report)]
    return report


def _compare(name: str, device: torch.device, limit: float, report: Report) -> list[str]:
    stock, theirs = sam(name).to(device), transformers_sam(name).to(device)
    images = torch.randn(1, 3, 1024, 1024, device=device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32

    def in_dtype(run: object) -> object:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return run(images)

    candidates = {
        "segment_anything": lambda: in_dtype(stock.image_encoder),
        "transformers": lambda: in_dtype(theirs.vision_encoder),
        "ours": lambda: run_encoder(stock.image_encoder, images, dtype),
    }
    if device.type == "cpu" and bfloat16_pays():
        candidates["ours, bf16"] = lambda: run_encoder(stock.image_encoder, images, torch.bfloat16)
    exact = stock.image_encoder(images)
    error = float((run_encoder(stock.image_encoder, images, dtype)[0] - exact).abs().max())
    seconds = interleaved(candidates, device, ROUNDS if encoder_flops(name) < LARGE else ROUNDS_OF_LARGE)
    floor = encoder_flops(name) / limit
    ratios = {other: ratio(seconds[other], seconds["ours"]) for other in ("segment_anything", "transformers")}
    median = {key: statistics.median(values) for key, values in seconds.items()}
    report.numbers[name] = {"seconds": median, "ratios": ratios, "max_abs_error": error, "limit_seconds": floor}
    line = [name, *(f"{median[key]:.2f} s" for key in ("segment_anything", "transformers", "ours"))]
    line += [f"**{ratios['segment_anything']:.2f}x**", f"**{ratios['transformers']:.2f}x**", f"{error:.1e}"]
    line += [f"{floor:.2f} s", f"{100 * floor / median['ours']:.0f} %"]
    if "ours, bf16" in median:
        line[3] += f" (bf16: {median['ours, bf16']:.2f} s)"
    return line


def _sizes(name: str, device: torch.device, report: Report) -> Table:
    model = as_segmenter(sam(name))
    mode = "CPU" if device.type == "cpu" else "Prefer GPU"
    table = Table(f"From image to embedding by source size, {name}", ["image", "ours"])
    found = {}
    for height, width in SIZES:
        image = as_image(photo(height, width))

        def embed(image: torch.Tensor = image) -> None:
            cache.clear()
            encode(model, image, mode)

        found[f"{width}x{height}"] = statistics.median(interleaved({"ours": embed}, device, 1)["ours"])
    table.rows = [[size, f"{seconds:.2f} s"] for size, seconds in found.items()]
    report.numbers["sizes"] = found
    return table


def _batches(name: str, device: torch.device, report: Report) -> Table:
    encoder = sam(name).image_encoder.to(device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    table = Table(f"Images in one call, {name}", ["batch", "seconds per image", "images per second"])
    points = []
    for count in BATCHES[device.type]:
        images = torch.randn(count, 3, 1024, 1024, device=device)
        run = {"ours": lambda images=images: run_encoder(encoder, images, dtype)}
        each = statistics.median(interleaved(run, device, 1)["ours"]) / count
        points.append((count, each))
        table.rows.append([str(count), f"{each:.2f}", f"{1 / each:.2f}"])
    report.plots.append(Plot("batch", f"{name}: seconds per image", "images in a call", "seconds", {"ours": points}))
    report.numbers["batches"] = points
    return table

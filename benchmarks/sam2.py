"""Part `sam2`: SAM 2.1's image encoder, one click and many, and SAM 3's image encoder, beside transformers' models."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Report, Table, gemm_rate, interleaved, peak_memory, ratio
from reference_sam2 import BASE_PLUS, LARGE, SMALL_PUBLISHED, TINY, random_sam2
from reference_sam3 import random_sam3
from samkit.sam.models.base import Wanted
from samkit.sam.models.features import Features
from samkit.sam.models.sam2 import SAM2Model, build_sam2
from samkit.sam.prompts import PromptTensors
from samkit.sam.weights.formats.sam2 import to_sam2_names
from samkit.sam.weights.formats.sam3 import for_clicks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CONFIGS = {"tiny": TINY, "small": SMALL_PUBLISHED, "base+": BASE_PLUS, "large": LARGE}
SAM_3 = "SAM 3"
CLICKS = (1, 4, 16, 64)
ROUNDS = {"encoder": 3, 1: 15, 4: 7, 16: 3, 64: 2}
MEMORY = """
from sam2 import *
torch.set_grad_enabled(False)
theirs, ours = pair({config!r}, torch.device({device!r}))
{keep}
run = runs(theirs, ours, torch.device({device!r}), {clicks})[{who!r}]
start()
run()
"""


def pair(config: str, device: torch.device) -> tuple[torch.nn.Module, SAM2Model]:
    """transformers' model and ours of one size, with the same seeded random weights."""
    if config == SAM_3:
        theirs = random_sam3({}).to(device)
        state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
        return theirs, build_sam2(for_clicks(state.items(), config), Path("sam3.safetensors")).to(device)
    theirs = random_sam2(CONFIGS[config]).to(device)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    return theirs, build_sam2(to_sam2_names(state, config), Path(f"{config}.safetensors")).to(device)


def runs(theirs: Any, ours: SAM2Model | None, device: torch.device, clicks: int) -> dict[str, Callable[[], Any]]:
    """What is compared: the encoder where `clicks` is 0, else that many single clicks on one image, three candidates each."""
    if not clicks:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        side = theirs.config.prompt_encoder_config.image_size
        pixels = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=device)

        def encode() -> Any:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return theirs.get_image_embeddings(pixels.float() / 255)

        return {"transformers": encode, "ours": lambda: ours.features(pixels, dtype)}
    maps = [torch.randn(1, channels, side, side, device=device) for channels, side in ((32, 256), (64, 128), (256, 64))]
    names = ("high_res_0", "high_res_1", "image")
    arrays = {name: values[0].cpu().numpy().copy() for name, values in zip(names, maps, strict=True)}
    for values in arrays.values():
        values.flags.writeable = False  # as an embedding's are: what can change is copied, and compared with every use
    features = Features(arrays, f"{clicks}", device)
    coords, labels = torch.rand(clicks, 1, 2, device=device) * 1024, torch.ones(clicks, 1, dtype=torch.int, device=device)
    prompts = PromptTensors((coords, labels), None, None)
    given = {"image_embeddings": maps, "input_points": coords[None], "input_labels": labels[None]}
    return {"transformers": lambda: theirs(**given), "ours": lambda: ours.decode(features, prompts, Wanted(True))}


@torch.no_grad()
def measure(models: list[str], device: torch.device) -> Report:
    """Ours and transformers', in one process; `models` are SAM's and say nothing here: tiny and base+ are measured."""
    report, limit = Report("sam2"), gemm_rate(device)
    head = ["what", "transformers (sdpa)", "ours", "faster by", "transformers: memory", "ours: memory"]
    table = Table("SAM 2.1 beside transformers' Sam2Model" + (", float32" if device.type == "cpu" else ", fp16"), head)
    limits = Table("The encoders and the arithmetic limit", ["what", "operations", "arithmetic limit", "ours", "reached"])
    for config in ("tiny", "base+"):
        theirs, ours = pair(config, device)
        what, candidates = f"encode an image, {config}", runs(theirs, ours, device, 0)
        table.rows.append(_compare(what, config, candidates, 0, device, report))
        limits.rows.append(_limit(what, candidates["transformers"], limit, report))
    for clicks in CLICKS:
        what = "1 click" if clicks == 1 else f"{clicks} clicks"
        table.rows.append(_compare(what, "tiny", runs(theirs, ours, device, clicks), clicks, device, report))
    theirs, ours = pair(SAM_3, device)
    what, candidates = "encode an image, SAM 3", runs(theirs, ours, device, 0)
    table.rows.append(_compare(what, SAM_3, candidates, 0, device, report))
    limits.rows.append(_limit(what, candidates["transformers"], limit, report))
    table.note = "Memory: the peak over the loaded model, each in a process of its own. All sizes have the same decoder."
    limits.note = f"The limit: {limit / 1e9:.0f} GFLOP/s, this machine's best matrix product in the same run."
    report.tables += [table, limits]
    return report


def _limit(what: str, encode: Callable[[], Any], limit: float, report: Report) -> list[str]:
    """How near our encoder is to the time that its operations take at the rate of this machine's best matrix product."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # which is counted, as others are not
        encode()
    operations, seconds = counter.get_total_flops(), report.numbers[what]["seconds"]["ours"]
    report.numbers[what] |= {"operations": operations, "limit_seconds": operations / limit}
    floor = operations / limit
    return [
        what,
        f"{operations / 1e9:.0f} GFLOP",
        f"{1000 * floor:.0f} ms",
        f"{1000 * seconds:.0f} ms",
        f"{100 * floor / seconds:.0f} %",
    ]


def _compare(
    what: str, config: str, candidates: dict[str, Callable[[], Any]], clicks: int, device: torch.device, report: Report
) -> list[str]:
    is_large = config == SAM_3 and device.type == "cpu"  # a minute each
    seconds = interleaved(candidates, device, 1 if is_large else ROUNDS[clicks or "encoder"])
    median = {key: statistics.median(values) for key, values in seconds.items()}
    memory = {who: _memory(config, who, clicks, device) for who in candidates} if clicks in (0, 1, 64) and not is_large else {}
    faster = ratio(seconds["transformers"], seconds["ours"])
    report.numbers[what] = {"seconds": median, "ratio": faster, "memory": memory}
    line = [what, *(f"{1000 * value:.0f} ms" for value in median.values()), f"**{faster:.2f}x**"]
    return [*line, *(f"{memory[who] / 1e6:.0f} MB" if memory else "" for who in candidates)]


def _memory(config: str, who: str, clicks: int, device: torch.device) -> float:
    keep = "del ours; ours = None" if who == "transformers" else ""
    return peak_memory(MEMORY.format(config=config, device=str(device), keep=keep, clicks=clicks, who=who))

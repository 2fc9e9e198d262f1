"""What the parts of the benchmark share: fair timing, peak memory, the machine's arithmetic limit, models, tables."""

import contextlib
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

from load_pack import load_pack  # noqa: E402

load_pack()

from reference import random_sam  # noqa: E402

MODELS: dict[str, dict[str, Any]] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "vit_l": {"embed_dim": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23)},
    "vit_h": {"embed_dim": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)},
    "slimsam_50": {"embed_dim": 384, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "slimsam_77": {
        "embed_dim": 168, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11), "mlp_ratio": 696.5 / 168,
    },
}  # fmt: skip


@dataclass
class Table:
    """Results under headings; `plot` maps a series' name to its (x, y) points."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def markdown(self) -> str:
        """The table as GitHub shows it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"### {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")


@dataclass
class Plot:
    """Lines on logarithmic axes: series by name, each a list of (x, y)."""

    name: str
    title: str
    x: str
    y: str
    series: dict[str, list[tuple[float, float]]]


@dataclass
class Report:
    """One part's tables, plots and raw numbers."""

    part: str
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


def interleaved(
    candidates: dict[str, Callable[[], Any]], device: torch.device, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each candidate, one of each in turn, after some rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-warm_up, rounds):
        for name, candidate in candidates.items():
            _wait(device)
            begun = time.perf_counter()
            candidate()
            _wait(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - begun)
            gc.collect()
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(slower: list[float], faster: list[float]) -> float:
    """Median of the ratios of runs that were made side by side."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


@contextlib.contextmanager
def timed(*places: tuple[Any, str]) -> Iterator[list[float]]:
    """Collects the seconds that are spent in some functions, each given as its owner and its name."""
    spent: list[float] = []

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - begun)

        return run

    kept = [getattr(owner, name) for owner, name in places]
    for (owner, name), function in zip(places, kept, strict=True):
        setattr(owner, name, wrapped(function))
    try:
        yield spent
    finally:
        for (owner, name), function in zip(places, kept, strict=True):
            setattr(owner, name, function)


@cache
def gemm_rate(device: torch.device) -> float:
    """FLOP/s of this machine's best large float32 matrix product (fp16 on a GPU), the arithmetic limit."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    best = 0.0
    for rows, inner, columns in ((4096, 768, 768), (4096, 3072, 768), (2048, 2048, 2048)):
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        seconds = interleaved({"gemm": lambda a=a, b=b, out=out: torch.mm(a, b, out=out)}, device, 9)["gemm"]
        best = max(best, 2 * rows * inner * columns / min(seconds))
    return best


def sam(name: str) -> torch.nn.Module:
    """segment_anything's Sam at full size with seeded random weights."""
    return random_sam(**MODELS[name])


def transformers_sam(name: str) -> torch.nn.Module:
    """transformers' SamModel of the same shape, random weights, SDPA attention."""
    from transformers import SamConfig, SamModel, SamVisionConfig

    shape = MODELS[name]
    vision = SamVisionConfig(
        hidden_size=shape["embed_dim"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        mlp_dim=int(shape["embed_dim"] * shape.get("mlp_ratio", 4)),
        global_attn_indexes=list(shape["global_blocks"]),
    )
    torch.manual_seed(0)
    config = SamConfig(vision_config=vision.to_dict())
    return SamModel._from_config(config, attn_implementation="sdpa").eval()


def encoder_flops(name: str) -> float:
    """Operations (two per multiply-add) of the image encoder at 1024x1024, padding tokens left out."""
    shape = MODELS[name]
    width, hidden, tokens, window = shape["embed_dim"], int(shape["embed_dim"] * shape.get("mlp_ratio", 4)), 64**2, 14
    per_token = 2 * width * (4 * width + 2 * hidden)
    windowed = 4 * tokens * window**2 * width + 2 * tokens * width * 2 * (2 * window - 1)
    everywhere = 4 * tokens**2 * width + 2 * tokens * width * 2 * (2 * 64 - 1)
    blocks = shape["depth"], len(shape["global_blocks"])
    attention = (blocks[0] - blocks[1]) * windowed + blocks[1] * everywhere
    rest = tokens * 2 * (768 * width + width * 256 + 9 * 256 * 256)
    return blocks[0] * tokens * per_token + attention + rest


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A photo with structure, uint8 [H, W, 3]."""
    from scenes import make_scene

    return make_scene(2_000_000 + seed, (height, width)).image


def as_image(frame: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, 3] as an IMAGE [1, H, W, 3]."""
    return torch.from_numpy(frame)[None].float() / 255


def peak_memory(code: str) -> float:
    """Bytes that `code` adds at most, in a process of its own: it prepares, calls `start()`, and does what is measured.

    Peak resident size on Linux; on other systems the process' own highest value.
    """
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom harness import *\n{code}\nfinish()\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


_base = 0.0


def start() -> None:
    """In a process of `peak_memory`: from here on it counts."""
    global _base
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    _base = _peak()


def finish() -> None:
    """In a process of `peak_memory`: print what was added since `start`."""
    sys.stdout.write(json.dumps(_peak() - _base) + "\n")


def _peak() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        return float(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) * 1024
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def machine(device: torch.device) -> str:
    """The machine in a line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line for line in lines if line.startswith("flags")), "")
        name += "".join(f", {label}" for flag, label in (("avx512f", "AVX-512"), ("amx_bf16", "AMX")) if flag in flags)
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"

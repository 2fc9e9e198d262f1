"""Part `engines`: what a CPU user would run instead, beside ours: exported encoders and decoders in OpenVINO and ONNX Runtime.

All of a row run in one process, one of each in turn, with as many threads as torch has. The packages are needed here only, and
are installed when the part runs.
"""

import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import MODELS, Report, Table, interleaved, peak_memory, random_sam
from samkit.sam import load_model
from samkit.sam.models.efficient_sam.decoder import DecoderShape
from samkit.sam.models.efficient_sam.encoder import PlainViTShape
from samkit.sam.models.efficient_sam.model import EfficientSAM
from samkit.sam.models.features import IMAGE
from samkit.sam.models.sam import decoder_plan, run_encoder
from samkit.sam.models.tiny_vit import Stage, TinyViT
from torch import Tensor, nn

PACKAGES = {"openvino": "2026.4.1", "onnxruntime": "1.32.0", "onnx": "1.23.2"}
ROUNDS, PROMPTS = 5, (1, 64, 256)
CONFIGS = {"SAM ViT-B": "vit_b", "SlimSAM-77": "slimsam_77", "SAM 2.1 tiny": "tiny", "SAM 2.1 base+": "base+"}
ENCODERS = (*CONFIGS, "MobileSAM", "EfficientSAM-Ti", "EdgeTAM")
IN_ONNX = ("SAM ViT-B", "MobileSAM")
_BUSY = "while True: pass"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEMORY = """
from engines import *
torch.set_grad_enabled(False)
model, run, pixels = encoder_of({name!r})
if {path!r} is None:
    run(torch.float32)  # its plan is part of the model, as is what OpenVINO compiles
    start()
    run(torch.float32)
else:
    compiled = compiled_for({path!r}, "f32")
    start()
    compiled.create_infer_request().infer([pixels.numpy()])
"""


class _Maps(nn.Module):
    """The maps of a SAM 2 of transformers, for export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.get_image_embeddings(pixels))


def encoder_of(name: str) -> tuple[nn.Module, Callable[[torch.dtype], Tensor], Tensor]:
    """The reference's encoder with seeded random weights, which is exported, ours on the same weights, and an image for it."""
    colours = torch.randint(0, 256, (1, 3, 1024, 1024), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = (colours / 255 - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
    if name == "MobileSAM":
        torch.manual_seed(0)
        stages = Stage(64, 2, 0, 0, 2), Stage(128, 2, 4, 7, 2), Stage(160, 6, 5, 14, 1), Stage(320, 2, 10, 7, 0)
        encoder = TinyViT(1024, stages, 4.0, 4.0, 256).eval()
        return encoder, lambda dtype: run_encoder(encoder, pixels, dtype)[0], pixels
    if name == "EfficientSAM-Ti":
        torch.manual_seed(0)
        shape = PlainViTShape(width=192, depth=12, heads=3, hidden=768, patch=16, grid=64, places=14 * 14 + 1, channels=256)
        ours = EfficientSAM(shape, DecoderShape(256, 2, 2048, 2, 4, 64, 32, 3, 256, 3), Path("ti.pt"), "fp32").eval()
        return ours.image_encoder, lambda dtype: ours.features(colours, dtype)[IMAGE], pixels
    if name == "EdgeTAM":
        from reference_edgetam import random_edgetam

        theirs = random_edgetam()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = load_model(folder, "fp32")
        return _Maps(theirs), lambda dtype: ours.features(colours, dtype)[IMAGE], pixels
    if not name.startswith("SAM 2"):
        encoder = random_sam(**MODELS[CONFIGS[name]]).image_encoder
        return encoder, lambda dtype: run_encoder(encoder, pixels, dtype)[0], pixels
    from sam2 import pair

    theirs, ours = pair(CONFIGS[name], torch.device("cpu"))
    return _Maps(theirs), lambda dtype: ours.features(colours, dtype)[IMAGE], pixels


def compiled_for(path: str, hint: str) -> Any:
    """A model in OpenVINO's form, compiled for this CPU to compute in a type."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
    }
    return openvino.Core().compile_model(path, "CPU", settings)


def in_openvino(path: str, hint: str, *given: Tensor) -> Callable[[], Tensor]:
    """A compiled model on these inputs; its last output."""
    request = compiled_for(path, hint).create_infer_request()
    arrays = {number: one.numpy() for number, one in enumerate(given)}

    def run() -> Tensor:
        found = request.infer(arrays)
        return torch.from_numpy(found[len(found) - 1])

    run()
    return run


def in_onnxruntime(path: str, *given: Tensor) -> Callable[[], Tensor]:
    """A model in ONNX' form, in float32; its last output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    arrays = {one.name: value.numpy() for one, value in zip(session.get_inputs(), given, strict=True)}

    def run() -> Tensor:
        return torch.from_numpy(session.run(None, arrays)[-1])

    run()
    return run


def export_openvino(model: nn.Module, path: Path, *given: Tensor) -> str:
    """Save a module in OpenVINO's form, with its weights in float32."""
    import openvino

    openvino.save_model(openvino.convert_model(model, example_input=given), path, compress_to_fp16=False)
    return str(path)


def export_onnx(model: nn.Module, path: Path, *given: Tensor) -> str:
    """Save a module in ONNX' form."""
    torch.onnx.export(model, given, path, dynamo=False, opset_version=17)
    return str(path)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """In the body, another process keeps the first core busy."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        yield
    finally:
        process.kill()
        process.wait()


@torch.no_grad()
def measure(models: list[str], device: torch.device) -> Report:
    """Encoders idle and beside a busy process, their memory, and the decoder; `models` say nothing here."""
    _install()
    report = Report("engines")
    head = ["encoder, 1024x1024", "ours", "OpenVINO", "ONNX Runtime", "faster than OpenVINO"]
    exact, lower = (
        Table("float32", [*head, "largest difference"]),
        Table("bfloat16", [*head[:3], head[-1], "ours: error", "OpenVINO: error"]),
    )
    loaded = Table(
        "float32, beside a process that keeps one core busy", ["encoder", "ours", "slowed by", "OpenVINO", "slowed by"]
    )
    memory = Table("Memory above the model, float32", ["encoder", "ours", "OpenVINO"])
    with tempfile.TemporaryDirectory() as folder:
        for name in ENCODERS:
            _encoder(name, Path(folder), (exact, lower, loaded, memory), report)
        decoder = _decoder(Path(folder), report)
    exact.note = f"Medians of {ROUNDS} rounds. Differences and errors are relative to the reference's largest value."
    report.tables += [exact, lower, loaded, memory, decoder]
    return report


def _install() -> None:
    missing = [f"{name}=={version}" for name, version in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)


def _encoder(name: str, folder: Path, tables: tuple[Table, Table, Table, Table], report: Report) -> None:
    exact, lower, loaded, memory = tables
    model, run, pixels = encoder_of(name)
    expected = model(pixels)
    expected = expected if isinstance(expected, Tensor) else expected[-1]
    path = export_openvino(model, folder / "encoder.xml", pixels)
    candidates = {"ours": lambda: run(torch.float32), "OpenVINO": in_openvino(path, "f32", pixels)}
    candidates |= {"ours, bf16": lambda: run(torch.bfloat16), "OpenVINO, bf16": in_openvino(path, "bf16", pixels)}
    if name in IN_ONNX:
        candidates["ONNX Runtime"] = in_onnxruntime(export_onnx(model, folder / "encoder.onnx", pixels), pixels)
    errors = {who: float((call() - expected).abs().max() / expected.abs().max()) for who, call in candidates.items()}
    seconds = interleaved(candidates, torch.device("cpu"), ROUNDS)
    median = {who: statistics.median(times) for who, times in seconds.items()}
    report.numbers[name] = {"seconds": seconds, "errors": errors}
    onnx = f"{median['ONNX Runtime']:.2f} s" if "ONNX Runtime" in median else ""
    own, others, own_lower, others_lower = (median[who] for who in ("ours", "OpenVINO", "ours, bf16", "OpenVINO, bf16"))
    exact.rows.append([name, f"{own:.2f} s", f"{others:.2f} s", onnx, f"**{others / own:.2f}x**", f"{errors['ours']:.1e}"])
    line = [name, f"{own_lower:.2f} s", f"{others_lower:.2f} s", f"**{others_lower / own_lower:.2f}x**"]
    lower.rows.append([*line, f"{errors['ours, bf16']:.1e}", f"{errors['OpenVINO, bf16']:.1e}"])
    with busy():
        beside = interleaved({who: candidates[who] for who in ("ours", "OpenVINO")}, torch.device("cpu"), ROUNDS)
    report.numbers[name]["beside a busy process"] = beside
    line = [name]
    for who, idle in (("ours", own), ("OpenVINO", others)):
        line += [f"{statistics.median(beside[who]):.2f} s", f"{statistics.median(beside[who]) / idle:.2f}x"]
    loaded.rows.append(line)
    used = [peak_memory(MEMORY.format(name=name, path=which)) for which in (None, path)]
    report.numbers[name]["memory"] = used
    memory.rows.append([name, *(f"{value / 2**20:.0f} MB" for value in used)])


class _Decoder(nn.Module):
    """segment_anything's mask decoder with three candidates, for export."""

    def __init__(self, sam: nn.Module) -> None:
        super().__init__()
        self.decoder, self.place = sam.mask_decoder, sam.prompt_encoder.get_dense_pe()

    def forward(self, features: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        logits, scores = self.decoder.predict_masks(features, self.place, sparse, dense)
        return scores[:, 1:], logits[:, 1:]


def _decoder(folder: Path, report: Report) -> Table:
    head = ["prompts", "ours", "OpenVINO", "ONNX Runtime", "faster than the faster one", "largest difference"]
    table = Table("Mask decoder of SAM, float32, three candidates each", head)
    sam = random_sam(**MODELS["vit_b"])
    features, module = torch.randn(1, 256, 64, 64), _Decoder(sam)
    plan = decoder_plan(sam.mask_decoder, sam.prompt_encoder, torch.device("cpu"))
    shared = plan.share(features[0])
    for count in PROMPTS:
        points = torch.rand(count, 1, 2) * 1024, torch.ones(count, 1)
        sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
        given = features, sparse, dense.contiguous()
        candidates: dict[str, Callable[[], Any]] = {
            "ours": lambda sparse=sparse: plan(shared, sparse, None, slice(1, None)).logits,
            "OpenVINO": in_openvino(export_openvino(module, folder / f"{count}.xml", *given), "f32", *given),
            "ONNX Runtime": in_onnxruntime(export_onnx(module, folder / f"{count}.onnx", *given), *given),
        }
        expected = module(*given)[1]
        error = float((candidates["ours"]() - expected).abs().max() / expected.abs().max())
        seconds = interleaved(candidates, torch.device("cpu"), 15 if count == 1 else 3)
        median = {who: statistics.median(times) for who, times in seconds.items()}
        report.numbers[f"{count} prompts"] = seconds
        faster = min(median["OpenVINO"], median["ONNX Runtime"]) / median["ours"]
        times = [f"{1000 * median[who]:.0f} ms" for who in ("ours", "OpenVINO", "ONNX Runtime")]
        table.rows.append([str(count), *times, f"**{faster:.2f}x**", f"{error:.1e}"])
    return table

"""Part `engines`: what a CPU user would run instead, beside ours: exported encoders and decoders in OpenVINO and ONNX Runtime.

All of a row run in one process, one of each in turn, with as many threads as torch has. The packages are needed here only, and
are installed when the part runs.
"""

import contextlib
import copy
import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import MODELS, Report, Table, interleaved, peak_memory, photo, random_sam
from samkit.sam import as_segmenter, load_model
from samkit.sam.kernels.linear import cpu_linear
from samkit.sam.models.efficient_sam.decoder import DecoderShape
from samkit.sam.models.efficient_sam.encoder import PlainViTShape
from samkit.sam.models.efficient_sam.model import EfficientSAM
from samkit.sam.models.features import IMAGE
from samkit.sam.models.sam import decoder_plan, run_encoder
from samkit.sam.models.sam2.mask_decoder import FastSAM2Decoder
from samkit.sam.models.tiny_vit import Stage, TinyViT
from samkit.sam.tasks.embed import cache
from samkit.sam.tasks.everything import AutoMaskOptions, segment_everything
from torch import Tensor, nn

PACKAGES = {"openvino": "2026.4.1", "onnxruntime": "1.32.0", "onnx": "1.23.2"}
ROUNDS, PROMPTS = 3, (1, 64, 256)
CONFIGS = {"SAM ViT-B": "vit_b", "SlimSAM-77": "slimsam_77", "SAM 2.1 tiny": "tiny", "SAM 2.1 base+": "base+"}
ENCODERS = (*CONFIGS, "MobileSAM", "Light HQ-SAM", "EfficientSAM-Ti", "EdgeTAM")
IN_ONNX = ("SAM ViT-B", "MobileSAM")
_BUSY = "while True: pass"
_BATCH = 64  # points
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


class _WithEarly(nn.Module):
    """Light HQ-SAM's encoder, whose early features are the first output, for export."""

    def __init__(self, encoder: TinyViT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, early = self.encoder.run(pixels)
        return early, features


def encoder_of(name: str) -> tuple[nn.Module, Callable[[torch.dtype], Tensor], Tensor]:
    """The reference's encoder with seeded random weights, which is exported, ours on the same weights, and an image for it."""
    colours = torch.randint(0, 256, (1, 3, 1024, 1024), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = (colours / 255 - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
    if name in ("MobileSAM", "Light HQ-SAM"):
        torch.manual_seed(0)
        stages = Stage(64, 2, 0, 0, 2), Stage(128, 2, 4, 7, 2), Stage(160, 6, 5, 14, 1), Stage(320, 2, 10, 7, 0)
        encoder, early = TinyViT(1024, stages, 4.0, 4.0, 256).eval(), name == "Light HQ-SAM"
        exported = _WithEarly(encoder) if early else encoder
        return exported, lambda dtype: run_encoder(encoder, pixels, dtype, early)[0], pixels
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


def in_openvino(path: str, hint: str) -> Callable[..., Tensor]:
    """A compiled model: takes its inputs, gives its last output, which the next call overwrites."""
    request = compiled_for(path, hint).create_infer_request()

    def run(*given: Tensor) -> Tensor:
        found = request.infer({number: one.numpy() for number, one in enumerate(given)})
        return torch.from_numpy(found[len(found) - 1])

    return run


def in_onnxruntime(path: str) -> Callable[..., Tensor]:
    """A model in ONNX' form, in float32: takes its inputs, gives its last output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*given: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, dict(zip(names, (one.numpy() for one in given), strict=True)))[-1])

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
    """Encoders, decoders and segment everything, idle and beside a busy process, and memory; `models` say nothing here."""
    _install()
    report = Report("engines")
    head = ["encoder, 1024x1024", "ours", "OpenVINO", "ONNX Runtime", "faster than OpenVINO"]
    exact = Table("float32", [*head, "largest difference"])
    lower = Table("bfloat16", [*head[:3], head[-1], "ours: error", "OpenVINO: error"])
    loaded = Table("float32, beside a process that keeps one core busy", ["", "ours", "slowed by", "the other", "slowed by"])
    memory = Table("Memory above the model, float32", ["encoder", "ours", "OpenVINO"])
    head = ["prompts", "ours", "OpenVINO", "ONNX Runtime", "faster than the faster one", "largest difference"]
    decoders = Table("Mask decoders, float32, three candidates each", head)
    everything = Table("Segment everything, ViT-B, 16 points per side, float32", ["", "seconds", "masks"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for encoder in ENCODERS:
            _encoder(encoder, folder, (exact, lower, loaded, memory), report)
        faster = _decoder("SAM", folder, (decoders, loaded), report)
        _decoder("SAM 2.1 tiny", folder, (decoders, loaded), report)
        _everything(folder, faster, (everything, loaded), report)
    decoders.note = f"The engines compute {_BATCH} prompts at a time."
    exact.note = f"Medians of {ROUNDS} rounds. Differences and errors are relative to the reference's largest value."
    report.tables += [exact, lower, loaded, memory, decoders, everything]
    return report


def _add_loaded(
    table: Table, name: str, candidates: dict[str, Callable[[], Any]], idle: dict[str, list[float]], report: Report
) -> None:
    """A row of two candidates beside a busy process; `idle` are their seconds without one."""
    with busy():
        beside = interleaved(candidates, torch.device("cpu"), ROUNDS)
    report.numbers[f"{name}, beside a busy process"] = beside
    line = [name]
    for who, times in beside.items():
        seconds = statistics.median(times)
        line += [f"{seconds:.2f} s", f"{seconds / statistics.median(idle[who]):.2f}x"]
    table.rows.append(line)


def _say(*tables: Table) -> None:
    """The rows that were just made, since the whole part takes half an hour."""
    for table in tables:
        sys.stderr.write(f"{table.title}: {' | '.join(table.rows[-1])}\n")
    sys.stderr.flush()


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
    in_float, in_lower = in_openvino(path, "f32"), in_openvino(path, "bf16")
    candidates = {"ours": lambda: run(torch.float32), "OpenVINO": lambda: in_float(pixels)}
    candidates |= {"ours, bf16": lambda: run(torch.bfloat16), "OpenVINO, bf16": lambda: in_lower(pixels)}
    if name in IN_ONNX:
        session = in_onnxruntime(export_onnx(model, folder / "encoder.onnx", pixels))
        candidates["ONNX Runtime"] = lambda: session(pixels)
    errors = {who: float((call() - expected).abs().max() / expected.abs().max()) for who, call in candidates.items()}
    seconds = interleaved(candidates, torch.device("cpu"), ROUNDS)
    median = {who: statistics.median(times) for who, times in seconds.items()}
    report.numbers[name] = {"seconds": seconds, "errors": errors}
    onnx = f"{median['ONNX Runtime']:.2f} s" if "ONNX Runtime" in median else ""
    own, others, own_lower, others_lower = (median[who] for who in ("ours", "OpenVINO", "ours, bf16", "OpenVINO, bf16"))
    exact.rows.append([name, f"{own:.2f} s", f"{others:.2f} s", onnx, f"**{others / own:.2f}x**", f"{errors['ours']:.1e}"])
    line = [name, f"{own_lower:.2f} s", f"{others_lower:.2f} s", f"**{others_lower / own_lower:.2f}x**"]
    lower.rows.append([*line, f"{errors['ours, bf16']:.1e}", f"{errors['OpenVINO, bf16']:.1e}"])
    _add_loaded(loaded, name, {who: candidates[who] for who in ("ours", "OpenVINO")}, seconds, report)
    used = [peak_memory(MEMORY.format(name=name, path=which)) for which in (None, path)]
    report.numbers[name]["memory"] = used
    memory.rows.append([name, *(f"{value / 2**20:.0f} MB" for value in used)])
    _say(*tables)


class _Decoder(nn.Module):
    """segment_anything's mask decoder with three candidates, for export."""

    def __init__(self, sam: nn.Module) -> None:
        super().__init__()
        self.decoder, self.place = sam.mask_decoder, sam.prompt_encoder.get_dense_pe()

    def forward(self, features: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        logits, scores = self.decoder.predict_masks(features, self.place, sparse, dense)
        return scores[:, 1:], logits[:, 1:]


class _SAM2Decoder(nn.Module):
    """SAM 2's mask decoder, as sam2 computes it, with three candidates, for export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.decoder, self.place = model.sam_mask_decoder, model.sam_prompt_encoder.get_dense_pe()

    def forward(self, features: Tensor, fine: Tensor, middle: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        logits, scores, _, _ = self.decoder.plainly(features, (fine, middle), self.place, sparse, dense)
        return scores[:, 1:], logits[:, 1:]


def _decoder(name: str, folder: Path, tables: tuple[Table, Table], report: Report) -> str:
    """Rows of one family's decoder; which engine is the faster one for 64 prompts."""
    table, loaded = tables
    if name == "SAM":
        model = random_sam(**MODELS["vit_b"])
        prompts = model.prompt_encoder
        maps = [torch.randn(1, 256, 64, 64)]
        module, plan = _Decoder(model), decoder_plan(model.mask_decoder, prompts, torch.device("cpu"))
        shared = plan.share(maps[0][0])

        def ours(sparse: Tensor) -> Tensor:
            return plan(shared, sparse, None, slice(1, None)).logits
    else:
        from sam2 import pair

        _, model = pair("tiny", torch.device("cpu"))
        prompts = model.sam_prompt_encoder
        maps = [torch.randn(256, 64, 64), torch.randn(32, 256, 256), torch.randn(64, 128, 128)]
        module, plan = _SAM2Decoder(model), FastSAM2Decoder(model.sam_mask_decoder, prompts, cpu_linear(torch.float32))
        shared = plan.share(maps[0], (maps[1], maps[2]))

        def ours(sparse: Tensor) -> Tensor:
            return plan.decode(shared, sparse, None, several=True).logits

    faster = ""
    for count in PROMPTS:
        points = torch.rand(count, 1, 2) * 1024, torch.ones(count, 1)
        sparse, dense = prompts(points=points, boxes=None, masks=None)
        no_mask = prompts.no_mask_embed.weight.view(1, -1, 1, 1)
        dense = no_mask.expand(count, -1, *prompts.image_embedding_size) if dense is None else dense
        parts = [(*maps, *both) for both in zip(sparse.split(_BATCH), dense.contiguous().split(_BATCH), strict=True)]
        engines = {
            "OpenVINO": in_openvino(export_openvino(module, folder / "decoder.xml", *parts[0]), "f32"),
            "ONNX Runtime": in_onnxruntime(export_onnx(module, folder / "decoder.onnx", *parts[0])),
        }
        candidates: dict[str, Callable[[], Any]] = {"ours": functools.partial(ours, sparse)}
        candidates |= {who: functools.partial(_in_parts, engine, parts) for who, engine in engines.items()}
        expected = module(*parts[0])[1]
        error = float((candidates["ours"]()[: len(expected)] - expected).abs().max() / expected.abs().max())
        seconds = interleaved(candidates, torch.device("cpu"), 15 if count == 1 else ROUNDS)
        median = {who: statistics.median(times) for who, times in seconds.items()}
        report.numbers[f"{name}, {count} prompts"] = seconds
        best = min(("OpenVINO", "ONNX Runtime"), key=median.__getitem__)
        times = [f"{1000 * median[who]:.0f} ms" for who in ("ours", "OpenVINO", "ONNX Runtime")]
        line = [f"{name}, {count}", *times, f"**{median[best] / median['ours']:.2f}x**", f"{error:.1e}"]
        table.rows.append(line)
        _say(table)
        if count == 64:
            faster = best
            some = {who: candidates[who] for who in ("ours", best)}
            _add_loaded(loaded, f"{name}'s decoder, 64 prompts ({best})", some, seconds, report)
            _say(loaded)
    return faster


def _in_parts(engine: Callable[..., Tensor], parts: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """All masks: those of many prompts are computed some at a time, since an export for 256 takes more than 24 GB."""
    return [engine(*part) if len(parts) == 1 else engine(*part).clone() for part in parts]


def _everything(folder: Path, decoder: str, tables: tuple[Table, Table], report: Report) -> None:
    """segment_anything's generator with OpenVINO's encoder and the faster engine's decoder in place of its own."""
    from automask import lively
    from segment_anything import SamAutomaticMaskGenerator

    table, loaded = tables
    frame = photo(1024, 1024)
    model = lively("vit_b", frame)
    theirs = copy.deepcopy(model)
    pixels = torch.randn(1, 3, 1024, 1024)
    compiled = compiled_for(export_openvino(model.image_encoder, folder / "encoder.xml", pixels), "f32").create_infer_request()
    theirs.image_encoder.forward = lambda image: torch.from_numpy(compiled.infer([image.contiguous().numpy()])[0].copy())
    points = torch.rand(_BATCH, 1, 2) * 1024, torch.ones(_BATCH, 1)
    sparse, dense = model.prompt_encoder(points=points, boxes=None, masks=None)
    given = torch.randn(1, 256, 64, 64), sparse, dense.contiguous()
    if decoder == "OpenVINO":
        request = compiled_for(export_openvino(_Decoder(model), folder / "decoder.xml", *given), "f32").create_infer_request()

        def decode(features: Tensor, sparse: Tensor) -> list[Any]:
            found = request.infer([features.numpy(), sparse.numpy(), given[2].numpy()])
            return [found[0], found[1]]
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        path = export_onnx(_Decoder(model), folder / "decoder.onnx", *given)
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]

        def decode(features: Tensor, sparse: Tensor) -> list[Any]:
            return session.run(None, dict(zip(names, (features.numpy(), sparse.numpy(), given[2].numpy()), strict=True)))

    def forward(image_embeddings: Tensor, sparse_prompt_embeddings: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        scores, logits = decode(image_embeddings.contiguous(), sparse_prompt_embeddings.contiguous())
        return torch.from_numpy(logits), torch.from_numpy(scores)

    theirs.mask_decoder.forward = forward
    generator = SamAutomaticMaskGenerator(theirs, points_per_side=16, points_per_batch=_BATCH)

    def ours() -> Any:
        cache.clear()
        return segment_everything(as_segmenter(model), frame, AutoMaskOptions(points_per_side=16))

    other = f"OpenVINO's encoder, {decoder}'s decoder"
    candidates: dict[str, Callable[[], Any]] = {"ours": ours, other: lambda: generator.generate(frame)}
    found = {who: len(run()) for who, run in candidates.items()}
    seconds = interleaved(candidates, torch.device("cpu"), ROUNDS, warm_up=0)
    report.numbers["segment everything"] = seconds
    for who, times in seconds.items():
        table.rows.append([who, f"{statistics.median(times):.1f} s", str(found[who])])
    table.rows.append(["faster", f"**{statistics.median(seconds[other]) / statistics.median(seconds['ours']):.2f}x**", ""])
    _add_loaded(loaded, "segment everything (the mixture below)", candidates, seconds, report)
    _say(*tables)

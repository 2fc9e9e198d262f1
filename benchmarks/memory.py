"""Part `memory`: what encoding a photo and decoding 64 prompts add to the loaded model, each in a process of its own."""

import torch
from harness import Report, Table, peak_memory

ENCODE = {
    "segment_anything": "model = sam({name!r}).to({device!r})\nrun = model.image_encoder",
    "transformers (sdpa)": "model = transformers_sam({name!r}).to({device!r})\nrun = model.vision_encoder",
    "ours": "from samkit.sam.models.sam import run_encoder\nmodel = sam({name!r}).to({device!r})\n"
    "run = lambda x: run_encoder(model.image_encoder, x)",
}
DECODE = {
    "segment_anything": "run = lambda: model.mask_decoder.predict_masks(x, place, sparse, dense)",
    "ours": "from samkit.sam.models.sam import decoder_plan\n"
    "fast = decoder_plan(model.mask_decoder, model.prompt_encoder, x.device)\n"
    "run = lambda: fast(fast.share(x[0]), sparse, None, slice(1, None))",
}
PROMPTS = """
torch.set_grad_enabled(False)
model = sam({name!r}).to({device!r})
x = torch.randn(1, 256, 64, 64, device={device!r})
points = torch.rand(64, 1, 2, device={device!r}) * 1024, torch.ones(64, 1, device={device!r})
sparse, dense = model.prompt_encoder(points=points, boxes=None, masks=None)
place = model.prompt_encoder.get_dense_pe()
"""


def measure(models: list[str], device: torch.device) -> Report:
    """Peak bytes over the loaded model."""
    report = Report("memory")
    table = Table("Peak memory in addition to the loaded model", ["what", "segment_anything", "transformers (sdpa)", "ours"])
    for name in models:
        here = {"name": name, "device": str(device)}
        tail = f"\nx = torch.randn(1, 3, 1024, 1024, device={str(device)!r})\nstart()\nwith torch.no_grad(): run(x)"
        found = {key: peak_memory(code.format(**here) + tail) for key, code in ENCODE.items()}
        table.rows.append([f"encode an image, {name}", *(f"{value / 1e6:.0f} MB" for value in found.values())])
        report.numbers[f"encode {name}"] = found
    here = {"name": models[0], "device": str(device)}
    found = {key: peak_memory(PROMPTS.format(**here) + code + "\nstart()\nrun()") for key, code in DECODE.items()}
    values = [f"{value / 1e6:.0f} MB" for value in found.values()]
    table.rows.append(["decode 64 clicks", values[0], "", values[1]])
    report.numbers["decode"] = found
    report.tables.append(table)
    return report

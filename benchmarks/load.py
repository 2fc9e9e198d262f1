"""Part `load`: a ViT-H file of zeros from the disk to a model, beside segment_anything's registry."""

import statistics
import tempfile
from pathlib import Path

import torch
from harness import Report, Table, interleaved, peak_memory, ratio
from samkit.sam import load_model
from segment_anything import sam_model_registry

ROUNDS = 3
TOUCH = "\nwith torch.no_grad(): [value.sum() for value in model.parameters()]"  # a mapped file counts once it was read
OURS = "from samkit.sam import load_model\nstart()\nmodel = load_model({path!r})"
THEIRS = "from segment_anything import sam_model_registry\nstart()\nmodel = sam_model_registry['vit_h'](checkpoint={path!r})"


def measure(models: list[str], device: torch.device) -> Report:
    """Seconds with the file in the system's cache, and peak memory; always ViT-H, on the CPU."""
    report = Report("load")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "zeros.pth")
        with torch.device("meta"):
            empty = sam_model_registry["vit_h"]().state_dict()
        torch.save({name: torch.zeros(value.shape) for name, value in empty.items()}, path)
        candidates = {
            "segment_anything": lambda: sam_model_registry["vit_h"](checkpoint=path),
            "ours": lambda: load_model(path),
        }
        seconds = interleaved(candidates, torch.device("cpu"), ROUNDS)
        memory = {
            name: peak_memory(code.format(path=path) + TOUCH) for name, code in (("segment_anything", THEIRS), ("ours", OURS))
        }
    faster = ratio(seconds["segment_anything"], seconds["ours"])
    table = Table("Loading ViT-H (2.6 GB, in the system's cache)", ["implementation", "seconds", "peak memory"])
    for name, values in seconds.items():
        table.rows.append([name, f"{statistics.median(values):.2f} s", f"{memory[name] / 1e6:.0f} MB"])
    less = memory["ours"] / memory["segment_anything"]
    table.rows.append(["ours compared with segment_anything", f"**{faster:.1f}x**", f"**{less:.2f}**"])
    report.tables.append(table)
    report.numbers = {"seconds": {k: statistics.median(v) for k, v in seconds.items()}, "ratio": faster, "bytes": memory}
    return report

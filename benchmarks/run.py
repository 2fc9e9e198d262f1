#!/usr/bin/env python3
"""The benchmark: ours beside segment_anything and transformers, in one run on one machine.

    python dev.py bench [part ...] [--device cpu|cuda] [--model NAME ...] [--json] [--no-write]

Without a part, all of them. Each writes `benchmarks/results/<part>.md` (and .png) with the date and the machine.
"""

import argparse
import datetime
import importlib
import json
import sys
import traceback
from pathlib import Path

import torch
from harness import MODELS, Plot, Report, machine

PARTS = (
    "encoder",
    "decoder",
    "click",
    "memory",
    "automask",
    "scale",
    "load",
    "preview",
    "result_images",
    "hover",
    "sam2",
    "track",
    "gpu",
    "teach",
    "finish",
    "batch",
    "engines",
    "detail",
)
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Run the parts that were asked for, print their tables, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", nargs="+", default=["vit_b"], choices=list(MODELS), dest="models")
    parser.add_argument("--json", action="store_true", help="print the raw numbers instead of tables")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ as it is")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    device = torch.device(chosen.device)
    heading = f"{datetime.date.today()}, {machine(device)}"
    failed = []
    for part in chosen.parts or PARTS:
        try:
            report = importlib.import_module(part).measure(chosen.models, device)
        except Exception:  # noqa: BLE001  an unattended run goes on with the next part
            traceback.print_exc()
            failed.append(part)
            continue
        text = "\n".join(table.markdown() for table in report.tables)
        shown = json.dumps({"part": part, "machine": heading, **report.numbers}) if chosen.json else text
        sys.stdout.write(shown + "\n")
        sys.stdout.flush()
        if report.numbers and not chosen.no_write:
            report.part += "" if device.type == "cpu" else f"_{device.type}"  # beside the CPU's tables, not in their place
            write(report, heading, f"python dev.py bench {part} --device {device} --model {' '.join(chosen.models)}", text)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def write(report: Report, heading: str, command: str, text: str) -> None:
    """The tables and plots of a part, with when, where and how they were made."""
    RESULTS.mkdir(exist_ok=True)
    images = "".join(f"\n![{plot.title}]({draw(report.part, plot).name})\n" for plot in report.plots)
    (RESULTS / f"{report.part}.md").write_text(f"# {report.part}\n\n{heading}\n\n`{command}`\n\n{text}{images}")


def draw(part: str, plot: Plot) -> Path:
    """A plot as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, points in plot.series.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y, xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    path = RESULTS / f"{part}_{plot.name}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    main()

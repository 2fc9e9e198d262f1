#!/usr/bin/env python3
"""The developer's commands: python dev.py {demo,test,bench,lint,comfyui}. Needs nothing but Python 3.10 or newer.

The first run makes `.venv` and installs into it (torch included: some gigabytes, once); later runs start at once. SAMKIT_VENV
names another folder for it, outside of the pack.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements-dev.txt"
LONGEST_TEST = 900  # seconds; on two cores the longest one takes 110
COMFYUI_URL = "https://github.com/Comfy-Org/ComfyUI"


def demo(extra: list[str]) -> int:
    """Points, boxes, refinement, everything and a film, with the bundled checkpoint; see demo_output/."""
    return run(python(), ROOT / "tools" / "demo.py", *extra)


def test(extra: list[str]) -> int:
    """The whole test suite; with further arguments, those go to one pytest, which runs in tests/."""
    pytest = [python(), "-m", "pytest"]
    if extra:
        return run(*pytest, *extra, folder=ROOT / "tests")
    # A test that waits forever ends its process, which says where it was; once in each of two processes, then the run goes on.
    pytest += ["-o", f"faulthandler_timeout={LONGEST_TEST}", "-o", "faulthandler_exit_on_timeout=true"]
    shared = ["-n", "auto", "--dist", "loadfile", "--max-worker-restart", "2"]
    # A server, a browser and what is timed in them need the machine for themselves; the rest shares its cores, file by file.
    here = run(*pytest, *shared, "-m", "not exhaustive and not comfyui", folder=ROOT / "tests")
    return run(*pytest, "-m", "not exhaustive and comfyui", folder=ROOT / "tests") or here


def bench(extra: list[str]) -> int:
    """The benchmark beside segment_anything and transformers; parts by name, --device, --model, --json."""
    return run(python(), ROOT / "benchmarks" / "run.py", *extra)


def lint(extra: list[str]) -> int:
    """ruff: rules and formatting."""
    interpreter = python()
    return run(interpreter, "-m", "ruff", "check", *extra) or run(interpreter, "-m", "ruff", "format", "--check")


def comfyui(extra: list[str]) -> int:
    """The pack in a real ComfyUI: COMFYUI_PATH, the one that the pack lies in, or a fresh clone; arguments go to it."""
    home = find_comfyui()
    interpreter = comfyui_python(home)
    link = home / "custom_nodes" / "samkit"
    if ROOT.parent != home / "custom_nodes" and not link.exists():
        link_folder(link)
    for picture in (ROOT / "example_workflows").glob("samkit_*.*"):
        shutil.copy(picture, home / "input")
    has_gpu = "import sys, torch; sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))"
    cpu = [] if subprocess.call([interpreter, "-c", has_gpu]) == 0 else ["--cpu"]
    port = extra[extra.index("--port") + 1] if "--port" in extra else "8188"
    print(f"ComfyUI starts at http://127.0.0.1:{port}: open Templates > samkit, or drag example_workflows/one_click.json in.")
    return run(interpreter, "main.py", *cpu, *extra, folder=home)


COMMANDS = {command.__name__: command for command in (demo, test, bench, lint, comfyui)}


def python() -> Path:
    """The interpreter of `.venv`, made and filled where that has not been done for these requirements."""
    folder = venv_folder()
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + (ROOT / "requirements.txt").read_bytes()).hexdigest()
    stamp = folder / "samkit-installed"
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"Setting up {folder}: this takes some minutes, once.", flush=True)
        make_venv(folder, "-r", str(REQUIREMENTS))
        stamp.write_text(wanted)
    return interpreter_in(folder)


def venv_folder() -> Path:
    """Where the virtual environment is: SAMKIT_VENV, or `.venv` in the pack."""
    named = os.environ.get("SAMKIT_VENV")
    return Path(named).expanduser().resolve() if named else ROOT / ".venv"


def make_venv(folder: Path, *packages: str) -> None:
    """A virtual environment with `packages`, which pip installs or brings up to date."""
    if not interpreter_in(folder).exists():
        venv.create(folder, with_pip=True)
    subprocess.check_call([interpreter_in(folder), "-m", "pip", "install", "-q", *packages])


def interpreter_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_comfyui() -> Path:
    """ComfyUI's folder, cloned into this one where there is none."""
    if "COMFYUI_PATH" in os.environ:
        return Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
    if (ROOT.parent.parent / "comfy").is_dir() and (ROOT.parent.parent / "main.py").is_file():
        return ROOT.parent.parent
    home = ROOT / "ComfyUI"
    if not (home / "main.py").is_file():
        subprocess.check_call(["git", "clone", "--depth", "1", COMFYUI_URL, home])
    return home


def comfyui_python(home: Path) -> Path:
    """The interpreter that ComfyUI has, or a new one with its requirements; ours are installed into it either way."""
    portable = home.parent / "python_embeded" / "python.exe"
    found = [path for path in (interpreter_in(home / ".venv"), interpreter_in(home / "venv"), portable) if path.exists()]
    interpreter = found[0] if found else interpreter_in(home / ".venv")
    if not found:
        make_venv(home / ".venv", "-r", str(home / "requirements.txt"))
    subprocess.check_call([interpreter, "-m", "pip", "install", "-q", "-r", ROOT / "requirements.txt"])
    return interpreter


def link_folder(link: Path) -> None:
    """Make `link` stand for this folder; Windows lets a user do that with a junction only."""
    if os.name == "nt":
        subprocess.check_call(["cmd", "/c", "mklink", "/J", link, ROOT])
    else:
        link.symlink_to(ROOT, target_is_directory=True)


def run(*command: object, folder: Path = ROOT) -> int:
    return subprocess.call([str(part) for part in command], cwd=folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.__doc__)
    chosen, extra = parser.parse_known_args()
    return COMMANDS[chosen.command]([argument for argument in extra if argument != "--"])


if __name__ == "__main__":
    sys.exit(main())

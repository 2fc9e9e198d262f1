"""Loads the pack under one fixed name, whatever its folder is called, as ComfyUI's loader does."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

sys.path.append(str(ROOT / "tools" / "demo_model"))  # its scenes are what tests and benchmarks segment

# Users have the command without this folder, so the command has the way to load the pack.
_spec = importlib.util.spec_from_file_location("samkit_segment_folder", ROOT / "segment_folder.py")
_command = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_command)
load_pack = _command.load_pack
NAME = _command.NAME


def inputs_of(node: type) -> dict[str, tuple[Any, ...]]:
    """A node's inputs as users see them, by name: type and options. Hidden ones have neither."""
    groups = node.INPUT_TYPES()
    return {name: declared for group in ("required", "optional") for name, declared in groups.get(group, {}).items()}

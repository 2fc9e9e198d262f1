"""Loads the pack under one fixed name, whatever its folder is called, as ComfyUI's loader does."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME = "samkit"


def load_pack() -> ModuleType:
    """The pack as the package `samkit`; imports such as `samkit.nodes` work afterwards."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    pack = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = pack
    spec.loader.exec_module(pack)
    return pack


def inputs_of(node: type) -> dict[str, tuple[Any, ...]]:
    """A node's inputs as users see them, by name: type and options. Hidden ones have neither."""
    groups = node.INPUT_TYPES()
    return {name: declared for group in ("required", "optional") for name, declared in groups.get(group, {}).items()}

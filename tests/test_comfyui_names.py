"""Every name of ComfyUI that the pack uses is there in a real ComfyUI, and takes the arguments that the pack gives it."""

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest
from comfyui_server import Unavailable, find_comfyui
from test_house import COMFYUI, modules, parsed
from world import unavailable


def uses_of(tree):
    """(dotted name, number of positional arguments or None, keywords) of all that a module uses of ComfyUI."""
    found = set()
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        known = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] in COMFYUI:
                        known[alias.asname or alias.name.split(".")[0]] = (
                            alias.name if alias.asname else alias.name.split(".")[0]
                        )
                        found.add((alias.name, None, ()))
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in COMFYUI:
                for alias in node.names:
                    known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    found.add((f"{node.module}.{alias.name}", None, ()))
        for node in ast.walk(function):
            called = node.func if isinstance(node, ast.Call) else node
            name = dotted(called, known)
            if not name:
                continue
            is_call = isinstance(node, ast.Call) and not any(isinstance(one, ast.Starred) for one in node.args)
            if is_call and all(one.arg for one in node.keywords):
                found.add((name, len(node.args), tuple(one.arg for one in node.keywords)))
            elif not isinstance(node, ast.Call):
                found.add((name, None, ()))
    return found


def dotted(node, known):
    """The full name of a chain of attributes that begins with an imported name; None for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not parts or not isinstance(node, ast.Name) or node.id not in known:
        return None
    return ".".join([known[node.id], *reversed(parts)])


def test_the_collector_sees_names_calls_and_keywords():
    source = """
def one():
    import comfy.model_management as management
    from comfy.cli_args import args
    import folder_paths
    management.load_models_gpu([1], force_full_load=True)
    return args.listen, folder_paths.base_path
"""
    assert uses_of(ast.parse(source)) == {
        ("comfy.model_management", None, ()),
        ("comfy.cli_args.args", None, ()),
        ("folder_paths", None, ()),
        ("comfy.model_management.load_models_gpu", 1, ("force_full_load",)),
        ("comfy.model_management.load_models_gpu", None, ()),
        ("comfy.cli_args.args.listen", None, ()),
        ("folder_paths.base_path", None, ()),
    }


@pytest.mark.comfyui
def test_comfyui_has_all_names_that_the_pack_uses():
    uses = sorted(set().union(*(uses_of(parsed(path)) for path in modules("nodes", "sam", "utils"))), key=str)
    assert ("comfy.model_management.load_models_gpu", 1, ("memory_required", "force_full_load")) in uses
    assert asked(uses) == []
    wrong = [("comfy.model_management.no_such_name", None, ()), ("comfy.model_management.free_memory", 2, ("no_such_keyword",))]
    assert len(asked(wrong)) == 2


def asked(uses):
    """What of these the ComfyUI in COMFYUI_PATH lacks."""
    try:
        home, python = find_comfyui()
    except Unavailable as reason:
        unavailable("comfyui", reason)
    done = subprocess.run(
        [python, Path(__file__).with_name("comfyui_names.py"), json.dumps(uses)],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])["missing"]

"""The floors of the house, read from the imports: nodes over sam over utils; inside sam tasks, models, kernels, store."""

import ast
from pathlib import Path

import pytest
from load_pack import ROOT

ROOMS = ("nodes", "sam", "utils")
MAY_IMPORT = {"nodes": {"nodes", "sam", "utils"}, "sam": {"sam", "utils"}, "utils": {"utils"}, "": {"nodes"}}
FLOORS = {  # inside sam: a room may import its own floor and those below
    "training": 5,
    "tasks": 4,
    "models": 3,
    "placement": 3,
    "kernels": 2,
    "weights": 2,
    "prompts": 2,
    "store": 1,
    "datasets": 1,
    "geometry": 0,
    "errors": 0,
}
COMFYUI = {"comfy", "folder_paths", "server", "execution", "comfy_extras", "comfy_api", "nodes", "latent_preview"}
COMFY = ("utils/comfy.py", "utils/comfy_files.py", "utils/comfy_folders.py")
DOORS = (*COMFY, "sam/placement/", "nodes/editor/routes.py", "nodes/startup.py")


def modules(*rooms):
    """The pack's Python files, as paths below the root."""
    found = [path.relative_to(ROOT) for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(found) > 5
    return found


def parsed(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path):
    """Modules of the pack that a file imports, as dotted names below the root."""
    package = [*path.parent.parts]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = [*base, alias.name]
                yield ".".join(whole if is_module(whole) else base)


def is_module(parts):
    place = ROOT.joinpath(*parts)
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def dotted(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", modules(*ROOMS), ids=str)
def test_no_import_runs_upstairs(path):
    room = path.parts[0]
    for name in imports(path):
        assert name.split(".")[0] in MAY_IMPORT[room], f"{path} imports {name}"
        if room == "sam" and len(path.parts) > 2 - (path.name != "__init__.py") and name.startswith("sam."):
            own, other = (part.split(".")[1] for part in (dotted(path), name))
            assert FLOORS[other] <= FLOORS[own], f"{path} imports {name}, which is above it"


def test_every_room_of_sam_has_a_floor():
    rooms = {path.stem for path in (ROOT / "sam").iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert rooms <= set(FLOORS), "say here on which floor a new room is"


def test_there_is_no_circle():
    graph = {dotted(path): set(imports(path)) - {dotted(path)} for path in modules(*ROOMS)}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name in done or name not in graph:
            return
        path.append(name)
        for other in graph[name]:
            visit(other)
        done.add(path.pop())

    for name in graph:
        visit(name)


@pytest.mark.parametrize("package", [path.parent for path in modules(*ROOMS) if path.name == "__init__.py"], ids=str)
def test_a_packages_face_has_no_name_of_a_module(package):
    found = [node for node in ast.walk(parsed(package / "__init__.py")) if isinstance(node, ast.ImportFrom)]
    names = {alias.asname or alias.name for node in found for alias in node.names}
    inside = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not names & inside


@pytest.mark.parametrize("path", modules(*ROOMS), ids=str)
def test_comfyui_is_imported_through_its_doors_only_and_not_at_import(path):
    tree = parsed(path)
    inner = {id(n) for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
             for n in ast.walk(function)}  # fmt: skip
    for node in ast.walk(tree):
        absolute = isinstance(node, ast.ImportFrom) and not node.level
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if absolute else []
        for name in names:
            assert name.split(".")[0] not in {"sam", "utils", "samkit"}, f"{path} imports {name} absolutely"
            if name.split(".")[0] in COMFYUI:
                assert id(node) in inner and path.as_posix().startswith(DOORS), f"{path} imports {name}"


def test_optional_members_of_a_model_are_read_in_one_place():
    """`getattr` and `hasattr` with these names stand in `models/base.py` only."""
    from typing import get_args

    from samkit.sam.models.base import Member

    assert get_args(Member)
    for path in modules("nodes", "sam"):
        for node in ast.walk(parsed(path)):
            is_probe = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
            if is_probe and isinstance(node.args[1], ast.Constant):
                assert node.args[1].value not in get_args(Member), f"{path}:{node.lineno}"


def functions():
    return [
        (path, node)
        for path in modules(*ROOMS)
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def test_functions_are_annotated():
    for path, node in functions():
        bare = [
            a.arg for a in [*node.args.args, *node.args.kwonlyargs] if a.annotation is None and a.arg not in ("self", "cls")
        ]
        assert not bare and node.returns is not None, f"{path}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", modules(*ROOMS), ids=str)
def test_the_pack_neither_prints_nor_asserts_nor_swallows(path):
    for node in ast.walk(parsed(path)):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}:{node.lineno}"
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        assert called not in {"print", "eval", "exec"}, f"{path}:{node.lineno}"


def test_the_reader_of_imports_sees_an_import_upstairs(tmp_path, monkeypatch):
    """The guard itself, on a house with a fault of each kind."""
    (tmp_path / "sam" / "store").mkdir(parents=True)
    (tmp_path / "sam" / "models").mkdir()
    for path in ("sam/__init__.py", "sam/store/__init__.py", "sam/models/__init__.py", "sam/models/sam.py"):
        (tmp_path / path).touch()
    (tmp_path / "sam" / "store" / "keys.py").write_text("from ..models.sam import x\nfrom ..models import sam\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert list(imports(Path("sam/store/keys.py"))) == ["sam.models.sam", "sam.models.sam"]
    with pytest.raises(AssertionError, match="above it"):
        test_no_import_runs_upstairs(Path("sam/store/keys.py"))

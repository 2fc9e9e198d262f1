"""dev.py: the standard library only, and each command known."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from load_pack import ROOT

sys.path.append(str(ROOT))


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "dev.py", *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_it_needs_nothing_but_python():
    tree = ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_help_lists_the_commands():
    text = run("--help").stdout
    assert all(command in text for command in ("demo", "test", "lint", "comfyui"))


def test_an_unknown_command_is_refused():
    assert run("fly").returncode != 0


def test_ci_calls_the_readmes_test_command_in_a_folder_with_a_hyphen():
    script = (ROOT / ".ci" / "run").read_text()
    assert "python3 dev.py test" in script and "comfyui-samkit" in script


@pytest.mark.parametrize(
    ("name", "folder", "path"),
    [
        ("comfyui-samkit", "tests", "test_prompts.py"),
        ("comfyui-samkit", ".", "tests/test_prompts.py"),
        ("SAM Kit (1)", "tests", "test_prompts.py"),
        ("v1.0 größe/samkit", "tests", "test_prompts.py"),
    ],
)
def test_the_suite_is_collected_in_a_folder_of_any_name(name, folder, path, tmp_path):
    shutil.copytree(
        ROOT, tmp_path / name, ignore=shutil.ignore_patterns(".*", "__pycache__", "ComfyUI", "demo_output", "*.jpg")
    )
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, cwd=tmp_path / name / folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_lint_does_not_judge_the_folders_name():
    assert '"N999"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_comfyui_is_found_by_its_path(monkeypatch, tmp_path):
    import dev

    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert dev.find_comfyui() == tmp_path.resolve()
    monkeypatch.delenv("COMFYUI_PATH")
    home = tmp_path / "ComfyUI"
    (home / "comfy").mkdir(parents=True)
    (home / "main.py").touch()
    monkeypatch.setattr(dev, "ROOT", home / "custom_nodes" / "samkit")
    assert dev.find_comfyui() == home


@pytest.mark.skipif(os.name == "nt", reason="a junction there")
def test_the_environment_may_lie_outside_the_pack(monkeypatch, tmp_path):
    import dev

    monkeypatch.delenv("SAMKIT_VENV", raising=False)
    assert dev.venv_folder() == ROOT / ".venv"
    monkeypatch.setenv("SAMKIT_VENV", str(tmp_path / "elsewhere"))
    made = []
    monkeypatch.setattr(dev, "make_venv", lambda folder, *packages: (folder.mkdir(), made.append(folder)))
    assert tmp_path / "elsewhere" in dev.python().parents and made == [tmp_path / "elsewhere"]
    assert dev.python() and len(made) == 1, "it is made once"


def test_the_link_stands_for_the_pack(tmp_path):
    import dev

    dev.link_folder(tmp_path / "samkit")
    assert (tmp_path / "samkit" / "__init__.py").is_file()


def test_the_pack_has_no_print_no_assert_and_imports_its_own_relatively():
    for path in [ROOT / "__init__.py", *(p for f in ("nodes", "sam", "utils") for p in (ROOT / f).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Assert), path
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"print", "eval", "exec"}), path
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] not in {"nodes", "sam", "utils", "samkit"}, path
            if isinstance(node, ast.ImportFrom) and node.level > 1:
                floors = ["utils", "sam", "nodes"]
                above = floors[floors.index(path.relative_to(ROOT).parts[0]) + 1 :]
                assert (node.module or "").split(".")[0] not in above, f"{path} imports from a floor above"

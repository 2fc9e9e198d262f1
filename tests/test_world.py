"""The switch that keeps a green run from hiding a skipped layer, tried on a suite of its own."""

import os
import subprocess
import sys

import pytest
from load_pack import ROOT

SUITE = """
import sys
sys.path.append({tests!r})
from world import unavailable
def test_a_layer(): unavailable("node", "node is not installed")
"""


@pytest.mark.parametrize(("world", "code", "said"), [("", 0, "1 skipped"), ("node", 1, "expects node, but "
"node is not installed"),
                                                     ("full", 1, "expects node"), ("comfyui", 0, "1 skipped"),
                                                     ("moon", 1, "SAMKIT_WORLD names ['moon']")])  # fmt: skip
def test_what_is_expected_and_missing_fails(world, code, said, tmp_path):
    (tmp_path / "test_it.py").write_text(SUITE.format(tests=str(ROOT / "tests")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(command, env={**os.environ, "SAMKIT_WORLD": world}, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout

"""The editor's pure modules, under `node --test`; see tests/javascript."""

import re
import shutil
import subprocess

from load_pack import ROOT
from world import unavailable

LEAST_NODE = 18  # the first with `node --test`
FOLDER = ROOT / "tests" / "javascript"


def node():
    """Where node is; skips the test where it is missing or too old."""
    found = shutil.which("node")
    if found is None:
        unavailable("node", "node is not installed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    number = re.match(r"v(\d+)\.", version)
    if number is None or int(number[1]) < LEAST_NODE:
        unavailable("node", f"node {version or 'does not start'}: the tests need {LEAST_NODE} or newer")
    return found


def test_the_editors_modules():
    files = sorted(FOLDER.glob("*.test.mjs"))  # one by one: not every version of node takes a folder or a pattern
    assert files
    run = subprocess.run([node(), "--test", *files], capture_output=True, text=True, encoding="utf-8", timeout=300, check=False)
    assert run.returncode == 0, f"\n{run.stdout}{run.stderr}"


def test_every_pure_module_has_its_tests():
    """A module that touches no page is tested without one; the others are tested in a browser."""
    pure = {path.stem for path in (ROOT / "web" / "editor").glob("*.js") if "document" not in path.read_text(encoding="utf-8")}
    tested = {path.name.removesuffix(".test.mjs") for path in FOLDER.glob("*.test.mjs")}
    assert {"state", "geometry", "client", "source", "keys", "gestures"} <= pure
    assert pure - tested == set(), "write tests/javascript/<module>.test.mjs"

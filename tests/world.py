"""Which layers of the suite this machine is expected to have, so that a green run cannot hide a skipped one.

SAMKIT_WORLD names them, separated by commas: comfyui, browser, node; or `full` for all. What is expected and missing fails;
what is not expected and missing is skipped with its reason.
"""

import os
from typing import NoReturn

import pytest

LAYERS = {"comfyui", "browser", "node"}


def expected_layers():
    """The layers that SAMKIT_WORLD names."""
    named = {name.strip() for name in os.environ.get("SAMKIT_WORLD", "").split(",")} - {""}
    unknown = named - LAYERS - {"full"}
    assert not unknown, f"SAMKIT_WORLD names {sorted(unknown)}: choose among {sorted(LAYERS)}, or full"
    return LAYERS if "full" in named else named


def unavailable(layer: str, reason: object) -> NoReturn:
    """Skip a test whose layer is missing here, or fail it where the layer is expected."""
    if layer in expected_layers():
        pytest.fail(f"SAMKIT_WORLD expects {layer}, but {reason}", pytrace=False)
    pytest.skip(str(reason))

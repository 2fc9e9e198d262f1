"""ComfyUI's real memory management in each of its states, with a device that has no memory here; see comfyui_memory.py."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfyui_server import Unavailable, find_comfyui
from load_pack import ROOT
from world import unavailable

pytestmark = pytest.mark.comfyui
ON_DEVICE, ON_CPU = ["meta", "meta"], ["cpu", "cpu"]


def run_in(state):
    try:
        home, python = find_comfyui()
    except Unavailable as reason:
        unavailable("comfyui", reason)
    script = Path(__file__).with_name("comfyui_memory.py")
    done = subprocess.run(
        [python, script, ROOT, state],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


@pytest.mark.parametrize("state", ["normal", "lowvram", "novram"])
def test_weights_are_where_they_are_said_to_be(state):
    found, log = run_in(state)
    assert found["first"] == found["again"] == found["second model"] == ON_DEVICE, "in each state a device has all of a model"
    assert found["books"] == [found["bytes"]], "ComfyUI knows what it takes, once"
    assert found["unloaded"] == [[], "None", "None"], "Unload Models frees all of it"
    assert found["after"] == found["and back"] == ON_DEVICE
    assert found["evicted"] == [[], "None"], "nothing is unloaded partially: an nn.Linear cannot run so"
    assert found["CPU"] == [*ON_CPU, [], "None"]
    assert found["own weights"] == {"moved": False, "inference": False, "same identity": True}
    assert found["gone"] == [[], []], "a model that nothing refers to goes at once, without the garbage collector"
    assert "memory leak" not in log


def test_novram_without_room_runs_where_the_weights_are_with_one_warning():
    found, log = run_in("novram-full")
    assert found["first"] == found["again"] == found["and back"] == ON_CPU and found["books"] == []
    assert log.count("SAM runs on the CPU") == 1

"""Run by ComfyUI's own Python: its real memory management, with a device that has no memory here, in one of its states.

python comfyui_memory.py <the pack's root> <normal|lowvram|novram|novram-full>

What it prints last is read by test_comfyui_memory.py, as JSON.
"""

import gc
import json
import sys
from pathlib import Path

ROOT, STATE = Path(sys.argv[1]), sys.argv[2]
HOME = Path.cwd()
sys.argv = [sys.argv[0], "--cpu"]  # there is no GPU to initialise
sys.path[:0] = [str(HOME), str(ROOT / "tools"), str(ROOT / "tests")]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import folder_paths  # noqa: E402, F401  so the pack knows that it is in ComfyUI
import torch  # noqa: E402

DEVICE = torch.device("meta")
STATES = {"normal": "NORMAL_VRAM", "lowvram": "LOW_VRAM", "novram": "NO_VRAM", "novram-full": "NO_VRAM"}
management.vram_state = management.VRAMState[STATES[STATE]]
management.get_torch_device = lambda: DEVICE
free = [24 << 30 if STATE != "novram-full" else 1000]


def get_free_memory(device=None, torch_free_too=False):
    """What is left of the device after what ComfyUI's books say is loaded."""
    used = sum(entry.model_loaded_memory() for entry in management.current_loaded_models)
    left = max(0, free[0] - used)
    return (left, left) if torch_free_too else left


management.get_free_memory = get_free_memory

from load_pack import load_pack  # noqa: E402

load_pack()

from reference import random_sam  # noqa: E402
from samkit.sam import identity_of, load_model  # noqa: E402
from samkit.sam.placement.devices import placed  # noqa: E402
from samkit.sam.placement.resident import resident_of  # noqa: E402


def books():
    """What ComfyUI believes to be loaded, in bytes."""
    return [entry.model_loaded_memory() for entry in management.current_loaded_models]


def run(model, mode="AUTO"):
    """As a node runs: in inference mode. The devices that the weights are on in the body."""
    with torch.inference_mode(), placed(model, mode, 1 << 20) as device:
        kinds = {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]}
        return [device.type, *sorted(kinds)]


def small(seed, folder):
    sam = random_sam(32, 2, 2, (1,), grid=8, window=3, out_chans=32, mlp_dim=64, seed=seed)
    torch.save(sam.state_dict(), folder / f"{seed}.pth")
    return load_model(folder / f"{seed}.pth")


def main(folder):
    model, other = small(0, folder), small(1, folder)
    pointers, identity = [tensor.data_ptr() for tensor in model.parameters()], identity_of(model)
    found = {"first": run(model), "again": run(model), "books": books(), "bytes": resident_of(model).nbytes}
    found["second model"] = run(other)
    management.unload_all_models()
    found["unloaded"] = [books(), str(resident_of(model).device), str(resident_of(other).device)]
    found["after"] = run(model)
    # Another model needs a little more than is free: what is not loaded partially is unloaded whole.
    management.free_memory(get_free_memory() + 1, DEVICE)
    found["evicted"] = [books(), str(resident_of(model).device)]
    found["and back"] = run(model)
    found["CPU"] = [*run(model, "CPU"), books(), str(resident_of(model).device)]
    run(other)
    found["own weights"] = {
        "moved": pointers != [tensor.data_ptr() for tensor in model.parameters()],
        "inference": any(tensor.is_inference() for tensor in model.parameters()),
        "same identity": identity == identity_of(model),
    }
    gc.disable()
    del other
    found["gone"] = [books(), [type(entry.model).__name__ for entry in management.current_loaded_models]]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))

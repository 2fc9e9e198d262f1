"""Every optional package absent, one at a time: nothing at import, what needs it says so, all else works."""

import subprocess
import sys

import pytest
from load_pack import ROOT

PRELUDE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.path[:0] = [{tools!r}, {tests!r}]
from load_pack import load_pack
pack = load_pack()
import numpy as np, torch
from samkit.sam import SAMError
image = torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(0))
model = pack.NODE_CLASS_MAPPINGS["AV_SAMLoader"]().load_model("samkit_demo.safetensors")[0]
masks = pack.NODE_CLASS_MAPPINGS["SAMKit_Segment"]().execute(model, image, '[{{"x": 30, "y": 25}}]')[0]
assert masks.shape == (1, 48, 64)
everything = pack.NODE_CLASS_MAPPINGS["SAMKit_AutoMask"]().execute
found = everything(model, image, points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0)[0]
assert len(found)
def refusal(call):
    try:
        call()
    except SAMError as error:
        return str(error)
    return "no refusal"
"""
CHECKS = {
    "scipy": """cleaned = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "min_mask_region_area": 9}
said = refusal(lambda: everything(model, image, points_per_side=3, **cleaned))
assert "pip install scipy" in said, said
refine = pack.NODE_CLASS_MAPPINGS["SAMKit_RefineMask"]().execute
assert refine(masks, grow=3)[0].sum() > masks.sum() > 0
said = refusal(lambda: refine(masks, feather=3))
assert "pip install scipy" in said, said""",
    "transformers": """from pathlib import Path
from samkit.sam import load_grounding
said = refusal(lambda: load_grounding(Path("nowhere")))
assert "pip install" in said and "transformers" in said, said
from samkit.sam import load_matte
said = refusal(lambda: load_matte(Path("nowhere")))
assert "pip install" in said and "transformers" in said, said""",
    "cv2": "",
    "pycocotools": "",
    "h5py": "",
    "av": """from pathlib import Path
from samkit.sam.datasets.films import VideoFrames
from samkit.sam.tasks.films import Film, track_here
said = refusal(lambda: VideoFrames(Path("clip.mp4")))
assert "PyAV is needed to read video files: pip install av" in said, said
said = refusal(lambda: next(track_here(None, [Film(Path("frames"), "frames", ("0.png",)), Film(Path("clip.mp4"), "clip.mp4")])))
assert "PyAV is needed" in said, said""",
    "ray": "",
}


@pytest.mark.parametrize("absent", CHECKS)
def test_without_it(absent):
    prelude = PRELUDE.format(absent=absent, tools=str(ROOT / "tools"), tests=str(ROOT / "tests"))
    command = [sys.executable, "-c", prelude + CHECKS[absent]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]

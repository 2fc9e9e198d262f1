"""Large outputs: made where they are connected, a frame at a time; the others stay the same."""

import json
import subprocess
import sys
import types

import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from load_pack import ROOT
from samkit.nodes import NODE_CLASS_MAPPINGS
from samkit.nodes.automask import AutoMask
from samkit.nodes.common import MOST_SHOWN, MakesLarge
from samkit.nodes.grounding import SegmentText, TextToBoxes
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.prompt_editor import PromptEditor
from samkit.sam import encode
from samkit.sam.models.sam import run_encoder
from samkit.sam.store.memory import ByteCache
from samkit.sam.tasks import embed
from test_grounding import EVERYTHING, TEXT, folder, grounding  # noqa: F401  fixtures

CLICK = '[{"x": 30, "y": 25}]'
LOOSE = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
BOX = {"x": 10, "y": 5, "width": 40, "height": 30}
PATCH = {"x": 1, "y": 2, "width": 1, "height": 1, "runs": "BA=="}
OBJECTS = [
    {"name": "one", "marks": [{"x": 30, "y": 25, "label": 1}], "finish": {"feather": 2}},
    {"name": "two", "marks": [BOX, {"x": 60, "y": 40, "label": 1, "frame": 1}], "candidate": "largest", "paint": [PATCH]},
    {"name": "three", "paint": [{**PATCH, "frame": 0}], "finish": {"grow": 3}},
]
PROMPTS = json.dumps({"version": 2, "objects": OBJECTS})


@pytest.fixture
def connected(monkeypatch, tmp_path):
    """Says which outputs of the node that runs are connected."""
    comfy = install(monkeypatch, FakeComfyUI(tmp_path))
    (tmp_path / "temp").mkdir()

    def connect(node, names):
        inputs = {name: ["4", node.RETURN_NAMES.index(name)] for name in names}
        module = types.SimpleNamespace(get_executing_context=lambda: types.SimpleNamespace(prompt_id="p", node_id="4"))
        monkeypatch.setitem(sys.modules, "comfy_execution.utils", module)
        comfy.running.clear()
        comfy.running[1] = (0, "p", {"4": {"inputs": {}}, "5": {"inputs": inputs}}, {}, [])

    return connect


@pytest.fixture
def film():
    return as_image(*(make_image(60, 80, seed) for seed in range(5)))


@pytest.fixture
def calls(tiny_model, grounding, film):  # noqa: F811
    return {
        Segment: lambda node: node.execute(tiny_model, film, CLICK),
        PredictMask: lambda node: node.execute(tiny_model, encode(tiny_model, film), CLICK),
        AutoMask: lambda node: node.execute(tiny_model, film, **LOOSE),
        TextToBoxes: lambda node: node.execute(grounding, film, TEXT, **EVERYTHING),
        SegmentText: lambda node: node.execute(tiny_model, grounding, film, TEXT, **EVERYTHING),
        PromptEditor: lambda node: node.execute(film, PROMPTS, tiny_model)["result"],
    }


KINDS = [Segment, PredictMask, AutoMask, TextToBoxes, SegmentText, PromptEditor]


def test_these_are_all_with_large_outputs():
    assert {node for node in NODE_CLASS_MAPPINGS.values() if issubclass(node, MakesLarge)} == set(KINDS)
    for node in NODE_CLASS_MAPPINGS.values():
        assert not {"overlay", "cutout", "logits"} & set(node.RETURN_NAMES) - set(getattr(node, "LARGE", ())), node


def same(ours, expected):
    if isinstance(ours, list):
        return len(ours) == len(expected) and all(map(same, ours, expected))
    if isinstance(ours, dict):
        return ours.keys() == expected.keys() and all(same(ours[key], expected[key]) for key in ours)
    return torch.equal(ours, expected) if isinstance(ours, torch.Tensor) else ours == expected


@pytest.mark.parametrize("node", KINDS)
def test_an_output_is_made_where_it_is_connected_and_the_others_stay_as_they_are(node, calls, connected):
    whole = calls[node](node())  # outside a prompt nobody can say what is connected
    assert all(len(whole[node.RETURN_NAMES.index(name)]) for name in node.LARGE)
    for names in ([], *([name] for name in node.LARGE), list(node.LARGE)):
        connected(node, names)
        found = calls[node](node())
        assert node.IS_CHANGED(image=None) == " ".join(names)
        for name, ours, expected in zip(node.RETURN_NAMES, found, whole, strict=True):
            if name not in node.LARGE or name in names:
                assert type(ours) is type(expected) and (name == "bbox_detector" or same(ours, expected)), name
            elif name == "layers":
                assert ours == []
            else:
                assert len(ours) == 0 and ours.shape[1:] == expected.shape[1:] and ours.dtype == expected.dtype, name


@pytest.mark.parametrize("node", [AutoMask, SegmentText])
def test_the_node_shows_its_overlay_although_nothing_is_connected_to_it(node, calls, connected, tmp_path):
    whole = calls[node](node())
    connected(node, [])
    found = calls[node](node())
    assert torch.equal(found.image, whole.image) and not len(found[node.RETURN_NAMES.index("overlay")])


def test_of_a_long_batch_the_overlay_has_the_frames_that_are_shown(tiny_model, connected):
    film = as_image(make_image(60, 80)).expand(MOST_SHOWN + 3, -1, -1, -1)
    connected(AutoMask, [])
    assert len(AutoMask().execute(tiny_model, film, **LOOSE).image) == MOST_SHOWN


def test_with_individual_masks_the_cutout_of_segment_text_is_still_one_per_frame(tiny_model, grounding, film):  # noqa: F811
    given = (tiny_model, grounding, film, TEXT)
    merged, apart = (SegmentText().execute(*given, **EVERYTHING, individual_masks=one) for one in (False, True))
    assert len(apart[0]) > len(film) and torch.equal(apart[5], merged[5]) and torch.equal(merged[5][..., 3], merged[0])


# SAM Prompt Editor, frame by frame.


@pytest.fixture
def runs(monkeypatch):
    """Counts the image encoder's forward passes; the cache holds two images."""
    counted = []
    counting = lambda encoder, images, *args: counted.append(len(images)) or run_encoder(encoder, images, *args)  # noqa: E731
    monkeypatch.setattr("samkit.sam.models.sam.run_encoder", counting)
    monkeypatch.setattr(embed, "cache", ByteCache(2 * 32 * 8 * 8 * 4))
    return counted


@pytest.mark.parametrize("apart", [False, True])
def test_the_editors_batch_is_its_frames_and_encodes_each_once_for_all_objects(tiny_model, film, runs, apart):
    *_, masks, _, labels, cutout, layers = PromptEditor().execute(film, PROMPTS, tiny_model, apart)["result"]
    assert runs == [1] * len(film) and labels == ["one", "two", "three"]
    for index in range(len(film)):
        objects = [dict(one) for one in OBJECTS]
        for one in objects:
            for part in ("marks", "paint"):
                listed = [mark for mark in one.get(part, ()) if mark.get("frame", index) == index]
                one[part] = [{key: value for key, value in mark.items() if key != "frame"} for mark in listed]
            if not one["marks"] and not one["paint"] and apart:
                one["marks"] = [{"x": 999, "y": 0, "label": 1}]  # keeps its place; a mark outside makes no mask
        prompts = json.dumps({"version": 2, "objects": objects})
        alone = PromptEditor().execute(film[index : index + 1], prompts, tiny_model, apart)["result"]
        rows = slice(3 * index, 3 * index + 3) if apart else slice(index, index + 1)
        assert torch.equal(alone[3], masks[rows]) and torch.equal(alone[6], cutout[rows])
        assert same(alone[7], layers[index : index + 1])


def test_where_nothing_is_connected_the_editor_segments_nothing(tiny_model, film, runs, connected):
    connected(PromptEditor, ["image"])
    answer = PromptEditor().execute(film, PROMPTS, tiny_model)
    assert not runs and len(answer["ui"]["samkit_images"]) == len(film) and answer["ui"]["samkit_model"]
    connected(PromptEditor, ["cutout"])
    PromptEditor().execute(film, PROMPTS, tiny_model)
    assert runs == [1] * len(film)


MEASURE = """
import json, resource, sys
sys.path[:0] = [{tests!r}, {tools!r}]
from load_pack import load_pack
load_pack()
import torch
from conftest import as_image, make_image
from reference import random_sam
from samkit.nodes.prompt_editor import PromptEditor
torch.set_num_threads(1)
model = random_sam(embed_dim=32, depth=3, heads=2, grid=8, window=3, global_blocks=(1,), out_chans=32, mlp_dim=64)
film = as_image(make_image(480, 640)).repeat({frames}, 1, 1, 1)
marks = [{{"marks": [{{"x": 100 + 150 * k, "y": 200, "label": 1}}], "finish": {{"grow": k}}}} for k in range(3)]
prompts = json.dumps({{"version": 2, "objects": marks}})
PromptEditor().execute(film[:2], prompts, model)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = PromptEditor().execute(film, prompts, model)["result"]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layers = sum(layer["image"].nbytes for document in result[7] for layer in document["layers"])
print(1024 * (peak - before) - result[3].nbytes - result[6].nbytes - layers)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units, or not there, elsewhere")
def test_a_film_takes_little_more_than_its_outputs():
    """All masks as float32 would take 3.7 MB a frame besides: 370 MB here."""
    code = MEASURE.format(tests=str(ROOT / "tests"), tools=str(ROOT / "tools"), frames=100)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 100e6, f"{int(ran.stdout) / 1e6:.0f} MB"

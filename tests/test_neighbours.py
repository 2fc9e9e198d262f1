"""At ComfyUI's start: replacements of other packs' nodes, and who has the ids that Art Venture's pack has too."""

import asyncio
import sys
import types

import pytest
from fakes import FakeComfyUI, install
from load_pack import ROOT
from samkit import NODE_CLASS_MAPPINGS
from samkit.nodes import startup
from samkit.nodes.grounding import GroundingLoader
from samkit.nodes.model import SAMModelLoader
from samkit.nodes.neighbours import CHOICE, SHARED_IDS, settle
from samkit.nodes.replacements import REPLACEMENTS
from samkit.sam import GROUNDING_MODELS, SAM_MODELS, SAMError
from samkit.sam.weights.registry import GROUNDING, GROUNDING_ALIASES, KNOWN, SAM_ALIASES
from samkit.utils.comfy import pack_of

SHARED = {name: NODE_CLASS_MAPPINGS[name] for name in SHARED_IDS}


@pytest.fixture
def theirs(monkeypatch):
    """Art Venture's classes, from a folder of custom_nodes."""
    module = types.ModuleType("art_venture_nodes")
    module.__file__ = "/ComfyUI/custom_nodes/comfyui-art-venture/modules/inpaint/nodes.py"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.NODE_CLASS_MAPPINGS = {name: type(name, (), {"__module__": module.__name__}) for name in SHARED_IDS}
    return module.NODE_CLASS_MAPPINGS


@pytest.mark.parametrize("last", ["ours", "theirs"])
@pytest.mark.parametrize("choice", ["", "samkit", "other"])
def test_one_line_names_both_packs_and_who_has_the_ids(theirs, monkeypatch, last, choice):
    monkeypatch.setenv(CHOICE, choice)
    registered = {"KSampler": object, **(SHARED if last == "ours" else theirs)}
    line = settle(registered, SHARED, [{"KSampler": object}, theirs, dict(registered)])
    wins = "samkit" if (choice or {"ours": "samkit"}.get(last)) == "samkit" else "comfyui-art-venture"
    assert all(registered[name] is (SHARED if wins == "samkit" else theirs)[name] for name in SHARED_IDS)
    ours = pack_of(SHARED["AV_SAMLoader"]) or "samkit"
    used = ours if wins == "samkit" else wins
    assert line.startswith(
        f"Both {ours} and comfyui-art-venture have the nodes AV_SAMLoader, GetSAMEmbedding, SAMEmbeddingToImage. "
    )
    assert f"Those of {used} are used." in line and f"{CHOICE}={'other' if wins == 'samkit' else 'samkit'}" in line
    assert ("lack the image size" in line) == (wins != "samkit") and "\n" not in line


@pytest.mark.parametrize("used", ["this copy", "the other copy"])
def test_of_two_copies_of_this_pack_the_used_one_says_which_to_remove(theirs, used):
    """Both run this at start, and each would call the other one a pack that lacks everything."""
    copy = {**theirs, "SAMKit_Segment": object}
    registered = {"KSampler": object, **(NODE_CLASS_MAPPINGS if used == "this copy" else copy)}
    line = settle(registered, SHARED, [registered, copy, NODE_CLASS_MAPPINGS])
    if used == "this copy":
        assert "installed twice, in samkit and in comfyui-art-venture. samkit is used" in line or "is used: remove" in line
    else:
        assert line is None
    assert registered["AV_SAMLoader"] is (SHARED if used == "this copy" else copy)["AV_SAMLoader"]


def test_nothing_is_said_where_nobody_else_has_them():
    assert settle(dict(SHARED), SHARED, [{}, SHARED, {"KSampler": object}]) is None


def test_a_class_knows_its_pack(theirs):
    assert pack_of(theirs["AV_SAMLoader"]) == "comfyui-art-venture" and pack_of(dict) is pack_of(types.ModuleType) is None


class Signal(list):
    """aiohttp's: it can be frozen."""

    frozen = False


class App:
    def __init__(self):
        self.on_startup = Signal()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A ComfyUI whose server has an app, and no node replacement: 0.3.64."""
    install(monkeypatch, FakeComfyUI(tmp_path))
    instance = sys.modules["server"].PromptServer.instance
    instance.app = App()
    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {}
    return instance


def test_the_ids_are_settled_when_every_pack_is_loaded(server, theirs, caplog):
    startup.at_start(SHARED)
    sys.modules["nodes"].NODE_CLASS_MAPPINGS = dict(theirs)  # later
    with caplog.at_level("WARNING", "samkit"):
        for handler in server.app.on_startup:
            asyncio.run(handler(server.app))
    assert len(caplog.records) == 1 and "comfyui-art-venture" in caplog.text


def test_a_server_that_runs_already_is_left_alone(server):
    server.app.on_startup.frozen = True
    startup.at_start(SHARED)
    assert server.app.on_startup == []


def test_outside_comfyui_nothing_is_registered():
    startup.at_start(SHARED)


class NodeReplace:
    """comfy_api's, of 0.25: five attributes."""

    def __init__(self, new_node_id, old_node_id, old_widget_ids=None, input_mapping=None, output_mapping=None):
        self.new, self.old, self.widgets = new_node_id, old_node_id, old_widget_ids
        self.inputs, self.outputs = input_mapping, output_mapping


@pytest.fixture
def registered(server, monkeypatch):
    """What a ComfyUI 0.25 has in its manager afterwards."""
    latest = types.ModuleType("comfy_api.latest")
    latest.io = types.SimpleNamespace(NodeReplace=NodeReplace)
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    found = []
    server.node_replace_manager = types.SimpleNamespace(register=found.append)
    startup.at_start(SHARED)
    return found


def test_the_replacements_are_registered(registered):
    assert [one.old for one in registered] == [one.old for one in REPLACEMENTS]
    assert len({one.old for one in registered}) == len(registered) >= 9


@pytest.mark.parametrize("number", range(len(REPLACEMENTS)), ids=[one.old for one in REPLACEMENTS])
def test_a_replacement_fits_the_node_that_it_names(registered, number):
    one, node = registered[number], NODE_CLASS_MAPPINGS[registered[number].new]
    declared = node.INPUT_TYPES()
    known = {**declared["required"], **declared.get("optional", {})}
    given = [mapping["new_id"] for mapping in one.inputs]
    assert set(given) <= set(known) and len(given) == len(set(given))
    unconnected = {"sam_model", "grounding_model"} if one.old in ("Segment", "SegmentV2") else set()
    assert set(declared["required"]) - set(given) == unconnected
    for mapping in one.inputs:
        if "set_value" in mapping:
            assert isinstance(mapping["set_value"], type(known[mapping["new_id"]][1]["default"]))
        else:
            is_widget = isinstance(known[mapping["new_id"]][0], list) or known[mapping["new_id"]][0] in ("FLOAT", "INT")
            assert mapping["old_id"] in one.widgets or not is_widget, mapping
    assert all(mapping["new_idx"] < len(node.RETURN_TYPES) for mapping in one.outputs or ())


def test_the_first_output_of_storyicons_segmentation_is_the_cutout(registered):
    (one,) = [one for one in registered if one.old == "GroundingDinoSAMSegment (segment anything)"]
    names = NODE_CLASS_MAPPINGS[one.new].RETURN_NAMES
    assert {mapping["old_idx"]: names[mapping["new_idx"]] for mapping in one.outputs} == {0: "cutout", 1: "masks"}


def test_the_page_has_every_replacement():
    page = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
    assert all(one.old.removesuffix(" (segment anything)") in page for one in REPLACEMENTS)


def test_aliases_are_accepted_and_lead_to_known_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    assert set(SAM_ALIASES.values()) <= set(KNOWN) and set(GROUNDING_ALIASES.values()) == set(GROUNDING)
    for loader, aliases in ((SAMModelLoader, SAM_ALIASES), (GroundingLoader, GROUNDING_ALIASES)):
        assert all(loader.VALIDATE_INPUTS(name) is True for name in [*aliases, *aliases.values(), None])
        assert (
            loader.VALIDATE_INPUTS("nowhere.pth") == "'nowhere.pth' is not in the list. Refresh it (R), or choose another one."
        )
        assert not set(aliases) & set(loader.INPUT_TYPES()["required"]["model_name"][0])


def test_an_alias_finds_the_file_and_a_file_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    folder = tmp_path / "models" / "sams"
    folder.mkdir(parents=True)
    (folder / "sam_vit_h_4b8939.pth").write_bytes(b"1")
    assert SAM_MODELS.find("sam_vit_h (2.56GB)").fetch() == SAM_MODELS.find("ViT-H").path == folder / "sam_vit_h_4b8939.pth"
    assert SAMModelLoader.IS_CHANGED("ViT-H") == SAMModelLoader.IS_CHANGED("sam_vit_h_4b8939.pth") != ""
    with pytest.raises(SAMError, match="no complete model 'GroundingDINO'"):
        GROUNDING_MODELS.find("GroundingDINO").load()

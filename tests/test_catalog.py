"""One order for every kind of model: what is there, an alias, what ships in the pack, what a run downloads."""

import dataclasses

import pytest
import samkit.sam.weights.catalog as module
import torch
from fakes import FakeComfyUI, install
from reference import content_id
from safetensors.torch import save_file
from samkit.nodes.editor.jobs import RefusedError
from samkit.nodes.editor.preview import on_this_machine
from samkit.nodes.grounding import GroundingLoader
from samkit.nodes.matte import MatteLoader
from samkit.nodes.model import ModelLoader, SAMModelLoader
from samkit.sam import GROUNDING_MODELS, MATTE_MODELS, SAM_MODELS, SAMError, load_model, save_decoder
from samkit.sam.models.retrained import Retrained, with_decoder
from samkit.sam.tasks.folders import FolderTask, Worker
from samkit.sam.weights.catalog import Catalog, ModelFolders
from samkit.sam.weights.registry import KnownCheckpoint, RemoteFile

LOADERS = (SAMModelLoader, GroundingLoader, MatteLoader)
CATALOGS = (SAM_MODELS, GROUNDING_MODELS, MATTE_MODELS)
FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors")


@pytest.fixture(params=["in ComfyUI", "outside"])
def models(request, monkeypatch, tmp_path):
    """The folder `models`, in both worlds."""
    if request.param == "in ComfyUI":
        install(monkeypatch, FakeComfyUI(tmp_path))
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def put(catalog, models, name, files=FILES):
    """Something of that name that is complete; nothing is read from it here."""
    place = models / catalog.kind / name
    if isinstance(catalog, ModelFolders):
        place.mkdir(parents=True)
        for file in files:
            (place / file).write_bytes(b"x")
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x")
    return place


def test_the_three_kinds_are_all_that_loaders_have():
    assert tuple(loader.MODELS for loader in LOADERS) == CATALOGS
    assert [isinstance(catalog, ModelFolders) for catalog in CATALOGS] == [False, True, True]


@pytest.mark.parametrize("catalog", CATALOGS, ids=lambda catalog: catalog.kind)
def test_a_file_goes_before_an_alias_before_what_ships_before_what_is_known(catalog, models, tmp_path):
    known = next(iter(catalog.known.values()))
    ours = known.name
    catalog = dataclasses.replace(catalog, aliases={"theirs.pth": ours}, bundled={})
    entry = catalog.find("theirs.pth")
    assert (entry.path, entry.known) == (None, known) and entry.exists
    catalog = dataclasses.replace(catalog, bundled={ours: tmp_path / "bundled"})
    assert catalog.find("theirs.pth").path == catalog.find(ours).path == tmp_path / "bundled"
    there = put(catalog, models, ours)
    assert catalog.find("theirs.pth").path == catalog.find(ours).path == there == catalog.find(ours).fetch()
    own = put(catalog, models, "theirs.pth")
    assert catalog.find("theirs.pth").path == own and catalog.find(ours).path == there
    assert catalog.names().count(ours) == 1 and catalog.names().index("theirs.pth") < len(catalog.names()) - 1


@pytest.mark.parametrize("loader", [SAMModelLoader, GroundingLoader], ids=lambda loader: loader.__name__)
def test_comfyui_is_told_of_the_file_that_is_loaded(loader, models, monkeypatch):
    """A folder that is called as another pack's loader calls a model was loaded, and the known model's state was asked for."""
    loaded, (ours, *_) = [], loader.MODELS.known
    catalog = dataclasses.replace(loader.MODELS, aliases={"theirs.pth": ours}, load=lambda path, *_: loaded.append(path))
    monkeypatch.setattr(loader, "MODELS", catalog)
    alias = "theirs.pth"
    assert loader.IS_CHANGED(alias) == loader.IS_CHANGED(ours) == ""
    put(catalog, models, ours)
    known = loader.IS_CHANGED(alias)
    assert known == loader.IS_CHANGED(ours) != ""
    own = put(catalog, models, alias)
    assert loader.IS_CHANGED(alias) not in (known, "") and loader.IS_CHANGED(ours) == known
    catalog.find(alias).load()
    assert loaded == [own] and on_this_machine(catalog.find(alias)).path == own


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)
def test_every_row_has_a_label_that_says_what_it_is(loader, models):
    catalog = loader.MODELS
    ours, size = next((name, known.size) for name, known in catalog.known.items())
    put(catalog, models, "mine.pth")
    put(catalog, models, "half.pth", FILES[:1])
    names, options = loader.INPUT_TYPES()["required"]["model_name"]
    labels = options["samkit_labels"]
    assert list(labels) == names
    assert labels["mine.pth"] == "mine.pth (0 MB)"
    assert labels[ours] == f"{ours} ({size / 1e6:,.0f} MB, not downloaded)" if size else f"{ours} (not downloaded)"
    if isinstance(catalog, ModelFolders):
        assert labels["half.pth"] == "half.pth (incomplete)"
        assert loader.VALIDATE_INPUTS("half.pth") is True and loader.IS_CHANGED("half.pth") == ""
        with pytest.raises(SAMError, match="there is no complete model 'half.pth' in .*: create a folder of that name with"):
            loader().execute("half.pth")
    assert loader.VALIDATE_INPUTS(ours) is loader.VALIDATE_INPUTS(None) is True
    assert "is not in the list" in loader.VALIDATE_INPUTS("nowhere.pth")


@pytest.mark.parametrize("catalog", CATALOGS, ids=lambda catalog: catalog.kind)
def test_what_the_preview_refuses_a_run_downloads_or_refuses(catalog, models, monkeypatch):
    asked = []
    for name in ("fetch", "fetch_folder"):
        monkeypatch.setattr(module, name, lambda known, folders: asked.append((known.name, folders)) or models)
    for name, known in catalog.known.items():
        with pytest.raises(RefusedError, match="is not on this machine yet. A run downloads it") as refused:
            on_this_machine(catalog.find(name))
        assert refused.value.missing == name and catalog.find(name).fetch() == models
        assert asked.pop() == (known.name, [models / catalog.kind])
    with pytest.raises(RefusedError, match=f"there is no {catalog.what} nowhere in models/{catalog.kind}") as refused:
        on_this_machine(catalog.find("nowhere"))
    assert refused.value.missing is None
    with pytest.raises(SAMError, match=f"there is no {catalog.what} 'nowhere' in .*{catalog.kind}"):
        catalog.find("nowhere").fetch()
    assert not asked


def test_what_needs_no_download_is_listed_from_small_to_large_and_what_ships_comes_last(models):
    for name, size in (("large.pth", 90), ("small.pth", 10), ("middle.pth", 50)):
        file = models / "sams" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(size))
    _, options = SAMModelLoader.INPUT_TYPES()["required"]["model_name"]
    assert options["samkit_ready"]["names"] == ["small.pth", "middle.pth", "large.pth", "samkit_demo.safetensors"]
    assert options["samkit_ready"]["bundled"] == ["samkit_demo.safetensors"]


def test_the_list_reads_no_file(models, monkeypatch):
    """Every page of ComfyUI asks for it, and a folder may have a hundred files on a disk far away."""
    put(SAM_MODELS, models, "one.safetensors")
    monkeypatch.setattr(type(models), "open", lambda *_, **__: pytest.fail("a file was opened"))
    assert SAMModelLoader.INPUT_TYPES()["required"]["model_name"][1]["samkit_labels"]["one.safetensors"] == (
        "one.safetensors (0 MB)"
    )


def test_a_new_kind_of_loader_is_a_catalog_and_its_words(models, monkeypatch):
    known = KnownCheckpoint(RemoteFile("depth.pth", "somebody/depth", "depth.pth", size=5_000_000), "Depth")
    depth = Catalog(kind="depth", known={known.name: known}, aliases={"Depth (5MB)": known.name}, load=lambda path: path.name)

    class DepthLoader(ModelLoader):
        MODELS = depth
        TOOLTIP = "A file in models/depth."

    names, options = DepthLoader.INPUT_TYPES()["required"]["model_name"]
    assert names == ["depth.pth"] and options["samkit_labels"] == {"depth.pth": "depth.pth (5 MB, not downloaded)"}
    put(depth, models, "mine.pth")
    monkeypatch.setattr(module, "fetch", lambda file, folders: folders[0] / file.name)
    assert [DepthLoader().execute(name) for name in ("mine.pth", "Depth (5MB)")] == [("mine.pth",), ("depth.pth",)]
    assert DepthLoader.IS_CHANGED("mine.pth") and DepthLoader.VALIDATE_INPUTS("Depth (5MB)") is True


@pytest.fixture
def decoder(models, tiny_sam):
    """A trained decoder somewhere, made for base.safetensors in models/sams; and what the two make."""
    base = models / "sams" / "base.safetensors"
    base.parent.mkdir()
    save_file(tiny_sam.state_dict(), base)
    model, path = load_model(base), models.parent / "elsewhere" / "tuned.safetensors"
    path.parent.mkdir()
    made = with_decoder(model, Retrained({"iou_token.weight": torch.randn(1, 32)}, content_id(model), base.name), path)
    save_decoder(made, path)
    return path, made


def test_the_folder_command_takes_a_trained_decoder(decoder, models):
    path, made = decoder
    task = FolderTask("everything", "COCO RLE", path)
    before = task.settings()
    assert content_id(Worker(task).model) == content_id(made) != content_id(load_model(models / "sams" / "base.safetensors"))
    save_file({"other": torch.zeros(1)}, models / "sams" / "base.safetensors")
    assert task.settings()["model"] != before["model"], "another base is another model"


def test_a_damaged_decoder_downloads_nothing(models, monkeypatch):
    path = models / "sam_decoders" / "tuned.safetensors"
    path.parent.mkdir()
    base = {"samkit": "decoder-2", "base": "x", "base_name": "sam_vit_h_4b8939.pth"}
    save_file({"iou_token.weight": torch.full((1, 32), torch.nan)}, path, base)
    monkeypatch.setattr(module, "fetch", lambda *_: pytest.fail("something was fetched"))
    with pytest.raises(SAMError, match="iou_token.weight has values that are NaN"):
        SAM_MODELS.find("tuned.safetensors").load()
    with pytest.raises(
        RefusedError, match="tuned.safetensors was made for sam_vit_h_4b8939.pth, which is not on this"
    ) as refused:
        on_this_machine(SAM_MODELS.find("tuned.safetensors"))
    assert refused.value.missing is None


def test_a_decoder_of_a_known_model_downloads_it(models, monkeypatch, tiny_sam):
    """And is found through the base's name, in whatever folder it lies."""
    base = models / "sams" / "deep" / "sam_vit_b_01ec64.pth"
    base.parent.mkdir(parents=True)
    torch.save(tiny_sam.state_dict(), base)
    model, path = load_model(base), models / "sam_decoders" / "tuned.safetensors"
    path.parent.mkdir()
    made = with_decoder(model, Retrained({"iou_token.weight": torch.randn(1, 32)}, content_id(model), base.name), path)
    save_decoder(made, path)
    entry = SAM_MODELS.find("tuned.safetensors")
    assert entry.load("fp32").precision == "fp32", "the base is loaded as the decoder is asked for"
    assert content_id(entry.load()) == content_id(made) and entry.base.path == base and entry.absence is None
    elsewhere = base.rename(models / "kept.pth")
    monkeypatch.setattr(module, "fetch", lambda file, folders: elsewhere if file.name == base.name else None)
    assert content_id(entry.load()) == content_id(made)

"""What the loaders list, and what becomes of a name: whatever lies in the folders, no node's inputs raise."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_image
from fakes import FakeComfyUI, install
from PIL import Image
from reference import content_id
from safetensors.torch import save_file
from samkit.nodes import NODE_CLASS_MAPPINGS
from samkit.nodes.editor.preview import Preview, RefusedError, look_up, parse_subject
from samkit.nodes.model import SAMHubLoader, SAMModelLoader
from samkit.sam import SAM_MODELS, SAMError, load_decoder, load_model, save_decoder
from samkit.sam.models.retrained import Retrained, with_decoder
from samkit.sam.weights.registry import KNOWN
from samkit.utils.comfy_folders import CHECKPOINT_SUFFIXES
from test_checkpoint_forms import in_shards

LINKS = pytest.mark.skipif(sys.platform == "win32", reason="Windows makes links for administrators only")


@pytest.fixture(params=["in ComfyUI", "outside"])
def root(request, monkeypatch, tmp_path):
    """The folder that has `models`."""
    if request.param == "in ComfyUI":
        install(monkeypatch, FakeComfyUI(tmp_path))
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    for name in ("input", "output", "temp", "models/sams"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def listed():
    return [name.replace("\\", "/") for name in SAM_MODELS.names() if name not in KNOWN and not name.startswith("samkit_demo")]


# Whatever lies in a folder.

KINDS = ("sams", "sam2", "sam", "sam_decoders", "sam_concepts", "grounding-dino", "vitmatte")


def gone(folder):
    for ending in (".pth", ".safetensors", ".h5"):
        (folder / f"link{ending}").symlink_to("/nowhere/model.safetensors")
    (folder / "folder").symlink_to("/nowhere")


def loop(folder):
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    (folder / "loop").symlink_to("loop")
    (folder / "around").symlink_to(folder)


def folders_named_like_files(folder):
    for name in ("a.pth", "b.safetensors", "c.samkit.safetensors", "m/config.json", "m/model.safetensors"):
        (folder / name).mkdir(parents=True)


def a_file_in_place_of_the_folder(folder):
    folder.rmdir()
    folder.touch()


def names_that_are_not_utf8(folder):
    for name in (b"\xff.pth", b"\xff.safetensors", b"\xe9\xe8"):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).touch()
    inside = Path(os.fsdecode(os.fsencode(folder) + b"/\xfe"))
    inside.mkdir()
    (inside / "config.json").touch()


def nonsense(folder):
    for name in ("empty.pth", "empty.safetensors", "line\nbreak.safetensors", "x.safetensors.index.json"):
        (folder / name).touch()
    (folder / "junk.safetensors").write_bytes(b'\x08\0\0\0\0\0\0\0{"a": 1}')
    (folder / "odd.safetensors").write_bytes(safetensors_header({"samkit": "decoder-2", "base_name": 7}))


def safetensors_header(metadata):
    text = json.dumps({"__metadata__": metadata}).encode()
    return len(text).to_bytes(8, "little") + text


def unreadable(folder):
    (folder / "locked.safetensors").touch(mode=0)
    (folder / "locked").mkdir(mode=0)


FAULTS = (gone, loop, folders_named_like_files, a_file_in_place_of_the_folder, names_that_are_not_utf8, nonsense, unreadable)


@LINKS
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.replace("_", " "))
def test_no_nodes_inputs_raise(root, fault):
    places = [root / "models" / kind for kind in KINDS] + [root / "output" / "sam_decoders", root / "input", root / "output"]
    for place in places[:-2]:
        place.mkdir(parents=True, exist_ok=True)
    for place in places[:-2] if fault is a_file_in_place_of_the_folder else places:
        fault(place)
    asked = 0
    for node in NODE_CLASS_MAPPINGS.values():
        for name, (values, *_) in node.INPUT_TYPES().get("required", {}).items():
            if isinstance(values, list):
                json.dumps(values)
                for value in values if hasattr(node, "IS_CHANGED") else ():
                    assert isinstance(node.IS_CHANGED(**{name: value}), str)
                    asked += 1
    assert asked > len(KNOWN)


@LINKS
def test_files_that_the_system_refuses_do_not_raise_either(root, monkeypatch):
    """The tests may run as root, who may read everything: so the system's answer is made up."""
    path = root / "models" / "sams" / "locked" / "x.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.zeros(1)}, path)
    model = root / "models" / "grounding-dino" / "model"
    model.mkdir(parents=True)
    files = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    for name in (*files, "model.safetensors"):
        (model / name).touch()
    loader = NODE_CLASS_MAPPINGS["SAMKit_GroundingLoader"]
    before = loader.IS_CHANGED("model")
    assert before
    stat, opened = Path.stat, Path.open

    def refused(real):
        def call(self, *args, **options):
            if "locked" in str(self):
                raise PermissionError(13, "Permission denied")
            return real(self, *args, **options)

        return call

    monkeypatch.setattr(Path, "stat", refused(stat))
    monkeypatch.setattr(Path, "open", refused(opened))
    names = SAMModelLoader.INPUT_TYPES()["required"]["model_name"][0]
    assert len(names) > len(KNOWN)
    assert [SAMModelLoader.IS_CHANGED(name) for name in ("locked/x.safetensors", "nowhere.pth")] == ["", ""]

    def no_list(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", no_list)
    assert loader.IS_CHANGED("model") == ""


@LINKS
def test_a_link_to_nothing_is_a_row_that_says_so(root):
    (root / "models" / "sams" / "mine.pth").symlink_to("/nowhere/model.pth")
    values, options = SAMModelLoader.INPUT_TYPES()["required"]["model_name"]
    assert "mine.pth" in values and options["samkit_labels"]["mine.pth"] == "mine.pth (missing)"
    assert SAMModelLoader.VALIDATE_INPUTS("mine.pth") is True and SAMModelLoader.IS_CHANGED("mine.pth") == ""
    with pytest.raises(SAMError, match=r"'mine.pth' is a link to /nowhere/model.pth, and nothing is there"):
        SAMModelLoader().load_model("mine.pth")


def test_a_linked_folder_that_goes_is_noticed(monkeypatch, tmp_path):
    """ComfyUI asks each folder that it once listed for its time of change, and raises where a linked one has gone."""
    fake = install(monkeypatch, FakeComfyUI(tmp_path))
    folder_paths = sys.modules["folder_paths"]
    real = folder_paths.get_filename_list

    def listing(kind):
        if kind in folder_paths.filename_list_cache:
            raise FileNotFoundError(2, "No such file or directory")
        return real(kind)

    monkeypatch.setattr(folder_paths, "get_filename_list", listing)
    (fake.root / "models" / "sams").mkdir(parents=True)
    (fake.root / "models" / "sams" / "mine.pth").touch()
    folder_paths.filename_list_cache["sams"] = "what it knew"
    assert "mine.pth" in SAMModelLoader.INPUT_TYPES()["required"]["model_name"][0]


# Which files are listed.


def test_every_ending_that_loads_is_listed_and_what_trainers_leave_is_not(root):
    folder = root / "models" / "sams" / "me" / "tuned"
    folder.mkdir(parents=True)
    weights = [f"x{ending}" for ending in sorted(CHECKPOINT_SUFFIXES)]
    assert {"x.ckpt", "x.bin", "x.h5", "x.pth", "x.pt", "x.safetensors"} == set(weights)
    other = ["training_args.bin", "optimizer.bin", "scheduler.bin", "sampler_1.bin", "tf_model.h5", "config.json", "notes.txt"]
    for name in (*weights, *other, "model.weights.h5", "task.weights.h5"):
        (folder / name).touch()
    assert listed() == sorted(f"me/tuned/{name}" for name in (*weights, "model.weights.h5"))
    (folder / "model.weights.h5").unlink()
    assert "me/tuned/task.weights.h5" in listed()


@pytest.mark.parametrize("kind", ["sams", "sam2", "sam"])
def test_the_folders_of_other_packs_are_listed_and_loaded_from(root, kind, tiny_sam):
    path = root / "models" / kind / "theirs.pth"
    path.parent.mkdir(exist_ok=True)
    torch.save(tiny_sam.state_dict(), path)
    assert listed() == ["theirs.pth"] and SAM_MODELS.find("theirs.pth").fetch() == path
    assert SAMModelLoader().load_model("theirs.pth")[0].identity == content_id(tiny_sam)


@pytest.mark.parametrize(("stem", "kind"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_a_checkpoint_in_shards_is_one_row_and_old_names_of_shards_load(root, tiny_sam, stem, kind):
    folder = root / "models" / "sams" / "tuned"
    in_shards(tiny_sam.state_dict(), folder, stem, kind, count=3)
    first, second, third = (f"tuned/{stem}-{number:05}-of-00003.{kind}" for number in (1, 2, 3))
    assert listed() == [first]
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert SAM_MODELS.find(first.replace("/", os.sep)).label == f"{first.replace('/', os.sep)} ({size / 1e6:,.0f} MB)"
    for name in (first, second, third):
        assert SAMModelLoader.VALIDATE_INPUTS(name) is True
        assert SAM_MODELS.find(name).load().identity == content_id(tiny_sam)
    (folder / f"{stem}-00002-of-00003.{kind}").unlink()
    assert "(missing)" not in SAM_MODELS.find(first).label and SAMModelLoader.IS_CHANGED(first) == ""
    with pytest.raises(SAMError, match=f"the shard {stem}-00002-of-00003.{kind} is missing"):
        SAM_MODELS.find(third).load()


@pytest.mark.parametrize("name", ["sub\\deep\\x.safetensors", "sub/deep\\x.safetensors", "sub/deep/x.safetensors"])
def test_names_with_the_other_systems_separator_load(root, tiny_sam, name):
    path = root / "models" / "sams" / "sub" / "deep" / "x.safetensors"
    path.parent.mkdir(parents=True)
    save_file(tiny_sam.state_dict(), path)
    assert SAMModelLoader.VALIDATE_INPUTS(name) is True and SAMModelLoader.IS_CHANGED(name) != ""
    assert SAM_MODELS.find(name).fetch() == path
    assert SAMModelLoader.VALIDATE_INPUTS("sub\\x.safetensors") != True  # noqa: E712  a text is true, too


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such name")
def test_a_file_whose_own_name_has_the_other_separator_is_found(root):
    path = root / "models" / "sams" / "sub\\x.safetensors"
    path.touch()
    assert SAM_MODELS.find("sub\\x.safetensors").fetch() == path


@pytest.mark.parametrize("value", [["x"], {"x": 1}, 3, 2.5, b"x", ""])
def test_a_value_that_is_no_listed_name_is_refused_by_the_check(root, value):
    assert "is not in the list" in SAMModelLoader.VALIDATE_INPUTS(value)


@pytest.mark.parametrize("name", ["../../secret.pth", "..\\..\\secret.pth", "/etc/hosts", "sub/../../../secret.pth"])
def test_no_name_leaves_the_folders(root, name):
    torch.save({}, root / "secret.pth")
    assert SAMModelLoader.VALIDATE_INPUTS(name) != True and SAMModelLoader.IS_CHANGED(name) == ""  # noqa: E712
    with pytest.raises(SAMError, match="there is no checkpoint"):
        SAM_MODELS.find(name).fetch()


# Folders of the hub loader.


@pytest.mark.parametrize("kind", ["sharded .bin", "a variant", "keras"])
def test_the_hub_loader_finds_local_folders_of_every_form(root, tiny_sam, monkeypatch, kind):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = root / "models" / "sams" / "me" / "tuned"
    folder.mkdir(parents=True)
    expected = content_id(tiny_sam)
    if kind == "sharded .bin":
        in_shards(tiny_sam.state_dict(), folder, "pytorch_model", "bin")
    elif kind == "a variant":
        save_file(tiny_sam.state_dict(), folder / "model.fp16.safetensors")
    else:
        pytest.importorskip("h5py", reason="h5py reads Keras files")
        preset = Path(__file__).parent / "keras_preset" / "model.weights.h5"
        (folder / preset.name).write_bytes(preset.read_bytes())
        expected = load_model(preset).identity
    assert SAMHubLoader().execute("me/tuned")[0].identity == expected


@pytest.mark.parametrize(("name", "said"), [("adapter_config.json", "adapter of peft"), (".metadata", "dcp_to_torch_save")])
@pytest.mark.parametrize("offline", ["1", ""])
def test_the_hub_loader_says_what_a_local_folder_is(root, monkeypatch, name, said, offline):
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("samkit.sam.weights.hub._choose", lambda *_: pytest.fail("the hub was asked"))
    folder = root / "models" / "sams" / "me" / "tuned"
    folder.mkdir(parents=True)
    (folder / name).write_text('{"base_model_name_or_path": "facebook/sam-vit-base"}')
    with pytest.raises(SAMError, match=said):
        SAMHubLoader().execute("me/tuned")


# A trained decoder, and what the preview loads.


@pytest.fixture
def trained(root, tiny_sam):
    """A trained decoder in models/sam_decoders for base.safetensors in models/sams, and what the two make."""
    base = root / "models" / "sams" / "base.safetensors"
    save_file(tiny_sam.state_dict(), base)
    model = load_model(base)
    weights = {"iou_token.weight": torch.randn(1, 32)}
    change = Retrained(weights, model.identity, base.name)
    path = root / "models" / "sam_decoders" / "tuned.safetensors"
    made = with_decoder(model, change, path)
    save_decoder(made, path)
    assert load_decoder(path).base_name == base.name
    return made


def test_a_trained_decoder_is_loaded_anew_when_its_base_is_replaced(trained, root, tiny_sam):
    base = root / "models" / "sams" / "base.safetensors"
    first = SAMModelLoader.IS_CHANGED("tuned.safetensors")
    assert first and first == SAMModelLoader.IS_CHANGED("tuned.safetensors")
    assert SAMModelLoader.IS_CHANGED("base.safetensors") in first
    save_file({name: value + 1 for name, value in tiny_sam.state_dict().items()}, base)
    os.utime(base, ns=(1, 1))
    assert SAMModelLoader.IS_CHANGED("tuned.safetensors") not in (first, "")
    base.unlink()
    assert SAMModelLoader.IS_CHANGED("tuned.safetensors") not in (first, "")
    with pytest.raises(SAMError, match="was made for base.safetensors, which is not in models/sams"):
        SAM_MODELS.find("tuned.safetensors").load()


def test_a_decoder_that_was_made_for_itself_ends(root):
    for name, base in (("a", "b"), ("b", "a")):
        path = root / "models" / "sam_decoders" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        metadata = {"samkit": "decoder-2", "base": "x", "base_name": f"{base}.safetensors"}
        save_file({"iou_token.weight": torch.zeros(1, 32)}, path, metadata)
    assert SAMModelLoader.IS_CHANGED("a.safetensors") != ""
    with pytest.raises(SAMError, match="was made for"):
        SAM_MODELS.find("a.safetensors").load()


IN_COMFYUI = pytest.mark.parametrize("root", ["in ComfyUI"], indirect=True)  # the preview exists there only


@pytest.fixture
def image(root):
    """An image in the input folder."""
    Image.fromarray(make_image(60, 80)).save(root / "input" / "one.png")


def prepared(name):
    body = {"image": {"filename": "one.png"}, "model": {"model_name": name}}
    return asyncio.run(Preview().prepare(parse_subject(body)))


@IN_COMFYUI
def test_the_preview_loads_what_a_run_loads(trained, image, root, tiny_sam):
    save_file(tiny_sam.state_dict(), root / "models" / "sams" / "sam_vit_b_01ec64.pth")
    in_shards(tiny_sam.state_dict(), root / "models" / "sams" / "sub", "model", "safetensors")
    names = ("tuned.safetensors", "base.safetensors", "sam_vit_b (375MB)", "ViT-B", "sub\\model-00002-of-00002.safetensors")
    for name in names:
        assert content_id(prepared(name).model) == SAM_MODELS.find(name).load().identity, name
    assert content_id(prepared("tuned.safetensors").model) != content_id(tiny_sam)


@IN_COMFYUI
def test_the_preview_never_downloads(trained, image, root, monkeypatch):
    monkeypatch.setattr("samkit.sam.weights.catalog.fetch", lambda *_: pytest.fail("something was fetched"))
    with pytest.raises(RefusedError, match="is not on this machine yet. A run downloads it") as error:
        prepared("ViT-H")
    assert "2,565 MB" in str(error.value)
    (root / "models" / "sams" / "base.safetensors").unlink()
    with pytest.raises(RefusedError, match="tuned.safetensors was made for base.safetensors, which is not on this machine"):
        prepared("tuned.safetensors")
    with pytest.raises(RefusedError, match="there is no checkpoint nowhere.pth"):
        prepared("nowhere.pth")


@LINKS
@IN_COMFYUI
def test_the_preview_says_so_when_a_link_leads_nowhere(image, root):
    (root / "models" / "sams" / "mine.pth").symlink_to("/nowhere/model.pth")
    with pytest.raises(RefusedError, match="there is no checkpoint mine.pth"):
        prepared("mine.pth")


@IN_COMFYUI
def test_a_replaced_base_is_another_subject_of_the_preview(trained, image, root):
    subject = parse_subject({"image": {"filename": "one.png"}, "model": {"model_name": "tuned.safetensors"}})
    before = look_up(subject, None)[0]
    assert before == look_up(subject, None)[0]
    os.utime(root / "models" / "sams" / "base.safetensors", ns=(1, 1))
    assert before != look_up(subject, None)[0]

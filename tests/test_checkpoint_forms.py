"""What trainers write around, beside and inside the weights: the one model in it loads, and what is none says how to get one.

The files are written by torch, transformers and safetensors themselves, or have the names that peft, accelerate, micro-sam and
keras-hub were seen to write.
"""

import argparse
import copy
import json
import logging
import pathlib
import pickle
import shutil
import sys
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from reference import content_id, random_sam
from safetensors.torch import save_file
from samkit.sam import SAMError, as_segmenter, load_model
from samkit.sam.models.sam import ForeignSAM
from samkit.sam.weights.checkpoint_reader import checkpoint_files, read_checkpoint
from samkit.sam.weights.pickles import Opaque
from torch import nn

SMALL = {"embed_dim": 32, "depth": 3, "heads": 2, "grid": 8, "window": 3, "global_blocks": (1,), "out_chans": 32, "mlp_dim": 64}
SAVE_ALONE = "torch.save(model.state_dict(), 'weights.pth')"


@pytest.fixture(scope="module")
def other():
    """A model of the same form with other weights."""
    torch.manual_seed(9)
    return random_sam(**SMALL).state_dict()


def refusal(path):
    with pytest.raises(SAMError) as caught:
        load_model(path)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 600 and path.name in text
    return text


def check_same(sam, content, path):
    torch.save(content, path)
    assert load_model(path).identity == content_id(sam)


# Around the weights.

WRAPPERS = (
    "model_state_dict", "net", "network", "params", "params_ema", "ema", "model_ema", "sam_state_dict", "module", "weights",
    "student", "teacher", "generator", "state", "a name that nobody has used before",
)  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_may_have_any_name(tiny_sam, tmp_path, wrapper):
    check_same(tiny_sam, {"epoch": 3, wrapper: tiny_sam.state_dict()}, tmp_path / "x.pth")


def test_the_form_of_pytorchs_tutorial_loads(tiny_sam, tmp_path):
    optimizer = torch.optim.Adam(tiny_sam.parameters())
    content = {
        "epoch": 5,
        "model_state_dict": tiny_sam.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": torch.tensor(0.3),
    }
    check_same(tiny_sam, content, tmp_path / "tutorial.tar")


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_weights_are_found_at_any_depth(tiny_sam, tmp_path, depth):
    content = dict(tiny_sam.state_dict())
    for level in range(depth):
        content = {f"level {level}": [content, "text"], "epoch": level}
    check_same(tiny_sam, content, tmp_path / "x.pth")


def test_a_dict_for_each_part_is_a_model(tiny_sam, tmp_path):
    parts = {name: getattr(tiny_sam, name).state_dict() for name in ("image_encoder", "prompt_encoder", "mask_decoder")}
    check_same(tiny_sam, parts, tmp_path / "parts.pth")
    check_same(tiny_sam, {"weights": parts, "epoch": 1}, tmp_path / "wrapped.pth")


class Config(dict):
    """A dict of a class of its own, as easydict, addict and OmegaConf have."""


@pytest.mark.parametrize("kind", [Config, lambda items: defaultdict(dict, items), OrderedDict])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_dict_of_a_class_of_its_own_is_a_dict(tiny_sam, tmp_path, kind, zipped):
    content = kind({"model": kind(tiny_sam.state_dict()), "epoch": 1})
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert load_model(tmp_path / "x.pth").identity == content_id(tiny_sam)


def test_what_contains_itself_or_a_container_very_often_ends(tiny_sam, tmp_path):
    content = {"model": tiny_sam.state_dict(), "history": []}
    content["history"].append(content["history"])
    often = [1]
    for _ in range(40):  # two to the power of 40 ways lead to the innermost
        often = [often, often]
    content["often"] = often
    check_same(tiny_sam, content, tmp_path / "x.pth")


def test_a_million_losses_do_not_stand_before_the_weights(tiny_sam, tmp_path, monkeypatch):
    """What is looked at in a file is bounded, for files that have the same list very often."""
    monkeypatch.setattr("samkit.sam.weights.formats.search._MOST_ITEMS", 1000)
    check_same(tiny_sam, {"losses": [0.5] * 2000, "runs": {"1": {"model": tiny_sam.state_dict()}}}, tmp_path / "x.pth")
    torch.save({"losses": [0.5] * 2000, "runs": [tiny_sam.state_dict()]}, tmp_path / "behind.pth")
    assert "does not hold a dict of tensors" in refusal(tmp_path / "behind.pth")


# What modules of torch put before and inside the names.


def wrapped_encoder(wrap):
    def change(sam):
        sam.image_encoder = wrap(sam.image_encoder)
        return sam

    return change


def wrapped_decoder(wrap):
    def change(sam):
        sam.mask_decoder = wrap(sam.mask_decoder)
        return sam

    return change


def wrapped_block(sam):
    sam.image_encoder.blocks[1] = torch.compile(sam.image_encoder.blocks[1])
    return sam


INSIDE = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "both": lambda sam: torch.compile(nn.DataParallel(sam)),
    "compiled encoder": wrapped_encoder(torch.compile),
    "parallel encoder": wrapped_encoder(nn.DataParallel),
    "compiled decoder": wrapped_decoder(torch.compile),
    "parallel decoder": wrapped_decoder(nn.DataParallel),
    "a compiled block": wrapped_block,
    "a compiled block in both": lambda sam: torch.compile(nn.DataParallel(wrapped_block(sam))),
    "averaged (EMA, SWA)": torch.optim.swa_utils.AveragedModel,
    "averaged and parallel": lambda sam: torch.optim.swa_utils.AveragedModel(nn.DataParallel(sam)),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_modules_of_torch_around_the_model_or_a_part_do_not_matter(tiny_sam, tmp_path, kind):
    state = INSIDE[kind](copy.deepcopy(tiny_sam)).state_dict()
    assert state.keys() != tiny_sam.state_dict().keys()
    check_same(tiny_sam, state, tmp_path / "x.pth")


def test_a_prefix_inside_and_a_wrapper_outside_at_once(tiny_sam, tmp_path):
    state = {f"lightning.{name.replace('_encoder.', '_encoder._orig_mod.')}": v for name, v in tiny_sam.state_dict().items()}
    check_same(tiny_sam, {"checkpoint": {"state_dict": state}}, tmp_path / "x.ckpt")


def test_a_compiled_encoder_of_transformers_loads(tmp_path):
    """transformers itself reads this file with an encoder of random weights."""
    pytest.importorskip("transformers")
    from test_formats import hugging_face_sam

    theirs = hugging_face_sam()
    torch.save(theirs.state_dict(), tmp_path / "plain.pth")
    theirs.vision_encoder = torch.compile(theirs.vision_encoder)
    theirs.save_pretrained(tmp_path / "saved")
    assert any("_orig_mod" in name for name in read_checkpoint(tmp_path / "saved"))
    assert load_model(tmp_path / "saved").identity == load_model(tmp_path / "plain.pth").identity


def test_the_same_name_twice_with_other_values_is_refused(tiny_sam, tmp_path):
    name = "image_encoder.blocks.0.norm1.weight"
    torch.save(tiny_sam.state_dict() | {name.replace(".blocks", "._orig_mod.blocks"): torch.zeros(32)}, tmp_path / "x.pth")
    assert f"two different tensors for {name}" in refusal(tmp_path / "x.pth")


# Beside the weights.


def test_losses_counters_and_a_teacher_beside_the_weights_are_ignored(tiny_sam, other, tmp_path, caplog):
    state = {f"model.{name}": value for name, value in tiny_sam.state_dict().items()}
    state |= {f"teacher.{name}": value for name, value in other.items()}
    state |= {"dice.value": torch.tensor(1.0), "loss_fn.weight": torch.ones(2), "step_count": torch.tensor(3)}
    with caplog.at_level(logging.WARNING, "samkit"):
        check_same(tiny_sam, {"state_dict": state}, tmp_path / "lightning.ckpt")
    assert "holds 2 models: 'state_dict.model' is used, not 'state_dict.teacher'" in caplog.text


@pytest.mark.parametrize("name", ["surplus", "n_averaged", "text_head.weight"])
def test_a_tensor_beside_the_parts_is_ignored_and_one_inside_is_not(tiny_sam, tmp_path, name):
    check_same(tiny_sam, tiny_sam.state_dict() | {name: torch.tensor(3)}, tmp_path / "x.pth")
    torch.save(tiny_sam.state_dict() | {f"mask_decoder.{name}": torch.ones(3)}, tmp_path / "inside.pth")
    assert "unknown: 1" in refusal(tmp_path / "inside.pth")


@pytest.mark.parametrize(
    ("taken", "beside"),
    [("model", "ema"), ("student", "teacher"), ("net", "model_ema"), ("state_dict", "best"), ("first", "second")],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_models_one_is_taken_by_a_rule_and_the_log_says_which(tiny_sam, other, tmp_path, caplog, taken, beside, swapped):
    content = {taken: tiny_sam.state_dict(), beside: other}
    if swapped and taken != "first":  # where no name says more, it is the first
        content = dict(reversed(content.items()))
    with caplog.at_level(logging.WARNING, "samkit"):
        check_same(tiny_sam, content, tmp_path / "two.pth")
    assert f"two.pth holds 2 models: '{taken}' is used, not '{beside}'" in caplog.text


def test_what_an_optimizer_keeps_by_name_is_no_second_model(tiny_sam, tmp_path):
    """The forms of torch.distributed.checkpoint.state_dict: the state of each weight under the weight's name."""
    state = {name: {"exp_avg": torch.zeros_like(value)} for name, value in tiny_sam.state_dict().items()}
    check_same(tiny_sam, {"optim": {"state": state}, "app": tiny_sam.state_dict()}, tmp_path / "x.pth")
    flat = {f"{name}.exp_avg": value["exp_avg"] for name, value in state.items()}
    check_same(tiny_sam, {"optim": flat, "app": tiny_sam.state_dict()}, tmp_path / "flat.pth")


def test_the_same_tensors_under_three_names_load(tiny_sam, tmp_path):
    state = tiny_sam.state_dict()
    check_same(tiny_sam, {"model": state, "ema": state, "best": state}, tmp_path / "x.pth")


def test_a_live_model_with_more_layers_than_a_sam_runs_as_it_is(tiny_sam):
    """In a file, what lies beside the parts is a loss; in a module, it may be a layer that its forward pass uses."""

    class OtherEncoder(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.img_size = encoder.img_size
            self.__dict__["_modules"], self.__dict__["_parameters"] = encoder._modules, encoder._parameters

    sam = copy.deepcopy(tiny_sam)
    sam.image_encoder = OtherEncoder(sam.image_encoder)
    assert not isinstance(as_segmenter(sam), ForeignSAM)
    sam = copy.deepcopy(sam)
    sam.text_head = nn.Linear(2, 2)
    assert isinstance(as_segmenter(sam), ForeignSAM)


# Objects in a pickle.


class Everything:
    """A class that the reader cannot import, with state."""

    def __init__(self):
        self.images = ["a.png", "b.png"]


OBJECTS = {
    "a NumPy number": np.float64(0.9),
    "a NumPy array": np.arange(5),
    "options": argparse.Namespace(lr=1e-4, out="runs"),
    "a path": pathlib.PurePosixPath("runs/1"),
    "a data set": {"train_dataset": Everything(), "kinds": {Everything}},
    "a set": {1, 2, frozenset({3})},
    "an optimizer": torch.optim.Adam([nn.Parameter(torch.zeros(3))]),
    "a device, a type, a size": [torch.device("cpu"), torch.float16, torch.Size([2])],
    "a complex number": 1j,
    "bytes": [b"abc", bytearray(b"xyz")],
    "a whole module": nn.Linear(2, 2),
    "keys that are tuples": {(1, 2): torch.zeros(3), (3, (4,)): "text"},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", OBJECTS)
def test_whatever_lies_beside_the_weights_in_a_pickle_does_not_matter(tiny_sam, tmp_path, kind, protocol, zipped):
    content = {"model": tiny_sam.state_dict(), "rest": OBJECTS[kind]}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(content, tmp_path / "x.pth", **options)
    assert load_model(tmp_path / "x.pth").identity == content_id(tiny_sam)


def test_a_trainer_with_its_data_sets_loads(tiny_sam, tmp_path):
    """The form of micro-sam's trainer: `model_state` with the prefix `sam.`, and pickled data sets in `init`."""
    content = {
        "iteration": 10,
        "init": {"train_dataset": Everything(), "val_dataset": Everything(), "device": torch.device("cpu")},
        "best_metric": np.float32(0.1),
        "model_state": {f"sam.{name}": value for name, value in tiny_sam.state_dict().items()},
        "decoder_state": {"encoder.weight": torch.zeros(2)},
        "optimizer_state": torch.optim.Adam(tiny_sam.parameters()).state_dict(),
    }
    check_same(tiny_sam, content, tmp_path / "best.pt")


def test_no_object_of_a_file_is_made_or_imported(tiny_sam, tmp_path, monkeypatch):
    torch.save({"model": tiny_sam.state_dict(), "rest": OBJECTS}, tmp_path / "x.pth")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch's own reader was asked"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *_, **__: pytest.fail("Python's own reader was asked"))
    found = read_checkpoint(tmp_path / "x.pth")["rest"]
    assert isinstance(found["options"], Opaque) and found["options"].kind == "argparse.Namespace"
    assert isinstance(found["a data set"]["train_dataset"], Opaque)
    assert found["a whole module"].is_module and not found["an optimizer"].is_module


def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path):
    torch.manual_seed(0)
    types = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8)
    content = {str(dtype): (10 * torch.randn(3, 4)).to(dtype) for dtype in (*types, torch.uint8, torch.bool, torch.complex64)}
    whole = torch.randn(6, 8)
    content |= {"view": whole[1:3, 2:7:2], "transposed": whole.t(), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    content |= {"parameter": nn.Parameter(torch.randn(2)), "expanded": torch.randn(1, 3).expand(4, 3)}
    new = {"float8": torch.randn(5).to(torch.float8_e4m3fn), "uint16": torch.arange(4).to(torch.uint16)}
    for zipped, values in ((True, content | new), (False, content)):
        torch.save(values, tmp_path / "all.pth", _use_new_zipfile_serialization=zipped)
        found, expected = read_checkpoint(tmp_path / "all.pth"), torch.load(tmp_path / "all.pth", weights_only=True)
        assert found.keys() == expected.keys() == values.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride(), name
            assert torch.equal(found[name].cpu().view(torch.uint8) if name == "float8" else found[name],
                               tensor.view(torch.uint8) if name == "float8" else tensor.detach()), name  # fmt: skip


def test_a_whole_module_is_refused_with_the_line_that_saves_its_weights(tiny_sam, tmp_path):
    for number, content in enumerate((tiny_sam, {"model": tiny_sam}, [tiny_sam])):
        for zipped in (True, False):
            torch.save(content, tmp_path / "tuned.pth", _use_new_zipfile_serialization=zipped)
            text = refusal(tmp_path / "tuned.pth")
            assert "a pickled model that includes code (segment_anything.modeling.sam.Sam)" in text, number
            assert SAVE_ALONE in text and "SlimSAM" not in text


def test_a_model_that_is_an_object_is_named(tmp_path):
    torch.save({"epoch": 1, "network": Everything()}, tmp_path / "x.pth")
    text = refusal(tmp_path / "x.pth")
    assert "its tensor network is an object of test_checkpoint_forms.Everything" in text and SAVE_ALONE in text


def test_a_plain_pickle_is_named(tiny_sam, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(tiny_sam.state_dict()))
    assert "it is a plain pickle" in refusal(tmp_path / "x.pkl")


# Several files.


def in_shards(state, folder, stem, kind, variant="", count=2):
    folder.mkdir(parents=True, exist_ok=True)
    names = list(state)
    where = {}
    for number in range(count):
        file = f"{stem}{variant and '.' + variant}-{number + 1:05}-of-{count:05}.{kind}"
        part = {name: state[name].clone() for name in names[number::count]}
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = f"{stem}.{kind}.index{variant and '.' + variant}.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


@pytest.mark.parametrize(
    ("stem", "kind", "variant"),
    [("pytorch_model", "bin", ""), ("model", "safetensors", ""), ("model", "safetensors", "fp16")],
)
def test_shards_load_from_the_folder_the_index_and_any_shard(tiny_sam, tmp_path, stem, kind, variant):
    index = in_shards(tiny_sam.state_dict(), tmp_path, stem, kind, variant)
    entries = [tmp_path, *tmp_path.iterdir()]
    assert len(entries) == 4
    for entry in entries:
        assert load_model(entry).identity == content_id(tiny_sam)
        assert len(files := checkpoint_files(entry)) == 3 and files[0].name == index


def test_an_index_of_one_kind_names_no_shard_of_the_other(tiny_sam, tmp_path):
    index = in_shards(tiny_sam.state_dict(), tmp_path, "pytorch_model", "bin")
    text = (tmp_path / index).read_text().replace("00001-of-00002.bin", "00001-of-00002.safetensors")
    (tmp_path / index).write_text(text)
    assert "is not a bin file beside it" in refusal(tmp_path / index)


def test_a_shard_of_objects_is_refused(tiny_sam, tmp_path):
    in_shards(tiny_sam.state_dict(), tmp_path, "pytorch_model", "bin")
    torch.save([1], tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(SAMError, match="it is a shard of pytorch_model.bin.index.json, but does not hold a dict"):
        load_model(tmp_path)


def test_a_variant_that_transformers_saved_loads_and_the_plain_file_comes_first(tmp_path):
    pytest.importorskip("transformers")
    from test_formats import hugging_face_sam

    theirs = hugging_face_sam()
    theirs.save_pretrained(tmp_path, variant="fp16")
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "model.fp16.safetensors").exists()
    assert load_model(tmp_path).identity == load_model(tmp_path / "model.fp16.safetensors").identity
    theirs.save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="20KB")
    assert load_model(tmp_path / "sharded").identity == load_model(tmp_path).identity
    with torch.no_grad():
        theirs.mask_decoder.iou_token.weight.add_(1)
    theirs.save_pretrained(tmp_path)
    assert load_model(tmp_path).identity != load_model(tmp_path / "model.fp16.safetensors").identity


# What has to be converted.

LORA = "vision_encoder.layers.0.attn.qkv.lora_A"


def test_a_folder_of_peft_is_called_an_adapter_with_its_base(tmp_path):
    """As peft 0.21 saves one."""
    save_file({f"base_model.model.{LORA}.weight": torch.zeros(2, 3)}, tmp_path / "adapter_model.safetensors")
    for config, base in (
        ({"base_model_name_or_path": "facebook/sam-vit-base", "peft_type": "LORA"}, "facebook/sam-vit-base"),
        ({"base_model_name_or_path": None}, "another model"),
        ({}, "another model"),
        ([], "another model"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
            text = refusal(path)
            assert f"an adapter of peft for {base}, not a model" in text and f"load_model(model, adapter={path.name!r})" in text
    (tmp_path / "adapter_config.json").unlink()
    assert "LoRA weights of peft" in refusal(tmp_path / "adapter_model.safetensors")


def test_a_whole_model_in_a_folder_with_an_adapters_configuration_loads(tiny_sam, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file(tiny_sam.state_dict(), tmp_path / "model.safetensors")
    assert load_model(tmp_path).identity == content_id(tiny_sam)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("image_encoder.blocks.0.attn.qkv.lora_A.default.weight", "LoRA weights of peft"),
        ("base_model.model.mask_decoder.modules_to_save.default.iou_token.weight", "LoRA weights of peft"),
    ],
)
def test_weights_with_lora_in_them_say_how_to_merge(tiny_sam, tmp_path, name, said):
    torch.save({"model": tiny_sam.state_dict() | {name: torch.zeros(2, 3)}}, tmp_path / "x.pth")
    text = refusal(tmp_path / "x.pth")
    assert said in text and name in text and "merge_and_unload()" in text


def test_an_adapter_beside_the_parts_is_not_ignored(tiny_sam, tmp_path):
    state = {f"sam.{name}": value for name, value in tiny_sam.state_dict().items()}
    torch.save(state | {"prompt_adapter.weight": torch.zeros(2)}, tmp_path / "x.pth")
    assert "unknown: 1" in refusal(tmp_path / "x.pth")


def test_a_distributed_checkpoint_says_how_to_convert_it_and_then_loads(tiny_sam, tmp_path):
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = tmp_path / "saved"
    checkpoint.save(tiny_sam.state_dict(), checkpoint_id=folder)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [".metadata", "__0_0.distcp"]
    for path in (folder, *files):
        assert "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(" in refusal(path)
    dcp_to_torch_save(folder, tmp_path / "weights.pth")
    assert load_model(tmp_path / "weights.pth").identity == content_id(tiny_sam)


def test_a_program_of_torch_export_is_refused(tmp_path):
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "x.pt2")
    text = refusal(tmp_path / "x.pt2")
    assert "it is a program of torch.export" in text and SAVE_ALONE in text and "damaged" not in text


@pytest.mark.filterwarnings("ignore")
def test_quantized_models_are_called_so(tiny_sam, tmp_path):
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(tiny_sam), {nn.Linear})
    torch.save(quantized.state_dict(), tmp_path / "x.pth")
    text = refusal(tmp_path / "x.pth")
    assert "it is quantized (image_encoder.blocks.0.attn.qkv._packed_params" in text and SAVE_ALONE in text


class FakeQuantized(torch.Tensor):
    """As torchao's tensors are: a class of its own, made by a function of its module."""

    def __reduce_ex__(self, protocol):
        return _quantized, (1,)


def _quantized(_):
    return None


_quantized.__module__ = FakeQuantized.__module__ = "torchao"


def test_tensors_of_a_quantizers_class_are_called_quantized(tiny_sam, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", sys.modules[__name__])
    name = "image_encoder.blocks.0.attn.qkv.weight"
    state = tiny_sam.state_dict() | {name: torch.zeros(2).as_subclass(FakeQuantized)}
    torch.save(state, tmp_path / "x.pth")
    assert f"its tensor {name} is quantized (torchao._quantized)" in refusal(tmp_path / "x.pth")


def test_a_mask_decoder_alone_is_called_so(tiny_sam, tmp_path):
    for state in (tiny_sam.mask_decoder.state_dict(), {"model": {"mask_decoder": tiny_sam.mask_decoder.state_dict()}}):
        torch.save(state, tmp_path / "x.pth")
        assert "it holds a mask decoder alone" in refusal(tmp_path / "x.pth")


def test_what_is_missing_is_named(tiny_sam, tmp_path):
    state = tiny_sam.state_dict()
    for gone in ("image_encoder", "prompt_encoder", "mask_decoder"):
        part = {f"model.{name}": value for name, value in state.items() if not name.startswith(gone)}
        torch.save(part, tmp_path / "x.pth")
        if gone != "image_encoder":
            assert f"it has no tensor {gone}.*" in refusal(tmp_path / "x.pth")
        else:
            assert "without the image encoder" in refusal(tmp_path / "x.pth")
    for pattern in ("image_encoder.blocks.", "mask_decoder.transformer.layers.", "mask_decoder.iou_prediction_head."):
        save_file({n: v for n, v in state.items() if not n.startswith(pattern)}, tmp_path / "x.safetensors")
        text = refusal(tmp_path / "x.safetensors")
        assert pattern in text and "is missing" in text and "max()" not in text


def test_a_sam_for_volumes_is_called_so(tiny_sam, tmp_path):
    name = "image_encoder.patch_embed.proj.weight"
    save_file(tiny_sam.state_dict() | {name: torch.zeros(32, 1, 4, 4, 4)}, tmp_path / "x.safetensors")
    text = refusal(tmp_path / "x.safetensors")
    assert f"{name} has the shape (32, 1, 4, 4, 4), and for images it has four axes, so it is a SAM for volumes" in text


# Types of safetensors, and what is no checkpoint at all.


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"])
def test_types_of_quantized_files_are_named(tmp_path, dtype):
    header = json.dumps({"mask_decoder.x": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    text = refusal(tmp_path / "x.safetensors")
    assert f"its tensor mask_decoder.x has the type {dtype}, which is for quantized weights" in text and "damaged" not in text


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_whole_numbers_beside_the_weights_load_and_as_a_weight_are_named(tiny_sam, tmp_path, dtype):
    count = torch.zeros(1, 32, dtype=dtype)
    save_file(tiny_sam.state_dict() | {"seen": count}, tmp_path / "x.safetensors")
    assert load_model(tmp_path / "x.safetensors").identity == content_id(tiny_sam)
    save_file(tiny_sam.state_dict() | {"mask_decoder.iou_token.weight": count}, tmp_path / "x.safetensors")
    text = refusal(tmp_path / "x.safetensors")
    assert "mask_decoder.iou_token.weight holds uint" in text and "damaged" not in text


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz])
def test_eight_bits_of_floating_point_load(tiny_sam, tmp_path, dtype):
    state = {name: value.to(dtype) for name, value in tiny_sam.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    found = load_model(tmp_path / "x.safetensors").state_dict()
    for name, value in state.items():
        assert torch.equal(found[name], value.float()), name


NOT_CHECKPOINTS = {
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3\n", "Git LFS pointer"),
    "a page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "it is a web page"),
    "a page in capitals": (b"\r\n<HTML><body>404", "it is a web page"),
    "a page with a mark": (b"\xef\xbb\xbf<!doctype html><p>" + b"\xc3\xa4" * 500, "it is a web page"),
    "nothing": (b"", "the file is empty"),
    "an answer": (b"Entry not found", "it is a text that begins with 'Entry not found'"),
    "an error": (b'{"error": "Invalid credentials in Authorization header"}', 'it is a text that begins with \'{"error"'),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(40), "is a GGUF file"),
}


@pytest.mark.parametrize("name", ["sam.pth", "sam.safetensors", "sam.ckpt"])
@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_at_all_is_called_what_it_is(tmp_path, kind, name):
    content, said = NOT_CHECKPOINTS[kind]
    (tmp_path / name).write_bytes(content)
    text = refusal(tmp_path / name)
    assert said in text and "damaged" not in text


def test_another_zip_archive_is_called_so(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path, "notes.txt")
    assert "a zip archive that torch.save did not write. It contains notes.txt" in refusal(tmp_path / "x.zip")

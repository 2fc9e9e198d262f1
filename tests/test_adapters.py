"""LoRA adapters: what peft itself writes, merged as its `merge_and_unload` merges, and micro-sam's own layers."""

import copy
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_image
from reference_hq import hugging_face_hq, sam_hq
from reference_sam2 import SMALL, SMALL_SIDE, random_sam2
from safetensors.torch import load_file, save_file
from samkit.nodes.editor.preview import RefusedError, _model, parse_subject
from samkit.nodes.model import SAMModelLoader
from samkit.sam import SAM_MODELS, Prompt, SAMError, decode, encode, load_model, load_shared
from samkit.sam.models.sam2 import hiera
from samkit.sam.tasks.folders import FolderTask, Worker
from samkit.sam.weights.hub import fetch_from_hub
from samkit.sam.weights.registry import KNOWN
from test_formats import hugging_face_sam
from torch import nn

peft = pytest.importorskip("peft", reason="peft writes the adapters of these tests")

QKV = {"target_modules": ["qkv"]}
BASES = {
    "SamModel": hugging_face_sam,
    "SamHQModel": hugging_face_hq,
    "Sam2Model": lambda: random_sam2(SMALL, SMALL_SIDE, 64),
    "Sam": None,
    "sam-hq": lambda: sam_hq()[0],
    "sam2": None,
}


@pytest.fixture(scope="module", autouse=True)
def small_size():
    """A size of SAM 2 that is not published, for the tests of this module."""
    hiera.SIZES[16, 8] = hiera.HieraSize("small test", 1, (8, 4, 6, 3), (4,), SMALL_SIDE)
    yield
    del hiera.SIZES[16, 8]


@pytest.fixture(scope="module")
def bases(small_size, tiny_sam, tmp_path_factory):
    """A model of each library by its name. Meta's sam2 cannot be installed everywhere: these are its names, in our module."""
    made = {name: build() for name, build in BASES.items() if build}
    made["Sam"] = tiny_sam
    path = tmp_path_factory.mktemp("sam2") / "sam2.pth"
    torch.save(made["Sam2Model"].state_dict(), path)
    return made | {"sam2": _InMetasNames(load_model(path, "fp32"))}


class _InMetasNames(nn.Module):
    """The parts of one of our models of SAM 2, which can be copied."""

    def __init__(self, model):
        super().__init__()
        for name, part in model.named_children():
            setattr(self, name, part)
        if hasattr(model, "no_mem_embed"):
            self.no_mem_embed = model.no_mem_embed


def trained(model, folder, seed=0, positions=False, **options):
    """Write an adapter of `model` with random weights, as one that was trained has, to `folder`; the model that it makes.

    A SamModel has the positions of prompts and images twice, tied; `positions` trains those of prompts alone.
    """
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = options.pop("kind", peft.LoraConfig)
        tuned = peft.get_peft_model(copy.deepcopy(model), kind(**options))
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad and (positions or "positional" not in name):
                    wide = 0.3 if "lora_" in name else 0.1
                    parameter.add_(torch.randn_like(parameter) * wide)
        tuned.save_pretrained(folder)
        return tuned.merge_and_unload()


def saved(model, path):
    torch.save(model.state_dict(), path)
    return path


def check_equal(adapted, whole):
    """The weights, feature maps, scores and masks of one are those of the other."""
    ours, theirs = adapted.network.state_dict(), whole.network.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-6, rtol=2e-6, msg=name)
    prompt = Prompt(np.array([[30.0, 20.0], [60.0, 40.0]]), np.array([1, 0]), np.array([10.0, 8.0, 60.0, 50.0]))
    one, other = (encode(model, [make_image(60, 80)]) for model in (adapted, whole))
    np.testing.assert_allclose(one, other, atol=1e-4)
    one, other = decode(adapted, one, [[prompt]]), decode(whole, other, [[prompt]])
    np.testing.assert_allclose(one.scores[0], other.scores[0], atol=1e-4)
    assert (one.masks[0] != other.masks[0]).float().mean() <= 1e-3


# peft's own files.

FORMS = {
    "plain": QKV,
    "rsLoRA": {**QKV, "use_rslora": True, "r": 4},
    "DoRA": {"target_modules": ["qkv", "q_proj", "lin1", "mlp.proj_in"], "use_dora": True},
    "biases of its layers": {**QKV, "bias": "lora_only"},
    "all biases": {**QKV, "bias": "all"},
    "lora_bias": {**QKV, "bias": "lora_only", "lora_bias": True},
    "fan_in_fan_out": {**QKV, "fan_in_fan_out": True},
    "all linear layers": {"target_modules": "all-linear"},
    "modules_to_save": {**QKV, "modules_to_save": ["mask_decoder", "sam_mask_decoder"]},
    "modules and all biases": {**QKV, "modules_to_save": ["iou_prediction_head"], "bias": "all"},
    "prompt encoder": {**QKV, "modules_to_save": ["prompt_encoder", "sam_prompt_encoder"]},
    "orthogonal": {**QKV, "init_lora_weights": "orthogonal"},
}


EVERYWHERE = ("DoRA", "all biases", "modules_to_save")
# The libraries differ in their names alone.
PAIRS = [(library, form) for library in BASES for form in FORMS if library == "SamModel" or form in EVERYWHERE]


@pytest.mark.parametrize(("library", "form"), PAIRS)
def test_an_adapter_makes_the_model_that_peft_makes(bases, library, form, tmp_path):
    base = saved(bases[library], tmp_path / "base.pth")
    whole = trained(bases[library], tmp_path / "tuned", **FORMS[form])
    adapted = load_model(base, "fp32", adapter=tmp_path / "tuned")
    check_equal(adapted, load_model(saved(whole, tmp_path / "whole.pth"), "fp32"))
    assert adapted.encoder_identity != load_model(base, "fp32").encoder_identity


PATTERNS = {
    "rank_pattern": {**QKV, "rank_pattern": {"0.attn.qkv": 3}},
    "alpha_pattern": {**QKV, "alpha_pattern": {r"(layers|blocks)\.[01]\.attn\.qkv": 2, "attn.qkv": 3.5}, "r": 4},
    "both, by the whole name": {
        **QKV,
        "rank_pattern": {"^vision_encoder.layers.0.attn.qkv": 1},
        "alpha_pattern": {"^vision_encoder.layers.1.attn.qkv": 100},
        "use_rslora": True,
    },
    "convolutions": {"target_modules": ["neck.conv1", "neck.conv2", "conv3", "patch_embed.projection"], "r": 3},
    "convolutions, DoRA": {"target_modules": ["neck.conv1", "neck.conv2", "projection"], "use_dora": True},
    "convolutions, lora_bias": {"target_modules": ["patch_embed.projection", "mask_embed.conv1"], "lora_bias": True},
    "tables": {"target_modules": ["mask_tokens", "iou_token", "no_mask_embed"], "r": 2},
    "tables, DoRA": {"target_modules": ["mask_tokens"], "r": 2, "use_dora": True},
}


@pytest.mark.parametrize("form", PATTERNS)
def test_patterns_convolutions_and_tables(bases, form, tmp_path):
    base = saved(bases["SamModel"], tmp_path / "base.pth")
    whole = trained(bases["SamModel"], tmp_path / "tuned", **PATTERNS[form])
    check_equal(load_model(base, "fp32", tmp_path / "tuned"), load_model(saved(whole, tmp_path / "whole.pth"), "fp32"))


@pytest.mark.parametrize(
    "form", [{"target_modules": "all-linear"}, {"target_modules": ["qkv", "point_embed"]}, FORMS["prompt encoder"]]
)
@pytest.mark.parametrize(("library", "other"), [("SamModel", "meta"), ("Sam2Model", "meta"), ("SamHQModel", "meta")])
def test_an_adapter_in_transformers_names_fits_a_base_in_metas(bases, library, other, form, tmp_path):
    if library != "Sam2Model" and "point_embed" in form["target_modules"]:
        form = {"target_modules": ["qkv", "point_embed.1"]}
    theirs = load_model(saved(bases[library], tmp_path / "theirs.pth"), "fp32")
    base = saved(theirs, tmp_path / "base.pth")
    assert not any(name.startswith("vision_encoder.") for name in theirs.state_dict())
    whole = trained(bases[library], tmp_path / "tuned", **form)
    check_equal(load_model(base, "fp32", tmp_path / "tuned"), load_model(saved(whole, tmp_path / "whole.pth"), "fp32"))


@pytest.mark.parametrize("library", ["SamModel", "Sam2Model"])
def test_an_adapter_in_metas_names_fits_a_base_in_transformers(bases, library, tmp_path):
    base = saved(bases[library], tmp_path / "base.pth")
    ours = _InMetasNames(load_model(base, "fp32"))
    whole = trained(ours, tmp_path / "tuned", target_modules=["qkv", "q_proj", "mlp.layers.0"])
    check_equal(load_model(base, "fp32", tmp_path / "tuned"), load_model(saved(whole, tmp_path / "whole.pth"), "fp32"))


@pytest.mark.parametrize(
    ("library", "part"), [("SamModel", "vision_encoder"), ("Sam", "image_encoder"), ("sam2", "image_encoder")]
)
def test_an_adapter_of_the_encoder_alone(bases, library, part, tmp_path):
    model = copy.deepcopy(bases[library])
    base = saved(model, tmp_path / "base.pth")
    setattr(model, part, trained(getattr(model, part), tmp_path / "tuned", **QKV))
    assert not any(part in name for name in load_file(tmp_path / "tuned" / "adapter_model.safetensors"))
    check_equal(load_model(base, "fp32", tmp_path / "tuned"), load_model(saved(model, tmp_path / "whole.pth"), "fp32"))


def test_what_holds_the_model_does_not_matter(tiny_sam, tmp_path):
    class Trainer(nn.Module):
        def __init__(self):
            super().__init__()
            self.sam = copy.deepcopy(tiny_sam)

    base = saved(tiny_sam, tmp_path / "base.pth")
    whole = trained(Trainer(), tmp_path / "tuned", **QKV)
    check_equal(load_model(base, "fp32", tmp_path / "tuned"), load_model(saved(whole.sam, tmp_path / "whole.pth"), "fp32"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_merged_in_float32(tiny_sam, dtype, tmp_path):
    half = copy.deepcopy(tiny_sam).to(dtype)
    base = saved(half, tmp_path / "base.pth")
    trained(half, tmp_path / "tuned", **QKV)
    state = load_file(tmp_path / "tuned" / "adapter_model.safetensors")
    name = "image_encoder.blocks.0.attn.qkv"
    first, second = (state[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    weight = half.state_dict()[f"{name}.weight"].double() + second @ first  # alpha and r are 8
    found = load_model(base, "fp32", tmp_path / "tuned").state_dict()[f"{name}.weight"]
    torch.testing.assert_close(found.double(), weight, atol=1e-6, rtol=1e-6)


def test_the_bin_form_and_the_file_itself(tiny_sam, tmp_path):
    base, folder = saved(tiny_sam, tmp_path / "base.pth"), tmp_path / "tuned"
    trained(tiny_sam, folder, **QKV)
    weights = folder / "adapter_model.safetensors"
    by_file = load_model(base, "fp32", weights).identity
    assert load_model(base, "fp32", folder).identity == by_file
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    assert load_model(base, "fp32", folder).identity == by_file


# What is refused, with what was seen and what to do.


def refusal(base, adapter):
    with pytest.raises(SAMError) as caught:
        load_model(base, "fp32", adapter)
    return str(caught.value)


@pytest.mark.parametrize(
    "kind", ["LoHaConfig", "LoKrConfig", "OFTConfig", "IA3Config", "AdaLoraConfig", "BOFTConfig", "VeraConfig"]
)
def test_other_kinds_of_adapters_are_refused_by_name(tiny_sam, kind, tmp_path):
    options = dict(QKV)
    if kind == "IA3Config":
        options["feedforward_modules"] = []
    elif kind == "AdaLoraConfig":
        options["total_step"] = 10
    elif kind == "OFTConfig":
        options |= {"oft_block_size": 4}
    elif kind == "BOFTConfig":
        options |= {"boft_block_size": 4}
    try:
        trained(tiny_sam, tmp_path / "tuned", kind=getattr(peft, kind), **options)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"peft does not make {kind} here: {error}")
    text = refusal(saved(tiny_sam, tmp_path / "base.pth"), tmp_path / "tuned")
    name = {"LoHaConfig": "LOHA", "LoKrConfig": "LOKR", "IA3Config": "IA3"}.get(kind, kind.removesuffix("Config").upper())
    assert f"an adapter of the type {name}" in text and "merge_and_unload()" in text and "tuned/adapter_model" in text


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_refused(tiny_sam, start, tmp_path):
    base = saved(tiny_sam, tmp_path / "base.pth")
    trained(tiny_sam, tmp_path / "tuned", init_lora_weights=start, **QKV)
    assert f"init_lora_weights='{start}'" in refusal(base, tmp_path / "tuned")


@pytest.mark.parametrize("layout", ["SamModel", "meta"])
def test_positions_of_prompts_that_were_trained_alone_are_refused(bases, layout, tmp_path):
    bases["SamModel"].save_pretrained(tmp_path / "base")  # without the tied ones
    trained(bases["SamModel"], tmp_path / "tuned", positions=True, **FORMS["prompt encoder"])
    base = tmp_path / "base" if layout == "SamModel" else saved(load_model(tmp_path / "base"), tmp_path / "base.pth")
    assert "the positions of prompts apart from those of images" in refusal(base, tmp_path / "tuned")


def test_parameters_as_targets_are_refused(tiny_sam, tmp_path):
    trained(tiny_sam, tmp_path / "tuned", target_modules=[], target_parameters=["blocks.0.attn.qkv.weight"])
    assert "a LoRA with target_parameters" in refusal(saved(tiny_sam, tmp_path / "base.pth"), tmp_path / "tuned")


def test_a_base_of_another_shape_is_refused_with_both_names(bases, tiny_sam, tmp_path):
    base, folder = saved(tiny_sam, tmp_path / "base.pth"), tmp_path / "tuned"
    trained(hugging_face_sam(hidden_size=28, mlp_dim=115), folder, **QKV)
    edit(folder, base_model_name_or_path="me/pruned")
    text = refusal(base, folder)
    assert "tuned/adapter_model.safetensors does not fit base.pth" in text and "of shape [84, 28]" in text
    assert "in base.pth it has shape [96, 32]" in text and "trained on me/pruned" in text and "base_model" in text
    trained(hugging_face_sam(num_hidden_layers=5), folder, **QKV)
    assert "layers.3.attn.qkv.weight, which base.pth does not have" in refusal(base, folder)
    trained(bases["Sam2Model"], folder, **QKV)
    assert "which base.pth does not have" in refusal(base, folder)


def edit(folder, **changed):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": None}, "of the type None"),
        ({"peft_type": ["LORA"]}, "of the type"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"alpha_pattern": ["x"]}, "alpha_pattern"),
        ({"alpha_pattern": {"x": None}}, "x in its adapter_config.json is None"),
        ({"alpha_pattern": {"(": 1}}, "is not a pattern"),
        ({"alpha_pattern": {"(.*a)*b": 1}}, "too complex"),
        ({"alpha_pattern": {".*.*.*.*b": 1}}, "too complex"),
        ({"alpha_pattern": {".?" * 60 + "x": 1}}, "too complex"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora"),
        ({"kasa_config": {"alpha": 1}}, "kasa_config"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_a_configuration_that_is_not_a_loras_is_refused(tiny_sam, changed, said, tmp_path):
    base, folder = saved(tiny_sam, tmp_path / "base.pth"), tmp_path / "tuned"
    trained(tiny_sam, folder, **QKV)
    edit(folder, **changed)
    assert said in refusal(base, folder)


LAYER = "base_model.model.image_encoder.blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop(f"{LAYER}.lora_A.weight"), "one half"),
        (lambda state: state.pop(f"{LAYER}.lora_B.weight"), "one half"),
        (lambda state: state.update({f"{LAYER}.lora_A.weight": torch.ones(3, 32)}), "do not fit together"),
        (lambda state: state.update({f"{LAYER}.lora_A.weight": torch.ones(3)}), "one half"),
        (lambda state: state.update({f"{LAYER}.lora_A.weight": torch.ones(8, 31)}), "of shape [96, 31]"),
        (lambda state: state.update({f"{LAYER}.lora_magnitude_vector": torch.ones(7)}), "magnitudes of"),
        (lambda state: state.update({f"{LAYER}.lora_diag": torch.ones(8)}), "not part of a LoRA or DoRA"),
        (lambda state: state.update({f"{LAYER}.lora_B.bias": torch.ones(7)}), "qkv.bias of shape [7]"),
        (lambda state: state.update({"base_model.model.image_encoder.new.weight": torch.ones(7)}), "image_encoder.new.weight"),
        (lambda state: state.update({f"{LAYER}.base_layer.bias": torch.ones(7)}), "qkv.bias of shape [7]"),
        (lambda state: state.update({f"{LAYER}.lora_A.weight": torch.full((8, 32), float("nan"))}), "NaN"),
        (lambda state: state.update({f"{LAYER}.lora_A.weight": torch.ones(8, 32, dtype=torch.int8)}), "int8"),
        (lambda state: [state.pop(name) for name in list(state)] and state.update({"x": torch.ones(1)}), "no tensor of LoRA"),
    ],
)
def test_weights_that_are_not_a_loras_are_refused(tiny_sam, change, said, tmp_path):
    base, folder = saved(tiny_sam, tmp_path / "base.pth"), tmp_path / "tuned"
    trained(tiny_sam, folder, **QKV)
    state = load_file(folder / "adapter_model.safetensors")
    change(state)
    save_file(state, folder / "adapter_model.safetensors")
    text = refusal(base, folder)
    assert said in text and "tuned/adapter_model.safetensors" in text


def test_a_folder_without_weights_or_configuration(tiny_sam, tmp_path):
    base, folder = saved(tiny_sam, tmp_path / "base.pth"), tmp_path / "tuned"
    trained(tiny_sam, folder, **QKV)
    assert "adapter_model.safetensors and adapter_config.json" in refusal(base, tmp_path)
    (folder / "adapter_config.json").write_text("[")
    assert "cannot be read" in refusal(base, folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").unlink()
    assert "missing from its folder" in refusal(base, folder)


def test_a_file_without_its_configuration_says_what_is_missing(tiny_sam, tmp_path):
    trained(tiny_sam, tmp_path / "tuned", **QKV)
    (tmp_path / "tuned" / "adapter_config.json").unlink()
    with pytest.raises(SAMError, match=r"LoRA weights of peft \(.*without the adapter_config.json .* into one folder"):
        load_model(tmp_path / "tuned" / "adapter_model.safetensors")


# By name: the list, the choice of the base, and what is cached.


@pytest.fixture
def named(monkeypatch, tmp_path, tiny_sam):
    """models/sams with base.safetensors and an adapter for it that names no base; its path."""
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    sams = tmp_path / "models" / "sams"
    sams.mkdir(parents=True)
    save_file(tiny_sam.state_dict(), sams / "base.safetensors")
    trained(tiny_sam, sams / "tuned", **QKV)
    return sams


NAME = "tuned/adapter_model.safetensors"


def test_an_adapter_is_listed_once_and_is_no_base(named):
    declared = SAMModelLoader.INPUT_TYPES()
    (names, _), (bases, _) = declared["required"]["model_name"], declared["optional"]["base_model"]
    assert [name.replace("\\", "/") for name in names if "adapter" in name] == [NAME]
    assert SAM_MODELS.ready()[0] == "base.safetensors"  # though the adapter's file is smaller
    assert bases[0] == "auto" and "base.safetensors" in bases and not [name for name in bases if "adapter" in name]


def test_the_base_is_chosen_by_the_user(named, tiny_sam):
    with pytest.raises(SAMError, match="tuned/adapter_model.safetensors is an adapter of peft that does not name its model"):
        SAMModelLoader().load_model(NAME)
    assert "Choose it in base_model" in SAM_MODELS.find(NAME).absence
    (model,) = SAMModelLoader().load_model(NAME, "fp32", "base.safetensors")
    assert model.identity == load_model(named / "base.safetensors", "fp32", named / "tuned").identity
    assert SAM_MODELS.find(NAME, "base.safetensors").absence is None
    (plain,) = SAMModelLoader().load_model("base.safetensors", "fp32", "gone.safetensors")  # ignored by what is no adapter
    assert plain.identity != model.identity
    with pytest.raises(SAMError, match="an adapter of peft for 'gone.safetensors', which is not in models/sams"):
        SAMModelLoader().load_model(NAME, "fp32", "gone.safetensors")
    assert SAMModelLoader.VALIDATE_INPUTS(NAME, "base.safetensors") is True
    assert "gone.safetensors" in SAMModelLoader.VALIDATE_INPUTS(NAME, "gone.safetensors")
    assert SAMModelLoader.VALIDATE_INPUTS("base.safetensors", "gone.safetensors") is True
    assert SAMModelLoader.VALIDATE_INPUTS(NAME) is True and SAMModelLoader.VALIDATE_INPUTS(NAME, None) is True


@pytest.mark.parametrize("base", ["base.safetensors", "/home/me/models/base.safetensors", "C:\\models\\base.safetensors"])
def test_the_base_is_the_file_that_the_adapter_names(named, base):
    edit(named / "tuned", base_model_name_or_path=base)
    (model,) = SAMModelLoader().load_model(NAME)
    assert model.identity == SAMModelLoader().load_model(NAME, base_model="base.safetensors")[0].identity


@pytest.mark.parametrize("base", ["me/whole", "./out/whole", "/home/me/whole/"])
def test_the_base_is_the_folder_or_repository_that_the_adapter_names(named, base):
    folder = named / "me" / "whole" if base == "me/whole" else named / "whole"
    folder.mkdir(parents=True)
    (named / "base.safetensors").rename(folder / "model.safetensors")
    edit(named / "tuned", base_model_name_or_path=base)
    (model,) = SAMModelLoader().load_model(NAME)
    assert model.identity == load_model(folder / "model.safetensors", adapter=named / "tuned").identity


def test_the_base_is_a_known_checkpoint_by_its_repository(named, tiny_sam):
    edit(named / "tuned", base_model_name_or_path="facebook/sam-vit-base")
    base = SAM_MODELS.find(NAME).base
    assert base.known is KNOWN["sam-vit-base.safetensors"] and base.path is None
    assert "facebook/sam-vit-base, which is not on this machine yet" in SAM_MODELS.find(NAME).absence
    (named / "base.safetensors").rename(named / "sam-vit-base.safetensors")
    assert SAMModelLoader().load_model(NAME)[0].network.checkpoint.name == "adapter_model.safetensors"


def test_a_base_that_is_not_there_is_named(named):
    edit(named / "tuned", base_model_name_or_path="me/gone")
    with pytest.raises(SAMError, match="for 'me/gone', which is not in models/sams: choose the model"):
        SAMModelLoader().load_model(NAME)


def test_what_is_damaged_downloads_nothing(named, monkeypatch):
    edit(named / "tuned", base_model_name_or_path="facebook/sam-vit-base", peft_type="LOHA")
    monkeypatch.setattr("samkit.sam.weights.catalog.fetch", lambda *_: pytest.fail("a download began"))
    with pytest.raises(SAMError, match="of the type LOHA"):
        SAMModelLoader().load_model(NAME)


def test_an_adapter_is_loaded_anew_when_any_of_its_files_changes(named, tiny_sam):
    first = SAMModelLoader.IS_CHANGED(NAME, base_model="base.safetensors")
    assert first and first == SAMModelLoader.IS_CHANGED(NAME, base_model="base.safetensors")
    assert SAMModelLoader.IS_CHANGED("base.safetensors") in first and SAMModelLoader.IS_CHANGED(NAME) != first
    edit(named / "tuned", lora_alpha=80)
    second = SAMModelLoader.IS_CHANGED(NAME, base_model="base.safetensors")
    save_file({name: value + 1 for name, value in tiny_sam.state_dict().items()}, named / "base.safetensors")
    third = SAMModelLoader.IS_CHANGED(NAME, base_model="base.safetensors")
    trained(tiny_sam, named / "tuned", r=3, **QKV)
    assert len({first, second, third, SAMModelLoader.IS_CHANGED(NAME, base_model="base.safetensors")}) == 4


def test_one_base_and_adapter_are_one_model_in_memory(named, tiny_sam):
    base, folder = named / "base.safetensors", named / "tuned"
    model = load_shared(base, "fp32", folder)
    assert load_shared(base, "fp32", folder) is model and load_shared(base, "fp32") is not model
    trained(tiny_sam, named / "other", seed=1, **QKV)
    other = load_shared(base, "fp32", named / "other")
    assert other is not model and other.identity != model.identity
    edit(folder, lora_alpha=80)
    assert load_shared(base, "fp32", folder).identity != model.identity


def test_a_trained_decoder_or_another_adapter_is_no_base(named, tiny_sam):
    trained(tiny_sam, named / "other", seed=1, **QKV)
    edit(named / "other", base_model_name_or_path="base.safetensors")
    with pytest.raises(SAMError, match="cannot be merged into other.adapter_model.safetensors, which is not a whole model"):
        SAM_MODELS.find(NAME, "other/adapter_model.safetensors").load()


def test_a_folder_of_images_takes_an_adapter_and_its_base(named):
    task = FolderTask("everything", "COCO RLE", named / NAME, base_model="base.safetensors")
    worker = Worker(task)
    assert worker.model.identity == load_model(named / "base.safetensors", adapter=named / "tuned").identity
    first = task.settings()["model"]
    edit(named / "tuned", lora_alpha=80)
    assert task.settings()["model"] != first


@pytest.mark.parametrize("base", ["base.safetensors", "gone.safetensors", None])
def test_the_preview_takes_the_chosen_base(named, monkeypatch, base):
    model = {"model_name": NAME} | ({"base_model": base} if base else {})
    subject = parse_subject({"image": {"filename": "a.png"}, "model": model})
    if base == "base.safetensors":
        _, load = _model(subject)
        assert load().identity == load_model(named / "base.safetensors", adapter=named / "tuned").identity
        with pytest.raises(SAMError, match="base_model"):
            parse_subject({"image": {"filename": "a.png"}, "model": {"model_name": NAME, "base_model": "../base.safetensors"}})
    else:
        with pytest.raises(RefusedError, match="made for gone.safetensors" if base else "Choose it in base_model"):
            _model(subject)


def test_a_repository_that_is_an_adapter_says_where_to_put_it(monkeypatch, tmp_path):
    files = [SimpleNamespace(rfilename=name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    with pytest.raises(SAMError, match="me/tuned is an adapter of peft, not a model: download its adapter_model.safetensors"):
        fetch_from_hub("me/tuned", "", "", [tmp_path])


# micro-sam's own layers (micro_sam/models/peft_sam.py, 1.8): modules of the same names, run as it runs them.


class AttentionLoRA(nn.Module):
    def __init__(self, layer, rank, parts):
        super().__init__()
        self.qkv_proj, self.dim = layer, layer.in_features
        for part in parts:
            setattr(self, f"w_a_linear_{part}", nn.Linear(self.dim, rank, bias=False))
            setattr(self, f"w_b_linear_{part}", nn.Linear(rank, self.dim, bias=False))

    def forward(self, x):
        pieces = self.qkv_proj(x).split(self.dim, dim=-1)
        added = [
            piece + getattr(self, f"w_b_linear_{part}")(getattr(self, f"w_a_linear_{part}")(x))
            if hasattr(self, f"w_a_linear_{part}")
            else piece
            for part, piece in zip("qkv", pieces, strict=True)
        ]
        return torch.cat(added, -1)


class MLPLoRA(nn.Module):
    def __init__(self, layer, rank):
        super().__init__()
        self.mlp_layer = layer
        for index, inner in ((1, layer.lin1), (2, layer.lin2)):
            setattr(self, f"w_a_linear_{index}", nn.Linear(inner.in_features, rank, bias=False))
            setattr(self, f"w_b_linear_{index}", nn.Linear(rank, inner.out_features, bias=False))

    def forward(self, x):
        x = self.mlp_layer.act(self.mlp_layer.lin1(x) + self.w_b_linear_1(self.w_a_linear_1(x)))
        return self.mlp_layer.lin2(x) + self.w_b_linear_2(self.w_a_linear_2(x))


@pytest.mark.parametrize(
    ("parts", "form"), [("qv", "exported"), ("k", "exported"), ("qkv", "exported"), ("qv and mlp", "trainer")]
)
def test_micro_sams_lora_is_merged(tiny_sam, parts, form, tmp_path):
    torch.manual_seed(0)
    theirs = copy.deepcopy(tiny_sam)
    for block in list(theirs.image_encoder.blocks)[:2]:
        block.attn.qkv = AttentionLoRA(block.attn.qkv, 4, parts.split(" ")[0])
        if "mlp" in parts:
            block.mlp = MLPLoRA(block.mlp, 4)
    state = theirs.state_dict()
    content = state if form == "exported" else {"model_state": {f"sam.{name}": one for name, one in state.items()}, "init": {}}
    torch.save(content, tmp_path / "best.pt")
    ours = load_model(tmp_path / "best.pt", "fp32")
    image = make_image(128, 128)
    with torch.no_grad():
        expected = theirs.image_encoder(theirs.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None].float()))
    np.testing.assert_allclose(encode(ours, [image]), expected.numpy(), atol=1e-4)
    assert not np.allclose(encode(ours, [image]), tiny_sam.image_encoder.neck[0].weight.sum().item())
    plain = saved(tiny_sam, tmp_path / "plain.pth")
    assert load_model(plain, "fp32").encoder_identity != ours.encoder_identity


MICRO = "image_encoder.blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({f"{MICRO}.w_a_linear_q.weight": torch.ones(4, 32)}, "do not fit"),
        ({f"{MICRO}.w_a_linear_q.weight": torch.ones(4, 32), f"{MICRO}.w_b_linear_q.weight": torch.ones(96, 4)}, "do not fit"),
        ({f"{MICRO}.w_a_linear_q.weight": torch.ones(4, 32), f"{MICRO}.w_b_linear_q.weight": torch.ones(32, 3)}, "do not fit"),
        ({f"{MICRO}.q_FacTs.weight": torch.ones(4, 4)}, "not LoRA"),
        ({f"{MICRO}.scale": torch.ones(96)}, "not LoRA"),
        ({"image_encoder.blocks.0.mlp.mlp_proj.lin1.weight": torch.ones(4, 4)}, "not LoRA"),
    ],
)
def test_layers_of_micro_sam_that_cannot_be_merged_are_refused(tiny_sam, added, said, tmp_path):
    torch.save(tiny_sam.state_dict() | added, tmp_path / "x.pt")
    with pytest.raises(SAMError, match=rf"x\.pt was not loaded: .*{said}"):
        load_model(tmp_path / "x.pt")

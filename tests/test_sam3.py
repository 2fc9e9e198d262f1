"""SAM 3 by clicks beside transformers' `Sam3TrackerModel` and ComfyUI's own module: maps, masks, files, tasks."""

import gc
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import reference_sam2_automask
import torch
from comfyui_server import Unavailable, find_comfyui
from conftest import as_image, make_image
from fakes import FakeComfyUI, FakePatcher, install
from load_pack import ROOT
from PIL import Image
from reference_sam3 import SMALL, SMALL_GRID, SMALL_SIDE, random_sam3
from safetensors.torch import save_file
from samkit.nodes.model import FromSAM3, SAMModelLoader
from samkit.nodes.predict import Segment
from samkit.sam import SAM_MODELS, SAMError, from_comfyui, load_model
from samkit.sam.kernels import self_test, workers
from samkit.sam.models.base import Wanted
from samkit.sam.models.features import Features
from samkit.sam.models.sam2 import vit_det
from samkit.sam.placement.host import ComfyUIHost
from samkit.sam.placement.resident import Resident, resident_of
from samkit.sam.prompts import PromptTensors
from samkit.sam.tasks.everything import AutoMaskOptions, preset_options, segment_everything
from segment_anything import SamPredictor
from test_sam2 import CASES, SIZES, Pair, compare, encode
from test_teach import check_taught
from test_train_decoder import check_trained
from torch import nn
from torch.nn import functional as F
from transformers import Sam3ImageProcessor, Sam3TrackerModel
from world import unavailable

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def small_sizes():
    """The small configurations join the table, whose heads, windows and global blocks are in no weight's shape."""
    more = {(32, 4): vit_det.ViTDetSize(2, 4, (1, 3), SMALL_GRID), (64, 4): vit_det.ViTDetSize(16, 24, (1, 3), 72)}
    vit_det.SIZES.update(more)
    yield
    for size in more:
        del vit_det.SIZES[size]


def pixels_of(side):
    """transformers' image processor for SAM 3, on what Pillow resizes.

    torchvision rounds one of a thousand values to the next grey level, which weights that are random take for another image.
    """
    processor = Sam3ImageProcessor(size={"height": side, "width": side})

    def process(photo, **options):
        return processor(Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR), **options)

    return process


class Sam3Pair(Pair):
    """The same weights in transformers' class and in the pack's, and transformers' answers."""

    def __init__(self, folder, vit, side=1008, channels=256):
        self.theirs, self.side = random_sam3(vit, side, channels), side
        self.state = self.theirs.state_dict()
        self.path = folder / "model.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in self.state.items()}, self.path)
        self.ours = load_model(self.path, "fp32")

    def maps(self, photo):
        with torch.no_grad():
            return self.theirs.get_image_embeddings(pixels_of(self.side)(photo, return_tensors="pt")["pixel_values"])


@pytest.fixture(scope="module")
def small(small_sizes, tmp_path_factory):
    return Sam3Pair(tmp_path_factory.mktemp("small"), SMALL, SMALL_SIDE, 64)


SMALL_CASES = [(case, *SIZES[1]) for case in CASES] + [(CASES[0], *size) for size in (SIZES[0], SIZES[2])]


@pytest.mark.parametrize(("case", "height", "width"), SMALL_CASES)
def test_a_small_model_equals_transformers(small, case, height, width):
    assert small.ours.family == "SAM 3" and small.ours.side == SMALL_SIDE
    compare(small, make_image(height, width), [case])


@pytest.mark.exhaustive
def test_the_full_size_model_equals_transformers(tmp_path):
    pair = Sam3Pair(tmp_path, {})
    assert pair.ours.map_shapes["high_res_0"] == (32, 288, 288)
    for height, width in SIZES:
        compare(pair, make_image(height, width))


def test_the_encoders_own_forward_is_the_reference_for_the_fast_one(small, monkeypatch):
    pixels = torch.from_numpy(make_image(SMALL_SIDE, SMALL_SIDE)).permute(2, 0, 1)[None]
    fast = small.ours.features(pixels, torch.float32)
    monkeypatch.setattr(self_test, "_KNOWN", ())
    monkeypatch.setattr(self_test, "_passes", lambda *_: False)
    plain = small.ours.features(pixels, torch.float32)
    for name, values in plain.items():
        torch.testing.assert_close(fast[name], values, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("threads", "by_one"), [(2, 8), (5, 5), (16, 0)])
def test_windows_beyond_a_whole_number_for_each_core(small, threads, by_one, monkeypatch):
    """Of an image's nine, those that would leave cores idle are taken by all of them."""
    pixels = torch.from_numpy(make_image(SMALL_SIDE, SMALL_SIDE)).permute(2, 0, 1)[None]
    expected = small.ours.features(pixels, torch.float32)
    together, real = [], workers.for_each

    def watched(work, windows):
        together.append(len(windows))
        real(work, windows)

    monkeypatch.setattr("samkit.sam.kernels.vit_det.for_each", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name, values in small.ours.features(pixels, torch.float32).items():
        torch.testing.assert_close(values, expected[name], atol=1e-4, rtol=0)
    assert together == [by_one, by_one]


def test_several_images_in_one_call_and_bfloat16(small):
    images = torch.stack([torch.from_numpy(make_image(SMALL_SIDE, SMALL_SIDE, seed)).permute(2, 0, 1) for seed in (0, 1, 2)])
    whole = small.ours.features(images, torch.float32)
    for index in range(3):
        alone = small.ours.features(images[index : index + 1], torch.float32)
        lower = small.ours.features(images[index : index + 1], torch.bfloat16)
        for name, values in whole.items():
            torch.testing.assert_close(values[index : index + 1], alone[name], atol=1e-4, rtol=0)
            assert (lower[name] - alone[name]).std() < 0.05 * alone[name].std()


# Files.


def equal(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, other.state_dict()[name]), name


def in_the_published_layout(state):
    """transformers' state dict as facebook/sam3's model.safetensors has it, with some of what else is in there."""
    renamed = {
        "detector_model.mask_decoder.iou_token.weight": torch.ones(1, 64),
        "detector_model.vision_encoder.neck.fpn_layers.0.proj1.weight": torch.ones(64, 8, 1, 1),
        "tracker_model.memory_attention.layer_norm.weight": torch.ones(64),
        "tracker_neck.fpn_layers.3.proj1.weight": torch.ones(64, 32, 1, 1),
    }
    for name, tensor in state.items():
        if name.startswith("vision_encoder.backbone."):
            renamed[f"detector_model.{name}"] = tensor
        elif name.startswith("vision_encoder.neck."):
            renamed[name.replace("vision_encoder.neck.", "tracker_neck.")] = tensor
        else:
            renamed[f"tracker_model.{name}"] = tensor
    return renamed


def in_metas_layout(small, interactive):
    """Our names as Meta's files have them: SAM 3's, or with `interactive` 3.1's, where other decoders are for films."""
    head, neck = ("tracker.model.interactive_", "interactive_convs") if interactive else ("tracker.", "sam2_convs")
    meta = {"detector.backbone.vision_backbone.convs.0.conv_1x1.weight": torch.ones(2)}
    for name, tensor in small.ours.state_dict().items():
        vision = "detector.backbone.vision_backbone."
        if name.startswith("image_encoder.trunk."):
            name = name.replace("image_encoder.", vision)
            if name.endswith("pos_embed"):  # a row for the class token of the pretraining
                tensor = torch.cat([torch.full((1, 1, tensor.shape[2]), 9.0), tensor], 1)
        elif name.startswith("image_encoder.neck."):
            name = name.replace("image_encoder.neck.convs", vision + neck)
        elif name == "no_mem_embed":
            name = "tracker.model.interactivity_no_mem_embed" if interactive else "tracker.no_mem_embed"
        else:
            name = head + name.replace(".mlp.layers.0.", ".mlp.lin1.").replace(".mlp.layers.1.", ".mlp.lin2.")
        meta[name] = tensor
    meta["detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis"] = torch.ones(4, 2, dtype=torch.complex64)
    if interactive:
        meta["tracker.model.sam_mask_decoder.iou_token.weight"] = torch.ones(16, 64)
    return meta


@pytest.mark.parametrize("form", ["published", "under a key", "sam3.pt", "3.1", "half"])
def test_all_layouts_load_to_equal_weights(small, tmp_path, form):
    path = tmp_path / ("x.pt" if form in ("sam3.pt", "under a key") else "x.safetensors")
    published = in_the_published_layout(small.state)
    if form == "sam3.pt":
        torch.save({"model": in_metas_layout(small, interactive=False)}, path)
    elif form == "under a key":
        torch.save({"state_dict": {f"module.{name}": one for name, one in small.state.items()}}, path)
    elif form == "3.1":
        save_file({name: one.clone() for name, one in in_metas_layout(small, interactive=True).items()}, path)
    else:
        half = form == "half"
        save_file({name: one.half() if half else one.clone().contiguous() for name, one in published.items()}, path)
    found, wanted = load_model(path, "fp32"), small.ours
    assert found.family == "SAM 3"
    if form == "half":
        for name, tensor in found.state_dict().items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, wanted.state_dict()[name], atol=1e-3, rtol=1e-3)
        return
    if form in ("sam3.pt", "3.1"):  # with the class token's row, which stays in the table, and is never used
        assert found.image_encoder.trunk.pos_embed.shape[1] == wanted.image_encoder.trunk.pos_embed.shape[1] + 1
        pixels = torch.from_numpy(make_image(SMALL_SIDE, SMALL_SIDE)).permute(2, 0, 1)[None]
        ours, theirs = (model.features(pixels, torch.float32) for model in (found, wanted))
        for name, values in theirs.items():
            torch.testing.assert_close(ours[name], values, atol=1e-5, rtol=0)
        assert found.decoder_identity == wanted.decoder_identity
        return
    equal(found, wanted)


def test_what_transformers_saves_loads(small, tmp_path):
    small.theirs.save_pretrained(tmp_path)
    equal(load_model(tmp_path, "fp32"), small.ours)


def test_transformers_reads_the_published_layout_as_this_pack_does(small, tmp_path):
    """The layout that the tests write by hand is one that the reference takes whole."""
    small.theirs.config.save_pretrained(tmp_path)
    save_file({name: one.contiguous().clone() for name, one in in_the_published_layout(small.state).items()},
              tmp_path / "model.safetensors", {"format": "pt"})  # fmt: skip
    again, report = Sam3TrackerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, small.state[name]), name


NECK = "vision_encoder.neck.fpn_layers.0.proj2.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(NECK), "conv_3x3.weight"),
        (lambda s: s.pop("vision_encoder.backbone.layers.2.attention.k_proj.weight"), "blocks.2.attn.qkv.weight"),
        (lambda s: s.update({"vision_encoder.backbone.layers.0.new.weight": torch.ones(3)}), "blocks.0.new.weight"),
        (
            lambda s: s.update({"vision_encoder.backbone.layers.4.mlp.fc1.weight": torch.ones(3)}),
            "5 blocks of width 32.*32 blocks",
        ),
        (lambda s: s.update({"vision_encoder.backbone.embeddings.position_embeddings": torch.ones(1, 12, 32)}), "pos_embed"),
        (lambda s: s.pop("mask_decoder.mask_tokens.weight"), "mask_tokens.weight"),
        (lambda s: s.update({NECK: s[NECK].to(torch.int32)}), "int32, and a weight must be floating point"),
        (lambda s: s.pop("mask_decoder.iou_token.weight"), "part of SAM 3 without the tracker, .*use the whole file"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(small, change, said, tmp_path):
    state = dict(small.state)
    change(state)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(SAMError, match=rf"x.pt.*{said}"):
        load_model(tmp_path / "x.pt")


def test_two_different_trunks_are_refused(small, tmp_path):
    state = {f"{root}.{name}": one * factor for root, factor in (("a", 1), ("b", 2)) for name, one in small.state.items()}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(SAMError, match=r"x.pt was not loaded: it holds two different tensors for "):
        load_model(tmp_path / "x.pt")


# Tasks.


def test_a_node_presets_and_identities(small):
    masks, _, scores, _ = Segment().execute(small.ours, as_image(make_image(60, 80)), '[{"x": 30, "y": 25}]')
    assert masks.shape == (1, 60, 80) and len(scores) == 1
    assert preset_options("balanced", small.ours).pred_iou_thresh == 0.8
    assert encode(small.ours, [make_image(60, 80)]).encoder_identity == small.ours.encoder_identity
    assert not small.ours.tracks and small.ours.memory_fault == "this pack runs SAM 3 on images alone"


def test_segment_everything_equals_sam_2s_generator_on_it(small):
    photo = make_image(90, 120)
    options = {"points_per_side": 4, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.6, "crop_n_layers": 0}
    options |= {"box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}  # random masks span the image: by their boxes all are one
    ours = segment_everything(small.ours, photo, AutoMaskOptions(**options))
    theirs = reference_sam2_automask.generate(small.theirs, SMALL_SIDE, photo, pixels_of(SMALL_SIDE), **options)
    assert len(ours) == len(theirs) >= 3
    left = [mask.full((90, 120)) for mask in ours]
    for wanted in theirs:
        ious = [(mask & wanted["mask"]).sum() / (mask | wanted["mask"]).sum() for mask in left]
        assert max(ious) >= 0.999


def test_it_can_be_taught(small):
    check_taught(small.ours)


def test_a_trained_decoder_answers_what_it_knows(small, tmp_path):
    check_trained(small.ours, tmp_path)


def test_the_predictor_of_other_packs_gives_the_same_masks(small):
    photo = make_image(100, 140)
    predictor = SamPredictor(small.ours)
    predictor.set_image(photo)
    masks, scores, _ = predictor.predict(np.array([[50.0, 60.0]]), np.array([1]))
    ours = small.ours.sam_wrapper.predict(photo, [(50.0, 60.0)], [1], None, -1e9)
    assert np.mean(np.stack(ours) == masks[np.argsort(-scores)]) > 0.99  # the predictor resizes twice


# What ComfyUI's own loader made.


def nested(state):
    """A module with parameters of these names."""
    root = nn.Module()
    for name, tensor in state.items():
        *above, last = name.split(".")
        place = root
        for part in above:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]
        place.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))
    return root


def comfyuis(small, dtype=torch.float32):
    """A stand-in for ComfyUI's MODEL of SAM 3, made in inference mode as nodes make it."""
    with torch.inference_mode():
        meta = in_metas_layout(small, interactive=False)
        names = {".mlp.lin1.": ".mlp.0.", ".mlp.lin2.": ".mlp.2.", ".norm_final_attn.": ".norm_final."}
        kept = {}
        for name, tensor in meta.items():
            if "freqs_cis" in name:
                continue
            for metas, cores in names.items():
                name = name.replace(metas, cores) if "sam_mask_decoder" in name else name
            kept[name] = tensor.to(dtype)
        base = nn.Module()
        base.diffusion_model = nested(kept)
        return FakePatcher(base, CPU, CPU)


TRUNK = "detector.backbone.vision_backbone.trunk."


def test_the_node_shares_the_weights_of_comfyuis_model(small):
    patcher = comfyuis(small)
    (model,) = FromSAM3().execute(patcher)
    theirs, ours = patcher.model.diffusion_model.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    for name in ("trunk.blocks.0.attn.qkv.weight", "trunk.blocks.3.mlp.fc2.bias", "trunk.pos_embed"):
        assert ours[f"image_encoder.{name}"] is theirs[f"detector.backbone.vision_backbone.{name}"]
    shared = {id(tensor) for tensor in theirs.values()}
    copied = [name for name, tensor in ours.items() if id(tensor) not in shared and name.startswith("image_encoder.")]
    assert len(copied) == (2 * 4 + 1) * 2 and all("norm" in name or "ln_pre" in name for name in copied)
    image = as_image(make_image(60, 80))
    point = '[{"x": 30, "y": 25}]'
    with torch.inference_mode():
        masks, found = (Segment().execute(one, image, point)[0] for one in (small.ours, model))
    assert torch.equal(masks, found)


def test_weights_in_half_precision_are_shared_and_run_on_a_cpu(small):
    patcher = comfyuis(small, torch.float16)
    model = from_comfyui(patcher)
    weight = model.image_encoder.trunk.blocks[0].mlp.fc1.weight
    theirs = patcher.model.diffusion_model.state_dict(keep_vars=True)
    assert weight.dtype == torch.float16 and weight is theirs[TRUNK + "blocks.0.mlp.fc1.weight"]
    assert model.precision == "fp16" and {one.dtype for one in model.sam_mask_decoder.parameters()} == {torch.float32}
    pixels = torch.from_numpy(make_image(SMALL_SIDE, SMALL_SIDE)).permute(2, 0, 1)[None]
    exact = small.ours.features(pixels, torch.float32)
    for name, values in model.features(pixels, torch.float32).items():
        assert values.dtype == torch.float32 and (values - exact[name]).std() < 0.01 * exact[name].std()


def test_the_plain_forward_takes_weights_in_half_precision(small, monkeypatch):
    monkeypatch.setattr(self_test, "_KNOWN", ())
    monkeypatch.setattr(self_test, "_passes", lambda *_: False)
    pixels = torch.from_numpy(make_image(SMALL_SIDE, SMALL_SIDE)).permute(2, 0, 1)[None]
    exact = small.ours.features(pixels, torch.float32)
    patcher = comfyuis(small, torch.bfloat16)
    for name, values in from_comfyui(patcher).features(pixels, torch.float32).items():
        assert (values - exact[name]).std() < 0.1 * exact[name].std()


def test_one_module_is_one_model_and_goes_with_it(small):
    patcher = comfyuis(small)
    model = from_comfyui(patcher)
    again = FakePatcher(patcher.model, CPU, CPU)  # as the clones that ComfyUI's nodes make
    assert from_comfyui(again) is model and model.owner() is again
    del again, patcher
    gc.collect()
    assert model.owner() is None, "a model for clicks keeps none of the rest"


class NotSAM3(nn.Linear):
    """A diffusion model of another kind."""


@pytest.mark.parametrize(("model", "said"), [(NotSAM3(2, 2), "a NotSAM3, not SAM 3"), (None, "None"), (3, "3")])
def test_what_is_not_sam_3_is_refused(model, said):
    base = nn.Module()
    base.diffusion_model = model
    patcher = FakePatcher(base, CPU, CPU) if isinstance(model, nn.Module) else model
    with pytest.raises(SAMError, match=f"model is {said}.*connect the MODEL of Load Checkpoint with a file of SAM 3"):
        FromSAM3().execute(patcher)


def test_half_of_the_weights_in_another_type_is_refused(small):
    patcher = comfyuis(small)
    weight = patcher.model.diffusion_model.detector.backbone.vision_backbone.trunk.blocks._modules["0"].attn.qkv
    weight.weight = nn.Parameter(weight.weight.double(), requires_grad=False)
    with pytest.raises(SAMError, match=r"holds weights of torch.float(32|64), torch.float(32|64): load it in float16"):
        from_comfyui(patcher)


def test_comfyui_loads_and_unloads_its_own_model_for_both(small, monkeypatch, tmp_path):
    comfy, patcher = install(monkeypatch, FakeComfyUI(tmp_path)), comfyuis(small)
    patcher.load_device = comfy.device = torch.device("meta")
    monkeypatch.setattr(patcher, "patch_model", lambda device_to: None, raising=False)
    model, host = from_comfyui(patcher), ComfyUIHost()
    monkeypatch.setattr(Resident, "load", lambda self, device: setattr(self, "device", device))
    monkeypatch.setattr(Resident, "is_loaded", lambda self, device: self.device == device)
    assert host.load(model, torch.float32, 1 << 20) == comfy.device
    assert [entry.model is patcher for entry in comfy.loaded] == [True, False], "first, so that its weights are there"
    host.unload(model)
    assert comfy.loaded == [], "ComfyUI's books have neither"


def test_weights_that_are_on_the_device_already_take_nothing_more(small):
    resident = resident_of(small.ours)
    own = sum(tensor.nbytes for tensor in small.ours.state_dict().values())
    assert resident.nbytes == own
    trunk, before = small.ours.image_encoder.trunk, resident.nbytes
    there = torch.nn.Parameter(trunk.pos_embed.to("meta"), requires_grad=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trunk._parameters, "pos_embed", there)
        assert resident.nbytes == before - there.nbytes


def test_files_of_sam_3_in_the_folder_of_checkpoints_are_listed(small, monkeypatch, tmp_path):
    install(monkeypatch, FakeComfyUI(tmp_path))
    folder = tmp_path / "models" / "checkpoints"
    (folder / "more").mkdir(parents=True)
    for name in ("sam3.1_multiplex_fp16.safetensors", "more/SAM3.safetensors", "dreamshaper.safetensors", "samaritan.ckpt"):
        shutil.copy(small.path, folder / name)
    listed = [name for name in SAM_MODELS.present() if name.endswith((".safetensors", ".ckpt"))]
    assert listed == [os.path.join("more", "SAM3.safetensors"), "sam3.1_multiplex_fp16.safetensors"]  # noqa: PTH118
    (model,) = SAMModelLoader().load_model("sam3.1_multiplex_fp16.safetensors", "fp32")
    assert model.family == "SAM 3"
    assert SAM_MODELS.find("dreamshaper.safetensors").path is None


# ComfyUI's own module.


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Files and answers of ComfyUI's SAM 3 and 3.1, see comfyui_sam3.py."""
    try:
        home, python = find_comfyui()
    except Unavailable as reason:
        unavailable("comfyui", reason)
    if not (home / "comfy" / "ldm" / "sam3").is_dir():
        pytest.skip("this ComfyUI has no SAM 3")
    folder, script = tmp_path_factory.mktemp("comfyui"), Path(__file__).with_name("comfyui_sam3.py")
    done = subprocess.run(
        [python, script, ROOT, folder],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


PROMPTS = {
    "point": PromptTensors((torch.tensor([[[400.0, 300.0]]]), torch.tensor([[1]])), None, None),
    "box": PromptTensors(None, torch.tensor([[200.0, 100.0, 700.0, 900.0]]), None),
}


@pytest.mark.comfyui
@pytest.mark.parametrize("version", ["sam3", "sam3.1"])
def test_it_equals_comfyuis_own_module(answers, version):
    expected = torch.load(answers / f"{version}_expected.pt")
    model = load_model(answers / f"{version}.safetensors", "fp32")
    maps = model.features(255 * expected["pixels"], torch.float32)
    for name, values in maps.items():
        torch.testing.assert_close(values, expected[name], atol=1e-3, rtol=0)
    features = Features({name: values[0] for name, values in maps.items()}, "", CPU)
    for name, prompt in PROMPTS.items():
        found = model.decode(features, prompt, Wanted(True))
        torch.testing.assert_close(found.logits, expected[f"{name} logits"], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, expected[f"{name} scores"], atol=1e-3, rtol=0)
    found = model.decode(features, PROMPTS["point"], Wanted(True))
    best = found.logits[:, found.scores[0].argmax()][:, None]
    whole = F.interpolate(best, (1008, 1008), mode="bilinear", align_corners=False)
    whole = whole if found.object_scores[0] > 0 else torch.full_like(whole, -1)  # ComfyUI's answer is empty then
    assert ((whole > 0) == (expected["segmented"] > 0)).float().mean() > 0.9999


@pytest.mark.comfyui
@pytest.mark.parametrize("version", ["sam3", "sam3.1"])
def test_it_shares_the_weights_of_comfyuis_own_module(answers, version):
    expected = torch.load(answers / f"{version}_expected.pt")
    shared = expected["shared"]
    assert shared.pop("owner") is True
    own = [name for name in shared.pop("own") if name.startswith("image_encoder.")]
    assert len(own) == (2 * 4 + 1) * 2 and all("norm" in name or "ln_pre" in name for name in own)
    assert set(shared) == {"image", "high_res_0", "high_res_1"}
    for name, values in shared.items():
        torch.testing.assert_close(values, expected[name], atol=1e-3, rtol=0)

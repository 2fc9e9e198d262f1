"""Other packs themselves beside ours: their nodes on our models and masks, our nodes on theirs. Needs SAMKIT_PACKS."""

import contextlib
import importlib
import itertools
import json
import math
import shutil
import sys

import numpy as np
import pytest
import real_packs
import torch
from comfyui_server import Unavailable, comfyui, error_of
from conftest import as_image, make_image
from load_pack import ROOT
from PIL import Image
from real_packs import ART_VENTURE, FLORENCE, IMPACT, KIJAI_SAM2, KJNODES, RMBG, STORYICON, VIDEO, WAS, definitions, source
from reference import VIT_B, random_sam
from reference_sam2 import SMALL
from samkit.nodes.embedding import GetSAMEmbedding, SAMEmbeddingToImage
from samkit.nodes.predict import Segment
from samkit.nodes.replacements import REPLACEMENTS
from samkit.sam import as_segmenter, load_model
from samkit.utils.boxes import corners_of
from test_comfyui import EXAMPLES, NEIGHBOUR, NEIGHBOUR_UTILS, check_interface_example, shape_of
from test_films import write_video
from test_grounding import folder as grounding_folder  # noqa: F401  a fixture
from test_grounding import folder_copy
from test_sam2 import Pair, small_size  # noqa: F401  a fixture
from world import unavailable

# Impact Pack's own wrapper around a plain Sam, with the weights that our loader loads.
_IMPACT_OWN = """
class ImpactOwn(PlainSam):
    RETURN_TYPES = ("SAM_MODEL",)
    def load(self):
        import impact.core as core
        (sam,) = super().load()
        sam.sam_wrapper = core.SAMWrapper(sam, False, core.SafeToGPU(0))
        return (sam,)

class AnyJSON:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING",)}}
    RETURN_TYPES = ("JSON", "BOUNDING_BOX")
    FUNCTION = "parse"
    CATEGORY = CATEGORY
    def parse(self, text):
        import json
        return json.loads(text), json.loads(text)

NODE_CLASS_MAPPINGS |= {"ImpactOwn": ImpactOwn, "AnyJSON": AnyJSON}
"""
# A tiny random UNet with a VAE that only changes the size: what a detailer makes is noise, but it goes all its ways.
_TINY_DIFFUSION = """
class TinyVAE:
    def encode(self, pixels):
        import torch
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small[:, :1]], 1)
    def decode(self, latent):
        import torch
        return torch.nn.functional.interpolate(latent[:, :3].float(), scale_factor=8.0).movedim(1, -1).clamp(0, 1)

class TinyDiffusion:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "CONDITIONING", "BBOX_DETECTOR")
    FUNCTION = "make"
    CATEGORY = CATEGORY
    def make(self):
        import torch
        import comfy.model_base, comfy.model_patcher, comfy.supported_models
        shape = dict(image_size=32, use_spatial_transformer=True, legacy=False, in_channels=4, out_channels=4,
                     model_channels=32, num_res_blocks=[1, 1],
                     channel_mult=[1, 2], transformer_depth=[0, 1], transformer_depth_middle=1,
                     transformer_depth_output=[0, 0, 1, 1], context_dim=16, use_linear_in_transformer=False,
                     adm_in_channels=None, use_temporal_attention=False, dtype=torch.float32)
        torch.manual_seed(0)
        with torch.inference_mode(False), torch.no_grad():
            model = comfy.model_base.BaseModel(comfy.supported_models.SD15(shape), device=torch.device("cpu"))
            for value in model.parameters():
                value.copy_(torch.randn(value.shape) * 0.05)
        patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        return patcher, None, TinyVAE(), [[torch.zeros(1, 77, 16), {}]], OneBox()

class OneBox:
    def setAux(self, text):
        pass
    def detect(self, image, threshold, dilation, crop_factor, drop_size=1, detailer_hook=None):
        import numpy as np, torch
        import impact.core as core
        mask = torch.zeros(image.shape[1:3])
        mask[250:430, 60:260] = 1
        return core.mask_to_segs(mask, False, crop_factor, False, drop_size)

NODE_CLASS_MAPPINGS |= {"TinyDiffusion": TinyDiffusion}
"""
# Models of other packs whose weights are downloads: kijai's SAM 2 of its own code with random weights, a Florence-2 that says
# a box, and a Grounding DINO of storyicon's form that finds one.
_MODELS = """
class RandomSAM2:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    RETURN_TYPES = ("SAM2MODEL", "SAM_MODEL")
    FUNCTION = "build"
    CATEGORY = CATEGORY
    def build(self):
        import os, sys, torch
        from unittest.mock import patch
        pack = next(found for name, found in sys.modules.items() if name.endswith("ComfyUI-segment-anything-2.load_model"))
        config = os.path.join(os.path.dirname(pack.__file__), "sam2_configs", "sam2.1_hiera_t.yaml")
        torch.manual_seed(0)
        with torch.inference_mode(False), torch.no_grad():
            with patch.object(pack, "load_torch_file"), patch.object(pack.SAM2Base, "load_state_dict"):
                predictor = pack.load_model(None, config, "single_image", torch.float32, torch.device("cpu"))
            for name, value in predictor.model.named_parameters():
                if "pos_embed" in name:
                    value.normal_(0, 0.3)
                elif value.ndim > 1:
                    value.normal_(0, (1.4 if "mask_decoder" in name else 1.0) / value[0].numel() ** 0.5)
        model = {"model": predictor, "dtype": torch.float32, "device": torch.device("cpu"), "segmentor": "single_image",
                 "version": "2.1"}
        return model, model

class OneBoxFlorence:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    RETURN_TYPES = ("FL2MODEL",)
    FUNCTION = "build"
    CATEGORY = CATEGORY
    def build(self):
        import torch
        class Inputs(dict):
            def to(self, _):
                return self
        class Processor:
            def __call__(self, **_):
                return Inputs(input_ids=None, pixel_values=None)
            def batch_decode(self, ids, skip_special_tokens):
                return ["<s>leaf</s>"]
            def post_process_generation(self, text, task, image_size):
                return {task: {"bboxes": [[60.0, 250.0, 260.0, 430.0]], "labels": ["leaf"]}}
        class Model(torch.nn.Module):
            def generate(self, **_):
                return None
        return ({"model": Model(), "processor": Processor(), "dtype": torch.float32},)

class OneBoxDino:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    RETURN_TYPES = ("GROUNDING_DINO_MODEL",)
    FUNCTION = "build"
    CATEGORY = CATEGORY
    def build(self):
        import torch
        box = torch.tensor([[[160 / 640, 340 / 480, 200 / 640, 180 / 480]]])
        return (lambda images, captions: {"pred_logits": torch.ones(1, 1, 256), "pred_boxes": box.clone()},)

NODE_CLASS_MAPPINGS |= {"RandomSAM2": RandomSAM2, "OneBoxFlorence": OneBoxFlorence, "OneBoxDino": OneBoxDino}
"""
SCENE, BOX = "samkit_scene.png", {"x": 60, "y": 250, "width": 200, "height": 180}


@contextlib.contextmanager
def running(base, packs, shared_nodes, last=None):
    """A ComfyUI with our pack and others, and the pack that `SAMKIT_SHARED_NODES` gives the shared ids to.

    Where `last` says which pack is loaded last, "ours" or "theirs", the others lie in a second folder of custom nodes.
    """
    for folder in ("custom_nodes", "input", "models/sams", "models/checkpoints"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes" / "samkit").symlink_to(ROOT, target_is_directory=True)
    (base / "models" / "checkpoints" / "v1-5-pruned-emaonly-fp16.safetensors").touch()  # to be listed
    shutil.copy(EXAMPLES / SCENE, base / "input")
    others = base / "custom_nodes" if last is None else base / "others" / "custom_nodes"
    real_packs.install(packs, others)
    (base / "paths.yaml").write_text(
        f"others:\n  base_path: {others.parent}\n  custom_nodes: custom_nodes\n  is_default: {str(last == 'ours').lower()}\n"
    )
    more = () if last is None else ("--extra-model-paths-config", str(base / "paths.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(real_packs.site_packages()))
        patch.setenv("SAMKIT_SHARED_NODES", shared_nodes)
        try:
            with comfyui(base, more=more) as server:
                server.info = server.json("/object_info")
                yield server
        except Unavailable as reason:
            unavailable("comfyui", reason)


@pytest.fixture(scope="module")
def server(tmp_path_factory, demo_model, grounding_folder):  # noqa: F811
    if real_packs.folder() is None:
        pytest.skip("SAMKIT_PACKS names no folder with other packs' sources")
    base = tmp_path_factory.mktemp("packs")
    for folder in ("nodes", "utils"):
        (base / "custom_nodes" / "neighbour" / folder).mkdir(parents=True)
    neighbour = base / "custom_nodes" / "neighbour"
    (neighbour / "__init__.py").write_text(NEIGHBOUR + _IMPACT_OWN + _TINY_DIFFUSION + _MODELS)
    (neighbour / "nodes" / "__init__.py").write_text("CATEGORY = 'neighbour'\n")
    (neighbour / "utils" / "__init__.py").write_text(NEIGHBOUR_UTILS.replace("SHAPE", repr(shape_of(demo_model))))
    (base / "models" / "sams").mkdir(parents=True)
    shutil.copy(ROOT / "sam/weights/bundled/samkit_demo.safetensors", base / "models" / "sams" / "mine.safetensors")
    folder_copy(grounding_folder, base / "models" / "grounding-dino" / "grounding-dino-tiny")
    with running(base, [IMPACT, ART_VENTURE, KJNODES, KIJAI_SAM2, RMBG, VIDEO, FLORENCE, STORYICON], "samkit") as started:
        yield started


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def box_node(**changes):
    """A box as core 0.25 gives it, from output 1: older cores have no node for it."""
    return node("AnyJSON", text=json.dumps(BOX | changes))


def needs(server, *kinds):
    """Skip where a pack has not been loaded, with what its import said."""
    missing = [kind for kind in kinds if kind not in server.info]
    if missing:
        lines = [line for line in server.log.splitlines() if "Cannot import" in line or "ModuleNotFoundError" in line]
        pytest.skip(f"{', '.join(missing)} are not there: {' '.join(lines)[-300:]}")


_runs = itertools.count()


def saved(server, graph, *masks):
    """Run a graph, and the masks of some of its outputs as bool arrays [N, H, W]."""
    run = next(_runs)  # ComfyUI says nothing of a node whose output it still has
    for number, output in enumerate(masks):
        graph[f"image{number}"] = node("MaskToImage", mask=output)
        graph[f"save{number}"] = node("SaveImage", images=[f"image{number}", 0], filename_prefix=f"run{run}_{number}")
    found = server.saved(graph)
    return [
        np.stack([np.array(Image.open(path).convert("L")) > 127 for path in found[f"save{number}"]])
        for number in range(len(masks))
    ]


def read_back(server, graph, *outputs):
    """The values of some outputs of a graph, as ComfyUI's Preview as Text shows them."""
    shown = {f"shown{number}": node("PreviewAny", source=output) for number, output in enumerate(outputs)}
    entry = server.run(graph | shown)
    assert error_of(entry) is None
    return [json.loads(entry["outputs"][name]["text"][0]) for name in shown]


def base_graph():
    """An image, our model, masks of two boxes by SAM Segment, and the SEGS of them."""
    return {
        "image": node("LoadImage", image=SCENE),
        "model": node("AV_SAMLoader", model_name="samkit_demo.safetensors", precision="fp32"),
        "points": node("PrimitiveStringMultiline", value='[{"x": 209, "y": 386}]'),
        "ours": node("SAMKit_Segment", sam_model=["model", 0], image=["image", 0], positive_coords=["points", 0]),
        "segs": node("SAMKit_MasksToSEGS", masks=["ours", 0], bboxes=["ours", 1], crop_factor=2.0, drop_size=5, label="shape"),
    }


SAM_DETECTOR = {
    "detection_hint": "center-1",
    "dilation": 0,
    "bbox_expansion": 0,
    "mask_hint_threshold": 0.7,
    "mask_hint_use_negative": "False",
}


def detectors(model, threshold):
    inputs = {"sam_model": [model, 0], "segs": ["segs", 0], "image": ["image", 0], "threshold": threshold, **SAM_DETECTOR}
    return {f"{kind} {model}": node(kind, **inputs) for kind in ("SAMDetectorCombined", "SAMDetectorSegmented")}


@pytest.mark.comfyui
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_impacts_sam_detectors_find_with_our_model_what_they_find_with_theirs(server, threshold):
    needs(server, "SAMDetectorCombined", "SAMDetectorSegmented", "ImpactOwn")
    graph = base_graph() | {"theirs": node("ImpactOwn")} | detectors("model", threshold) | detectors("theirs", threshold)
    kinds = [("SAMDetectorCombined", 0), ("SAMDetectorSegmented", 0), ("SAMDetectorSegmented", 1)]
    outputs = [[f"{kind} {model}", place] for kind, place in kinds for model in ("model", "theirs")]
    found = saved(server, graph, *outputs)
    for ours, theirs in zip(found[::2], found[1::2], strict=True):
        assert ours.shape == theirs.shape and (ours == theirs).mean() > 0.9999 and ours.any()


@pytest.mark.comfyui
def test_impacts_sam_runs_in_our_nodes(server):
    needs(server, "ImpactOwn")
    graph = base_graph()
    graph["theirs"] = node("ImpactOwn")
    graph["again"] = node("SAMKit_Segment", **(graph["ours"]["inputs"] | {"sam_model": ["theirs", 0]}))
    ours, again = saved(server, graph, ["ours", 0], ["again", 0])
    assert (ours == again).mean() > 0.9999 and ours.any()


@pytest.mark.comfyui
def test_impact_takes_our_segs(server):
    needs(server, "SegsToCombinedMask", "ImpactSEGSLabelFilter")
    graph = base_graph()
    graph["filter"] = node("ImpactSEGSLabelFilter", segs=["segs", 0], preset="all", labels="shape")
    graph["back"] = node("SegsToCombinedMask", segs=["filter", 0])
    ours, back = saved(server, graph, ["ours", 0], ["back", 0])
    assert np.array_equal(ours, back) and ours.any()


@pytest.mark.comfyui
def test_impacts_detectors_take_text_to_boxes(server):
    """The same boxes as one mask, as SEGS, and as its own output has them."""
    needs(server, "BboxDetectorSEGS", "BboxDetectorCombined_v2", "SegsToCombinedMask")
    words = {"text": "cat. a dog.", "text_threshold": 0.0, "box_threshold": 0.0, "nms_threshold": 0.7, "max_boxes": 3}
    graph = base_graph() | {"dino": node("SAMKit_GroundingLoader", model_name="grounding-dino-tiny")}
    graph["words"] = node("SAMKit_TextToBoxes", grounding_model=["dino", 0], image=["image", 0], **words)
    given = {"bbox_detector": ["words", 3], "image": ["image", 0], "threshold": 0.0, "dilation": 0}
    graph["together"] = node("BboxDetectorCombined_v2", **given)
    graph["apart"] = node("BboxDetectorSEGS", crop_factor=2.0, drop_size=1, labels="all", **given)
    graph["back"] = node("SegsToCombinedMask", segs=["apart", 0])
    together, back = saved(server, graph, ["together", 0], ["back", 0])
    (boxes,) = read_back(server, graph, ["words", 0])[0]
    expected = np.zeros((480, 640), bool)
    for x, y, right, bottom in map(corners_of, boxes):
        expected[max(0, math.floor(y)) : math.ceil(bottom), max(0, math.floor(x)) : math.ceil(right)] = True
    assert len(boxes) == 3 and np.array_equal(together[0], expected) and np.array_equal(back[0], expected)


@pytest.mark.comfyui
def test_impacts_simple_detector_takes_our_model(server):
    """Its mask is that of SAMDetector inside of the box that its detector finds."""
    needs(server, "ImpactSimpleDetectorSEGS", "SAMDetectorCombined", "BboxDetectorSEGS", "TinyDiffusion")
    graph = base_graph() | {"tiny": node("TinyDiffusion")}
    found = {"bbox_detector": ["tiny", 4], "image": ["image", 0], "crop_factor": 2.0, "drop_size": 1}
    graph["segs"] = node("BboxDetectorSEGS", threshold=0.5, dilation=0, labels="all", **found)
    graph |= detectors("model", 0.0)
    given = {"bbox_threshold": 0.5, "bbox_dilation": 0, "sub_threshold": 0.0, "sub_dilation": 0, "sub_bbox_expansion": 0}
    given |= {"sam_mask_hint_threshold": 0.7, "sam_model_opt": ["model", 0]}
    graph["simple"] = node("ImpactSimpleDetectorSEGS", **found, **given)
    graph["mask"] = node("SegsToCombinedMask", segs=["simple", 0])
    alone, simple = saved(server, graph, ["SAMDetectorCombined model", 0], ["mask", 0])
    box = np.zeros((480, 640), bool)
    box[250:430, 60:260] = True
    assert np.array_equal(simple[0], alone[0] & box) and simple.any()


DETAILER = {
    "guide_size": 64.0,
    "guide_size_for": True,
    "max_size": 64.0,
    "seed": 0,
    "steps": 1,
    "cfg": 1.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 0.5,
    "feather": 0,
    "noise_mask": True,
    "force_inpaint": True,
    "bbox_threshold": 0.5,
    "bbox_dilation": 0,
    "bbox_crop_factor": 1.5,
    "sam_detection_hint": "center-1",
    "sam_dilation": 0,
    "sam_threshold": 0.0,
    "sam_bbox_expansion": 0,
    "sam_mask_hint_threshold": 0.7,
    "sam_mask_hint_use_negative": "False",
    "drop_size": 10,
    "wildcard": "",
    "cycle": 1,
}
SEGS_OPTIONS = ("guide_size", "guide_size_for", "max_size", "seed", "steps", "cfg", "sampler_name", "scheduler", "denoise") + (
    "noise_mask",
    "force_inpaint",
    "cycle",
)


def changed_pixels(server, graph, output):
    """Where an image is not the scene any more, bool [H, W]."""
    graph = graph | {"after": node("SaveImage", images=output, filename_prefix=f"changed{next(_runs)}")}
    after = np.array(Image.open(server.saved(graph)["after"][0]).convert("RGB")).astype(int)
    before = np.array(Image.open(server.base / "input" / SCENE).convert("RGB")).astype(int)
    return abs(after - before).max(-1) > 2


@pytest.mark.comfyui
@pytest.mark.exhaustive
def test_impacts_detailers_take_our_segs(server):
    """Detailer (SEGS), and SEGSDetailer with SEGSPaste: only the pixels of our mask change."""
    needs(server, "DetailerForEach", "SEGSDetailer", "SEGSPaste", "ToBasicPipe", "TinyDiffusion")
    graph = base_graph() | {"tiny": node("TinyDiffusion")}
    links = {name: ["tiny", place] for place, name in enumerate(["model", "clip", "vae", "positive"])} | {
        "negative": ["tiny", 3]
    }
    given = {"image": ["image", 0], "segs": ["segs", 0]}
    options = {name: DETAILER[name] for name in SEGS_OPTIONS}
    graph["pipe"] = node("ToBasicPipe", **links)
    more = {"basic_pipe": ["pipe", 0], "refiner_ratio": 0.2, "batch_size": 1, "noise_mask_feather": 0}
    graph["detailed"] = node("SEGSDetailer", **given, **options, **more)
    graph["pasted"] = node("SEGSPaste", image=["image", 0], segs=["detailed", 0], feather=0, alpha=255)
    graph["at once"] = node("DetailerForEach", **given, **options, **links, feather=0, wildcard="")
    (mask,) = saved(server, graph, ["ours", 0])
    for output in ("pasted", "at once"):
        changed = changed_pixels(server, graph, [output, 0])
        assert changed.any() and not (changed & ~mask[0]).any(), output


@pytest.mark.comfyui
@pytest.mark.exhaustive
def test_face_detailer_runs_through_with_our_model(server):
    """Its mask is where the box and the candidates of our model agree; outside of it the image stays as it was."""
    needs(server, "FaceDetailer", "TinyDiffusion")
    graph = base_graph() | {"tiny": node("TinyDiffusion")}
    links = {name: ["tiny", place] for place, name in enumerate(["model", "clip", "vae", "positive", "bbox_detector"])}
    links |= {"negative": ["tiny", 3], "image": ["image", 0], "sam_model_opt": ["model", 0]}
    graph["detailer"] = node("FaceDetailer", **links, **DETAILER)
    (mask,) = saved(server, graph, ["detailer", 3])
    inside = mask[0].nonzero()
    assert mask.any() and inside[0].min() >= 249 and inside[0].max() <= 431 and inside[1].max() <= 261
    changed = changed_pixels(server, graph, ["detailer", 0])
    assert changed.any() and not (changed & ~mask[0]).any()


EDITOR = {
    "points_store": "{}",
    "bbox_store": "{}",
    "coordinates": '[{"x": 209, "y": 386}]',
    "neg_coordinates": "",
    "bboxes": "[{}]",
    "bbox_format": "xyxy",
    "width": 640,
    "height": 480,
    "normalize": False,
}


def editor_graph(**changes):
    graph = base_graph()
    graph["editor"] = node("PointsEditor", **(EDITOR | changes))
    prompts = {"positive_coords": ["editor", 0], "negative_coords": ["editor", 1], "bboxes": ["editor", 2]}
    graph["edited"] = node("SAMKit_Segment", sam_model=["model", 0], image=["image", 0], **prompts)
    return graph


@pytest.mark.comfyui
def test_the_points_editors_outputs_connect_directly(server):
    needs(server, "PointsEditor")
    ours, edited = saved(server, editor_graph(), ["ours", 0], ["edited", 0])
    assert np.array_equal(ours, edited) and ours.any()


@pytest.mark.comfyui
def test_the_points_editors_xywh_boxes_are_read_with_the_form(server):
    needs(server, "PointsEditor")
    drawn = json.dumps([{"startX": 60, "startY": 250, "endX": 260, "endY": 430}])
    graph = editor_graph(bboxes=drawn, bbox_format="xywh")
    graph["edited"]["inputs"]["box_form"] = "xywh"
    graph["box"] = box_node()
    prompts = {"positive_coords": ["points", 0], "bboxes": ["box", 1]}
    graph["ours"] = node("SAMKit_Segment", sam_model=["model", 0], image=["image", 0], **prompts)
    ours, edited = saved(server, graph, ["ours", 0], ["edited", 0])
    assert np.array_equal(ours, edited) and ours.any()


@pytest.mark.comfyui
def test_the_points_editors_normalised_points_are_an_error_that_says_so(server):
    needs(server, "PointsEditor")
    graph = editor_graph(normalize=True)
    graph["image0"] = node("PreviewAny", source=["edited", 2])
    said = error_of(server.run(graph))
    assert "Turn normalize off in the Points Editor" in said["exception_message"]


@pytest.mark.comfyui
@pytest.mark.parametrize("kind", ["Florence2toCoordinates", "AILab_Florence2ToCoordinates"])
def test_florences_boxes_connect_directly_and_nothing_found_is_an_empty_mask(server, kind):
    needs(server, kind)
    corners = [BOX["x"], BOX["y"], BOX["x"] + BOX["width"], BOX["y"] + BOX["height"]]
    graph = base_graph()
    graph["box"] = box_node()
    graph["ours"] = node("SAMKit_Segment", sam_model=["model", 0], image=["image", 0], bboxes=["box", 1])
    for name, data in (("some", [[corners]]), ("none", [])):
        graph[f"{name} data"] = node("AnyJSON", text=json.dumps(data))
        graph[f"{name} boxes"] = node(kind, data=[f"{name} data", 0], index="0", batch=False)
        given = {"sam_model": ["model", 0], "image": ["image", 0], "bboxes": [f"{name} boxes", 1]}
        graph[name] = node("SAMKit_Segment", **given)
    ours, some, none = saved(server, graph, ["ours", 0], ["some", 0], ["none", 0])
    assert np.array_equal(ours, some) and ours.any() and none.shape == ours.shape and not none.any()


@pytest.mark.comfyui
@pytest.mark.parametrize("kind", ["Florence2toCoordinates", "AILab_Florence2ToCoordinates"])
def test_florences_boxes_of_a_batch_are_one_of_each_frame(server, kind):
    needs(server, kind)
    graph = base_graph()
    graph["flipped"] = node("ImageFlip", image=["image", 0], flip_method="y-axis: horizontally")
    graph["batch"] = node("ImageBatch", image1=["image", 0], image2=["flipped", 0])
    left = [60, 250, 260, 430]
    graph["data"] = node("AnyJSON", text=json.dumps([[left], [[640 - left[2], left[1], 640 - left[0], left[3]]]]))
    graph["boxes"] = node(kind, data=["data", 0], index="0", batch=True)
    graph["both"] = node("SAMKit_Segment", sam_model=["model", 0], image=["batch", 0], bboxes=["boxes", 1])
    for name, image, x in (("first", "image", 60), ("second", "flipped", 380)):
        graph[f"{name} box"] = box_node(x=x)
        graph[name] = node("SAMKit_Segment", sam_model=["model", 0], image=[image, 0], bboxes=[f"{name} box", 1])
    both, first, second = saved(server, graph, ["both", 0], ["first", 0], ["second", 0])
    assert np.array_equal(both, np.concatenate([first, second])) and first.any() and second.any()
    assert not np.array_equal(first, second)


@pytest.mark.comfyui
def test_florence_runs_into_our_boxes(server):
    """kijai's Florence2Run on a model that says a box, and its SAM 2 pack's node between."""
    needs(server, "Florence2Run", "Florence2toCoordinates", "OneBoxFlorence")
    graph = base_graph() | {"florence": node("OneBoxFlorence"), "box": box_node()}
    inputs = {"image": ["image", 0], "florence2_model": ["florence", 0], "text_input": "", "task": "region_caption"}
    graph["run"] = node("Florence2Run", fill_mask=True, **inputs)
    graph["boxes"] = node("Florence2toCoordinates", data=["run", 3], index="0", batch=False)
    for name, source_of in (("theirs", ["boxes", 1]), ("ours", ["box", 1])):
        graph[name] = node("SAMKit_Segment", sam_model=["model", 0], image=["image", 0], bboxes=source_of)
    theirs, ours = saved(server, graph, ["theirs", 0], ["ours", 0])
    assert np.array_equal(theirs, ours) and ours.any()


@pytest.mark.comfyui
@pytest.mark.exhaustive
def test_kijais_sam_2_takes_our_boxes_and_its_model_runs_in_our_nodes(server):
    """Its own code with random weights; its transform of the image is torchvision's, ours Pillow's."""
    needs(server, "Sam2Segmentation", "RandomSAM2")
    graph = base_graph() | {"sam2": node("RandomSAM2"), "box": box_node()}
    graph["boxes"] = node("SAMKit_ConvertBoxes", bboxes=["box", 1], index=0, frame=0)
    given = {"sam2_model": ["sam2", 0], "image": ["image", 0], "bboxes": ["boxes", 1]}
    graph["theirs"] = node("Sam2Segmentation", keep_model_loaded=True, individual_objects=False, **given)
    given = {"sam_model": ["sam2", 1], "image": ["image", 0], "bboxes": ["box", 1], "multimask": "on"}
    graph["again"] = node("SAMKit_Segment", **given)
    server.run(graph | {"shown": node("PreviewAny", source=["theirs", 0])}, timeout=300)
    theirs, again = saved(server, graph, ["theirs", 0], ["again", 0])
    assert (theirs == again).mean() > 0.99 and 0.01 < again.mean() < 0.99


@pytest.mark.comfyui
def test_storyicons_segmentation_runs_on_our_model(server):
    """What it finds with a plain Sam of the same weights, and what SAM Segment finds with its box."""
    needs(server, "GroundingDinoSAMSegment (segment anything)", "OneBoxDino", "ImpactOwn")
    graph = base_graph() | {"dino": node("OneBoxDino"), "plain": node("ImpactOwn"), "box": box_node()}
    given = {"grounding_dino_model": ["dino", 0], "image": ["image", 0], "prompt": "leaf", "threshold": 0.3}
    for model in ("model", "plain"):
        graph[f"by {model}"] = node("GroundingDinoSAMSegment (segment anything)", sam_model=[model, 0], **given)
    given = {"sam_model": ["model", 0], "image": ["image", 0], "bboxes": ["box", 1]}
    graph["ours"] = node("SAMKit_Segment", **given)
    ours, by_model, by_plain = saved(server, graph, ["ours", 0], ["by model", 1], ["by plain", 1])
    assert np.array_equal(by_model, by_plain) and (by_model == ours).mean() > 0.999 and ours.any()


@pytest.mark.comfyui
@pytest.mark.exhaustive
def test_storyicons_loader_gives_a_mobile_sam_that_runs_in_our_nodes(server, storyicon):
    needs(server, "SAMModelLoader (segment anything)")
    torch.save(enliven(storyicon._build_mobile_sam(None)).state_dict(), server.base / "models" / "sams" / "mobile_sam.pt")
    graph = base_graph() | {"theirs": node("SAMModelLoader (segment anything)", model_name="mobile_sam(39MB)")}
    graph["model"]["inputs"]["model_name"] = "mobile_sam.pt"
    graph["again"] = node("SAMKit_Segment", **(graph["ours"]["inputs"] | {"sam_model": ["theirs", 0]}))
    ours, again = saved(server, graph, ["ours", 0], ["again", 0])
    assert np.array_equal(ours, again) and ours.any()


WIDGETS = ("INT", "FLOAT", "BOOLEAN", "STRING", "COLORCODE", "COMBO")


@pytest.mark.comfyui
@pytest.mark.parametrize("one", REPLACEMENTS, ids=[one.old for one in REPLACEMENTS])
def test_a_replacement_has_the_inputs_and_widgets_of_the_real_node(server, one):
    if one.old == "SAM Model Loader":  # WAS Node Suite installs packages when it is imported
        (kind,) = definitions(source(WAS) / "WAS_Node_Suite.py", ["WAS_SAM_Model_Loader"])
        inputs, outputs = kind.INPUT_TYPES(), kind.RETURN_TYPES
    else:
        needs(server, one.old)
        inputs, outputs = server.info[one.old]["input"], server.info[one.old]["output"]
    inputs = {**inputs["required"], **inputs.get("optional", {})}
    is_widget = {
        name: (isinstance(kind, list) or kind in WIDGETS) and not (more and more[0].get("forceInput"))
        for name, (kind, *more) in inputs.items()
    }
    assert tuple(name for name in inputs if is_widget[name]) == one.widgets
    assert set(one.copied) <= set(inputs) and set(one.outputs) <= set(range(len(outputs)))


FRAMES, PART, STEP = 5, 2, 40
COMBINE = {
    "frame_rate": 8.0,
    "loop_count": 0,
    "filename_prefix": "film",
    "format": "video/h264-mp4",
    "pingpong": False,
    "save_output": True,
    "pix_fmt": "yuv420p",
    "crf": 19,
    "save_metadata": True,
    "trim_to_audio": False,
}


@pytest.fixture(scope="module")
def film_folder(server):
    """Frames in which the scene moves to the left."""
    scene, folder = np.array(Image.open(EXAMPLES / SCENE)), server.base / "input" / "film"
    folder.mkdir()
    for index in range(FRAMES):
        Image.fromarray(np.roll(scene, -STEP * index, axis=1)).save(folder / f"{index:03}.png")
    return folder


def film_graph(folder, kind, points):
    """SAM Segment or SAM Predict Mask on the frames of a folder."""
    given = {"sam_model": ["model", 0], "positive_coords": ["points", 0], "image": ["film", 0]}
    graph = {
        "film": node("VHS_LoadImagesPath", directory=str(folder)),
        "model": base_graph()["model"],
        "points": node("PrimitiveStringMultiline", value=json.dumps(points)),
        "ours": node(kind, **given),
    }
    if kind == "SAMKit_PredictMask":
        graph["embedding"] = node("GetSAMEmbedding", sam_model=["model", 0], image=["film", 0], device_mode="CPU")
        graph["ours"]["inputs"]["embedding"] = ["embedding", 0]
    return graph


def in_parts(server, graph, prefix):
    """The masks of a graph of `film_graph`, saved under a prefix, when the batch manager runs it in three parts."""
    graph["manager"] = node("VHS_BatchManager", frames_per_batch=PART)
    graph["combined"] = node("VHS_VideoCombine", images=["film", 0], meta_batch=["manager", 0], **COMBINE)
    for name in ("film", "ours"):
        graph[name]["inputs"]["meta_batch"] = ["manager", 0]
    graph["save0"]["inputs"]["filename_prefix"] = prefix
    entries = server.run_again(graph)
    assert [error_of(entry) for entry in entries] == [None] * 3
    names = [image["filename"] for entry in entries for image in entry["outputs"]["save0"]["images"]]
    return np.stack([np.array(Image.open(server.base / "output" / name).convert("L")) > 127 for name in names])


@pytest.mark.comfyui
@pytest.mark.parametrize("kind", ["SAMKit_Segment", "SAMKit_PredictMask"])
def test_the_parts_of_the_batch_manager_have_the_masks_of_the_whole_video(server, film_folder, kind):
    """The combined frames do not need our masks: ComfyUI may combine them, and so queue the next part, before we run."""
    needs(server, "VHS_BatchManager", "VHS_LoadImagesPath", "VHS_VideoCombine")
    points = [[{"x": 209 - STEP * index, "y": 386}] for index in range(FRAMES)]
    graph = film_graph(film_folder, kind, points)
    (whole,) = saved(server, graph, ["ours", 0])
    parts = in_parts(server, graph, f"parts_{kind}")
    assert np.array_equal(parts, whole) and len(whole) == FRAMES and whole.any((1, 2)).all()
    columns = whole.any(1).argmax(1)
    assert (np.diff(columns) < 0).all(), "each frame has the mask of its own point"


@pytest.mark.comfyui
@pytest.mark.parametrize("individual", [False, True])
def test_the_parts_of_the_batch_manager_are_tracked_as_the_whole_video(server, film_folder, individual):
    """Clicks on frame 0, and a correction on one of the second part; a second object that comes in the third."""
    needs(server, "VHS_BatchManager", "VHS_LoadImagesPath", "VHS_VideoCombine")
    points = [[{"x": 209, "y": 386, "object": "a"}], [], [], [{"x": 209 - 3 * STEP, "y": 386, "object": "a"}], []]
    points[4] = [{"x": 100, "y": 300, "object": "b"}]
    graph = film_graph(film_folder, "SAMKit_Track", points)
    graph["ours"]["inputs"]["individual_masks"] = individual
    (whole,) = saved(server, graph, ["ours", 0])
    assert len(whole) == FRAMES * (1 + individual) and whole[0].any()
    parts = in_parts(server, graph, f"tracked_{individual}")
    assert np.array_equal(parts, whole)


@pytest.mark.comfyui
def test_the_editor_and_sam_track_on_a_video_of_load_video(server, film_folder):
    """A lossless video of the frames: marks on two of them, through the editor in a film, give the masks of the frames."""
    needs(server, "VHS_LoadVideoPath", "VHS_LoadImagesPath")
    video = server.base / "input" / "film.mkv"
    write_video(video, [np.array(Image.open(path).convert("RGB")) for path in sorted(film_folder.glob("*.png"))])
    height, width = np.array(Image.open(EXAMPLES / SCENE)).shape[:2]
    marks = [{"x": 209.0, "y": 386.0, "label": 1, "frame": 0}, {"x": 209.0 - 3 * STEP, "y": 386.0, "label": 1, "frame": 3}]
    text = {"version": 2, "size": [width, height], "objects": [{"colour": "#1e90ff", "candidate": "best", "marks": marks}]}
    options = {"force_rate": 0, "custom_width": 0, "custom_height": 0, "frame_load_cap": 0}
    options |= {"skip_first_frames": 0, "select_every_nth": 1}
    found = []
    for film in (
        node("VHS_LoadVideoPath", video=str(video), **options),
        node("VHS_LoadImagesPath", directory=str(film_folder)),
    ):
        editor = node("SAMKit_PromptEditor", image=["film", 0], sam_model=["model", 0], prompts=json.dumps(text))
        graph = {"film": film, "model": base_graph()["model"], "editor": editor}
        given = {"sam_model": ["model", 0], "image": ["editor", 4], "positive_coords": ["editor", 0]}
        given |= {"negative_coords": ["editor", 1], "bboxes": ["editor", 2]}
        graph["ours"] = node("SAMKit_Track", **given)
        found.append(saved(server, graph, ["ours", 0])[0])
    assert len(found[0]) == FRAMES and found[0].any((1, 2)).all() and np.array_equal(*found)


@pytest.mark.comfyui
def test_a_batch_manager_that_does_not_load_the_video_is_refused(server, film_folder):
    needs(server, "VHS_BatchManager", "VHS_LoadImagesPath")
    graph = film_graph(film_folder, "SAMKit_Segment", [])
    graph["manager"] = node("VHS_BatchManager", frames_per_batch=PART)
    graph["ours"]["inputs"]["meta_batch"] = ["manager", 0]
    graph["shown"] = node("PreviewAny", source=["ours", 0])
    assert "into batches of 2 frames, but this batch has 5" in error_of(server.run(graph))["exception_message"]


@pytest.mark.comfyui
def test_beside_art_ventures_pack_one_line_says_who_has_the_ids(server):
    if not (server.base / "custom_nodes" / ART_VENTURE).is_dir():
        pytest.skip(f"{ART_VENTURE} is not in SAMKIT_PACKS")
    lines = [line for line in server.log.splitlines() if "have the nodes AV_SAMLoader" in line]
    assert len(lines) == 1 and f"Both samkit and {ART_VENTURE}" in lines[0] and "Those of samkit are used" in lines[0]
    assert server.info["AV_SAMLoader"]["python_module"] == "custom_nodes.samkit"


@pytest.mark.comfyui
@pytest.mark.exhaustive
def test_our_nodes_work_with_art_ventures_model_and_embedding_and_its_lacks_are_said(tmp_path):
    """With the ids given to the other pack. Its loader knows only the published sizes."""
    source(ART_VENTURE)
    (tmp_path / "models" / "sams").mkdir(parents=True)
    torch.save(random_sam(**VIT_B).state_dict(), tmp_path / "models" / "sams" / "vit_b.pth")
    with running(tmp_path, [ART_VENTURE], "other") as server:
        assert server.info["AV_SAMLoader"]["python_module"] == f"custom_nodes.{ART_VENTURE}"
        (line,) = [line for line in server.log.splitlines() if "have the nodes AV_SAMLoader" in line]
        assert f"Those of {ART_VENTURE} are used" in line and "does not list bundled checkpoints" in line
        graph = {
            "image": node("LoadImage", image=SCENE),
            "model": node("AV_SAMLoader", model_name="vit_b.pth"),
            "embedding": node("GetSAMEmbedding", sam_model=["model", 0], image=["image", 0], device_mode="CPU"),
            "points": node("PrimitiveStringMultiline", value='[{"x": 209, "y": 386}]'),
        }
        given = {"sam_model": ["model", 0], "image": ["image", 0], "positive_coords": ["points", 0]}
        graph["theirs"] = node("SAMKit_PredictMask", embedding=["embedding", 0], **given)
        graph["ours"] = node("SAMKit_Segment", **given)
        shown = {"shown": node("PreviewAny", source=["embedding", 0])}
        server.run(graph | shown, timeout=400)  # their encoder takes its time on one thread
        theirs, ours = saved(server, graph, ["theirs", 0], ["ours", 0])
        assert (theirs == ours).mean() > 0.999 and ours.any()
        graph["theirs"]["inputs"].pop("image")
        assert "Connect the image as well" in error_of(server.run(graph))["exception_message"]
        today = json.loads((EXAMPLES / "api" / "one_click.json").read_text())
        with pytest.raises(AssertionError, match="model_name: 'samkit_demo.safetensors' not in"):
            server.run(today)


@pytest.mark.comfyui
@pytest.mark.exhaustive
@pytest.mark.parametrize("last", ["ours", "theirs"])
def test_a_saved_graph_beside_art_ventures_pack_in_both_load_orders(tmp_path, last):
    """Nobody has chosen: the pack that is loaded last has the ids."""
    source(ART_VENTURE)
    (tmp_path / "models" / "sams").mkdir(parents=True)
    torch.save(random_sam(**VIT_B).state_dict(), tmp_path / "models" / "sams" / "vit_b.pth")
    with running(tmp_path, [ART_VENTURE], "", last) as server:
        used = "samkit" if last == "ours" else ART_VENTURE
        assert server.info["AV_SAMLoader"]["python_module"] == f"custom_nodes.{used}"
        (line,) = [line for line in server.log.splitlines() if "have the nodes AV_SAMLoader" in line]
        assert f"Those of {used} are used" in line
        today = json.loads((EXAMPLES / "api" / "one_click.json").read_text())
        if last == "ours":
            ((path,),) = server.saved(today).values()
            assert np.array(Image.open(path)).any()
        else:
            with pytest.raises(AssertionError, match="model_name: 'samkit_demo.safetensors' not in"):
                server.run(today)
        (loader,) = [one["inputs"] for one in today.values() if one["class_type"] == "AV_SAMLoader"]
        loader["model_name"] = "vit_b.pth"
        assert error_of(server.run(today, timeout=400)) is None


def test_art_ventures_image_of_an_embedding_is_ours(tiny_model):
    folder, known = source(ART_VENTURE) / "modules", {"np": np, "torch": torch, "Image": Image}
    known["pil2tensor"], _ = definitions(folder / "utils.py", ["pil2tensor", "pil2numpy"], **known)
    (theirs,) = definitions(folder / "inpaint" / "sam" / "nodes.py", ["SAMEmbeddingToImage"], **known)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(make_image(60, 80)), tiny_model)
    (ours,), (other,) = (kind().sam_embedding_to_noise_image(embedding) for kind in (SAMEmbeddingToImage, theirs))
    assert ours.any() and torch.equal(ours, other)


@pytest.mark.comfyui
@pytest.mark.parametrize(("example", "pack"), real_packs.EXAMPLES.items())
def test_the_examples_with_their_nodes_fit(server, example, pack):
    nodes = json.loads((EXAMPLES / f"{example}.json").read_text())["nodes"]
    needs(server, *{one["type"] for one in nodes} - {"MarkdownNote"})
    path = EXAMPLES / f"{example}.json"
    check_interface_example(path, server.info)


@pytest.mark.comfyui
def test_the_example_of_the_points_editor_runs(server):
    needs(server, "PointsEditor")
    graph = json.loads((EXAMPLES / "api" / "points_editor.json").read_text())
    ((path,),) = server.saved(graph).values()
    assert np.array(Image.open(path)).any()


@pytest.mark.comfyui
def test_the_example_of_florences_boxes_runs_on_what_florence_would_say(server):
    """Its weights are a download; what it says of a text is known."""
    needs(server, "AILab_Florence2ToCoordinates")
    graph = json.loads((EXAMPLES / "api" / "florence_boxes.json").read_text())
    (florence,) = [number for number, one in graph.items() if one["class_type"] == "AILab_Florence2"]
    said = [{"bboxes": [[60.5, 250.0, 260.0, 430.5]], "labels": ["leaf"]}]
    graph["said"] = node("AnyJSON", text=json.dumps(said))
    (boxes,) = [one["inputs"] for one in graph.values() if one["class_type"] == "AILab_Florence2ToCoordinates"]
    boxes["data"] = ["said", 0]
    del graph[florence]
    ((path,),) = server.saved(graph).values()
    assert np.array(Image.open(path)).any()


@pytest.mark.comfyui
@pytest.mark.exhaustive
def test_the_example_of_impacts_detailer_runs_with_a_tiny_unet(server):
    """The checkpoint is a download: another UNet takes its place. So is Grounding DINO: a small one finds something else."""
    needs(server, "FaceDetailer", "TinyDiffusion")
    graph = json.loads((EXAMPLES / "api" / "impact_detailer.json").read_text())
    gone = {"CheckpointLoaderSimple", "CLIPTextEncode"}
    graph = {number: one for number, one in graph.items() if one["class_type"] not in gone} | {"tiny": node("TinyDiffusion")}
    (detailer,) = [one["inputs"] for one in graph.values() if one["class_type"] == "FaceDetailer"]
    places = {"model": 0, "clip": 1, "vae": 2, "positive": 3, "negative": 3}
    detailer |= {name: ["tiny", place] for name, place in places.items()}
    detailer |= {"guide_size": 64.0, "max_size": 64.0, "steps": 1, "bbox_threshold": 0.0}
    (words,) = [one["inputs"] for one in graph.values() if one["class_type"] == "SAMKit_TextToBoxes"]
    words["max_boxes"] = 2
    ((path,),) = server.saved(graph).values()
    after, before = (np.array(Image.open(image).convert("RGB")) for image in (path, EXAMPLES / SCENE))
    assert after.shape == before.shape and (after != before).any()


# In this process: what needs no server, or cannot be imported by one.


@pytest.fixture
def storyicon(monkeypatch):
    """storyicon's builders of SAM-HQ and MobileSAM; it puts its own folder on the path."""
    folder = source(STORYICON)
    monkeypatch.syspath_prepend(str(folder))
    pytest.importorskip("timm", reason="storyicon's MobileSAM needs timm")
    before = set(sys.modules)
    yield importlib.import_module("sam_hq.build_sam_hq")
    for name in set(sys.modules) - before:
        if name.startswith("sam_hq"):
            del sys.modules[name]


def enliven(sam):
    """Weights that make masks worth comparing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in sam.named_parameters():
            if "pos" in name:
                value.normal_(0, 0.3)
            elif name.startswith("mask_decoder") and value.ndim > 1:
                value.mul_(2)
            elif name.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.05)
    return sam.eval()


def test_storyicons_sam_hq_runs_on_our_code(storyicon, tmp_path):
    sam = enliven(
        storyicon._build_sam_hq(
            encoder_embed_dim=64, encoder_depth=2, encoder_num_heads=2, encoder_global_attn_indexes=[1], checkpoint=None
        )
    )
    sam.model_name = "sam_hq_vit_b.pth"
    check_rebuilt(sam, "SAM-HQ", tmp_path)


def test_storyicons_mobile_sam_runs_on_our_code(storyicon, tmp_path):
    check_rebuilt(enliven(storyicon._build_mobile_sam(None)), "MobileSAM", tmp_path)


def check_rebuilt(sam, family, folder):
    """What comes out is what a file of the same weights gives, which other tests compare with the reference."""
    assert as_segmenter(sam).family == family
    torch.save(sam.state_dict(), folder / "same.pth")
    image, click = as_image(make_image(120, 160)), '[{"x": 60, "y": 50}]'
    ours = Segment().execute(load_model(folder / "same.pth", "fp32"), image, positive_coords=click)[0]
    theirs = Segment().execute(sam, image, positive_coords=click)[0]
    assert torch.equal(ours, theirs)


def test_was_sam_image_mask_itself_runs_on_our_model(tiny_sam, tiny_model):
    path = source(WAS) / "WAS_Node_Suite.py"
    tensor2sam, image_mask = definitions(path, ["tensor2sam", "WAS_SAM_Image_Mask"], np=np, torch=torch)
    image, parameters = as_image(make_image(60, 80)), {"points": np.array([[30, 25]]), "labels": np.array([1])}
    assert tensor2sam(image).dtype == np.uint8
    (_, ours), (_, theirs) = (image_mask().sam_image_mask(model, parameters, image) for model in (tiny_model, tiny_sam))
    assert torch.equal(ours, theirs)


def test_was_sam_image_mask_itself_runs_on_sam_2(tmp_path, small_size):  # noqa: F811
    """What SAM Segment finds with the single mask, on an image of the model's own size."""
    _, image_mask = definitions(source(WAS) / "WAS_Node_Suite.py", ["tensor2sam", "WAS_SAM_Image_Mask"], np=np, torch=torch)
    model = Pair(tmp_path, SMALL, 128, 32).ours
    image, parameters = as_image(make_image(128, 128)), {"points": np.array([[30, 25]]), "labels": np.array([1])}
    (_, mask) = image_mask().sam_image_mask(model, parameters, image)
    ours = Segment().execute(model, image, positive_coords='[{"x": 30, "y": 25}]', multimask="off")[0]
    found = (mask[..., 0] if mask.shape[-1] == 3 else mask).reshape(128, 128) > 0.5
    assert torch.equal(found.cpu(), ours[0] > 0.5) and 0 < found.float().mean() < 1

"""What every node declares, to the letter of what ComfyUI reads; loader and mask selection."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from load_pack import ROOT, inputs_of
from PIL import Image, ImageSequence
from safetensors.torch import save_file
from samkit import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY
from samkit.nodes.masks import SelectMasks
from samkit.nodes.model import SAMModelLoader
from samkit.sam import SAM_MODELS, SAMError
from samkit.sam.weights.registry import BUNDLED, KNOWN

NODES = pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)
CONTRACT = {
    "AV_SAMLoader": ("Load SAM Model", ["model_name"], ["precision", "base_model"], ["sam_model"]),
    "SAMKit_FromSAM3": ("SAM from SAM3 Model", ["model"], [], ["sam_model"]),
    "SAMKit_HubLoader": ("Load SAM from Hub", ["repo_id"], ["revision", "filename", "precision"], ["sam_model"]),
    "SAMKit_SaveMasks": (
        "SAM Save Masks",
        ["images", "masks", "filename_prefix", "format"],
        ["bboxes", "labels", "scores", "categories"],
        [],
    ),
    "SAMKit_LoadMasks": (
        "SAM Load Masks",
        ["path"],
        ["category", "start", "count", "individual_masks", "image_folder"],
        ["images", "masks", "bboxes", "labels"],
    ),
    "GetSAMEmbedding": ("Get SAM Embedding", ["sam_model", "image"], ["device_mode"], ["sam_embedding"]),
    "SAMEmbeddingToImage": ("SAM Embedding to Image", ["embedding"], ["mode"], ["image"]),
    "SAMKit_PredictMask": (
        "SAM Predict Mask",
        ["sam_model", "embedding"],
        ["positive_coords", "negative_coords", "bboxes", "mask_prompt", "logits", "image", "candidate", "multimask"]
        + ["individual_masks", "mask_threshold", "device_mode", "hq", "box_form", "concept", "show_result"]
        + ["frame_offset", "meta_batch", "detail"],
        ["masks", "bboxes", "scores", "logits"],
    ),
    "SAMKit_Segment": (
        "SAM Segment",
        ["sam_model", "image"],
        ["positive_coords", "negative_coords", "bboxes", "mask_prompt", "logits", "candidate", "multimask"]
        + ["individual_masks", "mask_threshold", "device_mode", "hq", "box_form", "concept", "show_result"]
        + ["frame_offset", "meta_batch", "detail"],
        ["masks", "bboxes", "scores", "logits"],
    ),
    "SAMKit_Track": (
        "SAM Track",
        ["sam_model", "image"],
        ["positive_coords", "negative_coords", "bboxes", "mask_prompt", "track", "mask_frame", "direction"]
        + ["method", "individual_masks", "non_overlapping", "device_mode", "box_form", "show_result"]
        + ["frame_offset", "meta_batch", "fill_flicker", "remove_blinks", "detail"],
        ["masks", "bboxes", "scores", "track"],
    ),
    "SAMKit_ExampleImage": ("SAM Kit Example Image", ["image"], [], ["image"]),
    "SAMKit_PromptEditor": (
        "SAM Prompt Editor",
        ["image", "prompts"],
        ["sam_model", "individual_masks", "grounding_model"],
        ["positive_coords", "negative_coords", "bboxes", "masks", "image", "labels", "cutout", "layers"],
    ),
    "SAMKit_AutoMask": (
        "SAM Segment Everything",
        ["sam_model", "image", "points_per_side", "points_per_batch", "pred_iou_thresh", "stability_score_thresh"]
        + ["stability_score_offset", "box_nms_thresh", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio"]
        + ["crop_n_points_downscale_factor", "min_mask_region_area", "max_masks"],
        ["region", "device_mode", "concept", "preset", "hq", "show_result", "tiles"],
        ["masks", "bboxes", "scores", "overlay", "labels"],
    ),
    "SAMKit_Personalize": (
        "SAM Personalize",
        ["sam_model", "reference_image", "reference_mask", "image", "max_objects", "min_score"],
        ["individual_masks", "hq", "device_mode", "concept", "show_result", "method"],
        ["masks", "scores", "similarity", "positive_coords"],
    ),
    "SAMKit_SelectMasks": (
        "SAM Select Masks",
        ["masks", "order_by", "start", "count", "merge"],
        ["bboxes"],
        ["masks", "bboxes"],
    ),
    "SAMKit_CropToMask": (
        "SAM Crop to Mask",
        ["image", "masks", "context", "side", "multiple_of"],
        [],
        ["image", "masks", "crop"],
    ),
    "SAMKit_StitchCrop": ("SAM Stitch Crop", ["crop", "image"], [], ["image"]),
    "SAMKit_RefineMask": (
        "SAM Refine Mask",
        ["masks", "fill_holes", "drop_islands", "smooth", "grow", "invert", "feather"],
        [],
        ["masks"],
    ),
    "SAMKit_Teach": (
        "SAM Teach",
        ["sam_model", "images", "masks", "steps", "learning_rate", "seed"],
        ["negative_masks", "device_mode"],
        ["concept", "loss_map", "report"],
    ),
    "SAMKit_TrainDecoder": (
        "SAM Train Decoder",
        ["sam_model", "images", "masks", "steps", "learning_rate", "seed"],
        ["other_images", "device_mode"],
        ["sam_model", "loss_map", "report"],
    ),
    "SAMKit_SaveDecoder": ("Save SAM Decoder", ["sam_model", "filename_prefix"], [], ["filename"]),
    "SAMKit_SaveConcept": ("Save SAM Concept", ["concept", "filename_prefix"], [], ["filename"]),
    "SAMKit_LoadConcept": ("Load SAM Concept", ["concept_name"], [], ["concept"]),
    "SAMKit_MatteLoader": ("Load ViTMatte", ["model_name"], [], ["matte_model"]),
    "SAMKit_Matte": (
        "SAM Soft Edges",
        ["matte_model", "image", "masks", "grow", "shrink"],
        ["device_mode"],
        ["alpha"],
    ),
    "SAMKit_SaveEmbedding": ("Save SAM Embedding", ["embedding", "filename_prefix"], [], ["name"]),
    "SAMKit_LoadEmbedding": ("Load SAM Embedding", ["name"], [], ["sam_embedding"]),
    "SAMKit_GroundingLoader": ("Load Grounding DINO", ["model_name"], [], ["grounding_model"]),
    "SAMKit_TextToBoxes": (
        "Text to Boxes",
        ["grounding_model", "image", "text", "box_threshold", "text_threshold", "nms_threshold", "max_boxes"],
        ["device_mode"],
        ["bboxes", "labels", "overlay", "bbox_detector"],
    ),
    "SAMKit_SegmentText": (
        "SAM Segment Text",
        ["sam_model", "grounding_model", "image", "text", "box_threshold", "text_threshold", "nms_threshold", "max_boxes"],
        ["individual_masks", "mask_threshold", "device_mode", "hq", "show_result", "detail", "tiles"],
        ["masks", "bboxes", "scores", "labels", "overlay", "cutout"],
    ),
    "SAMKit_MasksToSEGS": ("Masks to SEGS", ["masks", "crop_factor", "drop_size"], ["bboxes", "label"], ["segs"]),
    "SAMKit_ConvertBoxes": (
        "Convert Boxes",
        ["bboxes", "index", "frame"],
        ["image", "box_form"],
        ["bboxes", "bbox", "crop_region"],
    ),
}


@NODES
def test_ids_inputs_and_outputs_are_the_contracts(node_id):
    name, required, optional, outputs = CONTRACT[node_id]
    node = NODE_CLASS_MAPPINGS[node_id]
    inputs = node.INPUT_TYPES()
    assert NODE_DISPLAY_NAME_MAPPINGS[node_id] == name
    assert (list(inputs["required"]), list(inputs.get("optional", {}))) == (required, optional)
    assert list(node.RETURN_NAMES) == outputs and len(node.RETURN_TYPES) == len(node.OUTPUT_TOOLTIPS) == len(outputs)
    assert node.CATEGORY == "Art Venture/Segmentation"


def test_the_nodes_are_these():
    assert set(NODE_CLASS_MAPPINGS) == set(CONTRACT) == set(NODE_DISPLAY_NAME_MAPPINGS)


@NODES
def test_everything_is_explained(node_id):
    node = NODE_CLASS_MAPPINGS[node_id]
    assert node.DESCRIPTION and node.SEARCH_ALIASES and all(node.OUTPUT_TOOLTIPS)
    for name, (_, options) in inputs_of(node).items():
        assert options["tooltip"], name


@NODES
def test_the_method_takes_the_inputs_by_name_with_their_defaults(node_id):
    node = NODE_CLASS_MAPPINGS[node_id]
    inputs = inputs_of(node)
    shows = inputs.pop("show_result", None)  # ComfyUI's face takes it; by API it may be left out, and nothing is shown
    assert (node.FUNCTION == "run") == (shows is not None)
    parameters = dict(inspect.signature(getattr(node, "execute" if shows else node.FUNCTION)).parameters)
    parameters.pop("self")
    assert set(parameters) == {*inputs, *node.INPUT_TYPES().get("hidden", {})}
    for name, (kind, options) in inputs.items():
        if "default" in options:
            assert parameters[name].default == options["default"], name
        if isinstance(kind, list) and "default" in options:
            assert options["default"] in kind


def test_prompts_are_links_and_the_rest_widgets():
    for node_id in ("SAMKit_PredictMask", "SAMKit_Segment"):
        inputs = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["optional"]
        assert all(inputs[name][1]["forceInput"] for name in ("positive_coords", "negative_coords", "bboxes"))
        assert inputs["bboxes"][0] == "BOUNDING_BOX,BBOX,SEGS"
        assert inputs["candidate"][0] == ["best", "smallest", "middle", "largest", "all"]
        assert inputs["multimask"][0] == ["auto", "on", "off"]
        assert inputs["device_mode"][0] == ["AUTO", "Prefer GPU", "CPU"]


def test_the_published_methods_keep_their_names():
    functions = {node_id: node.FUNCTION for node_id, node in NODE_CLASS_MAPPINGS.items()}
    assert functions["GetSAMEmbedding"] == "get_sam_embedding"
    assert functions["AV_SAMLoader"] == "load_model"
    assert all(callable(node.execute) for node_id, node in NODE_CLASS_MAPPINGS.items() if node_id.startswith("SAMKit_"))


def test_the_web_folder_is_there():
    assert (ROOT / WEB_DIRECTORY).is_dir()


@pytest.mark.parametrize("folder", ["samkit", "ComfyUI SAM-Kit.v1", "nodes", "1st"])
def test_the_pack_loads_under_any_folder_name_beside_others_that_own_nodes_and_utils(tmp_path, folder):
    """As ComfyUI's `load_custom_node` does it, with its own `nodes` and `utils` and another pack's in the way."""
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / folder).symlink_to(ROOT, target_is_directory=True)
    for name in ("nodes", "utils", "sam"):
        (tmp_path / f"{name}.py").write_text("OWNER = 'someone else'\n")
    script = f"""
import importlib.util, sys
import nodes, utils, sam
path = {str(tmp_path / "custom_nodes" / folder)!r}
name = path.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, path + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert len(module.NODE_CLASS_MAPPINGS) == {len(CONTRACT)}
assert nodes.OWNER == utils.OWNER == sam.OWNER == "someone else"
[node.INPUT_TYPES() for node in module.NODE_CLASS_MAPPINGS.values()]
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr


def test_the_loader_lists_files_bundled_and_known_once(tmp_path, monkeypatch):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    before = SAM_MODELS.names()
    assert before == [*BUNDLED, *KNOWN]
    folder = tmp_path / "models" / "sams" / "mine"
    folder.mkdir(parents=True)
    (folder / "tuned.safetensors").touch()
    (folder / "notes.txt").touch()
    (folder.parent / "sam_vit_b_01ec64.pth").touch()
    after = SAM_MODELS.names()
    assert set(after) == {*before, "mine/tuned.safetensors".replace("/", "\\" if sys.platform == "win32" else "/")}
    assert len(after) == len(set(after))


def test_the_loaders_labels_have_the_size_and_what_would_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    folder = tmp_path / "models" / "sams"
    folder.mkdir(parents=True)
    (folder / "mine.pth").write_bytes(bytes(3_000_000))
    names, options = SAMModelLoader.INPUT_TYPES()["required"]["model_name"]
    labels = options["samkit_labels"]
    assert list(labels) == names
    assert labels["mine.pth"] == "mine.pth (3 MB)"
    assert labels["sam_vit_h_4b8939.pth"] == "sam_vit_h_4b8939.pth (2,565 MB, not downloaded)"
    (folder / "sam_vit_h_4b8939.pth").write_bytes(bytes(5_000_000))
    assert SAM_MODELS.find("sam_vit_h_4b8939.pth").label == "sam_vit_h_4b8939.pth (5 MB)"


def test_the_loader_takes_a_users_file_before_a_bundled_one(tmp_path, monkeypatch, tiny_sam):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    (tmp_path / "models" / "sams").mkdir(parents=True)
    save_file(tiny_sam.state_dict(), tmp_path / "models" / "sams" / "samkit_demo.safetensors")
    (model,) = SAMModelLoader().load_model("samkit_demo.safetensors")
    assert model.image_encoder.img_size == 128


def test_a_replaced_file_is_loaded_anew(tmp_path, monkeypatch, tiny_sam):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    path = tmp_path / "models" / "sams" / "mine.safetensors"
    path.parent.mkdir(parents=True)
    changed = SAMModelLoader.IS_CHANGED
    assert (
        changed(model_name=None)
        == changed(model_name="mine.safetensors")
        == changed("sam_vit_b_01ec64.pth", precision="auto")
        == ""
    )
    save_file(tiny_sam.state_dict(), path)
    first = changed(model_name="mine.safetensors", precision="fp32")
    assert first and first == changed(model_name="mine.safetensors")
    save_file({name: value + 1 for name, value in tiny_sam.state_dict().items()}, path)
    os.utime(path, ns=(1, 1))
    assert changed(model_name="mine.safetensors") not in ("", first)


@pytest.mark.parametrize("name", ["nowhere.pth", "../../secret.pth", "/etc/passwd", ""])
def test_the_loader_refuses_names_that_it_does_not_list(tmp_path, monkeypatch, name):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    with pytest.raises(SAMError, match="there is no checkpoint"):
        SAMModelLoader().load_model(name)


def squares():
    """Four masks: large left, empty, small right at the top, middle in the middle at the bottom."""
    masks = torch.zeros(4, 20, 40)
    masks[0, 5:17, 0:12] = 1
    masks[2, 1:4, 35:38] = 1
    masks[3, 12:19, 15:22] = 1
    return masks


SCORED = [{"x": 0, "y": 5, "width": 12, "height": 12, "score": 0.5}]
SCORED += [{"x": 35, "y": 1, "width": 3, "height": 3, "score": 0.9, "label": "cat"}]
SCORED += [{"x": 15, "y": 12, "width": 7, "height": 7, "score": 0.7}]


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [
        ("index", [0, 1, 2, 3]),
        ("area", [0, 3, 2, 1]),
        ("score", [2, 3, 0, 1]),
        ("left-right", [0, 3, 2, 1]),
        ("top-bottom", [2, 0, 3, 1]),
    ],
)
def test_masks_are_put_in_order(order_by, expected):
    masks, bboxes = SelectMasks().execute(squares(), order_by, bboxes=[SCORED])
    assert torch.equal(masks, squares()[expected])
    assert [box.get("score") for box in bboxes] == [[0.5, None, 0.9, 0.7][i] for i in expected]
    assert bboxes[expected.index(2)] == SCORED[1]


def test_some_of_them_are_taken():
    taken, bboxes = SelectMasks().execute(squares(), "area", start=1, count=2)
    assert torch.equal(taken, squares()[[3, 2]]) and [box["width"] for box in bboxes] == [7, 3]
    rest, _ = SelectMasks().execute(squares(), "index", start=2)
    assert torch.equal(rest, squares()[2:])


def test_merging_puts_them_together():
    merged, bboxes = SelectMasks().execute(squares(), "area", count=2, merge=True)
    assert torch.equal(merged, (squares()[0] + squares()[3])[None])
    assert bboxes == [{"x": 0, "y": 5, "width": 22, "height": 14}]
    best, boxes = SelectMasks().execute(squares(), "score", count=1, merge=True, bboxes=SCORED)
    assert torch.equal(best, squares()[2:3]) and boxes == [SCORED[1]]


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(("masks", "start"), [(squares(), 9), (torch.zeros(0, 20, 40), 0)])
def test_nothing_left_is_one_empty_mask(masks, start, merge):
    chosen, bboxes = SelectMasks().execute(masks, "area", start=start, merge=merge)
    assert chosen.shape == (1, 20, 40) and not chosen.any() and bboxes == []


def test_scores_must_fit_the_masks():
    with pytest.raises(SAMError, match="needs one score per mask. Masks: 4; boxes: 0"):
        SelectMasks().execute(squares(), "score")
    with pytest.raises(SAMError, match="boxes: 2; boxes with a score: 2"):
        SelectMasks().execute(squares(), "score", bboxes=SCORED[:2])
    with pytest.raises(SAMError, match="order_by is 'size'"):
        SelectMasks().execute(squares(), "size")


def test_a_mask_without_batch_is_one_mask():
    masks, _ = SelectMasks().execute(squares()[0])
    assert masks.shape == (1, 20, 40)


def test_an_example_image_is_the_file_of_that_name():
    node = NODE_CLASS_MAPPINGS["SAMKit_ExampleImage"]
    names, _ = node.INPUT_TYPES()["required"]["image"]
    folder = ROOT / "example_workflows"
    files = {path.name for ending in ("png", "webp") for path in folder.glob(f"*.{ending}")}
    assert names[0] == "samkit_scene.png" and set(names) == files
    for name in names:
        (image,) = node().execute(name)
        with Image.open(folder / name) as file:
            stored = np.stack([np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)])
        assert len(image) == (24 if name == "samkit_film.webp" else 1)
        assert image.shape == stored.shape and (image * 255).round().byte().numpy().tobytes() == stored.tobytes()
    with pytest.raises(SAMError, match=r"image is .*README.md.*: choose one of samkit_scene.png"):
        node().execute("../README.md")

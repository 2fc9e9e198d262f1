"""The pack in a real ComfyUI: loaded beside others, in /object_info, and run by POST /prompt."""

import copy
import json
import shutil
import urllib.error

import numpy as np
import pytest
import torch
from comfyui_server import Unavailable, comfyui, error_of
from conftest import as_image
from demo import PAIR_SEED, SCENE_SEED, SCENE_SIZE
from load_pack import ROOT
from PIL import Image
from real_packs import EXAMPLES as WITH_OTHERS
from reference_sam2 import write_tiny
from samkit import NODE_CLASS_MAPPINGS
from samkit.sam import encode
from samkit.utils.boxes import corners_of, tight_box
from scenes import make_pair, make_scene
from test_grounding import folder as grounding_folder  # noqa: F401  a fixture
from test_grounding import folder_copy
from test_matte import folder as matte_folder  # noqa: F401  a fixture
from world import unavailable

pytestmark = pytest.mark.comfyui

EXAMPLES = ROOT / "example_workflows"
OWN = [path for path in sorted(EXAMPLES.glob("*.json")) if path.stem not in WITH_OTHERS]  # the others: test_real_packs.py
API_EXAMPLES = [path.parent / "api" / path.name for path in OWN]
FOLDER = "ComfyUI-SAM-Kit.v1"  # no space: aiohttp, and so ComfyUI, serves no static files under a prefix that has one
MASKS_EQUAL = 0.9999

# Another pack, with folders of the names that ours has too, whose nodes give a plain segment_anything Sam and a bare array.
NEIGHBOUR = f"""
import numpy as np
from safetensors.torch import load_file
from .nodes import CATEGORY
from .utils import build

class PlainSam:
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{}}}}
    RETURN_TYPES = ("AV_SAM_MODEL",)
    FUNCTION = "load"
    CATEGORY = CATEGORY
    def load(self):
        sam = build()
        sam.load_state_dict(load_file({str(ROOT / "sam/weights/bundled/samkit_demo.safetensors")!r}))
        return (sam.eval(),)

class PlainEmbedding:
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"embedding": ("SAM_EMBEDDING",)}}}}
    RETURN_TYPES = ("SAM_EMBEDDING",)
    FUNCTION = "forget"
    CATEGORY = CATEGORY
    def forget(self, embedding):
        return (np.array(embedding),)

NODE_CLASS_MAPPINGS = {{"PlainSam": PlainSam, "PlainEmbedding": PlainEmbedding}}
"""
NEIGHBOUR_UTILS = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
from reference import random_sam

def build():
    return random_sam(**SHAPE)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the server has: on a busy machine several threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def server(tmp_path_factory, demo_model, grounding_folder, matte_folder):  # noqa: F811
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("custom_nodes/neighbour/nodes", "custom_nodes/neighbour/utils", "input", "models/sams"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / FOLDER).symlink_to(ROOT, target_is_directory=True)
    neighbour = base / "custom_nodes" / "neighbour"
    (neighbour / "__init__.py").write_text(NEIGHBOUR)
    (neighbour / "nodes" / "__init__.py").write_text("CATEGORY = 'neighbour'\n")
    (neighbour / "utils" / "__init__.py").write_text(NEIGHBOUR_UTILS.replace("SHAPE", repr(shape_of(demo_model))))
    for path in EXAMPLES.glob("*.png"):
        shutil.copy(path, base / "input")
    write_tiny(base / "models" / "sams" / "sam2.1_hiera_tiny.pt")
    folder_copy(grounding_folder, base / "models" / "grounding-dino" / "grounding-dino-tiny")
    folder_copy(matte_folder, base / "models" / "vitmatte" / "vitmatte-small-composition-1k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samkit.utils.comfy_folders.PACK", base)  # the server's models are pytest's
        try:
            with comfyui(base) as running:
                yield running
        except Unavailable as reason:
            unavailable("comfyui", reason)


def shape_of(model):
    """A model's shape, as `random_sam` takes it."""
    encoder, layers = model.image_encoder, model.mask_decoder.transformer.layers
    return {
        "embed_dim": encoder.pos_embed.shape[-1],
        "depth": len(encoder.blocks),
        "heads": encoder.blocks[0].attn.num_heads,
        "global_blocks": tuple(i for i, block in enumerate(encoder.blocks) if block.window_size == 0),
        "grid": encoder.pos_embed.shape[1],
        "window": next(block.window_size for block in encoder.blocks if block.window_size),
        "out_chans": encoder.neck[0].out_channels,
        "mlp_dim": layers[0].mlp.lin1.out_features,
    }


@pytest.fixture(scope="module")
def photo():
    return opened("samkit_scene.png")


def opened(name):
    """A bundled photo, uint8 [H, W, 3]."""
    return np.array(Image.open(EXAMPLES / name).convert("RGB"))


def read(path):
    return json.loads(path.read_text())


def evaluate(graph):
    """What the graph's SaveImage nodes should write, computed here: {node: IMAGE}."""
    core = {
        "LoadImage": lambda image: (as_image(opened(image)), torch.zeros(1, 64, 64)),
        "PrimitiveStringMultiline": lambda value: (value,),
        "RepeatImageBatch": lambda image, amount: (image.repeat(amount, 1, 1, 1),),
        "MaskToImage": lambda mask: (mask[..., None].expand(*mask.shape, 3),),
        "ImageFlip": lambda image, flip_method: (image.flip(1 if flip_method.startswith("x") else 2),),
        "ImageFromBatch": lambda image, batch_index, length: (image[batch_index : batch_index + length],),
        "ImageBatch": lambda image1, image2: (torch.cat([image1, image2]),),
        "ImageToMask": lambda image, channel: (image[..., ["red", "green", "blue"].index(channel)],),
        "SaveImage": lambda images, filename_prefix: (images,),
    }
    results = {}

    def result(node):
        if node not in results:
            inputs = {
                name: result(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in graph[node]["inputs"].items()
            }
            kind = graph[node]["class_type"]
            if kind in core:
                results[node] = core[kind](**inputs)
            else:
                made = NODE_CLASS_MAPPINGS[kind]()
                made_here = getattr(made, made.FUNCTION)(**inputs)
                results[node] = made_here["result"] if isinstance(made_here, dict) else made_here
        return results[node]

    return {node: result(node)[0] for node in graph if graph[node]["class_type"] == "SaveImage"}


def pixels(path):
    return np.array(Image.open(path))


def check_saved(server, graph):
    saved = server.saved(graph)
    for node, images in evaluate(graph).items():
        assert len(saved[node]) == len(images)
        for path, image in zip(saved[node], images, strict=True):
            expected = (image.numpy() * 255).astype(np.uint8)
            close = abs(pixels(path).astype(int) - expected) <= 1  # a heat map's last bit is the processor's
            assert close.all(-1).mean() >= MASKS_EQUAL, path
            assert expected.min() < expected.max(), "a photo of one value compares nothing"


def varied(example, **changes):
    """The example with some inputs changed, each wherever a node has an input of that name and form."""
    graph = copy.deepcopy(read(EXAMPLES / "api" / f"{example}.json"))
    for node in graph.values():
        for name, value in changes.items():
            if name in node["inputs"] and not isinstance(node["inputs"][name], list):
                node["inputs"][name] = value
    return graph


def test_it_is_imported_without_a_word(server):
    import_lines = [line for line in server.log.splitlines() if FOLDER in line or "samkit" in line.lower()]
    assert any("seconds" in line for line in import_lines), "the import times list every pack"
    assert not [line for line in import_lines if "FAILED" in line or "rror" in line or "arning" in line]
    assert "Traceback" not in server.log.split("Import times")[0]


def test_object_info_has_the_nodes_with_their_tooltips(server):
    info = server.json("/object_info")
    assert "PlainSam" in info
    for node_id in NODE_CLASS_MAPPINGS:
        entry = info[node_id]
        assert FOLDER in entry["python_module"] and entry["category"] == "Art Venture/Segmentation"
        assert entry["description"] and all(entry["output_tooltips"])
        inputs = {**entry["input"]["required"], **entry["input"].get("optional", {})}
        assert all(options["tooltip"] for _, options in inputs.values())


@pytest.mark.parametrize("path", API_EXAMPLES, ids=lambda path: path.stem)
def test_every_api_example_saves_what_pytest_computes(server, path):
    graph = read(path)
    if path.stem == "track_sam2":  # a model of full size on its first frames
        graph["frames"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["3", 0], "batch_index": 0, "length": 2}}
        graph["4"]["inputs"]["image"] = ["frames", 0]
    if path.stem != "art_venture":
        check_saved(server, graph)


WORDS = {"text": "cat. a dog.", "text_threshold": 0.0, "nms_threshold": 0.7, "max_boxes": 3}


def words_graph(box_threshold):
    """The example of words, and the same by Text to Boxes and SAM Segment; the labels of both to core's Preview as Text."""
    graph = varied("segment_text", **WORDS, box_threshold=box_threshold)
    ((together, inputs),) = [
        (number, node["inputs"]) for number, node in graph.items() if node["class_type"] == "SAMKit_SegmentText"
    ]
    words = {name: inputs[name] for name in (*WORDS, "box_threshold", "grounding_model", "image")}
    segment = {"sam_model": inputs["sam_model"], "image": inputs["image"], "bboxes": ["boxes", 0]}
    apart = {
        "boxes": ("SAMKit_TextToBoxes", words),
        "segment": ("SAMKit_Segment", segment),
        "mask": ("MaskToImage", {"mask": ["segment", 0]}),
        "save": ("SaveImage", {"images": ["mask", 0], "filename_prefix": "samkit/words_apart"}),
        "labels": ("PreviewAny", {"source": [together, 3]}),
        "labels_apart": ("PreviewAny", {"source": ["boxes", 1]}),
    }
    return graph | {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in apart.items()}


def test_words_make_masks_in_one_node_and_in_two(server):
    graph = words_graph(0.0)
    labels = {number: graph.pop(number) for number in ("labels", "labels_apart")}
    check_saved(server, graph)
    texts = server.run(graph | labels)["outputs"]
    assert len(texts["labels"]["text"]) == 3 and texts["labels"] == texts["labels_apart"]


def test_words_that_find_nothing_make_empty_masks(server):
    graph = words_graph(1.0)
    saved = server.saved(graph)
    masks = [node for node in saved if not graph[node]["inputs"]["filename_prefix"].endswith("overlay")]
    assert len(masks) == 2 and not any(pixels(path).any() for node in masks for path in saved[node])


def test_masks_are_saved_as_a_data_set_that_grows(server):
    """Labels and scores of SAM Segment Text come as ComfyUI's lists, and run the node once for all of them."""
    graph = words_graph(0.0)
    (words,) = [number for number, node in graph.items() if node["class_type"] == "SAMKit_SegmentText"]
    graph[words]["inputs"]["individual_masks"] = True
    given = {name: [words, slot] for slot, name in enumerate(("masks", "bboxes", "scores", "labels"))}
    inputs = {"images": graph[words]["inputs"]["image"], "filename_prefix": "samkit/words", "format": "COCO RLE", **given}
    both = {words: graph[words], "data": {"class_type": "SAMKit_SaveMasks", "inputs": inputs}}
    for source in ("sam_model", "grounding_model", "image"):
        number = graph[words]["inputs"][source][0]
        both[number] = graph[number]
    labels = {"class_type": "PreviewAny", "inputs": {"source": [words, 3]}}
    shown = [server.run({**both, "labels": labels, "data": both["data"] | {"inputs": inputs | {"labels": name}}})["outputs"]
             for name in ([words, 3], "all")]  # fmt: skip
    assert [one["data"]["images"][0]["filename"] for one in shown] == ["words_00001_.png", "words_00002_.png"]
    root = server.base / "output" / "samkit" / "words"
    document = read(root / "annotations.json")
    names = {one["id"]: one["name"] for one in document["categories"]}
    saved = [names[one["category_id"]] for one in document["annotations"]]
    assert saved[: len(saved) // 2] == shown[0]["labels"]["text"] and set(saved[len(saved) // 2 :]) == {"all"}
    assert (pixels(root / "images" / "words_00002_.png") == opened("samkit_scene.png")).all()


@pytest.mark.parametrize("form", ["COCO RLE", "CVAT", "Label Studio"])
def test_a_data_set_is_loaded_and_saved_again(server, form):
    """Lists of images, masks, boxes and labels go from node to node as ComfyUI hands them on, also to nodes that take none."""
    root, name = server.base / "output" / "samkit", form.replace(" ", "_").lower()
    everything = {
        "image": {"class_type": "SAMKit_ExampleImage", "inputs": {"image": "samkit_scene.png"}},
        "model": {"class_type": "AV_SAMLoader", "inputs": {"model_name": "samkit_demo.safetensors"}},
        "everything": {"class_type": "SAMKit_AutoMask", "inputs": _everything_inputs(server)},
    }
    made = {"images": ["image", 0], "masks": ["everything", 0]}
    for place, kind in (("direct", "COCO RLE"), ("between", form)):
        where = {"filename_prefix": f"samkit/{name}_{place}", "format": kind}
        everything[place] = {"class_type": "SAMKit_SaveMasks", "inputs": made | where}
    server.run(everything)
    last = {"filename_prefix": f"samkit/{name}_last", "format": "COCO RLE"}
    path = {"path": f"samkit/{name}_between [output]", "individual_masks": True}
    load = {
        "load": {"class_type": "SAMKit_LoadMasks", "inputs": path},
        "save": {
            "class_type": "SAMKit_SaveMasks",
            "inputs": {"images": ["load", 0], "masks": ["load", 1], "bboxes": ["load", 2], **last},
        },
        "image": {"class_type": "MaskToImage", "inputs": {"mask": ["load", 1]}},
        "shown": {"class_type": "SaveImage", "inputs": {"images": ["image", 0], "filename_prefix": "samkit/loaded"}},
    }
    entry = server.run(load)
    direct, last = (read(root / f"{name}_{place}" / "annotations.json")["annotations"] for place in ("direct", "last"))
    assert [one["segmentation"] for one in direct] == [one["segmentation"] for one in last] and len(direct) > 1
    assert len(entry["outputs"]["shown"]["images"]) == len(direct)


def _everything_inputs(server):
    declared = server.json("/object_info/SAMKit_AutoMask")["SAMKit_AutoMask"]["input"]["required"]
    defaults = {name: spec[1]["default"] for name, spec in declared.items() if len(spec) > 1 and "default" in spec[1]}
    return {**defaults, "sam_model": ["model", 0], "image": ["image", 0]}


@pytest.mark.parametrize(
    ("example", "prefix", "object", "least"),
    [
        ("one_click", "samkit/one_click", 4, 0.8),
        ("embed_once", "samkit/embed_once_smallest", 2, 0.8),
        ("embed_once", "samkit/embed_once_largest", 1, 0.65),
        ("refine", "samkit/refine_after", 0, 0.9),
        ("prompt_editor", "samkit/editor", 1, 0.85),
        ("personalize", "samkit/personalize", -1, 0.85),
    ],
)
def test_an_example_finds_what_its_note_says(example, prefix, object, least):
    scene = make_pair(PAIR_SEED)[1] if example == "personalize" else make_scene(SCENE_SEED, SCENE_SIZE)
    graph = read(EXAMPLES / "api" / f"{example}.json")
    (node,) = [number for number, node in graph.items() if node["inputs"].get("filename_prefix") == prefix]
    found, truth = evaluate(graph)[node][0, ..., 0].numpy() > 0, scene.masks[object]
    assert (found & truth).sum() >= least * (found | truth).sum()


def test_the_art_venture_graph_keeps_the_embedding_exactly(server, photo, demo_model):
    graph = read(EXAMPLES / "api" / "art_venture.json")
    kinds = [node["class_type"] for node in graph.values()]
    assert sorted(kinds) == ["AV_SAMLoader", "GetSAMEmbedding", "SAMEmbeddingToImage", "SAMKit_ExampleImage", "SaveImage"]
    check_embedding(server, graph, photo, demo_model)


def test_a_graph_saved_with_art_ventures_nodes_runs_unchanged(server, photo, demo_model):
    """Their nodes know neither `precision` nor `mode`, and may leave `device_mode` out."""
    graph = read(EXAMPLES / "api" / "art_venture.json")
    for node in graph.values():
        for name in ("precision", "mode", "device_mode"):
            node["inputs"].pop(name, None)
    check_embedding(server, graph, photo, demo_model)


def check_embedding(server, graph, photo, model):
    ((path,),) = server.saved(graph).values()
    embedding = encode(model, [photo])
    back = np.frombuffer(pixels(path).tobytes(), "<f4").reshape(embedding.shape)
    np.testing.assert_allclose(back, embedding, atol=1e-4)


def test_the_browser_gets_help_pages_and_templates(server):
    for node_id in NODE_CLASS_MAPPINGS:
        page = ROOT / "web" / "docs" / f"{node_id}.md"
        assert server.request(f"/extensions/{FOLDER}/docs/{page.name}") == page.read_bytes()
    assert sorted(server.json("/workflow_templates")[FOLDER]) == sorted(path.stem for path in EXAMPLES.glob("*.json"))
    for path in (*EXAMPLES.glob("*.json"), *EXAMPLES.glob("*.jpg")):
        assert server.request(f"/api/workflow_templates/{FOLDER}/{path.name}") == path.read_bytes()


def test_another_packs_bare_embedding_works_where_its_image_is_connected(server):
    graph = varied("embed_once", filename_prefix="bare")
    expected = evaluate(graph)
    kinds = {node["class_type"]: number for number, node in graph.items()}
    graph["bare"] = {"class_type": "PlainEmbedding", "inputs": {"embedding": [kinds["GetSAMEmbedding"], 0]}}
    for node in graph.values():
        if node["class_type"] == "SAMKit_PredictMask":
            node["inputs"] |= {"embedding": ["bare", 0], "image": [kinds["SAMKit_ExampleImage"], 0]}
    saved = server.saved(graph)
    for node, images in expected.items():
        assert (pixels(saved[node][0]) == (images[0].numpy() * 255).astype(np.uint8)).mean() >= MASKS_EQUAL
    for node in graph.values():
        if node["class_type"] == "SAMKit_PredictMask":
            node["inputs"].pop("image")
    assert "Connect the image as well" in error_of(server.run(graph))["exception_message"]


@pytest.mark.parametrize("example", ["one_click", "embed_once", "segment_everything"])
def test_a_plain_sam_works_in_every_node(server, example):
    graph = varied(example)
    expected = evaluate(graph)
    for node in graph.values():
        if node["class_type"] == "AV_SAMLoader":
            node.update(class_type="PlainSam", inputs={})
    saved = server.saved(graph)
    for node, images in expected.items():
        assert (pixels(saved[node][0]) == (images[0].numpy() * 255).astype(np.uint8)).mean() >= MASKS_EQUAL


def test_another_click_never_encodes_again(server):
    server.saved(varied("one_click", filename_prefix="first"))
    before = server.log.count("encoding 1 of 1 images")
    moved = varied("one_click", value='[{"x": 300, "y": 250}]', filename_prefix="second")
    server.saved(moved)
    new = server.log.split("encoding ")[1:]
    assert new and new[-1].startswith("0 of 1 images"), new[-1:]
    assert server.log.count("encoding 1 of 1 images") == before


def test_unloading_frees_the_model_and_the_next_run_works(server):
    server.saved(varied("one_click", filename_prefix="before"))
    server.request("/free", {"unload_models": True, "free_memory": True})
    check_saved(server, varied("one_click", filename_prefix="after"))


@pytest.mark.parametrize("mode", ["AUTO", "Prefer GPU", "CPU"])
def test_every_device_mode_runs(server, mode):
    check_saved(server, varied("one_click", device_mode=mode, filename_prefix=mode))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": "[{]"}, "positive_coords is not JSON"),
        ({"value": '[{"x": 9000, "y": 1}]'}, "outside the image of 640x480 pixels"),
    ],
)
def test_an_error_names_the_input_and_what_was_seen(server, change, words):
    said = error_of(server.run(varied("one_click", **change)))
    assert words in said["exception_message"] and said["node_type"] == "SAMKit_Segment"


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_interface_examples_fit_the_server(server, path):
    check_interface_example(path, server.json("/object_info"))


def check_interface_example(path, info):
    """Its nodes, widgets, sockets and links are those that the server declares."""
    workflow = read(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes.values():
        if node["type"] != "MarkdownNote":
            check_widgets(node, info[node["type"]]["input"])
    for link, source, slot, target, place, kind in workflow["links"]:
        output, socket = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in output["links"] and socket["link"] == link and output["type"] == kind
        assert kind in socket["type"].split(",") or socket["type"] == "*"


def check_widgets(node, declared):
    """Every widget is one that the server declares, in the order of its values, and a combo's value is one of its options.

    A workflow of another day may lack optional inputs that came later.
    """
    needed = set(declared["required"])
    declared = {**declared["required"], **declared.get("optional", {})}
    sockets = [socket["name"] for socket in node["inputs"] if "widget" in socket]
    socketless = [name for name, (_, *options) in declared.items() if options and options[0].get("socketless")]
    socketless = [name for name in socketless if name not in sockets]
    names = sorted(sockets + socketless, key=list(declared).index) if socketless else sockets
    if "seed" in names and declared["seed"][1].get("control_after_generate", True):
        names.insert(names.index("seed") + 1, "control_after_generate")
    assert len(names) == len(node["widgets_values"])
    for name, value in zip(names, node["widgets_values"], strict=True):
        if name not in ("upload", "control_after_generate"):
            kind, *options = declared[name]
            choices = kind if isinstance(kind, list) else options[0].get("options") if kind == "COMBO" else None
            assert choices is None or value in choices, (node["type"], name, value)
    assert needed - set(socketless) <= {socket["name"] for socket in node["inputs"]} - {"upload"} <= set(declared)


def test_core_crops_to_the_box_of_a_mask(server):
    if "ImageCropV2" not in server.json("/object_info"):
        pytest.skip("this ComfyUI has no Crop Image that takes a box")
    graph = varied("one_click", filename_prefix="uncropped")
    kinds = {node["class_type"]: number for number, node in graph.items()}
    image = [kinds["SAMKit_ExampleImage"], 0]
    inputs = {"bboxes": [kinds["SAMKit_Segment"], 1], "index": 0, "frame": 0, "image": image}
    graph["boxes"] = {"class_type": "SAMKit_ConvertBoxes", "inputs": inputs}
    graph["crop"] = {"class_type": "ImageCropV2", "inputs": {"image": image, "crop_region": ["boxes", 2]}}
    graph["save"] = {"class_type": "SaveImage", "inputs": {"images": ["crop", 0], "filename_prefix": "cropped"}}
    saved = server.saved(graph)
    (mask,) = (pixels(path)[..., 0] > 127 for number, (path,) in saved.items() if number != "save")
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    inside = opened("samkit_scene.png")[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert np.array_equal(pixels(saved["save"][0])[..., :3], inside)


GIVE_BOXES = ("PrimitiveBoundingBox", "RTDETR_detect", "SAM3_Detect", "MediaPipeFaceLandmarker", "SDPoseFaceBBoxes")
TAKE_BOXES = {
    "SAM3_Detect": "bboxes",
    "DrawBBoxes": "bboxes",
    "CropByBBoxes": "bboxes",
    "SDPoseKeypointExtractor": "bboxes",
    "ImageCropV2": "crop_region",
}


def test_cores_box_sockets_connect_with_ours(server):
    """Also those of nodes whose weights are a download."""
    info = server.json("/object_info")
    if not {*GIVE_BOXES, *TAKE_BOXES} <= set(info):
        pytest.skip("this ComfyUI has not all nodes of 0.25 with boxes")
    given = {kind: info[kind]["output"] for kind in (*GIVE_BOXES, "SAMKit_Segment", "SAMKit_ConvertBoxes")}
    assert all("BOUNDING_BOX" in types for types in given.values())
    taken = TAKE_BOXES | dict.fromkeys(("SAMKit_Segment", "SAMKit_PredictMask", "SAMKit_ConvertBoxes"), "bboxes")
    for kind, name in taken.items():
        inputs = {**info[kind]["input"]["required"], **info[kind]["input"].get("optional", {})}
        assert "BOUNDING_BOX" in inputs[name][0].split(","), kind
    detect = info["SAM3_Detect"]["input"]["optional"]
    for name in ("positive_coords", "negative_coords"):
        assert detect[name][0] == "STRING" == info["SAMKit_PromptEditor"]["output"][0], "points are text there too"


def test_core_draws_and_crops_our_boxes_of_each_frame(server):
    if not {"DrawBBoxes", "CropByBBoxes"} <= set(server.json("/object_info")):
        pytest.skip("this ComfyUI has no nodes that take boxes of each frame")
    graph = varied("one_click", filename_prefix="undrawn")
    number, inputs = node_of(graph, "SAMKit_Segment")
    graph["flipped"] = {"class_type": "ImageFlip", "inputs": {"image": inputs["image"], "flip_method": "y-axis: horizontally"}}
    graph["frames"] = {"class_type": "ImageBatch", "inputs": {"image1": inputs["image"], "image2": ["flipped", 0]}}
    inputs["image"] = ["frames", 0]
    given = {"image": ["frames", 0], "bboxes": [number, 1]}
    size = {"output_width": 64, "output_height": 64, "padding": 0, "keep_aspect": "stretch"}
    graph["draw"] = {"class_type": "DrawBBoxes", "inputs": given}
    graph["crop"] = {"class_type": "CropByBBoxes", "inputs": given | size}
    for name in ("draw", "crop"):
        inputs = {"images": [name, 0], "filename_prefix": f"boxes_{name}"}
        graph[f"save {name}"] = {"class_type": "SaveImage", "inputs": inputs}
    saved = server.saved(graph)
    (masks,) = (paths for kind, paths in saved.items() if not kind.startswith("save "))
    scene, boxes = opened("samkit_scene.png"), []
    for index, frame in enumerate((scene, scene[:, ::-1])):
        box = tight_box(pixels(masks[index])[..., 0] > 127)
        x, y, right, bottom = (int(value) for value in corners_of(box))
        boxes.append((x, y, right, bottom))
        drawn = pixels(saved["save draw"][index])[..., :3]
        red = (drawn == (255, 0, 0)).all(-1) & (frame != (255, 0, 0)).any(-1)
        assert red[bottom, x:right].all() and red[y:bottom, x].all() and not red[:y, :x].any()
        inside = torch.from_numpy(frame[y:bottom, x:right].copy()).movedim(-1, 0)[None].float()
        expected = torch.nn.functional.interpolate(inside, size=(64, 64), mode="area")[0].movedim(0, -1)
        assert abs(pixels(saved["save crop"][index])[..., :3] - expected.numpy()).max() <= 1
    assert boxes[0] != boxes[1]


OLD_NODES = {
    "model": ("SAMModelLoader (segment anything)", {"model_name": "samkit_demo.safetensors"}),
    "points": ("PrimitiveStringMultiline", {"value": '[{"x": 209, "y": 386}]'}),
    "none": ("PrimitiveStringMultiline", {"value": "[]"}),
    "image": ("LoadImage", {"image": "samkit_scene.png"}),
    "box": ("PrimitiveBoundingBox", {"x": 0, "y": 0, "width": 640, "height": 480}),
    "old": (
        "Sam2Segmentation",
        {
            "sam2_model": ["model", 0],
            "image": ["image", 0],
            "keep_model_loaded": True,
            "coordinates_positive": ["points", 0],
            "coordinates_negative": ["none", 0],
            "bboxes": ["box", 0],
            "individual_objects": False,
            "mask": ["image", 1],
        },
    ),
    "shown": ("MaskToImage", {"mask": ["old", 0]}),
    "save": ("SaveImage", {"images": ["shown", 0], "filename_prefix": "replaced"}),
}


def test_a_graph_of_other_packs_nodes_is_replaced_and_runs(server):
    """storyicon's loader and kijai's segmentation, neither of which is installed here."""
    graph = {
        number: {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}} for number, (kind, inputs) in OLD_NODES.items()
    }
    try:
        replacements = server.json("/node_replacements")
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI replaces no nodes")
    assert replacements["Sam2Segmentation"][0]["new_node_id"] == "SAMKit_Segment"
    (path,) = server.saved(graph)["save"]
    assert pixels(path).any()


def node_of(graph, kind):
    """The number and the inputs of the first node of a kind."""
    return next((number, node["inputs"]) for number, node in graph.items() if node["class_type"] == kind)


def saved_mask(source, prefix):
    """Nodes that save a mask."""
    return {
        f"{prefix} image": {"class_type": "MaskToImage", "inputs": {"mask": source}},
        f"{prefix} save": {"class_type": "SaveImage", "inputs": {"images": [f"{prefix} image", 0], "filename_prefix": prefix}},
    }


def test_logits_that_are_connected_later_are_made(server):
    """ComfyUI's cache has the results of a graph in which nothing was connected to them."""
    graph = varied("one_click", filename_prefix="without_logits")
    number, inputs = node_of(graph, "SAMKit_Segment")
    server.saved(graph)
    again = {name: inputs[name] for name in ("sam_model", "image")} | {"logits": [number, 3]}
    graph |= {"again": {"class_type": "SAMKit_Segment", "inputs": again}, **saved_mask(["again", 0], "with_logits")}
    check_saved(server, graph)


def test_an_embedding_that_was_saved_is_loaded_and_prompted(server):
    graph = varied("embed_once", filename_prefix="saved/embedding")
    entry = server.run(graph)
    (name,) = entry["outputs"][node_of(graph, "SAMKit_SaveEmbedding")[0]]["text"]
    _, inputs = node_of(graph, "SAMKit_PredictMask")
    loader, _ = node_of(graph, "AV_SAMLoader")
    click, _ = node_of(graph, "PrimitiveStringMultiline")
    loaded = {
        loader: graph[loader],
        click: graph[click],
        "load": {"class_type": "SAMKit_LoadEmbedding", "inputs": {"name": name}},
        "predict": {"class_type": "SAMKit_PredictMask", "inputs": inputs | {"embedding": ["load", 0]}},
        **saved_mask(["predict", 0], "loaded"),
    }
    check_saved(server, loaded)

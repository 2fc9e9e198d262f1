"""Every node called with whatever may come through its inputs, from its own declaration: refused clearly, or done rightly.

A call is made of its number alone, so that one that fails can be run again: `calls_of(NUMBER, world)`. A new node is called
as soon as it is in NODE_CLASS_MAPPINGS; a new type of socket needs values in `world` below, or it only gets hostile ones.
"""

import json
import math
import random
import socket
import warnings
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import test_grounding
import test_matte
import torch
import transformers
from conftest import as_image, make_image
from load_pack import inputs_of
from reference import content_id, random_sam
from samkit import NODE_CLASS_MAPPINGS
from samkit.nodes.save_masks import SaveMasks
from samkit.sam import (
    PRESETS,
    Concept,
    Retrained,
    SAMError,
    encode,
    load_grounding,
    load_matte,
    load_model,
    save_concept,
    save_embedding,
    with_decoder,
)
from samkit.utils.crops import cut
from test_stream import BatchManager, prompt_of

CALLS, EACH = 2000, 100
SIZES = [(1, 1), (1, 64), (48, 3), (40, 56), (33, 20), (2, 3), (300, 1)]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Small models, and for each type of socket some values that belong there."""
    folder = tmp_path_factory.mktemp("fuzz")
    words = test_grounding.folder.__wrapped__(tmp_path_factory)
    # With the size of its tests, the last level of this small model has one place, of which its norm makes nothing.
    transformers.GroundingDinoImageProcessor(size={"shortest_edge": 72, "longest_edge": 160}).save_pretrained(words)
    small = random_sam(embed_dim=32, depth=2, heads=2, grid=8, window=3, global_blocks=(1,), out_chans=32, mlp_dim=32)
    torch.save(small.state_dict(), folder / "small.pth")
    model = load_model(folder / "small.pth", "fp32")
    weights = {"iou_token.weight": torch.zeros(1, 32)}
    taught = with_decoder(model, Retrained(weights, content_id(model), "small.pth"), folder / "taught")
    embeddings = [encode(model, image(size, count)) for size, count in (((40, 56), 1), ((48, 3), 2))]
    concept = Concept(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), content_id(model), "small.pth")
    box, score = {"x": 3, "y": 4, "width": 20, "height": 20}, {"score": 0.5, "label": "cat"}
    point, shares = '[{"x": 9, "y": 12}]', [[(0.1, 0.2, 0.8, 0.9)]]
    (folder / "output" / "sam_concepts").mkdir(parents=True)
    save_concept(concept, folder / "output" / "sam_concepts" / "cat.safetensors")
    save_embedding(embeddings[0], folder / "output" / "one.safetensors")
    sockets = {
        "AV_SAM_MODEL": [model, small, taught],
        "SAMKIT_GROUNDING_MODEL": [load_grounding(words)],
        "SAMKIT_MATTE_MODEL": [load_matte(test_matte.folder.__wrapped__(tmp_path_factory))],
        "SAM_EMBEDDING": [*embeddings, np.array(embeddings[0])],
        "SAMKIT_CONCEPT": [concept, Concept(torch.zeros(0, 32), content_id(model), "small.pth")],
        "SAMKIT_LOGITS": [torch.zeros(1, 1, 32, 32), torch.full((1, 1, 32, 32), 4.0)],
        "BOUNDING_BOX": [None, [], box, [box], [[{**box, **score}]], (3, 4, 20, 30), np.array([[3.0, 4, 9, 9]]), shares],
        "VHS_BatchManager": [BatchManager()],
        "SAMKIT_CROP": [cut(image((48, 64)), torch.ones(1, 48, 64), 1.5, side, 8)[0] for side in (0, 32)],
        "positive_coords": [point, "[]", '[[{"x": 0.5, "y": 0.25}]]'],
        "negative_coords": ['[{"x": 1, "y": 1}]', "[]"],
        "text": ["cat. dog.", "a cat, red dog"],
        "prompts": [f'{{"marks": {point[:-2]}, "label": 1}}]}}', '{"marks": [{"x": 1, "y": 1, "width": 5, "height": 5}]}'],
        "PROMPT": [None, prompt_of(1), {}, {"1": None}, {"1": {"class_type": "VHS_BatchManager", "inputs": None}}, "text"],
    }  # fmt: skip
    return folder, sockets


@pytest.fixture
def alone(world, monkeypatch):
    """Files are written in a folder of the tests, and no host is found."""

    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", world[0])
    if not (world[0] / "output" / "samkit" / "dataset").is_dir():  # what SAM Load Masks loads by default
        SaveMasks().execute([image((48, 64))], [torch.ones(1, 48, 64)])
    # What is the same a thousand times over takes seconds.
    monkeypatch.setattr("samkit.sam.tasks.personalize._PLACES", 1)
    monkeypatch.setattr("samkit.sam.tasks.mixture._EPOCHS", 5)
    for name, options in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, replace(options, points_per_side=4))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return world


def image(size, count=1, channels=3):
    frames = as_image(*(make_image(*size, seed) for seed in range(count))) if count else torch.zeros(0, *size, 3)
    return frames[..., :1].repeat(1, 1, 1, channels) if channels != 3 else frames


def mask_of(size, count, rng):
    masks = torch.zeros(count, *size)
    if rng.random() < 0.8:
        masks[:, size[0] // 4 : 1 + size[0] // 2, size[1] // 4 : 1 + size[1] // 2] = 1
    return masks


def odd_tensor(value, rng):
    """A tensor as no node should give it, or as few do."""
    made = [
        lambda: value.half(),
        lambda: value.double(),
        lambda: value.bfloat16(),
        lambda: value.clone().requires_grad_(),
        lambda: value * 1.5 - 0.1,
        lambda: value * 255,
        lambda: (value * 255).byte(),
        lambda: value > 0.5,
        lambda: value + math.nan,
        lambda: value.clone().index_fill_(0, torch.arange(len(value)), math.inf),
        lambda: -value,
        lambda: value[:0],
        lambda: value[:, :0],
        lambda: value[None],
        lambda: value[0] if len(value) else value,
        lambda: value.transpose(1, 2),
        lambda: value[:, ::2].flip(1),
        lambda: value.to_sparse(),
        lambda: value.to(torch.complex64),
        lambda: value.to("meta"),
        lambda: value.to(torch.float8_e4m3fn),
        lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.quint8),
        lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(3, 3)]),
        lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(3, 3)], layout=torch.jagged),
        lambda: value.numpy(),
        lambda: value.clone().fill_(1e30),
        lambda: torch.nn.Parameter(value.clone()),
        lambda: torch.tensor(0.5),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on prototypes
        return rng.choice(made)()


def damaged(embedding, rng):
    made = embedding.copy()
    name, value = rng.choice(
        [
            ("maps", None),
            ("maps", {"fine": None}),
            ("maps", {"fine": np.zeros(3)}),
            ("image_keys", ()),
            ("image_keys", None),
            ("original_size", None),
            ("original_size", (0, 5)),
            ("encoder_identity", 5),
            ("input_size", "ab"),
        ]
    )
    setattr(made, name, value)
    others = [
        made,
        embedding.astype(np.complex64),
        embedding[..., :0],
        np.zeros(3),
        np.full((1, 32, 8, 8), math.nan, np.float32),
    ]
    return rng.choice([*others, np.array([[[["a"]]]]), embedding.view(np.ndarray).astype(np.float16), embedding[:0]])


class SEG:
    def __init__(self, bbox, confidence, label):
        self.bbox, self.confidence, self.label = bbox, confidence, label


def hostile(world, rng):
    """A value of no kind in particular, or one that belongs to another socket."""
    sockets = world[1]
    plain = [
        None,
        True,
        False,
        "",
        "text",
        "3",
        "é" * 5000,
        "x" * 5000,
        "\ud800",
        "../../up",
        "\0",
        [],
        [[]],
        {},
        (),
        object(),
        b"x",
    ]
    numbers = [0, -1, 1, 3.0, 0.5, 2.5, -0.0, math.nan, math.inf, -math.inf, 1e300, 10**400, 10**5000, Fraction(1, 3), 1j]
    numbers += [np.float32(1.5), np.int64(2), np.float64("nan"), np.bool_(True), np.array(2), np.array([2]), torch.tensor(2)]
    lists = [["cat"], [3], [None], [math.nan], [0.5, "x"], ["cat", "dog"], {"x": 1}, [{"x": 1}], [{"x": 1, "y": None}]]
    marks = ["[" * 5000, '{"a": 1}', '[{"x": 1e999, "y": 1}]', "null", '[{"x": 3, "y": 4, "object": [1]}]', '{"version": 9}']
    box = {"x": 3, "y": 4, "width": 20, "height": 20}
    scores = [math.nan, "high", [0.5], None, np.array([0.4]), torch.tensor(0.5), 10**400, True]
    boxes = [[[{**box, "score": score}]] for score in scores]
    boxes += [{**box, "label": label} for label in (3, ["cat"], None)] + [{**box, "frame_index": "x"}, {**box, "object": []}]
    boxes += [((48, 48), [SEG((1, 2, 30, 40), score, "cat")]) for score in scores] + [((48, 48), [SEG(None, 1, None)])]
    boxes += [(1, 2, math.nan, 4), torch.zeros(2, 4), [[0.1, 0.1, 0.9, 0.9]], {"x": 0.1, "y": 0.1, "width": 0.5, "height": 0.5}]
    others = [value for values in sockets.values() for value in values] + [torch.nn.Linear(2, 2), torch.nn.Module()]
    picked = rng.choice([plain, numbers, lists, marks, boxes, others, ["tensor"], ["embedding"]])
    value = rng.choice(picked)
    if picked == ["tensor"]:
        return odd_tensor(image(rng.choice(SIZES)) if rng.random() < 0.5 else torch.rand(2, 20, 30), rng)
    return damaged(sockets["SAM_EMBEDDING"][0], rng) if picked == ["embedding"] else value


def proper(name, declared, world, rng, size, count):
    """A value that an input may have by its declaration."""
    kind, *more = declared
    options, sockets = more[0] if more else {}, world[1]
    if isinstance(kind, list):
        return rng.choice(kind) if kind else "none"
    if name in sockets:
        return rng.choice(sockets[name])
    if kind == "INT":  # small: what is large takes long
        low, high = options["min"], options["max"]
        return rng.choice([low, *(number for number in (low + 1, 0, 1, 2) if low <= number <= high)])
    if kind == "FLOAT":
        low, high = options.get("min", 0.0), options.get("max", 1.0)
        return rng.choice([low, high, (low + high) / 2, options.get("default", low), low + (high - low) * rng.random()])
    if kind == "STRING":
        return rng.choice(["name", "fuzz/name", options.get("default", ""), "cat"])
    if kind == "BOOLEAN":
        return rng.random() < 0.5
    if kind == "IMAGE":
        return image(size, count, rng.choice([3, 3, 3, 1, 4]))
    if kind == "MASK":
        return mask_of(size, rng.choice([count, count, 1, 2 * count]), rng)
    known = [sockets[one] for one in kind.split(",") if one in sockets]
    return rng.choice(known[0]) if known else hostile(world, rng)


def call_of(number, world):
    """The node and the inputs of a call."""
    rng = random.Random(number)
    node_id = list(NODE_CLASS_MAPPINGS)[number % len(NODE_CLASS_MAPPINGS)]
    node = NODE_CLASS_MAPPINGS[node_id]
    groups = node.INPUT_TYPES()
    size, count = rng.choice(SIZES), rng.choice([1, 1, 1, 2, 3, 0])
    given = {name: proper(name, one, world, rng, size, count) for name, one in groups.get("required", {}).items()}
    for name, one in groups.get("optional", {}).items():
        if rng.random() < 0.35:
            given[name] = proper(name, one, world, rng, size, count)
    if "masks" in given and isinstance(given.get("masks"), torch.Tensor) and node_id == "SAMKit_Matte":
        given["masks"] = mask_of(size, count, rng)
    hidden = {name: rng.choice(world[1].get(kind, [None])) for name, kind in groups.get("hidden", {}).items()}
    for name in rng.sample(sorted(given), min(len(given), rng.choice([0, 0, 0, 1, 1, 2]))):
        value = given[name]
        is_tensor = isinstance(value, torch.Tensor) and not value.is_nested and value.ndim > 2 and rng.random() < 0.6
        given[name] = odd_tensor(value, rng) if is_tensor else hostile(world, rng)
    if getattr(node, "INPUT_IS_LIST", False) and rng.random() < 0.8:
        given = {name: value if isinstance(value, list) and rng.random() < 0.5 else [value] for name, value in given.items()}
    return node_id, node, {**given, **hidden}


def leaves(value):
    """The tensors and arrays in a value."""
    if isinstance(value, torch.Tensor):
        is_plain = value.layout is torch.strided and not (value.is_meta or value.is_nested or value.is_quantized)
        return [value] if is_plain else []
    if isinstance(value, np.ndarray):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [leaf for item in items for leaf in leaves(item)]


def bits(value):
    """All that a tensor or an array holds."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.requires_grad, bytes(value.detach().contiguous().clone().untyped_storage())
    return value.dtype, value.tobytes()


def numbers_in(value):
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in numbers_in(item)]
    if isinstance(value, Mapping):
        return numbers_in(list(value.values()))
    return [value] if isinstance(value, (int, float, np.number)) else []


def check_outputs(node, given, result):
    outputs = result["result"] if isinstance(result, dict) else result
    assert len(outputs) == len(node.RETURN_TYPES)
    first = {name: value[0] if isinstance(value, list) and len(value) else value for name, value in given.items()}
    declared = inputs_of(node)
    sources = [name for name in ("image", "embedding") if declared.get(name, [""])[0] in ("IMAGE", "SAM_EMBEDDING")]
    frames = [len(first[name]) for name in sources if isinstance(first.get(name), (torch.Tensor, np.ndarray))]
    lists = getattr(node, "OUTPUT_IS_LIST", (False,) * len(outputs))
    named = zip(node.RETURN_TYPES, node.RETURN_NAMES, outputs, lists, strict=True)
    each = [(kind, name, one) for kind, name, output, is_list in named for one in (output if is_list else [output])]
    for kind, name, output in each:
        if kind in ("IMAGE", "MASK"):
            assert isinstance(output, torch.Tensor) and output.dtype == torch.float32 and output.layout is torch.strided, name
            assert output.ndim == (4 if kind == "IMAGE" else 3) and not output.requires_grad and 0 not in output.shape[1:], name
            assert not output.numel() or (output.min() >= 0 and output.max() <= 1), f"{name}: {output.min()} {output.max()}"
            assert not output.isnan().any(), name
            assert all(len(output) >= count for count in frames), f"{name} has {len(output)} frames of {frames}"
        elif kind in ("BOUNDING_BOX", "BBOX", "FLOAT"):
            assert np.isfinite(np.array(numbers_in(output), float)).all(), name
        elif kind == "SAMKIT_LOGITS":
            assert output.isfinite().all() and not output.requires_grad, name


def run(number, world):
    """One call: what it must not do is raised. Returns whether it was accepted."""
    node_id, node, given = call_of(number, world)
    before = [(leaf, bits(leaf)) for leaf in leaves(list(given.values()))]
    try:
        result = getattr(node(), node.FUNCTION)(**given)
    except SAMError as error:
        assert 10 < len(str(error)) < 2000, f"{node_id}: {error}"
        result = None
    for leaf, seen in before:
        assert bits(leaf) == seen, "an input was changed"
    if result is not None:
        check_outputs(node, given, result)
    return result is not None


def run_all(numbers, world):
    """Calls of these numbers, all faults in one message. Returns how many were accepted."""
    faults, accepted = [], 0
    for number in numbers:
        try:
            accepted += run(number, world)
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
            node_id, _, given = call_of(number, world)
            shown = {name: f"{type(value).__name__} {str(value)[:60]!r}" for name, value in given.items()}
            faults.append(f"call {number} of {node_id}: {type(error).__name__}: {str(error)[:300]} {json.dumps(shown)[:900]}")
    assert not faults, "\n".join(faults)
    return accepted


@pytest.mark.parametrize("start", range(0, CALLS, EACH))
def test_no_call_ends_in_anything_but_a_result_or_an_error_of_ours(alone, start):
    accepted = run_all(range(start, start + EACH), alone)
    assert EACH // 10 < accepted < EACH, "some of the calls are right, and some are not"


@pytest.mark.exhaustive
@pytest.mark.parametrize("start", range(CALLS, CALLS + 10_000, EACH))
def test_ten_thousand_more_calls(alone, start):
    run_all(range(start, start + EACH), alone)

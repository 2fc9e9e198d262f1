"""Writes `subgraphs/*.json`, the blueprints of ComfyUI's node library, from the nodes; `--check`: whether they are up to date.

    python tools/make_blueprints.py

A blueprint is a workflow of one node, which is a subgraph. Its file's name is what the library and the search box show.
"""

import json
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from load_pack import ROOT, load_pack

SUBGRAPHS = ROOT / "subgraphs"
CATEGORY = "Conditioning & Preprocessors/Segmentation & Mask"  # where ComfyUI has its own blueprints for masks
ENTRY, EXIT = -10, -20  # ComfyUI's ids of a subgraph's two ends
OPTIONAL, LIST = 7, 6  # LiteGraph's shapes of sockets
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A node of a blueprint: where it lies, and the values that differ from its defaults."""

    kind: str
    position: tuple[int, int]
    size: tuple[int, int]
    values: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Blueprint:
    """What is written as one file.

    Attributes:
        parts: its nodes; their ids are 1, 2, ...
        links: (node, output, node, input).
        inputs: (name, node, input), in the order of the sockets; an input that is a widget is shown on the face.
        outputs: (node, output).
    """

    name: str
    description: str
    aliases: tuple[str, ...]
    size: tuple[int, int]
    parts: tuple[Part, ...]
    links: tuple[tuple[int, str, int, str], ...]
    inputs: tuple[tuple[str, int, str], ...]
    outputs: tuple[tuple[int, str], ...]


_MODEL = "For photographs, select a checkpoint such as sam_vit_b_01ec64.pth: the bundled model is for demonstrations."
_LOADER = Part("AV_SAMLoader", (0, 0), (300, 110), {"model_name": "samkit_demo.safetensors"})
BLUEPRINTS = (
    Blueprint(
        "Select an object (SAM, SAM2)",
        f"Open it and click on an object of the image to get its mask, and the object cut out. {_MODEL}",
        ("segment object", "object", "click to mask", "magic wand", "cutout", "cut out", "remove background"),
        (400, 200),
        (_LOADER, Part("SAMKit_PromptEditor", (360, 0), (480, 620))),
        ((1, "sam_model", 2, "sam_model"),),
        (("image", 2, "image"), ("model_name", 1, "model_name")),
        ((2, "masks"), (2, "cutout"), (2, "bboxes"), (2, "labels")),
    ),
    Blueprint(
        "Cut out by words (SAM, SAM2)",
        f"Finds the objects that a text names, and cuts them out. Grounding DINO is downloaded on first use. {_MODEL}",
        ("text to mask", "mask from text", "grounded sam", "grounding dino", "cutout", "remove background"),
        (400, 320),
        (
            _LOADER,
            Part("SAMKit_GroundingLoader", (0, 180), (300, 80), {"model_name": "grounding-dino-tiny"}),
            Part("SAMKit_SegmentText", (360, 0), (340, 480), {"text": "person."}),
        ),
        ((1, "sam_model", 3, "sam_model"), (2, "grounding_model", 3, "grounding_model")),
        (
            ("image", 3, "image"),
            ("text", 3, "text"),
            ("model_name", 1, "model_name"),
            ("grounding_model", 2, "model_name"),
            ("individual_masks", 3, "individual_masks"),
        ),
        ((3, "cutout"), (3, "masks"), (3, "overlay"), (3, "bboxes"), (3, "labels")),
    ),
    Blueprint(
        "Segment everything (SAM, SAM2)",
        f"Finds the masks of all objects of an image, largest first. {_MODEL}",
        ("segment all", "auto mask", "all objects", "mask generator"),
        (400, 260),
        (_LOADER, Part("SAMKit_AutoMask", (360, 0), (340, 520), {"preset": "balanced"})),
        ((1, "sam_model", 2, "sam_model"),),
        (
            ("image", 2, "image"),
            ("model_name", 1, "model_name"),
            ("preset", 2, "preset"),
            ("max_masks", 2, "max_masks"),
        ),
        ((2, "masks"), (2, "overlay"), (2, "bboxes"), (2, "labels")),
    ),
)


def declared_inputs(kind: str) -> dict[str, tuple[Any, Json, bool]]:
    """Type, options, and whether it is optional, of each input of a node."""
    groups = load_pack().NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
    return {
        name: (declared[0], declared[1], group == "optional")
        for group in ("required", "optional")
        for name, declared in groups.get(group, {}).items()
    }


def is_widget(type_: Any, options: Json) -> bool:
    """Whether the browser makes a widget for an input."""
    return isinstance(type_, list) or (type_ in WIDGETS and not options.get("forceInput"))


def sockets_of(kind: str) -> list[Json]:
    """A node's inputs as the browser saves them: sockets first, then those with a widget."""
    sockets = []
    for name, (type_, options, optional) in declared_inputs(kind).items():
        if not options.get("socketless"):
            socket: Json = {"name": name, "type": "COMBO" if isinstance(type_, list) else type_, "link": None}
            socket |= {"widget": {"name": name}} if is_widget(type_, options) else {}
            sockets.append(socket | ({"shape": OPTIONAL} if optional else {}))
    return sorted(sockets, key=lambda socket: "widget" in socket)


def outputs_of(kind: str) -> list[Json]:
    """A node's outputs as the browser saves them."""
    node = load_pack().NODE_CLASS_MAPPINGS[kind]
    are_lists = getattr(node, "OUTPUT_IS_LIST", (False,) * len(node.RETURN_NAMES))
    rows = zip(node.RETURN_NAMES, node.RETURN_TYPES, are_lists, strict=True)
    return [{"name": name, "type": type_, "links": []} | ({"shape": LIST} if many else {}) for name, type_, many in rows]


def saved_node(number: int, part: Part) -> Json:
    """A node as the browser saves it, without links."""
    values = [
        part.values.get(name, options.get("default", type_[0] if isinstance(type_, list) else None))
        for name, (type_, options, _) in declared_inputs(part.kind).items()
        if is_widget(type_, options)
    ]
    return {
        "id": number,
        "type": part.kind,
        "pos": list(part.position),
        "size": list(part.size),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": sockets_of(part.kind),
        "outputs": outputs_of(part.kind),
        "properties": {"Node name for S&R": part.kind},
        "widgets_values": values,
    }


def _slot(sockets: list[Json], name: str) -> int:
    return [socket["name"] for socket in sockets].index(name)


class _Wiring:
    """The links of a subgraph while it is put together."""

    def __init__(self, nodes: list[Json]) -> None:
        self.nodes = {node["id"]: node for node in nodes}
        self.links: list[Json] = []

    def connect(self, source: tuple[int, int], target: tuple[int, int], type_: str) -> int:
        """A new link; its id."""
        number = len(self.links) + 1
        ends = {"origin_id": source[0], "origin_slot": source[1], "target_id": target[0], "target_slot": target[1]}
        self.links.append({"id": number, **ends, "type": type_})
        if source[0] != ENTRY:
            self.nodes[source[0]]["outputs"][source[1]]["links"].append(number)
        if target[0] != EXIT:
            self.nodes[target[0]]["inputs"][target[1]]["link"] = number
        return number

    def input(self, node: int, name: str) -> tuple[int, Json]:
        """Place and form of a node's input."""
        slot = _slot(self.nodes[node]["inputs"], name)
        return slot, self.nodes[node]["inputs"][slot]

    def output(self, node: int, name: str) -> tuple[int, Json]:
        """Place and form of a node's output."""
        slot = _slot(self.nodes[node]["outputs"], name)
        return slot, self.nodes[node]["outputs"][slot]


def _identity(blueprint: Blueprint, *names: object) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(map(str, ("samkit", blueprint.name, *names)))))


def _ends(blueprint: Blueprint, wiring: _Wiring) -> tuple[list[Json], list[Json]]:
    """The subgraph's inputs and outputs, connected."""
    inputs, outputs = [], []
    for place, (name, node, inner) in enumerate(blueprint.inputs):
        slot, socket = wiring.input(node, inner)
        link = wiring.connect((ENTRY, place), (node, slot), socket["type"])
        end = {"id": _identity(blueprint, "input", name), "name": name, "type": socket["type"], "linkIds": [link]}
        inputs.append(end | {"pos": [-120, 20 + 20 * place]})
    for place, (node, name) in enumerate(blueprint.outputs):
        slot, socket = wiring.output(node, name)
        link = wiring.connect((node, slot), (EXIT, place), socket["type"])
        end = {"id": _identity(blueprint, "output", name), "name": name, "type": socket["type"], "linkIds": [link]}
        outputs.append(end | {"pos": [1020, 20 + 20 * place]})
    return inputs, outputs


def subgraph(blueprint: Blueprint) -> Json:
    """The definition of a blueprint's subgraph."""
    nodes = [saved_node(number, part) for number, part in enumerate(blueprint.parts, 1)]
    wiring = _Wiring(nodes)
    for source, output, target, name in blueprint.links:
        slot, socket = wiring.output(source, output)
        wiring.connect((source, slot), (target, wiring.input(target, name)[0]), socket["type"])
    inputs, outputs = _ends(blueprint, wiring)
    return {
        "id": _identity(blueprint),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(wiring.links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": ENTRY, "bounding": [-240, 0, 140, 40 + 20 * len(inputs)]},
        "outputNode": {"id": EXIT, "bounding": [1000, 0, 120, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": wiring.links,
        "extra": {},
        "category": CATEGORY,
        "description": blueprint.description,
    }


def face(blueprint: Blueprint, definition: Json) -> Json:
    """The one node of a blueprint's workflow."""
    nodes = {node["id"]: node for node in definition["nodes"]}
    inputs, shown = [], []
    for name, node, inner in blueprint.inputs:
        socket = nodes[node]["inputs"][_slot(nodes[node]["inputs"], inner)]
        widget = {"widget": {"name": name}} if "widget" in socket else {}
        shown += [[str(node), inner]] if widget else []
        inputs.append({"name": name, "type": socket["type"], "link": None, **widget})
    return {
        "id": 1,
        "type": definition["id"],
        "pos": [0, 0],
        "size": list(blueprint.size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": end["name"], "type": end["type"], "links": []} for end in definition["outputs"]],
        "properties": {"proxyWidgets": shown},
        "widgets_values": [],
        "title": blueprint.name,
    }


def workflow(blueprint: Blueprint) -> Json:
    """The file of a blueprint."""
    definition = subgraph(blueprint)
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [face(blueprint, definition)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)},
    }


def files() -> dict[Path, str]:
    """What the folder is to hold."""
    return {
        SUBGRAPHS / f"{blueprint.name}.json": json.dumps(workflow(blueprint), ensure_ascii=False, indent=1) + "\n"
        for blueprint in BLUEPRINTS
    }


def main(arguments: list[str]) -> int:
    """0: written, or up to date."""
    if arguments == ["--check"]:
        there = {path: path.read_text(encoding="utf-8") for path in SUBGRAPHS.glob("*")}
        return int(there != files())
    SUBGRAPHS.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

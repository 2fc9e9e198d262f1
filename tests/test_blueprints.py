"""The blueprints in ComfyUI's node library: of today's nodes, connected by types that fit, complete."""

import json
from collections import Counter

import make_blueprints
import pytest
from load_pack import ROOT, inputs_of
from samkit import NODE_CLASS_MAPPINGS
from test_words import faults

FILES = sorted((ROOT / "subgraphs").glob("*.json"))


def test_the_blueprints_are_these():
    assert [path.stem.split(" (")[0] for path in FILES] == ["Cut out by words", "Segment everything", "Select an object"]


def test_they_are_what_the_script_writes():
    assert make_blueprints.main(["--check"]) == 0, "run python tools/make_blueprints.py"


def read(path):
    """The node of a blueprint's workflow, and its subgraph."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    (node,), (subgraph,) = workflow["nodes"], workflow["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"] and node["title"] == subgraph["name"] == path.stem
    return node, subgraph


def declared(kind):
    return inputs_of(NODE_CLASS_MAPPINGS[kind])


def fits(given, taken):
    return bool(set(given.split(",")) & set(taken.split(",")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_links_connect_sockets_of_the_same_type(path):
    _, subgraph = read(path)
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    assert subgraph["links"] and max(Counter(link["id"] for link in subgraph["links"]).values()) == 1
    for link in subgraph["links"]:
        source, slot, target, place = (link[key] for key in ("origin_id", "origin_slot", "target_id", "target_slot"))
        output = subgraph["inputs"][slot] if source == -10 else nodes[source]["outputs"][slot]
        socket = subgraph["outputs"][place] if target == -20 else nodes[target]["inputs"][place]
        assert link["id"] in output.get("links", output.get("linkIds"))
        assert link["id"] in (socket["linkIds"] if target == -20 else [socket["link"]])
        assert fits(output["type"], socket["type"]) and fits(link["type"], socket["type"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nodes_are_those_of_the_pack_and_have_what_they_need(path):
    _, subgraph = read(path)
    for node in subgraph["nodes"]:
        kind, inputs = NODE_CLASS_MAPPINGS[node["type"]], declared(node["type"])
        sockets = {socket["name"]: socket for socket in node["inputs"]}
        assert set(sockets) == {name for name, (_, options) in inputs.items() if not options.get("socketless")}
        needed = [name for name in kind.INPUT_TYPES()["required"] if name in sockets and "widget" not in sockets[name]]
        assert all(sockets[name]["link"] is not None for name in needed)
        assert [output["name"] for output in node["outputs"]] == list(kind.RETURN_NAMES)
        assert [output["type"] for output in node["outputs"]] == list(kind.RETURN_TYPES)
        widgets = [name for name in inputs if name not in sockets or "widget" in sockets[name]]
        for name, value in zip(widgets, node["widgets_values"], strict=True):
            type_ = inputs[name][0]
            assert value in type_ if isinstance(type_, list) else isinstance(value, (int, float, str)), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_face_shows_what_the_subgraph_has(path):
    node, subgraph = read(path)
    for side in ("inputs", "outputs"):
        shown = [(socket["name"], socket["type"]) for socket in node[side]]
        assert shown == [(end["name"], end["type"]) for end in subgraph[side]]
    names = [end["name"] for end in (*subgraph["inputs"], *subgraph["outputs"])]
    assert "image" in names and "masks" in names and len({end["id"] for end in subgraph["inputs"]}) == len(subgraph["inputs"])
    inner = {str(one["id"]): declared(one["type"]) for one in subgraph["nodes"]}
    assert all(widget in inner[number] for number, widget in node["properties"]["proxyWidgets"])
    assert not faults(subgraph["description"]) and not faults(subgraph["name"])

/** Where image and model come from, on graphs in their API form. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { fileOf, hasModel, imageGraph, imageOf, imageSignature, modelOf, nameOf, only, usesMasks } from "../../web/editor/source.js";

const EDITOR = "9";
const node = (kind, inputs = {}) => ({ class_type: kind, inputs });
const load = (image) => node("LoadImage", { image });
const editor = (image, model) =>
  node("SAMKit_PromptEditor", { prompts: "{}", ...(image && { image }), ...(model && { sam_model: model }) });
const loader = (name = "sam_vit_b.pth", more = {}) => node("AV_SAMLoader", { model_name: name, ...more });
const file = (filename, subfolder = "", type = "input") => ({ filename, subfolder, type });

// --- masks without a model

for (const [output, isUsed] of [[0, false], [1, false], [2, false], [3, true], [4, false], [5, false], [6, true], [7, true]]) {
  test(`output ${output} is ${isUsed ? "" : "not "}made by the model`, () => {
    assert.equal(usesMasks({ 9: editor(["1", 0]), 10: node("SaveImage", { images: ["9", output] }) }, EDITOR), isUsed);
  });
}

test("another node's masks are not the editor's", () => {
  assert.equal(usesMasks({ 8: editor(), 9: editor(["1", 0]), 10: node("MaskToImage", { mask: ["8", 3] }) }, EDITOR), false);
});

test("a model is connected, whatever node it comes from", () => {
  assert.equal(hasModel({ 2: node("Anything"), 9: editor(null, ["2", 0]) }, EDITOR), true);
  assert.equal(hasModel({ 9: editor() }, EDITOR), false);
});

// --- ComfyUI's names of files

test("a file's name has nothing but what ComfyUI's routes take", () => {
  const said = { filename: "a.png", subfolder: "b", type: "temp", metadata: { width: 8 }, id: "x", preview_id: "y" };
  assert.deepEqual(nameOf(said), file("a.png", "b", "temp"));
  assert.deepEqual(nameOf({ filename: "a.png", type: "temp" }), file("a.png", "", "temp"));
});

for (const [name, expected] of [
  ["a.png", file("a.png")],
  ["sub/a.png", file("a.png", "sub")],
  ["sub/deep/a.png", file("a.png", "sub/deep")],
  ["sub\\deep\\a.png", file("a.png", "sub/deep")],
  ["a.png [temp]", file("a.png", "", "temp")],
  ["a.png [output]", file("a.png", "", "output")],
  ["a.png [input]", file("a.png")],
  ["clipspace/mask 1.png [temp]", file("mask 1.png", "clipspace", "temp")],
  ["a [copy].png", file("a [copy].png")],
  ["a.png [other]", file("a.png [other]")],
  ["two words (1).png", file("two words (1).png")],
  ["", null],
  ["sub/", null],
]) {
  test(`the file ${JSON.stringify(name)}`, () => assert.deepEqual(fileOf(name), expected));
}

test("a name without a folder has the loader's", () => {
  assert.deepEqual(fileOf("a.png", "output"), file("a.png", "", "output"));
  assert.deepEqual(fileOf("a.png [input]", "output"), file("a.png"));
});

// --- the image

test("the image of a LoadImage", () => {
  assert.deepEqual(imageOf({ 1: load("sub/a.png [temp]"), 9: editor(["1", 0]) }, EDITOR), file("a.png", "sub", "temp"));
});

test("an example image of the pack", () => {
  const graph = { 1: node("SAMKit_ExampleImage", { image: "samkit_scene.png" }), 9: editor(["1", 0]) };
  assert.deepEqual(imageOf(graph, "9"), { filename: "samkit_scene.png", subfolder: "", type: "example" });
});

test("the image of a LoadImageOutput lies in the output folder", () => {
  const graph = { 1: node("LoadImageOutput", { image: "a.png" }), 9: editor(["1", 0]) };
  assert.deepEqual(imageOf(graph, EDITOR), file("a.png", "", "output"));
});

test("a link may name its node by number", () => {
  assert.deepEqual(imageOf({ 1: load("a.png"), 9: editor([1, 0]) }, 9), file("a.png"));
});

test("the image comes through any number of editors", () => {
  const graph = { 1: load("a.png"), 2: editor(["1", 0]), 3: editor(["2", 4]), 9: editor(["3", 4]) };
  assert.deepEqual(imageOf(graph, EDITOR), file("a.png"));
});

test("the image comes out of a subgraph, and into one", () => {
  const graph = { "5:3": load("a.png"), "7:2:1": editor(["5:3", 0]) };
  assert.deepEqual(imageOf(graph, "7:2:1"), file("a.png"));
});

test("a node that is not known may change the image", () => {
  const graph = { 1: load("a.png"), 2: node("ImageInvert", { image: ["1", 0] }), 9: editor(["2", 0]) };
  assert.equal(imageOf(graph, EDITOR), null);
});

for (const [what, graph] of Object.entries({
  "nothing connected": { 9: editor() },
  "a link to a node that is not there": { 9: editor(["1", 0]) },
  "an editor that is not there": {},
  "a name that is itself connected": { 1: node("LoadImage", { image: ["2", 0] }), 2: node("String"), 9: editor(["1", 0]) },
  "a name that is empty": { 1: load(""), 9: editor(["1", 0]) },
  "an editor with nothing connected": { 1: editor(), 9: editor(["1", 4]) },
})) {
  test(`no image: ${what}`, () => assert.equal(imageOf(graph, EDITOR), null));
}

test("a circle has no image, and ends", () => {
  assert.equal(imageOf({ 1: editor(["9", 4]), 9: editor(["1", 4]) }, EDITOR), null);
});

// --- the model

test("no model is connected", () => {
  assert.equal(modelOf({ 9: editor() }, EDITOR), null);
  assert.equal(modelOf({ 9: editor(null, ["1", 0]) }, EDITOR), null);
});

test("the loader's model has the server's name", () => {
  const graph = { 1: loader("a.pth", { precision: "fp16" }), 9: editor(null, ["1", 0]) };
  assert.deepEqual(modelOf(graph, EDITOR).name, { model_name: "a.pth", precision: "fp16" });
});

test("a loader without a precision has auto", () => {
  const graph = { 1: loader("a.pth"), 9: editor(null, ["1", 0]) };
  assert.deepEqual(modelOf(graph, EDITOR).name, { model_name: "a.pth", precision: "auto" });
});

test("an adapter's base goes with its name, where one is chosen", () => {
  for (const [base, more] of [["base.pth", { base_model: "base.pth" }], ["auto", {}]]) {
    const graph = { 1: loader("t/adapter_model.safetensors", { base_model: base }), 9: editor(null, ["1", 0]) };
    assert.deepEqual(modelOf(graph, EDITOR).name, { model_name: "t/adapter_model.safetensors", precision: "auto", ...more });
  }
});

for (const [what, source] of Object.entries({
  "another node's": node("OtherSAMLoader", { model_name: "a.pth" }),
  "a connected name": node("AV_SAMLoader", { model_name: ["2", 0] }),
  "a connected precision": node("AV_SAMLoader", { model_name: "a.pth", precision: ["2", 0] }),
  "a connected base": node("AV_SAMLoader", { model_name: "a.pth", base_model: ["2", 0] }),
})) {
  test(`a model without a name that the server knows: ${what}`, () => {
    const found = modelOf({ 1: source, 2: node("String"), 9: editor(null, ["1", 0]) }, EDITOR);
    assert.equal(found.name, null);
    assert.ok(found.signature);
  });
}

const WIRED = {
  1: node("OtherLoader", { file: "a.pth", settings: ["2", 0] }),
  2: node("Settings", { tiles: 4 }),
  3: load("a.png"),
  9: editor(["3", 0], ["1", 0]),
};
const signature = (graph) => modelOf(graph, EDITOR).signature;

test("the signature is the same for the same graph", () => {
  assert.equal(signature(structuredClone(WIRED)), signature(WIRED));
});

for (const [what, change] of Object.entries({
  "the loader's widget": { 1: node("OtherLoader", { file: "b.pth", settings: ["2", 0] }) },
  "a widget above the loader": { 2: node("Settings", { tiles: 5 }) },
  "the kind of node": { 1: node("NewLoader", { file: "a.pth", settings: ["2", 0] }) },
  "the loader's output": { 9: editor(["3", 0], ["1", 1]) },
  "an output above the loader": { 1: node("OtherLoader", { file: "a.pth", settings: ["2", 1] }) },
})) {
  test(`the signature tells of a change of ${what}`, () => {
    assert.notEqual(signature({ ...WIRED, ...change }), signature(WIRED));
  });
}

for (const [what, change] of Object.entries({
  "the image": { 3: load("b.png") },
  "the prompts": { 9: { ...WIRED[9], inputs: { ...WIRED[9].inputs, prompts: '{"marks": []}' } } },
  "a title": { 1: { ...WIRED[1], _meta: { title: "Mine" } } },
  "a node beside it": { 4: node("Settings", { tiles: 9 }) },
})) {
  test(`the signature does not tell of a change of ${what}`, () => {
    assert.equal(signature({ ...WIRED, ...change }), signature(WIRED));
  });
}

// --- parts of a graph

test("only what a node needs, itself included", () => {
  assert.deepEqual(Object.keys(only(WIRED, "1")), ["1", "2"]);
  assert.deepEqual(only(WIRED, "2"), { 2: WIRED[2] });
});

test("what two nodes need is there once", () => {
  const [left, right] = ["A", "B"].map((kind) => node(kind, { x: ["1", 0] }));
  const graph = { 1: load("a.png"), 2: left, 3: right, 4: node("C", { a: ["2", 0], b: ["3", 0] }) };
  assert.deepEqual(only(graph, 4), graph);
});

test("a circle ends", () => {
  const graph = { 1: node("A", { x: ["2", 0] }), 2: node("B", { x: ["1", 0] }) };
  assert.deepEqual(only(graph, "1"), graph);
});

test("links to nodes that are not there, values and lists are no nodes", () => {
  const graph = { 1: node("A", { x: ["7", 0], list: [], number: 2, text: "2", none: null }), 2: node("B") };
  assert.deepEqual(only(graph, "1"), { 1: graph[1] });
});

test("of a node that is not there is nothing", () => assert.deepEqual(only(WIRED, "77"), {}));

test("nodes of subgraphs are found by their ids", () => {
  const graph = { "5:3": load("a.png"), "5:4": node("A", { x: ["5:3", 0] }), 3: node("B") };
  assert.deepEqual(Object.keys(only(graph, "5:4")).sort(), ["5:3", "5:4"]);
});

test("the image's graph has what is above image, and the editor without a model", () => {
  const graph = imageGraph({ ...WIRED, 10: node("Preview", { images: ["9", 3] }) }, EDITOR);
  assert.deepEqual(graph, { 3: WIRED[3], 9: editor(["3", 0]) });
});

test("what makes both image and model stays in the image's graph", () => {
  const graph = { 1: node("Both"), 9: editor(["1", 0], ["1", 1]) };
  assert.deepEqual(imageGraph(graph, EDITOR), { 1: graph[1], 9: editor(["1", 0]) });
});

test("the graph that was given stays as it was", () => {
  const graph = { 1: loader(), 3: load("a.png"), 9: editor(["3", 0], ["1", 0]) };
  const before = structuredClone(graph);
  imageGraph(graph, EDITOR);
  assert.deepEqual(graph, before);
});

// --- whether an image is that of the graph

const MADE = { 1: load("a.png"), 2: node("ImageBlur", { image: ["1", 0], radius: 3 }), 8: editor(["2", 0]), 9: editor(["8", 4], ["5", 0]) };

test("an image's signature is short, and there is none where nothing is connected", () => {
  assert.ok(imageSignature(MADE, EDITOR).length < 16);
  assert.equal(imageSignature({ 9: editor() }, EDITOR), null);
});

for (const [what, change] of Object.entries({
  "a widget above it": { 2: node("ImageBlur", { image: ["1", 0], radius: 4 }) },
  "the file": { 1: load("b.png") },
  "the output": { 9: editor(["8", 3]) },
})) {
  test(`an image is another one after a change of ${what}`, () => {
    assert.notEqual(imageSignature({ ...MADE, ...change }, EDITOR), imageSignature(MADE, EDITOR));
  });
}

for (const [what, change] of Object.entries({
  "a title": { 2: { ...MADE[2], _meta: { title: "Mine" } } },
  "the marks of an editor that it passes": { 8: { ...MADE[8], inputs: { ...MADE[8].inputs, prompts: '{"version": 2}' } } },
  "the editor's own marks": { 9: { ...MADE[9], inputs: { ...MADE[9].inputs, prompts: '{"version": 2}' } } },
  "the model": { 9: editor(["8", 4], ["6", 0]) },
})) {
  test(`an image stays the same with ${what} changed`, () => {
    assert.equal(imageSignature({ ...MADE, ...change }, EDITOR), imageSignature(MADE, EDITOR));
  });
}

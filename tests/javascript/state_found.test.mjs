/** Objects that were found: by words, with boxes; by a segment, with paint. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { test } from "node:test";
import { pollFor } from "../../web/editor/client.js";
import { groundingOf, imageGraph, imageSignature } from "../../web/editor/source.js";
import { EditorState } from "../../web/editor/state.js";

const BOX = { x: 1, y: 2, width: 30, height: 40 };
const objectsIn = (state) => JSON.parse(state.text).objects;

function made() {
  const state = new EditorState();
  state.image = { width: 100, height: 80 };
  return state;
}

test("words become objects with their labels, as one step", () => {
  const state = made();
  assert.equal(state.addObjects([{ name: "cat", marks: [BOX] }, { name: "dog", marks: [{ ...BOX, x: 50.123 }] }]), true);
  assert.deepEqual(objectsIn(state).map(({ name, marks }) => [name, marks]), [["cat", [BOX]], ["dog", [{ ...BOX, x: 50.12 }]]]);
  assert.deepEqual([state.current, state.selected, state.size], [1, null, { width: 100, height: 80 }]);
  state.undo();
  assert.equal(state.text, "{}");
});

test("they come after the objects that are there, and an empty one at the end is the first of them", () => {
  const state = made();
  state.add({ x: 5, y: 6, label: 1 });
  state.newObject();
  state.setObject(1, { colour: "#123456" });
  assert.equal(state.nextColour, "#123456");
  state.addObjects([{ name: "cat", marks: [BOX] }]);
  assert.deepEqual(objectsIn(state).map(({ name, colour }) => [name, colour]), [["Object 1", "#1e90ff"], ["cat", "#123456"]]);
  const next = state.nextColour;
  state.addObjects([{ marks: [BOX] }]);
  assert.deepEqual([state.objects[2].name, state.objects[2].colour], ["Object 3", next]);
});

test("a locked object is left alone", () => {
  const state = made();
  state.setObject(0, { locked: true });
  state.addObjects([{ name: "cat", marks: [BOX] }]);
  assert.deepEqual(state.objects.map(({ name }) => name), ["Object 1", "cat"]);
});

test("of a batch they are those of the frame that is shown", () => {
  const state = made();
  state.setFrames(3);
  state.showFrame(2);
  state.addObjects([{ name: "cat", marks: [BOX] }]);
  assert.deepEqual(objectsIn(state)[0].marks, [{ ...BOX, frame: 2 }]);
});

test("there are no more than the node reads", () => {
  const state = made();
  const many = Array.from({ length: 300 }, () => ({ marks: [BOX] }));
  assert.equal(state.addObjects(many), false);
  assert.equal(state.objects.length, 256);
  assert.equal(state.addObjects(many.slice(0, 1)), false);
  assert.equal(state.objects.length, 256);
});

test("nothing found is no step", () => {
  const state = made();
  state.addObjects([]);
  assert.equal(state.canUndo, false);
});

const refusal = (status) => Object.assign(new Error(`refused with ${status}`), { status });

test("a request is posted until it is done, and says how far it is", async () => {
  const answers = [{ progress: 0 }, { progress: 0.5 }, { boxes: [] }];
  const said = [];
  assert.deepEqual(await pollFor(async () => answers.shift(), () => true, (progress) => said.push(progress)), { boxes: [] });
  assert.deepEqual(said, [0, 0.5]);
});

test("it ends where it is not wanted, or was cancelled, and what went wrong is said", async () => {
  let wanted = true;
  const post = async () => { wanted = false; return { boxes: [] }; };
  assert.equal(await pollFor(post, () => wanted, () => {}), null);
  assert.equal(await pollFor(async () => { throw refusal(409); }, () => true, () => {}), null);
  await assert.rejects(pollFor(async () => { throw refusal(404); }, () => true, () => {}), /refused with 404/);
});

test("a busy server is tried again", async () => {
  let tries = 0;
  const said = [];
  const post = async () => {
    tries += 1;
    if (tries < 2) throw refusal(503);
    return { boxes: [] };
  };
  assert.deepEqual(await pollFor(post, () => true, (progress) => said.push(progress), async () => {}), { boxes: [] });
  assert.deepEqual([tries, said], [2, [null]]);
});

const GRAPH = {
  1: { class_type: "LoadImage", inputs: { image: "a.png" } },
  2: { class_type: "SAMKit_GroundingLoader", inputs: { model_name: "grounding-dino-tiny" } },
  3: { class_type: "SAMKit_PromptEditor", inputs: { image: ["1", 0], grounding_model: ["2", 0], prompts: "{}" } },
};

test("the Grounding DINO that is connected is known by its loader", () => {
  assert.equal(groundingOf(GRAPH, "3"), "grounding-dino-tiny");
  assert.equal(groundingOf({ ...GRAPH, 2: { class_type: "Other", inputs: {} } }, "3"), "");
  assert.equal(groundingOf({ ...GRAPH, 2: { class_type: "SAMKit_GroundingLoader", inputs: { model_name: ["9", 0] } } }, "3"), "");
  assert.equal(groundingOf({ ...GRAPH, 3: { class_type: "SAMKit_PromptEditor", inputs: {} } }, "3"), null);
});

test("the image does not need it", () => {
  assert.deepEqual(Object.keys(imageGraph(GRAPH, "3")), ["1", "3"]);
  const chained = (name) => ({ ...GRAPH, 2: { class_type: "SAMKit_GroundingLoader", inputs: { model_name: name } }, 4: { class_type: "SAMKit_PromptEditor", inputs: { image: ["3", 4] } } });
  const strip = (graph) => imageSignature(graph, "4");
  assert.equal(strip({ ...chained("a"), 2: undefined }), strip({ ...chained("b"), 2: undefined }));
});

/** Everything under the pointer: begun, ended, and clicked on. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { element, settled } from "./fake_dom.mjs";
import { Everything } from "../../web/editor/everything.js";
import { VERSION } from "../../web/editor/text.js";
import { encode } from "../../web/editor/patches.js";
import { EditorState } from "../../web/editor/state.js";

const SQUARE = { x: 10, y: 10, width: 20, height: 20, kinds: new Uint8Array(400).fill(1) };
const SEGMENT = { ...encode(SQUARE), score: 0.9, area: 400 };
const FOUND = { width: 100, height: 80, segments: [SEGMENT] };

let editor, asked, everything;
beforeEach(() => {
  asked = [];
  const stage = element();
  const state = new EditorState();
  state.image = { width: 100, height: 80 };
  editor = {
    stage,
    state,
    foot: element(),
    canvas: element("canvas"),
    image: { width: 100, height: 80 },
    get shownImage() { return editor.subject.image; },
    subject: { image: { filename: "a.png" }, model: { model_name: "m" } },
    brush: { isActive: false },
    alike: { end() {} },
    gestures: { active: false, place: ({ x, y }) => ({ x, y }) },
    panning: false,
    view: { toImage: (place) => place },
    cancelled: [],
    complaints: [],
    hover: () => {},
    addObjects: (objects) => state.addObjects(objects),
    host: { complain: (text) => editor.complaints.push(text) },
    exact: { ask: (question) => new Promise((answer, fail) => asked.push({ question, answer, fail })) },
    client: {
      segments: (subject) => new Promise((answer, fail) => asked.push({ subject, answer, fail })),
      cancel: async (work) => { editor.cancelled.push(work); },
    },
  };
  everything = new Everything(editor);
  everything.attach(new AbortController().signal);
});

const press = (x, y, more = {}) => {
  const seen = [];
  const event = { x, y, button: 0, buttons: 0, preventDefault: () => seen.push("p"), stopImmediatePropagation: () => seen.push("s"), ...more };
  editor.stage.send("pointermove", event);
  editor.stage.send("pointerdown", event);
  return seen.includes("p");
};

async function ready() {
  everything.toggle();
  asked.at(-1).answer(FOUND);
  await settled();
}

test("a click on a segment makes it an object, and the next click selects that object", async () => {
  await ready();
  assert.equal(everything.state, "ready");
  assert.equal(press(15, 15), true);
  assert.deepEqual(editor.state.objects[0].paint, [{ x: 10, y: 10, width: 20, height: 20, runs: SEGMENT.runs }]);
  editor.state.newObject();
  press(15, 15);
  assert.deepEqual([editor.state.objects.length, editor.state.current], [2, 0]);
});

test("the segment under the pointer is known, and there is none beside it", async () => {
  await ready();
  press(15, 15);
  assert.equal(everything.under, 0);
  press(50, 50);
  assert.equal(everything.under, null);
});

test("where there is no segment, a click asks for SAM's mask of that point, and beside the image for nothing", async () => {
  await ready();
  assert.equal(press(120, 15), true);
  assert.equal(press(50, 60), true);
  await settled();
  const { image, model } = editor.subject;
  const prompts = { version: VERSION, objects: [{ candidate: "best", marks: [{ x: 50, y: 60, label: 1 }] }] };
  assert.deepEqual(asked.slice(1).map(({ question }) => question), [{ image, model, prompts, object: 0, form: "mask" }]);
  asked[1].fail(new Error("the server is busy"));
  await settled();
  assert.deepEqual([editor.complaints, everything.state], [["the server is busy"], "ready"]);
});

test("with a key held, a brush or another button the click is the editor's own", async () => {
  await ready();
  for (const more of [{ ctrlKey: true }, { shiftKey: true }, { altKey: true }, { button: 2 }]) assert.equal(press(15, 15, more), false);
  editor.brush.isActive = true;
  assert.equal(press(15, 15), false);
  assert.equal(editor.state.objects[0].paint, undefined);
});

test("what is found is asked once for an image and a model", async () => {
  await ready();
  everything.toggle();
  assert.equal(everything.state, "off");
  everything.toggle();
  await settled();
  assert.deepEqual([everything.state, asked.length], ["ready", 1]);
  editor.subject = { image: { filename: "b.png" }, model: { model_name: "m" } };
  everything.update();
  assert.equal(everything.state, "off");
});

test("ended while it works, its own work is cancelled and a late answer is dropped", async () => {
  everything.toggle();
  assert.equal(everything.state, "working");
  everything.toggle();
  assert.deepEqual([everything.state, editor.cancelled], ["off", ["segments"]]);
  asked[0].answer(FOUND);
  await settled();
  assert.equal(everything.state, "off");
});

test("an error is said, and nothing is cancelled for it", async () => {
  everything.toggle();
  asked[0].fail(new Error("there is no such model"));
  await settled();
  assert.deepEqual([everything.state, editor.complaints, editor.cancelled], ["off", ["there is no such model"], []]);
});

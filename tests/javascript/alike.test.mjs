/** Find all like this: begun, taken, left out, undone, ended, and on another image of the batch. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { element, settled } from "./fake_dom.mjs";
import { Alike } from "../../web/editor/alike.js";
import { encode } from "../../web/editor/patches.js";
import { EditorState } from "../../web/editor/state.js";

const [A, B] = [{ filename: "a.png" }, { filename: "b.png" }];
const square = (x, alike) => ({ ...encode({ x, y: 10, width: 8, height: 8, kinds: new Uint8Array(64).fill(1) }), score: 0.9, area: 64, alike });
const FOUND = { width: 100, height: 80, segments: [square(10, 0.95), square(30, 0.94), square(50, 0.93), square(70, 0.2)] };

let editor, asked, alike, shown;
beforeEach(() => {
  asked = [];
  shown = A;
  const stage = element();
  const state = new EditorState({ onChange: () => alike?.update() });
  alike = null;
  editor = {
    stage,
    state,
    foot: element(),
    film: { element: element() },
    canvas: element("canvas"),
    images: [A],
    get text() { return state.text; },
    get image() { return { width: 100, height: 80 }; },
    get shownImage() { return shown; },
    get subject() { return shown && { image: shown, model: { model_name: editor.model } }; },
    model: "m",
    everything: { ended: 0, end() { this.ended += 1; } },
    brush: { isActive: false },
    gestures: { active: false, place: ({ x, y }) => ({ x, y }) },
    panning: false,
    negative: false,
    view: { toImage: (place) => place },
    cancelled: [],
    complaints: [],
    hover: () => {},
    redraw: () => {},
    changed: () => alike.update(),
    addObjects: (objects) => state.addObjects(objects),
    host: { complain: (text) => editor.complaints.push(text) },
    client: {
      alike: (question) => new Promise((answer, fail) => asked.push({ question, answer, fail })),
      cancel: async (work) => { editor.cancelled.push(work); },
    },
  };
  state.image = { width: 100, height: 80 };
  state.add({ x: 80, y: 60, label: 1 });
  alike = new Alike(editor);
  alike.attach(new AbortController().signal);
});

async function ready(found = FOUND) {
  alike.toggle();
  asked.at(-1).answer(found);
  await settled();
}

const press = (x, y, more = {}) => {
  const event = { x, y, button: 0, buttons: 0, preventDefault: () => {}, stopImmediatePropagation: () => {}, ...more };
  editor.stage.send("pointermove", event);
  editor.stage.send("pointerdown", event);
};
const key = (name, isShifted = false) => alike.keyed(name, isShifted)?.();
const names = () => editor.state.objects.map(({ name }) => name);
const painted = () => editor.state.objects.flatMap(({ paint }) => paint ?? []).map(({ x }) => x);

test("its button is below the image", () => {
  const [group] = editor.foot.children;
  assert.deepEqual(group.children, [alike.button]);
});

test("what is like the selected object is asked for once, and offered", async () => {
  assert.equal(alike.button.disabled, false);
  await ready();
  const { image, model, like } = asked[0].question;
  assert.deepEqual([image, model, like.image, like.object], [A, { model_name: "m" }, A, 0]);
  assert.deepEqual(like.prompts.objects[0].marks, [{ x: 80, y: 60, label: 1 }]);
  assert.deepEqual([alike.state, alike.open, alike.bar.hidden, editor.everything.ended], ["ready", [0, 1, 2], false, 1]);
  alike.toggle();
  assert.deepEqual([alike.isOn, alike.open], [false, []]);
  alike.toggle();
  await settled();
  assert.deepEqual([asked.length, alike.open], [1, [0, 1, 2]], "the answer is there");
});

test("a click takes an offer, a right click leaves it out, and the marked object stays selected", async () => {
  await ready();
  press(12, 12);
  assert.deepEqual([painted(), names(), editor.state.current], [[10], ["Object 1", "Object 2"], 0]);
  assert.deepEqual(editor.state.objects[1].paint, [{ x: 10, y: 10, width: 8, height: 8, runs: FOUND.segments[0].runs }]);
  press(32, 12, { button: 2 });
  assert.deepEqual([alike.open, painted()], [[2], [10]]);
  press(72, 12);
  assert.deepEqual(painted(), [10], "what is not offered is not taken");
  assert.match(alike.text.textContent, /Nothing is offered here/);
  editor.negative = true;
  press(52, 12);
  assert.deepEqual([alike.open, painted()], [[], [10]], "fingers have no right button, and the toolbar's button");
});

test("each is one step of undo, a refusal too, in their order", async () => {
  await ready();
  press(12, 12);
  press(32, 12, { button: 2 });
  press(52, 12);
  const undo = () => { if (!alike.undo()) editor.state.undo(); };
  const redo = () => { if (!alike.redo()) editor.state.redo(); };
  const seen = [];
  for (const step of [undo, undo, undo, redo, redo, redo]) {
    step();
    seen.push([painted(), alike.open]);
  }
  assert.deepEqual(seen, [[[10], [2]], [[10], [1, 2]], [[], [0, 1, 2]], [[10], [1, 2]], [[10], [2]], [[10, 50], []]]);
});

test("keys go through what is offered, take it, leave it out, and take all as one step", async () => {
  await ready();
  key("Tab");
  key("Tab");
  assert.equal(alike.current, 1);
  key("Tab", true);
  assert.equal(alike.current, 0);
  key("Enter");
  assert.deepEqual([painted(), alike.current], [[10], 1], "and on to the next");
  key("Delete");
  assert.deepEqual([alike.open, alike.current], [[2], 2]);
  alike.undo();
  key("Enter", true);
  assert.deepEqual([painted(), alike.open, editor.state.current], [[10, 30, 50], [], 0], "the marked object stays selected");
  editor.state.undo();
  assert.deepEqual([painted(), alike.open], [[10], [1, 2]]);
  key("+");
  assert.deepEqual(alike.open, [1, 2, 3]);
  key("-");
  key("-");
  assert.deepEqual(alike.open, [1]);
  assert.equal(alike.keyed("x", false), null);
});

test("a name that says what it is, is that of all; the editor's own is not", async () => {
  editor.state.setObject(0, { name: "coin" });
  await ready();
  alike.takeAll();
  assert.deepEqual(names(), ["coin", "coin", "coin", "coin"]);
});

test("on another image of the batch the same object is looked for", async () => {
  editor.images = [A, B];
  editor.state.setFrames(2);
  await ready();
  shown = null; // it is being loaded
  editor.state.showFrame(1);
  assert.deepEqual([alike.isOn, alike.open, alike.bar.hidden], [true, [], true]);
  shown = B;
  alike.update();
  asked.at(-1).answer({ ...FOUND, segments: [square(20, 0.9)] });
  await settled();
  assert.deepEqual([asked.length, asked[1].question.image, asked[1].question.like.image], [2, B, A]);
  press(22, 12);
  assert.deepEqual(editor.state.objects[1].paint.map(({ x, frame }) => [x, frame]), [[20, 1]], "it is that image's alone");
  [shown] = [A];
  editor.state.showFrame(0);
  await settled();
  assert.deepEqual([asked.length, alike.open], [2, [0, 1, 2]]);
});

test("it ends where the image or the model is another, and what is under way is cancelled", async () => {
  await ready();
  [editor.images, shown] = [[B], B];
  alike.update();
  assert.equal(alike.state, "off");
  [editor.images, shown] = [[A], A];
  await ready();
  editor.model = "other";
  alike.update();
  assert.equal(alike.state, "off");
  alike.toggle();
  assert.equal(alike.state, "working");
  alike.toggle();
  assert.deepEqual([alike.state, editor.cancelled], ["off", ["segments"]]);
  asked.at(-1).answer(FOUND);
  await settled();
  assert.equal(alike.state, "off", "a late answer is dropped");
});

test("what goes wrong is said, and it is off", async () => {
  alike.toggle();
  asked[0].fail(new Error("The object has an empty mask."));
  await settled();
  assert.deepEqual([alike.state, editor.complaints, editor.cancelled], ["off", ["The object has an empty mask."], []]);
});

test("without a mark, a model or an image there is nothing to begin with", () => {
  editor.state.clear();
  assert.equal(alike.button.disabled, true);
  alike.toggle();
  assert.deepEqual([alike.state, asked.length], ["off", 0]);
});

test("the pointer's other buttons, and Ctrl + click, are the editor's own", async () => {
  await ready();
  for (const more of [{ ctrlKey: true }, { metaKey: true }, { button: 1 }]) press(12, 12, more);
  editor.brush.isActive = true;
  press(12, 12);
  assert.deepEqual([painted(), alike.open], [[], [0, 1, 2]]);
});

/** Finishing and painting in the editor's state: what the text keeps, what a preview is asked, and undo. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { Brush } from "../../web/editor/brush.js";
import { cleanFinish } from "../../web/editor/finish_options.js";
import { ADD, decode, REMOVE, stroke } from "../../web/editor/patches.js";
import { EditorState } from "../../web/editor/state.js";
import { ViewMode, VIEWS } from "../../web/editor/views.js";

const IMAGE = { width: 40, height: 30 };
const dot = (x, y, kind = ADD) => stroke([{ x, y }], 3, kind, IMAGE);
let state;
beforeEach(() => { state = new EditorState(); });

test("options are cleaned: known, in their limits, whole where they must be, without those that do nothing", () => {
  assert.deepEqual(cleanFinish({ grow: 2.6, smooth: 1.5, feather: 999, fill_holes: -5, drop_islands: NaN, invert: true, more: 1 }), { smooth: 1.5, grow: 3, feather: 128, invert: true });
  assert.deepEqual(["x", null, [1], 5].map(cleanFinish), [null, null, null, null]);
  assert.deepEqual(cleanFinish({ invert: 1 }), {});
});

test("a text without finishing and paint is written as before", () => {
  assert.equal(state.text, "{}");
  state.add({ x: 1, y: 2, label: 1 });
  assert.ok(!/finish|paint/.test(state.text));
});

test("finishing of all objects is in the text, and taken back by undo", () => {
  state.setFinish(null, { grow: 4 });
  assert.deepEqual(JSON.parse(state.text).finish, { grow: 4 });
  state.setFinish(null, { smooth: 2 }, false);
  state.setFinish(null, { smooth: 3 });
  assert.deepEqual(JSON.parse(state.text).finish, { grow: 4, smooth: 3 });
  state.undo();
  assert.deepEqual(state.finish, { grow: 4 });
  state.undo();
  assert.equal(state.text, "{}");
  state.redo();
  assert.deepEqual(state.finish, { grow: 4 });
  state.resetFinish(null);
  assert.equal(state.text, "{}");
});

test("an object's own finishing begins with that of all and takes its place", () => {
  state.setFinish(null, { grow: 4 });
  state.setFinish(0, { feather: 2 });
  assert.deepEqual([state.finishOf(0), state.finish], [{ grow: 4, feather: 2 }, { grow: 4 }]);
  state.setFinish(0, { grow: 0, feather: 0 });
  assert.deepEqual(state.finishOf(0), {}, "nothing is done to it, whatever is done to the others");
  const again = new EditorState();
  again.load(state.text);
  assert.deepEqual([again.finishOf(0), again.finish, again.text], [{}, { grow: 4 }, state.text]);
  state.resetFinish(0);
  assert.deepEqual(state.finishOf(0), { grow: 4 });
});

test("a question carries the finishing and the paint of its object, and of no other", () => {
  state.setFinish(null, { grow: 4 });
  state.add({ x: 1, y: 2, label: 1 });
  state.newObject();
  state.paint(dot(9, 9));
  const [first, second] = [0, 1].map((object) => state.question(object).prompts.objects);
  assert.deepEqual(first.map(({ finish, paint }) => [finish, paint]), [[{ grow: 4 }, undefined], [undefined, undefined]].slice(0, first.length));
  assert.deepEqual(second.at(-1).finish, { grow: 4 });
  assert.deepEqual(second.at(-1).paint, state.objects[1].paint);
  assert.ok(!("finish" in state.question(0).prompts));
});

test("strokes of an object are one patch: painted, erased, taken back", () => {
  state.paint(dot(9, 9));
  const once = state.text;
  state.paint(dot(12, 9, REMOVE));
  const [patch] = state.objects[0].paint;
  assert.equal(state.objects[0].paint.length, 1);
  const kinds = decode(patch).kinds;
  assert.ok(kinds.includes(ADD) && kinds.includes(REMOVE));
  state.undo();
  assert.equal(state.text, once);
  state.undo();
  assert.equal(state.text, "{}");
  state.redo();
  state.redo();
  assert.deepEqual(state.objects[0].paint, [patch]);
  assert.ok(state.hasContent(0));
  state.clearPaint();
  assert.equal(state.text, "{}");
});

test("paint of a frame is that frame's, and asked without its number", () => {
  state.setFrames(3);
  state.paint(dot(9, 9));
  state.onlyThisFrame = true;
  state.showFrame(2);
  state.paint(dot(20, 20));
  assert.deepEqual(state.objects[0].paint.map(({ frame }) => frame), [undefined, 2]);
  assert.deepEqual([state.paintOf(0).length, state.question(0).prompts.objects[0].paint.map((one) => "frame" in one)], [2, [false, false]]);
  state.showFrame(1);
  assert.equal(state.paintOf(0).length, 1);
});

test("a locked object takes no paint", () => {
  state.setObject(0, { locked: true });
  assert.equal(state.paint(dot(9, 9)), false);
  assert.equal(state.objects[0].paint, undefined);
});

test("an object that has only paint goes into a run, and after it comes another object", () => {
  state.paint(dot(9, 9));
  assert.equal(JSON.parse(state.runText).objects.length, 1);
  state.newObject();
  assert.deepEqual([state.objects.length, state.current], [2, 1]);
});

test("paint is scaled with the marks", () => {
  state.image = IMAGE;
  state.paint(dot(9, 9));
  state.scaleTo({ width: 80, height: 60 });
  assert.deepEqual([state.objects[0].paint[0].width, state.size], [12, { width: 80, height: 60 }]);
});

test("paint that cannot be read is left out", () => {
  state.load('{"version": 2, "objects": [{"marks": [], "paint": [{"x": 1}, 5]}]}');
  assert.equal(state.objects[0].paint, undefined);
});

// --- the brush

test("a stroke is what lies between press and release, and the other button is the other tool", () => {
  const calls = [];
  const editor = { state, image: IMAGE, redraw() {}, changed() {}, refuse: () => calls.push("refused") };
  const brush = new Brush(editor);
  brush.toggle("add");
  brush.radius = 3;
  brush.begin({ x: 9, y: 9 }, false);
  brush.extend({ x: 20, y: 9 });
  brush.end();
  assert.deepEqual(decode(state.objects[0].paint[0]), stroke([{ x: 9, y: 9 }, { x: 20, y: 9 }], 3, ADD, IMAGE));
  assert.equal(brush.points.length, 2, "shown until its mask is there");
  brush.settle();
  assert.equal(brush.points.length, 0);
  brush.begin({ x: 15, y: 9 }, true);
  brush.end();
  assert.ok(decode(state.objects[0].paint[0]).kinds.includes(REMOVE));
  brush.begin({ x: 5, y: 5 }, false);
  brush.cancel();
  brush.end();
  const before = state.text;
  state.setObject(0, { locked: true });
  brush.begin({ x: 5, y: 5 }, false);
  brush.end();
  assert.deepEqual([calls, JSON.parse(before).objects[0].paint], [["refused"], state.objects[0].paint]);
  editor.image = null;
  brush.begin({ x: 5, y: 5 }, false);
  brush.end();
  brush.toggle("add");
  assert.equal(brush.isActive, false);
});

test("the size of the brush has limits", () => {
  const brush = new Brush({ state, redraw() {}, changed() {} });
  for (let i = 0; i < 99; i += 1) brush.resize(2);
  assert.equal(brush.radius, 512);
  for (let i = 0; i < 99; i += 1) brush.resize(0.5);
  assert.equal(brush.radius, 0.5);
});

test("views follow each other, and each has its own opacity", () => {
  const mode = new ViewMode();
  mode.opacity = 0.3;
  const seen = Object.keys(VIEWS).map(() => (mode.next(), mode.name));
  assert.deepEqual(seen, ["cutout", "mask", "outline", "tint"]);
  assert.deepEqual([mode.opacity, mode.form], [0.3, "tint"]);
  mode.opacity = 7;
  assert.equal(mode.opacity, 1);
});

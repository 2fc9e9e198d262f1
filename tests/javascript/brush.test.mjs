/** The brush: strokes become patches of the selected object's paint. (How it is drawn: paint.test.mjs.) */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { Brush } from "../../web/editor/brush.js";
import { ADD, decode, REMOVE } from "../../web/editor/patches.js";
import { EditorState } from "../../web/editor/state.js";

let editor, brush, refused;
beforeEach(() => {
  refused = 0;
  const state = new EditorState();
  const image = { width: 100, height: 80 };
  state.image = image;
  editor = { state, image, redraw: () => {}, changed: () => {}, refuse: () => { refused += 1; } };
  brush = new Brush(editor);
  brush.toggle("add");
  brush.radius = 5;
});

const stroke = (other, ...places) => {
  brush.begin(places[0], other);
  places.slice(1).forEach((place) => brush.extend(place));
  brush.end();
};

test("a stroke adds, the other tool's takes away, and undo brings it back", () => {
  stroke(false, { x: 20, y: 20 }, { x: 40, y: 20 });
  const [{ x, y, width, height, kinds }] = editor.state.objects[0].paint.map(decode);
  assert.deepEqual([x <= 15, y <= 15, x + width >= 45, y + height >= 25], [true, true, true, true]);
  assert.equal(kinds[(20 - y) * width + 30 - x], ADD);
  stroke(true, { x: 30, y: 20 });
  const [after] = editor.state.objects[0].paint.map(decode);
  assert.equal(after.kinds[(20 - after.y) * after.width + 30 - after.x], REMOVE);
  editor.state.undo();
  editor.state.undo();
  assert.equal(editor.state.objects[0].paint, undefined);
});

test("a locked object refuses it, and a stroke beside the image is none", () => {
  editor.state.setObject(0, { locked: true });
  stroke(false, { x: 20, y: 20 });
  assert.deepEqual([refused, brush.points], [1, []]);
  editor.state.setObject(0, { locked: false });
  stroke(false, { x: -50, y: -50 });
  assert.deepEqual([editor.state.objects[0].paint, brush.points, refused], [undefined, [], 1]);
});

test("a cancelled stroke leaves nothing, and what is moved afterwards does not draw", () => {
  brush.begin({ x: 20, y: 20 }, false);
  brush.cancel();
  brush.extend({ x: 40, y: 20 });
  brush.end();
  assert.deepEqual([brush.points, editor.state.objects[0].paint], [[], undefined]);
});

test("its size stays within bounds, and points closer than a pixel are left out", () => {
  for (let step = 0; step < 60; step += 1) brush.resize(2);
  assert.equal(brush.radius, 512);
  for (let step = 0; step < 60; step += 1) brush.resize(0.5);
  assert.equal(brush.radius, 0.5);
  brush.radius = 8;
  brush.begin({ x: 20, y: 20 }, false);
  brush.extend({ x: 20.5, y: 20 });
  brush.extend({ x: 21, y: 20 });
  assert.equal(brush.points.length, 2);
});

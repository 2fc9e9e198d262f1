/** What is drawn on the editor's canvas: told by the calls of a context that lists them. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { recorder } from "./fake_dom.mjs";
import { Brush } from "../../web/editor/brush.js";
import { View } from "../../web/editor/geometry.js";
import { paint } from "../../web/editor/paint.js";
import { EditorState } from "../../web/editor/state.js";

const IMAGE = { width: 100, height: 50 };
const MODE = { name: "tint", opacity: 1 };

let state, brush, view;
beforeEach(() => {
  state = new EditorState();
  state.image = IMAGE;
  brush = new Brush({ state, redraw: () => {}, changed: () => {} });
  view = new View();
  Object.assign(view, { scale: 2, x: 10, y: 20 });
});

function drawn(more = {}) {
  const { context, said, calls } = recorder();
  paint(context, { ratio: 1, unit: 1, view, image: IMAGE, masks: [], state, mode: MODE, brush, before: false, ...more });
  return { said, calls };
}

test("without an image there is nothing, and marks are drawn on it only where it is not shown alone", () => {
  state.add({ x: 30, y: 20, label: 1 });
  assert.equal(drawn({ image: null }).calls("drawImage").length, 0);
  assert.equal(drawn().calls("arc").length, 1);
  assert.equal(drawn({ before: true }).calls("arc").length, 0);
});

test("a point lies where its pixel is seen, and keeps its size on the screen", () => {
  state.add({ x: 30, y: 20, label: 1 });
  assert.deepEqual(drawn().calls("arc")[0].slice(0, 4), ["arc", 70, 60, 8]);
  view.scale = 4;
  assert.deepEqual(drawn({ unit: 2 }).calls("arc")[0].slice(0, 4), ["arc", 130, 100, 16]);
});

test("hidden objects' marks are not drawn, and those of others are fainter", () => {
  state.add({ x: 30, y: 20, label: 1 });
  state.newObject();
  state.add({ x: 60, y: 20, label: 1 });
  assert.deepEqual(drawn().calls("globalAlpha=").map(([, alpha]) => alpha).filter((alpha) => alpha < 1), [0.6]);
  state.setObject(0, { hidden: true });
  assert.equal(drawn().calls("arc").length, 1);
});

test("a mark outside of the image is drawn at its edge", () => {
  state.add({ x: 130, y: 20, label: 1 });
  const { calls } = drawn();
  assert.deepEqual(calls("arc")[0].slice(0, 3), ["arc", 210, 60]);
  assert.ok(calls("globalAlpha=").some(([, alpha]) => alpha === 0.4));
});

test("a box has eight handles where it is selected, and a square point is of its frame only", () => {
  state.add({ x: 10, y: 5, width: 20, height: 10 });
  assert.equal(drawn().calls("rect").length, 9);
  state.select(null);
  assert.deepEqual(drawn().calls("rect"), [["rect", 30, 30, 40, 20]]);
  state.setFrames(2);
  state.onlyThisFrame = true;
  state.newObject();
  state.add({ x: 50, y: 20, label: 0 });
  assert.equal(drawn().calls("arc").length, 0);
  assert.equal(drawn().calls("rect").length, 2);
});

test("the brush shows its ring at the size of what it paints", () => {
  brush.toggle("add");
  brush.at = { x: 30, y: 20 };
  brush.radius = 5;
  assert.deepEqual(drawn().calls("arc").map((call) => call.slice(1, 4)), [[70, 60, 10], [70, 60, 10]]);
});

test("a region is a thin frame in the selected object's colour, in the place where it is seen", () => {
  const { calls, said } = drawn({ region: { x: 30, y: 10, width: 20, height: 5 } });
  assert.deepEqual(calls("rect"), [["rect", 70, 40, 40, 10]]);
  assert.ok(said.some(([what, value]) => what === "strokeStyle=" && value === state.object.colour));
  assert.ok(said.filter(([what]) => what === "lineWidth=").every(([, width]) => width <= 3));
  assert.equal(drawn({ region: { x: 30, y: 10, width: 20, height: 5 }, before: true }).calls("rect").length, 0);
});

test("an image in tiles draws itself, and is told which part is seen", () => {
  const seen = [];
  const image = { ...IMAGE, draw: (context, scale, area) => seen.push([scale, area]) };
  const { calls } = drawn({ image, ratio: 2 });
  assert.deepEqual([seen, calls("drawImage")], [[[4, { x: -5, y: -10, width: 50, height: 25 }]], []]);
});

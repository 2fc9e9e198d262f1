/** The editor's text as it is read: whatever stands there, a widget must load; and what is written is read back alike. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { cleaned, COLOURS, nextColour, readText, VERSION, writeText } from "../../web/editor/text.js";

const point = (x, y, label = 1) => ({ x, y, label });

test("what cannot be read is one empty object", () => {
  for (const text of ["", "{", "null", "[]", "3", '"x"', '{"objects": 3}', '{"objects": [null, 4]}', '{"marks": {}}']) {
    const { objects, marks } = readText(text);
    assert.deepEqual([objects, marks], [[{ name: "Object 1", colour: COLOURS[0], candidate: "best" }], []], text);
  }
  assert.equal(readText("[]").readable, false);
  assert.equal(readText("{}").readable, true);
});

test("a mark has finite numbers, rounded to hundredths, or is none", () => {
  assert.deepEqual(cleaned({ x: 1.23456, y: 2, label: 0, other: 1, frame: 3 }), { x: 1.23, y: 2, label: 0, frame: 3 });
  assert.deepEqual(cleaned({ x: 1, y: 2 }), { x: 1, y: 2, label: 1 });
  assert.deepEqual(cleaned({ x: 0, y: 0, width: 0.001, height: 5, frame: -1 }), { x: 0, y: 0, width: 0.01, height: 5 });
  for (const wrong of [null, {}, { x: NaN, y: 1 }, { x: "1", y: 2 }, { x: 1, y: 2, width: 0, height: 4 }, { x: 1, y: 2, width: 3 }]) {
    assert.equal(cleaned(wrong), null);
  }
});

test("in version 1 several boxes are several objects, and points are those of the smallest box around them", () => {
  const [outer, inner] = [{ x: 0, y: 0, width: 100, height: 100 }, { x: 10, y: 10, width: 20, height: 20 }];
  const marks = [outer, inner, point(15, 15), point(50, 50), point(15, 16, 0), point(200, 200), point(300, 300, 0)];
  const { objects, marks: read } = readText(JSON.stringify({ marks }));
  const of = (object) => read.filter((mark) => mark.object === object).map(({ x, y, label }) => [x, y, label ?? "box"]);
  assert.equal(objects.length, 3);
  assert.deepEqual(of(0), [[50, 50, 1], [15, 16, 0], [300, 300, 0], [0, 0, "box"]]);
  assert.deepEqual(of(1), [[15, 15, 1], [15, 16, 0], [300, 300, 0], [10, 10, "box"]]);
  assert.deepEqual(of(2), [[200, 200, 1], [300, 300, 0]]);
});

test("in version 1 one box and its points, or marks with frames, are one object", () => {
  assert.equal(readText(JSON.stringify({ marks: [{ x: 0, y: 0, width: 9, height: 9 }, point(50, 50)] })).objects.length, 1);
  const framed = [{ x: 0, y: 0, width: 9, height: 9, frame: 0 }, { x: 20, y: 20, width: 9, height: 9, frame: 1 }];
  assert.equal(readText(JSON.stringify({ marks: framed })).objects.length, 1);
});

test("what is written is read back alike, and a run's text has neither colours nor eyes", () => {
  const state = readText(JSON.stringify({
    version: VERSION,
    size: [120, 90],
    finish: { fill_holes: 4 },
    objects: [
      { name: "cup", colour: "#123456", candidate: "largest", hidden: true, locked: true, marks: [point(1, 2)] },
      { name: "empty", colour: "#654321", candidate: "best", marks: [] },
    ],
  }));
  assert.deepEqual(readText(writeText(state)), state);
  const run = JSON.parse(writeText(state, { view: false }));
  assert.deepEqual(run.objects.map(({ name, colour, hidden, locked }) => [name, colour, hidden, locked]), [["cup", undefined, undefined, undefined]]);
  assert.equal(run.size, undefined);
});

test("an empty editor is an empty object, and a later version is known as such", () => {
  assert.equal(writeText(readText("{}")), "{}");
  assert.equal(readText(JSON.stringify({ version: VERSION + 1, objects: [] })).isNewer, true);
  assert.equal(readText(JSON.stringify({ version: VERSION, objects: [] })).isNewer, false);
});

test("colours are given once each, then again from the first", () => {
  const objects = COLOURS.slice(1).map((colour) => ({ colour }));
  assert.equal(nextColour(objects), COLOURS[0]);
  assert.equal(nextColour([...objects, { colour: COLOURS[0] }]), COLOURS[0]);
  assert.equal(readText(JSON.stringify({ objects: [{ colour: "red", marks: [] }] })).objects[0].colour, COLOURS[0]);
});

/** The segments of an image: read from runs, found by a place, drawn small. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Segments, spansOf } from "../../web/editor/segments.js";

/** Runs as the server writes them: LEB128 of 3 * length + kind, in base64. */
function runsOf(kinds) {
  const bytes = [];
  for (let start = 0; start < kinds.length;) {
    let end = start;
    while (end < kinds.length && kinds[end] === kinds[start]) end += 1;
    let number = 3 * (end - start) + kinds[start];
    for (; number > 127; number = Math.floor(number / 128)) bytes.push((number & 127) | 128);
    bytes.push(number);
    start = end;
  }
  return btoa(String.fromCharCode(...bytes));
}

/** A segment from a drawing: lines of "#" and ".". */
function segment(x, y, ...lines) {
  const kinds = [...lines.join("")].map((letter) => (letter === "#" ? 1 : 0));
  return { x, y, width: lines[0].length, height: lines.length, runs: runsOf(kinds), score: 1, area: kinds.filter(Boolean).length };
}

test("spans are the pixels that are added, whatever their number", () => {
  assert.deepEqual(spansOf(runsOf([0, 1, 1, 0, 1])), [1, 3, 4, 5]);
  assert.deepEqual(spansOf(runsOf([1])), [0, 1]);
  assert.deepEqual(spansOf(runsOf([0, 0, 2])), [], "what is left or removed is not added");
  for (const length of [42, 43, 5461, 5462, 700_000]) assert.deepEqual(spansOf(runsOf([0, ...new Uint8Array(length).fill(1)])), [1, 1 + length]);
});

test("the smallest segment is on top, and only where it has pixels", () => {
  const found = new Segments({ width: 8, height: 4, segments: [segment(0, 0, "########", "########"), segment(2, 0, "#.#", "###", "..#")] });
  const seen = (x, y) => found.at({ x, y });
  assert.deepEqual([seen(0, 0), seen(2.9, 0.9), seen(3, 0), seen(4, 0), seen(3.5, 1.5), seen(4, 2), seen(3, 2)], [0, 1, 0, 1, 1, 1, null]);
  assert.deepEqual([seen(-0.1, 0), seen(8, 0), seen(0, 4), seen(0, -1), seen(NaN, 0)], [null, null, null, null, null]);
});

test("whether a segment has a place is known of those too that others cover", () => {
  const found = new Segments({ width: 8, height: 4, segments: [segment(0, 0, "########", "########"), segment(2, 0, "#.#", "###", "..#")] });
  const pixels = (index) => [0, 1, 2, 3].map((y) => [...Array(8).keys()].map((x) => (found.has(index, { x: x + 0.5, y }) ? "#" : ".")).join(""));
  assert.deepEqual(pixels(0), ["########", "########", "........", "........"]);
  assert.deepEqual(pixels(1), ["..#.#...", "..###...", "....#...", "........"]);
  assert.deepEqual([found.has(1, { x: -1, y: 0 }), found.has(1, { x: NaN, y: 0 })], [false, false]);
});

test("an image without segments has none anywhere", () => {
  assert.equal(new Segments({ width: 3, height: 3, segments: [] }).at({ x: 1, y: 1 }), null);
});

test("a segment is drawn whole, though others lie on it: tinted inside, opaque at its edge", () => {
  const found = new Segments({ width: 9, height: 9, segments: [segment(1, 2, "####", "####", "##.#", "####"), segment(2, 3, "##")] });
  const { data, width, height } = found.pixels(0, [10, 20, 30], 1);
  assert.deepEqual([width, height], [4, 4]);
  const alpha = [...data].filter((_, i) => i % 4 === 3);
  assert.deepEqual(alpha, [255, 255, 255, 255, 255, 115, 255, 255, 255, 255, 0, 255, 255, 255, 255, 255]);
  assert.deepEqual([...data.slice(0, 3)], [10, 20, 30]);
});

test("a large segment is sampled", () => {
  const lines = Array.from({ length: 50 }, (_, row) => "#".repeat(90) + (row < 25 ? "#" : ".").repeat(10));
  const found = new Segments({ width: 200, height: 100, segments: [segment(20, 10, ...lines)] });
  const { data, width, height } = found.pixels(0, [1, 2, 3], 4);
  assert.deepEqual([width, height], [25, 13]);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      assert.equal(data[4 * (row * width + column) + 3] > 0, lines[4 * row][4 * column] === "#");
    }
  }
});

/** What is offered as like an object: from a limit on, without what is an object already and without what was left out. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { Offers, isSamePatch, naturalLimit, patchOfSegment } from "../../web/editor/offers.js";

const segment = (index, alike) => ({ x: 10 * index, y: 0, width: 5, height: 4, runs: "PA==", score: 0.9, area: 20, alike });
const SCORES = [0.95, 0.9, 0.85, 0.4, 0.3];
const object = (...segments) => ({ name: "Object", paint: segments.map(patchOfSegment) });

let offers;
beforeEach(() => { offers = new Offers(SCORES.map((alike, index) => segment(index, alike))); });

test("those of the kind are offered, and not those that are objects already", () => {
  assert.deepEqual(offers.open([]), [0, 1, 2]);
  assert.deepEqual(offers.open([object(offers.list[1]), { name: "marked only" }]), [0, 2]);
  const elsewhere = { name: "Object", paint: [{ ...patchOfSegment(offers.list[1]), frame: 3 }] };
  assert.deepEqual([offers.open([elsewhere], 0), offers.open([elsewhere], 3)], [[0, 1, 2], [0, 2]], "equal images of a batch");
  assert.ok(isSamePatch(offers.list[1], object(offers.list[1]).paint[0]) && !isSamePatch(offers.list[1], offers.list[2]));
});

test("more and fewer are one more and one fewer, down to none and up to all", () => {
  const counts = (more, times) => Array.from({ length: times }, () => { offers.step(more); return offers.open([]).length; });
  assert.deepEqual(counts(true, 3), [4, 5, 5]);
  assert.deepEqual(counts(false, 6), [4, 3, 2, 1, 0, 0]);
  assert.deepEqual(counts(true, 2), [1, 2]);
});

test("what is left out comes back by undo, and goes by redo", () => {
  offers.refuse(0, "text");
  offers.refuse(2, "text");
  assert.deepEqual(offers.open([]), [1]);
  assert.deepEqual([offers.canUndo("text"), offers.undo("text"), offers.open([])], [true, true, [1, 2]]);
  assert.deepEqual([offers.canRedo("text"), offers.redo("text"), offers.open([])], [true, true, [1]]);
  assert.deepEqual([offers.canRedo("text"), offers.redo("text")], [false, false]);
});

test("a refusal is taken back in its turn: a later change of the text comes first", () => {
  offers.refuse(0, "before");
  assert.deepEqual([offers.canUndo("after"), offers.undo("after"), offers.open([])], [false, false, [1, 2]]);
  assert.equal(offers.undo("before"), true);
  assert.deepEqual([offers.redo("after"), offers.redo("before")], [false, true]);
});

test("after something else a refusal that was taken back cannot be done again", () => {
  offers.refuse(0, "text");
  offers.undo("text");
  offers.goOn();
  assert.equal(offers.canRedo("text"), false);
  offers.refuse(1, "text");
  offers.undo("text");
  offers.refuse(2, "text");
  assert.equal(offers.canRedo("text"), false);
});

test("nothing found is nothing offered", () => {
  const none = new Offers([]);
  none.step(true);
  none.step(false);
  assert.deepEqual(none.open([]), []);
  assert.equal(naturalLimit([]), Infinity);
});

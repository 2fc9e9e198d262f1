/** Where objects are on the screen, what lies under the pointer, and what a drag does to it. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { boxBetween, clamped, dragged, hit, isInside, View } from "../../web/editor/geometry.js";

const IMAGE = { width: 100, height: 80 };
const point = (x, y, label = 1) => ({ x, y, label });
const box = (x, y, width, height) => ({ x, y, width, height });

/** Numbers from 0 to 1, the same in every run. */
function randomNumbers(seed = 1) {
  let state = seed;
  return () => (state = (state * 16807) % 2147483647) / 2147483647;
}

function randomView(random) {
  return Object.assign(new View(), { scale: 0.05 + 20 * random(), x: 1000 * (random() - 0.5), y: 1000 * (random() - 0.5) });
}

function near(actual, expected, tolerance = 1e-9) {
  for (const key of Object.keys(expected)) {
    assert.ok(Math.abs(actual[key] - expected[key]) <= tolerance, `${key} is ${actual[key]}, not ${expected[key]}`);
  }
}

// --- the view

test("a new view shows the image pixel by pixel", () => {
  assert.deepEqual(new View().toStage({ x: 3, y: 4 }), { x: 3, y: 4 });
});

test("a wide image fills the width and is centred in the height", () => {
  const view = new View();
  view.fit({ width: 200, height: 100 }, { width: 400, height: 400 });
  near(view, { scale: 2, x: 0, y: 100 });
});

test("a high image fills the height and is centred in the width", () => {
  const view = new View();
  view.fit({ width: 100, height: 400 }, { width: 400, height: 200 });
  near(view, { scale: 0.5, x: 175, y: 0 });
});

test("a margin is left on each side", () => {
  const view = new View();
  view.fit({ width: 100, height: 100 }, { width: 120, height: 220 }, 10);
  near(view, { scale: 1, x: 10, y: 60 });
});

test("a stage smaller than its margins still shows the image", () => {
  const view = new View();
  view.fit({ width: 100, height: 50 }, { width: 4, height: 4 }, 10);
  near(view, { scale: 0.01, x: 1.5, y: 1.75 });
});

test("a fitted image lies on the stage, whatever the sizes", () => {
  const random = randomNumbers(2);
  for (let i = 0; i < 200; i += 1) {
    const [image, stage] = [0, 1].map(() => ({ width: 30 + 3000 * random(), height: 30 + 3000 * random() }));
    const view = new View();
    view.fit(image, stage, 4);
    const [first, last] = [view.toStage({ x: 0, y: 0 }), view.toStage({ x: image.width, y: image.height })];
    assert.ok(first.x >= 4 - 1e-6 && first.y >= 4 - 1e-6);
    assert.ok(last.x <= stage.width - 4 + 1e-6 && last.y <= stage.height - 4 + 1e-6);
    assert.ok(Math.min(first.x, first.y) < 4 + 1e-6, "as large as there is room");
    near({ x: first.x + last.x, y: first.y + last.y }, { x: stage.width, y: stage.height }, 1e-6);
  }
});

test("stage and image places turn into each other, whatever the view", () => {
  const random = randomNumbers(3);
  for (let i = 0; i < 200; i += 1) {
    const [view, at] = [randomView(random), { x: 2000 * random(), y: 2000 * random() }];
    near(view.toStage(view.toImage(at)), at, 1e-6);
    near(view.toImage(view.toStage(at)), at, 1e-6);
  }
});

test("a zoom leaves what is under the pointer there, and scales the rest", () => {
  const random = randomNumbers(4);
  for (let i = 0; i < 200; i += 1) {
    const [view, at, factor] = [randomView(random), { x: 800 * random(), y: 600 * random() }, 0.5 + random()];
    const [before, scale] = [view.toImage(at), view.scale];
    view.zoomAt(at, factor);
    near(view.toImage(at), before, 1e-6);
    near(view, { scale: scale * factor });
  }
});

for (const [factor, limit] of [[1e9, 64], [1e-9, 0.02]]) {
  test(`a zoom ends at a scale of ${limit}, and still holds the place`, () => {
    const [view, at] = [new View(), { x: 30, y: 40 }];
    view.zoomAt(at, factor);
    assert.equal(view.scale, limit);
    near(view.toImage(at), at);
  });
}

test("a pan moves the image by pixels of the stage", () => {
  const view = Object.assign(new View(), { scale: 2, x: 1, y: 2 });
  view.pan(10, -20);
  assert.deepEqual({ ...view }, { scale: 2, x: 11, y: -18 });
});

// --- places and boxes

for (const [at, inside, nearest] of [
  [{ x: 50, y: 40 }, true, { x: 50, y: 40 }],
  [{ x: 0, y: 0 }, true, { x: 0, y: 0 }],
  [{ x: 100, y: 80 }, true, { x: 100, y: 80 }],
  [{ x: -1, y: 40 }, false, { x: 0, y: 40 }],
  [{ x: 101, y: 40 }, false, { x: 100, y: 40 }],
  [{ x: 50, y: -1 }, false, { x: 50, y: 0 }],
  [{ x: 50, y: 81 }, false, { x: 50, y: 80 }],
]) {
  test(`(${at.x}, ${at.y}) is ${inside ? "on" : "off"} the image`, () => {
    assert.equal(isInside(at, IMAGE), inside);
    assert.deepEqual(clamped(at, IMAGE), nearest);
  });
}

test("a box is the same from whichever corner it is drawn", () => {
  for (const [a, b] of [[[1, 2], [4, 6]], [[4, 6], [1, 2]], [[1, 6], [4, 2]], [[4, 2], [1, 6]]]) {
    assert.deepEqual(boxBetween({ x: a[0], y: a[1] }, { x: b[0], y: b[1] }), box(1, 2, 3, 4));
  }
});

// --- what lies under the pointer

function found(marks, x, y, reach = 2, shown = [...marks.keys()]) {
  return hit(marks, shown, { x, y }, reach);
}

test("an empty place hits nothing", () => {
  assert.equal(found([], 5, 5), null);
  assert.equal(found([point(50, 50), box(60, 60, 9, 9)], 5, 5), null);
});

test("a point is hit within its reach, all round", () => {
  const marks = [point(10, 10)];
  assert.deepEqual(found(marks, 12, 10), { index: 0, part: "point" });
  assert.deepEqual(found(marks, 10, 8), { index: 0, part: "point" });
  assert.equal(found(marks, 11.8, 11.8), null, "a circle, no square");
  assert.equal(found(marks, 12.1, 10), null);
});

test("of points on each other the last drawn is hit", () => {
  assert.deepEqual(found([point(10, 10), point(11, 10)], 10, 10), { index: 1, part: "point" });
});

for (const [part, x, y] of [
  ["nw", 20, 30], ["n", 40, 30], ["ne", 60, 30], ["w", 20, 50], ["body", 40, 50],
  ["e", 60, 50], ["sw", 20, 70], ["s", 40, 70], ["se", 60, 70],
]) {
  test(`a box has its ${part} at (${x}, ${y})`, () => {
    assert.deepEqual(found([box(20, 30, 40, 40)], x, y), { index: 0, part });
  });
}

test("an edge reaches inwards and outwards, and no further", () => {
  const marks = [box(20, 30, 40, 40)];
  const parts = [17.9, 18, 22, 22.1].map((x) => found(marks, x, 50)?.part ?? null);
  assert.deepEqual(parts, [null, "w", "w", "body"]);
  const rows = [27.9, 28, 32, 32.1, 67.9, 68, 72, 72.1].map((y) => found(marks, 40, y)?.part ?? null);
  assert.deepEqual(rows, [null, "n", "n", "body", "body", "s", "s", null]);
  const right = [57.9, 58, 62, 62.1].map((x) => found(marks, x, 50)?.part ?? null);
  assert.deepEqual(right, ["body", "e", "e", null]);
});

test("beside a box, in line with an edge, is nothing", () => {
  assert.equal(found([box(20, 30, 40, 40)], 10, 30), null);
  assert.equal(found([box(20, 30, 40, 40)], 20, 80), null);
});

test("in a box smaller than the reach the nearer edge is hit", () => {
  const marks = [box(10, 10, 3, 3)];
  assert.equal(found(marks, 10.5, 12.5, 4).part, "sw");
  assert.equal(found(marks, 12.5, 10.5, 4).part, "ne");
});

test("a point is hit before the edge of a box drawn after it", () => {
  assert.deepEqual(found([point(20, 50), box(20, 30, 40, 40)], 20, 50), { index: 0, part: "point" });
});

test("an edge is hit before the body of a smaller box drawn after it", () => {
  assert.deepEqual(found([box(20, 30, 40, 40), box(10, 40, 20, 20)], 20, 50), { index: 0, part: "w" });
});

test("of edges on each other the last drawn is hit", () => {
  assert.deepEqual(found([box(20, 30, 40, 40), box(20, 30, 10, 40)], 20, 50), { index: 1, part: "w" });
});

test("of bodies the smallest is hit, whichever was drawn last", () => {
  const [large, small] = [box(10, 10, 60, 60), box(20, 20, 20, 20)];
  assert.deepEqual(found([large, small], 30, 30), { index: 1, part: "body" });
  assert.deepEqual(found([small, large], 30, 30), { index: 0, part: "body" });
});

test("of bodies of one size the last drawn is hit", () => {
  assert.deepEqual(found([box(10, 10, 40, 20), box(12, 5, 20, 40)], 25, 20), { index: 1, part: "body" });
});

test("marks that are not shown are not hit", () => {
  assert.equal(found([point(10, 10), box(5, 5, 20, 20)], 10, 10, 2, []), null);
  assert.deepEqual(found([point(10, 10), point(10, 10)], 10, 10, 2, [0]), { index: 0, part: "point" });
});

// --- which object is worked on

const of = (object, mark) => ({ ...mark, object });
const worked = (object, isEmpty = false) => ({ object, isEmpty });
const NEAR = [of(0, box(20, 30, 40, 40)), of(0, point(80, 50)), of(1, point(30, 90))];
const at = (x, y, one, reach = 10) => hit(NEAR, [...NEAR.keys()], { x, y }, reach, one);

test("marks of the object that is worked on are reached from nearby, those of others where they are drawn", () => {
  assert.deepEqual([at(11, 50, worked(0)), at(11, 50, worked(1))], [{ index: 0, part: "w" }, null]);
  assert.deepEqual([at(18, 50, worked(0)), at(18, 50, worked(1))], [{ index: 0, part: "w" }, { index: 0, part: "w" }]);
  assert.deepEqual([at(89, 50, worked(0)), at(89, 50, worked(1))], [{ index: 1, part: "point" }, null]);
  assert.deepEqual(at(87, 50, worked(1)), { index: 1, part: "point" }, "on its disc");
});

test("an object that waits for its first mark takes a click on another's box, but not one on another's point", () => {
  assert.equal(at(20, 50, worked(2, true)), null);
  assert.equal(at(40, 50, worked(2, true)), null);
  assert.deepEqual(at(40, 50, worked(1)), { index: 0, part: "body" });
  assert.deepEqual(at(80, 50, worked(2, true)), { index: 1, part: "point" });
});

test("a mark of the object that is worked on comes before another's that is nearer", () => {
  const marks = [of(0, point(50, 50)), of(1, point(54, 50))];
  const hits = [0, 1].map((object) => hit(marks, [0, 1], { x: 52, y: 50 }, 10, worked(object)).index);
  assert.deepEqual(hits, [0, 1]);
});

test("a box keeps an inside, however far the reach", () => {
  assert.equal(found([box(10, 10, 8, 8)], 13, 14, 10).part, "body");
  assert.equal(found([box(10, 10, 8, 8)], 11, 14, 10).part, "w");
  assert.equal(found([box(10, 10, 8, 8)], 1, 14, 10).part, "w");
});

// --- drags

const MARK = box(20, 30, 40, 20);

test("a point moves with the pointer", () => {
  assert.deepEqual(dragged(point(10, 20, 0), "point", { x: 5, y: -5 }, IMAGE), { x: 15, y: 15 });
});

test("a point stops at the image's edge", () => {
  assert.deepEqual(dragged(point(10, 20), "point", { x: -50, y: 500 }, IMAGE), { x: 0, y: 80 });
});

for (const [part, expected] of [
  ["nw", box(25, 33, 35, 17)],
  ["n", box(20, 33, 40, 17)],
  ["ne", box(20, 33, 45, 17)],
  ["w", box(25, 30, 35, 20)],
  ["body", { x: 25, y: 33 }],
  ["e", box(20, 30, 45, 20)],
  ["sw", box(25, 30, 35, 23)],
  ["s", box(20, 30, 40, 23)],
  ["se", box(20, 30, 45, 23)],
]) {
  test(`a drag of ${part} moves what it names and no more`, () => {
    assert.deepEqual(dragged(MARK, part, { x: 5, y: 3 }, IMAGE), expected);
  });
}

for (const [part, by, expected] of [
  ["nw", { x: -99, y: -99 }, box(0, 0, 60, 50)],
  ["ne", { x: 99, y: -99 }, box(20, 0, 80, 50)],
  ["sw", { x: -99, y: 99 }, box(0, 30, 60, 50)],
  ["se", { x: 99, y: 99 }, box(20, 30, 80, 50)],
]) {
  test(`a drag of ${part} stops at the image's corner`, () => {
    assert.deepEqual(dragged(MARK, part, by, IMAGE), expected);
  });
}

test("a box stops at the image's edges with its size", () => {
  assert.deepEqual(dragged(MARK, "body", { x: -99, y: -99 }, IMAGE), { x: 0, y: 0 });
  assert.deepEqual(dragged(MARK, "body", { x: 99, y: 99 }, IMAGE), { x: 60, y: 60 });
});

test("a box larger than the image stops at its top left", () => {
  assert.deepEqual(dragged(box(0, 0, 300, 300), "body", { x: 7, y: 7 }, IMAGE), { x: 0, y: 0 });
});

for (const [part, by, expected] of [
  ["e", { x: -50, y: 0 }, box(10, 30, 10, 20)],
  ["w", { x: 60, y: 0 }, box(60, 30, 20, 20)],
  ["n", { x: 0, y: 25 }, box(20, 50, 40, 5)],
  ["s", { x: 0, y: -40 }, box(20, 10, 40, 20)],
  ["se", { x: -50, y: -40 }, box(10, 10, 10, 20)],
  ["nw", { x: 60, y: 25 }, box(60, 50, 20, 5)],
]) {
  test(`a drag of ${part} turns the box through itself`, () => {
    assert.deepEqual(dragged(MARK, part, by, IMAGE), expected);
  });
}

test("a box dragged to no width or no height stays as it was", () => {
  assert.deepEqual(dragged(MARK, "e", { x: -40, y: 0 }, IMAGE), {});
  assert.deepEqual(dragged(MARK, "n", { x: 0, y: 20 }, IMAGE), {});
});

test("a dragged box stays on the image, whatever the drag", () => {
  const random = randomNumbers(5);
  const parts = ["nw", "n", "ne", "w", "body", "e", "sw", "s", "se"];
  for (let i = 0; i < 500; i += 1) {
    const by = { x: 300 * (random() - 0.5), y: 300 * (random() - 0.5) };
    const end = { ...MARK, ...dragged(MARK, parts[i % parts.length], by, IMAGE) };
    assert.ok(end.x >= 0 && end.y >= 0 && end.width > 0 && end.height > 0);
    assert.ok(end.x + end.width <= 100 + 1e-9 && end.y + end.height <= 80 + 1e-9);
  }
});

test("a view knows whether it is still fitted", () => {
  const [image, stage] = [{ width: 30, height: 20 }, { width: 300, height: 300 }];
  const view = new View();
  view.fit(image, stage, 4);
  assert.equal(view.isFitted(image, stage, 4), true);
  assert.equal(view.isFitted(image, { width: 300, height: 200 }, 4), false);
  view.zoomAt({ x: 10, y: 10 }, 1.5);
  assert.equal(view.isFitted(image, stage, 4), false);
});

/** Regions: their form, what lies outside of them, and what of the image is on the screen. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { View } from "../../web/editor/geometry.js";
import { cleanRegion, isBeyond, scaledRegion, visibleRegion } from "../../web/editor/region.js";

const REGION = { x: 10, y: 20, width: 30, height: 40 };

for (const bad of [null, undefined, 3, "x", [1, 2, 3, 4], {}, { ...REGION, x: "1" }, { ...REGION, width: 0 }, { ...REGION, height: -3 },
  { ...REGION, width: 0.2 }, { ...REGION, y: Infinity }]) {
  test(`what is no region is none: ${JSON.stringify(bad)}`, () => assert.equal(cleanRegion(bad), null));
}

test("a region has whole pixels, its far edge rounded as its near one", () => {
  assert.deepEqual(cleanRegion({ x: 9.6, y: 20.4, width: 30, height: 39.8, more: 1 }), { x: 10, y: 20, width: 30, height: 40 });
});

for (const [mark, expected] of [
  [{ x: 10, y: 20, label: 1 }, false],
  [{ x: 40, y: 60, label: 1 }, false],
  [{ x: 40.5, y: 30, label: 0 }, true],
  [{ x: 20, y: 19.5, label: 1 }, true],
  [{ x: 0, y: 0, width: 10, height: 90 }, true],
  [{ x: 0, y: 0, width: 10.5, height: 90 }, false],
  [{ x: 40, y: 20, width: 5, height: 5 }, true],
  [{ x: 12, y: 60, width: 5, height: 5 }, true],
]) {
  test(`${JSON.stringify(mark)} lies ${expected ? "outside" : "inside"}`, () => assert.equal(isBeyond(mark, REGION), expected));
}

test("a region is scaled with its image", () => {
  assert.deepEqual(scaledRegion(REGION, 0.5, 2), { x: 5, y: 40, width: 15, height: 80 });
  assert.equal(scaledRegion({ ...REGION, width: 1 }, 0.01, 1), null);
});

test("what is on the screen is cut off at the image's edges; all of it is no region", () => {
  const [view, image, stage] = [new View(), { width: 100, height: 50 }, { width: 200, height: 200 }];
  view.fit(image, stage);
  assert.equal(visibleRegion(view, image, stage), null);
  Object.assign(view, { scale: 4, x: -100, y: 20 });
  assert.deepEqual(visibleRegion(view, image, stage), { x: 25, y: 0, width: 50, height: 45 });
  Object.assign(view, { scale: 4, x: 900, y: 20 });
  assert.equal(visibleRegion(view, image, stage), null);
});

/** Ways to see the masks. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { recorder } from "./fake_dom.mjs";
import { drawMasks, ViewMode, VIEWS } from "../../web/editor/views.js";

const IMAGE = { width: 40, height: 30 };

test("V goes through all views and begins again, each with its own strength", () => {
  const mode = new ViewMode();
  const seen = [];
  for (const _ of Object.keys(VIEWS)) {
    seen.push([mode.name, mode.form]);
    mode.opacity = seen.length / 10;
    mode.next();
  }
  assert.deepEqual(seen, [["tint", "tint"], ["cutout", "mask"], ["mask", "mask"], ["outline", "outline"]]);
  assert.deepEqual([mode.name, mode.opacity], ["tint", 0.1]);
  mode.opacity = 7;
  assert.equal(mode.opacity, 1);
  mode.opacity = -1;
  assert.equal(mode.opacity, 0);
});

test("tints lie over the image at its size, weaker where they are another object's", () => {
  const { context, calls } = recorder();
  const masks = [{ bitmap: "one", strength: 1 }, { bitmap: "other", strength: 0.4 }, { bitmap: "hover", strength: 0.5, isHover: true }];
  drawMasks(context, IMAGE, masks, { name: "tint", opacity: 0.5 });
  assert.deepEqual(calls("drawImage"), ["one", "other", "hover"].map((bitmap) => ["drawImage", bitmap, 0, 0, 40, 30]));
  assert.deepEqual(calls("globalAlpha="), [0.5, 0.2, 0.25, 1].map((alpha) => ["globalAlpha=", alpha]));
});

test("a mask of a part of a large image lies where that is", () => {
  const { context, calls } = recorder();
  drawMasks(context, IMAGE, [{ bitmap: "one", strength: 1, place: { x: 4, y: 5, width: 6, height: 7 } }], { name: "tint", opacity: 1 });
  assert.deepEqual(calls("drawImage"), [["drawImage", "one", 4, 5, 6, 7]]);
});

test("the layer of all masks of a large image is smaller than the image, and lies over all of it", () => {
  const made = [];
  globalThis.OffscreenCanvas = class {
    constructor(width, height) { made.push(Object.assign(this, { width, height })); }
    getContext() { return (this.drawn ??= recorder()).context; }
  };
  const { context, calls } = recorder();
  const image = { width: 16_384, height: 8192 };
  drawMasks(context, image, [{ bitmap: "one", strength: 1, place: { x: 4, y: 5, width: 6, height: 7 } }], { name: "mask", opacity: 1 });
  const [{ width, height, drawn }] = made;
  assert.deepEqual([width, height, drawn.calls("scale"), drawn.calls("drawImage")], [8192, 4096, [["scale", 0.5, 0.5]], [["drawImage", "one", 4, 5, 6, 7]]]);
  assert.deepEqual(calls("drawImage"), [["drawImage", made[0], 0, 0, 16_384, 8192]]);
});

/** Paint as runs: written and read back, strokes by brute force, the later stroke over the earlier. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { test } from "node:test";

import { ADD, cleanPatch, decode, encode, LEAVE, over, patchOf, REMOVE, scaled, stroke } from "../../web/editor/patches.js";

let seed = 1;
const random = (below) => Math.floor(((seed = (seed * 48271) % 2147483647) / 2147483647) * below);
const area = (x, y, width, height, make = () => random(3)) => ({ x, y, width, height, kinds: Uint8Array.from({ length: width * height }, make) });
const IMAGE = { width: 40, height: 30 };

/** Each pixel's kind on the whole image. */
function whole(one) {
  const kinds = new Uint8Array(IMAGE.width * IMAGE.height);
  one.kinds.forEach((kind, i) => { kinds[(one.y + Math.floor(i / one.width)) * IMAGE.width + one.x + (i % one.width)] = kind; });
  return kinds;
}

test("the text is the one that the node reads (tests/test_finish.py has the same)", () => {
  const kinds = [0, 0, 1, 1, 1, 2, 2, 0, 0, 0, 0, 0];
  assert.deepEqual(encode({ x: 3, y: 5, width: 4, height: 3, kinds }), { x: 3, y: 5, width: 4, height: 3, runs: "BgoIDw==" });
});

test("what is written is read back", () => {
  for (const [width, height] of [[1, 1], [7, 5], [40, 3], [300, 200]]) {
    for (const make of [undefined, () => ADD, () => LEAVE, (_, i) => (i % 9 ? ADD : REMOVE)]) {
      const one = area(2, 3, width, height, make);
      assert.deepEqual(decode(encode(one)), one);
    }
  }
});

test("a stroke has the pixels whose middle is near its line, and no others", () => {
  for (const points of [[{ x: 12.3, y: 9.8 }], [{ x: 5, y: 5 }, { x: 30, y: 20 }], [{ x: -6, y: 12 }, { x: 20, y: 40 }, { x: 60, y: 2 }]]) {
    for (const radius of [0.5, 1, 4.5, 11]) {
      const made = stroke(points, radius, REMOVE, IMAGE);
      const far = (x, y) => Math.min(...points.map((to, i) => distance({ x, y }, points[Math.max(0, i - 1)], to)));
      const expected = new Uint8Array(IMAGE.width * IMAGE.height).map((_, i) =>
        (far((i % IMAGE.width) + 0.5, Math.floor(i / IMAGE.width) + 0.5) <= radius ? REMOVE : LEAVE));
      if (expected.some(Boolean)) assert.deepEqual(whole(made), expected);
      else assert.equal(made, null);
    }
  }
});

function distance(at, a, b) {
  const length = (b.x - a.x) ** 2 + (b.y - a.y) ** 2;
  const along = length ? Math.min(1, Math.max(0, ((at.x - a.x) * (b.x - a.x) + (at.y - a.y) * (b.y - a.y)) / length)) : 0;
  return Math.hypot(at.x - a.x - along * (b.x - a.x), at.y - a.y - along * (b.y - a.y));
}

test("a stroke beside the image is none", () => {
  assert.equal(stroke([{ x: -20, y: 5 }], 4, ADD, IMAGE), null);
  assert.equal(stroke([{ x: 50, y: 50 }, { x: 70, y: 5 }], 4, ADD, IMAGE), null);
});

test("of two strokes the later wins, and what it leaves stays", () => {
  for (let round = 0; round < 20; round += 1) {
    const [before, after] = [area(random(20), random(15), 1 + random(20), 1 + random(15)), area(random(20), random(15), 1 + random(20), 1 + random(15))];
    const [first, second] = [whole(before), whole(after)];
    assert.deepEqual(whole(over(before, after)), first.map((kind, i) => second[i] || kind));
  }
  const one = area(1, 1, 3, 3);
  assert.equal(over(null, one), one);
});

test("a patch is scaled with its image", () => {
  const patch = { ...encode(area(4, 2, 3, 5)), frame: 2 };
  const twice = scaled(patch, 2, 2);
  assert.deepEqual([twice.x, twice.y, twice.width, twice.height, twice.frame], [8, 4, 6, 10, 2]);
  assert.deepEqual(decode(twice).kinds.filter((_, i) => i % 2 === 0 && Math.floor(i / 6) % 2 === 0), decode(patch).kinds);
});

for (const [what, change] of [
  ["a place below 0", { x: -1 }], ["half a pixel", { y: 0.5 }], ["no width", { width: 0 }], ["another width", { width: 5 }],
  ["a text that is none", { runs: 7 }], ["what is not base64", { runs: "*" }], ["a run that does not end", { runs: "gA==" }],
  ["a run of no pixels", { runs: "AA==" }], ["a run that is too long", { runs: "gICAgAE=" }], ["a frame below 0", { frame: -1 }],
  ["an image beyond all images", { width: 30000, height: 30000 }],
]) {
  test(`${what} is no patch`, () => {
    const good = { x: 1, y: 2, width: 2, height: 2, runs: "DQ==" };
    assert.deepEqual(cleanPatch({ ...good, more: 1 }), good);
    assert.equal(cleanPatch({ ...good, ...change }), null);
  });
}

test("what is not even an object is no patch", () => assert.deepEqual([null, 5, "x", undefined, []].map(cleanPatch), Array(5).fill(null)));

test("a mask's patch is its pixels, in the smallest box around them", () => {
  const mask = Uint8Array.from({ length: IMAGE.width * IMAGE.height }, (_, i) => Number(i % IMAGE.width > 4 && i % IMAGE.width < 30 && i > 200 && random(2)));
  const patch = patchOf((pixel) => mask[pixel] === 1, IMAGE);
  assert.deepEqual(whole(decode(patch)), mask.map((one) => (one ? ADD : LEAVE)));
  const { x, y, width, height } = decode(patch);
  const has = (test) => mask.some((one, i) => one && test(i % IMAGE.width, Math.floor(i / IMAGE.width)));
  assert.ok(has((column) => column === x) && has((column) => column === x + width - 1));
  assert.ok(has((_, row) => row === y) && has((_, row) => row === y + height - 1));
});

test("a mask without a pixel has no patch", () => assert.equal(patchOf(() => false, IMAGE), null));

/** Large images in tiles, which come when a test says so. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { recorder, settled } from "./fake_dom.mjs";
import { contract } from "../../web/editor/contract.js";
import { isLarge, Pyramid } from "../../web/editor/pyramid.js";

const SIDE = contract.pyramid.tile;
const [WIDTH, HEIGHT] = [12_000, 8_001];
const ALL = { x: 0, y: 0, width: WIDTH, height: HEIGHT };

let asked, closed, changes, pyramid;
beforeEach(() => {
  [asked, closed, changes] = [[], [], 0];
  pyramid = new Pyramid({
    width: WIDTH,
    height: HEIGHT,
    load: (...tile) => new Promise((answer, fail) => asked.push({ tile, answer, fail })),
    onChange: () => { changes += 1; },
  });
});

/** A tile as the server makes it: those at the edges are smaller. */
function bitmapOf([level, column, row]) {
  const of = (whole, place) => Math.min(SIDE, Math.ceil(whole / 2 ** level) - place * SIDE);
  const name = `${level} ${column} ${row}`;
  return { name, width: of(WIDTH, column), height: of(HEIGHT, row), close: () => closed.push(name) };
}

async function answer(which = asked.at(-1)) {
  which.answer(bitmapOf(which.tile));
  await settled();
}

function draw(scale, area = ALL) {
  const { context, calls } = recorder();
  pyramid.draw(context, scale, area);
  return calls("drawImage").map(([, { name }, ...where]) => [name, ...where]);
}

test("an image of more pixels than the browser is to have is large, and none is where the node says nothing", () => {
  assert.deepEqual([isLarge({ width: 8192, height: 4096 }), isLarge({ width: 8193, height: 4096 }), isLarge({})], [false, true, false]);
  const { pyramid: kept } = contract;
  delete contract.pyramid;
  assert.equal(isLarge(ALL), false);
  contract.pyramid = kept;
});

test("it begins with the whole image as one tile, and says where there is none", async () => {
  const begun = pyramid.begin();
  assert.deepEqual([pyramid.levels, asked.map(({ tile }) => tile)], [6, [[5, 0, 0]]]);
  await answer();
  assert.equal(await begun, true);
  const other = new Pyramid({ width: WIDTH, height: HEIGHT, load: async () => { throw new Error("gone"); }, onChange: () => {} });
  assert.equal(await other.begin(), false);
});

test("an image of one tile has one level", () => {
  assert.equal(new Pyramid({ width: SIDE, height: 3, load: () => {}, onChange: () => {} }).levels, 1);
  assert.equal(new Pyramid({ width: SIDE + 1, height: 3, load: () => {}, onChange: () => {} }).levels, 2);
});

for (const [scale, level] of [[1, 0], [3, 0], [0.99, 0], [0.5, 1], [0.49, 1], [0.25, 2], [0.03, 5], [0.0001, 5]]) {
  test(`at ${scale} it is level ${level}, which has a pixel for each of the canvas`, () => assert.equal(pyramid.levelFor(scale), level));
}

test("the tiles of an area are those that have a part of it, the middle ones first, and none beyond the image", () => {
  assert.deepEqual(pyramid.tilesIn({ x: 600, y: 0, width: 900, height: 512 }, 0), [[2, 0], [1, 0]]);
  assert.deepEqual(pyramid.tilesIn({ x: -5000, y: -5000, width: 5400, height: 5100 }, 0), [[0, 0]]);
  assert.deepEqual(pyramid.tilesIn({ x: 11_900, y: 7900, width: 9000, height: 9000 }, 0), [[23, 15]]);
  assert.deepEqual(pyramid.tilesIn({ x: 20_000, y: 0, width: 10, height: 10 }, 0), []);
  assert.equal(pyramid.tilesIn(ALL, 0).length, 24 * 16);
  assert.deepEqual(pyramid.tilesIn(ALL, 0)[0], [11, 7]);
});

test("what is not there is loaded, a few tiles at a time, and a coarser one stands in", async () => {
  pyramid.begin();
  await answer(asked.shift());
  const area = { x: 2048, y: 2048, width: 2048, height: 1024 };
  assert.deepEqual(draw(1, area), [["5 0 0", 0, 0, 375, 250.03125, 0, 0, 12_000, 8001]]);
  assert.equal(asked.length, 6, "of eight");
  assert.ok(asked.every(({ tile: [level, column, row] }) => level === 0 && column >= 4 && column < 8 && row >= 4 && row < 6));
  const before = changes;
  await answer(asked[0]);
  assert.deepEqual([asked.length, changes], [7, before + 1]);
  const [, drawn] = draw(1, area);
  const [, column, row] = asked[0].tile;
  assert.deepEqual(drawn, [`0 ${column} ${row}`, 0, 0, 512, 512, column * 512, row * 512, 512, 512]);
});

test("nothing is loaded twice, and what has left the screen before its turn not at all", async () => {
  pyramid.begin();
  await answer(asked.shift());
  draw(1, { x: 0, y: 0, width: 4096, height: 2048 });
  draw(1, { x: 0, y: 0, width: 4096, height: 2048 });
  assert.equal(asked.length, 6);
  draw(1, { x: 8192, y: 4096, width: 512, height: 512 });
  const first = asked.slice();
  for (const one of first) await answer(one);
  assert.deepEqual(asked.slice(6).map(({ tile }) => tile), [[0, 16, 8]]);
  assert.equal(new Set(asked.map(({ tile }) => tile.join())).size, asked.length);
});

test("tiles of a level that was seen before stand in when the zoom changes", async () => {
  pyramid.begin();
  await answer(asked.shift());
  const area = { x: 0, y: 0, width: 1024, height: 1024 };
  draw(0.5, area);
  await answer(asked.shift());
  const names = draw(1, area).map(([name]) => name);
  assert.deepEqual(names, ["5 0 0", "1 0 0"]);
});

test("a tile that cannot be had is not asked for again and again", async () => {
  pyramid.begin();
  await answer(asked.shift());
  const area = { x: 0, y: 0, width: 500, height: 500 };
  draw(1, area);
  asked[0].fail(new Error("503"));
  await settled();
  draw(1, area);
  assert.equal(asked.length, 1);
});

test("tiles are bounded: those that were drawn last stay, and the whole image does", async () => {
  pyramid.begin();
  await answer(asked.shift());
  for (let row = 0; row < 15; row += 1) {
    const area = { x: 0, y: row * 512, width: WIDTH, height: 512 };
    for (let round = 0; round < 20; round += 1) {
      draw(1, area);
      for (const one of asked.splice(0)) await answer(one);
    }
  }
  assert.ok(closed.length > 150 && !closed.includes("5 0 0") && new Set(closed).size === closed.length);
  assert.ok(draw(1, { x: 0, y: 14 * 512, width: WIDTH, height: 512 }).length === 25, "the last row is there");
  assert.equal(asked.length, 0);
  const before = closed.length;
  pyramid.dispose();
  assert.ok(closed.length - before <= 161 && closed.includes("5 0 0"));
});

test("what comes after the image has gone is let go of", async () => {
  pyramid.begin();
  await answer(asked.shift());
  draw(1, { x: 0, y: 0, width: 500, height: 500 });
  pyramid.dispose();
  const before = changes;
  await answer(asked[0]);
  assert.deepEqual([closed, changes], [["5 0 0", "0 0 0"], before]);
});

/** Which image is shown, with a server and a browser whose answers are given by hand. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { ShownImage } from "../../web/editor/shown_image.js";

const A = { filename: "a.png" };
const B = { filename: "b.png" };

let loading, questions, changes, shown, now;
beforeEach(() => {
  [loading, questions, changes, now] = [[], [], [], 10_000];
  globalThis.Image = class {
    constructor() { loading.push(this); }
  };
  performance.now = () => now;
  shown = new ShownImage({
    identify: () => new Promise((answer) => questions.push(answer)),
    url: ({ filename }, version) => `${filename}?${version}`,
    onChange: (before, isOtherFile) => changes.push([before?.src ?? null, isOtherFile]),
  });
});

const soon = () => new Promise((done) => setImmediate(done));

/** Answer the latest question about a file's content. */
async function identified(version) {
  questions.at(-1)(version);
  await soon();
}

async function show(name, version, how) {
  const load = shown.load(name, how);
  await identified(version);
  loading.at(-1).onload();
  return load;
}

test("where nobody answers, what is shown stays, and what is not shown is loaded all the same", async () => {
  await show(A, "1");
  now += 60_000;
  shown.load(A, { check: true });
  await identified(null);
  assert.deepEqual([loading.length, shown.version, shown.isLost, shown.image], [1, "1", false, loading[0]]);
  shown.load(B);
  await identified(null);
  assert.deepEqual([loading.length, loading.at(-1).src], [2, "b.png?"]);
});

test("what will be shown is known before it has been loaded, and forgotten where it cannot be", async () => {
  shown.load(A);
  assert.equal(shown.coming, null);
  await identified("1");
  assert.deepEqual([shown.coming, shown.image], [{ name: JSON.stringify(A), version: "1" }, null]);
  loading.at(-1).onerror();
  assert.equal(shown.coming, null);
});

test("an image's address carries what tells its content", async () => {
  await show(A, "1");
  assert.deepEqual([shown.image.src, shown.name, shown.version], ["a.png?1", JSON.stringify(A), "1"]);
  assert.deepEqual(changes, [[null, true]]);
});

test("what is shown is not asked for again, until somebody wants it checked, and then once a second", async () => {
  await show(A, "1");
  shown.load(A);
  shown.load(A, { check: true });
  assert.equal(questions.length, 1);
  now += 1500;
  shown.load(A, { check: true });
  await identified("1");
  assert.deepEqual([questions.length, loading.length], [2, 1], "the same content is not loaded again");
});

test("a file that has changed is loaded by another address; what is shown stays until it has come", async () => {
  await show(A, "1");
  now += 1500;
  shown.load(A, { check: true });
  await identified("2");
  assert.equal(shown.version, "1");
  loading.at(-1).onload();
  assert.deepEqual([shown.image.src, shown.version, changes.at(-1)], ["a.png?2", "2", ["a.png?1", false]]);
});

test("a change that the server alone knows of brings another address too", async () => {
  await show(A, "1");
  await show(A, "1", { again: true });
  assert.notEqual(shown.image.src, "a.png?1");
  assert.notEqual(shown.version, "1");
});

test("of two files the one that was wanted last is shown, whichever comes first", async () => {
  shown.load(A);
  shown.load(B);
  questions[1]("1");
  questions[0]("1");
  await soon();
  assert.deepEqual(loading.map(({ src }) => src), ["b.png?1"]);
  loading[0].onload();
  shown.load(A);
  await identified("1");
  await show(B, "2");
  loading[1].onload();
  assert.equal(shown.image.src, "b.png?2");
});

test("a file that cannot be loaded is lost, and nothing is shown for it", async () => {
  await show(A, "1");
  shown.load(B);
  await identified("1");
  loading.at(-1).onerror();
  assert.deepEqual([shown.image, shown.isLost], [null, true]);
  await shown.load(null);
  assert.equal(shown.isLost, false);
});

test("after the end nothing is shown any more, and it can begin anew", async () => {
  await show(A, "1");
  shown.load(B);
  shown.dispose();
  await identified("1");
  assert.deepEqual([shown.image, loading.length], [null, 1]);
  await show(B, "1");
  assert.equal(shown.image.src, "b.png?1");
});

// --- large images

class Tiles {
  constructor(size) { Object.assign(this, size, { disposed: 0 }); }
  begin() { return new Promise((done) => { this.begun = done; }); }
  dispose() { this.disposed += 1; }
}

let made;
function inTiles() {
  made = [];
  shown = new ShownImage({
    identify: () => new Promise((answer) => questions.push(answer)),
    url: ({ filename }, version) => `${filename}?${version}`,
    onChange: (before, isOtherFile) => changes.push([before?.src ?? null, isOtherFile]),
    pyramid: (name, version, size) => (made.push(Object.assign(new Tiles(size), { of: [name.filename, version] })), made.at(-1)),
  });
}

async function large(name, version) {
  shown.load(name);
  await identified(version);
  Object.assign(loading.at(-1), { width: 12_000, height: 8000 });
  loading.at(-1).onload();
}

test("a large image is shown in tiles once the first is there, and the browser's own copy goes", async () => {
  inTiles();
  await large(A, "1");
  assert.deepEqual([shown.image, made[0].of, made[0].width, made[0].height], [null, ["a.png", "1"], 12_000, 8000]);
  made[0].begun(true);
  await soon();
  assert.deepEqual([shown.image === made[0], loading[0].src, shown.version], [true, "", "1"]);
  await show(B, "2");
  assert.deepEqual([made.length, made[0].disposed, shown.image], [1, 1, loading[1]], "a small one is as ever");
});

test("where the server has no tiles the browser shows the image itself", async () => {
  inTiles();
  await large(A, "1");
  made[0].begun(false);
  await soon();
  assert.deepEqual([shown.image, loading[0].src, made[0].disposed], [loading[0], "a.png?1", 1]);
});

test("tiles of an image that is not wanted any longer are let go of", async () => {
  inTiles();
  await large(A, "1");
  await show(B, "2");
  made[0].begun(true);
  await soon();
  assert.deepEqual([shown.image, made[0].disposed], [loading[1], 1]);
  await large(A, "3");
  made[1].begun(true);
  await soon();
  shown.dispose();
  assert.equal(made[1].disposed, 1);
});

test("without tiles, or with a small image, nothing is asked of the server", async () => {
  await large(A, "1");
  assert.equal(shown.image, loading[0]);
  inTiles();
  shown.load(A);
  await identified("1");
  Object.assign(loading.at(-1), { width: 4000, height: 3000 });
  loading.at(-1).onload();
  assert.deepEqual([shown.image, made], [loading.at(-1), []]);
});

test("a large image that is still being loaded is shown in tiles as soon as its size is known", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  inTiles();
  shown.load(A);
  await identified("1");
  const image = Object.assign(loading.at(-1), { complete: false, naturalWidth: 0, naturalHeight: 0 });
  context.mock.timers.tick(1000);
  assert.equal(made.length, 0);
  Object.assign(image, { width: 12_000, height: 8000, naturalWidth: 12_000, naturalHeight: 8000 });
  context.mock.timers.tick(1000);
  context.mock.timers.tick(1000);
  assert.equal(made.length, 1);
  made[0].begun(true);
  await soon();
  assert.deepEqual([shown.image === made[0], image.src], [true, ""], "and the rest is not loaded");
});

test("where there are no tiles for it, an image that is still being loaded is waited for", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  inTiles();
  shown.load(A);
  await identified("1");
  const image = Object.assign(loading.at(-1), { complete: false, width: 12_000, height: 8000, naturalWidth: 12_000, naturalHeight: 8000 });
  context.mock.timers.tick(1000);
  made[0].begun(false);
  await soon();
  assert.deepEqual([shown.image, image.src], [null, "a.png?1"]);
  image.onload();
  assert.equal(shown.image, image);
});

test("a small image that takes long is as ever", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  inTiles();
  shown.load(A);
  await identified("1");
  const image = Object.assign(loading.at(-1), { complete: false, width: 40, height: 30, naturalWidth: 40, naturalHeight: 30 });
  context.mock.timers.tick(5000);
  assert.deepEqual([made, shown.image], [[], null]);
  image.onload();
  assert.equal(shown.image, image);
});

/** Which of SAM Track's masks the editor shows: whose they are, how long they hold, and how they are fetched. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { EditorState } from "../../web/editor/state.js";
import { Tracked, changes } from "../../web/editor/tracked.js";

const point = (x, frame, object = 0) => ({ x, y: 5, label: 1, ...(frame !== undefined && { frame }), object });
const text = (...objects) => JSON.stringify({
  version: 2,
  objects: objects.map(([name, ...marks]) => ({ name, candidate: "best", marks: marks.map(({ object: _, ...mark }) => mark) })),
});
const trackOf = (prompts, more = {}) => ({
  file: "f.zip",
  direction: "forward",
  prompts,
  objects: [{ name: 2, seen: "0011", computed: 2 }, { name: 1, seen: "1101", computed: 4 }],
  ...more,
});

let state, tracked, asked, shown, closed;
beforeEach(() => {
  [asked, shown, closed] = [[], 0, []];
  state = new EditorState();
  state.load(text(["cat", point(1, 0)], ["dog", point(9, 2)]));
  state.setFrames(4);
  tracked = new Tracked({
    client: { tracked: (question) => new Promise((answer, fail) => asked.push({ question, answer, fail })) },
    decode: async (png) => ({ png, close: () => closed.push(png) }),
    onChange: () => (shown += 1),
  });
  tracked.take(trackOf(state.runText));
});
const soon = () => new Promise((done) => setImmediate(done));
const rows = (frame = 0) => state.objects.map((_, index) => tracked.standing(state, index, frame)?.row ?? null);

test("frames on which marks differ; without any frame they are the first one's", () => {
  assert.deepEqual(changes([point(1), point(2, 7)], [point(1), point(3, 7), point(4, 2)]), [2, 7]);
  assert.deepEqual(changes([point(1)], [point(1, 0)]), []);
  assert.deepEqual(changes([point(1, 3), point(2, 3)], [point(2, 3), point(1, 3)]), [3], "their order is part of a prompt");
});

test("objects are found by the number that their marks went out with, not by their order in the track", () => {
  assert.deepEqual(rows(), [1, 0]);
  assert.deepEqual([0, 1, 2, 3].map((frame) => tracked.standing(state, 0, frame).isSeen), [true, true, false, true]);
});

test("a single object without a number is the first one", () => {
  state.load(text(["cat", point(1)]));
  tracked.take(trackOf(state.runText, { objects: [{ name: "#1", seen: "1111", computed: 4 }] }));
  assert.deepEqual(rows(), [0]);
});

test("objects that are renamed, moved and joined by others stay who they are", () => {
  assert.deepEqual(rows(), [1, 0]);
  state.setObject(0, { name: "dog" });
  state.moveObject(0, 1);
  state.newObject();
  assert.deepEqual(rows(), [0, 1, null]);
  state.undo();
  state.undo();
  assert.deepEqual(rows(), [1, 0]);
  state.removeObject(0);
  assert.deepEqual(rows(), [0]);
});

test("after a reload they are found by their names, equal ones in their order", () => {
  const written = text(["cat", point(1, 0)], ["cat", point(9, 2)]);
  state.load(written);
  tracked.take(trackOf(written));
  assert.deepEqual(rows(), [1, 0]);
  state.load(text(["bird", point(3, 1)], ["cat", point(1, 0)], ["cat", point(9, 2)]));
  assert.deepEqual(rows(), [null, 1, 0]);
});

test("a change makes masks old from its frame on, and those of the object alone", () => {
  state.setFilm(true);
  state.selectObject(0);
  state.showFrame(2);
  state.add({ x: 3, y: 3, label: 0 });
  const standing = [0, 1, 2, 3].map((frame) => tracked.standing(state, 0, frame));
  assert.deepEqual(standing.map(({ isOld, differs }) => [isOld, differs]), [[false, false], [false, false], [true, true], [true, false]]);
  assert.equal(standing[0].from, 2);
  assert.equal(tracked.standing(state, 1, 3).isOld, false);
  state.undo();
  assert.equal(tracked.standing(state, 0, 3).isOld, false);
});

test("of a film that was followed backwards too, a change makes all of them old", () => {
  tracked.take(trackOf(state.runText, { direction: "both" }));
  state.setFilm(true);
  state.showFrame(2);
  state.add({ x: 3, y: 3, label: 0 });
  assert.equal(tracked.standing(state, state.current, 0).isOld, true);
});

test("a track of a shorter film, and none, say nothing", () => {
  state.setFrames(5);
  assert.deepEqual(rows(), [null, null]);
  state.setFrames(3);
  assert.deepEqual(rows(), [1, 0]);
  tracked.take(null);
  assert.deepEqual(rows(), [null, null]);
});

test("masks are fetched one at a time, and only those that are wanted now", async () => {
  const items = [0, 1, 3].map((frame) => tracked.item({ row: 1 }, frame, "#1e90ff", "tint"));
  assert.deepEqual(items[0].question, { track: { file: "f.zip", object: 1, frame: 0 }, colour: "#1e90ff", form: "tint" });
  tracked.want([items[0]]);
  tracked.want([items[1]]);
  tracked.want([items[2]]);
  assert.equal(asked.length, 1);
  asked[0].answer({ png: "a", area: 7 });
  await soon();
  assert.deepEqual(asked.map(({ question }) => question.track.frame), [0, 3], "what was passed is not fetched");
  asked[1].answer({ png: "b", area: 8 });
  await soon();
  assert.deepEqual([tracked.find(items[0].key).area, tracked.find(items[1].key), tracked.find(items[2].key).area], [7, null, 8]);
  assert.equal(shown, 2);
  tracked.want(items);
  await soon();
  assert.equal(asked.length, 3, "what is there is not fetched again");
});

test("masks that the server no longer has are given up, until there is another run", async () => {
  const item = tracked.item({ row: 1 }, 0, "#1e90ff", "tint");
  tracked.want([item, tracked.item({ row: 0 }, 2, "#1e90ff", "tint")]);
  asked[0].fail(Object.assign(new Error("gone"), { status: 404 }));
  await soon();
  assert.deepEqual([asked.length, shown, rows()], [1, 1, [null, null]]);
  tracked.take(null);
  assert.equal(tracked.take(trackOf(state.runText)), true);
  assert.deepEqual(rows(), [1, 0]);
});

test("after another failure the masks stay the track's, and the next change asks again", async () => {
  const item = tracked.item({ row: 1 }, 0, "#1e90ff", "tint");
  tracked.want([item]);
  asked[0].fail(new Error("no server"));
  await soon();
  assert.deepEqual(rows(), [1, 0]);
  tracked.want([item]);
  assert.equal(asked.length, 2);
});

test("another run's masks take the place of those that were fetched", async () => {
  const item = tracked.item({ row: 1 }, 0, "#1e90ff", "tint");
  tracked.want([item]);
  asked[0].answer({ png: "a", area: 7 });
  await soon();
  assert.equal(tracked.take(trackOf(state.runText)), false);
  assert.equal(tracked.take(trackOf(state.runText, { file: "g.zip" })), true);
  assert.deepEqual([closed, tracked.find(item.key)], [["a"], null]);
});

/** The strip of a film: places and frames, the state's part of a film, and its keys. */

import "./contract.mjs";
import { element } from "./fake_dom.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { frameAt, linesOf, makeFilm, runsOf, thumbnailsOf } from "../../web/editor/film.js";
import { onKey } from "../../web/editor/keys.js";
import { isTracked, mayBeFilm } from "../../web/editor/source.js";
import { EditorState } from "../../web/editor/state.js";
import { statusOf } from "../../web/editor/status.js";

let state;
beforeEach(() => {
  state = new EditorState();
  state.setFrames(24);
});
const bare = () => state.marks.map(({ object: _, ...mark }) => mark);

test("thumbnails have room beside each other, and are spread over the film", () => {
  assert.deepEqual(thumbnailsOf(500, 100, 25).map(({ frame }) => frame), [62, 187, 312, 437]);
  assert.deepEqual(thumbnailsOf(500, 100, 30).map(({ x, width }) => [Math.round(x), Math.round(width)]), [[0, 33], [33, 33], [67, 33]]);
  assert.deepEqual(thumbnailsOf(2, 1000, 25).map(({ frame }) => frame), [0, 1]);
  assert.equal(thumbnailsOf(9, 3, 25).length, 1);
});

test("each place of the strip is a frame, also beside it", () => {
  assert.deepEqual([-5, 0, 9.9, 10, 99, 100, 300].map((x) => frameAt(x, 100, 10)), [0, 0, 0, 1, 9, 9, 9]);
  assert.equal(frameAt(0, 0, 10), 0);
});

test("runs of frames with a mask", () => {
  assert.deepEqual(runsOf("0110100111"), [[1, 3], [4, 5], [7, 10]]);
  assert.deepEqual(runsOf("000"), []);
});

test("the selected object has a line, however many there are", () => {
  assert.deepEqual(linesOf(3, 2), [0, 1, 2]);
  assert.deepEqual(linesOf(20, 0), [0, 1, 2, 3, 4, 5]);
  for (const current of [9, 17, 19]) assert.ok(linesOf(20, current).includes(current) && linesOf(20, current).length === 6);
});

test("in a film each mark is that of the shown frame", () => {
  state.setFilm(true);
  state.showFrame(7);
  state.add({ x: 1, y: 2, label: 1 });
  assert.deepEqual(bare(), [{ x: 1, y: 2, label: 1, frame: 7 }]);
  state.setFilm(false);
  state.add({ x: 3, y: 4, label: 1 });
  assert.equal(bare()[1].frame, undefined);
});

test("marks without a frame are the first frame's, and get its number when another frame is marked", () => {
  state.add({ x: 1, y: 2, label: 1 });
  assert.equal(state.shown.length, 1);
  state.setFilm(true);
  state.showFrame(7);
  assert.deepEqual([state.shown, state.markedFrames(0)], [[], [0]]);
  state.add({ x: 3, y: 4, label: 0 });
  assert.deepEqual(bare().map(({ frame }) => frame), [0, 7]);
  state.undo();
  assert.deepEqual(bare().map(({ frame }) => frame), [undefined]);
});

test("objects that are added to a film are the shown frame's, and leave the others where they are", () => {
  state.add({ x: 1, y: 2, label: 1 });
  state.setFilm(true);
  state.showFrame(3);
  state.addObjects([{ marks: [{ x: 5, y: 6, label: 1 }] }]);
  assert.deepEqual(state.marks.map(({ frame, object }) => [frame, object]), [[0, 0], [3, 1]]);
});

test("a text with marks for all frames and for some is shown as it is", () => {
  state.load('{"marks": [{"x": 1, "y": 2, "label": 1}, {"x": 3, "y": 4, "label": 1, "frame": 2}]}');
  state.setFilm(true);
  state.showFrame(9);
  assert.equal(state.shown.length, 1);
  assert.deepEqual(state.markedFrames(0), [2]);
});

test("one goes from frame to frame that the selected object is marked on", () => {
  state.setFilm(true);
  for (const frame of [15, 3]) {
    state.showFrame(frame);
    state.add({ x: 1, y: 2, label: 1 });
  }
  state.showFrame(8);
  assert.deepEqual([state.markedFrames(0), state.markedFrame(-1), state.markedFrame(1)], [[3, 15], 3, 15]);
  state.showMarked(1);
  assert.equal(state.frame, 15);
  state.showMarked(1);
  assert.equal(state.frame, 15);
  state.newObject();
  assert.equal(state.markedFrame(-1), null);
});

const key = (name, more = {}) => onKey({ key: name, target: element(), ...more }, { state, image: { width: 9, height: 9 }, gestures: { active: false }, alike: { keyed: () => null }, brush: {}, nudge: () => nudged.push(name) });
let nudged = [];

test("keys step through the frames; the arrows belong to a mark that is selected", () => {
  for (const [name, frame, more] of [["ArrowRight", 1], [".", 2], ["ArrowRight", 12, { shiftKey: true }], ["ArrowLeft", 11], [",", 10], ["End", 23], [".", 23], ["Home", 0], ["ArrowLeft", 0]]) {
    assert.equal(key(name, more), true, name);
    assert.equal(state.frame, frame, name);
  }
  state.add({ x: 1, y: 2, label: 1 });
  nudged = [];
  key("ArrowRight");
  assert.deepEqual([state.frame, nudged], [0, ["ArrowRight"]]);
  assert.equal(key("."), true);
  assert.equal(state.frame, 1);
});

test("with a single image the keys are nobody's", () => {
  state.setFrames(1);
  for (const name of [",", ".", "Home", "End", "ArrowLeft"]) assert.equal(key(name), false, name);
});

test("the strip is there for several frames only, and says which one is shown", () => {
  const film = makeFilm({ state, host: {}, images: [], tracked: { standing: () => null } });
  const [before, canvas, after] = film.element.children;
  state.showFrame(4);
  film.update();
  assert.equal(film.element.hidden, false);
  assert.deepEqual(["aria-valuemax", "aria-valuenow"].map((name) => canvas.attributes[name]), [24, 5]);
  assert.ok(before.disabled && after.disabled);
  state.setFrames(1);
  film.update();
  assert.equal(film.element.hidden, true);
});

test("the status says what SAM Track has on the frame", () => {
  const view = { image: { width: 8, height: 6 }, hasModel: false, preview: { name: "idle" }, answer: null, object: "cat" };
  assert.equal(statusOf({ ...view, tracked: { isSeen: true, isOld: false, area: 1234 } }), "cat · SAM Track · 1,234 px · 8 × 6");
  assert.match(statusOf({ ...view, tracked: { isSeen: true, isOld: true, area: null } }), /SAM Track · before the last change: run again/);
  assert.match(statusOf({ ...view, tracked: { isSeen: false, isOld: false, area: null } }), /not seen on this frame/);
  assert.match(statusOf(view), /connect a SAM model/);
});

const graph = {
  1: { class_type: "SAMKit_PromptEditor", inputs: {} },
  2: { class_type: "SAMKit_Track", inputs: { positive_coords: ["1", 0] } },
  3: { class_type: "SAMKit_Track", inputs: { mask_prompt: ["1", 3], image: ["1", 4] } },
  4: { class_type: "SAMKit_Segment", inputs: { bboxes: ["1", 2] } },
};

test("an editor is tracked where SAM Track takes its marks", () => {
  assert.deepEqual([isTracked(graph, "1"), isTracked(graph, "9")], [true, false]);
  assert.deepEqual(["2", "3", "4", "8"].map((track) => isTracked(graph, "1", track)), [true, false, false, false]);
});

test("files that may have several frames", () => {
  assert.deepEqual(["a.webp", "b.GIF", "c.png", "d.jpg"].map((filename) => mayBeFilm({ filename })), [true, true, false, false]);
});

/** Pointer events and what they do, on an element that hands its listeners over, shown at half its size. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { View } from "../../web/editor/geometry.js";
import { Gestures } from "../../web/editor/gestures.js";
import { EditorState } from "../../web/editor/state.js";

const LEFT = 0, MIDDLE = 1, RIGHT = 2, BACK = 3;
const point = (x, y, label = 1) => ({ x, y, label, object: 0 });
const box = (x, y, width, height) => ({ x, y, width, height, object: 0 });
const place = (x, y, label = 1) => ({ x, y, label });

let editor, state, stage, gestures, hovers, redraws, now;

beforeEach(() => {
  hovers = [];
  redraws = now = 0;
  stage = {
    style: {},
    listeners: {},
    focused: 0,
    captured: [],
    addEventListener(type, handle) { this.listeners[type] = handle; },
    getBoundingClientRect: () => ({ left: 100, top: 50, width: 200, height: 200 }),
    focus() { this.focused += 1; },
    setPointerCapture(pointer) { this.captured.push(pointer); },
  };
  state = new EditorState();
  editor = {
    state,
    view: new View(),
    image: { width: 300, height: 300 },
    unit: 2,
    stageSize: { width: 400, height: 400 },
    panning: false,
    framing: false,
    regions: [],
    taken: 0,
    drawRegion(region) { this.regions.push(region); },
    takeRegion() { this.taken += 1; },
    negative: false,
    boxTool: false,
    brush: { isActive: false, at: null },
    other: null,
    refused: 0,
    objectAt() { return this.other; },
    refuse() { this.refused += 1; },
    redraw: () => (redraws += 1),
    hover: (place) => hovers.push(place),
  };
  gestures = new Gestures(stage, editor);
});

/** Send an event at a place in editor pixels; returns what became of it. */
function send(type, x, y, more = {}) {
  const done = { prevented: false, stopped: false };
  stage.listeners[type]({
    ...{ clientX: 100 + x / 2, clientY: 50 + y / 2, timeStamp: now },
    ...{ pointerId: 1, pointerType: "mouse", button: LEFT, shiftKey: false, altKey: false },
    ...{ preventDefault: () => (done.prevented = true), stopPropagation: () => (done.stopped = true) },
    ...more,
  });
  return done;
}

const down = (x, y, more) => send("pointerdown", x, y, more);
const move = (x, y, more) => send("pointermove", x, y, more);
const up = (x, y, more) => send("pointerup", x, y, more);
const finger = (pointerId) => ({ pointerId, pointerType: "touch" });

function click(x, y, more) {
  down(x, y, more);
  up(x, y, more);
}

function drag([x, y], ...places) {
  down(x, y);
  for (const place of places) move(...place);
  up(...places.at(-1));
}

const load = (...marks) => state.load(JSON.stringify({ marks }));

// --- clicks

test("a click adds a positive point where it was", () => {
  click(60, 80);
  assert.deepEqual(state.marks, [point(60, 80)]);
});

test("a click hits the right pixel of a zoomed and moved image", () => {
  Object.assign(editor.view, { scale: 4, x: -100, y: 20 });
  click(60, 80);
  assert.deepEqual(state.marks, [point(40, 15)]);
});

for (const [what, more] of [["right", { button: RIGHT }], ["Shift", { shiftKey: true }], ["Alt", { altKey: true }]]) {
  test(`a click with ${what} adds a negative point`, () => {
    click(60, 80, more);
    assert.deepEqual(state.marks, [point(60, 80, 0)]);
  });
}

test("a click adds a negative point while the switch is on", () => {
  editor.negative = true;
  click(60, 80);
  assert.deepEqual(state.marks, [point(60, 80, 0)]);
});

for (const button of [MIDDLE, BACK]) {
  test(`a click with button ${button} adds nothing`, () => {
    click(60, 80, { button });
    assert.deepEqual(state.marks, []);
    assert.equal(gestures.active, false);
  });
}

test("a click beside the image adds nothing", () => {
  click(350, 80);
  assert.deepEqual(state.marks, []);
});

test("a click that trembles is a click, where it began", () => {
  drag([60, 80], [63, 84], [61, 80]);
  assert.deepEqual(state.marks, [point(60, 80)]);
});

test("a click inside a box adds a point", () => {
  load(box(20, 20, 200, 200));
  click(120, 120);
  assert.deepEqual(state.marks, [box(20, 20, 200, 200), point(120, 120)]);
});

test("a click on a mark selects it, and is no step", () => {
  load(point(60, 80), box(100, 100, 100, 100));
  click(62, 80);
  assert.equal(state.selected, 0);
  click(100, 150);
  assert.equal(state.selected, 1);
  assert.deepEqual([state.marks.length, state.canUndo], [2, false]);
});

test("a point is as large on the screen, whatever the zoom", () => {
  load(point(60, 60));
  Object.assign(editor.view, { scale: 4 });
  click(240 + 19, 240);
  assert.deepEqual([state.marks.length, state.selected], [1, 0]);
  click(240 + 21, 240);
  assert.equal(state.marks.length, 2);
});

test("a double click on a mark removes it", () => {
  load(point(60, 80));
  click(60, 80);
  now += 200;
  click(60, 80);
  assert.deepEqual(state.marks, []);
});

test("two slow clicks on a mark leave it", () => {
  load(point(60, 80));
  click(60, 80);
  now += 800;
  click(60, 80);
  assert.deepEqual(state.marks, [point(60, 80)]);
});

test("clicks on two marks remove none", () => {
  load(point(60, 80), point(160, 80));
  click(60, 80);
  click(160, 80);
  assert.equal(state.marks.length, 2);
});

test("a double click on an empty place adds one point and keeps it", () => {
  click(60, 80);
  click(60, 80);
  assert.deepEqual(state.marks, [point(60, 80)]);
});

// --- drags

test("a drag from an empty place draws a box, one step", () => {
  drag([60, 80], [100, 100], [160, 200]);
  assert.deepEqual(state.marks, [box(60, 80, 100, 120)]);
  state.undo();
  assert.deepEqual([state.marks, state.canUndo], [[], false]);
});

test("a box is seen while it is drawn", () => {
  down(60, 80);
  move(160, 200);
  assert.deepEqual(state.marks, [box(60, 80, 100, 120)]);
  assert.equal(state.canUndo, false);
});

test("a box drawn up and to the left, past the image's corner, ends there", () => {
  drag([60, 80], [-50, -70]);
  assert.deepEqual(state.marks, [box(0, 0, 60, 80)]);
});

test("a drag that begins beside the image draws a box that is cut off at its edge", () => {
  drag([350, 80], [100, 100]);
  assert.deepEqual(state.marks, [box(100, 80, 200, 20)]);
});

test("a drag beside the image draws nothing", () => {
  drag([350, 80], [390, 100]);
  assert.deepEqual([state.marks, state.canUndo], [[], false]);
});

for (const key of ["ctrlKey", "metaKey"]) {
  test(`a drag with ${key} draws a new box, inside of one and on a mark too`, () => {
    load(box(20, 20, 200, 200), point(100, 100));
    down(100, 100, { [key]: true });
    move(160, 150);
    up(160, 150);
    assert.deepEqual(state.marks.at(-1), { ...box(100, 100, 60, 50), object: 1 });
    assert.deepEqual(state.marks.slice(0, 2), [box(20, 20, 200, 200), point(100, 100)]);
  });
}

test("with the box tool every drag draws a new box, and a click still selects", () => {
  load(box(20, 20, 200, 200));
  editor.boxTool = true;
  drag([20, 100], [60, 150]);
  assert.deepEqual(state.marks.map(({ x, width }) => [x, width]), [[20, 200], [20, 40]]);
  click(220, 120);
  assert.equal(state.selected, 0);
});

test("a mark that lies outside of the image is reached at its edge", () => {
  load(point(900, 80));
  drag([300, 80], [250, 90]);
  assert.deepEqual(state.marks, [point(250, 90)]);
});

test("a click on another object's mask selects it, one that is off the object or forced does not", () => {
  state.load(JSON.stringify({ version: 2, objects: [{ marks: [place(10, 10)] }, { marks: [place(20, 200)] }] }));
  editor.other = 1;
  click(150, 150);
  assert.deepEqual([state.current, state.marks.length], [1, 2]);
  editor.other = 0;
  click(150, 150, { button: RIGHT });
  click(160, 150, { ctrlKey: true });
  assert.deepEqual([state.current, state.marks.slice(2)], [1, [{ ...point(150, 150, 0), object: 1 }, { ...point(160, 150), object: 1 }]]);
});

test("over another object's mask the pointer says so, and nothing is previewed", () => {
  editor.other = 1;
  move(150, 150);
  assert.deepEqual([stage.style.cursor, hovers], ["pointer", [null]]);
});

test("a locked object takes neither a click nor a box, and it is said why", () => {
  state.setObject(0, { locked: true });
  click(150, 150);
  down(50, 50);
  for (const to of [70, 80, 90]) move(to, to);
  up(90, 90);
  assert.deepEqual([state.marks.length, editor.refused], [0, 2], "once a click and once a drag, however far it goes");
});

test("a drag with the right button draws no box", () => {
  down(60, 80, { button: RIGHT });
  move(160, 200, { button: RIGHT });
  assert.deepEqual(state.marks, []);
});

test("a box dragged back to almost nothing is dropped", () => {
  drag([60, 80], [160, 200], [62, 83]);
  assert.deepEqual([state.marks, state.selected, state.canUndo], [[], null, false]);
});

test("a drag along a line is neither a box nor a click", () => {
  drag([60, 80], [100, 80], [160, 80]);
  assert.deepEqual([state.marks, state.canUndo], [[], false]);
});

test("a box of a few pixels is kept where they are large on the screen", () => {
  editor.view.scale = 10;
  drag([100, 100], [130, 120]);
  assert.deepEqual(state.marks, [box(10, 10, 3, 2)]);
});

test("a long flat box is kept", () => {
  drag([60, 80], [160, 200], [160, 81]);
  assert.deepEqual(state.marks, [box(60, 80, 100, 1)]);
});

test("a drag moves a point by as much as the pointer, one step", () => {
  load(point(60, 80, 0));
  drag([64, 80], [100, 100], [164, 90]);
  assert.deepEqual(state.marks, [point(160, 90, 0)]);
  state.undo();
  assert.deepEqual([state.marks, state.canUndo], [[point(60, 80, 0)], false]);
});

test("a drag on the zoomed image moves by the image's pixels", () => {
  load(point(60, 60));
  editor.view.scale = 4;
  drag([240, 240], [280, 200]);
  assert.deepEqual(state.marks, [point(70, 50)]);
});

test("a drag moves a corner, an edge, and the whole box", () => {
  load(box(60, 60, 100, 100));
  drag([160, 160], [180, 190]);
  assert.deepEqual(state.marks, [box(60, 60, 120, 130)]);
  drag([60, 120], [80, 150]);
  assert.deepEqual(state.marks, [box(80, 60, 100, 130)]);
  drag([130, 120], [140, 130]);
  assert.deepEqual(state.marks, [box(90, 70, 100, 130)]);
});

test("a dragged box is selected", () => {
  load(box(60, 60, 100, 100));
  drag([110, 110], [130, 130]);
  assert.equal(state.selected, 0);
});

test("a mark that is dragged and brought back is no step", () => {
  load(point(60, 80));
  drag([60, 80], [160, 80], [60, 80]);
  assert.deepEqual([state.marks, state.canUndo], [[point(60, 80)], false]);
});

test("a drag whose mark is taken away ends without harm", () => {
  state.add(point(20, 20));
  down(60, 80);
  move(160, 200);
  state.undo();
  move(170, 210);
  up(170, 210);
  assert.deepEqual(state.marks, []);
});

// --- giving up

test("a cancelled pointer brings the mark back", () => {
  load(point(60, 80));
  down(60, 80);
  move(160, 200);
  send("pointercancel", 160, 200);
  assert.deepEqual([state.marks, gestures.active, state.canUndo], [[point(60, 80)], false, false]);
});

test("a cancelled pointer leaves no box", () => {
  down(60, 80);
  move(160, 200);
  send("pointercancel", 160, 200);
  assert.deepEqual(state.marks, []);
});

test("after a cancel the next click works", () => {
  down(60, 80);
  send("pointercancel", 60, 80);
  click(100, 100);
  assert.deepEqual(state.marks, [point(100, 100)]);
});

test("after a cancelled finger another one clicks, and does not zoom", () => {
  down(60, 80, finger(1));
  send("pointercancel", 60, 80, finger(1));
  click(100, 100, finger(2));
  assert.deepEqual(state.marks, [point(100, 100)]);
});

test("an abandoned drag leaves nothing, and its end adds nothing", () => {
  down(60, 80);
  move(160, 200);
  gestures.abandon();
  assert.deepEqual(state.marks, []);
  up(160, 200);
  assert.deepEqual(state.marks, []);
});

test("an abandoned pan leaves the selection", () => {
  load(point(60, 80));
  state.select(0);
  down(200, 200, { button: MIDDLE });
  gestures.abandon();
  assert.equal(state.selected, 0);
});

// --- pan and pinch

for (const [what, panning, more] of [["the middle button", false, { button: MIDDLE }], ["Space", true, {}]]) {
  test(`a drag with ${what} pans, even over a mark`, () => {
    load(point(60, 80));
    editor.panning = panning;
    down(60, 80, more);
    move(70, 85, more);
    move(90, 60, more);
    up(90, 60, more);
    assert.deepEqual({ ...editor.view }, { scale: 1, x: 30, y: -20 });
    assert.deepEqual([state.marks, redraws], [[point(60, 80)], 2]);
  });
}

test("two fingers zoom about what is between them", () => {
  down(100, 100, finger(1));
  down(200, 100, finger(2));
  move(300, 100, finger(2));
  assert.equal(editor.view.scale, 2);
  const { x, y } = editor.view.toImage({ x: 200, y: 100 });
  assert.deepEqual([x, y], [150, 100], "what was between them still is");
});

test("two fingers moved alike pan", () => {
  down(100, 100, finger(1));
  down(200, 100, finger(2));
  for (let i = 1; i <= 40; i += 1) {
    move(100, 100 + i, finger(1));
    move(200, 100 + i, finger(2));
  }
  assert.ok(Math.abs(editor.view.scale - 1) < 0.01);
  assert.ok(Math.abs(editor.view.y - 40) < 1 && Math.abs(editor.view.x) < 1);
});

test("a second finger takes back what the first began, and neither adds a mark", () => {
  down(100, 100, finger(1));
  move(150, 150, finger(1));
  down(200, 100, finger(2));
  assert.deepEqual(state.marks, []);
  up(200, 100, finger(2));
  assert.equal(gestures.active, true, "until both are up");
  move(180, 180, finger(1));
  up(180, 180, finger(1));
  assert.deepEqual([state.marks, gestures.active], [[], false]);
});

test("a third finger does no harm", () => {
  for (const id of [1, 2, 3]) down(100 * id, 100, finger(id));
  for (const id of [3, 2, 1]) up(100 * id, 100, finger(id));
  click(60, 80);
  assert.deepEqual(state.marks, [point(60, 80)]);
});

test("the other pointer does not move what the first one drags", () => {
  load(point(60, 80));
  down(60, 80, { pointerId: 1 });
  move(160, 200, { pointerId: 7 });
  assert.deepEqual(state.marks, [point(60, 80)]);
  up(160, 200, { pointerId: 7 });
  assert.equal(gestures.active, true);
});

// --- the pointer at rest

test("the pointer over the image asks for a preview of its click", () => {
  move(60, 80);
  move(60, 80, { shiftKey: true });
  editor.negative = true;
  move(60, 80);
  assert.deepEqual(hovers, [place(60, 80), place(60, 80, 0), place(60, 80, 0)]);
  assert.equal(stage.style.cursor, "crosshair");
});

test("no preview beside the image, over a mark, or while Space is held", () => {
  load(point(60, 80));
  move(350, 80);
  move(60, 80);
  editor.panning = true;
  move(200, 200);
  assert.deepEqual(hovers, [null, null, null]);
});

test("a preview inside a box, where a click would add a point", () => {
  load(box(20, 20, 200, 200));
  move(120, 120);
  assert.deepEqual(hovers, [place(120, 120)]);
});

test("no preview under a finger, nor while a button is down", () => {
  move(60, 80, finger(1));
  assert.deepEqual(hovers, []);
  down(60, 80);
  move(160, 200);
  assert.deepEqual(hovers, [null]);
});

test("the preview goes when the pointer leaves, unless it drags", () => {
  send("pointerleave", 0, 0);
  assert.deepEqual(hovers, [null]);
  down(60, 80);
  hovers = [];
  send("pointerleave", 0, 0);
  assert.deepEqual(hovers, []);
});

test("the cursor tells what a drag would do", () => {
  load(box(60, 60, 100, 100), point(250, 250));
  const cursors = [[60, 60], [160, 60], [110, 60], [60, 110], [250, 250]].map(([x, y]) => (move(x, y), stage.style.cursor));
  assert.deepEqual(cursors, ["nwse-resize", "nesw-resize", "ns-resize", "ew-resize", "move"]);
  editor.panning = true;
  move(60, 60);
  assert.equal(stage.style.cursor, "grab");
});

// --- what ComfyUI hears

test("a press is ours: focus, capture, and no word to the graph", () => {
  assert.deepEqual(down(60, 80), { prevented: true, stopped: true });
  assert.deepEqual([stage.focused, stage.captured], [1, [1]]);
  assert.equal(move(160, 200).stopped, true);
  assert.equal(up(160, 200).stopped, true);
});

test("a moving pointer without a press is left to the graph", () => assert.equal(move(60, 80).stopped, false));

test("no menu and no double click of the graph over the image", () => {
  assert.deepEqual(send("contextmenu", 60, 80), { prevented: true, stopped: true });
  assert.equal(send("dblclick", 60, 80).stopped, true);
});

test("without an image a press gives the focus and no more", () => {
  editor.image = null;
  click(60, 80);
  move(60, 80);
  assert.deepEqual([stage.focused, state.marks, hovers, gestures.active], [1, [], [], false]);
});

test("an image that goes between a press and its end does no harm", () => {
  for (const act of [() => up(60, 80), () => move(160, 200), () => up(160, 200)]) {
    editor.image = { width: 300, height: 300 };
    down(60, 80);
    editor.image = null;
    act();
    up(60, 80);
  }
  assert.deepEqual([state.marks, gestures.active], [[], false]);
});

test("a pointer that cannot be captured works all the same", () => {
  stage.setPointerCapture = () => { throw new Error("no such pointer"); };
  click(60, 80);
  assert.deepEqual(state.marks, [point(60, 80)]);
});

// --- regions

test("a drag while the key is held draws a region as far as the image goes, and nothing else", () => {
  load(point(60, 60));
  editor.framing = true;
  drag([60, 60], [62, 61], [200, 100], [900, -20]);
  const [before, after] = [editor.regions.slice(0, 1), editor.regions.at(-1)];
  assert.deepEqual([before, after], [[{ x: 60, y: 60, width: 140, height: 40 }], { x: 60, y: 0, width: 240, height: 60 }]);
  assert.deepEqual([editor.taken, state.marks, state.canUndo, gestures.active], [1, [point(60, 60)], false, false]);
});

test("a press without a drag draws none, and a region that is given up goes", () => {
  editor.framing = true;
  click(60, 60);
  assert.deepEqual([editor.regions, editor.taken, state.marks], [[], 1, []]);
  down(60, 60);
  move(100, 100);
  gestures.abandon();
  up(100, 100);
  assert.deepEqual([editor.regions.at(-1), editor.taken], [null, 1]);
});

test("while the key is held nothing is previewed, and other buttons are as ever", () => {
  editor.framing = true;
  move(60, 60);
  assert.deepEqual([hovers, stage.style.cursor], [[null], "crosshair"]);
  click(60, 80, { button: RIGHT });
  assert.deepEqual(state.marks, [point(60, 80, 0)]);
});

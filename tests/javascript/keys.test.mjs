/** What each key does, and which keys are left to others. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { onKey } from "../../web/editor/keys.js";

let calls, editor, offered;

/** An editor that notes what was called. */
beforeEach(() => {
  calls = [];
  offered = () => null;
  const note = (name, answer) => (...values) => (calls.push([name, ...values]), answer);
  const names = ["remove", "chooseCandidate", "newObject", "selectNextObject"];
  const state = Object.fromEntries(names.map((name) => [name, note(name)]));
  editor = {
    state: { ...state, selected: null, marks: [], selectNext: note("selectNext", true) },
    image: { width: 10, height: 10 },
    gestures: { active: false },
    brush: { isActive: true, toggle: note("brush.toggle"), resize: note("brush.resize") },
    nextView: note("nextView"),
    alike: { keyed: (...given) => offered(...given), toggle: note("alike.toggle") },
    undo: note("undo"),
    redo: note("redo"),
    ...Object.fromEntries(["fit", "toggleOverlay", "toggleDetail", "toggleBoxTool", "nudge", "escape"].map((name) => [name, note(name)])),
  };
});

const NOTHING_HELD = { ctrlKey: false, metaKey: false, shiftKey: false, altKey: false };
const press = (key, held) => onKey({ key, ...NOTHING_HELD, ...held }, editor);
const [CTRL, META, SHIFT, ALT] = ["ctrlKey", "metaKey", "shiftKey", "altKey"].map((name) => ({ [name]: true }));

for (const [what, key, held, call] of [
  ["Ctrl+Z", "z", CTRL, ["undo"]],
  ["Cmd+Z", "z", META, ["undo"]],
  ["Shift+Ctrl+Z", "Z", { ...CTRL, ...SHIFT }, ["redo"]],
  ["Shift+Cmd+Z", "z", { ...META, ...SHIFT }, ["redo"]],
  ["Ctrl+Y", "y", CTRL, ["redo"]],
  ["Ctrl+Z with caps lock", "Z", CTRL, ["undo"]],
  ["H", "h", {}, ["toggleOverlay"]],
  ["H with caps lock", "H", {}, ["toggleOverlay"]],
  ["F", "f", {}, ["fit"]],
  ["B", "b", {}, ["toggleBoxTool"]],
  ["N", "n", {}, ["newObject"]],
  ["L", "l", {}, ["alike.toggle"]],
  ["[", "[", {}, ["selectNextObject", -1]],
  ["]", "]", {}, ["selectNextObject", 1]],
  ["P", "p", {}, ["brush.toggle", "add"]],
  ["E", "E", {}, ["brush.toggle", "erase"]],
  ["-", "-", {}, ["brush.resize", 0.8]],
  ["+", "+", SHIFT, ["brush.resize", 1.25]],
  ["V", "v", {}, ["nextView"]],
  ["D", "d", {}, ["toggleDetail"]],
  ["Escape", "Escape", {}, ["escape"]],
  ["Tab", "Tab", {}, ["selectNext", 1]],
  ["Shift+Tab", "Tab", SHIFT, ["selectNext", -1]],
  ["0", "0", {}, ["chooseCandidate", "best"]],
  ["1", "1", {}, ["chooseCandidate", "smallest"]],
  ["2", "2", {}, ["chooseCandidate", "middle"]],
  ["3", "3", {}, ["chooseCandidate", "largest"]],
]) {
  test(`${what} is ${call.join(" ")}`, () => {
    assert.equal(press(key, held), true);
    assert.deepEqual(calls, [call]);
  });
}

for (const [key, x, y] of [["ArrowLeft", -1, 0], ["ArrowRight", 1, 0], ["ArrowUp", 0, -1], ["ArrowDown", 0, 1]]) {
  test(`${key} nudges the selected mark by a pixel, with Shift by ten`, () => {
    editor.state.selected = 0;
    assert.equal(press(key), true);
    assert.equal(press(key, SHIFT), true);
    assert.deepEqual(calls, [["nudge", x, y], ["nudge", 10 * x, 10 * y]]);
  });

  test(`${key} is not ours where no mark is selected`, () => {
    assert.equal(press(key), false);
    assert.deepEqual(calls, []);
  });

  test(`${key} is not ours where no image is shown`, () => {
    Object.assign(editor, { image: null }).state.selected = 0;
    assert.equal(press(key), false);
    assert.deepEqual(calls, []);
  });
}

for (const key of ["Delete", "Backspace"]) {
  test(`${key} removes the selected mark`, () => {
    editor.state.selected = 0;
    assert.equal(press(key), true);
    assert.deepEqual(calls, [["remove", 0]]);
  });

  test(`${key} without a selection does nothing, and does not reach the node`, () => {
    assert.equal(press(key), true);
    assert.deepEqual(calls, []);
  });
}

test("Tab after the last mark goes on to the next element", () => {
  editor.state.selectNext = () => false;
  assert.equal(press("Tab"), false);
});

for (const [key, held] of [
  ["a", {}], ["z", {}], ["y", {}], ["4", {}], ["9", {}], ["Enter", {}], ["F1", {}], ["F5", {}], ["Home", {}], ["Shift", SHIFT],
  ["Control", CTRL], ["Dead", {}], ["Unidentified", {}],
  ["c", CTRL], ["s", CTRL], ["f", CTRL], ["h", META], ["0", CTRL], ["1", META], ["Enter", CTRL], ["Delete", CTRL],
  ["ArrowLeft", CTRL], ["f", ALT], ["h", ALT], ["1", ALT], ["ArrowLeft", ALT],
  ["z", { ...CTRL, ...ALT }], ["Tab", ALT], ["Tab", CTRL],
]) {
  test(`${[...Object.keys(held), key].join(" ")} is not ours`, () => {
    editor.state.selected = 0;
    assert.equal(press(key, held), false);
    assert.deepEqual(calls, []);
  });
}

for (const [key, held] of [["z", CTRL], ["y", CTRL], ["Delete", {}], ["ArrowLeft", {}], ["Tab", {}], ["1", {}]]) {
  test(`${[...Object.keys(held), key].join(" ")} waits for the end of a drag`, () => {
    editor.gestures.active = true;
    editor.state.selected = 0;
    assert.equal(press(key, held), true, "nor does ComfyUI hear of it");
    assert.deepEqual(calls, []);
  });
}

test("keys of what is offered come before the others, but not with Ctrl held", () => {
  offered = (key, isShifted) => (key === "Tab" || key === "Delete" ? () => { calls.push(["offered", key, isShifted]); } : null);
  editor.state.selected = 0;
  assert.deepEqual([press("Tab", SHIFT), press("Delete"), press("z", CTRL), press("n")], [true, true, true, true]);
  assert.deepEqual(calls, [["offered", "Tab", true], ["offered", "Delete", false], ["undo"], ["newObject"]]);
});

test("Escape gives a drag up", () => {
  editor.gestures.active = true;
  assert.equal(press("Escape"), true);
  assert.deepEqual(calls, [["escape"]]);
});

test("in a drag, a key that is not ours is still not ours", () => {
  editor.gestures.active = true;
  assert.equal(press("F5"), false);
  assert.equal(press("s", CTRL), false);
});

test("letters go by their place where the layout has no Latin ones", () => {
  assert.equal(press("я", { ctrlKey: true, code: "KeyZ" }), true);
  assert.deepEqual(calls, [["undo"]]);
  assert.equal(press("я", { code: "KeyZ" }), false);
  assert.equal(press("q", { ctrlKey: true, code: "KeyZ" }), false, "a Latin layout's own letter counts, wherever it is");
});

test("- and + are the browser's while no brush is taken up", () => {
  editor.brush.isActive = false;
  assert.deepEqual([press("-"), press("+"), press("=")], [false, false, false]);
});

for (const [key, step] of [["[", -1], ["]", 1]]) {
  test(`${key} typed with AltGr`, () => {
    const held = { altKey: true, ctrlKey: true, getModifierState: (name) => name === "AltGraph" };
    assert.equal(press(key, held), true);
    assert.deepEqual(calls, [["selectNextObject", step]]);
  });
}

test("other keys with AltGr are left to others", () => {
  assert.equal(press("z", { altKey: true, ctrlKey: true, getModifierState: () => true }), false);
  assert.deepEqual(calls, []);
});

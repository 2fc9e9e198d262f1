/** The editor's state: reading and writing the widget's text, selection, frames, candidates, undo. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { CANDIDATES, COLOURS, EditorState, isBox, isOutside } from "../../web/editor/state.js";
import { readText, writeText } from "../../web/editor/text.js";

const EMPTY = { marks: [], candidate: "best" };
const point = (x, y, label = 1) => ({ x, y, label, object: 0 });
const box = (x, y, width, height) => ({ x, y, width, height, object: 0 });
const bare = ({ object: _, ...mark }) => mark;
const first = (candidate = "best") => ({ name: "Object 1", colour: COLOURS[0], candidate });
const text = (marks, candidate = "best") => JSON.stringify({ version: 2, objects: [{ ...first(candidate), marks: marks.map(bare) }] });

/** A text of several objects, each a list of marks. */
const several = (...lists) => {
  const objects = lists.map((marks, i) => ({ name: `Object ${i + 1}`, colour: COLOURS[i], candidate: "best", marks: marks.map(bare) }));
  return JSON.stringify({ version: 2, objects });
};
const of = (object, mark) => ({ ...mark, object });
const parse = (value) => {
  const { objects, marks } = readText(value);
  return { marks, candidate: objects[0].candidate };
};
const serialise = ({ marks, candidate }) => writeText({ objects: [first(candidate)], marks, size: null });

let changes, commits, state;
beforeEach(() => {
  changes = commits = 0;
  state = new EditorState({ onChange: () => (changes += 1), onCommit: () => (commits += 1) });
});

function stateOf(...marks) {
  state.load(text(marks));
  changes = commits = 0;
  return state;
}

// --- the widget's text

for (const bad of ["", "{", "null", "[]", "7", '"text"', undefined, null, '{"marks": 3}', '{"marks": {"0": {}}}']) {
  test(`what is no state reads as empty: ${bad}`, () => assert.deepEqual(parse(bad), EMPTY));
}

for (const bad of [null, 3, "x", [], {}, { x: 1 }, { x: "1", y: 2 }, { x: 1, y: null }]) {
  test(`what is no mark is left out: ${JSON.stringify(bad)}`, () => {
    assert.deepEqual(parse(JSON.stringify({ marks: [bad, point(1, 2)] })).marks, [point(1, 2)]);
  });
}

for (const [width, height] of [[0, 5], [5, 0], [-5, 5], [5, -5], ["5", 5], [null, 5]]) {
  test(`a box of ${JSON.stringify(width)} by ${JSON.stringify(height)} is left out, not read as a point`, () => {
    assert.deepEqual(parse(text([box(1, 2, width, height)])).marks, []);
  });
}

test("a number that is not finite makes no mark", () => {
  assert.deepEqual(parse('{"marks": [{"x": 1e999, "y": 2, "label": 1}]}').marks, []);
});

test("a point without a label is on the object", () => {
  assert.deepEqual(parse('{"marks": [{"x": 1, "y": 2}]}').marks, [point(1, 2)]);
});

test("label 0 stays 0", () => assert.deepEqual(parse(text([point(1, 2, 0)])).marks, [point(1, 2, 0)]));

test("numbers are rounded to a hundredth of a pixel", () => {
  assert.deepEqual(parse(text([point(1.23456, -0.987)])).marks, [point(1.23, -0.99)]);
  assert.deepEqual(parse(text([box(0.129, 0.131, 5.555, 6.004)])).marks, [box(0.13, 0.13, 5.56, 6)]);
});

test("a box narrower than what is stored stays a box", () => {
  const [mark] = parse(text([box(1, 2, 0.001, 5e-17)])).marks;
  assert.deepEqual(mark, box(1, 2, 0.01, 0.01));
});

test("keys that a mark does not have are dropped, and the others put in order", () => {
  const [mark] = parse('{"marks": [{"label": 0, "colour": "red", "y": 2, "x": 1}]}').marks;
  assert.equal(JSON.stringify(bare(mark)), '{"x":1,"y":2,"label":0}');
});

test("a box has no label", () => assert.deepEqual(parse(text([{ ...box(1, 2, 3, 4), label: 1 }])).marks, [box(1, 2, 3, 4)]));

for (const frame of [-1, 1.5, "1", null]) {
  test(`a mark with frame ${JSON.stringify(frame)} is for every frame`, () => {
    assert.deepEqual(parse(text([{ ...point(1, 2), frame }])).marks, [point(1, 2)]);
  });
}

for (const frame of [0, 7]) {
  test(`frame ${frame} is kept, for points and boxes`, () => {
    const marks = [{ ...point(1, 2), frame }, { ...box(1, 2, 3, 4), frame }];
    assert.deepEqual(parse(text(marks)).marks, marks);
  });
}

for (const candidate of CANDIDATES) {
  test(`candidate ${candidate} is kept`, () => assert.equal(parse(text([], candidate)).candidate, candidate));
}

for (const candidate of ["bigger", 1, null]) {
  test(`candidate ${candidate} is not known, and is best`, () => assert.equal(parse(text([], candidate)).candidate, "best"));
}

test("the empty state is the shortest text", () => assert.equal(serialise(EMPTY), "{}"));

test("a candidate alone is written", () => assert.equal(serialise({ marks: [], candidate: "middle" }), text([], "middle")));

test("what is written is read back the same, and written the same again", () => {
  const written = serialise({ marks: [point(1.005, 2), { ...box(0.1, 0.2, 30, 0.004), frame: 2 }], candidate: "largest" });
  assert.equal(serialise(parse(written)), written);
});

test("a mark is a box where it has a width", () => {
  assert.equal(isBox(box(1, 2, 3, 4)), true);
  assert.equal(isBox(point(1, 2)), false);
});

// --- adding, moving, removing

test("a new state is empty and has nothing to undo", () => {
  assert.equal(state.text, "{}");
  assert.equal(state.selected, null);
  assert.equal(state.canUndo || state.canRedo, false);
});

test("an added mark is rounded, selected, and told of", () => {
  state.add(point(1.23456, 2));
  assert.deepEqual(state.marks, [point(1.23, 2)]);
  assert.equal(state.selected, 0);
  assert.deepEqual([changes, commits], [1, 1]);
});

test("what is no mark is not added", () => {
  state.add({ x: NaN, y: 2, label: 1 });
  assert.deepEqual(state.marks, []);
  assert.equal(state.selected, null);
});

test("an update keeps what it does not name", () => {
  stateOf({ ...point(1, 2, 0), frame: 3 }).update(0, { x: 9.999 });
  assert.deepEqual(state.marks, [{ ...point(10, 2, 0), frame: 3 }]);
});

test("an update is told of, but is no step yet", () => {
  stateOf(point(1, 2)).update(0, { x: 9 });
  assert.deepEqual([changes, commits, state.canUndo], [1, 0, false]);
});

test("an update to what is no mark changes nothing", () => {
  stateOf(point(1, 2)).update(0, { x: NaN });
  assert.deepEqual(state.marks, [point(1, 2)]);
});

test("an update of a mark that is gone changes nothing", () => {
  stateOf(point(1, 2)).update(2, box(1, 2, 3, 4));
  assert.deepEqual(state.marks, [point(1, 2)]);
});

test("remove takes one mark and the selection", () => {
  stateOf(point(1, 2), point(3, 4)).select(1);
  state.remove(0);
  assert.deepEqual(state.marks, [point(3, 4)]);
  assert.equal(state.selected, null);
});

test("remove of a mark that is not there changes nothing", () => {
  stateOf(point(1, 2)).select(0);
  state.remove(1);
  assert.deepEqual([state.marks.length, state.selected, commits], [1, 0, 0]);
});

test("clear takes all marks in one step, and the selection", () => {
  stateOf(point(1, 2), box(1, 2, 3, 4)).select(1);
  state.clear();
  assert.deepEqual([state.marks, state.selected, commits], [[], null, 1]);
  state.undo();
  assert.equal(state.marks.length, 2);
});

test("clear keeps the candidate", () => {
  state.load(text([point(1, 2)], "largest"));
  state.clear();
  assert.equal(state.text, text([], "largest"));
});

// --- selection

test("a selection is told of, and is no step", () => {
  stateOf(point(1, 2)).select(0);
  assert.deepEqual([changes, commits], [1, 0]);
});

test("Tab goes through the marks in order, and then to none", () => {
  stateOf(point(1, 2), point(3, 4));
  const seen = [1, 2, 3].map(() => [state.selectNext(), state.selected]);
  assert.deepEqual(seen, [[true, 0], [true, 1], [false, null]]);
});

test("Shift+Tab goes through the marks backwards, and then to none", () => {
  stateOf(point(1, 2), point(3, 4));
  const seen = [1, 2, 3].map(() => [state.selectNext(-1), state.selected]);
  assert.deepEqual(seen, [[true, 1], [true, 0], [false, null]]);
});

test("Tab selects nothing where there are no marks", () => {
  assert.equal(state.selectNext(), false);
  assert.equal(state.selectNext(-1), false);
  assert.equal(state.selected, null);
});

test("Tab passes the marks of other frames", () => {
  stateOf({ ...point(1, 2), frame: 1 }, point(3, 4), { ...point(5, 6), frame: 1 }, { ...point(7, 8), frame: 0 });
  state.selectNext();
  assert.equal(state.selected, 1);
  state.selectNext();
  assert.equal(state.selected, 3);
  assert.equal(state.selectNext(), false);
});

// --- frames

test("a mark without a frame is shown on each, one with a frame on its own", () => {
  stateOf(point(1, 2), { ...point(3, 4), frame: 0 }, { ...point(5, 6), frame: 1 });
  assert.deepEqual(state.shown, [0, 1]);
  state.showFrame(1);
  assert.deepEqual(state.shown, [0, 2]);
  state.showFrame(2);
  assert.deepEqual(state.shown, [0]);
});

test("marks are added for all frames, or for this one", () => {
  state.setFrames(3);
  state.showFrame(2);
  state.add(point(1, 2));
  state.onlyThisFrame = true;
  state.add(box(1, 2, 3, 4));
  assert.deepEqual(state.marks, [point(1, 2), { ...box(1, 2, 3, 4), frame: 2 }]);
});

test("a question has the marks of the frame that is shown, without their frame", () => {
  state.setFrames(2);
  state.load(text([{ ...point(1, 2), frame: 1 }, box(1, 2, 3, 4), { ...point(5, 6), frame: 0 }], "middle"));
  state.showFrame(1);
  const { prompts, object } = state.question(0);
  assert.deepEqual([prompts, object], [JSON.parse(text([point(1, 2), box(1, 2, 3, 4)], "middle")), 0]);
});

test("the text that is stored has all frames", () => {
  const all = text([{ ...point(1, 2), frame: 1 }, { ...point(5, 6), frame: 0 }]);
  state.load(all);
  assert.equal(state.text, all);
});

test("another frame takes the selection, is told of, and is no step", () => {
  stateOf(point(1, 2)).select(0);
  state.showFrame(1);
  assert.deepEqual([state.selected, changes, commits], [null, 2, 0]);
});

test("of several frames, clear takes this one's own marks: those of all frames stay", () => {
  state.setFrames(2);
  stateOf(point(1, 2), { ...point(3, 4), frame: 0 }, { ...point(5, 6), frame: 1 }).clear();
  assert.deepEqual(state.marks, [point(1, 2), { ...point(5, 6), frame: 1 }]);
  state.clearAll();
  assert.deepEqual(state.marks, []);
});

test("'this frame only' ends with the frames", () => {
  state.setFrames(3);
  state.onlyThisFrame = true;
  state.showFrame(2);
  state.setFrames(1);
  state.add(point(1, 2));
  assert.deepEqual([state.frame, state.marks], [0, [point(1, 2)]]);
});

// --- candidates

test("candidates are cycled both ways, round the ends", () => {
  const forward = CANDIDATES.map(() => (state.cycleCandidate(), state.candidate));
  assert.deepEqual(forward, ["smallest", "middle", "largest", "best"]);
  state.cycleCandidate(-1);
  assert.equal(state.candidate, "largest");
});

test("a chosen candidate is one step", () => {
  state.chooseCandidate("middle");
  assert.deepEqual([state.text, commits], [text([], "middle"), 1]);
  state.undo();
  assert.equal(state.candidate, "best");
});

test("a candidate that is not known is best", () => {
  state.chooseCandidate("middle");
  state.chooseCandidate("huge");
  assert.equal(state.candidate, "best");
});

test("the candidate that is chosen already is no step", () => {
  state.chooseCandidate("best");
  assert.deepEqual([commits, state.canUndo], [0, false]);
});

// --- undo

test("undo and redo go through the steps", () => {
  state.add(point(1, 2));
  state.add(point(3, 4));
  state.undo();
  assert.deepEqual(state.marks, [point(1, 2)]);
  state.undo();
  assert.deepEqual(state.marks, []);
  state.redo();
  state.redo();
  assert.deepEqual(state.marks, [point(1, 2), point(3, 4)]);
});

test("there is as much to undo and to redo as was done", () => {
  state.add(point(1, 2));
  assert.deepEqual([state.canUndo, state.canRedo], [true, false]);
  state.undo();
  assert.deepEqual([state.canUndo, state.canRedo], [false, true]);
});

test("undo and redo are told of, to be saved and drawn", () => {
  state.add(point(1, 2));
  changes = commits = 0;
  state.undo();
  state.redo();
  assert.deepEqual([changes, commits], [2, 2]);
});

test("undo and redo take the selection", () => {
  state.add(point(1, 2));
  state.undo();
  assert.equal(state.selected, null);
  state.redo();
  assert.equal(state.selected, null);
});

test("undo and redo with nothing to do are silent", () => {
  stateOf(point(1, 2));
  state.undo();
  state.redo();
  assert.deepEqual([state.text, changes, commits], [text([point(1, 2)]), 0, 0]);
});

test("a new step leaves nothing to redo", () => {
  state.add(point(1, 2));
  state.undo();
  state.add(point(3, 4));
  assert.equal(state.canRedo, false);
  state.redo();
  assert.deepEqual(state.marks, [point(3, 4)]);
});

test("a drag of many moves is one step", () => {
  stateOf(point(1, 2));
  for (let x = 2; x < 50; x += 1) state.update(0, { x });
  state.commit();
  assert.equal(commits, 1);
  state.undo();
  assert.deepEqual([state.marks, state.canUndo], [[point(1, 2)], false]);
});

test("a box that is being drawn is one step", () => {
  state.add(box(1, 2, 3, 4), false);
  assert.deepEqual([changes, commits, state.canUndo], [1, 0, false]);
  state.update(0, box(1, 2, 30, 40));
  state.commit();
  state.undo();
  assert.deepEqual([state.marks, state.canUndo], [[], false]);
});

test("a gesture that changes nothing is no step", () => {
  stateOf(point(1, 2)).update(0, { x: 5 });
  state.update(0, { x: 1 });
  state.commit();
  assert.deepEqual([commits, state.canUndo], [0, false]);
});

test("cancel brings back what was before the gesture", () => {
  stateOf(point(1, 2)).select(0);
  state.update(0, { x: 5 });
  changes = 0;
  state.cancel();
  assert.deepEqual([state.marks, state.selected, changes, commits], [[point(1, 2)], null, 1, 0]);
});

test("cancel keeps the steps before", () => {
  state.add(point(1, 2));
  state.add(box(1, 2, 3, 4), false);
  state.cancel();
  assert.deepEqual([state.marks, state.canUndo], [[point(1, 2)], true]);
});

test("undo in the middle of a gesture gives the gesture up, for redo too", () => {
  state.add(point(1, 2));
  state.update(0, { x: 50 });
  state.undo();
  assert.deepEqual(state.marks, []);
  state.redo();
  assert.deepEqual(state.marks, [point(1, 2)]);
});

test("the latest 200 steps can be undone", () => {
  for (let x = 1; x <= 205; x += 1) state.add(point(x, 0));
  let steps = 0;
  for (; state.canUndo; steps += 1) state.undo();
  assert.deepEqual([steps, state.marks.length], [200, 5]);
});

// --- from outside

test("a loaded text is taken over and told of, but is not ours to save", () => {
  state.load(text([point(1, 2)], "largest"));
  assert.deepEqual([state.marks, state.candidate, changes, commits], [[point(1, 2)], "largest", 1, 0]);
});

test("a text of a later version stays as it is, whatever is done, until it is given up", () => {
  const later = '{"version": 4, "objects": [{"name": "cup", "marks": [{"x": 1, "y": 2}]}], "what": [1]}';
  state.load(later);
  assert.ok(state.isNewer && changes > 0);
  state.add(point(5, 6));
  assert.deepEqual([state.text, state.runText], [later, later], "a run is to say that it cannot read it");
  state.startAnew();
  assert.deepEqual([state.isNewer, state.text, state.marks], [false, "{}", []]);
  state.add(point(5, 6));
  assert.deepEqual(parse(state.text).marks, [point(5, 6)]);
});

test("an empty text of a later version is told of, too", () => {
  state.load('{"version": 4}');
  assert.deepEqual([state.isNewer, changes], [true, 1]);
});

test("a loaded text starts history anew", () => {
  state.add(point(1, 2));
  state.add(point(3, 4));
  state.undo();
  state.load(text([point(5, 6)]));
  assert.deepEqual([state.canUndo, state.canRedo, state.selected], [false, false, null]);
});

test("undo after a load goes back to what was loaded", () => {
  state.load(text([point(5, 6)]));
  state.add(point(7, 8));
  state.undo();
  assert.deepEqual(state.marks, [point(5, 6)]);
});

test("loading what is there already changes nothing, history included", () => {
  state.add(point(1, 2));
  changes = 0;
  state.load(text([point(1, 2)]));
  assert.deepEqual([changes, state.canUndo, state.selected], [0, true, 0]);
});

test("a text that cannot be read empties the editor", () => {
  stateOf(point(1, 2)).load("{");
  assert.equal(state.text, "{}");
});

test("a text of today's that is not changed is given back as it was", () => {
  const old = '{"version":1,"marks":[{"x":236,"y":180,"width":320,"height":276},{"x":380,"y":312,"label":0}],"candidate":"best"}';
  state.load(old);
  assert.equal(state.text, old);
  state.add(point(1, 2));
  assert.equal(JSON.parse(state.text).version, 2);
});

// --- objects

test("version 1 with several boxes is several objects, as SAM Predict Mask groups them", () => {
  const [big, small] = [box(0, 0, 100, 100), box(10, 10, 10, 10)];
  const points = [point(15, 15), point(50, 50), point(300, 300), point(12, 12, 0), point(400, 400, 0)];
  state.load(JSON.stringify({ version: 1, marks: [...points, big, small], candidate: "middle" }));
  const marks = (object) => state.marksOf(object).map(({ x, y }) => [x, y]);
  assert.deepEqual([0, 1, 2].map(marks), [
    [[50, 50], [12, 12], [400, 400], [0, 0]],
    [[15, 15], [12, 12], [400, 400], [10, 10]],
    [[300, 300], [400, 400]],
  ]);
  assert.deepEqual(state.objects.map(({ name, candidate }) => [name, candidate]), [1, 2, 3].map((n) => [`Object ${n}`, "middle"]));
});

test("clicks go to the selected object", () => {
  state.add(point(1, 2));
  state.newObject();
  state.add(point(3, 4));
  state.selectObject(0);
  state.add(point(5, 6, 0));
  assert.deepEqual(state.marks, [point(1, 2), of(1, point(3, 4)), point(5, 6, 0)]);
  assert.equal(state.text, several([point(1, 2), point(5, 6, 0)], [point(3, 4)]));
});

test("a second new object is not made while the first has no marks", () => {
  state.add(point(1, 2));
  state.newObject();
  state.newObject();
  assert.deepEqual([state.objects.length, state.current], [2, 1]);
});

test("a second box is another object's, one step", () => {
  state.add(box(0, 0, 9, 9));
  state.add(box(20, 20, 9, 9), false);
  state.update(1, box(20, 20, 30, 30));
  state.commit();
  assert.equal(state.text, several([box(0, 0, 9, 9)], [box(20, 20, 30, 30)]));
  state.undo();
  assert.deepEqual([state.objects.length, state.marks], [1, [box(0, 0, 9, 9)]]);
});

test("a box on another frame is the same object's", () => {
  state.setFrames(2);
  state.onlyThisFrame = true;
  state.add(box(0, 0, 9, 9));
  state.showFrame(1);
  state.add(box(20, 20, 9, 9));
  assert.equal(state.objects.length, 1);
});

test("selecting a mark selects its object", () => {
  state.load(several([point(1, 2)], [point(3, 4)]));
  state.select(1);
  assert.equal(state.current, 1);
});

test("each object has its own candidate", () => {
  state.load(several([point(1, 2)], [point(3, 4)]));
  state.selectObject(1);
  state.chooseCandidate("largest");
  assert.deepEqual(state.objects.map(({ candidate }) => candidate), ["best", "largest"]);
});

test("an object that is deleted takes its marks, and the others keep theirs", () => {
  state.load(several([point(1, 2)], [point(3, 4)], [point(5, 6)]));
  state.selectObject(2);
  state.removeObject(1);
  assert.deepEqual([state.marks, state.current], [[point(1, 2), of(1, point(5, 6))], 1]);
  state.removeObject(0);
  state.removeObject(0);
  assert.deepEqual([state.marks, state.objects.length, state.text], [[], 1, "{}"]);
});

test("objects change places with their marks", () => {
  state.load(several([point(1, 2)], [point(3, 4)]));
  state.moveObject(0, 1);
  assert.deepEqual([state.objects[0].name, state.current, state.marksOf(0)], ["Object 2", 1, [point(3, 4)]]);
  state.moveObject(1, 1);
  state.moveObject(0, -1);
  assert.equal(state.objects[0].name, "Object 2");
});

test("a locked object is not changed", () => {
  state.load(several([point(1, 2)], [point(3, 4)]));
  state.setObject(0, { locked: true });
  assert.equal(state.add(point(7, 8)), false);
  state.remove(0);
  state.chooseCandidate("largest");
  state.removeObject(0);
  state.clearAll();
  assert.deepEqual([state.marks, state.touchable, state.object.candidate], [[point(1, 2)], [], "best"]);
});

test("a hidden object's marks are neither drawn nor hit, and are used all the same", () => {
  state.load(several([point(1, 2)], [point(3, 4)]));
  state.setObject(0, { hidden: true });
  assert.deepEqual([state.drawn, state.touchable, state.shown], [[1], [1], [0, 1]]);
  assert.equal(JSON.parse(state.runText).objects.length, 2);
});

test("what a run needs does not change with a colour, an eye, a lock, or an object without marks", () => {
  state.load(several([point(1, 2)], [point(3, 4)]));
  const before = state.runText;
  state.setObject(0, { colour: "#123456" });
  state.setObject(0, { hidden: true });
  state.setObject(1, { locked: true });
  state.newObject();
  assert.equal(state.runText, before);
  assert.equal(JSON.parse(state.text).objects.length, 3);
  state.setObject(0, { name: "cup" });
  assert.notEqual(state.runText, before, "names go out as labels");
});

test("hide and lock are stored, and are no steps of undo", () => {
  state.load(several([point(1, 2)], [point(3, 4)]));
  state.setObject(0, { hidden: true });
  assert.deepEqual([state.canUndo, commits, readText(state.text).objects[0].hidden], [false, 1, true]);
});

test("undo and redo change neither an eye nor a lock, whoever has moved or gone meanwhile", () => {
  state.load(several([point(1, 2)], [point(3, 4)], [point(5, 6)]));
  const flags = () => state.objects.map(({ name, hidden, locked }) => name.at(-1) + (hidden ? "h" : "") + (locked ? "l" : ""));
  state.selectObject(0);
  state.add(point(7, 8));
  state.setObject(0, { hidden: true });
  state.setObject(2, { locked: true });
  state.undo();
  assert.deepEqual([flags(), state.marksOf(0)], [["1h", "2", "3l"], [point(1, 2)]]);
  state.redo();
  assert.deepEqual(flags(), ["1h", "2", "3l"]);
  state.moveObject(0, 1);
  state.setObject(1, { hidden: false });
  state.setObject(0, { hidden: true });
  state.undo();
  assert.deepEqual(flags(), ["1", "2h", "3l"], "the eye goes with the object, not with the place");
  state.removeObject(1);
  state.undo();
  assert.deepEqual(flags(), ["1", "2h", "3l"], "of one that is gone they are those that it had");
});

test("after steps back and forth the next click goes on with the object that was worked on", () => {
  state.add(point(1, 2));
  state.newObject();
  state.add(point(3, 4));
  while (state.canUndo) state.undo();
  assert.equal(state.current, 0);
  while (state.canRedo) state.redo();
  assert.deepEqual([state.current, state.objects.length], [1, 2]);
  state.selectObject(0);
  state.add(point(5, 6));
  state.selectObject(1);
  state.undo();
  assert.equal(state.current, 0, "the one that the undone step had changed");
});

test("a question names the object's place among those with marks", () => {
  state.load(several([point(1, 2)], [], [point(3, 4)]));
  const { prompts, object } = state.question(2, { x: 9, y: 9, label: 0 });
  assert.deepEqual([prompts.objects.map(({ name }) => name), object], [["Object 1", "Object 3"], 1]);
  assert.deepEqual(prompts.objects[1].marks, [bare(point(3, 4)), bare(point(9, 9, 0))]);
  assert.equal(state.question(1, point(5, 5)).object, 1);
});

test("an object's marks are copied to the next frame, in place of those that it has there", () => {
  state.setFrames(3);
  const [here, there] = [{ ...point(1, 2), frame: 0 }, { ...point(9, 9), frame: 1 }];
  state.load(several([here, there], [{ ...point(5, 6), frame: 1 }]));
  state.copyToNext();
  assert.equal(state.frame, 1);
  assert.deepEqual(state.shown.map((index) => state.marks[index]), [of(1, { ...point(5, 6), frame: 1 }), { ...here, frame: 1 }]);
  state.undo();
  assert.equal(state.text, several([here, there], [{ ...point(5, 6), frame: 1 }]));
});

test("an object's marks of a frame become those of all", () => {
  state.setFrames(3);
  state.load(several([{ ...point(1, 2), frame: 0 }, { ...point(9, 9), frame: 1 }]));
  state.copyToAll();
  assert.deepEqual(state.marks, [point(1, 2)]);
});

// --- another image

test("marks outside of the image are found as the node finds them", () => {
  const image = { width: 100, height: 50 };
  const inside = [point(0, 0), point(100, 50), box(99, 49, 20, 20), box(-5, -5, 6, 6)];
  const outside = [point(101, 5), point(5, -1), box(100, 0, 5, 5), box(0, -5, 5, 5)];
  assert.deepEqual(inside.map((mark) => isOutside(mark, image)), [false, false, false, false]);
  assert.deepEqual(outside.map((mark) => isOutside(mark, image)), [true, true, true, true]);
});

test("marks know the size of the image that they were made on, and are scaled to another", () => {
  state.image = { width: 200, height: 100 };
  state.add(point(150, 80));
  state.add(box(100, 50, 40, 20));
  state.image = { width: 100, height: 50 };
  assert.deepEqual(state.outside(state.image), [0, 1]);
  state.scaleTo(state.image);
  assert.deepEqual(state.marks, [point(75, 40), box(50, 25, 20, 10)]);
  assert.deepEqual(readText(state.text).size, state.image);
  state.undo();
  assert.deepEqual([state.marks[0], state.size], [point(150, 80), { width: 200, height: 100 }]);
});

test("marks outside of the image can be removed, one step", () => {
  stateOf(point(150, 80), point(20, 20)).clearOutside({ width: 100, height: 50 });
  assert.deepEqual([state.marks, commits], [[point(20, 20)], 1]);
});

// --- marks that follow their image

function madeOn(size, ...marks) {
  const state = new EditorState();
  state.load(JSON.stringify({ version: 2, size, objects: [{ ...first(), marks }] }));
  return state;
}

for (const [from, to, expected] of [
  [[512, 512], { width: 1024, height: 1024 }, { x: 20, y: 40, label: 1 }],
  [[1000, 667], { width: 500, height: 333 }, { x: 5, y: 9.99, label: 1 }],
  [[1000, 667], { width: 500, height: 334 }, { x: 5, y: 10.01, label: 1 }],
]) {
  test(`marks of ${from.join(" x ")} follow to ${to.width} x ${to.height}, as a step of undo`, () => {
    const state = madeOn(from, { x: 10, y: 20, label: 1 });
    assert.deepEqual(state.follow(to), { width: from[0], height: from[1] });
    assert.deepEqual(state.marks.map(bare), [expected]);
    assert.deepEqual(state.size, to);
    state.undo();
    assert.deepEqual(state.marks.map(bare), [{ x: 10, y: 20, label: 1 }]);
  });
}

for (const [what, to] of [["the same size", { width: 512, height: 512 }], ["other proportions", { width: 1024, height: 512 }]]) {
  test(`marks stay where they are on ${what}`, () => {
    const state = madeOn([512, 512], { x: 10, y: 20, label: 1 });
    assert.equal(state.follow(to), null);
    assert.deepEqual([state.marks.map(bare), state.canUndo], [[{ x: 10, y: 20, label: 1 }], false]);
  });
}

test("paint does not follow by itself, and neither do the marks beside it", () => {
  const state = madeOn([512, 512], { x: 10, y: 20, label: 1 });
  state.paint({ x: 0, y: 0, width: 1, height: 1, kinds: new Uint8Array([1]) });
  assert.equal(state.follow({ width: 1024, height: 1024 }), null);
  assert.deepEqual(state.marks.map(bare), [{ x: 10, y: 20, label: 1 }]);
});

test("what was made elsewhere is taken over as one step, with the object that was worked on", () => {
  const committed = [];
  const state = new EditorState({ onCommit: () => committed.push(state.text) });
  state.add({ x: 10, y: 20, label: 1 });
  const other = new EditorState();
  other.load(state.text);
  other.newObject();
  other.add({ x: 30, y: 40, label: 0 });
  other.add({ x: 50, y: 60, label: 1 });
  state.adopt(other.text, other.current);
  assert.deepEqual([state.marks.length, state.current, committed.length, committed.at(-1)], [3, 1, 2, other.text]);
  state.adopt(other.text, 0);
  assert.deepEqual([state.current, committed.length], [1, 2], "the same again is no step");
  state.undo();
  assert.deepEqual([state.marks.length, state.objects.length], [1, 1]);
});

// --- regions and second looks

const REGION = { x: 10, y: 20, width: 30, height: 40 };

test("a region is the selected object's, is stored with the marks, and is one step of undo", () => {
  state.add(point(15, 25));
  assert.equal(state.setRegion({ ...REGION, x: 9.8 }), true);
  const stored = JSON.parse(state.text);
  assert.deepEqual([stored.version, stored.objects[0].region, JSON.parse(state.runText).objects[0].region], [3, REGION, REGION]);
  state.undo();
  assert.deepEqual([state.regionOf(0), JSON.parse(state.text).version], [null, 2]);
  state.redo();
  assert.deepEqual(state.regionOf(0), REGION);
  state.setRegion(null);
  assert.deepEqual([state.regionOf(0), JSON.parse(state.text).version], [null, 2]);
});

test("a region without marks is stored too, and read again", () => {
  state.setRegion(REGION);
  const other = new EditorState();
  other.load(state.text);
  assert.deepEqual([other.regionOf(0), other.text], [REGION, state.text]);
});

test("marks outside of it are not taken, and those that were there are counted", () => {
  state.add(point(15, 25));
  state.add(point(5, 5));
  state.setRegion(REGION);
  assert.deepEqual([state.beyond(0), state.add(point(50, 25)), state.add({ x: 60, y: 5, width: 9, height: 9 })], [1, false, false]);
  assert.equal(state.add({ x: 0, y: 0, width: 20, height: 40 }), true);
  assert.equal(state.marks.length, 3);
});

test("a new object goes on in the region of the one before, and what was found elsewhere does not", () => {
  state.add(point(15, 25));
  state.setRegion(REGION);
  state.newObject();
  state.add({ x: 12, y: 22, width: 9, height: 9 });
  state.add({ x: 22, y: 32, width: 9, height: 9 });
  assert.deepEqual([0, 1, 2].map((object) => state.regionOf(object)), [REGION, REGION, REGION]);
  state.addObjects([{ name: "cup", marks: [point(90, 90)] }]);
  assert.deepEqual([state.object.name, state.regionOf(3)], ["cup", null]);
});

test("a locked object keeps its region, and a film has none", () => {
  state.add(point(15, 25));
  state.setRegion(REGION);
  state.setDetail("auto");
  state.setObject(0, { locked: true });
  assert.deepEqual([state.setRegion(null), state.regionOf(0)], [false, REGION]);
  state.setObject(0, { locked: false });
  state.setFrames(3);
  state.setFilm(true);
  assert.deepEqual([state.regionOf(0), state.setRegion(REGION), state.question(0).prompts.objects[0].region], [null, false, undefined]);
  assert.deepEqual([JSON.parse(state.runText).version, JSON.parse(state.text).objects[0].region], [2, REGION]);
});

test("a question has the object's region, and a region is scaled with the image", () => {
  state.image = { width: 100, height: 80 };
  state.add(point(15, 25));
  state.setRegion(REGION);
  assert.deepEqual(state.question(0).prompts.objects[0].region, REGION);
  state.scaleTo({ width: 200, height: 160 });
  assert.deepEqual(state.regionOf(0), { x: 20, y: 40, width: 60, height: 80 });
});

test("second looks are one step of undo, outlive the objects, and older texts have none", () => {
  state.add(point(15, 25));
  state.setDetail("auto");
  assert.deepEqual([JSON.parse(state.text).detail, JSON.parse(state.runText).detail, JSON.parse(state.text).version], ["auto", "auto", 3]);
  state.removeObject(0);
  assert.equal(state.detail, "auto");
  const other = new EditorState();
  other.load(state.text);
  assert.equal(other.detail, "auto");
  state.undo();
  state.undo();
  assert.equal(state.detail, "off");
  for (const detail of ["always", 1, null, undefined]) assert.equal(readText(JSON.stringify({ version: 3, objects: [], detail })).detail, "off");
  for (const detail of ["1", "2", "3"]) assert.equal(readText(JSON.stringify({ version: 3, objects: [], detail })).detail, detail);
});

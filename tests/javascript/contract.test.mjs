/** The contract with the node: each limit as the run has it, and the cases that both sides must see alike. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { contract, problemOf, setContract } from "../../web/editor/contract.js";
import { OPTIONS, cleanFinish, rangeOf } from "../../web/editor/finish_options.js";
import { ADD, cleanPatch, decode, encode, stroke } from "../../web/editor/patches.js";
import { EditorState, isOutside } from "../../web/editor/state.js";
import { CANDIDATES, readText, VERSION } from "../../web/editor/text.js";
import { CASES, CONTRACT } from "./contract.mjs";

const { limits } = CONTRACT;
const POINT = { x: 5, y: 6, label: 1 };
const PATCH = { x: 0, y: 0, width: 1, height: 1, runs: "BA==" };

let state, said;
beforeEach(() => {
  setContract(CONTRACT);
  said = [];
  state = new EditorState({ onLimit: (sentence) => said.push(sentence) });
});

const load = (...objects) => state.load(JSON.stringify({ version: 2, objects }));
const times = (count, make) => Array.from({ length: count }, (_, i) => make(i));
const apart = (width, height) => ({ ...PATCH, width, height, runs: encode({ ...PATCH, width, height, kinds: new Uint8Array(width * height).fill(1) }).runs });

test("the text is of the node's version, and has its candidates and options", () => {
  assert.deepEqual([VERSION, CANDIDATES], [CONTRACT.version, CONTRACT.candidates]);
  assert.deepEqual(OPTIONS.map(({ key }) => key), Object.keys(CONTRACT.finish));
});

/** For each limit: an editor that has as much as a run takes, and the step that would be one too many. */
const STEPS = {
  objects: () => {
    load(...times(limits.objects, () => ({ marks: [POINT] })));
    return () => state.newObject();
  },
  marks: () => {
    load({ marks: times(limits.marks - 1, () => POINT) }, { marks: [POINT] });
    return () => state.add(POINT);
  },
  name: () => {
    state.setObject(0, { name: "😀".repeat(limits.name) });
    return () => state.setObject(0, { name: "x".repeat(limits.name + 1) });
  },
  patches: () => {
    load({ paint: times(limits.patches, (frame) => ({ ...PATCH, frame })) });
    Object.assign(state, { frames: 999, frame: limits.patches, onlyThisFrame: true });
    return () => state.paint({ x: 0, y: 0, width: 1, height: 1, kinds: Uint8Array.of(ADD) });
  },
  runs: () => {
    limits.runs = 8;
    state.paint({ x: 0, y: 0, width: 6, height: 1, kinds: Uint8Array.of(1, 0, 1, 0, 1, 0) });
    assert.equal(state.objects[0].paint[0].runs.length, 8);
    return () => state.paint({ x: 0, y: 0, width: 9, height: 1, kinds: Uint8Array.of(1, 0, 1, 0, 1, 0, 1, 0, 1) });
  },
  side: () => {
    state.paint({ x: limits.side, y: 0, width: 1, height: 1, kinds: Uint8Array.of(ADD) });
    state.newObject();
    return () => state.paint({ x: limits.side + 1, y: 0, width: 1, height: 1, kinds: Uint8Array.of(ADD) });
  },
  pixels: () => {
    limits.pixels = 12;
    state.paint({ x: 0, y: 0, width: 4, height: 3, kinds: new Uint8Array(12).fill(ADD) });
    return () => state.paint({ x: 4, y: 0, width: 1, height: 1, kinds: Uint8Array.of(ADD) });
  },
  painted: () => {
    limits.painted = 20;
    load({ paint: [apart(4, 3)] }, { paint: [apart(4, 2)] });
    state.newObject();
    return () => state.paint({ x: 0, y: 0, width: 1, height: 1, kinds: Uint8Array.of(ADD) });
  },
  far: () => {
    state.add({ ...POINT, x: limits.far - 1 });
    return () => state.add({ ...POINT, x: limits.far });
  },
};

const kept = { ...limits };
for (const limit of Object.keys(limits)) {
  if (limit === "words") continue; // a field of the page has it: see words.test.mjs
  test(`at the limit of ${limit} a step is taken, one more is refused in a sentence, and nothing is lost`, () => {
    try {
      const step = STEPS[limit]();
      assert.deepEqual([said, problemOf(state)], [[], null]);
      const before = state.text;
      step();
      assert.equal(said.length, 1);
      assert.match(said[0], /^[A-Z].*\.$/);
      assert.deepEqual([state.text, problemOf(state)], [before, null]);
      state.undo();
      assert.equal(said.length, 1);
    } finally {
      Object.assign(limits, kept);
    }
  });
}

for (const [key, [low, high]] of Object.entries(CONTRACT.finish)) {
  test(`${key} stays from ${low} to ${high}`, () => {
    assert.deepEqual(rangeOf(key), [low, high]);
    assert.deepEqual([cleanFinish({ [key]: high + 1 }), cleanFinish({ [key]: high })], [{ [key]: high }, { [key]: high }]);
    assert.deepEqual(cleanFinish({ [key]: low - 1 }), low ? { [key]: low } : {});
  });
}

test("a mark that is drawn is refused at the first move", () => {
  load({ marks: times(limits.marks, () => POINT) });
  assert.equal(state.add({ x: 1, y: 1, width: 2, height: 2 }, false), false);
  assert.deepEqual([said.length, state.marks.length, state.objects.length], [1, limits.marks, 1]);
});

test("copies for the next frame are refused as a whole, and the frame stays", () => {
  load({ marks: times(600, () => ({ ...POINT, frame: 0 })) });
  state.setFrames(2);
  state.copyToNext();
  assert.deepEqual([said.length, state.marks.length, state.frame], [1, 600, 0]);
});

test("of what was found as much is taken as a run takes", () => {
  const made = times(200, () => ({ name: "y".repeat(limits.name + 9), marks: times(7, () => POINT) }));
  assert.equal(state.addObjects(made), false);
  assert.deepEqual([said, state.marks.length, state.objects[0].name.length], [[], 7 * Math.floor(limits.marks / 7), limits.name]);
});

test("a text that was loaded too large can be made smaller, step by step", () => {
  load({ marks: times(limits.marks + 2, () => POINT) });
  state.image = { width: 9, height: 9 };
  state.remove(0);
  assert.deepEqual([said, state.marks.length], [[], limits.marks + 1]);
  state.remove(0);
  state.add(POINT);
  assert.deepEqual([said.length, state.marks.length], [1, limits.marks]);
});

test("without the node's numbers nothing is limited here", () => {
  const before = { ...contract };
  try {
    setContract({ limits: {}, finish: {} });
    state.addObjects(times(300, () => ({ marks: [POINT] })));
    state.setFinish(null, { grow: 9999 });
    assert.deepEqual([state.objects.length, state.finish, said], [300, { grow: 9999 }, []]);
    assert.ok(cleanPatch(PATCH));
  } finally {
    setContract(before);
  }
});

// --- what both sides see alike

for (const [mark, [width, height], expected] of CASES.outside) {
  test(`${JSON.stringify(mark)} is ${expected ? "outside" : "inside"}`, () => assert.equal(isOutside(mark, { width, height }), expected));
}

for (const [runs, width, height, kinds] of CASES.runs) {
  test(`the runs ${JSON.stringify(runs)} of ${width} x ${height} pixels`, () => {
    const patch = cleanPatch({ x: 0, y: 0, width, height, runs });
    assert.deepEqual(patch && [...decode(patch).kinds], kinds);
  });
}

for (const [marks, groups] of CASES.groups) {
  test(`objects of ${JSON.stringify(marks)}`, () => {
    const read = readText(JSON.stringify({ version: 1, marks }));
    const place = (mark) => marks.findIndex((one) => one.x === mark.x && one.y === mark.y && one.width === mark.width);
    const found = read.objects.map((_, object) => read.marks.filter((mark) => mark.object === object).map(place).sort((a, b) => a - b));
    const sorted = (lists) => lists.map(String).sort();
    assert.deepEqual(sorted(found), sorted(groups));
  });
}

test("a stroke of the brush is a patch that the node reads", () => {
  const patch = encode(stroke([{ x: 5, y: 5 }], 3, ADD, { width: 20, height: 20 }));
  assert.deepEqual(cleanPatch(patch), patch);
});

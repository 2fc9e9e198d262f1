/** The layer of segments above the image: what is drawn, where and how strongly, and that nothing is drawn twice. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { element, recorder } from "./fake_dom.mjs";
import { SegmentLayer } from "../../web/editor/segment_layer.js";

globalThis.ImageData = class {
  constructor(data, width, height) {
    Object.assign(this, { data, width, height });
  }
};
globalThis.OffscreenCanvas = class {
  constructor(width, height) {
    Object.assign(this, { width, height });
  }

  getContext() {
    return { putImageData() {} };
  }
};

/** Segments as segments.js has them; `made` lists each that was drawn, with its colour and step. */
function segments(...list) {
  const made = [];
  const pixels = (index, rgb, step) => {
    made.push([index, rgb.join(), step]);
    return { data: [], width: Math.ceil(list[index].width / step), height: Math.ceil(list[index].height / step) };
  };
  return { list, pixels, made };
}

/** An editor of 200x100 pixels on a screen with two pixels for one, and its layer's recorder. */
function layer(view = { scale: 0.5, x: 10, y: 20 }) {
  const canvas = Object.assign(element("canvas"), { width: 200, height: 100 });
  const editor = { canvas, view, unit: 1, stageSize: { width: 100, height: 50 }, state: { nextColour: "#ff8000" } };
  const made = new SegmentLayer(editor);
  const { context, calls, said } = recorder();
  made.canvas.getContext = () => context;
  return { editor, made, calls, said };
}

const TWO = [{ x: 3, y: 4, width: 10, height: 6 }, { x: 40, y: 8, width: 5000, height: 20 }];

test("a segment is drawn at its place in the image, as strongly as it is told", () => {
  const { made, calls, said } = layer();
  const found = segments(...TWO);
  made.draw(found, [{ index: 0, strength: 0.4 }, { index: 1, strength: 1 }]);
  assert.deepEqual(calls("setTransform").at(-1), ["setTransform", 1, 0, 0, 1, 20, 40], "two pixels of the screen for one of the page");
  assert.deepEqual(calls("drawImage").map((one) => one.slice(2)), [[3, 4, 10, 6], [40, 8, 5000, 20]]);
  assert.deepEqual(said.filter(([name]) => name === "globalAlpha=").map((one) => one[1]), [0.4, 1, 1]);
  assert.deepEqual(found.made, [[0, "255,128,0", 1], [1, "255,128,0", 5]], "a large one is drawn by every fifth pixel");
});

test("nothing is drawn while nothing changes, and a segment that was drawn is not made again", () => {
  const { editor, made, calls } = layer();
  const found = segments(...TWO);
  const lit = [{ index: 0, strength: 1 }];
  made.draw(found, lit);
  made.draw(found, lit);
  assert.equal(calls("clearRect").length, 1);
  editor.view.x = 11;
  made.draw(found, lit);
  assert.deepEqual([calls("clearRect").length, found.made.length], [2, 1]);
  editor.state.nextColour = "#0000ff";
  made.draw(found, lit);
  assert.deepEqual(found.made.at(-1), [0, "0,0,255", 1]);
});

test("without segments the layer is empty, and those of another image are made anew", () => {
  const { made, calls } = layer();
  const [first, second] = [segments(...TWO), segments(...TWO)];
  made.draw(first, [{ index: 0, strength: 1 }]);
  made.draw(null, []);
  assert.deepEqual([calls("clearRect").length, calls("drawImage").length], [2, 1]);
  made.draw(second, [{ index: 0, strength: 1 }]);
  assert.equal(second.made.length, 1);
});

test("a small view draws no more pixels than it has", () => {
  const { made } = layer({ scale: 0.1, x: 0, y: 0 });
  const found = segments(...TWO);
  made.draw(found, [{ index: 1, strength: 1 }]);
  assert.deepEqual(found.made, [[1, "255,128,0", 5]]);
  const far = layer({ scale: 0.02, x: 0, y: 0 });
  far.made.draw(found, [{ index: 1, strength: 1 }]);
  assert.deepEqual(found.made.at(-1), [1, "255,128,0", 25]);
});

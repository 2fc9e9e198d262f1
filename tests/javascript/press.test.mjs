/** Presses that a layer above the image takes: a mouse's at once, a finger's when it is lifted, and none of two fingers. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { element } from "./fake_dom.mjs";
import { onPress } from "../../web/editor/press.js";

let stage, pressed, dispatched, isOurs;
beforeEach(() => {
  [pressed, dispatched, isOurs] = [[], [], true];
  globalThis.PointerEvent = class { constructor(type, { pointerId }) { Object.assign(this, { type, pointerId }); } };
  stage = element();
  stage.dispatchEvent = ({ type, pointerId }) => { dispatched.push([type, pointerId]); stage.send(type, { pointerId }); };
  onPress(stage, new AbortController().signal, () => isOurs, ({ clientX, clientY }) => pressed.push([clientX, clientY]));
});

/** Send an event; returns whether the editor's own gestures hear of it. */
function send(type, more) {
  let isHeard = true;
  stage.send(type, { pointerId: 1, clientX: 50, clientY: 40, preventDefault: () => {}, stopImmediatePropagation: () => { isHeard = false; }, ...more });
  return isHeard;
}
const finger = (type, more = {}) => send(type, { pointerType: "touch", ...more });

test("a mouse's press is taken when it comes down, and the gestures do not hear of it", () => {
  assert.equal(send("pointerdown", { pointerType: "mouse" }), false);
  assert.deepEqual(pressed, [[50, 40]]);
  isOurs = false;
  assert.equal(send("pointerdown", { pointerType: "mouse" }), true);
  assert.equal(pressed.length, 1);
});

test("a finger's press is taken when it is lifted, and the gestures give up theirs", () => {
  assert.equal(finger("pointerdown"), true, "it may be the first of two");
  assert.deepEqual(pressed, []);
  assert.equal(finger("pointerup", { clientX: 54, clientY: 44 }), false);
  assert.deepEqual([pressed, dispatched], [[[54, 44]], [["pointercancel", 1]]]);
});

test("a finger that moves away is no press", () => {
  finger("pointerdown");
  assert.equal(finger("pointerup", { clientX: 90 }), true);
  assert.deepEqual([pressed, dispatched], [[], []]);
});

test("two fingers are no press, whichever is lifted first", () => {
  for (const lifted of [1, 2]) {
    finger("pointerdown");
    finger("pointerdown", { pointerId: 2, clientX: 90 });
    assert.equal(finger("pointerup", { pointerId: lifted, clientX: lifted === 1 ? 50 : 90 }), true);
    assert.equal(finger("pointerup", { pointerId: 3 - lifted }), true);
  }
  finger("pointerdown");
  finger("pointercancel");
  finger("pointerup");
  assert.deepEqual(pressed, []);
});

test("a finger that comes down where nothing is taken is the gestures'", () => {
  isOurs = false;
  finger("pointerdown");
  isOurs = true;
  assert.equal(finger("pointerup"), true);
  assert.deepEqual(pressed, []);
});

/** What is said while something takes long. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import "./fake_dom.mjs";
import { makeProgress } from "../../web/editor/progress.js";

test("work is said with its share and a button that ends it; a result without", () => {
  let cancelled = 0;
  const { element, show, say, hide } = makeProgress(() => { cancelled += 1; });
  const [text, bar, stop] = element.children;
  assert.equal(element.hidden, true);
  show("Finding…", 0.256);
  assert.deepEqual([text.textContent, bar.value, bar.hidden, stop.hidden, element.hidden], ["Finding… 26 %", 0.256, false, false, false]);
  stop.onclick();
  assert.equal(cancelled, 1);
  show("Finding…", null);
  assert.match(text.textContent, /running a prompt/);
  say("Found 2 objects.");
  assert.deepEqual([text.textContent, bar.hidden, stop.hidden], ["Found 2 objects.", true, true]);
  hide();
  assert.equal(element.hidden, true);
});

test("a result goes by itself, but not what has come since", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { element, show, say } = makeProgress(() => {});
  say("Found.");
  mock.timers.tick(5999);
  assert.equal(element.hidden, false);
  mock.timers.tick(1);
  assert.equal(element.hidden, true);
  say("Found.");
  show("Again…", 0);
  mock.timers.tick(10_000);
  assert.equal(element.hidden, false);
  mock.timers.reset();
});

test("a press on it does not reach the image", () => {
  const { element } = makeProgress(() => {});
  let stopped = false;
  element.send("pointerdown", { stopPropagation: () => { stopped = true; } });
  assert.equal(stopped, true);
});

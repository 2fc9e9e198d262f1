/** Second looks, with a server whose answers are given by hand and waits that end by hand. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { SecondLooks } from "../../web/editor/second_look.js";
import { settled } from "./fake_dom.mjs";

const item = (key) => ({ key, question: { prompts: key } });

let sent, waits, cancelled, closed, changes, looks;

beforeEach(() => {
  [sent, waits, cancelled, closed, changes] = [[], [], [], [], 0];
  looks = new SecondLooks({
    client: {
      look: (question) => new Promise((answer, fail) => sent.push({ question, answer, fail })),
      cancel: async (work) => { cancelled.push(work); },
    },
    decode: async (png) => ({ png, close: () => closed.push(png) }),
    onChange: () => { changes += 1; },
    wait: (time) => new Promise((done) => waits.push({ time, done })),
  });
});

const asked = () => sent.map(({ question }) => question.prompts);
const mask = (png, look = "sharper") => ({ png, look, score: 0.9, area: 7, milliseconds: 12, stamp: "s" });

async function rest() {
  waits.at(-1).done();
  await settled();
}

async function answer(value) {
  sent.at(-1).answer(value);
  await settled();
}

test("nothing is asked until the pointer has rested, and then the object that is worked on first", async () => {
  looks.want([item("a"), item("b")]);
  await settled();
  assert.deepEqual([asked(), waits.length, waits[0].time >= 200], [[], 1, true]);
  await rest();
  assert.deepEqual([asked(), looks.say("a"), looks.say("b")], [["a"], "first look, looking again…", "first look"]);
  await answer(mask("A"));
  assert.deepEqual([asked(), looks.find("a").bitmap.png, looks.find("b"), looks.busy], [["a", "b"], "A", null, true]);
  await answer(mask("B", "other"));
  assert.deepEqual([looks.say("a"), looks.say("b"), looks.busy], ["second look", "first look (the second saw something else)", false]);
  assert.equal(looks.say("c"), null);
  assert.ok(changes >= 4);
});

test("a mark that comes before the rest begins it anew, and only what is wanted then is asked", async () => {
  looks.want([item("a")]);
  looks.want([item("b")]);
  waits[0].done();
  await settled();
  assert.deepEqual(asked(), []);
  await rest();
  assert.deepEqual(asked(), ["b"]);
});

test("the same again is no reason to wait anew, whatever the order", async () => {
  looks.want([item("a"), item("b")]);
  looks.want([item("b"), item("a")]);
  assert.equal(waits.length, 1);
  await rest();
  assert.deepEqual(asked(), ["b"]);
});

test("a new mark cancels the look that is under way, whose answer never comes to the new marks", async () => {
  looks.want([item("a")]);
  await rest();
  looks.want([item("b")]);
  assert.deepEqual(cancelled, ["look"]);
  await answer(mask("A"));
  assert.deepEqual([looks.find("a"), looks.find("b"), closed, asked()], [null, null, [], ["a"]], "and the next waits for a rest");
  await rest();
  await answer(mask("B"));
  assert.deepEqual([asked(), looks.find("b").bitmap.png], [["a", "b"], "B"]);
});

test("a rest that ends while the old look is still under way goes on after it", async () => {
  looks.want([item("a")]);
  await rest();
  looks.want([item("b")]);
  await rest();
  assert.deepEqual(asked(), ["a"]);
  sent[0].fail(Object.assign(new Error("Cancelled."), { status: 409 }));
  await settled();
  assert.deepEqual(asked(), ["a", "b"]);
});

test("while the server is not ready it is asked again, and where nobody wants it any longer no more", async () => {
  looks.want([item("a")]);
  await rest();
  await answer({ progress: 0 });
  assert.deepEqual(asked(), ["a", "a"]);
  looks.want([]);
  await answer({ progress: 0.5 });
  assert.deepEqual([asked(), looks.find("a"), looks.busy], [["a", "a"], null, false]);
});

test("what is known is there at once", async () => {
  looks.want([item("a")]);
  await rest();
  await answer(mask("A"));
  looks.want([item("b")]);
  looks.want([item("a")]);
  assert.deepEqual([looks.find("a").bitmap.png, looks.busy, looks.say("a")], ["A", false, "second look"]);
  await settled();
  assert.deepEqual(asked(), ["a"]);
});

test("a failure is said, and not tried again before something changes", async () => {
  looks.want([item("a")]);
  await rest();
  sent[0].fail(Object.assign(new Error("out of memory"), { status: 500 }));
  await settled();
  assert.deepEqual([looks.say("a"), looks.busy, asked()], ["first look (out of memory)", false, ["a"]]);
  looks.want([]);
  looks.want([item("a")]);
  await rest();
  assert.deepEqual(asked(), ["a", "a"]);
});

test("masks that are not wanted any longer are few, and all go with the editor", async () => {
  for (let number = 0; number < 27; number += 1) {
    looks.want([item(number)]);
    await rest();
    await answer(mask(number, "alike"));
  }
  assert.deepEqual([closed, looks.say(26)], [[0, 1], "first look (a second gains nothing)"]);
  looks.dispose();
  assert.equal(closed.length, 27);
  assert.equal(looks.find(26), null);
});

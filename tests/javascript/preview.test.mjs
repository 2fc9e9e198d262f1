/** The preview's state and its work, with a server whose answers are given by hand and waits that end by hand. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { IDLE, Pace, Preview, SLOW, next, pause } from "../../web/editor/preview.js";

const SUBJECT = { image: { filename: "a.png" }, model: { model_name: "b" }, version: "1" };
const OTHER = { ...SUBJECT, version: "2" };
const item = (key) => ({ key, question: { prompts: key, object: 0 } });

let sent, waits, changes, closed, preview;

function given(kind, body) {
  return new Promise((answer, fail) => sent.push({ kind, body, answer, fail }));
}

beforeEach(() => {
  sent = [];
  waits = [];
  closed = [];
  changes = 0;
  preview = new Preview({
    client: { prepare: (body) => given("prepare", body), ask: (body) => given("ask", body) },
    decode: async (png) => ({ png, close: () => closed.push(png) }),
    onChange: () => (changes += 1),
    wait: (time) => new Promise((done) => waits.push({ time, done })),
  });
});

const soon = () => new Promise((done) => setImmediate(done));
const asked = () => sent.map(({ kind, body }) => (kind === "ask" ? body.prompts : kind));
const mask = (png, milliseconds = 12) => ({ png, score: 0.9, area: 7, milliseconds, stamp: "s" });
const SIZE = { width: 4, height: 3 };
const superseded = Object.assign(new Error("Superseded by a newer request."), { status: 409 });
const busy = Object.assign(new Error("ComfyUI is running a prompt."), { status: 503 });
const name = () => preview.state.name;

/** The latest request: of all, or for the image ("prepare"), or for a mask. */
const latest = (what) => sent.findLast(({ kind, body }) => what === undefined || what === (kind === "ask" ? body.prompts : kind));

async function answer(value, what) {
  latest(what).answer(value);
  await soon();
}

async function refuse(error, what) {
  latest(what).fail(error);
  await soon();
}

/** A preview that is ready with these masks. */
async function ready(...keys) {
  preview.want(SUBJECT, keys.map(item));
  await answer({ width: 4, height: 3, stamp: "s" }, "prepare");
  for (const key of keys) await answer(mask(key), key);
  sent.length = 0;
}

// --- transitions

const state = (more) => ({ ...IDLE, subject: "s", prepared: true, ...more });
for (const [what, before, event, after] of [
  ["nothing wanted", state({ name: "ready" }), { type: "wanted", subject: null }, IDLE],
  ["another subject", state({ name: "failed", message: "x", tries: 3 }), { type: "wanted", subject: "t", missing: 1 }, { ...IDLE, name: "preparing", subject: "t" }],
  ["a mark", state({ name: "ready" }), { type: "wanted", subject: "s", missing: 1 }, state({ name: "stale" })],
  ["nothing new", state({ name: "ready" }), { type: "wanted", subject: "s", missing: 0 }, state({ name: "ready" })],
  ["a mark after a failure", state({ name: "failed", prepared: false, message: "x" }), { type: "wanted", subject: "s", missing: 1 }, state({ name: "preparing", prepared: false })],
  ["an encoded image", state({ name: "preparing", prepared: false, busy: "b", tries: 2 }), { type: "prepared", subject: "s", missing: 2 }, state({ name: "stale" })],
  ["another image, encoded late", state({ name: "preparing", prepared: false }), { type: "prepared", subject: "t", missing: 0 }, state({ name: "preparing", prepared: false })],
  ["the last mask", state({ name: "stale", busy: "b", tries: 1 }), { type: "answered", missing: 0 }, state({ name: "ready" })],
  ["an answer of the image before", state({ name: "preparing", prepared: false }), { type: "answered", missing: 0 }, state({ name: "preparing", prepared: false })],
  ["an answer after all is over", IDLE, { type: "answered", missing: 0 }, IDLE],
  ["a busy server", state({ name: "stale" }), { type: "busy", message: "b" }, state({ name: "stale", busy: "b", tries: 1 })],
  ["a failure", state({ name: "stale", tries: 1 }), { type: "failed", message: "x" }, state({ name: "failed", prepared: false, message: "x", tries: 2 })],
  ["a checkpoint that is not there", state({ name: "preparing", prepared: false }), { type: "failed", message: "x", lacks: "b.pth" }, state({ name: "failed", prepared: false, message: "x", missing: "b.pth", tries: 1 })],
  ["a failure after all is over", IDLE, { type: "failed", message: "x" }, IDLE],
  ["a new try", state({ name: "failed", prepared: false, message: "x", tries: 2 }), { type: "retry" }, state({ name: "preparing", prepared: false, message: "x", tries: 2 })],
]) {
  test(`${before.name} and ${what}: ${after.name}`, () => assert.deepEqual(next(before, event), after));
}

test("an event that is not known is an error", () => assert.throws(() => next(IDLE, { type: "boom" })));

test("waits grow, and have an end", () => {
  const times = (name) => [1, 2, 3, 20].map((tries) => pause({ name, tries }));
  assert.deepEqual(times("failed"), [2000, 4000, 8000, 30_000]);
  assert.deepEqual(times("stale"), [700, 1400, 2800, 5000]);
});

test("one slow answer is not a slow machine, and a quick machine is quick again", () => {
  const pace = new Pace();
  pace.add(900);
  assert.equal(pace.isSlow, false, "the first of all");
  pace.forget();
  for (const time of [10, 10, 900, 10]) pace.add(time);
  assert.equal(pace.isSlow, false);
  for (const _ of [1, 2, 3]) pace.add(SLOW + 100);
  assert.equal(pace.isSlow, true);
  for (const _ of [1, 2, 3]) pace.add(10);
  assert.equal(pace.isSlow, false);
});

// --- the work

test("an image is encoded while the first mask is asked for, then comes each other mask, one at a time", async () => {
  preview.want(SUBJECT, [item("a"), item("b")]);
  assert.deepEqual([asked(), name()], [["prepare", "a"], "preparing"]);
  assert.deepEqual(sent[0].body, { image: SUBJECT.image, model: SUBJECT.model });
  await answer(SIZE, "prepare");
  assert.deepEqual([asked(), name()], [["prepare", "a"], "stale"]);
  await answer(mask("A"));
  assert.deepEqual([asked(), name()], [["prepare", "a", "b"], "stale"]);
  await answer(mask("B"));
  assert.deepEqual([name(), preview.find("a").bitmap.png, preview.find("b").answer.area], ["ready", "A", 7]);
});

test("a mask that comes before the image is said to be encoded is there when it is", async () => {
  preview.want(SUBJECT, [item("a")]);
  await answer(mask("A"), "a");
  assert.deepEqual([asked(), name(), preview.find("a").bitmap.png], [["prepare", "a"], "preparing", "A"]);
  await answer(SIZE, "prepare");
  assert.deepEqual([asked(), name()], [["prepare", "a"], "ready"]);
});

test("the image alone is encoded before there are marks", async () => {
  preview.want(SUBJECT, []);
  await answer({ width: 4, height: 3 });
  assert.deepEqual([asked(), name(), preview.prepared.width], [["prepare"], "ready", 4]);
});

test("what is there already is not asked for again", async () => {
  await ready("a");
  preview.want(SUBJECT, [item("b")]);
  await answer(mask("B"));
  preview.want(SUBJECT, [item("a")]);
  await soon();
  assert.deepEqual([asked(), name()], [["b"], "ready"]);
});

test("200 moves of a drag at once are two requests: the first's and the newest's", async () => {
  await ready();
  for (let i = 0; i < 200; i += 1) preview.want(SUBJECT, [item(`m${i}`)], false);
  await answer(mask("first"));
  await answer(mask("last"));
  assert.deepEqual([asked(), name()], [["m0", "m199"], "ready"]);
});

test("a click while another one's answer is on its way is asked for at once, and the older one may be refused", async () => {
  await ready();
  preview.want(SUBJECT, [item("a")]);
  preview.want(SUBJECT, [item("b")]);
  assert.deepEqual(asked(), ["a", "b"]);
  await refuse(superseded, "a");
  assert.deepEqual([asked(), name(), preview.state.busy, waits.length], [["a", "b"], "stale", null, 0]);
  await answer(mask("B"));
  assert.deepEqual([asked(), name(), preview.find("b").bitmap.png], [["a", "b"], "ready", "B"]);
});

test("however many clicks come, few questions are on their way, and the last click's mask comes", async () => {
  await ready();
  for (let i = 0; i < 20; i += 1) preview.want(SUBJECT, [item(`c${i}`)]);
  assert.deepEqual(asked(), ["c0", "c1", "c2"]);
  await refuse(superseded, "c0");
  assert.deepEqual(asked(), ["c0", "c1", "c2", "c19"]);
  await refuse(superseded, "c1");
  await refuse(superseded, "c2");
  await answer(mask("last"));
  assert.deepEqual([asked().length, name(), preview.find("c19").bitmap.png], [4, "ready", "last"]);
});

test("a mask that a click elsewhere has put off is asked for again", async () => {
  await ready();
  preview.want(SUBJECT, [item("a"), item("other")]);
  await answer(mask("A"));
  preview.want(SUBJECT, [item("b"), item("other")]);
  assert.deepEqual(asked(), ["a", "other", "b"]);
  await refuse(superseded, "other");
  await answer(mask("B"), "b");
  await answer(mask("Other"));
  assert.deepEqual([asked(), name(), waits.length], [["a", "other", "b", "other"], "ready", 0]);
});

test("a click that another editor's work holds up waits as for a busy server", async () => {
  await ready();
  preview.want(SUBJECT, [item("a")]);
  await refuse(superseded);
  assert.deepEqual([waits.length, asked()], [1, ["a"]]);
});

test("an answer that comes after another image was wanted is not an answer for it", async () => {
  await ready();
  preview.want(SUBJECT, [item("a")]);
  preview.want(OTHER, [item("other a")]);
  await answer(mask("A"), "a");
  assert.deepEqual([asked(), name(), preview.find("other a")], [["a", "other a", "prepare"], "preparing", null]);
});

test("masks that nobody wants any more are let go of, the wanted ones never", async () => {
  await ready("kept");
  for (let i = 0; i < 60; i += 1) {
    preview.want(SUBJECT, [item("kept"), item(`m${i}`)]);
    await answer(mask(`M${i}`));
  }
  assert.ok(closed.length >= 30 && closed[0] === "M0");
  assert.ok(preview.find("kept") && preview.find("m59"));
  preview.dispose();
  assert.equal(new Set(closed).size, 61, "in the end all are closed");
});

// --- hover

test("a hover is asked for when nothing else is missing, and only the newest", async () => {
  await ready();
  preview.want(SUBJECT, [item("a")]);
  preview.hover(item("h1"));
  preview.hover(item("h2"));
  await answer(mask("A"));
  await answer(mask("H2"));
  assert.deepEqual([asked(), name()], [["a", "h2"], "ready"]);
});

test("a click while a hover's answer is on its way is asked for at once; at the same place that answer is the click's", async () => {
  await ready();
  preview.hover(item("h"));
  preview.hover(null); // the press
  preview.want(SUBJECT, [item("a")]);
  assert.deepEqual([asked(), name()], [["h", "a"], "stale"]);
  await refuse(superseded, "h");
  await answer(mask("A"));
  preview.hover(item("b"));
  preview.want(SUBJECT, [item("a"), item("b")]);
  await answer(mask("B"));
  assert.deepEqual([asked(), name()], [["h", "a", "b"], "ready"]);
});

test("a hover is asked for one at a time, whatever the pointer does", async () => {
  await ready();
  for (let i = 0; i < 50; i += 1) preview.hover(item(`h${i}`));
  assert.deepEqual(asked(), ["h0"]);
  await answer(mask("H"));
  assert.deepEqual(asked(), ["h0", "h49"]);
});

test("a click where the pointer rests shows what is there already", async () => {
  await ready();
  preview.hover(item("a"));
  await answer(mask("A"));
  preview.want(SUBJECT, [item("a")]);
  assert.deepEqual([name(), asked()], ["ready", ["a"]]);
});

test("a hover that is refused is forgotten, and not an error", async () => {
  await ready("a");
  preview.hover(item("h"));
  await refuse(new Error("Failed to fetch"));
  assert.deepEqual([name(), waits.length, preview.busy], ["ready", 0, false]);
});

// --- trouble

test("after a failure a change tries again at once, and the image is encoded again: the server may be a new one", async () => {
  await ready("a");
  preview.want(SUBJECT, [item("b")]);
  await refuse(new Error("Failed to fetch"));
  assert.deepEqual([name(), preview.state.message], ["failed", "Failed to fetch"]);
  preview.want(SUBJECT, [item("c")]);
  await soon();
  assert.deepEqual(asked(), ["b", "prepare"]);
  await answer({ width: 4, height: 3 });
  await answer(mask("C"));
  assert.deepEqual([name(), preview.state.message, preview.state.tries], ["ready", null, 0]);
});

test("after a failure it tries again by itself, ever more slowly", async () => {
  preview.want(SUBJECT, [item("a")]);
  await refuse(new Error("gone"), "a");
  for (let i = 0; i < 3; i += 1) {
    await refuse(new Error("gone"), "prepare");
    assert.equal(name(), "failed");
    waits[i].done();
    await soon();
  }
  assert.deepEqual(waits.map(({ time }) => time), [2000, 4000, 8000]);
  assert.deepEqual(asked(), ["prepare", "a", "prepare", "prepare", "prepare"], "who has failed asks for one thing at a time");
  await answer({ width: 4, height: 3 });
  await answer(mask("A"));
  assert.equal(name(), "ready");
});

test("while the server is busy it backs off, and says why", async () => {
  await ready();
  preview.want(SUBJECT, [item("a")]);
  for (let i = 0; i < 5; i += 1) {
    await refuse(busy);
    waits[i].done();
    await soon();
  }
  assert.deepEqual(waits.map(({ time }) => time), [700, 1400, 2800, 5000, 5000]);
  assert.deepEqual([name(), preview.state.busy], ["stale", busy.message]);
  await answer(mask("A"));
  assert.deepEqual([name(), preview.state.busy], ["ready", null]);
});

test("when ComfyUI says that a run is over, it does not wait any longer", async () => {
  preview.want(SUBJECT);
  await refuse(busy);
  preview.wake();
  await soon();
  assert.deepEqual(asked(), ["prepare", "prepare"]);
});

test("what is no longer wanted is not tried again", async () => {
  preview.want(SUBJECT);
  await refuse(new Error("gone"));
  preview.want(null);
  await soon();
  assert.deepEqual([asked(), preview.state, preview.busy], [["prepare"], IDLE, false]);
});

test("a mask that arrives after the editor is gone is let go of", async () => {
  await ready();
  preview.want(SUBJECT, [item("a")]);
  preview.dispose();
  await answer(mask("A"));
  assert.deepEqual([closed, preview.find("a"), preview.state], [["A"], null, IDLE]);
});

test("every change is told of", async () => {
  await ready("a");
  const before = changes;
  preview.want(SUBJECT, [item("b")]);
  await answer(mask("B"));
  assert.ok(changes >= before + 2);
});

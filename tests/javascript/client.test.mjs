/** The client, with a server whose answers are given by hand and a wait that ends by hand. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { PreviewClient, Refusal } from "../../web/editor/client.js";

const QUESTION = { image: { filename: "a.png" }, model: { model_name: "b" }, prompts: { marks: [] } };

let sent, waits, client;
beforeEach(() => {
  sent = [];
  waits = [];
  client = new PreviewClient({
    editor: "one",
    send: (path, init) => new Promise((answer, fail) => sent.push({ path, init, body: JSON.parse(init.body), answer, fail })),
    wait: (time) => new Promise((done) => waits.push({ time, done })),
  });
});

const question = (name) => ({ ...QUESTION, prompts: { name } });
const names = () => sent.map(({ body }) => body.prompts.name);

/** A mask as the server sends it; `name` is what its PNG holds. */
function mask(name, { score = "0.9", area = "7", milliseconds = "12.5" } = {}) {
  return new Response(name, {
    headers: { "X-SAMKit-Score": score, "X-SAMKit-Area": area, "X-SAMKit-Milliseconds": milliseconds },
  });
}

const refusal = (status, error) => new Response(JSON.stringify({ error }), { status });

/** Let everything run that can run without the server or the wait. */
const soon = () => new Promise((done) => setImmediate(done));

const shown = async (promise) => (await promise)?.png.text() ?? null;

// --- a question and its answer

test("a question is posted as JSON, with the editor and a number", async () => {
  client.ask(QUESTION);
  const [{ path, init, body }] = sent;
  assert.equal(path, "/samkit/preview");
  assert.equal(init.method, "POST");
  assert.equal(init.headers["Content-Type"], "application/json");
  assert.deepEqual(body, { ...QUESTION, editor: "one", sequence: 1 });
});

test("an answer is a mask with its score, area and time", async () => {
  const answer = client.ask(QUESTION);
  sent[0].answer(mask("M", { score: "0.8731", area: "1234", milliseconds: "56.7" }));
  const { png, ...figures } = await answer;
  assert.equal(await png.text(), "M");
  assert.deepEqual(figures, { score: 0.8731, area: 1234, milliseconds: 56.7 });
});

test("each question has a greater number than the one before", async () => {
  for (let i = 0; i < 3; i += 1) {
    const answer = client.ask(QUESTION);
    sent[i].answer(mask("M"));
    await answer;
  }
  const numbers = sent.map(({ body }) => body.sequence);
  assert.ok(numbers[0] < numbers[1] && numbers[1] < numbers[2], numbers.join());
});

// --- one at a time, the newest

test("one question at most is on its way", async () => {
  for (const name of ["a", "b", "c"]) client.ask(question(name));
  await soon();
  assert.deepEqual(names(), ["a"]);
});

test("after an answer the newest question is sent, and those between never", async () => {
  const answers = ["a", "b", "c", "d"].map((name) => client.ask(question(name)));
  sent[0].answer(mask("A"));
  await soon();
  assert.deepEqual(names(), ["a", "d"]);
  sent[1].answer(mask("D"));
  assert.deepEqual(await Promise.all(answers.map(shown)), [null, null, null, "D"]);
  assert.equal(sent.length, 2);
});

test("a question that a newer one replaces is over at once", async () => {
  client.ask(question("a"));
  const between = client.ask(question("b"));
  client.ask(question("c"));
  assert.equal(await between, null);
});

test("an old answer is no mask", async () => {
  const old = client.ask(question("a"));
  client.ask(question("b"));
  sent[0].answer(mask("A"));
  assert.equal(await old, null);
});

test("an old refusal is no error", async () => {
  const old = client.ask(question("a"));
  client.ask(question("b"));
  sent[0].answer(refusal(400, "no"));
  assert.equal(await old, null);
});

test("a question that comes while the answer is being read makes it old", async () => {
  let read;
  const slow = mask("A");
  slow.blob = () => new Promise((done) => (read = done));
  const old = client.ask(question("a"));
  sent[0].answer(slow);
  await soon();
  client.ask(question("b"));
  read(new Blob(["A"]));
  assert.equal(await old, null);
});

test("200 questions at once are two requests, and one mask, the newest's", async () => {
  const answers = Array.from({ length: 200 }, (_, i) => client.ask(question(i)));
  sent[0].answer(mask("first"));
  await soon();
  sent[1].answer(mask("last"));
  const masks = (await Promise.all(answers.map(shown))).filter(Boolean);
  assert.deepEqual([masks, names()], [["last"], [0, 199]]);
});

// --- ComfyUI at work

test("while the server is busy, the client waits and asks the same again", async () => {
  const answer = client.ask(question("a"));
  sent[0].answer(refusal(503, "ComfyUI is running a prompt."));
  await soon();
  assert.deepEqual([sent.length, waits.length], [1, 1]);
  assert.ok(waits[0].time >= 200, "no storm of requests");
  waits[0].done();
  await soon();
  assert.deepEqual(sent[1].body, sent[0].body);
  sent[1].answer(mask("A"));
  assert.equal(await shown(answer), "A");
});

test("it asks as often as the server is busy", async () => {
  const answer = client.ask(question("a"));
  for (let i = 0; i < 5; i += 1) {
    sent[i].answer(refusal(503, "busy"));
    await soon();
    waits[i].done();
    await soon();
  }
  sent[5].answer(mask("A"));
  assert.equal(await shown(answer), "A");
});

test("the server's reason for being busy is told", async () => {
  const told = [];
  client.onBusy = (text) => told.push(text);
  client.ask(question("a"));
  sent[0].answer(refusal(503, "ComfyUI is running a prompt."));
  await soon();
  assert.deepEqual(told, ["ComfyUI is running a prompt."]);
});

test("a question that waits for the server is not asked again when a newer one came", async () => {
  const old = client.ask(question("a"));
  sent[0].answer(refusal(503, "busy"));
  await soon();
  const newer = client.ask(question("b"));
  waits[0].done();
  assert.equal(await old, null);
  assert.deepEqual(names(), ["a", "b"]);
  sent[1].answer(mask("B"));
  assert.equal(await shown(newer), "B");
});

test("a busy server's answer to an old question is not waited for", async () => {
  const old = client.ask(question("a"));
  client.ask(question("b"));
  sent[0].answer(refusal(503, "busy"));
  assert.equal(await old, null);
  assert.deepEqual([waits.length, names()], [0, ["a", "b"]]);
});

// --- refusals

for (const status of [400, 404, 413, 500]) {
  test(`a refusal with ${status} has the server's words`, async () => {
    const answer = client.ask(QUESTION);
    sent[0].answer(refusal(status, "prompts.marks[0].x is 'a': it must be a number."));
    await assert.rejects(answer, (error) => {
      assert.ok(error instanceof Refusal && error instanceof Error);
      assert.deepEqual([error.status, error.message], [status, "prompts.marks[0].x is 'a': it must be a number."]);
      return true;
    });
    assert.equal(waits.length, 0);
  });
}

for (const text of ["<html>Not found</html>", "", "null", "{}"]) {
  test(`a refusal without words has its status: ${JSON.stringify(text)}`, async () => {
    const answer = client.ask(QUESTION);
    sent[0].answer(new Response(text, { status: 404 }));
    await assert.rejects(answer, { message: "the server answered 404", status: 404 });
  });
}

test("a server that is gone is an error", async () => {
  const answer = client.ask(QUESTION);
  sent[0].fail(new TypeError("Failed to fetch"));
  await assert.rejects(answer, { message: "Failed to fetch" });
  assert.equal(waits.length, 0);
});

test("an answer that breaks off is an error", async () => {
  const answer = client.ask(QUESTION);
  const broken = mask("M");
  broken.blob = () => Promise.reject(new TypeError("network error"));
  sent[0].answer(broken);
  await assert.rejects(answer, { message: "network error" });
});

test("after an error the next question is asked", async () => {
  const failed = client.ask(question("a"));
  sent[0].fail(new TypeError("Failed to fetch"));
  await assert.rejects(failed);
  const answer = client.ask(question("b"));
  sent[1].answer(mask("B"));
  assert.equal(await shown(answer), "B");
});

test("an old question's error does not keep the newer one from being asked", async () => {
  client.ask(question("a"));
  const newer = client.ask(question("b"));
  sent[0].fail(new TypeError("Failed to fetch"));
  await soon();
  sent[1].answer(mask("B"));
  assert.equal(await shown(newer), "B");
});

// --- drop, busy, settled

test("what is dropped is no mask when its answer comes", async () => {
  const answer = client.ask(QUESTION);
  client.drop();
  sent[0].answer(mask("A"));
  assert.equal(await answer, null);
});

test("what is dropped is no error when its refusal comes", async () => {
  const answer = client.ask(QUESTION);
  client.drop();
  sent[0].answer(refusal(400, "no"));
  assert.equal(await answer, null);
});

test("what is dropped while it waits is never sent", async () => {
  client.ask(question("a"));
  const waiting = client.ask(question("b"));
  client.drop();
  assert.equal(await waiting, null);
  sent[0].answer(mask("A"));
  await client.settled();
  assert.deepEqual(names(), ["a"]);
});

test("what is dropped while the server is busy is not asked again", async () => {
  const answer = client.ask(QUESTION);
  sent[0].answer(refusal(503, "busy"));
  await soon();
  client.drop();
  waits[0].done();
  assert.equal(await answer, null);
  assert.equal(sent.length, 1);
});

test("after a drop the next question is asked", async () => {
  client.ask(question("a"));
  client.drop();
  const answer = client.ask(question("b"));
  sent[0].answer(mask("A"));
  await soon();
  sent[1].answer(mask("B"));
  assert.equal(await shown(answer), "B");
});

test("a drop with nothing asked does no harm", async () => {
  client.drop();
  const answer = client.ask(QUESTION);
  sent[0].answer(mask("A"));
  assert.equal(await shown(answer), "A");
});

test("the client is busy from the first question to the last answer", async () => {
  assert.equal(client.busy, false);
  client.ask(question("a"));
  client.ask(question("b"));
  assert.equal(client.busy, true);
  sent[0].answer(mask("A"));
  await soon();
  assert.equal(client.busy, true);
  sent[1].answer(mask("B"));
  await soon();
  assert.equal(client.busy, false);
});

test("settled waits for the last answer", async () => {
  let over = false;
  client.ask(question("a"));
  client.ask(question("b"));
  const settled = client.settled().then(() => (over = true));
  sent[0].answer(mask("A"));
  await soon();
  assert.equal(over, false);
  sent[1].answer(mask("B"));
  await settled;
  assert.equal(client.busy, false);
});

test("settled is over at once where nothing was asked", () => client.settled());

// --- prepare

test("prepare names image and model, and gives the server's answer", async () => {
  const ready = client.prepare({ image: QUESTION.image, model: QUESTION.model });
  assert.equal(sent[0].path, "/samkit/prepare");
  assert.deepEqual(sent[0].body, { image: QUESTION.image, model: QUESTION.model });
  sent[0].answer(new Response('{"width": 4, "height": 3, "frames": 1, "seconds": 0.5}'));
  assert.deepEqual(await ready, { width: 4, height: 3, frames: 1, seconds: 0.5 });
});

test("prepare is refused with the server's words", async () => {
  const ready = client.prepare({});
  sent[0].answer(refusal(404, "image.filename is 'a.png': there is no such file."));
  await assert.rejects(ready, { status: 404, message: "image.filename is 'a.png': there is no such file." });
});

test("prepare leaves the wait for a busy server to its caller", async () => {
  const ready = client.prepare({});
  sent[0].answer(refusal(503, "busy"));
  await assert.rejects(ready, { status: 503, message: "busy" });
  assert.deepEqual([sent.length, waits.length], [1, 0]);
});

test("prepare makes no question old", async () => {
  const answer = client.ask(QUESTION);
  client.prepare({});
  sent[0].answer(mask("A"));
  assert.equal(await shown(answer), "A");
});

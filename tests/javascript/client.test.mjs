/** What goes to the server and what comes back, with answers that are given by hand. */

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { PreviewClient, Refusal } from "../../web/editor/client.js";

const QUESTION = { image: { filename: "a.png" }, model: { model_name: "b" }, prompts: { marks: [] }, object: 0 };

let sent, client;
beforeEach(() => {
  sent = [];
  client = new PreviewClient({
    editor: "one",
    send: (path, init) => new Promise((answer, fail) => sent.push({ path, init, body: JSON.parse(init.body), answer, fail })),
  });
});

function mask(name, headers = {}) {
  const figures = { Score: "0.8731", Area: "1234", Milliseconds: "56.7", Stamp: "5a-7", ...headers };
  return new Response(name, { headers: Object.fromEntries(Object.entries(figures).map(([key, value]) => [`X-SAMKit-${key}`, value])) });
}

const refusal = (status, error) => new Response(JSON.stringify({ error }), { status });

test("a question is posted as JSON, with the editor and a number", () => {
  client.ask(QUESTION);
  const [{ path, init, body }] = sent;
  assert.deepEqual([path, init.method, init.headers["Content-Type"]], ["/samkit/preview", "POST", "application/json"]);
  assert.deepEqual(body, { ...QUESTION, editor: "one", sequence: 1 });
});

test("an answer is a mask with its score, area, time and what tells the image's content", async () => {
  const answer = client.ask(QUESTION);
  sent[0].answer(mask("M"));
  const { png, ...figures } = await answer;
  assert.equal(await png.text(), "M");
  assert.deepEqual(figures, { score: 0.8731, area: 1234, milliseconds: 56.7, stamp: "5a-7", look: null, place: null });
});

test("a second look is asked for without a number, and is a mask, or how far it is", async () => {
  const first = client.look(QUESTION);
  sent[0].answer(new Response('{"progress": 0.5}', { status: 202 }));
  assert.deepEqual([await first, sent[0].path, sent[0].body], [{ progress: 0.5 }, "/samkit/look", { ...QUESTION, editor: "one" }]);
  const second = client.look(QUESTION);
  const { headers } = mask("M");
  sent[1].answer(new Response("M", { headers: { ...Object.fromEntries(headers), "X-SAMKit-Look": "other", "X-SAMKit-Place": "3 4 50 60" } }));
  const { png, look, area, place } = await second;
  assert.deepEqual([await png.text(), look, area, place], ["M", "other", 1234, { x: 3, y: 4, width: 50, height: 60 }]);
});

test("each question has a greater number than the one before", () => {
  for (let i = 0; i < 3; i += 1) client.ask(QUESTION);
  assert.deepEqual(sent.map(({ body }) => body.sequence), [1, 2, 3]);
});

test("an image is prepared, and candidates are asked for, without an editor's number", async () => {
  const subject = { image: { filename: "a.png" }, model: { model_name: "b" } };
  const prepared = client.prepare(subject);
  const choices = client.candidates({ ...subject, prompts: {}, object: 1 });
  assert.deepEqual(sent.map(({ path }) => path), ["/samkit/prepare", "/samkit/candidates"]);
  assert.deepEqual(sent[0].body, subject);
  sent[0].answer(new Response('{"width": 3}'));
  sent[1].answer(new Response('{"candidates": [1, 2]}'));
  assert.deepEqual([await prepared, await choices], [{ width: 3 }, [1, 2]]);
});

for (const status of [400, 404, 409, 413, 500, 503]) {
  test(`a refusal with ${status} has the server's words`, async () => {
    const answer = client.ask(QUESTION);
    sent[0].answer(refusal(status, "prompts.marks[0].x is 'a': it must be a number."));
    await assert.rejects(answer, (error) => {
      assert.ok(error instanceof Refusal && error instanceof Error);
      assert.deepEqual([error.status, error.message], [status, "prompts.marks[0].x is 'a': it must be a number."]);
      return true;
    });
  });
}

for (const text of ["<html>Not found</html>", "", "null", "{}"]) {
  test(`a refusal without words has its status: ${JSON.stringify(text)}`, async () => {
    const answer = client.ask(QUESTION);
    sent[0].answer(new Response(text, { status: 404 }));
    await assert.rejects(answer, { message: "The server answered 404.", status: 404 });
  });
}

test("a server that is gone is an error, and so is an answer that breaks off", async () => {
  const answer = client.ask(QUESTION);
  sent[0].fail(new TypeError("Failed to fetch"));
  await assert.rejects(answer, { message: "Failed to fetch" });
  const second = client.ask(QUESTION);
  const broken = mask("M");
  broken.blob = () => Promise.reject(new TypeError("network error"));
  sent[1].answer(broken);
  await assert.rejects(second, { message: "network error" });
});

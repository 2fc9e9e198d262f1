/** Words in the editor: what is asked, what becomes of the answer, and what of one that is not wanted any more. */

import "./contract.mjs";
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { element, settled } from "./fake_dom.mjs";
import { Words } from "../../web/editor/words.js";

const IMAGE = { filename: "a.png", frame: 0 };
const BOX = { x: 1, y: 2, width: 30, height: 40, label: "cat", score: 0.9 };

let editor, asked, words;
beforeEach(() => {
  asked = [];
  editor = {
    stage: element(),
    foot: element(),
    shownImage: IMAGE,
    added: [],
    complaints: [],
    cancelled: [],
    addObjects: (objects) => editor.added.push(objects),
    host: { complain: (text) => editor.complaints.push(text) },
    client: {
      words: (question) => new Promise((answer, fail) => asked.push({ question, answer, fail })),
      cancel: async (work) => { editor.cancelled.push(work); },
    },
  };
  words = new Words(editor);
  words.connect("grounding-dino-tiny");
  words.field.value = " cat. ";
});

test("without a model, an image or words nothing is asked", () => {
  words.connect(null);
  assert.deepEqual([words.field.disabled, words.button.disabled], [true, true]);
  assert.match(words.field.title, /^Connect Load Grounding DINO to/);
  words.find();
  words.connect("");
  assert.match(words.field.title, /Grounding DINO itself/);
  words.find();
  words.connect("x");
  words.field.value = "  ";
  words.find();
  editor.shownImage = null;
  words.field.value = "cat";
  words.find();
  assert.equal(asked.length, 0);
});

test("each box becomes an object with its label", async () => {
  words.field.send("keydown", { key: "Enter" });
  assert.deepEqual(asked[0].question, { image: IMAGE, grounding: { model_name: "grounding-dino-tiny" }, text: "cat." });
  asked[0].answer({ boxes: [BOX] });
  await settled();
  assert.deepEqual(editor.added, [[{ name: "cat", marks: [{ x: 1, y: 2, width: 30, height: 40 }] }]]);
  assert.equal(words.progress.element.children[0].textContent, "Found 1 object.");
});

test("nothing found is said with the words", async () => {
  words.find();
  asked[0].answer({ boxes: [] });
  await settled();
  assert.equal(words.progress.element.children[0].textContent, "Nothing found for “cat.”.");
});

test("an answer to words that were asked again, or of another image, is dropped", async () => {
  words.find();
  words.field.value = "dog";
  words.find();
  asked[0].answer({ boxes: [BOX] });
  await settled();
  assert.deepEqual(editor.added, []);
  editor.shownImage = { filename: "b.png", frame: 0 };
  asked[1].answer({ boxes: [BOX] });
  await settled();
  assert.deepEqual(editor.added, []);
});

test("Cancel ends the words and no other work, and an error after it is not said", async () => {
  words.find();
  words.progress.element.children[2].onclick();
  assert.deepEqual(editor.cancelled, ["words"]);
  asked[0].fail(new Error("gone"));
  await settled();
  assert.deepEqual([editor.complaints, words.progress.element.hidden], [[], true]);
  words.find();
  asked[1].fail(new Error("there is no model"));
  await settled();
  assert.deepEqual(editor.complaints, ["there is no model"]);
});

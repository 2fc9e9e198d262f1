/** What the status line and the notes say. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { IDLE } from "../../web/editor/preview.js";
import { ACTIONS, noteOf, statusOf } from "../../web/editor/status.js";

const VIEW = { image: { width: 640, height: 480 }, hasModel: true, preview: { ...IDLE, name: "ready" }, answer: null, object: null };
const ANSWER = { score: 0.9123, area: 30720, milliseconds: 21.4 };

for (const [what, more, said] of [
  ["no image", { image: null }, ""],
  ["no model", { hasModel: false }, "640 × 480 · connect a SAM model to see masks"],
  ["no model any more, with a mask that is still known", { hasModel: false, answer: ANSWER }, "640 × 480 · connect a SAM model to see masks"],
  ["no model in a dialog, where none can be connected", { hasModel: false, isDialog: true }, "640 × 480 · choose a model above to see masks"],
  ["no marks in this frame", {}, "640 × 480"],
  ["no marks at all", { isEmpty: true }, "Click the object, or drag a box around it · 640 × 480"],
  ["no marks at all while the image is being encoded", { isEmpty: true, preview: { ...IDLE, name: "preparing" } }, "Encoding the image… · 640 × 480"],
  ["an object without marks among several", { object: "cup" }, "cup · 640 × 480"],
  ["a mask", { answer: ANSWER }, "score 0.912 · 30,720 px (10.0 %) · 21 ms · 640 × 480"],
  ["paint alone, which SAM gives no score", { answer: { ...ANSWER, score: 0 } }, "30,720 px (10.0 %) · 21 ms · 640 × 480"],
  ["a second look in a region", { answer: ANSWER, object: "cup", more: ["second look", null, "region 30 × 20", 0] },
    "cup · second look · region 30 × 20 · score 0.912 · 30,720 px (10.0 %) · 21 ms · 640 × 480"],
  ["a long name", { object: "the third cup from the left, behind the jug" }, "the third cup from the … · 640 × 480"],
  ["a region without marks", { more: [null, "region 30 × 20", 0] }, "region 30 × 20 · 640 × 480"],
  ["encoding", { preview: { ...IDLE, name: "preparing" } }, "Encoding the image… · 640 × 480"],
  ["a run", { preview: { ...IDLE, name: "stale", busy: "x" } }, "ComfyUI is running a prompt. The preview continues when it is done."],
  ["a failure, not what was true before it", { preview: { ...IDLE, name: "failed", message: "Gone." }, answer: ANSWER }, "Gone."],
]) {
  test(`the status of ${what}`, () => assert.equal(statusOf({ ...VIEW, ...more }), said));
}

const NOTE = { image: { width: 1024, height: 768 }, isConnected: true, isNamed: true, isLost: false, canRun: true, isOlder: false, isRunning: false, isNewer: false, outside: 0, made: null, followed: null, needsModel: false, lacks: null, progress: null };

for (const [what, more, said, actions] of [
  ["nothing connected", { image: null, isConnected: false }, "Connect an image to this node.", []],
  ["an image that must be made", { image: null, isNamed: false }, "The image comes from other nodes. Run them to see it.", ["load"]],
  ["one that is being made", { image: null, isNamed: false, isRunning: true }, "Running what the image needs…", ["cancel"]],
  ["one that is made anew", { isOlder: true, isRunning: true }, "Running what the image needs…", ["cancel"]],
  ["one that is gone", { image: null, isLost: true }, "The image of the last run is no longer there.", ["load"]],
  ["one that is gone, where nothing can run", { image: null, isLost: true, canRun: false },
    "This image cannot be loaded. Its file may have been deleted.", []],
  ["one that is older than the graph", { isOlder: true }, "This image is older than the graph.", ["load"]],
  ["a checkpoint that is not there", { lacks: "b.pth (375 MB) is not on this machine yet." }, "b.pth (375 MB) is not on this machine yet.", ["download"]],
  ["its arrival", { lacks: "b.pth", isRunning: true, progress: 0.374 }, "Downloading and loading the model… 37 %", ["cancel"]],
  ["its arrival, not begun", { lacks: "b.pth", isRunning: true }, "Downloading and loading the model…", ["cancel"]],
  ["a mark outside", { outside: 1 }, "1 mark lies outside this image and is ignored.", ["clear", "keep"]],
  [
    "marks of a later version",
    { isNewer: true, outside: 1 },
    "These marks were made with a newer version of SAM Kit. Update the pack to see and to change them.",
    ["anew"],
  ],
  ["marks of another size", { made: { width: 512, height: 512 } }, "The marks were made on an image of 512 × 512 pixels.", ["scale", "keep"]],
  ["no model", { needsModel: true }, "No model is connected to sam_model: the masks of a run are empty. Connect Load SAM Model.", []],
  ["marks that were scaled", { made: { width: 1024, height: 768 }, followed: { width: 512, height: 384 } },
    "The marks were scaled with the image, from 512 × 384 pixels. Earlier runs used their old places.", ["undo", "close"]],
  ["marks outside", { outside: 3, made: { width: 2048, height: 768 } }, "3 marks lie outside this image and are ignored.", ["scale", "clear", "keep"]],
]) {
  test(`the note on ${what}`, () => {
    const note = noteOf({ ...NOTE, ...more });
    assert.deepEqual([note.text, note.actions], [said, actions]);
    for (const action of actions) assert.ok(ACTIONS[action]);
  });
}

test("where all is well there is no note", () => assert.equal(noteOf(NOTE), null));

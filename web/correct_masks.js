/** "Correct masks" on SAM Load Masks: the editor as a dialog over its data set, from image to image; what is accepted is written back. */

import { complain, HOST } from "./comfyui.js";
import { PreviewClient } from "./editor/client.js";
import { EditorDialog } from "./editor/dialog.js";
import { keepKeys, make } from "./editor/toolbar.js";
import { ModelChoice } from "./model_choice.js";
import { app } from "../../scripts/app.js";

const NODE = "SAMKit_LoadMasks";
const BUTTON = "Correct masks";
const BUSY = "ComfyUI is running a prompt. The masks are made afterwards.";
const LEAVE = "The changes of this image are not accepted. Press again to leave them.";
let opened = null;

/** Open the dialog on a node's data set, at its first image. */
export function correctMasks(node) {
  opened?.close();
  opened = new Correction(node);
  return opened;
}

class Correction {
  #set; // {path, image_folder}
  #node;
  #client = new PreviewClient({ send: HOST.send, editor: "data set" });
  #shown = null; // what the server has said of the image
  #leaving = null; // the text of which was asked whether to leave it
  #begun = ""; // the editor's text of the image as it is in the data set
  #wanted = 0;

  constructor(node) {
    const value = (name) => node.widgets.find((one) => one.name === name)?.value ?? "";
    this.#node = node;
    this.#set = { path: value("path"), image_folder: value("image_folder") };
    const press = (text, title, onclick) => keepKeys(make("button", { type: "button", title, onclick }, text));
    this.previous = press("◀", "Previous image", () => this.#go(-1));
    this.next = press("▶", "Next image", () => this.#go(1));
    this.acceptButton = press("Accept", "Write the masks into the data set, and go to the next image", () => this.acceptAndGo());
    this.place = make("span", { className: "samkit-dialog-place", role: "status" });
    const choice = new ModelChoice(() => this.dialog.editor.setModel(choice.model));
    this.dialog = new EditorDialog({
      host: { ...HOST, complain: (text) => complain(text, BUTTON) },
      title: `${BUTTON}: ${this.#set.path}`,
      text: "{}",
      more: [choice.element, make("span", { className: "samkit-dialog-steps" }, this.previous, this.place, this.next, this.acceptButton)],
      accept: async (editor, tell) => (await this.#write(tell)) !== null,
      closed: () => { if (opened === this) opened = null; },
    });
    this.dialog.editor.words.hide(); // no node is there to connect Grounding DINO to
    choice.show().then(() => this.isOpen && this.dialog.editor.setModel(choice.model)).catch((error) => complain(error.message, BUTTON));
    this.#show(Number(value("category") ? 0 : value("start")) || 0);
  }

  get isOpen() {
    return this.dialog.isOpen;
  }

  close() {
    this.dialog.close();
  }

  get #isChanged() {
    return this.#shown !== null && this.dialog.editor.text !== this.#begun;
  }

  /** Another image; where this one has changes, at the second press. */
  #go(step) {
    const { text } = this.dialog.editor;
    if (!this.#isChanged || this.#leaving === text) return this.#show(this.index + step);
    this.#leaving = text;
    return this.dialog.say(LEAVE);
  }

  /** Show an image of the data set; the newest wish counts. */
  async #show(index) {
    const wish = (this.#wanted += 1);
    this.#enable(false);
    try {
      const found = await this.#client.openDataSet({ ...this.#set, index: Math.max(0, index) });
      if (wish !== this.#wanted || !this.isOpen) return;
      this.index = Math.max(0, index);
      this.#shown = found;
      this.place.textContent = `${found.name} (${this.index + 1} of ${found.count})`;
      this.dialog.begin(JSON.stringify(found.text));
      this.#begun = this.dialog.editor.text;
      this.dialog.editor.setSource({ images: [found.image], isConnected: true });
    } catch (error) {
      if (this.isOpen) complain(error.message, BUTTON);
    }
    this.#enable(true);
  }

  #enable(isOn) {
    this.previous.disabled = !isOn || !(this.index > 0);
    this.next.disabled = !isOn || !(this.index + 1 < this.#shown?.count);
    this.acceptButton.disabled = !isOn || this.#shown === null;
  }

  /** Write what is marked, and show the next image. */
  async acceptAndGo() {
    this.#enable(false);
    try {
      const changed = await this.#write((text) => this.dialog.say(text));
      if (changed === null || !this.isOpen) return;
      const { count, name } = this.#shown;
      await this.#show(Math.min(this.index + 1, count - 1));
      this.dialog.say(changed ? `${name}: accepted, ${changed} changed.` : `${name}: as it was.`);
    } catch (error) {
      this.dialog.say("");
      if (this.isOpen) complain(error.message, BUTTON);
    } finally {
      this.#enable(true);
    }
  }

  /** The masks into the data set. Resolves to how many have changed; null where the dialog has been closed. */
  async #write(tell) {
    const { editor } = this.dialog;
    if (!this.#shown) return null;
    if (!this.#isChanged) return 0;
    const objects = await editor.patches(() => this.isOpen, () => tell(BUSY));
    if (!objects) return null;
    const { changed } = await this.#client.accept({ ...this.#set, index: this.index, stamp: this.#shown.stamp, objects });
    this.#begun = editor.text;
    this.#node.graph?.setDirtyCanvas?.(true, false);
    return changed;
  }
}

app.registerExtension({
  name: "SAMKit.CorrectMasks",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const button = node.addWidget("button", BUTTON, null, () => correctMasks(node), { serialize: false });
    button.serialize = false; // it has no value
    node.setSize(node.computeSize());
  },
  getNodeMenuItems(node) {
    return node.comfyClass === NODE ? [{ content: BUTTON, callback: () => { correctMasks(node); } }] : [];
  },
});

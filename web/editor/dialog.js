/** The editor as a dialog over the whole window, with OK and Cancel: what is done in it is somebody's only with OK. Knows no ComfyUI. */

import { PromptEditor } from "./editor.js";
import { keepKeys, make } from "./toolbar.js";

const KEPT = ["keydown", "keyup", "keypress", "paste", "copy", "cut", "pointerdown", "mousedown", "contextmenu", "dblclick"]; // nothing for the graph

/**
 * @typedef {object} DialogOptions
 * @property {import("./editor.js").Host} host  of the editor; `committed` and `leave` are the dialog's
 * @property {string} title
 * @property {string} text  what the editor begins with
 * @property {HTMLElement[]} [more]  beside the title
 * @property {(editor: PromptEditor, say: (text: string) => void, isOpen: () => boolean) => Promise<boolean>} accept  OK: take what was made.
 *   Resolves to whether the dialog has done its work
 * @property {() => void} [closed]  either way
 */

/** A dialog with an editor; `close` ends it as Cancel does. */
export class EditorDialog {
  #options;
  #before;
  #focused = document.activeElement;
  #isAsking = false; // whether to discard what was done
  #isWorking = false;
  #listening = new AbortController();

  /** @param {DialogOptions} options */
  constructor(options) {
    this.#options = options;
    this.editor = new PromptEditor({ ...options.host, committed: () => this.#ask(false), leave: () => this.cancel() });
    this.editor.text = options.text;
    this.#before = this.editor.text;
    this.#build();
    document.body.append(this.element);
    this.editor.stage.focus({ preventScroll: true });
    // A key beside the dialog would be the graph's, which lies behind it.
    document.addEventListener("focusin", (event) => this.#holdFocus(event), { signal: this.#listening.signal });
  }

  #build() {
    const press = (text, onclick) => keepKeys(make("button", { type: "button", onclick }, text));
    this.said = make("span", { className: "samkit-dialog-said", role: "status" });
    this.cancelButton = press("Cancel", () => this.cancel());
    this.okButton = press("OK", () => this.accept());
    this.okButton.classList.add("samkit-ok");
    const head = make("div", { className: "samkit-dialog-head" }, make("strong", {}, this.#options.title), ...(this.#options.more ?? []));
    const foot = make("div", { className: "samkit-dialog-foot" }, this.said, this.cancelButton, this.okButton);
    const panel = make("div", { className: "samkit-dialog-panel" }, head, this.editor.element, foot);
    this.element = keepKeys(make("div", { className: "samkit-dialog", role: "dialog", tabIndex: -1, "aria-modal": "true", "aria-label": this.#options.title }, panel));
    for (const type of KEPT) this.element.addEventListener(type, (event) => event.stopPropagation());
    this.element.addEventListener("pointerdown", (event) => this.#goOn(event), { capture: true });
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("mousedown", (event) => this.#keepFocus(event));
  }

  /** Go on with another text, which is not a change. */
  begin(text) {
    this.editor.text = text;
    this.#before = this.editor.text;
    this.#ask(false);
  }

  /** A line of text beside the buttons. */
  say(text) {
    this.#say(text);
  }

  get isOpen() {
    return !this.#listening.signal.aborted;
  }

  /** OK: what was made is taken, and the dialog closes. */
  async accept() {
    if (this.#isWorking) return;
    this.#isWorking = this.okButton.disabled = true;
    this.#ask(false);
    try {
      const isDone = await this.#options.accept(this.editor, (text) => this.#say(text), () => this.isOpen);
      if (isDone) this.close();
    } catch (error) {
      this.#say("");
      if (this.isOpen) this.#options.host.complain(error.message);
    } finally {
      this.#isWorking = this.okButton.disabled = false;
    }
  }

  /** Leave everything as it was; where something was done, at the second time. */
  cancel() {
    if (this.#isAsking || this.editor.text === this.#before) this.close();
    else this.#ask(true);
  }

  close() {
    if (!this.isOpen) return;
    this.#listening.abort();
    this.element.remove();
    this.editor.dispose();
    if (this.#focused?.isConnected) this.#focused.focus({ preventScroll: true });
    this.#options.closed?.();
  }

  #ask(isAsking) {
    this.#isAsking = isAsking;
    this.cancelButton.textContent = isAsking ? "Discard" : "Cancel";
    this.#say(isAsking ? "Discard the changes? Press Esc again to discard them." : "");
  }

  /** Who works on does not want to discard. */
  #goOn(event) {
    if (this.#isAsking && !this.cancelButton.contains(event.target)) this.#ask(false);
  }

  #say(text) {
    if (this.said.textContent !== text) this.said.textContent = text;
  }

  #key(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.accept();
    else if (event.key === "Escape" && !this.editor.element.contains(event.target)) this.cancel();
    else return;
    event.preventDefault();
  }

  /** A press where nothing takes the focus leaves it with the image. */
  #keepFocus(event) {
    if (event.target.closest("button, select, input, .samkit-editor")) return;
    event.preventDefault();
    this.editor.stage.focus({ preventScroll: true });
  }

  #holdFocus(event) {
    if (!this.element.contains(event.target) && document.activeElement !== document.body) this.editor.stage.focus({ preventScroll: true });
  }
}

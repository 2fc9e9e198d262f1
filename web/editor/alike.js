/** Find all like this: what resembles the selected object is offered, on this image or on others of its batch, and each is taken or
 * left out. What is taken is an object with the pixels that were offered. */

import { pollFor } from "./client.js";
import { Offers, patchOfSegment } from "./offers.js";
import { onPress } from "./press.js";
import { makeProgress } from "./progress.js";
import { SegmentLayer } from "./segment_layer.js";
import { Segments } from "./segments.js";
import { button, keepKeys, make } from "./toolbar.js";

const MOST_FOUND = 16; // images and objects whose answers are kept
const WORK = "Finding objects like it…";
const FAINT = 0.6;
const MADE_UP = /^Object \d+$/; // names that the editor gives
const HINT = "Click: take. Right click: leave out.";

/**
 * How it stands.
 * - off
 * - working: the server finds and compares the segments
 * - ready: what is offered is there
 * @typedef {"off" | "working" | "ready"} Name
 */
export class Alike {
  state = "off";
  #found = new Map(); // what was asked -> {segments, offers}
  #like = null; // the object: {image, prompts, object}
  #id = null; // and which of the editor's it is
  #model = null;
  #shown = null; // the image and the model that what is offered is of, as a key
  #segments = null;
  #offers = null;
  #open = [];
  #current = null; // the one that keys act on, and the one under the pointer
  #work = 0;

  /** @param {import("./editor.js").PromptEditor} editor */
  constructor(editor) {
    this.editor = editor;
    this.layer = new SegmentLayer(editor);
    this.button = button("equals", "", () => this.toggle());
    this.progress = makeProgress(() => this.end());
    this.#build();
    editor.stage.append(this.progress.element);
    editor.foot.append(make("span", { className: "samkit-group" }, this.button));
    editor.film.element.before(this.bar); // below the image and not on it: what is offered may lie anywhere
    this.update();
  }

  #build() {
    const press = (text, title, onclick) => keepKeys(make("button", { type: "button", title, onclick }, text));
    this.text = make("span", { className: "samkit-offers-text" });
    this.fewer = press("Fewer", "Only what is more similar (-)", () => this.step(false));
    this.more = press("More", "What is less similar too (+)", () => this.step(true));
    this.all = press("Take all", "Make an object of each (Shift+Enter)", () => this.takeAll());
    const done = press("Done", "Offer nothing any longer (Esc)", () => this.end());
    const actions = make("span", { className: "samkit-actions" }, this.fewer, this.more, this.all, done);
    this.bar = make("div", { className: "samkit-offers", role: "status", hidden: true }, this.text, actions);
  }

  /** Listen on the stage, before the editor's own gestures do. @param {AbortSignal} signal */
  attach(signal) {
    const { stage } = this.editor;
    onPress(stage, signal, (event) => this.#isOurs(event) && event.button !== 1, (event) => this.#press(event));
    stage.addEventListener("pointermove", (event) => this.#move(event), { signal, capture: true });
    stage.addEventListener("pointerleave", () => { if (this.state === "ready") this.#point(null); }, { signal });
    signal.addEventListener("abort", () => this.end());
  }

  get isOn() {
    return this.state !== "off";
  }

  /** Indices of what is offered now. */
  get open() {
    return this.#open;
  }

  get current() {
    return this.#current;
  }

  /** The segments that were found, those too that are not offered. */
  get list() {
    return this.#offers?.list ?? [];
  }

  toggle() {
    if (this.isOn) this.end();
    else this.#begin();
  }

  /** Off; work that is under way is cancelled. */
  end() {
    if (this.state === "working") this.editor.client.cancel("segments").catch(() => {}); // it ends by itself when nobody waits
    this.#work += 1;
    this.state = "off";
    this.#like = this.#shown = null;
    this.#clear();
    this.progress.hide();
    this.update();
  }

  #clear() {
    this.#segments = this.#offers = this.#current = null;
    this.#open = [];
  }

  get #canBegin() {
    const { state, subject, shownImage } = this.editor;
    return Boolean(subject && shownImage) && state.hasContent(state.current);
  }

  #begin() {
    if (!this.#canBegin) return;
    const { state, subject, everything } = this.editor;
    everything.end();
    this.#like = { image: subject.image, ...state.question(state.current) };
    this.#id = state.ids[state.current];
    this.#model = JSON.stringify(subject.model);
    this.state = "working";
    this.update();
  }

  /** Ask for what is like the object on the image that is shown; what was asked before is there. */
  async #ask(subject, shown) {
    const { editor } = this;
    const work = (this.#work += 1);
    const isWanted = () => work === this.#work;
    const key = JSON.stringify([subject, this.#like]);
    this.#shown = shown;
    this.#clear();
    this.state = "working";
    this.progress.show(WORK, 0);
    const question = { image: subject.image, model: subject.model, like: this.#like };
    try {
      const said = (progress) => this.progress.show(WORK, progress);
      const found = this.#found.get(key) ?? (await pollFor(() => editor.client.alike(question), isWanted, said));
      if (!isWanted()) return;
      if (!found) return this.end();
      this.#found.delete(key);
      this.#found.set(key, found);
      if (this.#found.size > MOST_FOUND) this.#found.delete(this.#found.keys().next().value);
      this.#segments = new Segments(found);
      this.#offers = new Offers(found.segments);
      this.state = "ready";
      this.progress.hide();
      this.update();
    } catch (error) {
      if (!isWanted()) return;
      this.state = "off"; // there is nothing to cancel
      this.end();
      editor.host.complain(error.message);
    }
  }

  /** The editor has changed: what is offered is of one image, and there may be others of its batch. */
  update() {
    const { editor } = this;
    if (this.isOn && !this.#fits()) return this.end();
    if (this.isOn) this.#follow();
    this.button.disabled = !this.isOn && !this.#canBegin;
    this.button.setAttribute("aria-pressed", String(this.isOn));
    const { name } = editor.state.object;
    const title = this.isOn ? "Offer nothing any longer (L)" : `Find all like ${name} (L): what resembles it is offered, to take or to leave out`;
    if (this.button.title !== title) Object.assign(this.button, { title, ariaLabel: title });
    this.#say();
    editor.redraw();
  }

  /** Whether the object's image is still there, and the model. */
  #fits() {
    const { images, subject } = this.editor;
    const like = JSON.stringify(this.#like.image);
    return images.some((image) => JSON.stringify(image) === like) && (!subject || JSON.stringify(subject.model) === this.#model);
  }

  #follow() {
    const { subject, shownImage, state } = this.editor;
    const shown = shownImage && subject ? JSON.stringify(subject) : null;
    if (shown !== this.#shown && shown !== null) return void this.#ask(subject, shown);
    if (shown === null) this.#open = []; // another image is on its way
    else if (this.state === "ready") this.#open = this.#offers.open(state.objects, state.frame);
    if (!this.#open.includes(this.#current)) this.#current = null;
  }

  #say(said = null) {
    this.bar.hidden = this.state !== "ready" || !this.editor.shownImage;
    if (this.bar.hidden) return;
    const count = this.#open.length;
    const place = this.#current === null ? "" : ` (${this.#open.indexOf(this.#current) + 1} of ${count}: Enter or Delete)`;
    const text = said ?? (count ? `${count === 1 ? "1 object" : `${count} objects`} like it${place}. ${HINT}` : "Nothing more that is like it.");
    if (this.text.textContent !== text) this.text.textContent = this.text.title = text;
    this.all.disabled = !count;
  }

  // --- what is done with an offer

  /** Make it an object; then point at `after`. */
  take(index, after = this.#after(index)) {
    this.#add([index]);
    this.#point(after);
  }

  takeAll() {
    this.#add(this.#open);
  }

  #add(indices) {
    const { state } = this.editor;
    const name = state.objects[state.ids.indexOf(this.#id)]?.name ?? "";
    const named = MADE_UP.test(name) ? {} : { name }; // a name that says what it is, is that of all
    this.#offers.goOn();
    this.editor.addObjects(indices.map((index) => ({ ...named, paint: [patchOfSegment(this.list[index])] })));
    state.selectObject(Math.max(0, state.ids.indexOf(this.#id))); // the next click is not a new one's
  }

  refuse(index, after = this.#after(index)) {
    this.#offers.refuse(index, this.editor.text);
    this.editor.changed();
    this.#point(after);
  }

  /** Offer more, or fewer. */
  step(more) {
    this.#offers.step(more);
    this.update();
  }

  /** What is pointed at when one is done with: the next one, where keys have pointed at it. */
  #after(index) {
    return index === this.#current ? this.#open[this.#open.indexOf(index) + 1] ?? this.#open.find((one) => one !== index) ?? null : this.#current;
  }

  get canUndo() {
    return this.state === "ready" && this.#offers.canUndo(this.editor.text);
  }

  get canRedo() {
    return this.state === "ready" && this.#offers.canRedo(this.editor.text);
  }

  /** Take back a refusal, where that was the last step. Returns whether it was. */
  undo() {
    return this.#steps((offers) => offers.undo(this.editor.text));
  }

  redo() {
    return this.#steps((offers) => offers.redo(this.editor.text));
  }

  #steps(step) {
    const isDone = this.state === "ready" && step(this.#offers);
    if (isDone) this.editor.changed();
    return isDone;
  }

  // --- keys and the pointer

  /** What a key does to what is offered; null where it is none of these keys. */
  keyed(key, isShifted) {
    if (this.state !== "ready") return null;
    const current = () => this.#current ?? this.#open[0] ?? null;
    const act = (done) => () => { if (current() !== null) done(current()); };
    const actions = {
      Tab: () => this.#point(this.#stepped(isShifted ? -1 : 1)) || this.#open.length > 0,
      Enter: isShifted ? () => this.takeAll() : act((index) => this.take(index)),
      Delete: act((index) => this.refuse(index)),
      Backspace: act((index) => this.refuse(index)),
      "-": () => this.step(false),
      "+": () => this.step(true),
      "=": () => this.step(true),
    };
    return actions[key] ?? null;
  }

  #stepped(step) {
    const { length } = this.#open;
    if (!length) return null;
    const place = this.#open.indexOf(this.#current);
    return this.#open[place < 0 ? (step > 0 ? 0 : length - 1) : (place + step + length) % length];
  }

  #point(index) {
    this.#current = this.#open.includes(index) ? index : null;
    this.#say();
    this.editor.redraw();
  }

  #isOurs(event) {
    const { gestures, panning, brush, stage } = this.editor;
    const isFree = !brush.isActive && !panning && !gestures.active;
    return this.state === "ready" && isFree && !event.ctrlKey && !event.metaKey && event.target === stage;
  }

  #at(event) {
    const { view, gestures } = this.editor;
    const at = view.toImage(gestures.place(event));
    const inside = this.#open.filter((index) => this.#segments.has(index, at));
    return inside.sort((one, other) => this.list[one].area - this.list[other].area)[0] ?? null;
  }

  #move(event) {
    if (!this.#isOurs(event) || event.buttons) return;
    event.stopImmediatePropagation();
    this.editor.hover(null);
    const index = this.#at(event);
    this.editor.stage.style.cursor = index === null ? "default" : "pointer";
    if (index !== this.#current) this.#point(index);
  }

  #press(event) {
    if (this.state !== "ready") return;
    const index = this.#at(event);
    const isRefused = event.button === 2 || event.shiftKey || event.altKey || this.editor.negative;
    if (index === null) this.#say("Nothing is offered here. Press Esc to go on marking.");
    else if (isRefused) this.refuse(index, null);
    else this.take(index, null);
  }

  draw() {
    this.layer.draw(this.#segments, this.#open.map((index) => ({ index, strength: index === this.#current ? 1 : FAINT })));
  }
}

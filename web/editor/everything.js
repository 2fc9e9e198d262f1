/** Everything under the pointer: all segments of the image, found once; then the one under the pointer lights up, and a click
 * makes it an object. Where no segment is, a click takes SAM's mask for that point. A layer of its own above the editor's canvas, so that a move draws no more than one segment. */

import { pollFor } from "./client.js";
import { isInside } from "./geometry.js";
import { patchOf } from "./patches.js";
import { isSamePatch, patchOfSegment } from "./offers.js";
import { onPress } from "./press.js";
import { makeProgress } from "./progress.js";
import { SegmentLayer } from "./segment_layer.js";
import { Segments } from "./segments.js";
import { rounded, VERSION } from "./text.js";
import { button, make } from "./toolbar.js";
import { INSIDE } from "./views.js";

const MOST_IMAGES = 4;
const WORK = "Finding all segments…";

/**
 * How it stands.
 * - off
 * - working: the server finds the segments
 * - ready: the segments of the image that is shown are there
 * @typedef {"off" | "working" | "ready"} Name
 */
export class Everything {
  state = "off";
  #found = new Map(); // image and model -> Segments
  #subject = null;
  #segments = null;
  #under = null; // the segment under the pointer
  #drawing = 0;
  #work = 0;
  #asked = Promise.resolve(); // the masks of points, one after another: each click gets its own

  /** @param {import("./editor.js").PromptEditor} editor */
  constructor(editor) {
    this.editor = editor;
    this.layer = new SegmentLayer(editor);
    this.button = button("th-large", "", () => this.toggle());
    this.progress = makeProgress(() => this.end());
    editor.stage.append(this.progress.element);
    editor.foot.append(make("span", { className: "samkit-group", role: "group", "aria-label": "Segments" }, this.button));
    this.update();
  }

  /** Listen on the stage, before the editor's own gestures do. @param {AbortSignal} signal */
  attach(signal) {
    const on = (type, handle) => this.editor.stage.addEventListener(type, handle, { signal, capture: true });
    on("pointermove", (event) => this.#move(event));
    onPress(this.editor.stage, signal, (event) => this.#isOurs(event) && event.button === 0, (event) => this.#press(event));
    on("pointerleave", () => this.#light(null));
    signal.addEventListener("abort", () => this.end());
  }

  /** The index of the segment under the pointer, or null. */
  get under() {
    return this.#under;
  }

  toggle() {
    if (this.state === "off") this.#begin();
    else this.end();
  }

  /** Off; work that is under way is cancelled. */
  end() {
    if (this.state === "working") this.editor.client.cancel("segments").catch(() => {}); // it ends by itself when nobody waits
    this.#work += 1;
    this.state = "off";
    this.#subject = this.#segments = null;
    this.#light(null);
    this.progress.hide();
    this.update();
  }

  async #begin() {
    const { subject, image } = this.editor;
    if (!subject || !image) return;
    this.editor.alike.end();
    const key = JSON.stringify(subject);
    const work = (this.#work += 1);
    this.state = "working";
    this.#subject = key;
    this.progress.show(WORK, 0);
    this.update();
    const isWanted = () => work === this.#work;
    try {
      const found = this.#found.get(key) ?? (await this.#ask(subject, isWanted));
      if (isWanted()) found ? this.#ready(key, found) : this.end();
    } catch (error) {
      if (!isWanted()) return;
      this.state = "off"; // there is nothing to cancel
      this.end();
      this.editor.host.complain(error.message);
    }
  }

  async #ask(subject, isWanted) {
    const said = await pollFor(() => this.editor.client.segments(subject), isWanted, (progress) => this.progress.show(WORK, progress));
    return said && new Segments(said);
  }

  #ready(key, found) {
    this.#found.delete(key);
    this.#found.set(key, found);
    if (this.#found.size > MOST_IMAGES) this.#found.delete(this.#found.keys().next().value);
    this.#segments = found;
    this.state = "ready";
    const count = found.list.length;
    this.progress.say(count ? `Found ${count === 1 ? "1 segment" : `${count} segments`}. Click one to make it an object. Elsewhere, a click takes SAM's mask for that point.` : "Found no segments. A click takes SAM's mask for that point.");
    this.update();
  }

  /** The editor has changed: segments are those of one image and one model. */
  update() {
    const { editor } = this;
    const subject = editor.shownImage && editor.subject && JSON.stringify(editor.subject);
    if (this.state !== "off" && subject !== this.#subject) return this.end();
    const isOn = this.state !== "off";
    this.button.disabled = !isOn && !subject;
    this.button.setAttribute("aria-pressed", String(isOn));
    const title = isOn ? "Leave the segments" : "Find all segments of the image: point at one to see it, click to make it an object";
    if (this.button.title !== title) Object.assign(this.button, { title, ariaLabel: title });
    this.#redraw();
  }

  // --- the pointer

  #isOurs(event) {
    const { gestures, panning, brush } = this.editor;
    const isPlain = !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
    return this.state === "ready" && isPlain && !brush.isActive && !panning && !gestures.active && event.target === this.editor.stage;
  }

  #move(event) {
    if (!this.#isOurs(event) || event.buttons) return this.#light(null);
    event.stopImmediatePropagation();
    this.editor.hover(null);
    const index = this.#segments.at(this.editor.view.toImage(this.editor.gestures.place(event)));
    this.editor.stage.style.cursor = index === null ? "crosshair" : "pointer";
    this.#light(index);
  }

  #press(event) {
    if (this.state !== "ready") return;
    const at = this.editor.view.toImage(this.editor.gestures.place(event));
    const index = this.#segments.at(at);
    if (index !== null) this.#choose(this.#segments.list[index]);
    else if (isInside(at, this.editor.image)) this.#asked = this.#asked.then(() => this.#point(at));
  }

  /** Make SAM's mask for a point an object: its pixels, as those of a segment. */
  async #point({ x, y }) {
    const { editor } = this;
    const { subject, image } = editor;
    const isWanted = () => this.state === "ready" && JSON.stringify(editor.subject) === this.#subject;
    if (!isWanted()) return;
    const prompts = { version: VERSION, objects: [{ candidate: "best", marks: [{ x: rounded(x), y: rounded(y), label: 1 }] }] };
    try {
      const { png } = await editor.exact.ask({ image: subject.image, model: subject.model, prompts, object: 0, form: "mask" });
      const bitmap = await createImageBitmap(png);
      const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      bitmap.close();
      const { data } = context.getImageData(0, 0, image.width, image.height);
      const patch = patchOf((pixel) => data[4 * pixel + 3] >= INSIDE.mask, image);
      if (!isWanted()) return;
      this.progress.say(patch ? "There is no segment here. This is SAM's mask for the point." : "SAM found nothing at this point.");
      if (patch) this.#choose(patch);
    } catch (error) {
      if (isWanted()) editor.host.complain(error.message);
    }
  }

  /** Make a segment an object, or select the one that it is. */
  #choose(segment) {
    const { state } = this.editor;
    const object = state.objects.findIndex(({ paint }) => paint?.some((patch) => isSamePatch(patch, segment)));
    if (object >= 0) state.selectObject(object);
    else this.editor.addObjects([{ paint: [patchOfSegment(segment)] }]);
  }

  // --- drawing

  #light(index) {
    if (index === this.#under) return;
    this.#under = index;
    this.#redraw();
  }

  #redraw() {
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      this.draw();
    });
  }

  draw() {
    this.layer.draw(this.#segments, this.#under === null ? [] : [{ index: this.#under, strength: 1 }]);
  }
}

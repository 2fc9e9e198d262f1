/** The editor itself: a toolbar, a canvas and a status line, over the state, the geometry and the client. Knows no ComfyUI. */

import { PreviewClient } from "./client.js";
import { clamped, View } from "./geometry.js";
import { Gestures } from "./gestures.js";
import { onKey } from "./keys.js";
import { paint } from "./paint.js";
import { EditorState, isBox, parse, serialise } from "./state.js";
import { make, makeToolbar } from "./toolbar.js";

const SLOW = 80; // milliseconds: a hover preview that takes longer is more in the way than a help
const MARGIN = 4;
const WHEEL_PAUSE = 150;
let editors = 0;

/**
 * @typedef {{filename: string, subfolder: string, type: string}} Image  ComfyUI's name of a file
 * @typedef {object} Host  what the editor needs of ComfyUI
 * @property {(path: string, init: object) => Promise<Response>} send
 * @property {(image: Image) => string} url
 * @property {() => void} committed  the text has changed: to be saved
 * @property {(text: string) => void} complain  show an error
 * @property {() => void} loadImage  run what is upstream
 * @property {(alpha: Blob, image: Image) => Promise<void>} sendToMaskEditor
 * @property {() => void} needed  the user has come: find out what is wired
 */
export class PromptEditor {
  mask = null;
  image = null;
  hidden = false;
  hovering = true;
  negative = false;
  panning = false;
  unit = 1;
  stageSize = { width: 1, height: 1 };
  view = new View();
  #hoverMask = null;
  #hoverPlace = null;
  #images = [];
  #model = null;
  #prepared = { key: null, promise: null };
  #asked = null;
  #pending = false;
  #milliseconds = 0;
  #needed = false;
  #drawing = 0;
  #wheeled = 0;
  #shownUrl = null;
  #complained = null;

  /** @param {Host} host */
  constructor(host) {
    this.host = host;
    this.state = new EditorState({ onChange: () => this.#changed(), onCommit: () => host.committed() });
    this.client = new PreviewClient({ send: host.send, editor: `${Date.now().toString(36)}-${(editors += 1)}-${Math.random().toString(36).slice(2)}` });
    this.client.onBusy = (text) => this.#say(text);
    this.#build();
    this.#listen();
    this.toolbar.update();
  }

  #build() {
    this.canvas = make("canvas", { className: "samkit-canvas" });
    this.stage = make("div", { className: "samkit-stage", tabIndex: 0, role: "application" }, this.canvas);
    this.stage.setAttribute("aria-label", "Image to mark: left click on the object, right click off it, drag a box");
    // ComfyUI leaves Ctrl+Z to whatever looks like a text field, and takes it from everything else.
    this.stage.type = "textarea";
    this.toolbar = makeToolbar(this);
    this.statusLine = make("div", { className: "samkit-status", role: "status" });
    this.element = make("div", { className: "samkit-editor" }, this.toolbar.element, this.stage, this.statusLine);
    this.element.samkit = this;
    this.gestures = new Gestures(this.stage, this);
    this.#say("Wire an image, and run or press Load image.");
  }

  #listen() {
    const { stage } = this;
    new ResizeObserver(() => this.#resized()).observe(stage);
    stage.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    stage.addEventListener("keydown", (event) => this.#key(event));
    stage.addEventListener("keyup", (event) => { if (event.key === " ") this.panning = false; });
    stage.addEventListener("focus", () => this.#focused(true));
    stage.addEventListener("blur", () => this.#focused(false));
    this.element.addEventListener("pointerenter", () => this.#come());
    for (const type of ["pointerdown", "dblclick"]) this.element.addEventListener(type, (event) => event.stopPropagation());
    document.addEventListener("fullscreenchange", () => requestAnimationFrame(() => this.fit()));
  }

  #come() {
    this.#needed = true;
    this.host.needed();
    this.#refresh();
  }

  #focused(has) {
    // Nodes 2.0 gives the wheel to the graph unless this says otherwise.
    if (has) this.stage.setAttribute("data-capture-wheel", "true");
    else this.stage.removeAttribute("data-capture-wheel");
    this.panning &&= has;
  }

  // --- what ComfyUI tells us

  get text() {
    return this.state.text;
  }

  set text(value) {
    this.state.load(value);
  }

  /** @param {Image[]} images  one per frame */
  setImages(images) {
    if (JSON.stringify(images) === JSON.stringify(this.#images)) return;
    this.#images = images;
    if (this.state.frame >= this.frameCount) this.state.showFrame(0);
    this.#changed();
  }

  get images() {
    return this.#images;
  }

  get frameCount() {
    return Math.max(1, this.#images.length);
  }

  /** @param {object | null} model  as the server's `model` wants it */
  setModel(model) {
    if (JSON.stringify(model) === JSON.stringify(this.#model)) return;
    this.#model = model;
    this.#forgetMasks();
    this.#changed();
  }

  /** A run is over: what it changed on disk or in memory may answer now. */
  refresh() {
    this.#asked = null;
    this.#refresh();
  }

  // --- what the buttons and keys do

  fit() {
    if (this.image) this.view.fit(this.image, this.stageSize, MARGIN);
    this.redraw();
  }

  toggleOverlay() {
    this.hidden = !this.hidden;
    this.#changed();
  }

  toggleHover() {
    this.hovering = !this.hovering;
    this.hover(null);
    this.#changed();
  }

  toggleNegative() {
    this.negative = !this.negative;
    this.#changed();
  }

  toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.element.requestFullscreen?.().catch((error) => this.host.complain(error.message));
  }

  loadImage() {
    this.host.loadImage();
  }

  nudge(dx, dy) {
    const mark = this.state.marks[this.state.selected];
    const room = isBox(mark) ? { width: this.image.width - mark.width, height: this.image.height - mark.height } : this.image;
    this.state.update(this.state.selected, clamped({ x: mark.x + dx, y: mark.y + dy }, room));
    this.state.commit();
  }

  escape() {
    if (this.gestures.active) this.gestures.abandon();
    else if (this.state.selected !== null) this.state.select(null);
    else if (!document.fullscreenElement) this.stage.blur();
  }

  /** The mask to ComfyUI's mask editor, as the alpha that its upload puts on the image: clear is masked. */
  async sendToMaskEditor() {
    if (!this.mask || !this.image) return;
    const { width, height } = this.image;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.drawImage(this.mask, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    for (let i = 3; i < pixels.data.length; i += 4) pixels.data[i] = pixels.data[i] ? 0 : 255;
    context.putImageData(pixels, 0, 0);
    try {
      const alpha = await context.canvas.convertToBlob({ type: "image/png" });
      await this.host.sendToMaskEditor(alpha, this.#images[this.state.frame]);
    } catch (error) {
      this.host.complain(error.message);
    }
  }

  // --- drawing

  redraw() {
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      this.#draw();
    });
  }

  #draw() {
    const bounds = this.stage.getBoundingClientRect();
    const zoom = bounds.width / this.stageSize.width || 1;
    this.unit = Math.min(4, Math.max(0.25, 1 / zoom));
    const ratio = window.devicePixelRatio * Math.min(3, Math.max(1, zoom));
    const [width, height] = [this.stageSize.width, this.stageSize.height].map((side) => Math.max(1, Math.round(side * ratio)));
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const { view, image, unit, hidden } = this;
    const { marks, shown, selected } = this.state;
    const [mask, hover] = hidden ? [null, null] : [this.mask, this.#hoverMask];
    paint(this.canvas.getContext("2d"), { ratio, unit, view, image, mask, hover, marks, shown, selected });
  }

  #resized() {
    const was = this.stageSize;
    this.stageSize = { width: Math.max(1, this.stage.clientWidth), height: Math.max(1, this.stage.clientHeight) };
    if (was.width !== this.stageSize.width || was.height !== this.stageSize.height) this.fit();
  }

  #say(text) {
    if (this.statusLine.textContent !== text) this.statusLine.textContent = text;
  }

  // --- events

  #wheel(event) {
    if (document.activeElement !== this.stage || !this.image) return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.ctrlKey) {
      this.view.zoomAt(this.gestures.place(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)));
      this.redraw();
    } else if (event.timeStamp - this.#wheeled > WHEEL_PAUSE) {
      this.#wheeled = event.timeStamp;
      this.state.cycleCandidate(event.deltaY > 0 ? 1 : -1);
    }
  }

  #key(event) {
    if (event.key === " ") this.panning = true;
    if (event.key !== " " && !onKey(event, this)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  #changed() {
    if (!this.toolbar) return;
    this.toolbar.update();
    this.#showImage();
    this.redraw();
    this.#refresh();
  }

  // --- the image and its mask

  #showImage() {
    const name = this.#images[this.state.frame];
    const url = name ? this.host.url(name) : null;
    if (url === this.#shownUrl) return;
    this.#shownUrl = url;
    this.#forgetMasks();
    if (!url) {
      this.image = null;
      return;
    }
    const loaded = new Image();
    loaded.onload = () => {
      if (url !== this.#shownUrl) return;
      const fits = this.image?.width !== loaded.width || this.image?.height !== loaded.height;
      this.image = loaded;
      if (fits) this.fit();
      this.#describe();
      this.#changed();
    };
    loaded.onerror = () => {
      if (url !== this.#shownUrl) return;
      this.image = null;
      this.#say("The image is no longer there: run, or press Load image.");
      this.redraw();
    };
    loaded.src = url;
  }

  #forgetMasks() {
    this.client.drop();
    this.mask = this.#hoverMask = this.#asked = null;
    this.#milliseconds = 0;
    this.#pending = false;
  }

  #describe(found) {
    const { width, height } = this.image;
    const size = `${width} × ${height}`;
    if (!found) return this.#say(this.#model ? size : `${size} · wire a SAM model to see masks`);
    const share = ((100 * found.area) / (width * height)).toFixed(1);
    this.#say(`score ${found.score.toFixed(3)} · ${found.area.toLocaleString("en")} px (${share} %) · ${Math.round(found.milliseconds)} ms · ${size}`);
  }

  #subject() {
    const image = this.#images[this.state.frame];
    return image && this.#model && this.image ? { image, model: this.#model } : null;
  }

  /** Bring the mask up to date with the marks, where that can be done and somebody is looking. */
  async #refresh() {
    const subject = this.#needed ? this.#subject() : null;
    if (!subject) return;
    const { shown, shownText } = this.state;
    const key = JSON.stringify([subject, shownText]);
    if (key === this.#asked) return;
    this.#asked = key;
    this.#pending = true;
    this.#hoverMask = null;
    try {
      if (!(await this.#prepare(subject)) || key !== this.#asked) return;
      if (!shown.length) {
        this.client.drop();
        this.#show(null, key);
        return;
      }
      const answer = await this.client.ask({ ...subject, prompts: JSON.parse(shownText) });
      if (answer) this.#show(await createImageBitmap(answer.png), key, answer);
    } catch (error) {
      if (key === this.#asked) this.#failed(error);
    } finally {
      if (key === this.#asked) this.#pending = false;
    }
  }

  #show(bitmap, key, answer) {
    if (key !== this.#asked) return;
    this.mask = bitmap;
    this.#complained = null;
    if (answer) this.#milliseconds = answer.milliseconds;
    this.#describe(answer);
    this.toolbar.update();
    this.redraw();
  }

  #failed(error) {
    this.#asked = null;
    this.#prepared.key = null;
    this.#needed = false; // until the user comes again: no storm of requests at a server that is gone
    this.#say(error.message);
    if (error.message !== this.#complained) this.host.complain(error.message);
    this.#complained = error.message;
  }

  /** Have the image encoded, once. Resolves to whether it is still the one that is wanted. */
  async #prepare(subject) {
    const key = JSON.stringify(subject);
    if (this.#prepared.key !== key) {
      this.element.classList.add("samkit-busy");
      this.#say("Encoding the image…");
      const promise = this.client.prepare(subject).catch((error) => {
        if (error.status !== 503) throw error; // a question waits for its turn; so may this
      });
      this.#prepared = { key, promise };
    }
    try {
      await this.#prepared.promise;
    } finally {
      if (this.#prepared.key === key) this.element.classList.remove("samkit-busy");
    }
    return this.#prepared.key === key;
  }

  /** Show what a click at a place would give: {x, y, label} in image pixels, or null for none. */
  async hover(place) {
    this.#hoverPlace = place;
    if (!place || !this.hovering || this.hidden || this.#milliseconds > SLOW) {
      if (this.#hoverMask) this.redraw();
      this.#hoverMask = null;
      return;
    }
    const subject = this.#subject();
    if (!subject || this.#pending || !this.#needed || this.#asked === null) return;
    const asked = this.#asked;
    const { marks, candidate } = parse(this.state.shownText);
    const prompts = JSON.parse(serialise({ marks: [...marks, place], candidate }));
    try {
      const answer = await this.client.ask({ ...subject, prompts });
      if (!answer || asked !== this.#asked || !this.#hoverPlace) return;
      this.#milliseconds = answer.milliseconds;
      this.#hoverMask = await createImageBitmap(answer.png);
      this.redraw();
    } catch {
      this.#hoverMask = null; // the next click says what is wrong
    }
  }
}

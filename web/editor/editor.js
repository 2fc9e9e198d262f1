/** The editor itself: a toolbar, a canvas, a list of objects and a status line, over the state and the preview. Knows no ComfyUI. */

import { Alike } from "./alike.js";
import { Brush } from "./brush.js";
import { PreviewClient, pollFor } from "./client.js";
import { contract } from "./contract.js";
import { Everything } from "./everything.js";
import { makeFilm } from "./film.js";
import { makeFinish } from "./finish.js";
import { clamped, View } from "./geometry.js";
import { Gestures } from "./gestures.js";
import { onKey } from "./keys.js";
import { makeObjects } from "./objects.js";
import { paint } from "./paint.js";
import { patchOf } from "./patches.js";
import { Preview } from "./preview.js";
import { isLarge, Pyramid } from "./pyramid.js";
import { visibleRegion } from "./region.js";
import { SecondLooks } from "./second_look.js";
import { ShownImage } from "./shown_image.js";
import { EditorState, isBox } from "./state.js";
import { noteOf, statusOf } from "./status.js";
import { keepKeys, make, makeLegend, makeNote, makeToolbar } from "./toolbar.js";
import { Tracked } from "./tracked.js";
import { VERSION } from "./text.js";
import { INSIDE, paintLayer, ViewMode } from "./views.js";
import { Words } from "./words.js";

const MARGIN = 4;
const WHEEL_PAUSE = 150;
const PINCH = { speed: 0.01, most: 0.3 }; // a trackpad's steps are small; a wheel's with Ctrl are large, and must not zoom too far
const SAID = 4000; // milliseconds
const RESTING = 100; // milliseconds that a frame of a film is shown before it is encoded: not each one that is passed
const OLD = 0.45; // strength of a mask that SAM Track has made of other marks
const FADE = { after: 80, during: 300, least: 0.25 }; // milliseconds, milliseconds, strength of a mask that is out of date
let editors = 0;

/**
 * @typedef {{filename: string, subfolder: string, type: string}} ImageName  ComfyUI's name of a file
 * @typedef {object} Source  where the image comes from
 * @property {ImageName[]} images  one per frame
 * @property {boolean} isConnected  whether something is connected to `image`
 * @property {boolean} isOlder  whether the graph has changed since a run has made them
 * @property {boolean} givesEmptyMasks  whether other nodes take the masks, and no model is connected
 * @property {boolean} isTracked  whether SAM Track takes the marks
 * @property {boolean} isRunning  whether they are being made, or the model
 * @property {number | null} progress  of that, 0 to 1
 * @typedef {object} Host  what the editor needs of ComfyUI
 * @property {(path: string, init: object) => Promise<Response>} send
 * @property {(image: ImageName, version: string) => string} url
 * @property {(image: ImageName) => Promise<string | null>} identify  a text that changes with the file's content; null where nobody answers
 * @property {(image: ImageName, side: number, version: string) => string} [thumbnail]  the address of a small image
 * @property {(image: ImageName, level: number, column: number, row: number, version: string) => string} [tile]  the address of a tile of a
 *   large image; absent: the browser has such images whole
 * @property {() => void} committed  the text has changed: to be saved
 * @property {(text: string) => void} complain  show an error
 * @property {() => void} [loadImage]  run what is upstream of the image
 * @property {() => void} [loadAll]  run what is upstream of the image and of the model
 * @property {() => void} [cancelRun]  end what one of these has begun
 * @property {(alpha: Blob, image: ImageName) => Promise<void>} [sendToMaskEditor]
 * @property {() => void} [needed]  the user has come: find out what is connected
 * @property {(event: WheelEvent) => void} [passWheel]  the wheel is the graph's; absent where the editor lies on none
 * @property {() => void} [openDialog]  the same in a window of its own
 * @property {() => void} [leave]  Escape, when there is nothing else to leave
 */
export class PromptEditor {
  hidden = false;
  hovering = true;
  negative = false;
  boxTool = false;
  panning = false;
  framing = false; // a drag draws a region, for as long as the key is held down
  before = false; // the image as it is, for as long as the key is held down
  mode = new ViewMode();
  unit = 1;
  stageSize = { width: 1, height: 1 };
  view = new View();
  #source = { images: [], isConnected: false, isOlder: false, givesEmptyMasks: false, isTracked: false, isRunning: false, progress: null };
  #model = null;
  #isSeen = false;
  #isVisited = false;
  #insists = false; // hover previews although they are slow
  #place = null;
  #kept = null; // the image beyond which marks may lie
  #latest = new Map(); // object -> key of its latest mask
  #staleSince = null;
  #drawing = 0;
  #wheeled = 0;
  #known = new Map(); // object -> its item, until something changes
  #standing = new Map(); // object -> how SAM Track has it on the shown frame, until something changes
  #frame = { shown: 0, timer: 0, isResting: true };
  #complained = null;
  #refused = null; // what the status line says for a moment
  #saying = 0;
  #alive = null;
  #zoom = null;
  #drawnZoom = null;
  #region = null; // that is being drawn
  #hasFramed = false; // since the key was pressed
  #followed = null; // the text that scaling the marks to another image has made, and what is said of it

  /** @param {Host} host */
  constructor(host) {
    this.host = host;
    this.#isVisited = Boolean(host.leave); // who has opened a dialog has come
    this.state = new EditorState({ onChange: () => this.#changed(), onCommit: () => host.committed(), onLimit: host.complain });
    const editor = `${Date.now().toString(36)}-${(editors += 1)}-${Math.random().toString(36).slice(2)}`;
    this.client = new PreviewClient({ send: host.send, editor });
    this.exact = new PreviewClient({ send: host.send, editor: `${editor}-exact` }); // its questions do not supersede the preview's
    this.preview = new Preview({ client: this.client, decode: (png) => createImageBitmap(png), onChange: () => this.#previewed() });
    const looking = new PreviewClient({ send: host.send, editor: `${editor}-look` });
    this.looks = new SecondLooks({ client: looking, decode: (png) => createImageBitmap(png), onChange: () => this.#update() });
    this.tracked = new Tracked({ client: this.client, decode: (png) => createImageBitmap(png), onChange: () => this.#trackedCame() });
    const pyramid = host.tile && ((...of) => this.#pyramid(...of));
    this.shown = new ShownImage({ identify: host.identify, url: host.url, pyramid, onChange: (...change) => this.#imageChanged(...change), onComing: () => this.#coming() });
    this.brush = new Brush(this);
    this.#build();
    this.attach();
  }

  #build() {
    this.canvas = make("canvas", { className: "samkit-canvas" });
    this.note = makeNote((action) => this.#act(action));
    const legend = makeLegend();
    this.stage = make("div", { className: "samkit-stage", tabIndex: 0, role: "application" }, this.canvas, this.note.element, legend);
    this.stage.setAttribute("aria-label", "Image to mark: left click on the object, right click off it, drag a box");
    keepKeys(this.stage);
    this.finish = makeFinish(this);
    this.toolbar = makeToolbar(this);
    this.objects = makeObjects(this);
    this.film = makeFilm(this);
    this.statusLine = make("div", { className: "samkit-status", role: "status" });
    const middle = make("div", { className: "samkit-middle" }, this.stage, this.objects.element);
    this.foot = make("div", { className: "samkit-foot" }, this.statusLine);
    this.element = make("div", { className: "samkit-editor" }, this.toolbar.element, this.finish.element, middle, this.film.element, this.foot, this.toolbar.candidates);
    this.element.samkit = this;
    this.everything = new Everything(this);
    this.alike = new Alike(this);
    this.words = new Words(this);
  }

  /** Begin to listen: at first, and when the node is put back into a graph. */
  attach() {
    if (this.#alive) return;
    this.#alive = new AbortController();
    const { signal } = this.#alive;
    const { stage, element } = this;
    const on = (target, type, handle, options) => target.addEventListener(type, handle, { signal, ...options });
    this.everything.attach(signal);
    this.alike.attach(signal);
    this.gestures = new Gestures(stage, this, signal);
    this.#watch(signal);
    // Nodes 2.0 and the canvas take wheel and fingers from above, before the event comes down to the stage.
    on(window, "wheel", (event) => this.#wheel(event), { capture: true, passive: false });
    for (const type of ["touchstart", "touchmove", "touchend", "touchcancel"]) on(window, type, (event) => this.#touch(event), { capture: true });
    on(stage, "blur", () => this.#left());
    on(document, "pointerdown", (event) => this.#pressed(event), { capture: true });
    on(element, "keydown", (event) => this.#key(event));
    on(element, "keyup", (event) => this.#keyUp(event));
    on(element, "mousedown", (event) => this.#keepFocus(event));
    on(element, "pointerenter", () => this.#come());
    for (const type of ["pointerdown", "dblclick"]) on(element, type, (event) => event.stopPropagation());
    on(document, "fullscreenchange", () => requestAnimationFrame(() => this.fit()));
    on(document, "visibilitychange", () => this.#seen(this.#isSeen));
    on(window, "focus", () => this.#loadImage({ check: true }));
    this.#changed();
  }

  #watch(signal) {
    const size = new ResizeObserver(() => this.#resized());
    const sight = new IntersectionObserver((entries) => this.#seen(entries.at(-1).isIntersecting));
    size.observe(this.stage);
    sight.observe(this.stage);
    this.#zoom = new MutationObserver(() => this.#zoomed());
    signal.addEventListener("abort", () => [size, sight, this.#zoom].forEach((one) => one.disconnect()));
  }

  /** The graph's zoom is a style of an element around the editor: which one depends on the renderer, and may change. */
  #watchZoom() {
    this.#zoom.disconnect();
    for (let one = this.element.parentElement; one; one = one.parentElement) this.#zoom.observe(one, { attributeFilter: ["style"] });
    this.#zoomed();
  }

  /** Marks keep their size on the screen: draw them again when it would be another one. */
  #zoomed() {
    const zoom = this.stage.getBoundingClientRect().width / this.stageSize.width;
    if (zoom && zoom !== this.#drawnZoom) this.redraw();
  }

  /** Let go of everything that outlives the node: listeners, masks, the image. */
  dispose() {
    this.#alive?.abort();
    this.#alive = null;
    this.#isSeen = false;
    clearTimeout(this.#frame.timer);
    clearTimeout(this.#saying);
    this.preview.dispose();
    this.looks.dispose();
    this.tracked.forget();
    this.shown.dispose();
    this.state.image = null;
    this.#forget();
  }

  /** Find out anew what is wanted. */
  #forget() {
    this.#known.clear();
    this.#standing.clear();
  }

  #seen(isSeen) {
    if (isSeen && !this.#isSeen) this.host.needed?.();
    if (isSeen) this.#watchZoom();
    this.#isSeen = isSeen;
    this.#refresh();
  }

  #come() {
    this.#isVisited = true;
    this.#watchZoom();
    this.host.needed?.();
    this.#loadImage({ check: true });
    this.#refresh();
  }

  #left() {
    this.panning = this.framing = false;
    this.showBefore(false);
  }

  /** A press beside SAM's candidates closes them, and does nothing else to the image. */
  #pressed(event) {
    const { candidates, element } = this.toolbar;
    if (candidates.contains(event.target) || element.contains(event.target)) return;
    if (this.toolbar.closeCandidates() && this.stage.contains(event.target)) event.stopPropagation();
  }

  /** Whatever is pressed in the editor, the keys stay the editor's: a button would take them along when it is disabled. */
  #keepFocus(event) {
    if (isField(event.target) || this.stage.contains(event.target)) return;
    event.preventDefault();
    this.stage.focus({ preventScroll: true });
  }

  // --- what ComfyUI says

  get text() {
    return this.state.text;
  }

  set text(value) {
    this.state.load(value);
  }

  /** @param {Source} source */
  setSource(source) {
    const before = JSON.stringify(this.#source);
    this.#source = { ...this.#source, ...source };
    if (JSON.stringify(this.#source) === before) return;
    this.state.setFrames(Math.max(1, this.#source.images.length));
    this.state.setFilm(this.#source.isTracked && this.#source.images.length > 1);
    this.#changed();
  }

  /** @param {import("./tracked.js").Track | null} track  what a run of SAM Track has made of the marks */
  setTrack(track) {
    if (this.tracked.take(track)) this.#changed();
  }

  get isSeen() {
    return this.#isSeen;
  }

  /** The image that is shown, or null. */
  get image() {
    return this.shown.image;
  }

  get images() {
    return this.#source.images;
  }

  get frameCount() {
    return this.state.frames;
  }

  /** @param {object | null} model  as the server's `model` wants it */
  setModel(model) {
    if (JSON.stringify(model) === JSON.stringify(this.#model)) return;
    this.#model = model;
    this.#changed();
  }

  /** ComfyUI has finished something: what it changed on disk or in memory may answer now. */
  wake() {
    this.#loadImage({ check: true });
    this.preview.wake();
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

  /** Off; or on, and where it is paused because the machine is slow: on all the same. */
  toggleHover() {
    const isPaused = this.isHoverPaused;
    this.hovering = isPaused || !this.hovering;
    this.#insists = isPaused;
    this.hover(null);
    this.#changed();
  }

  get isHoverPaused() {
    return this.hovering && !this.#insists && this.preview.pace.isSlow;
  }

  toggleNegative() {
    this.negative = !this.negative;
    this.#changed();
  }

  toggleBoxTool() {
    this.boxTool = !this.boxTool;
    this.#changed();
  }

  toggleDetail() {
    if (!this.state.isFilm) this.state.setDetail(this.state.detail === "off" ? "auto" : "off");
  }

  /** From a region back to the whole image; from that to what is on the screen. */
  toggleRegion() {
    const { state, view, image, stageSize } = this;
    if (!image || state.isFilm) return;
    const isSet = state.regionOf(state.current) !== null;
    const region = isSet ? null : visibleRegion(view, image, stageSize);
    if (!isSet && !region) this.#say("The whole image is on the screen. Zoom in first, or hold R and drag.");
    else if (!state.setRegion(region)) this.refuse();
  }

  /** Show how far a new region has been drawn; null for none. */
  drawRegion(region) {
    this.#hasFramed ||= region !== null;
    this.#region = region;
    this.redraw();
  }

  /** What was drawn is the region of the selected object. */
  takeRegion() {
    const region = this.#region;
    this.drawRegion(null);
    if (region && !this.state.setRegion(region)) this.refuse();
  }

  get canUndo() {
    return this.state.canUndo || this.alike.canUndo;
  }

  get canRedo() {
    return this.state.canRedo || this.alike.canRedo;
  }

  /** Take back the last step: of what is offered, or of the text. */
  undo() {
    if (!this.alike.undo()) this.state.undo();
  }

  redo() {
    if (!this.alike.redo()) this.state.redo();
  }

  /** The next way to see the masks. */
  nextView() {
    this.mode.next();
    this.changed();
  }

  /** Show the image without masks and marks, or all again. */
  showBefore(shown) {
    if (shown === this.before) return;
    this.before = shown;
    this.redraw();
  }

  /** What the buttons show, or what is drawn, has changed. */
  changed() {
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
    if (this.toolbar.closeCandidates()) return;
    if (this.gestures.active) this.gestures.abandon();
    else if (this.alike.isOn) this.alike.end();
    else if (this.brush.isActive) this.brush.toggle(this.brush.tool);
    else if (this.state.selected !== null) this.state.select(null);
    else if (this.host.leave) this.host.leave();
    else if (!document.fullscreenElement) this.stage.blur();
  }

  /** Add what was found as objects, see `EditorState.addObjects`. */
  addObjects(made) {
    const { objects, marks } = contract.limits;
    if (!this.state.addObjects(made)) this.host.complain(`A run takes at most ${objects} objects and ${marks} marks. Not all were added.`);
  }

  /** Say why a mark was not added; of a limit the state has said it. */
  refuse() {
    const { state } = this;
    if (state.object.locked) this.#say(`${state.object.name} is locked.`);
    else if (state.regionOf(state.current)) this.#say(`That lies outside the region of ${state.object.name}. Press R to use the whole image.`);
  }

  /** Say something in the status line for a moment, or until something changes. */
  #say(text) {
    this.#refused = text;
    this.#describe();
    clearTimeout(this.#saying);
    this.#saying = setTimeout(() => {
      this.#refused = null;
      this.#describe();
    }, SAID);
  }

  #act(action) {
    const { state, image } = this;
    if (action === "load") this.loadImage();
    if (action === "download") this.host.loadAll?.();
    if (action === "cancel") this.host.cancelRun?.();
    if (["load", "download", "cancel"].includes(action) || !image) return;
    if (action === "scale") state.scaleTo(image);
    if (action === "clear") state.clearOutside(image);
    if (action === "anew") state.startAnew();
    if (action === "undo") state.undo();
    if (action === "close") this.#followed = null;
    if (action === "keep") {
      this.#kept = this.shown.name;
      state.keepFor(image);
    }
    this.#changed();
  }

  /** Whether there is a mask to make: an object that is not hidden, with marks or paint in this frame. */
  get hasMask() {
    return this.#items().length > 0;
  }

  /**
   * The masks that are seen, merged and exact, as ComfyUI's upload of masks takes them: a PNG whose alpha is 0 where the mask is full.
   * Waits while ComfyUI runs a prompt.
   * @param {() => boolean} [isWanted]
   * @param {(progress: null) => void} [waits]  ComfyUI runs a prompt
   * @returns {Promise<Blob | null>}  null where there is no mask, or it is not wanted any longer
   */
  async alpha(isWanted = () => true, waits = () => {}) {
    const { image, subject } = this;
    const items = this.#items();
    if (!items.length) return null;
    if (!image || !subject) throw new Error(image ? "There is no model to make the mask." : "The image is not there yet.");
    const { width, height } = image;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    const alpha = new ImageData(width, height);
    for (let i = 3; i < alpha.data.length; i += 4) alpha.data[i] = 255;
    for (const { object } of items) {
      const data = await this.#exactly(object, context, isWanted, waits);
      if (!data) return null;
      for (let i = 3; i < data.length; i += 4) alpha.data[i] = Math.min(alpha.data[i], 255 - data[i]); // where masks meet, the stronger one
    }
    context.putImageData(alpha, 0, 0);
    return context.canvas.convertToBlob({ type: "image/png" });
  }

  /** The exact mask of an object as the pixels of a canvas, whose alpha it is; null where it is not wanted any longer. */
  async #exactly(object, context, isWanted, waits) {
    const { image, model } = this.subject ?? {};
    if (!image) throw new Error(this.image ? "There is no model to make the mask." : "The image is not there yet.");
    const { width, height } = context.canvas;
    const asked = this.state.question(object);
    const isDetailed = this.#isDetailed && this.state.marksOf(object).length > 0;
    const question = { image, model, ...(isDetailed ? this.#inDetail(asked) : asked), form: "mask" };
    const answer = await pollFor(() => (isDetailed ? this.exact.look(question) : this.exact.ask(question)), isWanted, waits);
    if (!answer) return null;
    const bitmap = await createImageBitmap(answer.png);
    context.clearRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
    return context.getImageData(0, 0, width, height).data;
  }

  /**
   * The objects that have a mask, hidden ones too, each with its exact mask: {name, mask}. One that is painted alone, as masks of a
   * data set are, needs no model. The rest is as with `alpha`.
   * @returns {Promise<{name: string, mask: import("./patches.js").Patch}[] | null>}
   */
  async patches(isWanted = () => true, waits = () => {}) {
    const { image, state } = this;
    if (!image) throw new Error("The image is not there yet.");
    const context = new OffscreenCanvas(image.width, image.height).getContext("2d", { willReadFrequently: true });
    const found = [];
    for (const object of [...state.objects.keys()].filter((index) => state.hasContent(index))) {
      const { name } = state.objects[object];
      const [patch, ...others] = state.paintOf(object);
      const isAlone = patch && !others.length && !state.marksOf(object).length && !Object.keys(state.finishOf(object)).length;
      if (isAlone) {
        const { frame, ...mask } = patch;
        found.push({ name, mask });
        continue;
      }
      const data = await this.#exactly(object, context, isWanted, waits);
      if (!data) return null;
      const mask = patchOf((pixel) => data[4 * pixel + 3] > 127, image);
      if (mask) found.push({ name, mask });
    }
    return found;
  }

  /** The masks to ComfyUI's own mask editor. */
  async sendToMaskEditor() {
    const name = this.images[this.state.frame];
    try {
      const alpha = await this.alpha();
      if (alpha) await this.host.sendToMaskEditor(alpha, name);
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
    this.#drawnZoom = zoom;
    this.unit = Math.min(4, Math.max(0.25, 1 / zoom));
    const ratio = window.devicePixelRatio * Math.min(3, Math.max(1, zoom));
    const [width, height] = [this.stageSize.width, this.stageSize.height].map((side) => Math.max(1, Math.round(side * ratio)));
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const { view, image, unit, state } = this;
    if (this.preview.state.name === "idle") this.brush.settle(); // no mask will come
    const { brush, mode, before } = this;
    const region = this.#region ?? state.regionOf(state.current);
    paint(this.canvas.getContext("2d"), { ratio, unit, view, image, masks: before ? [] : this.#layers(), state, mode, brush, region, before });
    this.everything.draw();
    this.alike.draw();
  }

  /** The masks as they are drawn: the selected object's on top, what is out of date fading, what a click would give last. */
  #layers() {
    const items = this.#items();
    const tracked = this.#trackedItems();
    if (this.hidden || !this.shownImage || (!items.length && !tracked.length && !this.#place)) return [];
    const isMissing = items.some(({ key }) => !this.preview.find(key));
    this.#staleSince = isMissing ? this.#staleSince ?? performance.now() : null;
    const fresh = 1 - (performance.now() - (this.#staleSince ?? Infinity) - FADE.after) / FADE.during;
    const strength = Math.max(FADE.least, Math.min(1, fresh));
    if (isMissing && strength > FADE.least) this.redraw();
    const { current } = this.state;
    const made = items.reverse().map(({ key, object }) => ({ object, layer: this.#layer(key, object, strength) }));
    const followed = tracked.map(({ key, object, isOld }) => {
      const found = this.tracked.find(key);
      return { object, layer: found && { bitmap: found.bitmap, strength: (object === current ? 1 : 0.7) * (isOld ? OLD : 1) } };
    });
    const ordered = [...followed, ...made].sort((a, b) => (a.object === current) - (b.object === current));
    const layers = ordered.map(({ layer }) => layer).filter(Boolean);
    const hovered = this.#hoverItem();
    const hover = hovered && this.preview.find(hovered.key);
    if (hover) layers.push({ bitmap: hover.bitmap, place: hover.answer.place, strength: this.mask ? 0.5 : 0.75, isHover: true });
    return layers;
  }

  #layer(key, object, strength) {
    const rank = object === this.state.current ? 1 : 0.7;
    const found = this.#maskOf(key);
    if (found) return { bitmap: found.bitmap, place: found.answer.place, strength: rank };
    const old = this.preview.state.name === "failed" ? null : this.#maskOf(this.#latest.get(slotOf(this.state.objects[object])));
    if (old) return { bitmap: old.bitmap, place: old.answer.place, strength: rank * strength };
    const patches = this.state.paintOf(object);
    return patches.length && !isLarge(this.image) ? { bitmap: paintLayer(patches, this.state.objects[object].colour, this.image), strength: rank } : null;
  }

  #resized() {
    const was = this.stageSize;
    this.stageSize = { width: Math.max(1, this.stage.clientWidth), height: Math.max(1, this.stage.clientHeight) };
    if (was.width === this.stageSize.width && was.height === this.stageSize.height) return;
    this.film.update();
    if (!this.image || this.view.isFitted(this.image, was, MARGIN)) return this.fit();
    this.view.pan((this.stageSize.width - was.width) / 2, (this.stageSize.height - was.height) / 2);
    this.redraw();
  }

  // --- events

  /** The wheel over the editor: the image's while the editor has the focus, else the graph's. A pinch on a trackpad is Ctrl + wheel. */
  #wheel(event) {
    if (!this.element.contains(event.target)) return;
    const list = this.objects.element;
    if (list.contains(event.target) && list.scrollHeight > list.clientHeight && !event.ctrlKey) return event.stopPropagation();
    const bar = this.toolbar.element;
    if (bar.contains(event.target) && bar.scrollWidth > bar.clientWidth) {
      bar.scrollLeft += event.deltaX || event.deltaY;
      event.preventDefault();
      return event.stopPropagation();
    }
    const hasFocus = !this.host.passWheel || this.element.contains(document.activeElement) || document.fullscreenElement === this.element;
    if (!hasFocus || !this.stage.contains(event.target) || !this.image) return this.host.passWheel(event);
    event.preventDefault();
    event.stopPropagation();
    const isSideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (event.altKey) {
      if (event.timeStamp - this.#wheeled <= WHEEL_PAUSE) return;
      if (this.brush.isActive) return this.brush.resize(event.deltaY > 0 ? 0.8 : 1.25);
      this.#wheeled = event.timeStamp;
      this.state.cycleCandidate(event.deltaY > 0 ? 1 : -1);
    } else if (isSideways && !event.ctrlKey) {
      this.view.pan(-(event.deltaX || event.deltaY), 0);
      this.redraw();
    } else {
      const speed = event.deltaMode ? 0.05 : event.ctrlKey ? PINCH.speed : 0.0015;
      const step = -event.deltaY * speed;
      const most = event.ctrlKey ? PINCH.most : Infinity;
      this.view.zoomAt(this.gestures.place(event), Math.exp(Math.max(-most, Math.min(most, step))));
      this.redraw();
    }
  }

  /** Fingers on the image are the image's: pointer events say what they do, and ComfyUI's zoom of the graph must not hear of them. */
  #touch(event) {
    if (this.stage.contains(event.target)) event.stopPropagation();
  }

  #key(event) {
    const { key, target } = event;
    if (MODIFIERS.has(key)) this.gestures.modified(event);
    const isButton = target.tagName === "BUTTON";
    if (isField(target)) {
      event.stopPropagation(); // Delete in a name is no word to the graph
      if (key === "Escape" || key === "Enter") this.stage.focus({ preventScroll: true });
      return;
    }
    if (isButton && (key === " " || key === "Enter" || key === "Tab")) return event.stopPropagation();
    if (key === " ") this.panning = true;
    if (isPlainA(event)) this.showBefore(true);
    if (isPlainR(event) && !event.repeat) [this.framing, this.#hasFramed] = [true, false];
    if (key !== " " && !isPlainA(event) && !isPlainR(event) && !onKey(event, this)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  #keyUp(event) {
    if (MODIFIERS.has(event.key)) this.gestures.modified(event);
    if (event.key === " ") this.panning = false;
    if (event.key === "a" || event.key === "A" || event.code === "KeyA") this.showBefore(false);
    if (this.framing && (event.key === "r" || event.key === "R" || event.code === "KeyR")) {
      this.framing = false;
      if (!this.#hasFramed && !this.gestures.active) this.toggleRegion();
    }
  }

  // --- what follows from a change

  #changed() {
    if (!this.element) return;
    this.#refused = null;
    this.#forget();
    this.#rest();
    this.#loadImage();
    this.#refresh();
    this.#update();
  }

  #previewed() {
    const { state } = this.preview;
    if (state.name === "failed" && !state.missing && state.message !== this.#complained) this.host.complain((this.#complained = state.message));
    if (state.name === "ready") this.#complained = null;
    for (const { key, object } of this.#items()) {
      if (this.preview.find(key)) this.#latest.set(slotOf(this.state.objects[object]), key);
    }
    if (this.mask) this.brush.settle();
    this.#lookAgain();
    this.#compare();
    this.#update();
  }

  /** Another frame of a film is encoded when it stays: not each one that somebody passes. */
  #rest() {
    const { frame, frames } = this.state;
    if (frame === this.#frame.shown) return;
    clearTimeout(this.#frame.timer);
    const isResting = frames < 2;
    const rest = () => {
      this.#frame.isResting = true;
      this.#refresh();
      this.#update();
    };
    this.#frame = { shown: frame, isResting, timer: isResting ? 0 : setTimeout(rest, RESTING) };
  }

  /** A mask of SAM Track has come, or all are gone. */
  #trackedCame() {
    this.#forget();
    this.#refresh();
    this.#update();
  }

  /** What the server has read must be what is shown: a file may be written over in place. */
  #compare() {
    const { prepared } = this.preview;
    if (!prepared || !this.image) return;
    const stamps = new Set([prepared.stamp, ...this.#fromPreview().map(({ answer }) => answer.stamp)]);
    const fits = prepared.width === this.image.width && prepared.height === this.image.height;
    const seen = JSON.stringify([this.shown.name, [...stamps]]);
    if ((fits && stamps.size === 1) || seen === this.#compared) return;
    this.#compared = seen;
    this.#loadImage({ again: true });
  }

  #compared = null;

  #update() {
    const { preview } = this;
    this.element.classList.toggle("samkit-busy", preview.state.name === "preparing" && !preview.state.busy);
    this.element.dataset.state = preview.state.name;
    this.toolbar.update();
    this.finish.update();
    this.objects.update();
    this.film.update();
    this.everything.update();
    this.alike.update();
    this.words.update();
    this.#describe();
    this.redraw();
  }

  #describe() {
    const { image, state, preview } = this;
    const { images, isConnected, isOlder, givesEmptyMasks, isRunning, progress } = this.#source;
    const answer = this.#find(state.current)?.answer ?? null;
    const object = state.objects.length > 1 ? state.object.name : null;
    const tracked = this.#trackedStatus();
    const more = this.#more(answer !== null);
    const isEmpty = !state.marks.length && !state.objects.some(({ paint }) => paint);
    const shown = { preview: preview.state, answer, object, tracked, more, isEmpty, isDialog: Boolean(this.host.leave) };
    const text = this.#refused ?? statusOf({ image, hasModel: this.#model !== null, ...shown });
    if (this.statusLine.textContent !== text) this.statusLine.textContent = this.statusLine.title = text;
    const outside = image && this.#kept !== this.shown.name ? state.outside(image).length : 0;
    const lacks = preview.state.missing && preview.state.message;
    const source = { image, isConnected, isNamed: images.length > 0, isLost: this.shown.isLost, canRun: Boolean(this.host.loadImage), isOlder, isRunning, progress };
    const made = state.marks.length ? state.size : null;
    const followed = this.#followed?.text === state.text ? this.#followed.from : null;
    const needsModel = givesEmptyMasks && state.marks.length > 0;
    this.note.update(noteOf({ ...source, isNewer: state.isNewer, outside, made, followed, needsModel, lacks }));
  }

  // --- the image

  #pyramid(image, version, size) {
    const load = async (...tile) => {
      const response = await fetch(this.host.tile(image, ...tile, version));
      if (!response.ok) throw new Error(response.statusText);
      return createImageBitmap(await response.blob());
    };
    return new Pyramid({ ...size, load, onChange: () => this.redraw() });
  }

  #loadImage(how) {
    this.shown.load(this.images[this.state.frame] ?? null, how);
  }

  /** What will be shown is known: the server can encode it while the browser loads it. */
  #coming() {
    this.#forget();
    this.#refresh();
  }

  /** The image has come, or has gone. */
  #imageChanged(before, isOtherFile) {
    const { image, state } = this;
    const isOther = image && (before?.width !== image.width || before?.height !== image.height);
    if (isOther && before && !state.size) state.keepFor({ width: before.width, height: before.height });
    if (isOtherFile) this.#kept = null;
    if (!image) this.gestures.abandon();
    state.image = image && { width: image.width, height: image.height };
    if (isOther) this.fit();
    const from = image && state.follow(image);
    if (from) this.#followed = { text: state.text, from };
    this.#forget();
    this.#refresh();
    this.#update();
  }

  // --- the masks

  /** What to tell the server of the image and the model; null where one of them is missing. */
  get subject() {
    const image = this.images[this.state.frame];
    const { coming } = this.shown;
    const isKnown = image && coming?.name === JSON.stringify(image);
    return isKnown && this.#model ? { image, model: this.#model, version: coming.version } : null;
  }

  /** ComfyUI's name of the image that is shown; null where none is, or another than should be. */
  get shownImage() {
    const image = this.images[this.state.frame];
    const { name, version, coming } = this.shown;
    return image && this.image && name === JSON.stringify(image) && (!coming || coming.version === version) ? image : null;
  }

  /** Whether masks are wanted: somebody looks, and has marked something or has come to do so. */
  get #isNeeded() {
    return this.#isSeen && !document.hidden && (this.#isVisited || this.state.marks.length > 0 || this.state.objects.some(({ paint }) => paint));
  }

  /** Bring the masks up to date with the marks. What is out of date is shown on its own image only. */
  #refresh() {
    const subject = this.subject;
    const key = JSON.stringify(subject);
    if (key !== this.#latestOf) this.#latest.clear();
    this.#latestOf = key;
    this.preview.want(this.#isNeeded && this.#frame.isResting ? subject : null, this.#items(), !this.gestures.active);
    this.#lookAgain();
    this.tracked.want(this.#isSeen && !document.hidden ? this.#trackedItems() : []);
  }

  #latestOf = null;

  /** Whether a run looks again at the objects; SAM Track has a detail of its own. */
  get #isDetailed() {
    return this.state.detail !== "off" && !this.state.isFilm;
  }

  #inDetail(question) {
    return { ...question, prompts: { ...question.prompts, version: VERSION, detail: this.state.detail } };
  }

  /** Second looks, once all first masks are there. */
  #lookAgain() {
    const subject = this.subject;
    const isWanted = this.#isDetailed && subject && this.preview.state.name === "ready";
    const items = isWanted ? this.#items().filter(({ object }) => this.state.marksOf(object).length) : [];
    const { image, model } = subject ?? {};
    this.looks.want(items.map(({ key, question }) => ({ key: this.#lookKey(key), question: { image, model, ...this.#inDetail(question) } })));
  }

  #lookKey(key) {
    return `${this.state.detail} ${key}`;
  }

  /** The mask of a key: the sharp one, where it is there and wanted. */
  #maskOf(key) {
    return (this.#isDetailed && this.looks.find(this.#lookKey(key))) || this.preview.find(key);
  }

  /** What the status line says of the selected object's mask besides. */
  #more(isShown) {
    const { state } = this;
    const { current } = state;
    const region = state.regionOf(current);
    const beyond = state.beyond(current);
    const look = isShown && this.#isDetailed ? this.looks.say(this.#lookKey(this.#item(current).key)) : null;
    return [look, region && `region ${region.width} × ${region.height}`, beyond && `${beyond} outside it ignored`];
  }

  /** What to ask for an object's mask, and the key that it is found by: all that it is made of. */
  #item(object, more = null) {
    if (!more && this.#known.has(object)) return this.#known.get(object);
    const form = more ? "tint" : this.mode.form;
    const start = this.#startOf(object);
    const question = { ...this.state.question(object, more), form, place: true, ...(start && { start }) };
    const own = question.prompts.objects?.[question.object] ?? null;
    const key = JSON.stringify([this.subject, own?.marks, own?.candidate, own?.colour, own?.finish, own?.paint, own?.region, form, question.prompts.objects?.length > 1, ...(start ? [start] : [])]);
    if (!more) this.#known.set(object, { key, question, object });
    return { key, question, object };
  }

  /** What is wanted: a mask for each object that is seen and has marks here, the selected one's first. */
  #items() {
    const { state } = this;
    const places = [...state.objects.keys()].filter((object) => !state.objects[object].hidden && state.hasContent(object) && !this.#isFollowed(object));
    return places.sort((a, b) => (b === state.current) - (a === state.current)).map((object) => this.#item(object));
  }

  #find(object) {
    const isNone = this.state.objects[object].hidden || !this.state.hasContent(object) || this.#isFollowed(object);
    const found = isNone ? null : this.#item(object);
    return found && this.#maskOf(found.key);
  }

  /** The masks that are up to date: {object, bitmap, answer} of each object that has one, in order; SAM Track's too (isTracked). */
  get masks() {
    const followed = this.shownImage ? this.#trackedItems().map(({ key, object }) => ({ object, found: this.tracked.find(key) })) : [];
    const theirs = followed.filter(({ found }) => found).map(({ object, found: { bitmap, area } }) => ({ object, bitmap, answer: { area }, isTracked: true }));
    return [...this.#fromPreview(), ...theirs].sort((a, b) => a.object - b.object);
  }

  #fromPreview() {
    if (!this.shownImage) return []; // they are of an image that is still being loaded
    const found = [...this.state.objects.keys()].map((object) => ({ object, ...this.#find(object) }));
    return found.filter(({ bitmap }) => bitmap);
  }

  // --- the masks of SAM Track

  /** How SAM Track's last run has an object on the shown frame; null where it has not. */
  #standingOf(object) {
    if (!this.#standing.has(object)) this.#standing.set(object, this.tracked.standing(this.state, object, this.state.frame));
    return this.#standing.get(object);
  }

  /** Whether what is shown of an object here is SAM Track's: it was tracked, and its marks on this frame are those of that run. */
  #isFollowed(object) {
    const standing = this.#standingOf(object);
    return standing !== null && !standing.differs && !this.state.paintOf(object).length;
  }

  /** What to ask for SAM Track's masks of the shown frame: of each object that is followed to it and was seen. */
  #trackedItems() {
    const { state } = this;
    const places = [...state.objects.keys()].filter((object) => !state.objects[object].hidden && this.#isFollowed(object));
    return places.map((object) => ({ object, ...this.#standingOf(object) })).filter(({ isSeen }) => isSeen).map((standing) => {
      const { object, isOld } = standing;
      return { object, isOld, ...this.tracked.item(standing, state.frame, state.objects[object].colour, this.mode.form) };
    });
  }

  /** The mask that SAM Track had for an object here, which a click on it corrects; none where the object begins. */
  #startOf(object) {
    const { state } = this;
    const standing = this.#standingOf(object);
    const isBegun = state.markedFrames(object)[0] < state.frame;
    if (!standing?.isSeen || !isBegun || state.frame > standing.from) return null;
    return this.tracked.item(standing, state.frame, "", "").question.track;
  }

  #trackedStatus() {
    const { current, objects } = this.state;
    if (objects[current].hidden || !this.#isFollowed(current)) return null;
    const { isSeen, isOld } = this.#standingOf(current);
    const found = this.masks.find(({ object, isTracked }) => isTracked && object === current);
    return { isSeen, isOld, area: found?.answer.area ?? null };
  }

  /** The selected object's mask, where it is up to date. */
  get mask() {
    if (!this.shownImage) return null;
    return this.#find(this.state.current)?.bitmap ?? null;
  }

  /** The other object whose mask is at a place of the image: the smallest; null where there is none, or the selected one's is
   * there too. An object that has no marks yet takes any click. */
  objectAt(place) {
    const { state } = this;
    if (!state.hasContent(state.current) && !this.#isFollowed(state.current)) return null;
    const there = this.masks.filter(({ object, bitmap, answer }) => !state.objects[object].locked && isIn(bitmap, answer.place ? within(answer.place, bitmap, place) : place, INSIDE[this.mode.form]));
    if (there.some(({ object }) => object === state.current)) return null;
    return there.sort((a, b) => a.answer.area - b.answer.area)[0]?.object ?? null;
  }

  /** Show what a click at a place would give: {x, y, label} in image pixels, or null for none. */
  hover(place) {
    place = this.brush.isActive ? null : place;
    const isShown = place && this.hovering && !this.isHoverPaused && !this.hidden && !this.state.object.locked;
    if (!isShown && !this.#place) return;
    this.#place = isShown ? place : null;
    this.preview.hover(this.#hoverItem());
    this.redraw();
  }

  #hoverItem() {
    return this.#place && this.subject ? this.#item(this.state.current, this.#place) : null;
  }

  /** SAM's candidates for the selected object; null where there is nothing to choose from. */
  async candidates() {
    const { state } = this;
    const subject = this.subject;
    if (!subject || !state.marksOf(state.current).length) return null;
    return this.client.candidates({ image: subject.image, model: subject.model, ...state.question(state.current) });
  }
}

const MODIFIERS = new Set(["Shift", "Alt", "Control", "Meta"]);

const slotOf = ({ name, colour }) => `${name}\n${colour}`;

const isPlainA = ({ key, ctrlKey, metaKey, altKey }) => (key === "a" || key === "A") && !ctrlKey && !metaKey && !altKey;

const isPlainR = ({ key, ctrlKey, metaKey, altKey }) => (key === "r" || key === "R") && !ctrlKey && !metaKey && !altKey;

const isField = (target) => target.tagName === "SELECT" || (target.tagName === "INPUT" && target.type !== "checkbox");

const probe = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });

/** A place of the image in the pixels of a mask that lies on a part of it. */
const within = (part, bitmap, { x, y }) => ({ x: ((x - part.x) * bitmap.width) / part.width, y: ((y - part.y) * bitmap.height) / part.height });

/** Whether a mask has the pixel at a place. */
function isIn(bitmap, { x, y }, least) {
  probe.clearRect(0, 0, 1, 1);
  probe.drawImage(bitmap, -Math.floor(x), -Math.floor(y));
  return probe.getImageData(0, 0, 1, 1).data[3] >= least;
}

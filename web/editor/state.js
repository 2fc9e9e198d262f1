/** What the prompt editor holds: objects with marks in pixels of the image, a selection, and undo. No DOM. */

import { readText, writeText } from "./text.js";

export { CANDIDATES, COLOURS, isBox } from "./text.js";
import { contract, problemOf } from "./contract.js";
import { cleanFinish } from "./finish_options.js";
import { decode, encode, over, scaled } from "./patches.js";
import { cleanRegion, isBeyond, scaledRegion } from "./region.js";
import { CANDIDATES, cleaned, isBox, nextColour, rounded } from "./text.js";

const MOST_STEPS = 200;

/**
 * @typedef {import("./text.js").Mark} Mark
 * @typedef {import("./text.js").EditorObject} EditorObject
 */

/** The editor's state; `onChange` is called after every change, `onCommit` after those that the workflow stores, and `onLimit` with a
 * sentence instead of a change that a run would refuse. */
export class EditorState {
  selected = null;
  current = 0;
  frame = 0;
  frames = 1;
  onlyThisFrame = false;
  isFilm = false; // whether the frames are those of a film that SAM Track follows the objects through: each mark is one frame's
  image = null; // {width, height} of what is shown
  #undo = []; // steps: {text, ids, current, problem}
  #redo = [];
  #committed;
  #ids = []; // of the objects, in order: who is who from step to step, whatever its name and place
  #loaded = null; // a text from outside, given back as it was until something changes

  constructor({ onChange = () => {}, onCommit = () => {}, onLimit = () => {} } = {}) {
    Object.assign(this, { onChange, onCommit, onLimit });
    this.#take(readText("{}"));
    this.#committed = this.#written();
  }

  #written() {
    return { text: writeText(this), ids: this.#ids, current: this.current, problem: problemOf(this) };
  }

  /** What the workflow stores. */
  get text() {
    const written = writeText(this);
    return this.isNewer || this.#loaded?.written === written ? this.#loaded.text : written;
  }

  /** Whether the text is of a later version of the pack: it is kept as it is, for writing it anew would lose what is unknown here. */
  get isNewer() {
    return this.#loaded !== null && this.#loaded.isNewer;
  }

  /** Give up a text of a later version, and begin with an empty one. */
  startAnew() {
    this.#loaded = null;
    this.#take(readText("{}"));
    this.#store();
    this.onChange();
  }

  /** What a run needs of it: a change of colour or of an eye is no reason to run anything again. */
  get runText() {
    if (this.isNewer) return this.#loaded.text;
    if (!this.isFilm) return writeText(this, { view: false });
    const objects = this.objects.map((object) => ({ ...object, region: undefined })); // SAM Track sees whole frames
    return writeText({ objects, marks: this.marks, size: this.size, finish: this.finish }, { view: false });
  }

  /** Who the objects are, from step to step: another list whenever there are others, or in another order. */
  get ids() {
    return this.#ids;
  }

  /** Indices of the marks that are used for the frame that is shown. */
  get shown() {
    const all = this.#isOfFirst ? 0 : this.frame;
    return [...this.marks.keys()].filter((index) => (this.marks[index].frame ?? all) === this.frame);
  }

  /** Whether marks without a frame are those of the first one: of a film while no mark has a frame, as SAM Track has it. */
  get #isOfFirst() {
    return this.isFilm && !this.marks.some((mark) => "frame" in mark);
  }

  /** Indices of the marks that are drawn: those of hidden objects are not. */
  get drawn() {
    return this.shown.filter((index) => !this.objects[this.marks[index].object].hidden);
  }

  /** Indices of the marks that the pointer and the keys reach. */
  get touchable() {
    return this.drawn.filter((index) => !this.objects[this.marks[index].object].locked);
  }

  get object() {
    return this.objects[this.current];
  }

  get candidate() {
    return this.object.candidate;
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  get canRedo() {
    return this.#redo.length > 0;
  }

  /** The part of the image that an object's marks are answered from; null for all of it, as it always is where SAM Track sees them. */
  regionOf(object) {
    return this.isFilm ? null : this.objects[object].region ?? null;
  }

  /** How many of an object's marks lie outside of its region: they are not used. */
  beyond(object) {
    const region = this.regionOf(object);
    return region ? this.marksOf(object).filter((mark) => isBeyond(mark, region)).length : 0;
  }

  /** Answer the marks of the selected object from a part of the image; null: from all of it. Returns whether it is so now. */
  setRegion(region) {
    if (this.object.locked || this.isFilm) return false;
    this.#change(this.current, { region: cleanRegion(region) ?? undefined });
    if (this.image && !this.size) this.keepFor(this.image);
    return this.commit();
  }

  /** Second looks at all objects, or none. */
  setDetail(detail) {
    this.detail = detail;
    this.commit();
  }

  /** The marks of an object in the frame that is shown. */
  marksOf(object) {
    return this.shown.map((index) => this.marks[index]).filter((mark) => mark.object === object);
  }

  /** The patches of an object in the frame that is shown. */
  paintOf(object) {
    return (this.objects[object].paint ?? []).filter(({ frame }) => (frame ?? this.frame) === this.frame);
  }

  /** Whether an object has a mask in the frame that is shown. */
  hasContent(object) {
    return this.marksOf(object).length > 0 || this.paintOf(object).length > 0;
  }

  /** What is done to an object's mask: its own, or that of all objects. */
  finishOf(object) {
    return this.objects[object].finish ?? this.finish;
  }

  /**
   * The text for a preview of the frame that is shown (the server need not know of frames), and an object's place in it.
   * @param {number} object
   * @param {Mark | null} more  a mark that it would get
   */
  question(object, more = null) {
    const used = (index) => index === object || this.marks.some((mark) => mark.object === index);
    const listed = [...this.objects.keys()].filter(used);
    const marks = this.shown.map((index) => ({ ...this.marks[index], frame: undefined }));
    if (more) marks.push({ ...more, object, frame: undefined });
    const moved = marks.filter((mark) => listed.includes(mark.object)).map((mark) => ({ ...mark, object: listed.indexOf(mark.object) }));
    const objects = listed.map((index) => {
      const region = this.regionOf(index) ?? undefined;
      return { ...this.objects[index], hidden: false, locked: false, region, ...this.#finishing(index, object) };
    });
    return { prompts: JSON.parse(writeText({ objects, marks: moved, size: null })), object: listed.indexOf(object) };
  }

  /** What a preview of `object` needs to know of how an object's mask is finished. */
  #finishing(index, object) {
    if (index !== object) return { finish: undefined, paint: undefined };
    const finish = this.finishOf(index);
    const paint = this.paintOf(index).map((patch) => ({ ...patch, frame: undefined }));
    return { finish: Object.keys(finish).length ? finish : undefined, paint };
  }

  /** Take over a text from outside: a loaded workflow, a pasted node, ComfyUI's own undo. History starts anew. */
  load(text) {
    if (text === this.text) return;
    const state = readText(text);
    const written = writeText(state);
    const same = written === writeText(this) && state.isNewer === this.isNewer;
    this.#loaded = state.readable ? { text, written, isNewer: state.isNewer } : null;
    if (same) return;
    this.#take(state);
    this.current = 0;
    this.#undo.length = this.#redo.length = 0;
    this.#committed = this.#written();
    this.onChange();
  }

  /** Take over what was made of this state elsewhere, as one step of undo. */
  adopt(text, current = 0) {
    if (text === this.text) return;
    this.#loaded = null;
    this.#take(readText(text));
    this.current = Math.min(current, this.objects.length - 1);
    this.commit();
  }

  #take({ objects, marks, size, finish, detail }, ids = objects.map(() => Symbol("object"))) {
    this.#ids = ids;
    Object.assign(this, { objects, marks, size, finish, detail, selected: null });
    this.current = Math.min(this.current, objects.length - 1);
  }

  /** Whether each mark is one frame's, see `isFilm`. */
  setFilm(isFilm) {
    if (isFilm === this.isFilm) return;
    this.isFilm = this.onlyThisFrame = isFilm;
    this.onChange();
  }

  /** The frames that an object is marked or painted on, those for all frames left out, in order. */
  markedFrames(object) {
    const marks = this.marks.filter((mark) => mark.object === object);
    const all = this.#isOfFirst ? 0 : undefined;
    const frames = [...marks.map(({ frame = all }) => frame), ...(this.objects[object].paint ?? []).map(({ frame }) => frame)];
    return [...new Set(frames.filter((frame) => frame < this.frames))].sort((a, b) => a - b);
  }

  /** The nearest frame before (step -1) or after (1) the shown one that the selected object is marked on; null where there is none. */
  markedFrame(step) {
    const found = this.markedFrames(this.current).filter((frame) => (frame - this.frame) * step > 0);
    return (step > 0 ? found[0] : found.at(-1)) ?? null;
  }

  showMarked(step) {
    const frame = this.markedFrame(step);
    if (frame !== null) this.showFrame(frame);
  }

  /** How many frames there are; marks for a single frame make sense for several only. */
  setFrames(count) {
    if (count === this.frames) return;
    this.frames = count;
    if (count < 2) this.onlyThisFrame = false;
    if (this.frame >= count) this.showFrame(0);
    else this.onChange();
  }

  /**
   * Add a mark to the selected object, for this frame or for all, and select it. A second box is another object's. Without
   * `commit`, more of the same gesture is to come. Returns whether it was added: to a locked object, or beyond a limit, it is not.
   */
  add(mark, commit = true) {
    const made = cleaned({ ...mark, ...(this.onlyThisFrame && { frame: this.frame }) });
    if (!made) return false;
    const region = this.regionOf(this.current);
    if (region && isBeyond(made, region)) return false;
    if (isBox(made) && this.marksOf(this.current).some(isBox)) this.#append(region);
    if (this.object.locked) return false;
    if (this.image && !this.outside(this.image).length) this.keepFor(this.image);
    this.#pin();
    this.marks.push({ ...made, object: this.current });
    this.selected = this.marks.length - 1;
    if (commit) return this.commit();
    if (!this.#fits()) return false;
    this.onChange();
    return true;
  }

  /** Marks of a film that have no frame were its first frame's; beside a mark with a frame they would be those of all frames. */
  #pin() {
    if (!this.#isOfFirst) return;
    this.marks = this.marks.map((mark) => ({ ...mark, frame: 0 }));
  }

  /** Replace a mark's place; nothing where it is gone, as when undo comes in the middle of a drag. */
  update(index, change) {
    const mark = this.marks[index] && cleaned({ ...this.marks[index], ...change });
    if (!mark) return;
    this.marks[index] = { ...mark, object: this.marks[index].object };
    this.onChange();
  }

  remove(index) {
    if (!this.touchable.includes(index)) return;
    this.marks.splice(index, 1);
    this.selected = null;
    this.commit();
  }

  /** What `clear` would remove. */
  get clearable() {
    return this.touchable.filter((index) => this.frames < 2 || this.marks[index].frame === this.frame);
  }

  /** Remove this frame's own marks: of several frames those that are for all of them stay. */
  clear() {
    this.#drop(new Set(this.clearable));
  }

  /** Remove the marks of all frames, but for those of locked objects. */
  clearAll() {
    this.#drop(new Set([...this.marks.keys()].filter((index) => !this.objects[this.marks[index].object].locked)));
  }

  #drop(gone) {
    this.marks = this.marks.filter((_, index) => !gone.has(index));
    this.selected = null;
    this.commit();
  }

  /** Select a mark, and its object; or none. */
  select(index) {
    this.selected = index;
    if (index !== null && this.marks[index]) this.current = this.marks[index].object;
    this.onChange();
  }

  /** Select the next of the marks, or the one before; after the last comes none. Returns whether one is selected. */
  selectNext(step = 1) {
    const places = this.touchable;
    const place = this.selected === null ? (step > 0 ? 0 : places.length - 1) : places.indexOf(this.selected) + step;
    this.select(places[place] ?? null);
    return this.selected !== null;
  }

  chooseCandidate(candidate) {
    if (this.object.locked) return;
    this.#change(this.current, { candidate: CANDIDATES.includes(candidate) ? candidate : "best" });
    this.commit();
  }

  cycleCandidate(step = 1) {
    const count = CANDIDATES.length;
    this.chooseCandidate(CANDIDATES[(CANDIDATES.indexOf(this.candidate) + step + count) % count]);
  }

  showFrame(frame) {
    this.frame = frame;
    this.selected = null;
    this.onChange();
  }

  // --- objects

  /** Begin another object; an empty one at the end is taken as it is. */
  newObject() {
    const last = this.objects.length - 1;
    const region = this.regionOf(this.current);
    if (this.objects[last].paint || this.marks.some((mark) => mark.object === last)) this.#append(region);
    else this.current = last;
    this.selected = null;
    this.commit();
  }

  /** @param {import("./text.js").Region | null} [region]  that of the object before, whose user is still at work in it */
  #append(region = null) {
    const more = region && { region };
    this.objects = [...this.objects, { name: this.#freeName(), colour: nextColour(this.objects), candidate: "best", ...more }];
    this.#ids = [...this.#ids, Symbol("object")];
    this.current = this.objects.length - 1;
  }

  /** The colour of the next object that is added. */
  get nextColour() {
    const last = this.objects.length - 1;
    return this.#isUsed(last) ? nextColour(this.objects) : this.objects[last].colour;
  }

  #isUsed(index) {
    return Boolean(this.objects[index].paint || this.objects[index].locked) || this.marks.some((mark) => mark.object === index);
  }

  /**
   * Add objects, as one step; an empty one at the end of the list is the first of them. Of several frames they are this one's.
   * @param {{name?: string, marks?: Mark[], paint?: import("./patches.js").Patch[]}[]} made
   * @returns {boolean} whether there was room for all
   */
  addObjects(made) {
    const frame = this.frames > 1 ? { frame: this.frame } : {};
    this.#pin();
    const isUsed = this.#isUsed(this.objects.length - 1);
    const { limits } = contract;
    const room = made.slice(0, (limits.objects ?? Infinity) - this.objects.length + (isUsed ? 0 : 1));
    while (room.flatMap(({ marks = [] }) => marks).length + this.marks.length > limits.marks) room.pop();
    for (const { name, marks = [], paint = [] } of room) {
      const last = this.objects.length - 1;
      if (this.#isUsed(last)) this.#append();
      else this.current = last;
      const patches = paint.map((patch) => ({ ...patch, ...frame }));
      this.#change(this.current, { ...(name && { name: [...name].slice(0, limits.name).join("") }), ...(patches.length && { paint: patches }) });
      this.marks.push(...marks.map((mark) => ({ ...cleaned({ ...mark, ...frame }), object: this.current })));
    }
    if (this.image && !this.outside(this.image).length) this.keepFor(this.image);
    this.selected = null;
    this.commit();
    return room.length === made.length;
  }

  #freeName() {
    const names = new Set(this.objects.map(({ name }) => name));
    for (let number = this.objects.length + 1; ; number += 1) if (!names.has(`Object ${number}`)) return `Object ${number}`;
  }

  selectObject(index) {
    if (!this.objects[index]) return;
    this.current = index;
    this.selected = null;
    this.onChange();
  }

  selectNextObject(step = 1) {
    this.selectObject((this.current + step + this.objects.length) % this.objects.length);
  }

  /** Change a name or a colour: a step; or `hidden` or `locked`: stored, but not a step. */
  setObject(index, change) {
    if (!this.objects[index]) return;
    const { name, ...others } = change;
    const clean = name === undefined ? others : { ...others, name: name.trim() || this.objects[index].name };
    this.#change(index, clean);
    if ("hidden" in change || "locked" in change) this.#store();
    else this.commit();
  }

  #change(index, change) {
    this.objects = this.objects.map((object, place) => (place === index ? { ...object, ...change } : object));
  }

  removeObject(index) {
    if (!this.objects[index] || this.objects[index].locked) return;
    this.marks = this.marks.filter((mark) => mark.object !== index);
    this.marks = this.marks.map((mark) => (mark.object > index ? { ...mark, object: mark.object - 1 } : mark));
    const { marks, size, finish, detail } = this;
    const rest = this.objects.filter((_, place) => place !== index);
    if (rest.length) this.#take({ objects: rest, marks, size, finish, detail }, this.#ids.filter((_, place) => place !== index));
    else this.#take({ objects: readText("{}").objects, marks, size, finish, detail });
    this.commit();
  }

  // --- finishing

  /** Change what is done to the masks of all objects, or of one (`object`), which then has its own. */
  setFinish(object, change, commit = true) {
    if (object === null) this.finish = cleanFinish({ ...this.finish, ...change });
    else this.#change(object, { finish: cleanFinish({ ...this.finishOf(object), ...change }) });
    if (commit) this.commit();
    else this.onChange();
  }

  /** Nothing is done to the masks of all objects any more; or to one what is done to all. */
  resetFinish(object) {
    if (object === null) this.finish = {};
    else this.#change(object, { finish: undefined });
    this.commit();
  }

  /** Lay a stroke over the selected object's paint, for this frame or for all. Returns whether the object, and a run, take it. */
  paint(area) {
    if (this.object.locked) return false;
    const frame = this.onlyThisFrame ? this.frame : undefined;
    const before = this.object.paint ?? [];
    const own = before.find((patch) => patch.frame === frame);
    const made = { ...encode(over(own ? decode(own) : null, area)), ...(frame !== undefined && { frame }) };
    const others = before.filter((patch) => patch !== own);
    this.#setPaint(this.current, frame === undefined ? [made, ...others] : [...others, made]);
    if (this.image && !this.size) this.keepFor(this.image);
    return this.commit();
  }

  #setPaint(object, patches) {
    this.#change(object, { paint: patches.length ? patches : undefined });
  }

  /** Remove the selected object's paint of the frame that is shown. */
  clearPaint() {
    if (this.object.locked) return;
    const gone = this.paintOf(this.current);
    this.#setPaint(this.current, (this.object.paint ?? []).filter((patch) => !gone.includes(patch)));
    this.commit();
  }

  /** Put an object a place up or down in the list. */
  moveObject(index, step) {
    const to = index + step;
    if (!this.objects[index] || !this.objects[to]) return;
    const order = [...this.objects.keys()];
    [order[index], order[to]] = [order[to], order[index]];
    this.objects = order.map((place) => this.objects[place]);
    this.#ids = order.map((place) => this.#ids[place]);
    this.marks = this.marks.map((mark) => ({ ...mark, object: order.indexOf(mark.object) }));
    this.current = order.indexOf(this.current);
    this.commit();
  }

  /** Copy the selected object's marks of this frame to the next frame, in place of those that it has there. */
  copyToNext() {
    const next = this.frame + 1;
    if (next >= this.frames || this.object.locked) return;
    const own = this.marks.filter((mark) => mark.object === this.current && mark.frame === this.frame);
    const rest = this.marks.filter((mark) => mark.object !== this.current || mark.frame !== next);
    this.marks = [...rest, ...own.map((mark) => ({ ...mark, frame: next }))];
    if (this.commit()) this.showFrame(next);
  }

  /** Make the selected object's marks of this frame those of all frames. */
  copyToAll() {
    if (this.object.locked) return;
    const own = this.marksOf(this.current).map(({ frame: _, ...mark }) => mark);
    this.marks = [...this.marks.filter((mark) => mark.object !== this.current), ...own];
    this.selected = null;
    this.commit();
  }

  // --- the image

  /** Indices of the marks of the shown frame that no pixel of the image has: they are not used. */
  outside(image) {
    return this.shown.filter((index) => isOutside(this.marks[index], image));
  }

  clearOutside(image) {
    this.#drop(new Set(this.outside(image)));
  }

  /** Scale all marks from the image that they were made on to this one. */
  scaleTo(image) {
    if (!this.size) return;
    const [across, down] = [image.width / this.size.width, image.height / this.size.height];
    this.marks = this.marks.map((mark) => {
      const place = { x: mark.x * across, y: mark.y * down };
      return { ...mark, ...cleaned({ ...mark, ...place, ...(isBox(mark) && { width: mark.width * across, height: mark.height * down }) }) };
    });
    this.objects.forEach((object, index) => {
      if (object.paint) this.#setPaint(index, object.paint.map((patch) => scaled(patch, across, down)));
      if (object.region) this.#change(index, { region: scaledRegion(object.region, across, down) ?? undefined });
    });
    this.keepFor(image);
    this.commit();
  }

  /**
   * Another image is shown. Marks of one with the same proportions are scaled to it, as a step of undo; paint is not, for it
   * would lose pixels without a word.
   * @returns {import("./text.js").Size}  the size that they had, where they were scaled
   */
  follow(image) {
    const { size } = this;
    if (!size || this.isNewer || !this.marks.length || this.objects.some(({ paint }) => paint)) return null;
    const isSame = size.width === image.width && size.height === image.height;
    if (isSame || !hasSameProportions(size, image)) return null;
    this.scaleTo(image);
    return size;
  }

  /** The image that marks are made on from now. */
  keepFor({ width, height }) {
    this.size = { width, height };
  }

  // --- steps

  /** End a gesture: one step of undo, however much was dragged. Returns whether a run takes it; if not, nothing has changed. */
  commit() {
    if (!this.#fits()) return false;
    const written = this.#written();
    if (written.text !== this.#committed.text) {
      this.#undo.push(this.#committed);
      if (this.#undo.length > MOST_STEPS) this.#undo.shift();
      this.#redo.length = 0;
      this.#committed = written;
      this.onCommit();
    }
    this.onChange();
    return true;
  }

  /** Whether a run takes what was changed; if not, it is as it was, and the reason is said. What was loaded too large can be changed. */
  #fits() {
    const problem = problemOf(this);
    if (!problem || this.#committed.problem) return true;
    this.cancel();
    this.onLimit(problem);
    return false;
  }

  /** What the workflow stores and undo does not take back. */
  #store() {
    this.#committed = this.#written();
    this.onCommit();
    this.onChange();
  }

  /** Discard what was changed since the last commit. */
  cancel() {
    this.#take(readText(this.#committed.text), this.#committed.ids);
    this.onChange();
  }

  undo() {
    this.#step(this.#undo, this.#redo, this.#committed);
  }

  redo() {
    this.#step(this.#redo, this.#undo, this.#redo.at(-1));
  }

  /** Go to another step; the object that `worked` changed is selected, so that the next click goes on with it. */
  #step(from, to, worked) {
    if (!from.length) return;
    to.push(this.#committed);
    const { text, ids, current } = from.pop();
    const eyes = new Map(this.#ids.map((id, index) => [id, { hidden: this.objects[index].hidden, locked: this.objects[index].locked }]));
    this.#take(readText(text), ids);
    this.objects = this.objects.map((object, index) => ({ ...object, ...eyes.get(ids[index]) }));
    const place = ids.indexOf(worked.ids[worked.current]);
    this.current = place < 0 ? Math.min(current, this.objects.length - 1) : place;
    this.#committed = this.#written();
    this.onCommit();
    this.onChange();
  }
}

/** Whether no pixel of an image lies under a mark; as the node sees it. */
export function isOutside(mark, { width, height }) {
  if (isBox(mark)) return mark.x >= width || mark.y >= height || mark.x + mark.width <= 0 || mark.y + mark.height <= 0;
  return mark.x < 0 || mark.y < 0 || mark.x > width || mark.y > height;
}

/** Whether one size is the other scaled, but for the rounding to whole pixels. */
export function hasSameProportions(one, other) {
  const [small, large] = one.width < other.width ? [one, other] : [other, one];
  const scale = large.width / small.width;
  return Math.abs(large.height - small.height * scale) <= scale;
}

/** A number of the image's pixels as it is stored. */
export { rounded };

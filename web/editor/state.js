/** What the prompt editor holds: marks in pixels of the image, the chosen candidate, a selection, and undo. No DOM. */

export const VERSION = 1;
export const CANDIDATES = ["best", "smallest", "middle", "largest"];
const MOST_STEPS = 200;

/**
 * @typedef {{x: number, y: number, label: 0 | 1, frame?: number}} Point  label 1: on the object, 0: not on it
 * @typedef {{x: number, y: number, width: number, height: number, frame?: number}} Box
 * @typedef {Point | Box} Mark  one for every frame, or, with `frame`, for that frame
 */

/** A hundredth of a pixel is more than SAM tells apart, and keeps the text short. */
const rounded = (number) => Math.round(number * 100) / 100;

/** Whether a mark is a box. */
export const isBox = (mark) => "width" in mark;

/** A mark with its numbers rounded and its keys in order, or null where it is none. */
function cleaned(mark) {
  const numbers = (...keys) => keys.every((key) => Number.isFinite(mark?.[key]));
  if (!numbers("x", "y")) return null;
  const [x, y] = [mark.x, mark.y].map(rounded);
  const frame = Number.isInteger(mark.frame) && mark.frame >= 0 ? { frame: mark.frame } : {};
  if (!isBox(mark)) return { x, y, label: mark.label === 0 ? 0 : 1, ...frame };
  if (!numbers("width", "height") || mark.width <= 0 || mark.height <= 0) return null;
  const [width, height] = [mark.width, mark.height].map((side) => Math.max(0.01, rounded(side))); // rounding leaves it a box
  return { x, y, width, height, ...frame };
}

/**
 * Read the widget's text; what cannot be read counts as empty, for a widget must load.
 * @param {string} text
 * @returns {{marks: Mark[], candidate: string}}
 */
export function parse(text) {
  try {
    const value = JSON.parse(text || "{}");
    const marks = Array.isArray(value?.marks) ? value.marks.map(cleaned).filter(Boolean) : [];
    return { marks, candidate: CANDIDATES.includes(value?.candidate) ? value.candidate : "best" };
  } catch {
    return { marks: [], candidate: "best" };
  }
}

/** The widget's text. @param {{marks: Mark[], candidate: string}} state */
export function serialise({ marks, candidate }) {
  if (!marks.length && candidate === "best") return "{}";
  return JSON.stringify({ version: VERSION, marks: marks.map(cleaned), candidate });
}

/** The editor's state; `onChange` is called after every change, `onCommit` after those that undo can take back. */
export class EditorState {
  constructor({ onChange = () => {}, onCommit = () => {} } = {}) {
    Object.assign(this, parse("{}"), { onChange, onCommit });
    this.selected = null;
    this.frame = 0;
    this.onlyThisFrame = false;
    this.#undo = [];
    this.#redo = [];
    this.#committed = this.text;
  }

  #undo;
  #redo;
  #committed;

  /** What the widget stores. */
  get text() {
    return serialise(this);
  }

  /** Indices of the marks that count for the frame that is shown. */
  get shown() {
    return [...this.marks.keys()].filter((index) => (this.marks[index].frame ?? this.frame) === this.frame);
  }

  /** The marks of the frame that is shown, as a text of their own (the server need not know of frames). */
  get shownText() {
    const marks = this.shown.map((index) => ({ ...this.marks[index], frame: undefined }));
    return serialise({ marks, candidate: this.candidate });
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  get canRedo() {
    return this.#redo.length > 0;
  }

  /** Take over a text from outside: a loaded workflow, a pasted node, ComfyUI's own undo. History starts anew. */
  load(text) {
    const state = parse(text);
    if (serialise(state) === this.text) return;
    Object.assign(this, state, { selected: null });
    this.#undo.length = this.#redo.length = 0;
    this.#committed = this.text;
    this.onChange();
  }

  /** Add a mark for this frame or for all, and select it. Without `commit`, more of the same gesture is to come. */
  add(mark, commit = true) {
    const made = cleaned(this.onlyThisFrame ? { ...mark, frame: this.frame } : mark);
    if (!made) return;
    this.marks.push(made);
    this.selected = this.marks.length - 1;
    if (commit) this.commit();
    else this.onChange();
  }

  /** Replace a mark's place; nothing where it is gone, as when undo comes in the middle of a drag. */
  update(index, change) {
    const mark = this.marks[index] && cleaned({ ...this.marks[index], ...change });
    if (!mark) return;
    this.marks[index] = mark;
    this.onChange();
  }

  remove(index) {
    if (!this.marks[index]) return;
    this.marks.splice(index, 1);
    this.selected = null;
    this.commit();
  }

  clear() {
    const gone = new Set(this.shown);
    this.marks = this.marks.filter((_, index) => !gone.has(index));
    this.selected = null;
    this.commit();
  }

  select(index) {
    this.selected = index;
    this.onChange();
  }

  /** Select the next of the shown marks, or the one before; after the last comes none. Returns whether one is selected. */
  selectNext(step = 1) {
    const shown = this.shown;
    const place = this.selected === null ? (step > 0 ? 0 : shown.length - 1) : shown.indexOf(this.selected) + step;
    this.select(shown[place] ?? null);
    return this.selected !== null;
  }

  chooseCandidate(candidate) {
    this.candidate = CANDIDATES.includes(candidate) ? candidate : "best";
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

  /** End a gesture: one step of undo, however much was dragged. */
  commit() {
    if (this.text !== this.#committed) {
      this.#undo.push(this.#committed);
      if (this.#undo.length > MOST_STEPS) this.#undo.shift();
      this.#redo.length = 0;
      this.#committed = this.text;
      this.onCommit();
    }
    this.onChange();
  }

  /** Give up what was changed since the last commit. */
  cancel() {
    Object.assign(this, parse(this.#committed), { selected: null });
    this.onChange();
  }

  undo() {
    this.#step(this.#undo, this.#redo);
  }

  redo() {
    this.#step(this.#redo, this.#undo);
  }

  #step(from, to) {
    if (!from.length) return;
    to.push(this.#committed);
    this.#committed = from.pop();
    Object.assign(this, parse(this.#committed), { selected: null });
    this.onCommit();
    this.onChange();
  }
}

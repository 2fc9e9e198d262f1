/** What is offered as like an object: segments by their similarity, from a limit on, but for those that were left out or are objects
 * already. No DOM. */

/** @typedef {import("./segments.js").Segment & {alike: number}} Offer */

const FLOOR = 0.6;

/** Whether two patches are the same pixels. */
export const isSamePatch = (one, other) => one.x === other.x && one.y === other.y && one.width === other.width && one.runs === other.runs;

/** The patch of a segment, as an object's paint has it. */
export const patchOfSegment = ({ x, y, width, height, runs }) => ({ x, y, width, height, runs });

export class Offers {
  #refused = []; // {index, text}: with the editor's text of then, since a change of that is a later step
  #restored = [];

  /** @param {Offer[]} list  the most similar first */
  constructor(list) {
    this.list = list;
    this.limit = naturalLimit(list.map(({ alike }) => alike));
  }

  /**
   * Indices of what is offered beside the objects that there are.
   * @param {import("./text.js").EditorObject[]} objects
   * @param {number} frame  that is shown: an object of another one is none here
   */
  open(objects, frame = 0) {
    const patches = objects.flatMap(({ paint }) => paint ?? []).filter((patch) => (patch.frame ?? frame) === frame);
    const refused = new Set(this.#refused.map(({ index }) => index));
    const isOpen = (index) => !refused.has(index) && !patches.some((patch) => isSamePatch(patch, this.list[index]));
    return [...this.list.keys()].filter((index) => this.list[index].alike >= this.limit && isOpen(index));
  }

  /** Offer more, or fewer: by one that is not offered now, or is. */
  step(more) {
    const scores = this.list.map(({ alike }) => alike);
    const count = scores.filter((score) => score >= this.limit).length;
    this.limit = scores[more ? count : count - 2] ?? (more ? this.limit : Infinity);
  }

  /** Offer one no longer. @param {number} index @param {string} text  the editor's */
  refuse(index, text) {
    this.#refused.push({ index, text });
    this.goOn();
  }

  /** Take back a refusal, where that was the last step. Returns whether it was. */
  undo(text) {
    if (!this.canUndo(text)) return false;
    this.#restored.push(this.#refused.pop());
    return true;
  }

  redo(text) {
    if (!this.canRedo(text)) return false;
    this.#refused.push(this.#restored.pop());
    return true;
  }

  canUndo(text) {
    return this.#refused.length > 0 && this.#refused.at(-1).text === text;
  }

  canRedo(text) {
    return this.#restored.length > 0 && this.#restored.at(-1).text === text;
  }

  /** Something else was done: refusals that were taken back cannot be done again. */
  goOn() {
    this.#restored = [];
  }
}

/**
 * The similarity from which on segments are of one kind: above the widest gap between them. The object itself, whose similarity is 1,
 * is of the kind, so that there may be no other; the gap below it is half as wide as it is, for nothing is as similar as the same.
 * What is less similar than the floor is never offered at first.
 * @param {number[]} scores  the highest first
 */
export function naturalLimit(scores) {
  const clipped = [...scores, FLOOR].map((score) => Math.max(score, FLOOR));
  const gaps = clipped.map((score, index) => (index ? clipped[index - 1] - score : (1 - score) / 2));
  const cut = gaps.indexOf(Math.max(...gaps));
  return scores[cut - 1] ?? Infinity;
}

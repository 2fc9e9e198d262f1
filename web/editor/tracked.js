/** The masks of SAM Track's last run: whose they are, on which frames they are still those of the marks, fetched as they are needed. No DOM. */

import { cleaned, readText } from "./text.js";

const MOST_CACHED = 96; // masks
const GONE = 404;

/**
 * What a run of SAM Track has left, as the node keeps it.
 * @typedef {object} Track
 * @property {string} file  the server's name for the masks
 * @property {string} direction
 * @property {{name: string | number, seen: string, computed: number}[]} objects  `seen` has a 1 for each frame with a mask
 * @property {string} prompts  the editor's text of that run
 * @typedef {{row: number, seen: string, from: number, isSeen: boolean, isOld: boolean, differs: boolean}} Standing
 *   how an object stands on a frame: its place among the tracked ones; the frames where it was seen; the first frame on which its marks
 *   differ from those of the run; whether it was seen on this frame; whether the mask there is of other marks; and whether the marks
 *   of this very frame are others
 */

/** The marks of each frame as texts. Marks of all frames are those of the first one where there are no others, as SAM Track has it. */
function byFrame(marks) {
  const frames = new Map();
  for (const mark of marks) {
    const { frame = 0, ...place } = cleaned(mark);
    frames.set(frame, `${frames.get(frame) ?? ""}${JSON.stringify(place)}`);
  }
  return frames;
}

/** The frames on which marks differ, in order. */
export function changes(before, now) {
  const [one, other] = [byFrame(before), byFrame(now)];
  const frames = new Set([...one.keys(), ...other.keys()]);
  return [...frames].filter((frame) => one.get(frame) !== other.get(frame)).sort((a, b) => a - b);
}

export class Tracked {
  #client;
  #decode;
  #onChange;
  #key = null;
  #track = null;
  #before = { objects: [], marks: [] };
  #places = new Map(); // an object's id -> its place in the text of the run
  #ids = null;
  #found = new Map();
  #wanted = [];
  #working = false;

  /**
   * @param {object} options
   * @param {{tracked: (question: object) => Promise<{png: Blob, area: number}>}} options.client
   * @param {(png: Blob) => Promise<ImageBitmap>} options.decode
   * @param {() => void} options.onChange  a mask has come, or all have gone
   */
  constructor({ client, decode, onChange }) {
    this.#client = client;
    this.#decode = decode;
    this.#onChange = onChange;
  }

  /** Take what a run has left, or null. Returns whether it is another one. @param {Track | null} track */
  take(track) {
    const key = track && JSON.stringify(track);
    if (key === this.#key) return false;
    this.forget();
    this.#key = key;
    this.#track = track;
    this.#before = readText(track?.prompts);
    this.#places.clear();
    this.#ids = null;
    return true;
  }

  forget() {
    for (const { bitmap } of this.#found.values()) bitmap.close();
    this.#found.clear();
    this.#wanted = [];
  }

  /** How an object of the editor stands on a frame; null where it was not tracked. @returns {Standing | null} */
  standing(state, object, frame) {
    const track = this.#track;
    if (!track) return null;
    if (state.ids !== this.#ids) this.#match(state);
    const place = this.#places.get(state.ids[object]);
    const row = place === undefined ? -1 : track.objects.findIndex(({ name }) => name === place + 1 || (name === "#1" && place === 0));
    if (row < 0 || track.objects[row].seen.length < state.frames) return null;
    const { seen } = track.objects[row];
    const ofObject = (marks, index) => marks.filter((mark) => mark.object === index);
    const changed = changes(ofObject(this.#before.marks, place), ofObject(state.marks, object));
    const from = changed[0] ?? Infinity;
    const isOld = track.direction === "forward" ? frame >= from : from < Infinity;
    return { row, seen, from, isSeen: seen[frame] === "1", isOld, differs: changed.includes(frame) };
  }

  /** Who is who: objects that are known stay so, whatever their names; all of a text that was loaded are found by their names. */
  #match({ ids, objects }) {
    this.#ids = ids;
    if (ids.some((id) => this.#places.has(id))) return;
    const seen = new Map(); // how often a name has come
    const nth = ({ name }) => {
      seen.set(name, (seen.get(name) ?? 0) + 1);
      return JSON.stringify([name, seen.get(name)]);
    };
    const before = this.#before.objects.map(nth);
    seen.clear();
    objects.map(nth).forEach((key, index) => {
      if (before.includes(key)) this.#places.set(ids[index], before.indexOf(key));
    });
  }

  /** What to ask for a mask, and the key that it is found by. */
  item({ row }, frame, colour, form) {
    const question = { track: { file: this.#track.file, object: row, frame }, colour, form };
    return { key: JSON.stringify(question), question };
  }

  /** @returns {{bitmap: ImageBitmap, area: number} | null} */
  find(key) {
    return this.#found.get(key) ?? null;
  }

  get busy() {
    return this.#working;
  }

  /** Say which masks are wanted now. @param {{key: string, question: object}[]} items */
  want(items) {
    this.#wanted = items.filter(({ key }) => !this.#found.has(key));
    this.#work();
  }

  /** One mask after another, always of those that are wanted at that moment. */
  async #work() {
    if (this.#working) return;
    this.#working = true;
    while (this.#wanted.length) {
      const { key, question } = this.#wanted.shift();
      try {
        const { png, area } = await this.#client.tracked(question);
        this.#keep(key, { bitmap: await this.#decode(png), area });
      } catch (error) {
        this.#wanted = []; // the next change asks again
        if (error.status === GONE) {
          this.forget();
          this.#track = null;
        }
      }
      this.#onChange();
    }
    this.#working = false;
  }

  #keep(key, found) {
    this.#found.get(key)?.bitmap.close();
    this.#found.set(key, found);
    this.#wanted = this.#wanted.filter((item) => item.key !== key);
    for (const old of [...this.#found.keys()].slice(0, Math.max(0, this.#found.size - MOST_CACHED))) {
      this.#found.get(old).bitmap.close();
      this.#found.delete(old);
    }
  }
}

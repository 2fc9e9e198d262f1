/** A large image by a pyramid: tiles of the level that fits the zoom, loaded as they are seen. No DOM. */

import { contract } from "./contract.js";

const MOST_TILES = 160; // bitmaps of a megabyte
const AT_ONCE = 6;
const COARSER = 2; // levels whose tiles stand in for those that are not there yet

/** Whether an image has so many pixels that the browser is not to have all of them at once. */
export const isLarge = ({ width, height }) => width * height > (contract.pyramid?.pixels ?? Infinity);

/** It stands for the image: it has its size, and draws itself. */
export class Pyramid {
  #tiles = new Map(); // key -> ImageBitmap, the one that was drawn last at the end
  #loading = new Set();
  #failed = new Set();
  #wanted = [];
  #isOver = false;
  #side;
  #load;
  #onChange;

  /**
   * @param {object} options
   * @param {number} options.width
   * @param {number} options.height
   * @param {(level: number, column: number, row: number) => Promise<ImageBitmap>} options.load
   * @param {() => void} options.onChange  a tile has come
   */
  constructor({ width, height, load, onChange }) {
    Object.assign(this, { width, height });
    this.#side = contract.pyramid.tile;
    this.#load = load;
    this.#onChange = onChange;
    this.levels = 1;
    while (Math.max(width, height) / 2 ** (this.levels - 1) > this.#side) this.levels += 1;
  }

  /** Load the whole image as one tile. Resolves to whether it is there. */
  async begin() {
    await this.#one(this.levels - 1, 0, 0);
    return this.#tiles.size > 0;
  }

  /** The level for a scale: the coarsest that has a pixel for each of the canvas. */
  levelFor(scale) {
    return Math.min(this.levels - 1, Math.max(0, Math.floor(Math.log2(1 / scale) + 1e-9)));
  }

  /** The tiles of a level that have a part of an area of the image, the nearest to its middle first: [column, row]. */
  tilesIn({ x, y, width, height }, level) {
    const size = this.#side * 2 ** level;
    const ends = (start, length, whole) => {
      const last = Math.ceil(whole / size) - 1;
      return [Math.max(0, Math.floor(start / size)), Math.min(last, Math.ceil((start + length) / size) - 1)];
    };
    const [[left, right], [top, bottom]] = [ends(x, width, this.width), ends(y, height, this.height)];
    const found = [];
    for (let row = top; row <= bottom; row += 1) for (let column = left; column <= right; column += 1) found.push([column, row]);
    const far = ([column, row]) => Math.hypot((column + 0.5) * size - x - width / 2, (row + 0.5) * size - y - height / 2);
    return found.sort((a, b) => far(a) - far(b));
  }

  /**
   * Draw what is there of an area, and load what is not.
   * @param {CanvasRenderingContext2D} context  in pixels of the image
   * @param {number} scale  canvas pixels per pixel of the image
   * @param {{x: number, y: number, width: number, height: number}} area
   */
  draw(context, scale, area) {
    const level = this.levelFor(scale);
    this.#put(context, this.levels - 1, 0, 0);
    const wanted = [];
    for (let one = Math.min(this.levels - 2, level + COARSER); one >= level; one -= 1) {
      for (const [column, row] of this.tilesIn(area, one)) {
        if (!this.#put(context, one, column, row) && one === level) wanted.push([one, column, row]);
      }
    }
    this.#wanted = wanted;
    this.#work();
  }

  /** Draw a tile. Returns whether it is there. */
  #put(context, level, column, row) {
    const key = `${level} ${column} ${row}`;
    const bitmap = this.#tiles.get(key);
    if (!bitmap) return false;
    this.#tiles.delete(key);
    this.#tiles.set(key, bitmap);
    const size = this.#side * 2 ** level;
    const [x, y] = [column * size, row * size];
    // The last pixel of a level may stand for fewer of the image's.
    const [width, height] = [Math.min(bitmap.width * 2 ** level, this.width - x), Math.min(bitmap.height * 2 ** level, this.height - y)];
    context.drawImage(bitmap, 0, 0, width / 2 ** level, height / 2 ** level, x, y, width, height);
    return true;
  }

  /** Load some of what is wanted at that moment at a time. */
  #work() {
    while (this.#loading.size < AT_ONCE && this.#wanted.length) this.#one(...this.#wanted.shift());
  }

  async #one(level, column, row) {
    const key = `${level} ${column} ${row}`;
    if (this.#loading.has(key) || this.#failed.has(key) || this.#tiles.has(key)) return;
    this.#loading.add(key);
    try {
      this.#keep(key, await this.#load(level, column, row));
    } catch {
      this.#failed.add(key); // a coarser one stays in its place
    }
    this.#loading.delete(key);
    if (this.#isOver) return;
    this.#onChange();
    this.#work();
  }

  #keep(key, bitmap) {
    if (this.#isOver) return bitmap.close();
    this.#tiles.set(key, bitmap);
    const base = `${this.levels - 1} 0 0`;
    for (const old of [...this.#tiles.keys()].filter((one) => one !== base).slice(0, Math.max(0, this.#tiles.size - MOST_TILES))) {
      this.#tiles.get(old).close();
      this.#tiles.delete(old);
    }
  }

  /** Let go of all tiles. */
  dispose() {
    this.#isOver = true;
    this.#wanted = [];
    for (const bitmap of this.#tiles.values()) bitmap.close();
    this.#tiles.clear();
  }
}

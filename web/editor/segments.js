/** All segments of an image: which one is under a place, and its pixels, small enough to be drawn at every move. No DOM. */

const ADD = 1;
const TINT = 115; // of 255

/**
 * @typedef {{x: number, y: number, width: number, height: number, runs: string, score: number, area: number}} Segment
 *   a patch of its box (see utils/patches.py)
 */

/** The pixels that a patch adds, as starts and ends in its box, row by row: [start, end, start, end, ...]. */
export function spansOf(runs) {
  const spans = [];
  let [place, number, shift] = [0, 0, 0];
  const coded = atob(runs);
  for (let i = 0; i < coded.length; i += 1) {
    const byte = coded.charCodeAt(i);
    number += (byte & 127) * 2 ** shift;
    shift += 7;
    if (byte > 127) continue;
    const length = Math.floor(number / 3);
    if (number % 3 === ADD) spans.push(place, place + length);
    place += length;
    number = shift = 0;
  }
  return spans;
}

/** Call `visit(row, from, to)` for each part of the spans that lies in one row of a box. */
function eachRow(spans, width, visit) {
  for (let i = 0; i < spans.length; i += 2) {
    for (let start = spans[i]; start < spans[i + 1];) {
      const row = Math.floor(start / width);
      const end = Math.min(spans[i + 1], (row + 1) * width);
      visit(row, start - row * width, end - row * width);
      start = end;
    }
  }
}

export class Segments {
  #labels = null;
  #spans = new Map();

  /** @param {{width: number, height: number, segments: Segment[]}} found  largest first: the smallest is on top */
  constructor({ width, height, segments }) {
    Object.assign(this, { width, height, list: segments });
  }

  /** For each pixel of the image the segment on top there, by its number from 1. */
  #label() {
    this.#labels = new Uint16Array(this.width * this.height);
    this.list.forEach((segment, index) => this.#fill(segment, index + 1));
  }

  #fill({ x, y, width, runs }, label) {
    eachRow(spansOf(runs), width, (row, from, to) => {
      const start = (y + row) * this.width + x;
      this.#labels.fill(label, start + from, start + to);
    });
  }

  /** The segment at a place of the image, by its index; null where there is none. */
  at({ x, y }) {
    const [column, row] = [Math.floor(x), Math.floor(y)];
    const isOn = column >= 0 && row >= 0 && column < this.width && row < this.height;
    if (this.#labels === null) this.#label();
    const label = isOn ? this.#labels[row * this.width + column] : 0;
    return label ? label - 1 : null;
  }

  /** Whether a segment has the pixel at a place of the image, whatever lies on top there. */
  has(index, { x, y }) {
    const segment = this.list[index];
    const [column, row] = [Math.floor(x) - segment.x, Math.floor(y) - segment.y];
    if (column < 0 || row < 0 || column >= segment.width || row >= segment.height) return false;
    if (!this.#spans.has(index)) this.#spans.set(index, spansOf(segment.runs));
    const at = row * segment.width + column;
    const spans = this.#spans.get(index);
    let [low, high] = [0, spans.length / 2];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (spans[2 * middle + 1] <= at) low = middle + 1;
      else high = middle;
    }
    return low < spans.length / 2 && spans[2 * low] <= at;
  }

  /**
   * The whole of a segment, as pixels of its box: its colour inside, opaque at its edge, clear outside.
   * @param {number} index
   * @param {[number, number, number]} colour
   * @param {number} step  every how manieth pixel
   * @returns {{data: Uint8ClampedArray, width: number, height: number}}
   */
  pixels(index, colour, step) {
    const segment = this.list[index];
    const [width, height] = [segment.width, segment.height].map((side) => Math.ceil(side / step));
    const inside = new Uint8Array(width * height);
    eachRow(spansOf(segment.runs), segment.width, (row, from, to) => {
      if (row % step) return;
      const start = (row / step) * width;
      inside.fill(1, start + Math.ceil(from / step), start + Math.ceil(to / step));
    });
    return { data: tinted(inside, width, height, colour), width, height };
  }
}

function tinted(inside, width, height, [red, green, blue]) {
  const data = new Uint8ClampedArray(4 * inside.length);
  const pixels = new Uint32Array(data.buffer);
  const paint = (alpha) => new Uint32Array(new Uint8ClampedArray([red, green, blue, alpha]).buffer)[0];
  const [body, edge] = [paint(TINT), paint(255)];
  for (let row = 0, at = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1, at += 1) {
      if (!inside[at]) continue;
      const within = row && column && row < height - 1 && column < width - 1;
      pixels[at] = within && inside[at - 1] && inside[at + 1] && inside[at - width] && inside[at + width] ? body : edge;
    }
  }
  return data;
}

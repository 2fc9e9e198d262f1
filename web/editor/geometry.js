/** Where things are: image pixels <-> the editor's pixels, what lies under the pointer, and how a drag moves it. No DOM. */

import { isBox } from "./state.js";

const LEAST_SCALE = 0.02;
const MOST_SCALE = 64;
// Parts of the reach at which a point is drawn as a disc, and a box as a line.
const DISC = 0.8;
const LINE = 0.3;
const INSIDE_OF_BOX = 4; // a box is reached from its edge as far as this part of its side: the rest stays its inside

/** How the image lies in the editor: editor pixel = image pixel * scale + offset. */
export class View {
  constructor() {
    this.scale = 1;
    this.x = 0;
    this.y = 0;
  }

  /** Show the whole image, centred. Sizes are {width, height}. */
  fit(image, stage, margin = 0) {
    const room = { width: Math.max(1, stage.width - 2 * margin), height: Math.max(1, stage.height - 2 * margin) };
    this.scale = Math.min(room.width / image.width, room.height / image.height);
    this.x = (stage.width - image.width * this.scale) / 2;
    this.y = (stage.height - image.height * this.scale) / 2;
  }

  /** Whether it is as `fit` has left it. */
  isFitted(image, stage, margin = 0) {
    const fitted = new View();
    fitted.fit(image, stage, margin);
    return fitted.scale === this.scale && fitted.x === this.x && fitted.y === this.y;
  }

  toImage({ x, y }) {
    return { x: (x - this.x) / this.scale, y: (y - this.y) / this.scale };
  }

  toStage({ x, y }) {
    return { x: x * this.scale + this.x, y: y * this.scale + this.y };
  }

  /** Zoom by `factor` so that what is under `at` (editor pixels) stays there. */
  zoomAt(at, factor) {
    const fixed = this.toImage(at);
    this.scale = Math.min(MOST_SCALE, Math.max(LEAST_SCALE, this.scale * factor));
    this.x = at.x - fixed.x * this.scale;
    this.y = at.y - fixed.y * this.scale;
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
  }
}

/** The nearest place inside the image; its top left where it has no room at all. */
export function clamped({ x, y }, image) {
  return { x: Math.max(Math.min(x, image.width), 0), y: Math.max(Math.min(y, image.height), 0) };
}

/** Whether a place is on the image. */
export function isInside({ x, y }, image) {
  return x >= 0 && y >= 0 && x <= image.width && y <= image.height;
}

/** The box between two corners, whichever they are. */
export function boxBetween(a, b) {
  return { x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), width: Math.abs(a.x - b.x), height: Math.abs(a.y - b.y) };
}

/** The part of a box at a place: two letters for a corner ("nw"), one for an edge ("e"), "body", or null. */
function partOf(box, at, reach) {
  const [left, top, right, bottom] = [box.x, box.y, box.x + box.width, box.y + box.height];
  if (at.x < left - reach || at.x > right + reach || at.y < top - reach || at.y > bottom + reach) return null;
  const vertical = nearer(at.y, top, bottom, reach, "n", "s");
  const horizontal = nearer(at.x, left, right, reach, "w", "e");
  return vertical + horizontal || "body";
}

function nearer(value, low, high, reach, lowName, highName) {
  const [toLow, toHigh] = [Math.abs(value - low), Math.abs(value - high)];
  const isInside = value > low && value < high;
  if (Math.min(toLow, toHigh) > (isInside ? Math.min(reach, (high - low) / INSIDE_OF_BOX) : reach)) return "";
  return toLow <= toHigh ? lowName : highName;
}

/**
 * What lies under the pointer: points before edges and corners, those before insides; of several the last drawn. The marks of
 * the object that is worked on come before all others and are reached from nearby. Those of other objects are reached where
 * they are drawn, and their boxes not at all while the object waits for its first mark.
 * @param {import("./state.js").Mark[]} marks
 * @param {number[]} shown  indices of the marks that can be hit
 * @param {{x: number, y: number}} at  in image pixels
 * @param {number} reach  in image pixels
 * @param {{object: number, isEmpty: boolean} | null} [worked]  the object that is worked on; null: all are alike
 * @returns {{index: number, part: string} | null}
 */
export function hit(marks, shown, at, reach, worked = null) {
  const order = [...shown].reverse();
  const isOwn = (index) => worked === null || marks[index].object === worked.object;
  const own = order.filter(isOwn);
  const others = order.filter((index) => !isOwn(index));
  const points = others.filter((index) => !isBox(marks[index]));
  return (
    hitEdge(marks, own, at, reach, reach) ??
    hitEdge(marks, worked?.isEmpty ? points : others, at, reach * DISC, reach * LINE) ??
    smallestBody((worked?.isEmpty ? own : order).filter((index) => isBox(marks[index]) && partOf(marks[index], at, 0)), marks)
  );
}

/** A point, or a corner or an edge of a box, at a place. */
function hitEdge(marks, order, at, disc, line) {
  const point = order.find((index) => !isBox(marks[index]) && Math.hypot(marks[index].x - at.x, marks[index].y - at.y) <= disc);
  if (point !== undefined) return { index: point, part: "point" };
  const parts = order.filter((index) => isBox(marks[index])).map((index) => ({ index, part: partOf(marks[index], at, line) }));
  return parts.find(({ part }) => part && part !== "body") ?? null;
}

function smallestBody(found, marks) {
  const area = (index) => marks[index].width * marks[index].height;
  const smallest = found.reduce((best, one) => (best !== null && area(best) <= area(one) ? best : one), null);
  return smallest === null ? null : { index: smallest, part: "body" };
}

/**
 * Where a mark goes when one of its parts is dragged.
 * @param {import("./state.js").Mark} mark  as it was when the drag began
 * @param {string} part  from `hit`
 * @param {{x: number, y: number}} by  how far the pointer has gone, in image pixels
 * @param {{width: number, height: number}} image  marks stay on it
 */
export function dragged(mark, part, by, image) {
  if (!isBox(mark)) return clamped({ x: mark.x + by.x, y: mark.y + by.y }, image);
  if (part === "body") {
    const room = { width: image.width - mark.width, height: image.height - mark.height };
    return clamped({ x: mark.x + by.x, y: mark.y + by.y }, room);
  }
  const near = { x: part.includes("w") ? mark.x + by.x : mark.x, y: part.includes("n") ? mark.y + by.y : mark.y };
  const far = { x: mark.x + mark.width, y: mark.y + mark.height };
  if (part.includes("e")) far.x += by.x;
  if (part.includes("s")) far.y += by.y;
  const box = boxBetween(clamped(near, image), clamped(far, image));
  return box.width > 0 && box.height > 0 ? box : {};
}

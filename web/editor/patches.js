/** Paint on a mask: patches of pixels to add or to remove, run-length coded as text; `utils/patches.py` is the other half. No DOM. */

import { contract } from "./contract.js";

export const LEAVE = 0;
export const ADD = 1;
export const REMOVE = 2;
const BASE64 = /^[A-Za-z0-9+/]*={0,2}$/; // `atob` takes spaces, and no padding, which the node does not

/**
 * @typedef {{x: number, y: number, width: number, height: number, runs: string, frame?: number}} Patch  as the text has it
 * @typedef {{x: number, y: number, width: number, height: number, kinds: Uint8Array}} Area  each pixel's kind, row by row
 */

/** A patch with its keys in order, or null where it is not one. @returns {Patch | null} */
export function cleanPatch(value) {
  const { x, y, width, height, runs, frame } = value ?? {};
  const { side, pixels } = contract.limits;
  const isWhole = (number, low) => Number.isInteger(number) && number >= low && !(number > side);
  if (!isWhole(x, 0) || !isWhole(y, 0) || !isWhole(width, 1) || !isWhole(height, 1) || width * height > pixels) return null;
  if (typeof runs !== "string" || runs.length % 4 || !BASE64.test(runs) || (frame !== undefined && !isWhole(frame, 0))) return null;
  const patch = { x, y, width, height, runs, ...(frame !== undefined && { frame }) };
  return read(patch) ? patch : null;
}

/** @param {Patch} patch  that `cleanPatch` has passed @returns {Area} */
export function decode(patch) {
  const { x, y, width, height } = patch;
  return { x, y, width, height, kinds: read(patch) };
}

let latest = { patch: null, kinds: null }; // a patch is read when it is loaded, and again when it is painted on

/** The pixels' kinds, or null where the runs are not right. */
function read(patch) {
  if (latest.patch?.runs === patch.runs && latest.patch.width === patch.width && latest.patch.height === patch.height) return latest.kinds;
  const kinds = new Uint8Array(patch.width * patch.height);
  let coded;
  try {
    coded = atob(patch.runs);
  } catch {
    return null;
  }
  let [place, number, shift] = [0, 0, 0];
  for (let i = 0; i < coded.length; i += 1) {
    const byte = coded.charCodeAt(i);
    number += (byte & 127) * 2 ** shift;
    shift += 7;
    if (byte & 128) continue;
    const length = Math.floor(number / 3);
    if (shift > 28 || length < 1 || place + length > kinds.length) return null;
    kinds.fill(number % 3, place, (place += length));
    number = shift = 0;
  }
  if (shift || place !== kinds.length) return null;
  latest = { patch, kinds };
  return kinds;
}

/** @param {Area} area @returns {Patch} */
export function encode({ x, y, width, height, kinds }) {
  const bytes = [];
  for (let start = 0; start < kinds.length;) {
    let end = start + 1;
    while (end < kinds.length && kinds[end] === kinds[start]) end += 1;
    let number = 3 * (end - start) + kinds[start];
    for (; number > 127; number = Math.floor(number / 128)) bytes.push((number & 127) | 128);
    bytes.push(number);
    start = end;
  }
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.slice(i, i + 8192));
  return { x, y, width, height, runs: btoa(text) };
}

/**
 * Lay a stroke over what has been painted: the later one wins.
 * @param {Area | null} before
 * @param {Area} stroke
 * @returns {Area}
 */
export function over(before, stroke) {
  if (!before) return stroke;
  const x = Math.min(before.x, stroke.x);
  const y = Math.min(before.y, stroke.y);
  const width = Math.max(before.x + before.width, stroke.x + stroke.width) - x;
  const height = Math.max(before.y + before.height, stroke.y + stroke.height) - y;
  const kinds = new Uint8Array(width * height);
  for (const area of [before, stroke]) {
    for (let row = 0; row < area.height; row += 1) {
      const start = (area.y - y + row) * width + area.x - x;
      for (let column = 0; column < area.width; column += 1) {
        const kind = area.kinds[row * area.width + column];
        if (kind !== LEAVE) kinds[start + column] = kind;
      }
    }
  }
  return { x, y, width, height, kinds };
}

/**
 * A brush stroke: the pixels whose middle is within `radius` of the line through `points`.
 * @param {{x: number, y: number}[]} points  in image pixels
 * @param {number} radius
 * @param {number} kind
 * @param {{width: number, height: number}} image
 * @returns {Area | null}  null where no pixel of the image is touched
 */
export function stroke(points, radius, kind, image) {
  const xs = points.map((point) => point.x);
  const ys = points.map((point) => point.y);
  const least = (values) => values.reduce((a, b) => Math.min(a, b));
  const most = (values) => values.reduce((a, b) => Math.max(a, b));
  const x = Math.max(0, Math.floor(least(xs) - radius));
  const y = Math.max(0, Math.floor(least(ys) - radius));
  const width = Math.min(image.width, Math.ceil(most(xs) + radius)) - x;
  const height = Math.min(image.height, Math.ceil(most(ys) + radius)) - y;
  if (width < 1 || height < 1) return null;
  const area = { x, y, width, height, kinds: new Uint8Array(width * height) };
  points.forEach((point, index) => segment(area, points[Math.max(0, index - 1)], point, radius, kind));
  return area.kinds.some((one) => one !== LEAVE) ? area : null;
}

/** Fill the pixels of an area that are near a line from a to b. */
function segment(area, a, b, radius, kind) {
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const length = dx * dx + dy * dy;
  const bounds = (low, high, from, size) => [Math.max(0, Math.floor(low - radius) - from), Math.min(size, Math.ceil(high + radius) - from)];
  const [left, right] = bounds(Math.min(a.x, b.x), Math.max(a.x, b.x), area.x, area.width);
  const [top, bottom] = bounds(Math.min(a.y, b.y), Math.max(a.y, b.y), area.y, area.height);
  for (let row = top; row < bottom; row += 1) {
    for (let column = left; column < right; column += 1) {
      const [px, py] = [area.x + column + 0.5 - a.x, area.y + row + 0.5 - a.y];
      const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      const [fx, fy] = [px - along * dx, py - along * dy];
      if (fx * fx + fy * fy <= radius * radius) area.kinds[row * area.width + column] = kind;
    }
  }
}

/**
 * The patch that adds the pixels of a mask.
 * @param {(pixel: number) => boolean} isIn  whether a pixel is in the mask, by its number, row by row
 * @param {{width: number, height: number}} image
 * @returns {Patch | null}  null where no pixel is
 */
export function patchOf(isIn, { width: across, height: down }) {
  let [left, top, right, bottom] = [across, down, -1, -1];
  for (let pixel = 0; pixel < across * down; pixel += 1) {
    if (!isIn(pixel)) continue;
    const [x, y] = [pixel % across, Math.floor(pixel / across)];
    [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
  }
  if (right < 0) return null;
  const [width, height] = [right - left + 1, bottom - top + 1];
  const kinds = new Uint8Array(width * height);
  for (let i = 0; i < kinds.length; i += 1) {
    if (isIn((top + Math.floor(i / width)) * across + left + (i % width))) kinds[i] = ADD;
  }
  return encode({ x: left, y: top, width, height, kinds });
}

/** A patch scaled to another image by the nearest pixel. @param {Patch} patch */
export function scaled(patch, across, down) {
  const area = decode(patch);
  const [x, y] = [Math.round(area.x * across), Math.round(area.y * down)];
  const width = Math.max(1, Math.round(area.width * across));
  const height = Math.max(1, Math.round(area.height * down));
  const kinds = new Uint8Array(width * height);
  for (let row = 0; row < height; row += 1) {
    const from = Math.min(area.height - 1, Math.floor(((row + 0.5) * area.height) / height)) * area.width;
    for (let column = 0; column < width; column += 1) {
      kinds[row * width + column] = area.kinds[from + Math.min(area.width - 1, Math.floor(((column + 0.5) * area.width) / width))];
    }
  }
  return { ...encode({ x, y, width, height, kinds }), ...(patch.frame !== undefined && { frame: patch.frame }) };
}

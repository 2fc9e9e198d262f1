/** The editor's text: how objects and their marks are written and read, version 1 included. No DOM. */

import { cleanFinish } from "./finish_options.js";
import { cleanPatch } from "./patches.js";
import { cleanRegion } from "./region.js";

export const VERSION = 3;
const PLAIN_VERSION = 2; // of a text without detail and regions, which older versions of the pack read
export const DETAILS = ["off", "auto", "1", "2", "3"];
export const CANDIDATES = ["best", "smallest", "middle", "largest"];
/** Far apart, and none of them the green and red of the points. */
export const COLOURS = ["#1e90ff", "#ff9500", "#e83ea8", "#00c8b4", "#a05cff", "#ffd400", "#7a9a00", "#ff6f61", "#5b7cff", "#b07840"];

/**
 * @typedef {{x: number, y: number, label: 0 | 1, frame?: number, object: number}} Point  label 1: on the object, 0: not on it
 * @typedef {{x: number, y: number, width: number, height: number, frame?: number, object: number}} Box
 * @typedef {Point | Box} Mark  one for every frame, or, with `frame`, for that frame; `object` is the object's place
 * @typedef {{name: string, colour: string, candidate: string, hidden?: boolean, locked?: boolean,
 *   finish?: object, paint?: import("./patches.js").Patch[], region?: Region}} EditorObject  `finish` is its own, else that of all
 *   objects is used; `region` is the part of the image that its marks are answered from
 * @typedef {{x: number, y: number, width: number, height: number}} Region
 * @typedef {{width: number, height: number} | null} Size  of the image that the marks were made on
 */

/** A hundredth of a pixel is more than SAM tells apart, and keeps the text short. */
export const rounded = (number) => Math.round(number * 100) / 100;

/** Whether a mark is a box. */
export const isBox = (mark) => "width" in mark;

/** A mark with its numbers rounded and its keys in order, or null where it is not one. Its object is left out. */
export function cleaned(mark) {
  const numbers = (...keys) => keys.every((key) => Number.isFinite(mark?.[key]));
  if (!numbers("x", "y")) return null;
  const [x, y] = [mark.x, mark.y].map(rounded);
  const frame = Number.isInteger(mark.frame) && mark.frame >= 0 ? { frame: mark.frame } : {};
  if (!isBox(mark)) return { x, y, label: mark.label === 0 ? 0 : 1, ...frame };
  if (!numbers("width", "height") || mark.width <= 0 || mark.height <= 0) return null;
  const [width, height] = [mark.width, mark.height].map((side) => Math.max(0.01, rounded(side))); // rounding leaves it a box
  return { x, y, width, height, ...frame };
}

/** A colour that no object has yet, while there are any. */
export function nextColour(objects) {
  const taken = new Set(objects.map(({ colour }) => colour));
  return COLOURS.find((colour) => !taken.has(colour)) ?? COLOURS[objects.length % COLOURS.length];
}

const listOf = (value) => (Array.isArray(value) ? value : []);
const marksIn = (value, object) => listOf(value).map(cleaned).filter(Boolean).map((mark) => ({ ...mark, object }));
const candidateIn = (value) => (CANDIDATES.includes(value) ? value : "best");

/**
 * Read the widget's text; what cannot be read is empty, for a widget must load. There is always an object.
 * @param {string} text
 * @returns {{objects: EditorObject[], marks: Mark[], size: Size, finish: object, detail: string, readable: boolean, isNewer: boolean}}
 */
export function readText(text) {
  let value = null;
  try {
    value = JSON.parse(text || "{}");
  } catch {
    // not JSON: nothing is marked
  }
  const readable = typeof value === "object" && value !== null && !Array.isArray(value);
  const read = Array.isArray(value?.objects) ? readObjects(value) : readVersion1(value ?? {});
  if (!read.objects.length) read.objects = [{ name: "Object 1", colour: COLOURS[0], candidate: "best" }];
  const isNewer = Number.isInteger(value?.version) && value.version > VERSION;
  const detail = DETAILS.includes(value?.detail) ? value.detail : "off";
  return { ...read, size: sizeIn(value?.size), finish: cleanFinish(value?.finish) ?? {}, detail, readable, isNewer };
}

function sizeIn(value) {
  const [width, height] = listOf(value);
  return width > 0 && height > 0 && value.length === 2 ? { width, height } : null;
}

function readObjects({ objects: listed }) {
  const objects = [];
  const marks = [];
  for (const one of listed) {
    if (typeof one !== "object" || one === null) continue;
    marks.push(...marksIn(one.marks, objects.length));
    objects.push({
      name: typeof one.name === "string" && one.name ? one.name : `Object ${objects.length + 1}`,
      colour: /^#[0-9a-f]{6}$/.test(one.colour) ? one.colour : nextColour(objects),
      candidate: candidateIn(one.candidate),
      ...(one.hidden === true && { hidden: true }),
      ...(one.locked === true && { locked: true }),
      ...finishIn(one.finish),
      ...paintIn(one.paint),
      ...regionIn(one.region),
    });
  }
  return { objects, marks };
}

function finishIn(value) {
  const finish = cleanFinish(value);
  return finish && { finish };
}

function regionIn(value) {
  const region = cleanRegion(value);
  return region && { region };
}

function paintIn(value) {
  const paint = listOf(value).map(cleanPatch).filter(Boolean);
  return paint.length ? { paint } : null;
}

/** Version 1 is a flat list of marks: with several boxes each is an object (SAM Predict Mask's rule), else all are one. */
function readVersion1(value) {
  const all = marksIn(value.marks, 0);
  const candidate = candidateIn(value.candidate);
  const groups = all.some((mark) => "frame" in mark) ? [all] : grouped(all);
  const objects = [];
  for (const _ of groups) objects.push({ name: `Object ${objects.length + 1}`, colour: nextColour(objects), candidate });
  return { objects, marks: groups.flatMap((marks, object) => marks.map((mark) => ({ ...mark, object }))) };
}

/** Marks by object: a point is the smallest box's around it, stray ones are one more object's; one that is off the object is
 * that of every box around it, a stray one that of all objects. */
function grouped(marks) {
  const boxes = marks.filter(isBox);
  if (boxes.length < 2) return [marks];
  const holds = (box, { x, y }) => box.x <= x && x <= box.x + box.width && box.y <= y && y <= box.y + box.height;
  const area = (box) => box.width * box.height;
  const owner = (point) => boxes.filter((box) => holds(box, point)).reduce((a, b) => (a && area(a) <= area(b) ? a : b), null);
  const points = marks.filter((mark) => !isBox(mark));
  const off = (box) => points.filter((mark) => !mark.label && ((box && holds(box, mark)) || !boxes.some((one) => holds(one, mark))));
  const on = (box) => points.filter((mark) => mark.label && owner(mark) === box);
  const groups = boxes.map((box) => [...on(box), ...off(box), box]);
  return on(null).length ? [...groups, [...on(null), ...off(null)]] : groups;
}

/**
 * The widget's text.
 * @param {{objects: EditorObject[], marks: Mark[], size: Size, finish?: object, detail?: string}} state
 * @param {object} options
 * @param {boolean} options.view  false: without what only the editor needs, for a run
 */
export function writeText({ objects, marks, size, finish = {}, detail = "off" }, { view = true } = {}) {
  const written = objects.map((object, place) => writeObject(object, marks.filter((mark) => mark.object === place), view));
  const listed = view ? written : written.filter((object) => object.marks.length || object.paint);
  const isFinished = Object.keys(finish).length > 0;
  const isDetailed = detail !== "off";
  if (!marks.length && objects.length === 1 && isPlain(objects[0]) && !isFinished && !isDetailed) return "{}";
  const made = { ...(size && view && { size: [size.width, size.height] }), ...(isFinished && { finish }), ...(isDetailed && { detail }) };
  const version = isDetailed || listed.some(({ region }) => region) ? VERSION : PLAIN_VERSION;
  return JSON.stringify({ version, ...made, objects: listed });
}

function writeObject({ name, colour, candidate, hidden, locked, finish, paint, region }, marks, view) {
  const seen = view ? { colour, ...(hidden && { hidden }), ...(locked && { locked }) } : {};
  return { name, ...seen, candidate, marks: marks.map(cleaned), ...(finish && { finish }), ...(paint?.length && { paint }), ...(region && { region }) };
}

const isPlain = ({ name, colour, candidate, hidden, locked, finish, paint, region }) =>
  name === "Object 1" && colour === COLOURS[0] && candidate === "best" && !hidden && !locked && !finish && !paint && !region;

/** The options of the text's `finish`: what is done to a mask after SAM has made it. No DOM. */

import { contract } from "./contract.js";

/** In the order in which they are applied. */
export const OPTIONS = [
  { key: "fill_holes", label: "Fill holes", title: "Fill holes of at most this many pixels", step: 10, whole: true },
  { key: "drop_islands", label: "Drop islands", title: "Remove separate parts of fewer pixels", step: 10, whole: true },
  { key: "smooth", label: "Smooth", title: "Round off corners and steps smaller than about this many pixels", step: 0.5 },
  { key: "grow", label: "Grow", title: "Grow by this many pixels; below 0: shrink", step: 1, whole: true },
  { key: "feather", label: "Feather", title: "Soften the edge: standard deviation in pixels", step: 0.5 },
];

/** The least and the most that a run takes of an option. */
export const rangeOf = (key) => contract.finish[key] ?? [-Infinity, Infinity];

/** The options that have an effect, or null where it is not an object with options. */
export function cleanFinish(value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return null;
  const found = {};
  for (const { key, whole } of OPTIONS) {
    const number = value[key];
    const [min, max] = rangeOf(key);
    if (!Number.isFinite(number)) continue;
    const allowed = Math.min(max, Math.max(min, whole ? Math.round(number) : number));
    if (allowed) found[key] = allowed;
  }
  if (value.invert === true) found.invert = true;
  return found;
}

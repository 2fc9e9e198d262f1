/** The options of the text's `finish`: what is done to a mask after SAM has made it. No DOM. */

/** In the order in which they are applied; `utils/finish.py` has the same limits. */
export const OPTIONS = [
  { key: "fill_holes", label: "Fill holes", title: "Fill holes of at most this many pixels", min: 0, max: 2 ** 26, step: 10, whole: true },
  { key: "drop_islands", label: "Drop islands", title: "Remove separate parts of fewer pixels", min: 0, max: 2 ** 26, step: 10, whole: true },
  { key: "smooth", label: "Smooth", title: "Round off corners and steps smaller than about this many pixels", min: 0, max: 64, step: 0.5 },
  { key: "grow", label: "Grow", title: "Grow by this many pixels; below 0: shrink", min: -256, max: 256, step: 1, whole: true },
  { key: "feather", label: "Feather", title: "Soften the edge: standard deviation in pixels", min: 0, max: 128, step: 0.5 },
];

/** The options that have an effect, or null where it is not an object with options. */
export function cleanFinish(value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return null;
  const found = {};
  for (const { key, min, max, whole } of OPTIONS) {
    const number = value[key];
    if (!Number.isFinite(number)) continue;
    const allowed = Math.min(max, Math.max(min, whole ? Math.round(number) : number));
    if (allowed) found[key] = allowed;
  }
  if (value.invert === true) found.invert = true;
  return found;
}

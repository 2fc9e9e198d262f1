/** What a run takes: the numbers of `nodes/editor/contract.py`, which come with the node's inputs, and a sentence for more. No DOM. */

export const contract = { limits: {}, finish: {} };

/** Take over what the node's inputs say; without it nothing is limited here. */
export function setContract(given) {
  Object.assign(contract, given);
}

/**
 * Why a run would refuse what was marked; null where it takes it.
 * @param {{objects: import("./text.js").EditorObject[], marks: import("./text.js").Mark[]}} state
 * @returns {string | null}
 */
export function problemOf({ objects, marks }) {
  const { limits } = contract;
  const lists = objects.map(({ paint = [] }) => paint);
  const patches = lists.flat();
  const isFar = ({ x, y, width = 0, height = 0, frame = 0 }) => [x, y, width, height, frame].some((number) => Math.abs(number) >= limits.far);
  const isWide = ({ x, y, width, height, frame = 0 }) => Math.max(x, y, width, height, frame) > limits.side;
  const most = (count, what) => `A run takes at most ${count.toLocaleString("en")} ${what}.`;
  if (objects.length > limits.objects) return `${most(limits.objects, "objects")} Delete one before you add another.`;
  if (marks.length > limits.marks) return `${most(limits.marks, "marks in all objects together")} Remove some before you add others.`;
  if (objects.some(({ name }) => [...name].length > limits.name)) return most(limits.name, "characters in an object's name");
  if (marks.some(isFar)) return `${most(limits.far, "pixels a side")} A mark is farther away.`;
  if (lists.some((paint) => paint.length > limits.patches)) return `${most(limits.patches, "frames of an object with paint of their own")} Paint all frames.`;
  if (patches.some(isWide)) return `${most(limits.side, "pixels a side of what is painted")}`;
  if (patches.some(({ width, height }) => width * height > limits.pixels)) return most(limits.pixels, "pixels around what is painted");
  if (patches.some(({ runs }) => runs.length > limits.runs)) return "The paint has too many separate strokes for a run. Use another object for more.";
  const painted = patches.reduce((sum, { width, height }) => sum + width * height, 0);
  return painted > limits.painted ? `${most(limits.painted, "painted pixels of all objects")} Remove some paint.` : null;
}

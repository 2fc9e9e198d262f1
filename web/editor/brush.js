/** The brush and the eraser: where the pointer has been since it was pressed becomes a patch of the selected object's paint. */

import { ADD, REMOVE, stroke } from "./patches.js";

const LEAST = 0.5;
const MOST = 512;

export class Brush {
  tool = null; // "add", "erase", or null: the pointer marks as ever
  radius = 16; // image pixels
  at = null; // where the pointer is, in image pixels
  points = []; // of the stroke under way, or of the last one until its mask is there
  kind = ADD;
  #drawing = false;

  /** @param {object} editor  has state, image, redraw(), changed() and refuse() */
  constructor(editor) {
    this.editor = editor;
  }

  get isActive() {
    return this.tool !== null;
  }

  /** Take a tool up, or put it down again. */
  toggle(tool) {
    this.tool = this.tool === tool ? null : tool;
    this.at = null;
    this.editor.changed();
  }

  resize(factor) {
    this.radius = Math.min(MOST, Math.max(LEAST, this.radius * factor));
    this.editor.changed();
  }

  hover(at) {
    this.at = at;
    this.editor.redraw();
  }

  /** Begin a stroke; `other` is the other tool's. */
  begin(at, other) {
    this.kind = (this.tool === "add") !== other ? ADD : REMOVE;
    this.points = [at];
    this.#drawing = true;
    this.hover(at);
  }

  extend(at) {
    const last = this.points.at(-1);
    if (this.#drawing && last && Math.hypot(at.x - last.x, at.y - last.y) >= Math.min(1, this.radius / 4)) this.points.push(at);
    this.hover(at);
  }

  /** The stroke is done: it becomes a part of the text. */
  end() {
    const { state, image } = this.editor;
    if (!this.#drawing) return;
    this.#drawing = false;
    const area = image && stroke(this.points, this.radius, this.kind, image);
    if (!area) this.points = [];
    else if (!state.paint(area)) {
      this.points = [];
      this.editor.refuse();
    }
    this.editor.redraw();
  }

  cancel() {
    this.#drawing = false;
    this.points = [];
    this.editor.redraw();
  }

  /** The mask with the stroke is shown. */
  settle() {
    if (!this.#drawing) this.points = [];
  }
}

/**
 * Draw the stroke that is under way, and the ring of the brush.
 * @param {CanvasRenderingContext2D} context
 * @param {Brush} brush
 * @param {{view: import("./geometry.js").View, unit: number, colour: string}} how
 */
export function drawBrush(context, brush, { view, unit, colour }) {
  const radius = brush.radius * view.scale;
  if (brush.points.length) {
    context.save();
    context.globalAlpha = brush.kind === ADD ? 0.55 : 0.7;
    context.strokeStyle = brush.kind === ADD ? colour : "#101216";
    Object.assign(context, { lineWidth: 2 * radius, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    for (const point of [brush.points[0], ...brush.points]) {
      const { x, y } = view.toStage(point);
      context.lineTo(x, y);
    }
    context.stroke();
    context.restore();
  }
  if (!brush.isActive || !brush.at) return;
  const { x, y } = view.toStage(brush.at);
  for (const [line, wide] of [["rgba(0, 0, 0, 0.65)", 3], [brush.tool === "add" ? "#ffffff" : "#ff6f61", 1.5]]) {
    context.beginPath();
    context.arc(x, y, Math.max(radius, unit), 0, 2 * Math.PI);
    context.lineWidth = wide * unit;
    context.strokeStyle = line;
    context.stroke();
  }
}

/** A layer above the editor's canvas that shows some segments of the image, so that a move draws no more than these. */

import { make } from "./toolbar.js";

const MOST_SIDE = 1024; // pixels of a segment as it is drawn
const MOST_DRAWN = 16 << 20; // pixels of segments that stay drawn

export class SegmentLayer {
  #drawn = new Map(); // segment and colour -> {canvas, step}
  #of = null;
  #shown = null;

  /** @param {import("./editor.js").PromptEditor} editor */
  constructor(editor) {
    this.editor = editor;
    this.canvas = make("canvas", { className: "samkit-canvas samkit-segments" });
    editor.canvas.after(this.canvas);
  }

  /**
   * Draw the layer, if what it shows or where that lies has changed.
   * @param {import("./segments.js").Segments | null} segments
   * @param {{index: number, strength: number}[]} lit  those that are seen, in order
   */
  draw(segments, lit) {
    const { canvas, editor } = this;
    const { view, unit } = editor;
    const { width, height } = editor.canvas;
    const shown = JSON.stringify([lit, view.scale, view.x, view.y, width, height, unit, editor.state.nextColour]);
    if (shown === this.#shown && segments === this.#of) return;
    if (segments !== this.#of) this.#drawn.clear();
    [this.#shown, this.#of] = [shown, segments];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!lit.length) return;
    const ratio = width / editor.stageSize.width;
    const scale = view.scale * ratio;
    context.setTransform(scale, 0, 0, scale, view.x * ratio, view.y * ratio);
    context.imageSmoothingEnabled = false;
    for (const { index, strength } of lit) {
      const { x, y } = segments.list[index];
      const { canvas: drawn, step } = this.#pixels(index, scale);
      context.globalAlpha = strength;
      context.drawImage(drawn, x, y, drawn.width * step, drawn.height * step);
    }
    context.globalAlpha = 1;
  }

  /** A segment as it is drawn at a scale, in the colour that its object would get. */
  #pixels(index, scale) {
    const colour = this.editor.state.nextColour;
    const segment = this.#of.list[index];
    const step = Math.max(Math.ceil(Math.max(segment.width, segment.height) / MOST_SIDE), Math.floor(1 / scale));
    const key = `${index} ${colour} ${step}`;
    const before = this.#drawn.get(key);
    if (before) return before;
    const rgb = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    const { data, width, height } = this.#of.pixels(index, rgb, step);
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
    this.#drawn.set(key, { canvas, step });
    let room = MOST_DRAWN;
    for (const [old, one] of [...this.#drawn].reverse()) if ((room -= one.canvas.width * one.canvas.height) < 0) this.#drawn.delete(old);
    return { canvas, step };
  }
}

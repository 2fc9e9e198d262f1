/** Ways to see the masks: tint, cut-out, black and white, outline. */

import { ADD, decode } from "./patches.js";

/** In the order in which V goes through them, each with how strong it is at first. */
export const VIEWS = {
  tint: { label: "Tint", opacity: 0.45 },
  cutout: { label: "Cut-out", opacity: 1 },
  mask: { label: "B & W", opacity: 1 },
  outline: { label: "Outline", opacity: 1 },
};

/** Which view is shown, and how strongly each is. */
export class ViewMode {
  name = "tint";
  #opacities = Object.fromEntries(Object.entries(VIEWS).map(([name, { opacity }]) => [name, opacity]));

  get opacity() {
    return this.#opacities[this.name];
  }

  set opacity(value) {
    this.#opacities[this.name] = Math.min(1, Math.max(0, value));
  }

  next() {
    const names = Object.keys(VIEWS);
    this.name = names[(names.indexOf(this.name) + 1) % names.length];
  }
}

/**
 * Lay the masks over the image, which is drawn already; the canvas is in image pixels.
 * @param {CanvasRenderingContext2D} context
 * @param {{width: number, height: number}} image
 * @param {{bitmap: ImageBitmap, strength: number, isHover?: boolean}[]} masks
 * @param {{name: string, opacity: number}} mode
 */
export function drawMasks(context, image, masks, { name, opacity }) {
  const own = masks.filter((mask) => !mask.isHover);
  const isWhole = name === "cutout" || name === "mask";
  if (isWhole && own.length) drawWhole(context, image, own, name, opacity);
  for (const { bitmap, strength } of isWhole ? masks.filter((mask) => mask.isHover) : masks) {
    const [fill, line] = name === "outline" ? [0, opacity] : [isWhole ? VIEWS.tint.opacity : opacity, 1];
    context.globalAlpha = strength;
    context.drawImage(layerOf(bitmap, fill, line), 0, 0, image.width, image.height);
  }
  context.globalAlpha = 1;
}

const layers = new WeakMap(); // bitmap -> its latest layer

/** A mask as a tint inside of an outline, at the mask's size. */
function layerOf(bitmap, fill, line) {
  const key = `${fill} ${line}`;
  const known = layers.get(bitmap);
  if (known?.key === key) return known.canvas;
  const ring = draft(bitmap.width, bitmap.height, (context) => {
    context.drawImage(bitmap, 0, 0);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(innerOf(bitmap), 0, 0);
  });
  const canvas = known?.canvas ?? new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.globalAlpha = line;
  context.drawImage(ring, 0, 0);
  context.globalAlpha = fill;
  context.globalCompositeOperation = "destination-over";
  if (fill) context.drawImage(bitmap, 0, 0);
  context.globalCompositeOperation = "source-over";
  layers.set(bitmap, { key, canvas });
  return canvas;
}

/** The pixels of a mask whose neighbours are in it too; beyond the image nothing is. */
function innerOf(bitmap) {
  return draft(bitmap.width, bitmap.height, (context) => {
    context.drawImage(bitmap, 0, 0);
    context.globalCompositeOperation = "destination-in";
    for (const [x, y] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) context.drawImage(bitmap, x, y);
  });
}

let painted = { key: null, canvas: null };

/** What has been painted, in an object's colour: shown while no mask is there that has it. */
export function paintLayer(patches, colour, image) {
  const key = JSON.stringify([patches, colour, image.width, image.height]);
  if (painted.key === key) return painted.canvas;
  const canvas = draft(image.width, image.height, (context) => {
    for (const { x, y, width, height, kinds } of patches.map(decode)) {
      const pixels = new ImageData(width, height);
      kinds.forEach((kind, index) => { pixels.data[4 * index + 3] = kind === ADD ? 255 : 0; });
      context.putImageData(pixels, x, y);
    }
    context.globalCompositeOperation = "source-in";
    context.fillStyle = colour;
    context.fillRect(0, 0, image.width, image.height);
  });
  painted = { key, canvas };
  return canvas;
}

/** All masks together: white on black, or the hole that is cut into what hides the rest of the image. */
function drawWhole(context, image, masks, name, opacity) {
  const union = draft(image.width, image.height, (draw) => {
    for (const { bitmap, strength } of masks) {
      draw.globalAlpha = strength < 0.5 ? strength : 1; // another object's is as white as the selected one's
      draw.drawImage(bitmap, 0, 0, image.width, image.height);
    }
    draw.globalAlpha = 1;
    draw.globalCompositeOperation = name === "mask" ? "source-in" : "source-out";
    draw.fillStyle = "#ffffff";
    draw.fillRect(0, 0, image.width, image.height);
    draw.globalCompositeOperation = "destination-over";
    draw.fillStyle = "#000000";
    if (name === "mask") draw.fillRect(0, 0, image.width, image.height);
  });
  context.globalAlpha = opacity;
  context.globalCompositeOperation = name === "mask" ? "source-over" : "destination-out";
  context.drawImage(union, 0, 0, image.width, image.height);
  context.globalCompositeOperation = "source-over";
}

function draft(width, height, draw) {
  const canvas = new OffscreenCanvas(width, height);
  draw(canvas.getContext("2d"));
  return canvas;
}

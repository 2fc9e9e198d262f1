/** Ways to see the masks: tint, cut-out, black and white, outline. */

import { ADD, decode } from "./patches.js";

/** In the order in which V goes through them, each with the form in which the server renders its masks. */
export const VIEWS = {
  tint: { label: "Tint", form: "tint" },
  cutout: { label: "Cut-out", form: "mask" },
  mask: { label: "B & W", form: "mask" },
  outline: { label: "Outline", form: "outline" },
};

const MOST_PIXELS = 1 << 25; // of the layer of all masks together

/** From which alpha on a pixel of a form is in the mask. */
export const INSIDE = { tint: 58, mask: 128, outline: 1 };

/** Which view is shown, and how strongly each is. */
export class ViewMode {
  name = "tint";
  #opacities = Object.fromEntries(Object.keys(VIEWS).map((name) => [name, 1]));

  /** The form in which masks are wanted. */
  get form() {
    return VIEWS[this.name].form;
  }

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
 * @param {{bitmap: ImageBitmap, strength: number, isHover?: boolean, place?: import("./client.js").Answer["place"]}[]} masks
 * @param {{name: string, opacity: number}} mode
 */
export function drawMasks(context, image, masks, { name, opacity }) {
  const own = masks.filter((mask) => !mask.isHover);
  const isWhole = name === "cutout" || name === "mask";
  if (isWhole && own.length) drawWhole(context, image, own, name, opacity);
  for (const { bitmap, strength, place } of isWhole ? masks.filter((mask) => mask.isHover) : masks) {
    context.globalAlpha = strength * (isWhole ? 1 : opacity);
    context.drawImage(bitmap, ...rectangleOf(place, image));
  }
  context.globalAlpha = 1;
}

/** Where a mask lies: on all of the image, or on a part of a large one. */
const rectangleOf = (place, image) => (place ? [place.x, place.y, place.width, place.height] : [0, 0, image.width, image.height]);

let painted = { key: null, canvas: null };

/** What has been painted, in an object's colour: shown while no mask is there that has it. */
export function paintLayer(patches, colour, image) {
  const key = JSON.stringify([patches, colour, image.width, image.height]);
  if (painted.key === key) return painted.canvas;
  const canvas = draft(image.width, image.height, (context) => {
    for (const { x, y, width, height, kinds } of patches.map(decode)) {
      const pixels = new ImageData(width, height);
      kinds.forEach((kind, index) => { pixels.data[4 * index + 3] = kind === ADD ? 115 : 0; });
      context.putImageData(pixels, x, y);
    }
    context.globalCompositeOperation = "source-in";
    context.fillStyle = colour;
    context.fillRect(0, 0, image.width, image.height);
  });
  painted = { key, canvas };
  return canvas;
}

let whole = { key: [], canvas: null };

/** All masks together: white on black, or what hides the rest of the image with the masks cut out of it. */
function wholeOf(image, masks, name) {
  const key = [name, image.width, image.height, ...masks.flatMap(({ bitmap, strength }) => [bitmap, strength])];
  if (key.length === whole.key.length && key.every((value, index) => value === whole.key[index])) return whole.canvas;
  const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (image.width * image.height)));
  const canvas = draft(Math.ceil(image.width * shrink), Math.ceil(image.height * shrink), (draw) => {
    if (shrink < 1) draw.scale(shrink, shrink);
    for (const { bitmap, strength, place } of masks) {
      draw.globalAlpha = strength < 0.5 ? strength : 1; // another object's is as white as the selected one's
      draw.drawImage(bitmap, ...rectangleOf(place, image));
    }
    draw.globalAlpha = 1;
    draw.globalCompositeOperation = name === "mask" ? "source-in" : "source-out";
    draw.fillStyle = "#ffffff";
    draw.fillRect(0, 0, image.width, image.height);
    draw.globalCompositeOperation = "destination-over";
    draw.fillStyle = "#000000";
    if (name === "mask") draw.fillRect(0, 0, image.width, image.height);
  });
  whole = { key, canvas };
  return canvas;
}

function drawWhole(context, image, masks, name, opacity) {
  context.globalAlpha = opacity;
  context.globalCompositeOperation = name === "mask" ? "source-over" : "destination-out";
  context.drawImage(wholeOf(image, masks, name), 0, 0, image.width, image.height);
  context.globalCompositeOperation = "source-over";
}

function draft(width, height, draw) {
  const canvas = new OffscreenCanvas(width, height);
  draw(canvas.getContext("2d"));
  return canvas;
}

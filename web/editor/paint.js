/** Draws the editor's canvas: image, masks, marks. Marks keep their size on the screen, whatever is zoomed. */

import { isBox } from "./state.js";

const POSITIVE = "#1fa34a";
const NEGATIVE = "#d62f2f";
const BOX = "#ffd400";
const SELECTED = "#ffffff";
const DARK = "rgba(0, 0, 0, 0.65)";
export const POINT_RADIUS = 8;

/**
 * @param {CanvasRenderingContext2D} context
 * @param {object} scene
 * @param {number} scene.ratio  canvas pixels per editor pixel
 * @param {number} scene.unit  editor pixels per pixel of the screen (a zoomed-out graph shrinks the editor)
 * @param {import("./geometry.js").View} scene.view
 * @param {CanvasImageSource & {width: number, height: number} | null} scene.image
 * @param {ImageBitmap | null} scene.mask  the committed marks'
 * @param {ImageBitmap | null} scene.hover  what a click at the pointer would give
 */
export function paint(context, { ratio, unit, view, image, mask, hover, marks, shown, selected }) {
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  if (!image) return;
  const scale = view.scale * ratio;
  context.setTransform(scale, 0, 0, scale, view.x * ratio, view.y * ratio);
  context.imageSmoothingEnabled = scale < 2;
  context.drawImage(image, 0, 0, image.width, image.height);
  context.imageSmoothingEnabled = false;
  for (const [layer, strength] of [[mask, 1], [hover, mask ? 0.5 : 0.75]]) {
    if (!layer) continue;
    context.globalAlpha = strength;
    context.drawImage(layer, 0, 0, image.width, image.height);
  }
  context.globalAlpha = 1;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  for (const index of shown) {
    const draw = isBox(marks[index]) ? drawBox : drawPoint;
    draw(context, marks[index], view, unit, index === selected);
  }
}

function drawPoint(context, mark, view, unit, selected) {
  const { x, y } = view.toStage(mark);
  const radius = POINT_RADIUS * unit;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = mark.label ? POSITIVE : NEGATIVE;
  context.fill();
  ring(context, unit, selected);
  const arm = radius * 0.55;
  context.beginPath();
  context.moveTo(x - arm, y);
  context.lineTo(x + arm, y);
  if (mark.label) {
    context.moveTo(x, y - arm);
    context.lineTo(x, y + arm);
  }
  context.lineWidth = 2 * unit;
  context.strokeStyle = "#ffffff";
  context.stroke();
}

function drawBox(context, mark, view, unit, selected) {
  const { x, y } = view.toStage(mark);
  const [width, height] = [mark.width * view.scale, mark.height * view.scale];
  context.beginPath();
  context.rect(x, y, width, height);
  context.lineWidth = 4 * unit;
  context.strokeStyle = DARK;
  context.stroke();
  context.lineWidth = 2 * unit;
  context.strokeStyle = BOX;
  context.stroke();
  if (selected) drawHandles(context, { x, y, width, height }, unit);
}

function drawHandles(context, { x, y, width, height }, unit) {
  for (const left of [x, x + width / 2, x + width]) {
    for (const top of [y, y + height / 2, y + height]) {
      if (left === x + width / 2 && top === y + height / 2) continue;
      context.beginPath();
      context.rect(left - 4 * unit, top - 4 * unit, 8 * unit, 8 * unit);
      context.fillStyle = SELECTED;
      context.fill();
      ring(context, unit, false);
    }
  }
}

/** The line around a shape: dark and light, so that it shows on any image; thicker where selected. */
function ring(context, unit, selected) {
  context.lineWidth = (selected ? 5 : 3) * unit;
  context.strokeStyle = DARK;
  context.stroke();
  context.lineWidth = (selected ? 3 : 1.5) * unit;
  context.strokeStyle = SELECTED;
  context.stroke();
}

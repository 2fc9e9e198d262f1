/** Draws the editor's canvas: image, masks, marks. Marks keep their size on the screen, whatever is zoomed. */

import { drawBrush } from "./brush.js";
import { clamped } from "./geometry.js";
import { isBox, isOutside } from "./state.js";
import { drawMasks } from "./views.js";

const POSITIVE = "#1fa34a";
const NEGATIVE = "#d62f2f";
const LIGHT = "#ffffff";
const DARK = "rgba(0, 0, 0, 0.65)";
export const POINT_RADIUS = 8;

/**
 * @param {CanvasRenderingContext2D} context
 * @param {object} scene
 * @param {number} scene.ratio  canvas pixels per editor pixel
 * @param {number} scene.unit  editor pixels per pixel of the screen (a zoomed-out graph shrinks the editor)
 * @param {import("./geometry.js").View} scene.view
 * @param {CanvasImageSource & {width: number, height: number} | null} scene.image  or a Pyramid
 * @param {{bitmap: ImageBitmap, strength: number, isHover?: boolean}[]} scene.masks  in the order in which they are laid over the image
 * @param {object} scene.state  the editor's
 * @param {{name: string, opacity: number}} scene.mode  how the masks are seen
 * @param {import("./brush.js").Brush} scene.brush
 * @param {import("./text.js").Region | null} [scene.region]  that the selected object's marks are answered from
 * @param {boolean} scene.before  only the image
 */
export function paint(context, { ratio, unit, view, image, masks, state, mode, brush, region = null, before }) {
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  if (!image) return;
  const scale = view.scale * ratio;
  context.setTransform(scale, 0, 0, scale, view.x * ratio, view.y * ratio);
  context.imageSmoothingEnabled = scale < 2;
  const { width, height } = context.canvas;
  const area = { x: -view.x / view.scale, y: -view.y / view.scale, width: width / scale, height: height / scale };
  if (image.draw) image.draw(context, scale, area);
  else context.drawImage(image, 0, 0, image.width, image.height);
  context.imageSmoothingEnabled = false;
  drawMasks(context, image, masks, mode);
  if (before) return;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.globalAlpha = 1;
  if (region) drawRegion(context, region, view, unit, state.object.colour);
  drawBrush(context, brush, { view, unit, colour: state.object.colour });
  for (const index of state.drawn) drawMark(context, state, index, view, unit, image);
  context.globalAlpha = 1;
  context.setLineDash([]);
}

/** A thin frame with long dashes: no box looks like it. */
function drawRegion(context, region, view, unit, colour) {
  const { x, y } = view.toStage(region);
  context.beginPath();
  context.rect(x, y, region.width * view.scale, region.height * view.scale);
  for (const [line, dash] of [[DARK, []], [LIGHT, []], [colour, [10 * unit, 6 * unit]]]) {
    context.setLineDash(dash);
    context.lineWidth = (line === DARK ? 3 : 1.5) * unit;
    context.strokeStyle = line;
    context.stroke();
  }
  context.setLineDash([]);
}

/** A mark: those of other objects are fainter, those for this frame only dashed, those outside of the image at its edge. */
function drawMark(context, state, index, view, unit, image) {
  const mark = state.marks[index];
  const outside = isOutside(mark, image);
  const style = {
    colour: state.objects[mark.object].colour,
    selected: index === state.selected,
    dash: mark.frame === undefined ? [] : [3 * unit, 3 * unit],
  };
  context.globalAlpha = outside ? 0.4 : mark.object === state.current ? 1 : 0.6;
  const draw = isBox(mark) ? drawBox : drawPoint;
  draw(context, outside ? { ...mark, ...clamped(mark, image) } : mark, view, unit, style);
}

function drawPoint(context, mark, view, unit, { colour, selected, dash }) {
  const { x, y } = view.toStage(mark);
  const radius = POINT_RADIUS * unit;
  context.beginPath();
  if (dash.length) context.rect(x - radius * 0.85, y - radius * 0.85, radius * 1.7, radius * 1.7);
  else context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = mark.label ? POSITIVE : NEGATIVE;
  context.fill();
  ring(context, unit, selected, selected ? LIGHT : colour);
  const arm = radius * 0.55;
  context.beginPath();
  context.moveTo(x - arm, y);
  context.lineTo(x + arm, y);
  if (mark.label) {
    context.moveTo(x, y - arm);
    context.lineTo(x, y + arm);
  }
  context.lineWidth = 2 * unit;
  context.strokeStyle = LIGHT;
  context.stroke();
}

/** Dark, light and the object's colour: one of them stands out on any image. */
function drawBox(context, mark, view, unit, { colour, selected, dash }) {
  const { x, y } = view.toStage(mark);
  const [width, height] = [mark.width * view.scale, mark.height * view.scale];
  context.beginPath();
  context.rect(x, y, width, height);
  for (const [line, wide] of [[DARK, 5], [LIGHT, 3.5], [colour, 2]]) {
    context.setLineDash(line === colour ? dash : []);
    context.lineWidth = wide * unit;
    context.strokeStyle = line;
    context.stroke();
  }
  context.setLineDash([]);
  if (selected) drawHandles(context, { x, y, width, height }, unit);
}

function drawHandles(context, { x, y, width, height }, unit) {
  for (const left of [x, x + width / 2, x + width]) {
    for (const top of [y, y + height / 2, y + height]) {
      if (left === x + width / 2 && top === y + height / 2) continue;
      context.beginPath();
      context.rect(left - 4 * unit, top - 4 * unit, 8 * unit, 8 * unit);
      context.fillStyle = LIGHT;
      context.fill();
      ring(context, unit, false, LIGHT);
    }
  }
}

/** The line around a shape: dark, and a colour on it, so that it shows on any image; thicker where selected. */
function ring(context, unit, selected, colour) {
  context.lineWidth = (selected ? 5 : 4) * unit;
  context.strokeStyle = DARK;
  context.stroke();
  context.lineWidth = (selected ? 3 : 2) * unit;
  context.strokeStyle = colour;
  context.stroke();
}

/** Regions of interest: parts of the image that the marks of an object are answered from. No DOM. */

/** A region in whole pixels, or null where it is none. @returns {{x: number, y: number, width: number, height: number} | null} */
export function cleanRegion(value) {
  if (typeof value !== "object" || value === null) return null;
  if (!["x", "y", "width", "height"].every((key) => Number.isFinite(value[key]))) return null;
  const [x, y] = [Math.round(value.x), Math.round(value.y)];
  const [width, height] = [Math.round(value.x + value.width) - x, Math.round(value.y + value.height) - y];
  return width > 0 && height > 0 ? { x, y, width, height } : null;
}

/** Whether a mark has no part in a region; as the node sees it. */
export function isBeyond(mark, { x, y, width, height }) {
  const [left, top] = [mark.x - x, mark.y - y];
  if ("width" in mark) return left >= width || top >= height || left + mark.width <= 0 || top + mark.height <= 0;
  return left < 0 || top < 0 || left > width || top > height;
}

/** A region scaled with its image. */
export function scaledRegion({ x, y, width, height }, across, down) {
  return cleanRegion({ x: x * across, y: y * down, width: width * across, height: height * down });
}

/** The part of the image that the stage shows; null where that is nothing, or the whole image. */
export function visibleRegion(view, image, stage) {
  const [from, to] = [view.toImage({ x: 0, y: 0 }), view.toImage({ x: stage.width, y: stage.height })];
  const [left, top] = [Math.max(0, Math.floor(from.x)), Math.max(0, Math.floor(from.y))];
  const [right, bottom] = [Math.min(image.width, Math.ceil(to.x)), Math.min(image.height, Math.ceil(to.y))];
  const isWhole = left === 0 && top === 0 && right === image.width && bottom === image.height;
  return isWhole ? null : cleanRegion({ x: left, y: top, width: right - left, height: bottom - top });
}

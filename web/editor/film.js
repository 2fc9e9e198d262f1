/** The strip below the image of a film: thumbnails, and for each object the frames with marks and those where it was tracked. */

import { button, make } from "./toolbar.js";

const THUMBNAIL = 34; // pixels of height
const LINE = 7; // of an object's line
const MOST_LINES = 6;
const MOST_LOADING = 4;
const MOST_KEPT = 256; // thumbnails
const SIDE = 96; // pixels that a thumbnail is asked for

/** The frames whose thumbnails have room in a strip, evenly spread: [{frame, x, width}]. */
export function thumbnailsOf(frames, width, each) {
  const count = Math.max(1, Math.min(frames, Math.floor(width / each)));
  const room = width / count;
  return [...Array(count).keys()].map((index) => ({ frame: Math.floor(((index + 0.5) * frames) / count), x: index * room, width: room }));
}

/** The frame at a place of the strip. */
export function frameAt(x, width, frames) {
  return Math.max(0, Math.min(frames - 1, Math.floor((x / Math.max(1, width)) * frames)));
}

/** Runs of frames with a 1: [[first, end], ...]. */
export function runsOf(seen) {
  return [...seen.matchAll(/1+/g)].map(({ index, 0: run }) => [index, index + run.length]);
}

/** The objects that have a line: as many as there is room for, the selected one among them. */
export function linesOf(count, current) {
  const first = Math.max(0, Math.min(current - (MOST_LINES >> 1), count - MOST_LINES));
  return [...Array(Math.min(count, MOST_LINES)).keys()].map((index) => first + index);
}

/** Thumbnails by their address, a few loading at a time, those that were wanted last first. */
class Thumbnails {
  #images = new Map();
  #wanted = [];
  #loading = 0;

  constructor(onLoad) {
    this.onLoad = onLoad;
  }

  /** The thumbnails of some addresses as far as they are there; the others are loaded. */
  take(addresses) {
    this.#wanted = addresses.filter((address) => !this.#images.has(address));
    this.#load();
    return addresses.map((address) => this.#images.get(address) ?? null);
  }

  #load() {
    while (this.#loading < MOST_LOADING && this.#wanted.length) {
      const address = this.#wanted.shift();
      const image = new Image();
      this.#loading += 1;
      const end = (shown) => {
        this.#loading -= 1;
        this.#images.set(address, shown); // one that cannot be loaded is not tried again
        for (const old of [...this.#images.keys()].slice(0, Math.max(0, this.#images.size - MOST_KEPT))) this.#images.delete(old);
        this.onLoad();
      };
      image.onload = () => end(image);
      image.onerror = () => end(null);
      image.src = address;
    }
  }
}

/**
 * @param {object} editor
 * @returns {{element: HTMLElement, update: () => void}}
 */
export function makeFilm(editor) {
  const { state } = editor;
  const canvas = make("canvas", { className: "samkit-strip", role: "slider", "aria-label": "Frames of the film" });
  const before = button("angle-double-left", "The frame before with marks of the selected object", () => state.showMarked(-1));
  const after = button("angle-double-right", "The next frame with marks of the selected object", () => state.showMarked(1));
  const element = make("div", { className: "samkit-film", hidden: true }, before, canvas, after);
  const thumbnails = new Thumbnails(() => draw());
  let drawing = 0;
  const seek = (event) => {
    const { left, width } = canvas.getBoundingClientRect();
    const frame = frameAt(event.clientX - left, width, state.frames);
    if (frame !== state.frame) state.showFrame(frame);
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    seek(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) seek(event);
  });
  const update = () => {
    element.hidden = state.frames < 2;
    if (element.hidden) return;
    for (const [name, value] of [["valuemin", 1], ["valuemax", state.frames], ["valuenow", state.frame + 1]]) canvas.setAttribute(`aria-${name}`, value);
    before.disabled = state.markedFrame(-1) === null;
    after.disabled = state.markedFrame(1) === null;
    draw();
  };
  const draw = () => {
    drawing ||= requestAnimationFrame(() => {
      drawing = 0;
      if (!element.hidden && editor.image && editor.isSeen) drawNow();
    });
  };
  const drawNow = () => {
    const lines = linesOf(state.objects.length, state.current);
    const height = THUMBNAIL + 2 + lines.length * LINE;
    canvas.style.height = `${height}px`;
    const width = Math.max(1, canvas.clientWidth);
    const ratio = window.devicePixelRatio;
    const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    drawThumbnails(context, width);
    const cell = width / state.frames;
    lines.forEach((object, line) => drawLine(context, object, THUMBNAIL + 2 + line * LINE, cell, width));
    const wide = Math.max(3, cell);
    const x = Math.max(0, Math.min(width - wide, (state.frame + 0.5) * cell - wide / 2));
    for (const [colour, thick] of [["rgba(0, 0, 0, 0.65)", 4], ["#ffffff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick;
      context.strokeRect(x + 1, 1, wide - 2, height - 2);
    }
  };
  const drawThumbnails = (context, width) => {
    const { thumbnail } = editor.host;
    if (!thumbnail || editor.images.length < 2) return;
    const { image } = editor;
    const wanted = thumbnailsOf(state.frames, width, Math.max(8, (THUMBNAIL * image.width) / image.height));
    const found = thumbnails.take(wanted.map(({ frame }) => thumbnail(editor.images[frame], SIDE, editor.shown.version)));
    found.forEach((one, index) => {
      const { x, width: room } = wanted[index];
      if (!one) return;
      const scale = Math.max(room / one.width, THUMBNAIL / one.height); // it fills its place, and its edges are cut
      const [w, h] = [room / scale, THUMBNAIL / scale];
      context.drawImage(one, (one.width - w) / 2, (one.height - h) / 2, w, h, x, 0, room, THUMBNAIL);
    });
  };
  const drawLine = (context, object, y, cell, width) => {
    const { colour } = state.objects[object];
    const isCurrent = object === state.current;
    context.globalAlpha = isCurrent ? 0.25 : 0.12;
    context.fillStyle = colour;
    context.fillRect(0, y + 2, width, LINE - 4);
    const tracked = editor.tracked.standing(state, object, state.frame);
    for (const [first, end] of tracked ? runsOf(tracked.seen) : []) {
      const held = Math.max(first, Math.min(end, tracked.from)); // what comes after is of other marks
      context.globalAlpha = isCurrent ? 1 : 0.7;
      context.fillRect(first * cell, y + 1, (held - first) * cell, LINE - 2);
      context.globalAlpha = 0.4;
      context.fillRect(held * cell, y + 1, (end - held) * cell, LINE - 2);
    }
    context.globalAlpha = 1;
    for (const frame of state.markedFrames(object)) {
      const x = (frame + 0.5) * cell;
      context.beginPath();
      context.arc(x, y + LINE / 2, LINE / 2, 0, 2 * Math.PI);
      context.fillStyle = "#ffffff";
      context.fill();
      context.beginPath();
      context.arc(x, y + LINE / 2, LINE / 2 - 1.5, 0, 2 * Math.PI);
      context.fillStyle = colour;
      context.fill();
    }
  };
  return { element, update };
}

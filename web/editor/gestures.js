/** Turns pointer events into what they mean: a click, a drag of a mark, a new box, a pan, a zoom with two fingers. */

import { boxBetween, clamped, dragged, hit, isInside } from "./geometry.js";
import { POINT_RADIUS } from "./paint.js";

const SLACK = 4; // screen pixels that a click may move
const DOUBLE_CLICK = 350; // milliseconds

const CURSORS = { n: "ns-resize", s: "ns-resize", e: "ew-resize", w: "ew-resize", nw: "nwse-resize", se: "nwse-resize" };
Object.assign(CURSORS, { ne: "nesw-resize", sw: "nesw-resize", point: "move" });

export class Gestures {
  #pointers = new Map();
  #gesture = null;
  #lastClick = { index: null, time: -Infinity };

  /**
   * @param {HTMLElement} stage  takes the events
   * @param {object} editor  has state, view, image, unit, stageSize, panning, negative, redraw(), and hover(place | null)
   */
  constructor(stage, editor) {
    this.stage = stage;
    this.editor = editor;
    const on = (type, handle) => stage.addEventListener(type, handle);
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#move(event));
    on("pointerup", (event) => this.#up(event));
    on("pointercancel", (event) => this.#cancel(event));
    on("pointerleave", () => this.#gesture || editor.hover(null));
    on("contextmenu", (event) => { event.preventDefault(); event.stopPropagation(); });
    on("dblclick", (event) => event.stopPropagation());
  }

  get active() {
    return this.#gesture !== null;
  }

  /** Where an event is, in editor pixels: the graph's zoom scales the element. */
  place(event) {
    const bounds = this.stage.getBoundingClientRect();
    const { width, height } = this.editor.stageSize;
    return { x: ((event.clientX - bounds.left) * width) / bounds.width, y: ((event.clientY - bounds.top) * height) / bounds.height };
  }

  abandon() {
    if (this.#gesture && this.#gesture.kind !== "pan") this.editor.state.cancel();
    this.#gesture = null;
  }

  #hit(at) {
    const { state, view, unit } = this.editor;
    return hit(state.marks, state.shown, at, ((POINT_RADIUS + 2) * unit) / view.scale);
  }

  #down(event) {
    event.stopPropagation();
    const { editor } = this;
    this.stage.focus({ preventScroll: true });
    if (!editor.image || event.button > 2) return; // a mouse's "back", a pen's eraser
    event.preventDefault();
    capture(this.stage, event.pointerId);
    const start = this.place(event);
    this.#pointers.set(event.pointerId, start);
    if (this.#pointers.size === 2) {
      this.abandon();
      this.#gesture = { kind: "pinch" };
      return;
    }
    if (this.#gesture) return;
    editor.hover(null);
    const at = editor.view.toImage(start);
    const isPan = event.button === 1 || editor.panning;
    const found = isPan ? null : this.#hit(at);
    const negative = event.button === 2 || event.shiftKey || event.altKey || editor.negative;
    const mark = found && { ...editor.state.marks[found.index] };
    this.#gesture = { kind: isPan ? "pan" : "mark", pointer: event.pointerId, button: event.button, start, last: start, at, found, mark, negative, moved: false };
    if (found && found.part !== "body") editor.state.select(found.index);
  }

  #move(event) {
    const { editor } = this;
    if (!editor.image) return;
    const here = this.place(event);
    const before = this.#pointers.get(event.pointerId);
    if (before) this.#pointers.set(event.pointerId, here);
    if (!this.#gesture) {
      if (event.pointerType !== "touch") this.#hover(event, here);
      return;
    }
    event.stopPropagation();
    if (this.#gesture.kind === "pinch") return before && this.#pinch(event.pointerId, before, here);
    if (event.pointerId !== this.#gesture.pointer) return;
    if (this.#gesture.kind === "pan") this.#pan(here);
    else this.#drag(here);
  }

  #hover(event, here) {
    const { editor } = this;
    const at = editor.view.toImage(here);
    const found = this.#hit(at);
    const onMark = found && found.part !== "body";
    this.stage.style.cursor = editor.panning ? "grab" : onMark ? CURSORS[found.part] : "crosshair";
    const negative = event.shiftKey || event.altKey || editor.negative;
    editor.hover(onMark || editor.panning || !isInside(at, editor.image) ? null : { ...at, label: negative ? 0 : 1 });
  }

  #pan(here) {
    const { last } = this.#gesture;
    this.editor.view.pan(here.x - last.x, here.y - last.y);
    this.#gesture.last = here;
    this.editor.redraw();
  }

  #pinch(pointer, before, here) {
    const [other] = [...this.#pointers].filter(([id]) => id !== pointer).map(([, place]) => place);
    if (!other) return;
    const apart = (place) => Math.max(1, Math.hypot(place.x - other.x, place.y - other.y));
    this.editor.view.pan((here.x - before.x) / 2, (here.y - before.y) / 2);
    this.editor.view.zoomAt({ x: (here.x + other.x) / 2, y: (here.y + other.y) / 2 }, apart(here) / apart(before));
    this.editor.redraw();
  }

  #drag(here) {
    const { editor } = this;
    const gesture = this.#gesture;
    if (!gesture.moved && Math.hypot(here.x - gesture.start.x, here.y - gesture.start.y) < SLACK * editor.unit) return;
    if (gesture.button !== 0) return;
    const to = editor.view.toImage(here);
    if (!gesture.moved && !gesture.found && !isInside(gesture.at, editor.image)) return;
    if (gesture.found && !gesture.moved) editor.state.select(gesture.found.index);
    gesture.moved = true;
    if (gesture.found) {
      const by = { x: to.x - gesture.at.x, y: to.y - gesture.at.y };
      editor.state.update(gesture.found.index, dragged(gesture.mark, gesture.found.part, by, editor.image));
    } else {
      const box = boxBetween(gesture.at, clamped(to, editor.image));
      if (box.width <= 0 || box.height <= 0) return;
      if (gesture.box === undefined) {
        editor.state.add(box, false);
        gesture.box = editor.state.selected;
      } else {
        editor.state.update(gesture.box, box);
      }
    }
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    const gesture = this.#gesture;
    if (!gesture) return;
    event.stopPropagation();
    if (gesture.kind === "pinch") {
      if (!this.#pointers.size) this.#gesture = null;
      return;
    }
    if (event.pointerId !== gesture.pointer) return;
    this.#gesture = null;
    if (gesture.kind === "pan") return;
    if (gesture.moved) this.#drop(gesture);
    else this.#click(gesture, event.timeStamp);
  }

  #drop(gesture) {
    const { state, view, unit } = this.editor;
    const box = gesture.box === undefined ? null : state.marks[gesture.box];
    const tiny = box && Math.max(box.width, box.height) * view.scale < SLACK * unit;
    if (tiny) state.cancel();
    else state.commit();
  }

  #click({ at, found, negative }, time) {
    const { state, image } = this.editor;
    const { index: lastIndex, time: lastTime } = this.#lastClick;
    this.#lastClick = { index: null, time };
    if (found && found.part !== "body") {
      if (found.index === lastIndex && time - lastTime < DOUBLE_CLICK) state.remove(found.index);
      else this.#lastClick.index = found.index;
    } else if (isInside(at, image)) {
      state.add({ ...at, label: negative ? 0 : 1 });
    }
  }

  #cancel(event) {
    this.#pointers.delete(event.pointerId);
    this.abandon();
  }
}

/** Pointer capture fails for pointers that a test or a tool has made up; the gesture works without it. */
function capture(element, pointer) {
  try {
    element.setPointerCapture(pointer);
  } catch {
    // nothing to do: events reach the element anyway while the pointer is over it
  }
}

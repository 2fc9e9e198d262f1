/** Turns pointer events into what they mean: a click, a drag of a mark, a new box, a pan, a zoom with two fingers. */

import { boxBetween, clamped, dragged, hit, isInside } from "./geometry.js";
import { POINT_RADIUS } from "./paint.js";
import { isOutside } from "./state.js";

const SLACK = 4; // screen pixels that a click may move
const DOUBLE_CLICK = 350; // milliseconds
const MOST_REACH = 1 / 16; // of the image's shorter side: in a small image there is room between the marks

const CURSORS = { n: "ns-resize", s: "ns-resize", e: "ew-resize", w: "ew-resize", nw: "nwse-resize", se: "nwse-resize" };
Object.assign(CURSORS, { ne: "nesw-resize", sw: "nesw-resize", point: "move" });

export class Gestures {
  #pointers = new Map();
  #gesture = null;
  #lastClick = { index: null, time: -Infinity };
  #pointer = null; // where the pointer was seen last, while it is on the image

  /**
   * @param {HTMLElement} stage  takes the events
   * @param {object} editor  has state, view, image, unit, stageSize, panning, framing, negative, boxTool, brush, redraw(),
   *   objectAt(place), hover(place | null), drawRegion(region | null) and takeRegion()
   * @param {AbortSignal} [signal]  ends the listening
   */
  constructor(stage, editor, signal) {
    this.stage = stage;
    this.editor = editor;
    const on = (type, handle) => stage.addEventListener(type, handle, { signal });
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#move(event));
    on("pointerup", (event) => this.#up(event));
    on("pointercancel", (event) => this.#cancel(event));
    on("pointerleave", () => this.#leave());
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
    const kind = this.#gesture?.kind ?? "pan";
    this.#gesture = null;
    if (kind === "brush") this.editor.brush.cancel();
    else if (kind === "region") this.editor.drawRegion(null);
    else if (kind !== "pan") this.editor.state.cancel();
  }

  #leave() {
    this.#pointer = null;
    if (this.#gesture) return;
    this.editor.hover(null);
    if (this.editor.brush.at) this.editor.brush.hover(null);
  }

  /** The marks as they are drawn: those that lie outside of the image are at its edge. */
  #marks() {
    const { state, image } = this.editor;
    return state.marks.map((mark) => (isOutside(mark, image) ? { ...mark, ...clamped(mark, image) } : mark));
  }

  #hit(at) {
    const { state, view, unit, image } = this.editor;
    const most = Math.min(image.width, image.height) * MOST_REACH;
    const reach = Math.min(most, ((POINT_RADIUS + 2) * unit) / view.scale);
    return hit(this.#marks(), state.touchable, at, reach, { object: state.current, isEmpty: !state.hasContent(state.current) });
  }

  /** A key that changes what a click means was pressed or released: the pointer shows it without being moved. */
  modified({ shiftKey, altKey, ctrlKey, metaKey }) {
    if (this.#pointer && !this.#gesture && this.editor.image) this.#hover({ shiftKey, altKey, ctrlKey, metaKey }, this.place(this.#pointer));
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
    if (editor.framing && event.button === 0) {
      this.#gesture = { kind: "region", pointer: event.pointerId, start, at, moved: false };
      return;
    }
    if (editor.brush.isActive && !isPan) {
      const other = event.button === 2 || event.shiftKey || event.altKey;
      this.#gesture = { kind: "brush", pointer: event.pointerId };
      return editor.brush.begin(at, other);
    }
    const forced = event.ctrlKey || event.metaKey; // a new mark, whatever lies there
    const found = isPan || forced ? null : this.#hit(at);
    const negative = event.button === 2 || event.shiftKey || event.altKey || editor.negative;
    const mark = found && this.#marks()[found.index];
    const kind = isPan ? "pan" : "mark";
    this.#gesture = { kind, pointer: event.pointerId, button: event.button, start, last: start, at, found, mark, negative, forced, moved: false };
    if (found && found.part !== "body" && !editor.boxTool) editor.state.select(found.index);
  }

  #move(event) {
    const { editor } = this;
    if (!editor.image) return;
    this.#pointer = event.pointerType === "touch" ? null : { clientX: event.clientX, clientY: event.clientY };
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
    if (this.#gesture.kind === "brush") this.#brush(event);
    else if (this.#gesture.kind === "pan") this.#pan(here);
    else if (this.#gesture.kind === "region") this.#frame(here);
    else this.#drag(here);
  }

  /** Every place that the pointer has been at since the last event, which browsers put into one. */
  #brush(event) {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) this.editor.brush.extend(this.editor.view.toImage(this.place(one)));
  }

  /** The region as far as the pointer has come. */
  #frame(here) {
    const { editor } = this;
    const gesture = this.#gesture;
    const isFar = Math.hypot(here.x - gesture.start.x, here.y - gesture.start.y) >= SLACK * editor.unit;
    if (!gesture.moved && !isFar) return;
    gesture.moved = true;
    editor.drawRegion(boxBetween(clamped(gesture.at, editor.image), clamped(editor.view.toImage(here), editor.image)));
  }

  #hover(event, here) {
    const { editor } = this;
    const at = editor.view.toImage(here);
    if (editor.framing) {
      this.stage.style.cursor = "crosshair";
      return editor.hover(null);
    }
    if (editor.brush.isActive) {
      this.stage.style.cursor = editor.panning ? "grab" : "none";
      return editor.brush.hover(editor.panning ? null : at);
    }
    const found = this.#hit(at);
    const onMark = found && found.part !== "body" && !editor.boxTool;
    const negative = event.shiftKey || event.altKey || editor.negative;
    const other = onMark || negative || event.ctrlKey || event.metaKey ? null : editor.objectAt(at);
    const isRefused = editor.state.object.locked && other === null && isInside(at, editor.image);
    const cursor = isRefused ? "not-allowed" : other === null ? "crosshair" : "pointer";
    this.stage.style.cursor = editor.panning ? "grab" : onMark ? CURSORS[found.part] : cursor;
    const nothing = onMark || other !== null || editor.panning || !isInside(at, editor.image);
    editor.hover(nothing ? null : { ...at, label: negative ? 0 : 1 });
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
    const moves = gesture.found && !editor.boxTool;
    if (moves && !gesture.moved) editor.state.select(gesture.found.index);
    gesture.moved = true;
    if (moves) {
      const by = { x: to.x - gesture.at.x, y: to.y - gesture.at.y };
      editor.state.update(gesture.found.index, dragged(gesture.mark, gesture.found.part, by, editor.image));
    } else {
      this.#stretch(boxBetween(clamped(gesture.at, editor.image), clamped(to, editor.image)));
    }
  }

  /** Draw the new box as far as the pointer has come; what lies outside of the image is cut off. */
  #stretch(box) {
    const { state } = this.editor;
    if (box.width <= 0 || box.height <= 0 || this.#gesture.isRefused) return;
    if (this.#gesture.box !== undefined) state.update(this.#gesture.box, box);
    else if (state.add(box, false)) this.#gesture.box = state.selected;
    else {
      this.#gesture.isRefused = true; // it is said once a drag
      this.editor.refuse();
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
    if (gesture.kind === "brush") return this.editor.brush.end();
    if (gesture.kind === "region") return this.editor.takeRegion();
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

  #click({ at, found, negative, forced }, time) {
    const { state, image } = this.editor;
    const { index: lastIndex, time: lastTime } = this.#lastClick;
    this.#lastClick = { index: null, time };
    if (found && found.part !== "body") {
      if (found.index === lastIndex && time - lastTime < DOUBLE_CLICK) state.remove(found.index);
      else this.#lastClick.index = found.index;
      if (this.editor.boxTool && state.marks[found.index]) state.select(found.index);
      return;
    }
    if (!image || !isInside(at, image)) return; // it may have gone since the press
    const other = negative || forced ? null : this.editor.objectAt(at);
    if (other !== null) state.selectObject(other);
    else if (!state.add({ ...at, label: negative ? 0 : 1 })) this.editor.refuse();
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

/** The editor's buttons: in groups, each with an icon, a tooltip and an accessible name. */

import { LEGEND } from "./keys.js";
import { ACTIONS } from "./status.js";
import { VIEWS } from "./views.js";

/** An element with properties, attributes (names with a dash) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/**
 * Make ComfyUI leave the keys to an element while it has the focus. ComfyUI's undo listens on the window before anything else,
 * and spares text fields only: older frontends ask for the element's type, newer ones whether its content can be edited.
 */
export function keepKeys(element) {
  const is = (value) => ({ get: () => value, configurable: true });
  Object.defineProperties(element, { type: is("textarea"), isContentEditable: is(true) });
  return element;
}

/** A button with an icon of PrimeIcons, which every ComfyUI frontend has. */
export function button(icon, title, onclick) {
  const face = make("i", { className: `pi pi-${icon}`, "aria-hidden": "true" });
  return keepKeys(make("button", { type: "button", title, onclick, "aria-label": title }, face));
}

const REGION_NONE = "Look here (R): the marks are answered from what is on the screen alone, at its full resolution. Zoom in first, or hold R and drag";
const REGION_SET = "The marks are answered from the framed region alone. Press to use the whole image again (R)";
const CANDIDATE_NAMES = { best: "Best guess", smallest: "1 Part", middle: "2 Middle", largest: "3 Whole" };

/**
 * @param {object} editor
 * @returns {{element: HTMLElement, update: () => void}}  `update` makes the buttons show the editor's state
 */
export function makeToolbar(editor) {
  const { state } = editor;
  const undo = button("undo", "Undo (Ctrl+Z)", () => editor.undo());
  const redo = button("undo", "Redo (Ctrl+Shift+Z)", () => editor.redo());
  redo.classList.add("samkit-mirrored");
  const object = button("plus", "New object (N): clicks then mark that one", () => state.newObject());
  const negative = button("minus-circle", "Clicks mark what is NOT the object (as a right click does)", () => editor.toggleNegative());
  const box = button("stop", "Box tool (B): every drag draws a new box", () => editor.toggleBoxTool());
  const remove = button("trash", "Remove the selected mark (Delete)", () => state.remove(state.selected));
  const clear = button("eraser", "", () => state.clear());
  const clearAll = button("ban", "Remove the marks of all frames", () => state.clearAll());
  const options = Object.entries(CANDIDATE_NAMES).map(([value, text]) => make("option", { value }, text));
  const candidate = make("select", { "aria-label": "How much of the object", title: "How much of the object (0, 1, 2, 3)" }, ...options);
  candidate.onchange = () => {
    state.chooseCandidate(candidate.value);
    editor.stage.focus({ preventScroll: true });
  };
  const choose = makeChooser(editor);
  const hide = button("eye", "Show or hide the masks (H)", () => editor.toggleOverlay());
  const hover = button("bolt", "", () => editor.toggleHover());
  const detail = button("search-plus", "Second looks (D): when the pointer stops, and in a run, each object is segmented again in a cut around it. Masks of small objects become sharp", () => editor.toggleDetail());
  const region = button("bullseye", "", () => editor.toggleRegion());
  const send = button("pencil", "Send to Mask Editor: a Load Image node with this mask", () => editor.sendToMaskEditor());
  const brush = makeBrush(editor);
  const views = makeViews(editor);
  const fit = button("arrows-alt", "Fit the image (F)", () => editor.fit());
  const full = button("window-maximize", "Full screen, and back", () => editor.toggleFullScreen());
  const dialog = button("external-link", "Open in a dialog over the whole window, with OK and Cancel", () => editor.host.openDialog());
  const load = button("play", "Load image: run only what is upstream of it", () => editor.loadImage());
  const frames = makeFrames(editor);
  const group = (label, ...parts) => make("span", { className: "samkit-group", role: "group", "aria-label": label }, ...parts);
  const groups = [
    group("History", undo, redo),
    group("Marks", object, negative, box, remove, clear, clearAll),
    group("Mask", candidate, choose.element, hover, detail, region, send, editor.finish.opener),
    brush.element,
    group("View", hide, ...views.parts, fit, dialog, full, load),
    frames.element,
  ];
  const element = make("div", { className: "samkit-toolbar", role: "toolbar", "aria-label": "SAM Prompt Editor" }, ...groups);
  dialog.hidden = !editor.host.openDialog;
  full.hidden = Boolean(editor.host.leave); // its window is as large
  send.hidden = !editor.host.sendToMaskEditor;
  load.hidden = !editor.host.loadImage;
  const pressed = (one, value) => one.setAttribute("aria-pressed", String(value));
  const name = (one, text) => { one.title = text; one.setAttribute("aria-label", text); };
  const update = () => {
    undo.disabled = !editor.canUndo;
    redo.disabled = !editor.canRedo;
    remove.disabled = state.selected === null;
    clear.disabled = !state.clearable.length;
    name(clear, editor.frameCount > 1 ? "Remove this frame's own marks (those for all frames stay)" : "Remove all marks");
    clearAll.hidden = editor.frameCount < 2;
    clearAll.disabled = !state.marks.length;
    send.disabled = !editor.masks.some(({ isTracked }) => !isTracked);
    candidate.value = state.candidate;
    candidate.disabled = Boolean(state.object.locked);
    choose.update();
    brush.update();
    views.update();
    pressed(negative, editor.negative);
    pressed(detail, state.detail !== "off");
    detail.disabled = region.disabled = state.isFilm; // SAM Track sees whole frames, and has a detail of its own
    pressed(region, state.regionOf(state.current) !== null);
    name(region, state.regionOf(state.current) ? REGION_SET : REGION_NONE);
    pressed(box, editor.boxTool);
    pressed(hide, !editor.hidden);
    pressed(hover, editor.isHoverPaused ? "mixed" : editor.hovering);
    name(hover, hoverTitle(editor));
    frames.update();
  };
  return { element, update, candidates: choose.list, closeCandidates: choose.close };
}

/** Brush and eraser; their size and what removes the paint are out of sight while neither is taken up. */
function makeBrush(editor) {
  const add = button("circle-fill", "Brush (P): paint what belongs to the mask; right button: erase", () => editor.brush.toggle("add"));
  const erase = button("circle", "Eraser (E): erase what does not; right button: paint", () => editor.brush.toggle("erase"));
  const size = make("input", { type: "range", min: 0, max: 100, title: "Size of the brush (-, +, Alt + wheel)", "aria-label": "Size of the brush" });
  const clear = button("filter-slash", "Remove the object's paint", () => editor.state.clearPaint());
  const element = make("span", { className: "samkit-group", role: "group", "aria-label": "Brush" }, add, erase, size, clear);
  const [least, most] = [1, 256]; // pixels, the ends of the slider
  size.oninput = () => editor.brush.resize((least * (most / least) ** (size.value / 100)) / editor.brush.radius);
  size.onchange = () => editor.stage.focus({ preventScroll: true });
  const update = () => {
    const { tool, radius, isActive } = editor.brush;
    add.setAttribute("aria-pressed", String(tool === "add"));
    erase.setAttribute("aria-pressed", String(tool === "erase"));
    for (const part of [size, clear]) part.classList.toggle("samkit-unseen", !isActive); // the image must not move under the pointer
    size.value = Math.round((100 * Math.log(radius / least)) / Math.log(most / least));
    clear.disabled = !editor.state.paintOf(editor.state.current).length || Boolean(editor.state.object.locked);
  };
  return { element, update };
}

/** How the masks are seen, and how strongly. */
function makeViews(editor) {
  const { mode } = editor;
  const options = Object.entries(VIEWS).map(([value, { label }]) => make("option", { value }, label));
  const choose = make("select", { className: "samkit-view", "aria-label": "View", title: "How the masks are shown (V). Hold A to see the image alone" }, ...options);
  const opacity = make("input", { className: "samkit-opacity", type: "range", min: 0, max: 100, title: "Opacity", "aria-label": "Opacity" });
  choose.onchange = () => {
    mode.name = choose.value;
    editor.changed();
    editor.stage.focus({ preventScroll: true });
  };
  opacity.oninput = () => {
    mode.opacity = opacity.value / 100;
    editor.redraw();
  };
  opacity.onchange = () => editor.stage.focus({ preventScroll: true });
  const update = () => {
    choose.value = mode.name;
    opacity.value = Math.round(100 * mode.opacity);
  };
  return { parts: [choose, opacity], update };
}

function hoverTitle(editor) {
  const title = "Preview what a click would give, as the pointer moves";
  if (!editor.isHoverPaused) return title;
  return `${title}: paused, as a mask takes ${Math.round(editor.preview.pace.median)} ms here. Press to preview all the same`;
}

/** SAM's candidates as small images, one press to take. The list lies over the editor, which puts it there. */
function makeChooser(editor) {
  const open = button("images", "Show SAM's candidates", () => (list.hidden ? show() : close()));
  const list = make("div", { className: "samkit-candidates", role: "group", "aria-label": "SAM's candidates", hidden: true });
  const element = make("span", { className: "samkit-chooser" }, open);
  let asked = 0;
  /** Returns whether it was open. */
  const close = () => {
    const wasOpen = !list.hidden;
    asked += 1;
    list.hidden = true;
    open.setAttribute("aria-pressed", "false");
    return wasOpen;
  };
  const show = async () => {
    const number = (asked += 1);
    list.replaceChildren("…");
    list.style.top = `${editor.toolbar.element.offsetHeight}px`;
    list.hidden = false;
    open.setAttribute("aria-pressed", "true");
    try {
      const found = await editor.candidates();
      if (number === asked) list.replaceChildren(...(found ?? []).map((one) => thumbnail(editor, one, close)));
      if (number === asked && !found) close();
    } catch (error) {
      if (number === asked) close();
      editor.host.complain(error.message);
    }
  };
  const update = () => {
    const key = JSON.stringify([editor.state.current, editor.state.frame, editor.state.runText]);
    if (element.dataset.key !== key) close(); // they were another question's
    element.dataset.key = key;
    open.disabled = !editor.mask;
  };
  return { element, list, close, update };
}

function thumbnail(editor, { candidate, score, png }, taken) {
  const title = `${CANDIDATE_NAMES[candidate]}: SAM's confidence ${Math.round(100 * score)} %`;
  const image = make("img", { src: `data:image/png;base64,${png}`, alt: "" });
  const onclick = () => {
    editor.state.chooseCandidate(candidate);
    taken();
  };
  return make("button", { type: "button", title, "aria-label": title, onclick }, image, `${CANDIDATE_NAMES[candidate]} ${Math.round(100 * score)} %`);
}

/** The frame chooser; out of sight while there is one frame. */
function makeFrames(editor) {
  const { state } = editor;
  const choose = make("input", { type: "range", min: 0, "aria-label": "Frame", title: "Frame" });
  const number = make("output", {});
  const only = make("input", { type: "checkbox" });
  const label = make("label", { title: "New marks are for this frame only, not for all. They are dashed" }, only, " this frame only");
  const next = button("step-forward", "Copy the object's marks of this frame to the next frame", () => state.copyToNext());
  const all = button("clone", "Copy the object's marks of this frame to all frames", () => state.copyToAll());
  const element = make("span", { className: "samkit-group samkit-frames", role: "group", "aria-label": "Frames" }, choose, number, label, next, all);
  choose.oninput = () => state.showFrame(Number(choose.value));
  choose.onchange = () => editor.stage.focus({ preventScroll: true });
  only.onchange = () => { state.onlyThisFrame = only.checked; };
  const update = () => {
    element.hidden = editor.frameCount < 2;
    choose.max = editor.frameCount - 1;
    choose.value = state.frame;
    number.value = `${state.frame + 1} / ${editor.frameCount}`;
    only.checked = state.onlyThisFrame;
    label.hidden = all.hidden = state.isFilm;
    next.disabled = state.frame + 1 >= editor.frameCount || !state.marks.some((mark) => mark.object === state.current && mark.frame === state.frame);
    all.disabled = !state.marksOf(state.current).length;
  };
  return { element, update };
}

/** What is said on the image, with buttons for what can be done about it. @param {(action: string) => void} act */
export function makeNote(act) {
  const text = make("span", {});
  const buttons = make("span", { className: "samkit-actions" });
  const element = make("div", { className: "samkit-note", role: "status", hidden: true }, text, buttons);
  element.addEventListener("pointerdown", (event) => event.stopPropagation());
  element.addEventListener("contextmenu", (event) => event.stopPropagation());
  let shown = "";
  const update = (note) => {
    const key = JSON.stringify(note);
    if (key === shown) return;
    shown = key;
    element.hidden = note === null;
    element.classList.toggle("samkit-covers", Boolean(note?.covers));
    text.textContent = note?.text ?? "";
    buttons.replaceChildren(...(note?.actions ?? []).map((action) => make("button", { type: "button", onclick: () => act(action) }, ACTIONS[action])));
  };
  return { element, update };
}

/** The keys, for full screen. */
export function makeLegend() {
  const rows = LEGEND.flatMap(([keys, meaning]) => [make("dt", {}, keys), make("dd", {}, meaning)]);
  return make("dl", { className: "samkit-legend", "aria-label": "Keys" }, ...rows);
}

/** The editor's buttons: each with an icon, a tooltip and an accessible name. */

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

function button(icon, title, onclick) {
  const face = make("i", { className: `pi pi-${icon}`, "aria-hidden": "true" });
  return make("button", { type: "button", title, onclick, "aria-label": title }, face);
}

const CANDIDATE_NAMES = { best: "Best", smallest: "1 Smallest", middle: "2 Middle", largest: "3 Largest" };

/**
 * @param {object} editor
 * @returns {{element: HTMLElement, update: () => void}}  `update` makes the buttons show the editor's state
 */
export function makeToolbar(editor) {
  const { state } = editor;
  const undo = button("undo", "Undo (Ctrl+Z)", () => state.undo());
  const redo = button("refresh", "Redo (Ctrl+Shift+Z)", () => state.redo());
  const remove = button("trash", "Remove the selected mark (Delete)", () => state.remove(state.selected));
  const clear = button("eraser", "Remove all marks of this frame", () => state.clear());
  const negative = button("minus-circle", "Clicks mark what is NOT the object (as a right click does)", () => editor.toggleNegative());
  const hide = button("eye", "Show or hide the mask (H)", () => editor.toggleOverlay());
  const hover = button("bolt", "Preview what a click would give, as the pointer moves", () => editor.toggleHover());
  const fit = button("expand", "Fit the image (F)", () => editor.fit());
  const full = button("window-maximize", "Full screen, and back", () => editor.toggleFullScreen());
  const load = button("download", "Load image: run only what is upstream of it", () => editor.loadImage());
  const send = button("pencil", "Send to Mask Editor: a Load Image node with this mask", () => editor.sendToMaskEditor());
  const options = Object.entries(CANDIDATE_NAMES).map(([value, text]) => make("option", { value }, text));
  const candidate = make("select", { "aria-label": "Candidate", title: "Which of SAM's candidates to take (0, 1, 2, 3)" }, ...options);
  candidate.onchange = () => state.chooseCandidate(candidate.value);
  const frames = makeFrames(editor);
  const parts = [undo, redo, remove, clear, negative, candidate, hide, hover, fit, full, load, send, frames.element];
  const element = make("div", { className: "samkit-toolbar", role: "toolbar", "aria-label": "SAM Prompt Editor" }, ...parts);
  const pressed = (one, value) => one.setAttribute("aria-pressed", String(value));
  const update = () => {
    undo.disabled = !state.canUndo;
    redo.disabled = !state.canRedo;
    remove.disabled = state.selected === null;
    clear.disabled = !state.shown.length;
    send.disabled = !editor.mask;
    candidate.value = state.candidate;
    pressed(negative, editor.negative);
    pressed(hide, !editor.hidden);
    pressed(hover, editor.hovering);
    frames.update();
  };
  return { element, update };
}

/** The frame chooser; out of sight while there is one frame. */
function makeFrames(editor) {
  const { state } = editor;
  const choose = make("input", { type: "range", min: 0, "aria-label": "Frame", title: "Frame" });
  const number = make("output", {});
  const only = make("input", { type: "checkbox" });
  const label = make("label", { title: "New marks are for this frame only, not for all" }, only, " this frame only");
  const element = make("span", { className: "samkit-frames" }, choose, number, label);
  choose.oninput = () => state.showFrame(Number(choose.value));
  only.onchange = () => { state.onlyThisFrame = only.checked; };
  const update = () => {
    element.hidden = editor.frameCount < 2;
    choose.max = editor.frameCount - 1;
    choose.value = state.frame;
    number.value = `${state.frame + 1} / ${editor.frameCount}`;
  };
  return { element, update };
}

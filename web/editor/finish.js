/** The Finish panel: grow, smooth, feather and clean the masks of one object or of all. */

import { OPTIONS, rangeOf } from "./finish_options.js";
import { button, make } from "./toolbar.js";

/**
 * The panel: folded until its button is pressed.
 * @param {object} editor
 * @returns {{element: HTMLElement, opener: HTMLButtonElement, update: () => void}}
 */
export function makeFinish(editor) {
  const { state } = editor;
  const opener = button("sliders-h", "Finish: grow, smooth, feather and clean the masks", () => {
    element.hidden = !element.hidden;
    editor.toolbar.closeCandidates(); // they lie over the panel
    update();
  });
  const scope = make("select", { "aria-label": "Which objects", title: "Which objects" });
  scope.append(make("option", { value: "all" }, "All objects"), make("option", { value: "own" }));
  let [isOwn, known] = [false, null];
  scope.onchange = () => {
    isOwn = scope.value === "own";
    update();
  };
  const target = () => (isOwn ? state.current : null);
  const set = (change, commit) => state.setFinish(target(), change, commit);
  const fields = OPTIONS.map((option) => makeField(option, set));
  const invert = make("input", { type: "checkbox" });
  invert.onchange = () => set({ invert: invert.checked }, true);
  const inverted = make("label", { title: "Exchange inside and outside" }, invert, " Invert");
  const reset = button("refresh", "", () => state.resetFinish(target()));
  const parts = [scope, ...fields.map((field) => field.element), inverted, reset];
  const element = make("div", { className: "samkit-finish", role: "group", "aria-label": "Finish", hidden: true }, ...parts);
  const update = () => {
    const { object, current } = state;
    const seen = `${current} ${Boolean(object.finish)}`; // of another object, or of one that has got its own: its own is shown
    if (seen !== known) isOwn = Boolean(object.finish);
    known = seen;
    scope.value = isOwn ? "own" : "all";
    scope.lastChild.textContent = object.name;
    const finish = (isOwn && object.finish) || state.finish;
    fields.forEach((field) => field.update(finish));
    invert.checked = Boolean(finish.invert);
    reset.disabled = isOwn ? !object.finish : !Object.keys(state.finish).length;
    reset.title = isOwn ? "Finish this object as all objects" : "No finishing";
    reset.setAttribute("aria-label", reset.title);
    for (const part of parts.slice(1)) part.classList.toggle("samkit-inherited", isOwn && !object.finish);
    opener.setAttribute("aria-pressed", String(!element.hidden));
    opener.classList.toggle("samkit-marked", state.objects.some((_, index) => Object.keys(state.finishOf(index)).length));
  };
  return { element, opener, update };
}

function makeField({ key, label, title, step }, set) {
  const [min, max] = rangeOf(key);
  const input = make("input", { type: "number", min, max, step, title, "aria-label": label });
  const read = (commit) => { if (input.value !== "" && Number.isFinite(input.valueAsNumber)) set({ [key]: input.valueAsNumber }, commit); };
  input.oninput = () => read(false);
  input.onchange = () => read(true);
  const element = make("label", { title }, `${label} `, input);
  const update = (finish) => {
    const value = finish[key] ?? 0;
    const isTyped = document.activeElement === input && (input.value === "" || input.valueAsNumber === value);
    if (!isTyped) input.value = value;
  };
  return { element, update };
}

/** The list of objects: colour, name, and what can be done with each. Out of sight while there is one. */

import { contract } from "./contract.js";
import { button, make } from "./toolbar.js";

/**
 * @param {object} editor
 * @returns {{element: HTMLElement, update: () => void}}
 */
export function makeObjects(editor) {
  const element = make("div", { className: "samkit-objects", role: "listbox", "aria-label": "Objects" });
  const rows = [];
  let [shown, count] = [null, 0];
  const update = () => {
    if (editor.gestures.active) return; // the stage must not change its size under a drag
    const { objects, current } = editor.state;
    element.hidden = objects.length < 2;
    while (rows.length > objects.length) rows.pop().element.remove();
    while (rows.length < objects.length) {
      rows.push(makeRow(editor, rows.length));
      element.append(rows.at(-1).element);
    }
    rows.forEach((row, index) => row.update(objects[index], index === current, objects.length));
    if (current !== shown || objects.length !== count) show(rows[current].element);
    [shown, count] = [current, objects.length];
  };
  /** Scroll no further than to see a row whole: `scrollIntoView` would move what is around the editor too. */
  const show = (row) => {
    const top = row.offsetTop - element.offsetTop;
    if (top < element.scrollTop) element.scrollTop = top;
    const below = top + row.offsetHeight - element.clientHeight;
    if (below > element.scrollTop) element.scrollTop = below;
  };
  return { element, update };
}

function makeRow(editor, index) {
  const { state } = editor;
  const colour = make("input", { type: "color", title: "Colour", "aria-label": "Colour" });
  colour.onchange = () => state.setObject(index, { colour: colour.value });
  const name = make("input", { type: "text", title: "Name", "aria-label": "Name", maxLength: contract.limits.name ?? -1 });
  name.onchange = () => state.setObject(index, { name: name.value });
  const hide = button("eye", "Hide or show the object here (the masks that go out stay)", () => toggle("hidden"));
  const lock = button("lock-open", "Lock: its marks cannot be changed", () => toggle("locked"));
  const up = button("angle-up", "Move up", () => state.moveObject(index, -1));
  const down = button("angle-down", "Move down", () => state.moveObject(index, 1));
  const remove = button("times", "Delete the object", () => state.removeObject(index));
  const element = make("div", { className: "samkit-object", role: "option" }, colour, name, hide, lock, up, down, remove);
  const toggle = (key) => state.setObject(index, { [key]: !state.objects[index][key] });
  element.addEventListener("pointerdown", (event) => {
    if (event.target === element || event.target === name) state.selectObject(index);
  });
  const update = (object, isCurrent, count) => {
    element.setAttribute("aria-selected", String(isCurrent));
    colour.value = object.colour;
    if (document.activeElement !== name) name.value = object.name;
    hide.setAttribute("aria-pressed", String(!object.hidden));
    hide.firstChild.className = `pi pi-${object.hidden ? "eye-slash" : "eye"}`;
    lock.setAttribute("aria-pressed", String(Boolean(object.locked)));
    lock.firstChild.className = `pi pi-${object.locked ? "lock" : "lock-open"}`;
    up.disabled = index === 0;
    down.disabled = index === count - 1;
    remove.disabled = Boolean(object.locked);
  };
  return { element, update };
}

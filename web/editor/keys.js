/** What the keys do while the editor is what was last used. */

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FRAMES = { ",": ({ frame }) => frame - 1, ".": ({ frame }) => frame + 1, Home: () => 0, End: ({ frames }) => frames - 1 };
const inFilm = (frame, { frames }) => Math.max(0, Math.min(frames - 1, frame));
const CANDIDATE_OF = { 0: "best", 1: "smallest", 2: "middle", 3: "largest" };

/** What the legend says, in its order. */
export const LEGEND = [
  ["Left click", "on the object"],
  ["Right click, Shift + click", "not on the object"],
  ["Drag", "box, or move a mark"],
  ["Ctrl + drag", "always a new box"],
  ["Ctrl + click", "a point, whatever lies there"],
  ["Double click", "remove a mark"],
  ["N", "new object"],
  ["[ and ]", "object before, next object"],
  ["L", "find all like the object: take or leave out what is offered"],
  ["0, 1, 2, 3", "how much of the object"],
  ["B", "box tool"],
  ["P, E", "brush, eraser"],
  ["- and +, Alt + wheel", "size of the brush"],
  ["H, V", "hide the masks, next view"],
  ["A, held down", "the image alone"],
  ["R + drag, R", "region: use a part of the image alone; R again: all of it"],
  ["D", "second looks, when the pointer stops"],
  ["Wheel or pinch, Space + drag, F", "zoom, pan, fit"],
  ["Delete, arrows, Tab", "remove, move, next mark"],
  [", and . or arrows, Home, End", "frame before, next, first, last"],
  ["Ctrl + Z, Ctrl + Y", "undo, redo"],
];

/**
 * Act on a key. Returns whether it was ours, in which case nobody else should hear of it.
 * @param {KeyboardEvent} event
 * @param {object} editor  has state, image, gestures, fit(), toggleOverlay(), toggleBoxTool(), nudge(dx, dy), escape(), brush, nextView(), alike, undo(), redo()
 */
export function onKey(event, editor) {
  // Where [ and ] are typed with AltGr, browsers report Alt, and on Windows Ctrl too.
  const isTyped = event.getModifierState?.("AltGraph") && (event.key === "[" || event.key === "]");
  const action = isTyped ? actionOf({ key: event.key }, editor) : event.altKey ? null : actionOf(event, editor);
  if (!action) return false;
  // A drag holds a mark by its place in the list: that must not change until the pointer is up.
  if (editor.gestures.active && event.key !== "Escape") return true;
  return action() ?? true;
}

/** The key's name, a letter in lower case; where the layout has no Latin letters, the letter that is there on one that has. */
function latin({ key, code = "" }) {
  if (key.length !== 1) return key;
  const place = /^Key([A-Z])$/.exec(code);
  return (key > "~" && place ? place[1] : key).toLowerCase();
}

/** What a key asks for, or null where it is not ours. What that returns, if anything, is whether it was ours after all. */
function actionOf(event, editor) {
  const { ctrlKey, metaKey, shiftKey } = event;
  const { state } = editor;
  const key = latin(event);
  if (ctrlKey || metaKey) {
    if (key === "z") return () => (shiftKey ? editor.redo() : editor.undo());
    return key === "y" ? () => editor.redo() : null;
  }
  const offered = editor.alike.keyed(key, shiftKey);
  if (offered) return offered;
  if (key in ARROWS) {
    const [dx, dy] = ARROWS[key].map((step) => step * (shiftKey ? 10 : 1));
    if (state.selected === null && state.frames > 1 && dx) return () => state.showFrame(inFilm(state.frame + dx, state));
    if (state.selected === null || !editor.image) return null;
    return () => editor.nudge(dx, dy);
  }
  if (state.frames > 1 && key in FRAMES) return () => state.showFrame(inFilm(FRAMES[key](state), state));
  if (key in CANDIDATE_OF) return () => state.chooseCandidate(CANDIDATE_OF[key]);
  const remove = () => { if (state.selected !== null) state.remove(state.selected); };
  const actions = {
    Delete: remove,
    Backspace: remove,
    Escape: () => editor.escape(),
    Tab: () => state.selectNext(shiftKey ? -1 : 1),
    h: () => editor.toggleOverlay(),
    f: () => editor.fit(),
    b: () => editor.toggleBoxTool(),
    n: () => state.newObject(),
    l: () => editor.alike.toggle(),
    p: () => editor.brush.toggle("add"),
    e: () => editor.brush.toggle("erase"),
    v: () => editor.nextView(),
    d: () => editor.toggleDetail(),
    ...(editor.brush.isActive && { "-": () => editor.brush.resize(0.8), "+": () => editor.brush.resize(1.25), "=": () => editor.brush.resize(1.25) }),
    "[": () => state.selectNextObject(-1),
    "]": () => state.selectNextObject(1),
  };
  return actions[key] ?? null;
}

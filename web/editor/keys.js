/** What the keys do while the editor has the focus. */

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * Act on a key. Returns whether it was ours, in which case nobody else should hear of it.
 * @param {KeyboardEvent} event
 * @param {object} editor  has state, picture, fit(), toggleOverlay(), toggleFullScreen(), nudge(dx, dy), escape()
 */
export function onKey(event, editor) {
  const { state } = editor;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") return done(event.shiftKey ? state.redo() : state.undo());
    if (key === "y") return done(state.redo());
    return false;
  }
  if (key === "Tab") return state.selectNext(event.shiftKey ? -1 : 1);
  if (key in ARROWS) {
    if (state.selected === null) return false;
    const [dx, dy] = ARROWS[key].map((step) => step * (event.shiftKey ? 10 : 1));
    return done(editor.nudge(dx, dy));
  }
  const actions = {
    Delete: () => state.selected !== null && state.remove(state.selected),
    Backspace: () => state.selected !== null && state.remove(state.selected),
    Escape: () => editor.escape(),
    h: () => editor.toggleOverlay(),
    f: () => editor.fit(),
    0: () => state.chooseCandidate("best"),
    1: () => state.chooseCandidate("smallest"),
    2: () => state.chooseCandidate("middle"),
    3: () => state.chooseCandidate("largest"),
  };
  return key in actions ? done(actions[key]()) : false;
}

const done = () => true;

/** A press on the image that a layer above it takes: at once with a mouse or a pen; with a finger when it is lifted where it came
 * down, for it may be the first of two, which move the image. */

const SLACK = 10; // pixels that a finger may move

/**
 * @param {HTMLElement} stage  where the editor's gestures listen too, which hear of what is not taken
 * @param {AbortSignal} signal
 * @param {(event: PointerEvent) => boolean} isOurs  whether the layer takes it
 * @param {(event: PointerEvent) => void} press
 */
export function onPress(stage, signal, isOurs, press) {
  const on = (type, handle) => stage.addEventListener(type, handle, { signal, capture: true });
  let finger = null;
  on("pointerdown", (event) => {
    if (event.pointerType === "touch") {
      finger = finger === null && isOurs(event) ? { id: event.pointerId, x: event.clientX, y: event.clientY } : null;
    } else if (isOurs(event)) {
      event.stopImmediatePropagation();
      event.preventDefault();
      stage.focus({ preventScroll: true });
      press(event);
    }
  });
  on("pointerup", (event) => {
    const down = finger;
    finger = null;
    if (down?.id !== event.pointerId || Math.hypot(event.clientX - down.x, event.clientY - down.y) > SLACK) return;
    event.stopImmediatePropagation();
    stage.dispatchEvent(new PointerEvent("pointercancel", { pointerId: event.pointerId })); // the gestures have begun a mark
    press(event);
  });
  on("pointercancel", () => { finger = null; });
}

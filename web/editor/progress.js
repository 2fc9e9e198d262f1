/** What is said at the foot of the image while something takes long, with a button that ends it. */

import { make } from "./toolbar.js";

const SAID = 6000; // milliseconds that a result is said

/**
 * @param {() => void} cancel
 * @returns {{element: HTMLElement, show: (text: string, progress: number | null) => void, say: (text: string) => void, hide: () => void}}
 */
export function makeProgress(cancel) {
  const text = make("span", {});
  const bar = make("progress", { max: 1 });
  const stop = make("button", { type: "button", onclick: cancel }, "Cancel");
  const element = make("div", { className: "samkit-note samkit-progress", role: "status", hidden: true }, text, bar, stop);
  element.addEventListener("pointerdown", (event) => event.stopPropagation());
  let timer = 0;
  const put = (said, isWork) => {
    clearTimeout(timer);
    if (text.textContent !== said) text.textContent = said;
    bar.hidden = stop.hidden = !isWork;
    element.hidden = !said;
  };
  const hide = () => put("", false);
  /** @param {number | null} progress  0 to 1; null: the server is busy */
  const show = (work, progress) => {
    put(progress === null ? "ComfyUI is running a prompt. This continues when it is done." : `${work} ${Math.round(100 * progress)} %`, true);
    bar.value = progress ?? 0;
  };
  const say = (said) => {
    put(said, false);
    timer = setTimeout(hide, SAID);
  };
  return { element, show, say, hide };
}

/** The choice of a model where the graph has none: of those that are on this machine. */

import { api } from "../../scripts/api.js";
import { make } from "./editor/toolbar.js";

const LOADER = "AV_SAMLoader";
const LAST = "samkit.model"; // in the browser's storage: the model that was used last
const BUNDLED = "This is a small model for drawn scenes. For photographs, put a SAM checkpoint into models/sams, or run Load SAM Model once.";

export class ModelChoice {
  #onChange;
  #asked = null;
  #ready = { names: [], bundled: [] };

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange;
    this.select = make("select", { "aria-label": "Model", title: "The models on this machine" });
    this.word = make("span", { className: "samkit-dialog-word" });
    this.element = make("label", { hidden: true }, "Model", this.select, this.word);
    this.select.onchange = () => {
      localStorage.setItem(LAST, this.select.value);
      this.#say();
      this.#onChange();
    };
  }

  /** As the server's `model` wants it; null where there is none. */
  get model() {
    return this.select.value ? { model_name: this.select.value, precision: "auto" } : null;
  }

  /** Show the choice, with a word on it. What was used last is chosen, or the smallest; the bundled model where there is no other. */
  async show(word = "") {
    this.word.dataset.more = word;
    this.element.hidden = false;
    await (this.#asked ??= this.#read());
    this.#say();
  }

  async #read() {
    const info = await (await api.fetchApi(`/object_info/${LOADER}`)).json();
    const { samkit_ready: ready, samkit_labels: labels } = info[LOADER].input.required.model_name[1];
    this.#ready = ready;
    this.select.replaceChildren(...ready.names.map((value) => make("option", { value }, labels[value] ?? value)));
    const last = localStorage.getItem(LAST);
    this.select.value = ready.names.includes(last) ? last : ready.names[0] ?? "";
  }

  #say() {
    const isBundled = this.#ready.bundled.includes(this.select.value);
    this.word.textContent = [this.word.dataset.more, isBundled ? BUNDLED : ""].filter(Boolean).join(" ");
  }
}

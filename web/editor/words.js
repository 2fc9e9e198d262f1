/** Words in the editor: a field whose words are found in the image, each an object with its label. */

import { pollFor } from "./client.js";
import { contract } from "./contract.js";
import { makeProgress } from "./progress.js";
import { button, make } from "./toolbar.js";

const SHORT = "Connect grounding_model";
const ABSENT = "Connect Load Grounding DINO to grounding_model to find objects by words";
const UNKNOWN = "Connect Load Grounding DINO itself to grounding_model to find objects by words";

export class Words {
  #name = null; // null: nothing is connected; "": something that the editor does not know
  #work = 0;

  /** @param {import("./editor.js").PromptEditor} editor */
  constructor(editor) {
    this.editor = editor;
    this.field = make("input", { type: "search", className: "samkit-words", maxLength: contract.limits.words ?? -1, "aria-label": "Find objects by words" });
    this.button = button("search", "Find the objects that the words name", () => this.find());
    this.progress = makeProgress(() => this.cancel());
    this.field.addEventListener("keydown", (event) => { if (event.key === "Enter") this.find(); });
    editor.stage.append(this.progress.element);
    this.group = make("span", { className: "samkit-group", role: "group", "aria-label": "Words" }, this.field, this.button);
    editor.foot.append(this.group);
    this.update();
  }

  /** Which Grounding DINO is connected: its name, "" where it is not known, null for none. */
  connect(name) {
    this.#name = name;
    this.update();
  }

  /** For where nothing can be connected. */
  hide() {
    this.group.hidden = true;
  }

  update() {
    const { field } = this;
    field.disabled = !this.#name;
    const title = this.#name ? 'The objects to find: "cat. dog.", separated by full stops or commas. Use English' : this.#name === null ? ABSENT : UNKNOWN;
    if (field.title !== title) Object.assign(field, { title, placeholder: this.#name ? "cat. dog." : SHORT });
    this.button.disabled = !this.#name || !this.editor.shownImage;
  }

  /** End what is under way. */
  cancel() {
    this.#work += 1;
    this.progress.hide();
    this.editor.client.cancel("words").catch(() => {}); // it ends by itself when nobody waits
  }

  async find() {
    const image = this.editor.shownImage;
    const text = this.field.value.trim();
    if (!this.#name || !image || !text) return;
    const work = (this.#work += 1);
    const isWanted = () => work === this.#work;
    const question = { image, grounding: { model_name: this.#name }, text };
    this.progress.show("Finding the words…", 0);
    try {
      const said = await pollFor(() => this.editor.client.words(question), isWanted, (progress) => this.progress.show("Finding the words…", progress));
      if (!isWanted()) return;
      this.progress.hide();
      if (said && JSON.stringify(image) === JSON.stringify(this.editor.shownImage)) this.#take(said.boxes, text);
    } catch (error) {
      if (!isWanted()) return;
      this.progress.hide();
      this.editor.host.complain(error.message);
    }
  }

  #take(boxes, text) {
    this.progress.say(boxes.length ? `Found ${boxes.length === 1 ? "1 object" : `${boxes.length} objects`}.` : `Nothing found for “${text}”.`);
    this.editor.addObjects(boxes.map(({ x, y, width, height, label }) => ({ name: label, marks: [{ x, y, width, height }] })));
  }
}

/** Second looks at the objects, once the pointer rests: sharper masks that take the place of the first ones. No DOM. */

import { pollFor } from "./client.js";

const REST = 400; // milliseconds without another mark
const MOST_CACHED = 24;
const SAID = {
  sharper: "second look",
  other: "first look (the second saw something else)",
  alike: "first look (a second gains nothing)",
};

/**
 * @typedef {{key: string, question: object}} Item  one mask that is wanted, and how to ask for it
 * @typedef {{bitmap: ImageBitmap, answer: import("./client.js").Answer}} Found
 */
export class SecondLooks {
  #client;
  #decode;
  #onChange;
  #wait;
  #items = [];
  #found = new Map();
  #failed = new Map(); // key -> the server's words
  #asking = null; // the key of what is under way
  #isRested = false;
  #isWorking = false;
  #turn = 0;

  /**
   * @param {object} options
   * @param {import("./client.js").PreviewClient} options.client  one of its own: its questions must not supersede first ones
   * @param {(png: Blob) => Promise<ImageBitmap>} options.decode
   * @param {() => void} options.onChange
   * @param {(milliseconds: number) => Promise<void>} [options.wait]
   */
  constructor({ client, decode, onChange, wait = (time) => new Promise((done) => setTimeout(done, time)) }) {
    this.#client = client;
    this.#decode = decode;
    this.#onChange = onChange;
    this.#wait = wait;
  }

  /** Say what is wanted now, in the order in which it matters. What is not wanted any longer ends; what is new waits for a rest. */
  want(items) {
    const known = new Set(this.#items.map(({ key }) => key));
    const isSame = items.length === known.size && items.every(({ key }) => known.has(key));
    this.#items = items;
    if (isSame) return;
    if (this.#asking !== null && !this.#isWanted(this.#asking)) this.#client.cancel("look").catch(() => {}); // it ends when nobody waits
    this.#failed.clear();
    this.#isRested = false;
    const turn = (this.#turn += 1);
    if (!this.#missing().length) return;
    this.#wait(REST).then(() => {
      if (turn !== this.#turn) return;
      this.#isRested = true;
      this.#work();
    });
  }

  /** @returns {Found | null} */
  find(key) {
    return this.#found.get(key) ?? null;
  }

  /** Which mask of a key is shown, and why; null where no second look is wanted. */
  say(key) {
    if (!this.#isWanted(key)) return null;
    const found = this.#found.get(key);
    if (found) return SAID[found.answer.look] ?? null;
    return this.#failed.get(key) ?? (this.#asking === key ? "first look, looking again…" : "first look");
  }

  get busy() {
    return this.#missing().length > 0;
  }

  dispose() {
    this.want([]);
    for (const { bitmap } of this.#found.values()) bitmap.close();
    this.#found.clear();
  }

  #isWanted(key) {
    return this.#items.some((item) => item.key === key);
  }

  #missing() {
    return this.#items.filter(({ key }) => !this.#found.has(key) && !this.#failed.has(key));
  }

  /** One look after another, while nothing changes. */
  async #work() {
    if (this.#isWorking) return;
    this.#isWorking = true;
    while (this.#isRested && this.#missing().length) {
      const { key, question } = this.#missing()[0];
      this.#asking = key;
      this.#onChange();
      try {
        await this.#look(key, question);
      } catch (error) {
        this.#failed.set(key, `first look (${error.message})`);
      }
      this.#asking = null;
      this.#onChange();
    }
    this.#isWorking = false;
  }

  async #look(key, question) {
    const isWanted = () => this.#isWanted(key);
    const answer = await pollFor(() => this.#client.look(question), isWanted, () => {}, this.#wait);
    if (!answer) {
      if (isWanted()) this.#failed.set(key, null); // cancelled by somebody else
      return;
    }
    const bitmap = await this.#decode(answer.png);
    if (isWanted()) this.#keep(key, { bitmap, answer });
    else bitmap.close();
  }

  #keep(key, found) {
    this.#found.set(key, found);
    const others = [...this.#found.keys()].filter((one) => !this.#isWanted(one));
    for (const old of others.slice(0, Math.max(0, others.length - MOST_CACHED))) {
      this.#found.get(old).bitmap.close();
      this.#found.delete(old);
    }
  }
}

/** Keeps the masks up to date with the marks: as few questions as it takes, and one value that says how things stand. No DOM. */

const MOST_CACHED = 24; // masks beyond those that are wanted
const MOST_ASKED = 3; // questions on their way at a time: a browser has few connections, and ComfyUI needs some
const BUSY = 503;
const SUPERSEDED = 409;
const RECENT = 5; // answers whose median says whether the machine is quick enough for a mask at every move
const FEW = 3;
export const SLOW = 80; // milliseconds

/**
 * How the preview stands.
 * - idle: nothing is wanted: no image, no model, or nobody looks
 * - preparing: the image is being encoded
 * - stale: some masks are not those of the marks; they are on their way
 * - ready: every mask is that of its marks
 * - failed: the server refused or is gone; the next change tries again, and so does time
 * @typedef {object} State
 * @property {"idle" | "preparing" | "stale" | "ready" | "failed"} name
 * @property {string | null} subject  image and model, as a key
 * @property {boolean} prepared  whether the subject has been encoded
 * @property {string | null} busy  why the server lets us wait
 * @property {string | null} message  what went wrong
 * @property {string | null} missing  the checkpoint that a run would download, where that went wrong
 * @property {number} tries  in a row that failed or found the server busy
 */

/** @type {State} */
export const IDLE = Object.freeze({ name: "idle", subject: null, prepared: false, busy: null, message: null, missing: null, tries: 0 });

/** The state after an event: {type: "wanted", subject, missing} (masks) | "prepared" | "answered" | "busy" | "failed" | "retry". */
export function next(state, event) {
  const settled = (missing) => (missing ? "stale" : "ready");
  switch (event.type) {
    case "wanted":
      if (event.subject === null) return IDLE;
      if (event.subject !== state.subject) return { ...IDLE, name: "preparing", subject: event.subject };
      if (!state.prepared) return { ...state, name: "preparing", message: null, missing: null };
      return { ...state, name: settled(event.missing), message: null, missing: null };
    case "prepared":
      if (event.subject !== state.subject) return state;
      return { ...state, name: settled(event.missing), prepared: true, busy: null, message: null, missing: null, tries: 0 };
    case "answered": // perhaps to a question about another subject than today's
      return state.prepared ? { ...state, name: settled(event.missing), busy: null, message: null, missing: null, tries: 0 } : state;
    case "busy":
      return state.name === "idle" ? state : { ...state, busy: event.message, tries: state.tries + 1 };
    case "failed":
      if (state.name === "idle") return state;
      return { ...state, name: "failed", prepared: false, busy: null, message: event.message, missing: event.lacks ?? null, tries: state.tries + 1 };
    case "retry":
      return state.name === "failed" ? { ...state, name: "preparing" } : state;
    default:
      throw new Error(`no such event: ${event.type}`);
  }
}

/** Milliseconds until the next try. */
export function pause({ name, tries }) {
  return name === "failed" ? Math.min(30_000, 1000 * 2 ** tries) : Math.min(5000, 350 * 2 ** tries);
}

/** The median of the latest answers' times. */
export class Pace {
  #recent = [];

  add(milliseconds) {
    this.#recent = [...this.#recent, milliseconds].slice(-RECENT);
  }

  get median() {
    const sorted = [...this.#recent].sort((a, b) => a - b);
    return sorted[sorted.length >> 1] ?? 0;
  }

  get isSlow() {
    return this.#recent.length >= FEW && this.median > SLOW; // the first answers warm things up
  }

  forget() {
    this.#recent = [];
  }
}

/**
 * @typedef {{key: string, question: object}} Item  one mask that is wanted, and how to ask for it
 * @typedef {{bitmap: ImageBitmap, answer: import("./client.js").Answer}} Found
 */
export class Preview {
  state = IDLE;
  pace = new Pace();
  prepared = null; // what the server said of the image
  #client;
  #decode;
  #wait;
  #onChange;
  #subject = null;
  #items = [];
  #hover = null;
  #found = new Map();
  #asked = new Map(); // key -> the question that is on its way
  #sent = 0;
  #working = false;
  #wake = null;

  /**
   * @param {object} options
   * @param {import("./client.js").PreviewClient} options.client
   * @param {(png: Blob) => Promise<ImageBitmap>} options.decode
   * @param {() => void} options.onChange  the state, or a mask
   * @param {(milliseconds: number) => Promise<void>} [options.wait]
   */
  constructor({ client, decode, onChange, wait = (time) => new Promise((done) => setTimeout(done, time)) }) {
    this.#client = client;
    this.#decode = decode;
    this.#onChange = onChange;
    this.#wait = wait;
  }

  /**
   * Say what is wanted now; nothing is asked twice. A change tries again what had failed.
   * @param {object | null} subject  {image, model}, and what else tells the image's content
   * @param {Item[]} items  in the order in which they matter
   * @param {boolean} isFinal  whether somebody waits for it; while a mark is dragged the next one comes soon
   */
  want(subject, items = [], isFinal = true) {
    const key = subject && JSON.stringify(subject);
    const known = JSON.stringify([key, items.map((item) => item.key), isFinal]);
    if (known === this.#wanted && this.state.name !== "idle") return;
    this.#wanted = known;
    if (key !== this.state.subject) {
      this.#hover = this.prepared = null;
      this.pace.forget();
    }
    this.#subject = subject;
    this.#items = items;
    this.#step({ type: "wanted", subject: key });
    this.#nudge();
    if (isFinal) this.#hurry();
  }

  #wanted = null;

  /** Ask for what a click would give, once there is nothing else to do; null for no more. @param {Item | null} item */
  hover(item) {
    if (item?.key === this.#hover?.key) return;
    this.#hover = item;
    if (item && this.state.name === "ready") this.#work();
  }

  /** @returns {Found | null} */
  find(key) {
    return this.#found.get(key) ?? null;
  }

  get busy() {
    return this.#working;
  }

  /** Do not wait any longer: the server is free again, or may know more than before. */
  wake() {
    this.#nudge();
  }

  /** Forget every mask: what they were made of has changed. */
  forget() {
    for (const { bitmap } of this.#found.values()) bitmap.close();
    this.#found.clear();
    this.#wanted = null;
  }

  dispose() {
    this.want(null);
    this.forget();
  }

  #missing() {
    return this.#items.filter((item) => !this.#found.has(item.key));
  }

  #step(event) {
    this.state = next(this.state, { missing: this.#missing().length, ...event });
    this.#onChange();
  }

  #nudge() {
    this.#wake?.();
    this.#work();
  }

  /** Work until nothing is missing. There is but one of these at a time. */
  async #work() {
    if (this.#working) return;
    this.#working = true;
    while (this.#todo()) {
      try {
        await this.#one();
      } catch (error) {
        await this.#recover(error);
      }
    }
    this.#working = false;
  }

  #todo() {
    if (this.state.name === "idle") return false;
    return this.state.name !== "ready" || (this.#hover !== null && !this.#found.has(this.#hover.key));
  }

  async #one() {
    this.#step({ type: "retry" });
    if (!this.state.prepared) return this.#prepare();
    const item = this.#missing()[0] ?? this.#hover;
    if (!item || this.#found.has(item.key)) return this.#step({ type: "answered" });
    await (this.#asked.get(item.key) ?? this.#ask(item));
  }

  /** Ask for what is wanted most without waiting for other answers, which would be a round trip more: the image's, which the server
   * waits for itself, or that of a place where the pointer has been. */
  #hurry() {
    const [item] = this.#missing();
    const isFree = this.#working && this.#wake === null && this.state.tries === 0 && this.#asked.size < MOST_ASKED;
    if (item && isFree && this.state.name !== "idle" && !this.#asked.has(item.key)) this.#ask(item).catch(() => {}); // whoever waits for it is told
  }

  /** Ask for a mask; resolves without one where a newer question has taken the place of this one. */
  #ask(item) {
    const number = (this.#sent += 1);
    const { image, model } = this.#subject;
    const asked = this.#client.ask({ image, model, ...item.question }).then((answer) => this.#take(item, answer));
    const ended = asked.finally(() => this.#asked.delete(item.key)).catch((error) => {
      if (error.status !== SUPERSEDED || number === this.#sent) throw error;
    });
    this.#asked.set(item.key, ended);
    return ended;
  }

  async #take(item, answer) {
    const bitmap = await this.#decode(answer.png);
    if (this.state.name === "idle") return bitmap.close(); // nobody waits for it, or the editor is gone
    this.pace.add(answer.milliseconds);
    this.#keep(item.key, { bitmap, answer });
    this.#step({ type: "answered" });
  }

  async #recover(error) {
    const isBusy = error.status === BUSY || error.status === SUPERSEDED;
    if (!isBusy && this.state.name === "ready") this.#hover = null; // the next click says what is wrong
    else this.#step({ type: isBusy ? "busy" : "failed", message: error.message, lacks: error.missing });
    if (this.state.name !== "idle" && this.#todo()) await this.#rest();
  }

  async #prepare() {
    const { subject } = this.state;
    const { image, model } = this.#subject;
    const preparing = this.#client.prepare({ image, model });
    this.#hurry();
    const said = await preparing;
    if (subject === this.state.subject) this.prepared = said;
    this.#step({ type: "prepared", subject });
  }

  #keep(key, found) {
    this.#found.get(key)?.bitmap.close();
    this.#found.set(key, found);
    const wanted = new Set([...this.#items.map((item) => item.key), this.#hover?.key]);
    const others = [...this.#found.keys()].filter((one) => !wanted.has(one) && one !== key);
    for (const old of others.slice(0, Math.max(0, others.length - MOST_CACHED))) {
      this.#found.get(old).bitmap.close();
      this.#found.delete(old);
    }
  }

  async #rest() {
    const awake = new Promise((done) => { this.#wake = done; });
    await Promise.race([this.#wait(pause(this.state)), awake]);
    this.#wake = null;
  }
}

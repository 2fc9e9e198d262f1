/** Sends the editor's questions to the server. No DOM. */

/** A refusal, with the server's words. */
export class Refusal extends Error {
  constructor(status, text, missing = null) {
    super(text);
    this.status = status;
    this.missing = missing; // the known checkpoint that a run would download
  }
}

/** @typedef {{png: Blob, score: number, area: number, milliseconds: number, stamp: string | null, look: string | null,
 *   place: {x: number, y: number, width: number, height: number} | null}} Answer  `look` of a
 * second look: "sharper", "other" (it saw something else, the mask is the first one) or "alike" (it gains nothing) */

/** Where a mask lies that is sent for a part of a large image only. */
function placeIn(text) {
  if (!text) return null;
  const [x, y, width, height] = text.split(" ").map(Number);
  return { x, y, width, height };
}

export class PreviewClient {
  #send;
  #editor;
  #sequence = 0;

  /**
   * @param {object} options
   * @param {(path: string, init: object) => Promise<Response>} options.send  ComfyUI's `api.fetchApi`
   * @param {string} options.editor  tells this editor from all others
   */
  constructor({ send, editor }) {
    this.#send = send;
    this.#editor = editor;
  }

  /** Encode an image for a model. Resolves to the server's {width, height, frames, seconds, stamp}. Rejects with a Refusal. */
  async prepare(subject) {
    const response = await this.#post("/samkit/prepare", subject);
    return response.json();
  }

  /**
   * A mask. The server refuses a question with 409 where this editor has sent a newer one.
   * @param {object} question  {image, model, prompts, object}
   * @returns {Promise<Answer>}
   */
  async ask(question) {
    return this.#mask(await this.#post("/samkit/preview", { ...question, editor: this.#editor, sequence: (this.#sequence += 1) }));
  }

  /**
   * A mask by second looks, or {progress} where it is not ready: then post again.
   * @param {object} question  {image, model, prompts, object}; the prompts have a `detail`
   * @returns {Promise<Answer | {progress: number}>}
   */
  async look(question) {
    const response = await this.#post("/samkit/look", { ...question, editor: this.#editor });
    return response.status === 202 ? response.json() : this.#mask(response);
  }

  async #mask(response) {
    const text = (name) => response.headers.get(`X-SAMKit-${name}`);
    const [score, area, milliseconds] = ["Score", "Area", "Milliseconds"].map((name) => Number(text(name)));
    return { png: await response.blob(), score, area, milliseconds, stamp: text("Stamp"), look: text("Look"), place: placeIn(text("Place")) };
  }

  /** A mask of SAM Track's last run: {png, area}. @param {object} question  {track: {file, object, frame}, colour, form} */
  async tracked(question) {
    const response = await this.#post("/samkit/tracked", question);
    return { png: await response.blob(), area: Number(response.headers.get("X-SAMKit-Area")) };
  }

  /** SAM's candidates for an object: [{candidate, score, area, png}], `png` a small one in base64. */
  async candidates(question) {
    const response = await this.#post("/samkit/candidates", question);
    return (await response.json()).candidates;
  }

  /**
   * All segments of an image: {width, height, segments}, or {progress} where they are not ready: then post again, soon.
   * @param {object} subject  {image, model}
   */
  async segments({ image, model }) {
    const response = await this.#post("/samkit/segments", { image, model, editor: this.#editor });
    return response.json();
  }

  /**
   * Segments that resemble an object, the most similar first: as `segments`, each with `alike`, its similarity; or {progress}.
   * @param {object} question  {image, model, like: {image, prompts, object}}
   */
  async alike(question) {
    const response = await this.#post("/samkit/alike", { ...question, editor: this.#editor });
    return response.json();
  }

  /**
   * Boxes of the objects that a text names: {boxes}, or {progress} where they are not ready: then post again, soon.
   * @param {object} question  {image, grounding, text}
   */
  async words(question) {
    const response = await this.#post("/samkit/words", { ...question, editor: this.#editor });
    return response.json();
  }

  /** Wait no longer for what takes long. @param {"segments" | "words" | "look"} work */
  async cancel(work) {
    await this.#post("/samkit/cancel", { editor: this.#editor, work });
  }

  /**
   * An image of a data set: {count, name, form, image, text, stamp}; `text` is the editor's, parsed.
   * @param {{path: string, image_folder: string, index: number}} place
   */
  async openDataSet(place) {
    return (await this.#post("/samkit/data_set", place)).json();
  }

  /** Write the objects of such an image back: {changed}. @param {object} accepted  the place, {stamp} and {objects: [{name, mask}]} */
  async accept(accepted) {
    return (await this.#post("/samkit/accept", accepted)).json();
  }

  async #post(path, body) {
    const headers = { "Content-Type": "application/json" };
    const response = await this.#send(path, { method: "POST", headers, body: JSON.stringify(body) });
    if (response.ok) return response;
    const said = await response.json().catch(() => null);
    throw new Refusal(response.status, said?.error ?? `The server answered ${response.status}.`, said?.missing);
  }
}

const BUSY = 503;
const CANCELLED = 409;
const PAUSE = 1000; // milliseconds until a busy server is tried again

/**
 * Post until the server is done.
 * @param {() => Promise<{progress?: number}>} post
 * @param {() => boolean} isWanted
 * @param {(progress: number | null) => void} said  0 to 1; null while the server is busy
 * @param {(milliseconds: number) => Promise<void>} [wait]
 * @returns {Promise<object | null>}  the answer; null where it is not wanted any longer
 */
export async function pollFor(post, isWanted, said, wait = (time) => new Promise((done) => setTimeout(done, time))) {
  while (isWanted()) {
    try {
      const answer = await post();
      if (answer.progress === undefined) return isWanted() ? answer : null;
      if (isWanted()) said(answer.progress);
    } catch (error) {
      if (error.status === CANCELLED) return null;
      if (error.status !== BUSY) throw error;
      if (isWanted()) said(null);
      await wait(PAUSE);
    }
  }
  return null;
}

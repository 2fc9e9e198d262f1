/** Asks the server for masks: one question at a time, always the newest, and never shows an old answer. No DOM. */

const BUSY_WAIT = 700;

/** A refusal, with the server's words. */
export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export class PreviewClient {
  #send;
  #wait;
  #editor;
  #sequence = 0;
  #running = false;
  #waiting = null;
  #idle = [];

  /**
   * @param {object} options
   * @param {(path: string, init: object) => Promise<Response>} options.send  ComfyUI's `api.fetchApi`
   * @param {string} options.editor  tells this editor from all others
   * @param {(milliseconds: number) => Promise<void>} [options.wait]
   */
  constructor({ send, editor, wait = (time) => new Promise((done) => setTimeout(done, time)) }) {
    this.#send = send;
    this.#editor = editor;
    this.#wait = wait;
  }

  /** Encode an image for a model. Resolves to the server's {width, height, frames, seconds}; rejects with a Refusal. */
  async prepare(subject) {
    const response = await this.#post("/samkit/prepare", subject);
    return response.json();
  }

  /**
   * Ask for a mask. A question that is still waiting when a newer one comes is never sent, and one on its way is not
   * answered: both resolve to null.
   * @param {object} question  {image, model, prompts}
   * @returns {Promise<{png: Blob, score: number, area: number, milliseconds: number} | null>}
   */
  ask(question) {
    this.#waiting?.done(null);
    const sequence = ++this.#sequence;
    return new Promise((done, failed) => {
      this.#waiting = { question, sequence, done, failed };
      if (!this.#running) this.#run();
    });
  }

  /** Whether a question is on its way or waits. */
  get busy() {
    return this.#running;
  }

  /** Resolves when nothing is on its way. */
  settled() {
    return this.#running ? new Promise((done) => this.#idle.push(done)) : Promise.resolve();
  }

  /** Forget what was asked. */
  drop() {
    this.#waiting?.done(null);
    this.#waiting = null;
    this.#sequence += 1;
  }

  async #run() {
    this.#running = true;
    while (this.#waiting) {
      const { question, sequence, done, failed } = this.#waiting;
      this.#waiting = null;
      try {
        const answer = await this.#answer(question, sequence);
        done(sequence === this.#sequence ? answer : null);
      } catch (error) {
        if (sequence === this.#sequence) failed(error);
        else done(null);
      }
    }
    this.#running = false;
    for (const tell of this.#idle.splice(0)) tell();
  }

  /** The answer to one question; while ComfyUI is at work, it waits and asks again, unless something newer came. */
  async #answer(question, sequence) {
    for (;;) {
      try {
        const response = await this.#post("/samkit/preview", { ...question, editor: this.#editor, sequence });
        const number = (name) => Number(response.headers.get(`X-SAMKit-${name}`));
        const [score, area, milliseconds] = ["Score", "Area", "Milliseconds"].map(number);
        return { png: await response.blob(), score, area, milliseconds };
      } catch (error) {
        if (error.status !== 503 || sequence !== this.#sequence) throw error;
        this.onBusy?.(error.message);
        await this.#wait(BUSY_WAIT);
        if (sequence !== this.#sequence) return null;
      }
    }
  }

  async #post(path, body) {
    const headers = { "Content-Type": "application/json" };
    const response = await this.#send(path, { method: "POST", headers, body: JSON.stringify(body) });
    if (response.ok) return response;
    const said = await response.json().catch(() => null);
    throw new Refusal(response.status, said?.error ?? `the server answered ${response.status}`);
  }
}

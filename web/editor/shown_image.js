/** The image that the editor shows: loaded by an address that carries what tells its content, and again when that changes. */

import { isLarge } from "./pyramid.js";

const PAUSE = 1000; // milliseconds between two questions whether a file has changed
const EARLY = 200; // milliseconds between two looks at an image that is being loaded

export class ShownImage {
  image = null;
  name = null; // of the file whose image is shown, as a key
  version = null;
  isLost = false;
  coming = null; // {name, version} of the file that is shown or being loaded, as soon as it is known
  #asked = { name: undefined, time: 0 };
  #loads = 0;
  #identify;
  #url;
  #onChange;
  #onComing;
  #pyramid;

  /**
   * @param {object} options
   * @param {(name: object) => Promise<string>} options.identify  a text that changes with the file's content
   * @param {(name: object, version: string) => string} options.url
   * @param {(before: HTMLImageElement | null, isOtherFile: boolean) => void} options.onChange
   * @param {() => void} [options.onComing]  it is known what will be shown
   * @param {(name: object, version: string, size: {width: number, height: number}) => import("./pyramid.js").Pyramid} [options.pyramid]  a
   *   large image in tiles; absent where the host has none
   */
  constructor({ identify, url, onChange, onComing = () => {}, pyramid }) {
    this.#pyramid = pyramid;
    this.#onComing = onComing;
    this.#identify = identify;
    this.#url = url;
    this.#onChange = onChange;
  }

  /**
   * Show the file of a name, or nothing.
   * @param {object | null} name
   * @param {object} [how]
   * @param {boolean} [how.check]  also where it is shown already: its file may have changed
   * @param {boolean} [how.again]  it has changed, whatever is said of it
   */
  async load(name, { check = false, again = false } = {}) {
    const key = name && JSON.stringify(name);
    const isRecent = !check || performance.now() - this.#asked.time < PAUSE;
    if (!again && key === this.#asked.name && isRecent) return;
    this.#asked = { name: key, time: performance.now() };
    const load = (this.#loads += 1);
    if (!name) return this.#show(null, null, null);
    const answer = await this.#identify(name);
    if (answer === null && key === this.name && this.image) return; // nobody answers: what is shown stays
    const said = answer ?? "";
    const isSame = key === this.name && said === this.version;
    if (load !== this.#loads || (isSame && !again)) return;
    const version = isSame ? `${said}+${load}` : said;
    this.coming = { name: key, version };
    this.#onComing();
    const image = new Image();
    const end = (shown) => { if (load === this.#loads) this.#show(shown, key, version); };
    image.onload = () => (this.#pyramid && isLarge(image) ? tiled() : end(image));
    image.onerror = () => end(null);
    let isTiled = false;
    const tiled = () => {
      if (!isTiled) this.#inTiles(image, name, version, end);
      isTiled = true;
    };
    // How large an image is, the browser knows long before it has all of a large one.
    if (this.#pyramid) this.#early(image, () => load === this.#loads, tiled);
    image.src = this.#url(name, version);
  }

  /** Tell of an image that turns out to be large while it is loaded. */
  #early(image, isWanted, tell) {
    setTimeout(() => {
      if (!isWanted() || image.complete !== false) return;
      if (isLarge({ width: image.naturalWidth, height: image.naturalHeight })) tell();
      else if (!image.naturalWidth) this.#early(image, isWanted, tell);
    }, EARLY);
  }

  /** A large image in tiles; where the server cannot give them, as the browser can. */
  async #inTiles(image, name, version, end) {
    const load = this.#loads;
    const pyramid = this.#pyramid(name, version, { width: image.width, height: image.height });
    const isThere = await pyramid.begin();
    if (!isThere || load !== this.#loads) {
      pyramid.dispose();
      image.onload = () => end(image);
      if (image.complete !== false) end(image);
      return;
    }
    image.onerror = null;
    image.src = ""; // its bytes are not needed any longer
    end(pyramid);
  }

  #show(image, name, version) {
    const { image: before, name: nameBefore } = this;
    before?.dispose?.();
    Object.assign(this, { image, name, version, isLost: name !== null && image === null, coming: image && { name, version } });
    this.#onChange(before, name !== nameBefore);
  }

  /** Let go of the image, and of what is on its way. */
  dispose() {
    this.#loads += 1;
    this.image?.dispose?.();
    this.#asked = { name: undefined, time: 0 };
    Object.assign(this, { image: null, name: null, version: null, isLost: false, coming: null });
  }
}

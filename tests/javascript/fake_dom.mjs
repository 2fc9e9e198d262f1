/** As much of a page as the editor's modules touch when they are made: elements with properties, attributes, listeners, children. */

class Element {
  constructor(tag) {
    Object.assign(this, { tag, attributes: {}, children: [], listeners: {}, style: {}, hidden: false, textContent: "" });
  }

  setAttribute(name, value) {
    this.attributes[name] = value;
  }

  append(...children) {
    this.children.push(...children);
  }

  after() {}

  before() {}

  focus() {}

  addEventListener(type, handle) {
    (this.listeners[type] ??= []).push(handle);
  }

  /** Send an event to the listeners, in order. */
  send(type, event = {}) {
    for (const handle of this.listeners[type] ?? []) handle({ target: this, ...event });
  }
}

export const element = (tag = "div") => new Element(tag);

globalThis.document = { createElement: (tag) => new Element(tag) };
globalThis.requestAnimationFrame = () => 1; // nothing is drawn here

/** A drawing context that lists what it is told: calls by name and arguments, and assignments. */
export function recorder() {
  const said = [];
  const context = new Proxy({ canvas: { width: 200, height: 100 } }, {
    get: (target, name) => (name in target ? target[name] : (...given) => { said.push([name, ...given]); }),
    set: (target, name, value) => { said.push([`${String(name)}=`, value]); return Reflect.set(target, name, value); },
  });
  return { context, said, calls: (name) => said.filter(([one]) => one === name) };
}

/** Wait until promises that are ready have gone on. */
export const settled = () => new Promise((done) => setImmediate(done));

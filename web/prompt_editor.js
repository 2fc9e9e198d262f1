/** SAM Prompt Editor in ComfyUI: a DOM widget behind the node's STRING input, in the classic canvas and in Nodes 2.0. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { PromptEditor } from "./editor/editor.js";
import { modelOf, imageGraph, imageOf } from "./editor/source.js";

const NODE = "SAMKit_PromptEditor";
const WIDGET = "SAMKIT_PROMPTS";
const PROPERTY = "samkit_images"; // where the node remembers the images of its last run, for a reload
const LEAST_HEIGHT = 260;
const FIRST_SIZE = [460, 540];
const SETTLE = 120;

const live = new Set();
/** Elements of nodes that are gone, which Nodes 2.0 may still show: it keeps what it drew for a node when another takes its id
 * at once, as undo and the loading of a workflow do. */
const left = new Map();

/** Ids, as the API form has them ("3", or "5:3" inside a subgraph), of the places where a node's graph is used. */
function idsOf(node, graph = app.graph, prefix = "") {
  if (graph === node.graph) return [`${prefix}${node.id}`];
  return (graph?.nodes ?? []).filter((one) => one.subgraph).flatMap((one) => idsOf(node, one.subgraph, `${prefix}${one.id}:`));
}

/** The editor of one node, and its ties to the graph. */
class Binding {
  #timer = 0;
  #models = new Map(); // signature of what is wired -> the identity that the last run gave it
  #signature = null;

  constructor(node, name) {
    this.node = node;
    this.editor = new PromptEditor({
      send: (path, init) => api.fetchApi(path, init),
      url: ({ filename, subfolder, type }) => api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`),
      committed: () => this.#save(),
      complain: (detail) => app.extensionManager.toast.add({ severity: "error", summary: "SAM Prompt Editor", detail, life: 8000 }),
      loadImage: () => this.#loadImage(),
      sendToMaskEditor: (alpha, image) => this.#sendToMaskEditor(alpha, image),
      needed: () => this.look(),
    });
    this.widget = node.addDOMWidget(name, WIDGET, this.editor.element, {
      getValue: () => this.editor.text,
      setValue: (text) => { this.editor.text = typeof text === "string" ? text : "{}"; },
      getMinHeight: () => LEAST_HEIGHT,
      hideOnZoom: false,
    });
    // The side panel of newer frontends measures the widget and leaves the panel's width on it: the node's is right.
    Object.defineProperty(this.widget, "width", { get: () => undefined, set: () => {}, configurable: true });
    live.add(this);
    this.look();
  }

  #save() {
    this.widget?.callback?.(this.editor.text);
    this.node.graph?.setDirtyCanvas?.(true, false);
    const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // the older name serves older frontends
  }

  /** Look soon at what is wired; many changes at once are one. */
  look() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#look(), SETTLE);
  }

  async #look() {
    if (!this.node.graph) return;
    this.#takePlace();
    const found = await this.#graph();
    if (!found) return;
    const { graph, id } = found;
    const file = imageOf(graph, id);
    const ran = this.node.properties[PROPERTY];
    this.editor.setImages(file ? [file] : Array.isArray(ran) ? ran : []);
    const model = modelOf(graph, id);
    this.#signature = model?.signature ?? null;
    const identity = this.#models.get(this.#signature);
    this.editor.setModel(model?.name ?? (identity ? { identity } : null));
  }

  #takePlace() {
    const before = left.get(String(this.node.id));
    left.delete(String(this.node.id));
    if (before?.isConnected && !this.editor.element.isConnected) before.replaceWith(this.editor.element);
  }

  /** The graph in its API form and our id in it; null where the graph is not complete, or we are not part of it. */
  async #graph() {
    try {
      const { output, workflow } = await app.graphToPrompt();
      const id = idsOf(this.node).find((one) => one in output);
      return id ? { graph: output, workflow, id } : null;
    } catch {
      return null; // half-wired graphs are normal while somebody works
    }
  }

  /** What a run has shown: images, and the model that it used. */
  executed({ samkit_images: images, samkit_model: identities }) {
    if (Array.isArray(images) && images.length) this.node.properties[PROPERTY] = images;
    if (identities?.[0] && this.#signature) this.#models.set(this.#signature, identities[0]);
    this.look();
    this.editor.refresh();
  }

  async #loadImage() {
    const found = await this.#graph();
    if (!found) return;
    const output = imageGraph(found.graph, found.id);
    try {
      await api.queuePrompt(0, { output, workflow: found.workflow });
    } catch (error) {
      this.editor.host.complain(error.response?.error?.message ?? error.message);
    }
  }

  async #sendToMaskEditor(alpha, image) {
    const body = new FormData();
    const filename = `samkit-mask-${Date.now()}.png`;
    body.append("image", alpha, filename);
    body.append("original_ref", JSON.stringify(image));
    body.append("type", "input");
    body.append("subfolder", "clipspace");
    const response = await api.fetchApi("/upload/mask", { method: "POST", body });
    if (!response.ok) throw new Error(`ComfyUI did not take the mask: ${response.status} ${response.statusText}`);
    const saved = await response.json();
    await openMaskEditor(this.node, `${saved.subfolder}/${saved.name} [${saved.type}]`);
  }

  end() {
    live.delete(this);
    left.set(String(this.node.id), this.editor.element);
    clearTimeout(this.#timer);
  }
}

/** A Load Image beside the node, with the image and its mask, in ComfyUI's own mask editor. */
async function openMaskEditor(node, name) {
  const loader = window.LiteGraph.createNode("LoadImage");
  loader.title = "Load Image: mask of SAM Prompt Editor";
  loader.pos = [node.pos[0] + node.size[0] + 40, node.pos[1]];
  node.graph.add(loader);
  const widget = loader.widgets.find((one) => one.name === "image");
  if (Array.isArray(widget.options?.values) && !widget.options.values.includes(name)) widget.options.values.push(name);
  widget.value = name;
  widget.callback?.(name);
  for (let tries = 0; tries < 50 && !loader.imgs?.length; tries += 1) await new Promise((done) => setTimeout(done, 100));
  app.canvas.selectNode(loader);
  await app.extensionManager.command.execute("Comfy.MaskEditor.OpenMaskEditor");
}

function lookAll() {
  for (const binding of live) binding.look();
}

app.registerExtension({
  name: "SAMKit.PromptEditor",
  async init() {
    const href = new URL("./editor/prompt_editor.css", import.meta.url).href;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
  },
  async setup() {
    api.addEventListener("graphChanged", lookAll);
    api.addEventListener("executed", ({ detail }) => {
      for (const binding of live) {
        const ids = binding.node.graph ? idsOf(binding.node) : [];
        if (detail.output && ids.some((id) => id === String(detail.node) || id === String(detail.display_node))) binding.executed(detail.output);
      }
    });
  },
  getCustomWidgets() {
    return {
      [WIDGET](node, name) {
        const binding = new Binding(node, name);
        const { onRemoved, onConnectionsChange, onConfigure } = node;
        node.onRemoved = function removed(...args) {
          binding.end();
          return onRemoved?.apply(this, args);
        };
        node.onConnectionsChange = function connected(...args) {
          binding.look();
          return onConnectionsChange?.apply(this, args);
        };
        node.onConfigure = function configured(...args) {
          binding.look();
          return onConfigure?.apply(this, args);
        };
        return { widget: binding.widget };
      },
    };
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) node.setSize([Math.max(node.size[0], FIRST_SIZE[0]), Math.max(node.size[1], FIRST_SIZE[1])]);
  },
});

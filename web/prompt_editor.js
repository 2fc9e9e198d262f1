/** SAM Prompt Editor in ComfyUI: a DOM widget behind the node's STRING input, in the classic canvas and in Nodes 2.0. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { setContract } from "./editor/contract.js";
import { PromptEditor } from "./editor/editor.js";
import { groundingOf, hasModel, imageGraph, imageOf, imageSignature, modelOf, nameOf, only, usesMasks } from "./editor/source.js";

const NODE = "SAMKit_PromptEditor";
const WIDGET = "SAMKIT_PROMPTS";
// Where the node keeps the images of its last run and what they were made of, for a reload.
const IMAGES = "samkit_images";
const IMAGES_BEFORE = "samkit_pictures"; // the same, in workflows of version 1
const SIGNATURE = "samkit_image_signature";
const LEAST_HEIGHT = 280;
const FIRST_SIZE = [480, 640];
const SETTLE = 120;
const ENDS = ["execution_success", "execution_error", "execution_interrupted", "reconnected"];

const live = new Set();
/** Elements of nodes that are gone, which Nodes 2.0 may still show: it keeps what it drew for a node when another takes its id
 * at once, as undo and the loading of a workflow do. */
const left = new Map();

/** Ids, as the API form has them ("3", or "5:3" inside a subgraph), of the places where a node's graph is used. */
function idsOf(node, graph = app.rootGraph ?? app.graph, prefix = "") {
  if (graph === node.graph) return [`${prefix}${node.id}`];
  return (graph?.nodes ?? []).filter((one) => one.subgraph).flatMap((one) => idsOf(node, one.subgraph, `${prefix}${one.id}:`));
}

const query = ({ filename, subfolder, type }, more) => type === "example"
  ? `/samkit/examples/${encodeURIComponent(filename)}?${new URLSearchParams(more ?? {})}`
  : `/view?${new URLSearchParams({ filename, subfolder, type, ...more })}`;

/** ComfyUI's name of an image, for its own routes: an example image is copied to the temp folder for them. */
async function inComfyUI(image) {
  if (image.type !== "example") return image;
  const body = new FormData();
  body.append("image", await (await api.fetchApi(query(image))).blob(), image.filename);
  body.append("type", "temp");
  body.append("overwrite", "true");
  const saved = await (await api.fetchApi("/upload/image", { method: "POST", body })).json();
  return { filename: saved.name, subfolder: saved.subfolder, type: saved.type };
}

/** What the server says of a file's content; nothing where it does not say, or where the name says it already. */
async function identify(image) {
  if (image.type === "temp" && image.filename.startsWith("samkit_")) return "";
  try {
    const response = await api.fetchApi(query(image), { method: "HEAD", cache: "no-store" });
    return response.headers.get("ETag") ?? response.headers.get("Last-Modified") ?? "";
  } catch {
    return ""; // the server is gone: what is shown stays
  }
}

/** The graph of a run in its API form, by its id: of the queue while it runs, of the history afterwards. */
async function graphOfRun(id) {
  const read = async (path) => (await api.fetchApi(path)).json();
  try {
    const { queue_running: running } = await read("/queue");
    const entry = running.find((one) => one[1] === id) ?? (await read(`/history/${id}`))[id]?.prompt;
    return entry?.[2] ?? null;
  } catch {
    return null;
  }
}

/** The editor of one node, and its ties to the graph. */
class Binding {
  #timer = 0;
  #models = new Map(); // signature of what is connected -> the identity that a run gave it

  constructor(node, name) {
    this.node = node;
    this.editor = new PromptEditor({
      send: (path, init) => api.fetchApi(path, init),
      url: (image, version) => api.apiURL(query(image, version && { samkit: version })),
      identify,
      committed: () => this.#save(),
      complain: (detail) => app.extensionManager.toast.add({ severity: "error", summary: "SAM Prompt Editor", detail, life: 8000 }),
      loadImage: () => this.#run(imageGraph),
      loadAll: () => this.#run(only),
      sendToMaskEditor: (alpha, image) => this.#sendToMaskEditor(alpha, image),
      needed: () => this.look(),
      // Nodes 2.0 gives it to the graph itself, the classic canvas lies behind the editor.
      passWheel: (event) => {
        if (window.LiteGraph.vueNodesMode) return;
        event.preventDefault();
        app.canvas.processMouseWheel(event);
      },
    });
    this.widget = node.addDOMWidget(name, WIDGET, this.editor.element, {
      getValue: () => this.editor.text,
      // A subgraph that hands on another widget's value to the wrong one must not wipe the marks.
      setValue: (text) => { if (typeof text === "string") this.editor.text = text; },
      getMinHeight: () => LEAST_HEIGHT,
      hideOnZoom: false,
    });
    this.widget.serializeValue = () => this.editor.state.runText;
    // The side panel of newer frontends measures the widget and leaves the panel's width on it: the node's is right.
    Object.defineProperty(this.widget, "width", { get: () => undefined, set: () => {}, configurable: true });
    live.add(this);
    lookAll(); // the others, too: a graph that is loaded takes the place of another
  }

  #save() {
    this.widget?.callback?.(this.editor.text);
    this.node.graph?.setDirtyCanvas?.(true, false);
    const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // the older name serves older frontends
  }

  /** Look soon at what is connected; many changes at once are one. */
  look() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#look(), SETTLE);
  }

  async #look() {
    if (!this.node.graph || !live.has(this)) return;
    // Nobody tells the nodes of a subgraph that it has been removed.
    if (!idsOf(this.node).length) return this.editor.dispose();
    this.editor.attach();
    this.#takePlace();
    const found = await this.#graph();
    if (!found || !live.has(this)) return;
    const { graph, id } = found;
    const signature = imageSignature(graph, id);
    const file = imageOf(graph, id);
    const { [IMAGES]: ran = this.node.properties[IMAGES_BEFORE], [SIGNATURE]: before } = this.node.properties;
    const made = signature && Array.isArray(ran) ? ran.map(nameOf) : [];
    const isOlder = !file && made.length > 0 && before !== undefined && before !== signature;
    const givesEmptyMasks = usesMasks(graph, id) && !hasModel(graph, id);
    this.editor.setSource({ images: file ? [file] : made, isConnected: signature !== null, isOlder, givesEmptyMasks });
    this.editor.words.connect(groundingOf(graph, id));
    const model = modelOf(graph, id);
    const identity = this.#models.get(model?.signature);
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
      return null; // incomplete graphs are normal while somebody works
    }
  }

  /** What a run has shown: images, and the model that it used. They belong to the graph that ran, which may not be today's. */
  async executed({ prompt_id: run, output: { samkit_images: images, samkit_model: identities } }) {
    this.editor.setSource({ isRunning: false });
    const graph = await graphOfRun(run);
    const id = graph && idsOf(this.node).find((one) => one in graph);
    if (Array.isArray(images) && images.length) {
      this.node.properties[IMAGES] = images.map(nameOf);
      delete this.node.properties[IMAGES_BEFORE];
      if (id) this.node.properties[SIGNATURE] = imageSignature(graph, id);
    }
    const model = id && modelOf(graph, id);
    const isEmpty = id && usesMasks(graph, id) && !hasModel(graph, id) && this.editor.state.marks.length > 0;
    if (isEmpty) this.#warn("This run had marks and no model, so their masks are empty. Connect Load SAM Model to sam_model.");
    if (identities?.[0] && model) this.#models.set(model.signature, identities[0]);
    this.look();
    this.editor.wake();
  }

  #warn(detail) {
    app.extensionManager.toast.add({ severity: "warn", summary: "SAM Prompt Editor", detail, life: 10000 });
  }

  /** Run a part of the graph: what the image needs, or what the model needs too. */
  async #run(part) {
    const found = await this.#graph();
    if (!found) return;
    const output = part(found.graph, found.id);
    try {
      this.editor.setSource({ isRunning: true });
      await api.queuePrompt(0, { output, workflow: found.workflow });
    } catch (error) {
      this.editor.setSource({ isRunning: false });
      this.editor.host.complain(error.response?.error?.message ?? error.message);
    }
  }

  async #sendToMaskEditor(alpha, image) {
    const body = new FormData();
    const filename = `samkit-mask-${Date.now()}.png`;
    body.append("image", alpha, filename);
    body.append("original_ref", JSON.stringify(await inComfyUI(image)));
    body.append("type", "input");
    body.append("subfolder", "clipspace");
    const response = await api.fetchApi("/upload/mask", { method: "POST", body });
    if (!response.ok) throw new Error(`ComfyUI did not take the mask: ${response.status} ${response.statusText}`);
    const saved = await response.json();
    await openMaskEditor(this.node, `${saved.subfolder}/${saved.name} [${saved.type}]`);
  }

  /** The node is in a graph again: undo of some frontends puts the same one back. */
  begin() {
    if (live.has(this)) return;
    live.add(this);
    this.editor.attach();
    this.look();
  }

  end() {
    live.delete(this);
    for (const [id, element] of left) if (!element.isConnected) left.delete(id);
    left.set(String(this.node.id), this.editor.element);
    clearTimeout(this.#timer);
    this.editor.dispose();
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

/** A run is over, or the server is back. */
function wakeAll() {
  for (const { editor } of live) {
    editor.setSource({ isRunning: false, progress: null });
    editor.wake();
  }
}

app.registerExtension({
  name: "SAMKit.PromptEditor",
  async init() {
    const href = new URL("./editor/prompt_editor.css", import.meta.url).href;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
  },
  async setup() {
    api.addEventListener("graphChanged", lookAll);
    api.addEventListener("progress", ({ detail: { value, max } }) => {
      for (const { editor } of live) editor.setSource({ progress: max ? value / max : null });
    });
    for (const end of ENDS) api.addEventListener(end, wakeAll);
    api.addEventListener("executed", ({ detail }) => {
      for (const binding of live) {
        const ids = binding.node.graph ? idsOf(binding.node) : [];
        if (detail.output && ids.some((id) => id === String(detail.node) || id === String(detail.display_node))) binding.executed(detail);
      }
    });
  },
  async beforeRegisterNodeDef(_, definition) {
    if (definition.name !== NODE) return;
    const options = definition.input?.required?.prompts?.[1];
    setContract(options?.samkit_contract);
    delete options?.tooltip; // in Nodes 2.0 it covers the node beside it for as long as the pointer is on the image
  },
  getCustomWidgets() {
    return {
      [WIDGET](node, name) {
        const binding = new Binding(node, name);
        const { onAdded, onRemoved, onConnectionsChange, onConfigure } = node;
        node.onAdded = function added(...args) {
          binding.begin();
          return onAdded?.apply(this, args);
        };
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

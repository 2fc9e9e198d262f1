/** SAM Prompt Editor in ComfyUI: a DOM widget behind the node's STRING input, in the classic canvas and in Nodes 2.0. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addLoadImage, cancelRun, complain, countFrames, HOST, noteChange, uploadMask, warn } from "./comfyui.js";
import { setContract } from "./editor/contract.js";
import { EditorDialog } from "./editor/dialog.js";
import { PromptEditor } from "./editor/editor.js";
import {
  groundingOf, hasModel, imageGraph, imageOf, imageSignature, isTracked, mayBeFilm, modelOf, nameOf, only, usesMasks,
} from "./editor/source.js";
import { ModelChoice } from "./model_choice.js";

const NODE = "SAMKit_PromptEditor";
const WIDGET = "SAMKIT_PROMPTS";
// Where the node keeps the images of its last run and what they were made of, for a reload.
const IMAGES = "samkit_images";
const IMAGES_BEFORE = "samkit_pictures"; // the same, in workflows of version 1
const SIGNATURE = "samkit_image_signature";
const TRACK = "samkit_track"; // where the node keeps what the last run of SAM Track has made of its marks, for a reload
const LEAST_HEIGHT = 280;
const FIRST_SIZE = [480, 670];
const SETTLE = 120;
const RECENT = 2000; // milliseconds for which it is known how many frames a file has
const ENDS = ["execution_success", "execution_error", "execution_interrupted", "reconnected"];

const live = new Set();
/** Elements of nodes that are gone, which Nodes 2.0 may still show: it keeps what it drew for a node when another takes its id
 * at once, as undo and the loading of a workflow do. */
const left = new Map();

/** Ids, as the API form has them ("3", or "5:3" inside a subgraph), of the places where a node's graph is used. */
export function idsOf(node, graph = app.rootGraph ?? app.graph, prefix = "") {
  if (graph === node.graph) return [`${prefix}${node.id}`];
  return (graph?.nodes ?? []).filter((one) => one.subgraph).flatMap((one) => idsOf(node, one.subgraph, `${prefix}${one.id}:`));
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

/**
 * The editor of one node, and its ties to the graph. Dialogs of the node are views beside it.
 * @typedef {object} View
 * @property {string} within  the place of the node's graph that is shown, as the ids in it begin
 * @property {EditorDialog} [dialog]
 * @property {ModelChoice} [choice]  of the model where none is connected
 * @property {{value: string}} [holder]  who has the text that is shown, where that is not the node
 * @property {string} [seen]  what the holder had when it was read last
 * @property {{id: string, source: object, words: string | null, model: object | null, track: object | null}} [last]  what the editor
 *   was given
 */
class Binding {
  #timer = 0;
  #models = new Map(); // signature of what is connected -> the identity that a run gave it
  #views = new Map(); // editor -> View
  #queued = null; // what the server says of the run that an editor has begun
  #counted = { key: null, time: 0, frames: 1 }; // of the file that is shown

  constructor(node, name) {
    this.node = node;
    this.editor = new PromptEditor({
      ...HOST,
      ...this.#onGraph(node),
      committed: () => this.#save(),
    });
    this.#views.set(this.editor, { within: "" });
    this.widget = addEditor(node, name, this.editor);
    this.widget.serializeValue = () => this.editor.state.runText;
    live.add(this);
    lookAll(); // the others, too: a graph that is loaded takes the place of another
  }

  get editors() {
    return [...this.#views.keys()];
  }

  /** What an editor on a node of the graph can do there. */
  #onGraph(node, within = "", holder = null) {
    return {
      loadImage: () => this.#run(imageGraph, within),
      loadAll: () => this.#run(only, within),
      cancelRun: () => this.#cancel(),
      sendToMaskEditor: async (alpha, image) => openMaskEditor(node, await uploadMask(alpha, image)),
      needed: () => this.look(),
      openDialog: () => this.openDialog({ within, holder }),
      // Nodes 2.0 gives it to the graph itself, the classic canvas lies behind the editor.
      passWheel: (event) => {
        if (window.LiteGraph.vueNodesMode) return;
        event.preventDefault();
        app.canvas.processMouseWheel(event);
      },
    };
  }

  /**
   * An editor on a subgraph's node that has the text itself: newer frontends show nothing for an editor's input there.
   * @param {object} host  the subgraph's node
   * @param {string} within  the place of this node's graph, as its ids begin
   * @param {{name: string, value: string}} holder
   * @returns {object} its widget
   */
  showOn(host, within, holder) {
    const editor = new PromptEditor({
      ...HOST,
      ...this.#onGraph(host, within, holder),
      committed: () => {
        holder.value = this.#views.get(editor).seen = editor.text;
        noteChange(host);
      },
    });
    this.#views.set(editor, { within, holder });
    const widget = addEditor(host, `${holder.name}: editor`, editor);
    const { onRemove } = widget;
    widget.onRemove = () => {
      onRemove?.call(widget);
      this.#views.delete(editor);
      editor.dispose();
    };
    this.look();
    return widget;
  }

  #save() {
    this.widget?.callback?.(this.editor.text);
    noteChange(this.node);
  }

  /**
   * The editor over the whole window; its OK is one step of undo here.
   * @param {object} [from]
   * @param {string} [from.within]  the place of the node's graph, as its ids begin
   * @param {{value: string} | null} [from.holder]  who has the text that a run takes, where that is not this node
   */
  openDialog({ within = "", holder = null } = {}) {
    const choice = new ModelChoice(() => this.look());
    const dialog = new EditorDialog({
      host: {
        ...HOST,
        loadImage: () => this.#run(imageGraph, within),
        loadAll: () => this.#run(only, within),
        cancelRun: () => this.#cancel(),
        needed: () => this.look(),
      },
      title: this.node.title,
      text: holder ? holder.value : this.editor.text,
      more: [choice.element],
      accept: async ({ text, state: { current } }) => {
        if (holder) {
          holder.value = text;
          noteChange(this.node);
          this.look();
        } else {
          this.editor.state.adopt(text, current);
        }
        return true;
      },
      closed: () => this.#views.delete(dialog.editor),
    });
    // What another editor shows of this place is there at once; the graph, which takes longer to read, has the last word.
    const known = [...this.#views.values()].find(({ last }) => last?.id.startsWith(within))?.last;
    this.#views.set(dialog.editor, { within, dialog, choice });
    if (known) this.#give(dialog.editor, known);
    this.look();
    return dialog;
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
    const output = (await this.#graph())?.output;
    if (!output || !live.has(this)) return;
    for (const [editor, view] of this.#views) {
      const id = this.#idIn(output, view.within);
      if (id) await this.#show(editor, view, output, id);
    }
  }

  /** Give an editor the image and the model of a place in the graph. */
  async #show(editor, view, graph, id) {
    const { choice, holder } = view;
    if (holder && holder.value !== view.seen) editor.text = view.seen = holder.value;
    const signature = imageSignature(graph, id);
    const file = imageOf(graph, id);
    const { [IMAGES]: ran = this.node.properties[IMAGES_BEFORE], [SIGNATURE]: before } = this.node.properties;
    const made = signature && Array.isArray(ran) ? ran.map(nameOf) : [];
    const isOlder = !file && made.length > 0 && before !== undefined && before !== signature;
    const givesEmptyMasks = usesMasks(graph, id) && !hasModel(graph, id);
    const images = file ? await this.#framesOf(file, before === signature ? made : []) : made;
    const source = { images, isConnected: signature !== null, isOlder, givesEmptyMasks, isTracked: isTracked(graph, id) };
    const model = modelOf(graph, id);
    const identity = this.#models.get(model?.signature);
    const isChosen = choice && !hasModel(graph, id);
    if (isChosen) await choice.show("Nothing is connected to sam_model: this model is for the preview only.");
    const { image, ...track } = this.node.properties[TRACK] ?? {};
    view.last = {
      id,
      source,
      words: groundingOf(graph, id),
      model: isChosen ? choice.model : model?.name ?? (identity ? { identity } : null),
      track: track.file && source.isTracked && image === signature ? track : null,
    };
    this.#give(editor, view.last);
  }

  /** The frames of an image file: as the server can read them, else as a run has shown them. */
  async #framesOf(file, made) {
    const key = JSON.stringify(file);
    const isRecent = this.#counted.key === key && performance.now() - this.#counted.time < RECENT;
    if (mayBeFilm(file) && !isRecent) this.#counted = { key, time: performance.now(), frames: await countFrames(file) };
    const frames = mayBeFilm(file) ? this.#counted.frames : 1;
    if (frames > 1) return [...Array(frames).keys()].map((frame) => ({ ...file, frame }));
    return made.length > 1 ? made : [file];
  }

  #give(editor, { source, words, model, track }) {
    editor.setSource(source);
    editor.setTrack(track);
    editor.words.connect(words);
    editor.setModel(model);
  }

  #takePlace() {
    const before = left.get(String(this.node.id));
    left.delete(String(this.node.id));
    if (before?.isConnected && !this.editor.element.isConnected) before.replaceWith(this.editor.element);
  }

  /** The graph in its API form, {output, workflow}; null where it is not complete. */
  async #graph() {
    try {
      return await app.graphToPrompt();
    } catch {
      return null; // incomplete graphs are normal while somebody works
    }
  }

  /** Our id in a graph, at one place of ours; nothing where we are not part of it. */
  #idIn(graph, within = "") {
    return idsOf(this.node).find((one) => one.startsWith(within) && one in graph);
  }

  /** What a run has shown: images, and the model that it used. They belong to the graph that ran, which may not be today's. */
  async executed({ prompt_id: run, output: { samkit_images: images, samkit_model: identities } }) {
    this.#tell(false);
    const graph = await graphOfRun(run);
    const id = graph && this.#idIn(graph);
    if (Array.isArray(images) && images.length) {
      this.node.properties[IMAGES] = images.map(nameOf);
      delete this.node.properties[IMAGES_BEFORE];
      if (id) this.node.properties[SIGNATURE] = imageSignature(graph, id);
    }
    const model = id && modelOf(graph, id);
    const isEmpty = id && usesMasks(graph, id) && !hasModel(graph, id) && this.editor.state.marks.length > 0;
    if (isEmpty) warn("This run had marks and no model, so their masks are empty. Connect Load SAM Model to sam_model.");
    if (identities?.[0] && model) this.#models.set(model.signature, identities[0]);
    this.look();
    for (const editor of this.editors) editor.wake();
  }

  /** What a run of SAM Track has made of the marks that this node had in that run. */
  async tracked({ prompt_id: run, node, output: { samkit_track: [track] } }) {
    const graph = await graphOfRun(run);
    const id = graph && this.#idIn(graph);
    if (!id || !isTracked(graph, id, String(node))) return;
    const { prompts } = graph[id].inputs;
    this.node.properties[TRACK] = { ...track, image: imageSignature(graph, id), prompts };
    for (const editor of this.editors) editor.setTrack(null); // the file of an equal run before may have gone
    this.look();
  }

  /** Run a part of the graph: what the image needs, or what the model needs too. */
  async #run(part, within = "") {
    const found = await this.#graph();
    const id = found && this.#idIn(found.output, within);
    if (!id) return;
    try {
      this.#tell(true);
      await (this.#queued = api.queuePrompt(0, { output: part(found.output, id), workflow: found.workflow }));
    } catch (error) {
      this.#tell(false);
      complain(error.response?.error?.message ?? error.message);
    }
  }

  #tell(isRunning) {
    for (const editor of this.editors) editor.setSource({ isRunning });
  }

  async #cancel() {
    try {
      await cancelRun((await this.#queued).prompt_id);
      this.#tell(false);
    } catch (error) {
      complain(error.message);
    }
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
    for (const [editor, { dialog }] of [...this.#views]) dialog ? dialog.close() : editor.dispose();
  }
}

/** A widget that is an editor. */
function addEditor(node, name, editor) {
  const widget = node.addDOMWidget(name, WIDGET, editor.element, {
    getValue: () => editor.text,
    // A subgraph that hands on another widget's value to the wrong one must not wipe the marks.
    setValue: (text) => { if (typeof text === "string") editor.text = text; },
    getMinHeight: () => LEAST_HEIGHT,
    hideOnZoom: false,
  });
  // The side panel of newer frontends measures the widget and leaves the panel's width on it: the node's is right.
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {}, configurable: true });
  return widget;
}

/** The binding of a node, or nothing where it has none. */
export function bindingOf(node) {
  return [...live].find((one) => one.node === node);
}

/** A Load Image beside the node, with the image and its mask, in ComfyUI's own mask editor. */
async function openMaskEditor(node, name) {
  const loader = addLoadImage(node, name, "Load Image: mask of SAM Prompt Editor");
  for (let tries = 0; tries < 50 && !loader.imgs?.length; tries += 1) await new Promise((done) => setTimeout(done, 100));
  app.canvas.selectNode(loader);
  await app.extensionManager.command.execute("Comfy.MaskEditor.OpenMaskEditor");
}

function lookAll() {
  for (const binding of live) binding.look();
}

/** A run is over, or the server is back. */
function wakeAll() {
  for (const editor of [...live].flatMap(({ editors }) => editors)) {
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
      for (const editor of [...live].flatMap(({ editors }) => editors)) editor.setSource({ progress: max ? value / max : null });
    });
    for (const end of ENDS) api.addEventListener(end, wakeAll);
    api.addEventListener("executed", ({ detail }) => {
      for (const binding of live) {
        const ids = binding.node.graph ? idsOf(binding.node) : [];
        if (detail.output && ids.some((id) => id === String(detail.node) || id === String(detail.display_node))) binding.executed(detail);
        if (detail.output?.samkit_track) binding.tracked(detail);
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

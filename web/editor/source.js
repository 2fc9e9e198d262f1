/** Where the editor's image and model come from, read from the API form of the graph (subgraphs, reroutes and bypassed
 * nodes are resolved in it). No DOM. */

export const LOADERS = { LoadImage: "input", LoadImageOutput: "output", SAMKit_ExampleImage: "example" };
const SAME_IMAGE = { SAMKit_PromptEditor: "image" };
const FILE = /^(?:(.*)[/\\])?([^/\\]+?)(?: \[(input|output|temp)\])?$/;

/** ComfyUI's name of a file, "sub/name.png [temp]", taken apart as its /view wants it. */
export function fileOf(name, type = "input") {
  const [, subfolder, filename, kind] = FILE.exec(name) ?? [];
  return filename ? { filename, subfolder: (subfolder ?? "").replaceAll("\\", "/"), type: kind ?? type } : null;
}

/** The node that feeds an input: its id, its entry and which of its outputs, or null. */
function feeding(graph, id, input) {
  const link = graph[id]?.inputs?.[input];
  return Array.isArray(link) && graph[link[0]] ? { id: String(link[0]), node: graph[link[0]], output: link[1] } : null;
}

/**
 * The file that the editor's `image` is, where the graph says so before it has run.
 * @param {Record<string, {class_type: string, inputs: object}>} graph
 * @param {string} id  the editor's
 * @returns {{filename: string, subfolder: string, type: string} | null}
 */
export function imageOf(graph, id) {
  let from = feeding(graph, id, "image");
  for (let steps = 0; from && steps < 1000; steps += 1) {
    const { class_type: kind, inputs } = from.node;
    if (kind in LOADERS) return typeof inputs.image === "string" ? fileOf(inputs.image, LOADERS[kind]) : null;
    if (!(kind in SAME_IMAGE)) return null;
    from = feeding(graph, from.id, SAME_IMAGE[kind]);
  }
  return null;
}

/** A text that changes whenever another value would come from an output of a graph. Marks do not change an editor's image. */
function signatureOf(graph, { id, output }) {
  const parts = Object.entries(only(graph, id)).map(([part, { class_type: kind, inputs }]) => {
    const { prompts: _, sam_model: __, individual_masks: ___, grounding_model: ____, ...others } = inputs ?? {};
    return [part, kind, kind in SAME_IMAGE ? others : inputs];
  });
  return JSON.stringify([output, parts]);
}

/** A short text that changes whenever another image would come; null where nothing is connected. */
export function imageSignature(graph, id) {
  const from = feeding(graph, id, "image");
  return from && hash(signatureOf(graph, from));
}

/** 53 bits that tell texts apart (cyrb53): a signature is saved with the workflow, and should be short. */
function hash(text) {
  let [high, low] = [0xdeadbeef, 0x41c6ce57];
  for (let i = 0; i < text.length; i += 1) {
    const code = text.charCodeAt(i);
    high = Math.imul(high ^ code, 2654435761);
    low = Math.imul(low ^ code, 1597334677);
  }
  high = Math.imul(high ^ (high >>> 16), 2246822507) ^ Math.imul(low ^ (low >>> 13), 3266489909);
  low = Math.imul(low ^ (low >>> 16), 2246822507) ^ Math.imul(high ^ (high >>> 13), 3266489909);
  return (4294967296 * (2097151 & low) + (high >>> 0)).toString(36);
}

/**
 * What feeds `sam_model`: null where nothing does, else the server's name for it, if it has one, and a text that changes
 * whenever another model would come.
 * @returns {{name: {model_name: string, precision: string, base_model?: string} | null, signature: string} | null}
 */
export function modelOf(graph, id) {
  const from = feeding(graph, id, "sam_model");
  if (!from) return null;
  const { model_name: name, precision = "auto", base_model: base = "auto" } = from.node.inputs;
  const isOurs = from.node.class_type === "AV_SAMLoader" && [name, precision, base].every((one) => typeof one === "string");
  const model = base === "auto" ? { model_name: name, precision } : { model_name: name, precision, base_model: base };
  return { name: isOurs ? model : null, signature: signatureOf(graph, from) };
}

/** The name of the Grounding DINO that is connected; "" where something else is, null where nothing is. @returns {string | null} */
export function groundingOf(graph, id) {
  const from = feeding(graph, id, "grounding_model");
  if (!from) return null;
  const { class_type: kind, inputs } = from.node;
  return kind === "SAMKit_GroundingLoader" && typeof inputs.model_name === "string" ? inputs.model_name : "";
}

// Places of the editor's outputs that a model makes: masks, cutout and layers.
const MADE_BY_MODEL = new Set([3, 6, 7]);

/** Whether another node takes the editor's masks. */
export function usesMasks(graph, id) {
  const isTaken = (value) => Array.isArray(value) && String(value[0]) === String(id) && MADE_BY_MODEL.has(value[1]);
  return Object.values(graph).some(({ inputs }) => Object.values(inputs ?? {}).some(isTaken));
}

// Places of the editor's outputs that are marks, and the inputs of SAM Track for them.
const MARKS = new Set([0, 1, 2]);
const PROMPTS = ["positive_coords", "negative_coords", "bboxes"];

/** Whether a node is a SAM Track that takes the editor's marks; of no node: whether there is one. */
export function isTracked(graph, id, track = null) {
  const takes = ({ class_type: kind, inputs }) => kind === "SAMKit_Track"
    && PROMPTS.some((name) => Array.isArray(inputs?.[name]) && String(inputs[name][0]) === String(id) && MARKS.has(inputs[name][1]));
  return track === null ? Object.values(graph).some(takes) : track in graph && takes(graph[track]);
}

/** Whether an image file may have several frames: who knows is the server. */
export function mayBeFilm({ filename }) {
  return /\.(webp|gif|apng)$/i.test(filename);
}

/** Whether something is connected to the editor's `sam_model`. */
export function hasModel(graph, id) {
  return feeding(graph, id, "sam_model") !== null;
}

/** A file's name as ComfyUI's routes take it, without what newer servers add to it: that grows, and is of one server only. */
export function nameOf({ filename, subfolder = "", type }) {
  return { filename, subfolder, type };
}

/** The part of a graph that a node needs, itself included. */
export function only(graph, id) {
  const found = {};
  const wanted = [String(id)];
  while (wanted.length) {
    const next = wanted.pop();
    if (next in found || !graph[next]) continue;
    found[next] = graph[next];
    for (const value of Object.values(graph[next].inputs ?? {})) {
      if (Array.isArray(value) && graph[value[0]]) wanted.push(String(value[0]));
    }
  }
  return found;
}

/** The graph that makes the editor's image and no more: what is upstream of `image`, and the editor without a model. */
export function imageGraph(graph, id) {
  const editor = { ...graph[id], inputs: { ...graph[id].inputs } };
  delete editor.inputs.sam_model;
  delete editor.inputs.grounding_model;
  return only({ ...graph, [id]: editor }, id);
}

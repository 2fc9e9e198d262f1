/** What SAM Kit's editors need of ComfyUI: its files, its messages, its undo, and room on its canvas. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { isUpright } from "./editor/orientation.js";
import { fileOf, nameOf } from "./editor/source.js";

const TITLE = "SAM Prompt Editor";
const BESIDE = 40; // pixels between a node and one that is put beside it
const TITLE_HEIGHT = 30;
const MASKED = "clipspace"; // the folder of images whose alpha is a mask, or how their names begin; their colours are whole below it
const MASK = "samkit-mask-"; // how the names of our masked copies begin

/** A request that takes as long as it takes: newer frontends give one up after a minute, in which a large model is not always loaded
 * and has encoded an image. */
async function request(path, init) {
  try {
    return await api.fetchApi(path, { ...init, timeoutMs: null });
  } catch (cause) {
    throw new Error("ComfyUI does not answer. Check that it is running.", { cause });
  }
}

/** A frame of a file, or a small image of it, by the pack's own route. */
const frameQuery = ({ filename, subfolder, type, frame = 0 }, more) =>
  `/samkit/frame?${new URLSearchParams({ filename, subfolder, type, frame, ...more })}`;

const query = ({ filename, subfolder, type }, more) => type === "example"
  ? `/samkit/examples/${encodeURIComponent(filename)}?${new URLSearchParams(more ?? {})}`
  : `/view?${new URLSearchParams({ filename, subfolder, type, ...more })}`;

/** What the server says of a file's content; nothing where it does not say, or where the name says it already; null without a server. */
async function identify(image) {
  if (image.type === "temp" && image.filename.startsWith("samkit_")) return "";
  try {
    const response = await api.fetchApi(query(image), { method: "HEAD", cache: "no-store" });
    return response.headers.get("ETag") ?? response.headers.get("Last-Modified") ?? "";
  } catch {
    return null;
  }
}

/** How many frames an image file has; 1 where the server does not say. */
export async function countFrames(image) {
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await request("/samkit/frames", { method: "POST", headers, body: JSON.stringify({ image: nameOf(image) }) });
    return response.ok ? (await response.json()).frames : 1;
  } catch {
    return 1; // the server is gone
  }
}

export function complain(detail, summary = TITLE) {
  app.extensionManager.toast.add({ severity: "error", summary, detail, life: 8000 });
}

export function warn(detail) {
  app.extensionManager.toast.add({ severity: "warn", summary: TITLE, detail, life: 10000 });
}

/** What any editor's host has, wherever its image comes from. */
export const HOST = {
  send: request,
  thumbnail: (image, side, version) => api.apiURL(frameQuery(image, { side, ...(version && { samkit: version }) })),
  tile: ({ filename, subfolder, type, frame = 0 }, level, column, row, version) => {
    const more = version && { samkit: version };
    return api.apiURL(`/samkit/tile?${new URLSearchParams({ filename, subfolder, type, frame, level, column, row, ...more })}`);
  },
  url: (image, version) => {
    if (image.frame !== undefined) return api.apiURL(frameQuery(image, { ...(version && { samkit: version }) }));
    const isMasked = image.subfolder === MASKED || image.filename.startsWith(MASKED);
    return api.apiURL(query(image, { ...(isMasked && { channel: "rgb" }), ...(version && { samkit: version }) }));
  },
  identify,
  complain,
};

/** The workflow has changed: ComfyUI's undo takes note. */
export function noteChange(node) {
  node.graph?.setDirtyCanvas?.(true, false);
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // the older name serves older frontends
}

/** End a run, or take it out of the queue; any other one goes on. @param {string} id */
export async function cancelRun(id) {
  const headers = { "Content-Type": "application/json" };
  const post = (path, body) => api.fetchApi(path, { method: "POST", headers, body: JSON.stringify(body) });
  if ((await post(`/jobs/${id}/cancel`, {})).ok) return;
  // An older ComfyUI: what runs is asked for, since the oldest ones end whatever runs.
  await post("/queue", { delete: [id] });
  const { queue_running: running } = await (await api.fetchApi("/queue")).json();
  if (running.some((one) => one[1] === id)) await post("/interrupt", { prompt_id: id });
}

/** A file of an upload, by ComfyUI's name. @returns {Promise<{filename: string, subfolder: string, type: string}>} */
async function upload(path, blob, filename, more) {
  const body = new FormData();
  body.append("image", blob, filename);
  for (const [name, value] of Object.entries(more)) body.append(name, value);
  const response = await request(path, { method: "POST", body });
  if (!response.ok) throw new Error(`ComfyUI did not take the mask: ${response.status} ${response.statusText}`);
  const { name, subfolder, type } = await response.json();
  return { filename: name, subfolder, type };
}

/** The image under a name that ComfyUI's upload of masks takes, upright as Load Image gives it. */
async function original(image) {
  if (image.frame !== undefined) {
    const blob = await (await request(frameQuery(image))).blob();
    return upload("/upload/image", blob, `samkit-${Date.now()}.png`, { type: "temp" });
  }
  if (image.type !== "example" && image.filename.toLowerCase().endsWith(".png")) return image;
  const response = await request(query(image));
  const blob = await response.blob();
  const isShown = isUpright(new Uint8Array(await blob.slice(0, 1 << 16).arrayBuffer()));
  if (image.type !== "example" && isShown) return image;
  if (isShown) return upload("/upload/image", blob, image.filename, { type: "temp", overwrite: "true" });
  const bitmap = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  return upload("/upload/image", await canvas.convertToBlob({ type: "image/png" }), `samkit-${Date.now()}.png`, { type: "temp" });
}

/**
 * Put a mask onto an image, as ComfyUI's mask editor does: a copy with the mask as its alpha, in its clipspace.
 * @param {Blob} alpha  a PNG: what is masked is transparent
 * @param {import("./editor/editor.js").ImageName} image
 * @returns {Promise<string>}  the copy as Load Image names it
 */
export async function uploadMask(alpha, image) {
  const more = { original_ref: JSON.stringify(nameOf(await original(image))), type: "input", subfolder: MASKED };
  const saved = await upload("/upload/mask", alpha, `${MASK}${Date.now()}.png`, more);
  return `${saved.subfolder}/${saved.filename} [${saved.type}]`;
}

const isUnlisted = ({ options, value }, name = value) => Array.isArray(options?.values) && !options.values.includes(name);

/** Give a node with a list of images one that the list may not have yet. */
export function setImage(node, name) {
  const widget = node.widgets.find((one) => one.name === "image");
  if (isUnlisted(widget, name)) widget.options.values.push(name);
  widget.value = name;
  widget.callback?.(name);
}

/** Put the masked copies of a loaded graph that the server has into their nodes' lists: newer frontends call what is not listed missing. */
export async function listMasks(graph = app.rootGraph ?? app.graph) {
  await Promise.all((graph?.nodes ?? []).map(async (node) => {
    if (node.subgraph) return listMasks(node.subgraph);
    const widget = node.widgets?.find(({ name, value }) => name === "image" && typeof value === "string");
    const image = widget && isUnlisted(widget) ? fileOf(widget.value) : null;
    if (image?.subfolder !== MASKED || !image.filename.startsWith(MASK)) return;
    const { ok } = await api.fetchApi(query(image), { method: "HEAD", cache: "no-store" });
    if (ok && isUnlisted(widget)) widget.options.values.push(widget.value);
  })).catch(() => {}); // the server is gone: the list stays
}

/** A Load Image beside a node, on no other one, with an image. */
export function addLoadImage(node, name, title) {
  const loader = window.LiteGraph.createNode("LoadImage");
  loader.title = title;
  loader.pos = placeBeside(node, loader.size);
  node.graph.add(loader);
  setImage(loader, name);
  return loader;
}

/** The first place to the right of a node, and then below others, where a node of a size lies on no other one. */
function placeBeside(node, [width, height]) {
  const place = [node.pos[0] + node.size[0] + BESIDE, node.pos[1]];
  const others = node.graph.nodes.map(({ pos, size, flags }) => ({ left: pos[0], top: pos[1] - TITLE_HEIGHT, right: pos[0] + size[0], bottom: pos[1] + (flags?.collapsed ? 0 : size[1]) }));
  const below = () => others.filter(({ left, top, right, bottom }) =>
    left < place[0] + width + BESIDE / 2 && right > place[0] - BESIDE / 2 && top < place[1] + height + BESIDE / 2 && bottom > place[1] - TITLE_HEIGHT - BESIDE / 2);
  for (let found = below(); found.length; found = below()) place[1] = Math.max(...found.map(({ bottom }) => bottom)) + BESIDE + TITLE_HEIGHT;
  return place;
}

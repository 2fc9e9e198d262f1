/** "Select object with SAM" in the menu of nodes that show an image: the editor as a dialog, whose masks become the alpha of the image. */

import { app } from "../../scripts/app.js";
import { addLoadImage, complain, HOST, listMasks, noteChange, setImage, uploadMask } from "./comfyui.js";
import { EditorDialog } from "./editor/dialog.js";
import { fileOf, LOADERS, nameOf } from "./editor/source.js";
import { ModelChoice } from "./model_choice.js";

const ENTRY = "Select object with SAM";
const EDITOR = "SAMKit_PromptEditor"; // has a button for its own dialog
// What a node keeps of its selection: {text, image, before, value}, the last one being the image that it has made.
const SELECTION = "samkit_selection";
const FILM = /\.(mp4|webm|mkv|mov|avi|m4v)$/i; // nodes list them among their images
const BUSY = "ComfyUI is running a prompt. The mask is made afterwards.";
const GONE = "This node is no longer in the workflow, so it cannot take the selection.";
let opened = null;

const imageWidget = (node) => node.widgets?.find(({ name, value }) => name === "image" && typeof value === "string");

/** Whether a node loads an image by a name, which may be one that its list lacks. */
function takesImage(node) {
  const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {};
  return Boolean((required.image ?? optional.image)?.[1]?.image_upload && imageWidget(node));
}

/** The file that a node shows: the one that it loads, or what a run has made. @returns {import("./editor/editor.js").ImageName | null} */
function imageOf(node) {
  const widget = imageWidget(node);
  const isLoader = node.comfyClass in LOADERS || takesImage(node);
  if (widget && isLoader) return fileOf(widget.value, LOADERS[node.comfyClass] ?? node.constructor.nodeData?.input?.required?.image?.[1]?.image_folder);
  const index = node.imageIndex ?? 0;
  const place = node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : String(node.id);
  const made = (node.images ?? app.nodeOutputs?.[place]?.images)?.[index];
  if (made?.filename) return FILM.test(made.filename) ? null : nameOf(made);
  try {
    const asked = new URL(node.imgs?.[index]?.src).searchParams;
    return asked.get("filename") && nameOf({ filename: asked.get("filename"), subfolder: asked.get("subfolder") ?? "", type: asked.get("type") ?? "output" });
  } catch {
    return null; // no image, or one without a file
  }
}

/** What to go on with: the selection that made the node's image, or one of the image itself. */
function begin(node) {
  const image = imageOf(node);
  const saved = node.properties?.[SELECTION];
  const value = imageWidget(node)?.value;
  const isSame = saved && (saved.value === value || JSON.stringify(saved.image) === JSON.stringify(image));
  return isSame ? saved : { text: "{}", image, before: value };
}

/** Open the dialog on a node's image. */
export function selectObject(node) {
  const { text, image, before } = begin(node);
  const choice = new ModelChoice(() => dialog.editor.setModel(choice.model));
  const say = (text) => complain(text, ENTRY);
  const dialog = new EditorDialog({
    host: { ...HOST, complain: say },
    title: `Select object: ${image.filename}`,
    text,
    more: [choice.element],
    accept: async (editor, tell, isOpen) => {
      const alpha = await editor.alpha(isOpen, () => tell(BUSY));
      if (!isOpen()) return false;
      if (node.graph?.getNodeById(node.id) !== node) throw new Error(GONE);
      if (alpha) take(node, { text: editor.text, image, before, value: await uploadMask(alpha, image) });
      else if (takesImage(node)) putBack(node);
      return true;
    },
    closed: () => { if (opened === dialog) opened = null; },
  });
  opened?.close();
  opened = dialog;
  dialog.editor.words.hide(); // no node is there to connect Grounding DINO to
  dialog.editor.setSource({ images: [image], isConnected: true });
  choice.show().then(() => dialog.isOpen && dialog.editor.setModel(choice.model)).catch((error) => say(error.message));
  return dialog;
}

/** The masked image becomes the node's, or that of a Load Image beside one that loads none. */
function take(node, selection) {
  const isLoader = takesImage(node);
  const target = isLoader ? node : addLoadImage(node, selection.value, "Load Image: selected with SAM");
  // What a run has left in the temp folder goes with the server; the masked copy has the same colours.
  const image = selection.image.type === "temp" ? fileOf(selection.value) : selection.image;
  target.properties[SELECTION] = { ...selection, image, before: isLoader ? selection.before : selection.value };
  if (isLoader) setImage(target, selection.value);
  noteChange(target);
}

/** Nothing is marked any more: the image is as it was before. */
function putBack(node) {
  const saved = node.properties[SELECTION];
  if (!saved) return;
  delete node.properties[SELECTION];
  if (imageWidget(node).value === saved.value) setImage(node, saved.before);
  noteChange(node);
}

app.registerExtension({
  name: "SAMKit.SelectObject",
  getNodeMenuItems(node) {
    if (node.comfyClass === EDITOR || !imageOf(node)) return [];
    return [{ content: ENTRY, callback: () => { selectObject(node); } }];
  },
  afterConfigureGraph: () => listMasks(), // the frontend waits for it, and looks for what is missing afterwards
});

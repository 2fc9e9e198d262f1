/** What the editor says: its status line, and its notes on the image. No DOM. */

const LONGEST = 24; // letters of an object's name: the line has room for about forty where a node has its first width

const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

const shortened = (name) => (name.length > LONGEST ? `${name.slice(0, LONGEST - 1)}…` : name);

/**
 * The status line: what its end cuts off comes last.
 * @param {object} view
 * @param {{width: number, height: number} | null} view.image
 * @param {boolean} view.hasModel
 * @param {import("./preview.js").State} view.preview
 * @param {import("./client.js").Answer | null} view.answer  of the selected object's mask
 * @param {string | null} view.object  the selected object's name, where there are several
 * @param {{isSeen: boolean, isOld: boolean, area: number | null} | null} [view.tracked]  SAM Track's mask of it, where that is shown
 * @param {(string | null)[]} [view.more]  of its mask: which look it is, its region
 * @param {boolean} [view.isEmpty]  whether nothing is marked yet
 * @param {boolean} [view.isDialog]  whether the model is chosen above the editor, and not connected
 */
export function statusOf({ image, hasModel, preview, answer, object, tracked = null, more = [], isEmpty = false, isDialog = false }) {
  if (!image) return "";
  const size = `${image.width} × ${image.height}`;
  if (tracked) {
    const area = tracked.area === null ? "" : `${tracked.area.toLocaleString("en")} px`;
    const found = tracked.isSeen ? area : "not seen on this frame";
    const old = tracked.isOld ? "before the last change: run again" : "";
    return [object && shortened(object), "SAM Track", found, old, size].filter(Boolean).join(" · ");
  }
  if (!hasModel) return `${size} · ${isDialog ? "choose a model above" : "connect a SAM model"} to see masks`;
  if (preview.busy) return "ComfyUI is running a prompt. The preview continues when it is done.";
  if (preview.name === "failed") return preview.message;
  if (preview.name === "preparing") return `Encoding the image… · ${size}`;
  if (isEmpty && !more.some(Boolean)) return `Click the object, or drag a box around it · ${size}`;
  const name = object && shortened(object);
  if (!answer) return [name, ...more, size].filter(Boolean).join(" · ");
  const share = ((100 * answer.area) / (image.width * image.height)).toFixed(1);
  const score = answer.score ? [`score ${answer.score.toFixed(3)}`] : []; // paint has none
  const parts = [...score, `${answer.area.toLocaleString("en")} px (${share} %)`];
  return [name, ...more, ...parts, `${Math.round(answer.milliseconds)} ms`, size].filter(Boolean).join(" · ");
}

/**
 * What is said on the image itself, and what can be done about it; null where nothing need be said.
 * @param {object} view
 * @param {object | null} view.image  that is shown
 * @param {boolean} view.isConnected  whether something is connected to `image`
 * @param {boolean} view.isNamed  whether there is a file to show
 * @param {boolean} view.isLost  whether that file could not be loaded
 * @param {boolean} view.canRun  whether the editor can run what makes the image
 * @param {boolean} view.isOlder  whether the graph has changed since the image was made
 * @param {boolean} view.isRunning  whether the image is being made
 * @param {boolean} view.isNewer  whether the marks are of a later version of the pack
 * @param {number} view.outside  how many marks lie outside of the image
 * @param {{width: number, height: number} | null} view.made  the size of image that the marks were made on, where it is known
 * @param {{width: number, height: number} | null} view.followed  the size that they had before they were scaled to this image
 * @param {boolean} view.needsModel  whether a run's masks are used, there are marks, and no model is connected
 * @param {string | null} view.lacks  what to say of the checkpoint that a run would download
 * @param {number | null} view.progress  of the run, 0 to 1
 * @returns {{text: string, actions: string[], covers: boolean} | null}
 */
export function noteOf({ image, isConnected, isNamed, isLost, canRun, isOlder, isRunning, isNewer, outside, made, followed, needsModel, lacks, progress }) {
  const over = (text, ...actions) => ({ text, actions, covers: true });
  const on = (text, ...actions) => ({ text, actions, covers: false });
  const sizeOf = ({ width, height }) => `${width} × ${height}`;
  if (!image) {
    if (!isConnected) return over("Connect an image to this node.");
    if (isRunning) return over("Running what the image needs…", "cancel");
    if (isLost && !canRun) return over("This image cannot be loaded. Its file may have been deleted.");
    if (isLost) return over("The image of the last run is no longer there.", "load");
    return isNamed ? over("Loading the image…") : over("The image comes from other nodes. Run them to see it.", "load");
  }
  if (isNewer) return over("These marks were made with a newer version of SAM Kit. Update the pack to see and to change them.", "anew");
  if (lacks && isRunning) return on(`Downloading and loading the model…${progress === null ? "" : ` ${Math.round(100 * progress)} %`}`, "cancel");
  if (lacks) return on(lacks, "download");
  if (outside) {
    const text = `${plural(outside, "mark lies", "marks lie")} outside this image and ${outside === 1 ? "is" : "are"} ignored.`;
    return on(text, ...(made ? ["scale"] : []), "clear", "keep");
  }
  if (made && sizeOf(made) !== sizeOf(image)) return on(`The marks were made on an image of ${sizeOf(made)} pixels.`, "scale", "keep");
  if (isOlder) return isRunning ? on("Running what the image needs…", "cancel") : on("This image is older than the graph.", "load");
  if (needsModel) return on("No model is connected to sam_model: the masks of a run are empty. Connect Load SAM Model.");
  if (followed) return on(`The marks were scaled with the image, from ${sizeOf(followed)} pixels. Earlier runs used their old places.`, "undo", "close");
  return null;
}

export const ACTIONS = {
  load: "Run what the image needs",
  download: "Download it",
  cancel: "Cancel",
  scale: "Scale them to this image",
  clear: "Remove them",
  keep: "Keep them",
  undo: "Undo",
  close: "Close",
  anew: "Remove them and start anew",
};

/** What the editor says: its status line, and its notes on the image. No DOM. */

const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/**
 * The status line.
 * @param {object} view
 * @param {{width: number, height: number} | null} view.image
 * @param {boolean} view.hasModel
 * @param {import("./preview.js").State} view.preview
 * @param {import("./client.js").Answer | null} view.answer  of the selected object's mask
 * @param {string | null} view.object  the selected object's name, where there are several
 */
export function statusOf({ image, hasModel, preview, answer, object }) {
  if (!image) return "";
  const size = `${image.width} × ${image.height}`;
  if (!hasModel) return `${size} · connect a SAM model to see masks`;
  if (preview.busy) return "ComfyUI is running a prompt. The preview continues when it is done.";
  if (preview.name === "failed") return preview.message;
  if (preview.name === "preparing") return `Encoding the image… · ${size}`;
  if (!answer) return object ? `${object} · ${size}` : size;
  const share = ((100 * answer.area) / (image.width * image.height)).toFixed(1);
  const parts = [`score ${answer.score.toFixed(3)}`, `${answer.area.toLocaleString("en")} px (${share} %)`];
  return [...(object ? [object] : []), ...parts, `${Math.round(answer.milliseconds)} ms`, size].join(" · ");
}

/**
 * What is said on the image itself, and what can be done about it; null where nothing need be said.
 * @param {object} view
 * @param {object | null} view.image  that is shown
 * @param {boolean} view.isConnected  whether something is connected to `image`
 * @param {boolean} view.isNamed  whether there is a file to show
 * @param {boolean} view.isLost  whether that file could not be loaded
 * @param {boolean} view.isOlder  whether the graph has changed since the image was made
 * @param {boolean} view.isRunning  whether the image is being made
 * @param {boolean} view.isNewer  whether the marks are of a later version of the pack
 * @param {number} view.outside  how many marks lie outside of the image
 * @param {boolean} view.canScale  whether it is known on what size of image they were made
 * @param {string | null} view.lacks  what to say of the checkpoint that a run would download
 * @param {number | null} view.progress  of the run, 0 to 1
 * @returns {{text: string, actions: string[], covers: boolean} | null}
 */
export function noteOf({ image, isConnected, isNamed, isLost, isOlder, isRunning, isNewer, outside, canScale, lacks, progress }) {
  const over = (text, ...actions) => ({ text, actions, covers: true });
  if (!image) {
    if (!isConnected) return over("Connect an image to this node.");
    if (isRunning) return over("Running what the image needs…");
    if (isLost) return over("The image of the last run is no longer there.", "load");
    return isNamed ? over("Loading the image…") : over("The image comes from other nodes. Run them to see it.", "load");
  }
  if (isNewer) return over("These marks were made with a newer version of SAM Kit. Update the pack to see and to change them.", "anew");
  if (lacks && isRunning) return { text: `Downloading and loading the model…${progress === null ? "" : ` ${Math.round(100 * progress)} %`}`, actions: [], covers: false };
  if (lacks) return { text: lacks, actions: ["download"], covers: false };
  if (outside) {
    const text = `${plural(outside, "mark lies", "marks lie")} outside this image and ${outside === 1 ? "is" : "are"} ignored.`;
    return { text, actions: [...(canScale ? ["scale"] : []), "clear", "keep"], covers: false };
  }
  if (!isOlder) return null;
  if (isRunning) return { text: "Running what the image needs…", actions: [], covers: false };
  return { text: "This image is older than the graph.", actions: ["load"], covers: false };
}

export const ACTIONS = {
  load: "Run what the image needs",
  download: "Download it",
  scale: "Scale them to this image",
  clear: "Remove them",
  keep: "Keep them",
  anew: "Remove them and start anew",
};

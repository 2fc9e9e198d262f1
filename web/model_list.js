/** The list of Load SAM Model: each checkpoint with its size, and whether a run downloads it. The values stay file names. */

import { app } from "../../scripts/app.js";

const NODE = "AV_SAMLoader";
const INPUT = "model_name";
let labels = {};

const labelsIn = (definition) => definition?.input?.required?.[INPUT]?.[1]?.samkit_labels ?? {};

app.registerExtension({
  name: "SAMKit.ModelList",
  beforeRegisterNodeDef(type, definition) {
    if (definition.name === NODE) labels = labelsIn(definition);
  },
  // After "r", which reads the lists again.
  refreshComboInNodes(definitions) {
    labels = labelsIn(definitions?.[NODE]);
  },
  nodeCreated(node) {
    const widget = node.comfyClass === NODE && node.widgets?.find((one) => one.name === INPUT);
    if (widget) widget.options.getOptionLabel = (name) => labels[name] ?? name ?? "";
  },
});

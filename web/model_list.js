/** The lists of the loaders: each model with its size, and whether a run downloads it. The values stay names. */

import { app } from "../../scripts/app.js";

const INPUT = "model_name";
const labels = {}; // of each loader, by its id

const read = (id, definition) => {
  const found = definition?.input?.required?.[INPUT]?.[1]?.samkit_labels;
  if (found) labels[id] = found;
};

app.registerExtension({
  name: "SAMKit.ModelList",
  beforeRegisterNodeDef(type, definition) {
    read(definition.name, definition);
  },
  // After "r", which reads the lists again.
  refreshComboInNodes(definitions) {
    for (const [id, definition] of Object.entries(definitions ?? {})) read(id, definition);
  },
  nodeCreated(node) {
    const id = node.comfyClass;
    const widget = labels[id] && node.widgets?.find((one) => one.name === INPUT);
    if (widget) widget.options.getOptionLabel = (name) => labels[id][name] ?? name ?? "";
  },
});

/** Folds the inputs that SAM Segment Everything declares as `advanced` away on the classic canvas, too: ComfyUI itself folds them
 * in Nodes 2.0 only, where the node has a button for them. Here they are behind the node's menu, "Show Advanced". */

import { app } from "../../scripts/app.js";

const NODE = "SAMKit_AutoMask";
const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets";

app.registerExtension({
  name: "SAMKit.AdvancedInputs",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const isFolded = () => !node.showAdvanced && !app.extensionManager.setting.get(ALWAYS);
    for (const widget of (node.widgets ?? []).filter(({ options }) => options?.advanced)) {
      widget.advanced = true; // so that the menu has its entry
      // What is hidden takes no room; what is only advanced leaves a gap.
      Object.defineProperty(widget, "hidden", { get: isFolded, set: () => {}, configurable: true });
    }
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});

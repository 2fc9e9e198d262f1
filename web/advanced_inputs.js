/** Folds the inputs that SAM Segment Everything declares as `advanced` away on the classic canvas, too. Frontends before 1.58 fold
 * them in Nodes 2.0 only, where the node has a button for them; here they are behind the node's menu, "Show Advanced". */

import { app } from "../../scripts/app.js";

const NODE = "SAMKit_AutoMask";
const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets";

app.registerExtension({
  name: "SAMKit.AdvancedInputs",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    // The canvas does not ask for the setting: a node that comes while it is on is open.
    if (app.extensionManager.setting.get(ALWAYS)) node.showAdvanced = true;
    for (const widget of (node.widgets ?? []).filter(({ options }) => options?.advanced)) {
      widget.advanced = true; // so that the menu has its entry
      if (widget.visibility !== undefined) continue; // newer frontends fold it themselves, without a gap, and do not read `hidden`
      // What is hidden takes no room; what is only advanced leaves a gap.
      Object.defineProperty(widget, "hidden", { get: () => !node.showAdvanced, set: () => {}, configurable: true });
    }
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});

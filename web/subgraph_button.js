/** A subgraph's node gets a button, and its menu an entry, for each SAM Prompt Editor inside: newer frontends cannot show the
 * editor itself there. It opens as a dialog, and writes where a run reads: into the node inside, or into the value of the subgraph's
 * node where the editor's input is shown on it. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { bindingOf, idsOf } from "./prompt_editor.js";

const PROMPTS = "prompts";
const buttons = new WeakMap(); // subgraph's node -> {key, widgets}

/** The editors inside a subgraph's node, at any depth: {node, path}, the path being the subgraph's nodes from the outside in. */
function editorsIn(host, path = [host]) {
  return host.subgraph.nodes.flatMap((node) => {
    if (node.subgraph) return editorsIn(node, [...path, node]);
    return bindingOf(node) ? [{ node, path }] : [];
  });
}

/**
 * Who has the text of an editor that a run takes: null for the editor itself, else the widget of a subgraph's node.
 * Older frontends show the editor's own widget there; newer ones give each subgraph's node a value of its own.
 */
function holderOf({ node, path }) {
  let [target, name, holder] = [node, PROMPTS, null];
  for (const host of [...path].reverse()) {
    const input = host.inputs.find(({ widgetId, _subgraphSlot: slot }) => widgetId && (slot?.linkIds ?? []).some((id) => {
      const link = host.subgraph.getLink(id);
      const end = String(link?.target_id) === String(target.id) ? target.inputs[link.target_slot] : null;
      return end && (end.widget?.name ?? end.name) === name;
    }));
    if (!input) break;
    holder = host.widgets.find((one) => one.widgetId === input.widgetId || one.name === input.name) ?? holder;
    [target, name] = [host, input.widget?.name ?? input.name];
  }
  return holder;
}

function open(found) {
  const { node, path } = found;
  const [outermost] = idsOf(path[0]);
  const within = `${[outermost, ...path.slice(1).map(({ id }) => id)].join(":")}:`;
  bindingOf(node).openDialog({ within, holder: holderOf(found) });
}

/** What the buttons and the menu say: the editor's title, where there are several. */
function named(editors) {
  return editors.map((found) => ({ found, text: editors.length > 1 ? `Mark objects: ${found.node.title}` : "Mark objects with SAM" }));
}

/** Give a subgraph's node the buttons for what is in it now. */
function update(host) {
  const wanted = named(editorsIn(host));
  const key = JSON.stringify(wanted.map(({ found, text }) => [found.node.id, text]));
  const before = buttons.get(host) ?? { key: "[]", widgets: [] };
  if (before.key === key) return;
  for (const widget of before.widgets) host.removeWidget(widget);
  const widgets = wanted.map(({ found, text }) => {
    const widget = host.addWidget("button", text, null, () => open(found));
    widget.serialize = false;
    return widget;
  });
  buttons.set(host, { key, widgets });
  const [width, height] = host.computeSize();
  host.setSize([Math.max(host.size[0], width), Math.max(host.size[1], height)]);
}

function updateAll(graph = app.rootGraph ?? app.graph) {
  for (const node of graph?.nodes ?? []) {
    if (!node.subgraph) continue;
    updateAll(node.subgraph);
    // Older frontends have no place for another widget; there the menu has the entry, and the editor itself can be shown.
    if (takesWidgets(node)) update(node);
  }
}

/** Whether a subgraph's node keeps a widget that is added to it: its class, and not that of all nodes, has the method. */
function takesWidgets(node) {
  return node.addCustomWidget !== window.LiteGraph.LGraphNode.prototype.addCustomWidget;
}

app.registerExtension({
  name: "SAMKit.SubgraphButton",
  setup() {
    api.addEventListener("graphChanged", () => updateAll());
  },
  afterConfigureGraph() {
    updateAll();
  },
  nodeCreated(node) {
    if (node.subgraph) setTimeout(updateAll); // its place in the graph comes afterwards
  },
  getNodeMenuItems(node) {
    return node.subgraph ? named(editorsIn(node)).map(({ found, text }) => ({ content: text, callback: () => { open(found); } })) : [];
  },
});

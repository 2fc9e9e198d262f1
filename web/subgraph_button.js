/** A subgraph's node gets a button, and its menu an entry, for each SAM Prompt Editor inside, which opens as a dialog. Where the
 * editor's input is shown on the subgraph's node, newer frontends show nothing, and a run takes that node's value: there it gets an
 * editor of its own. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { bindingOf, idsOf } from "./prompt_editor.js";

const PROMPTS = "prompts";
const CHANGES = ["widget-promoted", "widget-demoted", "removing-input"]; // of what a subgraph's node shows
const widgetsOf = new WeakMap(); // subgraph's node -> {key, widgets}
const watched = new WeakSet(); // subgraphs

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

/** The place of the editors' graph, as the ids in it begin. */
function placeOf([outermost, ...others]) {
  return `${[idsOf(outermost)[0], ...others.map(({ id }) => id)].join(":")}:`;
}

function open({ node, path, holder }) {
  bindingOf(node).openDialog({ within: placeOf(path), holder });
}

/** The editors inside, who has their texts, and what the button and the menu say: the editor's title, where there are several. */
function listed(host) {
  const editors = editorsIn(host);
  return editors.map((found) => {
    const text = editors.length > 1 ? `Mark objects: ${found.node.title}` : "Mark objects with SAM";
    return { ...found, text, holder: holderOf(found) };
  });
}

/** Give a subgraph's node what it needs for the editors that are in it now: a button, or an editor where the input is shown. */
function update(host) {
  const wanted = listed(host);
  const key = JSON.stringify(wanted.map(({ node, text, holder }) => [node.id, text, holder?.widgetId ?? null]));
  const before = widgetsOf.get(host) ?? { key: "[]", widgets: [] };
  if (before.key === key) return;
  for (const widget of before.widgets) host.removeWidget(widget);
  const widgets = wanted.map((found) => {
    const { node, path, text, holder } = found;
    return holder ? bindingOf(node).showOn(host, placeOf(path), holder) : host.addWidget("button", text, null, () => open(found));
  });
  widgetsOf.set(host, { key, widgets });
  const [width, height] = host.computeSize();
  host.setSize([Math.max(host.size[0], width), Math.max(host.size[1], height)]);
}

function updateAll(graph = app.rootGraph ?? app.graph) {
  for (const node of graph?.nodes ?? []) {
    if (!node.subgraph) continue;
    updateAll(node.subgraph);
    watch(node.subgraph);
    // Older frontends have no place for another widget; there the menu has the entry, and the editor itself can be shown.
    if (takesWidgets(node)) update(node);
  }
}

/** Nobody tells the graph when an input is shown on the subgraph's node. */
function watch(subgraph) {
  if (watched.has(subgraph)) return;
  watched.add(subgraph);
  for (const change of CHANGES) subgraph.events?.addEventListener(change, () => setTimeout(updateAll)); // when it is done
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
    return node.subgraph ? listed(node).map((found) => ({ content: found.text, callback: () => { open(found); } })) : [];
  },
});

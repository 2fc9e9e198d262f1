"""Writes `locales/en` from the nodes; `--check` says whether it is up to date. ComfyUI's browser reads it and its translations.

    python tools/make_locales.py

A text that has changed is removed from every other language, and named: its translation is of another text. Write the new one
by hand into `locales/<language>/nodeDefs.json`; `tests/test_locales.py` says what is missing.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from load_pack import ROOT, inputs_of, load_pack

Texts = dict[str, Any]

LOCALES = ROOT / "locales"
SOURCE = "en"
FILE_LISTS = {"model_name", "base_model", "concept_name", "name", "image"}
"""Inputs whose values are files: these differ from machine to machine, and have no labels."""


def key(name: str) -> str:
    """A name as the browser looks it up: a dot would lead one level down."""
    return name.replace(".", "_")


def texts_of_input(name: str, declared: tuple[Any, ...]) -> Texts:
    """Name and tooltip of an input, and the labels of a list's values.

    The prompt editor has no tooltip in the browser: it would cover the node beside it (see `web/prompt_editor.js`).
    """
    kind, options = declared
    texts = {"name": options.get("display_name", name)}
    if "widgetType" not in options:
        texts["tooltip"] = options["tooltip"]
    if isinstance(kind, list) and name not in FILE_LISTS:
        texts["options"] = {key(value): value for value in kind}
    return texts


def texts_of_node(node: type, display_name: str) -> Texts:
    """All texts of a node, in the form of `nodeDefs.json`."""
    inputs = inputs_of(node)
    outputs = zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True)
    return {
        "display_name": display_name,
        "description": node.DESCRIPTION,
        "inputs": {key(name): texts_of_input(name, declared) for name, declared in inputs.items()},
        "outputs": {str(index): {"name": name, "tooltip": tooltip} for index, (name, tooltip) in enumerate(outputs)},
    }


def english() -> dict[str, Texts]:
    """The files of `locales/en`, by name."""
    pack = load_pack()
    nodes, names = pack.NODE_CLASS_MAPPINGS, pack.NODE_DISPLAY_NAME_MAPPINGS
    categories = dict.fromkeys(part for node in nodes.values() for part in node.CATEGORY.split("/"))
    return {
        "main.json": {"nodeCategories": {part: part for part in categories}},
        "nodeDefs.json": {key(node_id): texts_of_node(node, names[node_id]) for node_id, node in nodes.items()},
    }


def flat(texts: Texts, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text with its place."""
    for name, value in texts.items():
        if isinstance(value, dict):
            yield from flat(value, (*path, name))
        else:
            yield (*path, name), value


def read(language: str, name: str) -> Texts:
    """A file of a language; empty where there is none."""
    path = LOCALES / language / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(language: str, name: str, texts: Texts) -> None:
    """Write a file of a language as it is committed."""
    path: Path = LOCALES / language / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")


def in_order(source: Texts, translated: Texts, stale: set[tuple[str, ...]], path: tuple[str, ...] = ()) -> Texts:
    """The translations of what is still in the source, in its order, without those of texts that have changed."""
    kept = {}
    for name, value in source.items():
        if name in translated and (*path, name) not in stale:
            is_group = isinstance(value, dict)
            kept[name] = in_order(value, translated[name], stale, (*path, name)) if is_group else translated[name]
    return kept


def update() -> list[str]:
    """Write the English files, and take what they have changed out of the others; what is to be translated."""
    missing = []
    for name, texts in english().items():
        before, now = dict(flat(read(SOURCE, name))), dict(flat(texts))
        stale = {place for place, text in now.items() if place in before and before[place] != text}
        write(SOURCE, name, texts)
        for language in sorted(path.name for path in LOCALES.iterdir() if path.name != SOURCE):
            left = in_order(texts, read(language, name), stale)
            write(language, name, left)
            missing += [f"{language}/{name}: {'.'.join(place)}" for place in now if place not in dict(flat(left))]
    return missing


def main(arguments: list[str]) -> int:
    """0: done, or up to date."""
    if arguments == ["--check"]:
        old = [name for name, texts in english().items() if read(SOURCE, name) != texts]
        print(f"Run python tools/make_locales.py: not up to date: {', '.join(old)}" if old else "locales/en is up to date.")
        return bool(old)
    missing = update()
    print("\n".join(["To translate:", *missing]) if missing else "Nothing to translate.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The interface in other languages: what ComfyUI's browser reads from `locales` is complete, of today, and a translation."""

import itertools
import json
import re
import shutil
from collections import Counter

import make_locales as locales
import pytest
from load_pack import ROOT, inputs_of
from samkit import NODE_CLASS_MAPPINGS

LANGUAGES = ["de", "es", "fr", "ja", "ko", "zh"]
FILES = ["main.json", "nodeDefs.json"]
ASIAN = re.compile("[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
# What a translation takes over as it is: numbers, shapes, files, folders, sizes of models.
FIXED = re.compile(r"(?<![A-Za-z])\d+|\[[A-Z0-9a-z, ]+\]|\(x[^)]*\)|[\w-]+/[\w/-]+|\.safetensors|\bfp\d+|\b[A-Z]{3,}_?[A-Z]+\b")


def texts(language: str) -> dict[tuple[str, ...], str]:
    """Every text of a language by its place."""
    return {(name, *place): text for name in FILES for place, text in locales.flat(locales.read(language, name))}


ENGLISH = texts("en")
SENTENCES = [place for place in ENGLISH if place[-1] in ("tooltip", "description")]
NODES = {text: place for place, text in ENGLISH.items() if place[-1] == "display_name"}
MENTIONED = re.compile("|".join(re.escape(name) for name in sorted(NODES, key=len, reverse=True)))


def test_the_languages_are_these():
    assert sorted(path.name for path in (ROOT / "locales").iterdir()) == sorted([*LANGUAGES, "en"])
    assert len(SENTENCES) > 200 and len(NODES) == len(NODE_CLASS_MAPPINGS)


def test_english_is_what_the_nodes_say(capsys):
    assert locales.main(["--check"]) == 0, capsys.readouterr().out


def test_labels_are_of_the_values_that_an_input_has():
    """`options` says what the browser shows; a workflow has the value."""
    nodes, seen = locales.read("en", "nodeDefs.json"), 0
    for node_id, node in NODE_CLASS_MAPPINGS.items():
        for name, (kind, *_) in inputs_of(node).items():
            labels = nodes[node_id]["inputs"][name].get("options")
            if labels is not None:
                assert labels == {value: value for value in kind}
                seen += 1
    assert seen > 20


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_every_text_and_no_other(language):
    """ComfyUI shows the English text where one is missing: a translation may lag, but has none of what is gone."""
    translated = texts(language)
    assert set(translated) <= set(ENGLISH) and len(translated) > 0.8 * len(ENGLISH)
    assert list(translated) == [place for place in ENGLISH if place in translated], "run python tools/make_locales.py"
    assert all(isinstance(text, str) and text and text == text.strip() for text in translated.values())


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_vue_i18n_takes_every_text_and_name_as_it_is(language):
    """Some versions of the browser compile these texts, others show them as they are: an escape is wrong in one of them."""
    for place, text in texts(language).items():
        assert not set(text) & set("{}|@"), (place, text)
        assert not any("." in part for part in place[1:]), place


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_is_a_translation(language):
    translated = texts(language)
    for place in filter(translated.get, SENTENCES):
        assert translated[place] != ENGLISH[place], place
        if language in ("ja", "ko", "zh"):
            assert ASIAN.search(translated[place]), place
    names = [place for place in translated if place[-1] in ("name", "display_name")]
    assert sum(translated[place] != ENGLISH[place] for place in names) > 0.7 * len(names)


def test_no_text_is_that_of_another_language():
    for one, other in itertools.combinations(LANGUAGES, 2):
        first, second = texts(one), texts(other)
        both = [place for place in SENTENCES if place in first and place in second]
        assert len(both) > 100 and not [place for place in both if first[place] == second[place]], (one, other)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_label_shows_its_value_too(language):
    """Tutorials, tooltips and error messages name the values."""
    for place, label in texts(language).items():
        if "options" in place:
            value = ENGLISH[place]
            assert label == value or label.endswith(f" ({value})"), (place, label)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_the_numbers_files_and_shapes_of_the_english_text(language):
    translated, seen = texts(language), 0
    for place in filter(translated.get, SENTENCES):
        wanted = Counter(FIXED.findall(ENGLISH[place]))
        seen += sum(wanted.values())
        assert all(translated[place].count(part) >= count for part, count in wanted.items()), (place, translated[place])
    assert seen > 100


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_names_nodes_and_inputs_as_the_browser_shows_them(language):
    translated, seen = texts(language), 0
    labels = {}
    for place, text in ENGLISH.items():
        if place[-1] == "name" and "_" in text and place in translated:
            labels.setdefault(text, set()).add(translated[place])
    for place in filter(translated.get, SENTENCES):
        for name in set(MENTIONED.findall(ENGLISH[place])):
            assert translated.get(NODES[name], name) in translated[place], (place, name)
            seen += 1
        for name in labels.keys() & set(re.findall(r"\w+", ENGLISH[place])):
            assert any(label in translated[place] for label in labels[name]), (place, name)
            seen += 1
    assert seen > 60 and all(len(found) == 1 for found in labels.values())


def test_a_text_that_changes_is_taken_out_of_every_language(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "locales", tmp_path / "locales")
    monkeypatch.setattr(locales, "LOCALES", tmp_path / "locales")
    lagging = locales.update()
    before = {name: locales.read("ja", name) for name in FILES}
    english = locales.read("en", "nodeDefs.json")
    english["SAMKit_Segment"]["inputs"]["hq"]["tooltip"] = "What it said before."
    english["GoneNode"] = {"display_name": "Gone"}
    locales.write("en", "nodeDefs.json", english)
    assert locales.main(["--check"]) == 1
    place = "SAMKit_Segment.inputs.hq.tooltip"
    assert sorted({*locales.update()} - {*lagging}) == [f"{language}/nodeDefs.json: {place}" for language in LANGUAGES]
    assert locales.main(["--check"]) == 0
    del before["nodeDefs.json"]["SAMKit_Segment"]["inputs"]["hq"]["tooltip"]
    assert {name: locales.read("ja", name) for name in FILES} == before


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_no_language_brings_the_tooltip_of_the_editor_back(language):
    """In Nodes 2.0 it covers the node beside the editor: `web/prompt_editor.js` removes that of the node's definition."""
    assert set(locales.read(language, "nodeDefs.json")["SAMKit_PromptEditor"]["inputs"]["prompts"]) == {"name"}


def test_the_files_are_committed_as_the_script_writes_them():
    for path in (ROOT / "locales").glob("*/*.json"):
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), ensure_ascii=False, indent=2) + "\n", path

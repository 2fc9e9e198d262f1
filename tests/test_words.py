"""What users read says what the field says: image, object, connect, cached, not the words that the pack once had for them."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from load_pack import ROOT, inputs_of
from samkit import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

# Only what is wrong wherever it stands. Each is searched between word boundaries, in any case.
GLOSSARY = {
    r"pictures?": "image",
    r"things?": "object",
    r"wire[sd]?|wiring|unwired": "connect, connected",
    r"told by|tells? the architecture": "detected from, detect",
    r"(?<!there )is no (?!longer\b|more\b)\w+": "is not a",
    r"(?:is|are) none of": "is not one of",
    r"(?:do|does) not mind|other model minds": "is ignored by",
    r"go(?:es)? before": "takes precedence over",
    r"counts? (?:as|for|equally|again)|counted like": "is used, is",
    r"likest|how like": "the most similar, similarity",
    r"rests|resting|placed on": "is offloaded to, is loaded on",
    r"look(?:s|ed|ing)? at": "encode, decode, segment",
    r"ask(?:s|ed|ing)?": "request, query",
    r"questions?": "request",
    r"kept|held|remember(?:s|ed|ing)?": "cached, stored",
    r"masks?\b[^.]*\bdrawn|drawn\b[^.]*\bmasks?": "rendered, shown",
    r"suppressed by": "removed by non-maximum suppression",
}
WRONG = {re.compile(rf"\b(?:{pattern})\b", re.I): better for pattern, better in GLOSSARY.items()}
ALLOWED = {
    r"held down": "a key or a button that the user holds",
    r"held[- ]out": "masks that take no part in training",
    r"\]\([^)]*\)": "a link's target is a file's name",
}
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "web").rglob("*.md"),
    *(ROOT / "sam").rglob("*.md"),
    *(ROOT / "benchmarks").rglob("*.md"),
]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
CODE = sorted(path for folder in ("nodes", "sam", "utils") for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = sorted((ROOT / "web").rglob("*.js"))
JAVASCRIPT = re.compile(r"""//[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)""", re.S)
COUNTED = re.compile(
    r"^ (?:different |reference )?(?:points|masks|frames|images|objects|boxes|tensors|files|values|tokens|marks|lists)\b"
)
NEVER_ONE = {
    " masks of ": "one mask alone does not exceed the memory",
    " tokens, but ": "a limit is exceeded by more than one token",
}


def faults(text: str) -> list[str]:
    """The wrong words in a text, each with what to write."""
    for allowed in ALLOWED:
        text = re.sub(allowed, " ", text)
    return [
        f"{match[0]!r}: write {better} ({text[:90]!r})" for wrong, better in WRONG.items() for match in wrong.finditer(text)
    ]


def test_the_guard_finds_the_old_words_and_lets_the_new_ones_pass():
    old = """The picture. Small things. Wire a model. Told by its weights. It is no checkpoint. They are none of ours. Others do
    not mind. Logits go before it. An empty one counts as none. The likest one. Resting on the CPU. Pictures to look at. What
    it asks. A newer question. Embeddings are remembered. The mask is drawn faintly. Suppressed by a better mask's box."""
    unfound = [wrong.pattern for wrong in WRONG if not wrong.search(" ".join(old.split()))]
    new = (
        "There is no image. It is no longer there. Hold the key; while it is held down, count the objects. [Like](picture.jpg)"
    )
    assert not unfound and not faults(new)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.strip()
    assert not [fault for paragraph in text.split("\n\n") for fault in faults(" ".join(paragraph.split()))]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_notes_and_titles_of_workflows(path: Path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    notes = [text for node in nodes if node["type"] in ("Note", "MarkdownNote") for text in node["widgets_values"]]
    titles = [node["title"] for node in nodes if "title" in node]
    assert notes and not [fault for text in notes + titles for fault in faults(text)]


def test_the_projects_description():
    (text,) = re.findall(r'^description = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert not faults(text)


@pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)
def test_tooltips_and_descriptions(node_id: str):
    node = NODE_CLASS_MAPPINGS[node_id]
    options = [declared[1] for declared in inputs_of(node).values()]
    texts = [NODE_DISPLAY_NAME_MAPPINGS[node_id], node.DESCRIPTION, *node.OUTPUT_TOOLTIPS]
    texts += [option["tooltip"] for option in options]
    assert len(texts) > 3 and not [fault for text in texts for fault in faults(text)]


def messages(tree: ast.Module) -> Iterator[str]:
    """Texts in code: what is raised, and every other string with a space that is not a docstring (logs, answers, legends)."""
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    raised = {part for node in ast.walk(tree) if isinstance(node, ast.Raise) for part in ast.walk(node)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
        if is_text and (node in raised or " " in node.value.strip()):
            yield node.value


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [fault for text in messages(tree) for fault in faults(text)]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_says_1_points(path: Path):
    """A number before a plural must not be 1: the text chooses the noun by the number, or puts the number elsewhere."""
    wrong = []
    for text in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts = text.values if isinstance(text, ast.JoinedStr) else []
        for number, noun in pairwise(parts):
            if isinstance(number, ast.FormattedValue) and isinstance(noun, ast.Constant) and COUNTED.match(noun.value):
                is_constant = re.fullmatch(r"[A-Z_]+(\.\w+)?", ast.unparse(number.value)) is not None
                if not is_constant and not noun.value.startswith(tuple(NEVER_ONE)):
                    wrong.append(ast.unparse(text))
    assert not wrong


def test_the_scripts_strings_are_found():
    strings = 'say("Wire a picture"); // "a thing"\nsay(`score ${picture.score} here`); /* "things" */'
    assert list(script_texts(strings)) == ["Wire a picture", "score   here"]


def script_texts(source: str) -> Iterator[str]:
    """Strings with a space in JavaScript, comments and what templates insert left out."""
    for found in JAVASCRIPT.finditer(source):
        text = re.sub(r"\$\{[^}]*\}", " ", (found[1] or "")[1:-1])
        if " " in text.strip():
            yield text


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_of_the_editor(path: Path):
    assert not [fault for text in script_texts(path.read_text(encoding="utf-8")) for fault in faults(text)]


def test_there_is_something_to_read():
    assert len(PAGES) > 20 and len(WORKFLOWS) > 5 and len(CODE) > 20 and len(SCRIPTS) > 5

"""What users read is true and complete: help pages, README, example workflows."""

import json
import os
import re
import subprocess

import make_icon
import numpy as np
import pytest
import yaml
from demo import PAIR_SEED, SCENE_SEED, SCENE_SIZE
from films import EXAMPLE as FILM
from films import example_film
from load_pack import ROOT, inputs_of
from PIL import Image, ImageSequence
from real_packs import EXAMPLES as WITH_OTHERS
from samkit import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from samkit.sam.weights.registry import BUNDLED, KNOWN
from scenes import make_pair, make_scene

EXAMPLES = ROOT / "example_workflows"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "web").rglob("*.md")]
OUR_TEXTS = [*PAGES, *EXAMPLES.rglob("*.json")]
BROWSERS = "control_after_generate"  # a widget that the browser adds behind a seed; and `upload` behind a file
CORE = {
    "CheckpointLoaderSimple", "CLIPTextEncode", "ImageBatch", "ImageFlip", "ImageToMask", "LoadImage", "LossGraphNode",
    "MarkdownNote", "MaskToImage", "PreviewAny", "PrimitiveStringMultiline", "RepeatImageBatch", "SaveImage",
}  # fmt: skip
KNOWN_HOSTS = {"arxiv.org", "huggingface.co", "localhost", "127.0.0.1", "10.0.0.2"}
"""Addresses in what people read: papers, models, and servers of the reader's own."""
SOCKET = re.compile(r"^(?:\| `(\w+)` \||- `(\w+)` \()", re.M)  # a table's row, or a list's item with its type


@pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)
def test_every_node_has_a_help_page_that_names_every_socket(node_id):
    node = NODE_CLASS_MAPPINGS[node_id]
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {NODE_DISPLAY_NAME_MAPPINGS[node_id]}\n")
    rows = [row or item for row, item in SOCKET.findall(page)]
    assert sorted(rows) == sorted([*inputs_of(node), *node.RETURN_NAMES])


def test_there_is_no_page_for_a_node_that_is_not():
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)
def test_the_list_of_nodes_has_every_node(node_id):
    listed = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    assert f"| {NODE_DISPLAY_NAME_MAPPINGS[node_id]} | `{node_id}` |" in listed


def test_the_list_of_checkpoints_has_every_checkpoint():
    listed = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in listed for name in (*BUNDLED, *KNOWN))


def test_the_readme_names_nodes_checkpoints_and_templates_that_exist():
    nodes, templates = set(NODE_DISPLAY_NAME_MAPPINGS.values()), {path.stem for path in EXAMPLES.glob("*.json")}
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \|$", README, re.M)
    assert len(rows) > 5 and all(template in templates and node in nodes for template, node in rows)
    files = re.findall(r"`([\w.]+\.(?:pth|pt|safetensors))`", README)
    assert len(files) > 3 and set(files) <= {*BUNDLED, *KNOWN}


def test_the_readme_takes_five_minutes_and_shows_one_moving_image():
    words = len(re.sub(r"\]\([^)]*\)|[|`*#]", " ", README).split())
    assert words < 5 * 200
    (shown,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    with Image.open(ROOT / shown) as film:
        assert film.n_frames > 20 and (ROOT / shown).stat().st_size < 1_500_000


def test_templates_are_in_the_order_of_learning():
    """The note of each template says its number, its title and what it shows, as the list does."""
    listed = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| \[(\w+)\]\([^)]+\) \| \*\*(.+?)\.\*\* ([^|]+?) \|", listed, re.M)
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    assert {name for _, name, *_ in rows} == {path.stem for path in EXAMPLES.glob("*.json")}
    for number, name, title, sentence in rows:
        nodes = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
        (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
        assert note.startswith(f"# {number}. {title}\n\n{sentence}\n\n")


# What `KNOWN` and the loaders download: a template with one of these says so in a sentence of its own.
DOWNLOADS = {"SAMKit_GroundingLoader", "SAMKit_MatteLoader", "AILab_Florence2"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_a_template_that_downloads_says_so(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    checkpoints = {node["widgets_values"][0] for node in nodes if node["type"] == "AV_SAMLoader"}
    downloads = bool(DOWNLOADS & {node["type"] for node in nodes}) or not checkpoints <= set(BUNDLED)
    assert downloads == ("**Download:** " in note)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_readme_links_every_page_of_docs():
    assert all(f"(docs/{path.name})" in README for path in (ROOT / "docs").glob("*.md"))


def test_no_address_is_invented():
    """The repository, the publisher and the icon do not exist yet: one marked placeholder says so."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert project.count("PLACEHOLDER") == 1 and not any("PLACEHOLDER" in path.read_text(encoding="utf-8") for path in PAGES)
    assert re.findall(r'^(Repository|PublisherId|Icon|Banner) = ""$', project, re.M) == [
        "Repository",
        "PublisherId",
        "Icon",
        "Banner",
    ]
    texts = [project, *(path.read_text(encoding="utf-8") for path in [*PAGES, *ROOT.glob(".github/**/*.yml")])]
    hosts = {host for text in texts for host in re.findall(r"(?:https?|git|ssh)://([\w.-]+)", text)}
    assert hosts <= KNOWN_HOSTS and not any(
        re.search(r"github\.com/samkit|git clone|git@|pip install samkit\b", text) for text in texts
    )


@pytest.mark.parametrize(("name", "size"), [("icon", (400, 400)), ("banner", (1260, 540))])
def test_the_icon_and_the_banner_are_what_the_script_draws(name, size):
    stored = Image.open(ROOT / "docs" / f"{name}.png").convert("RGB")
    assert stored.size == size and (ROOT / "docs" / f"{name}.png").stat().st_size < 60_000
    drawn = np.array(getattr(make_icon, name)()).astype(int)
    assert np.abs(np.array(stored).astype(int) - drawn).mean() < 2  # fewer colors are stored


@pytest.mark.parametrize(("changes", "publishes"), [(["version", "name"], True), (["name", "description"], False)])
def test_a_push_publishes_when_one_of_its_commits_changes_the_version(tmp_path, changes, publishes):
    steps = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text())["jobs"]["publish"]["steps"]
    (script,) = [step["run"] for step in steps if step.get("id") == "version"]

    def git(*words):
        identity = ["-c", "user.name=somebody", "-c", "user.email=nobody@localhost"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    project = {"name": "old", "version": "old", "description": "old"}
    git("init")
    for change in ["nothing", *changes]:
        project |= {change: "new"}
        (tmp_path / "pyproject.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in project.items()))
        git("add", ".")
        git("commit", "-m", change)
    environment = os.environ | {"BEFORE": git("rev-parse", f"HEAD~{len(changes)}"), "GITHUB_OUTPUT": str(tmp_path / "output")}
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment, check=True)
    assert ((tmp_path / "output").read_text() if (tmp_path / "output").exists() else "") == ("new=yes\n" if publishes else "")


def test_the_two_commands_are_on_the_first_screen():
    first = "\n".join(README.splitlines()[:25])
    assert "python dev.py demo" in first and "python dev.py test" in first


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_example_has_its_image_and_its_api_form(path):
    pixels = path.with_suffix(".jpg")
    assert 0 < pixels.stat().st_size < 200_000
    graph = json.loads((EXAMPLES / "api" / path.name).read_text(encoding="utf-8"))
    workflow = json.loads(path.read_text(encoding="utf-8"))
    kinds = sorted(node["type"] for node in workflow["nodes"] if node["type"] != "MarkdownNote")
    assert kinds == sorted(node["class_type"] for node in graph.values())
    assert any(kind in NODE_CLASS_MAPPINGS for kind in kinds) and "SaveImage" in kinds


def widgets_of(node):
    """Names of a node's widgets in the order of their values: as declared, with those that have no socket."""
    names = [socket["name"] for socket in node["inputs"] if "widget" in socket]
    if node["type"] not in NODE_CLASS_MAPPINGS:
        return [part for name in names for part in ((name, BROWSERS) if name == "seed" else (name,))]
    declared = inputs_of(NODE_CLASS_MAPPINGS[node["type"]])
    names += [name for name, (_, options) in declared.items() if options.get("socketless")]
    return sorted(names, key=list(declared).index)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_both_forms_of_an_example_are_the_same_graph(path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    sources = {link: [str(source), slot] for link, source, slot, *_ in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] != "MarkdownNote":
            widgets = widgets_of(node)
            inputs = dict(zip(widgets, node["widgets_values"] if widgets else (), strict=True))
            inputs |= {socket["name"]: sources[socket["link"]] for socket in node["inputs"] if socket["link"] is not None}
            for name in ("upload", BROWSERS):
                inputs.pop(name, None)
            graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    api = json.loads((EXAMPLES / "api" / path.name).read_text(encoding="utf-8"))
    assert graph == {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in api.items()}


def test_the_examples_images_are_what_the_generator_draws():
    reference, other = make_pair(PAIR_SEED)
    drawn = {"samkit_scene": make_scene(SCENE_SEED, SCENE_SIZE), "samkit_reference": reference, "samkit_other_scene": other}
    assert {path.stem for path in EXAMPLES.glob("*.png")} == set(drawn)
    for name, scene in drawn.items():
        stored = np.array(Image.open(EXAMPLES / f"{name}.png").convert("RGB")).astype(int)
        assert stored.shape == scene.image.shape and np.abs(stored - scene.image).max() <= 1


def test_the_examples_film_is_what_the_generator_draws():
    """But for what WebP loses. It opens as a batch, and takes a few hundred kilobytes."""
    drawn = np.stack(example_film().frames).astype(int)
    with Image.open(FILM) as film:
        stored = np.stack([np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]).astype(int)
    assert list(EXAMPLES.glob("*.webp")) == [FILM] and FILM.stat().st_size < 400_000
    assert stored.shape == drawn.shape and np.abs(stored - drawn).mean((1, 2, 3)).max() < 6


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_an_example_runs_on_images_of_the_pack_and_its_note_names_them(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    used = [node["widgets_values"][0] for node in nodes if node["type"] in ("LoadImage", "SAMKit_ExampleImage")]
    assert used and all((EXAMPLES / name).is_file() and f"**{name}**" in note for name in used)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_an_example_with_nodes_of_another_pack_says_which(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    others = {node["type"] for node in nodes} - set(NODE_CLASS_MAPPINGS) - CORE
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert bool(others) == (path.stem in WITH_OTHERS)
    assert not others or f"needs **{WITH_OTHERS[path.stem]}**" in note


def test_the_api_forms_use_inputs_that_exist():
    for path in sorted((EXAMPLES / "api").glob("*.json")):
        for node in json.loads(path.read_text(encoding="utf-8")).values():
            if node["class_type"] in NODE_CLASS_MAPPINGS:
                kind = NODE_CLASS_MAPPINGS[node["class_type"]]
                assert set(kind.INPUT_TYPES()["required"]) <= set(node["inputs"]) <= set(inputs_of(kind))


@pytest.mark.parametrize("path", OUR_TEXTS, ids=lambda path: path.name)
def test_texts_name_no_machine(path):
    assert not re.search(r"/(root|home|work|tmp)/|[A-Z]:\\\\", path.read_text(encoding="utf-8"))


def test_the_requirements_are_the_projects_and_leave_torch_alone():
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (dependencies,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.M | re.S)
    assert re.findall(r'"(.+)"', dependencies) == listed
    assert not any(name.startswith("torch") for name in listed)
    assert 'name = "samkit"' in project and 'DisplayName = "SAM Kit"' in project


def named_tests():
    """Each test that docs/faults.md names, as (file, name): the file is that of the row, or else of the section."""
    section = None
    for line in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(("## ", "`tests/")):
            found = re.findall(r"`tests/([\w/.]+)`", line)
            section = found or (section if not line.startswith("## ") else None)
        cells = line.split(" | ")
        if not line.startswith("| ") or len(cells) < 3 or cells[-1].startswith("test"):
            continue
        for name in re.findall(r"`([^`]+)`", cells[-1]):
            file, _, wanted = name.rpartition(" -k ") if " -k " in name else ("", "", name)
            if re.fullmatch(r"(tests/)?[\w/.]+\.(py|mjs)", name):
                file, wanted = name, ""
            yield [file.removeprefix("tests/")] if file else section, wanted.strip('"')


@pytest.mark.parametrize(("files", "wanted"), list(named_tests()), ids=lambda value: str(value))
def test_every_test_that_the_list_of_faults_names_exists(files, wanted):
    assert files, "neither the row nor its section names a file"
    names = []
    for file in files:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        names += re.findall(r"(?:def (test_\w+)|class (Test\w+))", text)
    every = " ".join(part for pair in names for part in pair).lower()
    for alternative in wanted.split(" or "):
        assert alternative.lower() in every, f"no test of {files} is called {alternative}"


def test_the_list_of_faults_is_long():
    assert len(list(named_tests())) > 100

"""Fetching through huggingface_hub itself, from a hub on this machine that HF_ENDPOINT names."""

import hashlib
import http.server
import json
import socket
import threading
import time
from urllib.parse import unquote, urlsplit

import pytest
import torch
from reference import content_id
from safetensors.torch import save_file
from samkit.nodes.model import SAMHubLoader
from samkit.sam import SAMError, load_model
from samkit.sam.weights import download, hub, hub_file
from samkit.sam.weights.registry import RemoteFile
from test_download import checkpoints_in

REPO, COMMIT = "owner/small-sam", "0123456789abcdef0123456789abcdef01234567"
FILE = "model.safetensors"


class Hub(http.server.ThreadingHTTPServer):
    """`files` by name; `etags` overrides what it says of them; `cut` sends so many bytes less, once; `html` answers so."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.etags, self.cut, self.html, self.asked = {}, {}, 0, False, []

    def etag(self, name):
        content = self.files[name]
        small = name.endswith(".json")
        own = hashlib.sha1(b"blob %d\0" % len(content) + content) if small else hashlib.sha256(content)
        return self.etags.get(name, own.hexdigest())


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        if self.server.html:
            return self.send(b"<html>sign in to this hotel</html>", {"Content-Type": "text/html"}, body)
        if path.startswith(f"/api/models/{REPO}"):
            return self.send(self.listing("/tree/" in path), {"Content-Type": "application/json"}, body)
        name = path.partition("/resolve/")[2].partition("/")[2]
        if not path.startswith(f"/{REPO}/resolve/") or name not in self.server.files:
            return self.send(b"", {"X-Error-Code": "EntryNotFound"}, body, 404)
        content = self.server.files[name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{self.server.etag(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.send(content[start:], headers, body, 206 if start else 200)

    def listing(self, tree):
        if tree:  # what huggingface_hub asks for since 0.21
            sizes = {name: len(content) for name, content in self.server.files.items()}
            return json.dumps([{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in sizes.items()]).encode()
        siblings = [{"rfilename": name} for name in self.server.files]
        return json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}).encode()

    def send(self, content, headers, body, status=200):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            cut, self.server.cut = self.server.cut, 0
            self.wfile.write(content[: len(content) - cut])
            if cut:
                self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def content(tiny_sam, tmp_path, server):
    save_file(tiny_sam.state_dict(), tmp_path / "source.safetensors")
    server.files[FILE] = (tmp_path / "source.safetensors").read_bytes()
    return server.files[FILE]


@pytest.fixture
def known(content):
    return RemoteFile("small.safetensors", REPO, FILE, sha256=hashlib.sha256(content).hexdigest())


def fetched(known, folder):
    return download.fetch(known, [folder]).read_bytes()


def test_it_arrives_complete(known, content, tmp_path):
    assert fetched(known, tmp_path / "sams") == content
    assert checkpoints_in(tmp_path / "sams") == ["small.safetensors"]


def test_a_cut_transfer_is_taken_up_where_it_ended_or_leaves_nothing(known, content, server, tmp_path):
    server.cut = len(content) // 2
    try:
        assert fetched(known, tmp_path / "sams") == content
    except SAMError as error:
        assert "could not download small.safetensors" in str(error)
        assert checkpoints_in(tmp_path / "sams") == []
        assert fetched(known, tmp_path / "sams") == content
    assert checkpoints_in(tmp_path / "sams") == ["small.safetensors"]


def test_a_changed_file_gets_no_name(known, content, server, tmp_path):
    server.files[FILE] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(SAMError, match="was expected"):
        fetched(known, tmp_path / "sams")
    assert checkpoints_in(tmp_path / "sams") == []


def test_a_page_in_place_of_a_file_gets_no_name(known, server, tmp_path):
    server.html = True
    with pytest.raises(SAMError, match=r"could not download small.safetensors .*Download model.safetensors .* manually"):
        fetched(known, tmp_path / "sams")
    assert checkpoints_in(tmp_path / "sams") == []


def test_a_file_that_is_gone_is_named(known, server, tmp_path):
    server.files.clear()
    with pytest.raises(SAMError, match="could not download small.safetensors"):
        fetched(known, tmp_path / "sams")


def test_offline_nothing_is_asked(known, server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for attempt in (lambda: fetched(known, tmp_path / "sams"), lambda: hub.fetch_from_hub(REPO, "", "", [tmp_path / "sams"])):
        with pytest.raises(SAMError, match="HF_HUB_OFFLINE forbids"):
            attempt()
    assert server.asked == []


def test_two_loaders_at_once_fetch_once(known, content, server, tmp_path):
    results = []
    both = [threading.Thread(target=lambda: results.append(fetched(known, tmp_path / "sams"))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert results == [content, content]
    assert sum(method == "GET" and path.endswith(FILE) for method, path in server.asked) == 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    return tmp_path / "models" / "sams"


@pytest.mark.parametrize("repo_id", [REPO, f"hf://{REPO}", f" {REPO}/ "])
def test_the_hub_loader_loads_a_repository_once(content, server, folder, tiny_sam, repo_id):
    (model,) = SAMHubLoader().execute(repo_id)
    assert content_id(model) == content_id(tiny_sam)
    assert checkpoints_in(folder) == [f"{REPO}/{FILE}"]
    server.asked.clear()
    assert SAMHubLoader().execute(repo_id)[0] is model
    assert server.asked == [], "what is there is not asked for"


def test_a_revision_and_a_file_have_their_own_place(content, server, folder, tiny_sam):
    server.files["other/sam.safetensors"] = content
    (model,) = SAMHubLoader().execute(REPO, COMMIT, "other/sam.safetensors")
    assert content_id(model) == content_id(tiny_sam)
    assert checkpoints_in(folder) == [f"{REPO}@{COMMIT}/other/sam.safetensors"]


def test_the_only_weights_are_found_and_several_are_asked_about(content, server, folder, tiny_sam):
    server.files["tuned.safetensors"] = server.files.pop(FILE)
    server.files["config.json"] = b"{}"
    assert content_id(SAMHubLoader().execute(REPO)[0]) == content_id(tiny_sam)
    server.files["another.pth"] = b"?"
    with pytest.raises(SAMError, match=r"has 2 files that may be weights: set filename to one of .*another.pth"):
        SAMHubLoader().execute(REPO, COMMIT)
    server.files = {"config.json": b"{}"}
    with pytest.raises(SAMError, match=r"has 0 files that may be weights: no file name ends in"):
        SAMHubLoader().execute(REPO, "main")


def shards_of(state):
    """A state dict as transformers shards it: files by name."""
    names = sorted(state)
    halves = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    return halves, index


def test_shards_arrive_and_load(server, folder, tiny_sam, tmp_path):
    state = tiny_sam.state_dict()
    halves, index = shards_of(state)
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
        server.files[file] = (tmp_path / file).read_bytes()
    server.files["model.safetensors.index.json"] = json.dumps(index).encode()
    (model,) = SAMHubLoader().execute(REPO)
    assert content_id(model) == content_id(tiny_sam)
    place = folder / REPO
    for path in (place, place / "model.safetensors.index.json", place / "model-00002-of-00002.safetensors"):
        assert content_id(load_model(path)) == content_id(tiny_sam), "any of them stands for all"
    (place / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(SAMError, match="the shard model-00001-of-00002.safetensors is missing"):
        load_model(place)
    SAMHubLoader().execute(REPO)
    assert len(checkpoints_in(folder)) == 2, "a missing shard is fetched again"


def test_an_index_names_only_what_lies_beside_it(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for content, said in (
        ({"weight_map": {"a": "../secret.safetensors"}}, "not a safetensors file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "not a safetensors file beside it"),
        ({"weights": {}}, "not an index of shards"),
        ([], "not an index of shards"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(SAMError, match=said):
            load_model(tmp_path)
    index.unlink()
    with pytest.raises(SAMError, match="there is not one of model.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "repo_id", ["", "name", "a/b/c", "../name", "owner/..", "owner\\x/name", "sam_tiny_sa1b", "o:/n", "a/b\0", "a" * 300 + "/b"]
)
def test_what_is_no_repository_is_refused(repo_id, tmp_path):
    with pytest.raises(SAMError, match="it must be owner/name"):
        hub.fetch_from_hub(repo_id, "", "", [tmp_path])


BAD_FILES = ["/etc/x.pth", "../x.pth", "a/../../x.pth", "..\\x.pth", "c:\\x.pth", "c:x.pth", "a//x.pth", "./x.pth", "a\0.pth"]
BAD_FILES += [".hidden.pth", "x" * 300 + ".pth", "model.py", "a/", "a\n.pth", "nul.pth", "a./x.pth"]
BAD_REVISIONS = [
    "..",
    "../..",
    "a/../../b",
    "/etc",
    "a\\b",
    "c:",
    "a b",
    "a//b",
    "main/",
    "a\0",
    "é",
    "x" * 2000,
    "-/..",
    "a?b",
]


@pytest.mark.parametrize(("revision", "filename"), [("", f) for f in BAD_FILES] + [(r, "x.pth") for r in BAD_REVISIONS])
def test_nothing_is_read_or_written_outside(content, server, tmp_path, revision, filename):
    """A file that lies there is not loaded either; the hub is not asked, and the disk not touched."""
    for place in (tmp_path, tmp_path / "sams", tmp_path / "sams" / "owner"):
        place.mkdir(exist_ok=True)
        (place / "x.pth").write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SAMError, match=r"^(filename|revision) is '"):
        hub.fetch_from_hub(REPO, revision, filename, [tmp_path / "sams" / "owner" / "sams"])
    assert sorted(tmp_path.rglob("*")) == before and server.asked == []


def test_a_repository_cannot_name_files_that_lead_elsewhere(content, server, tmp_path):
    server.files = {"../../x.safetensors": content, "/etc/y.safetensors": content}
    with pytest.raises(SAMError, match="0 files that may be weights"):
        hub.fetch_from_hub(REPO, "", "", [tmp_path / "sams"])
    assert not (tmp_path / "sams").exists()


def test_shards_in_a_folder_of_the_repository_arrive_beside_their_index(server, folder, tiny_sam, tmp_path):
    state = tiny_sam.state_dict()
    halves, index = shards_of(state)
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
        server.files[f"deep/er/{file}"] = (tmp_path / file).read_bytes()
    server.files["deep/er/model.safetensors.index.json"] = json.dumps(index).encode()
    (model,) = SAMHubLoader().execute(REPO, COMMIT, "deep/er/model.safetensors.index.json")
    assert content_id(model) == content_id(tiny_sam)
    assert len(checkpoints_in(folder / f"{REPO}@{COMMIT}/deep/er")) == 2


@pytest.fixture
def dead(monkeypatch):
    """A hub where nobody listens; and nobody may wait for it."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waited {seconds} s to try again"))


@pytest.mark.parametrize("filename", ["", FILE])
def test_a_dead_hub_is_asked_once_and_named(dead, tmp_path, filename):
    with pytest.raises(
        SAMError, match=r"(could not list the files of|could not download) .*owner/small-sam.*manually"
    ) as caught:
        hub.fetch_from_hub(REPO, "", filename, [tmp_path / "sams"])
    assert "\n" not in str(caught.value) and checkpoints_in(tmp_path) == []


@pytest.mark.parametrize("filename", ["", FILE])
def test_a_hub_that_never_answers_is_given_up(monkeypatch, tmp_path, filename):
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    monkeypatch.setattr(hub_file, "PATIENCE", 0.2)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(SAMError, match="could not"):
            hub.fetch_from_hub(REPO, "", filename, [tmp_path / "sams"])


@pytest.mark.parametrize("answer", ["{", "[]", "1", '{"siblings": 5}', '{"id": 1, "siblings": [{}]}', "null"])
def test_a_listing_that_is_not_one_is_refused(server, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(Handler, "listing", lambda self, tree: answer.encode())
    with pytest.raises(SAMError, match=r"could not list the files|0 files that may be weights"):
        hub.fetch_from_hub(REPO, "", "", [tmp_path])


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_keras_names_stand_for_the_originals(size, tmp_path):
    target = tmp_path / "facebook" / f"sam-vit-{size}" / FILE
    target.parent.mkdir(parents=True)
    torch.save({}, target)
    assert hub.fetch_from_hub(f"sam_{size}_sa1b", "", "", [tmp_path]) == target

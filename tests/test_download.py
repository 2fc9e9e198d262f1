"""Fetching: a file lands complete and verified, or not at all. The sources are a server on this machine."""

import hashlib
import http.server
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes import FakeComfyUI, Interrupted, install
from samkit.nodes import model as model_node
from samkit.sam import SAMError
from samkit.sam.weights import download
from samkit.sam.weights.registry import KNOWN, KnownCheckpoint, RemoteFile

NAME = "known_sam.pth"


@pytest.fixture
def content(tiny_sam, tmp_path):
    torch.save(tiny_sam.state_dict(), tmp_path / "source.pth")
    return (tmp_path / "source.pth").read_bytes()


@pytest.fixture
def server():
    """A publisher: `server.files[path]` is what it sends; `server.cut` bytes of it are promised and not sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = self.server.files.get(self.path)
            self.server.asked.append(self.path)
            if content is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - self.server.cut])
            return None

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files, running.asked, running.cut = {}, [], 0
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def known(server, content):
    server.files[f"/{NAME}"] = content
    url = f"http://127.0.0.1:{server.server_port}/{NAME}"
    return RemoteFile(NAME, "owner/name", NAME, url=url, size=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def hub(monkeypatch):
    """The hub's transfer; `hub.answer` writes the file, or raises."""
    import huggingface_hub

    class Hub:
        asked = 0

        def answer(self, folder, bar):
            raise OSError("hub is not reachable")

    fake = Hub()

    def hf_hub_download(repo_id, filename, *, revision, local_dir, tqdm_class):
        fake.asked += 1
        local_dir.mkdir(parents=True, exist_ok=True)
        fake.answer(local_dir / filename, tqdm_class)
        return str(local_dir / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return fake


def checkpoints_in(folder):
    """What a `sams` folder would list."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in (".pth", ".pt", ".safetensors"))


def test_from_the_hub(known, hub, tmp_path, content, server):
    hub.answer = lambda path, bar: path.write_bytes(content)
    assert download.fetch(known, [tmp_path / "sams"]) == tmp_path / "sams" / NAME
    assert (tmp_path / "sams" / NAME).read_bytes() == content
    assert checkpoints_in(tmp_path / "sams") == [NAME] and server.asked == []


def test_from_the_publisher_when_the_hub_fails(known, hub, tmp_path, content):
    download.fetch(known, [tmp_path / "sams"])
    assert hub.asked == 1 and (tmp_path / "sams" / NAME).read_bytes() == content
    assert checkpoints_in(tmp_path / "sams") == [NAME]


def test_a_wrong_file_from_the_hub_is_thrown_away(known, hub, tmp_path, content):
    hub.answer = lambda path, bar: path.write_bytes(b"<html>sign in</html>")
    download.fetch(known, [tmp_path / "sams"])
    assert (tmp_path / "sams" / NAME).read_bytes() == content


@pytest.mark.parametrize("fault", ["cut short", "changed", "gone"])
def test_nothing_gets_the_name_that_is_not_the_file(known, hub, server, tmp_path, content, fault):
    if fault == "cut short":
        server.cut = 1000
    elif fault == "changed":
        server.files[f"/{NAME}"] = content[:-1] + bytes([content[-1] ^ 1])
    else:
        server.files.clear()
    with pytest.raises(SAMError, match=rf"could not fetch {NAME} .*hub is not reachable.*Download http.*by hand"):
        download.fetch(known, [tmp_path / "sams"])
    assert checkpoints_in(tmp_path / "sams") == []


def test_offline_nothing_is_asked(known, hub, server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SAMError, match="HF_HUB_OFFLINE forbids"):
        download.fetch(known, [tmp_path / "sams"])
    assert hub.asked == 0 and server.asked == []


def test_it_goes_to_the_first_folder_that_can_be_written(known, hub, tmp_path):
    (tmp_path / "a file").touch()
    download.fetch(known, [tmp_path / "a file" / "sams", tmp_path / "second"])
    assert checkpoints_in(tmp_path / "second") == [NAME]
    with pytest.raises(SAMError, match="none of these folders can be written"):
        download.fetch(known, [tmp_path / "a file" / "sams"])


def test_the_node_shows_progress_and_hears_cancel(known, hub, tmp_path, monkeypatch, content):
    comfy = install(monkeypatch, FakeComfyUI(tmp_path))

    def transfer(path, bar):
        with bar(total=len(content)) as progress:
            progress.update(len(content))
        path.write_bytes(content)

    hub.answer = transfer
    download.fetch(known, [tmp_path / "hub"])
    assert (comfy.bars[-1].total, comfy.bars[-1].current) == (len(content), len(content))
    hub.answer = type(hub).answer.__get__(hub)
    download.fetch(known, [tmp_path / "publisher"])
    assert (comfy.bars[-1].total, comfy.bars[-1].current) == (len(content), len(content))
    comfy.interrupted_after = 0
    with pytest.raises(Interrupted):
        download.fetch(known, [tmp_path / "cancelled"])
    assert checkpoints_in(tmp_path / "cancelled") == [], "half a file is no checkpoint"


def test_the_loader_fetches_once_and_keeps_the_name(known, hub, server, tmp_path, monkeypatch, tiny_sam):
    monkeypatch.setattr("samkit.utils.comfy.PACK", tmp_path)
    monkeypatch.setitem(KNOWN, NAME, KnownCheckpoint(known, "SAM"))
    before = model_node.available_names()
    for _ in range(2):
        (model,) = model_node.SAMModelLoader().load_model(NAME)
    assert torch.equal(model.mask_decoder.iou_token.weight, tiny_sam.mask_decoder.iou_token.weight)
    assert server.asked == [f"/{NAME}"]
    assert sorted(model_node.available_names()) == sorted(before)


def test_the_known_ones_can_be_verified_and_found():
    for name, known in KNOWN.items():
        file = known.file
        assert known.name == name and name.endswith((".pth", ".pt", ".safetensors"))
        if file.url:
            assert file.url.endswith(name) and file.filename.endswith(name) and file.size > 40e6
        assert known.family and known.licence == "Apache-2.0"
        assert file.sha256 is None or len(file.sha256) == 64
        assert file.sha256 or not file.url, "only the hub can tell a file's SHA-256 itself"
    assert len({known.file.repo_id + known.file.filename for known in KNOWN.values()}) == len(KNOWN)


@pytest.mark.parametrize("etag", ["right", "wrong", "no hash", None])
def test_without_a_sha256_of_ours_the_hubs_counts(known, hub, tmp_path, content, monkeypatch, etag):
    import huggingface_hub

    said = {"right": known.sha256, "wrong": "0" * 64, "no hash": "abc", None: None}[etag]
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: SimpleNamespace(etag=said))
    hub.answer = lambda path, bar: path.write_bytes(content)
    unverified = replace(known, sha256=None, url=None)
    if etag == "right":
        assert download.fetch(unverified, [tmp_path / "sams"]).read_bytes() == content
        return
    with pytest.raises(SAMError, match=r"could not fetch .*(not the file with 0000|cannot be verified)"):
        download.fetch(unverified, [tmp_path / "sams"])
    assert not (tmp_path / "sams" / NAME).exists()

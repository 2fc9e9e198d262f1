"""Fetching: a file lands complete and verified, or not at all. The sources are a server on this machine."""

import contextlib
import errno
import hashlib
import http.server
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import FakeComfyUI, Interrupted, install
from samkit.nodes.model import SAMModelLoader
from samkit.sam import SAM_MODELS, SAMError
from samkit.sam.weights import download, network, publisher
from samkit.sam.weights.registry import KNOWN, KnownCheckpoint, KnownFolder, RemoteFile

NAME = "known_sam.pth"


@pytest.fixture
def content(tiny_sam, tmp_path):
    torch.save(tiny_sam.state_dict(), tmp_path / "source.pth")
    return (tmp_path / "source.pth").read_bytes()


class Publisher(http.server.ThreadingHTTPServer):
    """`files[path]` is what it sends. `faults` are taken one per request; each is a function of the handler and the content."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.ranges, self.faults, self.resumes = {}, [], [], [], True
        self.continued = 0
        self.go_on, self.half_arrived = threading.Event(), threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """A client that hangs up is what some of these tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.asked.append(self.path)
        self.server.ranges.append(self.headers.get("Range"))
        if content is None:
            return self.send_error(404)
        fault = self.server.faults.pop(0) if self.server.faults else None
        return fault(self, content) if fault else self.answer(content, content)

    def answer(self, content, sent, **headers):
        """The file, or its rest where one is asked for and the halves match; `sent` in place of its bytes."""
        etag, start = f'"{hashlib.md5(content).hexdigest()}"', 0
        if self.server.resumes and self.headers.get("Range") and self.headers.get("If-Range") == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        whole = {"Content-Length": str(len(content) - start), "ETag": etag} | headers
        if start:
            self.server.continued += 1
            whole["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for name, value in whole.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent[start:])
        return None

    def log_message(self, *_):
        pass


def sends_half(handler, content):
    """It promises the whole, sends half and hangs up."""
    handler.answer(content, content[: len(content) // 2])


def resets(handler, content):
    sends_half(handler, content)
    handler.wfile.flush()
    handler.server.half_arrived.wait(30)  # a reset takes with it what the other side has not read
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def stalls(handler, content):
    sends_half(handler, content)
    handler.wfile.flush()
    handler.server.go_on.wait(30)


def sends_nothing(handler, content):
    handler.answer(content, b"")


def sends_too_much(handler, content):
    handler.answer(content, content + b"more", **{"Content-Length": str(len(content) + 4)})


def sends_too_much_unsaid(handler, content):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content + b"more")


def sends_a_page(handler, content):
    page = b"<html>sign in to this hotel</html>"
    handler.answer(page, page)


def sends_the_wrong_file(handler, content):
    changed = content[:-1] + bytes([content[-1] ^ 1])
    handler.answer(changed, changed)


def is_no_server(handler, content):
    handler.wfile.write(b"\x00\xff nonsense\r\n\r\n")


def redirects_to(address):
    def fault(handler, content):
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.end_headers()

    return fault


@pytest.fixture
def server():
    with Publisher() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.go_on.set()
        running.shutdown()


@pytest.fixture
def known(server, content):
    server.files[f"/{NAME}"] = content
    url = f"{server.address}/{NAME}"
    return RemoteFile(NAME, "owner/name", NAME, url=url, size=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def hub(monkeypatch):
    """The hub's transfer; `hub.answer` writes the file, or raises."""
    import huggingface_hub

    class Hub:
        asked = 0
        metadata = SimpleNamespace(etag=None, commit_hash=None)

        def answer(self, folder, bar):
            raise OSError("hub is not reachable")

    fake = Hub()

    def hf_hub_download(repo_id, filename, *, revision, local_dir, etag_timeout, tqdm_class):
        fake.asked += 1
        local_dir.mkdir(parents=True, exist_ok=True)
        fake.answer(local_dir / filename, tqdm_class)
        return str(local_dir / filename)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: fake.metadata)
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
        server.faults = [sends_half, sends_nothing]
    elif fault == "changed":
        server.files[f"/{NAME}"] = content[:-1] + bytes([content[-1] ^ 1])
    else:
        server.files.clear()
    with pytest.raises(SAMError, match=rf"could not download {NAME} .*hub is not reachable.*Download http.*manually"):
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
    with pytest.raises(SAMError, match="none of these folders is writable"):
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
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    monkeypatch.setitem(KNOWN, NAME, KnownCheckpoint(known, "SAM"))
    before = SAM_MODELS.names()
    for _ in range(2):
        (model,) = SAMModelLoader().load_model(NAME)
    assert torch.equal(model.mask_decoder.iou_token.weight, tiny_sam.mask_decoder.iou_token.weight)
    assert server.asked == [f"/{NAME}"]
    assert sorted(SAM_MODELS.names()) == sorted(before)


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
def test_without_a_sha256_of_ours_the_hubs_counts(known, hub, tmp_path, content, etag):
    said = {"right": known.sha256, "wrong": "0" * 64, "no hash": "abc", None: None}[etag]
    hub.metadata = SimpleNamespace(etag=said, commit_hash=None)
    hub.answer = lambda path, bar: path.write_bytes(content)
    unverified = replace(known, sha256=None, url=None)
    if etag == "right":
        assert download.fetch(unverified, [tmp_path / "sams"]).read_bytes() == content
        return
    with pytest.raises(SAMError, match=r"could not download .*(0000\w* was expected|cannot be verified)"):
        download.fetch(unverified, [tmp_path / "sams"])
    assert not (tmp_path / "sams" / NAME).exists()


@pytest.fixture
def fetched(known, hub, tmp_path, server, content, monkeypatch):
    """Fetches from the publisher, as the hub is not there; whatever comes of it, nothing but the right file has its name."""

    class Counting(publisher.Progress):
        arrived = 0

        def advance(self, steps=1):
            super().advance(steps)
            self.arrived += steps
            if self.arrived >= len(content) // 2:
                server.half_arrived.set()

    monkeypatch.setattr(publisher, "Progress", Counting)

    def fetch():
        try:
            return download.fetch(known, [tmp_path / "sams"]).read_bytes()
        finally:
            found = checkpoints_in(tmp_path / "sams")
            assert found in ([], [NAME])
            assert not found or hashlib.sha256((tmp_path / "sams" / NAME).read_bytes()).hexdigest() == known.sha256

    return fetch


@pytest.mark.parametrize("fault", [sends_half, resets, stalls])
def test_a_transfer_that_breaks_off_is_continued(fetched, server, content, monkeypatch, fault):
    monkeypatch.setattr(network, "STALL", 0.5)
    server.faults = [fault]
    assert fetched() == content
    assert server.ranges == [None, f"bytes={len(content) // 2}-"] and server.continued == 1


@pytest.mark.parametrize("fault", [sends_half, resets, stalls])
def test_without_an_end_it_is_given_up_and_the_next_fetch_continues(fetched, server, content, monkeypatch, fault):
    monkeypatch.setattr(network, "STALL", 0.5)
    server.faults = [fault, sends_nothing]
    with pytest.raises(SAMError, match=rf"could not download {NAME} .*publisher: .*Download http.*manually"):
        fetched()
    server.ranges.clear()
    assert fetched() == content
    assert server.ranges == [f"bytes={len(content) // 2}-"]


def test_a_server_that_cannot_continue_sends_the_whole_again(fetched, server, content):
    server.faults, server.resumes = [sends_half], False
    assert fetched() == content


def test_a_file_that_changed_at_the_server_is_not_glued_to_its_old_half(fetched, server, content):
    """The halves do not match, says If-Range, so the server sends the whole new file; which is the right one here."""
    other = bytes(len(content))
    server.files[f"/{NAME}"] = other
    server.faults = [sends_half, sends_nothing]
    with pytest.raises(SAMError):
        fetched()
    server.files[f"/{NAME}"] = content
    assert fetched() == content
    assert server.ranges[-1] == f"bytes={len(content) // 2}-"


def test_416_starts_anew(fetched, server, content):
    server.faults = [sends_half, lambda handler, _: handler.send_error(416)]
    assert fetched() == content
    assert server.ranges == [None, f"bytes={len(content) // 2}-", None]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (sends_too_much, "offers"),
        (sends_too_much_unsaid, "sends more than the"),
        (sends_a_page, "offers 34 bytes, but the file has"),
        (sends_the_wrong_file, "was expected"),
        (is_no_server, "publisher: .*nonsense"),
        (redirects_to("file:///etc/passwd"), "not allowed"),
        (redirects_to("ftp://127.0.0.1/x"), "not allowed"),
    ],
)
def test_what_is_not_the_file_is_refused_and_does_not_stay(fetched, server, content, fault, said):
    server.faults = [fault]
    with pytest.raises(SAMError, match=rf"could not download {NAME} .*{said}.*Download http.*manually"):
        fetched()
    assert fetched() == content


def test_a_redirect_to_another_host_is_followed_and_verified(fetched, server, content):
    with Publisher() as mirror:
        threading.Thread(target=mirror.serve_forever, daemon=True).start()
        mirror.files["/elsewhere"] = content[:-1] + b"x"
        server.faults = [redirects_to(f"{mirror.address}/elsewhere")] * 2
        with pytest.raises(SAMError, match="was expected"):
            fetched()
        mirror.files["/elsewhere"] = content
        assert fetched() == content and len(mirror.asked) == 2
        mirror.shutdown()


def test_a_full_disk_is_named_and_leaves_nothing(fetched, server, content, tmp_path, monkeypatch):
    def copy(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publisher, "_copy", copy)
    with pytest.raises(SAMError, match=r"the disk of .*sams is full .*Free \d+ MB there"):
        fetched()
    assert [path.name for path in (tmp_path / "sams").iterdir()] == [".samkit-download.lock"]
    monkeypatch.undo()


def test_a_folder_that_may_not_be_written_is_passed_over(known, hub, tmp_path, monkeypatch, content):
    """The tests may run as root, who may write everywhere: so the system's answer is made up."""
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and may(path, mode))
    assert download.fetch(known, [tmp_path / "locked", tmp_path / "open"]).parent == tmp_path / "open"
    with pytest.raises(SAMError, match="none of these folders is writable: .*locked") as error:
        download.fetch(known, [tmp_path / "locked"])
    assert f"download {known.url} elsewhere and put it there as {tmp_path / 'locked' / NAME}" in str(error.value)


def test_a_model_of_several_files_for_a_read_only_folder_names_them_all(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    wanted = KnownFolder("model-x", "owner/model-x", small=("config.json", "vocab.txt"))
    with pytest.raises(SAMError, match="is writable") as error:
        download.fetch_folder(wanted, [tmp_path])
    place = tmp_path / "model-x"
    assert f"put these files from owner/model-x on the Hugging Face Hub into {place}: config.json, vocab.txt, model.saf" in str(
        error.value
    )


def test_a_folder_that_refuses_the_lock_is_named(known, hub, tmp_path, monkeypatch):
    def refused(self, timeout=None):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(download.FileLock, "acquire", refused)
    with pytest.raises(SAMError, match=r"sams cannot be written .*Permission denied.*change its permissions, or download "):
        download.fetch(known, [tmp_path / "sams"])


@pytest.mark.parametrize("end", ["fetched", "failed", "cancelled", "refused"])
def test_the_lock_is_released_however_a_fetch_ends(known, hub, server, tmp_path, content, monkeypatch, end):
    """And not when the garbage collector finds it: another ComfyUI on the same folder would wait for that."""
    made = []

    class Lock(download.FileLock):
        def __init__(self, path):
            super().__init__(path)
            made.append(self)

    def ends(path, bar):
        if end == "cancelled":
            raise Interrupted
        raise OSError("hub is not reachable")

    monkeypatch.setattr(download, "FileLock", Lock)
    hub.answer = (lambda path, bar: path.write_bytes(content)) if end == "fetched" else ends
    server.files.clear()
    if end == "refused":
        (tmp_path / "sams").mkdir()
        (tmp_path / "sams" / ".samkit-download").touch()
    with contextlib.suppress(SAMError, Interrupted):
        download.fetch(known, [tmp_path / "sams"])
    assert (tmp_path / "sams" / NAME).is_file() == (end == "fetched")
    assert len(made) == 1 and not made[0].is_locked


def test_an_address_without_a_sum_is_not_asked_for_bytes_that_nobody_could_verify(known, hub, server, tmp_path):
    with pytest.raises(SAMError, match=f"could not download {NAME} .hub: .*Download http.*manually"):
        download.fetch(replace(known, sha256=None), [tmp_path / "sams"])
    assert server.asked == [] and checkpoints_in(tmp_path / "sams") == []


@pytest.mark.parametrize("name", [NAME, ".samkit-download.lock"])
def test_a_folder_under_a_files_name_is_named(known, hub, tmp_path, name):
    (tmp_path / "sams" / name).mkdir(parents=True)
    with pytest.raises(SAMError, match=rf"{name}.*(Remove|remove)"):
        download.fetch(known, [tmp_path / "sams"])


# Links, and names that lead elsewhere.


@pytest.mark.parametrize("where", [".samkit-download", ".samkit-download.lock"])
def test_a_link_in_place_of_our_own_is_refused(known, hub, tmp_path, where):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sams").mkdir()
    (tmp_path / "sams" / where).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SAMError, match=f"{where} is not a .* of this pack: remove it"):
        download.fetch(known, [tmp_path / "sams"])
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", [f"{NAME}.part", f"{NAME}.part.etag", ".cache"])
def test_a_link_in_the_staging_folder_is_not_followed(known, hub, tmp_path, content, name):
    staging = tmp_path / "sams" / ".samkit-download"
    staging.mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"mine")
    (staging / name).symlink_to(tmp_path / "precious")
    assert download.fetch(known, [tmp_path / "sams"]).read_bytes() == content
    assert (tmp_path / "precious").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["link", "second name"])
def test_opening_our_own_never_opens_anothers(tmp_path, kind):
    (tmp_path / "precious").write_bytes(b"mine")
    if kind == "link":
        (tmp_path / "part").symlink_to(tmp_path / "precious")
    else:
        (tmp_path / "part").hardlink_to(tmp_path / "precious")
    with publisher.open_own(tmp_path / "part") as file:
        file.write(b"theirs")
    assert (tmp_path / "precious").read_bytes() == b"mine" and (tmp_path / "part").read_bytes() == b"theirs"


def test_a_linked_folder_on_the_way_is_not_followed(known, hub, tmp_path, server):
    (tmp_path / "sams").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sams" / "owner").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SAMError, match="does not stay inside"):
        download.fetch(replace(known, name=f"owner/{NAME}"), [tmp_path / "sams"])
    assert list((tmp_path / "elsewhere").iterdir()) == [] and server.asked == []


@pytest.mark.parametrize(
    "name",
    ["../x.pth", "/tmp/x.pth", "a/../../x.pth", "a\\..\\x.pth", "c:/x.pth", "a//x.pth", "", "a/./x.pth", "a\0.pth", "CON.pth"],
)
def test_no_name_leaves_the_folder(known, hub, tmp_path, server, name):
    with pytest.raises(SAMError, match="does not stay inside"):
        download.fetch(replace(known, name=name), [tmp_path / "deep" / "sams"])
    assert list(tmp_path.rglob("x.pth")) == [] and not (tmp_path / "deep").exists() and server.asked == []


# What a network raises.


def errors():
    import httpx2
    from huggingface_hub import errors as hub_errors

    request = httpx2.Request("GET", "http://hub")
    return [
        httpx2.ConnectError("refused", request=request),
        httpx2.ReadTimeout("late", request=request),
        httpx2.RemoteProtocolError("hung up", request=request),
        httpx2.InvalidURL("odd"),
        hub_errors.EntryNotFoundError("gone"),
        http.client.IncompleteRead(b"", 3),
        http.client.BadStatusLine("odd"),
        ssl.SSLError("certificate"),
        socket.gaierror(-2, "unknown host"),
        TimeoutError("late"),
        json.JSONDecodeError("odd", "", 0),
        KeyError("etag"),
        RuntimeError("xet"),
        EOFError(),
    ]


@pytest.mark.parametrize("number", range(14))
def test_whatever_the_hub_raises_the_publisher_is_tried(known, hub, tmp_path, content, number, server):
    pytest.importorskip("httpx2", reason="this huggingface_hub has another client")

    def answer(path, bar):
        raise errors()[number]

    hub.answer = answer
    assert download.fetch(known, [tmp_path / "sams"]).read_bytes() == content
    server.files.clear()
    with pytest.raises(SAMError, match=r"could not download .*hub: .*publisher: .*manually") as caught:
        download.fetch(known, [tmp_path / "again"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [http.client.IncompleteRead(b"", 3), http.client.BadStatusLine("odd"), ssl.SSLError("no")])
def test_whatever_the_publisher_raises_is_one_sentence(known, hub, tmp_path, monkeypatch, error):
    def request(*_):
        raise error

    monkeypatch.setattr(publisher, "_request", request)
    with pytest.raises(SAMError, match=r"could not download .*hub: .*publisher: .*manually"):
        download.fetch(known, [tmp_path / "sams"])


# More than one process, and processes that end.

# The packages without their `__init__`: fetching needs no torch, which takes long to import.
PROCESS = """
import sys
from pathlib import Path
from types import ModuleType
for name in ("samkit", "samkit.sam"):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(Path({root!r}, *name.split(".")[1:]))]
import huggingface_hub
def dead(*_, **__):
    raise OSError("hub is not reachable")
huggingface_hub.get_hf_file_metadata = dead
from samkit.sam.weights.download import fetch
from samkit.sam.weights.registry import RemoteFile
print(fetch(RemoteFile(*{file!r}), [Path(sys.argv[1])]), flush=True)
assert "torch" not in sys.modules
"""


def start(known, folder):
    file = (known.name, known.repo_id, known.filename, known.revision, known.url, known.size, known.sha256)
    code = PROCESS.format(root=str(Path(__file__).resolve().parent.parent), file=file)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl+C
    )


def test_two_processes_fetch_one_file_once(known, server, content, tmp_path):
    both = [start(known, tmp_path / "sams") for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()
    assert server.asked == [f"/{NAME}"]
    assert (tmp_path / "sams" / NAME).read_bytes() == content


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl+C"])
def test_a_process_that_is_ended_leaves_no_file_and_the_next_continues(known, hub, server, content, tmp_path, end):
    arrived = threading.Event()

    def half_then_wait(handler, content):
        sends_half(handler, content)
        handler.wfile.flush()
        arrived.set()
        server.go_on.wait(300)

    server.faults = [half_then_wait]
    process = start(known, tmp_path / "sams")
    part = tmp_path / "sams" / ".samkit-download" / f"{NAME}.part"
    assert arrived.wait(300)
    process.send_signal(end)
    process.communicate(timeout=60)
    server.go_on.set()
    assert process.returncode != 0 and checkpoints_in(tmp_path / "sams") == []
    had = part.stat().st_size
    assert download.fetch(known, [tmp_path / "sams"]).read_bytes() == content
    assert server.ranges[-1] == (f"bytes={had}-" if had else None)

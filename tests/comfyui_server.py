"""A real ComfyUI server on scratch folders, and a small client for it."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

FRONT_ENDS = "SAMKIT_FRONTENDS"  # folders with an index.html, beside the front end that ComfyUI pins
NEEDS = ("torch", "segment_anything", "safetensors", "huggingface_hub")  # in ComfyUI's own Python


# Nodes with the sockets of Impact Pack and of Art Venture, one that runs until it is cancelled, and one by which the pack takes
# a SAM 3 of the tests' size: it is asked for its inputs when all packs are loaded.
OTHER_PACK = """
import sys
import time

import comfy.model_management

class Waits:
    @classmethod
    def INPUT_TYPES(cls):
        return {}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "other"
    def run(self):
        while True:
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.05)

class SmallSAM3:
    @classmethod
    def INPUT_TYPES(cls):
        for name, module in list(sys.modules.items()):
            if name.endswith("sam.models.sam2.vit_det"):
                module.SIZES[32, 4] = module.ViTDetSize(2, 4, (1, 3), 12)
        return {}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "other"
    def run(self):
        return (None,)

def made(given, taken):
    class Other:
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"model": (taken,)} if taken else {}}
        RETURN_TYPES = (given,) if given else ()
        FUNCTION = "run"
        CATEGORY = "other"
        OUTPUT_NODE = not given
        def run(self, model=None):
            return (model,)
    return Other

NODE_CLASS_MAPPINGS = {
    "Waits": Waits, "SmallSAM3": SmallSAM3,
    "TakesImpact": made(None, "SAM_MODEL"), "TakesArt": made(None, "AV_SAM_MODEL"), "TakesImage": made(None, "IMAGE"),
    "GivesImpact": made("SAM_MODEL", None), "GivesArt": made("AV_SAM_MODEL", None), "GivesImage": made("IMAGE", None),
}
"""


class Unavailable(Exception):
    """There is no ComfyUI here, or none that starts."""


class Server:
    """A running server: `base` holds its custom_nodes, input, output and models; `log` is all it has printed."""

    def __init__(self, process, port, base):
        self._process, self._port, self.base = process, port, base

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    @property
    def log(self):
        return (self.base / "server.log").read_text(errors="replace")

    @property
    def resident(self):
        """Bytes of the server's memory that are in RAM."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self):
        """End it before its block does."""
        self._process.terminate()

    def request(self, path, data=None, timeout=30):
        """The answer's bytes; `data` is posted as JSON."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read()

    def send(self, path, body=b"", method="POST", timeout=60, **headers):
        """Bytes as they are, whatever the server says to them: the status, the headers, the answer's bytes.

        Headers are given with underscores; JSON is the Content-Type where none is given.
        """
        sent = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        try:
            # A server may answer before it has everything, and close.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    @contextlib.contextmanager
    def stalls(self, pause=0.005):
        """Pings the server for as long as the body runs; the list then holds each answer's time in seconds."""
        seconds, done = [], threading.Event()

        def ping():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            while not done.wait(pause):
                begun = time.perf_counter()
                connection.request("GET", "/prompt")
                connection.getresponse().read()
                seconds.append(time.perf_counter() - begun)
            connection.close()

        thread = threading.Thread(target=ping)
        thread.start()
        try:
            yield seconds
        finally:
            done.set()
            thread.join()

    def json(self, path, data=None):
        return json.loads(self.request(path, data))

    def run(self, graph, timeout=60):
        """Queue an API graph and wait for it. Returns its history entry; see `saved` and `error_of`."""
        try:
            queued = self.json("/prompt", {"prompt": graph})
        except urllib.error.HTTPError as error:
            raise AssertionError(f"the server refused the graph: {error.read().decode()}") from error
        assert not queued["node_errors"], f"the server leaves out what it refuses: {queued['node_errors']}"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.json(f"/history/{queued['prompt_id']}")
            if history:
                return history[queued["prompt_id"]]
            if self._process.poll() is not None:
                raise AssertionError(f"the server died:\n{self.log[-3000:]}")
            time.sleep(0.05)
        raise AssertionError(f"no answer in {timeout} s:\n{self.log[-3000:]}")

    def run_again(self, graph, timeout=60):
        """Run a graph whose nodes queue it again. Returns the history entry of each run, in their order."""
        before = self.json("/history")
        self.run(graph, timeout)
        deadline = time.monotonic() + timeout
        while self.json("/prompt")["exec_info"]["queue_remaining"]:
            assert time.monotonic() < deadline, f"it still runs after {timeout} s:\n{self.log[-3000:]}"
            time.sleep(0.05)
        return [entry for prompt, entry in self.json("/history").items() if prompt not in before]

    def saved(self, graph):
        """Run a graph that must succeed. Returns the paths of the pixels that each SaveImage node wrote, by node id."""
        entry = self.run(graph)
        assert entry["status"]["status_str"] == "success", error_of(entry)
        return {
            node: [self.base / "output" / image["subfolder"] / image["filename"] for image in output["images"]]
            for node, output in entry["outputs"].items()
            if graph[node]["class_type"] == "SaveImage"
        }


def error_of(entry):
    """What a failed graph's history says: exception_type, exception_message, node_type; None where it went well."""
    return next((said for event, said in entry["status"]["messages"] if event == "execution_error"), None)


def front_ends():
    """The front ends to test with: None for the one that ComfyUI pins, and the folders in SAMKIT_FRONTENDS."""
    return [None, *filter(None, os.environ.get(FRONT_ENDS, "").split(os.pathsep))]


@contextlib.contextmanager
def comfyui(base, start_timeout=120, threads="1", device="cpu", front_end=None, more=()):
    """Start a server whose folders lie in `base`, with `more` options; it ends with the block.

    `front_end` is a folder with the `index.html` of another front end than the one that ComfyUI pins.

    It computes with one thread, which a busy machine has; with `threads=None`, with as many as it likes.

    Raises:
        Unavailable: COMFYUI_PATH (default ~/ComfyUI) is no ComfyUI, lacks a package, or did not start.
    """
    home, python = find_comfyui()
    port = _free_port()
    options = f"{'--cpu ' * (device == 'cpu')}--disable-api-nodes --verbose DEBUG --listen 127.0.0.1 --port {port}".split()
    folders = ["--base-directory", str(base), "--database-url", f"sqlite:///{base / 'comfyui.db'}"]
    shown = ["--front-end-root", str(Path(front_end).expanduser())] if front_end else []
    command = [python, str(home / "main.py"), *options, *folders, *shown, *more]
    environment = os.environ | ({"OMP_NUM_THREADS": threads} if threads else {})
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        server = Server(process, port, base)
        _wait(server, process, start_timeout)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_comfyui():
    """ComfyUI's folder and the Python that runs it; raises Unavailable."""
    home = Path(os.environ.get("COMFYUI_PATH") or "~/ComfyUI").expanduser()
    if not (home / "main.py").is_file():
        raise Unavailable(f"there is no ComfyUI in {home}: set COMFYUI_PATH")
    return home, _python_of(home)


def _python_of(home):
    own = [home / ".venv" / "bin" / "python", home / ".venv" / "Scripts" / "python.exe"]
    python = next((str(path) for path in own if path.is_file()), sys.executable)
    look = f"import importlib.util as u; print(*[n for n in {NEEDS} + ('aiohttp',) if u.find_spec(n) is None])"
    lacking = subprocess.run([python, "-c", look], capture_output=True, text=True, check=True).stdout.split()
    if lacking:
        raise Unavailable(f"ComfyUI's Python ({python}) lacks {', '.join(lacking)}")
    return python


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(server, process, timeout):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(f"ComfyUI ended with {process.returncode} at its start:\n{server.log[-3000:]}")
        try:
            server.request("/system_stats", timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    raise Unavailable(f"ComfyUI did not answer within {timeout} s:\n{server.log[-3000:]}")

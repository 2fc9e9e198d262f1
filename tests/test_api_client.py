"""The example client of ComfyUI's API: against a pretended server, and against two real ones of which one is stopped."""

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import io
import itertools
import json
import shutil
import sys

import numpy as np
import pytest
from comfyui_server import Unavailable, comfyui
from conftest import make_image
from load_pack import ROOT
from PIL import Image
from world import unavailable

web = pytest.importorskip("aiohttp.web", reason="a development requirement: the example client needs it")
spec = importlib.util.spec_from_file_location("api_client", ROOT / "examples" / "api_client.py")
client = sys.modules["api_client"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(client)

GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": ""}}, "2": {"class_type": "SaveImage", "inputs": {}}}


class Pretended:
    """As much of ComfyUI as the client uses: it runs one prompt at a time, and gives back the image that was uploaded."""

    def __init__(self, fails=(), stops_after=None, seconds=0.0):
        self.fails, self.stops_after, self.seconds = set(fails), stops_after, seconds
        self.images, self.history, self.sockets, self.most, self.ran = {}, {}, {}, 0, []
        self.queue, self.numbers = asyncio.Queue(), itertools.count()

    async def __aenter__(self):
        app = web.Application()
        routes = [("GET", "/ws", self.ws), ("POST", "/upload/image", self.upload), ("POST", "/prompt", self.prompt),
                  ("GET", "/history/{prompt}", self.past), ("GET", "/view", self.view)]  # fmt: skip
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        self.runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self.work = asyncio.create_task(self.worker())
        return self

    async def __aexit__(self, *error):
        self.work.cancel()
        await self.stop()

    async def stop(self):
        for socket in self.sockets.values():
            await socket.close()
        await self.runner.cleanup()

    async def ws(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets[request.query["clientId"]] = socket
        await socket.send_json({"type": "status", "data": {}})
        async for _ in socket:
            pass
        return socket

    async def upload(self, request):
        form = await request.post()
        self.images[form["image"].filename] = form["image"].file.read()
        return web.json_response({"name": form["image"].filename, "subfolder": form["subfolder"], "type": "input"})

    async def prompt(self, request):
        said = await request.json()
        number = str(next(self.numbers))
        await self.queue.put((number, said["client_id"], said["prompt"]["1"]["inputs"]["image"].split("/")[-1]))
        self.most = max(self.most, self.queue.qsize())
        return web.json_response({"prompt_id": number})

    async def worker(self):
        while True:
            number, owner, name = await self.queue.get()
            await asyncio.sleep(self.seconds)
            self.ran.append(name)
            failed = name.split("_", 1)[1] in self.fails
            messages = [["execution_error", {"exception_message": "out of memory\n"}]] if failed else []
            image = {"filename": name, "subfolder": "", "type": "output"}
            status = {"status_str": "error" if failed else "success", "messages": messages}
            self.history[number] = {"outputs": {"2": {"images": [image]}}, "status": status}
            if len(self.ran) == self.stops_after:
                asyncio.create_task(self.stop())  # noqa: RUF006  the socket's end ends this one too
                return
            await self.sockets[owner].send_json({"type": "executing", "data": {"node": None, "prompt_id": number}})

    async def past(self, request):
        number = request.match_info["prompt"]
        return web.json_response({number: self.history[number]})

    async def view(self, request):
        return web.Response(body=self.images[request.query["filename"]])


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(20)]
    for index, path in enumerate(paths):
        path.write_bytes(f"image {index}".encode())
    return paths


def run(images, *servers, **options):
    """Run over pretended servers. Returns the results in the order in which they are given."""

    async def go():
        async with contextlib.AsyncExitStack() as stack:
            urls = [(await stack.enter_async_context(server)).url for server in servers]
            return [one async for one in client.run_all(GRAPH, images, urls, **options)]

    return asyncio.run(go())


def test_results_come_in_order_from_all_servers(images):
    slow, fast, reported = Pretended(seconds=0.02), Pretended(), []
    results = run(images, slow, fast, report=reported.append)
    assert [one.path for one in results] == images
    assert [one.files[0][1] for one in results] == [path.read_bytes() for path in images]
    assert slow.ran and len(fast.ran) > len(slow.ran) and len(slow.ran) + len(fast.ran) == 20
    assert sorted(map(str, images)) == sorted(str(one.path) for one in reported)


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_server_has_no_more_than_it_should(images, in_flight):
    server = Pretended(seconds=0.002)
    assert len(run(images, server, in_flight=in_flight)) == 20
    assert len(server.images) == 20 and server.most <= in_flight


def test_no_image_is_started_far_ahead_of_the_oldest(images):
    """Its result would wait in memory: an image that fails everywhere holds the others up, and does not lose them."""
    started = []

    async def go():
        async with Pretended() as server:
            results = client.run_all(GRAPH, images, [server.url], in_flight=1)
            first = await anext(results)
            for _ in range(50):
                await asyncio.sleep(0)
            started.append(len(server.images))
            return [first, *[one async for one in results]]

    assert len(asyncio.run(go())) == 20 and started[0] <= 5


def test_what_a_stopped_server_had_runs_on_another(images):
    stopped, other = Pretended(stops_after=3), Pretended(seconds=0.002)
    results = run(images, stopped, other)
    assert [one.files[0][1] for one in results] == [path.read_bytes() for path in images]
    assert len(stopped.ran) == 3 and len(other.ran) >= 17


def test_what_fails_on_one_server_runs_on_another_and_what_fails_everywhere_is_an_error(images):
    one, other = Pretended(fails={"3.png", "5.png"}), Pretended(fails={"5.png"})
    results = run(images, one, other)
    assert [place for place, result in enumerate(results) if result.error] == [5]
    assert results[5].error == "out of memory" and [name.split("_", 1)[1] for name in one.ran + other.ran].count("5.png") == 3


def test_an_image_that_is_not_there_is_an_error(images, tmp_path):
    results = run([tmp_path / "none.png", *images[:2]], Pretended())
    assert "none.png" in results[0].error and not results[1].error


def test_without_any_server_it_gives_up(images):
    async def go():
        return [one async for one in client.run_all(GRAPH, images, ["http://127.0.0.1:9"], patience=0.05)]

    with pytest.raises(client.ServerLostError, match="none of the servers answers: http://127.0.0.1:9"):
        asyncio.run(go())


def test_a_workflow_needs_one_load_image():
    with pytest.raises(client.WorkflowFailedError, match="2 Load Image nodes"):
        client.with_image({"1": GRAPH["1"], "2": GRAPH["1"]}, "a.png")


@pytest.mark.comfyui
def test_two_real_servers_of_which_one_is_stopped(tmp_path, monkeypatch):
    """All results come, in order, and each is what its own image gives."""
    images = []
    for index in range(12):
        images.append(tmp_path / f"{index:02}.png")
        Image.fromarray(make_image(48 + index, 64)).save(images[-1])
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": ""}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
    }
    bases = [tmp_path / name for name in ("a", "b")]
    for base in bases:
        (base / "custom_nodes").mkdir(parents=True)
        (base / "input").mkdir()
    with contextlib.ExitStack() as stack:
        try:
            with concurrent.futures.ThreadPoolExecutor() as pool:  # both start at once
                servers = list(pool.map(lambda base: stack.enter_context(comfyui(base)), bases))
        except Unavailable as reason:
            unavailable("comfyui", reason)
        done = []

        def report(result):
            done.append(result)
            if len([one for one in done if one.server == servers[0].url]) == 2:
                servers[0].stop()

        async def go():
            return [one async for one in client.run_all(graph, images, [one.url for one in servers], report=report)]

        results = asyncio.run(go())
    assert [one.path for one in results] == images and not [one.error for one in results if one.error]
    assert {one.server for one in results} == {one.url for one in servers}
    for index, one in enumerate(results):
        ((_, content),) = one.files
        inverted = np.array(Image.open(io.BytesIO(content))).astype(int)
        assert np.abs(inverted - (255 - make_image(48 + index, 64).astype(int))).max() <= 1  # Save Image rounds down


def test_the_api_examples_fit_the_client():
    """Those with one image run as they are."""
    paths = sorted((ROOT / "example_workflows" / "api").glob("*.json"))
    kinds = [[node["class_type"] for node in json.loads(path.read_text()).values()] for path in paths]
    assert sum(one.count("LoadImage") + one.count("SAMKit_ExampleImage") == 1 and "SaveImage" in one for one in kinds) > 4


def test_the_command_writes_the_results(images, tmp_path, monkeypatch, capsys):
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)

    async def go():
        async with Pretended() as server:
            chosen = client.argparse.Namespace(workflow=tmp_path / "graph.json", images=images[:3], servers=[server.url],
                                               output=tmp_path / "out", in_flight=2)  # fmt: skip
            return await client.run(chosen)

    assert asyncio.run(go()) == 0 and "3 of 3" in capsys.readouterr().err
    assert sorted(path.read_bytes() for path in (tmp_path / "out").iterdir()) == [b"image 0", b"image 1", b"image 2"]

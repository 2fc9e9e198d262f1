#!/usr/bin/env python3
"""Runs an API workflow over many images, on a list of ComfyUI servers. An example to copy from; it needs aiohttp.

    python examples/api_client.py workflow_api.json photos/*.jpg --output results \\
        --servers http://127.0.0.1:8188 http://10.0.0.2:8188

The workflow is one of example_workflows/api, or what ComfyUI exports as API format. Each image goes into its Load Image
node, or takes the place of its example image.
The images that the workflow saves are downloaded to the output folder, named by their source. A server says through its
websocket when a workflow has ended; nothing is polled.

* Back-pressure: a server gets no more than a few workflows at a time (`--in-flight`), and no image is started that is far ahead
  of the oldest one that is not finished.
* A workflow whose server goes away, or that fails, runs on another server, three times at most.
* Results come in the order of the images.

Exit status: 0 if every image has a result, 1 if some have not, 2 if no server answers.
"""

import argparse
import asyncio
import contextlib
import copy
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

Graph = dict[str, dict[str, Any]]
_DOWN = (aiohttp.ClientError, OSError, asyncio.TimeoutError)
_LONGEST_PAUSE = 30.0  # seconds between two attempts to connect


class ServerLostError(Exception):
    """The server went away, or cannot run anything now."""


class WorkflowFailedError(Exception):
    """The server refused the workflow, or one of its nodes failed."""


@dataclass(order=True)
class Job:
    """An image on its way; earlier ones go first."""

    index: int
    path: Path = field(compare=False)
    future: "asyncio.Future[Result]" = field(compare=False, repr=False)
    failed_on: list[str] = field(default_factory=list, compare=False)


@dataclass(frozen=True)
class Result:
    """What became of an image: the files that the workflow saved (their names and bytes), or an error."""

    path: Path
    files: tuple[tuple[str, bytes], ...] = ()
    error: str = ""
    server: str = ""


class Server:
    """A ComfyUI server, and the websocket on which it says what it has done."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.url, self.up = url.rstrip("/"), asyncio.Event()
        self._session, self._client, self._visit = session, uuid.uuid4().hex, 0
        self._ended: dict[str, asyncio.Future[None]] = {}

    async def listen(self) -> None:
        """Stay connected until cancelled; what waits for this server while it is away fails with ServerLostError."""
        pause = 0.25
        while True:
            with contextlib.suppress(*_DOWN):
                async with self._session.ws_connect(
                    f"{self.url}/ws", params={"clientId": self._client}, heartbeat=20, max_msg_size=0
                ) as socket:
                    self.up.set()
                    pause = 0.25
                    async for message in socket:
                        if message.type is aiohttp.WSMsgType.TEXT:
                            self._heard(json.loads(message.data))
            self._left()
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _heard(self, message: dict[str, Any]) -> None:
        """The last message about a prompt, whatever became of it, names no node; its history is there by then."""
        data = message.get("data") or {}
        if message.get("type") == "executing" and data.get("node", "") is None and "prompt_id" in data:
            ended = self._end_of(data["prompt_id"])
            if not ended.done():
                ended.set_result(None)

    def _left(self) -> None:
        self.up.clear()
        self._visit += 1
        for ended in self._ended.values():
            if not ended.done():
                ended.set_exception(ServerLostError(f"{self.url} went away"))
                ended.exception()  # so that nobody has to wait for it
        self._ended.clear()

    def _end_of(self, prompt: str) -> "asyncio.Future[None]":
        """Done when the prompt is. The message may come before the answer that gives the prompt its number."""
        return self._ended.setdefault(prompt, asyncio.get_running_loop().create_future())

    async def run(self, graph: Graph, path: Path, content: bytes) -> Result:
        """Run a workflow on an image, the file `path` with that content.

        Raises:
            ServerLostError, WorkflowFailedError: see there.
        """
        visit = self._visit
        try:
            prompt = await self._queue(with_image(graph, await self._upload(path, content)))
            if visit != self._visit or not self.up.is_set():
                raise ServerLostError(f"{self.url} went away")
            await self._end_of(prompt)
            self._ended.pop(prompt, None)
            return Result(path, await self._saved(prompt), server=self.url)
        except _DOWN as error:
            raise ServerLostError(f"{self.url}: {error}") from error

    async def _upload(self, path: Path, content: bytes) -> str:
        form = aiohttp.FormData({"overwrite": "true", "subfolder": "api_client"})
        form.add_field("image", content, filename=f"{uuid.uuid5(uuid.NAMESPACE_URL, str(path)).hex[:8]}_{path.name}")
        async with self._session.post(f"{self.url}/upload/image", data=form) as answer:
            answer.raise_for_status()
            said = await answer.json()
        return f"{said['subfolder']}/{said['name']}" if said.get("subfolder") else said["name"]

    async def _queue(self, graph: Graph) -> str:
        async with self._session.post(f"{self.url}/prompt", json={"prompt": graph, "client_id": self._client}) as answer:
            if answer.status == 400:
                raise WorkflowFailedError(f"{self.url} refused it: {(await answer.text())[:500]}")
            answer.raise_for_status()
            return (await answer.json())["prompt_id"]

    async def _saved(self, prompt: str) -> tuple[tuple[str, bytes], ...]:
        async with self._session.get(f"{self.url}/history/{prompt}") as answer:
            answer.raise_for_status()
            entry = (await answer.json())[prompt]
        if entry["status"]["status_str"] != "success":
            said = [data for event, data in entry["status"]["messages"] if event == "execution_error"]
            raise WorkflowFailedError(said[0]["exception_message"].strip() if said else "it was interrupted")
        outputs = entry["outputs"]
        images = [image for output in outputs.values() for image in output.get("images", ()) if image["type"] == "output"]
        return tuple([(image["filename"], await self._view(image)) for image in images])

    async def _view(self, image: dict[str, str]) -> bytes:
        async with self._session.get(f"{self.url}/view", params=image) as answer:
            answer.raise_for_status()
            return await answer.read()


def with_image(graph: Graph, name: str) -> Graph:
    """The workflow with an image of the server's input folder in its Load Image node, or in place of its example image.

    Raises:
        WorkflowFailedError: it has none, or several.
    """
    graph = copy.deepcopy(graph)
    loaders = [node for node in graph.values() if node["class_type"] in ("LoadImage", "SAMKit_ExampleImage")]
    if len(loaders) != 1:
        raise WorkflowFailedError(f"the workflow has {len(loaders)} Load Image nodes, but needs exactly one")
    loaders[0] |= {"class_type": "LoadImage", "inputs": {"image": name}}
    return graph


async def run_all(
    graph: Graph,
    images: Sequence[Path],
    servers: Sequence[str],
    in_flight: int = 2,
    tries: int = 3,
    patience: float = 60.0,
    report: Callable[[Result], None] = lambda result: None,
) -> AsyncIterator[Result]:
    """Results of a workflow on images, in their order.

    Args:
        graph: the workflow in API format, with one Load Image node.
        images: their paths.
        servers: URLs.
        in_flight: workflows that a server has at a time: one runs, the next is there already.
        tries: how often an image is tried before its result is an error.
        patience: seconds without any server before this gives up.
        report: called with each result when it comes, in any order.

    Raises:
        ServerLostError: no server answers.
    """
    jobs: asyncio.PriorityQueue[Job] = asyncio.PriorityQueue()
    loop, ahead = asyncio.get_running_loop(), 4 * in_flight * len(servers)
    listed = [Job(index, path, loop.create_future()) for index, path in enumerate(images)]
    for job in listed:
        job.future.add_done_callback(lambda future: None if future.cancelled() else report(future.result()))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)) as session:
        pool = [Server(session, url) for url in servers]
        lanes = [lane(server, pool, graph, jobs, tries) for server in pool for _ in range(in_flight)]
        tasks = [asyncio.create_task(one) for one in (*(server.listen() for server in pool), *lanes)]
        try:
            for job in listed[:ahead]:
                jobs.put_nowait(job)
            for job in listed:
                yield await answered(job.future, pool, patience)
                if job.index + ahead < len(listed):
                    jobs.put_nowait(listed[job.index + ahead])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def lane(server: Server, pool: Sequence[Server], graph: Graph, jobs: "asyncio.PriorityQueue[Job]", tries: int) -> None:
    """One of a server's places: takes the next image, for as long as the server is there."""
    while True:
        await server.up.wait()
        job = await jobs.get()
        if server.url in job.failed_on and any(other.up.is_set() and other.url not in job.failed_on for other in pool):
            jobs.put_nowait(job)  # for another server, which is busy now
            await asyncio.sleep(0.05)
            continue
        try:
            job.future.set_result(await server.run(graph, job.path, job.path.read_bytes()))
        except (ServerLostError, WorkflowFailedError) as error:
            job.failed_on.append(server.url)
            if len(job.failed_on) >= tries:
                job.future.set_result(Result(job.path, error=str(error), server=server.url))
            else:
                jobs.put_nowait(job)
        except OSError as error:  # the image was not read
            job.future.set_result(Result(job.path, error=str(error)))


async def answered(future: "asyncio.Future[Result]", pool: Sequence[Server], patience: float) -> Result:
    """The result, unless all servers are away for too long."""
    last = time.monotonic()
    while not future.done():
        await asyncio.wait([future], timeout=min(1.0, patience))
        if any(server.up.is_set() for server in pool):
            last = time.monotonic()
        elif time.monotonic() - last > patience:
            raise ServerLostError(f"none of the servers answers: {', '.join(server.url for server in pool)}")
    return future.result()


async def run(chosen: argparse.Namespace) -> int:
    """Run the command: download the results, and say how it goes. Returns the exit status."""
    graph, done, failed = json.loads(chosen.workflow.read_text(encoding="utf-8")), [], 0
    chosen.output.mkdir(parents=True, exist_ok=True)

    def report(result: Result) -> None:
        done.append(result)
        sys.stderr.write(f"\r{len(done)} of {len(chosen.images)}, the last from {result.server} ")

    try:
        async for result in run_all(graph, chosen.images, chosen.servers, chosen.in_flight, report=report):
            failed += bool(result.error)
            if result.error:
                sys.stderr.write(f"\n{result.path}: {result.error}\n")
            for name, content in result.files:
                (chosen.output / f"{result.path.stem}_{name}").write_bytes(content)
    except ServerLostError as error:
        sys.stderr.write(f"\n{error}\n")
        return 2
    sys.stderr.write("\n")
    return 1 if failed else 0


def main() -> int:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path, help="in API format, with one Load Image node or example image")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--servers", nargs="+", default=["http://127.0.0.1:8188"], metavar="URL")
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="FOLDER")
    parser.add_argument("--in-flight", type=int, default=2, metavar="N", help="workflows that a server has at a time")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())

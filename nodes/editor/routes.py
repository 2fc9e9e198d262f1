"""The prompt editor's server half: routes on ComfyUI's server, where there is one."""

import asyncio
import base64
import ipaddress
import json
import logging
import sys
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...sam import SAMError
from ...utils.comfy import inside_comfyui
from ...utils.examples import example_path
from .alike import UNSURE, alike, parse_alike
from .contract import MOST_BYTES, WORK
from .data_set import accepted, opened
from .everything import DEFAULT_PRESET, everything, parse_everything
from .jobs import Job, RefusedError
from .preview import (
    Answer,
    Preview,
    Question,
    choice_of,
    count_frames,
    frame_image,
    parse_choice,
    parse_image,
    parse_question,
    parse_subject,
    text_of,
    tracked_image,
)
from .pyramid import begin_tiles, tile_of
from .text import check_keys
from .words import parse_words, words

log = logging.getLogger("samkit")

SCRIPTS = "samkit-scripts"  # the scripts' address where the folder's name makes none
_SUBJECT = {"image", "model"}
_CHOICE = {*_SUBJECT, "prompts", "object"}
_QUESTION = {*_CHOICE, "editor", "sequence", "form", "start", "place"}
_EVERYTHING = {*_SUBJECT, "preset", "editor"}
_ALIKE = {*_SUBJECT, "like", "editor"}
_WORDS = {"image", "grounding", "text", "editor"}


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    content_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Preview, Mapping[str, Any]], Awaitable[Reply]]


async def prepare(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/prepare`: encode an image, so that previews of it are quick."""
    check_keys(body, _SUBJECT, "the body")
    subject = parse_subject(body)
    await asyncio.get_running_loop().run_in_executor(None, begin_tiles, subject)
    ready = await preview.prepare(subject)
    height, width = ready.image.size
    said = {"width": width, "height": height, "frames": ready.frames, "seconds": ready.seconds, "stamp": ready.stamp}
    return _as_json(200, said)


async def ask(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/preview`: marks on an image to a mask as an image file, with its score, area and time as headers."""
    check_keys(body, _QUESTION, "the body")
    question = parse_question(body)
    return _as_png(question, await preview.ask(question))


async def look(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/look`: the same by second looks, as the detail of the prompts says; until it is ready, as `segments`."""
    check_keys(body, _QUESTION, "the body")
    question = parse_question(body)
    found = await preview.look(question)
    return _progress(found) if isinstance(found, Job) else _as_png(question, found)


def _as_png(question: Question, answer: Answer) -> Reply:
    headers = {
        "X-SAMKit-Sequence": str(question.sequence),
        "X-SAMKit-Score": f"{answer.score:.4f}",
        "X-SAMKit-Area": str(answer.area),
        "X-SAMKit-Milliseconds": f"{answer.milliseconds:.1f}",
        "X-SAMKit-Stamp": answer.stamp,
        "Cache-Control": "no-store",
    }
    if answer.place is not None:
        headers["X-SAMKit-Place"] = " ".join(map(str, answer.place))
    if answer.looked is not None:
        headers["X-SAMKit-Look"] = "sharper" if answer.looked.sharper else "other" if answer.looked.kept else "alike"
    return Reply(200, answer.content_type, answer.file, headers)


async def choices(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/candidates`: SAM's candidates for an object, each with a small PNG in base64, its score and area."""
    check_keys(body, _CHOICE, "the body")
    found = await preview.choices(parse_choice(body))
    listed = [{**asdict(one), "png": base64.b64encode(one.png).decode()} for one in found]
    return _as_json(200, {"candidates": listed})


async def segments(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/segments`: all segments of an image; until they are ready, how far the work is. Posted again and again."""
    check_keys(body, _EVERYTHING, "the body")
    subject, editor, preset = parse_everything(body)
    key, work = await asyncio.get_running_loop().run_in_executor(None, everything, subject, preset)
    found = await preview.jobs.ask("segments", key, work, editor)
    return _progress(found) if isinstance(found, Job) else Reply(200, "application/json", found)


async def find_alike(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/alike`: the segments of an image that resemble an object that is marked; until then as `segments`."""
    check_keys(body, _ALIKE, "the body")
    wanted = parse_alike(body)
    loop = asyncio.get_running_loop()
    key, work = await loop.run_in_executor(None, everything, wanted.subject, DEFAULT_PRESET, UNSURE)
    found = await preview.jobs.ask("segments", key, work, wanted.editor)
    if isinstance(found, Job):
        return _progress(found)
    mask = await preview.mask(wanted.like)
    here, there = await preview.prepare(wanted.subject), await preview.prepare(wanted.like.subject)
    comparison = alike(wanted, found, here, there, mask)
    found = await preview.jobs.ask("alike", (key, there.image.key, wanted.key), comparison, wanted.editor)
    return _progress(found) if isinstance(found, Job) else Reply(200, "application/json", found)


async def find_words(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/words`: boxes of the objects that a text names; until they are ready, as `segments`."""
    check_keys(body, _WORDS, "the body")
    wanted = parse_words(body)
    key, work = await asyncio.get_running_loop().run_in_executor(None, words, wanted)
    found = await preview.jobs.ask("words", key, work, wanted.editor)
    return _progress(found) if isinstance(found, Job) else _as_json(200, {"boxes": found.boxes})


async def frames(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/frames`: how many frames an image has."""
    check_keys(body, {"image"}, "the body")
    subject = parse_image(body)
    return _as_json(200, {"frames": await asyncio.get_running_loop().run_in_executor(None, count_frames, subject)})


async def tracked(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/tracked`: a mask of SAM Track's last run as an image file, with its area as a header."""
    file, kind, area = await asyncio.get_running_loop().run_in_executor(None, tracked_image, body)
    return Reply(200, kind, file, {"X-SAMKit-Area": str(area), "Cache-Control": "no-store"})


async def open_data_set(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/data_set`: an image of a data set, with its objects as the editor's text."""
    return _as_json(200, await asyncio.get_running_loop().run_in_executor(None, opened, body))


async def accept(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/accept`: the objects of such an image, written back into the data set."""
    return _as_json(200, await asyncio.get_running_loop().run_in_executor(None, accepted, body))


def _progress(job: Job) -> Reply:
    return _as_json(202, {"progress": min(1.0, job.done / job.total) if job.total else 0.0})


async def leave(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/cancel`: the editor waits no longer for one kind of work; what nobody waits for ends."""
    check_keys(body, {"editor", "work"}, "the body")
    editor, work = text_of(body, "editor"), choice_of(body, "work", WORK)
    (preview.looks if work == "look" else preview.jobs).leave(editor, work)
    return _as_json(200, {})


ROUTES: dict[str, Handler] = {
    "/samkit/prepare": prepare,
    "/samkit/preview": ask,
    "/samkit/look": look,
    "/samkit/candidates": choices,
    "/samkit/segments": segments,
    "/samkit/alike": find_alike,
    "/samkit/words": find_words,
    "/samkit/frames": frames,
    "/samkit/tracked": tracked,
    "/samkit/data_set": open_data_set,
    "/samkit/accept": accept,
    "/samkit/cancel": leave,
}


async def reply_to(handler: Handler, preview: Preview, content_type: str, body: bytes | None) -> Reply:
    """Check what every request must be, and turn refusals into statuses.

    Args:
        handler: of the route.
        preview: the engine.
        content_type: of the request.
        body: of the request; None where it is larger than `MOST_BYTES`.
    """
    if body is None:
        return _error(413, f"the request has more than {MOST_BYTES} bytes.")
    # A page of another site can post text without asking; JSON it cannot (the browser asks first, and is refused).
    if content_type != "application/json":
        return _error(400, f"Content-Type is {content_type[:80]!r}: it must be application/json.")
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return _error(400, "the body is not JSON.")
    if not isinstance(parsed, dict):
        return _error(400, "the body must be a JSON object.")
    try:
        return await handler(preview, parsed)
    except RefusedError as refusal:
        return _error(refusal.status, str(refusal), missing=refusal.missing)
    except SAMError as error:
        return _error(400, str(error))


def _error(status: int, text: str, **more: Any) -> Reply:
    return _as_json(status, {"error": text, **{key: value for key, value in more.items() if value is not None}})


def _as_json(status: int, value: dict[str, Any]) -> Reply:
    return Reply(status, "application/json", json.dumps(value).encode())


def register_routes() -> None:
    """Add the routes to ComfyUI's server; does nothing where there is none (pytest, a script, a notebook)."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if not inside_comfyui() or getattr(server, "instance", None) is None:
        return
    serve_scripts(Path(__file__).parents[2], getattr(sys.modules.get("nodes"), "EXTENSION_WEB_DIRS", {}))
    preview = Preview()
    for path, handler in ROUTES.items():
        server.instance.routes.post(path)(_aiohttp_handler(handler, preview))
    server.instance.routes.get("/samkit/examples/{name}")(_example)
    server.instance.routes.get("/samkit/frame")(_on_get(frame))
    server.instance.routes.get("/samkit/tile")(_on_get(tile))


def serve_scripts(folder: Path, web_folders: MutableMapping[str, str]) -> None:
    """Give the pack's scripts an address that works, and say so, where ComfyUI cannot serve them below the folder's name.

    ComfyUI puts the name into a URL as it is, and answers 404 to every file of a pack whose name a URL would write otherwise.

    Args:
        folder: the pack's.
        web_folders: ComfyUI's `EXTENSION_WEB_DIRS`, name to folder.
    """
    if urllib.parse.quote(folder.name) == folder.name:
        return
    web_folders.setdefault(SCRIPTS, str(folder / "web"))
    log.warning(
        "SAM Kit is in the folder %r. ComfyUI does not serve files from a folder whose name has spaces, brackets or "
        "non-ASCII letters: the help pages are missing, and the browser reports errors. Rename the folder to samkit and "
        "restart ComfyUI.",
        folder.name,
    )


def is_foreign(host: str, origin: str, listen: str) -> bool:
    """Whether a request came under a name that a server on the local machine does not have: DNS rebinding, by which a page of
    another site reaches 127.0.0.1 as its own host, and so passes ComfyUI's check of the origin.

    Args:
        host, origin: the headers.
        listen: ComfyUI's addresses. On others than loopback it may have any name, and nothing is foreign.
    """
    if not all(_is_local(address.strip()) for address in listen.split(",")):
        return False
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    behind_proxy = origin.startswith("https://")  # a page of another site cannot make the local server speak TLS for its name
    return not (_is_local(name) or _is_address(name) or behind_proxy)


def _is_local(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _listen() -> str:
    """The addresses that ComfyUI listens on."""
    from comfy.cli_args import args

    return args.listen


def _aiohttp_handler(handler: Handler, preview: Preview) -> Callable[[Any], Awaitable[Any]]:
    from aiohttp import web

    async def answer(request: web.Request) -> Reply:
        if is_foreign(request.headers.get("Host", ""), request.headers.get("Origin", ""), _listen()):
            return _error(403, "ComfyUI does not listen on this name. Start it with --listen, or open it as http://127.0.0.1.")
        try:
            body = None if (request.content_length or 0) > MOST_BYTES else await _read(request)
        except (web.RequestPayloadError, ConnectionError) as error:  # packed wrongly, or the client has hung up
            return _error(400, f"the body cannot be read: {type(error).__name__}.")
        return await reply_to(handler, preview, request.content_type, body)

    async def handle(request: web.Request) -> web.Response:
        reply = await answer(request)
        return web.Response(status=reply.status, body=reply.body, content_type=reply.content_type, headers=reply.headers)

    return handle


async def _example(request: Any) -> Any:
    """`GET /samkit/examples/<name>`: an example image, for the editor's canvas."""
    from aiohttp import web

    path = example_path(request.match_info["name"])
    return web.Response(status=404) if path is None else web.FileResponse(path)


_MOST_SIDE = 512  # pixels of a thumbnail


async def frame(query: Mapping[str, str]) -> Reply:
    """`GET /samkit/frame`: a frame of an image file, named as in `parse_image`; with a `side` above 0 a thumbnail."""
    return await _part(query, ("side",), lambda subject, side: frame_image(subject, min(side, _MOST_SIDE)))


async def tile(query: Mapping[str, str]) -> Reply:
    """`GET /samkit/tile`: a tile of an image file, named as in `parse_image`, by its `level`, `column` and `row`."""
    return await _part(query, ("level", "column", "row"), tile_of)


async def _part(query: Mapping[str, str], names: tuple[str, ...], work: Callable[..., tuple[bytes, str]]) -> Reply:
    """What some work makes of an image that an address names, and of the address's numbers of some names, from 0."""
    numbers = {name: query.get(name, "0") for name in ("frame", *names)}
    try:
        if not all(number.isdecimal() and len(number) < 8 for number in numbers.values()):
            return _error(400, f"{', '.join(('frame', *names[:-1]))} and {names[-1]} must be whole numbers.")
        named = {name: query[name] for name in ("filename", "subfolder", "type") if name in query}
        subject, *values = (
            parse_image({"image": {**named, "frame": int(numbers["frame"])}}),
            *(int(numbers[name]) for name in names),
        )
        image, kind = await asyncio.get_running_loop().run_in_executor(None, work, subject, *values)
    except RefusedError as refusal:
        return _error(refusal.status, str(refusal))
    except SAMError as error:
        return _error(400, str(error))
    return Reply(200, kind, image, {"Cache-Control": "max-age=3600"})  # the address has what tells the file's content


def _on_get(handler: Callable[[Mapping[str, str]], Awaitable[Reply]]) -> Callable[[Any], Awaitable[Any]]:
    from aiohttp import web

    async def handle(request: web.Request) -> web.Response:
        if is_foreign(request.headers.get("Host", ""), request.headers.get("Origin", ""), _listen()):
            return web.Response(status=403)
        reply = await handler(request.query)
        return web.Response(status=reply.status, body=reply.body, content_type=reply.content_type, headers=reply.headers)

    return handle


async def _read(request: Any) -> bytes | None:
    """The body, or None where it turns out too large (a chunked one does not say beforehand)."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)

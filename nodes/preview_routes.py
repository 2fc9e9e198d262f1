"""The prompt editor's server half: two routes on ComfyUI's server, where there is one."""

import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..sam import SAMError
from ..utils.comfy import inside_comfyui
from .preview import Preview, RefusedError, parse_question, parse_subject

MOST_BYTES = 256 << 10  # a thousand marks take 60 KB
_SUBJECT = {"image", "model"}
_QUESTION = {*_SUBJECT, "prompts", "editor", "sequence"}


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
    _check_keys(body, _SUBJECT)
    ready = await preview.prepare(parse_subject(body))
    height, width = ready.embedding.original_size
    return _as_json(200, {"width": width, "height": height, "frames": ready.frames, "seconds": ready.seconds})


async def ask(preview: Preview, body: Mapping[str, Any]) -> Reply:
    """`POST /samkit/preview`: marks on an image to a mask as PNG, with its score, area and time as headers."""
    _check_keys(body, _QUESTION)
    question = parse_question(body)
    answer = await preview.ask(question)
    headers = {
        "X-SAMKit-Sequence": str(question.sequence),
        "X-SAMKit-Score": f"{answer.score:.4f}",
        "X-SAMKit-Area": str(answer.area),
        "X-SAMKit-Milliseconds": f"{answer.milliseconds:.1f}",
        "Cache-Control": "no-store",
    }
    return Reply(200, "image/png", answer.png, headers)


ROUTES: dict[str, Handler] = {"/samkit/prepare": prepare, "/samkit/preview": ask}


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
        return _error(refusal.status, str(refusal))
    except SAMError as error:
        return _error(400, str(error))


def _check_keys(body: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(body.keys() - known)
    if unknown:
        raise SAMError(f"the body has an unknown key {unknown[0][:40]!r}.")


def _error(status: int, text: str) -> Reply:
    return _as_json(status, {"error": text})


def _as_json(status: int, value: dict[str, Any]) -> Reply:
    return Reply(status, "application/json", json.dumps(value).encode())


def register_routes() -> None:
    """Add the routes to ComfyUI's server; does nothing where there is none (pytest, a script, a notebook)."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if not inside_comfyui() or getattr(server, "instance", None) is None:
        return
    preview = Preview()
    for path, handler in ROUTES.items():
        server.instance.routes.post(path)(_aiohttp_handler(handler, preview))


def _aiohttp_handler(handler: Handler, preview: Preview) -> Callable[[Any], Awaitable[Any]]:
    from aiohttp import web

    async def handle(request: web.Request) -> web.Response:
        try:
            body = None if (request.content_length or 0) > MOST_BYTES else await _read(request)
        except (web.RequestPayloadError, ConnectionError) as error:  # packed wrongly, or who asked has hung up
            reply = _error(400, f"the body cannot be read: {type(error).__name__}.")
        else:
            reply = await reply_to(handler, preview, request.content_type, body)
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

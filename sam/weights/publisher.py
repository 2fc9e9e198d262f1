"""A file from its publisher's own address, taken up again where it ended as far as the server allows that."""

import http.client
import logging
import os
import re
import stat
import urllib.request
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.error import HTTPError

from ...utils.comfy import Progress
from ..errors import SAMError
from . import network
from .registry import RemoteFile

log = logging.getLogger("samkit")
_CHUNK = 1 << 20
_ATTEMPTS = 5
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def fetch_from_publisher(remote: RemoteFile, staging: Path) -> Path:
    """Transfer `remote.url` to a file in `staging`; what an earlier call left there is continued.

    A transfer that breaks off is taken up again as long as each attempt brings something.

    Returns:
        The file, whole as far as the server says, and not verified.

    Raises:
        SAMError, or one of `network_errors()`: what was transferred so far stays for the next call.
    """
    part = staging / f"{remote.name.replace('/', '_')}.part"  # no checkpoint's ending: half a file must not be listed as one
    log.info("downloading %s (%.0f MB) from %s", remote.name, (remote.size or 0) / 1e6, remote.url)
    progress = Progress(remote.size or 0)
    for attempt in range(1, _ATTEMPTS + 1):
        before = _size(part)
        try:
            _transfer(remote, part, progress)
            return part
        except (OSError, http.client.HTTPException) as error:
            is_over = isinstance(error, HTTPError) or network.is_disk_full(error)
            if is_over or attempt == _ATTEMPTS or _size(part) <= before:
                raise
            log.warning("%s: %s after %d bytes; continuing", remote.name, network.said(error), _size(part))
    raise SAMError(f"{remote.url} closed the connection {_ATTEMPTS} times")  # not reached: the last attempt returns or raises


def _transfer(remote: RemoteFile, part: Path, progress: Progress) -> None:
    """One request: append what is missing to `part`, or write it anew where the server does not continue."""
    validator = part.with_name(f"{part.name}.etag")
    with open_own(part) as file:
        have = file.seek(0, os.SEEK_END)
        with _request(str(remote.url), have, _read(validator)) as response:
            start, total = _extent(response, have)
            if remote.size and total not in (None, remote.size):
                raise SAMError(f"{remote.url} offers {total} bytes, but the file has {remote.size}")
            with open_own(validator) as tag:
                tag.truncate()
                tag.write(_validator(response))
            file.truncate(start)
            file.seek(start)
            progress.advance(start)
            _copy(response, file, total or remote.size, progress)


def _request(url: str, have: int, validator: str) -> Any:
    headers = {"User-Agent": "samkit", "Accept-Encoding": "identity"}
    more = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
    try:
        return _opener.open(urllib.request.Request(url, headers=headers | more), timeout=network.STALL)
    except HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not more:
            raise
        return _opener.open(urllib.request.Request(url, headers=headers), timeout=network.STALL)


def _extent(response: Any, have: int) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how many bytes the whole file has, if the server says so."""
    if response.status == http.client.PARTIAL_CONTENT:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise SAMError(f"{response.url} does not continue at byte {have}")
        return have, int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _copy(response: Any, file: BinaryIO, total: int | None, progress: Progress) -> None:
    while chunk := response.read1(_CHUNK):  # not read: what has arrived before a stall would be lost
        Progress.check_interrupted()
        file.write(chunk)
        progress.advance(len(chunk))
        if total is not None and file.tell() > total:
            file.truncate(0)
            raise SAMError(f"{response.url} sends more than the expected {total} bytes")
    if total is not None and file.tell() < total:
        raise ConnectionError(f"{response.url} ended after {file.tell()} of {total} bytes")


def _validator(response: Any) -> bytes:
    """What proves to the server that both halves are of one file: a strong ETag, else the date."""
    etag = response.headers.get("ETag", "")
    return (etag if etag.startswith('"') else response.headers.get("Last-Modified", "")).encode("latin-1", "ignore")


def _read(validator: Path) -> str:
    with open_own(validator) as file:
        text = file.read(1000).decode("latin-1")
    return text if text.isprintable() else ""


def _size(part: Path) -> int:
    return part.lstat().st_size if part.exists() else 0


def open_own(path: Path) -> BinaryIO:
    """Open a file of ours to read and write, made where it is missing; a link, or a file with a second name, is replaced."""
    try:
        descriptor = os.open(path, os.O_RDWR | _NO_FOLLOW)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and not path.is_symlink():
            return os.fdopen(descriptor, "r+b")
        os.close(descriptor)
    except OSError:  # missing, or a link
        pass
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o644), "r+b")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To another host, as mirrors do (the hash decides), but never to another kind of address or out of TLS."""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request to follow.

        Raises:
            SAMError: `newurl` is less than what was asked for.
        """
        if not newurl.startswith(("https://", f"{req.type}://")):
            raise SAMError(f"{req.full_url} redirects to {newurl[:100]}, which is not allowed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = urllib.request.build_opener(_Redirects)

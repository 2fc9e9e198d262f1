"""What a network can raise, and what a user is told of it."""

import errno
import http.client
import os
import sys

PATIENCE = 5.0
"""Seconds for a hub to answer what it has: a dead one costs this, once, before the next source is tried."""

STALL = 30.0
"""Seconds without a byte after which a transfer is given up, or taken up again."""

# Which library carries the hub's requests depends on its version; the errors of none of these are all OSErrors.
_LIBRARIES = {
    "httpx": ("HTTPError", "InvalidURL", "CookieConflict"),
    "httpx2": ("HTTPError", "InvalidURL", "CookieConflict"),
    "requests.exceptions": ("RequestException",),
    "huggingface_hub.errors": ("EntryNotFoundError", "RevisionResolutionError", "XetDownloadError"),
}
# Sockets, TLS and timeouts (OSError); addresses and JSON (ValueError); answers of another form than the library expects.
_BUILT_IN = (OSError, EOFError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, http.client.HTTPException)


def network_errors() -> tuple[type[Exception], ...]:
    """Every way in which a request fails, of the libraries that are loaded; never a user's Cancel."""
    found = (
        getattr(sys.modules[module], name, None)
        for module, names in _LIBRARIES.items()
        if module in sys.modules
        for name in names
    )
    return (*_BUILT_IN, *(error for error in found if error is not None))


def said(error: Exception) -> str:
    """The first line of an error, or its kind where it has no text."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line[:300].rstrip(".") or type(error).__name__


def is_disk_full(error: Exception) -> bool:
    """Whether it was the disk, and not the network: no other source helps."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_offline() -> bool:
    """Whether the user forbids asking the hub, as huggingface_hub reads it; that looks only once, at its import."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def endpoint() -> str | None:
    """The hub's address where the user set another one; huggingface_hub itself looks only once, at its import."""
    return os.environ.get("HF_ENDPOINT") or None

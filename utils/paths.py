"""Names from outside that become paths."""

import re

_LONGEST, _LONGEST_PART = 1000, 200
_ODD = re.compile(r'[\\:*?"<>|]|[. ]$|^\.|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)  # on Windows, or hidden


def is_plain(name: str) -> bool:
    """Whether a relative path with `/` means the same on every system, and stays below the folder that it is put in."""
    return len(name) <= _LONGEST and all(map(_is_plain_part, name.split("/")))


def _is_plain_part(part: str) -> bool:
    return bool(part) and part.isprintable() and not _ODD.search(part) and len(part.encode()) <= _LONGEST_PART

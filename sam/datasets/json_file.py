"""JSON files of data sets."""

import json
from pathlib import Path
from typing import Any

from ..errors import SAMError


def as_json(value: Any) -> bytes:
    """JSON as it is written here: compact, text as it is, a line end at its end."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


def read_json(path: Path, lists: tuple[str, ...]) -> dict[str, Any] | None:
    """A JSON object that has these lists; None where there is no such file.

    Raises:
        SAMError: the file holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise SAMError(f"{path} is not JSON, and was left as it is: choose another name. ({error})") from error
    if not isinstance(value, dict) or not all(isinstance(value.get(name), list) for name in lists):
        raise SAMError(f"{path} has no {' and '.join(lists)}, and was left as it is: choose another name.")
    return value

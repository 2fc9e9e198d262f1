"""The one error type that user input can cause."""

from collections.abc import Callable
from typing import Any


class SAMError(ValueError):
    """Bad input: the text says what was wrong, with the value seen, and what to do about it."""

    # ComfyUI's error dialog begins with the module's name, which for a custom node is a path of the file system.
    __module__ = "samkit"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Pickle by a function, which is found where it is defined; there need not be a module of the short name."""
        return _rebuild, (None if type(self) is SAMError else type(self), self.args), dict(vars(self))


def _rebuild(kind: type[SAMError] | None, args: tuple[Any, ...]) -> SAMError:
    made = (kind or SAMError).__new__(kind or SAMError, *args)
    made.args = args
    return made

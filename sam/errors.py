"""The runtime's error type; it is defined on the lowest floor because the parsers there raise it too."""

from ..utils.errors import SAMError

__all__ = ["SAMError"]

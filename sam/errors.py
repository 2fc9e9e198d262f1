"""The runtime's error types; the first is defined on the lowest floor because the parsers there raise it too."""

from ..utils.errors import SAMError

__all__ = ["BusyError", "SAMError"]


class BusyError(SAMError):
    """Work that can wait, refused because ComfyUI has begun to run a prompt on the same device."""

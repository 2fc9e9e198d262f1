"""What ComfyUI is doing: whether it is there, what it runs, its progress bar and interruption; a stand-in for each outside it.

This module, `comfy_folders` and `comfy_files` are the only door to ComfyUI. It is imported inside functions, and only when it
is already running in this process: the pack must load in pytest, in a script and in a notebook, where a folder of that name
on `sys.path` must not be started by accident.
"""

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKS = "custom_nodes"

_is_quiet: ContextVar[bool] = ContextVar("samkit_is_quiet", default=False)
_watch: ContextVar["Watch | None"] = ContextVar("samkit_watch", default=None)


def inside_comfyui() -> bool:
    """Whether this process is a ComfyUI server (its `folder_paths` is loaded before any custom node)."""
    return "folder_paths" in sys.modules


def pack_of(kind: type) -> str | None:
    """The folder below ComfyUI's `custom_nodes` that a class comes from; None for one of ComfyUI or of a library."""
    module = sys.modules.get(kind.__module__)
    code = next((part.__code__ for part in vars(kind).values() if hasattr(part, "__code__")), None)
    file = getattr(module, "__file__", None) or (code.co_filename if code else "")
    folders = Path(file).parts[:-1]
    place = folders.index(_PACKS) + 1 if _PACKS in folders else len(folders)
    return folders[place] if place < len(folders) else None


def is_running() -> bool:
    """Whether ComfyUI is executing a prompt now."""
    server = sys.modules.get("server")
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    return instance is not None and bool(instance.prompt_queue.currently_running)


def is_connected(output: int) -> bool | None:
    """Whether the running prompt connects an output of the node that ComfyUI is calling now, in `IS_CHANGED` or to run it.

    None where that cannot be known: outside ComfyUI, and for nodes that others make while a prompt runs.

    ComfyUI gives a node its hidden inputs `PROMPT` and `UNIQUE_ID` when it runs, but `PROMPT` is empty in `IS_CHANGED`, which
    has to know the same: the cache of results would hand on what was made before the output was connected.
    """
    node, prompt = _running_node()
    if node not in prompt:
        return None
    links = [value for other in prompt.values() for value in other.get("inputs", {}).values()]
    return any(isinstance(link, list) and link == [node, output] for link in links)


def _running_node() -> tuple[str | None, dict[str, Any]]:
    """The node that ComfyUI is calling now, and the prompt that it belongs to."""
    context = getattr(sys.modules.get("comfy_execution.utils"), "get_executing_context", lambda: None)()
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if context is None or instance is None:
        return None, {}
    running = list(instance.prompt_queue.currently_running.values())
    prompts = [item[2] for item in running if item[1] == context.prompt_id]
    return context.node_id, prompts[0] if prompts else {}


@dataclass
class Watch:
    """Somebody who follows work that is not the queue's, and may end it by an error that `check` raises.

    Attributes:
        total: steps of the whole work; 0 until it has begun. Parts of it, which have steps of their own, do not show.
        done: steps.
    """

    total: int = 0
    done: int = 0

    def check(self) -> None:
        """Raise to end the work."""


@contextlib.contextmanager
def quietly(watch: Watch | None = None) -> Iterator[None]:
    """In the body, work is not the queue's: it moves no progress bar, and does not answer (and so swallow) a Cancel.

    Args:
        watch: follows the work.
    """
    tokens = _is_quiet.set(True), _watch.set(watch)
    try:
        yield
    finally:
        _is_quiet.reset(tokens[0])
        _watch.reset(tokens[1])


def is_quiet() -> bool:
    """Whether this is the body of a `quietly`."""
    return _is_quiet.get()


class Progress:
    """ComfyUI's progress bar and interruption; does nothing outside ComfyUI, or `quietly`.

    Args:
        total: number of steps (or bytes) to come; None: it has no bar, since what it belongs to has one.
    """

    def __init__(self, total: int | None) -> None:
        self._bar, self._watch = None, None
        watch = _watch.get()
        if watch is not None and total is not None and not watch.total:
            self._watch, watch.total = watch, total
        if total is not None and inside_comfyui() and not _is_quiet.get():
            import comfy.utils

            self._bar = comfy.utils.ProgressBar(total)

    def advance(self, steps: int = 1) -> None:
        """Move the bar on by `steps`."""
        if self._bar is not None:
            self._bar.update(steps)
        if self._watch is not None:
            self._watch.done += steps

    @staticmethod
    def is_interrupted() -> bool:
        """Whether the user pressed Cancel. It stays so: ComfyUI ends the run before the next node."""
        if not inside_comfyui() or _is_quiet.get():
            return False
        import comfy.model_management

        return comfy.model_management.processing_interrupted()

    @staticmethod
    def check_interrupted() -> None:
        """Raise ComfyUI's own exception if the user pressed Cancel; never to be caught here. Of a `Watch`, its own."""
        watch = _watch.get()
        if watch is not None:
            watch.check()
        if inside_comfyui() and not _is_quiet.get():
            import comfy.model_management

            comfy.model_management.throw_exception_if_processing_interrupted()

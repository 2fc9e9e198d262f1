"""The editor's work beside ComfyUI's queue: what is refused, how it stays quiet, and jobs that take long, which can be left."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...sam import BusyError, SAMError
from ...utils.comfy import Watch, is_running, quietly

log = logging.getLogger("samkit")

_CACHED = 4  # results
_PAUSE = 0.3  # seconds until a request for what is not ready is answered with how far it is
_PATIENCE = 10.0  # seconds without a request, after which nobody waits any longer
Value = TypeVar("Value")


class RefusedError(SAMError):
    """A request that was understood and not done.

    Attributes:
        status: the HTTP status that says why.
        missing: the known checkpoint that a run would download; None where that is not the reason.
    """

    def __init__(self, status: int, text: str, missing: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.missing = missing


def check_idle() -> None:
    """Raise where a run has begun: it would lose the model, or its memory, to the editor."""
    if is_running():
        raise RefusedError(503, "ComfyUI is running a prompt. The preview continues when it is done.")


def run_quietly(work: Callable[[], Value], watch: Watch | None = None) -> Value:
    """Do the work, unless a run has begun since it was queued.

    Raises:
        RefusedError: 503, a run has begun; 500, memory ran out, as a rule.
    """
    check_idle()
    try:
        with quietly(watch):
            return work()
    except BusyError as error:
        raise RefusedError(503, str(error)) from error
    except (RuntimeError, MemoryError) as error:  # out of memory, as a rule
        log.warning("the prompt editor's preview failed", exc_info=True)
        raise RefusedError(500, f"the preview failed: {error}") from error


@dataclass
class Job(Watch):
    """Work that editors wait for; it ends where none does any more, and where a run begins.

    Attributes:
        kind: what a cancel names it by.
        waiting: editors, and when each has last asked.
    """

    kind: str = ""
    waiting: dict[str, float] = field(default_factory=dict)
    task: "asyncio.Future[Any] | None" = None

    def check(self) -> None:
        """Raise where it is not wanted any longer."""
        check_idle()
        if not any(time.monotonic() - asked < _PATIENCE for asked in list(self.waiting.values())):
            raise RefusedError(409, "Cancelled.")


class Jobs:
    """Long work by its key: begun by the first request, told of by the next ones; one after another."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "samkit-job")
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()

    async def ask(self, kind: str, key: Hashable, work: Callable[[], Value], editor: str) -> Value | Job:
        """The result, or, where it is not ready after a moment, the job, which says how far it is.

        Args:
            kind: see `leave`.
            key: what the work depends on.
            work: it.
            editor: who waits.

        Raises:
            RefusedError: 503, a run has begun; 409, cancelled; and what the work raises. The next request tries again.
        """
        key = kind, key
        self.leave(editor, kind, key)  # of each kind an editor waits for its latest request only
        job = self._jobs.get(key)
        if job is None:
            check_idle()
            job = self._begin(key, work, editor)
        job.waiting[editor] = time.monotonic()
        self._jobs.move_to_end(key)
        await asyncio.wait([job.task], timeout=_PAUSE)
        return job.task.result() if job.task.done() else job

    def _begin(self, key: tuple[str, Hashable], work: Callable[[], Any], editor: str) -> Job:
        for old in [old for old, job in self._jobs.items() if job.task.done()][: -_CACHED + 1]:
            del self._jobs[old]
        job = self._jobs[key] = Job(kind=key[0], waiting={editor: time.monotonic()})
        loop = asyncio.get_running_loop()
        job.task = loop.run_in_executor(self._worker, run_quietly, lambda: job.check() or work(), job)
        job.task.add_done_callback(lambda done: self._forget_failure(key, done))
        return job

    def _forget_failure(self, key: Hashable, task: "asyncio.Future[Any]") -> None:
        if (task.cancelled() or task.exception() is not None) and key in self._jobs and self._jobs[key].task is task:
            del self._jobs[key]

    def leave(self, editor: str, kind: str, but: Hashable = None) -> None:
        """An editor waits no longer for work of one kind, `but` for one; what no other editor waits for ends soon."""
        for key, job in self._jobs.items():
            if kind == job.kind and key != but:
                job.waiting.pop(editor, None)

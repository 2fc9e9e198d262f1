"""What has been done, on disk: a process that is killed at any moment goes on where it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ...utils.files import writing
from ..errors import SAMError
from .objects import Record

_VERSION = 1


class Journal:
    """Records of finished images, one line of JSON each, after a first line with the settings that they were made with.

    A line that a killed process has left unfinished is cut off. Use it as a context manager.

    Args:
        path: of the file, which need not be there.
        settings: all that the records depend on, besides the images; as JSON.

    Raises:
        SAMError: the file is not a journal, was made with other settings, or cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.records, self._stamps = path, {}, {}
        header = {"samkit_journal": _VERSION, "settings": json.loads(json.dumps(settings))}
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        lines = [self._parsed(line) for line in whole.splitlines()]
        if lines:
            self._check(lines[0], header)
        for line in lines[1:]:
            self.records[line["file_name"]], self._stamps[line["file_name"]] = line["record"], line["stamp"]
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)  # a buffer would try to write again when the file is closed
            self._file.truncate(len(whole))
        if not lines:
            self._write(header)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError as error:
            raise SAMError(
                f"{self.path} is not a journal of this command ({error}): move it away, or choose another output."
            ) from error

    def _check(self, found: Any, expected: dict[str, Any]) -> None:
        if not isinstance(found, dict) or found.get("samkit_journal") != _VERSION:
            raise SAMError(f"{self.path} is not a journal of this command: move it away, or choose another output.")
        old, new = found["settings"], expected["settings"]
        changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        if changed:
            seen = ", ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in changed[:3])
            raise SAMError(f"{self.path} was begun with other settings ({seen}): choose another output, or start afresh.")

    def has(self, file_name: str, stamp: Any) -> bool:
        """Whether an image is done, as it is now: `stamp` is what `add` was given."""
        return file_name in self.records and self._stamps[file_name] == stamp

    def add(self, file_name: str, stamp: Any, record: Record) -> None:
        """Record an image as done; on disk when this returns, as far as this process can tell.

        Raises:
            SAMError: the disk is full.
        """
        self._write({"file_name": file_name, "stamp": stamp, "record": record})
        self.records[file_name], self._stamps[file_name] = record, stamp

    def forget(self, file_name: str) -> None:
        """Record that an image's files are about to be removed: should it come back as it was, it has to be done again.

        Its record stays, so that a process that is killed now leaves nothing that the next one cannot remove.

        Raises:
            SAMError: the disk is full.
        """
        if self._stamps[file_name] is not None:
            self.add(file_name, None, self.records[file_name])

    def _write(self, line: Mapping[str, Any]) -> None:
        content = memoryview(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        with writing(self.path):
            while content:
                content = content[self._file.write(content) :]

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def recorded(path: Path, form: str) -> list[Record]:
    """The records of a journal that was begun with any settings, if these have the format `form`; none where it is not one."""
    try:
        first, *lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        return [line["record"] for line in lines] if first["settings"]["format"] == form else []
    except (OSError, ValueError, KeyError, TypeError):
        return []

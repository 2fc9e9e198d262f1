"""Files in ComfyUI's input, output and temp folders: found by its names for them, loaded, and saved as its own nodes save."""

import contextlib
import datetime
import glob
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from .comfy import Progress, inside_comfyui
from .comfy_folders import data_folder
from .errors import SAMError
from .examples import example_image, example_path
from .files import remove_parts, whole, writing
from .paths import is_plain
from .threads import WORKERS, in_threads

log = logging.getLogger("samkit")

IMAGE_FOLDERS = ("input", "output", "temp")
EXAMPLE = "example"  # stands beside these folders for the pack's own example images
_WAIT = 600  # seconds for another process that writes in the same place
_HEARD = 0.2  # seconds after which a wait hears a Cancel
_TICK_NS = 2_000_000_000  # of the coarsest file system's clock: a folder read so soon after a change may have changed again


class _ReadFolder(NamedTuple):
    """What was in a folder when it was read, and the times of its last change and of the reading, in nanoseconds."""

    changed: int
    read: int
    files: list[Path]
    folders: list[Path]


_folders_read: dict[Path, _ReadFolder] = {}


def image_path(filename: str, subfolder: str, kind: str) -> Path | None:
    """Full path of an image in one of ComfyUI's folders, or None where there is none, or where a link leads out of it.

    Like the list of ComfyUI's Load Image, it goes by the file's ending; a film is none, and would be read whole.

    Args:
        filename, subfolder: below the folder, as ComfyUI's own `/view` takes them.
        kind: one of `IMAGE_FOLDERS`, or `EXAMPLE` for an image of the pack's own.
    """
    if kind == EXAMPLE:
        return None if subfolder else example_path(filename)
    if not inside_comfyui() or kind not in IMAGE_FOLDERS:
        return None
    import folder_paths

    folder = Path(folder_paths.get_directory_by_type(kind)).resolve()
    try:
        path = (folder / subfolder / filename).resolve()
        is_image = folder_paths.filter_files_content_types([filename], ["image"])
        return path if is_image and path.is_relative_to(folder) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # names that no file system takes; a link that leads to itself
        return None


def is_linked_out(filename: str, subfolder: str, kind: str) -> bool:
    """Whether `image_path` has refused an image for a link that leads out of one of `IMAGE_FOLDERS`; Load Image follows it."""
    if not inside_comfyui() or kind not in IMAGE_FOLDERS or not is_plain(f"{subfolder}/{filename}".lstrip("/")):
        return False
    import folder_paths

    folder = Path(folder_paths.get_directory_by_type(kind))
    try:
        return not (folder / subfolder / filename).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # as in `image_path`
        return False


def files_ending(suffix: str, kinds: tuple[str, ...]) -> list[str]:
    """Names of the files with an ending in some of `IMAGE_FOLDERS`, as `annotated_path` takes them, sorted.

    A folder is read again only when its own time has changed, since every page of ComfyUI asks for this list.
    """
    found = []
    for kind in kinds:
        folder = data_folder(kind)
        paths = sorted(path for path in _listed(folder) if path.suffix == suffix)
        found += [f"{path.relative_to(folder).as_posix()} [{kind}]" for path in paths]
    return found


def _listed(folder: Path) -> list[Path]:
    """The files in a folder and below, as far as their names are text; none where it cannot be read. It follows no links."""
    try:
        changed, now = folder.stat().st_mtime_ns, time.time_ns()
        known = _folders_read.get(folder)
        if known is None or known.changed != changed or known.read - changed < _TICK_NS:
            entries = [one for one in os.scandir(folder) if one.name.isprintable()]
            files = [Path(one.path) for one in entries if one.is_file()]
            known = _ReadFolder(changed, now, files, [Path(one.path) for one in entries if one.is_dir(follow_symlinks=False)])
            _folders_read[folder] = known
    except OSError:
        return []
    return known.files + [file for inside in known.folders for file in _listed(inside)]


def annotated_path(name: str, kinds: tuple[str, ...], or_folder: bool = False) -> Path | None:
    """Full path of a file by a name such as `folder/file.ending [output]`; ComfyUI's form, which without a folder is `input`.

    None where there is none of that name in one of `kinds`, or where the name or a link leads out of its folder. A folder is
    found only where that is wanted.
    """
    inside, _, kind = name.removesuffix("]").rpartition(" [") if name.endswith("]") else (name, "", "input")
    try:
        folder = data_folder(kind).resolve() if kind in kinds else None
        path = folder and (folder / inside).resolve()
        is_inside = path is not None and path.is_relative_to(folder)
        return path if is_inside and (path.is_file() or (or_folder and path.is_dir())) else None
    except (OSError, ValueError, RuntimeError):  # as in `image_path`
        return None


@contextlib.contextmanager
def new_output(prefix: str, suffix: str) -> Iterator[tuple[Path, str]]:
    """A path in ComfyUI's output folder that is not taken, and its name for `annotated_path`; numbered as Save Image's are.

    The body writes the file by `whole`. Meanwhile no other process takes a number in this folder. Parts of files that killed
    processes have left there are removed.

    Args:
        prefix: of the name, see `save_place`.
        suffix: the ending, with its dot.

    Raises:
        SAMError: as `save_place` and `locked`.
    """
    folder, name, _ = save_place(prefix, (0, 0))
    with locked(folder / "samkit"):
        remove_parts(folder, f".*{suffix}")
        output = data_folder("output").resolve()
        _, _, number = save_place((folder.resolve() / name).relative_to(output).as_posix(), (0, 0))
        path = folder / f"{name}_{number:05}_{suffix}"
        yield path, f"{path.resolve().relative_to(output).as_posix()} [output]"


@contextlib.contextmanager
def locked(place: Path, wait: float = _WAIT) -> Iterator[None]:
    """In the body, this process alone may add to `place`; a process that ends gives the lock back. A Cancel ends the wait.

    The lock is an empty hidden file beside `place`, which stays there.

    Args:
        place: a file or folder, which need not be there.
        wait: seconds to wait for another process.

    Raises:
        SAMError: another process had it for that long, or the lock's file cannot be written.
    """
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        patience = time.monotonic() + wait
        while not lock.is_locked:
            try:
                lock.acquire(timeout=min(wait, _HEARD), poll_interval=0.05)
            except Timeout as error:
                Progress.check_interrupted()
                if time.monotonic() >= patience:
                    message = f"{place} is being written by another process: wait for it, or choose another name."
                    raise SAMError(message) from error
            except NotImplementedError as error:
                raise SAMError(f"{place} is on a disk without file locks: choose another place.") from error
    try:
        yield
    finally:
        lock.release()


def load_image_file(path: Path, kind: str) -> Any:
    """The IMAGE that ComfyUI's Load Image gives for a file that `image_path` has found in the folder `kind`.

    Raises:
        OSError, ValueError, RuntimeError: the file is not an image.
    """
    if kind == EXAMPLE:
        return example_image(path.name)
    import folder_paths

    import nodes

    inside = path.relative_to(Path(folder_paths.get_directory_by_type(kind)).resolve())
    return nodes.LoadImage().load_image(f"{inside.as_posix()} [{kind}]")[0]


def save_temporary(frames: Iterable[np.ndarray]) -> list[dict[str, str]]:
    """Save images uint8 `[H, W, 3]` as PNG where the browser can fetch them, named by their content.

    Returns:
        ComfyUI's names of them (`filename`, `subfolder`, `type`), in order; none outside ComfyUI, or where they cannot be
        written: they are for the browser, and a run does not end because of them.
    """
    return _saved_to_show(map(Image.fromarray, frames), "samkit_", ".png", {"compress_level": 1})


def save_results(images: list[Image.Image]) -> list[dict[str, str]]:
    """Save small RGB images for a node to show after its run, as JPEG; else as `save_temporary`."""
    return _saved_to_show(images, "samkit_result_", ".jpg", {"quality": 85})


def _saved_to_show(images: Iterable[Image.Image], start: str, ending: str, options: dict[str, int]) -> list[dict[str, str]]:
    if not inside_comfyui():
        return []
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())

    def name_of(image: Image.Image) -> str:
        return f"{start}{hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:32]}{ending}"

    def save(named: tuple[str, Image.Image]) -> None:
        name, image = named
        try:
            if not (folder / name).is_file():
                with whole(folder / name) as part:
                    image.save(part, format=Image.registered_extensions()[ending], **options)
        except SAMError:
            if not (folder / name).is_file():  # else another process has just written the same
                raise

    names, rest = [], iter(images)
    try:
        while some := list(islice(rest, WORKERS)):
            new = in_threads(name_of, some)
            in_threads(save, dict(zip(new, some, strict=True)).items())
            names += new
    except SAMError as error:
        log.warning("The images are not shown: %s", error)
        return []
    return [{"filename": name, "subfolder": "", "type": "temp"} for name in names]


def save_place(prefix: str, size: tuple[int, int]) -> tuple[Path, str, int]:
    """Where ComfyUI's Save Image would put the next file of a prefix: its folder, name and number. The folder is made.

    Args:
        prefix: below the output folder; `%date:yyyy-MM-dd%`, which ComfyUI's browser fills in for its own nodes, is filled in,
            and so are `%width%`, `%height%` and parts of the date such as `%year%` inside ComfyUI.
        size: (H, W) of the image.

    Raises:
        SAMError: the prefix is not a plain name, a link leads out of the folder, or the folder cannot be made.
    """
    output = data_folder("output")
    prefix = re.sub(r"%date:([^%]*)%", lambda found: _dated(found[1], datetime.datetime.now()), prefix)
    if not is_plain(prefix):
        raise SAMError(
            f"filename_prefix is {prefix[:80]!r}: use a plain name below ComfyUI's output folder, such as samkit/name, "
            'without any of \\ : * ? " < > |.'
        )
    if not (output / prefix).parent.resolve().is_relative_to(output.resolve()):
        raise SAMError(f"filename_prefix is {prefix[:80]!r}: a link leads out of ComfyUI's output folder.")
    with writing((output / prefix).parent):
        if inside_comfyui():
            import folder_paths

            folder, name, number, *_ = folder_paths.get_save_image_path(prefix, str(output), size[1], size[0])
            return Path(folder), name, number
        path = output / prefix
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = [one.name[len(path.name) + 1 :].split("_")[0] for one in path.parent.glob(f"{glob.escape(path.name)}_*")]
        return path.parent, path.name, 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)


def _dated(form: str, now: datetime.datetime) -> str:
    """A date in the form that ComfyUI's browser takes: d, M, h, m and s, once or twice, and yy or yyyy."""
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}
    year = {2: f"{now.year % 100:02}", 3: "yyy", 4: f"{now.year:04}"}

    def filled(found: re.Match[str]) -> str:
        token = found[0]
        return year[len(token)] if token[0] == "y" else f"{parts[token[0]]:0{len(token)}}"

    return re.sub(r"dd?|MM?|hh?|mm?|ss?|yyy?y?", filled, form)

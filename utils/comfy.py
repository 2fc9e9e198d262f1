"""The only door to ComfyUI's folders, progress bar and interruption, with a stand-in for each outside ComfyUI.

ComfyUI is imported inside functions, and only when it is already running in this process: the pack must load in pytest,
in a script and in a notebook, where a folder of that name on `sys.path` must not be started by accident.
"""

import contextlib
import datetime
import glob
import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from .errors import SAMError
from .examples import example_image, example_path
from .files import remove_parts, whole, writing
from .paths import is_plain

log = logging.getLogger("samkit")

PACK = Path(__file__).resolve().parent.parent
CHECKPOINT_SUFFIXES = frozenset({".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".h5"})
# What trainers and transformers put beside the weights under such an ending, and what TensorFlow reads.
_NOT_WEIGHTS = re.compile(r"(?:training_args|optimizer|scheduler|sampler|random_states|scaler)\w*\.bin|tf_model\.h5")
_PACKS = "custom_nodes"
_FOLDER, _GROUNDING_FOLDER, _MATTING_FOLDER = "sams", "grounding-dino", "vitmatte"
_MORE_FOLDERS = ("sam2", "sam")  # where the packs for SAM 2 put theirs; RMBG and A1111
CONCEPT_FOLDER, DECODER_FOLDER = "sam_concepts", "sam_decoders"
IMAGE_FOLDERS = ("input", "output", "temp")
EXAMPLE = "example"  # stands beside these folders for the pack's own example images
_WAIT = 600  # seconds for another process that writes in the same place
_HEARD = 0.2  # seconds after which a wait hears a Cancel
_TICK_NS = 2_000_000_000  # of the coarsest file system's clock: a folder read so soon after a change may have changed again

_is_quiet: ContextVar[bool] = ContextVar("samkit_is_quiet", default=False)
_watch: ContextVar["Watch | None"] = ContextVar("samkit_watch", default=None)


class _ReadFolder(NamedTuple):
    """What was in a folder when it was read, and the times of its last change and of the reading, in nanoseconds."""

    changed: int
    read: int
    files: list[Path]
    folders: list[Path]


_folders_read: dict[Path, _ReadFolder] = {}


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


def sams_folders() -> list[Path]:
    """Folders that hold SAM checkpoints, in order of preference; outside ComfyUI, `models/sams` in the pack.

    Folders that extra_model_paths.yaml or other packs have added stay as they are, and only the set of file endings is
    widened.
    """
    return _checkpoint_folders(_FOLDER)


def _checkpoint_folders(kind: str) -> list[Path]:
    folders = _model_folders(kind)
    if inside_comfyui():
        import folder_paths

        paths, suffixes = folder_paths.folder_names_and_paths[kind]
        if CHECKPOINT_SUFFIXES - set(suffixes):
            folder_paths.folder_names_and_paths[kind] = (paths, set(suffixes) | CHECKPOINT_SUFFIXES)
    return folders


def taught_names(kind: str) -> list[str]:
    """Names of the `.safetensors` files of what was taught, in `models/<kind>` and in `output/<kind>`, where it is saved."""
    _taught_folders(kind)
    return sorted(name for name in _names_in(kind) if name.endswith(".safetensors"))


def taught_path(kind: str, name: str) -> Path | None:
    """Full path of a file that `taught_names` lists, or None where there is none of that name."""
    _taught_folders(kind)
    return _path_in(kind, name) if name.endswith(".safetensors") else None


def _taught_folders(kind: str) -> list[Path]:
    """As core does for what it trains: `output/loras` is one of the folders of `loras`."""
    _checkpoint_folders(kind)
    if inside_comfyui():
        import folder_paths

        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.get_output_directory()) / kind))
    return _model_folders(kind)


def grounding_folders() -> list[Path]:
    """Folders that hold one folder per Grounding DINO, in order of preference; outside ComfyUI, below the pack's `models`."""
    return _model_folders(_GROUNDING_FOLDER)


def matting_folders() -> list[Path]:
    """Folders that hold one folder per ViTMatte, in order of preference; outside ComfyUI, below the pack's `models`."""
    return _model_folders(_MATTING_FOLDER)


def _model_folders(kind: str) -> list[Path]:
    """None of `sams`, `grounding-dino` and `vitmatte` is core's, but the community's: so they are registered here."""
    if not inside_comfyui():
        saved = [PACK / "output" / kind] if kind in (CONCEPT_FOLDER, DECODER_FOLDER) else []
        return [PACK / "models" / kind, *saved]
    import folder_paths

    folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
    return [Path(path) for path in folder_paths.folder_names_and_paths[kind][0]]


def checkpoint_names() -> list[str]:
    """Names of the files in the `sams` folders, in `sam2` and `sam`, where other packs put theirs, and of trained decoders.

    Subfolders are included; the names are sorted, with `/` or the system's separator. What a name leads to may have gone.
    """
    names = {name for kind in (_FOLDER, *_MORE_FOLDERS) for name in _names_in(kind) if not _is_other(name)}
    return sorted(names.union(taught_names(DECODER_FOLDER)))


def _is_other(name: str) -> bool:
    return _NOT_WEIGHTS.fullmatch(name.replace("\\", "/").rpartition("/")[2]) is not None


def _names_in(kind: str) -> list[str]:
    folders = _checkpoint_folders(kind)
    if inside_comfyui():
        import folder_paths

        try:
            return folder_paths.get_filename_list(kind)
        except OSError:  # a linked folder that it had listed has gone, which it only sees where the link is
            folder_paths.filename_list_cache.pop(kind, None)
            return folder_paths.get_filename_list(kind)
    return [
        os.path.relpath(os.path.join(place, file), folder)  # noqa: PTH118  as ComfyUI does, whatever bytes a name has
        for folder in folders
        for place, _, files in os.walk(folder)
        for file in files
        if Path(file).suffix in CHECKPOINT_SUFFIXES
    ]


def checkpoint_path(name: str) -> Path | None:
    """Full path of a file by a name as `checkpoint_names` lists it, or None where there is none of that name.

    A graph from another system has that system's separator in its names, which is understood.
    """
    found = (_path_in(kind, name) for kind in (_FOLDER, *_MORE_FOLDERS))
    return next(filter(None, found), None) or taught_path(DECODER_FOLDER, name)


def checkpoint_link(name: str) -> str | None:
    """Where a name that `checkpoint_names` lists leads, if it is a link; else None."""
    for kind in (_FOLDER, *_MORE_FOLDERS, DECODER_FOLDER):
        for folder in _model_folders(kind):
            with contextlib.suppress(OSError, ValueError):
                return str((folder / name).readlink())
    return None


def _path_in(kind: str, name: str) -> Path | None:
    for one in dict.fromkeys((name, name.replace("\\", "/"), name.replace("/", os.sep))):
        try:
            found = _exact_path_in(kind, one)
        except (OSError, ValueError):  # a name that no file system takes; a folder that may not be entered
            continue
        if found is not None:
            return found
    return None


def _exact_path_in(kind: str, name: str) -> Path | None:
    folders = _checkpoint_folders(kind)
    if inside_comfyui():
        import folder_paths

        found = folder_paths.get_full_path(kind, name)
    else:
        found = next((folder / name for folder in folders if name in _names_in(kind) and (folder / name).is_file()), None)
    return Path(found) if found else None


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
        folder = _data_folder(kind)
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
        folder = _data_folder(kind).resolve() if kind in kinds else None
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
        output = output_folder().resolve()
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


def _data_folder(kind: str) -> Path:
    """One of `IMAGE_FOLDERS`; outside ComfyUI, a folder of that name in the pack."""
    if not inside_comfyui():
        return PACK / kind
    import folder_paths

    return Path(folder_paths.get_directory_by_type(kind))


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


def user_folder() -> Path:
    """Where what belongs to this server's user is stored: ComfyUI's user folder; outside ComfyUI, `user` in the pack."""
    if not inside_comfyui():
        return PACK / "user"
    import folder_paths

    return Path(folder_paths.get_user_directory())


def save_temporary(frames: list[np.ndarray]) -> list[dict[str, str]]:
    """Save images uint8 `[H, W, 3]` as PNG where the browser can fetch them, named by their content.

    Returns:
        ComfyUI's names of them (`filename`, `subfolder`, `type`), in order; none outside ComfyUI, or where they cannot be
        written: they are for the browser, and a run does not end because of them.
    """
    return _saved_to_show([Image.fromarray(frame) for frame in frames], "samkit_", ".png", {"compress_level": 1})


def save_results(images: list[Image.Image]) -> list[dict[str, str]]:
    """Save small RGB images for a node to show after its run, as JPEG; else as `save_temporary`."""
    return _saved_to_show(images, "samkit_result_", ".jpg", {"quality": 85})


def _saved_to_show(images: list[Image.Image], start: str, ending: str, options: dict[str, int]) -> list[dict[str, str]]:
    if not inside_comfyui():
        return []
    import folder_paths

    folder, saved = Path(folder_paths.get_temp_directory()), []
    for image in images:
        name = f"{start}{hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:32]}{ending}"
        try:
            if not (folder / name).is_file():
                with whole(folder / name) as part:
                    image.save(part, format=Image.registered_extensions()[ending], **options)
        except SAMError as error:
            if not (folder / name).is_file():  # else another process has just written the same
                log.warning("The images are not shown: %s", error)
                return []
        saved.append({"filename": name, "subfolder": "", "type": "temp"})
    return saved


def output_folder() -> Path:
    """ComfyUI's folder for results; outside ComfyUI, `output` in the pack."""
    if not inside_comfyui():
        return PACK / "output"
    import folder_paths

    return Path(folder_paths.get_output_directory())


def save_place(prefix: str, size: tuple[int, int]) -> tuple[Path, str, int]:
    """Where ComfyUI's Save Image would put the next file of a prefix: its folder, name and number. The folder is made.

    Args:
        prefix: below the output folder; `%date:yyyy-MM-dd%`, which ComfyUI's browser fills in for its own nodes, is filled in,
            and so are `%width%`, `%height%` and parts of the date such as `%year%` inside ComfyUI.
        size: (H, W) of the image.

    Raises:
        SAMError: the prefix is not a plain name, a link leads out of the folder, or the folder cannot be made.
    """
    output = output_folder()
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

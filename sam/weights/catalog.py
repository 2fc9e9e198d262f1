"""What a model's name means: decided here for every kind of model, and nowhere else.

In this order: a file (or folder) of that name that is there; the name that other packs' loaders have for a model (an alias); a
model that ships in the pack; a known one, which a run downloads.
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from ...utils.comfy_folders import model_folders, model_link, model_names, model_path
from ...utils.text import shown
from ..errors import SAMError
from .checkpoint_reader import adapter_files, checkpoint_files, file_stamp, files_of_folder, shard_group
from .download import fetch, fetch_folder
from .registry import KnownCheckpoint, KnownFolder

Known: TypeAlias = KnownCheckpoint | KnownFolder
Model = TypeVar("Model")

# What trainers and transformers put beside the weights under such an ending, and what TensorFlow reads.
_NOT_WEIGHTS = re.compile(r"(?:training_args|optimizer|scheduler|sampler|random_states|scaler)\w*\.bin|tf_model\.h5")


@dataclass(frozen=True)
class Entry(Generic[Model]):
    """A name, and what it means now.

    Attributes:
        catalog: that was asked.
        name: as it was asked for.
        path: the file or folder; None where it is not on this machine.
        known: what a run downloads where there is no path.
        above: trained decoders and adapters; this is what the last of them was made for.
        chosen: the model that an adapter is merged into, by its name; empty is the one that the adapter names.
    """

    catalog: "Catalog[Model]"
    name: str
    path: Path | None
    known: Known | None
    above: tuple[Path, ...] = ()
    chosen: str = ""

    @property
    def exists(self) -> bool:
        """Whether a run can load it."""
        return self.path is not None or self.known is not None

    @property
    def base(self) -> "Entry[Model] | None":
        """What a trained decoder or an adapter was made for; None for a model.

        A decoder has the name of its file. An adapter is for the `chosen` model, and otherwise for the one that it names: a
        file, a folder, or a repository of the hub.
        """
        wanted = self.catalog.base_of(self.path) if self.path else None
        if wanted is None:
            return None
        above, is_adapter = (*self.above, self.path), adapter_files(self.path) is not None
        if is_adapter and self.chosen:
            names, wanted = [self.chosen], self.chosen
        else:
            names = self.catalog.called(wanted, in_folders=is_adapter)
        for found in map(self.catalog.find, names):
            path = found.path if found.path not in above else None
            return Entry(self.catalog, wanted, path, found.known, above, self.chosen)
        return Entry(self.catalog, wanted, None, None, above)

    @property
    def size(self) -> int:
        """Bytes of its own files, or of the download; 0 where that is not known."""
        if self.path is None:
            return (self.known.size if self.known else None) or 0
        try:
            return sum(file.stat().st_size for file in self.catalog.files_of(self.path))
        except (SAMError, OSError):  # it has just gone, or a shard is missing
            return 0

    @property
    def label(self) -> str:
        """What the list in the browser shows: the name with the size, and whether a run downloads it or it has gone."""
        if not self.exists:
            return f"{self.name} ({self.catalog.gone})"
        size = self.size
        notes = [f"{size / 1e6:,.0f} MB"] if size else []
        notes += ["not downloaded"] if self.path is None else []
        return f"{self.name} ({', '.join(notes)})" if notes else self.name

    @property
    def files(self) -> list[Path]:
        """All files that are on this machine, of a trained decoder also those of what it was made for.

        Raises:
            SAMError, OSError: a file has gone, such as a shard.
        """
        base = self.base
        return [*(self.catalog.files_of(self.path) if self.path else ()), *(base.files if base else ())]

    @property
    def stamp(self) -> str:
        """Changes when one of `files` does. Empty where one has gone: nothing raises, since ComfyUI asks before it runs."""
        try:
            return " ".join(str(file_stamp(file)) for file in self.files)
        except (SAMError, OSError):
            return ""

    @property
    def absence(self) -> str | None:
        """Why only a run can load it, or nothing can, as a sentence that names no path of this machine; else None."""
        if self.path is None and self.known is None:
            return f"there is no {self.catalog.what} {self.name} in models/{self.catalog.kind} on this machine."
        if self.path is None:
            size = f" ({self.known.size / 1e6:,.0f} MB)" if self.known.size else ""
            return f"{self.name}{size} is not on this machine yet. A run downloads it."
        base = self.base
        if base is not None and not base.name:
            return f"{self.name} does not name the model that it was trained on. Choose it in base_model."
        if base is not None and base.absence is not None:
            return f"{self.name} was made for {base.name}, which is not on this machine yet. Run the graph once."
        return None

    def fetch(self) -> Path:
        """Where it is, downloaded if it is known and not there.

        Raises:
            SAMError: there is nothing of that name, or it could not be downloaded.
        """
        if self.path is not None:
            return self.path
        folders = model_folders(self.catalog.kind)
        if isinstance(self.known, KnownFolder):
            return fetch_folder(self.known, folders)
        if self.known is not None:
            return fetch(self.known.file, folders)
        if self.above and adapter_files(self.above[-1]) is not None:
            adapter = "/".join(self.above[-1].parts[-2:])
            model = (
                f"for {shown(self.name)}, which is not in models/{self.catalog.kind}"
                if self.name
                else "that does not name its model"
            )
            raise SAMError(f"{adapter} is an adapter of peft {model}: choose the model that it was trained on in base_model.")
        if self.above:
            made = f"{self.above[-1].name} was made for {self.name}"
            raise SAMError(f"{made}, which is not in models/{self.catalog.kind}: put it there.")
        if (link := self.catalog.link_of(self.name)) is not None:
            raise SAMError(f"{self.name!r} is a link to {link}, and nothing is there: put the file there, or remove the link.")
        places = ", ".join(map(str, folders))
        raise SAMError(f"there is no {self.catalog.what} {self.name!r} in {places}: {self.catalog.advice}.")

    def load(self, *options: Any) -> Model:
        """The model, downloaded if it is known and not there; a trained decoder or an adapter in what it was made for.

        Args:
            options: of the kind, such as a precision.

        Raises:
            SAMError: as `fetch`, or it cannot be loaded.
        """
        path, base = self.fetch(), self.base
        return self.catalog.load(path, *options) if base is None else self.catalog.load_onto(base, path, *options)


def _file_name(name: str) -> str:
    """A listed name without its folders, which may be another system's."""
    return name.replace("\\", "/").rpartition("/")[2]


def is_adapter_name(name: str) -> bool:
    """Whether a listed name is that of an adapter of peft, by how peft names its file."""
    return _file_name(name).startswith("adapter_model.")


def _repository(known: Known) -> str:
    return known.repo_id if isinstance(known, KnownFolder) else known.file.repo_id


def _no_base(_: Path) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Catalog(Generic[Model]):
    """Models of one kind, by name: each a file, or the shards of one.

    Attributes:
        kind: the folder in `models` where downloads go.
        known: published models, by the names that a loader lists before and after the download.
        load: loads a path; further arguments are options.
        more: other folders in `models` with such files.
        among: a folder of `models` whose files are mostly others, and what the names of such files are like.
        aliases: the names that other packs' loaders have for known models.
        bundled: models that ship in the pack.
        base_of: the name of what a trained decoder or an adapter was made for, empty where it does not say; None for a model.
        load_onto: loads a trained decoder or an adapter. Its first argument is the entry that it was made for.
        what, advice, gone: words for messages.
    """

    kind: str
    known: Mapping[str, Known]
    load: Callable[..., Model]
    more: tuple[str, ...] = ()
    among: tuple[str, re.Pattern[str]] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    bundled: Mapping[str, Path] = field(default_factory=dict)
    base_of: Callable[[Path], str | None] = _no_base
    load_onto: Callable[..., Model] | None = None
    what: str = "checkpoint"
    advice: str = "put it there, or choose another one"
    gone: str = "missing"

    def names(self) -> list[str]:
        """What a loader lists: what is there, sorted, then what ships in the pack, then known models; each once."""
        present = self.present()
        return present + [name for name in (*self.bundled, *self.known) if name not in present]

    def ready(self) -> list[str]:
        """Names of what is on this machine, from the smallest file to the largest; what ships in the pack comes last.

        No file is read: a trained decoder has its own size, and what it was made for may be missing. Adapters are left out:
        they are the smallest files, and no models.
        """
        return sorted(
            (name for name in self.names() if not is_adapter_name(name) and self.find(name).path),
            key=lambda name: (name in self.bundled, self.find(name).size),
        )

    def find(self, name: str, base: str = "") -> Entry[Model]:
        """What a name means; of an adapter, with the model that it is merged into, if that is chosen. Nothing raises here."""
        other = self.aliases.get(name, name)
        path = self.path_of(name) or self.path_of(other) or self.bundled.get(other)
        return Entry(self, name, path, self.known.get(other), chosen=base)

    def at(self, path: Path, base: str = "") -> Entry[Model]:
        """A model by its path, which need not be in a folder of models; `base` as of `find`."""
        return Entry(self, path.name, path, None, chosen=base)

    def called(self, wanted: str, in_folders: bool) -> list[str]:
        """The names in the list that a file's name, or a shard's, stands for.

        Args:
            wanted: the name of a file; with `in_folders` also of a folder, or a repository of the hub.
            in_folders: whether it may be one.
        """
        group, parts = (
            shard_group(wanted),
            [part for part in wanted.replace("\\", "/").split("/") if part not in ("", ".", "..")],
        )
        names = self.names()
        found = [name for name in names if _file_name(name) == wanted or (group and shard_group(_file_name(name)) == group)]
        if in_folders and parts:
            found += [name for name in names if _file_name(name) == parts[-1]]
            for start in range(max(0, len(parts) - 2), len(parts)):  # owner/name, and then name alone
                found += [
                    name for name in names if name.replace("\\", "/").split("/")[:-1][-len(parts[start:]) :] == parts[start:]
                ]
            found += [name for name in names if name in self.known and _repository(self.known[name]) == wanted]
        return [name for name in found if not in_folders or not is_adapter_name(name)]

    def is_listed(self, name: Any) -> bool | str:
        """ComfyUI's check of a value of the list: True, or what is wrong. None is a value that another node will give.

        Aliases are taken as well, and names of files that the list shows otherwise: a shard, or a path with another system's
        separator.
        """
        if name is None or (isinstance(name, str) and (self.find(name).exists or name in self.names())):
            return True
        return f"{shown(name)} is not in the list. Refresh it (R), or choose another one."

    def present(self) -> list[str]:
        """Names of what is in the folders, sorted; what a name leads to may have gone.

        Of a checkpoint in shards the first is listed, and of a preset of keras-hub the file that holds all weights.
        """
        found = {name for kind in (self.kind, *self.more) for name in model_names(kind)}
        if self.among is not None:
            found.update(name for name in model_names(self.among[0]) if self.among[1].search(name))
        listed, groups = [], set()
        for name in sorted(found):
            group = shard_group(name)
            is_task = name.endswith("task.weights.h5") and name.replace("task.weights.h5", "model.weights.h5") in found
            if group not in groups and not is_task and not _NOT_WEIGHTS.fullmatch(_file_name(name)):
                listed.append(name)
            groups.update([group] if group else [])
        return listed

    def path_of(self, name: str) -> Path | None:
        """Where something of that name is, complete; None where it is not."""
        return next(filter(None, (model_path(kind, name) for kind in self._kinds_of(name))), None)

    def link_of(self, name: str) -> str | None:
        """Where a name of the list leads, if it is a link; else None."""
        links = (model_link(kind, name) for kind in self._kinds_of(name)) if name in self.present() else ()
        return next(filter(None, links), None)

    def _kinds_of(self, name: str) -> tuple[str, ...]:
        """The folders in which a file of that name may be one of these."""
        is_among = self.among is not None and self.among[1].search(name)
        return (self.kind, *self.more, self.among[0]) if is_among else (self.kind, *self.more)

    def files_of(self, path: Path) -> list[Path]:
        """All files of a model, or of an adapter alone."""
        return [*found] if (found := adapter_files(path)) is not None else checkpoint_files(path)


@dataclass(frozen=True, kw_only=True)
class ModelFolders(Catalog[Model]):
    """Models of transformers: each a folder with a `config.json`.

    Attributes:
        is_complete: whether a folder has all that loading needs. One that is complete is never downloaded.
    """

    is_complete: Callable[[Path], bool]
    what: str = "complete model"
    gone: str = "incomplete"

    def present(self) -> list[str]:
        """Folders, complete or not."""
        found: set[str] = set()
        for folder in model_folders(self.kind):
            with contextlib.suppress(OSError):  # a folder that may not be read, or a link that leads to itself
                names = (path.parent.name for path in folder.glob("*/config.json"))
                found.update(name for name in names if not name.startswith("."))  # that is a download in progress
        return sorted(found)

    def path_of(self, name: str) -> Path | None:
        """The first folder of that name that is complete."""
        for folder in model_folders(self.kind) if name in self.present() else ():
            with contextlib.suppress(OSError):
                if self.is_complete(folder / name):
                    return folder / name
        return None

    def files_of(self, path: Path) -> list[Path]:
        """All files of the folder."""
        return files_of_folder(path)

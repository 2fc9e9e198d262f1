"""Folders on many devices or machines: the function for one image, under Ray Data."""

import importlib
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import SAMError
from .folders import FolderTask, ImageFile, ImageResult

_PACK = Path(__file__).resolve().parent.parent.parent
_CPUS_PER_ACTOR = 4  # an encoder on a CPU gains little from more
_IMAGES_AT_A_TIME = 8  # what an actor that dies takes with it, and another one does again


class RayRunner:
    """Runs tasks under Ray Data, with the model loaded once in each actor. Results come in any order, each once.

    Every machine needs this pack in the same folder, or installed with pip, and the images and the model under the same paths.

    Args:
        address: of a running cluster; empty: this machine alone.
        actors: how many; 0: one per GPU, or where there is none one for four CPUs.

    Raises:
        SAMError: Ray is not installed.
    """

    def __init__(self, address: str = "", actors: int = 0) -> None:
        self.address, self.actors = address, actors
        self._ray = _ray()

    def __call__(self, task: FolderTask, images: Sequence[ImageFile]) -> Iterator[ImageResult]:
        if not images:
            return
        if not self._ray.is_initialized():
            self._ray.init(address=self.address or None, log_to_driver=False)
        data = self._ray.data
        data.DataContext.get_current().enable_progress_bars = False
        count, share = self._shares(task)
        rows = [{"image": pickle.dumps(image)} for image in images]
        blocks = max(count, -(-len(rows) // _IMAGES_AT_A_TIME))
        results = data.from_items(rows, override_num_blocks=min(blocks, len(rows))).map_batches(
            _actor(),
            fn_constructor_args=(str(_PACK), pickle.dumps(task)),
            batch_size=None,
            batch_format="numpy",
            compute=data.ActorPoolStrategy(size=count),
            **share,
        )
        for row in results.iter_rows():
            yield pickle.loads(row["result"])

    def _shares(self, task: FolderTask) -> tuple[int, dict[str, float]]:
        """How many actors, and what each gets."""
        there = self._ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 1))
        if gpus and task.device_mode != "CPU":
            return self.actors or gpus, {"num_gpus": min(1.0, gpus / (self.actors or gpus))}
        count = self.actors or max(1, cpus // _CPUS_PER_ACTOR)
        return count, {"num_cpus": max(1, cpus // count)}


def _ray() -> ModuleType:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SAMError(f'Ray is not installed here: pip install "ray[data]" on every machine. ({error})') from error
    return ray


def _actor() -> type[Any]:
    """The class that Ray makes actors of. It is sent by its code, and loads the pack where it arrives."""

    class Segmenting:
        def __init__(self, folder: str, task: bytes) -> None:
            import pickle
            from pathlib import Path

            script = Path(folder) / "segment_folder.py"
            if script.is_file():
                spec = importlib.util.spec_from_file_location("samkit_segment_folder", script)
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                module.load_pack()
            self._pickle = pickle
            self._worker = importlib.import_module("samkit.sam.tasks.folders").Worker(pickle.loads(task))

        def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
            images = [self._pickle.loads(image) for image in batch["image"]]
            return {"result": [self._pickle.dumps(self._worker(image)) for image in images]}

    Segmenting.__module__ = "__main__"  # so that its code is sent, not its name
    return Segmenting

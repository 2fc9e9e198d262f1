"""SAM Load Masks: images and their masks from a data set of an annotator or of this pack."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sam import SAMError
from ..sam.datasets.read import open_data_set
from ..sam.datasets.reading import DataSet
from ..utils.boxes import BoundingBox, tight_box
from ..utils.comfy import Progress
from ..utils.comfy_files import annotated_path
from ..utils.text import counted, shown
from .common import CATEGORY

_FOLDERS = ("input", "output")


class LoadMasks:
    """`SAMKit_LoadMasks`."""

    DESCRIPTION = (
        "Loads images and their masks from a data set: a COCO file, YOLO labels, labelme, CVAT or Label Studio files, index or "
        "palette PNGs, or what SAM Save Masks and the folder command wrote. Connect the outputs to SAM Teach or SAM Train "
        "Decoder as they are."
    )
    SEARCH_ALIASES = [
        "coco",
        "yolo",
        "labelme",
        "cvat",
        "label studio",
        "dataset",
        "annotations",
        "import masks",
        "load masks",
        "ground truth",
    ]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "MASK", "BOUNDING_BOX", "STRING")
    RETURN_NAMES = ("images", "masks", "bboxes", "labels")
    OUTPUT_IS_LIST = (True, True, True, True)
    OUTPUT_TOOLTIPS = (
        "The images, as a list: each has its own size.",
        "The masks of each image: one, or with individual_masks one per object. An image without an object has an empty mask.",
        "The boxes of the objects of each image, with their labels and scores.",
        "The label of each mask, in the same order.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        path = (
            "A file or a folder in ComfyUI's input folder, such as cats/annotations.json. For the output folder, write "
            "samkit/dataset [output]."
        )
        category = "Only objects with these labels, separated by commas, and images that have one. Leave empty for all."
        images = (
            "The folder of the images, in the same form, if they are not beside the annotations or in a folder images there."
        )
        return {
            "required": {"path": ("STRING", {"default": "samkit/dataset [output]", "tooltip": path})},
            "optional": {
                "category": ("STRING", {"default": "", "tooltip": category}),
                "start": ("INT", {"default": 0, "min": 0, "max": 1 << 24, "tooltip": "The first image, counted from 0."}),
                "count": (
                    "INT",
                    {"default": 16, "min": 0, "max": 1 << 24, "tooltip": "The number of images. 0 loads all that follow."},
                ),
                "individual_masks": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "One mask per object. Otherwise one per image, which merges its objects."},
                ),
                "image_folder": ("STRING", {"default": "", "tooltip": images}),
            },
        }

    @classmethod
    def IS_CHANGED(
        cls,
        path: str | None = None,
        category: str | None = None,
        start: int | None = None,
        count: int | None = None,
        individual_masks: bool | None = None,
        image_folder: str | None = None,
    ) -> str:
        """Size and time of every file of the data set; linked inputs arrive as None, and nothing may raise here."""
        try:
            found = [one for name in (path, image_folder) if name and (one := annotated_path(name, _FOLDERS, or_folder=True))]
            files = sorted(file for one in found for file in ([one] if one.is_file() else one.rglob("*")))
            stats = [file.stat() if file.exists() else file.lstat() for file in files]  # a link may lead to nothing
            stamps = [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)]
            return hashlib.sha256(repr(stamps).encode()).hexdigest() if stamps else ""
        except (OSError, AttributeError, TypeError):
            return ""

    def execute(
        self,
        path: str = "samkit/dataset [output]",
        category: str = "",
        start: int = 0,
        count: int = 16,
        individual_masks: bool = False,
        image_folder: str = "",
    ) -> tuple[list[Tensor], list[Tensor], list[list[list[BoundingBox]]], list[str]]:
        data = opened_data_set(path, image_folder)
        if not data.names:
            raise SAMError(f"{path} has no images: choose another data set.")
        wanted = {name for part in category.replace("\uff0c", ",").split(",") if (name := part.strip())}
        chosen = [index for index in range(len(data.names)) if not wanted or wanted & data.labels(index)]
        if wanted and not chosen:
            known = sorted(set().union(*(data.labels(index) for index in range(len(data.names)))))
            raise SAMError(
                f"no object of {path} is called {', '.join(sorted(wanted))}: it has {', '.join(known[:20]) or 'none'}."
            )
        if start >= len(chosen):
            such = " with such objects" if wanted else ""
            raise SAMError(f"start is {start}, but {path} has {counted(len(chosen), 'image')}{such}: lower it.")
        chosen = chosen[start : start + count if count else None]
        progress = Progress(len(chosen))
        images, masks, boxes, labels = [], [], [], []
        for index in chosen:
            progress.check_interrupted()
            pixels, labeled = data.read(index)
            objects = [one for one in labeled.objects if not wanted or one.label in wanted]
            empty = np.zeros(labeled.size, bool)
            each = [one.mask for one in objects] or [empty]
            names = [one.label for one in objects] or [""]
            if not individual_masks:
                each, names = [np.logical_or.reduce(each)], [names[0] if len(set(names)) == 1 else ""]
            images.append(torch.from_numpy(pixels.astype(np.float32) / 255)[None])
            masks.append(torch.from_numpy(np.stack(each).astype(np.float32)))
            boxes.append([[_box(one.mask, one.label, one.score) for one in objects if one.mask.any()]])
            labels += names
            progress.advance()
        return images, masks, boxes, labels


def opened_data_set(path: str, image_folder: str = "") -> DataSet:
    """The data set of the node's inputs. It reads no file outside of ComfyUI's input and output folders.

    Raises:
        SAMError: there is no such file or folder, or it is not a data set.
    """
    images = found_path(image_folder, "image_folder") if image_folder.strip() else None
    within = [folder for kind in _FOLDERS if (folder := annotated_path(f". [{kind}]", _FOLDERS, or_folder=True))]
    return open_data_set(found_path(path, "path"), images, within)


def found_path(name: str, what: str) -> Path:
    """The file or folder of an input.

    Raises:
        SAMError: it is not there, or outside of ComfyUI's input and output folders.
    """
    path = annotated_path(name.strip(), _FOLDERS, or_folder=True)
    if path is None:
        raise SAMError(f"{what} is {shown(name)}: there is no such file or folder in ComfyUI's input folder, or [output].")
    return path


def _box(mask: np.ndarray, label: str, score: float | None) -> BoundingBox:
    box = tight_box(mask) or BoundingBox(x=0, y=0, width=0, height=0)
    return BoundingBox(**box, label=label, **({} if score is None else {"score": score}))

"""SAM Save Masks: images and their masks as a data set in ComfyUI's output folder."""

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..sam import SAMError
from ..sam.datasets.addition import adding_to
from ..sam.datasets.coco import read_categories
from ..sam.datasets.formats import FORMATS, FormatName
from ..sam.datasets.objects import DEFAULT_LABEL, Category, LabeledImage, LabeledMask
from ..utils.boxes import BOX_TYPES, BoundingBox, nested_boxes, tight_box
from ..utils.comfy import Progress
from ..utils.comfy_files import annotated_path, save_place
from ..utils.comfy_folders import data_folder
from ..utils.images import as_masks, image_to_frames
from ..utils.text import counted, shown
from .common import CATEGORY

_INSIDE = 0.5  # a MASK above this is in the mask


class SaveMasks:
    """`SAMKit_SaveMasks`."""

    DESCRIPTION = (
        "Saves images and their masks as a data set in the output folder: COCO instance JSON, YOLO segmentation text, files "
        "of labelme, CVAT or Label Studio, or PNGs. Several runs with the same prefix add to one data set."
    )
    SEARCH_ALIASES = [
        "coco",
        "yolo",
        "dataset",
        "annotations",
        "export masks",
        "rle",
        "polygons",
        "instance segmentation",
        "save mask",
        "labels",
        "labelme",
        "cvat",
        "label studio",
        "index mask",
    ]
    CATEGORY = CATEGORY
    RETURN_TYPES = ()
    RETURN_NAMES = ()
    OUTPUT_TOOLTIPS = ()
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = "The folder of the data set, in the output folder. Its images are numbered like those of Save Image."
        form = (
            "COCO RLE: exact masks in one JSON file. COCO polygons: the same, for tools that edit polygons. YOLO: one text "
            "file per image, for training with Ultralytics. PNG: one image per mask, and a manifest. labelme: a file beside "
            "each image, with exact masks. CVAT, Label Studio: files to import there. index PNG: one palette image per image."
        )
        label = (
            "The categories of the masks: one for all masks, one per mask, or one per object. If empty, the labels "
            "of the boxes are used."
        )
        categories = (
            "A COCO file in the input folder, such as cats/annotations.json, or in the output folder with [output] after its "
            "name. COCO files get its categories with their ids, and YOLO's classes are numbered in the order of the ids."
        )
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The images, every frame of a batch. They are saved too. Alpha is ignored."}),
                "masks": (
                    "MASK",
                    {
                        "tooltip": "The masks of the images, frame by frame. For one mask per object, turn on "
                        "individual_masks in the node that makes them."
                    },
                ),
                "filename_prefix": ("STRING", {"default": "samkit/dataset", "tooltip": prefix}),
                "format": (list(FORMATS), {"default": FORMATS[0], "tooltip": form}),
            },
            "optional": {
                "bboxes": (
                    BOX_TYPES,
                    {
                        "forceInput": True,
                        "tooltip": "The boxes from the node that made the masks. They say which image each mask belongs "
                        "to, and provide labels and scores.",
                    },
                ),
                "labels": ("STRING", {"default": "", "tooltip": label}),
                "scores": (
                    "FLOAT",
                    {
                        "forceInput": True,
                        "tooltip": "The scores of the masks, one per mask. They take precedence over the scores of the boxes.",
                    },
                ),
                "categories": ("STRING", {"default": "", "tooltip": categories}),
            },
        }

    def execute(
        self,
        images: list[Tensor],
        masks: list[Tensor],
        filename_prefix: Sequence[str] = "samkit/dataset",
        format: Sequence[FormatName] = FORMATS[0],
        bboxes: list[Any] | None = None,
        labels: Sequence[str] = "",
        scores: list[float] | None = None,
        categories: Sequence[str] = "",
    ) -> dict[str, Any]:
        batches = _batches(_as_list(images), _as_list(masks), None if bboxes is None else _as_list(bboxes))
        objects = [one for batch in batches for one in _owned(batch)]
        placed = sum(one.mask.any() for one in objects)
        frames = sum(len(batch.frames) for batch in batches)
        texts = _spread([text for text in _as_list(labels) if text is not None], objects, frames, placed, "labels")
        numbers = _spread(_as_list(scores or []), objects, frames, placed, "scores")
        listed = [_labeled(*each) for each in zip(objects, texts, numbers, strict=True)]
        per_frame: list[list[LabeledMask]] = [[] for _ in range(frames)]
        for one, labeled in zip(objects, listed, strict=True):
            per_frame[one.frame].append(labeled)
        all_frames = [frame for batch in batches for frame in batch.frames]
        given = _categories(next(iter(_as_list(categories)), None) or "")
        saved = _save(all_frames, per_frame, _as_list(filename_prefix)[0], _as_list(format)[0], given)
        return {"ui": {"images": saved}, "result": ()}


class _Batch(NamedTuple):
    """Images uint8 `[H, W, 3]`, masks bool `[H, W]`, and the boxes as they are connected, if any; `first` frame's number."""

    frames: list[np.ndarray]
    masks: list[np.ndarray]
    boxes: list[list[BoundingBox]] | None
    first: int


class _Owned(NamedTuple):
    """A mask, the frame that it belongs to, and its box, if that is known."""

    mask: np.ndarray
    frame: int
    box: BoundingBox | None


def _as_list(value: Any) -> list[Any]:
    """ComfyUI hands over lists; a caller in Python may leave them out."""
    return value if isinstance(value, list) else [value]


def _batches(images: list[Tensor], masks: list[Tensor], boxes: list[Any] | None) -> list[_Batch]:
    """What came together: batch by batch where the lists are equally long, else everything as one batch."""
    frames = [image_to_frames(image) for image in images]
    each = [list(as_masks(mask, "masks").cpu().numpy() > _INSIDE) for mask in masks]
    lists = None if boxes is None else [nested_boxes(value) for value in boxes]
    if len(frames) != len(each) or (lists is not None and len(lists) != len(each)):
        frames, each = ([[one for part in parts for one in part]] for parts in (frames, each))
        lists = None if lists is None else [[boxes for part in lists for boxes in part]]
    firsts = np.cumsum([0, *map(len, frames)]).tolist()
    return [_Batch(*parts, first) for *parts, first in zip(frames, each, lists or [None] * len(each), firsts, strict=False)]


def _owned(batch: _Batch) -> list[_Owned]:
    """Each mask with its frame and box.

    Raises:
        SAMError: the masks cannot be assigned to frames, or have another size.
    """
    ways = [way for way in _ways(batch) if way is not None]
    if not ways:
        given = "" if batch.boxes is None else f", and {counted(sum(map(len, batch.boxes)), 'box')}"
        raise SAMError(
            f"masks has {counted(len(batch.masks), 'mask')} for {counted(len(batch.frames), 'image')}{given}. Connect bboxes "
            "of the node that made the masks, with its individual_masks on; or one mask per image, or equally many for each."
        )
    tight = [tight_box(mask) for mask in batch.masks]
    best = max(ways, key=lambda way: sum(_overlap(box, own) for (_, box), own in zip(way, tight, strict=True)))
    owned = [_Owned(mask, frame, box) for mask, (frame, box) in zip(batch.masks, best, strict=True)]
    for one in owned:
        height, width = batch.frames[one.frame].shape[:2]
        if one.mask.any() and one.mask.shape != (height, width):
            seen = f"{one.mask.shape[1]}x{one.mask.shape[0]}"
            raise SAMError(f"masks has a mask of {seen} pixels, but its image has {width}x{height}: they must be the same.")
    return [one._replace(frame=one.frame + batch.first) for one in owned]


_Way = list[tuple[int, BoundingBox | None]]


def _ways(batch: _Batch) -> list[_Way | None]:
    """The ways to assign masks to frames (and boxes to masks) that their numbers allow, the most likely first.

    Nodes differ in what they make of a frame without an object: no mask (those of other packs), or an empty one, without a
    box (SAM Predict Mask, SAM Segment Text). With individual_masks off there is one mask per frame whatever the boxes are.
    """
    frames, masks, boxes = len(batch.frames), batch.masks, batch.boxes
    ways: list[_Way | None] = []
    if boxes is not None and len(boxes) == frames:
        filled: _Way = [(frame, box) for frame, listed in enumerate(boxes) for box in listed]
        padded: _Way = [(frame, box) for frame, listed in enumerate(boxes) for box in listed or [None]]
        ways += [way if len(way) == len(masks) else None for way in (filled, padded)]
        ways.append(_of_visible(masks, filled))
    elif boxes is not None:  # they were sorted or selected, and each may say its frame
        ways.append(_by_number(masks, [box for listed in boxes for box in listed], frames))
    each = len(masks) // frames if frames and len(masks) % frames == 0 else 0
    whole = [_around(listed) if each == 1 else None for listed in (boxes if boxes and len(boxes) == frames else [[]] * frames)]
    if each or not masks:
        ways.append([(frame, whole[frame]) for frame in range(frames) for _ in range(each)])
    return ways


def _by_number(masks: list[np.ndarray], boxes: list[BoundingBox], frames: int) -> _Way | None:
    """A box per mask, with the number of its frame; that of an empty mask does not matter."""
    if len(boxes) != len(masks):
        return None
    numbers = [box.get("frame_index", -1 if mask.any() else 0) for box, mask in zip(boxes, masks, strict=True)]
    return list(zip(numbers, boxes, strict=True)) if all(0 <= number < frames for number in numbers) else None


def _around(boxes: list[BoundingBox]) -> BoundingBox | None:
    """The box around a frame's boxes, with the label that all of them have; a single one is itself."""
    if len(boxes) < 2:
        return boxes[0] if boxes else None
    x, y = (min(box[key] for box in boxes) for key in ("x", "y"))
    right, bottom = (max(box[at] + box[side] for box in boxes) for at, side in (("x", "width"), ("y", "height")))
    labels = {box.get("label") for box in boxes}
    label = {"label": boxes[0]["label"]} if len(labels) == 1 and None not in labels else {}
    return BoundingBox(x=x, y=y, width=right - x, height=bottom - y, **label)


def _of_visible(masks: list[np.ndarray], filled: _Way) -> _Way | None:
    """Boxes of those masks only that have something in them; where the others belong does not matter."""
    visible = [mask.any() for mask in masks]
    if sum(visible) != len(filled):
        return None
    boxes = iter(filled)
    return [next(boxes) if one else (0, None) for one in visible]


def _overlap(box: BoundingBox | None, tight: BoundingBox | None) -> float:
    """IoU of a mask's box and the one it was given; a mask without a box agrees with nothing, but an empty mask with that."""
    if box is None or tight is None:
        return float(box is None and tight is None)
    shared = math.prod(
        max(0.0, min(a[at] + a[side], b[at] + b[side]) - max(a[at], b[at]))
        for a, b, at, side in ((box, tight, "x", "width"), (box, tight, "y", "height"))
    )
    return shared / max(1e-9, box["width"] * box["height"] + tight["width"] * tight["height"] - shared)


def _spread(values: list[Any], objects: list[_Owned], frames: int, visible: int, name: str) -> list[Any]:
    """One value per mask, from one for all, one per mask, one per mask that is not empty, or one per object of every frame."""
    count = len(objects)
    if len(values) <= 1:
        return (values or [None]) * count
    if len(values) == count:
        return values
    if frames and len(values) * frames == count:
        return values * frames
    if len(values) == visible:
        rest = iter(values)
        return [next(rest) if one.mask.any() else None for one in objects]
    raise SAMError(
        f"the number of {name} is {len(values)}, but masks has {counted(count, 'mask')}: connect one for all, or one per mask. "
        "Turn on individual_masks in the node that made them."
    )


def _labeled(one: _Owned, label: str | None, score: float | None) -> LabeledMask:
    box = one.box or {}
    score = box.get("score") if score is None else score
    if score is not None and not math.isfinite(score):
        raise SAMError(f"scores has the value {score}: it must be finite.")
    return LabeledMask(one.mask, (label or "").strip() or str(box.get("label") or DEFAULT_LABEL), score)


def _categories(name: str) -> tuple[Category, ...]:
    if not name.strip():
        return ()
    path = annotated_path(name.strip(), ("input", "output"))
    if path is None:
        raise SAMError(f"categories is {shown(name)}: there is no such file in ComfyUI's input folder, or [output].")
    return read_categories(path)


def _save(
    frames: list[np.ndarray],
    objects: list[list[LabeledMask]],
    prefix: str,
    name: FormatName,
    categories: Sequence[Category],
) -> list[dict[str, str]]:
    """Add images to the data set of a prefix. Returns ComfyUI's names of their files."""
    if not frames:
        return []
    size = frames[0].shape[:2]
    folder, stem, _ = save_place(prefix, size)
    root = folder / stem
    progress, saved = Progress(len(frames)), []
    with adding_to(root, name, categories) as addition:
        below = root.relative_to(data_folder("output")).as_posix()
        _, _, number = save_place(f"{below}/images/{stem}", size)
        for index, (frame, masks) in enumerate(zip(frames, objects, strict=True), start=number):
            progress.check_interrupted()
            file, png = f"{stem}_{index:05}_.png", io.BytesIO()
            Image.fromarray(frame).save(png, format="PNG", compress_level=4)
            addition.add(LabeledImage(file, frame.shape[:2], masks), png.getvalue())
            saved.append({"filename": file, "subfolder": f"{below}/images", "type": "output"})
            progress.advance()
    return saved

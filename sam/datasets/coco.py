"""COCO instance JSON (https://cocodataset.org/#format-data), one file for all images."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.files import write_whole
from ..errors import SAMError
from .json_file import as_json, read_json
from .objects import Category, LabeledImage, Record, labels_in, record_of, visible
from .polygons import coco_polygons
from .rle import encode_mask

_LISTS = "images", "annotations", "categories"


def read_categories(path: Path) -> tuple[Category, ...]:
    """The categories of a COCO file, with their ids, so that results can be scored against it.

    Raises:
        SAMError: the file has none, or two with one id or name.
    """
    try:
        found = tuple(Category(one["id"], one["name"]) for one in json.loads(path.read_bytes())["categories"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SAMError(f"{path} has no COCO categories: {type(error).__name__} {error}.") from error
    is_right = all(isinstance(one.number, int) and isinstance(one.name, str) and one.name.strip() for one in found)
    if not found or not is_right or any(len(set(part)) < len(found) for part in zip(*found, strict=True)):
        raise SAMError(f"the categories of {path} must have a name and a whole number each, every one once.")
    return found


class Coco:
    """A COCO file.

    `file_name` of an image is relative to the folder of images, which a reader is given beside the file. Numbers of images,
    annotations and categories begin at 1. `score` is added to an annotation where it is known. Frames of films are listed as
    TAO lists them: `videos` and `tracks`, an image with `video_id` and `frame_index`, an annotation with `track_id`,
    which is that of one object of one film (https://github.com/TAO-Dataset/tao).

    Args:
        path: the JSON file.
        polygons: write polygons; else run-length encodings, which are exact in every reader.
    """

    image_folder: Path | None = None

    def __init__(self, path: Path, polygons: bool = False) -> None:
        self.path = path
        self._encode: Callable[[np.ndarray], Any] = coco_polygons if polygons else encode_mask

    def entry(self, image: LabeledImage) -> tuple[Record, dict[str, bytes]]:
        """What is recorded of an image, and the files that belong to it, by their paths below the data set."""
        return record_of(image, [self._encode(one.mask) for one in visible(image)]), {}

    def files_of(self, record: Record) -> set[str]:
        """None: all that is known of an image is in the one file."""
        return set()

    def names(self) -> set[str]:
        """The images that the file lists.

        Raises:
            SAMError: the file is not a COCO file.
        """
        return {one["file_name"] for one in (read_json(self.path, _LISTS) or {"images": []})["images"]}

    def write(self, records: Sequence[Record], continued: bool = False, categories: Sequence[Category] = ()) -> None:
        """Write the file with these images only, and with the given categories, or if `continued` those that are there."""
        old = read_json(self.path, _LISTS) if continued else None
        lists = {"images": [], "annotations": [], "categories": old["categories"] if old else _listed(categories)}
        self._write({"info": {"description": "SAM Kit"}, **lists}, records)

    def check(self, categories: Sequence[Category]) -> None:
        """Whether categories can be added.

        Raises:
            SAMError: the file has one of the names or ids for another one, or is not a COCO file.
        """
        known = [Category(one["id"], one["name"]) for one in (read_json(self.path, _LISTS) or {"categories": []})["categories"]]
        for one in categories:
            for other in known:
                if (one.number == other.number) != (one.name == other.name):
                    raise SAMError(
                        f"{self.path} has the category {other.name!r} with the id {other.number}, but {one.name!r} is to have "
                        f"{one.number}: ids do not change within a data set. Choose another name for it."
                    )

    def extend(self, records: Sequence[Record], categories: Sequence[Category] = ()) -> None:
        """Add images, and categories that pass `check`; what the file holds stays, with its numbers, also of these images.

        Raises:
            SAMError: the file is not a COCO file.
        """
        document = read_json(self.path, _LISTS)
        if document is None:
            self.write(records, categories=categories)
        else:
            known = {one["name"] for one in document["categories"]}
            document["categories"] += _listed([one for one in categories if one.name not in known])
            names = {one["file_name"] for one in document["images"]}
            self._write(document, [record for record in records if record["file_name"] not in names])

    def _write(self, document: dict[str, Any], records: Sequence[Record]) -> None:
        write_whole(self.path, as_json(_extended(document, records)))


def _listed(categories: Sequence[Category]) -> list[dict[str, Any]]:
    return [{"id": one.number, "name": one.name, "supercategory": ""} for one in categories]


def _extended(document: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    images, annotations, categories = (list(document[name]) for name in _LISTS)
    numbers = {category["name"]: category["id"] for category in categories}
    for label in labels_in(records):
        if label not in numbers:
            numbers[label] = 1 + max(numbers.values(), default=0)
            categories.append({"id": numbers[label], "name": label, "supercategory": ""})
    image_id, annotation_id = (1 + max((one["id"] for one in listed), default=0) for listed in (images, annotations))
    videos: dict[str, dict[str, Any]] = {}
    tracks: dict[tuple[str, int], dict[str, Any]] = {}
    for record in records:
        of_film = {}
        if film := record.get("film"):
            size = {key: record[key] for key in ("width", "height")}
            video = videos.setdefault(film, {"id": len(videos) + 1, "name": film, **size})
            of_film = {"video_id": video["id"], "frame_index": record["frame_index"]}
        images.append({"id": image_id, **{key: record[key] for key in ("file_name", "width", "height")}, **of_film})
        for one in record["objects"]:
            kept = {key: value for key, value in one.items() if key not in ("label", "track")}
            numbered = {"id": annotation_id, "image_id": image_id, "category_id": numbers[one["label"]], "iscrowd": 0}
            if film:
                place = {"category_id": numbered["category_id"], "video_id": of_film["video_id"]}
                track = tracks.setdefault((film, one["track"]), {"id": len(tracks) + 1, **place})
                numbered["track_id"] = track["id"]
            annotations.append({**numbered, **kept})
            annotation_id += 1
        image_id += 1
    of_films = {"videos": list(videos.values()), "tracks": list(tracks.values())} if videos else {}
    return {**document, "images": images, "annotations": annotations, "categories": categories, **of_films}

"""Nodes of other packs that ours replace in old graphs, as ComfyUI's node replacement (0.25) takes it.

Values can only be copied or set. ComfyUI acts only where the old node is missing. In a graph for `POST /prompt` it needs every
input that is copied, optional ones too; ComfyUI before 0.38 also needs the graph's `_meta`. An output that keeps its place is
not listed for loaders: ComfyUI fails on it where the node behind has been replaced before, with other input names.
"""

from dataclasses import dataclass, field
from typing import Any

_KEEPS_FIRST = {0: 0}


@dataclass(frozen=True)
class Replacement:
    """One old node.

    Attributes:
        old, new: node ids.
        widgets: names of the old node's widgets in the order of their values.
        copied: input of the old node to input of the new one.
        set: values of inputs of the new node that the old one does not have.
        outputs: place of an output of the old node to that of the new one.
    """

    old: str
    new: str
    widgets: tuple[str, ...]
    copied: dict[str, str]
    set: dict[str, Any] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)

    @property
    def input_mapping(self) -> list[dict[str, Any]]:
        """ComfyUI's form of `copied` and `set`."""
        copied = [{"new_id": new, "old_id": old} for old, new in self.copied.items()]
        return copied + [{"new_id": name, "set_value": value} for name, value in self.set.items()]

    @property
    def output_mapping(self) -> list[dict[str, int]] | None:
        """ComfyUI's form of `outputs`."""
        return [{"new_idx": new, "old_idx": old} for old, new in self.outputs.items()] or None


_MODEL_NAME = {"model_name": "model_name"}
# As in those nodes: a label is of no use, and boxes that overlap all count.
_ALL_BOXES = {"text_threshold": 0.25, "nms_threshold": 1.0, "max_boxes": 0}
_RMBG_WIDGETS = ("mask_blur", "mask_offset", "invert_output", "background", "background_color")
_RMBG = {"image": "image", "prompt": "text", "threshold": "box_threshold"}
_CUTOUT_AND_MASKS = {0: 5, 1: 0}
_GENERATOR = (
    "points_per_side", "points_per_batch", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset",
    "box_nms_thresh", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio", "crop_n_points_downscale_factor",
)  # fmt: skip
_GENERATOR_WIDGETS = (
    *_GENERATOR[:5], "mask_threshold", "crop_n_layers", "box_nms_thresh", *_GENERATOR[7:],
    "min_mask_region_area", "use_m2m", "keep_model_loaded",
)  # fmt: skip

REPLACEMENTS = (
    # storyicon/comfyui_segment_anything
    Replacement("SAMModelLoader (segment anything)", "AV_SAMLoader", ("model_name",), _MODEL_NAME),
    Replacement("GroundingDinoModelLoader (segment anything)", "SAMKit_GroundingLoader", ("model_name",), _MODEL_NAME),
    Replacement(
        "GroundingDinoSAMSegment (segment anything)",
        "SAMKit_SegmentText",
        ("prompt", "threshold"),
        {
            "sam_model": "sam_model",
            "grounding_dino_model": "grounding_model",
            "image": "image",
            "prompt": "text",
            "threshold": "box_threshold",
        },
        _ALL_BOXES,
        _CUTOUT_AND_MASKS,
    ),
    # kijai/ComfyUI-segment-anything-2, for images
    Replacement(
        "DownloadAndLoadSAM2Model",
        "AV_SAMLoader",
        ("model", "segmentor", "device", "precision"),
        {"model": "model_name", "precision": "precision"},
    ),
    Replacement(
        "Sam2Segmentation",
        "SAMKit_Segment",
        ("keep_model_loaded", "individual_objects"),
        {
            "sam2_model": "sam_model",
            "image": "image",
            "coordinates_positive": "positive_coords",
            "coordinates_negative": "negative_coords",
            "bboxes": "bboxes",
            "individual_objects": "individual_masks",
            "mask": "mask_prompt",
        },
        outputs=_KEEPS_FIRST,
    ),
    Replacement(
        "Sam2AutoSegmentation",
        "SAMKit_AutoMask",
        _GENERATOR_WIDGETS,
        {"sam2_model": "sam_model", "image": "image", **{name: name for name in _GENERATOR}},
        {"min_mask_region_area": 0, "max_masks": 0},
        {0: 0, 1: 3, 2: 1},
    ),
    # 1038lab/ComfyUI-RMBG: the loaders have to be connected by hand, as its nodes have the models' names as widgets
    Replacement(
        "Segment",
        "SAMKit_SegmentText",
        ("prompt", "sam_model", "dino_model", "threshold", *_RMBG_WIDGETS),
        _RMBG,
        _ALL_BOXES,
        _CUTOUT_AND_MASKS,
    ),
    Replacement(
        "SegmentV2",
        "SAMKit_SegmentText",
        ("prompt", "sam_model", "dino_model", "threshold", *_RMBG_WIDGETS),
        _RMBG,
        _ALL_BOXES,
        _CUTOUT_AND_MASKS,
    ),
    # WAS Node Suite
    Replacement("SAM Model Loader", "AV_SAMLoader", ("model_size",), {"model_size": "model_name"}),
)

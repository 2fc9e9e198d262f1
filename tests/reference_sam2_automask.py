"""SAM 2's automatic mask generator over transformers' `Sam2Model`: the steps of sam2's `automatic_mask_generator.py`.

The `sam2` package is not installed for tests, so its steps are written down, with segment_anything's helpers, its own too.
Its defaults are `SamAutomaticMaskGenerator`'s but for `pred_iou_thresh`, 0.8 (there 0.88). What it has besides, `use_m2m` and
`multimask_output=False`, is off by default and not offered by the pack.
"""

import numpy as np
import torch
from reference_sam2 import processor
from segment_anything.utils import amg
from torchvision.ops.boxes import batched_nms, box_area

DEFAULTS = {
    "points_per_side": 32,
    "pred_iou_thresh": 0.8,
    "stability_score_thresh": 0.95,
    "stability_score_offset": 1.0,
    "box_nms_thresh": 0.7,
    "crop_n_layers": 0,
    "crop_nms_thresh": 0.7,
    "crop_overlap_ratio": 512 / 1500,
    "crop_n_points_downscale_factor": 1,
}
_POINTS_PER_BATCH = 64


@torch.no_grad()
def generate(model, side, image, process=None, **options):
    """Masks bool [H, W] with their box (x1, y1, x2, y2), predicted IoU and stability score, as dicts.

    `process` is the image processor of the model's family, SAM 2's by default.
    """
    options, process = {**DEFAULTS, **options}, process or processor(side)
    size = image.shape[:2]
    grids = amg.build_all_layer_point_grids(
        options["points_per_side"], options["crop_n_layers"], options["crop_n_points_downscale_factor"]
    )
    found = []
    for crop, layer in zip(
        *amg.generate_crop_boxes(size, options["crop_n_layers"], options["crop_overlap_ratio"]), strict=True
    ):
        found += _in_crop(model, side, process, image, crop, grids[layer], options)
    if options["crop_n_layers"] and found:
        crops = torch.tensor([one["crop"] for one in found])
        found = [found[i] for i in _nms(found, 1 / box_area(crops).float(), options["crop_nms_thresh"])]
    return found


def _in_crop(model, side, process, image, crop, grid, options):
    x0, y0, x1, y1 = crop
    part = np.ascontiguousarray(image[y0:y1, x0:x1])
    maps = model.get_image_embeddings(process(part, return_tensors="pt")["pixel_values"])
    found = []
    for points in torch.from_numpy(grid).split(_POINTS_PER_BATCH):
        found += _of_points(model, side, maps, points, image.shape[:2], crop, options)
    return [found[i] for i in _nms(found, torch.tensor([one["score"] for one in found]), options["box_nms_thresh"])]


def _of_points(model, side, maps, points, size, crop, options):
    given = (points * side).float()[None, :, None]
    answer = model(image_embeddings=maps, input_points=given, input_labels=torch.ones(1, len(points), 1, dtype=torch.int))
    inside = (crop[3] - crop[1], crop[2] - crop[0])
    logits = torch.nn.functional.interpolate(answer.pred_masks[0], inside, mode="bilinear", align_corners=False)
    logits, scores = logits.flatten(0, 1), answer.iou_scores[0].flatten()
    stability = amg.calculate_stability_score(logits, 0.0, options["stability_score_offset"])
    boxes = amg.batched_mask_to_box(logits > 0)
    cut_off = amg.is_box_near_crop_edge(boxes, list(crop), [0, 0, size[1], size[0]])
    kept = (scores > options["pred_iou_thresh"]) & (stability >= options["stability_score_thresh"]) & ~cut_off
    offset = torch.tensor([crop[0], crop[1], crop[0], crop[1]])
    masks = amg.uncrop_masks(logits[kept] > 0, list(crop), *size)
    rows = zip(masks, boxes[kept] + offset, scores[kept], stability[kept], strict=True)
    return [
        {"mask": m.numpy(), "box": b.numpy(), "score": float(s), "stability": float(t), "crop": list(crop)}
        for m, b, s, t in rows
    ]


def _nms(found, scores, threshold):
    if not found:
        return []
    boxes = torch.from_numpy(np.stack([one["box"] for one in found])).float()
    return batched_nms(boxes, scores, torch.zeros(len(boxes)), threshold).tolist()

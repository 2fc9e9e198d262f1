"""Segments the bundled image and tracks the bundled film with the bundled checkpoint, through the node classes.

Writes demo_output/*.png (masks, overlays with their prompts, and a strip of the film) and prints what each step found. "IoU"
compares a mask with the true mask of the object, which the scene generator knows.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load_pack import ROOT, load_pack
from PIL import Image
from scenes import interior_point, make_scene

load_pack()
from films import EXAMPLE, example_film  # noqa: E402
from samkit.nodes import NODE_CLASS_MAPPINGS  # noqa: E402
from samkit.utils.images import frames_to_image, image_to_frames  # noqa: E402
from samkit.utils.overlay import draw_box, mark, paint_masks  # noqa: E402

IMAGE = ROOT / "example_workflows" / "samkit_scene.png"
SCENE_SEED, SCENE_SIZE = 2_000_007, (480, 640)
PAIR_SEED = 2_000_056  # of the two images in the example of SAM Personalize
STRIP = 6  # frames of the film that are drawn
OUTPUT = ROOT / "demo_output"
CHECKPOINT = "samkit_demo.safetensors"
EVERYTHING = {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.85}
HEADER = f"{'step':<34}{'masks':>6}{'pixels':>9}{'score':>7}{'IoU':>7}{'time':>10}"


@dataclass(frozen=True)
class Step:
    """One call of SAM Predict Mask: (x, y) points, (x1, y1, x2, y2) boxes, and the step whose logits it refines."""

    name: str
    title: str
    positive: tuple[tuple[float, float], ...] = ()
    negative: tuple[tuple[float, float], ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    refines: str = ""


STEPS = (
    Step("1_point", "one click", positive=((212, 388),)),
    Step("2_part", "one click on a part", positive=((384, 310),)),
    Step("3_box", "box", boxes=((276, 113, 357, 196),)),
    Step("4_rough", "one click, refined below", positive=((300, 250),)),
    Step("5_refined", "its logits and one more click", positive=((300, 250), (500, 300)), refines="4_rough"),
    Step("6_boxes", "three boxes at once", boxes=((330, 428, 398, 480), (579, 343, 613, 379), (336, 85, 376, 123))),
)


def node(node_id: str) -> Any:
    """A function that runs a node by its id, with its inputs by name."""
    made = NODE_CLASS_MAPPINGS[node_id]()
    return getattr(made, made.FUNCTION)


def coords(points: tuple[tuple[float, float], ...]) -> str | None:
    return json.dumps([{"x": x, "y": y} for x, y in points]) if points else None


def main() -> int:
    started = time.perf_counter()
    OUTPUT.mkdir(exist_ok=True)
    frame = np.array(Image.open(IMAGE).convert("RGB"))
    truth = make_scene(SCENE_SEED, SCENE_SIZE).masks
    (model,) = node("AV_SAMLoader")(model_name=CHECKPOINT)
    print(f"{CHECKPOINT} on {IMAGE.name}, {frame.shape[1]}x{frame.shape[0]}\n\n{HEADER}")
    embedding = embed(model, frame)
    logits = {}
    for step in STEPS:
        logits[step.name] = run_step(step, model, embedding, frame, truth, logits.get(step.refines))
    run_everything(model, frame, truth)
    track_film(model)
    print(f"\n{len(list(OUTPUT.glob('*.png')))} images in {OUTPUT.name}/, {time.perf_counter() - started:.1f} s in total.")
    return 0


def embed(model: Any, frame: np.ndarray) -> np.ndarray:
    began = time.perf_counter()
    (embedding,) = node("GetSAMEmbedding")(image=frames_to_image([frame]), sam_model=model)
    print(f"{'0 encode the image, once':<34}{'':>29}{milliseconds(began)}")
    (image,) = node("SAMEmbeddingToImage")(embedding=embedding, mode="pca")
    save("0_embedding.png", (image[0].numpy() * 255).round().astype(np.uint8))
    return embedding


def run_step(
    step: Step, model: Any, embedding: np.ndarray, frame: np.ndarray, truth: np.ndarray, logits: torch.Tensor | None
) -> torch.Tensor:
    """Run, print and draw one step; returns its logits."""
    began = time.perf_counter()
    masks, _, scores, refined = node("SAMKit_PredictMask")(
        sam_model=model,
        embedding=embedding,
        positive_coords=coords(step.positive),
        negative_coords=coords(step.negative),
        bboxes=list(step.boxes) or None,
        logits=logits,
        individual_masks=True,
    )
    taken = milliseconds(began)
    found = masks.numpy().astype(bool)
    iou = np.mean([max(iou_of(mask, true) for true in truth) for mask in found])
    title = f"{step.name[0]} {step.title}"
    print(f"{title:<34}{len(found):>6}{found.sum():>9,}{np.mean(scores):>7.2f}{iou:>7.2f}{taken}")
    save(f"{step.name}_mask.png", found.any(0).astype(np.uint8) * 255)
    save(f"{step.name}.png", overlay(frame, found, step))
    return refined


def run_everything(model: Any, frame: np.ndarray, truth: np.ndarray) -> None:
    """SAM Segment Everything; its IoU is the mean over the true objects, each with the mask that fits it best."""
    began = time.perf_counter()
    masks, _, scores, overlay, _ = node("SAMKit_AutoMask")(
        sam_model=model, image=frames_to_image([frame]), points_per_side=16, **EVERYTHING
    )
    taken = milliseconds(began)
    found = masks.numpy().astype(bool)
    iou = np.mean([max([iou_of(mask, true) for mask in found], default=0.0) for true in truth])
    print(f"{'7 segment everything':<34}{len(found):>6}{found.sum():>9,}{np.mean(scores):>7.2f}{iou:>7.2f}{taken}")
    save("7_everything.png", (overlay[0].numpy() * 255).round().astype(np.uint8))


def track_film(model: Any) -> None:
    """SAM Track, from a click on each object of the first frame; its IoU is the mean over all objects and frames."""
    truth = example_film().masks
    (image,) = node("SAMKit_ExampleImage")(image=EXAMPLE.name)["result"]
    clicks = [interior_point(mask) for mask in truth[0]]
    points = [{"x": float(x), "y": float(y), "object": number} for number, (x, y) in enumerate(clicks)]
    began = time.perf_counter()
    masks, _, scores, _ = node("SAMKit_Track")(
        sam_model=model, image=image, positive_coords=json.dumps(points), individual_masks=True
    )
    taken = milliseconds(began)
    found = masks.numpy().astype(bool)
    iou = np.mean([iou_of(*pair) for pair in zip(found, truth.reshape(found.shape), strict=True)])
    print(f"{'8 track a film':<34}{len(masks):>6}{found.sum():>9,}{np.mean(scores):>7.2f}{iou:>7.2f}{taken}")
    frames, found = image_to_frames(image), found.reshape(truth.shape)
    shown = np.linspace(0, len(frames) - 1, STRIP).round().astype(int)
    strip = [paint_masks(frames[index], found[index]) for index in shown]
    for x, y in clicks:
        mark(strip[0], float(x), float(y), True)
    save("8_track.png", np.concatenate(strip, axis=1))


def milliseconds(began: float) -> str:
    return f"{(time.perf_counter() - began) * 1000:>7.0f} ms"


def iou_of(mask: np.ndarray, other: np.ndarray) -> float:
    return float((mask & other).sum() / max(1, (mask | other).sum()))


def overlay(frame: np.ndarray, masks: np.ndarray, step: Step) -> np.ndarray:
    image = paint_masks(frame, masks)
    for box in step.boxes:
        draw_box(image, np.array(box))
    for points, positive in ((step.positive, True), (step.negative, False)):
        for x, y in points:
            mark(image, x, y, positive)
    return image


def save(name: str, image: np.ndarray) -> Path:
    Image.fromarray(image).save(OUTPUT / name)
    return OUTPUT / name


if __name__ == "__main__":
    sys.exit(main())

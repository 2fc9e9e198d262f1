#!/usr/bin/env python3
"""Makes a small random SAM preset with keras-hub itself, and keras-hub's own answers for it.

    KERAS_BACKEND=torch python tools/make_keras_preset.py tests/keras_preset

It runs in an environment of its own, without TensorFlow:

    pip install torch numpy h5py optree ml_dtypes namex absl-py rich packaging
    pip install --no-deps keras keras-hub

The folder then holds what the tests need of the preset, `model.weights.h5` and `config.json`, and `expected.npz`.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np

SIDE, GRID, WIDTH, CHANNELS = 128, 8, 16, 16
FILES = ("model.weights.h5", "config.json")


def small_segmenter() -> Any:
    """keras-hub's SAMImageSegmenter with random weights, among them those that start as zeros."""
    import keras
    from keras_hub.layers import SAMMaskDecoder, SAMPromptEncoder
    from keras_hub.models import SAMBackbone, SAMImageSegmenter, ViTDetBackbone

    keras.utils.set_random_seed(0)
    encoder = ViTDetBackbone(
        hidden_size=WIDTH,
        num_layers=3,
        intermediate_dim=2 * WIDTH,
        num_heads=2,
        global_attention_layer_indices=[1],
        patch_size=SIDE // GRID,
        num_output_channels=CHANNELS,
        window_size=3,
        image_shape=(SIDE, SIDE, 3),
    )
    prompts = SAMPromptEncoder(
        hidden_size=CHANNELS, image_embedding_size=(GRID, GRID), input_image_size=(SIDE, SIDE), mask_in_channels=16
    )
    decoder = SAMMaskDecoder(
        num_layers=2,
        hidden_size=CHANNELS,
        intermediate_dim=2 * CHANNELS,
        num_heads=8,
        embedding_dim=CHANNELS,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=CHANNELS,
    )
    segmenter = SAMImageSegmenter(backbone=SAMBackbone(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder))
    randomise(segmenter)
    return segmenter


def randomise(segmenter: Any) -> None:
    """Weights that make masks worth comparing: no zeros, and a decoder that is not flat."""
    numbers = np.random.default_rng(0)
    for weight in segmenter.weights:
        fan_in = int(np.prod(weight.shape[:-1])) if len(weight.shape) > 1 else 0
        values = numbers.standard_normal(weight.shape) * (1.4 / fan_in**0.5 if fan_in else 0.1)
        weight.assign((values + (1 if weight.name == "gamma" else 0)).astype(np.float32))


def expected(segmenter: Any) -> dict[str, np.ndarray]:
    """keras-hub's answers for an image of noise that the tests draw from the same seed: embedding, masks and scores."""
    numbers = np.random.default_rng(1)
    images = numbers.uniform(0, 1, (1, SIDE, SIDE, 3)).astype(np.float32)
    prompts = {
        "points": np.array([[[40.0, 30.0], [90.0, 100.0]]], np.float32),
        "labels": np.array([[1.0, 0.0]], np.float32),
        "boxes": np.zeros((1, 0, 2, 2), np.float32),
        "masks": np.zeros((1, 0, 4 * GRID, 4 * GRID, 1), np.float32),
    }
    found = segmenter({"images": images, **prompts})
    embedding = segmenter.backbone.image_encoder(images)
    arrays = {"points": prompts["points"], "labels": prompts["labels"], "embedding": embedding}
    arrays |= {"masks": found["masks"], "iou_pred": found["iou_pred"]}
    return {name: value if isinstance(value, np.ndarray) else value.detach().cpu().numpy() for name, value in arrays.items()}


def main(folder: Path) -> None:
    """Write the preset's files and the answers into `folder`."""
    segmenter = small_segmenter()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        segmenter.save_to_preset(place)
        for name in FILES:
            shutil.copy(Path(place) / name, folder / name)
    np.savez_compressed(folder / "expected.npz", **expected(segmenter))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

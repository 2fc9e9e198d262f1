"""keras-hub's SAM presets -> SAM's names: the datasets of `model.weights.h5`, as keras-hub 0.16 to 0.32 write them.

The names come from class names with a counter for each container ("", "_1", "_2", ...); `vars/0` is a kernel, scale or table,
`vars/1` a bias. After keras-hub's `convert_sam_checkpoints.py`, the other way: dense kernels are transposed, and both kinds of
convolution are `[h, w, in, out]`, transposed ones `[h, w, out, in]`, where torch has `[out, in, h, w]` and `[in, out, h, w]`.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ...errors import SAMError
from ..limits import MOST_BYTES, MOST_TENSORS, shortened

MAGIC = b"\x89HDF\r\n\x1a\n"
WEIGHTS = "model.weights.h5"
"""The file of a preset that holds the weights; `task.weights.h5` beside it has the mask decoder again, and the optimizer."""

_COUNTER = r"(?:_(\d+))?"  # none is 0
_KINDS_OF_POINT = ("background_point_embed", "foreground_point_embed", "top_left_corner_embed", "bottom_right_corner_embed")
_ATTENTION = {
    "self_attention": "self_attn",
    "cross_attention_token_to_image": "cross_attn_token_to_image",
    "cross_attention_image_to_token": "cross_attn_image_to_token",
}
_PROJECTION = r"(query|key|value|out)_proj"
_HIDDEN = rf"mlp_block/(?:mlp_block/|dense_net/)?layers/dense{_COUNTER}"

Rule = tuple[str, Callable[..., str]]
"""A pattern for a layer's path, and from its groups (counters as numbers) SAM's name for the layer or the tensor."""


def _encoder_rules() -> Iterator[Rule]:
    yield "layers/add_positional_embedding", lambda: "image_encoder.pos_embed"
    yield "layers/vi_t_det_patching_and_embedding/projection", lambda: "image_encoder.patch_embed.proj"
    block = f"layers/windowed_transformer_encoder{_COUNTER}/"
    yield block + r"layer_norm(\d)", lambda i, n: f"image_encoder.blocks.{i}.norm{n}"
    yield block + "attention/qkv", lambda i: f"image_encoder.blocks.{i}.attn.qkv"
    yield block + "attention/projection", lambda i: f"image_encoder.blocks.{i}.attn.proj"
    yield block + "attention/add_decomposed_relative_pe", lambda i: f"image_encoder.blocks.{i}.attn.rel_pos"
    yield block + _HIDDEN, lambda i, j: f"image_encoder.blocks.{i}.mlp.lin{j + 1}"
    yield f"layers/sequential/layers/conv2d{_COUNTER}", lambda i: f"image_encoder.neck.{2 * i}"
    yield f"layers/sequential/layers/layer_normalization{_COUNTER}", lambda i: f"image_encoder.neck.{2 * i + 1}"


def _prompt_rules() -> Iterator[Rule]:
    root = "layers/sam_prompt_encoder/"
    yield root + "positional_embedding_layer", lambda: "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    yield f"{root}({'|'.join(_KINDS_OF_POINT)})", lambda kind: f"prompt_encoder.point_embeddings.{_KINDS_OF_POINT.index(kind)}"
    yield root + "(not_a_point_embed|no_mask_embed)", lambda name: f"prompt_encoder.{name}"
    yield f"{root}mask_downscaler/layers/conv2d{_COUNTER}", lambda i: f"prompt_encoder.mask_downscaling.{3 * i}"
    norm = f"{root}mask_downscaler/layers/layer_normalization{_COUNTER}"
    yield norm, lambda i: f"prompt_encoder.mask_downscaling.{3 * i + 1}"


def _decoder_rules() -> Iterator[Rule]:
    root = "(?:layers/sam_)?mask_decoder/"
    yield root + "(iou_token|mask_tokens)", lambda name: f"mask_decoder.{name}"
    layer = f"{root}transformer/layers/two_way_multi_head_attention{_COUNTER}/"
    attention = f"{layer}({'|'.join(_ATTENTION)})/{_PROJECTION}"
    yield attention, lambda i, kind, part: f"mask_decoder.transformer.layers.{i}.{_ATTENTION[kind]}.{_short(part)}_proj"
    yield layer + r"layer_norm(\d)", lambda i, n: f"mask_decoder.transformer.layers.{i}.norm{n}"
    yield layer + _HIDDEN, lambda i, j: f"mask_decoder.transformer.layers.{i}.mlp.lin{j + 1}"
    last = f"{root}transformer/final_attention_token_to_image/{_PROJECTION}"
    yield last, lambda part: f"mask_decoder.transformer.final_attn_token_to_image.{_short(part)}_proj"
    yield root + "transformer/final_layer_norm", lambda: "mask_decoder.transformer.norm_final_attn"
    yield f"{root}output_upscaling/layers/conv2d_transpose{_COUNTER}", lambda i: f"mask_decoder.output_upscaling.{3 * i}"
    yield root + "output_upscaling/layers/layer_normalization", lambda: "mask_decoder.output_upscaling.1"
    networks = f"{root}output_hypernetworks_mlps/mlp{_COUNTER}/{_HIDDEN}"
    yield networks, lambda i, j: f"mask_decoder.output_hypernetworks_mlps.{i}.layers.{j}"
    yield f"{root}iou_prediction_head/{_HIDDEN}", lambda j: f"mask_decoder.iou_prediction_head.layers.{j}"


def _short(part: str) -> str:
    return part if part == "out" else part[0]


_RULES = tuple(
    (re.compile(f"^(?:.+?/)??{pattern}/vars/([01])$"), name)  # a task, such as the segmenter, has the backbone inside it
    for rules in (_encoder_rules, _prompt_rules, _decoder_rules)
    for pattern, name in rules()
)
_WHOLE = ("pos_embed", "positional_encoding_gaussian_matrix")  # a tensor and not a layer: its name takes no ".weight"


def read_keras(file: BinaryIO, name: str) -> dict[str, Tensor]:
    """The tensors of a `model.weights.h5` under SAM's names; whatever no rule knows keeps its own.

    Args:
        file: open for reading.
        name: of the file, for messages.

    Raises:
        SAMError: h5py is not installed, the file is damaged, or it holds more than float arrays of its own.
    """
    try:
        import h5py  # an optional extra: nothing else of the pack needs it
    except ImportError as error:
        raise SAMError(f"{name} is a Keras file. Reading it needs h5py, which is not installed: pip install h5py") from error
    try:
        with h5py.File(file, "r") as opened:
            arrays = {path: item[()] for path, item in _datasets(opened, h5py.Dataset, name)}
    except SAMError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise SAMError(f"{name} was not loaded: the file is truncated or damaged: fetch it again. ({error})") from error
    state = dict(_renamed(path, array) for path, array in arrays.items())
    if len(state) != len(arrays):
        raise SAMError(f"{name} was not loaded: it holds two arrays for one weight.")
    if state and all(key.startswith("mask_decoder.") for key in state):
        raise SAMError(
            f"{name} was not loaded: it holds the mask decoder alone, as the task.weights.h5 of a preset does. Load the "
            f"preset's folder or its {WEIGHTS}, or save all weights in one file: model.save_weights('sam.weights.h5')."
        )
    if unknown := [path for path in state if "/" in path]:
        raise SAMError(
            f"{name} was not loaded: this is not a SAM checkpoint of keras-hub: it holds {shortened(unknown[0])}, unlike any."
        )
    return state


def _datasets(opened: Any, kind: type, name: str) -> list[tuple[str, Any]]:
    """The file's arrays; links are not followed, and what would be read from elsewhere or is too large is refused."""
    found: list[tuple[str, Any]] = []
    opened.visititems(
        lambda path, item: found.append((path, item)) if isinstance(item, kind) and not path.startswith("optimizer/") else None
    )
    if len(found) > MOST_TENSORS or sum(item.nbytes for _, item in found) > MOST_BYTES:
        raise SAMError(f"{name} was not loaded: it holds {len(found)} arrays, more than any SAM preset has, or too large ones.")
    for path, item in found:
        if item.is_virtual or item.external or item.dtype.kind != "f":
            raise SAMError(f"{name} was not loaded: {path} is not an array of floats in the file itself.")
    return found


def _renamed(path: str, array: np.ndarray) -> tuple[str, Tensor]:
    for pattern, name_of in _RULES:
        if match := pattern.match(path):
            *groups, variable = match.groups()
            name = name_of(*(int(group or 0) if group is None or group.isdigit() else group for group in groups))
            return _tensor_name(name, int(variable)), _as_torch(name, array)
    return path, torch.from_numpy(array)


def _tensor_name(layer: str, variable: int) -> str:
    if layer.endswith("rel_pos"):
        return f"{layer}_{'hw'[variable]}"
    if layer.endswith(_WHOLE):
        return layer
    return f"{layer}.{('weight', 'bias')[variable]}"


def _as_torch(layer: str, array: np.ndarray) -> Tensor:
    """A kernel in torch's order of axes: a convolution's has four, a dense layer's two and is not a table of embeddings."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.ndim == 4 and not layer.endswith(_WHOLE):
        return tensor.permute(3, 2, 0, 1).contiguous()
    is_table = layer.endswith((*_WHOLE, "rel_pos", "_token", "_tokens", "_embed")) or ".point_embeddings." in layer
    return tensor if tensor.ndim != 2 or is_table else tensor.t().contiguous()

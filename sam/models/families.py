"""Which family a checkpoint or another pack's model belongs to."""

import logging
import weakref
from pathlib import Path
from typing import Any, TypeAlias

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ...utils.checks import one_of
from ..errors import SAMError
from ..weights.adapters import merged, read_adapter
from ..weights.checkpoint_reader import read_checkpoint
from ..weights.formats import find_model, sam_names, weights_in
from ..weights.formats.sam2 import is_sam2, to_sam2_names, to_video_names, version_of
from .architecture import build, read_architecture
from .base import PRECISIONS, Precision, Segmenter
from .efficient_sam import EfficientSAM, build_efficient_sam, is_efficient_sam
from .foreign import described, is_plain, unwrapped
from .sam import ForeignSAM, SAMFamily, SAMModel
from .sam2 import SAM2Model, build_sam2
from .tiny_vit import fold_checkpoint

log = logging.getLogger("samkit")

_METHODS = ("geometry", "features", "decode")
Loaded: TypeAlias = SAMModel | SAM2Model | EfficientSAM
"""The families that a checkpoint may be of."""


def as_segmenter(model: Any) -> Segmenter:
    """The protocol over whatever comes through a model socket.

    Args:
        model: ours, any other implementation of `Segmenter`, another pack's plain `segment_anything` Sam, or one of its SAM-HQ,
            MobileSAM or SAM 2 models, in a wrapper or a predictor or not: these are rebuilt on the weights that they have.

    Raises:
        SAMError: it is none of these.
    """
    if isinstance(model, SAMFamily):
        return model
    if is_plain(model):
        return ForeignSAM(model)
    if all(callable(getattr(type(model), name, None)) for name in _METHODS):
        return model
    inner = unwrapped(model)
    if inner is not model and not isinstance(inner, nn.Module):
        raise SAMError(_unknown(model))
    return as_segmenter(inner) if inner is not model else _rebuilt(model)


def _unknown(model: Any) -> str:
    return (
        f"sam_model is {described(model)}, not a SAM model that this pack can use. Connect Load SAM Model: it loads the "
        "checkpoints of SAM, SAM-HQ, MobileSAM, SAM 2, SAM 3 and EfficientSAM."
    )


_rebuilds: weakref.WeakKeyDictionary[nn.Module, Segmenter] = weakref.WeakKeyDictionary()


def _rebuilt(model: Any) -> Segmenter:
    """One of our models on the weights of another pack's module; the same one for as long as that module lives."""
    if not isinstance(model, nn.Module):
        raise SAMError(_unknown(model))
    if model not in _rebuilds:
        name = Path(getattr(model, "model_name", None) or type(model).__name__)
        try:
            with torch.inference_mode(False), torch.no_grad():
                _rebuilds[model] = _from_weights(_weights_of(model, name.name), name, "fp32")
        except SAMError as error:
            if isinstance(model, Sam) and not hasattr(model.mask_decoder, "hf_token"):
                return ForeignSAM(model)  # an encoder that nobody knows, in the place of SAM's
            raise SAMError(f"sam_model is {described(model)}, which is not supported: {error}") from error
    return _rebuilds[model]


def _weights_of(model: nn.Module, name: str) -> dict[str, Tensor]:
    state = model.state_dict()
    left_out = find_model(state, name).left_out
    if left_out and isinstance(model, Sam):  # beside the weights of a file lie losses; in a model they are layers that it runs
        raise SAMError(f"{name} has layers that no SAM has, such as {left_out[0]}.")
    return weights_in(state, name)


def load_model(path: str | Path, precision: Precision = "auto", adapter: str | Path | None = None) -> Loaded:
    """Load a SAM checkpoint on the CPU; its architecture is detected from its weights.

    Args:
        path: a file or folder as docs/checkpoints.md lists them, such as a `.pth` or `.safetensors` file in Meta's or Hugging
            Face's layout; whatever a trainer has put around or beside the weights is found and left out.
        precision: of the image encoder: `auto` (see `encoder_dtype`: mostly fp16 on CUDA, else fp32), `fp32`, `bf16` or `fp16`.
        adapter: a LoRA adapter of peft that was trained on this model, by its folder or its weights; it is merged in float32.

    Raises:
        SAMError: a file is missing, damaged, would run code, or is not a SAM's; `precision` is unknown; the adapter does not
            fit the model, or is of a kind that cannot be merged.
    """
    one_of(precision, PRECISIONS, "precision")
    # ComfyUI runs nodes in inference mode; weights made there could not be moved or used outside it.
    with torch.inference_mode(False), torch.no_grad():
        return _load(Path(path), precision, None if adapter is None else Path(adapter))


def _load(path: Path, precision: Precision, adapter: Path | None) -> Loaded:
    if adapter is None:
        return _from_weights(weights_in(read_checkpoint(path), path.name), path, precision)
    change = read_adapter(adapter)  # first: it is the smaller one
    state = merged(weights_in(read_checkpoint(path), path.name), path.name, change)
    return _from_weights(state, adapter, precision)


def _from_weights(state: dict[str, Tensor], path: Path, precision: Precision) -> Loaded:
    try:
        if is_sam2(state):
            image, video = to_sam2_names(state, path.name), to_video_names(state, path.name)
            return build_sam2(image, path, precision, version_of(state), video)
        if is_efficient_sam(state):
            return build_efficient_sam(state, path, precision)
        return _build_sam(sam_names(state, path.name), path, precision)
    except SAMError:
        raise
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SAMError(f"{path.name} was not loaded: the shapes of its weights do not fit together. ({error})") from error


def _build_sam(state: dict[str, Tensor], path: Path, precision: Precision) -> SAMModel:
    try:
        state = fold_checkpoint(state)
        parts = build(read_architecture({name: tensor.shape for name, tensor in state.items()}))
    except SAMError as error:
        raise SAMError(f"{path.name}: {error}") from error
    model = SAMModel(*parts, checkpoint=path, precision=precision)
    _fill(model, state)
    return model.eval().requires_grad_(False)


def _fill(model: SAMModel, state: dict[str, Tensor]) -> None:
    """Give the model its weights: all of them, and nothing left over."""
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or unknown or wrong:
        examples = ", ".join((missing + unknown + wrong)[:3])
        raise SAMError(
            f"{model.checkpoint.name} is a SAM variant that is not supported. Tensors missing: {len(missing)}; "
            f"unknown: {len(unknown)}; of a different shape: {len(wrong)} ({examples}, ...)."
        )
    model.load_state_dict(state, strict=True, assign=True)
